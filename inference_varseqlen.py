#!/usr/bin/env python3
"""Ask a packed engine: windows run end to end, without padding; otherwise as inference.py."""

from helpers import cli
from helpers.inference_flags import add_inference_arguments, check_inference_arguments


def parse(arguments):
    parser = cli.Parser("Answer questions about a passage, of a table or of a SQuAD file, with a packed engine.")
    add_inference_arguments(parser, "packed")
    cli.add_verbose(parser)
    return parser.parse_args(arguments)


def main(arguments) -> int:
    args = parse(arguments)
    check_inference_arguments(args)
    from helpers.asking import answer  # after the arguments: it takes numpy and more

    return answer(args, "packed")


if __name__ == "__main__":
    cli.run(main)
