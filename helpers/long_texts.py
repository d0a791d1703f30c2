"""Long texts → tokens, piece by piece: the tokenizers library takes some 700 bytes for each token of what it encodes.

Whether a tokenizer gives a piece of text the tokens that it has in the whole text is not known beforehand, so it is
looked at: neighbouring pieces overlap, and must agree around the place where the text is cut.
"""

import re
from collections.abc import Callable, Iterator, Sequence

import numpy as np

#: Longer texts are encoded in pieces. Both in characters.
LONGEST_WHOLE_TEXT = 1 << 17
_PIECE = 1 << 15

#: What a piece shows of its neighbours on either side. It must agree with them over half as much.
_CONTEXT = 1 << 10

#: So many pieces are encoded at once.
_PIECES_AT_ONCE = 16

#: A single space or line break between two words. Nothing that tokenizers join reaches over it, in most texts.
_BETWEEN_WORDS = re.compile(r"(?<=\w)[ \n](?=\w)")

#: ids int32 [n] and offsets int64 [n, 2] of a text.
Encoded = tuple[np.ndarray, np.ndarray]


def encode_in_pieces(text: str, encode: Callable[[Sequence[str]], list[Encoded]]) -> Encoded | None:
    """What `encode` gives for the whole of `text`; None where its pieces do not show that, or it can't be cut."""
    cuts = _cuts(text)
    if cuts is None:
        return None
    parts, before = [], None
    for start, end, (ids, offsets) in _pieces(text, cuts, encode):
        if before is not None and not _agree(before, (ids, offsets), start):
            return None
        before = ids, offsets
        own = slice(*np.searchsorted(offsets[:, 0], (start, end)))
        own = slice(own.start, None) if end == len(text) else own  # a token of white space may begin at the very end
        parts.append((ids[own].copy(), offsets[own].copy()))
    return np.concatenate([ids for ids, _ in parts]), np.concatenate([offsets for _, offsets in parts])


def _cuts(text: str) -> list[int] | None:
    """Where the text is cut: its start, a place between two words for each piece, its end."""
    cuts = [0]
    while len(text) - cuts[-1] > 2 * _PIECE:
        place = _BETWEEN_WORDS.search(text, cuts[-1] + _PIECE, cuts[-1] + 2 * _PIECE)
        if place is None:
            return None
        cuts.append(place.start())
    return [*cuts, len(text)]


def _pieces(text: str, cuts: list[int], encode) -> Iterator[tuple[int, int, Encoded]]:
    """(start, end, its tokens and those of its context) for each piece, offsets in the whole text."""
    spans = list(zip(cuts, cuts[1:]))
    for first in range(0, len(spans), _PIECES_AT_ONCE):
        some = spans[first : first + _PIECES_AT_ONCE]
        shown = [(max(start - _CONTEXT, 0), end + _CONTEXT) for start, end in some]
        encoded = encode([text[slice(*places)] for places in shown])
        for (start, end), (begin, _), (ids, offsets) in zip(some, shown, encoded):
            yield start, end, (ids, np.maximum.accumulate(offsets + begin, axis=0))


def _agree(before: Encoded, after: Encoded, cut: int) -> bool:
    """Whether two pieces give the same tokens, at the same places, around the place between them."""
    around = cut - _CONTEXT // 2, cut + _CONTEXT // 2
    (ids, offsets), (other_ids, other_offsets) = (
        (ids[slice(*np.searchsorted(offsets[:, 0], around))], offsets[slice(*np.searchsorted(offsets[:, 0], around))])
        for ids, offsets in (before, after)
    )
    return np.array_equal(ids, other_ids) and np.array_equal(offsets, other_offsets)
