#!/usr/bin/env python3
"""Time a packed engine: latency percentiles, sentences and tokens per second for each batch size."""

from helpers import cli


def parse(arguments):
    parser = cli.Parser("Time a packed BERT engine on random input: full sequences, or the lengths of real questions.")
    cli.add_engine(parser)
    cli.add_benchmark_arguments(parser)
    cli.add_trust(parser)
    parser.add_argument(
        "--lengths-from",
        metavar="FILE",
        help="sequences as long as the windows of this SQuAD file's questions, cut at -s (default: the engine's longest)",
    )
    parser.add_argument(
        "-v", "--vocab-file", metavar="FILE", help="vocabulary for --lengths-from (default: the engine's)"
    )
    cli.add_verbose(parser)
    return parser.parse_args(arguments)


def main(arguments) -> None:
    args = parse(arguments)
    from helpers import benchmark
    from helpers.answer_options import AnswerOptions
    from helpers.answerer import Answerer, engine_tokenizer
    from helpers.backends import load_engine
    from helpers.squad import read_squad

    benchmark.check_benchmark_outputs(args)
    data = read_squad(args.lengths_from) if args.lengths_from else None
    if args.vocab_file and data is None:
        cli.note("Note: --vocab-file has no effect without --lengths-from: random ids are timed")
    engine = load_engine(args.engine, "packed", say=cli.note, **cli.trust_of(args))
    cli.note(engine.describe())
    card, seed, sizes = engine.card, args.random_seed, benchmark.asked_batch_sizes(args, engine.card)
    if data is None:
        length = benchmark.default_sequence_length(args, card)
        windows = [length]
    else:
        options = AnswerOptions(sequence_length=args.sequence_length)
        answerer = Answerer(engine, engine_tokenizer(args.engine, card, args.vocab_file, say=cli.note), options)
        length, windows = answerer.options.sequence_length, answerer.window_lengths(data)
        cli.note(f"{len(windows)} windows of at most {length} tokens, {sum(windows) / len(windows):.0f} on average")
    batches = [
        benchmark.random_packed_batch(card, benchmark.spread_lengths(windows, size, seed), seed) for size in sizes
    ]
    benchmark.time_batches(args, engine, batches, length)


if __name__ == "__main__":
    cli.run(main)
