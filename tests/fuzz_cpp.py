"""Attacks the C++ side: build/perf's arguments, the bytes of an engine, of its card and of a configuration, and bert_inf.run's arrays.

    python3 -m tests.fuzz_cpp --seed N --seconds S

Each round must come out clean (what was asked for was done) or refused: by build/perf in one line with exit code 1 or 2,
by bert_inf with Error, TypeError or ValueError in one line. An engine without its card must be refused, whatever is in it,
and one whose bytes are not the card's. build/perf is a process of its own; a worker that dies is a crash of bert_inf.
DEMOBERT_CPP_BUILD=FOLDER takes another build than build/.
"""

import functools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from helpers import infer_c_engine
from helpers.bert_config import BertConfig
from tests import fuzzing
from tests.fuzzing import damage_bytes, damage_json

BUILD = Path(os.environ.get("DEMOBERT_CPP_BUILD") or infer_c_engine.BUILD_FOLDER)

#: Seconds that build/perf may take: it loads a tiny engine, and runs it a few times.
_PATIENCE = 60

#: The sizes that the engines of these rounds serve, and their tables have.
_BATCH, _LENGTH, _WORDS = 5, 16, 200

_FLAGS = ("-e", "-b", "-s", "-i", "-w", "-d", "-r", "-c", "-h", "--json", "--enable_graph", "--trust-engine")
_LONG_FLAGS = (
    "--engine",
    "--batch-size",
    "--sequence-length",
    "--iterations",
    "--random-seed",
    "--config-dir",
    "--help",
)
_VALUES = (
    *("0", "1", "2", "3", "4", "5", "6", "16", "17", "-1", "", " ", "1e3", "0x10", "8x", "nan", "inf", "é", "\udcff"),
    *("9223372036854775807", "9223372036854775808", "-9223372036854775808", "99999999999999999999", "n" * 300, "%s%n"),
    *("padded.engine", "packed.engine", "bare.engine", "padded.engine.json", "nowhere", "fifo", "folder", "loop", "."),
    *("out.json", "folder/out.json", "link", "model", "model/bert_config.json", "d/" * 3000, "\x1b[2J", "a\nb"),
)

#: How long it runs must not come to hours: a number of these flags that is larger is made small.
_LASTING = re.compile(r"(-i|-w|-d|--iterations|--warm-up-runs|--duration)=?(.*)", re.DOTALL)


def write_seeds(root: Path) -> Path:
    """A padded and a packed engine with their cards, one without, and their model's folder."""
    import builder_varseqlen
    from tests.cpp_build import build_tiny

    rng = np.random.default_rng(1)
    config = BertConfig(32, 1, 2, 32, vocab_size=_WORDS, max_position_embeddings=_LENGTH)
    model = root / "model"
    model.mkdir()
    engine = build_tiny(model, rng, config)[2]
    weights = ["-pt", str(model / "weights.safetensors"), "-c", str(model), "--backend", "openvino"]
    sizes = ["-b", str(_BATCH), "-s", str(_LENGTH)]
    builder_varseqlen.main([*weights, *sizes, "-o", str(root / "packed.engine")])
    for suffix in ("", ".json"):
        shutil.move(f"{engine}{suffix}", f"{root / 'padded.engine'}{suffix}")
    shutil.copy(root / "padded.engine", root / "bare.engine")
    return root


@functools.cache
def _module():
    infer_c_engine.BUILD_FOLDER = BUILD
    return infer_c_engine._module()


@functools.cache
def _loaded(engine: Path):
    return _module().bert_inf(engine)


def _run_perf(arguments: list[str], work: Path) -> str:
    """What came of build/perf in the folder `work`."""
    command = [os.fsencode(argument.replace("\0", "")) for argument in (str(BUILD / "perf"), *arguments)]
    try:
        result = subprocess.run(command, cwd=work, capture_output=True, timeout=_PATIENCE, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        print(f"{arguments} takes longer than {_PATIENCE} s")
        return "too slow"
    lines = result.stderr.decode(errors="replace").splitlines()
    errors = [line for line in lines if line.startswith("perf: error: ")]
    if result.returncode == 0 and not errors:
        return "clean"
    if result.returncode in (1, 2) and len(errors) == 1 and lines[-1] == errors[0] and len(lines) <= 3:
        return "refused"
    print(f"{arguments}: exit code {result.returncode}: {lines[-5:]}")
    return "crashes" if result.returncode < 0 else "tracebacks"


def _run_module(use) -> str:
    """What came of a call of bert_inf, which gives whether it did the right thing."""
    try:
        return "clean" if use() else "wrong"
    except (_module().Error, TypeError, ValueError) as error:
        one_line = str(error) and "\n" not in str(error)
        if not one_line:
            print(f"{type(error).__name__}: {error}")
        return "refused" if one_line else "tracebacks"


def _pick(rng, choices):
    return choices[rng.integers(len(choices))]


def _tame(arguments: list[str]) -> list[str]:
    """The same arguments, but for numbers that would take hours."""
    tamed, lasting = [], False
    for argument in arguments:
        found = _LASTING.fullmatch(argument)
        value = argument if lasting else found[2] if found else ""
        if _is_large(value):
            argument = "3" if lasting else f"{found[1]}{'=' * found[1].startswith('--')}3"
        tamed.append(argument)
        lasting = bool(found) and not found[2] and not lasting
    return tamed


def _is_large(value: str) -> bool:
    try:
        return float(value) > 20
    except ValueError:
        return False


def _fuzz_arguments(rng, seeds: Path, work: Path) -> str:
    """A right command line, some of whose words are dropped, doubled, exchanged, joined or broken."""
    engine = _pick(rng, ("padded.engine", "packed.engine", "bare.engine"))
    words = ["-e", engine, "-b", _pick(rng, "126"), "-s", _pick(rng, ("4", "16", "17")), "-i", "2", "-w", "0"]
    words += ["--json", "out.json"] * int(rng.integers(2)) + ["--trust-engine", "-c", "model"] * int(rng.integers(2))
    for _ in range(rng.integers(0, 5)):
        place, kind = int(rng.integers(len(words))), rng.integers(7)
        if kind == 0:
            del words[place]
        elif kind == 1:
            words.insert(place, words[place])
        elif kind == 2:
            words[place : place + 2] = ["".join(words[place : place + 2])]
        elif kind == 3:
            words[place : place + 2] = ["=".join(words[place : place + 2])]
        elif kind == 4:
            words.insert(place, _pick(rng, _FLAGS + _LONG_FLAGS))
        elif kind == 5:
            words[place] = _pick(rng, _VALUES)
        elif words[place]:
            at = rng.integers(len(words[place]))
            words[place] = words[place][:at] + chr(rng.integers(1, 0xD7FF)) + words[place][at + 1 :]
        if not words:
            break
    return _run_perf(_tame(words), work)


def _fuzz_files(rng, seeds: Path, work: Path) -> str:
    """An engine and its card, of which something is damaged, or from which the card is taken away."""
    engine = work / _pick(rng, ("padded.engine", "packed.engine"))
    card = Path(f"{engine}.json")
    what = _pick(rng, ("card", "card", "values", "values", "bytes", "no card", "no card, damaged"))
    if what in ("bytes", "no card, damaged"):
        damage_bytes(rng, engine)
    if what == "values":
        damage_json(rng, card)
    elif what == "card":
        damage_bytes(rng, card)
    elif what.startswith("no card"):
        card.unlink()
    if rng.random() < 0.5:
        outcome = _run_perf(["-e", engine.name, "-b", "1", "-s", "4", "-i", "1", "-w", "0"], work)
    else:
        outcome = _run_module(lambda: _module().bert_inf(engine).describe() != "")
    changed = engine.read_bytes() != (seeds / engine.name).read_bytes()
    return "wrong" if outcome == "clean" and (changed or not card.exists()) else outcome


def _fuzz_configuration(rng, seeds: Path, work: Path) -> str:
    """An engine without its card, trusted, and a configuration that is damaged."""
    path = work / "model" / "bert_config.json"
    (damage_json if rng.random() < 0.7 else damage_bytes)(rng, path)
    if rng.random() < 0.5:
        flags = ["-e", "bare.engine", "--trust-engine", "-b", "1", "-s", "4", "-i", "1", "-w", "0"]
        return _run_perf([*flags, "-c", _pick(rng, ("model", "model/bert_config.json"))], work)
    text = path.read_bytes().decode(errors="surrogateescape" if rng.random() < 0.2 else "replace")
    return _run_module(lambda: _module().bert_inf(work / "bare.engine", trust_engine=True, config=text).card != "")


def _good_inputs(rng, packed: bool) -> list:
    batch, length = int(rng.integers(1, _BATCH + 1)), int(rng.integers(1, _LENGTH + 1))
    shape = batch * length if packed else (batch, length)
    inputs = [rng.integers(0, _WORDS, shape, np.int32), rng.integers(0, 2, shape, np.int32)]
    if packed:
        return [*inputs, np.arange(batch + 1, dtype=np.int32) * length, np.zeros(length, np.int32)]
    return [*inputs, np.ones(shape, np.int32)]


class _Liar(np.ndarray):
    """An array that says of itself what is not so."""

    shape = property(lambda self: (1 << 40, 1))
    strides = property(lambda self: (1 << 40, 1))
    size = property(lambda self: -1)
    base = property(lambda self: self)


def _odd_array(rng, array):
    """Something in the place of a right array: the same seen otherwise, of other numbers, or no array at all."""
    numbers = (-1, _WORDS, 1, 0, 2**31 - 1, -(2**31))
    types = (">i4", np.int64, np.uint32, np.int16, float, bool, object, "V4", "U3", "M8[s]", [("x", "<i4")])
    kind = rng.integers(8)
    if kind == 0:
        return _pick(
            rng, (None, 7, "text", b"bytes", [[1]], {}, object(), array.tolist(), memoryview(array), np.int32(1))
        )
    if kind == 1:
        return array.astype(_pick(rng, types))
    if kind == 2:
        return _pick(
            rng, (array.T, array[::-1], array[..., ::-1], array[:0], array[None], array.ravel(), array[..., :1])
        )
    if kind == 3:
        strides = tuple(int(_pick(rng, (0, 4, -4, 8, 1, 1 << 40, -(1 << 40), 2**63 - 8))) for _ in array.shape)
        return np.lib.stride_tricks.as_strided(array, array.shape, strides)
    if kind == 4:
        return np.broadcast_to(np.int32(_pick(rng, numbers)), _pick(rng, ((1 << 40, 1), (2, 3), (1, 1 << 40), (5,))))
    if kind == 5:
        return array.view(_pick(rng, (_Liar, np.matrix if array.ndim == 2 else _Liar)))
    changed = array.copy()
    changed.flat[rng.integers(changed.size)] = _pick(rng, numbers)
    return changed if kind == 6 else np.frombuffer(changed.tobytes(), np.int32).reshape(changed.shape)


def _fuzz_arrays(rng, seeds: Path, work: Path) -> str:
    """The arrays of a run, some of them odd."""
    packed = rng.random() < 0.5
    bert = _loaded(seeds / ("packed.engine" if packed else "padded.engine"))
    inputs = _good_inputs(rng, packed)
    for place in rng.permutation(len(inputs))[: rng.integers(0, 3)]:
        inputs[place] = _odd_array(rng, inputs[place])
    if rng.random() < 0.1:
        inputs = inputs[1:] if rng.random() < 0.5 else [*inputs, inputs[0]]

    def use() -> bool:
        logits = bert.run(*inputs)
        shape = np.asarray(inputs[0]).shape  # also of one that lies about its own
        return logits.shape == (*shape, 2) and logits.dtype == np.float32 and bool(np.isfinite(logits).all())

    return _run_module(use)


def _fuzz_sizes(rng, seeds: Path, work: Path) -> str:
    """Numbers for the other methods."""
    bert = _loaded(seeds / _pick(rng, ("packed.engine", "padded.engine")))
    numbers = (0, 1, -1, 4, _BATCH, _LENGTH, _LENGTH + 1, 2**31, 2**62, 2**63 - 1, -(2**63))
    first, second = _pick(rng, numbers), _pick(rng, numbers)
    return _run_module(
        lambda: bert.prepare(first, second) is None if rng.random() < 0.5 else bert.padded_length(first) <= _LENGTH
    )


def _prepare_folder(seeds: Path, work: Path) -> Path:
    """An empty folder with copies of the seeds, and what no file should be."""
    folder = work / "place"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(seeds, folder)
    os.mkfifo(folder / "fifo")
    (folder / "folder").mkdir()
    (folder / "loop").symlink_to("loop")
    (folder / "link").symlink_to("target.json")
    return folder


def _replaces_an_input(folder: Path, seeds: Path) -> bool:
    """Whether a report has taken the place of a file of the engine that it is of, or something else that of any file."""
    for path in seeds.rglob("*"):
        found = folder / path.relative_to(seeds)
        if not path.is_file() or found.read_bytes() == path.read_bytes():
            continue
        card = json.loads(found.read_text())["card"]
        engine = "packed" if card["layout"] == "packed" else "padded" if card["engine_sha256"] else "bare"
        if found.name.startswith(f"{engine}.engine"):
            return True
    return False


def one_round(seed: int, seeds: Path, work: Path) -> str:
    rng = np.random.default_rng(seed)
    if rng.random() < 0.6:  # these are done in a moment
        return (_fuzz_sizes if rng.random() < 0.1 else _fuzz_arrays)(rng, seeds, work)
    folder = _prepare_folder(seeds, work)
    fuzz = _pick(rng, (_fuzz_arguments, _fuzz_files, _fuzz_files, _fuzz_configuration))
    outcome = fuzz(rng, seeds, folder)
    if [name for name in os.listdir(folder) if name.endswith((".tmp", ".lock"))]:
        return "leftovers"
    replaced = fuzz is _fuzz_arguments and _replaces_an_input(folder, seeds)
    return "wrong" if replaced or not (folder / "loop").is_symlink() else outcome


def main(arguments) -> int:
    if not (BUILD / "perf").exists():
        sys.exit(f"{BUILD / 'perf'} is not there: build the C++ side (README.md)")
    return fuzzing.run(arguments, __doc__.splitlines()[0], write_seeds, one_round, memory=4 << 30)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
