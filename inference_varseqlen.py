#!/usr/bin/env python3
"""Ask a packed engine: windows run end to end, without padding; otherwise as inference.py."""

from helpers import cli
from helpers.asking import add_inference_arguments, answer


def parse(arguments):
    parser = cli.Parser("Answer questions about a passage, or all questions of a SQuAD file, with a packed engine.")
    add_inference_arguments(parser, "packed")
    cli.add_verbose(parser)
    return parser.parse_args(arguments)


def main(arguments) -> None:
    answer(parse(arguments), "packed")


if __name__ == "__main__":
    cli.run(main)
