"""Reading files: text as UTF-8, JSON with clear errors, nothing larger than its limit. helpers/outputs.py writes them."""

import contextlib
import hashlib
import json
import re
from pathlib import Path

from helpers.errors import DemoBertError

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
