"""Features → the arrays an engine takes: a padded batch [B, S], or (packed engines) sequences end to end."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from helpers.errors import DemoBertError

if TYPE_CHECKING:
    from helpers.data_processing import Feature

#: The inputs of an engine of each layout, all int32, in their order.
INPUT_NAMES = {
    "padded": ("input_ids", "segment_ids", "input_mask"),
    "packed": ("input_ids", "segment_ids", "cu_seqlens", "max_seqlen"),
}

#: Fills the rows up to the batch's length; masked, so any id of the table would do, and 0 is in every table.
_PAD_ID = 0


class _Inputs:
    """What the batches of both layouts have in common; `layout` is of INPUT_NAMES."""

    layout: ClassVar[str]

    def inputs(self) -> dict[str, np.ndarray]:
        """The arrays under the names of the engine's inputs."""
        return {name: getattr(self, name) for name in INPUT_NAMES[self.layout]}

    def check(self) -> None:
        """Raises DemoBertError unless the batch is well formed; whether it fits an engine is that one's business."""
        for name, array in self.inputs().items():
            if not isinstance(array, np.ndarray) or array.dtype != np.int32:
                kind = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
                raise DemoBertError(f"{name} must be a numpy array of int32, not {kind}")
        self._check_shapes()


@dataclass(frozen=True)
class PaddedBatch(_Inputs):
    """Inputs of a padded engine, all int32 [B, S]. `input_mask` is 1 on each row's leading tokens, then 0."""

    layout = "padded"

    input_ids: np.ndarray
    segment_ids: np.ndarray
    input_mask: np.ndarray

    @property
    def batch_size(self) -> int:
        return self.input_ids.shape[0]

    @property
    def sequence_length(self) -> int:
        return self.input_ids.shape[1]

    def _check_shapes(self) -> None:
        shapes = {array.shape for array in self.inputs().values()}
        if len(shapes) != 1 or self.input_ids.ndim != 2 or self.input_ids.size == 0:
            raise DemoBertError(f"inputs must be three equal, non-empty [batch, sequence] arrays, not {sorted(shapes)}")
        mask = self.input_mask
        if not np.isin(mask, (0, 1)).all() or (np.diff(mask, axis=1) > 0).any() or not mask[:, 0].all():
            raise DemoBertError("the input mask must be ones on each row's leading tokens, then zeros")


@dataclass(frozen=True)
class PackedBatch(_Inputs):
    """Inputs of a packed engine, all int32: the sequences end to end, without padding.

    input_ids, segment_ids   [T]: T is the sum of the lengths
    cu_seqlens               [B + 1]: where each sequence begins, and, last, T
    max_seqlen               [Smax]: its length is the longest sequence's; what is in it does not matter
    """

    layout = "packed"

    input_ids: np.ndarray
    segment_ids: np.ndarray
    cu_seqlens: np.ndarray
    max_seqlen: np.ndarray

    @property
    def batch_size(self) -> int:
        return len(self.cu_seqlens) - 1

    @property
    def sequence_length(self) -> int:
        """The longest sequence's length, as `max_seqlen` has it."""
        return len(self.max_seqlen)

    @property
    def token_count(self) -> int:
        return len(self.input_ids)

    def _check_shapes(self) -> None:
        for name, array in self.inputs().items():
            if array.ndim != 1 or array.size == 0:
                shape = list(array.shape)
                raise DemoBertError(f"{name} must be an array of one dimension, not empty, and has the shape {shape}")
        tokens, starts = self.token_count, self.cu_seqlens.astype(np.int64)
        if len(self.segment_ids) != tokens:
            raise DemoBertError(f"there are {tokens} input_ids and {len(self.segment_ids)} segment_ids")
        if len(starts) < 2:
            raise DemoBertError("cu_seqlens must hold at least two numbers: where a sequence begins and where it ends")
        if starts[0] != 0:
            raise DemoBertError(f"cu_seqlens must start at 0, not at {starts[0]}")
        lengths = np.diff(starts)
        if (lengths < 0).any():
            where = int((lengths < 0).argmax())
            raise DemoBertError(f"cu_seqlens must ascend: {starts[where]} is followed by {starts[where + 1]}")
        if (lengths == 0).any():
            raise DemoBertError(f"sequence {int((lengths == 0).argmax())} has no tokens (cu_seqlens repeats a number)")
        if starts[-1] != tokens:
            raise DemoBertError(f"cu_seqlens must end at the number of tokens, {tokens}, not at {starts[-1]}")
        if lengths.max() > self.sequence_length:
            raise DemoBertError(
                f"max_seqlen has the length {self.sequence_length}, a sequence has {lengths.max()} tokens"
            )


Batch = PaddedBatch | PackedBatch

#: The batch that each layout of the engine card takes.
BATCH_OF_LAYOUT = {"padded": PaddedBatch, "packed": PackedBatch}


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


def packed_batch(features: Sequence["Feature"]) -> PackedBatch:
    """Features end to end, in their order."""
    lengths = [feature.length for feature in features]
    return PackedBatch(
        input_ids=np.concatenate([feature.input_ids for feature in features]).astype(np.int32),
        segment_ids=np.concatenate([feature.segment_ids for feature in features]).astype(np.int32),
        cu_seqlens=np.cumsum([0, *lengths], dtype=np.int32),
        max_seqlen=np.zeros(max(lengths), np.int32),
    )


def length_sorted_batches(features: Sequence["Feature"], batch_size: int) -> list[list[int]]:
    """Indices of `features` in groups of at most `batch_size`, alike in length, so that little is padded.

    The longest come first: what does not fit into memory shows at once, and the last batches to finish are short.
    """
    by_length = sorted(range(len(features)), key=lambda index: -features[index].length)
    return [by_length[first : first + batch_size] for first in range(0, len(by_length), batch_size)]


def packed_groups(features: Sequence["Feature"], max_tokens: int, max_batch_size: int) -> list[list[int]]:
    """Indices of `features` in groups of at most `max_tokens` tokens and `max_batch_size` sequences.

    First-fit decreasing: longest first, each into the first group that has room for it. Neighbours are alike in
    length, but for the short ones that fill what is left. No feature may be longer than `max_tokens`.
    """
    groups: list[list[int]] = []
    room = np.zeros(len(features), np.int64)  # tokens that still fit into each group; 0: closed, or not begun
    for index in sorted(range(len(features)), key=lambda index: -features[index].length):
        length = features[index].length
        fitting = room[: len(groups)] >= length
        group = int(fitting.argmax()) if fitting.any() else len(groups)
        if group == len(groups):
            groups.append([])
            room[group] = max_tokens
        groups[group].append(index)
        room[group] = room[group] - length if len(groups[group]) < max_batch_size else 0
    return groups
