#!/usr/bin/env python3
"""Time an engine: latency percentiles and sentences per second for each batch size."""

from helpers import cli
from helpers.backends import load_engine
from helpers.benchmark import as_json, plot, random_batch, time_batch
from helpers.files import check_writable, write_json

DEFAULT_SEQUENCE_LENGTH = 128


def parse(arguments):
    parser = cli.Parser("Time a padded BERT engine on random input.")
    cli.add_engine(parser)
    cli.add_benchmark_arguments(parser)
    cli.add_verbose(parser)
    return parser.parse_args(arguments)


def main(arguments) -> None:
    args = parse(arguments)
    for path, flag in ((args.json, "--json"), (args.plot, "--plot")):
        if path:
            check_writable(path, flag)
    engine = load_engine(args.engine, "padded", say=cli.note)
    cli.note(engine.describe())
    length = args.sequence_length or min(DEFAULT_SEQUENCE_LENGTH, engine.card.max_sequence_length)
    batches = [random_batch(engine.card, size, length, args.random_seed) for size in args.batch_size or [1]]
    for batch in batches:  # a size that does not fit ends the run before the first is timed
        engine.check(batch)

    timings = []
    for batch in batches:
        print(f"Running {args.iterations} iterations with Batch Size: {batch.batch_size}", flush=True)
        timings.append(time_batch(engine, batch, args.iterations, args.warm_up_runs, args.duration))
        print(timings[-1].report(), flush=True)
    if args.json:
        write_json(args.json, as_json(engine, timings))
    if args.plot:
        plot(timings, f"{engine.card.backend}, {'+'.join(engine.card.precision)}, length {length}", args.plot)


if __name__ == "__main__":
    cli.run(main)
