"""Builder, runtime and plugin registry: what makes an engine of a network and runs it."""

import ctypes
import types
import weakref

import numpy as np

from tests.tensorrt_double import basics, implicit, plan
from tests.tensorrt_double.classes import Native, Recorder, materialise, new, private
from tests.tensorrt_double.cuda import Gpu
from tests.tensorrt_double.enums import OrderedEnum, make_enum
from tests.tensorrt_double.network import CLASSES as NETWORK_CLASSES
from tests.tensorrt_double.network import new_network
from tests.tensorrt_double.numerics import STORAGE, from_storage, to_storage
from tests.tensorrt_double.plugins import creators, plugin_params, required_flags
from tests.tensorrt_double.versions import TensorRTDoubleError, Version

_TIMING_CACHE = b"TRTDOUBLE-TIMING "
_PRECISION_FLAGS = {"FP16": "HALF", "BF16": "BF16", "INT8": "INT8", "FP8": "FP8"}


def _log(logger, severity: str, message: str) -> None:
    logger.log(getattr(logger._module.ILogger.Severity, severity), message)


def _known_bits(enum) -> int:
    return sum({1 << member.value for member in enum.__members__.values()})


class Builder(Native):
    """Makes networks, configurations and engines."""

    def __init__(self, logger: "ILogger"):
        if self._module._gpu.compute_capability is None and self._module.__name__ == "tensorrt":
            _log(logger, "ERROR", "CUDA initialization failure with error: 100")
            raise TypeError("pybind11::init(): factory function returned nullptr")
        self._logger = logger

    def create_network(self, flags: "int" = 0):
        """A network; 8.6 must be asked for an explicit batch, before 11 strong typing is a flag."""
        module, version = self._module, self._version
        known = module.NetworkDefinitionCreationFlag.__members__
        if flags < 0 or flags & ~_known_bits(module.NetworkDefinitionCreationFlag):
            raise TensorRTDoubleError(f"TensorRT {version.name} has no network flags {flags:#b}")
        if version.key == "8.6" and not flags >> int(known["EXPLICIT_BATCH"]) & 1:
            raise TensorRTDoubleError("TensorRT 8.6 needs the flag EXPLICIT_BATCH: implicit batches are not played")
        if "EXPLICIT_PRECISION" in known and flags >> int(known["EXPLICIT_PRECISION"]) & 1:
            raise TensorRTDoubleError("EXPLICIT_PRECISION is not played by the double")
        strong = not version.weakly_typed or ("STRONGLY_TYPED" in known and flags >> int(known["STRONGLY_TYPED"]) & 1)
        return new_network(module, bool(strong), version.shape_type)

    def create_builder_config(self):
        """A configuration with defaults."""
        return new(
            self._module.IBuilderConfig,
            logger=self._logger,
            flag_bits=0,
            timings=1,
            verbosity="LAYER_NAMES_ONLY",
            tactic_sources=_known_bits(self._module.TacticSource),
            profiles=[],
            timing_cache=None,
            capabilities=[],
        )

    def create_optimization_profile(self):
        """An empty profile."""
        return new(self._module.IOptimizationProfile, shapes={})

    def build_serialized_network(self, network: "INetworkDefinition", config: "IBuilderConfig"):
        """The plan, as IHostMemory. What the real builder would refuse raises TensorRTDoubleError.

        A kernel that is missing is no mistake of the caller's: None and an error in the log, as from the real one.
        """
        facts = _check_build(self._module, network, config, self._logger)
        if missing := _missing_kernel(network._graph, self._version):
            _log(self._logger, "ERROR", f"IBuilder::buildSerializedNetwork: {missing}")
            return None
        data = plan.dump(network._graph, facts, self._version.name)
        cache = config._timing_cache
        if cache is not None:
            cache._data = _TIMING_CACHE + self._version.name.encode() + b" " + data[-16:]
        return bytes.__new__(self._module.IHostMemory, data)


def _check_build(module, network, config, logger=None) -> dict:
    """Everything the builder checks; returns what the engine has to know besides the network."""
    graph = network._graph
    if not graph.outputs:
        raise TensorRTDoubleError("the network has no output")
    _check_precisions(network, config)
    profiles = [_checked_profile(profile, graph) for profile in config._profiles]
    dynamic = [graph.tensors[i].name for i in graph.inputs if -1 in graph.tensors[i].info.shape]
    if dynamic and not profiles:
        raise TensorRTDoubleError(f"the inputs {', '.join(dynamic)} are dynamic, but there is no optimization profile")
    for tensor in range(len(graph.tensors)):
        graph.info(tensor)
    static = [{graph.tensors[i].name: (graph.tensors[i].info.shape,) * 3 for i in graph.inputs}]
    for profile in profiles or static:
        for shapes in ({name: dims[which] for name, dims in profile.items()} for which in range(3)):
            unresolved = [t for t, info in graph.infer(shapes).items() if -1 in info.shape]
            if unresolved:
                names = ", ".join(graph.tensors[t].name for t in unresolved[:3])
                raise TensorRTDoubleError(f"with every input's shape given, the shape of {names} is still unknown")
    if logger is not None:
        for index in graph.inputs:
            if not graph.consumers(index):
                _log(logger, "WARNING", f"Unused Input: {graph.tensors[index].name}")
    flags = [f for f, m in module.BuilderFlag.__members__.items() if config._flag_bits >> m.value & 1]
    capability = module._gpu.compute_capability
    return {
        "flags": flags,
        "profiles": profiles,
        "compute_capability": list(capability) if module.__name__ == "tensorrt" else None,
        "compute_capabilities": list(config._capabilities),
        "verbosity": config._verbosity,
    }


def _missing_kernel(graph, version) -> str | None:
    """What of the network this version has no kernel for: TensorRT-RTX 1.7.1 has none for packed attention."""
    for node in graph.nodes:
        if version.key == "rtx" and node.kind == "attention" and node.params["query_form"] == "PACKED_NHD":
            return f"{node.name}: no fused kernel is available for packed (NHD) attention on this target"
    return None


def _check_precisions(network, config) -> None:
    """The types a network asks for must be allowed by builder flags where typing is weak, and by none where strong."""
    module, graph = network._module, network._graph
    members = module.BuilderFlag.__members__
    flags = {name for name, member in members.items() if config._flag_bits >> member.value & 1}
    if graph.strongly_typed:
        forbidden = flags & {*_PRECISION_FLAGS, "OBEY_PRECISION_CONSTRAINTS", "PREFER_PRECISION_CONSTRAINTS"}
        if forbidden:
            raise TensorRTDoubleError(f"a strongly typed network takes no flag {', '.join(sorted(forbidden))}")
    wanted = {node.precision: node.name for node in graph.nodes if node.precision}
    wanted |= {tensor.forced_type: tensor.name for tensor in graph.tensors if tensor.forced_type}
    for flag, dtype in _PRECISION_FLAGS.items():
        if not graph.strongly_typed and dtype in wanted and flag not in flags:
            raise TensorRTDoubleError(f"{wanted[dtype]} asks for {dtype}, but the builder flag {flag} is not set")
    for node in graph.nodes:
        needed = required_flags(node.params) if node.kind == "plugin" and not graph.strongly_typed else []
        if needed and not flags & set(needed):
            raise TensorRTDoubleError(f"{node.name}: its types need the builder flag {' or '.join(needed)}")
    _check_quantization(graph, flags)
    implicit.check(graph)
    _check_masks(graph)


def _check_quantization(graph, flags: set) -> None:
    """Explicit quantization needs its builder flag where typing is weak; quantized probabilities, both that make them."""
    for node in graph.nodes:
        if node.kind == "quantize" and not graph.strongly_typed and node.params["to_type"] not in flags:
            raise TensorRTDoubleError(f"{node.name} needs the builder flag {node.params['to_type']}")
        if node.kind == "attention":
            has_scale = node.inputs[6:] not in ([], [None])
            if has_scale == (node.params["normalization_quantize_to_type"] is None):
                raise TensorRTDoubleError(f"{node.name}: quantized probabilities need a type and a scale")


def _check_masks(graph) -> None:
    """The padded embeddings write the mask in a form that depends on `mha_type_id`: the type of who reads it."""
    for node in graph.nodes:
        if node.kind == "plugin" and node.params["family"] == "attention" and node.params.get("has_mask"):
            producer = graph.tensors[node.inputs[1]].node
            written = None if producer is None else graph.nodes[producer].params.get("mha_type_id")
            if written not in (None, node.params["type_id"]):
                raise TensorRTDoubleError(f"{node.name}: type_id {node.params['type_id']}, its mask is of {written}")


def _checked_profile(profile, graph) -> dict:
    """{input: (min, opt, max)} for every input."""
    inputs = {graph.tensors[i].name: graph.tensors[i].info for i in graph.inputs}
    unknown = sorted(set(profile._shapes) - set(inputs))
    if unknown:
        raise TensorRTDoubleError(f"the profile names {', '.join(unknown)}, which the network does not have")
    result = {}
    for name, info in inputs.items():
        dims = profile._shapes.get(name)
        if dims is None:
            if -1 in info.shape:
                raise TensorRTDoubleError(f"the profile does not set the dynamic input {name}")
            dims = (info.shape,) * 3
        for shape in dims:
            fits = len(shape) == len(info.shape) and all(b in (-1, a) for a, b in zip(shape, info.shape))
            if not fits or min(shape, default=1) < 1:
                raise TensorRTDoubleError(f"profile: {shape} does not fit the input {name} {info.shape}")
        result[name] = dims
    return result


@private
class IOptimizationProfile(Native):
    """Smallest, best and largest shapes of the dynamic inputs."""

    def set_shape(self, input: "str", min: "Dims", opt: "Dims", max: "Dims"):
        """The shapes of one input; ValueError where they contradict each other."""
        shapes = tuple(min), tuple(opt), tuple(max)
        same = len({len(shape) for shape in shapes}) == 1
        if not same or any(not 0 <= a <= b <= c for a, b, c in zip(*shapes)):
            raise ValueError(f"shapes provided for {input} are inconsistent: {shapes}")
        if input in self._shapes:
            raise TensorRTDoubleError(f"the profile sets {input} twice")
        self._shapes[input] = shapes

    def __bool__(self):
        return True


@private
class IBuilderConfig(Native):
    """How to build."""

    @property
    def avg_timing_iterations(self):
        """How many runs of each kernel are timed."""
        return self._timings

    @avg_timing_iterations.setter
    def avg_timing_iterations(self, value: "int"):
        if value < 1:
            raise TensorRTDoubleError(f"avg_timing_iterations = {value}")
        self._timings = value

    @property
    def builder_optimization_level(self):
        """How many kernels the builder tries, 0 to 5."""
        return self._level

    @builder_optimization_level.setter
    def builder_optimization_level(self, value: "int"):
        if not 0 <= value <= 5:
            raise TensorRTDoubleError(f"builder_optimization_level = {value}")
        self._level = value

    @property
    def profiling_verbosity(self):
        """How much the engine tells of its layers."""
        return self._module.ProfilingVerbosity.__members__[self._verbosity]

    @profiling_verbosity.setter
    def profiling_verbosity(self, value: "ProfilingVerbosity"):
        self._verbosity = value.name

    def set_flag(self, flag: "BuilderFlag"):
        """Sets a flag."""
        self._flag_bits |= 1 << int(flag)

    def clear_flag(self, flag: "BuilderFlag"):
        """Clears a flag."""
        self._flag_bits &= ~(1 << int(flag))

    def set_memory_pool_limit(self, pool: "MemoryPoolType", pool_size: "int"):
        """The most memory a pool may take, in bytes."""
        if not 0 < pool_size < 1 << 63:
            raise TensorRTDoubleError(f"memory pool limit {pool_size}")

    def set_tactic_sources(self, tactic_sources: "int"):
        """The libraries kernels may come from, a bit mask."""
        if tactic_sources & ~_known_bits(self._module.TacticSource):
            raise TensorRTDoubleError(f"unknown tactic sources {tactic_sources:#b}")
        self._tactic_sources = tactic_sources
        return True

    def get_tactic_sources(self):
        """The tactic sources, a bit mask."""
        return self._tactic_sources

    def add_optimization_profile(self, profile: "IOptimizationProfile"):
        """Adds a profile; returns its index."""
        self._profiles.append(profile)
        return len(self._profiles) - 1

    def create_timing_cache(self, serialized_timing_cache: "buffer"):
        """A timing cache, new (`b""`) or read from bytes."""
        return new(self._module.ITimingCache, data=bytes(serialized_timing_cache))

    def set_timing_cache(self, cache: "ITimingCache", ignore_mismatch: "bool"):
        """Uses a cache; False where it is of another version or damaged."""
        expected = _TIMING_CACHE + self._version.name.encode() + b" "
        if cache._data and not cache._data.startswith(expected):
            _log(self._logger, "ERROR", "the timing cache does not fit this version of TensorRT")
            return False
        self._timing_cache = cache
        return True

    def get_timing_cache(self):
        """The cache, or None."""
        return self._timing_cache

    @property
    def num_compute_capabilities(self):
        """How many GPU generations the engine is for."""
        return len(self._capabilities)

    @num_compute_capabilities.setter
    def num_compute_capabilities(self, value: "int"):
        self._capabilities = [*self._capabilities, *["NONE"] * value][:value]

    def set_compute_capability(self, compute_capability: "ComputeCapability", index: "int"):
        """One of the GPU generations the engine is for."""
        if not 0 <= index < len(self._capabilities):
            _log(self._logger, "ERROR", f"compute capability {index} of {len(self._capabilities)}")
            return False
        self._capabilities[index] = compute_capability.name
        return True


@private
class IPluginV2(Native):
    """A plugin of the V2 interface."""


@private
class IPluginV3(Native):
    """A plugin of the V3 interface."""


@private
class IPluginCreator(Native):
    """Makes plugins of the V2 interface."""

    def create_plugin(self, name: "str", field_collection: "PluginFieldCollection"):
        """A plugin from its fields."""
        return _plugin(self._module.IPluginV2, self._creator, field_collection)


@private
class IPluginCreatorV3One(Native):
    """Makes plugins of the V3 interface."""

    def create_plugin(self, name: "str", field_collection: "PluginFieldCollection", phase: "TensorRTPhase"):
        """A plugin from its fields, to build with."""
        if phase.name != "BUILD":
            raise TensorRTDoubleError(f"plugins are made in the phase BUILD, not {phase.name}")
        return _plugin(self._module.IPluginV3, self._creator, field_collection)


def _plugin(cls, creator, field_collection):
    return new(cls, params=plugin_params(creator, [field._values() for field in field_collection._fields]))


@private
class IPluginRegistry(Native):
    """The plugins this process knows."""

    def _find(self, interfaces: tuple, name: str, version: str, namespace: str):
        for creator in creators(self._version) if self._module._state["plugins"] else ():
            if creator.interface in interfaces and (creator.name, creator.version, "") == (name, version, namespace):
                cls = {2: "IPluginCreator", 3: "IPluginCreatorV3One"}[creator.interface]
                return new(getattr(self._module, cls), creator=creator)
        return None

    def get_plugin_creator(self, type: "str", version: "str", plugin_namespace: "str" = ""):
        """A creator of the V2 interface, or None."""
        return self._find((2,), type, version, plugin_namespace)

    def get_creator(self, type: "str", version: "str", plugin_namespace: "str" = ""):
        """A creator of any interface, or None."""
        return self._find((2, 3), type, version, plugin_namespace)


class Runtime(Native):
    """Reads plans."""

    def __init__(self, logger: "ILogger"):
        if self._module._gpu.compute_capability is None and self._module.__name__ == "tensorrt":
            _log(logger, "ERROR", "CUDA initialization failure with error: 100")
            raise TypeError("pybind11::init(): factory function returned nullptr")
        self._logger = logger

    def deserialize_cuda_engine(self, serialized_engine: "buffer"):
        """The engine, or None, with an error logged, when the plan is not for this version and GPU."""
        try:
            if self._module._gpu.compute_capability is None:
                raise plan.BadPlan("CUDA error 35: no device")
            graph, facts = plan.load(serialized_engine, self._version.name)
            _check_device(facts, self._module._gpu.compute_capability)
        except plan.BadPlan as error:
            _log(self._logger, "ERROR", f"IRuntime::deserializeCudaEngine: {error}")
            return None
        return new(self._module.ICudaEngine, graph=graph, facts=facts, logger=self._logger, contexts=weakref.WeakSet())


def _check_device(facts: dict, capability: tuple) -> None:
    built_for = facts["compute_capability"]
    if built_for is not None and tuple(built_for) != capability:
        raise plan.BadPlan(f"the plan is for compute capability {built_for}, this GPU has {list(capability)}")
    targets = [name for name in facts["compute_capabilities"] if name.startswith("SM")]
    if targets and f"SM{capability[0]}{capability[1]}" not in targets:
        raise plan.BadPlan(f"the plan is for {', '.join(targets)}, this GPU has {list(capability)}")


@private
class ICudaEngine(Native):
    """A built network."""

    def _tensor(self, name: str) -> int:
        for index in self._graph.inputs + self._graph.outputs:
            if self._graph.tensors[index].name == name:
                return index
        raise TensorRTDoubleError(f"the engine has no tensor {name!r}")

    @property
    def name(self):
        """The network's name."""
        return self._graph.name

    @property
    def num_io_tensors(self):
        """How many inputs and outputs it has."""
        return len(self._graph.inputs + self._graph.outputs)

    @property
    def num_optimization_profiles(self):
        """How many profiles it has; a static one has 1."""
        return max(1, len(self._facts["profiles"]))

    def get_tensor_name(self, index: "int"):
        """The name of an input or output."""
        return self._graph.tensors[(self._graph.inputs + self._graph.outputs)[index]].name

    def get_tensor_mode(self, name: "str"):
        """Whether it is an input or output; NONE when the engine has no such tensor."""
        modes = self._module.TensorIOMode
        tensors = self._graph.tensors
        if name in [tensors[i].name for i in self._graph.inputs]:
            return modes.INPUT
        return modes.OUTPUT if name in [tensors[i].name for i in self._graph.outputs] else modes.NONE

    def get_tensor_shape(self, name: "str"):
        """Its dimensions, -1 where dynamic."""
        return self._module.Dims(self._graph.info(self._tensor(name)).shape)

    def get_tensor_dtype(self, name: "str"):
        """Its DataType."""
        return getattr(self._module.DataType, self._graph.info(self._tensor(name)).dtype)

    def get_tensor_profile_shape(self, name: "str", profile_index: "int"):
        """[min, opt, max] of an input in a profile."""
        if self._tensor(name) not in self._graph.inputs or not 0 <= profile_index < self.num_optimization_profiles:
            raise TensorRTDoubleError(f"no profile {profile_index} of an input {name!r}")
        return [self._module.Dims(shape) for shape in self._profile(profile_index)[name]]

    def _profile(self, index: int) -> dict:
        tensors = self._graph.tensors
        static = {tensors[i].name: [tensors[i].info.shape] * 3 for i in self._graph.inputs}
        return self._facts["profiles"][index] if self._facts["profiles"] else static

    def create_execution_context(self):
        """A context on profile 0; in 8.6 only one context may use a profile at a time."""
        self._module._gpu.require_context()
        taken = self._version.key == "8.6" and any(context._profile == 0 for context in self._contexts)
        context = new(self._module.IExecutionContext, engine=self, profile=-1 if taken else 0, shapes={}, addresses={})
        self._contexts.add(context)
        return context


@private
class IExecutionContext(Native):
    """Runs an engine. Wrong shapes and profiles are refused as by the real one: False, and an error in the log."""

    def _refuse(self, message: str) -> bool:
        _log(self._engine._logger, "ERROR", f"IExecutionContext: {message}")
        return False

    def set_optimization_profile_async(self, profile_index: "int", stream_handle: "int"):
        """Switches the profile; every input shape has to be set again."""
        self._stream(stream_handle)
        if not 0 <= profile_index < self._engine.num_optimization_profiles:
            return self._refuse(f"there is no profile {profile_index}")
        others = [context for context in self._engine._contexts if context is not self]
        if self._version.key == "8.6" and any(context._profile == profile_index for context in others):
            return self._refuse(f"profile {profile_index} is in use by another context")
        self._profile, self._shapes = profile_index, {}
        return True

    def set_input_shape(self, name: "str", shape: "Dims"):
        """The shape of an input for the next runs; False when the profile does not allow it."""
        if self._engine.get_tensor_mode(name).name != "INPUT":
            return self._refuse(f"there is no input {name!r}")
        if self._profile < 0:
            return self._refuse("no optimization profile is set")
        least, _, most = self._engine._profile(self._profile)[name]
        fits = len(shape) == len(least) and all(a <= n <= b for a, n, b in zip(least, shape, most))
        if not fits:
            return self._refuse(f"shape {shape} of {name} is outside profile {self._profile}: {least} to {most}")
        self._shapes[name] = tuple(shape)
        return True

    def _input_shapes(self) -> dict:
        tensors = self._engine._graph.tensors
        declared = {tensors[i].name: tensors[i].info.shape for i in self._engine._graph.inputs}
        return declared | self._shapes

    def get_tensor_shape(self, name: "str"):
        """The present shape, -1 where inputs are not set yet."""
        tensor = self._engine._tensor(name)
        return self._module.Dims(self._engine._graph.infer(self._input_shapes())[tensor].shape)

    def set_tensor_address(self, name: "str", memory: "int"):
        """Where an input or output is, in device memory."""
        self._engine._tensor(name)
        self._module._gpu.memory(memory, 1)
        self._addresses[name] = memory
        return True

    def _stream(self, handle: int):
        self._module._gpu.require_context()
        streams = self._module._gpu.streams
        if handle not in streams:
            raise TensorRTDoubleError(f"{handle:#x} is not the handle of a stream; the default stream is not played")
        return streams[handle]

    def execute_async_v3(self, stream_handle: "int"):
        """Enqueues a run with the shapes and addresses of this moment; False when something is not set."""
        stream = self._stream(stream_handle)
        graph = self._engine._graph
        if self._profile < 0:
            return self._refuse("no optimization profile is set")
        if missing := [name for name, shape in self._input_shapes().items() if -1 in shape]:
            return self._refuse(f"no shape is set for {', '.join(missing)}")
        names = [graph.tensors[i].name for i in graph.inputs + graph.outputs]
        if missing := [name for name in names if name not in self._addresses]:
            return self._refuse(f"no address is set for {', '.join(missing)}")
        infos = graph.infer(self._input_shapes())
        places = {}
        for tensor in graph.inputs + graph.outputs:
            name, (shape, dtype, *_) = graph.tensors[tensor].name, infos[tensor]
            nbytes = int(np.prod(shape)) * np.dtype(STORAGE[dtype]).itemsize
            self._module._gpu.memory(self._addresses[name], nbytes)
            places[name] = self._addresses[name], nbytes, shape, dtype
        stream.enqueue(lambda: _run(graph, self._module, places))
        return True


def _run(graph, module, places: dict) -> None:
    """Reads the inputs from device memory, executes, writes the outputs."""

    def memory(name):
        address, nbytes, shape, dtype = places[name]
        return module._gpu.memory(address, nbytes).view(STORAGE[dtype]).reshape(shape)

    feeds = {}
    for tensor in graph.inputs:
        name = graph.tensors[tensor].name
        feeds[name] = from_storage(memory(name).copy(), places[name][3])
    for name, value in graph.execute(feeds).items():
        if value.dtype == np.float64 and not np.isfinite(value).all():
            raise TensorRTDoubleError(f"the output {name} is not finite")
        memory(name)[...] = to_storage(value, places[name][3])


CLASSES = [
    *basics.CLASSES,
    *NETWORK_CLASSES,
    IPluginV2,
    IPluginV3,
    IPluginCreator,
    IPluginCreatorV3One,
    IPluginRegistry,
    IOptimizationProfile,
    IBuilderConfig,
    Builder,
    Runtime,
    ICudaEngine,
    IExecutionContext,
]

_TYPE_NAMES = {
    "float32": "FLOAT",
    "float16": "HALF",
    "int8": "INT8",
    "int32": "INT32",
    "bool": "BOOL",
    "uint8": "UINT8",
    "fp8": "FP8",
    "bfloat16": "BF16",
    "int64": "INT64",
}


def make_module(version: Version, gpu: Gpu, recorder: Recorder) -> types.ModuleType:
    """The module `tensorrt` (or `tensorrt_rtx`) of one version."""
    module = types.ModuleType(version.module)
    module.__version__ = version.name.removeprefix("rtx-")
    module._gpu, module._state = gpu, {"plugins": False}
    materialise(CLASSES, module, version, recorder)
    severities = {"INTERNAL_ERROR": 0, "ERROR": 1, "WARNING": 2, "INFO": 3, "VERBOSE": 4}
    module.ILogger.Severity = make_enum("Severity", severities, version.module, OrderedEnum)
    for name, member in module.ILogger.Severity.__members__.items():
        setattr(module.ILogger, name, member)
    for name, type_name in _TYPE_NAMES.items():
        if type_name in module.DataType.__members__:
            setattr(module, name, getattr(module.DataType, type_name))
    for function in _functions(module):
        setattr(module, function.__name__, function)
    return module


def _functions(module) -> list:
    def init_libnvinfer_plugins(logger, namespace):
        if not isinstance(logger, module.ILogger) and logger is not None:
            raise TypeError("init_libnvinfer_plugins: logger must be an ILogger")
        if namespace != "":
            raise TensorRTDoubleError(f"the BERT plugins are in the namespace '', not {namespace!r}")
        module._state["plugins"] = True
        return True

    def get_plugin_registry():
        return new(module.IPluginRegistry)

    def nptype(trt_type):
        if trt_type.name in ("BF16", "FP8"):
            raise TypeError("Could not resolve TensorRT datatype to an equivalent numpy datatype.")
        return STORAGE[trt_type.name]

    return [init_libnvinfer_plugins, get_plugin_registry, nptype]


def plugin_library_loader(version: Version):
    """A `ctypes.CDLL` that knows libnvinfer_plugin of this version, which is not on this machine, and no other."""
    real = ctypes.CDLL
    names = (f"libnvinfer_plugin.so.{version.library_major}", f"nvinfer_plugin_{version.library_major}.dll")
    names += ("libnvinfer_plugin.so", "nvinfer_plugin.dll") if version.key == "8.6" else ()

    def load(name, *args, **kwargs):
        if "nvinfer_plugin" not in str(name):
            return real(name, *args, **kwargs)
        if name not in names or version.module != "tensorrt":
            raise OSError(f"{name}: cannot open shared object file: No such file or directory")
        return types.SimpleNamespace(_name=name)

    return load
