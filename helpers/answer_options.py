"""How text is cut into windows and answers are chosen. Standard library only: flags show its defaults."""

import math
from dataclasses import dataclass, fields

from helpers.errors import UsageError


@dataclass(frozen=True)
class AnswerOptions:
    """How text is cut into windows and answers are chosen; the flags of the same names. Lengths in tokens.

    sequence_length             None: the longest that the engine serves
    batch_size                  windows that run at once; None: 1 of a padded engine, of a packed one its largest
    null_score_diff_threshold   answer "" where the null odds are above it; None: every question has an answer

    Raises UsageError for values that make no sense.
    """

    sequence_length: int | None = None
    batch_size: int | None = None
    max_query_length: int = 64
    doc_stride: int = 128
    max_answer_length: int = 30
    n_best_size: int = 20
    null_score_diff_threshold: float | None = None

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None and field.default is None:
                continue
            if field.name == "null_score_diff_threshold":
                if type(value) not in (int, float) or not math.isfinite(value):
                    raise UsageError(f"{_flag(field.name)} must be a finite number, not {value!r}")
            elif type(value) is not int or value < 1:
                raise UsageError(f"{_flag(field.name)} must be a whole number of at least 1, not {value!r}")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
