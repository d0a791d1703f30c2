"""Which tables are to be answered, and into which files: what runs before this one have answered is left out."""

import os
from dataclasses import asdict
from pathlib import Path

from helpers import cli
from helpers.errors import DemoBertError, UsageError
from helpers.files import require_file, sha256_of
from scripts.scaling.ledger import LEDGER, Entry, Ledger


def output_folder(path, tables) -> Path:
    """The folder for the answers, made where there is none. Raises DemoBertError."""
    folder = Path(path)
    if folder.is_dir() and os.path.isdir(tables) and os.path.samefile(folder, tables):
        raise UsageError(f"-o {path} is the folder of the tables: its answers would be the next run's questions")
    try:
        folder.mkdir(exist_ok=True)
    except FileExistsError as error:
        raise DemoBertError(f"-o {path} is not a folder") from error
    except OSError as error:
        raise DemoBertError(f"-o: can't make the folder {path}: {error.strerror}") from error
    return folder


def output_of(table: Path, folder: Path, form: str) -> Path:
    """Where a table's answers go: its own name, but for the end."""
    return folder / f"{table.stem}.{form}"


def check_names(outputs: dict[Path, Path]) -> None:
    """Raises UsageError where two tables would have the same file of answers."""
    seen: dict[Path, Path] = {}
    for table, output in outputs.items():
        if other := seen.get(output):
            raise UsageError(f"{other.name} and {table.name} would both be answered in {output}: rename one of them")
        if output.name == LEDGER:
            raise UsageError(f"the answers of {table.name} would be the list of answered files, {LEDGER}: rename it")
        seen[output] = table


def left_to_do(outputs: dict[Path, Path], ledger: Ledger, facts: dict, fresh: bool) -> list[Path]:
    """The tables that have no answers yet, or no longer; what is left out, or done again, is said.

    Raises DemoBertError where a file is in the way, or holds the answers of another engine or of other options.
    """
    waiting, done = [], 0
    for table, output in outputs.items():
        entry = ledger.entries.get(output.name)
        if os.path.islink(output) or (entry is None and os.path.lexists(output)):
            raise DemoBertError(f"{output} is in the way, and not of this tool: name another folder, or remove it")
        if entry is None or not entry.output_sha256 or fresh or not output.exists():
            waiting.append(table)
        elif not ledger.is_whole(output.name):
            cli.note(f"{output} is not what was written into it: {table.name} is answered anew")
            waiting.append(table)
        elif entry.facts != facts:
            both = facts | entry.facts
            names = [name for name in both if entry.facts.get(name, ledger) != facts.get(name, ledger)]
            raise DemoBertError(
                f"{output} is of another command (not the same: {', '.join(names)}): --fresh answers all anew, another "
                "folder keeps both"
            )
        elif not _is_as_answered(table, entry):
            cli.note(f"{table} is not what {output.name} was made from: it is answered anew")
            waiting.append(table)
        else:
            done += 1
    if fresh:
        _forget(outputs, ledger)
    if done:
        cli.note(f"{done} of {len(outputs)} files are answered already (--fresh answers them anew)")
    return waiting


def _is_as_answered(table: Path, entry: Entry) -> bool:
    """Whether the table is the one of `entry`. One that can't be read any more is not; its reader will say why."""
    try:
        size = Path(require_file(table, "table of questions")).stat().st_size
        return (entry.table, entry.table_bytes) == (table.name, size) and entry.table_sha256 == sha256_of(table)
    except (DemoBertError, OSError):
        return False


def _forget(outputs: dict[Path, Path], ledger: Ledger) -> None:
    """Enter that the old answers count no more: a run that is killed before it has new ones is gone on with."""
    for output in outputs.values():
        entry = ledger.entries.get(output.name)
        if entry is not None and entry.output_sha256:
            ledger.add(Entry(**asdict(entry) | {"output_sha256": ""}))
