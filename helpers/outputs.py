"""Writing files: whole or not at all, by one process at a time, and never over what is no file of this tool's to replace.

Every output goes through `place_of`. Beside an output NAME there are for a while `.NAME.lock`, which its one writer
holds, `.NAME.XXXXXXXX.tmp`, its new content, and `.NAME.pending`, which says that the new contents of several files are
whole and are being put in their places. A writer that is killed leaves them; the next one, or whoever reads the set,
clears up.
"""

import contextlib
import errno
import glob
import json
import os
import re
import shlex
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from helpers.errors import DemoBertError
from helpers.files import read_json

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

#: What a path can be that is neither a file nor a folder.
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}

#: tempfile's random part.
_RANDOM = "????????"

#: How long a writer waits for another one, in seconds: most are done in a moment.
_PATIENCE = 10.0

#: A pending file is this large at most.
_MAX_PENDING_BYTES = 1 << 16

#: The outputs that this process is the writer of.
_held: set[Path] = set()


def place_of(path, what: str = "the output") -> Path:
    """The file that writing `path` makes or replaces, links followed: a link stays one, and what it leads to is written.

    Raises DemoBertError where there is something else than a regular file, or nothing can be written.
    """
    path = Path(path)
    try:
        with contextlib.suppress(FileNotFoundError):
            _refuse_what_is_no_file(path, what)
        place = Path(os.path.realpath(path))  # Path.resolve raises RuntimeError for links in a circle
        folder = place.parent
        if not folder.is_dir():
            shown = folder if path.is_symlink() else path.parent
            raise DemoBertError(
                f"{what}: the folder {shown} does not exist; create it first: mkdir -p {shlex.quote(str(shown))}"
            )
        with contextlib.suppress(FileNotFoundError):  # its temporary name is longer than its own
            os.lstat(folder / f".{place.name}.{_RANDOM}.tmp")
    except OSError as error:
        raise DemoBertError(f"{what}: can't write {path}: {error.strerror}") from error
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise DemoBertError(f"{what}: can't write into {folder}: {error.strerror}") from error
    return place


def _refuse_what_is_no_file(path: Path, what: str) -> None:
    status = path.stat()
    kind = stat.S_IFMT(status.st_mode)
    if kind != stat.S_IFREG:
        raise DemoBertError(f"{what} is {_KINDS.get(kind, 'something else')}, not a file: {path}")
    for number in (1, 2):  # renamed over, it would lose what is printed
        with contextlib.suppress(OSError):
            if os.path.samestat(status, os.fstat(number)):
                raise DemoBertError(f"{what} {path} is where this command prints to; name another file")


def check_outputs(outputs: dict, inputs: Iterable = ()) -> None:
    """Say before any work starts which output can't be written, or would replace an input or another output.

    `outputs` maps flags to paths; None is left out on either side. Raises DemoBertError.
    """
    taken = {identity: "an input" for path in inputs if path is not None for identity in _identities(path)}
    for flag, path in outputs.items():
        if path is None:
            continue
        identities = _identities(place_of(path, flag))
        for identity in identities:
            if identity in taken:
                raise DemoBertError(f"{flag} {path} would replace {taken[identity]}; name another file")
        taken |= dict.fromkeys(identities, f"the file of {flag}")


def input_files(path) -> list[Path]:
    """What a command reads that names `path`: that file, or those of the folder; none for None."""
    if path is None:
        return []
    try:
        return sorted(Path(path).iterdir()) if os.path.isdir(path) else [Path(path)]
    except OSError:  # whoever reads it says so
        return [Path(path)]


def _identities(path) -> list:
    """What tells that two names are of one file: where they lead, and, of a file that is there, its inode."""
    identities: list = [os.path.realpath(path)]
    with contextlib.suppress(OSError):
        status = os.stat(path)
        identities.append((status.st_dev, status.st_ino))
    return identities


@contextlib.contextmanager
def only_writer(path, what: str = "the output") -> Iterator[Path]:
    """While it is entered, no other process writes `path`; gives its place. Raises DemoBertError where one goes on to.

    What killed writers have left beside it is removed.
    """
    place = place_of(path, what)
    if place in _held:
        yield place
        return
    lock = place.parent / f".{place.name}.lock"
    try:
        handle = _locked(lock, path)
    except OSError as error:
        raise DemoBertError(f"can't write {path}: its lock {lock}: {error.strerror}; remove that") from error
    _held.add(place)
    try:
        if handle is not None and not _pending_path(place).exists():
            _remove_temporaries(place)
        yield place
    finally:
        _held.discard(place)
        if handle is not None:
            _remove(lock)
            os.close(handle)


def _locked(lock: Path, path) -> int | None:
    """A handle that holds the lock; None where the system has no locks."""
    if fcntl is None:
        return None
    end = time.monotonic() + _PATIENCE
    while True:
        handle = os.open(lock, os.O_CREAT | os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(handle, lock):
                return handle
        except OSError as error:
            if error.errno != errno.EWOULDBLOCK:  # a file system without locks
                os.close(handle)
                return None
        os.close(handle)
        if time.monotonic() > end:
            raise DemoBertError(f"another process is writing {path}: wait for it, or name another file")
        time.sleep(0.01)


def _is_at(handle: int, path: Path) -> bool:
    """Whether the open file still has this name: a lock's file is removed by the writer that has been waited for."""
    try:
        return os.path.samestat(os.fstat(handle), os.lstat(path))
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def atomic_write(path, mode: str = "wb"):
    """A file object whose content replaces `path` when the block ends well, and leaves it alone when not.

    The content goes to a temporary name in the same folder, is flushed to the disk, then renamed. Raises DemoBertError.
    """
    with only_writer(path) as place:
        temporary = None
        try:
            with _file_beside(place, mode) as (file, temporary):
                yield file
            os.replace(temporary, place)
        except OSError as error:
            raise DemoBertError(f"can't write {path}: {error.strerror}") from error
        finally:
            if temporary is not None:
                _remove(temporary)


@contextlib.contextmanager
def _file_beside(place: Path, mode: str = "wb"):
    """(a new file in the folder of `place`, its temporary name): on the disk when the block ends well, else removed."""
    encoding = None if "b" in mode else "utf-8"
    handle, temporary = tempfile.mkstemp(prefix=f".{place.name}.", suffix=".tmp", dir=place.parent)
    try:
        with os.fdopen(handle, mode, encoding=encoding) as file:
            yield file, temporary
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp's 0600 would hide the file from a server's user
    except BaseException:
        _remove(temporary)
        raise


def _remove_temporaries(place: Path) -> None:
    """Remove what killed writers have left beside `place`. There must be no other writer of it."""
    for temporary in place.parent.glob(f".{glob.escape(place.name)}.{_RANDOM}.tmp"):
        if _is_temporary_of(place, temporary.name) and temporary.is_file() and not temporary.is_symlink():
            _remove(temporary)


def _is_temporary_of(place: Path, name: str) -> bool:
    """Whether tempfile gives such a name to a file beside `place`."""
    return re.fullmatch(re.escape(f".{place.name}.") + r"[a-z0-9_]{8}\.tmp", name) is not None


def _remove(path) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def write_together(contents: dict, main=None) -> None:
    """Write files of one folder, path → its bytes, all of them or none; None removes a file that is there.

    Their new contents are written beside them and flushed. Then a pending file says so, and they are renamed: a process
    that is killed before leaves the old files, one that is killed after leaves the rest to `finish_pending`. `main` is
    the file whose name stands for the set; None: the first. Raises DemoBertError, and then the old files are there.
    """
    paths = [Path(path) for path in contents]
    main = paths[0] if main is None else Path(main)
    with only_writer(main):
        finish_pending(main, paths, discard=True)
        places = {path: place_of(path) for path in paths}
        temporaries: dict[str, str | None] = {}
        with _without_leftovers(main, places.values()):
            for path, data in zip(paths, contents.values()):
                try:
                    temporaries[path.name] = None if data is None else _written_beside(places[path], data)
                except OSError as error:
                    raise DemoBertError(f"can't write {path}: {error.strerror}") from error
            _write_pending(main, temporaries)
        _put_in_place(main, places, temporaries)


@contextlib.contextmanager
def _without_leftovers(main: Path, places: Iterable[Path]):
    """Remove temporary files before and after, but for those that a pending file speaks of."""
    places = [*places, _pending_path(main)]
    for place in places:
        _remove_temporaries(place)
    try:
        yield
    finally:
        if not _pending_path(main).exists():
            for place in places:
                _remove_temporaries(place)


def _written_beside(place: Path, data) -> str:
    """The name, without its folder, of a new file beside `place` that holds `data`."""
    with _file_beside(place) as (file, temporary):
        file.write(data)
    return os.path.basename(temporary)


def finish_pending(main, paths: Iterable, discard: bool = False) -> None:
    """Put in their places the new files of a `write_together` that was killed while it did.

    To be called before the set is read. Raises DemoBertError where that can't be done, unless what is pending may be
    `discard`ed, by one who writes the whole set anew.
    """
    pending = _pending_path(main)
    if not os.path.lexists(pending):
        return
    try:
        with only_writer(main):
            if os.path.lexists(pending):  # its writer is dead: a living one has just held the lock
                places = {Path(path): place_of(path) for path in paths}
                _put_in_place(main, places, _read_pending(pending, places))
    except DemoBertError as error:
        if discard and not pending.is_dir():
            _remove(pending)
            return
        raise DemoBertError(
            f"{main} is torn: whoever wrote it was killed while the new files were put in place, and it can't be "
            f"finished ({error}); build it again"
        ) from error


def _pending_path(main) -> Path:
    """Beside the file itself, as its lock: not beside a link to it."""
    place = Path(os.path.realpath(main))
    return place.parent / f".{place.name}.pending"


def _write_pending(main: Path, temporaries: dict) -> None:
    pending = _pending_path(main)
    try:
        # Names need not be Unicode: JSON's escapes hold them all the same.
        os.replace(pending.parent / _written_beside(pending, json.dumps(temporaries).encode("ascii")), pending)
    except OSError as error:
        raise DemoBertError(f"can't write {pending}: {error.strerror}") from error


def _read_pending(pending: Path, places: dict[Path, Path]) -> dict[str, str | None]:
    """Which temporary file belongs to which of the set. It names nothing but such files: anybody may have written it."""
    values = read_json(pending, "the list of pending files", _MAX_PENDING_BYTES)
    sound = isinstance(values, dict) and set(values) == {path.name for path in places}
    for path, place in places.items() if sound else ():
        name = values[path.name]
        sound = sound and (name is None or (isinstance(name, str) and _is_temporary_of(place, name)))
    if not sound:
        raise DemoBertError(f"{pending} is damaged")
    return values


def _put_in_place(main: Path, places: dict[Path, Path], temporaries: dict[str, str | None]) -> None:
    """Rename the temporary files, as many as are left. Raises DemoBertError; it can be called again then."""
    try:
        for path, place in places.items():
            name = temporaries[path.name]
            if name is None:
                _remove(path)  # a link, not what it leads to
                continue
            with contextlib.suppress(FileNotFoundError):  # it is in its place
                os.replace(place.parent / name, place)
    except OSError as error:
        raise DemoBertError(f"can't write {path}: {error.strerror}") from error
    _remove(_pending_path(main))


def write_json(path, value) -> None:
    """Write `value` as indented JSON, whole or not at all. Raises DemoBertError."""
    with atomic_write(path) as file:
        file.write(json_bytes(value))


def json_bytes(value) -> bytes:
    """`value` as indented JSON, UTF-8."""
    return json.dumps(value, indent=2, ensure_ascii=False).encode("utf-8") + b"\n"


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
