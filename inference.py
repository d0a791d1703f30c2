#!/usr/bin/env python3
"""Ask an engine: a passage and a question in, the answer out; or tables of questions, and SQuAD files."""

from helpers import cli
from helpers.inference_flags import add_inference_arguments, check_inference_arguments


def parse(arguments):
    parser = cli.Parser("Answer questions about a passage, of a table or of a SQuAD file, with a padded engine.")
    add_inference_arguments(parser, "padded")
    cli.add_verbose(parser)
    return parser.parse_args(arguments)


def main(arguments) -> int:
    args = parse(arguments)
    check_inference_arguments(args)
    from helpers.asking import answer  # after the arguments: it takes numpy and more

    return answer(args, "padded")


if __name__ == "__main__":
    cli.run(main)
