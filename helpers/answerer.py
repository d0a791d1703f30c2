"""An engine and its tokenizer answer questions: the one loop behind the scripts, the notebook and servers.

with Answerer.open("engines/mini.engine") as answerer:
    reply = answerer.ask("The tower was built in 1889.", "When was the tower built?")
    print(reply.text, reply.answer.probability)
"""

import contextlib
import copy
import dataclasses
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

from helpers.answer_options import AnswerOptions
from helpers.backends import load_engine
from helpers.backends.base import Engine
from helpers.batching import Batch, length_sorted_batches, packed_batch, packed_groups, padded_batch
from helpers.data_processing import Answer, AnswerSearch, Feature, Windows, make_features, require_tokens, token_logits
from helpers.engine_card import EngineCard
from helpers.errors import DemoBertError, UsageError
from helpers.squad import SquadData
from helpers.tokenization import TokenizedText, Tokenizer, check_table, check_text, load_tokenizer
from helpers.tokenizer_files import named_tokenizer

#: Questions that are sorted into batches together: so many for each window of a batch, and so many at least. Which ones
#: these are depends on nothing but their number in the input, so that a run that goes on makes the same batches.
_QUESTIONS_PER_ROW, _FEWEST_QUESTIONS = 32, 64

#: So many of these groups are under way at once, while the engine works: the next one's text is read meanwhile.
_CHUNKS_AT_ONCE = 2

#: They are fewer where their passages are longer than this together, in characters.
_CHARACTERS_AT_ONCE = 1 << 21

#: Windows that are in memory at once; a long passage has more.
_WINDOWS_AT_ONCE = 1024


@dataclass(frozen=True)
class TokenLogits:
    """The passage's tokens: places in its text, int64 [n, 2], and start and end logits, float64 [n, 2]."""

    offsets: np.ndarray
    logits: np.ndarray


@dataclass(frozen=True)
class Reply:
    """What one question about one passage got.

    answer      the best one; its text is "" where "no answer" was allowed and chosen
    null_odds   the score of "no answer" less that of the best text (arXiv:1810.04805, section 4.3)
    n_best      the best `top_k` answers, best first
    windows     how many windows the engine was given
    seconds     what it took for them; None where many questions went through it together
    tokens      the passage's tokens and their logits, where they were asked for
    """

    question: str
    answer: Answer
    null_odds: float
    n_best: list[Answer]
    windows: int
    seconds: float | None = None
    tokens: TokenLogits | None = None

    @property
    def text(self) -> str:
        return self.answer.text

    def to_dict(self) -> dict:
        """The reply as JSON holds it."""
        fields = {"question": self.question, "answer": self.text}
        fields |= {name: value for name, value in self.answer.to_dict().items() if name != "text"}
        fields |= {"null_odds": self.null_odds, "windows": self.windows}
        if self.seconds is not None:
            fields["seconds"] = self.seconds
        return fields | {"n_best": [answer.to_dict() for answer in self.n_best]}


#: One question of many: (passage, question), or what is wrong with it, which is passed on in its place.
Row = tuple[str, str] | DemoBertError


class Answerer:
    """Answers questions about passages with one engine, padded or packed.

    Windows run `options.batch_size` at once; in a packed engine, as many as have together no more tokens than
    `options.batch_size` windows of full length. It may be used from several threads: the engine runs for one at a time.
    Raises DemoBertError if the vocabulary is larger than the engine's, UsageError if the engine can't serve the batch
    size or sequence length.
    """

    def __init__(self, engine: Engine, tokenizer: Tokenizer, options: AnswerOptions = AnswerOptions()):
        check_table(tokenizer, engine.card.config)
        self.engine = engine
        self.tokenizer = tokenizer
        self.options = fitted_options(options, engine.card)
        self._lock = threading.Lock()
        self._last_passage: TokenizedText | None = None
        self._closed = threading.Event()

    @classmethod
    def open(
        cls,
        engine,
        options: AnswerOptions = AnswerOptions(),
        *,
        layout: str | None = None,
        throughput: bool = False,
        vocab_file=None,
        cased: bool = False,
        trust_engine: bool = False,
        config_dir=None,
        say: Callable[[str], object] = lambda message: None,
        load: Callable[..., Engine] = load_engine,
    ) -> "Answerer":
        """The engine file `engine` with the tokenizer beside it, or that of `vocab_file`. Raises DemoBertError.

        layout      "padded" or "packed": take no other; None: take either
        throughput  prepare for `ask_many`; without it, for one question at a time
        cased       keep upper case and accents, whatever the tokenizer says (WordPiece)
        trust_engine, config_dir
                    of an engine without its card: see `helpers.backends.load_engine`
        say         is told, in a line each, what the user should know
        load        loads the engine: `helpers.backends.load_engine`, or `helpers.infer_c_engine.load_engine`
        """
        trust = {"trust_engine": trust_engine, "config_dir": config_dir}
        loaded = load(engine, layout, throughput=throughput, say=say, **trust)
        return cls(loaded, engine_tokenizer(engine, loaded.card, vocab_file, cased, say), options)

    def __enter__(self) -> "Answerer":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the engine; nothing can be asked afterwards."""
        self._closed.set()
        with self._lock:  # whoever is giving it a batch has done so first
            self.engine.close()

    def ask(
        self,
        passage: str,
        question: str,
        top_k: int = 1,
        *,
        with_tokens: bool = False,
        on_progress: Callable[[int, int], object] = lambda done, total: None,
    ) -> Reply:
        """The answer to one question.

        `with_tokens` adds `Reply.tokens`. `on_progress(done, total)` is called, in windows, after each batch. Raises
        DemoBertError for text that is empty or not Unicode, UsageError for a `top_k` over `options.n_best_size`.
        """
        self._check_top_k(top_k)
        (asked,) = self._chunk([(passage, question)]).questions
        if isinstance(asked, DemoBertError):
            raise asked
        seconds, seen = 0.0, []
        for batch, members in self._batches([asked]):
            begin = time.perf_counter()
            with self._lock:
                output = self._open_engine().run(batch)
            seconds += time.perf_counter() - begin
            for _, feature, logits in _cut(members, output):
                asked.add(feature, logits)
                if with_tokens:
                    seen.append((feature, logits))
            on_progress(len(asked.windows) - asked.windows_left, len(asked.windows))
        tokens = TokenLogits(asked.passage.offsets, token_logits(*zip(*seen))) if with_tokens else None
        return dataclasses.replace(asked.reply(top_k), seconds=seconds, tokens=tokens)

    def ask_many(self, rows: Iterable[Row], top_k: int = 1) -> Iterator[Reply | DemoBertError]:
        """The answers to many questions, in their order, as they come; `rows` is read as it is needed.

        A question that can't be answered has a DemoBertError in its place. See `ask_in_chunks` for the rest.
        """
        for chunk in self.ask_in_chunks(rows, top_k):
            yield from chunk

    def ask_in_chunks(
        self,
        rows: Iterable[Row],
        top_k: int | None = 1,
        on_progress: Callable[[int], object] = lambda done: None,
    ) -> Iterator[list[Reply | DemoBertError]]:
        """As `ask_many`, some questions at once: those whose windows are sorted into batches together.

        Started again at the first question of a chunk, it makes the same chunks of the same batches. `top_k` None:
        all of the n-best. `on_progress(done)` is called whenever so many questions have been answered in all. Raises
        DemoBertError where the engine fails, UsageError for a `top_k` over `options.n_best_size`.
        """
        self._check_top_k(top_k)
        pipeline, waiting = _Pipeline(self._open_engine, self._lock, on_progress), deque()
        try:
            for chunk in self._chunks(rows):
                waiting.append(chunk)
                pipeline.answered(chunk.without_windows)
                for batch, members in self._batches(chunk.asked):
                    pipeline.start(batch, members)
                if len(waiting) > _CHUNKS_AT_ONCE:
                    pipeline.finish(waiting[0])
                while waiting and waiting[0].finished:
                    yield waiting.popleft().replies(top_k)
            for chunk in waiting:
                pipeline.finish(chunk)
                yield chunk.replies(top_k)
        finally:
            pipeline.drain()

    def answer_squad(self, data: SquadData, top_k: int | None = None) -> dict[str, Reply | DemoBertError]:
        """The answers to a SQuAD file's questions, by question id, in the file's order; see `ask_many`."""
        answerer, rows = self.for_squad(data), squad_rows(data)
        return dict(
            zip((example.question_id for example in data.examples), answerer.ask_many(rows, top_k), strict=True)
        )

    def for_squad(self, data: SquadData) -> "Answerer":
        """This one, but allowing for no answer where the file does, at null odds over 0 unless the options say more."""
        if not data.version_2 or self.options.null_score_diff_threshold is not None:
            return self
        other = copy.copy(self)
        other.options = dataclasses.replace(self.options, null_score_diff_threshold=0.0)
        return other

    def windows(self, data: SquadData) -> Iterator[Feature]:
        """The windows of the file's questions in their order, but for those that can't be asked."""
        return (
            feature for chunk in self._chunks(squad_rows(data)) for asked in chunk.asked for feature in asked.windows
        )

    def window_lengths(self, data: SquadData) -> list[int]:
        """How many tokens each of these windows has."""
        return [feature.length for feature in self.windows(data)]

    def _check_top_k(self, top_k: int | None) -> None:
        if top_k is not None and (type(top_k) is not int or not 1 <= top_k <= self.options.n_best_size):
            raise UsageError(
                f"--top-k {top_k!r}: from 1 to the {self.options.n_best_size} answers that are weighed (--n-best-size)"
            )

    def _open_engine(self) -> Engine:
        if self._closed.is_set():
            raise DemoBertError("the engine was closed: open it again")
        return self.engine

    def _chunks(self, rows: Iterable[Row]) -> Iterator["_Chunk"]:
        rows = iter(rows)
        while some := taken_together(rows, self.options.batch_size):
            yield self._chunk(some)

    def _chunk(self, rows: list[Row]) -> "_Chunk":
        """The rows' texts as tokens, those of a passage once, ready to be cut into windows."""
        rows = [_checked(row) for row in rows]
        sound = [row for row in rows if not isinstance(row, DemoBertError)]
        passages = self._passages([passage for passage, _ in sound])
        texts = list(dict.fromkeys(question for _, question in sound))
        questions = dict(zip(texts, self.tokenizer.encode_batch(texts, "question")))
        return _Chunk(
            [
                row if isinstance(row, DemoBertError) else self._asked(passages[row[0]], questions[row[1]])
                for row in rows
            ]
        )

    def _passages(self, texts: list[str]) -> dict[str, TokenizedText]:
        """Text → tokens. The last one is kept: the next questions are often about it."""
        last = self._last_passage
        known = {last.text: last} if last and last.text in texts else {}
        new = [text for text in dict.fromkeys(texts) if text not in known]
        known |= zip(new, self.tokenizer.encode_batch(new, "passage"))
        if texts:
            self._last_passage = known[texts[-1]]
        return known

    def _asked(self, passage: TokenizedText, question: TokenizedText) -> "_Asked | DemoBertError":
        options = self.options
        try:
            texts = require_tokens(question, "question"), require_tokens(passage, "passage")
            sizes = options.sequence_length, options.max_query_length, options.doc_stride
            return _Asked(question.text, passage, make_features(*texts, self.tokenizer, *sizes), options)
        except DemoBertError as error:
            return error

    def _batches(self, questions: Iterable["_Asked"]) -> Iterator[tuple[Batch, list]]:
        """The questions' windows in batches, alike in length, each with its members: (question, window)."""
        windows = ((asked, feature) for asked in questions for feature in asked.windows)
        while some := list(islice(windows, _WINDOWS_AT_ONCE)):
            for group in self._groups([feature for _, feature in some]):
                members = [some[index] for index in group]
                yield self._batch([feature for _, feature in members]), members

    def _groups(self, features: list[Feature]) -> list[list[int]]:
        if self.engine.card.layout == "padded":
            return length_sorted_batches(features, self.options.batch_size)
        max_tokens = self.options.batch_size * self.options.sequence_length
        return packed_groups(features, max_tokens, self.engine.card.max_batch_size)

    def _batch(self, features: list[Feature]) -> Batch:
        if self.engine.card.layout == "packed":
            return packed_batch(features)
        return padded_batch(features, self.engine.padded_length(max(feature.length for feature in features)))


class _Asked:
    """A question on its way through the engine."""

    def __init__(self, question: str, passage: TokenizedText, windows: Windows, options: AnswerOptions):
        self.question, self.passage, self.windows = question, passage, windows
        self.windows_left = len(windows)
        self._search = AnswerSearch(passage, options)
        self._threshold = options.null_score_diff_threshold

    def add(self, window: Feature, logits: np.ndarray) -> None:
        self._search.add(window, logits)
        self.windows_left -= 1

    def reply(self, top_k: int | None) -> Reply:
        """Raises DemoBertError where no answer can be read."""
        answers = self._search.answers(with_none=self._threshold is not None)
        best = next(answer for answer in answers if answer.text)
        null_odds = sum(self._search.null_logits) - best.score
        if self._threshold is not None and null_odds > self._threshold:
            best = next(answer for answer in answers if not answer.text)
        return Reply(self.question, best, null_odds, answers[:top_k], len(self.windows))


class _Chunk:
    """Questions that are sorted into batches together; those that can't be asked are DemoBertErrors."""

    def __init__(self, questions: list[_Asked | DemoBertError]):
        self.questions = questions
        self.asked = [one for one in questions if isinstance(one, _Asked)]

    @property
    def without_windows(self) -> int:
        """How many of them are answered without the engine."""
        return len(self.questions) - len(self.asked)

    @property
    def finished(self) -> bool:
        return not any(one.windows_left for one in self.asked)

    def replies(self, top_k: int | None) -> list[Reply | DemoBertError]:
        return [_reply(one, top_k) for one in self.questions]


class _Pipeline:
    """Batches in the engine: as many as it works on at once, the oldest finished first."""

    def __init__(self, engine: Callable[[], Engine], lock: threading.Lock, on_progress: Callable[[int], object]):
        self._engine, self._lock, self._on_progress = engine, lock, on_progress
        self._running: deque = deque()
        self._done = 0

    def start(self, batch: Batch, members: list) -> None:
        """Give the engine a batch of `members`, (question, window) each. Raises DemoBertError."""
        if len(self._running) >= self._engine().parallel_runs:
            self._finish_oldest()
        with self._lock:
            self._running.append((self._engine().submit(batch), members))

    def finish(self, chunk: _Chunk) -> None:
        while not chunk.finished:
            self._finish_oldest()

    def answered(self, count: int) -> None:
        self._done += count
        if count:
            self._on_progress(self._done)

    def drain(self) -> None:
        """Wait for what runs, whatever becomes of it."""
        for run, _ in self._running:
            with contextlib.suppress(DemoBertError):
                run.result()

    def _finish_oldest(self) -> None:
        run, members = self._running.popleft()
        for asked, feature, logits in _cut(members, run.result()):
            asked.add(feature, logits)
        self.answered(sum(not asked.windows_left for asked in {id(asked): asked for asked, _ in members}.values()))


def engine_tokenizer(
    engine_path,
    card: EngineCard,
    vocab_file=None,
    cased: bool = False,
    say: Callable[[str], object] = lambda message: None,
) -> Tokenizer:
    """The tokenizer beside the engine, or that of `vocab_file`, which must be the same. Raises DemoBertError."""
    beside = EngineCard.tokenizer_path_for(engine_path)
    if vocab_file is not None:
        tokenizer = named_tokenizer(vocab_file, card, beside, say)
    elif not beside.exists():
        raise DemoBertError(
            f"the engine's tokenizer is not at {beside}: copy it there, or name the model's with -v/--vocab-file"
        )
    elif card.built_without_tokenizer:
        raise DemoBertError(
            f"by its card the engine was built without a tokenizer, and {beside} is somebody else's: name the model's "
            "with -v/--vocab-file"
        )
    else:
        tokenizer = load_tokenizer(beside, card.tokenizer_sha256)
    return tokenizer.with_case(False) if cased else tokenizer


def squad_rows(data: SquadData) -> Iterator[Row]:
    """The file's questions, as `ask_many` takes them."""
    return ((example.passage, example.question) for example in data.examples)


def predicted_text(reply: Reply | DemoBertError) -> str:
    """The prediction of a SQuAD file's question: "" where it can't be asked."""
    return "" if isinstance(reply, DemoBertError) else reply.text


def taken_together(rows: Iterator[Row], batch_size: int) -> list[Row]:
    """The next rows that are sorted into batches of `batch_size` windows together, and none beyond them; [] at the end.

    Fewer than usual where their passages are long. Who cuts a table between them, and nowhere else, gets the batches, and
    so the answers, of the whole table.
    """
    limit = max(_QUESTIONS_PER_ROW * batch_size, _FEWEST_QUESTIONS)
    taken, characters, last = [], 0, None
    for row in islice(rows, limit):
        taken.append(row)
        passage = row[0] if isinstance(row, (tuple, list)) and row else None
        if isinstance(passage, str) and passage is not last and passage != last:
            characters, last = characters + len(passage), passage
        if characters >= _CHARACTERS_AT_ONCE:
            break
    return taken


def _checked(row: Row) -> Row:
    if isinstance(row, DemoBertError):
        return row
    try:
        if not isinstance(row, (tuple, list)) or len(row) != 2:
            raise DemoBertError("a row is a pair: the passage and the question")
        check_text(row[0], "passage")
        check_text(row[1], "question")
    except DemoBertError as error:
        return error
    return row


def _reply(asked: _Asked | DemoBertError, top_k: int | None) -> Reply | DemoBertError:
    if isinstance(asked, DemoBertError):
        return asked
    try:
        return asked.reply(top_k)
    except DemoBertError as error:
        return error


def _cut(members: list, output: np.ndarray) -> Iterator[tuple[_Asked, Feature, np.ndarray]]:
    """(question, window, its logits [S, 2]) for each member of a batch, out of what the engine gave for it."""
    first = 0
    for row, (asked, feature) in enumerate(members):
        packed = output[first : first + feature.length]
        yield asked, feature, packed if output.ndim == 2 else output[row, : feature.length]
        first += feature.length


def fitted_options(options: AnswerOptions, card: EngineCard) -> AnswerOptions:
    """`options` with the lengths and batch sizes that this engine is given. Raises UsageError where it can't serve them."""
    longest = min(card.max_sequence_length, card.config.max_position_embeddings)
    sequence_length = options.sequence_length or longest
    batch_size = options.batch_size or (1 if card.layout == "padded" else card.max_batch_size)
    _check_fits("sequence length", "-s", sequence_length, longest)
    _check_fits("batch size", "-b", batch_size, card.max_batch_size)
    return dataclasses.replace(options, sequence_length=sequence_length, batch_size=batch_size)


def _check_fits(what: str, flag: str, asked: int, largest: int) -> None:
    if asked > largest:
        raise UsageError(
            f"{what} {asked} is over this engine's largest, {largest}: "
            f"give a smaller {flag}, or build an engine with {flag} {asked}"
        )
