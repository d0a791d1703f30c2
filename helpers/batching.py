"""Features → the arrays an engine takes: a padded batch [B, S], or (packed engines) sequences end to end."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Sequence

import numpy as np

if TYPE_CHECKING:
    from helpers.data_processing import Feature

#: Fills the rows up to the batch's length; masked, so any id of the table would do, and 0 is in every table.
_PAD_ID = 0


@dataclass(frozen=True)
class PaddedBatch:
    """Inputs of a padded engine, all int32 [B, S]. `input_mask` is 1 on each row's leading tokens, then 0."""

    input_ids: np.ndarray
    segment_ids: np.ndarray
    input_mask: np.ndarray

    @property
    def batch_size(self) -> int:
        return self.input_ids.shape[0]

    @property
    def sequence_length(self) -> int:
        return self.input_ids.shape[1]


def padded_batch(features: Sequence["Feature"], length: int | None = None) -> PaddedBatch:
    """Features as the rows of one batch, padded to the longest of them, or to `length` tokens."""
    lengths = [feature.length for feature in features]
    if length is None:
        length = max(lengths)
    input_ids = np.full((len(features), length), _PAD_ID, dtype=np.int32)
    segment_ids = np.zeros_like(input_ids)
    for row, feature in enumerate(features):
        input_ids[row, : feature.length] = feature.input_ids
        segment_ids[row, : feature.length] = feature.segment_ids
    input_mask = (np.arange(length) < np.array(lengths)[:, None]).astype(np.int32)
    return PaddedBatch(input_ids, segment_ids, input_mask)


def length_sorted_batches(features: Sequence["Feature"], batch_size: int) -> list[list[int]]:
    """Indices of `features` in groups of at most `batch_size`, alike in length, so that little is padded.

    The longest come first: what does not fit into memory shows at once, and the last batches to finish are short.
    """
    by_length = sorted(range(len(features)), key=lambda index: -features[index].length)
    return [by_length[first : first + batch_size] for first in range(0, len(by_length), batch_size)]
