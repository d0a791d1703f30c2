"""TensorFlow checkpoints of Google's BERT, as fine-tuned for SQuAD."""

import contextlib
import os
import re

from helpers.errors import DemoBertError, missing_package, one_line
from helpers.files import require_file
from helpers.weights.canonical import StoredCheckpoint, StoredTensor

_LAYER = re.compile(r"^bert/encoder/layer_([0-9]{1,6})/(.+)$")

#: Optimizer state, the step counter, the pooler, the pre-training heads, loss scaling.
_SKIPPED = re.compile(
    r"adam|lamb|global_step|bert/pooler|cls/predictions|cls/seq_relationship|loss_scale", re.IGNORECASE
)

_EMBEDDINGS = tuple(
    f"bert/embeddings/{name}"
    for name in (
        "word_embeddings",
        "token_type_embeddings",
        "position_embeddings",
        "LayerNorm/gamma",
        "LayerNorm/beta",
    )
)
_SQUAD = ("cls/squad/output_weights", "cls/squad/output_bias")
_DENSE = (
    "attention/self/query",
    "attention/self/key",
    "attention/self/value",
    "attention/output/dense",
    "intermediate/dense",
    "output/dense",
)
_IN_LAYER = {f"{module}/{part}" for module in _DENSE for part in ("kernel", "bias")} | {
    f"{module}/LayerNorm/{part}" for module in ("attention/output", "output") for part in ("gamma", "beta")
}


def load_tensorflow(prefix) -> StoredCheckpoint:
    """The BERT in the checkpoint `prefix` (`<prefix>.index` and `<prefix>.data-…`). Raises DemoBertError."""
    prefix = _checked_prefix(prefix)
    tf = _import_tensorflow()
    checkpoint = StoredCheckpoint(source=prefix, gelu="tanh")
    try:
        reader = tf.train.load_checkpoint(prefix)
        shapes, dtypes = reader.get_variable_to_shape_map(), reader.get_variable_to_dtype_map()
    except Exception as error:  # TensorFlow raises its own classes and RuntimeError for a damaged index
        reason = one_line(error, 200)
        raise DemoBertError(f"{prefix}.index is not the index of a TensorFlow checkpoint: {reason}") from error
    for name, shape in shapes.items():
        canonical = canonical_name(name)
        if canonical:
            tensor = StoredTensor(tuple(shape), _reader(reader, prefix, name, dtypes[name]))
            checkpoint.add(canonical, tensor.transposed() if name.endswith("/kernel") else tensor)
        elif not _SKIPPED.search(name):
            checkpoint.extra.append(name)
    return checkpoint


def canonical_name(name: str) -> str | None:
    """The canonical name of a variable of Google's BERT, or None where it is none of its encoder or SQuAD head."""
    if name in _EMBEDDINGS or name in _SQUAD:
        return _flat(name)
    layer = _LAYER.match(name)
    if layer and layer[2] in _IN_LAYER:
        return f"l{int(layer[1])}_{_flat(layer[2])}"
    return None


def _flat(name: str) -> str:
    return name.replace("/", "_").lower()


def _checked_prefix(prefix) -> str:
    """The prefix, checked before TensorFlow's slow import; one of the checkpoint's own files stands for it, too."""
    prefix = re.sub(r"\.(?:index|meta|data-[0-9]{5}-of-[0-9]{5})$", "", str(prefix))
    if os.path.isdir(prefix) or not os.path.exists(f"{prefix}.index"):
        raise DemoBertError(
            f"TensorFlow checkpoint not found: there is no {prefix}.index; name its prefix, like models/model.ckpt"
        )
    require_file(f"{prefix}.index", "index of the TensorFlow checkpoint")
    return prefix


def _import_tensorflow():
    with _quiet_start():
        try:
            import tensorflow
        except ImportError as error:
            raise missing_package("tensorflow", "tensorflow-cpu", "reading a TensorFlow checkpoint") from error
    return tensorflow


@contextlib.contextmanager
def _quiet_start():
    """TensorFlow reads its settings once, when it is imported; what the user chose stays.

    With oneDNN it announces it, whatever the log level; nothing is computed here that could be faster with it.
    """
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "0"}
    added = {name: value for name, value in quiet.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


def _reader(reader, prefix: str, name: str, dtype):
    def read():
        if not dtype.is_floating:
            raise DemoBertError(f"{prefix}: {name} has the type {dtype.name}, not a floating-point type")
        try:
            return reader.get_tensor(name)
        except Exception as error:  # a data file that is missing, cut short or damaged
            raise DemoBertError(f"{prefix}: {name} can't be read: {one_line(error, 200)}") from error

    return read
