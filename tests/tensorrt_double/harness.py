"""Builds a small network with an installed double and runs it, the whole way: plan, runtime, device memory, stream."""

import sys

import numpy as np


def creation_flags(trt) -> int:
    """EXPLICIT_BATCH on 8.6, strong typing where it is a flag, nothing where there is no choice."""
    members = trt.NetworkDefinitionCreationFlag.__members__
    name = "EXPLICIT_BATCH" if "STRONGLY_TYPED" not in members else "STRONGLY_TYPED"
    return 1 << int(members[name])


def weak_flags(trt) -> int:
    """A weakly typed network with an explicit batch: TensorRT before 11."""
    return 1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH)


def run(double, write, feeds: dict, dynamic: dict | None = None, flags: int | None = None, builder_flags=()) -> dict:
    """Outputs by name of the network that `write(trt, network, inputs)` writes; it returns {name: tensor}.

    `feeds` are the inputs, whose types and shapes the network gets, -1 on the axes that `dynamic` lists by name.
    """
    trt, logger = double.module, double.module.Logger()
    builder = trt.Builder(logger)
    network = builder.create_network(creation_flags(trt) if flags is None else flags)
    config = builder.create_builder_config()
    for flag in builder_flags:
        config.set_flag(getattr(trt.BuilderFlag, flag))
    data_types = {np.dtype(trt.nptype(t)): t for t in _numpy_types(trt)}
    inputs = {}
    for name, array in feeds.items():
        shape = [-1 if axis in (dynamic or {}).get(name, ()) else size for axis, size in enumerate(array.shape)]
        inputs[name] = network.add_input(name, data_types[array.dtype], tuple(shape))
    keep = []
    for name, tensor in write(trt, network, inputs, keep).items():
        tensor.name = name
        network.mark_output(tensor)
    if dynamic:
        profile = builder.create_optimization_profile()
        for name in dynamic:
            profile.set_shape(name, *[feeds[name].shape] * 3)
        config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    del keep
    return execute(double, trt.Runtime(logger).deserialize_cuda_engine(plan), feeds)


def _numpy_types(trt) -> list:
    names = ("FLOAT", "HALF", "INT8", "INT32", "BOOL", "INT64")
    return [trt.DataType.__members__[name] for name in names if name in trt.DataType.__members__]


def execute(double, engine, feeds: dict, profile: int = 0) -> dict:
    """Runs an engine on arrays by the named-tensor API; outputs by name."""
    trt, cuda = double.module, sys.modules["pycuda.driver"]
    if not double.gpu.stack:
        cuda.init()
        cuda.Device(0).retain_primary_context().push()
    context, stream = engine.create_execution_context(), cuda.Stream()
    assert context.set_optimization_profile_async(profile, stream.handle)
    memory, outputs = [], {}
    for name, array in feeds.items():
        assert context.set_input_shape(name, array.shape)
        memory.append(cuda.mem_alloc(array.nbytes))
        cuda.memcpy_htod_async(memory[-1], np.ascontiguousarray(array), stream)
        context.set_tensor_address(name, int(memory[-1]))
    for name in [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]:
        if engine.get_tensor_mode(name) == trt.TensorIOMode.OUTPUT:
            dtype = trt.nptype(engine.get_tensor_dtype(name))
            outputs[name] = cuda.pagelocked_empty(tuple(context.get_tensor_shape(name)), dtype)
            memory.append(cuda.mem_alloc(outputs[name].nbytes))
            context.set_tensor_address(name, int(memory[-1]))
    assert context.execute_async_v3(stream.handle)
    for name, allocation in zip(outputs, memory[len(feeds) :]):
        cuda.memcpy_dtoh_async(outputs[name], allocation, stream)
    stream.synchronize()
    return outputs
