"""Damages tokenizers' files at random: every one must be read or refused in one line, in time and in little memory.

    python -m tests.fuzz_tokenizers --rounds 20000

runs so many in worker processes of limited memory. A worker that dies, hangs or raises anything but DemoBertError ends
it, with the seed of that round; `--seed N --rounds 1` repeats it.
"""

import argparse
import json
import multiprocessing
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from helpers.errors import DemoBertError, one_line
from helpers.tokenization import Tokenizer
from helpers.tokenizer_files import ReadingOptions, find_tokenizer
from tests import tokenizer_folders as folders

#: Seconds that a file may take, and bytes of address space that a worker may have.
TIME_LIMIT, MEMORY_LIMIT = 10.0, 4 << 30

#: Rounds that one worker does in turn.
_ROUNDS_OF_A_WORKER = 100

_TEXT = "What is [SEP] </s> TensorRT? naïve Ａ①ﬁ 是一 😀 " + "x" * 300

_NUMBERS = (0, 1, -1, 2, 1 << 20, 1 << 31, 1 << 33, 1 << 64, 10**400, 0.5, 1e308, -1e308, float("nan"), float("inf"))
_TEXTS = (
    "",
    " ",
    "\0",
    "▁",
    "##",
    "[UNK]",
    "</s>",
    "é",
    "\ud800",
    "x" * 5000,
    "(a+)+$",
    "(?=(a*)*)",
    "\\p{L}+",
    " {2,}",
)
_NAMES = (
    *("BertNormalizer", "Sequence", "Precompiled", "Replace", "Prepend", "Metaspace", "ByteLevel", "Split", "Digits"),
    *("WordPiece", "BPE", "Unigram", "WordLevel", "TemplateProcessing", "RobertaProcessing", "BertProcessing", "Strip"),
    *("BertTokenizer", "RobertaTokenizer", "AlbertTokenizer", "PreTrainedTokenizerFast", "NFKC", "Nmt", "Whitespace"),
)


def write_seeds(root: Path) -> list[Path]:
    """Folders of every family, small ones, to be damaged."""
    few = tuple(folders.word_pieces()[:200])
    found = [
        folders.legacy_word_piece(root / "bert", few, {"do_lower_case": True}, added={"[URL]": 200, "new": 201}),
        folders.legacy_byte_pairs(root / "roberta", {}),
        folders.sentencepiece_folder(root / "sentencepiece", "xlm-roberta", {"tokenizer_class": "XLMRobertaTokenizer"}),
    ]
    for family, name in (("albert", "Albert"), ("camembert", "Camembert"), ("xlm-roberta", "PreTrained")):
        vocab, unk = folders.unigram_vocabulary(family)
        cut = [*vocab[:120], *([] if family == "albert" else [["<mask>", 0.0]])]
        name = f"{name}TokenizerFast"
        found.append(folders.legacy_unigram_json(root / f"{family}-json", family, name, cut, unk, {}))
    for folder, kind in ((found[0], "bert"), (found[1], "roberta")):
        tokenizer = find_tokenizer(folder, None, ReadingOptions({"model_type": kind})).tokenizer
        for name in ("json", "as-it-is"):
            path = folders.start(root / f"{kind}-{name}", kind)
            (path / "tokenizer.json").write_bytes(tokenizer.json)
            settings = {"tokenizer_class": "PreTrainedTokenizerFast"} if name == "as-it-is" else {}
            folders.write_json(path / "tokenizer_config.json", settings | {"added_tokens_decoder": {}})
            found.append(path)
    return found


def _places(value, found: list) -> list:
    """(container, key) of everything in a JSON value; of a long list or object the first few."""
    entries = list(value.items()) if isinstance(value, dict) else list(enumerate(value))
    for key, item in entries[:12]:
        found.append((value, key))
        if isinstance(item, (dict, list)):
            _places(item, found)
    return found


def _odd_value(rng, old):
    """Something that could stand in the place of `old`."""
    pool = [None, True, False, [], {}, {"type": _NAMES[rng.integers(len(_NAMES))]}, [old], {"x": old}]
    kind = rng.integers(6)
    if kind == 0:
        return pool[rng.integers(len(pool))]
    if kind == 1:
        return _NUMBERS[rng.integers(len(_NUMBERS))]
    if kind == 2:
        return _NAMES[rng.integers(len(_NAMES))]
    if kind == 3 and isinstance(old, str) and old:
        place = rng.integers(len(old))
        return old[:place] + chr(rng.integers(1, 0xD7FF)) + old[place + 1 :]
    if kind == 4:
        deep = old
        for _ in range(int(rng.choice([3, 30, 150]))):
            deep = {"type": "Sequence", ("normalizers", "pretokenizers", "processors")[rng.integers(3)]: [deep]}
        return deep
    return _TEXTS[rng.integers(len(_TEXTS))]


def _damage_json(rng, path: Path) -> None:
    values = json.loads(path.read_text(encoding="utf-8"))
    for _ in range(rng.integers(1, 4)):
        places = _places(values, [])
        if not places:
            break
        container, key = places[rng.integers(len(places))]
        kind = rng.integers(4)
        if kind == 0 and isinstance(container, dict):
            del container[key]
        elif kind == 1 and isinstance(container, list):
            container.insert(key, json.loads(json.dumps(container[key])))
        else:
            container[key] = _odd_value(rng, container[key])
    path.write_text(json.dumps(values), encoding="utf-8")


def _damage_bytes(rng, path: Path) -> None:
    data = bytearray(path.read_bytes())
    for _ in range(rng.integers(1, 5)):
        place = int(rng.integers(len(data))) if data else 0
        kind = rng.integers(4)
        if kind == 0:
            del data[place : place + int(rng.integers(1, 200))]
        elif kind == 1:
            data[place:place] = bytes(rng.integers(0, 256, rng.integers(1, 9), np.uint8))
        elif kind == 2:
            data[place:place] = b"[" * int(rng.choice([1, 100, 200_000]))
        elif data:
            data[place] ^= 1 << rng.integers(8)
    path.write_bytes(data)


def one_round(seed: int, seeds: list[Path], work: Path) -> str:
    """Read one damaged folder; what came of it. Raises what is not DemoBertError."""
    rng = np.random.default_rng(seed)
    source = seeds[rng.integers(len(seeds))]
    folder = work / "folder"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, folder)
    files = sorted(path for path in folder.iterdir() if path.name != "config.json")
    likely = [path for path in files if path.name in ("tokenizer.json", "tokenizer_config.json")]
    path = (
        (likely or files)[rng.integers(len(likely or files))] if rng.random() < 0.8 else files[rng.integers(len(files))]
    )
    damage = _damage_json if path.suffix == ".json" and rng.random() < 0.8 else _damage_bytes
    damage(rng, path)
    model = json.loads((folder / "config.json").read_text())
    start = time.perf_counter()
    try:
        found = find_tokenizer(folder, None, ReadingOptions(model))
        if found is None:
            return "none"
        found.tokenizer.encode(_TEXT)
        assert Tokenizer.from_bytes(found.tokenizer.json).json == found.tokenizer.json
        outcome = "read"
    except DemoBertError as error:
        assert len(one_line(error, 1500)) > 10
        outcome = "refused"
    seconds = time.perf_counter() - start
    if seconds > TIME_LIMIT:
        raise TimeoutError(f"round {seed} took {seconds:.0f} s")
    return outcome


def run_rounds(first: int, count: int, seeds: list[Path]) -> dict[str, int]:
    """Rounds in this process. Raises RuntimeError that names the round that went wrong."""
    outcomes: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as work:
        for seed in range(first, first + count):
            try:
                outcome = one_round(seed, seeds, Path(work))
            except BaseException as error:
                raise RuntimeError(f"round {seed}: {type(error).__name__}: {error}") from error
            outcomes[outcome] = outcomes.get(outcome, 0) + 1
    return outcomes


def _worker(first: int, count: int, seeds: list[Path], results) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    try:
        results.send(run_rounds(first, count, seeds))
    except RuntimeError as error:
        results.send(str(error))


def main(arguments) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=int.from_bytes(np.random.bytes(4), "little"))
    args = parser.parse_args(arguments)
    print(f"first seed {args.seed}", flush=True)
    totals: dict[str, int] = {}
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as root:
        seeds = write_seeds(Path(root))
        for first in range(args.seed, args.seed + args.rounds, _ROUNDS_OF_A_WORKER):
            count = min(_ROUNDS_OF_A_WORKER, args.seed + args.rounds - first)
            results, sender = context.Pipe(duplex=False)
            process = context.Process(target=_worker, args=(first, count, seeds, sender))
            process.start()
            sender.close()
            outcome = results.recv() if results.poll(TIME_LIMIT * 12) else None
            process.join(TIME_LIMIT)
            if process.is_alive() or process.exitcode or outcome is None:
                process.kill()
                print(f"a worker hangs or died ({process.exitcode}) in rounds {first} to {first + count - 1}")
                return 1
            if isinstance(outcome, str):
                print(outcome)
                return 1
            for name, number in outcome.items():
                totals[name] = totals.get(name, 0) + number
    print(", ".join(f"{number} {name}" for name, number in sorted(totals.items())))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
