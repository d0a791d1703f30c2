"""scripts/gpu_check.sh, as far as that goes without a GPU: transfer, processes, comparison, tables, what it says."""

import contextlib
import ctypes
import importlib
import json
import os
import struct
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from helpers.backends import load_engine
from helpers.backends.tensorrt import engine as tensorrt_engine
from helpers.backends.tensorrt.gpu import Gpu, rtx_supports
from helpers.backends.tensorrt.module import TENSORRT, TENSORRT_RTX
from helpers.batching import PaddedBatch
from helpers.bert_config import BertConfig
from helpers.errors import DemoBertError
from helpers.weights import load_weights
from scripts.gpu_checking import check as gpu_check
from scripts.gpu_checking import compressed, model_check, tensorrt_8, torch_models, transfer
from scripts.gpu_checking.comparison import TOLERANCE, as_json, compare, comparison_table, latency_table, tolerance_for
from scripts.gpu_checking.engine_process import EngineProcess, captured
from scripts.gpu_checking.fatbins import clear_foreign_code
from tests import checkpoints
from tests.conftest import BUNDLED, ROOT

SQUAD = ROOT / "tests" / "data" / "squad_v1.1.json"
THIS_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


def check(*arguments, capability=(8, 6)) -> model_check.Check:
    return model_check.Check(gpu_check.parse([str(word) for word in arguments]), SQUAD, capability, dict(os.environ))


# Transfer to the GPU machine


@pytest.mark.parametrize("size, parts", [(1, 1), (1000, 1), (1001, 2), (5000, 5)])
def test_a_file_is_cut_and_joined(tmp_path, rng, size, parts):
    path, content = tmp_path / "wheel.whl", rng.bytes(size)
    path.write_bytes(content)
    pieces = transfer.split(path, 1000)
    assert len(pieces) == parts and all(piece.stat().st_size <= 1000 for piece in pieces)
    path.unlink()
    manifest = tmp_path / "wheel.whl.parts.json"
    assert transfer.joined(tmp_path, manifest) == path and path.read_bytes() == content
    for piece in pieces:
        piece.unlink()
    assert transfer.joined(tmp_path, manifest) == path  # it is there already: the parts are not asked for again


@pytest.fixture
def cut(tmp_path, rng):
    """A folder that holds one cut file and not the file itself."""
    path = tmp_path / "wheel.whl"
    path.write_bytes(rng.bytes(3000))
    pieces = transfer.split(path, 1000)
    path.unlink()
    return tmp_path, path, pieces


def test_a_damaged_part_is_named(cut, rng):
    folder, path, pieces = cut
    content = bytearray(pieces[1].read_bytes())
    content[int(rng.integers(len(content)))] ^= 1
    pieces[1].write_bytes(content)
    with pytest.raises(DemoBertError, match="part01 is damaged"):
        transfer.joined(folder, folder / "wheel.whl.parts.json")
    assert not path.exists()


def test_missing_parts_are_counted(cut):
    folder, _, pieces = cut
    pieces[0].unlink()
    pieces[2].unlink()
    with pytest.raises(DemoBertError, match="2 of 3 parts of wheel.whl are missing .*part00"):
        transfer.joined(folder, folder / "wheel.whl.parts.json")


@pytest.mark.parametrize("name", ["../out.whl", "/tmp/out.whl", "..", "", "a/b", 5])
@pytest.mark.parametrize("place", ["whole", "part"])
def test_a_list_of_parts_can_not_name_other_folders(cut, name, place):
    folder, path, _ = cut
    manifest = path.with_name("wheel.whl.parts.json")
    content = json.loads(manifest.read_text())
    (content if place == "whole" else content["parts"][0])["name"] = name
    manifest.write_text(json.dumps(content))
    with pytest.raises(DemoBertError, match="outside its folder"):
        transfer.joined(folder, folder / "wheel.whl.parts.json")


@pytest.mark.parametrize("content", ["[]", "{}", '{"name": "a", "sha256": "", "parts": 3}', "nonsense"])
def test_what_is_no_list_of_parts_is_refused(tmp_path, content):
    (tmp_path / "a.tar.parts.json").write_text(content)
    with pytest.raises(DemoBertError, match="list of parts"):
        transfer.unpack(tmp_path)


def test_a_folder_travels_in_parts(tmp_path, rng):
    parcel, here, there = (tmp_path / name for name in ("parcel", "here", "there"))
    (parcel / "bin").mkdir(parents=True)
    here.mkdir()
    there.mkdir()
    contents = {"bin/python": rng.bytes(3000), "squad.json": b"{}"}
    for name, content in contents.items():
        (parcel / name).write_bytes(content)
    (parcel / "bin" / "python").chmod(0o755)
    (here / "all.tar.part99").write_bytes(b"of an earlier time")
    parts = transfer.pack(parcel, here / "all.tar", 4000)
    assert sorted(parts) == sorted(here.iterdir()) and parts[-1].name == "all.tar.parts.json" and len(parts) > 2
    for part in parts[1:]:
        part.rename(there / part.name)
    with pytest.raises(DemoBertError, match=r"1 of \d+ parts of all.tar are missing .*part00"):
        transfer.unpack(there)
    parts[0].rename(there / parts[0].name)
    for _ in range(2):  # the second time there is nothing left to do
        transfer.unpack(there)
        assert {name: (there / name).read_bytes() for name in contents} == contents
        assert (there / "bin" / "python").stat().st_mode & 0o111 and not (there / "all.tar").exists()
        for part in there.glob("*.part0*"):
            part.unlink()


def test_an_archive_can_not_write_elsewhere(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    with tarfile.open(folder / "all.tar", "w") as file:
        file.add(__file__, "../outside.py")
    transfer.split(folder / "all.tar", 1 << 20)
    with pytest.raises(DemoBertError, match="can't be unpacked: .*outside"):
        transfer.unpack(folder)
    assert not (tmp_path / "outside.py").exists()


# TensorRT 8.6.0: kernels for other GPUs stay behind, a Python travels


def fatbin(*entries) -> bytes:
    """A fatbin of (kind, generation, content), as the tool cuobjdump describes it."""
    body = b""
    for kind, generation, content in entries:
        header = struct.pack("<HHIQ12xI", kind, 0x101, 64, len(content), generation)
        body += header.ljust(64, b"\x07") + content
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(body)) + body


def test_only_what_the_gpu_never_reads_is_cleared(tmp_path, rng):
    text, code = 1, 2
    kept = [rng.bytes(48) for _ in range(4)]
    foreign = [rng.bytes(size) for size in (80, 24, 40)]
    both = [(code, 80, foreign[0]), (code, 90, kept[0]), (text, 90, foreign[1])]
    parts = [b"begin", fatbin(*both), b"\x50\xed\x55\xba no header", fatbin((code, 80, kept[1]), (text, 86, kept[2]))]
    parts += [fatbin((code, 90, kept[3]), (code, 75, foreign[2])), b"end", fatbin(*both)[:-1]]
    path = tmp_path / "library.so"
    path.write_bytes(b"".join(parts))
    assert clear_foreign_code(path, 90) == 144
    wanted = list(parts)
    for index, content in ((1, foreign[0]), (1, foreign[1]), (4, foreign[2])):
        wanted[index] = wanted[index].replace(content, bytes(len(content)))
    assert path.read_bytes() == b"".join(wanted)
    assert clear_foreign_code(path, 60) == 0 and path.read_bytes() == b"".join(wanted)


def test_another_python_is_refused_before_anything_is_downloaded(tmp_path):
    flags = ["--prepare", "--tensorrt", "8.6.0", "--folder", str(tmp_path), "--squad", str(SQUAD)]
    if THIS_PYTHON == tensorrt_8.PYTHON:
        pytest.skip("this Python is the one")
    with pytest.raises(DemoBertError, match=r"needs a Python 3\.10; name one with --engine-python \(.* is 3"):
        gpu_check.main([*flags, "--engine-python", str(Path(sys.executable))])
    with pytest.raises(DemoBertError, match="nowhere/python can't be run: No such file"):
        gpu_check.main([*flags, "--engine-python", "/nowhere/python"])
    assert list(tmp_path.iterdir()) == []


def test_a_python_travels(tmp_path, monkeypatch):
    """This Python, copied without its packages, runs from another folder and finds the libraries beside it."""
    monkeypatch.setattr(tensorrt_8, "PYTHON", THIS_PYTHON)
    home = tmp_path / "home"
    (home / "site").mkdir(parents=True)
    (home / "site" / "travelled.py").write_text("answer = 42\n")
    tensorrt_8._copy_python(tensorrt_8._described(sys.executable), home)
    moved = home.rename(tmp_path / "moved")
    code = "import ctypes, lzma, os, subprocess, hashlib, travelled; print(os.__file__, hashlib.sha256(b'').hexdigest()[:4])"
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": "/nowhere"}
    said = subprocess.run([moved / "python", "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert said.stdout.startswith(str(moved)) and said.stdout.endswith("e3b0\n"), said.stderr


def linked(tmp_path, *words) -> Path:
    """A wheel whose _driver was linked as PyCUDA's is: its libraries first, LDFLAGS behind them."""
    settings = {}
    exec(tensorrt_8._pycuda_settings(tmp_path), settings)
    source, module = tmp_path / "x.c", tmp_path / "_driver.so"
    source.write_text("int cuInit(unsigned); int start(void) { return cuInit(0); }")
    libraries = [f"-L{folder}" for folder in settings["CUDADRV_LIB_DIR"]]
    libraries += [f"-l{name}" for name in settings["CUDADRV_LIBNAME"]]
    flags = words or settings["LDFLAGS"]
    subprocess.run(["cc", "-shared", "-fPIC", source, "-Wl,--as-needed", *libraries, "-o", module, *flags], check=True)
    with zipfile.ZipFile(tmp_path / "pycuda.whl", "w") as archive:
        archive.write(module, "pycuda/_driver.cpython.so")
    return tmp_path / "pycuda.whl"


def test_pycuda_names_the_driver_s_library(tmp_path, monkeypatch):
    """It is linked where there is none: by a stand-in that defines nothing, which a linker may leave out."""
    monkeypatch.setattr(tensorrt_8, "cuda_root", lambda: Path("/usr/local/cuda"))
    assert tensorrt_8._names_driver(linked(tmp_path))
    assert not tensorrt_8._names_driver(linked(tmp_path, "-Wl,--no-as-needed"))


def test_what_did_not_travel_is_said(tmp_path):
    with pytest.raises(DemoBertError, match="TensorRT 8.6.0 is not in .*: collect it by gpu_check.sh --prepare"):
        tensorrt_8.unpack(tmp_path / "tensorrt-8.6.0")


def test_what_travelled_is_unpacked_once(tmp_path):
    """With a Python that does not expand anything: the libraries here are there already."""
    home = tmp_path / "tensorrt-8.6.0"
    (home / "libraries").mkdir(parents=True)
    (home / "site").mkdir()
    program = home / "python"
    program.write_text("#!/bin/sh\nrm $3/a.so.zst\n")
    program.chmod(0o755)
    tensorrt_8.bundle(home)
    (home / "libraries" / "a.so.zst").write_bytes(b"compressed")
    assert sorted(path.name for path in home.iterdir()) == ["libraries", "python.tar.xz"]
    for _ in range(2):
        assert tensorrt_8.unpack(home) == str(program) and (home / "site").is_dir()
        assert not list((home / "libraries").iterdir())


def test_large_files_are_compressed_and_expanded(tmp_path, rng):
    pytest.importorskip("zstandard")
    content = {"a.so": bytes(1 << 20) + rng.bytes(1000), "b.so": b""}
    for name, value in content.items():
        (tmp_path / name).write_bytes(value)
    compressed.main("compress", str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.so.zst", "b.so.zst"]
    assert (tmp_path / "a.so.zst").stat().st_size < 2000
    compressed.main("expand", str(tmp_path))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == content


def wheel(folder, name: str, content: str):
    """A wheel of one module."""
    information = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as file:
        file.writestr(f"{name}.py", content)
        file.writestr(f"{information}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        file.writestr(
            f"{information}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{information}/RECORD", "")


def test_wheels_are_installed_where_they_are_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    wheel(tmp_path, "demobert_transfer", "answer = 42")
    wheel(tmp_path, "tqdm", "raise ImportError('this Python has its own')")
    environment = transfer.install(tmp_path)
    assert importlib.import_module("demobert_transfer").answer == 42
    assert not (tmp_path / "site" / "tqdm.py").exists()
    code = "import demobert_transfer, tqdm"
    assert subprocess.run([sys.executable, "-c", code], env=environment, timeout=60).returncode == 0
    del sys.modules["demobert_transfer"]


def test_a_wheel_that_can_not_be_installed_ends_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "demobert_broken-1.0-py3-none-any.whl").write_bytes(b"no zip file")
    with pytest.raises(DemoBertError, match="pip install failed: ") as caught:
        transfer.install(tmp_path)
    assert "\n" not in str(caught.value)


def test_no_folder_is_no_transfer(tmp_path):
    assert transfer.install(tmp_path / "nowhere") == dict(os.environ)


# Comparison and tables


def random_windows(rng):
    """(reference, lengths): logits of a few windows, whose padding holds what must not count."""
    lengths = [int(n) for n in rng.integers(2, 20, 5)]
    windows = [rng.permutation(40)[: 2 * 20].reshape(20, 2).astype(np.float32) for _ in lengths]
    for window, length in zip(windows, lengths):
        window[length:] = 1e9
    return windows, lengths


def test_equal_logits_pass_whatever_the_padding_holds(rng):
    reference, lengths = random_windows(rng)
    noise = [np.where(np.arange(20)[:, None] < n, rng.uniform(-1, 1, (20, 2)) * TOLERANCE, np.nan) for n in lengths]
    found = compare([r + n for r, n in zip(reference, noise)], reference, lengths)
    largest = max(np.abs((r + n)[:k].astype(np.float64) - r[:k]).max() for r, n, k in zip(reference, noise, lengths))
    assert found.passed and found.other_argmax == 0 and found.max_difference == pytest.approx(largest)


@pytest.mark.parametrize("value", [0.021, -0.3, np.nan, np.inf, -np.inf])
def test_one_logit_too_far_off_fails(rng, value):
    reference, lengths = random_windows(rng)
    ours = [window.copy() for window in reference]
    window = int(rng.integers(len(ours)))
    ours[window][int(rng.integers(lengths[window])), int(rng.integers(2))] += value
    assert not compare(ours, reference, lengths).passed
    assert compare(ours, reference, lengths, tolerance=None).passed == np.isfinite(value)


def test_another_best_token_fails_however_near_it_is(rng):
    reference, lengths = random_windows(rng)
    ours = [window.copy() for window in reference]
    best = ours[0][: lengths[0], 1].argmax()
    other = (best + 1) % lengths[0]
    reference[0][other, 1] = reference[0][best, 1] - 1e-3
    ours[0][other, 1] = reference[0][best, 1] + 1e-3
    found = compare(ours, reference, lengths)
    assert found.other_argmax == 1 and found.max_difference < TOLERANCE and not found.passed
    assert compare(ours, reference, lengths, same_tokens=False).passed
    ours[0][0, 0] += 1
    assert not compare(ours, reference, lengths, same_tokens=False).passed


def test_half_precision_is_held_to_the_bound_and_int8_is_not():
    assert tolerance_for("fp16") == TOLERANCE
    assert tolerance_for("int8") is None


def test_tables_and_json_hold_every_figure(rng):
    reference, lengths = random_windows(rng)
    comparisons = {
        "good": compare(reference, reference, lengths),
        "bad": compare([w + 1 for w in reference], reference, lengths),
    }
    lines = comparison_table(comparisons).splitlines()
    assert lines[2] == "| good | 5 | 0.0000 | 0 | ok |" and lines[3] == "| bad | 5 | 1.0000 | 0 | FAILED |"
    medians = {(8, 128): {"a": 1.5}, (1, 384): {"a": 0.25, "b": 3.0}}
    assert latency_table(medians).splitlines() == [
        "| median ms | 1 × 384 | 8 × 128 |",
        "| --- | ---: | ---: |",
        "| a | 0.250 | 1.500 |",
        "| b | 3.000 |  |",
    ]
    figures = json.loads(json.dumps(as_json({"bundled": comparisons}, {"base": medians})))
    bad = figures["comparisons"][1]
    assert (bad["model"], bad["engine"], bad["max_difference"], bad["passed"]) == ("bundled", "bad", 1.0, False)
    assert figures["latencies"][0] == {
        "model": "base",
        "batch_size": 1,
        "sequence_length": 384,
        "median_ms": {"a": 0.25, "b": 3.0},
    }


# Engines in processes of their own: here the CPU's


def random_batches(rng, count: int) -> list[PaddedBatch]:
    batches = []
    for _ in range(count):
        shape = tuple(int(n) for n in rng.integers((1, 4), (4, 40)))
        ids = rng.integers(1000, 20000, shape).astype(np.int32)
        mask = (np.arange(shape[1]) < rng.integers(1, shape[1] + 1, (shape[0], 1))).astype(np.int32)
        batches.append(PaddedBatch(ids, ids % 2, mask))
    return batches


def test_an_engine_answers_from_its_own_process(bundled_engine, tmp_path, rng):
    batches = random_batches(rng, 3)
    here = load_engine(bundled_engine, "padded")
    there = EngineProcess(bundled_engine)
    try:
        assert there.description == here.describe()
        for ours, batch in zip(there.logits(batches, tmp_path), batches, strict=True):
            valid = batch.input_mask.astype(bool)
            np.testing.assert_allclose(
                ours[valid], here.run(batch)[valid], atol=1e-4
            )  # the same engine: rounding at most
        latencies = there.time(2, 16, runs=3, graph=False)
        assert len(latencies) == 3 and min(latencies) > 0
        with pytest.raises(DemoBertError, match="sequence length 2000 is over this engine's longest"):
            there.logits([PaddedBatch(*[np.ones((1, 2000), np.int32)] * 3)], tmp_path)
        # A request that fails takes no other with it.
        assert len(there.time(2, 16, runs=2, graph=False)) == 2
        there._process.kill()
        there._process.wait()
        with pytest.raises(DemoBertError, match="ended with exit code -9"):
            there.time(1, 8, runs=1, graph=False)
    finally:
        there.close()


def test_an_engine_that_can_not_be_loaded_says_why(tmp_path):
    with pytest.raises(DemoBertError, match="engine not found"):
        EngineProcess(tmp_path / "no.engine")


def test_a_process_that_dies_is_an_error(tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 139\n")
    python.chmod(0o755)
    with pytest.raises(DemoBertError, match="ended with exit code 139"):
        EngineProcess(tmp_path / "x.engine", str(python))


class FakeCuda:
    """The driver's graph functions, which only remember that they were called; `broken` fails."""

    def __init__(self, broken: str = ""):
        self.calls, self.broken = [], broken

    def __getattr__(self, name):
        def function(*arguments):
            self.calls.append(name)
            return 700 if name == self.broken else 0

        return function


class FakeSession:
    """What of engine.Session a capture touches."""

    def __init__(self, calls):
        self.calls = calls
        self.stream = SimpleNamespace(handle=1)
        self.driver = SimpleNamespace(
            Event=lambda: SimpleNamespace(record=print, synchronize=int, time_till=lambda end: 0.5)
        )

    def current(self):
        return contextlib.nullcontext()

    def enqueue(self):
        self.calls.append("enqueue")


def test_a_graph_is_captured_once_and_replayed(monkeypatch):
    cuda = FakeCuda()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: cuda)
    run_once = captured(FakeSession(cuda.calls))
    assert cuda.calls[:4] == ["cuStreamBeginCapture_v2", "enqueue", "cuStreamEndCapture", "cuGraphInstantiateWithFlags"]
    before = cuda.calls.count("cuGraphLaunch")
    assert run_once() == 0.5 and cuda.calls.count("cuGraphLaunch") == before + 1 and cuda.calls.count("enqueue") == 1


def test_a_run_that_can_t_be_captured_leaves_the_stream_usable(monkeypatch):
    cuda = FakeCuda()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: cuda)
    session = FakeSession(cuda.calls)

    def refuse():
        raise DemoBertError("this engine is not stream capturable")

    session.enqueue = refuse
    with pytest.raises(DemoBertError, match="not stream capturable"):
        captured(session)
    assert cuda.calls == ["cuStreamBeginCapture_v2", "cuStreamEndCapture"]


def test_a_capture_that_fails_is_named(monkeypatch):
    cuda = FakeCuda("cuStreamEndCapture")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: cuda)
    with pytest.raises(DemoBertError, match="cuStreamEndCapture failed with CUDA error 700"):
        captured(FakeSession(cuda.calls))


# PyTorch


def test_pytorch_s_logits_are_the_model_s(monkeypatch, rng):
    """The loader of gpu_check.sh and that of the tests read the bundled model alike."""
    monkeypatch.setattr(torch_models, "DEVICE", "cpu")
    batch = random_batches(rng, 1)[0]
    config = BertConfig.from_folder(BUNDLED)
    model = checkpoints.hugging_face_model(config, load_weights(config, pytorch=BUNDLED).tensors)
    wanted = checkpoints.hugging_face_logits(model, batch.input_ids, batch.segment_ids, batch.input_mask)
    valid = batch.input_mask.astype(bool)
    ours = torch_models.logits(torch_models.load(BUNDLED, half=False), [batch])[0]
    np.testing.assert_allclose(ours[valid], wanted[valid], atol=1e-4)  # SDPA and eager attention round differently


def test_windows_are_the_file_s_first(rng):
    args = gpu_check.parse(["--windows", "5", "-b", "2", "-s", "64"])
    batches = model_check.windows(SQUAD, args)
    assert [batch.input_ids.shape for batch in batches] == [(2, 64), (2, 64), (1, 64)]
    assert all((batch.input_ids[:, 0] == 101).all() and batch.input_mask[:, 0].all() for batch in batches)


# The script


def test_without_a_gpu_it_says_so(tmp_path):
    command = ["bash", str(ROOT / "scripts" / "gpu_check.sh"), "--folder", str(tmp_path), "--squad", str(SQUAD)]
    environment = os.environ | {"PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 1 and result.stderr == (
        "gpu_check.sh: error: PyTorch sees no NVIDIA GPU, which this check needs "
        "(for CPUs: scripts/benchmark_peers.py)\n"
    )


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--windows", "0"], "--windows"),
        (["--backend", "openvino"], "--backend"),
        (["--precision", "fp4"], "--precision"),
    ],
    ids=str,
)
def test_arguments_that_make_no_sense(capsys, flags, message):
    with pytest.raises(SystemExit) as ended:
        gpu_check.parse(flags)
    assert ended.value.code == 2 and message in capsys.readouterr().err


def test_inputs_are_checked_before_pytorch_is_loaded(tmp_path):
    with pytest.raises(DemoBertError, match="SQuAD file not found"):
        gpu_check.main(["--squad", str(tmp_path / "none.json")])
    with pytest.raises(DemoBertError, match="--json"):
        gpu_check.main(["--squad", str(SQUAD), "--json", str(SQUAD)])


def test_xquad_is_preferred_where_it_lies(tmp_path):
    assert gpu_check.default_squad(tmp_path).name in (*gpu_check.SQUAD_FILES, SQUAD.name)
    (tmp_path / "dev-xquad-en-v1.1.json").write_text("{}")
    assert gpu_check.default_squad(tmp_path) == tmp_path / "dev-xquad-en-v1.1.json"


def test_an_unsupported_gpu_is_no_failure_and_says_so(capsys):
    hopper, ada = check(capability=(9, 0)), check(capability=(8, 9))
    for one in (hopper, ada):
        one.gave_up("tensorrt_rtx, fp16, base: TensorRT-RTX does not support this GPU", "tensorrt_rtx")
        one.gave_up("tensorrt: the package tensorrt, which is not installed", "tensorrt")
    assert hopper.summary() == 0 and len(hopper.refused) == 2
    assert ada.summary() == 1 and len(ada.refused) == len(ada.failed) == 1
    printed = capsys.readouterr().out
    assert printed.count("FAILED: tensorrt_rtx") == 1 and printed.count("Not here: tensorrt_rtx") == 1


def test_a_build_s_own_reason_is_passed_on(tmp_path):
    """builder.py is called as a user would, and its last line is the reason; another Python keeps its own packages."""
    one = check("--engine-python", sys.executable)
    with pytest.raises(DemoBertError, match="^the checkpoint does not exist: .*nowhere$") as caught:
        one.build(tmp_path / "nowhere", tmp_path / "x.engine", "openvino", "auto", "fp32")
    assert "\n" not in str(caught.value) and one.environment is not None
    assert check("--engine-python", "/usr/bin/other-python").environment is None


@pytest.fixture
def without_a_gpu(monkeypatch):
    """gpu_check.sh's whole run on a CPU: OpenVINO for TensorRT, PyTorch on the CPU, times that are made up."""
    cuda = SimpleNamespace(get_device_capability=lambda index: (9, 0), get_device_name=lambda index: "a GPU")
    monkeypatch.setattr(torch_models, "import_torch", lambda: SimpleNamespace(cuda=cuda, __version__="2"))
    monkeypatch.setattr(torch_models, "DEVICE", "cpu")
    monkeypatch.setattr(torch_models, "runs", lambda model, batch, compiled: {"eager SDPA": lambda runs: [2.0] * runs})
    monkeypatch.setattr(EngineProcess, "time", lambda self, batch, length, runs, graph: [0.5 if graph else 1.0] * runs)
    parse = gpu_check.parse

    def on_openvino(arguments):
        args = parse(arguments)
        args.backend, args.precision = ["openvino"], ["fp32"]
        return args

    monkeypatch.setattr(gpu_check, "parse", on_openvino)


@pytest.mark.sampled(0.4, group="slow")
def test_a_whole_run(without_a_gpu, tmp_path, capsys):
    figures = tmp_path / "figures.json"
    flags = ["--model", "bundled", "--windows", 3, "-b", 1, "-b", 2, "-s", 64, "--rounds", 1]
    flags += ["--folder", tmp_path / "none", "--squad", SQUAD, "--json", figures]
    assert gpu_check.main([str(flag) for flag in flags]) == 0
    printed = capsys.readouterr().out
    assert "| openvino, fp32 | 3 | 0.0" in printed and "| PyTorch, fp16 | 3 | 0." in printed
    assert (
        "| openvino, fp32, CUDA graph | 0.500 | 0.500 |" in printed and "1 engines compared, 0 not to be had" in printed
    )
    content = json.loads(figures.read_text())
    assert (
        content["machine"]["gpu"] == "a GPU (compute capability 9.0)"
        and content["failed"] == []
        and len(content["latencies"]) == 2
    )
    assert content["latencies"][1]["median_ms"]["PyTorch, fp16, eager SDPA"] == 2.0


@pytest.mark.sampled(0.4, group="slow")
def test_an_engine_with_other_logits_fails_the_run(without_a_gpu, tmp_path, capsys, monkeypatch):
    right = EngineProcess.logits
    wrong = lambda self, batches, folder: [logits[:, ::-1] for logits in right(self, batches, folder)]  # noqa: E731
    monkeypatch.setattr(EngineProcess, "logits", wrong)
    flags = [
        "--model",
        "bundled",
        "--windows",
        1,
        "-b",
        1,
        "-s",
        64,
        "--rounds",
        1,
        "--folder",
        tmp_path,
        "--squad",
        SQUAD,
    ]
    assert gpu_check.main([str(flag) for flag in flags]) == 1
    assert "FAILED: openvino, fp32, bundled: its logits are not PyTorch's" in capsys.readouterr().out


def test_a_way_that_fails_is_left_out_of_the_table():
    one = check("--rounds", 3)

    def broken(runs):
        raise DemoBertError("the GPU failed")

    assert one.in_turn("a model", {"good": lambda runs: [1.0, 3.0, 2.0], "bad": broken}) == {"good": 2.0}
    assert one.failed == ["bad, a model: the GPU failed"]


# What the GPU run taught: TensorRT-RTX's default targets are not all GPUs from 8.0 on


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (8, 6), (8, 9), (12, 0), (12, 1)])
def test_rtx_loads_on_gpus_that_it_names(capability):
    targets = "{}.{}".format(*capability) if capability < (8, 0) else ""
    card = SimpleNamespace(device="GPUs", settings={"compute_capabilities": targets})
    tensorrt_engine._check_device("x.engine", card, Gpu("a GPU", capability), TENSORRT_RTX)
    assert rtx_supports(capability)


@pytest.mark.parametrize("capability", [(7, 0), (8, 7), (9, 0), (10, 0), (10, 3)])
@pytest.mark.parametrize("targets", ["", "8.0", "9.0"])
def test_rtx_refuses_other_gpus_in_one_line(capability, targets):
    """Seen on an H200: TensorRT-RTX 1.7.1 names 8.0 8.6 8.9 12.0 12.1 >12.0 and refuses 9.0."""
    card = SimpleNamespace(device="GPUs", settings={"compute_capabilities": targets})
    with pytest.raises(DemoBertError, match=r"TensorRT-RTX does not support this GPU, a GPU \(compute .*12\.0"):
        tensorrt_engine._check_device("x.engine", card, Gpu("a GPU", capability), TENSORRT_RTX)


def test_tensorrt_still_goes_by_the_gpu_s_name():
    card = SimpleNamespace(device="NVIDIA H200 (compute capability 9.0)", settings={})
    tensorrt_engine._check_device("x.engine", card, Gpu("NVIDIA H200", (9, 0)), TENSORRT)
    with pytest.raises(DemoBertError, match="was built for NVIDIA H200"):
        tensorrt_engine._check_device("x.engine", card, Gpu("NVIDIA L4", (8, 9)), TENSORRT)
