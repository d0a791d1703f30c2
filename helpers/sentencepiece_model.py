"""Reads a SentencePiece model (arXiv:1808.06226): a protocol buffer, of which a tokenizer needs a few fields only.

The wire format is that of https://protobuf.dev/programming-guides/encoding, the fields those of
https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from helpers.errors import DemoBertError

#: Types of pieces that are taken as they stand, whatever the text around them.
CONTROL, USER_DEFINED = 3, 4

UNIGRAM = 1

_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5

#: XLM-RoBERTa's has 5 MB and 250,000 pieces; the largest of its kind, XLM-V's, 900,000.
MAX_SENTENCEPIECE_BYTES, _MAX_PIECES = 32 << 20, 1 << 20


@dataclass(frozen=True)
class SentencePieceModel:
    """`pieces`: (piece, score, type) by id. `kind` is UNIGRAM or another; `charsmap` the table of normalisation."""

    pieces: list[tuple[str, float, int]]
    kind: int
    charsmap: bytes


def read_sentencepiece(data: bytes) -> SentencePieceModel:
    """The model in the bytes of its file. Raises DemoBertError."""
    pieces, kind, charsmap = [], UNIGRAM, b""
    for number, value in _fields(data):
        if number == 1:
            pieces.append(_piece(value))
            if len(pieces) > _MAX_PIECES:
                raise DemoBertError(f"it has more than {_MAX_PIECES} pieces")
        elif number == 2:
            kind = dict(_fields(value)).get(3, UNIGRAM)
        elif number == 3:
            charsmap = dict(_fields(value)).get(2, b"")
    if not pieces or not isinstance(kind, int) or not isinstance(charsmap, bytes):
        raise DemoBertError("it is not a SentencePiece model")
    return SentencePieceModel(pieces, kind, charsmap)


def _piece(data) -> tuple[str, float, int]:
    fields = dict(_fields(data))
    piece, score, kind = fields.get(1, b""), fields.get(2, bytes(4)), fields.get(3, 1)
    if not isinstance(piece, bytes) or not isinstance(score, bytes) or len(score) != 4 or not isinstance(kind, int):
        raise DemoBertError("it is not a SentencePiece model")
    try:
        return piece.decode("utf-8"), struct.unpack("<f", score)[0], kind
    except UnicodeDecodeError:
        raise DemoBertError("a piece is not UTF-8 text") from None


def _fields(data) -> Iterator[tuple[int, int | bytes]]:
    """(field's number, its value) of a message: an int of a varint, else its bytes. Raises DemoBertError."""
    if not isinstance(data, bytes):
        raise DemoBertError("it is not a SentencePiece model")
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        number, wire_type = key >> 3, key & 7
        if number == 0:
            raise DemoBertError("it is not a SentencePiece model")
        if wire_type == _VARINT:
            value, place = _varint(data, place)
        else:
            size = {_EIGHT_BYTES: 8, _FOUR_BYTES: 4}.get(wire_type)
            if wire_type == _BYTES:
                size, place = _varint(data, place)
            if size is None or size > len(data) - place:
                raise DemoBertError("it is not a SentencePiece model, or is truncated")
            value, place = data[place : place + size], place + size
        yield number, value


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(data):
            break
        byte = data[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
    raise DemoBertError("it is not a SentencePiece model, or is truncated")
