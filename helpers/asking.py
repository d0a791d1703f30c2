"""What the inference scripts do: questions about one passage, given or typed in; helpers/asking_many.py has the others."""

import contextlib
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator

from tqdm import tqdm

from helpers import cli
from helpers.answer_options import AnswerOptions
from helpers.answerer import Answerer, Reply
from helpers.asking_many import ControlTokens, answer_rows, answer_squad_file
from helpers.backends import load_engine
from helpers.backends.base import Engine
from helpers.data_processing import Answer
from helpers.engine_card import EngineCard
from helpers.errors import DemoBertError, UsageError, harmless
from helpers.files import read_stream, read_text
from helpers.inference_flags import DEFAULT_PREDICTIONS
from helpers.journal import Journal
from helpers.outputs import atomic_write, check_outputs, input_files
from helpers.rows import json_line

RULE = "-" * 24

#: Of what is typed, a program without readline gets so many bytes a line from the terminal (N_TTY of Linux).
_LONGEST_LINE = 4095

#: A question that takes longer gets a progress bar.
_SECONDS_WITHOUT_A_BAR = 1.0


def answer(args, layout: str | None, load: Callable[..., Engine] = load_engine) -> int:
    """Load the engine, which must have `layout`, and answer what `args` ask for; the exit code. Raises DemoBertError.

    `load` takes the arguments of `helpers.backends.load_engine`.
    """
    _check_files(args)
    many = bool(args.squad_json or args.rows)
    options = AnswerOptions(**{name: getattr(args, name) for name in AnswerOptions.__dataclass_fields__})
    files = {"vocab_file": args.vocab_file, "cased": args.cased} | cli.trust_of(args)
    with Answerer.open(
        args.engine, options, layout=layout, throughput=many, **files, say=cli.note, load=load
    ) as answerer:
        if args.verbose:
            cli.note(answerer.engine.describe())
        if args.squad_json:
            return answer_squad_file(args, answerer)
        if args.rows:
            return answer_rows(args, answerer)
        return answer_questions(args, answerer)


def _check_files(args) -> None:
    """Say before the engine is loaded which output can't be written, or would replace an input. Raises DemoBertError."""
    if args.squad_json:
        args.output_prediction_file = args.output_prediction_file or DEFAULT_PREDICTIONS
    outputs = {
        "--output-prediction-file": args.output_prediction_file,
        "--n-best-output": args.n_best_output,
        "--null-odds-output": args.null_odds_output,
        "--json": args.json,
    }
    outputs = {flag: path for flag, path in outputs.items() if path not in (None, "-")}
    if path := outputs.get("--output-prediction-file"):
        outputs |= zip(("the partial output", "its state"), Journal.paths_for(path))
    asked = args.squad_json, args.rows, args.passage_file, args.question_file
    model = input_files(args.vocab_file) + input_files(args.config_dir)
    check_outputs(outputs, (*EngineCard.set_of(args.engine), *model, *(path for path in asked if path != "-")))


def answer_questions(args, answerer: Answerer) -> int:
    """Answer the questions given, or, where none is, those typed in until `exit`, `quit` or the end of input.

    What --json names is written when all are answered, or the conversation is over.
    """
    given = _given_text(args.question, args.question_file, "question")
    passage = _passage(args, given)
    if passage is None:
        return 0
    lines = re.split(r"\r\n|\r|\n", given) if given is not None and args.question_file else [given]
    questions = _typed_questions() if given is None else [line for line in lines if line.strip()] or [""]
    interrupt = None
    with _json_output(args.json) as write:
        try:
            _answer_each(args, answerer, passage, questions, write)
        except KeyboardInterrupt as error:
            if given is not None:
                raise
            interrupt = error
    if interrupt:  # it ended the conversation, whose answers are written now
        raise interrupt
    return 0


def _answer_each(args, answerer: Answerer, passage: str, questions: Iterable[str], write) -> None:
    is_first, control_tokens = True, ControlTokens(answerer.tokenizer)
    control_tokens.look(passage)
    for question in questions:
        control_tokens.look(question)
        try:
            reply = _ask(answerer, passage, question, args.top_k or 1)
        except DemoBertError as error:
            if isinstance(questions, list):
                raise
            cli.note(cli.one_line(error))  # a question that can't be answered does not end the conversation
            continue
        write(reply.to_dict())
        if args.json != "-":
            if is_first:
                print(f"Passage: {_for_a_screen(passage)}")
            _print_reply(reply)
            is_first = False


def _ask(answerer: Answerer, passage: str, question: str, top_k: int) -> Reply:
    with tqdm(unit="window", leave=False, delay=_SECONDS_WITHOUT_A_BAR, disable=None) as progress:

        def on_progress(done: int, total: int) -> None:
            progress.total = total
            progress.update(done - progress.n)

        return answerer.ask(passage, question, top_k, on_progress=on_progress)


def _print_reply(reply: Reply) -> None:
    print(f"Question: {harmless(reply.question)}")
    print(RULE)
    print(f"Running inference in {reply.windows / reply.seconds:.3f} Sentences/Sec")
    print(RULE)
    print(f"Answer: {_shown(reply.answer)}")
    print(f"With probability: {reply.answer.probability * 100:.3f}", flush=True)
    others = [answer for answer in reply.n_best if answer != reply.answer]
    for answer in others[: len(reply.n_best) - 1]:
        print(f"Runner-up: {_shown(answer)}, {answer.probability * 100:.3f}", flush=True)


def _shown(answer: Answer) -> str:
    return f"'{harmless(answer.text)}'" if answer.text else "(none)"


def _for_a_screen(text: str) -> str:
    """`text`, its middle left out where it would fill more than a screen."""
    size = shutil.get_terminal_size()
    room = max(size.columns * size.lines, 200)
    if len(text) > room:
        half = room // 2
        text = f"{text[:half]} … ({len(text) - 2 * half} characters) … {text[-half:]}"
    return harmless(text)


@contextlib.contextmanager
def _json_output(path: str | None) -> Iterator[Callable[[dict], object]]:
    """A function that writes an object as a line of the file that --json names, if it names one."""
    if path is None:
        yield lambda values: None
    elif path == "-":
        yield lambda values: print(json_line(values).decode("utf-8"), end="", flush=True)
    else:
        with atomic_write(path) as file:
            yield lambda values: file.write(json_line(values))


def _passage(args, question: str | None) -> str | None:
    """The passage given, piped in or typed in; None: the end of input came first. Raises DemoBertError."""
    is_named = args.passage is not None or args.passage_file is not None
    if args.passage_file != "-" and (is_named or sys.stdin.isatty()):
        return _given_text(args.passage, args.passage_file, "passage") if is_named else _typed_passage()
    if question is None or args.question_file == "-":
        raise UsageError("what is piped in is the passage: give the question with -q or -qf, or the passage with -p")
    return read_stream(sys.stdin.buffer, "passage")


def _typed_passage() -> str | None:
    lines: list[str] = []
    while (line := _prompt("" if lines else "Passage (a blank line ends it): ")) is not None:
        if line.strip():
            lines.append(line)
        elif lines:
            break
    return "\n".join(lines) or None


def _typed_questions() -> Iterator[str]:
    while (question := _prompt("Question (exit or quit ends): ")) is not None:
        if question.strip().lower() in ("exit", "quit"):
            return
        yield question


def _given_text(words, path, what: str) -> str | None:
    if path == "-":
        return read_stream(sys.stdin.buffer, what)
    if path is not None:
        return read_text(path, f"{what} file", newline="")  # answers' places count each character of it
    return None if words is None else " ".join(words)


def _prompt(text: str) -> str | None:
    try:
        return _typed_line(text) if sys.stdin.isatty() else input()  # what is piped in needs no prompt
    except EOFError:
        return None
    except UnicodeDecodeError as error:
        raise DemoBertError("what was typed is not UTF-8 text") from error


def _typed_line(text: str) -> str:
    """A line from the terminal, after the prompt `text`. Raises EOFError, DemoBertError for a line that was cut."""
    with contextlib.suppress(ImportError):  # Windows has none
        import readline  # with it lines may be longer than _LONGEST_LINE

        # Line ends and tabs of what is pasted are text, not one block to confirm, not a wish for file names.
        readline.parse_and_bind("set enable-bracketed-paste off")
        readline.parse_and_bind("tab: self-insert")
    if sys.stdout.isatty():
        return input(text)
    print(text, end="", file=sys.stderr, flush=True)  # stdout is somebody else's, and readline not used
    line = input()
    if len(os.fsencode(line)) >= _LONGEST_LINE:
        raise DemoBertError(f"the terminal cuts lines at {_LONGEST_LINE} bytes: give such text with -pf or -p")
    return line
