"""Checkpoints → BertWeights. One module per format; canonical names are listed in `canonical.py`."""

from dataclasses import dataclass, field, replace

import numpy as np

from helpers.bert_config import BertConfig
from helpers.errors import DemoBertError, UsageError
from helpers.families import FAMILIES
from helpers.quantization import dense_kernel_names, dense_of_channels, implausible
from helpers.weights.canonical import (
    POSITIONS,
    TOKEN_TYPES,
    StoredCheckpoint,
    StoredTensor,
    check_finite,
    check_shapes,
    check_weights,
    name_of_weights,
)


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
    return bert_weights(_stored(config, tensorflow, pytorch, onnx, megatron), config, gelu)


def _stored(config: BertConfig, tensorflow, pytorch, onnx, megatron) -> StoredCheckpoint:
    if pytorch is not None:
        from helpers.weights.pytorch_checkpoint import load_pytorch

        return load_pytorch(pytorch, config)
    if onnx is not None:
        from helpers.weights.onnx_model import load_onnx

        return load_onnx(onnx, config)
    if config.model_type != "bert":
        kind = "TensorFlow" if tensorflow is not None else "Megatron"
        raise DemoBertError(
            f"a {kind} checkpoint is read of model_type bert only, not {config.model_type}: "
            "save the model with Hugging Face's save_pretrained and name its folder with -pt"
        )
    if tensorflow is not None:
        from helpers.weights.tensorflow_checkpoint import load_tensorflow

        return load_tensorflow(tensorflow)
    from helpers.weights.megatron_pickle import load_megatron

    return load_megatron(megatron)


def bert_weights(stored: StoredCheckpoint, config: BertConfig, gelu: str | None = None) -> BertWeights:
    """Read `stored` into memory, once it is known to be what `config` asks for. Raises DemoBertError.

    GELU's formula is `gelu`, else the configuration's, else what `hidden_act: gelu` means where `stored` comes from.
    """
    source = stored.source
    _fit(stored, config)
    check_shapes(stored.tensors, config, source, stored.extra)
    tensors = {name: _float32(tensor) for name, tensor in stored.tensors.items()}
    check_weights(tensors, config, source)
    config = replace(config, gelu=gelu or config.gelu or stored.gelu)
    return BertWeights(tensors, config, source, _of_shared_layers(_ranges(stored, config), config))


def _fit(stored: StoredCheckpoint, config: BertConfig) -> None:
    """What a family has otherwise than BERT in its embeddings (helpers/families.py), brought to BERT's form."""
    tensors, one_row = stored.tensors, (1, config.table_width)
    if TOKEN_TYPES not in tensors and not FAMILIES[config.model_type].has_segments:
        tensors[TOKEN_TYPES] = StoredTensor(one_row, lambda: np.zeros(one_row, np.float32))
    positions, rows = tensors.get(POSITIONS), config.first_position + config.max_position_embeddings
    if config.first_position and positions is not None and positions.shape[:1] == (rows,):
        tensors[POSITIONS] = positions.rows_from(config.first_position)


def _of_shared_layers(ranges: dict[str, np.ndarray], config: BertConfig) -> dict[str, np.ndarray]:
    """`ranges`, and what the first of the layers that share their weights has, for those that have none of their own."""
    if config.layer_groups is None:
        return ranges
    found = dict(ranges)
    for i in range(config.num_hidden_layers):
        first = f"l{config.layer_with_weights(i)}_"
        of_first = {name.removeprefix(first): amax for name, amax in ranges.items() if name.startswith(first)}
        for name, amax in of_first.items():
            found.setdefault(f"l{i}_{name}", amax)
    return found


def _float32(tensor: StoredTensor) -> np.ndarray:
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, which check_weights reports
        return np.array(tensor.read(), np.float32, order="C")


def _ranges(stored: StoredCheckpoint, config: BertConfig) -> dict[str, np.ndarray]:
    """The quantization ranges: a scalar per tensor, or [out, 1] for a kernel quantized per output channel, or [in]."""
    shapes = {name: _range_shape(stored, name, config) for name in stored.ranges}
    ranges = {name: _float32(stored.ranges[name]).reshape(shape) for name, shape in shapes.items()}
    check_finite(ranges, stored.source)
    if fault := implausible(ranges):
        raise DemoBertError(f"{stored.source} can't be used: {fault}")
    return ranges


def _range_shape(stored: StoredCheckpoint, name: str, config: BertConfig) -> tuple:
    tensor = stored.ranges[name]
    if dense := dense_of_channels(name):
        kernel = stored.tensors.get(name_of_weights(dense_kernel_names(dense)[0], config))
        if kernel is not None and tensor.shape == kernel.shape[1:]:
            return tensor.shape
    elif all(size == 1 for size in tensor.shape):
        return ()
    else:
        kernel = stored.tensors.get(name_of_weights(name.removesuffix("_amax"), config))
        if kernel is not None and tensor.shape in ((kernel.shape[0],), (kernel.shape[0], 1)):
            return (kernel.shape[0], 1)
    raise DemoBertError(f"{stored.source} can't be used: the range {name} has the shape {list(tensor.shape)}")
