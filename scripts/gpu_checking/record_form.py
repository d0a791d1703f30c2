"""What a record of steps (record.py) has to hold for a page to be made of it: it may come from anywhere."""

import math
from collections.abc import Callable

from helpers.errors import one_line

#: The times of an engine and a batch, and what the name of an engine in a CUDA graph ends with.
TIMES = ("average_ms", "median_ms", "percentile_95_ms", "percentile_99_ms")
GRAPH = ", CUDA graph"

#: More than any time, distance or count in a record.
_MOST = 1e9


def _is_name(value) -> bool:
    """Something to stand in a line of a table."""
    return isinstance(value, str) and 0 < len(value) < 300 and value.isprintable() and "|" not in value


def _is_number(value) -> bool:
    """From 0 on."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < _MOST


def _is_time(value) -> bool:
    return _is_number(value) and value > 0 and math.isfinite(value)


def _is_count(value) -> bool:
    return _is_number(value) and isinstance(value, int)


def _is_batch(value) -> bool:
    return isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 9 and int(value) > 0


def _is_text(value) -> bool:
    return isinstance(value, str)


def _each(key: Callable, value: Callable) -> Callable:
    """Of dictionaries of any such keys and values."""
    return lambda found: isinstance(found, dict) and all(key(name) and value(one) for name, one in found.items())


def _fields(**fields: Callable) -> Callable:
    """Of dictionaries that have at least these."""
    return lambda found: (
        isinstance(found, dict) and all(name in found and test(found[name]) for name, test in fields.items())
    )


def _either(*tests: Callable) -> Callable:
    return lambda found: any(test(found) for test in tests)


_ROW = _either(_fields(error=_is_text), _fields(**dict.fromkeys(TIMES, _is_time)))
_TIMES = _fields(model=_is_name, tokens=_is_count, times=_each(_is_name, _each(_is_batch, _ROW)))
_DISTANCE = _fields(windows=_is_count, largest=_is_number, rms=_is_number, other_argmax=_is_count)
_RATE = _fields(
    valid=lambda found: isinstance(found, bool),
    rate=_is_time,
    bound_ms=_either(_is_time, lambda found: found is None),
    percentiles=_each(_is_text, _is_number),
)
_LAYER = _fields(ms=_is_number, layers=_is_count)

#: What the key of a step begins with → what its result has to be. Of others the page says nothing.
_RESULTS = {
    "table: ": _TIMES,
    "tried: ": _TIMES,
    "loadgen: ": _RATE,
    "layers: ": _each(_is_batch, _each(_is_text, _LAYER)),
    "logits: ": _either(_DISTANCE, lambda found: found == {}),
    "double: ": lambda found: _DISTANCE(found) and _DISTANCE(found.get("in_half", found)),
    "fake-quantized: ": _each(_is_name, _DISTANCE),
    "pairs": _each(_is_name, _DISTANCE),
    "answers: ": _fields(exact_match=_is_number, f1=_is_number),
}


def what_is_wrong(content) -> str | None:
    """The first thing that a page could not be made of, in a line; None: there is none."""
    if not isinstance(content, dict) or not isinstance(content.get("steps"), dict):
        return "it has no steps"
    machine = content.get("machine", {})
    if not _each(_is_name, _is_name)(machine) or not _either(_is_name, lambda found: found is None)(
        content.get("tensorrt")
    ):
        return "it does not say what machine and TensorRT it is of"
    for key, entry in content["steps"].items():
        if not _is_name(key) or not _is_step(key, entry):
            return f"its step {one_line(repr(key), 100)}"
    return None


def _is_step(key: str, entry) -> bool:
    if not isinstance(entry, dict) or not _is_text(entry.get("error", "")):
        return False
    found = entry.get("result")
    return found is None or all(test(found) for start, test in _RESULTS.items() if key.startswith(start))
