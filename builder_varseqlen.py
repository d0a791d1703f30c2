#!/usr/bin/env python3
"""Build a packed engine: it computes the tokens of its sequences, end to end, and no padding."""

from helpers import cli
from helpers.builder_flags import add_build_arguments
from helpers.building import build_engine


def parse(arguments):
    parser = cli.Parser("Build a packed BERT engine (sequences end to end, no padding) from a checkpoint.")
    add_build_arguments(parser, "packed")
    return parser.parse_args(arguments)


def main(arguments) -> None:
    build_engine(parse(arguments))


if __name__ == "__main__":
    cli.run(main)
