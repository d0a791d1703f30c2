#!/usr/bin/env python3
"""Time build/perf and perf.py on one engine, in turn. The code is in scripts/benchmarks/cpp.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from helpers import cli


def parse(arguments):
    parser = cli.Parser(
        "Time build/perf and perf.py on a padded engine, in turn, and print the medians and their ratio."
    )
    cli.add_engine(parser)
    parser.add_argument("--rounds", type=cli.positive_int, default=5, metavar="N", help="how often each of them is run")
    parser.add_argument("-b", "--batch-size", type=cli.positive_int, default=1, metavar="N", help="batch size")
    parser.add_argument(
        "-s", "--sequence-length", type=cli.positive_int, default=128, metavar="N", help="tokens of a row"
    )
    parser.add_argument(
        "-i", "--iterations", type=cli.positive_int, default=100, metavar="N", help="runs in each round"
    )
    cli.add_verbose(parser)
    return parser.parse_args(arguments)


def main(arguments) -> None:
    args = parse(arguments)
    from scripts.benchmarks.cpp import benchmark

    benchmark(args)


if __name__ == "__main__":
    cli.run(main)
