#!/usr/bin/env python3
"""MLPerf's LoadGen over an engine: SingleStream, Offline, Server, and accuracy. The code is in scripts/loadgen/."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from helpers import cli
from scripts.loadgen.flags import add_arguments, check_arguments


def parse(arguments):
    parser = cli.Parser("Measure an engine, padded or packed, by MLPerf's LoadGen: rates, latencies, accuracy.")
    add_arguments(parser)
    cli.add_verbose(parser)
    return parser.parse_args(arguments)


def main(arguments) -> int:
    args = parse(arguments)
    check_arguments(args)
    from scripts.loadgen.measure import measure  # after the arguments: it takes numpy and more

    return measure(args)


if __name__ == "__main__":
    cli.run(main)
