"""What a threshold on the no-answer scores trades: precision against recall, and both kinds of questions' scores.

As in SQuAD v2.0's official evaluation (arXiv:1806.03822), which draws the same five pictures.
"""

import io
from dataclasses import dataclass
from pathlib import Path

from helpers.errors import DemoBertError
from helpers.outputs import write_together
from helpers.pictures import new_figure

#: Bars of a histogram.
_BINS = 20

#: Each curve's name, and what its picture calls it.
_TITLES = {"exact": "exact match", "f1": "F1", "oracle": "oracle: every answer given is right"}

_HISTOGRAMS = {"hasAns": "questions with an answer", "noAns": "questions without an answer"}

#: Scores beyond it overflow on their way to a picture.
_LARGEST_DRAWN = 1e300

#: What needs matplotlib.
_WHY = "--out-image-dir"


@dataclass(frozen=True)
class Curve:
    """Precisions and recalls, 0 to 1, by the number of questions answered, from none on; only where a threshold can be.

    `average_precision` is the mean of the precisions over the recall, in percent.
    """

    precisions: list[float]
    recalls: list[float]
    average_precision: float


def precision_recall(scores: dict, answerable: dict, no_answer_scores: dict) -> Curve | None:
    """The curve of {question id: score, 0 to 1}; None where no question is answerable.

    Questions are answered one by one, those with the lowest no-answer score first, equal ones in the order of
    `no_answer_scores`. An answerable question adds its score to what is right, any adds 1 to what is given. A threshold
    can't part questions of equal no-answer scores, so they become one point.
    """
    total = sum(map(bool, answerable.values()))
    if not total:
        return None
    order = sorted((key for key in no_answer_scores if key in scores), key=no_answer_scores.get)
    precisions, recalls = [1.0], [0.0]
    right = average = 0.0
    for count, (key, following) in enumerate(zip(order, [*order[1:], None]), 1):
        if answerable[key]:
            right += scores[key]
        if following is None or no_answer_scores[following] != no_answer_scores[key]:
            precision, recall = right / count, right / total
            average += precision * (recall - recalls[-1])
            precisions.append(precision)
            recalls.append(recall)
    return Curve(precisions, recalls, 100.0 * average)


def picture_outputs(folder) -> dict[str, Path]:
    """All files that `write_pictures` may write, for `check_outputs`. The folder is created. Raises DemoBertError."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DemoBertError(f"--out-image-dir: can't create the folder {folder}: {error.strerror}") from error
    names = [f"pr_{name}.png" for name in _TITLES] + [f"na_prob_hist_{name}.png" for name in _HISTOGRAMS]
    return {f"{name} of --out-image-dir,": Path(folder) / name for name in names}


def write_pictures(folder, exact: dict, f1: dict, answerable: dict, no_answer_scores: dict) -> dict[str, float]:
    """Draw all curves and histograms that there are questions for, and give pr_…_ap: average precisions in percent.

    exact, f1          question id → score, 0 to 1, whatever the no-answer score
    answerable         question id → whether it has an answer
    no_answer_scores   question id → how likely it has none; of other questions too

    Raises DemoBertError, and leaves the folder's files alone, where they can't be drawn or written.
    """
    pictures, metrics = {}, {}
    oracle = {key: float(has_answer) for key, has_answer in answerable.items()}
    for (name, title), scores in zip(_TITLES.items(), (exact, f1, oracle), strict=True):
        if curve := precision_recall(scores, answerable, no_answer_scores):
            metrics[f"pr_{name}_ap"] = curve.average_precision
            pictures[f"pr_{name}.png"] = _drawn_curve(curve, title)
    span = _span([no_answer_scores[key] for key in answerable])
    for (name, title), wanted in zip(_HISTOGRAMS.items(), (True, False), strict=True):
        if shown := [no_answer_scores[key] for key in answerable if answerable[key] == wanted]:
            pictures[f"na_prob_hist_{name}.png"] = _drawn_histogram(shown, span, title)
    write_together({Path(folder) / name: data for name, data in pictures.items()})
    return metrics


def _drawn_curve(curve: Curve, title: str) -> bytes:
    figure, axes = new_figure(6, 4.5, _WHY)
    axes.step(curve.recalls, curve.precisions, where="post")
    axes.fill_between(curve.recalls, curve.precisions, step="post", alpha=0.2)
    axes.set(xlim=(0, 1.05), ylim=(0, 1.05), xlabel="recall", ylabel="precision")
    axes.set_title(f"{title}; average precision {curve.average_precision:.2f} %")
    return _png(figure)


def _span(scores: list) -> tuple[float, float]:
    """What both histograms show: 0 to 1 if all scores are probabilities, else from the lowest to the highest."""
    low, high = float(min(scores)), float(max(scores))
    if low >= 0 and high <= 1:
        return 0.0, 1.0
    if low == high:
        margin = max(0.5, abs(low) / 1000)
        low, high = low - margin, high + margin
    if max(abs(low), abs(high)) > _LARGEST_DRAWN:
        raise DemoBertError(f"no-answer scores from {min(scores):g} to {max(scores):g} are too large to be drawn")
    return low, high


def histogram(scores: list, span: tuple[float, float]) -> list[float]:
    """The share of `scores` in each of the equal bins of a span that holds them all; the last bin holds its end, too."""
    low, high = span
    counts = [0] * _BINS
    for score in scores:
        counts[min(int((score - low) / (high - low) * _BINS), _BINS - 1)] += 1
    return [count / len(scores) for count in counts]


def _drawn_histogram(scores: list, span: tuple[float, float], title: str) -> bytes:
    figure, axes = new_figure(6, 4.5, _WHY)
    low, high = span
    edges = [low + (high - low) * i / _BINS for i in range(_BINS + 1)]
    axes.stairs(histogram(scores, span), edges, fill=True)
    # Not "probability": inference.py's null odds are none.
    axes.set(xlim=span, xlabel="no-answer score, as in --na-prob-file", ylabel="share of these questions")
    axes.set_title(f"{len(scores)} {title}")
    return _png(figure)


def _png(figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=100)
    return file.getvalue()
