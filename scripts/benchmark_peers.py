#!/usr/bin/env python3
"""Time this project's CPU engine beside its peers. The code is in scripts/benchmarks/peers.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from helpers import cli

#: Where no flag says otherwise: timed runs of each peer, with --squad runs of each side.
ITERATIONS, ROUNDS = 30, 3


def parse(arguments):
    parser = cli.Parser("Time this project's CPU engine beside Hugging Face, ONNX Runtime and plain OpenVINO.")
    number = {"type": cli.positive_int, "metavar": "N"}
    parser.add_argument(
        "--model", default="base", help="base or large (random weights), or a Hugging Face or config folder"
    )
    parser.add_argument("-b", "--batch-size", **number, default=1, help="batch size")
    parser.add_argument(
        "-s", "--sequence-length", **number, action="append",
        help="tokens; repeat for more (default: 128 and 384; with --squad: 384)",
    )  # fmt: skip
    parser.add_argument("-i", "--iterations", **number, help=f"timed runs of each peer (default: {ITERATIONS})")
    parser.add_argument(
        "--peers", metavar="WORD", nargs="+",
        help="only peers whose name holds one of these words, such as openvino or bf16",
    )  # fmt: skip
    parser.add_argument("--squad", metavar="FILE", help="measure throughput on this SQuAD file instead")
    rounds = f"with --squad: how often each side runs (default: {ROUNDS})"
    parser.add_argument("--rounds", **number, help=rounds)
    parser.add_argument("--questions", **number, help="with --squad: only N of the questions, evenly spread")
    parser.add_argument(
        "--calibration", metavar="FILE", help="SQuAD-format text to calibrate int8 on (default: random ids)"
    )
    parser.add_argument("--json", metavar="FILE", help="write the figures as JSON")
    cli.add_verbose(parser)
    return parser.parse_args(arguments)


def main(arguments) -> None:
    args = parse(arguments)
    for name in ("iterations",) if args.squad else ("rounds", "questions"):
        if getattr(args, name):
            cli.note(f"Note: --{name} has no effect {'with' if args.squad else 'without'} --squad")
    args.iterations, args.rounds = args.iterations or ITERATIONS, args.rounds or ROUNDS
    from scripts.benchmarks.peers import benchmark

    benchmark(args)


if __name__ == "__main__":
    cli.run(main)
