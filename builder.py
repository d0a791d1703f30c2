#!/usr/bin/env python3
"""Build an engine for BERT question answering: a checkpoint in, an engine file and its card out."""

import time
from dataclasses import replace
from pathlib import Path

from helpers import cli
from helpers.backends import backend_module, choose_backend, write_engine
from helpers.building import (
    add_build_arguments,
    build_options,
    find_vocabulary,
    lower_cases,
    notes_on_unused_flags,
    read_config,
    read_weights,
    report_sparsity,
)
from helpers.files import check_writable


def parse(arguments):
    parser = cli.Parser("Build a BERT question-answering engine from a TensorFlow, PyTorch or ONNX checkpoint.")
    add_build_arguments(parser)
    return parser.parse_args(arguments)


def main(arguments) -> None:
    args = parse(arguments)
    check_writable(args.output, "--output")
    config = read_config(args)
    options = build_options(args, config)
    backend, reason = choose_backend(args.backend)
    cli.note(f"Backend: {backend} ({reason})")
    notes_on_unused_flags(args, backend)
    weights = read_weights(args, config)
    report_sparsity(args, weights)
    vocabulary = find_vocabulary(args, config)

    start = time.perf_counter()
    gelu = args.gelu or config.gelu or weights.gelu
    built = backend_module(backend).build(config, weights, gelu, options)
    if args.fp16 and backend == "openvino":
        cli.note(f"--fp16: this CPU's half type is {built.precision[-1]}")
    do_lower_case = lower_cases(config, vocabulary)
    config = replace(config, gelu=gelu)
    card = write_engine(args.output, built, backend, options, config, do_lower_case, vocabulary)
    seconds = time.perf_counter() - start
    mebibytes = card.engine_bytes / 2**20
    print(
        f"Engine: {args.output} ({mebibytes:.1f} MiB, {'+'.join(card.precision)} on {card.device}), "
        f"built in {seconds:.1f} s"
    )
    print(f"Card:   {Path(args.output)}.json")


if __name__ == "__main__":
    cli.run(main)
