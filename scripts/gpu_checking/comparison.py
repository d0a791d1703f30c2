"""Logits beside a reference's, and the tables that scripts/gpu_check.sh prints."""

from dataclasses import asdict, dataclass

import numpy as np

#: Half precision (and TensorRT's TF32, of as many bits) against float32, on logits of up to about 10. PyTorch's own
#: half precision stands in the same table: it can be further off than this on some token.
TOLERANCE = 2e-2

#: Precisions whose logits and best tokens have to be float32's. What the others lose is told, and judged by F1.
EXACT_PRECISIONS = ("fp32", "fp16")


@dataclass(frozen=True)
class Comparison:
    """How far an engine's logits are from the reference's, over the valid tokens of all windows.

    `other_argmax` counts windows whose best start or best end is another token. `passed`: the logits are finite and
    within the tolerance, and no window has another argmax, where that counts; without a tolerance: they are finite.
    """

    windows: int
    max_difference: float
    other_argmax: int
    passed: bool


def compare(
    logits: list, reference: list, lengths: list, tolerance: float | None = TOLERANCE, same_tokens: bool = True
) -> Comparison:
    """Compare window by window: arrays [S, 2] each, of which the first `length` tokens count.

    `same_tokens`: another argmax fails. Random weights leave many logits nearly equal, so that there it says nothing.
    """
    largest, other = 0.0, 0
    for ours, theirs, length in zip(logits, reference, lengths, strict=True):
        ours, theirs = np.asarray(ours[:length], np.float64), np.asarray(theirs[:length], np.float64)
        difference = np.abs(ours - theirs).max()
        largest = max(largest, float("inf") if np.isnan(difference) else float(difference))
        other += bool((ours.argmax(axis=0) != theirs.argmax(axis=0)).any())
    passed = bool(np.isfinite(largest)) if tolerance is None else largest <= tolerance and not (same_tokens and other)
    return Comparison(len(lengths), largest, other, passed)


def tolerance_for(precision: str) -> float | None:
    """How far an engine's logits may be off from PyTorch's in float32; None: no bound."""
    return TOLERANCE if precision in EXACT_PRECISIONS else None


def comparison_table(rows: dict) -> str:
    """Name → Comparison, as Markdown."""
    lines = [
        "| against PyTorch, fp32 | windows | largest difference of a logit | other start or end | |",
        "| --- | ---: | ---: | ---: | --- |",
    ]
    for name, row in rows.items():
        verdict = "ok" if row.passed else "FAILED"
        lines.append(f"| {name} | {row.windows} | {row.max_difference:.4f} | {row.other_argmax} | {verdict} |")
    return "\n".join(lines)


def latency_table(medians: dict) -> str:
    """{(batch size, length): {name: median ms}} as Markdown: a line for each name, a column for each size."""
    sizes = sorted(medians)
    names = list(dict.fromkeys(name for row in medians.values() for name in row))
    lines = [
        "| median ms | " + " | ".join(f"{batch} × {length}" for batch, length in sizes) + " |",
        "| --- |" + " ---: |" * len(sizes),
    ]
    for name in names:
        cells = (f"{medians[size][name]:.3f}" if name in medians[size] else "" for size in sizes)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def as_json(comparisons: dict, latencies: dict) -> dict:
    """Each model's comparisons and latencies, as the tables have them, for --json."""
    return {
        "comparisons": [
            {"model": model, "engine": name, **asdict(row)}
            for model, rows in comparisons.items()
            for name, row in rows.items()
        ],
        "latencies": [
            {"model": model, "batch_size": batch, "sequence_length": length, "median_ms": row}
            for model, medians in latencies.items()
            for (batch, length), row in sorted(medians.items())
        ],
    }
