"""The transfer of packages to a GPU machine that has no package registry.

`download` fetches wheels and sources where there is one, `pack` makes one archive of them, in parts that a transfer
takes; on the GPU machine `unpack` joins the parts and `install` installs the wheels. An archive becomes NAME.part00,
NAME.part01… and NAME.parts.json, which holds their SHA-256 sums.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

from helpers import cli
from helpers.errors import DemoBertError
from helpers.files import read_json, sha256_of
from helpers.outputs import atomic_write, write_json

#: TensorRT-RTX, for CUDA 13: libraries and bindings as wheels, and the module itself, which is a source package.
RTX_VERSION = "1.7.1.116"
RTX_WHEELS = (f"tensorrt-rtx-cu13-libs=={RTX_VERSION}", f"tensorrt-rtx-cu13-bindings=={RTX_VERSION}")
RTX_SOURCE = f"tensorrt-rtx-cu13=={RTX_VERSION}"

#: PyCUDA is built on the GPU machine, against its CUDA; these are what it imports.
PYCUDA_SOURCE = "pycuda>=2022.2"
PYCUDA_NEEDS = ("pytools", "siphash24", "platformdirs", "typing_extensions", "mako", "markupsafe")

#: What the project's own scripts import.
PROJECT_NEEDS = ("numpy>=1.26", "safetensors", "ml_dtypes", "tokenizers", "tqdm")

#: What the Python that travels with TensorRT 8.6.0 has besides: what unpacks its libraries, and MLPerf's load generator.
ENGINE_NEEDS = ("zstandard", "mlcommons-loadgen")

PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")

_BLOCK = 1 << 20


def download(folder: Path, python_version: str) -> None:
    """Download into `folder` what TensorRT-RTX needs on a Linux machine with `python_version` ("3.12").

    Raises DemoBertError where pip fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    foreign = ["--only-binary=:all:", "--implementation", "cp", "--python-version", python_version]
    foreign += [word for platform in PLATFORMS for word in ("--platform", platform)]
    _pip("download", "--no-deps", *foreign, "-d", str(folder), *RTX_WHEELS, *PYCUDA_NEEDS, *PROJECT_NEEDS)
    _pip("wheel", "--no-deps", "-w", str(folder), RTX_SOURCE)
    _pip("download", "--no-deps", "--no-binary", "pycuda", "-d", str(folder), PYCUDA_SOURCE)


def pack(parcel: Path, archive: Path, part_bytes: int) -> list[Path]:
    """All that is in the folder `parcel` as the tar file `archive`, cut into files of at most `part_bytes`.

    Returns them, the list of parts last. Parts of an earlier `archive` go.
    """
    for old in archive.parent.glob(f"{archive.name}.part*"):
        old.unlink()
    with tarfile.open(archive, "w") as file:
        for path in sorted(parcel.iterdir()):
            file.add(path, path.name)
    parts = split(archive, part_bytes)
    archive.unlink()
    return [*parts, archive.with_name(f"{archive.name}.parts.json")]


def unpack(folder: Path) -> None:
    """What `pack` made, in `folder` again, unless it was unpacked before. Raises DemoBertError."""
    for manifest in sorted(folder.glob("*.tar.parts.json")):
        done, wanted = manifest.with_suffix(".unpacked"), sha256_of(manifest)
        if done.is_file() and done.read_text(encoding="ascii") == wanted:
            continue
        archive = joined(folder, manifest)
        cli.note(f"Unpacking {archive.name}")
        try:
            with tarfile.open(archive) as file:
                file.extractall(folder, filter="data")
        except tarfile.TarError as error:
            raise DemoBertError(f"{archive} can't be unpacked: {cli.one_line(error)}") from error
        archive.unlink()
        done.write_text(wanted, encoding="ascii")


def split(path: Path, part_bytes: int) -> list[Path]:
    """Cut `path` into files of `part_bytes` beside it, with their sums in NAME.parts.json; returns the parts."""
    parts = []
    with path.open("rb") as file:
        while file.peek(1):
            part = path.with_name(f"{path.name}.part{len(parts):02}")
            with atomic_write(part) as out:
                left = part_bytes
                while left and (block := file.read(min(_BLOCK, left))):
                    out.write(block)
                    left -= len(block)
            parts.append(part)
    sums = [{"name": part.name, "sha256": sha256_of(part)} for part in parts]
    write_json(path.with_name(f"{path.name}.parts.json"), {"name": path.name, "sha256": sha256_of(path), "parts": sums})
    return parts


def joined(folder: Path, manifest: Path) -> Path:
    """The file whose parts `manifest` lists, put together again unless it is there. Raises DemoBertError."""
    content = read_json(manifest, "list of parts")
    try:
        whole = {"name": content["name"], "sha256": content["sha256"]}
        entries = [{"name": part["name"], "sha256": part["sha256"]} for part in content["parts"]]
    except (KeyError, TypeError) as error:
        raise DemoBertError(f"{manifest} is not a list of parts; run gpu_check.sh --prepare again") from error
    for entry in (whole, *entries):
        if not _is_plain(entry["name"]):
            raise DemoBertError(f"{manifest} names a file outside its folder: {entry['name']!r}")
    target = folder / whole["name"]
    if target.is_file() and sha256_of(target) == whole["sha256"]:
        return target
    missing = [entry["name"] for entry in entries if not (folder / entry["name"]).is_file()]
    if missing:
        counted = f"{len(missing)} of {len(entries)} parts of {target.name} are missing"
        raise DemoBertError(f"{counted} in {folder}: {missing[0]}…")
    with atomic_write(target) as out:
        for entry in entries:
            path = folder / entry["name"]
            if sha256_of(path) != entry["sha256"]:
                raise DemoBertError(f"{path} is damaged: its SHA-256 is not the one recorded; copy it again")
            with path.open("rb") as part:
                shutil.copyfileobj(part, out, _BLOCK)
    if sha256_of(target) != whole["sha256"]:
        target.unlink()
        raise DemoBertError(f"{target} is not what was cut: run gpu_check.sh --prepare again")
    return target


def _is_plain(name) -> bool:
    """Whether `name` is a file's name and no path."""
    return isinstance(name, str) and name not in ("", ".", "..") and Path(name).name == name


def install(folder: Path) -> dict:
    """Install the wheels of `folder` into its subfolder `site`, build PyCUDA there if it is missing, and use both.

    Packages that this Python has already stay as they are, and win. Returns the environment in which a process of this
    Python finds the rest too. Raises DemoBertError where pip fails.
    """
    if not folder.is_dir():
        return dict(os.environ)
    unpack(folder)
    site = (folder / "site").resolve()
    sys.path.append(str(site))
    paths = [path for path in (os.environ.get("PYTHONPATH"), str(site)) if path]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    for wheel in sorted(folder.glob("*.whl")):
        if _is_missing(wheel):
            cli.note(f"Installing {wheel.name}")
            _pip("install", *_OFFLINE, "--target", str(site), str(wheel))
    importlib.invalidate_caches()
    for source in sorted(folder.glob("pycuda-*.tar.gz")):
        if importlib.util.find_spec("pycuda") is None:
            cli.note(f"Building {source.name} (two minutes)")
            target = ["--target", str(site), "--no-build-isolation"]
            _pip("install", *_OFFLINE, *target, str(source), **environment | _cuda_paths())
            importlib.invalidate_caches()
    return environment


_OFFLINE = ("--quiet", "--no-index", "--no-deps", "--no-cache-dir", "--upgrade")

#: Where the import name is not the file name's first word.
_IMPORT_NAMES = {
    "tensorrt_rtx_cu13": "tensorrt_rtx",
    "tensorrt_rtx_cu13_libs": "tensorrt_rtx_libs",
    "tensorrt_rtx_cu13_bindings": "tensorrt_rtx_bindings",
}


def _is_missing(wheel: Path) -> bool:
    name = wheel.name.split("-")[0]
    return importlib.util.find_spec(_IMPORT_NAMES.get(name, name)) is None


def _cuda_paths() -> dict:
    """The environment in which PyCUDA's build finds nvcc and the stub of the driver's library."""
    nvcc = shutil.which("nvcc")
    root = Path(nvcc).resolve().parents[1] if nvcc else Path("/usr/local/cuda")
    libraries = [str(root / "lib64"), str(root / "lib64" / "stubs"), os.environ.get("LIBRARY_PATH", "")]
    path = os.pathsep.join([str(root / "bin"), os.environ["PATH"]])
    return {"PATH": path, "LIBRARY_PATH": os.pathsep.join(libraries), "CUDA_ROOT": str(root)}


def _pip(*arguments: str, **environment) -> None:
    command = [sys.executable, "-m", "pip", *arguments, "--disable-pip-version-check"]
    result = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, errors="replace")
    if result.returncode:
        said = (result.stderr or result.stdout).splitlines()
        errors = [line for line in said if line.strip().lower().startswith("error")]
        raise DemoBertError(f"pip {arguments[0]} failed: {cli.one_line((errors or said or ['no reason given'])[-1])}")
