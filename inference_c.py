#!/usr/bin/env python3
"""inference.py through infer_c, the C++ module that cmake builds; for padded and packed engines."""

import functools

from helpers import cli
from helpers.inference_flags import add_inference_arguments, check_inference_arguments


def parse(arguments):
    parser = cli.Parser(
        "Answer questions about a passage, of a table or of a SQuAD file, with an engine, padded or packed, that the "
        "C++ module infer_c runs."
    )
    add_inference_arguments(parser, layout=None)
    parser.add_argument(
        "--enable-graph",
        action="store_true",
        help="replay a CUDA graph of each shape that comes again (TensorRT engines)",
    )
    cli.add_verbose(parser)
    return parser.parse_args(arguments)


def main(arguments) -> int:
    args = parse(arguments)
    check_inference_arguments(args)
    from helpers import infer_c_engine  # after the arguments: these take numpy and more
    from helpers.asking import answer

    return answer(args, None, functools.partial(infer_c_engine.load_engine, enable_graph=args.enable_graph))


if __name__ == "__main__":
    cli.run(main)
