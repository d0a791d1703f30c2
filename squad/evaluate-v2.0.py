#!/usr/bin/env python3
"""SQuAD v2.0's official metrics (arXiv:1806.03822) of a predictions file, as JSON, in percent."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from helpers import cli
from helpers.errors import DemoBertError, UsageError
from helpers.files import read_json
from helpers.outputs import check_outputs, write_json
from helpers.precision_recall import picture_outputs, write_pictures
from helpers.squad import exact_match, normalise_answer, read_predictions, read_squad, token_f1


def parse(arguments):
    parser = cli.Parser(__doc__)
    parser.add_argument("data", metavar="DATA", help="SQuAD v2.0 file with the gold answers")
    parser.add_argument("predictions", metavar="PREDICTIONS", help='JSON object: question id → answer, "" for none')
    parser.add_argument(
        "-n", "--na-prob-file", metavar="FILE", help="JSON object: question id → probability or odds of no answer"
    )
    parser.add_argument(
        "-t", "--na-prob-thresh", type=cli.finite_float, default=1.0, help='a prediction above it counts as ""'
    )
    parser.add_argument("-o", "--out-file", metavar="FILE", help="write the metrics there too")
    parser.add_argument(
        "-p",
        "--out-image-dir",
        metavar="DIR",
        help="draw precision-recall curves and histograms of the no-answer scores there, and add average precisions to "
        "the metrics; needs --na-prob-file",
    )
    cli.add_verbose(parser)
    args = parser.parse_args(arguments)
    if args.out_image_dir and not args.na_prob_file:
        raise UsageError("--out-image-dir draws no-answer scores: name their file with --na-prob-file")
    return args


def read_no_answer_scores(path, examples) -> dict[str, float]:
    """Question id → how likely it has no answer, in the file's order. Raises DemoBertError."""
    scores = read_json(path, "no-answer file")
    if not isinstance(scores, dict):
        raise DemoBertError(f"the no-answer file is not a JSON object (question id → number): {path}")
    for question_id, score in scores.items():
        if not _is_finite(score):
            raise DemoBertError(f"the no-answer score of {question_id!r} is not a finite number: {path}")
    if missing := [example.question_id for example in examples if example.question_id not in scores]:
        raise DemoBertError(f"the no-answer file lacks {len(missing)} questions, {missing[0]!r} first: {path}")
    return scores


def _is_finite(value) -> bool:
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def gold_answers(example) -> list[str]:
    """The gold answers that are more than articles and punctuation; [""] where there are none: unanswerable."""
    return [answer for answer in example.answers if normalise_answer(answer)] or [""]


def v2_f1(prediction: str, gold: str) -> float:
    """Token F1; if either side is empty, 1 where both are."""
    if not normalise_answer(prediction) or not normalise_answer(gold):
        return float(exact_match(prediction, gold))
    return token_f1(prediction, gold)


def question_scores(examples, predictions, metric) -> dict[str, float]:
    """Question id → `metric` against the best gold answer; 0 without a prediction."""
    return {
        example.question_id: float(
            max(metric(predictions[example.question_id], gold) for gold in gold_answers(example))
            if example.question_id in predictions
            else 0
        )
        for example in examples
    }


def with_threshold(scores, answerable, no_answer_scores, threshold) -> dict[str, float]:
    """The scores when every prediction with a no-answer score above `threshold` is replaced by ""."""
    return {
        question_id: float(not answerable[question_id]) if no_answer_scores[question_id] > threshold else score
        for question_id, score in scores.items()
    }


def percent(values) -> float:
    return 100.0 * sum(values) / len(values)


def report(exact, f1, answerable) -> dict:
    """Means in percent over all questions, those with an answer (HasAns_) and those without (NoAns_)."""
    metrics = {"exact": percent(exact.values()), "f1": percent(f1.values()), "total": len(exact)}
    for prefix, wanted in (("HasAns", True), ("NoAns", False)):
        if ids := [question_id for question_id in exact if answerable[question_id] == wanted]:
            metrics[f"{prefix}_exact"] = percent([exact[question_id] for question_id in ids])
            metrics[f"{prefix}_f1"] = percent([f1[question_id] for question_id in ids])
            metrics[f"{prefix}_total"] = len(ids)
    return metrics


def best_threshold(predictions, scores, answerable, no_answer_scores) -> tuple[float, float]:
    """The highest mean score, in percent, that a threshold on the no-answer scores reaches, and the threshold.

    Starts with no question answered (all unanswerable ones right), then answers them one by one, the surest first;
    equal no-answer scores keep the file's order, as in the official figures.
    """
    current = best = float(sum(not answerable[question_id] for question_id in scores))
    threshold = 0.0
    for question_id in sorted(no_answer_scores, key=no_answer_scores.get):
        if question_id not in scores:
            continue
        if answerable[question_id]:
            current += scores[question_id]
        elif predictions.get(question_id):
            current -= 1
        if current > best:
            best, threshold = current, no_answer_scores[question_id]
    return 100.0 * best / len(scores), threshold


def evaluate(examples, predictions, no_answer_scores=None, threshold=1.0, image_dir=None) -> dict:
    """All of SQuAD v2.0's metrics; the best thresholds only where there are no-answer scores.

    With `image_dir`, which exists, average precisions, too; the curves and histograms are written there.
    """
    answerable = {example.question_id: bool(example.answers) for example in examples}
    exact = question_scores(examples, predictions, exact_match)
    f1 = question_scores(examples, predictions, v2_f1)
    thresholded_by = dict.fromkeys(exact, 0.0) if no_answer_scores is None else no_answer_scores
    metrics = report(
        with_threshold(exact, answerable, thresholded_by, threshold),
        with_threshold(f1, answerable, thresholded_by, threshold),
        answerable,
    )
    if no_answer_scores is None:
        return metrics
    for name, scores in (("exact", exact), ("f1", f1)):
        best, best_at = best_threshold(predictions, scores, answerable, no_answer_scores)
        metrics |= {f"best_{name}": best, f"best_{name}_thresh": best_at}
    if image_dir:
        metrics |= write_pictures(image_dir, exact, f1, answerable, no_answer_scores)
    return metrics


def main(arguments) -> int:
    args = parse(arguments)
    pictures = picture_outputs(args.out_image_dir) if args.out_image_dir else {}
    check_outputs({"--out-file": args.out_file, **pictures}, (args.data, args.predictions, args.na_prob_file))
    examples = read_squad(args.data).examples
    predictions = read_predictions(args.predictions)
    no_answer_scores = read_no_answer_scores(args.na_prob_file, examples) if args.na_prob_file else None
    for example in examples:
        if example.question_id not in predictions:
            cli.note(f"no prediction for question {cli.one_line(example.question_id)}: it counts 0")
    metrics = evaluate(examples, predictions, no_answer_scores, args.na_prob_thresh, args.out_image_dir)
    if args.out_file:
        write_json(args.out_file, metrics)
    print(json.dumps(metrics, indent=2))
    return 0


if __name__ == "__main__":
    cli.run(main)
