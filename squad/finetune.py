#!/usr/bin/env python3
"""Fine-tune a BERT on SQuAD-format text: plain, for int8 (--qat), 2:4 sparse (--sparse), or both."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from helpers import cli  # noqa: E402
from helpers.errors import UsageError, missing_package  # noqa: E402


def parse(arguments):
    parser = cli.Parser(__doc__)
    data = parser.add_argument_group("data")
    data.add_argument("-pt", "--pytorch", required=True, metavar="PATH", help="starting checkpoint: .safetensors, .bin, .pt, or a Hugging Face folder")
    data.add_argument("-j", "--squad-json", required=True, metavar="FILE", help="training data, SQuAD v1.1 or v2.0 format")
    data.add_argument("-o", "--output", required=True, metavar="FOLDER", help="folder to write the model to; a killed run is resumed from it")
    data.add_argument("-c", "--config-dir", metavar="DIR", help="folder with bert_config.json or config.json (default: the folder of -pt)")
    data.add_argument("-v", "--vocab-file", metavar="FILE", help="vocabulary (default: vocab.txt of the config folder)")
    data.add_argument("--gelu", choices=("tanh", "erf"), help="formula of GELU (default: as the configuration says, else erf)")
    kind = parser.add_argument_group("kind")
    kind.add_argument("--qat", action="store_true", help="quantization-aware: trained with int8 simulated, ranges written")
    kind.add_argument("--sparse", action="store_true", help="encoder kernels made 2:4 sparse and kept so")
    kind.add_argument("--distill", type=share, metavar="X", help="share of the loss that comes from the starting model, 0 to 1; the rest comes from the answers (default: 1 with --qat or --sparse, else 0)")
    training = parser.add_argument_group("training")
    training.add_argument("--epochs", type=positive, default=2.0, metavar="X", help="passes through the data; may be a part of one")
    training.add_argument("--lr", type=positive, default=5e-5, metavar="X", help="highest learning rate")
    training.add_argument("-b", "--batch-size", type=cli.positive_int, default=16, metavar="N", help="windows in a step")
    training.add_argument("-s", "--sequence-length", type=cli.positive_int, default=384, metavar="N", help="tokens in a window, at most")
    training.add_argument("--doc-stride", type=cli.positive_int, default=128, metavar="N", help="tokens from one window of a long passage to the next")
    training.add_argument("--dropout", type=share, metavar="X", help="(default: 0.1, or 0 with --distill 1)")
    training.add_argument("-n", "--calib-num", type=cli.positive_int, default=64, metavar="N", help="windows that ranges and masks are taken from")
    training.add_argument("-r", "--random-seed", type=cli.non_negative_int, default=0, metavar="N", help="seed of the data's order and of dropout")
    training.add_argument("--save-every", type=cli.positive_int, default=100, metavar="N", help="steps from one saved state to the next")
    training.add_argument("--fp32", action="store_true", help="no bfloat16 in the products, though the device has it")
    cli.add_verbose(training)
    return parser.parse_args(arguments)


def share(text: str) -> float:
    """A number from 0 to 1 (argparse type)."""
    return cli._number(text, float, "a number from 0 to 1", lambda value: 0 <= value <= 1)


def positive(text: str) -> float:
    """A finite number over 0 (argparse type)."""
    return cli._number(text, float, "a number over 0", lambda value: 0 < value < float("inf"))


def main(arguments) -> None:
    args = parse(arguments)
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise missing_package("torch", "-r requirements-finetune.txt", "fine-tuning") from error
    from helpers.finetuning.run import finetune

    finetune(args)


if __name__ == "__main__":
    cli.run(main)
