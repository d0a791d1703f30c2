"""Post-training quantization: the float network reads SQuAD text, and each tensor's range is taken down.

It runs on the CPU, whatever the engine is for. The ranges have the names that QAT checkpoints give theirs
(shared/spec/weights.md), so that one set of them serves every backend, those by channel aside, which need not be used.
They are kept in a cache: text, a tensor a line, under the fingerprints of the model and of the text that they were taken of.
"""

import hashlib
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from helpers import quantization
from helpers.batching import PaddedBatch, padded_batch
from helpers.bert_config import BertConfig
from helpers.data_processing import AnswerOptions, make_features
from helpers.errors import DemoBertError, UsageError, missing_package
from helpers.files import atomic_write, read_text, require_file, sha256_of
from helpers.squad import SquadExample
from helpers.tokenization import BertTokenizer
from helpers.weights import BertWeights

#: How a range is chosen from a tensor's histogram; the first is the default.
METHODS = ("percentile", "entropy", "max")

#: The share of values that method "percentile" keeps unclipped.
PERCENTILE = 0.99999

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

    def amax(self, method: str) -> float:
        """The range by one of METHODS; never above the largest value seen."""
        if method == "max" or self.largest == 0.0:
            return self.largest
        kept = self._percentile_bins() if method == "percentile" else self._entropy_bins()
        return min(self.largest, kept * self.limit / BINS)

    def _percentile_bins(self) -> int:
        share = np.cumsum(self.counts) / self.counts.sum()
        return int(np.searchsorted(share, PERCENTILE)) + 1

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


@dataclass(frozen=True)
class Fingerprint:
    """What a set of ranges was taken of: `model` and `data` are SHA-256, `length` is the longest window's, in tokens.

    Where one is looked for, None stands for any.
    """

    model: str
    data: str | None
    length: int
    samples: int | None
    method: str | None


def calibration_batches(
    examples: list[SquadExample], tokenizer: BertTokenizer, sequence_length: int, samples: int
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
    config: BertConfig,
    weights: BertWeights,
    gelu: str,
    pre_normalised: bool,
    batches: list[PaddedBatch],
    method: str,
    on_progress: Callable[[], object] = lambda: None,
) -> dict[str, float | np.ndarray]:
    """The range of every activation (`quantization.range_names`) over the batches, by one of METHODS.

    And those by channel, float32 [E], of the tensors that have them (`quantization.channel_range_names`): always the
    largest values. `on_progress` is called after each batch. Raises DemoBertError for activations that are not finite,
    or far too large.
    """
    try:
        from helpers.backends.openvino.observation import observe
    except ImportError as error:
        raise missing_package(error.name, "openvino", "calibration, on the CPU,") from error

    histograms: dict[str, Histogram] = {}
    by_channel = quantization.channel_range_names(config)
    channels = {name: np.zeros(config.hidden_size, np.float32) for name in by_channel}
    for tensors in observe(config, weights, gelu, pre_normalised, batches):
        for name, values in tensors.items():
            histograms.setdefault(name, Histogram()).add(values)
        for name, tensor in by_channel.items():
            np.maximum(channels[name], np.abs(tensors[tensor]).max(axis=(0, 1)), out=channels[name])
        on_progress()
    ranges = {}
    for name in quantization.range_names(config):
        histogram = histograms[re.sub("_(key|value)_input_amax$", "_query_input_amax", name)]
        ranges[name] = chosen_range(name, histogram, method)
    return with_channels(ranges, channels, config)


def chosen_range(name: str, histogram: Histogram, method: str) -> float:
    """The range `name` by one of METHODS, by "max" where it keeps its largest value by any.

    0 where the values are too small to be of use in float32. Raises DemoBertError where they are too large.
    """
    smallest, largest = quantization.PLAUSIBLE
    amax = histogram.amax("max" if _KEPT_WHOLE.search(name) else method)
    if amax >= largest:
        raise DemoBertError(f"the model can't be quantized: the range {name} would be {amax:g}")
    return amax if amax > smallest else 0.0


def with_channels(
    ranges: dict[str, float], channels: dict[str, np.ndarray], config: BertConfig
) -> dict[str, float | np.ndarray]:
    """`ranges`, and the largest values of `channels` by their ranges' names: 0 where the whole tensor's range is."""
    by_channel = quantization.channel_range_names(config)
    return ranges | {name: np.where(ranges[by_channel[name]], largest, 0) for name, largest in channels.items()}


def model_fingerprint(config: BertConfig, weights: BertWeights, gelu: str, pre_normalised: bool) -> str:
    """SHA-256 over what decides the float network's activations: configuration and weights, not their file's format."""
    facts = (config.hidden_size, config.num_hidden_layers, config.num_attention_heads, config.layer_norm_eps)
    digest = hashlib.sha256(repr((*facts, gelu, pre_normalised)).encode())
    for name in sorted(weights.tensors):
        digest.update(f"{name} {weights[name].shape}".encode())
        digest.update(np.ascontiguousarray(weights[name]))
    return digest.hexdigest()


def data_fingerprint(path, tokenizer: BertTokenizer) -> str:
    """SHA-256 over the calibration text and the vocabulary and case that it is read with."""
    parts = (
        sha256_of(require_file(path, "calibration data")),
        tokenizer.vocabulary.sha256,
        str(tokenizer.do_lower_case),
    )
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()


_KIND = "demoBERT calibration cache"
_TITLE = f"{_KIND} 2"


def write_cache(path, fingerprint: Fingerprint, ranges: dict[str, float | np.ndarray]) -> None:
    """Write a calibration cache, whole or not at all: the fingerprint, then a tensor a line. Raises DemoBertError."""
    facts = [f"{name} {value}" for name, value in vars(fingerprint).items()]
    lines = [f"{name} {_numbers(amax)}" for name, amax in ranges.items()]
    with atomic_write(path, "w") as file:
        file.write("\n".join([_TITLE, *facts, *lines]) + "\n")


def _numbers(amax) -> str:
    """One range, or a range for each channel, with as many digits as float32 needs to be read back."""
    return " ".join(f"{value:.9g}" for value in np.ravel(amax).astype(np.float32))


def read_cache(path, wanted: Fingerprint, config: BertConfig) -> dict[str, float | np.ndarray]:
    """The ranges of a calibration cache, ours or TensorRT's. Raises DemoBertError where it is damaged or of another thing.

    TensorRT's caches say nothing of what they were taken of, so that their tensors' names are all that is checked.
    """
    lines = read_text(path, "calibration cache").splitlines()
    if lines and re.fullmatch(r"TRT-\d+-\w+", lines[0]):
        return _tensorrt_ranges(path, lines[1:], config)
    if not lines or lines[0] != _TITLE:
        is_ours = bool(lines) and re.fullmatch(rf"{_KIND} \d+", lines[0])
        kind = "a calibration cache of another version of demoBERT" if is_ours else "not a calibration cache"
        raise DemoBertError(f"{kind}: {path}; name another with --calib-path, or remove it")
    found = _facts(lines)
    for name, value in vars(wanted).items():
        if name not in found:
            raise DemoBertError(f"the calibration cache {path} is damaged: it does not say its {name}; remove it")
        if value is not None and found[name] != str(value):
            values = "" if name in ("model", "data") else f" ({found[name][:30]}, not {value})"
            raise DemoBertError(
                f"the calibration cache {path} was taken of another {_FACTS[name]}{values}: remove it to calibrate again, "
                "or name another with --calib-path"
            )
    ranges = {}
    channels = quantization.channel_range_names(config)
    for line in lines[1 + len(_FACTS) :]:
        name, _, text = line.partition(" ")
        if name in ranges:
            raise DemoBertError(f"the calibration cache {path} is damaged: it has {name[:100]} twice; remove it")
        ranges[name] = _channels(path, name, text, config) if name in channels else _number(path, name, text)
    _check_names(path, ranges, [*quantization.range_names(config), *channels])
    _check_values(path, ranges)
    return ranges


def _facts(lines: list[str]) -> dict[str, str]:
    """The fingerprint at a cache's head, under its title: name → value."""
    return dict(line.partition(" ")[::2] for line in lines[1 : 1 + len(_FACTS)])


def origin(path) -> str:
    """What a cache that `read_cache` takes was made from, for a message."""
    facts = _facts(read_text(path, "calibration cache").splitlines())
    if "method" not in facts:
        return "TensorRT's own"
    method, samples, length = (facts[name][:20] for name in ("method", "samples", "length"))
    return f"{method}, {samples} windows of up to {length} tokens"


_FACTS = {
    "model": "model",
    "data": "text or vocabulary",
    "length": "sequence length",
    "samples": "number of samples",
    "method": "method",
}


def _tensorrt_ranges(path, lines: list[str], config: BertConfig) -> dict[str, float]:
    """TensorRT's own format: `tensor: scale`, the scale (amax / 127) as the hexadecimal bits of a float32.

    It names tensors, here those of the plugin network (`quantization.tensor_ranges`); those that are unknown are skipped,
    as the inputs and constants that TensorRT lists, too, have no range that is of use.
    """
    known = quantization.tensor_ranges(config.num_hidden_layers)
    ranges = {}
    for line in filter(None, lines):
        tensor, separator, bits = line.rpartition(": ")
        if not separator or not re.fullmatch("[0-9a-f]{8}", bits):
            raise DemoBertError(
                f"the calibration cache {path} is damaged: {line[:100]!r} is not a tensor and its scale"
            )
        scale = struct.unpack(">f", bytes.fromhex(bits))[0]
        for name in known.get(tensor, ()):
            ranges[name] = _number(path, name, str(scale * quantization.LARGEST["int8"]))
    if not ranges:
        raise DemoBertError(f"the calibration cache {path} names no tensor of this model; calibrate again")
    _check_values(path, ranges)
    return ranges


def _check_names(path, ranges: dict, names: list[str]) -> None:
    for kind, wrong in (("lacks", set(names) - set(ranges)), ("has an unknown tensor,", set(ranges) - set(names))):
        if wrong:
            raise DemoBertError(f"the calibration cache {path} {kind} {min(wrong)[:100]}: remove it to calibrate again")


def _check_values(path, ranges: dict) -> None:
    if fault := quantization.implausible(ranges):
        raise DemoBertError(f"the calibration cache {path} is damaged: {fault}; remove it")


def _channels(path, name: str, text: str, config: BertConfig) -> np.ndarray:
    """The ranges of one tensor's channels."""
    texts = text.split(" ", config.hidden_size)
    if len(texts) != config.hidden_size:
        raise DemoBertError(
            f"the calibration cache {path} is damaged: {name} has not {config.hidden_size} ranges; remove it"
        )
    return np.array([_number(path, name, value) for value in texts])


def _number(path, name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = np.nan
    if not np.isfinite(value):
        raise DemoBertError(
            f"the calibration cache {path} is damaged: {name[:100]} has the range {text[:30]!r}; remove it"
        )
    return value
