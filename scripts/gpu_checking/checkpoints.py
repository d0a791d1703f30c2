"""Checkpoints that the check on a GPU makes for itself: random weights with ranges, as QAT models and Megatron's have."""

import json
import pickle
from dataclasses import asdict
from pathlib import Path

import numpy as np

from helpers import quantization
from helpers.bert_config import BertConfig
from helpers.weights.pytorch_names import canonical_name, pytorch_name
from scripts.benchmarks.random_model import random_state

#: Ranges that suit BERT's random weights, by the last words of their names; the rest is a layer norm's output.
_RANGES = {
    "av_a_input_quantizer_amax": 1.0,
    "qv_a_input_quantizer_amax": 3.0,
    "qv_b_input_quantizer_amax": 3.0,
    "av_b_input_quantizer_amax": 3.0,
    "add_local_input_quantizer_amax": 3.0,
    "attention_output_dense_input_amax": 2.0,
    "output_dense_input_amax": 3.0,
}
_AFTER_NORM = 5.0


def ranges(config: BertConfig) -> dict:
    """A range for each place that some network quantizes: canonical name → float32."""

    def amax(name: str) -> float:
        return next((value for end, value in _RANGES.items() if name.endswith(end)), _AFTER_NORM)

    return {name: np.float32(amax(name)) for name in quantization.range_names(config)}


def write_random_qat(folder, config: BertConfig, seed: int = 0) -> Path:
    """A Hugging Face folder of random weights and ranges, kept as it is where it is there."""
    from safetensors.numpy import save_file

    folder = Path(folder)
    if not (folder / "model.safetensors").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        _write_config(folder, config)
        state = random_state(config, seed)
        state |= {pytorch_name(name): np.array(amax) for name, amax in ranges(config).items()}
        save_file(state, folder / "model.safetensors.tmp", metadata={"format": "pt"})
        (folder / "model.safetensors.tmp").rename(folder / "model.safetensors")
    return folder


def write_random_megatron(path, config: BertConfig, seed: int = 0) -> Path:
    """A pickle of random 2:4 sparse weights and ranges beside the folder's configuration, kept where it is there."""
    path = Path(path)
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_config(path.parent, config)
        state = {canonical_name(name): tensor for name, tensor in random_state(config, seed).items()}
        for name, tensor in state.items():
            if name.endswith("_kernel"):
                make_sparse(tensor)
        temporary = path.with_suffix(".tmp")
        with temporary.open("wb") as file:
            pickle.dump(state | {name: np.array(amax) for name, amax in ranges(config).items()}, file, protocol=4)
        temporary.rename(path)
    return path


def make_sparse(kernel: np.ndarray) -> None:
    """Zero two of every four neighbouring weights: which ones does not matter where all are random."""
    groups = kernel.reshape(-1, 4)
    groups[::2, :2] = 0
    groups[1::2, 1:3] = 0


def _write_config(folder: Path, config: BertConfig) -> None:
    values = asdict(config) | {"model_type": "bert", "hidden_act": "gelu"}
    (folder / "config.json").write_text(json.dumps(values, indent=2), encoding="utf-8")
