"""What fine-tuning reads and writes: the starting checkpoint, the state of a run, the finished model's folder."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from helpers import quantization
from helpers.bert_config import BertConfig
from helpers.errors import DemoBertError
from helpers.files import atomic_write, write_json
from helpers.finetuning.network import Network, TorchWeights, kernel_range
from helpers.finetuning.training import TrainingState
from helpers.weights import BertWeights, bert_weights
from helpers.weights.canonical import StoredTensor, check_weights, one_line
from helpers.weights.pytorch_checkpoint import load_pytorch
from helpers.weights.pytorch_names import pytorch_name

MODEL_NAME = "model.safetensors"
ONNX_NAME = "model_fake_quant.onnx"
STATE_NAME = "training_state.safetensors"

#: BERT's own standard deviation of fresh weights (arXiv:1810.04805's code: initializer_range).
_FRESH_DEVIATION = 0.02


def read_checkpoint(path, config: BertConfig, seed: int) -> tuple[BertWeights, bool]:
    """The starting weights, and whether their SQuAD head is fresh: random, as the checkpoint has none.

    Raises DemoBertError.
    """
    stored = load_pytorch(path)
    head = {"cls_squad_output_weights": (2, config.hidden_size), "cls_squad_output_bias": (2,)}
    fresh = not any(name in stored.tensors for name in head)
    if fresh:
        generator = np.random.default_rng(seed)
        for name, shape in head.items():
            values = generator.normal(0.0, _FRESH_DEVIATION, shape).astype(np.float32)
            stored.add(name, StoredTensor(shape, lambda values=values: values))
    return bert_weights(stored, config), fresh


def to_torch(weights: BertWeights, device: torch.device) -> TorchWeights:
    """The tensors of `weights`, copied to `device`."""
    return TorchWeights({name: torch.tensor(array, device=device) for name, array in weights.tensors.items()})


def all_ranges(network: Network, measured: dict[str, float]) -> dict[str, np.ndarray]:
    """Every range of the table in shared/spec/weights.md, float32: `measured` (), the kernels' own [out, 1].

    Where the network rounds a tensor, the range it rounds with stands, whatever was measured since.
    """
    ranges = {name: np.float32(amax) for name, amax in (measured | network.input_ranges).items()}
    for name, tensor in network.weights.items():
        if name.endswith("_kernel"):
            ranges[f"{name}_amax"] = kernel_range(tensor).cpu().numpy()
    return ranges


def write_model(folder: Path, network: Network, ranges: dict[str, np.ndarray], config_values: dict) -> None:
    """Write `folder`/model.safetensors, Hugging Face's names and `_amax`, and config.json beside it."""
    tensors = {pytorch_name(name): tensor.detach().cpu().contiguous() for name, tensor in network.weights.items()}
    tensors |= {pytorch_name(name): torch.tensor(amax) for name, amax in ranges.items()}
    known = {"architectures": ["BertForQuestionAnswering"], "model_type": "bert"}
    write_json(folder / "config.json", config_values | known)
    with atomic_write(folder / MODEL_NAME) as file:
        file.write(save(tensors, metadata={"format": "pt"}))


def copy_text(source: Path, target: Path) -> None:
    """Copy a file whole or not at all."""
    with atomic_write(target) as file:
        file.write(source.read_bytes())


@dataclass(frozen=True)
class StateFile:
    """The file that a run is resumed from. `fingerprint` says which run: all that its outcome depends on."""

    path: Path
    fingerprint: str

    def write(self, state: TrainingState, trained: list[str]) -> None:
        """Whole or not at all. Only what is trained is kept: the rest is in the starting checkpoint."""
        tensors = {f"weight/{name}": state.network.weights[name].detach() for name in trained}
        for name, (mean, square) in state.moments.items():
            tensors |= {f"mean/{name}": mean, f"square/{name}": square}
        tensors |= {f"mask/{name}": mask for name, mask in state.masks.items()}
        tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        header = {"fingerprint": self.fingerprint, "step": str(state.step)}
        if state.network.input_ranges is not None:
            header["input_ranges"] = json.dumps(state.network.input_ranges)
        with atomic_write(self.path) as file:
            file.write(save(tensors, metadata=header))

    def read_into(self, state: TrainingState, trained: list[str]) -> bool:
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
            self._restore(state, trained, header, tensors)
        except (SafetensorError, OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
            raise DemoBertError(one_line(f"the state of an earlier run is damaged ({error}); {hint}")) from error
        return True

    def _restore(self, state: TrainingState, trained: list[str], header: dict, tensors: dict) -> None:
        network, device = state.network, state.network.device

        def take(kind: str, name: str) -> torch.Tensor:
            tensor, like = tensors[f"{kind}/{name}"], network.weights[name]
            if tensor.shape != like.shape or not bool(torch.isfinite(tensor).all()):
                raise ValueError(f"{kind} of {name} has the wrong shape or is not finite")
            return tensor.to(device, torch.bool if kind == "mask" else torch.float32)

        moments = {name: (take("mean", name), take("square", name)) for name in trained}
        masks = {name.removeprefix("mask/"): take("mask", name.removeprefix("mask/")) for name in tensors if name.startswith("mask/")}
        weights = {name: take("weight", name) for name in trained}
        state.step = int(header["step"])
        if "input_ranges" in header:
            state.network.input_ranges = {str(k): float(v) for k, v in json.loads(header["input_ranges"]).items()}
        state.moments, state.masks = moments, masks
        network.weights.update(weights)
