"""Fixtures: a fresh seed, scripts run in this process, engines of the bundled model."""

import importlib
import os
import random
import shutil
import signal
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import pytest


def _keep_to_own_cores() -> None:
    """Give this process of a parallel run its share of the cores: else numerical libraries would start a thread on each
    core in every process, and wait for each other."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")  # "gw0", "gw1"…
    if worker and os.environ.get("DEMOBERT_CORES_OF") != worker and hasattr(os, "sched_setaffinity"):
        os.environ["DEMOBERT_CORES_OF"] = worker  # this file is read twice, as conftest and as tests.conftest
        count = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[int(worker[2:]) % count :: count])


_keep_to_own_cores()

import numpy as np  # noqa: E402

from helpers import cli  # noqa: E402

# In a shell's background a program ignores Ctrl-C, under nohup the end of its terminal, and all that it starts does: tests
# of such ends would wait for ever.
for _number, _handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _handler)

ROOT = Path(__file__).resolve().parent.parent
BUNDLED = ROOT / "models" / "bundled" / "bert_mini_squad11"


def pytest_addoption(parser):
    parser.addoption(
        "--all", action="store_true", help="run all cases of the tests of which a sample is run (`sampled`)"
    )


@pytest.hookimpl(trylast=True)  # of what -k and the like leave
def pytest_collection_modifyitems(config, items):
    """Of tests marked `sampled(share)`, run so many of their cases, others every time; `--all` runs all of them.

    With `group=NAME` the cases of all tests of that name are drawn from together, such as the slowest of all.

    The processes of a parallel run draw the same ones: their collections must not differ.
    """
    if config.getoption("--all"):
        return
    draw = random.Random(os.environ.get("DEMOBERT_SEED") or os.environ.get("PYTEST_XDIST_TESTRUNUID"))
    cases = defaultdict(list)
    for item in items:
        if marker := item.get_closest_marker("sampled"):
            cases[marker.kwargs.get("group") or item.nodeid.partition("[")[0]].append(item)
    for group in cases.values():
        count = max(1, round(group[0].get_closest_marker("sampled").args[0] * len(group)))
        for item in draw.sample(group, len(group) - count):
            item.add_marker(pytest.mark.skip(reason="a sample of its cases is run: --all runs all of them"))


@pytest.fixture
def rng(request):
    """A generator with a new seed for every test and run; a failure shows the seed, DEMOBERT_SEED repeats it."""
    seed = int(os.environ.get("DEMOBERT_SEED") or int.from_bytes(os.urandom(4), "little"))
    print(f"DEMOBERT_SEED={seed}")
    return np.random.default_rng(seed)


@dataclass(frozen=True)
class Result:
    """What a script printed and returned."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line of an error; the notes before it, such as "Reading …", are not its business."""
        lines = self.err.splitlines()
        assert self.code in (1, 2) and lines, self
        assert ": error: " in lines[-1] and not any("Traceback" in line for line in lines), self.err
        assert sum(": error: " in line for line in lines) == 1, self.err
        return lines[-1]


@pytest.fixture
def script(capsys, monkeypatch):
    """`script("builder.py", "-o", path, …)` runs a script as the shell would, without starting a new Python."""

    def run(name: str, *arguments) -> Result:
        arguments = [str(argument) for argument in arguments]
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        module = importlib.import_module(name.removesuffix(".py"))
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.run(module.main)
        captured = capsys.readouterr()
        return Result(ended.value.code or 0, captured.out, captured.err)

    return run


def build_bundled(folder: Path, *flags: str) -> Path:
    """An engine of the bundled model: batch sizes up to 8, lengths up to 384."""
    builder = importlib.import_module("builder")
    engine = folder / "bert_mini.engine"
    builder.main(["-pt", str(BUNDLED), "-o", str(engine), "-b", "8", "-s", "384", "--backend", "openvino", *flags])
    return engine


@pytest.fixture(scope="session")
def small_model(tmp_path_factory) -> Path:
    """The bundled model's folder, but for its size: two layers of random weights. For tests that want no right answer."""
    from helpers.bert_config import BertConfig
    from tests import checkpoints
    from tests.reference_bert import random_weights

    folder = tmp_path_factory.mktemp("small_model")
    config = BertConfig(48, 2, 3, 64, BertConfig.from_folder(BUNDLED).vocab_size, 64)
    tensors = random_weights(config, np.random.default_rng(7))
    checkpoints.write_folder(folder, config, checkpoints.pytorch_state(config, tensors))
    for name in ("vocab.txt", "tokenizer_config.json"):
        shutil.copy(BUNDLED / name, folder)
    return folder


@pytest.fixture(scope="session")
def small_engine(small_model, tmp_path_factory) -> Path:
    """Its engine: batch sizes up to 8, lengths up to 64. Never written to by tests."""
    engine = tmp_path_factory.mktemp("small") / "small.engine"
    arguments = ["-pt", str(small_model), "-o", str(engine), "-b", "8", "-s", "64", "--backend", "openvino"]
    importlib.import_module("builder").main(arguments)
    return engine


@pytest.fixture(scope="session")
def bundled_engine(tmp_path_factory) -> Path:
    """fp32. Never written to by tests: those that damage an engine copy it first."""
    return build_bundled(tmp_path_factory.mktemp("fp32"))


@pytest.fixture(scope="session")
def bundled_half_engine(tmp_path_factory) -> Path:
    return build_bundled(tmp_path_factory.mktemp("half"), "--fp16")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The C++ side, built: see cpp_build.Built."""
    from tests import cpp_build

    with cpp_build.in_use(tmp_path_factory) as build:
        yield build


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A random model's config, tensors and engine."""
    from tests.cpp_build import build_tiny

    return build_tiny(tmp_path_factory.mktemp("tiny"), np.random.default_rng(int.from_bytes(os.urandom(4), "little")))


class _AnySize:
    def __contains__(self, size: int) -> bool:
        return True


@pytest.fixture
def int8_norms_of_any_size(monkeypatch):
    """Int8 add + norm of small models: at the 768 channels that TensorRT has kernels for, numpy takes minutes."""
    from helpers.backends.tensorrt import plan_builder
    from tests.tensorrt_double import plugins

    for module in (plan_builder, plugins):
        monkeypatch.setattr(module, "INT8_NORM_SIZES", _AnySize())
