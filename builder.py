#!/usr/bin/env python3
"""Build an engine for BERT question answering: a checkpoint in, an engine file and its card out."""

from helpers import cli
from helpers.builder_flags import add_build_arguments, check_build_arguments


def parse(arguments):
    parser = cli.Parser("Build a BERT question-answering engine from a TensorFlow, PyTorch or ONNX checkpoint.")
    add_build_arguments(parser, "padded")
    return parser.parse_args(arguments)


def main(arguments) -> None:
    args = parse(arguments)
    check_build_arguments(args)
    from helpers.building import build_engine

    build_engine(args)


if __name__ == "__main__":
    cli.run(main)
