#!/usr/bin/env python3
"""What structured pruning costs and gains: F1 and latency, model by model. The code is in scripts/benchmarks/pruned.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from helpers import cli


def parse(arguments):
    parser = cli.Parser(
        "F1 and latency of a model and of what finetune.py --prune made of it, fp32 and int8, on the CPU."
    )
    number = {"type": cli.positive_int, "metavar": "N"}
    folders = "model folders: the whole model first, then the pruned ones"
    parser.add_argument("models", nargs="+", metavar="FOLDER", type=Path, help=folders)
    parser.add_argument("--squad", required=True, metavar="FILE", help="SQuAD v1.1 file that F1 is measured on")
    parser.add_argument("--calibration", required=True, metavar="FILE", help="SQuAD-format text to calibrate int8 on")
    parser.add_argument(
        "-s", "--sequence-length", **number, action="append", help="tokens; repeatable (default: 128, 384)"
    )
    parser.add_argument("-i", "--iterations", **number, default=40, help="timed runs of each engine")
    parser.add_argument(
        "--peer", action="store_true", help="ONNX Runtime's dynamic int8 of the whole model beside them"
    )
    parser.add_argument("--picture", metavar="FILE", help="draw F1 against latency into this PNG")
    parser.add_argument("--json", metavar="FILE", help="write the figures as JSON")
    cli.add_verbose(parser)
    return parser.parse_args(arguments)


def main(arguments) -> None:
    args = parse(arguments)
    from scripts.benchmarks.pruned import benchmark

    benchmark(args)


if __name__ == "__main__":
    cli.run(main)
