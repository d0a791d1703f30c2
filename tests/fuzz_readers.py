"""Damages what each reader reads, at random: it is read, or refused in one line, in time and in little memory.

    python3 -m tests.fuzz_readers --rounds 20000 [--only squad,csv]

Checkpoints of every format, configurations, calibration caches, engine cards, engines with their card and tokenizer,
SQuAD files, predictions, tables of questions, partial outputs, pending files, and the arrays given to an engine. An
engine whose files are damaged must be refused, or compute what it did; one without its card is refused, not loaded. See
tests/fuzzing.py for what is said and how a round is repeated.
"""

import functools
import json
import pickle
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from helpers.answerer import engine_tokenizer
from helpers.backends import backend_module, load_engine, write_engine
from helpers.batching import PackedBatch, PaddedBatch
from helpers.bert_config import BertConfig
from helpers.build_options import BuildOptions
from helpers.calibration_cache import Fingerprint, read_cache, write_cache
from helpers.engine_card import EngineCard
from helpers.errors import DemoBertError
from helpers.journal import Journal
from helpers.outputs import finish_pending
from helpers.quantization import range_names
from helpers.rows import RowsFile
from helpers.squad import read_predictions, read_squad
from helpers.weights import load_weights
from tests import checkpoints, fuzzing
from tests.conftest import ROOT
from tests.fuzzing import damage_bytes, damage_json
from tests.reference_bert import random_weights

CONFIG = BertConfig(48, 2, 3, 64, 101, 16)
OPTIONS = BuildOptions(batch_sizes=(2,), sequence_lengths=(16,))
ANY = Fingerprint(None, None, None, None, None)
ENGINE = "x.engine"
DATA = ROOT / "tests" / "data"


@dataclass(frozen=True)
class Kind:
    """A folder that is damaged, and how what is in it is read; `spared`: files that are not damaged."""

    write: callable
    read: callable
    spared: tuple = ()


def batch() -> PaddedBatch:
    ids = np.arange(32, dtype=np.int32).reshape(2, 16) % 101
    return PaddedBatch(ids, ids % 2, np.ones_like(ids))


class Wrong(Exception):
    """What was read is not what it should be."""


def tensors():
    return random_weights(CONFIG, np.random.default_rng(7))


def _hugging_face(folder: Path, **more) -> None:
    checkpoints.write_folder(folder, CONFIG, checkpoints.pytorch_state(CONFIG, tensors()), **more)


def _legacy(folder: Path) -> None:
    checkpoints.write_pickled(folder / "model.pt", checkpoints.pytorch_state(CONFIG, tensors()), legacy=True)


def _megatron(folder: Path) -> None:
    (folder / "model.pkl").write_bytes(pickle.dumps(checkpoints.megatron_state(CONFIG, tensors()), 4))


def _tensorflow(folder: Path) -> None:
    checkpoints.write_tensorflow(folder / "model.ckpt", checkpoints.tensorflow_state(CONFIG, tensors()))


def _onnx(folder: Path) -> None:
    model = checkpoints.hugging_face_model(CONFIG, tensors())
    checkpoints.write_onnx(folder / "model.onnx", model, dynamo=False)


def _cache(folder: Path) -> None:
    ranges = {name: 0.5 + number for number, name in enumerate(range_names(CONFIG))}
    write_cache(folder / "ours", Fingerprint("a" * 64, "b" * 64, 16, 10, "minmax"), ranges)


def _engine(folder: Path) -> None:
    """A real engine of a small network, its card and the bundled model's tokenizer with as many pieces as it has rows."""
    from helpers.model_folder import ModelFolder
    from tests.conftest import BUNDLED

    found = ModelFolder.open(BUNDLED)
    config = replace(CONFIG, vocab_size=found.config.vocab_size)
    weights = checkpoints.bert_weights(config, random_weights(config, np.random.default_rng(7)), "erf")
    built = backend_module("openvino").prepare(config, OPTIONS).build(weights)
    write_engine(folder / ENGINE, built, "openvino", OPTIONS, config, found.tokenizer())
    np.save(folder / "logits.npy", load_engine(folder / ENGINE, "padded").run(batch()))


def _read_engine(folder: Path) -> None:
    engine = load_engine(folder / ENGINE, "padded")
    engine_tokenizer(folder / ENGINE, engine.card)
    if not np.allclose(engine.run(batch()), np.load(folder / "logits.npy"), atol=1e-4):
        raise Wrong("a damaged engine computes something else")


def _read_cardless(folder: Path) -> None:
    """Whatever is in the engine's file, it must not be loaded."""
    EngineCard.path_for(folder / ENGINE).unlink(missing_ok=True)
    load_engine(folder / ENGINE, None)
    raise Wrong("an engine without its card was loaded")


def _table(name: str, folder: Path) -> None:
    rows = [{"id": f"q{n}", "question": f"When, {n}?", "context": 'In "1889",\nthey say.'} for n in range(5)]
    if name.endswith(".csv"):
        import csv

        with (folder / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, ["id", "question", "context"])
            writer.writeheader()
            writer.writerows(rows)
    else:
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def _journal(folder: Path) -> None:
    with Journal(folder / "out", {"engine": "e"}) as journal:
        journal.append(b"one\ntwo\n", 2, 0, "digest")


def _read_journal(folder: Path) -> None:
    with Journal(folder / "out", {"engine": "e"}) as journal:
        if journal.entries not in (0, 2):
            raise Wrong(f"{journal.entries} entries")
        journal.append(b"three\n", 1, 0, "digest")
        journal.publish()


def _pending(folder: Path) -> None:
    names = ["x", "x.json"]
    temporaries = {name: f".{name}.abcdefgh.tmp" for name in names}
    for name in names:
        (folder / name).write_bytes(b"old")
        (folder / temporaries[name]).write_bytes(b"new")
    (folder / ".x.pending").write_text(json.dumps(temporaries))
    (folder / "victim").write_bytes(b"theirs")


def _read_pending(folder: Path) -> None:
    finish_pending(folder / "x", [folder / "x", folder / "x.json"])
    left = {path.name: path.read_bytes() for path in folder.iterdir()}
    # A list that is well formed may take a file away, or name a temporary one that is lost; nothing else changes.
    if not {left.get(name, b"new") for name in ("x", "x.json")} <= {b"old", b"new"} or left["victim"] != b"theirs":
        raise Wrong("a pending file has changed what is not of its set")


def _squad(name: str, folder: Path) -> None:
    shutil.copy(DATA / name, folder / "squad.json")


KINDS = {
    "safetensors": Kind(_hugging_face, lambda folder: load_weights(CONFIG, pytorch=folder)),
    "shards": Kind(functools.partial(_hugging_face, shards=3), lambda folder: load_weights(CONFIG, pytorch=folder)),
    "pickled": Kind(
        functools.partial(_hugging_face, pickled=True), lambda folder: load_weights(CONFIG, pytorch=folder)
    ),
    "legacy": Kind(_legacy, lambda folder: load_weights(CONFIG, pytorch=folder / "model.pt")),
    "megatron": Kind(_megatron, lambda folder: load_weights(CONFIG, megatron=folder / "model.pkl")),
    "tensorflow": Kind(_tensorflow, lambda folder: load_weights(CONFIG, tensorflow=folder / "model.ckpt")),
    "onnx": Kind(_onnx, lambda folder: load_weights(CONFIG, onnx=folder / "model.onnx")),
    "config": Kind(lambda folder: checkpoints.write_config(folder, CONFIG, "config.json"), BertConfig.from_folder),
    "cache": Kind(_cache, lambda folder: read_cache(folder / "ours", ANY, CONFIG)),
    "engine": Kind(_engine, _read_engine, spared=("logits.npy",)),
    "cardless": Kind(_engine, _read_cardless, spared=("logits.npy",)),
    "squad": Kind(functools.partial(_squad, "squad_v1.1.json"), lambda folder: read_squad(folder / "squad.json")),
    "squad2": Kind(functools.partial(_squad, "squad_v2.0.json"), lambda folder: read_squad(folder / "squad.json")),
    "predictions": Kind(
        lambda folder: (folder / "p.json").write_text(json.dumps({f"q{n}": "text" for n in range(9)})),
        lambda folder: read_predictions(folder / "p.json"),
    ),
    "csv": Kind(functools.partial(_table, "rows.csv"), lambda folder: list(RowsFile(str(folder / "rows.csv")))),
    "jsonl": Kind(functools.partial(_table, "rows.jsonl"), lambda folder: list(RowsFile(str(folder / "rows.jsonl")))),
    "journal": Kind(_journal, _read_journal),
    "pending": Kind(
        _pending, _read_pending, spared=("x", "x.json", "victim", ".x.abcdefgh.tmp", ".x.json.abcdefgh.tmp")
    ),
}


def write_seeds(only: tuple[str, ...], root: Path) -> dict[str, Path]:
    folders = {name: root / name for name in KINDS if name in only}
    for name, folder in folders.items():
        folder.mkdir()
        KINDS[name].write(folder)
    if "run" in only:
        folders["run"] = folders.get("engine") or root / "run"
        if "engine" not in folders:
            folders["run"].mkdir()
            _engine(folders["run"])
    return folders


@functools.cache
def _loaded(folder: Path):
    return load_engine(folder / ENGINE, "padded")


def _odd_array(rng):
    """Something that could be given in the place of an int32 array [B, S]."""
    shape = tuple(rng.integers(0, 20, rng.integers(0, 4)))
    types = (np.int32, np.int64, np.float32, bool, object, "U3", ">i4", np.uint8)
    array = rng.integers(-3, 200, shape).astype(types[rng.integers(len(types))] if rng.random() < 0.5 else np.int32)
    odd = (
        array,
        array.tolist(),
        array[::-1] if array.ndim else array,
        None,
        "text",
        7,
        np.broadcast_to(array, (2, *shape)),
    )
    return odd[rng.integers(len(odd))] if rng.random() < 0.5 else array


def _run_odd(rng, folder: Path) -> str:
    """Give an engine odd arrays: it computes finite logits, or refuses."""
    inputs = list(batch().inputs().values())
    for _ in range(rng.integers(1, 4)):
        place, kind = rng.integers(3), rng.integers(3)
        if kind == 0:
            inputs[place] = _odd_array(rng)
        elif kind == 1 and isinstance(inputs[place], np.ndarray) and inputs[place].size:
            inputs[place] = inputs[place].copy()
            inputs[place].flat[rng.integers(inputs[place].size)] = rng.choice([-1, 0, 1, 2, 101, 2**31 - 1])
        else:
            rows, columns = rng.integers(1, 4), rng.integers(1, 20)
            inputs = [np.asarray(array)[:rows, :columns] if np.ndim(array) == 2 else array for array in inputs]
    odd = PaddedBatch(*inputs) if rng.random() < 0.9 else PackedBatch(*inputs, inputs[0])
    logits = _loaded(folder).run(odd)
    if logits.shape != (*inputs[0].shape, 2) or not np.isfinite(logits).all():
        return "wrong"
    return "accepted"


def one_round(seed: int, seeds: dict[str, Path], work: Path) -> str:
    rng = np.random.default_rng(seed)
    name = sorted(seeds)[rng.integers(len(seeds))]
    try:
        if name == "run":
            return f"run {outcome}" if (outcome := _run_odd(rng, seeds[name])) == "accepted" else outcome
        folder = work / "folder"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(seeds[name], folder)
        files = sorted(path for path in folder.iterdir() if path.name not in KINDS[name].spared)
        for _ in range(rng.integers(1, 3)):
            path = files[rng.integers(len(files))]
            kind = rng.random()
            if kind < 0.03:
                path.unlink(missing_ok=True)
            elif kind < 0.06:
                path.write_bytes(b"")
            elif not path.exists():
                continue
            elif path.suffix == ".json" and kind < 0.7:
                try:
                    damage_json(rng, path)
                except (ValueError, RecursionError):  # it is damaged already, and no JSON any more
                    damage_bytes(rng, path)
            else:
                damage_bytes(rng, path)
        KINDS[name].read(folder)
        return f"{name} accepted"
    except Wrong as error:
        print(f"round {seed}: {name}: {error}", flush=True)
        return "wrong"
    except DemoBertError as error:
        outcome = fuzzing.refused(error)
        return f"{name} refused" if outcome == "refused" else outcome


def main(arguments) -> int:
    only = (*KINDS, "run")
    if "--only" in arguments:
        place = arguments.index("--only")
        only = tuple(arguments[place + 1].split(","))
        arguments = arguments[:place] + arguments[place + 2 :]
    write = functools.partial(write_seeds, only)
    return fuzzing.run(arguments, __doc__.splitlines()[0], write, one_round, memory=6 << 30)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
