"""Questions and passages → windows of tokens (features); start and end logits → n-best answers."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from helpers.answer_options import AnswerOptions
from helpers.errors import DemoBertError, UsageError
from helpers.tokenization import PairTemplate, TokenizedText, Tokenizer

#: Spans kept of one window for each answer asked for: some fall away because another place has the same text.
_SPANS_PER_ANSWER = 4

_ZERO_WIDTH_JOINER = "\u200d"


@dataclass(frozen=True)
class Feature:
    """One window: [CLS] question [SEP] part of the passage [SEP], or as the model's template has them.

    input_ids          int32 [S]
    segment_ids        int32 [S]: as the template says; BERT's: 0 up to the first [SEP], then 1
    passage_position   where the passage's part begins in the window
    passage_start      which of the passage's tokens is its first
    is_max_context     bool [L], for the passage's part: this window shows the token with the most context
    """

    input_ids: np.ndarray
    segment_ids: np.ndarray
    passage_position: int
    passage_start: int
    is_max_context: np.ndarray

    @property
    def length(self) -> int:
        return len(self.input_ids)

    @property
    def passage_length(self) -> int:
        return len(self.is_max_context)


@dataclass(frozen=True)
class Answer:
    """passage[start_char:end_char], or, with empty text, "the passage has no answer" (SQuAD v2.0).

    `score` is the sum of start and end logit; `probability` the softmax of the scores over the n-best answers.
    """

    text: str
    start_char: int
    end_char: int
    start_logit: float
    end_logit: float
    probability: float

    @property
    def score(self) -> float:
        return self.start_logit + self.end_logit


def require_tokens(tokenized: TokenizedText, what: str) -> TokenizedText:
    """`tokenized`, if it has tokens. Raises DemoBertError naming it `what` for empty, blank or unprintable text."""
    if not tokenized.text.strip():
        raise DemoBertError(f"the {what} is empty")
    if not len(tokenized):
        raise DemoBertError(f"the {what} has no readable characters")
    return tokenized


def make_features(
    question: TokenizedText,
    passage: TokenizedText,
    tokenizer: Tokenizer,
    sequence_length: int,
    max_query_length: int = AnswerOptions.max_query_length,
    doc_stride: int = AnswerOptions.doc_stride,
) -> list[Feature]:
    """The windows of at most `sequence_length` tokens that show the whole passage, each after the question.

    The question is cut to `max_query_length` tokens. Raises UsageError if a window has no room for the passage.
    """
    query = question.ids[:max_query_length]
    template = tokenizer.template
    capacity = sequence_length - len(query) - template.size
    if capacity < 1:
        raise UsageError(
            f"a question of {len(query)} tokens leaves no room for the passage in windows of {sequence_length}: "
            f"give a longer -s/--sequence-length, or cut questions (--max-query-length, where there is that flag, at most "
            f"{max(sequence_length - template.size - 1, 0)})"
        )
    spans = window_spans(len(passage), capacity, doc_stride)
    return [
        _feature(template, query, passage.ids[start : start + length], start, is_max_context)
        for (start, length), is_max_context in zip(spans, max_context_masks(spans, len(passage)))
    ]


def _feature(
    template: PairTemplate, query: np.ndarray, part: np.ndarray, start: int, is_max_context: np.ndarray
) -> Feature:
    input_ids = np.concatenate((template.head, query, template.middle, part, template.tail))
    question = np.full(len(query), template.question_segment)
    passage = np.full(len(part), template.passage_segment)
    segments = template.head_segments, question, template.middle_segments, passage, template.tail_segments
    position = len(template.head) + len(query) + len(template.middle)
    segment_ids = np.concatenate(segments).astype(np.int32)
    return Feature(input_ids.astype(np.int32), segment_ids, position, start, is_max_context)


def window_spans(token_count: int, capacity: int, doc_stride: int) -> list[tuple[int, int]]:
    """(start, length) of the windows over `token_count` tokens, `capacity` tokens each, `doc_stride` apart.

    Every token is in one at least: a stride beyond the capacity counts as the capacity. The last window ends with
    the last token.
    """
    step = min(doc_stride, capacity)
    starts = range(0, max(token_count - capacity, 0) + step, step)
    return [(start, min(capacity, token_count - start)) for start in starts]


def max_context_masks(spans: Sequence[tuple[int, int]], token_count: int) -> list[np.ndarray]:
    """For every window, bool [length]: which of its tokens no other window shows with more context.

    A token's context in a window is min(tokens to its left, tokens to its right) + 0.01 · window length, as in BERT's
    SQuAD code (arXiv:1810.04805); the first window wins a tie. Every token belongs to one window.
    """
    best_score = np.full(token_count, -1, dtype=np.int64)
    best_window = np.zeros(token_count, dtype=np.int64)
    for window, (start, length) in enumerate(spans):
        left = np.arange(length)
        score = 100 * np.minimum(left, left[::-1]) + length  # a hundredfold, to compare whole numbers
        here = slice(start, start + length)
        better = score > best_score[here]
        best_score[here][better] = score[better]
        best_window[here][better] = window
    return [best_window[start : start + length] == window for window, (start, length) in enumerate(spans)]


def best_answers(
    passage: TokenizedText,
    features: Sequence[Feature],
    logits_per_feature: Sequence[np.ndarray],
    options: AnswerOptions,
    version_2: bool = False,
) -> list[Answer]:
    """The `n_best_size` best answers over all windows of one question, best first, no text twice.

    logits_per_feature   for each window, start and end logits [≥ S, 2]; what lies beyond the window is not looked at

    A span lies in the passage, ends where it starts or up to `max_answer_length` - 1 tokens later, and starts in the
    window that gives its first token the most context. With `version_2` the answer "" (none) is in the list as well;
    its logits are those of [CLS], in the window where their sum is lowest (arXiv:1806.03822).
    Raises DemoBertError for logits that are not finite.
    """
    windows = [_checked_logits(feature, logits) for feature, logits in zip(features, logits_per_feature, strict=True)]
    spans = [_window_spans_by_score(*window, options) for window in zip(features, windows)]
    answers = _distinct_answers(passage, np.concatenate(spans), options.n_best_size)
    if version_2:
        start_logit, end_logit = min((logits[0] for logits in windows), key=sum)
        answers.append(("", 0, 0, float(start_logit), float(end_logit)))
        answers.sort(key=lambda answer: -(answer[3] + answer[4]))
    scores = np.array([start_logit + end_logit for *_, start_logit, end_logit in answers])
    exponentials = np.exp(scores - scores.max())
    probabilities = exponentials / exponentials.sum()
    return [Answer(*answer, float(probability)) for answer, probability in zip(answers, probabilities)]


def token_logits(features: Sequence[Feature], logits_per_feature: Sequence[np.ndarray]) -> np.ndarray:
    """Start and end logits of the passage's tokens, float64 [n, 2]: each from the window that gives it most context."""
    pieces = [
        (feature.passage_start + np.flatnonzero(feature.is_max_context), _passage_logits(feature, logits))
        for feature, logits in zip(features, logits_per_feature, strict=True)
    ]
    positions = np.concatenate([positions for positions, _ in pieces])
    return np.concatenate([logits for _, logits in pieces])[np.argsort(positions)]


def _passage_logits(feature: Feature, logits: np.ndarray) -> np.ndarray:
    end = feature.passage_position + feature.passage_length
    return np.asarray(logits, np.float64)[feature.passage_position : end][feature.is_max_context]


def choose_answer(answers: Sequence[Answer], null_score_diff_threshold: float = 0.0) -> tuple[Answer, float | None]:
    """The answer to give, and SQuAD v2.0's null odds: the score of "" less that of the best text (None without "").

    "" is chosen where the odds are above the threshold (arXiv:1810.04805, section 4.3).
    """
    best = next(answer for answer in answers if answer.text)
    null = next((answer for answer in answers if not answer.text), None)
    if null is None:
        return best, None
    null_odds = null.score - best.score
    return (null if null_odds > null_score_diff_threshold else best), null_odds


#: One candidate: tokens of the passage, both inclusive, and their logits.
_SPAN = np.dtype([("start", np.int64), ("end", np.int64), ("start_logit", np.float64), ("end_logit", np.float64)])


def _checked_logits(feature: Feature, logits: np.ndarray) -> np.ndarray:
    logits = np.asarray(logits, dtype=np.float64)[: feature.length]
    if logits.shape != (feature.length, 2):
        raise DemoBertError(f"the engine gave logits of shape {logits.shape} for a window of {feature.length} tokens")
    if not np.isfinite(logits).all():
        raise DemoBertError(
            "the engine gave logits that are not finite: build it from a sound checkpoint, or without --fp16/--int8"
        )
    return logits


def _window_spans_by_score(feature: Feature, logits: np.ndarray, options: AnswerOptions) -> np.ndarray:
    """The best spans that start in one window, array of _SPAN, in no order."""
    end_of_passage = feature.passage_position + feature.passage_length
    start_logits, end_logits = logits[feature.passage_position : end_of_passage].T
    starts = np.flatnonzero(feature.is_max_context)
    longest = min(options.max_answer_length, feature.passage_length)
    padded = np.concatenate((end_logits, np.full(longest - 1, -np.inf)))
    # scores[i, j]: from starts[i] to j tokens later; -inf beyond the window's end.
    scores = start_logits[starts, None] + np.lib.stride_tricks.sliding_window_view(padded, longest)[starts]
    chosen = np.arange(scores.size)
    if scores.size > (count := _SPANS_PER_ANSWER * options.n_best_size):
        chosen = np.argpartition(scores, scores.size - count, axis=None)[-count:]
    chosen = chosen[np.isfinite(scores.ravel()[chosen])]
    row, later = np.divmod(chosen, longest)
    spans = np.empty(len(chosen), dtype=_SPAN)
    spans["start"] = feature.passage_start + starts[row]
    spans["end"] = spans["start"] + later
    spans["start_logit"] = start_logits[starts[row]]
    spans["end_logit"] = end_logits[starts[row] + later]
    return spans


def _distinct_answers(passage: TokenizedText, spans: np.ndarray, count: int) -> list[tuple]:
    """The `count` best spans with different texts, as Answer's fields without the probability."""
    answers: dict[str, tuple] = {}
    by_score = np.lexsort((spans["end"], spans["start"], -(spans["start_logit"] + spans["end_logit"])))
    for start, end, start_logit, end_logit in spans[by_score].tolist():
        first, last = _whole_graphemes(passage.text, int(passage.offsets[start, 0]), int(passage.offsets[end, 1]))
        text = passage.text[first:last]
        if text not in answers:
            answers[text] = (text, first, last, start_logit, end_logit)
            if len(answers) == count:
                break
    return list(answers.values())


def _whole_graphemes(text: str, start: int, end: int) -> tuple[int, int]:
    """Widen text[start:end] so that no letter loses its marks and no joined emoji is cut.

    A word piece ends before the combining marks that BERT strips (Unicode Standard Annex #29: they extend the
    character before them).
    """
    while start > 0 and _extends(text[start], text[start - 1]) and not text[start - 1].isspace():
        start -= 1
    while end < len(text) and _extends(text[end], text[end - 1]):
        end += 1
    return start, end


def _extends(character: str, before: str) -> bool:
    """Whether a character belongs to the one before it: marks, variation selectors, joiners, skin tones, jamo."""
    if character < "\u0300":  # the first combining mark
        return False
    if unicodedata.category(character) in ("Mn", "Mc", "Me") or character == _ZERO_WIDTH_JOINER:
        return True
    if "\u1160" <= character <= "\u11ff":  # Hangul vowels and finals, as decomposed text has them
        return "\u1100" <= before <= "\u11ff"
    if "\U0001f3fb" <= character <= "\U0001f3ff":  # skin tones
        return True
    return before == _ZERO_WIDTH_JOINER and unicodedata.category(character) == "So"
