#!/usr/bin/env python3
"""Write a model repository with which Triton answers questions by one of our engines. The code is in scripts/serving/."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from helpers import cli
from scripts.serving.export_flags import add_export_arguments, answer_options, check_name


def parse(arguments):
    parser = cli.Parser(
        "Write a model repository that Triton serves: an engine, its tokenizer and the code around them."
    )
    cli.add_engine(parser)
    folder = (
        "folder to write, whole or not at all; one that is there must be empty, or an export of the same name to which "
        "nothing was added: that is replaced as a whole"
    )
    parser.add_argument("-o", "--output", required=True, metavar="REPOSITORY", help=folder)
    parser.add_argument("--name", default="bert", help="the models are called NAME_qa and NAME_engine")
    add_export_arguments(parser)
    plan = (
        "let Triton's TensorRT backend run the plan, as the model NAME_engine, which NAME_qa calls; else NAME_qa runs the "
        "engine itself"
    )
    parser.add_argument("--tensorrt-backend", action="store_true", help=plan)
    cli.add_verbose(parser)
    return parser.parse_args(arguments)


def main(arguments) -> None:
    args = parse(arguments)
    check_name(args.name)
    options = answer_options(args)
    from scripts.serving.repository import export  # after the arguments: it takes numpy and more

    export(args, options)


if __name__ == "__main__":
    cli.run(main)
