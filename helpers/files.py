"""Reading and writing files: text as UTF-8, JSON with clear errors, outputs whole or not at all."""

import contextlib
import glob
import hashlib
import json
import os
import re
import shlex
import tempfile
from collections.abc import Iterable
from pathlib import Path

from helpers.errors import DemoBertError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

#: A JSON or text file larger than this is refused before it is read: SQuAD's training set has 30 MB.
MAX_TEXT_BYTES = 1 << 30

#: What may stand between two JSON values (RFC 8259).
_JSON_SPACE = re.compile(r"[ \t\n\r]*")


def require_file(path, what: str) -> Path:
    """`path` as a Path, if it is a readable, non-empty regular file; else a DemoBertError naming `what`."""
    path = Path(path)
    try:
        if not path.exists():
            raise DemoBertError(f"{what} not found: {path}")
        if not path.is_file():
            raise DemoBertError(f"{what} is not a file: {path}")
        if path.stat().st_size == 0:
            raise DemoBertError(f"{what} is empty: {path}")
        path.open("rb").close()
    except OSError as error:
        raise DemoBertError(f"{what} can't be read: {path}: {error.strerror}") from error
    return path


def read_text(path, what: str, limit: int | None = None, newline: str | None = None) -> str:
    """The text of a UTF-8 file, with or without a byte order mark. Raises DemoBertError.

    `limit` is of its bytes; None: MAX_TEXT_BYTES. `newline` is open's: "" leaves line ends as they are.
    """
    path, limit = require_file(path, what), MAX_TEXT_BYTES if limit is None else limit
    if path.stat().st_size > limit:
        raise DemoBertError(f"{what} is larger than {limit >> 20} MiB: {path}")
    try:
        with path.open(encoding="utf-8-sig", newline=newline) as file:
            return file.read()
    except UnicodeDecodeError as error:
        raise DemoBertError(f"{what} is not UTF-8 text (byte {error.start}): {path}") from error
    except OSError as error:
        raise DemoBertError(f"{what} can't be read: {path}: {error.strerror}") from error


def read_stream(stream, what: str) -> str:
    """All of a stream of bytes, such as stdin's, as UTF-8 text, with or without a byte order mark. Raises DemoBertError."""
    data = stream.read(MAX_TEXT_BYTES + 1)
    if len(data) > MAX_TEXT_BYTES:
        raise DemoBertError(f"the {what} is larger than {MAX_TEXT_BYTES >> 20} MiB")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DemoBertError(f"the {what} is not UTF-8 text (byte {error.start})") from error


def read_limited(path, what: str, limit: int) -> bytes:
    """The bytes of a file of at most `limit`. Raises DemoBertError."""
    path = require_file(path, what)
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise DemoBertError(f"{what} can't be read: {path}: {error.strerror}") from error
    if len(data) > limit:
        raise DemoBertError(f"{what} is larger than {limit >> 20} MiB: {path}")
    return data


def read_json(path, what: str, limit: int | None = None):
    """The value of a JSON file of at most `limit` bytes. Raises DemoBertError with the place of the first mistake."""
    text = read_text(path, what, limit)
    with _json_mistakes(what, path):
        return json.loads(text)


def read_json_values(path, what: str) -> list[tuple[int, object]]:
    """The values of a file of JSON lines, each with the number of its line; a JSON file is one value.

    Raises DemoBertError with the place of the first mistake.
    """
    text = read_text(path, what)
    decode, values = json.JSONDecoder().raw_decode, []
    with _json_mistakes(what, path):
        end = _JSON_SPACE.match(text).end()
        line = 1 + text.count("\n", 0, end)
        while end < len(text) or not values:
            value, last = decode(text, end)
            values.append((line, value))
            last = _JSON_SPACE.match(text, last).end()
            line, end = line + text.count("\n", end, last), last
    return values


@contextlib.contextmanager
def _json_mistakes(what: str, path):
    try:
        yield
    except json.JSONDecodeError as error:
        raise DemoBertError(f"{what} is not JSON (line {error.lineno}: {error.msg}): {path}") from error
    except (RecursionError, ValueError) as error:
        raise DemoBertError(f"{what} is not JSON that can be read ({error}): {path}") from error


def sha256_of(path) -> str:
    """The SHA-256 of a file, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def check_outputs(outputs: dict, inputs: Iterable = ()) -> None:
    """Say before any work starts which output can't be written, or would replace an input or another output.

    `outputs` maps flags to paths; None is left out on either side. Raises DemoBertError.
    """
    # realpath: Path.resolve raises RuntimeError for links in a circle.
    taken = {os.path.realpath(path): "an input" for path in inputs if path is not None}
    for flag, path in outputs.items():
        if path is None:
            continue
        place = os.path.realpath(check_writable(path, flag))
        if place in taken:
            raise DemoBertError(f"{flag} {path} would replace {taken[place]}; name another file")
        taken[place] = f"the file of {flag}"


def check_writable(path, what: str) -> Path:
    """Say before any work starts that `path` can't be written. Raises DemoBertError."""
    path = Path(path)
    folder = path.parent
    if not folder.is_dir():
        raise DemoBertError(
            f"{what}: the folder {folder} does not exist; create it first: mkdir -p {shlex.quote(str(folder))}"
        )
    if path.is_dir():
        raise DemoBertError(f"{what} is a folder, not a file: {path}")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise DemoBertError(f"{what}: can't write into {folder}: {error.strerror}") from error
    return path


@contextlib.contextmanager
def atomic_write(path, mode: str = "wb"):
    """A file object whose content replaces `path` when the block ends well, and leaves it alone when not.

    The content goes to a temporary name in the same folder, is flushed to the disk, then renamed.
    """
    path = Path(path)
    temporary = None
    try:
        with _file_beside(path, mode) as (file, temporary):
            yield file
        os.replace(temporary, path)
    except OSError as error:
        raise DemoBertError(f"can't write {path}: {error.strerror}") from error
    finally:
        if temporary is not None:
            _remove(temporary)


@contextlib.contextmanager
def _file_beside(path: Path, mode: str = "wb"):
    """(a new file in the folder of `path`, its temporary name): on the disk when the block ends well, else removed."""
    encoding = None if "b" in mode else "utf-8"
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, mode, encoding=encoding) as file:
            yield file, temporary
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp's 0600 would hide the file from a server's user
    except BaseException:
        _remove(temporary)
        raise


def remove_temporaries(path) -> None:
    """Remove what writers of `path` that were killed have left beside it. There must be no other writer of it."""
    path = Path(path)
    for temporary in path.parent.glob(f".{glob.escape(path.name)}.????????.tmp"):
        _remove(temporary)


def _remove(path) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def write_together(contents: dict) -> None:
    """Write files of one folder, path → its bytes, all of them whole or none; None removes a file that is there.

    They are written to temporary names and flushed, then renamed in the order of `contents`. Raises DemoBertError, and
    then the files are what they were.
    """
    new: dict[Path, str] = {}
    path = Path(next(iter(contents)))
    try:
        for path, data in ((Path(name), data) for name, data in contents.items()):
            if data is not None:
                with _file_beside(path) as (file, temporary):
                    file.write(data)
                new[path] = temporary
        with _only_writer(path.parent):
            _exchange([Path(name) for name in contents], new)
    except OSError as error:
        raise DemoBertError(f"can't write {path}: {error.strerror}") from error
    finally:
        for temporary in new.values():
            _remove(temporary)


def _exchange(paths: list[Path], new: dict[Path, str]) -> None:
    """Put the temporary files `new` in the place of `paths`; what goes wrong on the way is undone."""
    kept = {path: Path(f"{new.get(path, path)}.old") for path in paths}
    placed = []
    try:
        for path in paths:
            if path.exists():
                os.replace(path, kept[path])
            if path in new:
                placed.append(path)
                os.replace(new[path], path)
    except BaseException:
        for path in placed:
            path.unlink(missing_ok=True)
        for path, old in kept.items():
            if old.exists():
                os.replace(old, path)
        raise
    for old in kept.values():
        old.unlink(missing_ok=True)


@contextlib.contextmanager
def _only_writer(folder: Path):
    """While it is entered, no other process renames files of this folder by `write_together`."""
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


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
