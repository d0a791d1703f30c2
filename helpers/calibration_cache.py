"""The calibration cache: a text file of ranges under fingerprints of all that they were taken of.

A title, five facts (`Fingerprint`), then a line for each range: its name and its value, or the value of each channel.
TensorRT's own caches of this project's plugin networks can be read, too.
"""

import hashlib
import re
import struct
from dataclasses import dataclass

import numpy as np

from helpers import quantization
from helpers.bert_config import BertConfig
from helpers.errors import DemoBertError
from helpers.files import read_text, require_file, sha256_of
from helpers.outputs import atomic_write
from helpers.tokenization import Tokenizer
from helpers.weights import BertWeights

_KIND = "demoBERT calibration cache"
_TITLE = f"{_KIND} 2"

#: The fields of a Fingerprint, as a message calls them.
_FACTS = {
    "model": "model",
    "data": "text or vocabulary",
    "length": "sequence length",
    "samples": "number of samples",
    "method": "method",
}


@dataclass(frozen=True)
class Fingerprint:
    """What a set of ranges was taken of: `model` and `data` are SHA-256, `length` is the longest window's, in tokens.

    Where one is looked for, None stands for any.
    """

    model: str | None
    data: str | None
    length: int | None
    samples: int | None
    method: str | None


def model_fingerprint(weights: BertWeights, pre_normalised: bool) -> str:
    """SHA-256 over what decides the float network's activations: configuration and weights, not their file's format."""
    config = weights.config
    facts = (config.hidden_size, config.num_hidden_layers, config.num_attention_heads, config.layer_norm_eps)
    sharing = () if config.layer_groups is None else (config.layer_groups, config.layers_per_group)
    digest = hashlib.sha256(repr((*facts, config.gelu, pre_normalised, *sharing)).encode())
    for name in sorted(weights.tensors):
        digest.update(f"{name} {weights[name].shape}".encode())
        digest.update(np.ascontiguousarray(weights[name]))
    return digest.hexdigest()


def data_fingerprint(path, tokenizer: Tokenizer) -> str:
    """SHA-256 over the calibration text and the tokenizer that it is read with."""
    parts = sha256_of(require_file(path, "calibration data")), tokenizer.sha256
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()


def write_cache(path, fingerprint: Fingerprint, ranges: dict[str, float | np.ndarray]) -> None:
    """Write a calibration cache, whole or not at all: the fingerprint, then a tensor a line. Raises DemoBertError."""
    facts = [f"{name} {value}" for name, value in vars(fingerprint).items()]
    lines = [f"{name} {_numbers(amax)}" for name, amax in ranges.items()]
    with atomic_write(path, "w") as file:
        file.write("\n".join([_TITLE, *facts, *lines]) + "\n")


def _numbers(amax) -> str:
    """One range, or a range for each channel, with as many digits as float32 needs to be read back."""
    return " ".join(f"{value:.9g}" for value in np.ravel(amax).astype(np.float32))


@dataclass(frozen=True)
class CachedRanges:
    """What a cache holds: the ranges by their names, numbers or (by channel) float32 [E], and their origin, for people."""

    ranges: dict[str, float | np.ndarray]
    origin: str


def read_fingerprint(path) -> Fingerprint:
    """What a cache of ours says that it was taken of. Raises DemoBertError for a file that is none."""
    return Fingerprint(**_facts(path, read_text(path, "calibration cache").splitlines()))


def read_cache(path, wanted: Fingerprint, config: BertConfig) -> CachedRanges:
    """Read a calibration cache, ours or TensorRT's. Raises DemoBertError where it is damaged or of another thing.

    TensorRT's caches say nothing of what they were taken of, so that their tensors' names are all that is checked.
    """
    lines = read_text(path, "calibration cache").splitlines()
    if lines and re.fullmatch(r"TRT-\d+-\w+", lines[0]):
        return CachedRanges(_tensorrt_ranges(path, lines[1:], config), "TensorRT's own")
    facts = _facts(path, lines)
    for name, value in vars(wanted).items():
        if value is not None and facts[name] != str(value):
            values = "" if name in ("model", "data") else f" ({facts[name][:30]}, not {value})"
            raise DemoBertError(
                f"the calibration cache {path} was taken of another {_FACTS[name]}{values}: remove it to calibrate "
                "again, or name another with --calib-path"
            )
    ranges = {}
    channels = quantization.channel_range_names(config)
    for line in lines[1 + len(_FACTS) :]:
        name, _, text = line.partition(" ")
        if name in ranges:
            raise _damaged(path, f"it has {name[:100]} twice")
        ranges[name] = _channels(path, name, text, config) if name in channels else _number(path, name, text)
    _check_names(path, ranges, [*quantization.range_names(config), *channels])
    _check_values(path, ranges)
    method, samples, length = (facts[name][:20] for name in ("method", "samples", "length"))
    return CachedRanges(ranges, f"{method}, {samples} windows of up to {length} tokens")


def _facts(path, lines: list[str]) -> dict[str, str]:
    """The fields of the Fingerprint, as text."""
    if not lines or lines[0] != _TITLE:
        is_ours = bool(lines) and re.fullmatch(rf"{_KIND} \d+", lines[0])
        kind = "a calibration cache of another version of demoBERT" if is_ours else "not a calibration cache"
        raise DemoBertError(f"{kind}: {path}; name another with --calib-path, or remove it")
    facts = dict(line.partition(" ")[::2] for line in lines[1 : 1 + len(_FACTS)])
    for name in _FACTS:
        if name not in facts:
            raise _damaged(path, f"it does not say its {name}")
    return {name: facts[name] for name in _FACTS}


def _damaged(path, what: str) -> DemoBertError:
    return DemoBertError(f"the calibration cache {path} is damaged: {what}; remove it")


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
        raise _damaged(path, fault)


def _channels(path, name: str, text: str, config: BertConfig) -> np.ndarray:
    """The ranges of one tensor's channels."""
    texts = text.split(" ", config.hidden_size)
    if len(texts) != config.hidden_size:
        raise _damaged(path, f"{name} has not {config.hidden_size} ranges")
    return np.array([_number(path, name, value) for value in texts])


def _number(path, name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = np.nan
    if not np.isfinite(value):
        raise _damaged(path, f"{name[:100]} has the range {text[:30]!r}")
    return value
