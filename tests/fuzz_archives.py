"""Damages zip files at random: each must be unpacked whole or refused in one line, in time and in little memory.

    python3 -m tests.fuzz_archives --rounds 20000

See tests/fuzzing.py for what is said and how a round is repeated. Faults are also something left behind, a file outside
its folder, and a folder that is not what the archive declares.
"""

import io
import os
import shutil
import struct
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np

from helpers.errors import DemoBertError
from scripts.downloading.unpack import unpack
from tests import fuzzing

_NAMES = (
    *("../escaped", "/escaped", "a/../../escaped", "..", ".", "", "a\0b", "a\nb", "\x1b[2J", "A", "a", "a/", "a/b"),
    *("n" * 300, "\u202e", "C:\\x", "é", "e\u0301", "folder", "folder/x", "x/" * 2000),
)
_NUMBERS = (0, 1, 2, 7, 8, 9, 12, 14, 93, 99, 255, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF)
_MODES = (0o120777, 0o010644, 0o040755, 0o100644, 0)

#: Of the directory's and the local headers: where a field begins, and its form.
_CENTRAL = ((6, "H"), (8, "H"), (10, "H"), (16, "L"), (20, "L"), (24, "L"), (28, "H"), (30, "H"), (32, "H"), (38, "L"))
_FIELDS = {
    b"PK\1\2": (*_CENTRAL, (42, "L")),
    b"PK\3\4": ((4, "H"), (6, "H"), (8, "H"), (14, "L"), (18, "L"), (22, "L"), (26, "H"), (28, "H")),
    b"PK\5\6": ((4, "H"), (8, "H"), (10, "H"), (12, "L"), (16, "L"), (20, "H")),
    b"PK\6\6": ((4, "Q"), (24, "Q"), (32, "Q"), (40, "Q"), (48, "Q")),
    b"PK\6\7": ((4, "L"), (8, "Q"), (16, "L")),
}


def files_of(folder: Path) -> dict[str, bytes]:
    """All files of a folder: name → content. What is neither a file nor a folder has no content."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() and not path.is_symlink() else None
        for path in folder.rglob("*")
        if path.is_symlink() or not path.is_dir()
    }


def write_seeds(root: Path) -> list[Path]:
    """Archives of every method, plain, streamed, with comments and extra fields, with 64-bit sizes, of odd names."""
    rng = np.random.default_rng(1)
    files = {"a": b"a", "folder/words": b"words " * 300, "folder/random": rng.bytes(3000), "zeros": bytes(50_000)}
    found = []

    def seed(name: str, entries, method=zipfile.ZIP_DEFLATED, streamed=False, forced=False) -> None:
        stream = io.BytesIO()
        if streamed:
            stream.seekable = lambda: False
        with zipfile.ZipFile(stream, "w", method) as archive:
            archive.comment = b"a comment" if streamed else b""
            for entry, content in entries:
                entry = entry if isinstance(entry, zipfile.ZipInfo) else zipfile.ZipInfo(entry)
                entry.compress_type = method
                with archive.open(entry, "w", force_zip64=forced) as file:
                    file.write(content)
        found.append(root / f"{name}.zip")
        found[-1].write_bytes(stream.getvalue())

    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        seed(f"method{method}", files.items(), method)
    seed("streamed", files.items(), streamed=True)
    seed("zip64", files.items(), forced=True)
    odd = [(zipfile.ZipInfo(name), b"content " * 20) for name in ("a", "b/c", "é", "d/")]
    for number, (entry, _) in enumerate(odd):
        entry.extra = struct.pack("<HH4s", 0xCAFE, 4, b"more")
        entry.external_attr = (_MODES[number] | 0o100000) << 16 if number == 3 else 0
    seed("extra", odd)
    seed("bomb", [("zeros", bytes(20 << 20))])
    return found


def _places(data: bytes) -> list[tuple[int, bytes]]:
    """Where the headers of an archive begin."""
    found = []
    for magic in _FIELDS:
        place = data.find(magic)
        while place >= 0:
            found.append((place, magic))
            place = data.find(magic, place + 1)
    return found


def _damage_header(rng, data: bytearray) -> None:
    places = _places(data)
    if not places:
        return
    place, magic = places[rng.integers(len(places))]
    offset, form = _FIELDS[magic][rng.integers(len(_FIELDS[magic]))]
    if place + offset + 8 > len(data):
        return
    old = struct.unpack_from(f"<{form}", data, place + offset)[0]
    kind = rng.integers(4)
    if kind == 0:
        value = _NUMBERS[rng.integers(len(_NUMBERS))]
    elif kind == 1:
        value = old + int(rng.integers(-3, 4))
    elif kind == 2:
        value = old ^ (1 << int(rng.integers(16)))
    else:
        value = _MODES[rng.integers(len(_MODES))] << 16 if magic == b"PK\1\2" else places[0][0]
    limit = 1 << (8 * struct.calcsize(f"<{form}"))
    struct.pack_into(f"<{form}", data, place + offset, value % limit)


def _damage_bytes(rng, data: bytearray) -> None:
    place, kind = int(rng.integers(len(data))) if data else 0, rng.integers(5)
    if kind == 0:
        del data[place : place + int(rng.choice([1, 4, 100, 5000]))]
    elif kind == 1:
        data[place:place] = rng.bytes(int(rng.integers(1, 40)))
    elif kind == 2:
        data[place:place] = data[place : place + int(rng.integers(1, 300))]
    elif kind == 3:
        del data[place:]
    elif data:
        data[place] ^= 1 << rng.integers(8)


def _damage_name(rng, path: Path) -> bytearray:
    """The archive written anew, some of its names exchanged for odd ones."""
    stream = io.BytesIO()
    try:
        with warnings.catch_warnings(), zipfile.ZipFile(path) as old, zipfile.ZipFile(stream, "w") as new:
            warnings.simplefilter("ignore")  # names that are there already
            for entry in old.infolist()[:6]:
                with old.open(entry) as file:
                    content = file.read(5000)
                if rng.random() < 0.4:
                    entry.filename = _NAMES[rng.integers(len(_NAMES))]
                if rng.random() < 0.1:
                    entry.external_attr = _MODES[rng.integers(len(_MODES))] << 16
                entry.extra = b""
                new.writestr(entry, content)
    except Exception:  # Python writes not every name
        return bytearray(path.read_bytes())
    return bytearray(stream.getvalue())


def damaged(rng, path: Path) -> bytes:
    data = _damage_name(rng, path) if rng.random() < 0.25 else bytearray(path.read_bytes())
    for _ in range(rng.integers(0, 4)):
        (_damage_header if rng.random() < 0.6 else _damage_bytes)(rng, data)
    return bytes(data)


def one_round(seed: int, seeds: list[Path], work: Path) -> str:
    """Unpack one damaged archive in an empty folder of `work`; what came of it."""
    rng = np.random.default_rng(seed)
    shutil.rmtree(work, ignore_errors=True)
    place = work / "place"
    place.mkdir(parents=True)
    (work / "archive.zip").write_bytes(damaged(rng, seeds[rng.integers(len(seeds))]))
    try:
        unpack(work / "archive.zip", place / "out")
        outcome = "unpacked"
    except DemoBertError as error:
        outcome = fuzzing.refused(error)
    if sorted(os.listdir(work)) != ["archive.zip", "place"] or os.path.lexists("/escaped"):
        return "escapes"
    if os.listdir(place) != (["out"] if outcome == "unpacked" else []):
        return "leftovers"
    return outcome if outcome == "refused" or _is_as_declared(work / "archive.zip", place / "out") else "wrong"


def _is_as_declared(archive: Path, folder: Path) -> bool:
    """Whether a folder holds exactly the files that the archive's directory declares, in name and size."""
    try:
        with zipfile.ZipFile(archive) as opened:
            entries = [entry for entry in opened.infolist() if not entry.is_dir()]
    except zipfile.BadZipFile:
        return False
    declared = {Path(entry.filename).as_posix(): entry.file_size for entry in entries}
    sizes = {name: None if content is None else len(content) for name, content in files_of(folder).items()}
    return sizes == declared


def main(arguments) -> int:
    return fuzzing.run(arguments, __doc__.splitlines()[0], write_seeds, one_round, memory=2 << 30)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
