"""The plot of a benchmark's grid: latency against batch size, both logarithmic, with labels that can be told apart."""

import math

from helpers.outputs import atomic_write
from helpers.pictures import new_figure

#: How the points of each precision are drawn, in turn: colour alone does not tell all readers the lines apart.
MARKERS = "os^Dv*"

#: So many labels fit beside a panel's y axis.
MOST_TICKS = 13

#: The picture's dots per inch.
DPI = 120

#: Between two labels, in points.
LABEL_GAP = 2


def plot(rows: list, title: str, path) -> None:
    """Median latency of GridRows: a panel per model and length, a line per precision."""
    models = list(dict.fromkeys(row.model for row in rows))
    lengths = sorted({row.sequence_length for row in rows})
    size = (max(6, 4.5 * len(lengths)), 0.5 + 3.2 * len(models))
    figure, panels = new_figure(*size, "the plot", rows=len(models), columns=len(lengths))
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)
    figure.set_dpi(DPI)
    precisions = list(dict.fromkeys(row.precision for row in rows))
    for model, panels_of_model in zip(models, panels):
        for length, panel in zip(lengths, panels_of_model):
            panel.set_title(f"{model}, {length} tokens")
            _draw(panel, [row for row in rows if (row.model, row.sequence_length) == (model, length)], precisions)
    figure.suptitle(title)
    figure.draw_without_rendering()  # lays everything out: only now labels have their places
    for panel in panels.flat:
        _drop_overlapping_labels(panel)
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=DPI)


def _draw(panel, rows: list, precisions: list) -> None:
    panel.set(xlabel="batch size", ylabel="median latency (ms)", xscale="log", yscale="log")
    panel.minorticks_off()
    panel.grid(alpha=0.3)
    if not rows:
        return
    for number, precision in enumerate(precisions):
        points = sorted((row.batch_size, row.median_ms) for row in rows if row.precision == precision)
        if points:
            marker = MARKERS[number % len(MARKERS)]
            panel.plot(*zip(*points), marker=marker, label=precision, color=f"C{number}")
    batch_sizes = sorted({row.batch_size for row in rows})
    panel.set_xticks(batch_sizes, [str(batch_size) for batch_size in batch_sizes])
    medians = [row.median_ms for row in rows]
    ticks = one_two_five(min(medians), max(medians))
    panel.set_yticks(ticks, [f"{tick:.9f}".rstrip("0").rstrip(".") for tick in ticks])
    panel.set_ylim(ticks[0] / 1.1, ticks[-1] * 1.1)
    panel.minorticks_off()
    panel.legend()


def one_two_five(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten that enclose `low` to `high`; powers alone where they would be over MOST_TICKS."""
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 3)
    ticks = _enclosing([float(f"{digit}e{power}") for power in powers for digit in (1, 2, 5)], low, high)
    return ticks if len(ticks) <= MOST_TICKS else _enclosing([float(f"1e{power}") for power in powers], low, high)


def _enclosing(ticks: list[float], low: float, high: float) -> list[float]:
    """From the last of the ascending `ticks` that is not over `low` to the first that is over `high`."""
    start = max(place for place, tick in enumerate(ticks) if tick <= low)
    end = min(place for place, tick in enumerate(ticks) if tick > high)
    return ticks[start : end + 1]


def _drop_overlapping_labels(panel) -> None:
    """Leave out the label of each batch size that would touch the one before; its tick stays."""
    labels, end = [], -math.inf
    for label in panel.get_xticklabels():
        box = label.get_window_extent()
        if box.x0 < end:
            labels.append("")
        else:
            labels.append(label.get_text())
            end = box.x1 + LABEL_GAP * panel.figure.dpi / 72
    panel.set_xticks(panel.get_xticks(), labels)
