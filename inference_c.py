#!/usr/bin/env python3
"""inference.py through infer_c, the C++ module that cmake builds; for padded and packed engines."""

import functools

from helpers import cli, infer_c_engine
from helpers.asking import add_inference_arguments, answer


def parse(arguments):
    parser = cli.Parser(
        "Answer questions about a passage, or all questions of a SQuAD file, with an engine, padded or packed, "
        "that the C++ module infer_c runs."
    )
    add_inference_arguments(parser, layout=None)
    parser.add_argument(
        "--enable-graph",
        action="store_true",
        help="replay a CUDA graph of each shape that comes again (TensorRT engines)",
    )
    cli.add_verbose(parser)
    return parser.parse_args(arguments)


def main(arguments) -> None:
    args = parse(arguments)
    answer(args, None, functools.partial(infer_c_engine.load_engine, enable_graph=args.enable_graph))


if __name__ == "__main__":
    cli.run(main)
