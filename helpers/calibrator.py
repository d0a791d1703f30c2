"""Post-training quantization: the float network reads SQuAD text, and each tensor's range is taken down.

It runs on the CPU, whatever the engine is for. The ranges have the names that QAT checkpoints give theirs
(docs/architecture.md, "Quantization ranges"), so that one set of them serves every backend, those by channel aside, which need not
be used.
"""

import re
from collections.abc import Callable

import numpy as np

from helpers import quantization
from helpers.answer_options import AnswerOptions
from helpers.batching import PaddedBatch, padded_batch
from helpers.bert_config import BertConfig
from helpers.data_processing import make_features
from helpers.errors import DemoBertError, UsageError, missing_package
from helpers.squad import SquadExample
from helpers.tokenization import Tokenizer
from helpers.weights import BertWeights

#: The share of values that method "percentile" keeps unclipped.
PERCENTILE = 0.99999

#: The same of what a feed-forward part adds to the residual (read with `-iln` only). In trained BERTs it puts one channel
#: of one token of a text far out, which the layer norm after it takes down: in the bundled model to 270, where others stay
#: under 7. That is one of 60,000 values, too many for the share above; kept, it left 2 or 3 steps to all the others.
BRANCH_PERCENTILE = 0.9999
_BRANCH = re.compile("^l[0-9]+_output_add_local_")

#: Ranges that keep their largest value by any method. Layer norms put some channels of a few tokens far out, and the
#: answers hang on them (arXiv:2109.12948); most of attention's probabilities are near 0, and it is the others that count.
_KEPT_WHOLE = re.compile("_(query|key|value|intermediate_dense|av_a|add_residual|final)_input_")

#: Bins of a histogram. It covers its tensor's values; when larger ones come, neighbouring bins are merged.
BINS = 2048

#: The shortest window with room for some question, some passage, and three separators, in tokens.
SHORTEST_WINDOW = 8

#: Levels of an int8 tensor on one side of 0, which is what the entropy method compares with.
_LEVELS = 128


class Histogram:
    """Counts of a tensor's absolute values, int64 [BINS], over 0 to `limit`, which doubles until all values fit."""

    def __init__(self):
        self.limit = 0.0
        self.largest = 0.0
        self.counts = np.zeros(BINS, np.int64)

    def add(self, values: np.ndarray) -> None:
        """Count float32 values of any shape. Raises DemoBertError for NaN and infinite ones."""
        magnitudes = np.abs(values, dtype=np.float32).ravel()
        largest = float(magnitudes.max())
        if not np.isfinite(largest):
            raise DemoBertError("calibration met a value that is not finite: the model's weights overflow on this text")
        self.largest = max(self.largest, largest)
        if self.limit == 0.0:
            self.limit = largest
        while self.limit < largest:
            self.limit *= 2
            self.counts = np.concatenate([self.counts.reshape(-1, 2).sum(1), np.zeros(BINS // 2, np.int64)])
        if self.limit == 0.0:  # nothing but zeros so far
            self.counts[0] += magnitudes.size
            return
        magnitudes *= np.float32(BINS / self.limit)
        bins = np.minimum(magnitudes.astype(np.int32), BINS - 1)
        self.counts += np.bincount(bins, minlength=BINS)

    def amax(self, method: str, percentile: float = PERCENTILE) -> float:
        """The range by one of CALIBRATION_METHODS; never above the largest value seen."""
        if method == "max" or self.largest == 0.0:
            return self.largest
        kept = self._percentile_bins(percentile) if method == "percentile" else self._entropy_bins()
        return min(self.largest, kept * self.limit / BINS)

    def _percentile_bins(self, percentile: float) -> int:
        share = np.cumsum(self.counts) / self.counts.sum()
        return int(np.searchsorted(share, percentile)) + 1

    def _entropy_bins(self) -> int:
        """How many bins to keep so that the int8 distribution tells most of the float one.

        The least Kullback-Leibler divergence over all cuts, as in S. Migacz, "8-bit inference with TensorRT" (GTC 2017).
        """
        counts = self.counts.astype(np.float64)
        last = int(np.flatnonzero(counts)[-1]) + 1
        cuts = range(min(_LEVELS, last), last + 1, 4)
        return min(cuts, key=lambda cut: _divergence(counts, cut))


def _divergence(counts: np.ndarray, cut: int) -> float:
    """KL divergence of the first `cut` bins, values beyond them clipped into the last, from their int8 image."""
    reference = counts[:cut].copy()
    reference[-1] += counts[cut:].sum()
    level = np.arange(cut) * _LEVELS // cut
    present = counts[:cut] > 0
    sums = np.bincount(level, counts[:cut], minlength=_LEVELS)
    bins = np.bincount(level, present, minlength=_LEVELS)
    image = np.where(present, (sums / np.maximum(bins, 1))[level], 0.0)
    reference /= reference.sum()
    total = image.sum()
    image = image / total if total > 0 else image
    held = (reference > 0) & (image > 0)
    missed = reference[(reference > 0) & (image <= 0)].sum()
    return float((reference[held] * np.log(reference[held] / image[held])).sum() + missed * 50)


class RangeRecorder:
    """Takes the ranges of a float network's activations from the values that they are shown to have.

    A histogram of each tensor, and, of what layer norms hand to dense layers, each channel's largest value. Where a
    range has several names (query, key and value read one tensor) only the first is recorded; it is reported for all.
    """

    def __init__(self, config: BertConfig):
        self._config = config
        self._histograms: dict[str, Histogram] = {}
        self._channels: dict[str, np.ndarray] = {}
        self._with_channels = set(quantization.channel_range_names(config).values())

    def add(self, name: str, values: np.ndarray) -> None:
        """Count float32 values [..., E] of the tensor whose range is `name`. Raises DemoBertError if not all are finite."""
        self._histograms.setdefault(name, Histogram()).add(values)
        if name in self._with_channels:
            largest = np.abs(values).reshape(-1, values.shape[-1]).max(axis=0)
            self._channels[name] = np.maximum(self._channels.get(name, 0), largest)

    def ranges(self, method: str) -> dict[str, float | np.ndarray]:
        """Every activation's range (`quantization.range_names`) by one of CALIBRATION_METHODS, and those by channel, float32 [E].

        Those are always the largest values; 0 where the whole tensor's range is. Raises DemoBertError where a range
        would be far too large.
        """
        ranges = {name: self._range(name, method) for name in quantization.range_names(self._config)}
        by_channel = quantization.channel_range_names(self._config)
        return ranges | {
            name: np.where(ranges[tensor], self._channels[tensor], np.float32(0)) for name, tensor in by_channel.items()
        }

    def _range(self, name: str, method: str) -> float:
        """The largest value by any method where _KEPT_WHOLE says so; 0 where values are too small for float32."""
        smallest, largest = quantization.PLAUSIBLE
        histogram = self._histograms[re.sub("_(key|value)_input_amax$", "_query_input_amax", name)]
        percentile = BRANCH_PERCENTILE if _BRANCH.match(name) else PERCENTILE
        amax = histogram.amax("max" if _KEPT_WHOLE.search(name) else method, percentile)
        if amax >= largest:
            raise DemoBertError(f"the model can't be quantized: the range {name} would be {amax:g}")
        return amax if amax > smallest else 0.0


def calibration_batches(
    examples: list[SquadExample], tokenizer: Tokenizer, sequence_length: int, samples: int
) -> list[PaddedBatch]:
    """The first window of `samples` questions, taken evenly from `examples`, each as a batch of one row.

    Fewer where there are fewer. Raises DemoBertError for text that can't be used.
    """
    if sequence_length < SHORTEST_WINDOW:
        raise UsageError(f"calibration reads windows of {SHORTEST_WINDOW} tokens at least: give a longer -s")
    count = min(samples, len(examples))
    chosen = [examples[i * len(examples) // count] for i in range(count)]
    max_query_length = min(AnswerOptions.max_query_length, sequence_length // 2)
    batches = []
    for example in chosen:
        question, passage = tokenizer.encode(example.question, "question"), tokenizer.encode(example.passage, "passage")
        feature = make_features(question, passage, tokenizer, sequence_length, max_query_length)[0]
        batches.append(padded_batch([feature]))
    return batches


def calibrate(
    weights: BertWeights,
    pre_normalised: bool,
    batches: list[PaddedBatch],
    method: str,
    on_progress: Callable[[], object] = lambda: None,
) -> dict[str, float | np.ndarray]:
    """The ranges of the float network over the batches, as `RangeRecorder.ranges` gives them.

    `on_progress` is called after each batch. Raises DemoBertError for activations that are not finite, or far too large.
    """
    try:
        from helpers.backends.openvino.observation import observe
    except ImportError as error:
        raise missing_package(error.name, "openvino", "calibration, on the CPU,") from error

    recorder = RangeRecorder(weights.config)
    for tensors in observe(weights, pre_normalised, batches):
        for name, values in tensors.items():
            recorder.add(name, values)
        on_progress()
    return recorder.ranges(method)
