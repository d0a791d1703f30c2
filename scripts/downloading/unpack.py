"""Unpack a downloaded zip file into a new folder: all of it, checked, and nothing outside the folder.

Standard library only: it runs before any environment is made.
"""

import shutil
import stat
import sys
import zipfile
from pathlib import Path, PurePosixPath

if __name__ == "__main__":  # the process's own run, whose path begins with this file's folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from helpers import cli
from helpers.errors import DemoBertError

_BLOCK = 1 << 20


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
    """Unpack `archive` into `folder`, which must not exist yet. Raises DemoBertError, and leaves no folder then.

    Entries outside the folder, links and special files are refused before anything is written; each entry's
    CRC-32 and size are checked while it is.
    """
    folder = Path(folder)
    if folder.exists():
        raise DemoBertError(f"the folder is there already: {folder}")
    try:
        with zipfile.ZipFile(archive) as opened:
            entries = checked_entries(opened, folder.parent)
            folder.mkdir()
            for entry in entries:
                _write(opened, entry, folder / entry.filename)
    # RuntimeError: encrypted; NotImplementedError: a compression that Python does not know.
    except (zipfile.BadZipFile, EOFError, RuntimeError, NotImplementedError, ValueError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise DemoBertError(f"the zip file is damaged or incomplete ({error}): {archive}") from error
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise DemoBertError(f"can't unpack {archive} into {folder}: {error.strerror or error}") from error


def checked_entries(opened: zipfile.ZipFile, place: Path) -> list[zipfile.ZipInfo]:
    """The archive's files. Raises DemoBertError for what must not be unpacked, or would not fit on `place`'s disk."""
    entries = [entry for entry in opened.infolist() if not entry.is_dir()]
    if not entries:
        raise DemoBertError("the zip file is empty")
    seen = set()
    for entry in entries:
        path = PurePosixPath(entry.filename)
        if path.is_absolute() or ".." in path.parts or "\\" in entry.filename:
            raise DemoBertError(f"the zip file holds a path outside its folder: {entry.filename!r}")
        kind = stat.S_IFMT(entry.external_attr >> 16)  # 0 where the archive comes from a system without such kinds
        if kind not in (0, stat.S_IFREG):
            raise DemoBertError(f"the zip file holds something that is not a plain file: {entry.filename!r}")
        if path in seen:
            raise DemoBertError(f"the zip file holds {entry.filename!r} twice")
        seen.add(path)
    needed, free = sum(entry.file_size for entry in entries), shutil.disk_usage(place).free
    if needed > free:
        raise DemoBertError(f"unpacking takes {needed >> 20} MiB, and {free >> 20} MiB are free on the disk")
    return entries


def _write(opened: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with opened.open(entry) as source, open(path, "xb") as file:
        shutil.copyfileobj(source, file, _BLOCK)  # reading to the end checks the CRC-32; never more than file_size


if __name__ == "__main__":
    cli.run(main)
