"""Features → the arrays an engine takes: a padded batch [B, S], or (packed engines) sequences end to end."""

from dataclasses import dataclass

import numpy as np


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
