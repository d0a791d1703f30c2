#!/usr/bin/env python3
"""Ask an engine: a passage and a question in, the answer out; or a whole SQuAD file, predictions out."""

from helpers import cli
from helpers.asking import (
    add_inference_arguments,
    answer_questions,
    answer_squad_file,
    check_inference_arguments,
    question_answerer,
)
from helpers.backends import load_engine


def parse(arguments):
    parser = cli.Parser("Answer questions about a passage, or all questions of a SQuAD file, with a padded engine.")
    add_inference_arguments(parser)
    cli.add_verbose(parser)
    return parser.parse_args(arguments)


def main(arguments) -> None:
    args = parse(arguments)
    check_inference_arguments(args)
    engine = load_engine(args.engine, "padded", throughput=args.squad_json is not None, say=cli.note)
    answerer = question_answerer(args, engine)
    if args.verbose:
        cli.note(engine.describe())
    if args.squad_json:
        answer_squad_file(args, answerer)
    else:
        answer_questions(args, answerer)


if __name__ == "__main__":
    cli.run(main)
