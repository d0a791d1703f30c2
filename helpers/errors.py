"""Mistakes that the user can mend. `cli.run` prints them in one line; anything else is a bug of ours."""

#: Characters of an error, at most: names in it come from files, and may be as long as they like.
ERROR_LENGTH = 1500


class DemoBertError(Exception):
    """A file, checkpoint, engine or text that can't be used: the message says what is wrong and what to do."""

    exit_code = 1


class UsageError(DemoBertError):
    """Arguments that contradict each other, or that the chosen engine can't serve."""

    exit_code = 2


def missing_package(package: str, install: str, why: str) -> DemoBertError:
    """The error for an optional package that is not installed.

    `package` is the import name, `install` what follows `pip install`, `why` the thing that needs it.
    """
    return DemoBertError(f"{why} needs the package {package}, which is not installed: pip install {install}")


def one_line(text, limit: int | None = None) -> str:
    """`text` (or an exception) in one line of `limit` characters, without what would drive a terminal."""
    line = " ".join("".join(char if char.isprintable() else " " for char in str(text)).split())
    return line if limit is None or len(line) <= limit else line[: limit - 4] + " ..."
