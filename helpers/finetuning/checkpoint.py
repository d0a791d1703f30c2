"""What fine-tuning reads and writes: the starting checkpoint, the state of a run, the finished model's folder."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from helpers import quantization
from helpers.bert_config import PER_LAYER, BertConfig
from helpers.errors import DemoBertError, one_line
from helpers.families import FAMILIES
from helpers.finetuning.network import Network, TorchWeights, encoder_denses, kernel_range
from helpers.finetuning.preparing import rounded_tensors
from helpers.finetuning.training import TrainingState
from helpers.outputs import atomic_write, write_json
from helpers.weights import BertWeights, bert_weights
from helpers.weights.canonical import POSITIONS, TOKEN_TYPES, StoredTensor, expected_shapes
from helpers.weights.pytorch_checkpoint import load_pytorch
from helpers.weights.pytorch_names import pytorch_name

MODEL_NAME = "model.safetensors"
ONNX_NAME = "model_fake_quant.onnx"
STATE_NAME = "training_state.safetensors"

#: BERT's own standard deviation of fresh weights (arXiv:1810.04805's code: initializer_range).
_FRESH_DEVIATION = 0.02


def read_checkpoint(path, config: BertConfig, gelu: str | None, seed: int) -> tuple[BertWeights, bool]:
    """The starting weights, and whether their SQuAD head is fresh: random, as the checkpoint has none.

    `gelu` overrules the configuration's formula. Raises DemoBertError.
    """
    stored = load_pytorch(path, config)
    head = {"cls_squad_output_weights": (2, config.hidden_size), "cls_squad_output_bias": (2,)}
    fresh = not any(name in stored.tensors for name in head)
    if fresh:
        generator = np.random.default_rng(seed)
        for name, shape in head.items():
            values = generator.normal(0.0, _FRESH_DEVIATION, shape).astype(np.float32)
            stored.add(name, StoredTensor(shape, lambda values=values: values))
    return bert_weights(stored, config, gelu), fresh


def to_torch(weights: BertWeights, device: torch.device) -> TorchWeights:
    """The tensors of `weights`, copied to `device`."""
    return TorchWeights({name: torch.tensor(array, device=device) for name, array in weights.tensors.items()})


def all_ranges(network: Network, measured: dict[str, float]) -> dict[str, np.ndarray]:
    """Every quantization range by its canonical name, float32: `measured` as scalars, the kernels' own [out, 1].

    Where the network rounds a tensor, the range that it rounds with stands, whatever was measured since.
    """
    ranges = {name: np.float32(amax) for name, amax in measured.items()}
    layers = network.config.num_hidden_layers
    for names in rounded_tensors(layers, attention=True, add_and_norm=True):
        if network.rounds(names[0]):
            ranges |= dict.fromkeys(names, np.float32(network.input_ranges[names[0]].item()))
    for i in range(layers):
        for dense in encoder_denses(i):
            for name in quantization.dense_kernel_names(dense):
                if name in network.weights:  # layers that share their weights have them under one's name
                    ranges[f"{name}_amax"] = kernel_range(network.weights[name]).cpu().numpy()
    return ranges


def write_model(folder: Path, network: Network, ranges: dict[str, np.ndarray], config_values: dict) -> None:
    """Write `folder`/model.safetensors, Hugging Face's names and `_amax`, and config.json beside it."""
    config = network.config
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in network.weights.items()}
    if config.first_position:  # rows of the table that no token of a text is at
        unused = torch.zeros(config.first_position, config.table_width)
        weights[POSITIONS] = torch.cat([unused, weights[POSITIONS]])
    if not FAMILIES[config.model_type].has_segments:
        del weights[TOKEN_TYPES]
    tensors = {pytorch_name(name, config): tensor for name, tensor in weights.items()}
    tensors |= {pytorch_name(name): torch.tensor(amax) for name, amax in ranges.items()}
    architecture = f"{FAMILIES[config.model_type].class_prefix}ForQuestionAnswering"
    sizes = {name: list(sizes) for name in PER_LAYER if (sizes := getattr(config, name)) is not None}
    write_json(
        folder / "config.json",
        config_values | {"architectures": [architecture], "model_type": config.model_type} | sizes,
    )
    with atomic_write(folder / MODEL_NAME) as file:
        file.write(save(tensors, metadata={"format": "pt"}))


@dataclass(frozen=True)
class StateFile:
    """The file that a run is resumed from. `fingerprint` says which run: all that its outcome depends on."""

    path: Path
    fingerprint: str

    def write(self, state: TrainingState) -> None:
        """Whole or not at all. Only what is trained is kept: the rest is in the starting checkpoint."""
        tensors = {f"value/{name}": tensor.detach() for name, tensor in state.parameters().items()}
        for name, (mean, square) in state.moments.items():
            tensors |= {f"mean/{name}": mean, f"square/{name}": square}
        tensors |= {f"mask/{name}": mask for name, mask in state.masks.items()}
        tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        with atomic_write(self.path) as file:
            file.write(save(tensors, metadata={"fingerprint": self.fingerprint, "place": _place_of(state)}))

    def read_into(self, state: TrainingState) -> bool:
        """Bring `state` to where the file's run stood. False: there is no file. Raises DemoBertError."""
        if not self.path.exists():
            return False
        hint = f"delete it to start again: {self.path}"
        try:
            with safe_open(self.path, framework="pt") as file:
                header = file.metadata() or {}
                if header.get("fingerprint") != self.fingerprint:
                    raise DemoBertError(f"the folder holds the state of a run with other data or settings; {hint}")
                tensors = {name: file.get_tensor(name) for name in file.keys()}
            _restore(state, json.loads(header["place"]), tensors)
        except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
            raise DemoBertError(one_line(f"the state of an earlier run is damaged ({error}); {hint}")) from error
        return True


def _place_of(state: TrainingState) -> str:
    """How far a run has come, and the sizes that structured pruning left, as JSON."""
    place = {"step": state.step, "speed": state.speed}
    return json.dumps(place | {name: getattr(state.network.config, name) for name in PER_LAYER})


def _restore(state: TrainingState, place: dict, tensors: dict[str, torch.Tensor]) -> None:
    """Raises KeyError, TypeError or ValueError for a place or tensors that are not those of the run."""
    network = state.network
    sizes = {name: place[name] and tuple(place[name]) for name in PER_LAYER}
    network.config = replace(network.config, **sizes)
    shapes = {name: torch.Size(shape) for name, shape in expected_shapes(network.config).items()}
    state.step, state.speed = int(place["step"]), int(place["speed"])

    def take(kind: str, name: str, shape: torch.Size, dtype=torch.float32) -> torch.Tensor:
        tensor = tensors[f"{kind}/{name}"]
        if tensor.shape != shape or tensor.dtype != dtype or not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"the {kind} of {name} makes no sense")
        return tensor.to(network.device)

    values, masks = (_names_of(kind, tensors) for kind in ("value", "mask"))
    if ranges := [name for name in values if name not in network.weights]:
        network.input_ranges = {name: take("value", name, torch.Size()) for name in ranges}
    network.weights.update({name: take("value", name, shapes[name]) for name in state.trained})
    state.masks = {name: take("mask", name, shapes[name], torch.bool) for name in masks}
    state.moments = {
        name: (take("mean", name, value.shape), take("square", name, value.shape))
        for name, value in (state.parameters().items() if state.step else ())
    }


def _names_of(kind: str, tensors: dict[str, torch.Tensor]) -> list[str]:
    return [name.removeprefix(f"{kind}/") for name in tensors if name.startswith(f"{kind}/")]
