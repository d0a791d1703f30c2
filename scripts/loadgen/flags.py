"""The command line of scripts/mlperf.py. Standard library only."""

from helpers import cli
from helpers.answer_options import AnswerOptions
from helpers.errors import UsageError

#: LoadGen's names, in the order in which they are run: the first gives Server its bound, the second its rates.
SCENARIOS = ("SingleStream", "Offline", "Server")

MODES = ("PerformanceOnly", "AccuracyOnly")

#: Shares of the float engine's F1 that MLPerf asks for, in percent.
ACCURACY_TARGETS = (99.0, 99.9)

_CUT = {
    "-s": ("sequence_length", "tokens in a window, at most (default: the engine's longest)"),
    "-b": ("batch_size", "windows that run at once, at most (default: 1 on a CPU, else the engine's largest)"),
    "--max-query-length": ("max_query_length", "tokens of a question that are read"),
    "--doc-stride": ("doc_stride", "tokens from one window of a long passage to the next"),
}


def add_arguments(parser: cli.Parser) -> None:
    cli.add_engine(parser)
    samples = parser.add_argument_group("samples: windows, tokenized before anything is timed")
    samples.add_argument("--squad", metavar="FILE", help="those of this SQuAD file's questions, v1.1 or v2.0")
    lengths = (
        "random tokens, as many as these: a text file of numbers, one for each window, or a SQuAD file, whose windows "
        "are counted. There is no accuracy then"
    )
    samples.add_argument("--lengths", metavar="FILE", help=lengths)
    for flag, (name, text) in _CUT.items():
        long = [] if flag.startswith("--") else ["--" + name.replace("_", "-")]
        default = getattr(AnswerOptions, name)
        samples.add_argument(flag, *long, type=cli.positive_int, metavar="N", default=default, help=text)
    vocabulary = "vocab.txt, tokenizer.json or the model's folder (default: the engine's tokenizer)"
    samples.add_argument("-v", "--vocab-file", metavar="FILE", help=vocabulary)
    cli.add_trust(samples)
    _add_tests(parser.add_argument_group("tests"))
    _add_server(parser.add_argument_group("the Server scenario"))
    _add_accuracy(parser.add_argument_group("accuracy"))
    outputs = parser.add_argument_group("outputs")
    folder = "folder for LoadGen's logs, SCENARIO/performance/ and SCENARIO/accuracy/; it must be new or empty"
    outputs.add_argument("-o", "--output", required=True, metavar="FOLDER", help=folder)
    outputs.add_argument("--json", metavar="FILE", help="write the table's figures as JSON")


def _add_tests(group) -> None:
    scenario = "repeatable (default: all three)"
    group.add_argument("--scenario", action="append", choices=SCENARIOS, help=scenario)
    mode = "repeatable (default: PerformanceOnly)"
    group.add_argument("--mode", action="append", choices=MODES, help=mode)
    duration = "a performance run takes at least so long; MLPerf's own rule is 600"
    group.add_argument("--min-duration", type=cli.seconds, metavar="S", default=60.0, help=duration)
    queries = "and has at least so many queries (Offline: samples). Default: SingleStream LoadGen's 100, Server 1000, "
    queries += "Offline by MLPerf's rule the number of windows, up to 24576"
    group.add_argument("--min-queries", type=cli.positive_int, metavar="N", help=queries)
    workers = "threads that make batches and wait for the engine (default: as many as it runs at once, at least 2)"
    group.add_argument("--workers", type=cli.positive_int, metavar="N", help=workers)
    for flag, what in (
        ("--qsl-seed", "which windows are loaded"),
        ("--sample-seed", "which window comes when"),
        ("--schedule-seed", "when queries arrive"),
    ):
        text = f"LoadGen's seed of {what} (default: the one that MLPerf has published)"
        group.add_argument(flag, type=cli.non_negative_int, metavar="N", help=text)
    random = "seed of the random tokens of --lengths"
    group.add_argument("-r", "--random-seed", type=cli.non_negative_int, metavar="N", default=12345, help=random)


def _add_server(group) -> None:
    bound = "what 99 of 100 queries have to be answered in (default: --bound-medians times the SingleStream median)"
    group.add_argument("--latency-bound", type=cli.positive_float, metavar="MS", help=bound)
    medians = "see --latency-bound; SingleStream must be among the scenarios for it"
    group.add_argument("--bound-medians", type=cli.positive_float, metavar="X", default=20.0, help=medians)
    rate = "queries a second: run at this rate, without a search"
    group.add_argument("--target-qps", type=cli.positive_float, metavar="Q", help=rate)
    duration = "a run of the search takes so long, at least"
    group.add_argument("--search-duration", type=cli.seconds, metavar="S", default=20.0, help=duration)
    precision = "the search ends when its bracket is this narrow, as a share of the rate"
    group.add_argument("--search-precision", type=cli.share, metavar="X", default=0.02, help=precision)


def _add_accuracy(group) -> None:
    float_engine = "engine of the same model in float, whose F1 is the reference"
    group.add_argument("--float-engine", metavar="FILE", help=float_engine)
    f1 = "the reference itself, in percent"
    group.add_argument("--reference-f1", type=cli.positive_float, metavar="X", help=f1)
    target = "share of the reference, in percent, below which the exit code is 1"
    group.add_argument("--accuracy-target", type=float, choices=ACCURACY_TARGETS, default=99.0, help=target)


def check_arguments(args) -> None:
    """Fill in what was left to a default; say what contradicts itself or has no effect. Raises UsageError."""
    args.scenario = [name for name in SCENARIOS if not args.scenario or name in args.scenario]
    args.mode = [name for name in MODES if name in (args.mode or MODES[:1])]
    if (args.squad is None) == (args.lengths is None):
        raise UsageError("name the samples with --squad or with --lengths")
    accuracy, server = "AccuracyOnly" in args.mode, "Server" in args.scenario
    if accuracy and args.lengths:
        raise UsageError("--mode AccuracyOnly needs questions (--squad): random tokens have no answers")
    if args.float_engine and args.reference_f1:
        raise UsageError("give the reference with --float-engine or with --reference-f1, not both")
    if (args.float_engine or args.reference_f1) and not accuracy:
        raise UsageError("a reference has no effect without --mode AccuracyOnly")
    if not 0 < args.search_precision <= 0.5:
        raise UsageError(f"--search-precision {args.search_precision}: from above 0 to 0.5")
    measured = "PerformanceOnly" in args.mode
    if not server and (args.latency_bound or args.target_qps):
        raise UsageError("--latency-bound and --target-qps are of the Server scenario, which is not asked for")
    if server and measured and not args.latency_bound and "SingleStream" not in args.scenario:
        raise UsageError("Server needs --latency-bound, or --scenario SingleStream before it, whose median gives one")
    if server and not measured and not args.target_qps:
        raise UsageError("Server in AccuracyOnly alone needs --target-qps: nothing tells a rate")
