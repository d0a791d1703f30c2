"""SQuAD text → windows to train on: features with the place of the answer, in batches alike in length."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from helpers.answer_options import AnswerOptions
from helpers.data_processing import Feature, make_features
from helpers.errors import DemoBertError
from helpers.squad import SquadData, SquadExample
from helpers.tokenization import TokenizedText, Tokenizer

#: Batches are cut from so many windows at once, sorted by length: little is padded, and the order stays random.
_BATCHES_SORTED_AT_ONCE = 50


@dataclass(frozen=True)
class TrainingWindow:
    """One window and its answer: `start` and `end` are the positions of its first and last token in the window.

    Both are 0, [CLS], where the window doesn't show the whole answer, or there is none (arXiv:1810.04805, section 4.3).
    """

    feature: Feature
    start: int
    end: int


def training_windows(data: SquadData, tokenizer: Tokenizer, options: AnswerOptions) -> tuple[list[TrainingWindow], int]:
    """The windows of all questions, and how many are left out: blank ones, and those whose answer can't be located.

    Raises DemoBertError if no question is left.
    """
    texts = {example.paragraph: example.passage for example in data.examples}
    passages = dict(zip(texts, tokenizer.encode_batch(list(texts.values()), "passage"), strict=True))
    questions = tokenizer.encode_batch([example.question for example in data.examples], "question")
    windows, left_out = [], 0
    for example, question in zip(data.examples, questions, strict=True):
        passage = passages[example.paragraph]
        span = (-1, -1) if example.is_impossible else _answer_tokens(example, passage)
        if span is None or _is_blank(question) or _is_blank(passage):
            left_out += 1
            continue
        windows += [_window(feature, *span) for feature in _features(example, question, passage, tokenizer, options)]
    if not windows:
        raise DemoBertError("no question of the training data has an answer that its passage contains")
    return windows, left_out


def _is_blank(tokenized: TokenizedText) -> bool:
    return not len(tokenized) or not tokenized.text.strip()


def _features(
    example: SquadExample,
    question: TokenizedText,
    passage: TokenizedText,
    tokenizer: Tokenizer,
    options: AnswerOptions,
) -> list[Feature]:
    try:
        lengths = options.sequence_length, options.max_query_length, options.doc_stride
        return make_features(question, passage, tokenizer, *lengths)
    except DemoBertError as error:
        raise type(error)(f"question {example.question_id!r}: {error}") from None


def _answer_tokens(example: SquadExample, passage: TokenizedText) -> tuple[int, int] | None:
    """The first and last token of the first gold answer that the passage has, those with a start first; None: of none."""
    answers = zip(example.answers, example.answer_starts, strict=True)
    for text, place in sorted(answers, key=lambda answer: answer[1] is None):
        start = passage.text.find(text) if place is None else _nearest(passage.text, text, place)
        if not text.strip() or start < 0:
            continue
        first = int(np.searchsorted(passage.offsets[:, 1], start, side="right"))
        last = int(np.searchsorted(passage.offsets[:, 0], start + len(text), side="left")) - 1
        if first <= last:
            return first, last
    return None


def _nearest(passage: str, text: str, place: int) -> int:
    """Where `text` begins in `passage`, as near to `place` as it does, the first of two as near; -1: nowhere."""
    place = min(max(place, 0), len(passage))
    # Other letter case at the place itself: MRQA's answers are found by their normalised text.
    if passage[place : place + len(text)].lower() == text.lower():
        return place
    after = passage.find(text, place)
    # The last occurrence before is the first one of both mirrored: unlike rfind, find takes linear time at worst.
    head = passage[: place + len(text)]
    mirrored = head[::-1].find(text[::-1])
    before = len(head) - len(text) - mirrored
    if mirrored < 0 or 0 <= after < 2 * place - before:
        return after
    return before


def _window(feature: Feature, first: int, last: int) -> TrainingWindow:
    if feature.passage_start <= first and last < feature.passage_start + feature.passage_length:
        shift = feature.passage_position - feature.passage_start
        return TrainingWindow(feature, first + shift, last + shift)
    return TrainingWindow(feature, 0, 0)


def random_pairs(windows: Sequence[TrainingWindow], seed: int, step: int) -> list[TrainingWindow]:
    """The windows' passages, each with the question of another of them, drawn anew for each step; nobody knows an answer.

    None is longer than the longest of `windows`: passages are cut at their end.
    """
    order = np.random.default_rng((seed, step)).permutation(len(windows))
    longest = max(window.feature.length for window in windows)
    pairs = (_paired(windows[i].feature, window.feature, longest) for i, window in zip(order, windows, strict=True))
    return [TrainingWindow(feature, 0, 0) for feature in pairs]


def _paired(question: Feature, passage: Feature, longest: int) -> Feature:
    """The window of one's question and the other's passage, of at most `longest` tokens."""
    head, begin = question.passage_position, passage.passage_position
    end = begin + passage.passage_length
    tail = passage.length - end
    end = min(end, begin + max(0, longest - head - tail))

    def joined(name: str) -> np.ndarray:
        first, second = getattr(question, name), getattr(passage, name)
        return np.concatenate([first[:head], second[begin:end], second[passage.length - tail :]])

    return replace(
        passage,
        input_ids=joined("input_ids"),
        segment_ids=joined("segment_ids"),
        passage_position=head,
        is_max_context=passage.is_max_context[: end - begin],
    )


def shuffled_batches(windows: Sequence[TrainingWindow], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Indices of `windows` in batches for one epoch: the same for the same seed and epoch, whatever came before."""
    generator = np.random.default_rng((seed, epoch))
    order = generator.permutation(len(windows))
    lengths = np.array([window.feature.length for window in windows])
    batches = []
    for first in range(0, len(order), _BATCHES_SORTED_AT_ONCE * batch_size):
        some = order[first : first + _BATCHES_SORTED_AT_ONCE * batch_size]
        some = some[np.argsort(-lengths[some], kind="stable")]
        batches += [some[i : i + batch_size].tolist() for i in range(0, len(some), batch_size)]
    return [batches[i] for i in generator.permutation(len(batches))]
