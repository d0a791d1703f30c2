"""ONNX models: NVIDIA's QAT export, and torch.onnx.export of Hugging Face's BertForQuestionAnswering by both exporters.

Initializers that still bear PyTorch's names are taken by name. Exporters transpose, fold, rename and share the others
(`onnx::MatMul_306`; one zero vector for all biases that are zero), so their owners are found by their place in the
graph: in the order of the nodes, which ONNX demands to be topological, the dense layers of a BERT can only come as
{query, key, value} in some order, attention output, intermediate, output, layer after layer, then the SQuAD head; where
the family has one, the projection of the embeddings comes first.
"""

import math
from collections import defaultdict, deque
from pathlib import Path

import numpy as np

from helpers.bert_config import BertConfig
from helpers.errors import DemoBertError, one_line
from helpers.files import require_file
from helpers.weights.canonical import StoredCheckpoint, StoredTensor, name_of_weights
from helpers.weights.paths import file_inside
from helpers.weights.pytorch_names import canonical_name

#: protobuf's own limit of one message.
_MAX_MODEL_BYTES = 1 << 31

#: Deeper than any BERT; keeps the search through a hostile graph short.
_MAX_LAYERS = 512

#: Operators that only ONNX Runtime's dynamically quantized models have.
_OF_DYNAMIC_INT8 = {
    "DynamicQuantizeLinear",
    "DynamicQuantizeMatMul",
    "DynamicQuantizeLSTM",
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "QAttention",
    "MatMulNBits",
}

#: Operators that hand a constant on, as far as its float values go (quantize and dequantize come in pairs).
_TRANSPARENT = ("Identity", "Cast", "QuantizeLinear", "DequantizeLinear")


def load_onnx(path, config: BertConfig | None = None) -> StoredCheckpoint:
    """The BERT in an ONNX model, with the quantization ranges it names. Raises DemoBertError.

    `gelu` is what the graph itself computes, where that can be seen. `config` says the family; None: BERT.
    """
    path = require_file(path, "ONNX model")
    graph = _Graph(_parse(path), path)
    checkpoint = StoredCheckpoint(source=str(path), gelu=graph.gelu())
    try:
        _refuse_dynamic_int8(graph)
        named, placed = _named_tensors(graph, config), _placed_tensors(graph, config)
    except DemoBertError as error:
        raise DemoBertError(one_line(f"{path} can't be used: {error}")) from error
    for name, tensor in (placed | named).items():
        checkpoint.add(name, tensor)
    return checkpoint


def _refuse_dynamic_int8(graph: "_Graph") -> None:
    """ONNX Runtime's dynamic quantization leaves integers of the kernels, whose floats are gone."""
    found = sorted({node.op_type for node in graph.nodes} & _OF_DYNAMIC_INT8)
    if found:
        raise DemoBertError(
            f"it is quantized for ONNX Runtime (dynamic int8, {found[0]}), its float weights are gone: "
            "name the float model that it was made of, and --int8"
        )


def _parse(path: Path):
    import ml_dtypes  # noqa: F401, registers bfloat16 with numpy
    import onnx
    from google.protobuf.message import DecodeError

    if path.stat().st_size > _MAX_MODEL_BYTES:
        raise DemoBertError(f"{path} is over 2 GiB, more than an ONNX file can have: keep its weights as external data")
    try:
        model = onnx.ModelProto.FromString(path.read_bytes())
    except DecodeError as error:
        raise DemoBertError(f"{path} is not a whole ONNX model: {one_line(error, 200)}") from error
    except OSError as error:
        raise DemoBertError(f"ONNX model can't be read: {path}: {error.strerror}") from error
    if not model.HasField("graph"):
        raise DemoBertError(f"{path} is not an ONNX model: it has no graph")
    return model


class _Graph:
    """The nodes of a model by what they produce and consume, and its constants by name."""

    def __init__(self, model, path: Path):
        self.path = path
        try:
            self.nodes = list(model.graph.node)
            self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
            for node in self.nodes:
                values = [a.t for a in node.attribute if a.name == "value"] if node.op_type == "Constant" else []
                self.constants |= dict(zip(node.output[:1], values[-1:]))
            self.inputs = {value.name for value in model.graph.input} - set(self.constants)
            self.producers = {output: node for node in self.nodes for output in node.output}
            self.consumers = defaultdict(list)
            for node in self.nodes:
                for place, value in enumerate(node.input):
                    self.consumers[value].append((node, place))
            self._bodies = [node for function in model.functions for node in function.node]
            sound = all(isinstance(name, str) for name in self._names())
        except UnicodeDecodeError:
            sound = False
        if not sound:
            raise DemoBertError(f"{path} is not a whole ONNX model: a name in it is not UTF-8")

    def _names(self):
        """Every name that the graph is read by; protobuf hands out one that is not UTF-8 as bytes."""
        yield from self.constants
        yield from self.inputs
        for node in self.nodes + self._bodies:
            yield node.op_type
            yield from (*node.input, *node.output)
            yield from (attribute.name for attribute in node.attribute)

    def constant(self, value: str) -> tuple[str, bool] | None:
        """(name, transposed) of the constant that `value` is, perhaps after a Transpose; None if it is computed."""
        transposed = False
        for _ in range(16):  # no exporter chains more; a hostile graph may be a circle
            if value in self.constants:
                return value, transposed
            node = self.producers.get(value)
            if node is None or not node.input:
                return None
            if node.op_type == "Transpose" and list(_attribute(node, "perm", [1, 0])) == [1, 0]:
                transposed = not transposed
            elif node.op_type not in _TRANSPARENT:
                return None
            value = node.input[0]
        return None

    def tensor(self, name: str) -> StoredTensor:
        return _stored(self.constants[name], self.path)

    def gelu(self) -> str:
        """ "erf" or "tanh", by the operators of the graph; a pooler's tanh does not count beside an erf."""
        nodes = self.nodes + self._bodies
        approximations = {_attribute(node, "approximate", b"none") for node in nodes if node.op_type == "Gelu"}
        operators = {node.op_type for node in nodes}
        if "Erf" in operators or b"none" in approximations:
            return "erf"
        return "tanh" if "Tanh" in operators or b"tanh" in approximations else "erf"


def _attribute(node, name: str, default):
    for attribute in node.attribute:
        if attribute.name == name:
            return {"perm": attribute.ints, "approximate": attribute.s}.get(name, attribute.i)
    return default


def _named_tensors(graph: _Graph, config: BertConfig | None) -> dict[str, StoredTensor]:
    """The constants that bear PyTorch's names, or are handed on under one by an Identity."""
    stored_in_out = {dense.kernel for dense in _dense_layers(graph) if dense.in_out}
    names = {name: name for name in graph.constants}
    for node in graph.nodes:
        if node.op_type == "Identity" and len(node.output) == 1 and (found := graph.constant(node.output[0])):
            names.setdefault(node.output[0], found[0])
    tensors = {}
    for alias, name in names.items():
        canonical = canonical_name(alias, config)
        if canonical is None:
            continue
        if canonical in tensors:
            raise DemoBertError(f"it holds {canonical} twice")
        turn = canonical.endswith(("_kernel", "_weights")) and name in stored_in_out
        tensors[canonical] = graph.tensor(name).transposed() if turn else graph.tensor(name)
    return tensors


def _placed_tensors(graph: _Graph, config: BertConfig | None) -> dict[str, StoredTensor]:
    """The constants found by their place in the graph, as far as it is the graph of a BERT with a SQuAD head."""
    tensors = _embedding_tables(graph)
    dense_layers = _dense_layers(graph)
    if config is not None and config.embedding_size is not None and dense_layers:
        tensors |= dense_layers.pop(0).tensors(graph, "bert_embeddings_projection")
    count, rest = divmod(len(dense_layers) - 1, 6)
    if rest or not 1 <= count <= _MAX_LAYERS:
        return tensors
    for i in range(count):
        *attention, context, intermediate, output = dense_layers[6 * i : 6 * i + 6]
        for part, dense in zip(("query", "key", "value"), _query_key_value(graph, attention), strict=True):
            tensors |= dense.tensors(graph, f"l{i}_attention_self_{part}")
        tensors |= context.tensors(graph, f"l{i}_attention_output_dense")
        tensors |= intermediate.tensors(graph, f"l{i}_intermediate_dense")
        tensors |= output.tensors(graph, f"l{i}_output_dense")
    head = dense_layers[-1].tensors(graph, "cls_squad_output")
    tensors |= {name.replace("_kernel", "_weights"): tensor for name, tensor in head.items()}
    tensors |= _layer_norms(graph, count)
    if config is None or config.num_hidden_layers != count:
        return tensors
    # Layers that share their weights stand in the graph one by one.
    return {name: tensor for name, tensor in tensors.items() if name_of_weights(name, config) == name}


class _Dense:
    """A matrix multiplication with a constant: the names of its kernel (`in_out`: stored [in, out]) and bias."""

    def __init__(self, node, kernel: str, in_out: bool, bias: str | None):
        self.node, self.kernel, self.in_out, self.bias = node, kernel, in_out, bias

    def tensors(self, graph: _Graph, name: str) -> dict[str, StoredTensor]:
        kernel = graph.tensor(self.kernel)
        tensors = {f"{name}_kernel": kernel.transposed() if self.in_out else kernel}
        if self.bias is not None:
            tensors[f"{name}_bias"] = graph.tensor(self.bias)
        return tensors


def _dense_layers(graph: _Graph) -> list[_Dense]:
    """Every x·W with a constant matrix W, in the graph's order."""
    layers = []
    for node in graph.nodes:
        if node.op_type not in ("MatMul", "Gemm") or len(node.input) < 2 or not node.output:
            continue
        found = graph.constant(node.input[1])
        if found is None or len(graph.constants[found[0]].dims) != 2 or graph.constant(node.input[0]):
            continue
        name, transposed = found
        transposed ^= node.op_type == "Gemm" and bool(_attribute(node, "transB", 0))
        layers.append(_Dense(node, name, not transposed, _bias(graph, node)))
    return layers


def _bias(graph: _Graph, node) -> str | None:
    if node.op_type == "Gemm":
        found = graph.constant(node.input[2]) if len(node.input) > 2 else None
        return found and found[0]
    for consumer, place in graph.consumers[node.output[0]]:
        if consumer.op_type == "Add" and len(consumer.input) == 2:
            found = graph.constant(consumer.input[1 - place])
            if found:
                return found[0]
    return None


def _query_key_value(graph: _Graph, denses: list[_Dense]) -> list[_Dense]:
    """Three dense layers, ordered query, key, value by where they enter attention.

    Q and K meet in one product, Q on its left; V comes into another, or, in one Attention operator, third.
    """
    places = [_attention_input(graph, dense.node) for dense in denses]
    if None in places:
        raise DemoBertError("its attention layers have a form that is not known; export it with torch.onnx.export")
    meeting = [node for node, _ in places]

    def rank(place) -> int:
        node, position = place
        return position if node.op_type == "Attention" or sum(other is node for other in meeting) > 1 else 2

    ranks = [rank(place) for place in places]
    if sorted(ranks) != [0, 1, 2]:
        raise DemoBertError("its attention layers have a form that is not known; export it with torch.onnx.export")
    return [denses[ranks.index(i)] for i in range(3)]


def _attention_input(graph: _Graph, node) -> tuple | None:
    """(node, place of the input) of the first product of two computed tensors that `node`'s output flows into."""
    seen, queue = set(), deque(node.output)
    while queue:
        value = queue.popleft()
        for consumer, place in graph.consumers[value]:
            if consumer.op_type == "Attention":
                return consumer, place
            if consumer.op_type == "MatMul" and not any(graph.constant(name) for name in consumer.input):
                return consumer, place
            # Through Shape flows only a size: Q's reaches the scaling of K, too.
            if consumer.op_type not in ("Shape", "MatMul", "Gemm"):
                fresh = [output for output in consumer.output if output not in seen]
                seen.update(fresh)
                queue.extend(fresh)
    return None


def _layer_norms(graph: _Graph, count: int) -> dict[str, StoredTensor]:
    nodes = [node for node in graph.nodes if node.op_type == "LayerNormalization" and len(node.input) == 3]
    owners = ["bert_embeddings_layernorm"]
    for i in range(count):
        owners += [f"l{i}_attention_output_layernorm", f"l{i}_output_layernorm"]
    tensors = {}
    if len(nodes) == len(owners):
        for node, owner in zip(nodes, owners, strict=True):
            for value, part in ((node.input[1], "gamma"), (node.input[2], "beta")):
                if found := graph.constant(value):
                    tensors[f"{owner}_{part}"] = graph.tensor(found[0])
    return tensors


def _embedding_tables(graph: _Graph) -> dict[str, StoredTensor]:
    """The tables by the graph input that picks their rows; positions are picked by none."""
    tables = {}
    for node in graph.nodes:
        if node.op_type == "Gather" and len(node.input) == 2:
            found = graph.constant(node.input[0])
            if found and not found[1] and len(graph.constants[found[0]].dims) == 2:
                kind = _picked_by(graph, node.input[1])
                tables.setdefault(f"bert_embeddings_{kind}_embeddings", graph.tensor(found[0]))
    if "bert_embeddings_position_embeddings" not in tables and (folded := _folded_positions(graph)):
        tables["bert_embeddings_position_embeddings"] = folded
    return tables


def _picked_by(graph: _Graph, value: str) -> str:
    seen, queue = {value}, deque([value])
    while queue:
        value = queue.popleft()
        if value in graph.inputs:
            kinds = {"type": "token_type", "segment": "token_type", "position": "position"}
            return next((kind for word, kind in kinds.items() if word in value), "word")
        node = graph.producers.get(value)
        if node is not None and node.op_type == "CumSum":  # RoBERTa counts the tokens that are no padding
            return "position"
        if node is not None and node.op_type != "Shape":
            fresh = [name for name in node.input if name not in seen]
            seen.update(fresh)
            queue.extend(fresh)
    return "position"


def _folded_positions(graph: _Graph) -> StoredTensor | None:
    """The position embeddings [1, S, E] that an export for one length S has folded into a constant."""
    first = next((node for node in graph.nodes if node.op_type == "LayerNormalization" and node.input), None)
    add = first is not None and graph.producers.get(first.input[0])
    if not add or add.op_type != "Add":
        return None
    for value in add.input:
        if (found := graph.constant(value)) and not found[1]:
            folded = graph.tensor(found[0])
            if len(folded.shape) == 3 and folded.shape[0] == 1:
                return StoredTensor(folded.shape[1:], lambda: folded.read()[0])
    return None


# TensorProto.DataType → (numpy's type of raw data, the field of values that are not raw); onnx.proto.
_TYPES = {1: ("<f4", "float_data"), 10: ("<f2", "int32_data"), 11: ("<f8", "double_data"), 16: ("<u2", "int32_data")}
_BFLOAT16 = 16
_EXTERNAL = 1


def _stored(tensor, path: Path) -> StoredTensor:
    shape = tuple(tensor.dims)
    if any(size < 0 for size in shape):
        raise DemoBertError(f"{tensor.name} has the dimensions {list(shape)}")
    return StoredTensor(shape, lambda: _read(tensor, shape, path))


def _read(tensor, shape: tuple, path: Path) -> np.ndarray:
    try:
        if tensor.data_type not in _TYPES:
            raise DemoBertError("its type is not a floating-point type")
        raw_type, field = _TYPES[tensor.data_type]
        values = _values(tensor, raw_type, field, math.prod(shape), path)
        return (values.view("bfloat16") if tensor.data_type == _BFLOAT16 else values).reshape(shape)
    except (DemoBertError, ValueError, TypeError, OSError) as error:
        raise DemoBertError(one_line(f"{path}: {tensor.name} can't be read: {error}")) from error


def _values(tensor, raw_type: str, field: str, count: int, path: Path) -> np.ndarray:
    """The tensor's `count` values, flat; nothing is allocated before the file is known to hold them."""
    dtype = np.dtype(raw_type)
    if tensor.data_location == _EXTERNAL:
        return _external_values(tensor, dtype, count, path)
    if tensor.HasField("raw_data"):
        _check_size(len(tensor.raw_data), count * dtype.itemsize, "bytes")
        return np.frombuffer(tensor.raw_data, dtype)
    values = getattr(tensor, field)
    _check_size(len(values), count, "values")
    if field == "int32_data":  # the bits of 16-bit floats
        return np.array(values, np.int64).astype(np.uint16).view(dtype)
    return np.array(values, dtype)


def _external_values(tensor, dtype: np.dtype, count: int, path: Path) -> np.ndarray:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    file = file_inside(path.parent, entries.get("location", ""), "external data of the ONNX model")
    offset = int(entries.get("offset", "0"))
    size = file.stat().st_size
    length = int(entries.get("length", size - offset))
    _check_size(length, count * dtype.itemsize, "bytes")
    if offset < 0 or offset + length > size:
        raise DemoBertError(f"{file} ends before the tensor does")
    return np.fromfile(file, dtype, count, offset=offset) if count else np.empty(0, dtype)


def _check_size(found: int, needed: int, unit: str) -> None:
    if found != needed:
        raise DemoBertError(f"{found} {unit} are there, its shape needs {needed}")
