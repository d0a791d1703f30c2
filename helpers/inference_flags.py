"""The command line of inference.py, inference_varseqlen.py and inference_c.py. Standard library only."""

from pathlib import Path

from helpers import cli
from helpers.answer_options import AnswerOptions
from helpers.errors import UsageError

DEFAULT_PREDICTIONS = "./predictions.json"

#: What a file of answers is called.
ROW_SUFFIXES = (".jsonl", ".csv")

#: The ways to ask for many answers.
_WAYS = {"-sq": "a SQuAD file (-sq)", "--rows": "a table of questions (--rows)"}

#: What -b does, by the layout that a script serves; None: either.
_BATCH_SIZE_HELP = {
    "padded": "how many windows run at once (default: 1)",
    "packed": "run at once as many windows as have the tokens of N full ones (default: the engine's largest)",
    None: "how many windows run at once (default: 1, of a packed engine its largest)",
}


_DOC_STRIDE_HELP = (
    "tokens from one window of a long passage to the next; the time it takes goes as its tokens × window / N: at windows "
    "of 384 tokens each is computed 3 times at 128, twice at 192, which costs 1 to 3 points of F1"
)


def add_inference_arguments(parser: cli.Parser, layout: str | None) -> None:
    """All flags but --verbose of inference.py ("padded"), inference_varseqlen.py ("packed"), inference_c.py (None)."""
    cli.add_engine(parser)
    _add_questions(parser.add_argument_group("one passage (without -p it is asked for, or read from a pipe)"))
    _add_tables(parser.add_argument_group("many questions"))
    _add_options(parser.add_argument_group("how"), layout)


def _add_questions(group) -> None:
    words, file = {"nargs": "+", "metavar": "WORD"}, {"metavar": "FILE"}
    for *flags, value, text in (
        ("-p", "--passage", words, "passage to look for answers in"),
        ("-pf", "--passage-file", file, "file with the passage, UTF-8; -: all of stdin"),
        ("-q", "--question", words, "question about the passage"),
        ("-qf", "--question-file", file, "file with questions, UTF-8, one a line"),
        ("--json", file, "write a JSON object a line for each question; -: to stdout, and nothing else there"),
    ):
        group.add_argument(*flags, **value, help=text)
    top = "answers to show or to write, the best first; also of --rows (default: 1)"
    group.add_argument("--top-k", type=cli.positive_int, metavar="K", help=top)


def _add_tables(group) -> None:
    file = {"metavar": "FILE"}
    for *flags, value, text in (
        (
            "--rows",
            file,
            "table of questions, .jsonl or .csv, with question, context and, where there is one, id; -: JSON lines "
            "from stdin",
        ),
        ("-sq", "--squad-json", file, "SQuAD v1.1 or v2.0 file: answer all its questions"),
        (
            "-o",
            "--output-prediction-file",
            file,
            f"answers to --rows, .jsonl or .csv (-: JSON lines to stdout), or to -sq (default: {DEFAULT_PREDICTIONS}); "
            "FILE.partial until it is whole, from where the same command goes on",
        ),
        ("--n-best-output", file, "-sq: the n best answers to each question"),
        ("--null-odds-output", file, "-sq: score of no answer less that of the best, per question"),
    ):
        group.add_argument(*flags, **value, help=text)
    fresh = "begin again, even where a killed run has left a FILE.partial to go on with"
    group.add_argument("--fresh", action="store_true", help=fresh)


def add_answer_options(group, layout: str | None) -> None:
    """The fields of AnswerOptions; `layout` as in `add_inference_arguments`."""
    for *flags, default, text in (
        ("-s", "--sequence-length", None, "tokens in a window (default: the engine's longest)"),
        ("-b", "--batch-size", None, _BATCH_SIZE_HELP[layout]),
        ("--max-query-length", AnswerOptions.max_query_length, "tokens of the question that are read"),
        ("--max-answer-length", AnswerOptions.max_answer_length, "longest answer in tokens"),
        ("--n-best-size", AnswerOptions.n_best_size, "answers to weigh against each other"),
        ("--doc-stride", AnswerOptions.doc_stride, _DOC_STRIDE_HELP),
    ):
        group.add_argument(*flags, type=cli.positive_int, default=default, metavar="N", help=text)
    group.add_argument(
        "--null-score-diff-threshold",
        type=cli.finite_float,
        metavar="X",
        help='answer nothing ("") where the null odds, the score of no answer less that of the best, are above X '
        "(default: 0 for SQuAD v2.0 files, else every question gets an answer)",
    )


def _add_options(group, layout: str | None) -> None:
    add_answer_options(group, layout)
    tokenizer = "vocab.txt, tokenizer.json or the model's folder (default: the engine's tokenizer)"
    group.add_argument("-v", "--vocab-file", metavar="FILE", help=tokenizer)
    cli.add_trust(group)
    cased = "keep upper case and accents (default: as the tokenizer says)"
    group.add_argument("--cased", action="store_true", help=cased)


def check_inference_arguments(args) -> None:
    """Say what contradicts itself or has no effect. Raises UsageError."""
    single = {"-p": args.passage, "-pf": args.passage_file, "-q": args.question, "-qf": args.question_file}
    for first, second, what in (("-p", "-pf", "passage"), ("-q", "-qf", "question")):
        if single[first] is not None and single[second] is not None:
            raise UsageError(f"give the {what} with {first} or with {second}, not both")
    if args.squad_json and args.rows:
        raise UsageError("give a SQuAD file (-sq) or a table of questions (--rows), not both")
    if args.passage_file == args.question_file == "-":
        raise UsageError("passage and questions can't both come by stdin (-pf -, -qf -)")
    asks = "-sq" if args.squad_json else "--rows" if args.rows else "-p"
    _check_effect(args, asks, single)
    if args.top_k and args.top_k > args.n_best_size:
        raise UsageError(f"--top-k {args.top_k} is over the {args.n_best_size} answers that are weighed: --n-best-size")
    if args.rows:
        _check_rows(args)


def _check_effect(args, asks: str, single: dict) -> None:
    """Raises UsageError for flags that have no effect on what is asked."""
    only = {"--n-best-output": ("-sq", args.n_best_output), "--null-odds-output": ("-sq", args.null_odds_output)}
    only |= {"-o": ("-sq --rows", args.output_prediction_file), "--fresh": ("-sq --rows", args.fresh)}
    only |= {flag: ("-p", value) for flag, value in single.items()}
    only |= {"--json": ("-p", args.json), "--top-k": ("-p --rows", args.top_k)}
    for flag, (ways, value) in only.items():
        if value is not None and value is not False and asks not in ways.split():
            if asks == "-p":
                raise UsageError(f"{flag} needs {' or '.join(_WAYS[way] for way in ways.split())}")
            raise UsageError(f"{flag} has no effect on {_WAYS[asks]}: leave it out")


def _check_rows(args) -> None:
    output = args.output_prediction_file
    if not output:
        raise UsageError("--rows needs -o FILE.jsonl or FILE.csv for the answers (-o -: JSON lines to stdout)")
    for flag, path in (("--rows", args.rows), ("-o", output)):
        if path != "-" and Path(path).suffix.lower() not in ROW_SUFFIXES:
            raise UsageError(f"{flag} {path}: the name must end in .jsonl or .csv, which says what is in it")
    if args.fresh and output == "-":
        raise UsageError("--fresh has no effect here: stdout keeps nothing to go on with")
