"""The figures of a benchmark's grid: a Markdown table, a CSV file, a plot of latency against batch size."""

import csv
from dataclasses import asdict, dataclass, fields, replace

from helpers import cli
from helpers.files import atomic_write, read_json
from helpers.pictures import new_figure


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


def plot(rows: list[GridRow], title: str, path) -> None:
    """Median latency against batch size, both axes logarithmic: a panel per model and length, a line per precision."""
    models = list(dict.fromkeys(row.model for row in rows))
    lengths = sorted({row.sequence_length for row in rows})
    size = (max(6, 4.5 * len(lengths)), 0.5 + 3.2 * len(models))
    figure, panels = new_figure(*size, "the plot", rows=len(models), columns=len(lengths))
    colors = {precision: f"C{number}" for number, precision in enumerate(dict.fromkeys(row.precision for row in rows))}
    for model, panels_of_model in zip(models, panels):
        for length, panel in zip(lengths, panels_of_model):
            panel.set_title(f"{model}, {length} tokens")
            _draw(panel, [row for row in rows if (row.model, row.sequence_length) == (model, length)], colors)
    figure.suptitle(title)
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=120)


def _draw(panel, rows: list[GridRow], colors: dict) -> None:
    for precision, color in colors.items():
        points = sorted((row.batch_size, row.median_ms) for row in rows if row.precision == precision)
        if points:
            panel.plot(*zip(*points), marker="o", label=precision, color=color)
    batch_sizes = sorted({row.batch_size for row in rows})
    panel.set(xlabel="batch size", ylabel="median latency (ms)", xscale="log", yscale="log")
    panel.set_xticks(batch_sizes, [str(batch_size) for batch_size in batch_sizes])
    panel.xaxis.minorticks_off()
    for formatter in (panel.yaxis.set_major_formatter, panel.yaxis.set_minor_formatter):
        formatter("{x:g}")
    panel.grid(alpha=0.3, which="both")
    if rows:
        panel.legend()
