"""The command line of answer_ray.py. Standard library only."""

from helpers import cli
from helpers.errors import UsageError
from helpers.inference_flags import add_answer_options

#: What a file of answers can be: the end of its name.
FORMATS = ("jsonl", "parquet")

#: Rows that an engine is given at once, at least, where there are as many: seconds of work on a CPU.
PART_ROWS = 512


def add_scaling_arguments(parser: cli.Parser) -> None:
    """All flags but --verbose."""
    cli.add_engine(parser)
    table = (
        "table of questions, .jsonl, .csv or .parquet, with question, context and, where there is one, id; or a folder: "
        "all such files in it"
    )
    parser.add_argument("--rows", required=True, metavar="PATH", help=table)
    folder = "folder for the answers, a file for each table, of the same name; it is made where there is none"
    parser.add_argument("-o", "--output", required=True, metavar="FOLDER", help=folder)
    parser.add_argument("--format", choices=FORMATS, default=FORMATS[0], help="what the answers are written as")
    top = "answers to write, the best first (default: 1)"
    parser.add_argument("--top-k", type=cli.positive_int, default=1, metavar="K", help=top)
    fresh = "answer all files anew, even those that runs before this one have answered"
    parser.add_argument("--fresh", action="store_true", help=fresh)
    add_spread(parser.add_argument_group("how the work is spread"))
    add_answer_options(parser.add_argument_group("how text is cut and answers are chosen, as by inference.py"), None)


def add_spread(group) -> None:
    """The flags that say which engines share the work; they change no answer."""
    number = {"type": cli.positive_int, "metavar": "N"}
    engines = "engines (default: one for each GPU, or, on a CPU, as many as its cores suffice for)"
    group.add_argument("--engines", **number, help=engines)
    cores = "cores that each engine on a CPU has for itself (default: 2, or the cores divided by --engines)"
    group.add_argument("--cores", **number, help=cores)
    part = "rows that an engine is given at once, at least; what a killed engine worked on is asked again"
    group.add_argument("--part-rows", **number, default=PART_ROWS, help=part)
    address = (
        "a Ray cluster that runs already, as HOST:PORT or auto, whose machines have this repository, the engine and the "
        "tables in the same places (default: this machine only)"
    )
    group.add_argument("--address", metavar="ADDRESS", help=address)


def check_scaling_arguments(args) -> None:
    """Say what contradicts itself. Raises UsageError."""
    if args.top_k > args.n_best_size:
        raise UsageError(f"--top-k {args.top_k} is over the {args.n_best_size} answers that are weighed: --n-best-size")
    if args.address is not None and ("://" in args.address or args.address in ("", "local")):
        raise UsageError(
            f"--address {args.address!r}: give HOST:PORT or auto, on a machine of the cluster; leave it out for this "
            "machine only"
        )
