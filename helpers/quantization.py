"""Quantization ranges by the place in the network that they belong to, and what follows from them: scales, integers.

A range `amax` is symmetric: values of -amax to amax are kept, those beyond are clipped. In int8 a step is amax / 127, in
fp8 (E4M3) amax is put on 448, the type's largest value (arXiv:2004.09602, arXiv:2209.05433). Activations have one range
per tensor, dense kernels one per output channel, or, where a checkpoint says so, one per tensor. This project also takes
one for each channel of what a layer norm hands to a dense layer, for networks that can even the channels out.

Names are those of docs/architecture.md, "Quantization ranges", whoever took the range: helpers/calibrator.py, or training (QAT
checkpoints).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from helpers.bert_config import BertConfig
from helpers.errors import DemoBertError

#: The largest integer and the largest E4M3 float that a range is mapped to.
LARGEST = {"int8": 127.0, "fp8": 448.0}

#: The range of a GELU's output that no other is known for ("gelu10", arXiv:2004.09602).
GELU_RANGE = 10.0

#: How far below 0 a GELU goes: -min x·Φ(x), rounded up, in either formula.
GELU_MINIMUM = 0.1701

#: How much of the difference between an input's channels a kernel takes over: SmoothQuant's α (arXiv:2211.10438). By the
#: bundled model's logits on 240 windows of XQuAD, root mean square off float32: 0 (no smoothing) 0.204, 0.5 0.125,
#: 0.6 0.120, 0.75 0.107, 0.9 0.113.
SMOOTHING = 0.75

#: Between what a range lies that is not 0: float32 holds the squares, inverses and ratios of such values.
PLAUSIBLE = 1e-18, 1e18

_PARTS = ("query", "key", "value")

_CHANNELS = "input_channel_amax"

#: Ranges of query, key and value as they enter the products of attention, and of its probabilities.
MATMUL_INPUTS = ("qv_a", "qv_b", "av_b")
PROBABILITIES = "av_a"


def implausible(ranges: Mapping[str, np.ndarray]) -> str | None:
    """Of the first of `ranges`, one number or one for each channel, that no network has: what to say. None: there is none."""
    for name, amax in ranges.items():
        lowest, highest = np.min(amax), np.max(amax)
        if lowest < 0 or not (highest == 0 or PLAUSIBLE[0] < highest < PLAUSIBLE[1]):
            values = f"{highest:g}" if lowest == highest else f"{lowest:g} to {highest:g}"
            return f"no network has the range {name}, {values}"
    return None


def dense_input_names(dense: str) -> list[str]:
    """The ranges of the input of a dense layer; `l<i>_attention_self` is query, key and value in one."""
    if dense.endswith("_attention_self"):
        return [f"{dense}_{part}_input_amax" for part in _PARTS]
    return [f"{dense}_input_amax"]


def dense_kernel_names(dense: str) -> list[str]:
    """The kernels of a dense layer; `l<i>_attention_self` is query, key and value in one. Their ranges end in `_amax`."""
    if dense.endswith("_attention_self"):
        return [f"{dense}_{part}_kernel" for part in _PARTS]
    return [f"{dense}_kernel"]


def is_gelu_output(dense: str) -> bool:
    """Whether a dense layer reads a GELU's output: the second of the feed-forward part."""
    return dense.endswith("_output_dense") and not dense.endswith("_attention_output_dense")


def matmul_input_name(attention: str, which: str) -> str:
    """The range of one input of attention's products: `which` is of MATMUL_INPUTS, or PROBABILITIES."""
    return f"{attention}_{which}_input_quantizer_amax"


def branch_name(norm: str) -> str:
    """The range of the branch that `l<i>_…_layernorm` adds to the residual."""
    return f"{norm.removesuffix('_layernorm')}_add_local_input_quantizer_amax"


def residual_name(norm: str) -> str:
    """The range of the residual that `l<i>_…_layernorm` adds the branch to."""
    return f"{norm.removesuffix('_layernorm')}_add_residual_input_quantizer_amax"


#: The range of the last layer's output, which the SQuAD head reads.
FINAL_NAME = "bert_encoder_final_input_quantizer_amax"


def tensor_ranges(layer_count: int) -> dict[str, list[str]]:
    """The names of the ranges of each tensor of a BERT, by the canonical name of the layer whose output it is.

    So the tensors are named in TensorRT's plugin networks, and with that in TensorRT's own calibration caches of them.
    `…/sum` is what a layer norm normalised: the residual of pre-normalised networks (Megatron's).
    """
    ranges, norm = {}, "bert_embeddings"
    for i in range(layer_count):
        attention, after_attention, after_feed_forward = (
            f"l{i}_{part}" for part in ("attention_self", "attention_output_layernorm", "output_layernorm")
        )
        ranges |= {
            norm: dense_input_names(attention),
            f"{norm}/sum": [residual_name(after_attention)],
            f"{attention}/query_key_value": [matmul_input_name(attention, which) for which in MATMUL_INPUTS],
            attention: dense_input_names(f"l{i}_attention_output_dense"),
            f"l{i}_attention_output_dense": [branch_name(after_attention)],
            after_attention: dense_input_names(f"l{i}_intermediate_dense"),
            f"{after_attention}/sum": [residual_name(after_feed_forward)],
            f"l{i}_intermediate/gelu": dense_input_names(f"l{i}_output_dense"),
            f"l{i}_output_dense": [branch_name(after_feed_forward)],
        }
        norm = after_feed_forward
    ranges[norm] = [FINAL_NAME]
    return ranges


def range_names(config: BertConfig) -> list[str]:
    """The ranges of all activations that some network quantizes, in the network's order."""
    names = []
    for i in range(config.num_hidden_layers):
        attention, output = f"l{i}_attention_self", f"l{i}_attention_output"
        names += dense_input_names(attention)
        names += [matmul_input_name(attention, which) for which in (*MATMUL_INPUTS, PROBABILITIES)]
        names += dense_input_names(f"{output}_dense")
        names += [branch_name(f"{output}_layernorm"), residual_name(f"{output}_layernorm")]
        names += dense_input_names(f"l{i}_intermediate_dense") + dense_input_names(f"l{i}_output_dense")
        names += [branch_name(f"l{i}_output_layernorm"), residual_name(f"l{i}_output_layernorm")]
    return [*names, FINAL_NAME]


def channel_range_names(config: BertConfig) -> dict[str, str]:
    """The ranges by channel, float32 [E] each: their names → the name of the same tensor's one range.

    Of what layer norms hand to dense layers: a few channels of it reach far beyond all others (arXiv:2109.12948).
    """
    layers, after_norms = range(config.num_hidden_layers), ("attention_self", "intermediate_dense")
    denses = [f"l{i}_{dense}" for i in layers for dense in after_norms]
    return {f"{dense}_{_CHANNELS}": dense_input_names(dense)[0] for dense in denses}


def dense_of_channels(name: str) -> str | None:
    """The dense layer whose input's channels have the ranges `name`; None: that is another range."""
    return name.removesuffix(f"_{_CHANNELS}") if name.endswith(f"_{_CHANNELS}") else None


def has_dense_ranges(config: BertConfig, ranges: Mapping[str, np.ndarray]) -> bool:
    """Whether the input of every dense layer of the encoder has its range (a GELU's output needs none)."""
    layers = range(config.num_hidden_layers)
    denses = [
        f"l{i}_{dense}" for i in layers for dense in ("attention_self", "attention_output_dense", "intermediate_dense")
    ]
    return all(name in ranges for dense in denses for name in dense_input_names(dense))


@dataclass(frozen=True)
class QuantizedDense:
    """What a dense layer of a quantized network rounds: its input, then its kernel.

    limits        what each channel of the input is divided by first, float32 [in], where the channels are evened out; or
                  None
    input_amax    the range of the input as it then is: 1 where the channels are evened out
    kernel        float32 [out, in]: what the evened channels are divided by is in it
    kernel_amax   its range by output channel, float32 [out]
    """

    limits: np.ndarray | None
    input_amax: float
    kernel: np.ndarray
    kernel_amax: np.ndarray


@dataclass(frozen=True)
class Quantization:
    """What a network is quantized to, and its ranges.

    kind      "int8" or "fp8"
    ranges    name → amax, float32 (one number; [in] of an input's channels; [out, 1] of a kernel)
    source    where they come from, for messages
    trained   the ranges of all dense layers are those that the network was trained with
    """

    kind: str
    ranges: Mapping[str, np.ndarray]
    source: str
    trained: bool = False

    @property
    def largest(self) -> float:
        return LARGEST[self.kind]

    def amax(self, *names: str) -> float:
        """The largest of the named ranges that are there. Raises DemoBertError where none is, or all are 0."""
        found = [float(np.max(self.ranges[name])) for name in names if name in self.ranges]
        if not found:
            raise DemoBertError(
                f"{self.source} has no range {names[0]}: calibrate (--squad-json), or take a checkpoint of "
                "quantization-aware training that has them all"
            )
        if max(found) <= 0:
            raise DemoBertError(f"{self.source} can't be used: the range {names[0]} is 0")
        return max(found)

    def known(self, *names: str) -> float | None:
        """`amax`, or None where none of the named ranges is there; a GELU's output has one in any case."""
        if any(name in self.ranges for name in names):
            return self.amax(*names)
        return GELU_RANGE if any(is_gelu_output(name.removesuffix("_input_amax")) for name in names) else None

    def dense_input(self, dense: str) -> float:
        """amax of a dense layer's input (`dense_input_names`)."""
        names = dense_input_names(dense)
        return self.known(*names) or self.amax(*names)

    def evens_out(self, dense: str) -> bool:
        """Whether the ranges of the channels of a dense layer's input are known, and of use: fp8's steps grow with the values."""
        return self.kind == "int8" and f"{dense}_{_CHANNELS}" in self.ranges

    def _channel_limits(self, dense: str, kernel: np.ndarray) -> np.ndarray | None:
        """What each channel of a dense layer's input is divided by to come between -1 and 1, float32 [in].

        `kernel` [out, in], which is to be multiplied by them. They even the input's channels out, as far as the kernel
        stays even itself (SMOOTHING; equation 4 of arXiv:2211.10438). None where they are not known, or of no use: then
        `dense_input` is for all.

        What the tensor's one range clips counts as clipped: training has learned to (the bundled model's QAT, logits on 120
        windows of XQuAD, root mean square off float32: one range 0.147, channels 0.141, clipped 0.110).
        """
        if not self.evens_out(dense):
            return None
        largest = self.ranges[f"{dense}_{_CHANNELS}"]
        whole = max(
            (np.max(self.ranges[name]) for name in dense_input_names(dense) if name in self.ranges), default=np.inf
        )
        inputs, weights = _above_nothing(np.minimum(largest, whole)), _above_nothing(np.abs(kernel).max(axis=0))
        factors = inputs**SMOOTHING / weights ** (1 - SMOOTHING)
        return (factors * (inputs / factors).max()).astype(np.float32)

    def kernel(self, dense: str, kernel: np.ndarray) -> np.ndarray:
        """amax of each output channel of `kernel` [out, in], float32 [out]; of `l<i>_attention_self`, [3E, in].

        The checkpoint's where it has them, else the kernel's own largest values.
        """
        names = [f"{name}_amax" for name in dense_kernel_names(dense)]
        parts = [
            np.broadcast_to(np.ravel(self.ranges[name]), part.shape) if name in self.ranges else part
            for name, part in zip(names, np.split(_largest_by_row(kernel), len(names)))
        ]
        return _or_one(np.concatenate(parts))

    def dense(self, dense: str, kernel: np.ndarray) -> QuantizedDense:
        """How the dense layer with `kernel` [out, in] is rounded. Raises DemoBertError where its input has no range.

        Where the input's channels are evened out, their limits are in the kernel. Training may have clipped that: it
        stays clipped, and its ranges are then new ones.
        """
        amax, limits = self.kernel(dense, kernel), self._channel_limits(dense, kernel)
        if limits is None:
            return QuantizedDense(None, self.dense_input(dense), kernel, amax)
        kernel = np.clip(kernel, -amax[:, None], amax[:, None]) * limits
        return QuantizedDense(limits, 1.0, kernel, _largest_by_row(kernel))

    def steps(self, amax) -> np.ndarray:
        """The steps of ranges, float32."""
        return np.float32(amax) / np.float32(self.largest)


def _largest_by_row(kernel: np.ndarray) -> np.ndarray:
    """amax of each output channel of `kernel` [out, in], float32 [out]."""
    return _or_one(np.abs(kernel).max(axis=1).astype(np.float32))


def _or_one(amax: np.ndarray) -> np.ndarray:
    """1 for a channel of zeros, which stays zero with any step."""
    return np.where(amax > 0, amax, np.float32(1))


def _above_nothing(amax: np.ndarray) -> np.ndarray:
    """Ranges of channels as float64, silent ones as 1e-5 of the largest; all 1 where all are 0."""
    amax = np.asarray(amax, np.float64)
    return np.maximum(amax, 1e-5 * amax.max()) if amax.max() > 0 else np.ones_like(amax)


def to_int8(values: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """round(values / scale), half to even, clipped to -127…127, int8; `scale` broadcasts against `values`."""
    return np.clip(np.rint(values / scale), -LARGEST["int8"], LARGEST["int8"]).astype(np.int8)
