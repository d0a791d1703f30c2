#!/usr/bin/env python3
"""Fine-tune a BERT on SQuAD-format text: plainly, for int8 (--qat), 2:4 sparse (--sparse), or pruned to be faster (--prune)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from helpers import cli


def parse(arguments):
    parser = cli.Parser(__doc__)
    model = parser.add_argument_group("model and data")
    model.add_argument(
        "-pt",
        "--pytorch",
        required=True,
        metavar="PATH",
        help="checkpoint to start from: .safetensors, .bin, .pt, or a Hugging Face folder",
    )
    model.add_argument(
        "-j", "--squad-json", required=True, metavar="FILE", help="training data, SQuAD v1.1 or v2.0 format"
    )
    model.add_argument(
        "-o",
        "--output",
        required=True,
        metavar="FOLDER",
        help="folder of the new model; a run that was stopped goes on from it",
    )
    model.add_argument(
        "-c",
        "--config-dir",
        metavar="DIR",
        help="folder with bert_config.json or config.json (default: the folder of -pt)",
    )
    cli.add_vocabulary(model)
    model.add_argument("--gelu", choices=("tanh", "erf"), help="formula of GELU (default: as the configuration says)")

    kind = parser.add_argument_group("kind")
    kind.add_argument(
        "--qat", action="store_true", help="simulate int8 in training, learn its ranges and write them, as ONNX, too"
    )
    kind.add_argument(
        "-imh",
        "--force-int8-multihead",
        action="store_true",
        help="with --qat: simulate int8 in attention, too, for builder.py's -imh, and packed plugin engines",
    )
    kind.add_argument(
        "-iln",
        "--force-int8-skipln",
        action="store_true",
        help="with --qat: simulate int8 in add + norm, too, for builder.py's -iln, and packed plugin engines",
    )
    kind.add_argument("--sparse", action="store_true", help="make the encoder's kernels 2:4 sparse, and keep them so")
    kind.add_argument(
        "--prune",
        nargs="+",
        type=cli.positive_float,
        metavar="SPEED",
        help="take out attention heads and feed-forward columns until the encoder's dense layers and attention take so "
        "many times fewer FLOPs at the sequence length, such as 1.5; the model of -pt is 1, and a head and 64 columns "
        "stay in each layer; several speeds are reached one from the other, each model in a folder of its own under -o",
    )
    kind.add_argument(
        "--distill",
        type=cli.share,
        metavar="X",
        help="share of the loss that compares with the model started from, 0 to 1; the rest compares with the answers "
        "(default: 1 with --qat, --sparse or --prune, else 0)",
    )

    training = parser.add_argument_group("training")
    training.add_argument(
        "--epochs",
        type=cli.positive_float,
        metavar="X",
        help="passes through the data, or a part of one (default: 2; with --qat 0.5; with --sparse 4; with --prune 4 for "
        "each speed)",
    )
    training.add_argument(
        "--lr",
        type=cli.positive_float,
        metavar="X",
        help="highest learning rate (default: 5e-5; with --sparse or --prune 2e-4)",
    )
    training.add_argument(
        "-b", "--batch-size", type=cli.positive_int, default=16, metavar="N", help="windows in a step"
    )
    training.add_argument(
        "--dropout", type=cli.share, metavar="X", help="dropout while training (default: 0.1; with --distill 1 0)"
    )
    training.add_argument(
        "-s",
        "--sequence-length",
        type=cli.positive_int,
        metavar="N",
        help="tokens in a window, at most (default: 384, or the model's longest if that is shorter)",
    )
    training.add_argument(
        "--doc-stride",
        type=cli.positive_int,
        default=128,
        metavar="N",
        help="tokens from one window of a long passage to the next",
    )
    training.add_argument(
        "-n",
        "--calib-num",
        type=cli.positive_int,
        metavar="N",
        help="windows that the first ranges, the 2:4 masks and the importance of heads and columns are taken from "
        "(default: 64; with --prune 512)",
    )
    training.add_argument(
        "-r",
        "--random-seed",
        type=cli.non_negative_int,
        default=12345,
        metavar="N",
        help="seed of the data's order, of dropout and of new weights",
    )
    training.add_argument(
        "--save-every",
        type=cli.positive_int,
        default=100,
        metavar="N",
        help="steps until the state of the run is saved again",
    )
    training.add_argument(
        "--windows",
        metavar="FILE",
        help="where the windows of -j are kept, tokenised: written if it is not there; with it, the file that -j names need not exist",
    )
    training.add_argument("--fp32", action="store_true", help="float32 throughout, where bfloat16 would be faster")
    cli.add_verbose(training)
    return parser.parse_args(arguments)


def main(arguments) -> None:
    args = parse(arguments)
    import torch  # noqa: F401, first: the requirements file that has it brings all the rest

    from helpers.finetuning.run import finetune

    finetune(args)


if __name__ == "__main__":
    cli.run(main)
