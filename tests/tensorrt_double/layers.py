"""The layers that the double plays, a row each: what adds one, what can be set of it, what it infers and computes.

network.py makes TensorRT's classes and methods of the rows; versions.py says which versions lack which of them.
Everything else of TensorRT's layers demoBERT does not use, and the double does not have.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.tensorrt_double import compute, plugins, shapes
from tests.tensorrt_double.versions import TensorRTDoubleError


@dataclass(frozen=True)
class Layer:
    """One row.

    kind         what the graph calls it
    cls          TensorRT's class
    adders       each method of INetworkDefinition that adds one → its arguments, as Python writes them
    infer        (parameters, inputs' infos, graph) → (shape, type) of each output
    compute      (parameters, inputs, outputs' shapes) → output, or list of outputs
    settable     the layer's properties, as "name: type"; an ITensor is an optional input
    defaults     the parameters that no argument sets, or that an argument may leave out
    params       what the graph keeps of an adder's other arguments than tensors: a function of them, if not themselves
    outputs      (parameters) → how many outputs
    optional     how many inputs set_input may add behind those of the adder
    layer_type   its LayerType, where that has another name
    handle       the class that an adder returns, where that is not the layer
    makes_shapes whether the builder follows the values of integers, which may become shapes, through it
    """

    kind: str
    cls: str
    adders: dict[str, str]
    infer: Callable
    compute: Callable
    settable: str = ""
    defaults: dict = field(default_factory=dict)
    params: Callable = dict
    outputs: Callable = lambda params: 1
    optional: int = 0
    layer_type: str = ""
    handle: str = ""
    makes_shapes: bool = False


def _counted(shape, weights) -> dict:
    if math.prod(shape) != weights.count or any(size < 0 for size in shape):
        raise TensorRTDoubleError(f"constant {shape} of {weights.count} weights")
    return {"shape": shape, "weights": weights}


def _attention(norm_op, causal=False, causal_kind="NONE") -> dict:
    return {"norm_op": norm_op, "causal_kind": "UPPER_LEFT" if causal else causal_kind}


def _plugin(plugin, shape_inputs=()) -> dict:
    if shape_inputs:
        raise TensorRTDoubleError("the BERT plugins take no shape inputs")
    return dict(plugin._params)


#: What rows share, or are too long for.
_KERNEL = "kernel: Weights, bias: Weights|None = None"
_NORM = "input: ITensor, scale: ITensor, bias: ITensor, axesMask: int"
_QKV = "query: ITensor, key: ITensor, value: ITensor, norm_op: AttentionNormalizationOp"
_ATTENTION_TENSORS = "mask: ITensor, query_lengths: ITensor, key_value_lengths: ITensor, "
_ATTENTION_TENSORS += "normalization_quantize_scale: ITensor, normalization_quantize_to_type: DataType, "
_ATTENTION_SETTINGS = "decomposable: bool, query_form: AttentionIOForm, key_value_form: AttentionIOForm"
_ATTENTION_DEFAULTS = {"normalization_quantize_to_type": None, "decomposable": False}
_ATTENTION_DEFAULTS |= {"query_form": "PADDED_BHND", "key_value_form": "PADDED_BHND"}
_PLUGIN = {"infer": plugins.infer, "compute": plugins.compute, "params": _plugin, "outputs": plugins.output_count}

LAYERS = (
    Layer(
        "constant",
        "IConstantLayer",
        {"add_constant": "shape: Dims, weights: Weights"},
        shapes.constant,
        compute.constant,
        params=_counted,
        makes_shapes=True,
    ),
    Layer(
        "cast",
        "ICastLayer",
        {"add_cast": "input: ITensor, to_type: DataType"},
        shapes.cast,
        compute.cast,
        makes_shapes=True,
    ),
    Layer(
        "gather",
        "IGatherLayer",
        {"add_gather": "input: ITensor, indices: ITensor, axis: int"},
        shapes.gather,
        compute.gather,
    ),
    Layer(
        "elementwise",
        "IElementWiseLayer",
        {"add_elementwise": "input1: ITensor, input2: ITensor, op: ElementWiseOperation"},
        shapes.elementwise,
        compute.elementwise,
        makes_shapes=True,
    ),
    Layer("unary", "IUnaryLayer", {"add_unary": "input: ITensor, op: UnaryOperation"}, shapes.unary, compute.unary),
    Layer(
        "activation",
        "IActivationLayer",
        {"add_activation": "input: ITensor, type: ActivationType"},
        shapes.activation,
        compute.activation,
    ),
    Layer(
        "matrix_multiply",
        "IMatrixMultiplyLayer",
        {"add_matrix_multiply": "input0: ITensor, op0: MatrixOperation, input1: ITensor, op1: MatrixOperation"},
        shapes.matrix_multiply,
        compute.matrix_multiply,
    ),
    Layer(
        "softmax",
        "ISoftMaxLayer",
        {"add_softmax": "input: ITensor"},
        shapes.softmax,
        compute.softmax,
        settable="axes: int",
        defaults={"axes": 0},
    ),
    Layer(
        "shuffle",
        "IShuffleLayer",
        {"add_shuffle": "input: ITensor"},
        shapes.shuffle,
        compute.shuffle,
        settable="first_transpose: Permutation, reshape_dims: Dims, second_transpose: Permutation",
        optional=1,  # the shape as a tensor
        defaults=dict.fromkeys(("first_transpose", "reshape_dims", "second_transpose")),
    ),
    Layer(
        "convolution",
        "IConvolutionLayer",
        {"add_convolution_nd": f"input: ITensor, num_output_maps: int, kernel_shape: Dims, {_KERNEL}"},
        shapes.convolution,
        compute.convolution,
        defaults={"bias": None},
    ),
    Layer(
        "normalization",
        "INormalizationLayer",
        {"add_normalization": _NORM, "add_normalization_v2": _NORM},
        shapes.normalization,
        compute.normalization,
        settable="epsilon: float",
        defaults={"epsilon": 1e-5},
    ),
    Layer(
        "attention",
        "IAttentionOutputLayer",  # what is in the list of layers; the real one has an input layer too
        {"add_attention": f"{_QKV}, causal: bool", "add_attention_v2": f"{_QKV}, causal_kind: CausalMaskKind"},
        shapes.attention,
        compute.attention,
        settable=_ATTENTION_TENSORS + _ATTENTION_SETTINGS,
        defaults=_ATTENTION_DEFAULTS,
        params=_attention,
        layer_type="ATTENTION_OUTPUT",
        handle="IAttention",
    ),
    Layer(
        "quantize",
        "IQuantizeLayer",
        {"add_quantize": "input: ITensor, scale: ITensor, output_type: DataType = None"},
        shapes.quantize,
        compute.quantize,
        settable="axis: int, to_type: DataType",
        defaults={"axis": None},
        params=lambda output_type="INT8": {"to_type": output_type},
    ),
    Layer(
        "dequantize",
        "IDequantizeLayer",
        {"add_dequantize": "input: ITensor, scale: ITensor, output_type: DataType = None"},
        shapes.dequantize,
        compute.dequantize,
        settable="axis: int",
        defaults={"axis": None},
        params=lambda output_type="FLOAT": {"to_type": output_type},
    ),
    Layer("shape", "IShapeLayer", {"add_shape": "input: ITensor"}, shapes.shape, compute.shape, makes_shapes=True),
    Layer(
        "slice",
        "ISliceLayer",
        {"add_slice": "input: ITensor, start: Dims, shape: Dims, stride: Dims"},
        shapes.slice_,
        compute.slice_,
        optional=3,  # start, shape and stride as tensors
        makes_shapes=True,
    ),
    Layer(
        "concatenation",
        "IConcatenationLayer",
        {"add_concatenation": "inputs: list[ITensor]"},
        shapes.concatenation,
        compute.concatenation,
        makes_shapes=True,
    ),
    Layer(
        "reduce",
        "IReduceLayer",
        {"add_reduce": "input: ITensor, op: ReduceOperation, axes: int, keep_dims: bool"},
        shapes.reduce,
        compute.reduce,
    ),
    Layer(
        "plugin",
        "IPluginV2Layer",
        {"add_plugin_v2": "inputs: list[ITensor], plugin: IPluginV2"},
        **_PLUGIN,
        layer_type="PLUGIN_V2",
    ),
    Layer(
        "plugin",
        "IPluginV3Layer",
        {"add_plugin_v3": "inputs: list[ITensor], shape_inputs: list[ITensor], plugin: IPluginV3"},
        **_PLUGIN,
        layer_type="PLUGIN_V3",
    ),
)

#: By kind. Plugins of both interfaces are the same to the graph.
KINDS = {layer.kind: layer for layer in LAYERS}
