"""The highest rate that passes, by a bracket that is halved."""

from collections.abc import Callable

#: Shares of the first rate that are tried when it fails, in turn.
_DOWN = (0.9, 0.75, 0.5, 0.25, 0.1)

#: A rate that passes is raised by this factor until one fails, so often at most.
_UP, _MOST_RAISES = 1.15, 12


def highest_passing(passes: Callable[[float], bool], start: float, precision: float) -> float | None:
    """The highest rate that `passes`, to a share `precision` of it; None: none down to a tenth of `start` does.

    It is taken for granted that all rates below one that passes do, too.
    """
    low, high = _bracket(passes, start)
    while low is not None and high is not None and high / low - 1 > precision:
        middle = (low + high) / 2
        if middle in (low, high):  # as near as numbers are
            break
        if passes(middle):
            low = middle
        else:
            high = middle
    return low


def _bracket(passes: Callable[[float], bool], start: float) -> tuple[float | None, float | None]:
    """(a rate that passes, one above it that does not); None: there is none in reach."""
    if passes(start):
        low = start
        for _ in range(_MOST_RAISES):
            high = low * _UP
            if not passes(high):
                return low, high
            low = high
        return low, None
    high = start
    for share in _DOWN:
        if passes(share * start):
            return share * start, high
        high = share * start
    return None, high
