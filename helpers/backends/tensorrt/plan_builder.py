"""From BERT's weights to a TensorRT plan: network, builder configuration, optimization profiles, timing cache."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from helpers.backends.base import BuiltEngine, Prepared
from helpers.backends.tensorrt.bert_plugins import (
    INT8_NORM_SIZES,
    INTERLEAVED_CHANNELS,
    INTERLEAVED_VERSIONS,
    MAX_PACKED_HEAD_SIZE,
    MAX_PACKED_LENGTH,
    MEGATRON_VERSIONS,
    MOST_PACKED_ROWS,
    PACKED_VERSIONS,
    PADDED_HEAD_SIZE,
    PADDED_VERSIONS,
    SHORTEST_PACKED_ROWS,
    BertPlugins,
    find_plugins,
)
from helpers.backends.tensorrt.gpu import cuda_driver, gpu
from helpers.backends.tensorrt.module import Flavour, explain, load, logger_of, plugin_registry
from helpers.backends.tensorrt.native_layers import PaddedNativeLayers, knows_fp8
from helpers.backends.tensorrt.native_packed import FusedPackedNativeLayers, PackedNativeLayers, has_packed_attention
from helpers.backends.tensorrt.plugin_layers import (
    NO_PROJECTION,
    Int8,
    InterleavedPluginLayers,
    PackedPluginLayers,
    PaddedPluginLayers,
    RowsPluginLayers,
)
from helpers.batching import INPUT_NAMES
from helpers.bert_config import BertConfig
from helpers.bert_network import build_bert
from helpers.build_options import DEFAULT_TIMING_ITERATIONS, DEFAULT_WORKSPACE_MIB, BuildOptions
from helpers.engine_card import EngineFacts
from helpers.errors import DemoBertError, UsageError
from helpers.outputs import atomic_write, place_of
from helpers.quantization import Quantization
from helpers.weights import BertWeights

#: The default targets, as TensorRT-RTX 1.7 names them when it refuses a GPU (9.0, for one).
RTX_DEVICE = "NVIDIA GPUs of compute capability 8.0, 8.6, 8.9, 12.0 and later"
RTX_CAPABILITY = (8, 0)

#: The compute capability from which the packed plugins run.
PACKED_PLUGIN_CAPABILITY = (7, 2)

#: The GPUs on which padded rows were seen to be faster through the packed plugins.
HOPPER = (9, 0)

#: The plugins' layer norms take no epsilon from the network. Up to this one (Megatron's) that makes no difference in
#: practice: variances of activations are some 1000 times larger.
MAX_PLUGIN_EPSILON = 1e-5


@dataclass(frozen=True)
class Profile:
    """The shapes of one optimization profile.

    Padded: batches of `min_batch` to `max_batch` rows of just `length` tokens. Packed: `min_batch` to `max_batch`
    sequences of up to `length` tokens each.
    """

    max_batch: int
    length: int
    min_batch: int = 1


def profiles_for(options: BuildOptions) -> list[Profile]:
    """One profile for each batch size and length, ascending; one for the largest of both where one is all there may be.

    In a padded engine the length is fixed within a profile: the int8 attention kernels exist for some lengths only. In
    a packed one sequences of every length share a profile, so that only the longest makes profiles.
    """
    if options.distributive_independence:
        return [Profile(options.max_batch_size, options.max_sequence_length)]
    if options.layout == "packed":
        return [Profile(batch, options.max_sequence_length) for batch in options.batch_sizes]
    return [Profile(batch, length) for batch in options.batch_sizes for length in options.sequence_lengths]


def input_shape(options: BuildOptions) -> tuple[int, int]:
    """(B, S) of the network's inputs; -1 where more than one size has to be served."""
    batches, lengths = options.batch_sizes, options.sequence_lengths
    if options.distributive_independence:
        lengths = lengths[-1:]
    if len(batches) == len(lengths) == 1:
        return batches[0], lengths[0]
    return -1, lengths[0] if len(lengths) == 1 else -1


class PreparedPlan(Prepared):
    """Builds a plan by TensorRT (or TensorRT-RTX). Raises UsageError for what it can't do, DemoBertError if it fails.

    TensorRT builds for the GPU of this machine; TensorRT-RTX needs none, and builds for `options.compute_capabilities`
    ("8.6", "12.0"…; none: its default).
    """

    def __init__(self, config: BertConfig, options: BuildOptions, flavour: Flavour):
        super().__init__(config, options)
        self._flavour = flavour
        self._trt = load(flavour)
        self._logger = logger_of(self._trt)
        self._logger.start(options.verbose)
        self._device, capability = _device(options, flavour)
        self._plugin_layers, versions = _plugin_layers(options, capability)
        _refuse_what_is_missing(self._trt, options, flavour)
        self._plugins, self._why_native = _plugins(self._trt, self._logger, config, options, capability, versions)
        no_choice = not hasattr(self._trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")
        self._weakly_typed = self._plugins is not None or no_choice

    def _build(self, weights: BertWeights, quantization: Quantization | None) -> BuiltEngine:
        trt, options = self._trt, self.options
        self._logger.start(options.verbose)
        builder = trt.Builder(self._logger)
        portable = self._flavour.portable
        if portable:  # TensorRT-RTX chooses kernels where the engine runs
            options = replace(options, timing_cache=None, optimization_level=None, timing_iterations=None)
        builder_config = _builder_config(trt, builder, options, self._weakly_typed)
        _set_targets(trt, builder_config, options)
        _add_profiles(builder, builder_config, options)
        precisions = _precisions(options, self._weakly_typed)
        name = EngineFacts(precisions, weights.config).network_name()
        with _timing_cache(builder_config, options.timing_cache):
            plan = self._plan(builder, builder_config, weights, quantization, name)
        return BuiltEngine(
            data=memoryview(plan),
            backend_version=trt.__version__,
            device=self._device,
            network="native" if self._plugins is None else "plugin",
            precision=precisions,
            settings={"compute_capabilities": " ".join(options.compute_capabilities)} if portable else {},
            notes=self._notes(),
        )

    def _plan(self, builder, builder_config, weights: BertWeights, quantization: Quantization | None, name: str):
        """The plan of the first form of the network that the builder can build. Raises DemoBertError for none."""
        trt, config = self._trt, weights.config
        for form in self._forms(quantization):
            network = builder.create_network(_network_flags(trt, self._weakly_typed))
            network.name = name
            layers = form(trt, network, self._logger, config)
            build_bert(layers, config, weights, self.options.megatron)
            plan = builder.build_serialized_network(network, builder_config)
            del layers  # until here TensorRT has read the weights from its arrays
            if plan is not None:
                return plan
        raise explain(self._logger, f"{self._flavour.module} {trt.__version__} could not build the engine", index=-1)

    def _forms(self, quantization: Quantization | None) -> list[Callable]:
        """The forms of layers that the network can be written in, best first: functions of all but their own part."""
        if self._plugins is not None:
            return [self._plugin_form(quantization)]
        options = self.options
        precision = options.precision
        if self._weakly_typed and precision == "fp16":
            precision = "fp32"  # the network's own type; BuilderFlag.FP16 lets the builder choose half kernels
        attention = options.quantize == "int8" and options.force_int8_multihead
        quantized = {"precision": precision, "quantization": quantization, "quantize_attention": attention}
        if options.layout == "padded":
            return [partial(PaddedNativeLayers, sizes=input_shape(options), **quantized)]
        # Whether there is a kernel for packed attention only the builder knows: it is asked first, where it can be.
        fused = [FusedPackedNativeLayers] if has_packed_attention(self._trt) else []
        longest = options.max_sequence_length
        sizes = (options.max_batch_size * longest, longest)
        return [partial(layers, sizes=sizes, **quantized) for layers in (*fused, PackedNativeLayers)]

    def _plugin_form(self, quantization: Quantization | None) -> Callable:
        options = self.options
        packed = options.layout == "packed"
        int8 = quantization and Int8(
            quantization,
            attention=packed or options.force_int8_multihead,
            add_and_norm=packed or options.force_int8_skipln,
        )
        sizes = input_shape(options)
        own = {"sizes": sizes, "plugins": self._plugins, "int8": int8, "logits_by_token": options.logits_by_token}
        return partial(self._plugin_layers, precision=options.precision, strict=options.strict, **own)

    def _notes(self) -> list[str]:
        """Only the build tells: without plugins that suit the model, --network auto ends in a native network."""
        notes = [f"Network: native ({self._why_native})"] if self._why_native else []
        if self.options.force_int8_skipln and self.options.quantize == "int8" and self._plugins is None:
            why = "native networks add and normalise in float"
            notes.append(f"Note: --force-int8-skipln has no effect on this engine: {why}")
        return notes


def _refuse_what_is_missing(trt, options: BuildOptions, flavour: Flavour) -> None:
    if options.quantize == "fp8" and not knows_fp8(trt):
        raise UsageError(f"TensorRT {trt.__version__} quantizes to int8 only; --fp8 takes TensorRT 10 or newer")
    if options.interleaved and options.quantize != "int8":
        raise UsageError("--interleaved needs --int8")
    for target in options.compute_capabilities:
        if target not in (known := _known_targets(trt)):
            raise UsageError(
                f"{trt.__name__} can't build for compute capability {target}; it can for {', '.join(known)}"
            )
        if _capability(target) < RTX_CAPABILITY and options.precision == "fp32":
            raise UsageError(
                f"{trt.__name__} builds for compute capability {target} in half precision only: add --fp16"
            )
    if options.distributive_independence and not hasattr(trt.BuilderFlag, "DISTRIBUTIVE_INDEPENDENCE"):
        raise UsageError(f"TensorRT {trt.__version__} has no --distributive_independence; it came after 10.0")


def _device(options: BuildOptions, flavour: Flavour) -> tuple[str, tuple]:
    """What the engine is built for, as the card names it, and the oldest compute capability that was asked for.

    Raises UsageError where that is too old for a flag.
    """
    if flavour.portable:
        targets = options.compute_capabilities
        for target in targets:
            _check_capability(options, _capability(target), f"--compute-capability {target} is older")
        if not targets:
            can = "TensorRT-RTX builds for 8.0 too unless --compute-capability names the GPUs, such as 8.9"
            _check_capability(options, RTX_CAPABILITY, can)
        text = f"NVIDIA GPUs of compute capability {', '.join(targets)}" if targets else RTX_DEVICE
        return text, min(map(_capability, targets), default=RTX_CAPABILITY)
    if options.compute_capabilities:
        raise UsageError("--compute-capability is TensorRT-RTX's; TensorRT builds for the GPU of this machine")
    device = gpu(cuda_driver())
    _check_capability(options, device.compute_capability, f"this GPU is {device}")
    return str(device), device.compute_capability


def _check_capability(options: BuildOptions, capability: tuple, what_is_there: str) -> None:
    int8 = options.quantize == "int8"
    for is_asked_for, flag, needed in (
        (int8 and options.force_int8_multihead, "-imh", (7, 5)),
        (int8 and options.force_int8_skipln, "-iln", (7, 2)),
        (options.quantize == "fp8", "--fp8", (8, 9)),
    ):
        if is_asked_for and capability < needed:
            raise UsageError(f"{flag} needs compute capability {needed[0]}.{needed[1]}; {what_is_there}")


def _capability(text: str) -> tuple[int, int]:
    """ "8.6" → (8, 6). Raises UsageError."""
    major, _, minor = text.partition(".")
    if not (major.isdecimal() and minor.isdecimal()):
        raise UsageError(f"a compute capability is written like 8.6, not {text!r}")
    return int(major), int(minor)


def _precisions(options: BuildOptions, weakly_typed: bool) -> list[str]:
    """The precisions that the engine may compute in, the lowest first."""
    found = [kind for kind in (options.quantize, options.precision) if kind]
    return [*found, "fp32"] if weakly_typed and found[-1] != "fp32" else found


def _plugins(
    trt, logger, config: BertConfig, options: BuildOptions, capability: tuple, versions: dict
) -> tuple[BertPlugins | None, str | None]:
    """The plugins of a plugin network, in these versions; None: build the native network, and, where plugins are there, why.

    Raises UsageError for a contradiction.
    """
    asked = options.network == "plugin" or options.plugin_version is not None or options.interleaved
    if options.network == "native":
        if asked:
            flag = "--interleaved" if options.interleaved else "the plugin flag"
            raise UsageError(f"--network native has no plugins; leave {flag} out")
        return None, None
    misfit = _why_not_plugins(config, options, capability)
    if not asked and (options.precision == "bf16" or _is_packed_fp32(options)):
        return None, None
    plugins = find_plugins(trt, plugin_registry(trt, logger), options.plugin_version, versions)
    if plugins is None and asked:
        kind = f"{options.plugin_version} " if options.plugin_version else ""
        instead = "leave --interleaved out" if options.interleaved else "use --network native, without a plugin flag"
        raise UsageError(f"{trt.__name__} {trt.__version__} has no {kind}BERT plugins; {instead}")
    if plugins is not None and misfit and asked:
        raise UsageError(f"{misfit}; use --network native")
    return (None, plugins and misfit) if misfit else (plugins, None)


def _packs_rows(options: BuildOptions, capability: tuple) -> bool:
    """Whether the rows of a padded plugin network go through the packed plugins, which are faster for few rows."""
    attention = "int8" if options.quantize == "int8" and options.force_int8_multihead else options.precision
    few = options.max_batch_size <= MOST_PACKED_ROWS.get(attention, 0)
    lengths = options.sequence_lengths
    fits = min(lengths) >= SHORTEST_PACKED_ROWS and max(lengths) <= MAX_PACKED_LENGTH
    return options.layout == "padded" and options.precision == "fp16" and few and fits and capability == HOPPER


def _plugin_layers(options: BuildOptions, capability: tuple) -> tuple[Callable, dict]:
    """What writes a plugin network, and the versions of its plugins."""
    if options.layout == "padded":
        if _packs_rows(options, capability):
            return partial(RowsPluginLayers, most_rows=options.max_batch_size), PACKED_VERSIONS
        return PaddedPluginLayers, PADDED_VERSIONS
    if options.interleaved:
        return InterleavedPluginLayers, MEGATRON_VERSIONS if options.megatron else INTERLEAVED_VERSIONS
    return PackedPluginLayers, PACKED_VERSIONS


def _why_not_plugins(config: BertConfig, options: BuildOptions, capability: tuple) -> str | None:
    """What of the model or the GPU the BERT plugins can't do; None: nothing."""
    if options.quantize == "fp8":
        return "the BERT plugins do not compute in FP8"
    if config.embedding_size is not None:
        return NO_PROJECTION
    if config.layer_norm_eps > MAX_PLUGIN_EPSILON:
        return f"the BERT plugins ignore this model's layer_norm_eps, {config.layer_norm_eps:g}"
    if options.megatron and not options.interleaved:
        return "the BERT plugins of Megatron's residual are interleaved ones: add --interleaved"
    int8_norms = options.quantize == "int8" and (options.layout == "packed" or options.force_int8_skipln)
    if int8_norms and config.hidden_size not in INT8_NORM_SIZES:
        sizes = " and ".join(map(str, INT8_NORM_SIZES))
        return f"the BERT plugins add and normalise in int8 at hidden sizes of {sizes}, this model's is {config.hidden_size}"
    for heads in config.num_attention_heads_per_layer or () if options.interleaved else ():
        if heads * config.head_size % INTERLEAVED_CHANNELS:
            found = f"of {heads} heads of {config.head_size} in a layer of this model"
            return f"interleaved plugins take channels in groups of {INTERLEAVED_CHANNELS}, not those {found}"
    if options.layout != "packed":
        int8_attention = options.quantize == "int8" and options.force_int8_multihead
        below_float32 = options.precision == "fp16" or int8_attention
        if below_float32 and config.head_size != PADDED_HEAD_SIZE:
            known, found = PADDED_HEAD_SIZE, config.head_size
            return f"padded BERT plugins take heads of {known} below float32, this model's have {found}"
        return None
    if capability < PACKED_PLUGIN_CAPABILITY:
        needed, found = (".".join(map(str, version)) for version in (PACKED_PLUGIN_CAPABILITY, capability))
        return f"packed BERT plugins need compute capability {needed}; this GPU has {found}"
    if options.max_sequence_length > MAX_PACKED_LENGTH:
        return f"packed BERT plugins take sequences of up to {MAX_PACKED_LENGTH} tokens"
    if config.head_size > MAX_PACKED_HEAD_SIZE:
        return f"packed BERT plugins take heads of up to {MAX_PACKED_HEAD_SIZE}, this model's have {config.head_size}"
    return None


def _is_packed_fp32(options: BuildOptions) -> bool:
    """Packed attention's fused kernels are of half precision and int8; fp32 plugins are used where asked for only."""
    return options.layout == "packed" and options.precision != "fp16" and options.quantize != "int8"


def _network_flags(trt, weakly_typed: bool) -> int:
    """Creation flags. TensorRT 8.6 must be told of explicit batch; later releases know no other."""
    flags, kinds = 0, trt.NetworkDefinitionCreationFlag
    if not weakly_typed:
        flags |= 1 << int(kinds.STRONGLY_TYPED)
    if hasattr(kinds, "EXPLICIT_BATCH"):
        flags |= 1 << int(kinds.EXPLICIT_BATCH)
    return flags


def _builder_config(trt, builder, options: BuildOptions, weakly_typed: bool):
    """Precision flags, workspace, tactic sources and the rest of what builder.py's flags say."""
    config = builder.create_builder_config()
    flags = trt.BuilderFlag
    config.avg_timing_iterations = options.timing_iterations or DEFAULT_TIMING_ITERATIONS
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, (options.workspace_mib or DEFAULT_WORKSPACE_MIB) << 20)
    if options.precision == "fp16" and weakly_typed:
        config.set_flag(flags.FP16)
    if options.quantize == "int8" and weakly_typed:
        config.set_flag(flags.INT8)
    if options.strict:
        _obey_precision(config, flags, options, weakly_typed)
    if options.sparse:
        config.set_flag(flags.SPARSE_WEIGHTS)
    if options.distributive_independence:
        config.set_flag(flags.DISTRIBUTIVE_INDEPENDENCE)
    if options.verbose:
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if weakly_typed:
        config.set_tactic_sources(_tactic_sources(trt, config.get_tactic_sources()))
    return config


def _tactic_sources(trt, default: int) -> int:
    """The default sources without cuDNN, which BERT has no use for, but with cuBLAS for the attention plugin."""
    sources = trt.TacticSource
    for name in ("CUBLAS", "CUBLAS_LT"):
        if hasattr(sources, name):
            default |= 1 << int(getattr(sources, name))
    return default & ~(1 << int(sources.CUDNN)) if hasattr(sources, "CUDNN") else default


def _obey_precision(config, flags, options: BuildOptions, weakly_typed: bool) -> None:
    """--strict, as far as the release has it. A strongly typed network obeys its types, and takes no flag for that."""
    names = ("PREFER_PRECISION_CONSTRAINTS", "DIRECT_IO", "REJECT_EMPTY_ALGORITHMS")
    for name in names if weakly_typed else names[1:]:
        if hasattr(flags, name):
            config.set_flag(getattr(flags, name))
    if options.precision == "fp32":
        config.clear_flag(flags.TF32)  # TensorFloat-32 rounds float32's mantissa to 10 bits


def _add_profiles(builder, config, options: BuildOptions) -> None:
    if options.layout == "padded" and -1 not in input_shape(options):
        return
    for profile in profiles_for(options):
        shapes = builder.create_optimization_profile()
        for name, (smallest, largest) in profile_shapes(profile, options.layout).items():
            shapes.set_shape(name, smallest, largest, largest)
        if config.add_optimization_profile(shapes) < 0:
            raise DemoBertError(f"TensorRT refused the profile for batch {profile.max_batch}, length {profile.length}")


def profile_shapes(profile: Profile, layout: str) -> dict:
    """Each input's smallest and largest shape in a profile."""
    if layout == "padded":
        return dict.fromkeys(
            INPUT_NAMES[layout], ((profile.min_batch, profile.length), (profile.max_batch, profile.length))
        )
    tokens = (1,), (profile.max_batch * profile.length,)
    bounds = (profile.min_batch + 1,), (profile.max_batch + 1,)
    return dict(zip(INPUT_NAMES[layout], (tokens, tokens, bounds, ((1,), (profile.length,)))))


def _known_targets(trt) -> dict:
    """TensorRT-RTX's targets: compute capability → the module's value."""
    members = trt.ComputeCapability.__members__
    return {_capability_name(name): value for name, value in members.items() if name.startswith("SM")}


def _set_targets(trt, config, options: BuildOptions) -> None:
    """TensorRT-RTX: the compute capabilities to build for, which `_refuse_what_is_missing` has seen."""
    if not options.compute_capabilities:
        return
    known = _known_targets(trt)
    config.num_compute_capabilities = len(options.compute_capabilities)
    for index, asked in enumerate(options.compute_capabilities):
        if not config.set_compute_capability(known[asked], index):
            raise UsageError(f"{trt.__name__} refused compute capability {asked} beside the others")


def _capability_name(member: str) -> str:
    """SM86 → 8.6, SM120 → 12.0."""
    return f"{member[2:-1]}.{member[-1]}"


@contextlib.contextmanager
def _timing_cache(config, path: str | None):
    """Build with the timing cache of `path`, if it is there; write it back when the build ends well."""
    if path is None:
        yield
        return
    place_of(path, "--timing-cache-file")
    try:
        content = Path(path).read_bytes() if Path(path).exists() else b""
    except OSError as error:
        raise DemoBertError(f"the timing cache {path} can't be read: {error.strerror}") from error
    cache = config.create_timing_cache(content)
    # A cache of another GPU or release is refused here, not mixed up with this one's timings.
    if cache is None or not config.set_timing_cache(cache, False):
        raise DemoBertError(f"the timing cache {path} is damaged, or of another TensorRT or GPU; remove it first")
    yield
    with atomic_write(path) as file:
        file.write(memoryview(config.get_timing_cache().serialize()))
