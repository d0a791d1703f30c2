"""Engine + tokenizer → answers: the one loop behind every script."""

import dataclasses
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from helpers.answer_options import AnswerOptions
from helpers.backends.base import Engine
from helpers.batching import Batch, length_sorted_batches, packed_batch, packed_groups, padded_batch
from helpers.data_processing import (
    Answer,
    Feature,
    best_answers,
    choose_answer,
    make_features,
    require_tokens,
    token_logits,
)
from helpers.errors import DemoBertError, UsageError
from helpers.squad import SquadData, SquadExample
from helpers.tokenization import TokenizedText, Tokenizer, check_table


@dataclass(frozen=True)
class QuestionResult:
    """What one question of a SQuAD file got. `text` is the prediction, "" for "no answer" (v2.0).

    `null_odds` is the score of "no answer" less that of the best answer; None in v1.1.
    """

    text: str
    null_odds: float | None
    n_best: list[Answer]


@dataclass(frozen=True)
class Reply:
    """What one question about one passage got.

    answers        the n-best, best first
    seconds        what the engine took
    windows        how many windows it was given
    passage        the passage's tokens
    token_logits   their start and end logits, float64 [n, 2]
    """

    answers: list[Answer]
    seconds: float
    windows: int
    passage: TokenizedText
    token_logits: np.ndarray


class Answerer:
    """Answers questions about passages with one engine, padded or packed.

    Windows run `options.batch_size` at once; in a packed engine, as many as have together no more tokens than
    `options.batch_size` windows of full length. `options.sequence_length` becomes the engine's and model's longest
    where it is None. Raises DemoBertError if the vocabulary is larger than the engine's, UsageError if the engine can't serve
    the batch size or sequence length.
    """

    def __init__(self, engine: Engine, tokenizer: Tokenizer, options: AnswerOptions = AnswerOptions()):
        card = engine.card
        longest = card.max_sequence_length
        if card.config is not None:
            check_table(tokenizer, card.config)
            longest = min(longest, card.config.max_position_embeddings)
        sequence_length = longest if options.sequence_length is None else options.sequence_length
        _check_fits("sequence length", "-s", sequence_length, longest)
        _check_fits("batch size", "-b", options.batch_size, card.max_batch_size)
        self.engine = engine
        self.tokenizer = tokenizer
        self.options = dataclasses.replace(options, sequence_length=sequence_length)

    def ask(self, passage: str, question: str, on_progress: Callable[[int, int], None] | None = None) -> Reply:
        """The answers to one question, and what they were chosen from.

        `on_progress(done, total)` is called, in windows, after each batch. Raises DemoBertError for text that is
        empty or not Unicode.
        """
        passage_tokens = require_tokens(self.tokenizer.encode(passage, "passage"), "passage")
        question_tokens = require_tokens(self.tokenizer.encode(question, "question"), "question")
        features = self._features(question_tokens, passage_tokens)
        logits: list = [None] * len(features)
        seconds, done = 0.0, 0
        batches = _Batches(self.engine, features, self.options)
        for index, batch in enumerate(batches):
            begin = time.perf_counter()
            output = self.engine.run(batch)
            seconds += time.perf_counter() - begin
            for feature_index, window_logits in batches.logits_of(index, output):
                logits[feature_index] = window_logits
            done += len(batches.groups[index])
            if on_progress is not None:
                on_progress(done, len(features))
        answers = best_answers(passage_tokens, features, logits, self.options)
        return Reply(answers, seconds, len(features), passage_tokens, token_logits(features, logits))

    def answer_squad(
        self, data: SquadData, on_progress: Callable[[int, int], None] | None = None
    ) -> dict[str, QuestionResult]:
        """The results of all questions, by question id, in the file's order.

        `on_progress(done, total)` is called, in questions, whenever one has gone through the engine; from whatever
        thread the engine reports from, never from two at once. Raises DemoBertError.
        """
        passages, features_per_example = self._squad_features(data)
        features = [feature for some in features_per_example for feature in some]
        logits = self._run_all(features, features_per_example, on_progress)
        results, first = {}, 0
        for example, some in zip(data.examples, features_per_example):
            window_logits = logits[first : first + len(some)]
            first += len(some)
            answers = best_answers(passages[example.paragraph], some, window_logits, self.options, data.version_2)
            answer, null_odds = choose_answer(answers, self.options.null_score_diff_threshold)
            results[example.question_id] = QuestionResult(answer.text, null_odds, answers)
        return results

    def window_lengths(self, data: SquadData) -> list[int]:
        """How many tokens each window of the file's questions has. Raises DemoBertError."""
        _, features_per_example = self._squad_features(data)
        return [feature.length for features in features_per_example for feature in features]

    def _features(self, question: TokenizedText, passage: TokenizedText) -> list[Feature]:
        options = self.options
        return make_features(
            question, passage, self.tokenizer, options.sequence_length, options.max_query_length, options.doc_stride
        )

    def _squad_features(self, data: SquadData) -> tuple[dict[int, TokenizedText], list[list[Feature]]]:
        """The passages by paragraph, each tokenised once, and the windows of every question."""
        texts = {example.paragraph: example.passage for example in data.examples}
        passages = dict(zip(texts, self.tokenizer.encode_batch(list(texts.values()), "passage")))
        questions = self.tokenizer.encode_batch([example.question for example in data.examples], "question")
        features = [
            self._example_features(example, question, passages[example.paragraph])
            for example, question in zip(data.examples, questions)
        ]
        return passages, features

    def _example_features(
        self, example: SquadExample, question: TokenizedText, passage: TokenizedText
    ) -> list[Feature]:
        try:
            return self._features(require_tokens(question, "question"), require_tokens(passage, "passage"))
        except DemoBertError as error:
            raise type(error)(f"question {example.question_id!r}: {error}") from None

    def _run_all(self, features: list[Feature], features_per_example: list, on_progress) -> list[np.ndarray]:
        """The logits of every window, [S, 2], in the order of `features`."""
        batches = _Batches(self.engine, features, self.options)
        logits: list = [None] * len(features)
        progress = _Progress([len(some) for some in features_per_example], on_progress)

        def on_done(index: int, output: np.ndarray) -> None:
            for feature_index, window_logits in batches.logits_of(index, output):
                # A copy: the engine may reuse its memory, and a view would keep the whole batch.
                logits[feature_index] = window_logits.copy()
            progress.windows_done(batches.groups[index])

        self.engine.run_all(batches, on_done)
        return logits


class _Batches(Sequence):
    """The windows as batches of the engine's layout, made when they are asked for: a large file's are never in
    memory all at once. `groups` holds, batch by batch, the indices of their features.
    """

    def __init__(self, engine: Engine, features: Sequence[Feature], options: AnswerOptions):
        self._engine = engine
        self._features = features
        self._packed = engine.card.layout == "packed"
        if self._packed:
            max_tokens = options.batch_size * options.sequence_length
            self.groups = packed_groups(features, max_tokens, engine.card.max_batch_size)
        else:
            self.groups = length_sorted_batches(features, options.batch_size)

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> Batch:
        some = [self._features[feature_index] for feature_index in self.groups[index]]
        if self._packed:
            return packed_batch(some)
        return padded_batch(some, self._engine.padded_length(max(feature.length for feature in some)))

    def logits_of(self, index: int, output: np.ndarray):
        """(feature's index, its logits [S, 2]) for each window of batch `index`, cut out of the engine's output."""
        first = 0
        for row, feature_index in enumerate(self.groups[index]):
            length = self._features[feature_index].length
            yield feature_index, output[first : first + length] if self._packed else output[row, :length]
            first += length


class _Progress:
    """Counts windows into questions. Engines may report from several threads."""

    def __init__(self, windows_per_example: list[int], on_progress):
        self._left = Counter(dict(enumerate(windows_per_example)))
        self._example_of_window = np.repeat(np.arange(len(windows_per_example)), windows_per_example).tolist()
        self._done = 0
        self._on_progress = on_progress
        self._lock = threading.Lock()

    def windows_done(self, windows: Sequence[int]) -> None:
        if self._on_progress is None:
            return
        with self._lock:
            before = self._done
            for window in windows:
                example = self._example_of_window[window]
                self._left[example] -= 1
                self._done += self._left[example] == 0
            if self._done != before:
                self._on_progress(self._done, len(self._left))


def _check_fits(what: str, flag: str, asked: int, largest: int) -> None:
    if asked > largest:
        raise UsageError(
            f"{what} {asked} is over this engine's largest, {largest}: "
            f"give a smaller {flag}, or build an engine with {flag} {asked}"
        )
