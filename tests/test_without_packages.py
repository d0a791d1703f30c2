"""The scripts outside their environment: what needs no package answers, the rest is one line that says what to install."""

import os
import runpy
import subprocess
import sys
import sysconfig

import pytest

from helpers.errors import not_installed
from tests.conftest import BUNDLED, ROOT

FOLDERS = (ROOT.glob("*.py"), (ROOT / "squad").glob("*.py"), (ROOT / "scripts").rglob("*.py"))
SCRIPTS = sorted(
    str(path.relative_to(ROOT))
    for paths in FOLDERS
    for path in paths
    if "\n    cli.run(main)\n" in path.read_text(encoding="utf-8")
)


def run(script: str, *arguments, packages: str = "", options: tuple = ()):
    """By a Python that has no packages but those in the folder `packages`."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "-S", *options, str(ROOT / script), *map(str, arguments)]
    environment |= {"PYTHONPATH": packages} if packages else {}
    return subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.sampled(0.4)
@pytest.mark.parametrize("script", SCRIPTS)
def test_help_imports_no_package(script):
    """Although all are there: one that is imported where it can be costs time, and fails nothing where it can't."""
    result = run(script, "-h", packages=sysconfig.get_path("purelib"), options=("-X", "importtime"))
    assert result.returncode == 0 and result.stdout.startswith("usage: "), result
    lines = [line for line in result.stderr.splitlines() if line.startswith("import time:")]
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}
    # "imported package" is the table's heading, org Jython's package, for which the standard library's copy looks.
    foreign = imported - sys.stdlib_module_names - {"imported package", "org", "helpers", "scripts"}
    assert "helpers" in imported and not foreign


@pytest.mark.parametrize(
    "script, arguments, said",
    [
        ("builder.py", "-pt X -o Y --no-such-flag", "unrecognized arguments: --no-such-flag"),
        ("builder.py", "-pt X -m X -o Y", "name one checkpoint with -m, -x or -pt, not -m and -pt"),
        ("builder.py", "-pt X -o Y --fp16 --bf16", "--fp16 and --bf16 exclude each other"),
        ("builder_varseqlen.py", "-pt X -o Y -s 8 -s 9", "give -s once, the longest"),
        ("builder_varseqlen.py", "-pt X -o Y -il", "--interleaved is a layout of int8 plugins"),
        ("perf.py", "", "required: -e/--engine"),
        ("inference.py", "-e X -sq X --top-k 2", "--top-k has no effect on a SQuAD file"),
    ],
)
def test_wrong_arguments_need_no_package(script, arguments, said):
    result = run(script, *arguments.split())
    assert result.returncode == 2 and said in result.stderr and len(result.stderr.splitlines()) == 1, result


@pytest.mark.parametrize(
    "script, arguments, package, file",
    [
        ("builder.py", ("-pt", "X", "-o", "Y"), "numpy", "requirements.txt"),
        ("perf.py", ("-e", "X"), "numpy", "requirements.txt"),
        ("squad/finetune.py", ("-pt", "X", "-j", "X", "-o", "Y"), "torch", "requirements-finetune.txt"),
        ("scripts/benchmark_peers.py", (), "numpy", "requirements.txt"),
        ("scripts/export_triton.py", ("-e", "X", "-o", "Y"), "numpy", "requirements.txt"),
        ("scripts/answer_ray.py", ("-e", "X", "--rows", "X.csv", "-o", "Y"), "tqdm", "requirements.txt"),
        ("scripts/mlperf.py", ("-e", "X", "--lengths", "X", "-o", "Y"), "tqdm", "requirements.txt"),
    ],
)
def test_work_outside_the_environment_says_what_to_install(script, arguments, package, file):
    result = run(script, *arguments)
    name = script.rpartition("/")[2]
    assert result.returncode == 1
    assert result.stderr.startswith(f"{name}: error: the package {package} is not installed for {sys.executable}: ")
    assert result.stderr.endswith(f"pip install -r {file}\n") and len(result.stderr.splitlines()) == 1
    assert "Traceback" in run(script, *arguments, "--verbose").stderr


@pytest.mark.parametrize(
    "module, install",
    [
        ("safetensors", "-r requirements.txt"),
        ("tokenizers", "-r requirements.txt"),
        ("tensorrt_rtx", "-r requirements-rtx.txt"),
        ("ipywidgets", "-r requirements-notebook.txt"),
        ("torchvision", "torchvision, if that is the package's name"),
    ],
)
def test_a_package_is_looked_up_in_the_requirements(module, install):
    assert not_installed(module).endswith(f"pip install {install}")


def test_the_environment_is_named_to_those_outside_it_only(monkeypatch, tmp_path):
    monkeypatch.setattr("helpers.errors.ROOT", tmp_path)
    assert "activate" not in not_installed("numpy")  # there is none
    (tmp_path / ".venv").mkdir()
    assert "activate the environment (source .venv/bin/activate), or pip install" in not_installed("numpy")
    monkeypatch.setattr(sys, "prefix", str(tmp_path / ".venv"))
    assert "activate" not in not_installed("numpy")


@pytest.mark.parametrize("module", ["helpers.building", "numpy.no_such_module", "_ssl"])
def test_what_no_package_brings_is_a_bug(script, monkeypatch, tmp_path, module):
    """A module of the project's own, one of another release's, one of Python's."""

    def missing(args):
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)

    monkeypatch.setattr("helpers.building.build_engine", missing)
    with pytest.raises(ModuleNotFoundError):
        script("builder.py", "-pt", BUNDLED, "-o", tmp_path / "x")


@pytest.mark.sampled(0.4)
@pytest.mark.parametrize("package", ["openvino", "safetensors", "ml_dtypes", "tokenizers"])
def test_a_package_that_is_missing_from_the_environment_is_one_line(tmp_path, package):
    without = f"import runpy, sys; sys.modules[{package!r}] = None; runpy.run_path('builder.py', run_name='__main__')"
    command = [sys.executable, "-c", without, "-pt", BUNDLED, "-o", tmp_path / "x", "--backend", "openvino"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    error = result.stderr.splitlines()[-1]
    assert result.returncode == 1 and f"the package {package} is not installed for {sys.executable}" in error
    assert error.endswith("pip install -r requirements.txt") and not list(tmp_path.iterdir())


def test_an_old_python_is_one_line(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 9, 18))
    with pytest.raises(SystemExit, match="Python 3.10 or newer is needed"):
        runpy.run_path(str(ROOT / "helpers" / "__init__.py"))
