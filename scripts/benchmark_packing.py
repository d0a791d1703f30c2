#!/usr/bin/env python3
"""What packing gains: questions and tokens per second, three ways. The code is in scripts/benchmarks/packing.py."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from helpers import cli


def parse(arguments):
    parser = cli.Parser("Packed against filled and length-sorted padded batches, on the CPU.")
    bundled = ROOT / "models" / "bundled" / "bert_mini_squad11"
    parser.add_argument("--model", default=bundled, metavar="DIR", help="model folder")
    parser.add_argument("--squad", required=True, metavar="FILE", help="SQuAD v1.1 file")
    parser.add_argument("--every", type=cli.positive_int, default=1, metavar="N", help="take every N-th question only")
    number = {"type": cli.positive_int, "metavar": "N"}
    parser.add_argument("-s", "--sequence-length", **number, default=384, help="longest window")
    parser.add_argument("-b", "--batch-size", **number, action="append", help="repeatable (default: 1 and 8)")
    parser.add_argument("-f", "--fp16", action="store_true", help="the CPU's half precision (default: fp32)")
    parser.add_argument("--rounds", type=cli.positive_int, default=5, metavar="N", help="rounds to take the median of")
    parser.add_argument("--json", metavar="FILE", help="write the figures as JSON")
    return parser.parse_args(arguments)


def main(arguments) -> None:
    args = parse(arguments)
    from scripts.benchmarks.packing import benchmark

    benchmark(args)


if __name__ == "__main__":
    cli.run(main)
