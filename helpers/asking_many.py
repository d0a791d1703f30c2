"""What the inference scripts do for many questions: a table of them, a SQuAD file; a run that was killed goes on."""

import hashlib
import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from itertools import islice

from tqdm import tqdm

from helpers import cli
from helpers.answerer import Answerer, Row
from helpers.errors import DemoBertError
from helpers.files import sha256_of
from helpers.journal import Journal, Stdout
from helpers.outputs import write_json
from helpers.rows import CsvLines, JsonLines, QuestionRow, RowsFile
from helpers.squad import read_squad
from helpers.tokenization import Tokenizer


def answer_rows(args, answerer: Answerer) -> int:
    """Answer a table of questions row by row; the exit code is 1 where one failed. Raises DemoBertError."""
    rows, top_k, output = RowsFile(args.rows, cli.note), args.top_k or 1, args.output_prediction_file
    form = CsvLines(rows.has_ids, top_k, rows.dialect) if output.lower().endswith(".csv") else JsonLines()
    facts = _facts(args, answerer) | {"output": [type(form).__name__, rows.has_ids, rows.dialect, top_k]}
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
    say = cli.note if output == "-" else print
    say(f"{summary}, {journal.failed} failed: {output}")
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
        self._rows, self._control_tokens = iter(rows), ControlTokens(answerer.tokenizer)
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


class ControlTokens:
    """Says, once, where a text has the spelling of a token that sets texts apart."""

    def __init__(self, tokenizer: Tokenizer, say: Callable[[str], object] = cli.note):
        self._tokens, self._say = tokenizer.control_tokens, say

    def look(self, *texts: str) -> None:
        if found := next((token for text in texts for token in self._tokens if token in text), None):
            self._say(f"Note: {cli.one_line(found)} in a text is read as text, not as the model's own token")
            self._tokens = []
