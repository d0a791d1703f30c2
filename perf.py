#!/usr/bin/env python3
"""Time an engine: latency percentiles and sentences per second for each batch size."""

from helpers import cli


def parse(arguments):
    parser = cli.Parser("Time a padded BERT engine on random input.")
    cli.add_engine(parser)
    cli.add_benchmark_arguments(parser)
    cli.add_trust(parser)
    cli.add_verbose(parser)
    return parser.parse_args(arguments)


def main(arguments) -> None:
    args = parse(arguments)
    from helpers import benchmark
    from helpers.backends import load_engine

    benchmark.check_benchmark_outputs(args)
    engine = load_engine(args.engine, "padded", say=cli.note, **cli.trust_of(args))
    cli.note(engine.describe())
    length = benchmark.default_sequence_length(args, engine.card)
    sizes = benchmark.asked_batch_sizes(args, engine.card)
    batches = [benchmark.random_batch(engine.card, size, length, args.random_seed) for size in sizes]
    benchmark.time_batches(args, engine, batches, length)


if __name__ == "__main__":
    cli.run(main)
