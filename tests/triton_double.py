"""Stand-ins for Triton: what its Python backend gives a model.py, and how its TensorRT backend fills a plan's inputs.

The first has as much of `triton_python_backend_utils` as helpers/serving uses. The second is written after Triton's
documentation of ragged batching and the comments of its model_config.proto, and follows the configuration alone.
"""

import json
import types
from dataclasses import dataclass, field

import numpy as np


class TritonError:
    """An error with a code; the codes' names are Triton's."""

    INVALID_ARG, INTERNAL = "INVALID_ARG", "INTERNAL"

    def __init__(self, message: str, code: str = INTERNAL):
        assert isinstance(message, str)
        self._message, self._code = message, code

    def message(self) -> str:
        return self._message

    def code(self) -> str:
        return self._code


@dataclass
class Tensor:
    """A named array. Texts are bytes: those that the model gets and those that it gives."""

    _name: str
    _array: np.ndarray

    def __post_init__(self):
        assert isinstance(self._array, np.ndarray)
        assert self._array.dtype != object or all(isinstance(item, bytes) for item in self._array.ravel())

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray:
        return self._array


class Response:
    """`InferenceResponse`: outputs, or an error."""

    def __init__(self, output_tensors=(), error: TritonError | None = None):
        self._outputs, self._error = list(output_tensors), error

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> TritonError:
        return self._error

    def outputs(self) -> dict[str, np.ndarray]:
        assert self._error is None, self._error.message()
        return {tensor.name(): tensor.as_numpy() for tensor in self._outputs}


@dataclass
class Asked:
    """A request as a model gets it."""

    tensors: dict[str, np.ndarray]
    values: dict = field(default_factory=dict)

    def parameters(self) -> str:
        return json.dumps(self.values)


def question(passage, asked, **parameters) -> Asked:
    """A request of one question, or of several: lists. Text becomes UTF-8, bytes stay."""

    def column(texts):
        texts = texts if isinstance(texts, list) else [texts]
        data = [text if isinstance(text, bytes) else text.encode("utf-8") for text in texts]
        return np.array(data, object)[:, None]

    return Asked({"passage": column(passage), "question": column(asked)}, parameters)


def backend_utils(run=None) -> types.ModuleType:
    """The module. `run(model, {input: array}) -> {output: array}` answers what models ask other models."""
    module = types.ModuleType("triton_python_backend_utils")

    class InferenceRequest:
        def __init__(self, model_name, requested_output_names, inputs, preferred_memory):
            assert preferred_memory == ("memory", "CPU", 0)
            self._model, self._names = model_name, requested_output_names
            self._inputs = {tensor.name(): tensor.as_numpy() for tensor in inputs}
            assert all(array.flags.c_contiguous for array in self._inputs.values())

        def exec(self):
            try:
                outputs = run(self._model, self._inputs)
            except ValueError as error:
                return Response(error=TritonError(str(error)))
            return Response([Tensor(name, outputs[name]) for name in self._names])

    def by_name(holder, name):
        if isinstance(holder, Asked):
            return Tensor(name, holder.tensors[name])
        return Tensor(name, holder.outputs()[name])

    module.TritonError, module.Tensor, module.InferenceResponse = TritonError, Tensor, Response
    module.InferenceRequest = InferenceRequest
    module.TritonModelException = type("TritonModelException", (Exception,), {})
    module.TRITONSERVER_MEMORY_CPU = "CPU"
    module.PreferredMemory = lambda kind, number: ("memory", kind, number)
    module.get_input_tensor_by_name = module.get_output_tensor_by_name = by_name
    return module


# The TensorRT backend


def batched(config, requests: list[dict]) -> dict[str, np.ndarray]:
    """The inputs of a plan for requests that Triton has put into one batch, as `config` says.

    A ragged input is the concatenation of the requests' elements, in one dimension; another is stacked by its first
    dimension. Batch inputs follow from the requests' shapes.
    """
    inputs = {}
    for tensor in config.input:
        arrays = [request[tensor.name] for request in requests]
        for array in arrays:
            shape = array.shape[1:] if config.max_batch_size else array.shape
            assert len(shape) == len(tensor.dims), (tensor.name, shape)
            assert all(size in (-1, own) for size, own in zip(tensor.dims, shape)), (tensor.name, shape)
        if tensor.allow_ragged_batch:
            inputs[tensor.name] = np.concatenate([array.ravel() for array in arrays])
        else:
            assert len({array.shape[1:] for array in arrays}) == 1, "only requests of one shape are batched"
            inputs[tensor.name] = np.concatenate(arrays)
    for batch_input in config.batch_input:
        (target,), (source,) = batch_input.target_name, batch_input.source_input
        counts = [request[source].size for request in requests]
        kind = batch_input.Kind.Name(batch_input.kind)
        if kind == "BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO":
            inputs[target] = np.cumsum([0, *counts], dtype=np.int32)
        else:
            assert kind == "BATCH_MAX_ELEMENT_COUNT_AS_SHAPE"
            inputs[target] = np.full(max(counts), -123456, np.int32)  # "the data of the tensor will be uninitialized"
    return inputs


def scattered(config, requests: list[dict], output: np.ndarray) -> list[np.ndarray]:
    """What each request of the batch gets of the plan's one output.

    A scattered one is cut in the requests' order out of the flat tensor; the sizes that are -1, of which the batch's is
    the first, are the source's in the same place. Another output is cut by its first dimension.
    """
    (tensor,) = config.output
    pieces, first = [], 0
    for request in requests:
        if config.batch_output:
            (batch_output,) = config.batch_output
            assert list(batch_output.target_name) == [tensor.name]
            source = request[batch_output.source_input[0]].shape
            dims = [-1, *tensor.dims]
            shape = [source[place] if size == -1 else size for place, size in enumerate(dims)]
            count = int(np.prod(shape))
            pieces.append(output.ravel()[first : first + count].reshape(shape))
        else:
            count = len(request[config.input[0].name])
            pieces.append(output[first : first + count])
        first += count
    assert first == (output.size if config.batch_output else len(output))
    return pieces
