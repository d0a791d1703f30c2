"""Taking turns: what is compared runs a little at a time, round and round, so that the machine's moods hit all alike."""

import random
import time
from collections.abc import Iterator

#: Lets the threads of the one before stop spinning, in seconds.
PAUSE = 0.02


def turns(ways: dict, rounds: int, pause: float = PAUSE) -> Iterator[tuple[int, str]]:
    """Yield (round from 0, name) of every way, `rounds` times, each after a pause.

    The order is drawn anew for every round: what one leaves behind, such as a full cache, hits all alike. A name that
    is deleted from `ways` meanwhile is left out of the rounds that follow.
    """
    shuffle = random.Random(0).shuffle
    for number in range(rounds):
        order = list(ways)
        shuffle(order)
        for name in order:
            time.sleep(pause)
            yield number, name
