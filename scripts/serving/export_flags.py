"""What an engine is served as: the flags that export_triton.py and serve.sh share. Standard library only."""

import re

from helpers import cli
from helpers.answer_options import AnswerOptions
from helpers.errors import UsageError

#: Of models in Triton, as far as its Python backend takes them for the names of its processes, and folders take them.
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,60}")

#: Fields of AnswerOptions that are flags here, and what they are for.
_OPTIONS = {
    "-s": ("sequence_length", "tokens in a window (default: the engine's longest)"),
    "-b": ("batch_size", "windows that the engine runs at once (default: 1 on a CPU, else the engine's largest)"),
    "--max-query-length": ("max_query_length", "tokens of a question that are read"),
    "--max-answer-length": ("max_answer_length", "longest answer in tokens"),
    "--n-best-size": ("n_best_size", "answers to weigh against each other, and the most that top_k may ask for"),
    "--doc-stride": ("doc_stride", "tokens from one window of a long passage to the next"),
}


#: Flags of how an engine is served that take a number, and the largest: Triton keeps some in 32 bits.
_NUMBERS = ("instances", "max_batch_size", "preferred_batch_size", "max_queue_delay", "max_queue_size", "max_passage")
_LARGEST = 2**31 - 1


def add_export_arguments(parser: cli.Parser) -> None:
    """The flags of how an engine is served; `export_arguments` gives them back as words."""
    served = parser.add_argument_group("how it is served")
    number = {"type": cli.positive_int, "metavar": "N"}
    per_device = (
        "engines: on a CPU in all, which divide its cores among them, else on each GPU (default: 2 on a CPU, where one "
        "fills the cores while the other's batch runs out; 1 on a GPU, and with --latency)"
    )
    served.add_argument("--instances", **number, help=per_device)
    together = "questions that are answered together, and that one request may have"
    served.add_argument("--max-batch-size", **number, default=32, help=together)
    taken = (
        "questions that an instance takes of those that wait, where there are more (default: 4 on a CPU, which gains "
        "nothing by more at once, and whose other instances would go short; on a GPU --max-batch-size)"
    )
    served.add_argument("--preferred-batch-size", **number, help=taken)
    delay = "microseconds to wait for more of them; what comes while the engine works is answered together anyway"
    served.add_argument("--max-queue-delay", type=cli.non_negative_int, metavar="US", default=0, help=delay)
    waiting = "requests that may wait; those that come then are refused at once (status 503)"
    served.add_argument("--max-queue-size", **number, default=128, help=waiting)
    longest = (
        "characters of the longest passage: a longer one is refused (status 400), since all others would wait for it"
    )
    served.add_argument("--max-passage", **number, default=50_000, help=longest)
    latency = "prepare for the time that one question takes, not for the rate of many"
    served.add_argument("--latency", action="store_true", help=latency)
    answers = parser.add_argument_group("how text is cut and answers are chosen, as by inference.py")
    for flag, (name, text) in _OPTIONS.items():
        long = [] if flag.startswith("--") else ["--" + name.replace("_", "-")]
        answers.add_argument(flag, *long, **number, default=getattr(AnswerOptions, name), help=text)
    none = 'answer nothing ("") where the score of no answer less that of the best is above X'
    answers.add_argument("--null-score-diff-threshold", type=cli.finite_float, metavar="X", help=none)


def export_arguments(args) -> list[str]:
    """The words of a command line that give export_triton.py the same values."""
    names = [*_NUMBERS, *(name for name, _ in _OPTIONS.values()), "null_score_diff_threshold"]
    values = {name: getattr(args, name) for name in names}
    words = [f"--{name.replace('_', '-')}={value}" for name, value in values.items() if value is not None]
    return words + ["--latency"] * args.latency


def answer_options(args) -> AnswerOptions:
    """Raises UsageError for values that make no sense."""
    for name in _NUMBERS:
        if (getattr(args, name) or 0) > _LARGEST:
            raise UsageError(f"--{name.replace('_', '-')} {getattr(args, name)} is more than Triton can be told")
    names = [name for name, _ in _OPTIONS.values()]
    return AnswerOptions(
        **{name: getattr(args, name) for name in names}, null_score_diff_threshold=args.null_score_diff_threshold
    )


def check_name(name: str) -> None:
    """Raises UsageError for what can't be part of the models' names."""
    if not _NAME.fullmatch(name):
        raise UsageError(f"--name {name!r}: a letter, then letters, digits, _ and -, 61 characters at most")
