#!/usr/bin/env python3
"""Answer files of questions with many engines at once, which Ray Data feeds. The code is in scripts/scaling/."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from helpers import cli
from scripts.scaling.flags import add_scaling_arguments, check_scaling_arguments


def parse(arguments):
    parser = cli.Parser(
        "Answer tables of questions, a file of answers for each, with an engine on each GPU or on each group of cores."
    )
    add_scaling_arguments(parser)
    cli.add_verbose(parser)
    return parser.parse_args(arguments)


def main(arguments) -> int:
    args = parse(arguments)
    check_scaling_arguments(args)
    from scripts.scaling.answering import answer_files  # after the arguments: it takes numpy, Ray and more

    return answer_files(args)


if __name__ == "__main__":
    cli.run(main)
