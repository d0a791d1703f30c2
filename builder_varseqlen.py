#!/usr/bin/env python3
"""Build a packed engine: it computes the tokens of its sequences, end to end, and no padding."""

from helpers import cli
from helpers.builder_flags import add_build_arguments, check_build_arguments


def parse(arguments):
    parser = cli.Parser("Build a packed BERT engine (sequences end to end, no padding) from a checkpoint.")
    add_build_arguments(parser, "packed")
    return parser.parse_args(arguments)


def main(arguments) -> None:
    args = parse(arguments)
    check_build_arguments(args)
    from helpers.building import build_engine

    build_engine(args)


if __name__ == "__main__":
    cli.run(main)
