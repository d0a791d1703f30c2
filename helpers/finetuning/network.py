"""BERT in torch, computed as `bert_network.py` speaks: for training, with gradients and simulated int8."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.nn import functional

from helpers import quantization
from helpers.batching import PaddedBatch
from helpers.bert_config import BertConfig
from helpers.bert_network import build_bert
from helpers.network_layers import NetworkLayers, Normalised

#: Added to the score of a padded key: e^-30000 is 0, and -30000 is exact enough in every float type.
_MASKED_SCORE = -30000.0

_LARGEST = quantization.LARGEST["int8"]


class TorchWeights(dict):
    """Canonical name → torch tensor: the `weights` of `build_bert`."""

    def stacked(self, names: list[str]) -> torch.Tensor:
        """The named tensors one below the other."""
        return torch.cat([self[name] for name in names])


@dataclass
class Network:
    """One BERT for question answering: its weights, and how it computes.

    config         the model's, GELU's formula known
    weights        canonical name → float32 tensor
    half           matrix products in bfloat16, everything else in float32 or as the products leave it
    input_ranges   the first name of a tensor's ranges (`quantization.tensor_ranges`, and attention's probabilities) → amax, a
                   float32 scalar tensor: what reads the tensor reads int8, simulated; None: a float network. Dense
                   layers have to have theirs; where a branch has one, its residual is read by its own dense layer's
    """

    config: BertConfig
    weights: TorchWeights
    half: bool = False
    input_ranges: dict[str, torch.Tensor] | None = field(default=None)

    @property
    def device(self) -> torch.device:
        return self.weights["cls_squad_output_bias"].device

    def rounds(self, name: str) -> bool:
        """Whether the tensor of the range `name` is int8, simulated."""
        return name in (self.input_ranges or ())

    def run(
        self, batch: PaddedBatch, dropout: float = 0.0, observe: Callable[[str, torch.Tensor], None] | None = None
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Start and end logits float32 [B, S, 2], and the output of each encoder layer, [B, S, E].

        `observe(name, tensor)` is given every tensor that has a quantization range, by the range's (first) name
        (helpers/quantization.py), before anything is rounded.
        """
        layers = _TorchLayers(self, batch, dropout, observe)
        build_bert(layers, self.config, self.weights)
        return layers.logits, layers.layer_outputs


class _TorchLayers(NetworkLayers):
    """Computes each layer as it is named. Activations are [B, S, E]."""

    def __init__(self, network: Network, batch: PaddedBatch, dropout: float, observe):
        self._network = network
        self._dtype = torch.bfloat16 if network.half else torch.float32
        self._dropout = dropout
        self._observe = observe or (lambda name, tensor: None)
        # With gradients, torch's fused attention takes twice the time of plain products on a CPU in bfloat16; and what
        # it computes on the way there is no observing.
        in_int8 = network.rounds(quantization.matmul_input_name("l0_attention_self", quantization.PROBABILITIES))
        self._fused = observe is None and network.device.type == "cuda" and not in_int8
        on_device = {name: to_device(array, network.device) for name, array in batch.inputs().items()}
        self._input_ids, self._segment_ids = on_device["input_ids"], on_device["segment_ids"]
        masked = (1 - on_device["input_mask"])[:, None, None, :].to(self._dtype)
        self._mask_scores = masked * _MASKED_SCORE
        self.logits: torch.Tensor | None = None
        self.layer_outputs: list[torch.Tensor] = []

    def embeddings(self, word, token_type, position, gamma, beta, name):
        length = self._input_ids.shape[1]
        total = functional.embedding(self._input_ids, word) + functional.embedding(self._segment_ids, token_type)
        total = total + position[:length]
        normal = self._normalise(total, gamma, beta)
        return Normalised(self._dropped(normal), total)

    def projection(self, hidden, kernel, bias, name):
        return self._product(hidden, kernel, bias)

    def query_key_value(self, hidden, kernel, bias, name):
        return self.dense(hidden, kernel, bias, name)

    def attention(self, query_key_value, heads, name):
        config = self._network.config
        split = query_key_value.unflatten(-1, (3, heads, config.head_size))
        query, key, value = split.permute(2, 0, 3, 1, 4)  # each [B, N, S, H]
        for which, part in zip(quantization.MATMUL_INPUTS, (query, key, value), strict=True):
            self._observe(quantization.matmul_input_name(name, which), part)
        shared = quantization.matmul_input_name(name, quantization.MATMUL_INPUTS[0])  # in plugins it is one tensor
        query, key, value = (self._rounded(part, shared) for part in (query, key, value))
        if self._fused:
            settings = {"dropout_p": self._dropout, "scale": config.attention_scale}
            mask = self._mask_scores.expand(-1, heads, query.shape[2], -1)
            context = functional.scaled_dot_product_attention(query, key, value, mask, **settings)
            return context.transpose(1, 2).flatten(2)
        scores = (query * config.attention_scale) @ key.transpose(-1, -2) + self._mask_scores
        probabilities = scores.softmax(-1)
        probabilities_name = quantization.matmul_input_name(name, quantization.PROBABILITIES)
        self._observe(probabilities_name, probabilities)
        context = self._dropped(self._rounded(probabilities, probabilities_name)) @ value
        return context.transpose(1, 2).flatten(2)

    def dense(self, hidden, kernel, bias, name):
        range_name = quantization.dense_input_names(name)[0]
        self._observe(range_name, hidden)
        if self._network.input_ranges is None:
            return self._product(hidden, kernel, bias)
        return _Int8Dense.apply(hidden, kernel, bias, self._network.input_ranges[range_name], self._dtype)

    def gelu(self, hidden, formula, name):
        return functional.gelu(hidden, approximate={"erf": "none", "tanh": "tanh"}[formula])

    def add_and_normalise(self, branch, residual, gamma, beta, name):
        self._observe(quantization.branch_name(name), branch)
        self._observe(quantization.residual_name(name), residual)
        if self._network.rounds(quantization.branch_name(name)):
            branch = self._rounded(branch, quantization.branch_name(name))
            residual = self._rounded(residual, quantization.dense_input_names(_reader_of_residual(name))[0])
        total = residual + self._dropped(branch)
        normal = self._normalise(total, gamma, beta)
        if not name.endswith("_attention_output_layernorm"):
            self.layer_outputs.append(normal)
        return Normalised(normal, total)

    def squad_output(self, hidden, kernel, bias, name):
        self._observe(quantization.FINAL_NAME, hidden)
        self.logits = self._product(self._rounded(hidden, quantization.FINAL_NAME), kernel, bias).float()

    def _rounded(self, tensor: torch.Tensor, name: str) -> torch.Tensor:
        """`tensor` as int8 has it, where the range `name` says so."""
        return _Int8Values.apply(tensor, self._network.input_ranges[name]) if self._network.rounds(name) else tensor

    def _product(self, hidden, kernel, bias):
        return functional.linear(*(tensor.to(self._dtype) for tensor in (hidden, kernel, bias)))

    def _normalise(self, total, gamma, beta):
        return functional.layer_norm(total.float(), gamma.shape, gamma, beta, self._network.config.layer_norm_eps)

    def _dropped(self, hidden):
        return functional.dropout(hidden, self._dropout) if self._dropout else hidden


def _reader_of_residual(norm: str) -> str:
    """The dense layer that reads what `norm` adds its branch to."""
    layer = norm.partition("_")[0]
    return f"{layer}_attention_self" if norm.endswith("_attention_output_layernorm") else f"{layer}_intermediate_dense"


def to_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """`array` as a tensor on `device`. The copy to a GPU waits for nothing that the GPU does."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _in_steps(values: torch.Tensor, step: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(`values` in steps, rounded and clipped; which of them were not clipped; the gradient of each by its step)."""
    scaled = values.float() / step
    rounded = scaled.round().clamp_(-_LARGEST, _LARGEST)
    inside = scaled.abs() <= _LARGEST
    return rounded, inside, rounded - scaled * inside


class _Int8Values(torch.autograd.Function):
    """A tensor rounded to steps of amax / 127, half to even, clipped to ±127 of them; gradients as _Int8Dense's."""

    @staticmethod
    def forward(ctx, values, amax: torch.Tensor):
        step = amax / _LARGEST
        rounded, inside, slope = _in_steps(values, step)
        ctx.save_for_backward(inside, slope.to(values.dtype))
        return (rounded * step).to(values.dtype)

    @staticmethod
    def backward(ctx, gradient):
        inside, slope = ctx.saved_tensors
        range_gradient = torch.dot(gradient.flatten().float(), slope.flatten().float()) / _LARGEST
        return gradient * inside, range_gradient


class _Int8Dense(torch.autograd.Function):
    """hidden · kernelᵀ + bias of int8 values: what an int8 engine computes, with a gradient.

    Forward: hidden is rounded to steps of amax / 127, each row of the kernel to steps of its largest value / 127, half
    to even, clipped to ±127. Integers up to 256 are exact in bfloat16, so in either type the products are those
    of the integers. Backward: as if nothing had been rounded, and no gradient where hidden was clipped (the
    straight-through estimator, arXiv:1308.3432; its use here: arXiv:2004.09602, section 5.2). The gradient of amax is
    that of learned step sizes (arXiv:1902.08153, equation 3).
    """

    @staticmethod
    def forward(ctx, hidden, kernel, bias, amax: torch.Tensor, dtype: torch.dtype):
        step = amax / _LARGEST
        steps = kernel_range(kernel) / _LARGEST  # [out, 1]
        rounded, inside, slope = _in_steps(hidden, step)
        hidden_integers, slope = rounded.to(dtype), slope.to(dtype)
        kernel_integers = (kernel / steps).round_().clamp_(-_LARGEST, _LARGEST).to(dtype)
        ctx.save_for_backward(hidden_integers, kernel_integers, steps, inside, slope, step)
        ctx.hidden_dtype = hidden.dtype
        product = functional.linear(hidden_integers, kernel_integers)
        return torch.addcmul(bias, product.float(), steps.squeeze(1) * step).to(dtype)

    @staticmethod
    def backward(ctx, gradient):
        hidden_integers, kernel_integers, steps, inside, slope, step = ctx.saved_tensors
        rows = gradient.flatten(0, -2)
        unclipped = (rows * steps.squeeze(1).to(rows.dtype)) @ kernel_integers
        hidden_gradient = unclipped.view(hidden_integers.shape) * inside
        kernel_gradient = (rows.t() @ hidden_integers.flatten(0, -2)).float() * step
        range_gradient = torch.dot(unclipped.flatten().float(), slope.flatten().float()) / _LARGEST
        return hidden_gradient.to(ctx.hidden_dtype), kernel_gradient, rows.float().sum(0), range_gradient, None


def kernel_range(kernel: torch.Tensor) -> torch.Tensor:
    """The largest magnitude of each output channel of `kernel` [out, in]: [out, 1]; 1 for a channel of zeros."""
    amax = kernel.detach().abs().amax(1, keepdim=True)
    return torch.where(amax > 0, amax, torch.ones_like(amax))


def encoder_denses(layer: int) -> list[str]:
    """The dense layers of one encoder layer by their canonical names; query, key and value are one."""
    parts = ("attention_self", "attention_output_dense", "intermediate_dense", "output_dense")
    return [f"l{layer}_{part}" for part in parts]
