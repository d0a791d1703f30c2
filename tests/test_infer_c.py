"""The C++ side on the CPU: built from a clean tree (tests/cpp_build.py), then held against the Python scripts."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

import builder
import builder_varseqlen
from helpers import infer_c_engine
from helpers.backends import load_engine, without_card
from helpers.batching import PaddedBatch
from helpers.benchmark import random_batch, random_packed_batch
from helpers.bert_config import BertConfig
from helpers.engine_card import EngineCard, EngineFacts
from helpers.errors import DemoBertError
from tests.conftest import BUNDLED, ROOT
from tests.cpp_build import build_tiny
from tests.reference_bert import random_inputs, reference_logits
from tests.test_families_end_to_end import model_folder  # noqa: F401, a fixture
from tests.test_scripts import README_PASSAGE, xquad

#: How often an engine is loaded, run and freed; a check by hand takes 1000.
CYCLES = int(os.environ.get("DEMOBERT_CYCLES", "60"))

#: As in test_openvino_engine.py: float32 engines against numpy float64.
FLOAT32_TOLERANCE = 1e-3


@pytest.fixture(scope="module")
def bundled_packed(tmp_path_factory) -> Path:
    engine = tmp_path_factory.mktemp("packed") / "packed.engine"
    builder_varseqlen.main(["-pt", str(BUNDLED), "-o", str(engine), "-b", "4", "-s", "256", "--backend", "openvino"])
    return engine


@pytest.fixture(scope="module")
def packed_bert(built, bundled_packed):
    return built.module.bert_inf(bundled_packed)


def damaged_copy(engine: Path, folder: Path, change=lambda data: data, **card_changes) -> Path:
    """A copy of an engine, changed, with a card that fits what is now in it but for `card_changes`."""
    path = folder / "damaged.engine"
    data = change(engine.read_bytes())
    path.write_bytes(data)
    card = EngineCard.read(EngineCard.path_for(engine))
    fitting = {"engine_sha256": hashlib.sha256(data).hexdigest(), "engine_bytes": len(data)}
    replace(card, **{**fitting, **card_changes}).write(EngineCard.path_for(path))
    return path


def without_rate(text: str) -> list[str]:
    return [line for line in text.splitlines() if not line.startswith("Running inference in")]


QUESTION = ["-p", *README_PASSAGE.split(), "-q", "What is TensorRT?"]


def test_the_same_answer_and_probability(built, script, bundled_engine, bundled_packed):
    for name, engine in (("inference.py", bundled_engine), ("inference_varseqlen.py", bundled_packed)):
        python = script(name, "-e", engine, *QUESTION)
        cpp = script("inference_c.py", "-e", engine, *QUESTION)
        assert python.code == cpp.code == 0
        assert without_rate(cpp.out) == without_rate(python.out) and "With probability: " in cpp.out


def test_a_question_as_the_shell_asks_it(built, bundled_engine):
    """In a process of its own, where the module is the first to load OpenVINO."""
    code = (
        "import sys; from pathlib import Path; from helpers import cli; from helpers import infer_c_engine; "
        "import inference_c; infer_c_engine.BUILD_FOLDER = Path(sys.argv.pop(1)); cli.run(inference_c.main)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(built.folder), "-e", str(bundled_engine), *QUESTION, "--verbose"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert "Answer: 'a high performance deep learning inference platform'" in result.stdout, result
    assert result.stderr.startswith("infer_c, OpenVINO ")


@pytest.mark.sampled(0.4)
@pytest.mark.parametrize("model_type", ["roberta", "distilbert", "electra", "albert"])
def test_other_families_get_the_same_answer(model_type, built, script, model_folder, tmp_path):  # noqa: F811
    folder = model_folder(model_type)[0]
    engine = tmp_path / "family.engine"
    assert script("builder.py", "-pt", folder, "-o", engine, "-s", 120, "--backend", "openvino").code == 0
    python, cpp = (script(name, "-e", engine, *QUESTION) for name in ("inference.py", "inference_c.py"))
    assert python.code == cpp.code == 0 and without_rate(cpp.out) == without_rate(python.out)
    assert "Batch Size: 1" in built.perf("-e", engine, "-s", 64, "-i", 2, "-w", 1).stdout


def test_questions_of_all_of_xquad_get_the_same_predictions(built, script, bundled_half_engine, tmp_path):
    """One question of every other passage: the rest would say it again, and take six minutes on two slow cores."""
    data = json.loads(xquad().read_text())
    for article in data["data"]:
        article["paragraphs"] = [part | {"qas": part["qas"][:1]} for part in article["paragraphs"][::2]]
    (tmp_path / "squad.json").write_text(json.dumps(data))
    for name in ("inference.py", "inference_c.py"):
        outputs = ["-o", tmp_path / f"{name}.json", "--n-best-output", tmp_path / f"{name}.n_best.json"]
        assert script(name, "-e", bundled_half_engine, "-sq", tmp_path / "squad.json", "-b", 8, *outputs).code == 0
    assert (tmp_path / "inference_c.py.json").read_bytes() == (tmp_path / "inference.py.json").read_bytes()
    assert len(json.loads((tmp_path / "inference_c.py.json").read_text())) == 144
    assert (tmp_path / "inference_c.py.n_best.json").read_bytes() == (
        tmp_path / "inference.py.n_best.json"
    ).read_bytes()


def test_a_packed_engine_answers_a_squad_file(built, script, bundled_packed, tmp_path):
    data = json.loads(xquad().read_text())
    some = {**data, "data": [{**data["data"][0], "paragraphs": data["data"][0]["paragraphs"][:2]}]}
    (tmp_path / "squad.json").write_text(json.dumps(some))
    for name in ("inference_varseqlen.py", "inference_c.py"):
        flags = ["-sq", tmp_path / "squad.json", "-o", tmp_path / f"{name}.json"]
        assert script(name, "-e", bundled_packed, *flags).code == 0
    cpp, python = (
        json.loads((tmp_path / f"{name}.json").read_text()) for name in ("inference_c.py", "inference_varseqlen.py")
    )
    assert cpp == python and cpp


@pytest.mark.parametrize("round_", range(2))
def test_random_models_equal_the_reference(built, rng, tmp_path, round_):
    config, tensors, path = build_tiny(tmp_path, rng)
    bert = built.module.bert_inf(path)
    python = load_engine(path, "padded")
    for batch, length in (
        (1, 1),
        (5, config.max_position_embeddings),
        (int(rng.integers(1, 6)), int(rng.integers(1, min(8, config.max_position_embeddings) + 1))),
    ):
        inputs = random_inputs(config, rng, batch, length)
        logits = bert.run(*inputs)
        assert logits.shape == (batch, length, 2) and logits.dtype == np.float32
        np.testing.assert_allclose(
            logits, reference_logits(config, tensors, "erf", *inputs), atol=FLOAT32_TOLERANCE, rtol=0
        )
        np.testing.assert_array_equal(logits, python.run(PaddedBatch(*inputs)))
        assert bert.padded_length(length) == python.padded_length(length)
    assert json.loads(bert.card) == json.loads(EngineCard.path_for(path).read_text())


def test_packed_equals_python(built, rng, bundled_packed):
    bert, python = built.module.bert_inf(bundled_packed), load_engine(bundled_packed, "packed")
    for count in (1, 4):
        batch = random_packed_batch(python.card, rng.integers(1, 257, count).tolist(), int(rng.integers(1 << 30)))
        logits = bert.run(*batch.inputs().values())
        assert logits.shape == (batch.token_count, 2)
        np.testing.assert_array_equal(logits, python.run(batch))


def test_prepare_and_limits(built, tiny):
    config, _, path = tiny
    longest = config.max_position_embeddings
    bert = built.module.bert_inf(str(path), max_batch=2, max_seq=longest - 1)
    bert.prepare(2, longest - 1)
    bert.prepare(batch_size=1, sequence_length=1)
    for batch, length in ((3, 1), (1, longest), (0, 1), (1, -1), (1 << 62, 1 << 62)):
        with pytest.raises(built.module.Error):
            bert.prepare(batch, length)
    with pytest.raises(built.module.Error, match=f"3 x 4 is over what this bert_inf was made for, 2 x {longest - 1}"):
        bert.run(*[np.ones((3, 4), np.int32)] * 3)
    for limits in ({"max_batch": 6}, {"max_seq": longest + 1}, {"max_batch": 0}, {"max_seq": -1}):
        with pytest.raises(built.module.Error):
            built.module.bert_inf(path, **limits)
    with pytest.raises(TypeError):
        built.module.bert_inf(path, max_batch="2")


def test_arrays_in_every_memory_layout(built, rng, tiny):
    config, _, path = tiny
    bert = built.module.bert_inf(path)
    inputs = random_inputs(config, rng, 4, 6)
    wanted = bert.run(*inputs)

    def strided(array):
        wide = np.full((8, 18), 77, np.int32)
        wide[::2, ::3] = array
        return wide[::2, ::3]

    def backwards(array):
        return np.ascontiguousarray(array[::-1, ::-1])[::-1, ::-1]

    def misaligned(array):
        memory = np.empty(array.nbytes + 1, np.uint8)[1:]
        memory[:] = np.frombuffer(array.tobytes(), np.uint8)
        return memory.view(np.int32).reshape(array.shape)

    def read_only(array):
        return np.frombuffer(array.tobytes(), np.int32).reshape(array.shape)

    class Subclass(np.ndarray):
        pass

    for form in (strided, backwards, misaligned, read_only, np.asfortranarray, lambda array: array.view(Subclass)):
        np.testing.assert_array_equal(bert.run(*[form(array.astype(np.int32)) for array in inputs]), wanted)
    again = bert.run(*inputs)
    np.testing.assert_array_equal(wanted, again)
    assert not np.shares_memory(wanted, again)


ONES = np.ones((2, 3), np.int32)


@pytest.mark.sampled(0.4)
@pytest.mark.parametrize(
    ("arrays", "error", "message"),
    [
        ([], TypeError, "a padded engine: it takes 3 arrays, not 0"),
        ([ONES] * 4, TypeError, "it takes 3 arrays, not 4"),
        ([[[1]], ONES, ONES], TypeError, "input_ids must be a numpy array"),
        ([None, ONES, ONES], TypeError, "input_ids must be a numpy array"),
        ([ONES, ONES.astype(np.int64), ONES], TypeError, "segment_ids must be int32, not int64"),
        ([ONES, ONES, ONES.astype(bool)], TypeError, "input_mask must be int32, not bool"),
        ([ONES.astype(">i4"), ONES, ONES], TypeError, "input_ids must be int32, not >i4"),
        ([ONES.astype(np.uint32), ONES, ONES], TypeError, "input_ids must be int32, not uint32"),
        ([ONES.astype(object), ONES, ONES], TypeError, "input_ids must be int32, not object"),
        ([ONES[0]] * 3, ValueError, r"input_ids must have 2 dimensions.*shape \(3,\)"),
        ([ONES[None]] * 3, ValueError, r"input_ids must have 2 dimensions.*shape \(1, 2, 3\)"),
        ([ONES[:0]] * 3, ValueError, r"none of them 0, and has the shape \(0, 3\)"),
        ([np.array(1, np.int32)] * 3, ValueError, "input_ids must have 2 dimensions"),
        ([ONES, ONES[:, :2], ONES], ValueError, r"the shapes of the inputs differ: \(2, 3\) and \(2, 2\)"),
        ([ONES, ONES, ONES[:1]], ValueError, r"differ: \(2, 3\) and \(1, 3\)"),
        ([ONES, ONES, ONES * 2], "Error", "the input mask must be ones"),
        ([ONES, ONES, ONES * 0], "Error", "the input mask must be ones"),
        ([ONES, ONES, np.array([[1, 1, 0], [1, 0, 1]], np.int32)], "Error", "the input mask must be ones"),
        ([ONES * -1, ONES, ONES], "Error", "a token id is outside the model's"),
        ([ONES * (2**31 - 1), ONES, ONES], "Error", "a token id is outside the model's"),
        ([ONES, ONES * -1, ONES], "Error", "a segment id is outside the model's"),
        ([np.ones((6, 1), np.int32)] * 3, "Error", "6 x 1 is over what this bert_inf was made for"),
        ([np.ones((1, 4000), np.int32)] * 3, "Error", "1 x 4000 is over what this bert_inf was made for"),
        # One element's memory, seen as 4 TB: nothing may be allocated for it.
        ([np.broadcast_to(np.int32(1), (1 << 40, 1))] * 3, "Error", "is over what this bert_inf was made for"),
    ],
)
def test_what_a_padded_engine_refuses(built, tiny, arrays, error, message):
    bert = built.module.bert_inf(tiny[2])
    with pytest.raises(built.module.Error if error == "Error" else error, match=message):
        bert.run(*arrays)


class Strange(np.ndarray):
    """An array that says of itself what is not so."""

    shape = property(lambda self: (1 << 40, 1 << 40))
    strides = property(lambda self: (0, 0))
    dtype = property(lambda self: 1 / 0)
    base = property(lambda self: self)


def in_its_memory(shape, strides, offset=0):
    """A view of 6 numbers of 4 bytes, within larger memory that is not its own."""
    memory = np.ones(6, np.int32)
    return np.lib.stride_tricks.as_strided(memory[offset:], shape, strides)


def test_arrays_of_every_kind(built, rng, tiny):
    """Whatever is given: logits, or an error in one line."""
    bert = built.module.bert_inf(tiny[2])
    wanted = bert.run(ONES, ONES * 0, ONES)
    large = np.zeros((1 << 27,), np.int32)  # pages of zeros that are never touched
    far = np.lib.stride_tricks.as_strided(large, (2, 3), (4 << 26, 4 << 24))
    np.testing.assert_array_equal(bert.run(ONES, far, ONES), wanted)
    np.testing.assert_array_equal(bert.run(np.broadcast_to(np.int32(1), (2, 3)), ONES * 0, ONES.view(Strange)), wanted)
    memory = bytearray(ONES.tobytes())
    for lent in (memory, memoryview(memory), bytes(memory)):
        np.testing.assert_array_equal(bert.run(np.frombuffer(lent, np.int32).reshape(2, 3), ONES * 0, ONES), wanted)
    records = np.ones((2, 3), [("one", "<i4"), ("two", "<i4")])
    np.testing.assert_array_equal(bert.run(records["two"], ONES * 0, np.array(np.ones((2, 3)), "<i4")), wanted)
    for given in (
        *(5, "text", b"bytes", [[1]], ((1,),), {}, None, object(), np.int32(1), memory, memoryview(ONES), range(3), np),
        *(records, ONES.astype("V4"), ONES.astype("U4"), ONES.astype("M8[s]"), np.matrix(ONES.astype(float))),
        np.ma.array(ONES.astype(np.int16)),
    ):
        for place in range(3):
            with pytest.raises(TypeError, match="must be"):
                bert.run(*[given if place == i else ONES for i in range(3)])
    with pytest.raises(ZeroDivisionError):  # its own
        bert.run(ONES.astype(float).view(Strange), ONES, ONES)


@pytest.mark.parametrize(
    ("shape", "strides"),
    [
        ((2, 3), (1 << 40, 4)),
        ((2, 3), (-(1 << 40), 4)),
        ((2, 3), (4, -(1 << 40))),
        ((2, 3), (2**63 - 8, 4)),
        ((2, 3), (2**62, 2**62)),
        ((2, 3), (16, 4)),  # one number beyond the end
        ((2, 3), (-4, 4)),  # one before the beginning
    ],
)
def test_strides_that_leave_the_memory(built, tiny, shape, strides):
    """as_strided makes such arrays: reading them ends the process, or shows what is not theirs."""
    bert = built.module.bert_inf(tiny[2])
    for order in (in_its_memory(shape, strides), in_its_memory(shape, strides)[:, ::1]):
        with pytest.raises(ValueError, match="segment_ids has strides that leave its memory"):
            bert.run(ONES, order, ONES)
    column_major = np.ones((6, 2), np.int32, order="F")
    with pytest.raises(ValueError, match="input_ids has strides that leave its memory"):
        bert.run(np.lib.stride_tricks.as_strided(column_major, shape, (1 << 40, 4)), ONES, ONES)
    lent = np.frombuffer(bytearray(24), np.int32)
    with pytest.raises(ValueError, match="input_ids has strides that leave its memory"):
        bert.run(np.lib.stride_tricks.as_strided(lent, shape, strides), ONES, ONES)


def members(bert) -> dict:
    """Every method and property of a bert_inf, as something to call."""
    return {
        "run": lambda: bert.run(ONES, ONES, ONES),
        "run without arrays": lambda: bert.run(),
        "prepare": lambda: bert.prepare(1, 1),
        "padded_length": lambda: bert.padded_length(3),
        "describe": lambda: bert.describe(),
        "parallel_runs": lambda: bert.parallel_runs,
        "card": lambda: bert.card,
    }


def test_a_bert_inf_that_holds_no_engine(built, tiny, tmp_path):
    """In a process of its own: what is not so would crash it."""
    code = f"""
import copy, sys
from tests.test_infer_c import *
infer_c_engine.BUILD_FOLDER = Path({str(built.folder)!r})
module = infer_c_engine._module()

class Child(module.bert_inf):
    def __init__(self):
        pass

class Failed(module.bert_inf):
    def __init__(self, path):
        try:
            super().__init__(path)
        except module.Error:
            pass

def by_copy():
    return copy.copy(module.bert_inf({str(tiny[2])!r}))

ways = [lambda: module.bert_inf.__new__(module.bert_inf), lambda: Child.__new__(Child), Child, by_copy]
ways += [lambda: Failed("/nowhere"), lambda: Failed.__new__(Failed, "x")]
for way in ways:
    try:
        empty = way()
    except TypeError as error:  # pybind11 sees to it, or Python
        print("refused", str(error).count("\\n"))
        continue
    for name, use in members(empty).items():
        try:
            use()
        except module.Error as error:
            assert "holds no engine" in str(error)
            print("told", str(error).count("\\n"))
    del empty
whole = Child.__new__(Child)
module.bert_inf.__init__(whole, {str(tiny[2])!r})
module.bert_inf.__init__(whole, {str(tiny[2])!r})
assert {{name: str(use()) for name, use in members(whole).items() if name in ("padded_length", "card")}}
for use in (module.bert_inf.run, module.bert_inf.describe, module.bert_inf.card.fget):
    for other in (5, None, object()):
        try:
            use(other)
        except TypeError as error:
            print("told", str(error).count("\\n"))
print("done")
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result
    lines = result.stdout.split()
    assert lines[-1] == "done" and set(lines[1::2]) == {"0"}, result
    assert lines.count("told") >= 3 * len(members(None)) + 9


def test_lengths_that_no_engine_has(built, tiny):
    bert = built.module.bert_inf(tiny[2])
    longest = tiny[0].max_position_embeddings
    for length in (longest + 1, 2**63 - 1, 2**62):
        assert bert.padded_length(length) == longest
    assert bert.padded_length(-(2**63)) <= 0
    with pytest.raises(TypeError):
        bert.padded_length(2**63)


def test_short_memory_is_a_memory_error(built, tiny):
    """The module's part of `ulimit -v`: what OpenVINO makes of it is told apart from a damaged engine."""
    if "sanitized" in built.folder.name:
        pytest.skip("a sanitizer takes all addresses that there are")
    code = f"""
import resource, sys
from pathlib import Path
from helpers import infer_c_engine
infer_c_engine.BUILD_FOLDER = Path({str(built.folder)!r})
module = infer_c_engine._module()
size = int(Path("/proc/self/statm").read_text().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (size + int(sys.argv[1]),) * 2)
try:
    module.bert_inf({str(tiny[2])!r})
    print("loaded")
except MemoryError:
    print("MemoryError")
"""
    found = []
    for more in (2, 60, 114, 400, 2000):  # OpenVINO hangs in the third, and by chance in others
        command = [sys.executable, "-c", code, str(more << 20)]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert result.returncode == 0, (more, result)
        found.append(result.stdout.strip())
    assert found == ["MemoryError"] * 4 + ["loaded"]


PACKED = {"input_ids": [1] * 5, "segment_ids": [0] * 5, "cu_seqlens": [0, 2, 5], "max_seqlen": [0] * 3}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"segment_ids": [0] * 4}, ValueError, r"the shapes of the inputs differ: \(5,\) and \(4,\)"),
        ({"cu_seqlens": [0]}, "Error", "must be at least 1"),
        ({"cu_seqlens": []}, ValueError, "cu_seqlens must have 1 dimensions, none of them 0"),
        ({"cu_seqlens": [1, 2, 5]}, "Error", "cu_seqlens must start at 0, not at 1"),
        ({"cu_seqlens": [0, 2, 2, 5]}, "Error", "cu_seqlens must ascend: 2 is followed by 2"),
        ({"cu_seqlens": [0, 4, 2, 5], "max_seqlen": [0] * 5}, "Error", "cu_seqlens must ascend: 4 is followed by 2"),
        ({"cu_seqlens": [0, -(2**31), 5]}, "Error", "cu_seqlens must ascend"),
        ({"cu_seqlens": [0, 2, 4]}, "Error", "cu_seqlens must end at the number of tokens, 5, not at 4"),
        ({"cu_seqlens": [0, 2**31 - 1]}, "Error", "max_seqlen has the length 3"),
        ({"cu_seqlens": [0, 5]}, "Error", "max_seqlen has the length 3, a sequence has 5 tokens"),
        ({"max_seqlen": [0] * 257}, "Error", "2 x 257 is over what this bert_inf was made for, 4 x 256"),
        ({"cu_seqlens": [0, 1, 2, 3, 4, 5]}, "Error", "5 x 3 is over what this bert_inf was made for"),
        (
            {"input_ids": [1] * 1025, "segment_ids": [0] * 1025},
            "Error",
            "1025 tokens are over this engine's most, 1024",
        ),
    ],
)
def test_what_a_packed_engine_refuses(built, packed_bert, changes, error, message):
    with pytest.raises(built.module.Error if error == "Error" else error, match=message):
        packed_bert.run(*[np.array(values, np.int32) for values in (PACKED | changes).values()])
    assert np.isfinite(packed_bert.run(*[np.array(values, np.int32) for values in PACKED.values()])).all()


def test_calls_from_many_threads_at_once(built, rng, tiny):
    config, _, path = tiny
    for throughput in (False, True):
        bert = built.module.bert_inf(path, throughput=throughput)
        shapes = [
            (int(rng.integers(1, 6)), int(rng.integers(1, config.max_position_embeddings + 1))) for _ in range(60)
        ]
        batches = [random_inputs(config, rng, *shape) for shape in shapes]
        wanted = [bert.run(*inputs) for inputs in batches]
        with ThreadPoolExecutor(8) as pool:
            together = list(pool.map(lambda inputs: bert.run(*inputs), batches * 3))
        for got, one_by_one in zip(together, wanted * 3):
            # Streams have other numbers of threads, which add in another order.
            np.testing.assert_allclose(got, one_by_one, atol=FLOAT32_TOLERANCE, rtol=0)


def test_python_goes_on_while_the_engine_runs(built, bundled_engine):
    """Were Python's lock held, this thread would stand still for all of the run; free, it never does for half of it."""
    bert = built.module.bert_inf(bundled_engine)
    batch = random_batch(load_engine(bundled_engine, "padded").card, 4, 384, seed=1)
    shares = []
    for _ in range(3):  # a machine that pauses this process looks like a held lock, once
        thread = threading.Thread(target=lambda: bert.run(*batch.inputs().values()))
        moments = [time.perf_counter()]
        thread.start()
        while thread.is_alive():
            moments.append(time.perf_counter())
        shares.append(np.diff(moments).max() / (moments[-1] - moments[0]))
        if shares[-1] < 0.5:
            return
    raise AssertionError(shares)


def test_loading_and_freeing_again_and_again_does_not_grow_memory(built, tmp_path, rng):
    """In a process of its own. Allocators need a while to settle, so the growth is that of the last nine tenths."""
    config = BertConfig(32, 1, 2, 32, vocab_size=int(rng.integers(40000, 60000)), max_position_embeddings=8)
    _, _, path = build_tiny(tmp_path, rng, config=config)
    code = f"""
import numpy as np
from pathlib import Path
from helpers import infer_c_engine
infer_c_engine.BUILD_FOLDER = Path({str(built.folder)!r})
module = infer_c_engine._module()
ones = np.ones((2, 4), np.int32)
def megabytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6
for cycle in range({CYCLES} + 1):
    module.bert_inf({str(path)!r}).run(ones, ones * 0, ones)
    if cycle == {CYCLES} // 10:
        before = megabytes()
print(megabytes() - before)
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result
    growth, of_engines = float(result.stdout), 0.9 * CYCLES * path.stat().st_size / 1e6
    print(f"{growth:.1f} MB more after {CYCLES} cycles; the engines had {of_engines:.0f} MB in all")
    # What a heap may move by; an engine that stayed in memory each time would be far more.
    assert growth < 20 < of_engines / 10


def lines_of(text: str) -> list[str]:
    """Lines with every number as #."""
    return [re.sub(r"\d+(\.\d+)?", "#", line) for line in text.splitlines()]


def structure(value):
    """Names and types of a JSON value."""
    if isinstance(value, dict):
        return {key: structure(item) for key, item in value.items()}
    return [structure(item) for item in value] if isinstance(value, list) else type(value).__name__


def test_perf_reports_as_the_scripts_do(built, script, bundled_engine, bundled_packed, tmp_path):
    for name, engine in (("perf.py", bundled_engine), ("perf_varseqlen.py", bundled_packed)):
        flags = ["-e", engine, "-b", 1, "-b", "2", "-s", "16", "-i", 3, "-w", "0", "-r", 7, "--json"]
        python = script(name, *flags, tmp_path / "python.json")
        cpp = built.perf(*flags, tmp_path / "cpp.json")
        assert lines_of(cpp.stdout) == lines_of(python.out)
        assert cpp.stderr == python.err
        theirs, ours = (json.loads((tmp_path / f"{kind}.json").read_text()) for kind in ("python", "cpp"))
        assert ours["card"] == theirs["card"] and ours["engine"] == theirs["engine"]
        assert structure(ours) == structure(theirs)
        same = ("batch_size", "sequence_length", "iterations", "tokens", "padding_saved")
        for row, other in zip(ours["timings"], theirs["timings"]):
            assert [row[key] for key in same] == [other[key] for key in same]
    assert oct((tmp_path / "cpp.json").stat().st_mode)[-3:] == "644"


def test_perf_s_figures_are_numpy_s(built, bundled_engine, tmp_path):
    """Of two latencies, a < b, every figure tells both: numpy's percentiles interpolate between them."""
    built.perf("-e", bundled_engine, "-s8", "-b2", "-i", 2, f"--json={tmp_path / 'two.json'}")
    row = json.loads((tmp_path / "two.json").read_text())["timings"][0]
    spread = (row["percentile_99_ms"] - row["percentile_95_ms"]) / 0.04
    pair = np.array([row["median_ms"] - spread / 2, row["median_ms"] + spread / 2])
    figures = [row["total_ms"], row["average_ms"], row["percentile_95_ms"], row["percentile_99_ms"]]
    np.testing.assert_allclose(figures, [pair.sum(), pair.mean(), *np.percentile(pair, (95, 99))], rtol=1e-9)
    np.testing.assert_allclose(row["sentences_per_second"], 2 * 2 / pair.sum() * 1e3, rtol=1e-9)
    assert row["tokens_per_second"] == pytest.approx(8 * row["sentences_per_second"])


def test_perf_goes_on_for_the_duration(built, tiny):
    out = built.perf("-e", tiny[2], "-s", 2, "-i", 1, "-d", "0.3").stdout
    total, count = re.search(r"Total Time: ([\d.]+) ms for (\d+) iterations", out).groups()
    assert int(count) > 1 and float(total) > 100


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        ([], 2, "the following arguments are required: -e/--engine"),
        (["-e", "ENGINE", "-b", "0"], 2, "argument --batch-size: '0' is not a whole number of at least 1"),
        (["-e", "ENGINE", "-b", "8x"], 2, "'8x' is not a whole number"),
        (["-e", "ENGINE", "-i", "99999999999999999999"], 2, "is not a whole number"),
        (["-e", "ENGINE", "-w", "-1"], 2, "is not a whole number of at least 0"),
        (["-e", "ENGINE", "-d", "nan"], 2, "'nan' is not a number of seconds"),
        (["-e", "ENGINE", "-d", ""], 2, "'' is not a number of seconds"),
        (["-e", "ENGINE", "--enable"], 2, "unrecognized argument: --enable"),
        (["-e", "ENGINE", "-s"], 2, "argument -s: expected one argument"),
        (["-e", "ENGINE", "--enable_graph"], 1, "CUDA Graph needs a TensorRT engine"),
        (["-e", "ENGINE", "-b", "6"], 1, "batch size 6 is over this engine's largest, 5; rebuild it with -b 6"),
        (["-e", "ENGINE", "-s", "4000"], 1, "sequence length 4000 is over this engine's longest"),
        (["-e", "ENGINE", "--json", "/nowhere/x.json"], 1, "--json: the folder /nowhere does not exist"),
        (["-e", "ENGINE", "--json", "/tmp"], 1, "--json is a folder"),
        (["-e", "ENGINE", "--json", "ENGINE"], 1, "would replace an input"),
        (["-e", "ENGINE", "--json", "ENGINE.json"], 1, "would replace an input"),
        (["-e", "/nowhere/x.engine"], 1, "engine not found: /nowhere/x.engine"),
        (["-e", "/tmp"], 1, "engine is not a file: /tmp"),
    ],
)
def test_perf_refuses_in_one_line(built, tiny, flags, code, message):
    before = tiny[2].read_bytes()
    result = built.perf(*[flag.replace("ENGINE", str(tiny[2])) for flag in flags], code=code)
    line = result.stderr.splitlines()[-1]
    assert line.startswith("perf: error: ") and message in line
    assert result.stdout == "" and tiny[2].read_bytes() == before


def test_perf_helps(built):
    text = built.perf("-h").stdout
    for flag in ("-e", "-b", "-s", "-i", "-w", "-d", "-r", "--enable_graph", "--json"):
        assert re.search(rf"^  {flag}\b.*  \w", text, re.MULTILINE), flag


@pytest.mark.sampled(0.4)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"change": lambda data: b""}, "engine is empty"),
        ({"change": lambda data: data[:19]}, "OpenVINO can't load the engine"),
        ({"change": lambda data: data[: len(data) // 2]}, "OpenVINO can't load the engine"),
        ({"change": lambda data: bytes(len(data))}, "OpenVINO can't load the engine"),
        ({"change": lambda data: data[:12] + b"\xff" * 8 + data[20:]}, "OpenVINO can't load the engine"),
        ({"engine_sha256": "0" * 64}, "is not the engine that its card describes, or is damaged"),
        ({"engine_bytes": 12}, "its card says 12: it is truncated or another engine"),
        ({"backend_version": "2025.1.0"}, "was built with OpenVINO 2025.1.0, this is"),
        ({"precision": ["int8"]}, "computes in int8 by its card, openvino's never do"),
        ({"batch_sizes": [1, 1000]}, "batch size up to 5"),
        ({"layout": "packed"}, "its card says packed"),
        ({"backend": "onnx"}, "there is no backend 'onnx' here"),
    ],
)
def test_damaged_engines_and_wrong_cards(built, script, tiny, tmp_path, changes, message):
    path = damaged_copy(tiny[2], tmp_path, **changes)
    with pytest.raises(built.module.Error, match=re.escape(message)) as raised:
        built.module.bert_inf(path)
    assert "\n" not in str(raised.value)
    line = built.perf("-e", path, code=1).stderr
    assert line == f"perf: error: {raised.value}\n"
    assert str(raised.value) in script("inference_c.py", "-e", path, *QUESTION).error


def test_flipped_bytes_are_seen_by_the_checksum(built, tiny, rng, tmp_path):
    """Blocks of SHA-256 end at every length from 1 to 130 bytes: none takes a right engine for a wrong one, or back."""
    for size in (1, 55, 56, 63, 64, 65, 119, 120, 128, int(rng.integers(2, 130)), int(rng.integers(200, 5000))):
        path = damaged_copy(tiny[2], tmp_path, lambda data: rng.bytes(size))
        with pytest.raises(built.module.Error, match="OpenVINO can't load the engine"):
            built.module.bert_inf(path)
        data = bytearray(path.read_bytes())
        data[int(rng.integers(size))] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
        with pytest.raises(built.module.Error, match="is not the engine that its card describes"):
            built.module.bert_inf(path)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '{"backend": "openvino"}', "[" * 100000, '"' + "x" * 10, "\xff\xfe", "{}" * 2],
)
def test_cards_that_are_no_cards(built, tiny, tmp_path, text):
    path = tmp_path / "x.engine"
    shutil.copy(tiny[2], path)
    EngineCard.path_for(path).write_text(text, "latin-1")
    with pytest.raises(built.module.Error, match="^the engine card .* can't be used: .*; build the engine again$"):
        built.module.bert_inf(path)


@pytest.mark.parametrize("name", EngineCard.__dataclass_fields__)
def test_card_fields_of_the_wrong_kind(built, tiny, tmp_path, name):
    path = tmp_path / "x.engine"
    shutil.copy(tiny[2], path)
    card = json.loads(EngineCard.path_for(tiny[2]).read_text())
    wrong = [{"x": []}, 1.5, [[]], True, -1, "x"]
    allowed = {"engine_bytes": (-1,)}.get(name, ())
    texts = ("backend", "backend_version", "device", "layout", "network", "tokenizer_sha256", "engine_sha256")
    for value in wrong:
        if value in allowed or (isinstance(value, str) and name in texts):
            continue
        EngineCard.path_for(path).write_text(json.dumps(card | {name: value}))
        with pytest.raises(built.module.Error, match="can't be used"):
            built.module.bert_inf(path)
    del card[name]
    EngineCard.path_for(path).write_text(json.dumps(card))
    with pytest.raises(built.module.Error, match="can't be used"):
        built.module.bert_inf(path)


def bare_copy(engine: Path, folder: Path) -> Path:
    """A copy of an engine alone: no card, no tokenizer."""
    path = folder / "bare.engine"
    shutil.copy(engine, path)
    return path


def test_an_engine_without_its_card_is_refused(built, script, tiny, bundled_packed, tmp_path):
    for engine in (tiny[2], bundled_packed):
        path = bare_copy(engine, tmp_path)
        with pytest.raises(DemoBertError) as python:
            load_engine(path, None)
        with pytest.raises(built.module.Error, match=re.escape(str(python.value))):
            built.module.bert_inf(path)
        assert built.perf("-e", path, code=1).stderr == f"perf: error: {python.value}\n"
        assert str(python.value) in script("inference_c.py", "-e", path, *QUESTION).error
        with pytest.raises(DemoBertError, match=re.escape(str(python.value))):
            infer_c_engine.load_engine(path)
    EngineCard.path_for(path).symlink_to("nowhere")  # a card that can't be read is none that can be left out
    with pytest.raises(built.module.Error, match="engine card not found"):
        built.module.bert_inf(path, trust_engine=True)


@pytest.mark.parametrize(("layout", "precision"), [("padded", []), ("padded", ["--fp16"]), ("packed", ["--int8"])])
def test_a_trusted_engine_runs_as_it_was_built(built, tmp_path, layout, precision):
    """By the same numbers as with its card, and ids are checked."""
    engine = tmp_path / "whole.engine"
    if precision == ["--int8"]:
        squad = str(ROOT / "tests" / "data" / "squad_v1.1.json")
        precision = ["--int8", "-p", str(tmp_path / "ranges.calibration"), "-j", squad]
    main = builder.main if layout == "padded" else builder_varseqlen.main
    main(["-pt", str(BUNDLED), "-o", str(engine), "-b", "2", "-s", "16", "--backend", "openvino", *precision])
    path = bare_copy(engine, tmp_path)
    whole, trusted = built.module.bert_inf(engine), built.module.bert_inf(path, trust_engine=True)
    cards = [json.loads(bert.card) for bert in (whole, trusted)]
    for name in ("backend", "backend_version", "layout", "network", "precision", "batch_sizes", "config", "settings"):
        assert cards[0][name] == cards[1][name], name
    python = load_engine(path, layout, trust_engine=True)
    assert infer_c_engine.load_engine(path, trust_engine=True).card == python.card
    card = EngineCard.read(EngineCard.path_for(engine))
    batch = random_batch(card, 2, 16, 1) if layout == "padded" else random_packed_batch(card, [16, 9], 1)
    inputs = list(batch.inputs().values())
    np.testing.assert_array_equal(trusted.run(*inputs), whole.run(*inputs))
    for outside in (card.config.vocab_size, -1):
        with pytest.raises(built.module.Error, match=f"a token id is outside the model's {card.config.vocab_size}"):
            trusted.run(np.where(inputs[0] == inputs[0].max(), outside, inputs[0]).astype(np.int32), *inputs[1:])
    with pytest.raises(built.module.Error, match="a segment id is outside the model's 2"):
        trusted.run(inputs[0], inputs[1] + 1, *inputs[2:])
    result = built.perf("-e", path, "--trust-engine", "-i", 1)
    assert result.stderr.splitlines()[0] == without_card(path, python.card)


def test_the_scripts_ask_a_trusted_engine(built, script, bundled_engine, tmp_path):
    path = bare_copy(bundled_engine, tmp_path)
    flags = ["-e", path, *QUESTION, "-v", BUNDLED / "vocab.txt", "--trust-engine"]
    answers = [script(name, *flags, "-c", BUNDLED) for name in ("inference.py", "inference_c.py")]
    assert without_rate(answers[0].out) == without_rate(answers[1].out) and "Answer: " in answers[1].out
    assert answers[0].err == answers[1].err and "no engine card" in answers[1].err


def test_a_card_leaves_nothing_to_trust(built, script, tiny):
    folder = tiny[2].parent
    note = "Note: --trust-engine has no effect: the engine has its card"
    assert built.perf("-e", tiny[2], "--trust-engine", "-i", 1).stderr.splitlines()[0] == note
    refusal = "-c has no effect: the engine has its card"
    for trust in ([], ["--trust-engine"]):
        line = built.perf("-e", tiny[2], "-c", folder, *trust, code=2).stderr.splitlines()[-1]
        assert line == f"perf: error: {refusal} (-h explains the flags)"
    result = script("inference_c.py", "-e", tiny[2], *QUESTION, "-c", folder)
    assert result.code == 2 and refusal in result.error
    with pytest.raises(built.module.Error, match=refusal):
        built.module.bert_inf(tiny[2], config="{}")


NAMES = [
    "bert",  # of an older version's engine
    "",
    "[]",
    "{}",
    '{"precision": ["fp32"]}',
    '{"precision": [], "config": {"vocab_size": 200}}',
    '{"precision": ["int4"], "config": {"vocab_size": 200}}',
    '{"precision": ["fp32"], "config": {"vocab_size": 0}}',
    '{"precision": ["fp32"], "config": {"vocab_size": 1e3}}',
    '{"precision": ["fp32"], "config": {"vocab_size": 2097153}}',
    '{"precision": ["fp32"], "config": {"vocab_size": 18446744073709551615}}',
    '{"precision": ["fp32"], "config": {"vocab_size": 200, "type_vocab_size": -1}}',
    '{"precision": ["fp32"], "config": {"vocab_size": 200, "max_position_embeddings": null}}',
    '{"precision": ["fp32"], "config": ' + '{"x":' * 50_000 + "1" + "}" * 50_000 + "}",
]


@pytest.mark.sampled(0.4)
@pytest.mark.parametrize("name", NAMES, ids=lambda name: name[:70])
def test_names_that_tell_nothing(built, tmp_path, monkeypatch, rng, name):
    monkeypatch.setattr(EngineFacts, "network_name", lambda self: name)
    config = BertConfig(32, 1, 2, 32, vocab_size=200, max_position_embeddings=8)
    path = bare_copy(build_tiny(tmp_path, rng, config)[2], tmp_path)
    message = f"{path} does not tell in what precision it was built; build it again"
    for flags in ([], ["-c", tmp_path]):
        result = built.perf("-e", path, "--trust-engine", *flags, code=1)
        assert result.stderr == f"perf: error: {message}\n"
    with pytest.raises(built.module.Error, match=re.escape(message)):
        built.module.bert_inf(path, trust_engine=True)


def test_a_precision_that_is_not_openvino_s(built, tmp_path, monkeypatch, rng):
    monkeypatch.setattr(EngineFacts, "network_name", lambda self: json.dumps(asdict(self) | {"precision": ["fp8"]}))
    path = bare_copy(build_tiny(tmp_path, rng)[2], tmp_path)
    with pytest.raises(built.module.Error, match="computes in fp8 by its network's name, openvino's never do"):
        built.module.bert_inf(path, trust_engine=True)


SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
DISTILBERT = {"dim": 32, "n_layers": 1, "n_heads": 2, "hidden_dim": 32, "activation": "gelu"}


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """An engine without a card: a vocabulary of 200, two segments, 40 positions."""
    folder = tmp_path_factory.mktemp("bare")
    config = BertConfig(32, 1, 2, 32, vocab_size=200, max_position_embeddings=40)
    return bare_copy(build_tiny(folder, np.random.default_rng(5), config)[2], folder)


@pytest.mark.sampled(0.4)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"vocab_size": 201},
        {"type_vocab_size": 1},
        {"max_position_embeddings": 41},
        {"vocab_size": "200"},
        {"max_position_embeddings": None, "vocab_size": 7},
        {"model_type": "roberta", "max_position_embeddings": 42},
        {"model_type": "roberta"},
        {"model_type": "camembert", "max_position_embeddings": 45, "pad_token_id": 4},
        {"model_type": "xlm-roberta", "max_position_embeddings": 41, "pad_token_id": 0},
        {"model_type": "roberta", "max_position_embeddings": 41, "pad_token_id": 40},
        {"model_type": "roberta", "pad_token_id": "1"},
        {"model_type": None, "architectures": ["RobertaForQuestionAnswering"], "max_position_embeddings": 42},
        {"model_type": None, "architectures": ["RobertaForQuestionAnswering"]},
        {"model_type": None, "architectures": "Roberta"},
        {"model_type": "electra", "embedding_size": 32},
        {"model_type": "albert", "embedding_size": 16},
        {"model_type": "distilbert", "type_vocab_size": 2, **DISTILBERT},
        {"model_type": None, "architectures": ["DistilBertModel"], **DISTILBERT},
        {"model_type": "t5"},
        {"model_type": ["bert"]},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["bert_config.json", "config.json"])
def test_the_model_s_configuration_is_read_as_in_python(built, bare, tmp_path, changes, name):
    values = SIZES | {"vocab_size": 200, "max_position_embeddings": 40, "model_type": "bert"} | changes
    (tmp_path / name).write_text(json.dumps(values))
    try:
        load_engine(bare, "padded", trust_engine=True, config_dir=tmp_path)
        told = None
    except DemoBertError as error:
        told = str(error)
    for named in (tmp_path, tmp_path / name):
        result = built.perf("-e", bare, "--trust-engine", "-c", named, "-i", 1, code=1 if told else 0)
        line = result.stderr.splitlines()[-1]
        if told and "was built with" in told:
            assert line == f"perf: error: {told}"
        assert not told or line.startswith("perf: error: ")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.mkdir(), "no bert_config.json or config.json in"),
        (lambda path: None, "model configuration not found: "),
        (os.mkfifo, "model configuration is not a file: "),
        (lambda path: path.write_text("{"), "it is not JSON"),
        (lambda path: path.write_text("[1]"), "the configuration is not a JSON object"),
        (lambda path: path.write_text("[" * 100_000 + "]" * 100_000), "nested more than 100 levels deep"),
        (lambda path: os.truncate(path.open("w").name, 1 << 40), "model configuration is larger than 64 MiB"),
    ],
)
def test_configurations_that_are_none(built, bare, tmp_path, make, message):
    make(tmp_path / "named")
    result = built.perf("-e", bare, "--trust-engine", "-c", tmp_path / "named", code=1)
    assert message in result.stderr and result.stderr.count("\n") == 1


def test_a_configuration_that_python_gives(built, bare):
    config = {"vocab_size": 200, "max_position_embeddings": 40}
    built.module.bert_inf(bare, trust_engine=True, config=json.dumps(config))
    with pytest.raises(built.module.Error, match="was built with vocab_size 200, the configuration of -c has 9"):
        built.module.bert_inf(bare, trust_engine=True, config=json.dumps(config | {"vocab_size": 9}))
    for text in ("{", "[" * 100_000 + "]" * 100_000, "7", "{}", '{"vocab_size": -1}', "\0", "\ud800"):
        with pytest.raises((built.module.Error, TypeError, ValueError)) as raised:
            built.module.bert_inf(bare, trust_engine=True, config=text)
        assert "can't be used" in str(raised.value) or text == "\ud800"
    with pytest.raises(TypeError):
        built.module.bert_inf(bare, trust_engine=True, config=config)


def test_what_is_no_engine_at_all(built, tmp_path):
    (tmp_path / "other.engine").write_bytes(b"some text")
    with pytest.raises(built.module.Error, match="is not an engine of any backend here"):
        built.module.bert_inf(tmp_path / "other.engine", trust_engine=True)
    for magic, backend in ((b"ptrt", "tensorrt"), (b"vtrt", "tensorrt_rtx")):
        (tmp_path / "plan.engine").write_bytes(magic + bytes(100))
        with pytest.raises(
            built.module.Error, match=f"the {backend} backend of infer_c is not built|no NVIDIA GPU answers"
        ):
            built.module.bert_inf(tmp_path / "plan.engine", trust_engine=True)


@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize("suffix", ["", ".json"])
def test_fifos_and_folders_in_the_place_of_files(built, tiny, tmp_path, trust, suffix):
    """A FIFO would block whoever opens it."""
    for make in (os.mkfifo, os.mkdir):
        folder = tmp_path / make.__name__
        folder.mkdir()
        path = folder / "x.engine"
        if suffix:
            shutil.copy(tiny[2], path)
        make(f"{path}{suffix}")
        what = "engine card" if suffix else "engine"
        result = built.perf("-e", path, *["--trust-engine"] * trust, code=1)
        assert result.stderr.splitlines()[-1] == f"perf: error: {what} is not a file: {path}{suffix}"
        with pytest.raises(built.module.Error, match=f"^{what} is not a file: "):
            built.module.bert_inf(path, trust_engine=trust)


def test_a_card_larger_than_any_is_not_read(built, tiny, tmp_path):
    """A file of 1 TiB that takes no room on the disk: memory for it would be the end of the machine."""
    path = bare_copy(tiny[2], tmp_path)
    with EngineCard.path_for(path).open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(built.module.Error, match="engine card is larger than 1 MiB: "):
        built.module.bert_inf(path)
    EngineCard.path_for(path).write_bytes(EngineCard.path_for(tiny[2]).read_bytes())
    os.truncate(path, 1 << 40)
    with pytest.raises(built.module.Error, match="has 1099511627776 bytes, its card says"):
        built.module.bert_inf(path)


@pytest.mark.parametrize("field", ["config", "settings", "precision", "batch_sizes"])
@pytest.mark.parametrize("begin,end", [("[", "]"), ('{"x":', "}")], ids=["lists", "objects"])
def test_cards_that_are_nested_deeply(built, tiny, tmp_path, field, begin, end):
    path = bare_copy(tiny[2], tmp_path)
    card = json.loads(EngineCard.path_for(tiny[2]).read_text())
    text = json.dumps(card | {field: "DEEP"})
    for depth in (101, 100_000):
        EngineCard.path_for(path).write_text(text.replace('"DEEP"', begin * depth + "1" + end * depth))
        with pytest.raises(built.module.Error, match="can't be used: it is nested more than 100 levels deep"):
            built.module.bert_inf(path)


def test_a_torn_engine_is_told_from_a_damaged_one(built, tiny, tmp_path):
    """helpers/outputs.py leaves `.NAME.pending` beside an engine where its writer was killed between two renames."""
    path = bare_copy(tiny[2], tmp_path)
    shutil.copy(EngineCard.path_for(tiny[2]), EngineCard.path_for(path))
    pending = tmp_path / f".{path.name}.pending"
    for content in ("{}", None):
        if content is None:
            pending.unlink()
            pending.symlink_to("nowhere")
        else:
            pending.write_text(content)
        result = built.perf("-e", path, code=1)
        assert f"{path} is torn: whoever wrote it was killed" in result.stderr and "build it again" in result.stderr
    threading.Timer(0.5, pending.unlink).start()  # a writer that lives
    built.perf("-e", path, "-i", 1)


def test_cuda_graph_needs_tensorrt(built, script, bundled_engine):
    result = script("inference_c.py", "-e", bundled_engine, "--enable-graph", *QUESTION)
    assert result.code == 1 and "CUDA Graph needs a TensorRT engine" in result.error


def test_not_built_names_the_two_commands(script, bundled_engine, monkeypatch, tmp_path):
    monkeypatch.setattr(infer_c_engine, "BUILD_FOLDER", tmp_path / "a folder")
    error = script("inference_c.py", "-e", bundled_engine, *QUESTION).error
    assert f"cmake -S {ROOT} -B '{tmp_path}/a folder'" in error and f"make -C '{tmp_path}/a folder'" in error
    monkeypatch.setattr(infer_c_engine, "BUILD_FOLDER", tmp_path)
    (tmp_path / f"infer_c{infer_c_engine.importlib.machinery.EXTENSION_SUFFIXES[0]}").write_bytes(b"no module")
    error = script("inference_c.py", "-e", bundled_engine, *QUESTION).error
    assert "can't be loaded" in error and "make -C" in error
