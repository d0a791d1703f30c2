"""The system under test: threads that take what waits, make batches of it, run them, and hand LoadGen the logits."""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice

import mlperf_loadgen as loadgen
import numpy as np

from helpers.backends.base import Engine
from helpers.batching import Batch, packed_batch, padded_batch
from helpers.data_processing import Feature

#: Of what waits, so many times a batch's rows are looked through for windows that are as long as the oldest.
_LOOKED_THROUGH = 8

#: Batches of windows that differ by more than this share of the oldest one's length would be padded for little gain.
_DIFFERENCE = 0.25


@dataclass(frozen=True)
class Limits:
    """What one batch may hold: windows, and, of a packed engine, tokens."""

    windows: int
    tokens: int

    @classmethod
    def of(cls, card, batch_size: int, sequence_length: int) -> "Limits":
        """As helpers/answerer.py has them: a packed engine takes as many tokens as `batch_size` full windows have."""
        windows = batch_size if card.layout == "padded" else card.max_batch_size
        return cls(windows, batch_size * sequence_length)


def offline_groups(lengths: np.ndarray, limits: Limits, packed: bool) -> list[np.ndarray]:
    """Places in `lengths`, int64 [n], in groups that are batches, neighbours in length, the longest first.

    Nearly a million samples come at once, and the engine waits meanwhile: so they are sorted and cut by numpy.
    """
    order = np.argsort(-lengths, kind="stable")
    if not packed:
        return [order[first : first + limits.windows] for first in range(0, len(order), limits.windows)]
    groups, first, ends = [], 0, np.cumsum(lengths[order])
    while first < len(order):
        begin = ends[first - 1] if first else 0
        fitting = int(np.searchsorted(ends, begin + limits.tokens, side="right"))
        last = max(min(fitting, first + limits.windows), first + 1)
        groups.append(order[first:last])
        first = last
    return groups


class Waiting:
    """Server: samples that wait, the oldest first, as (LoadGen's id, place among the samples).

    `bound` is the time in which a sample has to be answered, in s; None: there is none. One that can't be any more,
    by the time that its like took last, waits until there is none that can: of 100, 99 count.
    """

    def __init__(self, lengths: Sequence[int], padded_lengths: Sequence[int], limits: Limits, packed: bool):
        self._lengths, self._padded, self._limits, self._packed = lengths, padded_lengths, limits, packed
        self._samples, self._late = deque(), deque()
        self._arrivals: dict[int, float] = {}
        self._seconds: dict[int, float] = {}
        self.bound: float | None = None

    def __len__(self) -> int:
        return len(self._samples) + len(self._late)

    def add(self, samples: Sequence[tuple[int, int]], now: float = 0.0) -> None:
        self._samples.extend(samples)
        self._arrivals |= {number: now for number, _ in samples}

    def took(self, samples: Sequence[tuple[int, int]], seconds: float) -> None:
        """A batch of `samples` has taken so long."""
        self._seconds[max(self._padded[place] for _, place in samples)] = seconds

    def take(self, now: float = 0.0) -> list[tuple[int, int]]:
        """One batch: the oldest, and what of the next oldest goes well with it. There must be one."""
        while self._samples and self._is_late(*self._samples[0], now):
            self._late.append(self._samples.popleft())
        queue = self._samples or self._late
        taken = self._in_order(queue) if self._packed else self._alike(queue)
        for number, _ in taken:
            del self._arrivals[number]
        return taken

    def _is_late(self, number: int, place: int, now: float) -> bool:
        if self.bound is None:
            return False
        return now + self._seconds.get(self._padded[place], 0.0) > self._arrivals[number] + self.bound

    def _in_order(self, queue: deque) -> list[tuple[int, int]]:
        taken, tokens = [], 0
        while queue and len(taken) < self._limits.windows:
            tokens += self._lengths[queue[0][1]]
            if taken and tokens > self._limits.tokens:
                break
            taken.append(queue.popleft())
        return taken

    def _alike(self, queue: deque) -> list[tuple[int, int]]:
        """Of the next oldest, those nearest to the oldest in padded length; the others keep their places."""
        oldest, more = queue.popleft(), self._limits.windows - 1
        if not more or not queue:
            return [oldest]
        length = self._padded[oldest[1]]
        looked = [queue.popleft() for _ in islice(range(len(queue)), _LOOKED_THROUGH * more)]
        apart = [abs(self._padded[place] - length) for _, place in looked]
        nearest = sorted(range(len(looked)), key=apart.__getitem__)[:more]
        chosen = {index for index in nearest if apart[index] <= _DIFFERENCE * length}
        queue.extendleft(one for index, one in reversed(list(enumerate(looked))) if index not in chosen)
        return [oldest, *(looked[index] for index in sorted(chosen))]


class System:
    """An engine that answers LoadGen's samples.

    `workers` threads share the engine, one at a time giving it a batch: while one waits for its logits, the next makes
    a batch. SingleStream is answered by LoadGen's own thread, without a hand-over. A sample is answered by its logits,
    float32 [tokens, 2]. After a failure, which `on_error` is told once, samples are answered by nothing, since LoadGen
    waits for all of them.
    """

    def __init__(
        self,
        engine: Engine,
        samples: Sequence[Feature],
        limits: Limits,
        workers: int,
        on_error: Callable[[BaseException], object],
    ):
        self._engine, self._samples, self._limits, self._on_error = engine, samples, limits, on_error
        self._packed = engine.card.layout == "packed"
        self._lengths = np.array([sample.length for sample in samples], np.int64)
        padded = {length: engine.padded_length(length) for length in set(self._lengths.tolist())}
        lengths = self._lengths.tolist()
        self._waiting = Waiting(lengths, [padded[length] for length in lengths], limits, self._packed)
        self._planned: deque = deque()
        self._changed = threading.Condition()
        self._engine_lock = threading.Lock()
        self._scenario, self._closed, self._failed = "Offline", False, False
        self.answered = 0
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(workers)]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def begin(self, scenario: str, bound: float | None = None) -> None:
        """Of the run that follows: its scenario, and in how many s Server's samples have to be answered."""
        self._scenario, self.answered = scenario, 0
        self._waiting.bound = bound

    def issue(self, queries: list) -> None:
        """LoadGen's samples. It must not raise: LoadGen would end the process."""
        samples = [(query.id, query.index) for query in queries]
        if self._scenario == "SingleStream":
            self._answer(samples)
            return
        groups = self._plan(samples) if self._scenario == "Offline" else []
        with self._changed:
            if groups:
                self._planned.extend(groups)
                self._changed.notify_all()
            else:
                self._waiting.add(samples, time.monotonic())
                self._changed.notify(len(samples))

    def flush(self) -> None:
        """LoadGen has no more samples for now: nothing is held back here."""

    def warm_up(self) -> None:
        """Run batches of every length that there is, full and of one window, as often as there are threads.

        New lengths have kernels made for them, in each of the engine's streams. Raises DemoBertError.
        """
        for group in self._warm_up_groups():
            batch = self._batch([self._samples[place] for place in group])
            for run in [self._engine.submit(batch) for _ in self._threads]:
                run.result()

    def _warm_up_groups(self) -> list[list[int]]:
        """Places of samples; of a packed engine the first and the last group of those that Offline would make."""
        if self._packed:
            groups = offline_groups(self._lengths, self._limits, True)
            return [groups[0].tolist(), groups[-1].tolist(), [0]]
        by_length: dict[int, int] = {}
        for place, length in enumerate(self._lengths.tolist()):
            by_length.setdefault(self._engine.padded_length(length), place)
        sizes = sorted({1, self._limits.windows})
        return [[place] * size for _, place in sorted(by_length.items()) for size in sizes]

    def _plan(self, samples: list) -> list[list]:
        lengths = self._lengths[np.fromiter((place for _, place in samples), np.int64, len(samples))]
        groups = offline_groups(lengths, self._limits, self._packed)
        return [[samples[index] for index in group] for group in (group.tolist() for group in groups)]

    def _work(self) -> None:
        while group := self._next():
            began = time.monotonic()
            self._answer(group)
            with self._changed:
                self._waiting.took(group, time.monotonic() - began)

    def _next(self) -> list | None:
        """The next batch's samples; None: there will be none."""
        with self._changed:
            while not (self._closed or self._planned or self._waiting):
                self._changed.wait()
            if self._planned:
                return self._planned.popleft()
            return self._waiting.take(time.monotonic()) if self._waiting else None

    def _answer(self, samples: list) -> None:
        logits, starts = None, []
        try:
            if not self._failed:
                logits, starts = self._run([self._samples[place] for _, place in samples])
        except BaseException as error:  # whatever it is: LoadGen waits for these samples
            with self._changed:
                first, self._failed = not self._failed, True
            if first:
                self._on_error(error)
        self._complete(samples, logits, starts)

    def _run(self, features: list[Feature]) -> tuple[np.ndarray, list[int]]:
        """(logits of the batch, contiguous; where each window's begin in them, in tokens)."""
        batch = self._batch(features)
        with self._engine_lock:
            run = self._engine.submit(batch)
        logits = np.ascontiguousarray(run.result(), np.float32)
        if self._packed:
            return logits, batch.cu_seqlens[:-1].tolist()
        return logits, list(range(0, logits.shape[0] * logits.shape[1], logits.shape[1]))

    def _batch(self, features: list[Feature]) -> Batch:
        if self._packed:
            return packed_batch(features)
        return padded_batch(features, self._engine.padded_length(max(feature.length for feature in features)))

    def _complete(self, samples: list, logits: np.ndarray | None, starts: list[int]) -> None:
        response = loadgen.QuerySampleResponse
        if logits is None:
            responses = [response(number, 0, 0) for number, _ in samples]
        else:
            token, address = 2 * logits.itemsize, logits.ctypes.data
            lengths = self._lengths[[place for _, place in samples]].tolist()
            responses = [
                response(number, address + token * start, token * length)
                for (number, _), start, length in zip(samples, starts, lengths)
            ]
        self.answered += len(samples)
        loadgen.QuerySamplesComplete(responses)  # it copies what it keeps
