"""The ways that the inference scripts ask: once, at the prompt, for a table of questions, for a SQuAD file."""

import contextlib
import hashlib
import json
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from itertools import islice

from tqdm import tqdm

from helpers import cli
from helpers.answer_options import AnswerOptions
from helpers.answerer import Answerer, Reply, Row
from helpers.backends import load_engine
from helpers.backends.base import Engine
from helpers.data_processing import Answer
from helpers.engine_card import EngineCard
from helpers.errors import DemoBertError, UsageError, harmless
from helpers.files import atomic_write, check_outputs, read_stream, read_text, remove_temporaries, sha256_of, write_json
from helpers.inference_flags import DEFAULT_PREDICTIONS
from helpers.journal import Journal, Stdout
from helpers.rows import CsvLines, JsonLines, QuestionRow, RowsFile, json_line
from helpers.squad import read_squad
from helpers.tokenization import Tokenizer

RULE = "-" * 24

#: A question that takes longer gets a progress bar.
_SECONDS_WITHOUT_A_BAR = 1.0


def answer(args, layout: str | None, load: Callable[..., Engine] = load_engine) -> int:
    """Load the engine, which must have `layout`, and answer what `args` ask for; the exit code. Raises DemoBertError.

    `load` takes the arguments of `helpers.backends.load_engine`.
    """
    _check_files(args)
    many = bool(args.squad_json or args.rows)
    options = AnswerOptions(**{name: getattr(args, name) for name in AnswerOptions.__dataclass_fields__})
    tokenizer = {"vocab_file": args.vocab_file, "cased": args.cased}
    with Answerer.open(
        args.engine, options, layout=layout, throughput=many, **tokenizer, say=cli.note, load=load
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
    engine = args.engine, EngineCard.path_for(args.engine), EngineCard.tokenizer_path_for(args.engine)
    asked = args.squad_json, args.rows, args.passage_file, args.question_file
    check_outputs(outputs, (*engine, args.vocab_file, *(path for path in asked if path != "-")))


def answer_questions(args, answerer: Answerer) -> int:
    """Answer the questions given, or, where none is, those typed in until `exit`, `quit` or the end of input.

    What --json names is written when all are answered, or the conversation is over.
    """
    given = _given_text(args.question, args.question_file, "question")
    passage = _passage(args, given)
    if passage is None:
        return 0
    lines = given.splitlines() if given is not None and args.question_file else [given]
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
    is_first, control_tokens = True, _ControlTokens(answerer.tokenizer)
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
    for number, answer in enumerate(others[: len(reply.n_best) - 1], 2):
        print(f"{number}. {_shown(answer)}, probability {answer.probability * 100:.3f}", flush=True)


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
        return input(text if sys.stdin.isatty() else "")  # what is piped in needs no prompt among the answers
    except EOFError:
        return None
    except UnicodeDecodeError as error:
        raise DemoBertError("what was typed is not UTF-8 text") from error


def answer_rows(args, answerer: Answerer) -> int:
    """Answer a table of questions row by row; the exit code is 1 where one failed. Raises DemoBertError."""
    rows, top_k, output = RowsFile(args.rows, cli.note), args.top_k or 1, args.output_prediction_file
    form = CsvLines(rows.has_ids, top_k) if output.lower().endswith(".csv") else JsonLines()
    facts = _facts(args, answerer) | {"output": [type(form).__name__, rows.has_ids, top_k]}
    with Stdout() if output == "-" else Journal(output, facts, args.fresh) as journal:
        if journal.published:
            _ReadRows(rows, answerer).skip(journal)
            journal.discard()
            cli.note(f"{output} was whole when the last run was killed, {journal.failed} failed")
            return int(journal.failed > 0)
        if journal.is_empty:
            journal.append(form.header, 0, 0, "")
        summary = _fill(journal, answerer, rows, top_k, form.line, rows.estimated_total)
        journal.publish()
    print(f"{summary}, {journal.failed} failed: {output}", file=sys.stderr if output == "-" else sys.stdout)
    return int(journal.failed > 0)


def answer_squad_file(args, answerer: Answerer) -> int:
    """Answer a whole SQuAD file and write the predictions, each file whole or not at all. Raises DemoBertError."""
    data = read_squad(args.squad_json)
    answerer = answerer.for_squad(data)
    rows = (QuestionRow(example.question_id, example.question, example.passage) for example in data.examples)
    with Journal(args.output_prediction_file, _facts(args, answerer), args.fresh) as journal:
        summary = _fill(journal, answerer, rows, None, JsonLines().line, lambda read: len(data.examples))
        _write_predictions(args, [json.loads(line) for line in journal.lines()])
        failed = f", {journal.failed} failed" if journal.failed else ""
        journal.discard()
    print(f"{summary}{failed}: {args.output_prediction_file}")
    return 0


def _write_predictions(args, results: list[dict]) -> None:
    """What -sq's outputs say of each question: "" and no odds either way for one that could not be asked."""
    for result in results:
        if "error" in result:
            cli.note(f'Note: question {cli.one_line(result["id"])} is predicted "": {result["error"]}')
    for path in filter(None, (args.output_prediction_file, args.n_best_output, args.null_odds_output)):
        remove_temporaries(path)
    write_json(args.output_prediction_file, {result["id"]: result.get("answer", "") for result in results})
    if args.n_best_output:
        write_json(args.n_best_output, {result["id"]: result.get("n_best", []) for result in results})
    if args.null_odds_output:
        write_json(args.null_odds_output, {result["id"]: result.get("null_odds", 0.0) for result in results})


def _facts(args, answerer: Answerer) -> dict:
    """What answers follow from, but for the questions."""
    engine = answerer.engine.card.engine_sha256 or sha256_of(args.engine)
    return {"engine": engine, "tokenizer": answerer.tokenizer.sha256, "options": asdict(answerer.options)}


def _fill(journal, answerer: Answerer, rows: Iterable[QuestionRow], top_k, line, total) -> str:
    """Answer the rows that are not in the journal yet, in their order; what there is to say of it.

    `line(row, reply)` gives an entry, `total(read)` how many rows there are in all. Raises DemoBertError.
    """
    read, before, start = _ReadRows(rows, answerer), journal.entries, time.perf_counter()
    read.skip(journal)
    with tqdm(initial=before, unit="question", disable=None, total=total(before)) as progress:

        def on_progress(done: int) -> None:
            progress.total = total(before + read.count)
            progress.update(before + done - progress.n)

        for replies in answerer.ask_in_chunks(read.texts(), top_k, on_progress):
            some = [read.waiting.popleft() for _ in replies]
            data = b"".join(line(row, reply) for (row, _), reply in zip(some, replies))
            failed = sum(isinstance(reply, DemoBertError) for reply in replies)
            journal.append(data, len(replies), failed, some[-1][1])
    seconds, done = time.perf_counter() - start, journal.entries - before
    earlier = f" ({before} of them in runs before this one)" if before else ""
    rate = f"{seconds:.1f} s, {done / seconds:.1f} questions per second"
    return f"Answered {journal.entries - journal.failed} questions{earlier} in {rate}"


class _ReadRows:
    """The rows, as they are read: `waiting` holds those that have no answer yet, each with the digest of all so far."""

    def __init__(self, rows: Iterable[QuestionRow], answerer: Answerer):
        self._rows, self._control_tokens = iter(rows), _ControlTokens(answerer.tokenizer)
        self._digest = hashlib.sha256()
        self.waiting: deque = deque()
        self.count = 0

    def skip(self, journal) -> None:
        """Leave out those that the journal holds. Raises DemoBertError where they are others."""
        for row in islice(self._rows, None if journal.published else journal.entries):
            self._take(row)
        if self.count != journal.entries or (journal.entries and self._digest.hexdigest() != journal.digest):
            raise DemoBertError(
                f"{journal.path} was begun with other questions: --fresh throws it away and begins again"
            )
        if journal.entries and not journal.published:
            cli.note(f"{journal.path}: going on after question {journal.entries} (--fresh begins again)")
        self.count = 0

    def texts(self) -> Iterator[Row]:
        """The rest, as `Answerer.ask_in_chunks` takes them."""
        for row in self._rows:
            self._take(row)
            self.waiting.append((row, self._digest.hexdigest()))
            if row.error is None:
                self._control_tokens.look(row.passage, row.question)
            yield row.error or (row.passage, row.question)

    def _take(self, row: QuestionRow) -> None:
        texts = repr((row.question_id, row.question, row.passage, str(row.error)))
        self._digest.update(texts.encode("utf-8", "surrogatepass"))
        self.count += 1


class _ControlTokens:
    """Says, once, where a text has the spelling of a token that sets texts apart."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokens = tokenizer.control_tokens

    def look(self, *texts: str) -> None:
        if found := next((token for text in texts for token in self._tokens if token in text), None):
            cli.note(f"Note: {cli.one_line(found)} in a text is read as text, not as the model's own token")
            self._tokens = []
