"""Checkpoints that the check on a GPU makes for itself.

Random weights with ranges, as QAT models and Megatron's have; and a model that answers, as wide as plugins want it.
"""

import json
import pickle
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from helpers import quantization
from helpers.bert_config import BertConfig
from helpers.calibration_cache import model_fingerprint, read_cache, read_fingerprint, write_cache
from helpers.files import require_file
from helpers.weights import load_weights
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
    folder = Path(folder)
    if not (folder / "model.safetensors").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        _write_config(folder, config)
        state = random_state(config, seed)
        _save(state | {pytorch_name(name): np.array(amax) for name, amax in ranges(config).items()}, folder)
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


def write_widened(folder, source, calibration=None, widened_calibration=None) -> Path:
    """The model of the folder `source` with every channel, head and feed-forward column twice, which computes the same.

    A layer norm of doubled channels has the same mean and variance; a kernel that reads every channel twice is halved, so
    that its sums, and its steps in int8, stay what they were. `calibration` is a cache of the model's ranges, which is
    written anew for this one. What is there is kept. Raises DemoBertError.
    """
    folder, source = Path(folder), Path(source)
    config = BertConfig.from_folder(source)
    wide = replace(
        config,
        hidden_size=2 * config.hidden_size,
        num_attention_heads=2 * config.num_attention_heads,
        intermediate_size=2 * config.intermediate_size,
    )
    if not (folder / "model.safetensors").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        _write_config(folder, wide)
        shutil.copy(source / "vocab.txt", folder / "vocab.txt")
        weights = load_weights(config, pytorch=source)
        state = weights.tensors | weights.ranges
        _save({pytorch_name(name): np.array(_twice(name, state[name]), np.float32) for name in state}, folder)
    if calibration and not Path(widened_calibration).is_file():
        fingerprint = read_fingerprint(require_file(calibration, "calibration cache"))
        ranges = read_cache(calibration, fingerprint, config).ranges
        model = model_fingerprint(load_weights(wide, pytorch=folder), pre_normalised=False)
        doubled = {name: _twice(name, amax) for name, amax in ranges.items()}
        write_cache(widened_calibration, replace(fingerprint, model=model), doubled)
    return folder


def _twice(name: str, tensor) -> np.ndarray:
    """What takes the tensor's or range's place where every channel is there twice."""
    tensor = np.asarray(tensor, np.float32)
    if name == "cls_squad_output_bias":
        return tensor
    if name == "cls_squad_output_weights":
        return np.tile(tensor, (1, 2)) / 2
    if name.endswith("_kernel"):
        return np.tile(tensor, (2, 2)) / 2
    if name.endswith("_kernel_amax"):
        return (tensor if tensor.size == 1 else np.concatenate([tensor, tensor])) / 2
    if name.endswith("_embeddings"):
        return np.tile(tensor, (1, 2))
    return np.tile(tensor, 2) if tensor.size > 1 else tensor


def _save(state: dict, folder: Path) -> None:
    """Whole or not at all: a file that is there is not written again."""
    from safetensors.numpy import save_file

    save_file(state, folder / "model.safetensors.tmp", metadata={"format": "pt"})
    (folder / "model.safetensors.tmp").rename(folder / "model.safetensors")
