"""TensorRT 8.6.0 for a GPU machine that has nothing of it: collected where there is a package registry, unpacked there.

It is the only release for Hopper in the package registry, and has wheels for Pythons up to 3.10: so a Python travels,
too, with what the engines' side of the check imports. PyCUDA, which has no wheels, and build/perf are built here: both
need CUDA's headers, neither the driver's library. Of the libraries travels what BERT uses, some without the kernels for
other GPUs (WHOLE, fatbins.py): of cuDNN, which the plugin library is linked to, the front and what creates its handle.
"""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from fnmatch import fnmatch
from pathlib import Path

from helpers import cli
from helpers.errors import DemoBertError
from scripts.gpu_checking import compressed
from scripts.gpu_checking.fatbins import clear_foreign_code

ROOT = Path(__file__).resolve().parents[2]

VERSION = "8.6.0"

#: The Python that its wheel is for.
PYTHON = "3.10"

#: Wheels that hold libraries, and which: TensorRT 8.6.0 was built for these releases of cuBLAS and cuDNN.
LIBRARIES = {
    f"tensorrt=={VERSION}": ("tensorrt/lib*",),
    "nvidia-cublas-cu12==12.0.1.189": ("nvidia/cublas/lib/libcublas.so.*", "nvidia/cublas/lib/libcublasLt.so.*"),
    "nvidia-cudnn-cu12==8.9.0.131": ("nvidia/cudnn/lib/libcudnn.so.*", "nvidia/cudnn/lib/libcudnn_ops_infer.so.*"),
}

#: Libraries that travel whole. libnvinfer compares the SHA-256 of the builder's kernels with the one that it was built
#: with ("validateCaskKLibDigest"), and makes no builder where they differ. Of the plugins little would be saved.
WHOLE = ("libnvinfer_builder_resource", "libnvinfer_plugin")

#: Parts of Python's library that no script here imports; some want libraries that a machine may lack.
_LEFT_OUT = ("site-packages", "test", "tests", "idlelib", "tkinter", "turtledemo", "lib2to3", "ensurepip", "config-*")
_LEFT_OUT_MODULES = (
    "_tkinter",
    "_ssl",
    "_hashlib",
    "_curses*",
    "readline",
    "_dbm",
    "_gdbm",
    "nis",
    "_sqlite3",
    "_crypt",
)

#: Libraries that every Linux with glibc has.
_EVERYWHERE = ("linux-vdso", "ld-linux", "libc.", "libm.", "libdl.", "libpthread.", "librt.", "libutil.", "libgcc_s.")

#: The driver's library, which a machine without a GPU lacks.
_DRIVER = "libcuda.so.1"

#: What holds the Python, its packages and build/perf.
_BUNDLE = "python.tar.xz"

_ASK = """
import json, os, sys, sysconfig
print(json.dumps({
    "version": "%d.%d" % sys.version_info[:2],
    "program": os.path.realpath(sys.executable),
    "library": sysconfig.get_path("stdlib"),
    "shared": os.path.join(sysconfig.get_config_var("LIBDIR") or "", sysconfig.get_config_var("INSTSONAME") or ""),
}))
"""

_LAUNCHER = """#!/bin/sh
# Python with TensorRT, whatever else this machine has installed.
home=$(cd -- "$(dirname -- "$0")" && pwd)
export PYTHONHOME="$home" PYTHONPATH="$home/site" LD_LIBRARY_PATH="$home/lib:$home/libraries"
exec "$home/bin/python" "$@"
"""


def collect(
    parcel: Path, downloads: Path, python: str, packages: tuple, generation: int | None, headers: Path | None
) -> None:
    """Fill `parcel` with all that travels; `downloads` keeps what comes from the registry, for the next time.

    `python` is this machine's Python 3.10, `packages` are what pip gives it, `generation` is the GPU's (90 for 9.0;
    None: any), `headers` hold TensorRT's NvInfer.h, without which build/perf is left out. Raises DemoBertError.
    """
    told = _described(python)
    home = parcel / f"tensorrt-{VERSION}"
    libraries = home / "libraries"
    libraries.mkdir(parents=True)
    _copy_python(told, home)
    cli.note("Collecting packages")
    wheel = _pycuda(python, downloads)
    _pip(python, "install", "--no-deps", "--quiet", "--target", str(home / "site"), *packages, str(wheel))
    for requirement, patterns in LIBRARIES.items():
        _pip(python, "download", "--no-deps", "--quiet", "-d", str(downloads), requirement)
        name = requirement.split("==")[0].replace("-", "_")
        _extract(next(downloads.glob(f"{name}-*.whl")), patterns, libraries)
    bindings = next(downloads.glob(f"tensorrt-{VERSION}-*.whl"))
    _extract(bindings, ("tensorrt/__init__.py", "tensorrt/tensorrt.so"), home / "site" / "tensorrt")
    if headers is not None:
        build_perf(headers, libraries, home)
    for path in sorted(libraries.iterdir()):
        whole = generation is None or path.name.startswith(WHOLE)
        cleared = 0 if whole else clear_foreign_code(path, generation)
        cli.note(f"{path.name}: {path.stat().st_size >> 20} MiB, {cleared >> 20} of them for other GPUs")
    _work_on(libraries, "compress")
    bundle(home)


def bundle(home: Path) -> None:
    """All but the libraries, which are compressed on their own, as one archive that any Python unpacks."""
    with tarfile.open(home / _BUNDLE, "w:xz", preset=1) as archive:
        for path in sorted(home.iterdir()):
            if path.name not in ("libraries", _BUNDLE):
                archive.add(path, path.name)
    for path in sorted(home.iterdir()):
        if path.name not in ("libraries", _BUNDLE):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def unpack(home: Path) -> str:
    """Expand the libraries in `home`, where they are not yet; returns the Python to run. Raises DemoBertError."""
    if (home / _BUNDLE).is_file():
        with tarfile.open(home / _BUNDLE) as archive:
            archive.extractall(home, filter="data")
        (home / _BUNDLE).unlink()
    if not (home / "python").is_file():
        raise DemoBertError(f"TensorRT {VERSION} is not in {home.parent}: collect it by gpu_check.sh --prepare")
    libraries = home / "libraries"
    if any(libraries.glob(f"*{compressed.SUFFIX}")):
        cli.note(f"Unpacking TensorRT {VERSION}")
        _work_on(libraries, "expand")
    return str(home / "python")


def _work_on(libraries: Path, work: str) -> None:
    program = str(Path(compressed.__file__).resolve())
    run_program(f"to {work} TensorRT", [str(libraries.parent / "python"), program, work, str(libraries)])


def _described(python: str) -> dict:
    """What `python` says of itself. Raises DemoBertError where it is not the one that TensorRT has a wheel for."""
    try:
        told = json.loads(run_program(python, [python, "-I", "-c", _ASK]))
        reason = f"{python} is {told['version']}"
    except DemoBertError as error:
        told, reason = {"version": ""}, str(error)
    if told["version"] != PYTHON:
        raise DemoBertError(f"TensorRT {VERSION} needs a Python {PYTHON}; name one with --engine-python ({reason})")
    return told


def _copy_python(told: dict, home: Path) -> None:
    """The Python that `told` of itself, its library, what they are linked to, and the script that starts it."""
    (home / "bin").mkdir()
    program, shared = Path(told["program"]), Path(told["shared"])
    shutil.copy2(program, home / "bin" / "python")
    unused = shutil.ignore_patterns("__pycache__", *_LEFT_OUT, *(f"{name}.*so" for name in _LEFT_OUT_MODULES))
    library = home / "lib" / f"python{PYTHON}"
    shutil.copytree(told["library"], library, ignore=unused)
    for path in [program, *library.glob("lib-dynload/*.so")]:
        for name, found in _linked_to(path):
            if not name.startswith(_EVERYWHERE) and not (home / "lib" / name).exists():
                shutil.copy2(found, home / "lib" / name)
    if shared.is_file() and ".so" in shared.suffixes:
        shutil.copy2(shared, home / "lib" / shared.name)
    (home / "python").write_text(_LAUNCHER, encoding="utf-8")
    (home / "python").chmod(0o755)


def _linked_to(path: Path):
    """(name, file) of each library that `path` is linked to, by ldd."""
    for line in run_program("ldd", ["ldd", str(path)]).splitlines():
        words = line.split()
        if "=>" in words and len(words) > 3:
            yield words[0], words[2]


def _pycuda(python: str, downloads: Path) -> Path:
    """PyCUDA's wheel for `python`, built here unless it was before."""
    downloads.mkdir(parents=True, exist_ok=True)
    tag = PYTHON.replace(".", "")
    for wheel in sorted(downloads.glob(f"pycuda-*-cp{tag}-*.whl"), reverse=True):
        if _names_driver(wheel):
            return wheel
        wheel.unlink()  # built by an earlier release of this script
    cli.note("Building PyCUDA (some minutes)")
    _pip(python, "download", "--no-deps", "--no-binary", "pycuda", "--quiet", "-d", str(downloads), "pycuda")
    archive = sorted(downloads.glob("pycuda-*.tar.gz"))[-1]
    with tempfile.TemporaryDirectory(prefix="demobert-pycuda-") as folder:
        shutil.unpack_archive(archive, folder, filter="data")
        source = next(Path(folder).iterdir())
        (source / "siteconf.py").write_text(_pycuda_settings(Path(folder)), encoding="utf-8")
        _pip(python, "wheel", "--no-deps", "--quiet", "-w", folder, str(source))
        wheel = next(Path(folder).glob(f"pycuda-*-cp{tag}-*.whl"))
        if not _names_driver(wheel):
            raise DemoBertError(f"PyCUDA was built here without {_DRIVER}: it would not be loaded on the GPU machine")
        return Path(shutil.move(wheel, downloads))


def _names_driver(wheel: Path) -> bool:
    """Whether PyCUDA names the driver's library: else it can't be loaded, where there is one."""
    with zipfile.ZipFile(wheel) as archive:
        modules = [name for name in archive.namelist() if Path(name).name.startswith("_driver.")]
        return any(_DRIVER.encode() in archive.read(name) for name in modules)


def _pycuda_settings(folder: Path) -> str:
    """PyCUDA's configuration: CUDA's headers, a stand-in for the driver's library, and no library of the toolkit's.

    The stand-in has a name only: a linker asks for no more, and the driver itself is found where there is one.
    """
    driver = folder / "libcuda.so"
    run_program("the C compiler", ["cc", "-shared", "-x", "c", os.devnull, f"-Wl,-soname,{_DRIVER}", "-o", str(driver)])
    settings = {
        "USE_SHIPPED_BOOST": True,
        "CUDA_ROOT": str(cuda_root()),
        "CUDA_ENABLE_GL": False,
        "CUDA_ENABLE_CURAND": False,
        "CUDADRV_LIB_DIR": [str(folder)],
        "CUDADRV_LIBNAME": ["cuda"],
        "CUDART_LIB_DIR": [str(folder)],
        "CUDART_LIBNAME": ["cuda"],
        # What LDFLAGS holds comes behind the libraries: the library itself stands there, too, or a linker leaves it out.
        "LDFLAGS": ["-Wl,--no-as-needed", str(driver)],
    }
    return "".join(f"{name} = {value!r}\n" for name, value in settings.items())


def cuda_root() -> Path:
    """CUDA's folder, as nvcc tells it: nvcc on PATH may be a script that calls another. Raises DemoBertError."""
    nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    said = _dry_run(nvcc)
    top = next((line.split("=", 1)[1] for line in said.splitlines() if line.startswith("#$ TOP=")), "")
    if not top:
        raise DemoBertError("PyCUDA and build/perf need CUDA's headers, and there is no nvcc here")
    return Path(top).resolve()


def _dry_run(nvcc: str) -> str:
    try:
        return subprocess.run([nvcc, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True).stderr
    except OSError:
        return ""


def build_perf(headers: Path, libraries: Path, home: Path) -> None:
    """build/perf and its TensorRT backend, against `headers` and `libraries`, into the folder `build` of `home`."""
    cli.note("Building build/perf")
    if not (headers / "NvInfer.h").is_file():
        raise DemoBertError(f"--headers: there is no NvInfer.h in {headers}")
    with tempfile.TemporaryDirectory(prefix="demobert-perf-") as folder:
        root, build = Path(folder) / "tensorrt", Path(folder) / "build"
        root.mkdir()
        (root / "include").symlink_to(headers.resolve())
        (root / "lib").symlink_to(libraries.resolve())
        found = [
            f"-DTENSORRT_ROOT={root}",
            f"-DPYTHON_EXECUTABLE={sys.executable}",
            f"-DCUDAToolkit_ROOT={cuda_root()}",
        ]
        run_program("cmake", ["cmake", "-S", str(ROOT), "-B", str(build), *found])
        run_program("cmake", ["cmake", "--build", str(build), "-j2", "--target", "perf", "demobert_tensorrt"])
        (home / "build").mkdir()
        for name in ("perf", "libdemobert_tensorrt.so"):
            shutil.copy2(build / name, home / "build" / name)


def _extract(wheel: Path, patterns: tuple, folder: Path) -> None:
    """The files of `wheel` whose names fit one of `patterns`, into `folder`, without their own folders."""
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(wheel) as file:
        for name in file.namelist():
            if any(fnmatch(name, pattern) for pattern in patterns):
                with file.open(name) as source, (folder / Path(name).name).open("wb") as out:
                    shutil.copyfileobj(source, out, 1 << 20)


def _pip(python: str, *arguments: str) -> None:
    run_program(f"pip {arguments[0]}", [python, "-m", "pip", *arguments, "--disable-pip-version-check"])


def run_program(what: str, command: list) -> str:
    """What `command` prints. Raises DemoBertError with the line that says why it failed."""
    command = [str(word) for word in command]
    try:
        result = subprocess.run(command, capture_output=True, text=True, errors="replace")
    except OSError as error:
        raise DemoBertError(f"{what}: {command[0]} can't be run: {error.strerror}") from error
    if result.returncode:
        said = (result.stderr or result.stdout).splitlines()
        errors = [line for line in said if "error" in line.lower()]
        reason = (errors or said or [f"exit code {result.returncode}"])[-1]
        raise DemoBertError(f"{what} failed: {cli.one_line(reason)}")
    return result.stdout
