"""How text is cut into windows and answers are chosen. Standard library only: flags show its defaults."""

import math
from dataclasses import dataclass, fields

from helpers.errors import UsageError


@dataclass(frozen=True)
class AnswerOptions:
    """How text is cut into windows and answers are chosen; the flags of the same names. Lengths in tokens.

    `sequence_length` None means the longest that the engine serves. Raises UsageError for values that make no sense.
    """

    sequence_length: int | None = None
    batch_size: int = 1
    max_query_length: int = 64
    doc_stride: int = 128
    max_answer_length: int = 30
    n_best_size: int = 20
    null_score_diff_threshold: float = 0.0

    def __post_init__(self):
        for field in fields(self)[:-1]:
            value = getattr(self, field.name)
            if value is None and field.default is None:
                continue
            if type(value) is not int or value < 1:
                raise UsageError(f"{_flag(field.name)} must be a whole number of at least 1, not {value!r}")
        if not math.isfinite(self.null_score_diff_threshold):
            raise UsageError(f"{_flag('null_score_diff_threshold')} must be a finite number")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
