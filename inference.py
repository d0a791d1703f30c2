#!/usr/bin/env python3
"""Ask an engine: a passage and a question in, the answer out; or a whole SQuAD file, predictions out."""

from helpers import cli
from helpers.asking import add_inference_arguments, answer


def parse(arguments):
    parser = cli.Parser("Answer questions about a passage, or all questions of a SQuAD file, with a padded engine.")
    add_inference_arguments(parser, "padded")
    cli.add_verbose(parser)
    return parser.parse_args(arguments)


def main(arguments) -> None:
    answer(parse(arguments), "padded")


if __name__ == "__main__":
    cli.run(main)
