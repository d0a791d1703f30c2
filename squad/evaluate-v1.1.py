#!/usr/bin/env python3
"""SQuAD v1.1's official metrics (arXiv:1606.05250) of a predictions file, as one line of JSON, in percent."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from helpers import cli
from helpers.errors import DemoBertError
from helpers.squad import exact_match, read_predictions, read_squad, token_f1


def parse(arguments):
    parser = cli.Parser(__doc__)
    parser.add_argument("data", metavar="DATA", help="SQuAD v1.1 file with the gold answers")
    parser.add_argument("predictions", metavar="PREDICTIONS", help="JSON object: question id → answer")
    parser.add_argument(
        "threshold", metavar="THRESHOLD", nargs="?", type=cli.finite_float, help="F1, in percent, to pass or fail by"
    )
    cli.add_verbose(parser)
    return parser.parse_args(arguments)


def evaluate(data, predictions) -> dict:
    """{"exact_match", "f1"}: means over all questions of the best match with any gold answer, in percent.

    A question without a prediction counts 0, with a note on stderr.
    """
    exact = f1 = 0.0
    for example in data.examples:
        if not example.answers:
            raise DemoBertError(
                f"question {example.question_id!r} has no gold answer: squad/evaluate-v2.0.py reads such files"
            )
        if example.question_id not in predictions:
            cli.note(f"no prediction for question {cli.one_line(example.question_id)}: it counts 0")
            continue
        prediction = predictions[example.question_id]
        exact += max(exact_match(prediction, gold) for gold in example.answers)
        f1 += max(token_f1(prediction, gold) for gold in example.answers)
    total = len(data.examples)
    return {"exact_match": 100.0 * exact / total, "f1": 100.0 * f1 / total}


def main(arguments) -> int:
    args = parse(arguments)
    scores = evaluate(read_squad(args.data), read_predictions(args.predictions))
    passed = args.threshold is None or scores["f1"] >= args.threshold
    if args.threshold is not None:
        verdict, matches = ("PASSED", "matches") if passed else ("FAILED", "does not match")
        print(f"&&&& {verdict} TensorRT BERT Squad Accuracy {matches} reference.")
    print(json.dumps(scores))
    return 0 if passed else 1


if __name__ == "__main__":
    cli.run(main)
