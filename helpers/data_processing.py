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

#: So many windows' spans are kept before the best of them are sought out.
_WINDOWS_MERGED_AT_ONCE = 64

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

    def to_dict(self) -> dict:
        """The answer as JSON holds it."""
        names = "text", "probability", "start_char", "end_char", "start_logit", "end_logit"
        return {name: getattr(self, name) for name in names}


def require_tokens(tokenized: TokenizedText, what: str) -> TokenizedText:
    """`tokenized`, if it has tokens. Raises DemoBertError naming it `what` for empty, blank or unprintable text."""
    if not tokenized.text.strip():
        raise DemoBertError(f"the {what} is empty")
    if not len(tokenized):
        raise DemoBertError(f"the {what} has no readable characters")
    return tokenized


class Windows(Sequence):
    """The windows of one question over one passage: each is a `Feature`, made when it is asked for.

    `spans` and `masks` are those of `window_spans` and `max_context_masks`.
    """

    def __init__(self, query: np.ndarray, passage: TokenizedText, template: PairTemplate, spans: list, masks: list):
        self._query, self._passage, self._template = query, passage, template
        self._spans, self._masks = spans, masks

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, index: int) -> Feature:
        start, length = self._spans[index]
        part = self._passage.ids[start : start + length]
        return _feature(self._template, self._query, part, start, self._masks[index])


def make_features(
    question: TokenizedText,
    passage: TokenizedText,
    tokenizer: Tokenizer,
    sequence_length: int,
    max_query_length: int = AnswerOptions.max_query_length,
    doc_stride: int = AnswerOptions.doc_stride,
) -> Windows:
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
    return Windows(query, passage, template, spans, max_context_masks(spans, len(passage)))


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


class AnswerSearch:
    """Finds the best answers to one question in its windows' logits, which come in any order.

    A span lies in the passage, ends where it starts or up to `max_answer_length` - 1 tokens later, and starts in the
    window that gives its first token the most context. What is kept does not grow with the passage.

    null_logits   start and end logit of [CLS], in the window where their sum is lowest: those of "no answer"
                  (arXiv:1806.03822)
    """

    def __init__(self, passage: TokenizedText, options: AnswerOptions):
        self._passage, self._options = passage, options
        self._spans: list[np.ndarray] = []
        self.null_logits = (np.inf, np.inf)

    def add(self, feature: Feature, logits: np.ndarray) -> None:
        """Take in one window: start and end logits [≥ S, 2]; what lies beyond the window is not looked at.

        Raises DemoBertError for logits that are not finite.
        """
        logits = _checked_logits(feature, logits)
        self._spans.append(_window_spans_by_score(feature, logits, self._options))
        self.null_logits = min(self.null_logits, tuple(logits[0].tolist()), key=lambda pair: (sum(pair), pair))
        if len(self._spans) == _WINDOWS_MERGED_AT_ONCE:
            self._spans = [self._distinct()[0]]

    def answers(self, with_none: bool = False) -> list[Answer]:
        """The `n_best_size` best answers, best first, no text twice; and, `with_none`, "", which is no answer.

        Raises DemoBertError where no token of the passage shows any of its text.
        """
        spans, places = self._distinct()
        if not places:
            raise DemoBertError("the passage has no readable characters")
        answers = [(*place, *logits) for place, logits in zip(places, spans[["start_logit", "end_logit"]].tolist())]
        if with_none:
            answers.append(("", 0, 0, *self.null_logits))
            answers.sort(key=lambda answer: -(answer[3] + answer[4]))
        scores = np.array([start_logit + end_logit for *_, start_logit, end_logit in answers])
        exponentials = np.exp(scores - scores.max())
        probabilities = exponentials / exponentials.sum()
        return [Answer(*answer, float(probability)) for answer, probability in zip(answers, probabilities)]

    def _distinct(self) -> tuple[np.ndarray, list[tuple[str, int, int]]]:
        """The best spans with different texts, and their texts and places: text, start_char, end_char.

        Some windows' best ones beside the other windows' spans have the same best ones as all spans.
        """
        spans, offsets, text = np.concatenate(self._spans), self._passage.offsets, self._passage.text
        spans = spans[np.lexsort((spans["end"], spans["start"], -(spans["start_logit"] + spans["end_logit"])))]
        places: dict[str, tuple] = {}
        rows = []
        for row, (start, end) in enumerate(spans[["start", "end"]].tolist()):
            first, last = int(offsets[start, 0]), int(offsets[end, 1])
            if first == last:  # a token that shows nothing of the text
                continue
            first, last = _whole_graphemes(text, first, last)
            if text[first:last] not in places:
                places[text[first:last]] = (text[first:last], first, last)
                rows.append(row)
                if len(rows) == self._options.n_best_size:
                    break
        return spans[rows], list(places.values())


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
