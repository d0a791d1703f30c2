"""NVIDIA's server as PyTriton's package brings it, or in a container: its command line. Standard library only."""

import csv
import io
import os
import re
import secrets
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from helpers.errors import DemoBertError, UsageError, missing_package
from scripts.serving.contents import Contents

#: What callers need not do: share memory with the server, load models, set its log and its traces.
_LOCKED = "shared-memory,model-repository,trace,logging"

#: The program of the Python backend's processes.
_STUB = "triton_python_backend_stub"

#: Docker's name of an image: perhaps a registry, then the name, perhaps a tag.
_COMPONENT = r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*"
_IMAGE = re.compile(
    rf"([A-Za-z0-9][A-Za-z0-9.-]*(:[0-9]{{1,5}})?/)?{_COMPONENT}(/{_COMPONENT})*(:[A-Za-z0-9_][A-Za-z0-9_.-]{{0,127}})?"
)


@dataclass(frozen=True)
class Place:
    """Where the server listens: one address, a port each for HTTP, gRPC and metrics."""

    address: str
    http_port: int
    grpc_port: int
    metrics_port: int

    @property
    def ports(self) -> dict[str, int]:
        return {"--http-port": self.http_port, "--grpc-port": self.grpc_port, "--metrics-port": self.metrics_port}


@dataclass(frozen=True)
class Command:
    """A server's command line, environment and working folder."""

    words: list[str]
    environment: dict[str, str]
    folder: Path


def arguments(place: Place, repository: str, exit_timeout: int) -> list[str]:
    """The flags of tritonserver that do not depend on where it is installed.

    The key of what is locked is thrown away: nobody has it.
    """
    key = secrets.token_urlsafe(32)
    flags = [f"{flag}={port}" for flag, port in place.ports.items()]
    flags += [f"--{what}-address={place.address}" for what in ("http", "grpc", "metrics")]
    flags += [
        f"--model-repository={repository}",
        f"--exit-timeout-secs={exit_timeout}",
        "--model-control-mode=none",
        "--disable-auto-complete-config",
        "--allow-sagemaker=false",
        "--allow-vertex-ai=false",
        f"--http-restricted-api={_LOCKED}:nobody={key}",
        f"--grpc-restricted-protocol={_LOCKED}:nobody={key}",
    ]
    return flags


def installed(place: Place, repository: Path, folder: Path, exit_timeout: int) -> Command:
    """The server of this Python's environment; what it needs around it is put into `folder`. Raises DemoBertError."""
    packages = Path(sysconfig.get_path("purelib"))
    server = packages / "pytriton" / "tritonserver"
    program = server / "bin" / "tritonserver"
    if not program.is_file():
        raise missing_package("pytriton", "-r requirements-serve.txt", "serving")
    backends = _backends(server, folder / "backends")
    working = folder / "empty"  # Python looks for modules in the working folder first: in this one there are none
    working.mkdir()
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    libraries = [
        packages / "nvidia_pytriton.libs",
        sysconfig.get_config_var("LIBDIR"),
        environment.get("LD_LIBRARY_PATH"),
    ]
    environment |= {
        # The backend's Python takes the environment of the python3 that it finds.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", os.defpath)]),
        "LD_LIBRARY_PATH": os.pathsep.join(str(library) for library in libraries if library),
    }
    _check_libraries(backends / "python" / _STUB, environment)
    words = [str(program), *arguments(place, str(repository), exit_timeout), f"--backend-directory={backends}"]
    return Command(words, environment, working)


def _check_libraries(stub: Path, environment: dict[str, str]) -> None:
    """Raises DemoBertError for shared libraries that the backend's process would miss: Python's own, mostly."""
    result = subprocess.run(["ldd", str(stub)], env=environment, capture_output=True, text=True)
    if missing := re.findall(r"^\s*(\S+) => not found", result.stdout, re.M):
        raise DemoBertError(
            f"Triton's Python backend needs {', '.join(missing)}, which this machine has not got; on Debian and Ubuntu: "
            f"apt-get install libpython{_python_version()}"
        )


def _python_version() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def _backends(server: Path, folder: Path) -> Path:
    """A folder of backends for this Python: the package has a process for each release of Python beside them."""
    version = _python_version()
    stub = server / "python_backend_stubs" / version / _STUB
    if not stub.is_file():
        known = ", ".join(sorted(path.name for path in stub.parent.parent.glob("3.*")))
        raise DemoBertError(f"this Triton has a Python backend for Python {known}, not for {version}")
    python = folder / "python"
    python.mkdir(parents=True)
    for path in (*(path for path in (server / "backends" / "python").iterdir() if path.is_file()), stub):
        (python / path.name).symlink_to(path)
    return folder


def container(image: str, place: Place, repository: Path, contents: Contents, exit_timeout: int) -> Command:
    """NVIDIA's container, which gets the repository to read and its ports on `place`.

    Raises UsageError for what is not the name of an image.
    """
    if not _IMAGE.fullmatch(image):
        raise UsageError(f"--docker {image} is not the name of an image, such as tritonserver:25.08-py3")
    inside = Place("0.0.0.0", 8000, 8001, 8002)
    server = ["tritonserver", *arguments(inside, "/models", exit_timeout), *contents.arguments]
    words = ["docker", "run", "--rm", "--init", "--shm-size=256m", f"--stop-timeout={exit_timeout + 10}"]
    words += ["--gpus=all"] * contents.gpu
    for outer, inner in zip(place.ports.values(), inside.ports.values()):
        words.append(f"--publish={place.address}:{outer}:{inner}")
    # An option of --mount is a field of CSV.
    fields = io.StringIO()
    csv.writer(fields, lineterminator="").writerow(["type=bind", f"source={repository}", "target=/models", "readonly"])
    script = 'pip install --quiet $PACKAGES && exec "$@"'
    words += [f"--mount={fields.getvalue()}", f"--env=PACKAGES={' '.join(contents.packages)}", image]
    return Command([*words, "bash", "-c", script, "bash", *server], dict(os.environ), Path("/"))
