"""What a model is given before it is trained, from a few windows of the data: quantization ranges, 2:4 masks."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from tqdm import tqdm

from helpers import quantization
from helpers.batching import PaddedBatch
from helpers.calibrator import RangeRecorder
from helpers.errors import UsageError
from helpers.finetuning.network import Network, encoder_denses
from helpers.finetuning.pruning import pruned_2_4

#: How a range is chosen from the values seen (helpers/calibrator.py).
RANGE_METHOD = "percentile"


def measured_ranges(network: Network, batches: Sequence[PaddedBatch]) -> dict[str, float | np.ndarray]:
    """The range of every activation that has one (helpers/quantization.py), by its name, from what `batches` show.

    And those by channel, float32 [E], of what layer norms hand to dense layers.
    """
    recorder = RangeRecorder(network.config)

    def observe(name: str, tensor: torch.Tensor, valid: torch.Tensor) -> None:
        # Padding is computed like text, but no answer depends on it.
        recorder.add(name, _text_only(tensor, valid).float().cpu().numpy())

    _observe_all(network, batches, observe, "Ranges")
    return recorder.ranges(RANGE_METHOD)


def rounded_ranges(
    network: Network, measured: dict[str, float], attention: bool = False, add_and_norm: bool = False
) -> dict[str, torch.Tensor]:
    """Those of `measured` that a QAT network rounds with, as `Network.input_ranges`. A range of 0 counts as 1.

    `attention`, `add_and_norm`: round there, too, as the plugins do with builder.py's -imh and -iln.
    """
    tensors = rounded_tensors(network.config.num_hidden_layers, attention, add_and_norm)
    largest = {names[0]: max(float(measured[name]) for name in names) for names in tensors}
    return {name: torch.tensor(amax or 1.0, device=network.device) for name, amax in largest.items()}


def rounded_tensors(layers: int, attention: bool, add_and_norm: bool) -> list[list[str]]:
    """The names of the ranges of each tensor that is rounded; the first is `Network.input_ranges`' name of it."""
    tensors = [quantization.dense_input_names(dense) for i in range(layers) for dense in encoder_denses(i)]
    for i in range(layers if attention else 0):
        name = f"l{i}_attention_self"
        tensors.append([quantization.matmul_input_name(name, which) for which in quantization.MATMUL_INPUTS])
        tensors.append([quantization.matmul_input_name(name, quantization.PROBABILITIES)])
    if add_and_norm:
        norms = [f"l{i}_{part}_layernorm" for i in range(layers) for part in ("attention_output", "output")]
        tensors += [[quantization.branch_name(norm)] for norm in norms] + [[quantization.FINAL_NAME]]
    return tensors


def _text_only(tensor: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """The values of `tensor` that belong to text: [B, S, …] or [B, N, S, …], `valid` bool [B, S]."""
    return tensor[valid] if tensor.dim() == 3 else tensor.transpose(1, 2)[valid]


def _observe_all(network: Network, batches: Sequence[PaddedBatch], observe, what: str) -> None:
    with torch.inference_mode():
        for batch in tqdm(batches, desc=what, unit="batch", leave=False):
            valid = torch.from_numpy(batch.input_mask).to(network.device).bool()
            network.run(batch, observe=lambda name, tensor: observe(name, tensor, valid))


def prune_encoder(network: Network, batches: Sequence[PaddedBatch]) -> dict[str, torch.Tensor]:
    """Make the encoder's dense kernels of a float `network` 2:4 sparse, in place; their masks, bool [out, in], by name.

    Layer after layer, each on the inputs that the pruned layers before it give. Raises UsageError for sizes that are no
    multiples of 4.
    """
    config, masks = network.config, {}
    heads = {count * config.head_size for count in config.heads_by_layer}
    if any(size % 4 for size in {config.hidden_size, *heads, *config.inner_sizes_by_layer}):
        raise UsageError("--sparse needs a hidden_size and an intermediate_size that are multiples of 4")
    sharing = defaultdict(list)  # the first layer with some weights → all of them
    for i in range(config.num_hidden_layers):
        sharing[config.layer_with_weights(i)].append(i)
    for first, layers in tqdm(sharing.items(), desc="2:4 masks", unit="layer", leave=False):
        owners = {
            quantization.dense_input_names(dense)[0]: own
            for i in layers
            for dense, own in zip(encoder_denses(i), encoder_denses(first), strict=True)
        }
        for dense, moments in _second_moments(network, batches, owners).items():
            for name in quantization.dense_kernel_names(dense):
                network.weights[name], masks[name] = pruned_2_4(network.weights[name], moments)
    return masks


def _second_moments(
    network: Network, batches: Sequence[PaddedBatch], owners: Mapping[str, str]
) -> dict[str, torch.Tensor]:
    """Σ x·xᵀ, float32 [in, in], over the rows x that dense layers read, by the layer that `owners` names for each input."""
    moments = {}

    def observe(name, tensor, valid):
        if dense := owners.get(name):
            rows = tensor[valid].float()
            moments[dense] = moments.get(dense, 0) + rows.t() @ rows

    _observe_all(replace(network, input_ranges=None), batches, observe, "Inputs")
    return moments
