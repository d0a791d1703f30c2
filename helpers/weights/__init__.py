"""Checkpoints → BertWeights. One module per format; canonical names are listed in `canonical.py`."""

from dataclasses import dataclass, field, replace

import numpy as np

from helpers.bert_config import BertConfig
from helpers.errors import DemoBertError, UsageError
from helpers.quantization import dense_kernel_names, dense_of_channels, implausible
from helpers.weights.canonical import StoredCheckpoint, StoredTensor, check_finite, check_shapes, check_weights


@dataclass
class BertWeights:
    """The tensors of one BERT with a SQuAD head, under their canonical names (`canonical.py`), float32.

    `config` is the model's, GELU's formula settled: what its file leaves open, the checkpoint's origin says.
    `ranges` holds the quantization ranges (`<tensor>_amax`) of QAT checkpoints, float32, scalar, [out, 1] of a kernel,
    or [in] of an input's channels (helpers/quantization.py). `source` names the file, for messages.
    """

    tensors: dict[str, np.ndarray]
    config: BertConfig
    source: str
    ranges: dict[str, np.ndarray] = field(default_factory=dict)

    def __getitem__(self, name: str) -> np.ndarray:
        return self.tensors[name]

    def stacked(self, names: list[str]) -> np.ndarray:
        """The named tensors one below the other: several dense layers of one input as a single one."""
        return np.concatenate([self.tensors[name] for name in names])


def load_weights(
    config: BertConfig, *, tensorflow=None, pytorch=None, onnx=None, megatron=None, gelu: str | None = None
) -> BertWeights:
    """The weights of one checkpoint, checked against `config`. `gelu` overrules what config and checkpoint say.

    One of: `tensorflow`, a checkpoint's prefix (`model.ckpt`); `pytorch`, a .safetensors or .bin/.pt file or a
    Hugging Face folder; `onnx`, a model file; `megatron`, a pickle of arrays. Arrays are float32, C-contiguous, the caller's own.
    Raises DemoBertError, in one line, for whatever is wrong with the files; UsageError unless one is named.
    """
    named = [path for path in (tensorflow, pytorch, onnx, megatron) if path is not None]
    if len(named) != 1:
        raise UsageError("name one checkpoint: TensorFlow (-m), PyTorch (-pt), ONNX (-x) or Megatron (--pickle)")
    if tensorflow is not None:
        from helpers.weights.tensorflow_checkpoint import load_tensorflow as load
    elif pytorch is not None:
        from helpers.weights.pytorch_checkpoint import load_pytorch as load
    elif onnx is not None:
        from helpers.weights.onnx_model import load_onnx as load
    else:
        from helpers.weights.megatron_pickle import load_megatron as load
    return bert_weights(load(named[0]), config, gelu)


def bert_weights(stored: StoredCheckpoint, config: BertConfig, gelu: str | None = None) -> BertWeights:
    """Read `stored` into memory, once it is known to be what `config` asks for. Raises DemoBertError.

    GELU's formula is `gelu`, else the configuration's, else what `hidden_act: gelu` means where `stored` comes from.
    """
    source = stored.source
    check_shapes(stored.tensors, config, source, stored.extra)
    tensors = {name: _float32(tensor) for name, tensor in stored.tensors.items()}
    check_weights(tensors, config, source)
    config = replace(config, gelu=gelu or config.gelu or stored.gelu)
    return BertWeights(tensors, config, source, _ranges(stored))


def _float32(tensor: StoredTensor) -> np.ndarray:
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, which check_weights reports
        return np.array(tensor.read(), np.float32, order="C")


def _ranges(stored: StoredCheckpoint) -> dict[str, np.ndarray]:
    """The quantization ranges: a scalar per tensor, or [out, 1] for a kernel quantized per output channel, or [in]."""
    shapes = {name: _range_shape(stored, name) for name in stored.ranges}
    ranges = {name: _float32(stored.ranges[name]).reshape(shape) for name, shape in shapes.items()}
    check_finite(ranges, stored.source)
    if fault := implausible(ranges):
        raise DemoBertError(f"{stored.source} can't be used: {fault}")
    return ranges


def _range_shape(stored: StoredCheckpoint, name: str) -> tuple:
    tensor = stored.ranges[name]
    if dense := dense_of_channels(name):
        kernel = stored.tensors.get(dense_kernel_names(dense)[0])
        if kernel is not None and tensor.shape == kernel.shape[1:]:
            return tensor.shape
    elif all(size == 1 for size in tensor.shape):
        return ()
    else:
        kernel = stored.tensors.get(name.removesuffix("_amax"))
        if kernel is not None and tensor.shape in ((kernel.shape[0],), (kernel.shape[0], 1)):
            return (kernel.shape[0], 1)
    raise DemoBertError(f"{stored.source} can't be used: the range {name} has the shape {list(tensor.shape)}")
