"""The figures of a benchmark's grid: a Markdown table, a CSV file that can be read again, and the plot beside them."""

import csv
import io
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from helpers import cli
from helpers.errors import DemoBertError
from helpers.files import read_json, read_text
from helpers.outputs import atomic_write
from scripts.benchmarks.plot import plot


@dataclass(frozen=True)
class GridRow:
    """One point of the grid; times in ms. `error` is why it has none."""

    model: str
    precision: str
    sequence_length: int
    batch_size: int
    iterations: int | None = None
    average_ms: float | None = None
    median_ms: float | None = None
    percentile_95_ms: float | None = None
    percentile_99_ms: float | None = None
    sentences_per_second: float | None = None
    error: str | None = None

    def timed(self, figures) -> "GridRow":
        """With the times of a file that perf's --json wrote. Raises DemoBertError."""
        timing = read_json(figures, "figures of perf")["timings"][0]
        measured = [field.name for field in fields(self) if field.default is None and field.name != "error"]
        return replace(self, **{name: timing[name] for name in measured})

    def failed(self, reason: str) -> "GridRow":
        return replace(self, error=reason)


def report(rows: list[GridRow], heading: str, outputs: dict) -> None:
    """Print the table; write it, the CSV file and the plot to `outputs` ("md", "csv", "png" → path)."""
    table = markdown(rows, heading)
    print(f"\n{table}", end="")
    with atomic_write(outputs["md"], "w") as file:
        file.write(table)
    with atomic_write(outputs["csv"], "w") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(GridRow)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    timed = [row for row in rows if row.error is None]
    if timed:
        plot(timed, heading, outputs["png"])
    written = [outputs[ending] for ending in ("md", "csv", "png") if timed or ending != "png"]
    cli.note(f"Written: {', '.join(map(str, written))}")


def redraw(csv_path: Path, picture: Path) -> None:
    """Draw the plot of a CSV file that `report` wrote. Its heading is that of the table, if that lies beside it."""
    rows = [row for row in read_rows(csv_path) if row.error is None]
    if not rows:
        raise DemoBertError(f"{csv_path} has no figures to draw")
    table = csv_path.with_suffix(".md")
    heading = read_text(table, "table").partition("\n")[0].removesuffix(":") if table.exists() else csv_path.stem
    plot(rows, heading, picture)
    cli.note(f"Written: {picture}")


def read_rows(path: Path) -> list[GridRow]:
    """The rows of a CSV file that `report` wrote. Raises DemoBertError."""
    table = csv.DictReader(io.StringIO(read_text(path, "CSV file")))
    try:
        return [_row(values) for values in table]
    except (KeyError, TypeError, ValueError) as error:
        raise DemoBertError(f"{path}, line {table.line_num}, is not of an inference benchmark ({error})") from error


def _row(values: dict) -> GridRow:
    """From a line's texts. Raises KeyError, TypeError or ValueError."""
    kinds = {"model": str, "precision": str, "sequence_length": int, "batch_size": int, "iterations": int, "error": str}
    texts = {field.name: values[field.name] for field in fields(GridRow)}
    row = GridRow(**{name: kinds.get(name, float)(text) if text else None for name, text in texts.items()})
    if not (row.error or (row.median_ms > 0 and row.batch_size > 0)):
        raise ValueError("a latency or a batch size of 0")
    return row


def markdown(rows: list[GridRow], heading: str) -> str:
    """The rows as a Markdown table, with what failed below it."""
    lines = [
        f"{heading}:",
        "",
        "| model | precision | tokens | batch size | median, ms | 95 %, ms | 99 %, ms | sentences/s |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        if row.error is None:
            times = " | ".join(f"{time:.2f}" for time in (row.median_ms, row.percentile_95_ms, row.percentile_99_ms))
            sizes = f"{row.sequence_length} | {row.batch_size}"
            lines.append(f"| {row.model} | {row.precision} | {sizes} | {times} | {row.sentences_per_second:.1f} |")
    return "\n".join(lines + _failures(rows)) + "\n"


def _failures(rows: list[GridRow]) -> list[str]:
    """Lines on what could not be measured: one for all batch sizes that failed for one reason."""
    failed = [row for row in rows if row.error is not None]
    if not failed:
        return []
    batch_sizes: dict[tuple, list[str]] = {}
    for row in failed:
        place = (f"{row.model}, {row.precision}, {row.sequence_length} tokens", row.error)
        batch_sizes.setdefault(place, []).append(str(row.batch_size))
    reasons = [f"- {what}, batch size {', '.join(sizes)}: {error}" for (what, error), sizes in batch_sizes.items()]
    return ["", f"{len(failed)} of {len(rows)} could not be measured:", "", *reasons]
