"""The C++ side, built from a clean tree with cmake and make, once for all processes of a test run; a tiny engine for it.

DEMOBERT_CPP_BUILD=FOLDER takes a build that is there, such as one with sanitizers (scripts/check_sanitizers.sh).
"""

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import builder
from helpers import infer_c_engine
from helpers.bert_config import BertConfig
from tests import checkpoints
from tests.conftest import ROOT
from tests.reference_bert import random_config, random_weights


@dataclass(frozen=True)
class Built:
    """A build: its folder, and the module."""

    folder: Path
    module: object

    def perf(self, *arguments, code: int = 0) -> subprocess.CompletedProcess:
        command = [self.folder / "perf", *map(str, arguments)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert result.returncode == code, result
        return result


def build_clean_tree(folder: Path) -> Path:
    """The README's two commands in a copy of the sources alone."""
    if missing := [tool for tool in ("g++", "make") if shutil.which(tool) is None]:
        pytest.skip(f"the C++ side needs {' and '.join(missing)}: apt-get install g++ make")
    shutil.copy(ROOT / "CMakeLists.txt", folder)
    shutil.copytree(ROOT / "infer_c", folder / "infer_c")
    build = folder / "build"
    build.mkdir()
    cmake = shutil.which("cmake", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert cmake, "requirements-cpp.txt installs cmake"
    for command in ([cmake, "..", f"-DPYTHON_EXECUTABLE={sys.executable}"], ["make", "-j2"]):
        result = subprocess.run(command, cwd=build, capture_output=True, text=True, preexec_fn=_take_every_core)
        assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
        assert "warning" not in result.stderr
    return build


def _take_every_core() -> None:
    """Of a parallel run's processes each has its own; while this is built the others mostly wait for it."""
    os.sched_setaffinity(0, range(os.cpu_count()))


def clean_build(tmp_path_factory) -> Path:
    """The build of this test run: made by whoever asks first, while the other processes that ask wait for it."""
    run = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        run = run.parent  # each process of a parallel run has a folder in the run's own
    tree = run / "cpp_tree"
    with (run / "cpp_tree.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = tree / "done"
        if not done.is_file():
            shutil.rmtree(tree, ignore_errors=True)
            tree.mkdir()
            build_clean_tree(tree)
            done.touch()
    return tree / "build"


@contextlib.contextmanager
def in_use(tmp_path_factory):
    """The build, as what inference_c.py loads."""
    folder = os.environ.get("DEMOBERT_CPP_BUILD")
    folder = Path(folder) if folder else clean_build(tmp_path_factory)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(infer_c_engine, "BUILD_FOLDER", folder)
        yield Built(folder, infer_c_engine._module())


def build_tiny(folder: Path, rng, config: BertConfig | None = None):
    """A random model's engine: config, tensors, path; up to 5 × its longest sequence."""
    config = config or random_config(rng)
    tensors = random_weights(config, rng)
    checkpoints.write_config(folder, config)
    weights = checkpoints.write_safetensors(folder / "weights.safetensors", checkpoints.pytorch_state(config, tensors))
    engine = folder / "tiny.engine"
    flags = ["-pt", str(weights), "-c", str(folder), "-o", str(engine), "-b", "5", "--backend", "openvino"]
    builder.main([*flags, "-s", str(config.max_position_embeddings)])
    return config, tensors, engine
