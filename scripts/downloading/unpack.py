"""Unpack a downloaded zip file into a new folder: all of it, checked, and nothing outside the folder.

Standard library only: it runs before any environment is made.
"""

import contextlib
import copy
import fcntl
import io
import os
import shutil
import stat
import sys
import unicodedata
import zipfile
from pathlib import Path, PurePosixPath

if __name__ == "__main__":  # the process's own run, whose path begins with this file's folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from helpers import cli
from helpers.errors import DemoBertError, harmless
from helpers.files import require_file

_BLOCK = 1 << 20
_LARGEST_READ = 4 * _BLOCK

#: Far more than any model needs: its files, their bytes, and how many times smaller the archive may be than they are.
MAX_ENTRIES, MAX_BYTES, MAX_RATIO = 10_000, 64 << 30, 200
#: Small files may well be smaller than that.
_ANY_RATIO = 16 << 20

#: Bytes of a name: what file systems allow.
MAX_NAME = 255

#: Python reads LZMA and bzip2 without a bound on what one block becomes, so that a small file could fill the memory.
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def parse(arguments):
    parser = cli.Parser("Unpack a zip file into a new folder.")
    parser.add_argument("archive", help="zip file")
    parser.add_argument("folder", help="folder to make")
    cli.add_verbose(parser)
    return parser.parse_args(arguments)


def main(arguments) -> None:
    args = parse(arguments)
    unpack(args.archive, args.folder)


def unpack(archive, folder) -> None:
    """Unpack `archive` into `folder`, which must not exist yet. Raises DemoBertError, and leaves nothing then.

    What must not be unpacked is refused before anything is written; each entry's size and CRC-32 are checked while it
    is. The folder has a temporary name beside its own until all of it is there.
    """
    archive, folder = require_file(archive, "the zip file"), Path(folder)
    if os.path.lexists(folder):
        raise DemoBertError(f"the folder is there already: {folder}")
    try:
        with _Archive(io.FileIO(archive)) as file, _new_folder(folder) as temporary:
            with _reading(archive):
                opened = zipfile.ZipFile(file)
                entries = checked_entries(opened, archive.stat().st_size)
            _check_space(entries, temporary)
            for entry in entries:
                _write(_content(opened, entry, archive), temporary / entry.filename)
    except OSError as error:
        raise DemoBertError(f"can't unpack {archive} into {folder}: {error.strerror or error}") from error


class _Archive(io.BufferedReader):
    """A file that is read in small pieces only: zipfile asks for the whole directory of an archive at once."""

    def read(self, size=-1):
        data = super().read(_LARGEST_READ + 1 if size is None or size < 0 else min(size, _LARGEST_READ + 1))
        if len(data) > _LARGEST_READ:
            raise zipfile.BadZipFile("its directory is too large")
        return data


@contextlib.contextmanager
def _reading(archive):
    """Whatever a damaged archive makes Python's reader raise becomes a DemoBertError.

    There is no list of it: zlib.error, IndexError, struct.error, RuntimeError, MemoryError have been seen.
    """
    try:
        yield
    except DemoBertError:
        raise
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise DemoBertError(f"the zip file is damaged or incomplete ({reason}): {archive}") from error


@contextlib.contextmanager
def _new_folder(folder: Path):
    """A folder that is renamed to `folder` when the block ends well, and removed when not.

    It lies in one beside `folder` whose name is always the same, and which a run locks: what a run that was killed left
    there is removed by the next.
    """
    place = folder.with_name(f".{folder.name}.unpacking.tmp")
    place.mkdir(exist_ok=True)
    handle = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        _lock(handle, place)
        try:
            temporary = place / "content"
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            yield temporary
            os.rename(temporary, folder)
        finally:
            shutil.rmtree(place, ignore_errors=True)
    finally:
        os.close(handle)


def _lock(handle: int, place: Path) -> None:
    """Lock an open folder until it is closed. Raises DemoBertError where another process has it, or removed it."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        locked = True
    except OSError as error:
        locked = not isinstance(error, BlockingIOError)  # else a file system without locks
    if not (locked and place.exists() and os.path.samestat(os.fstat(handle), os.stat(place))):
        raise DemoBertError(f"another run is unpacking there: {place}")


def checked_entries(opened: zipfile.ZipFile, archive_bytes: int) -> list[zipfile.ZipInfo]:
    """The archive's files. Raises DemoBertError for what must not be unpacked."""
    if len(opened.infolist()) > MAX_ENTRIES:
        raise DemoBertError(f"the zip file holds more than {MAX_ENTRIES} entries")
    files, folders = {}, set()  # by their names as the least particular file system compares them
    for entry in opened.infolist():
        path = _checked_path(entry)
        folders |= {_plain(parent) for parent in path.parents}
        if entry.orig_filename.endswith("/"):
            folders.add(_plain(path))
            continue
        _check_content(entry)
        if _plain(path) in files:
            raise DemoBertError(f"the zip file holds {entry.filename!r} twice, or names that differ in their case only")
        files[_plain(path)] = entry
    for name in files.keys() & folders:
        raise DemoBertError(f"the zip file holds {files[name].filename!r} both as a file and as a folder")
    if not files:
        raise DemoBertError("the zip file is empty")
    _check_size(opened, archive_bytes)
    return list(files.values())


def _plain(path: PurePosixPath) -> str:
    return unicodedata.normalize("NFC", str(path)).casefold()


def _checked_path(entry: zipfile.ZipInfo) -> PurePosixPath:
    """Where an entry goes. Raises DemoBertError for names that lead elsewhere, or that not every system takes."""
    name = entry.orig_filename  # filename ends before the first NUL
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name:
        raise DemoBertError(f"the zip file holds a path outside its folder: {name!r}")
    if harmless(name) != name:
        raise DemoBertError(f"the zip file holds a name with control characters: {name!r}")
    if len(name.encode()) > MAX_NAME:
        raise DemoBertError(f"the zip file holds a name of more than {MAX_NAME} bytes: {name!r}")
    if not path.parts and not name.endswith("/"):
        raise DemoBertError("the zip file holds a file without a name")
    return path


def _check_content(entry: zipfile.ZipInfo) -> None:
    """Raises DemoBertError for entries that are no plain files, or that can't be read safely."""
    kind = stat.S_IFMT(entry.external_attr >> 16)  # 0 where the archive comes from a system without such kinds
    if kind not in (0, stat.S_IFREG):
        raise DemoBertError(f"the zip file holds something that is not a plain file: {entry.filename!r}")
    if entry.flag_bits & 1:
        raise DemoBertError(f"the zip file holds something encrypted: {entry.filename!r}")
    if entry.compress_type not in _METHODS:
        raise DemoBertError(
            f"the zip file holds something that is compressed by other than deflate: {entry.filename!r}"
        )


def _check_size(opened: zipfile.ZipFile, archive_bytes: int) -> None:
    """Raises DemoBertError for archives that would become far larger than they are (zip bombs)."""
    end = 0
    for entry in sorted(opened.infolist(), key=lambda entry: entry.header_offset):
        if entry.header_offset < end:
            raise DemoBertError(f"the zip file holds entries that overlap: {entry.filename!r}")
        end = entry.header_offset + zipfile.sizeFileHeader + entry.compress_size
    if end > archive_bytes:
        raise DemoBertError("the zip file is damaged or incomplete: it ends before its entries do")
    needed = sum(entry.file_size for entry in opened.infolist())
    if needed > min(MAX_BYTES, MAX_RATIO * archive_bytes + _ANY_RATIO):
        raise DemoBertError(f"the zip file has {archive_bytes} bytes, and would become {needed}: no model does that")


def _check_space(entries: list[zipfile.ZipInfo], place: Path) -> None:
    needed, free = sum(entry.file_size for entry in entries), shutil.disk_usage(place).free
    if needed > free:
        raise DemoBertError(f"unpacking takes {needed >> 20} MiB, and {free >> 20} MiB are free on the disk")


def _content(opened: zipfile.ZipFile, entry: zipfile.ZipInfo, archive: Path):
    """Yields an entry's bytes. Raises DemoBertError if they are not as many as it declares, or have another CRC-32."""
    longer, size = copy.copy(entry), 0
    longer.file_size += 1  # else zipfile would cut off, without a word, what is longer
    with _reading(archive), opened.open(longer) as source:
        while block := source.read(_BLOCK):
            size += len(block)
            yield block
        if size != entry.file_size:
            raise zipfile.BadZipFile(f"{entry.filename!r} declares {entry.file_size} bytes, and holds {size}")


def _write(blocks, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "xb") as file:
        for block in blocks:
            file.write(block)
        file.flush()
        os.fsync(file.fileno())  # before the folder gets its name


if __name__ == "__main__":
    cli.run(main)
