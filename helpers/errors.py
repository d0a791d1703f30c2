"""Mistakes that the user can mend. `cli.run` prints them in one line; anything else is a bug of ours."""

import re
import sys
import unicodedata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

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


#: How libraries say that memory is short where they don't raise a MemoryError.
_SHORT_OF_MEMORY = re.compile(
    r"bad[_ ]alloc|out of memory|cannot allocate memory|can't alloc|can't start new thread|failed to map segment"
    r"|resource temporarily unavailable",
    re.IGNORECASE,
)


def is_short_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is short; also a SystemError, which is how C code that forgets to say it ends."""
    if isinstance(error, (MemoryError, SystemError)):
        return True
    return isinstance(error, (RuntimeError, ImportError, OSError)) and bool(_SHORT_OF_MEMORY.search(str(error)))


def not_installed(module: str | None) -> str | None:
    """What to say of a module that Python did not find; None where installing a package would not help.

    A package whose name is not that of its module has to be asked for with `missing_package`.
    """
    ours = module is None or (ROOT / module.partition(".")[0]).is_dir() or (ROOT / f"{module}.py").exists()
    # Of a name with a dot the package is there: it is another release than the one that was written for.
    if ours or "." in module or module in sys.stdlib_module_names:
        return None
    environment = ROOT / ".venv"
    outside = environment.is_dir() and Path(sys.prefix).resolve() != environment.resolve()
    activate = "activate the environment (source .venv/bin/activate), or " if outside else ""
    return f"the package {module} is not installed for {sys.executable}: {activate}pip install {_requirement(module)}"


def _requirement(module: str) -> str:
    """What `pip install` takes: a requirements file that names the package, requirements.txt before others, or its name.

    What stands in no file is needed by a package that does; its name may be another than its module's.
    """
    for file in sorted(ROOT.glob("requirements*.txt"), reverse=True):  # "." comes after "-", and the tests' file late
        names = re.findall(r"^[\w.-]+", file.read_text(encoding="utf-8"), re.MULTILINE)
        if any(re.sub(r"[-_.]+", "_", name).lower() == module.lower() for name in names):
            return f"-r {file.name}"
    return f"{module}, if that is the package's name"


def one_line(text, limit: int | None = None) -> str:
    """`text` (or an exception) in one line of `limit` characters, without what would drive a terminal."""
    line = " ".join("".join(char if char.isprintable() else " " for char in str(text)).split())
    return line if limit is None or len(line) <= limit else line[: limit - 4] + " ..."


#: Unicode's embeddings, overrides and isolates, which turn the order of what follows them on a screen.
_TURNING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def harmless(text: str) -> str:
    """`text` with a space for each character that would drive a terminal or end the line; all others as they are."""
    return "".join(" " if _drives(char) else char for char in text)


def _drives(char: str) -> bool:
    return char in _TURNING or (not char.isprintable() and unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp"))
