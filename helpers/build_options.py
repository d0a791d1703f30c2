"""What an engine can be built as: the choices, their defaults, and those made. Standard library only: flags show them."""

from dataclasses import dataclass

#: The backends' names, on the command line and in engine cards; each is a module of helpers/backends.
BACKENDS = ("openvino", "tensorrt", "tensorrt_rtx")

#: How calibration chooses a range from a tensor's histogram; the first is the default.
CALIBRATION_METHODS = ("percentile", "entropy", "max")

#: Calibration samples where the arguments name no number.
DEFAULT_CALIBRATION_SAMPLES = 100

#: TensorRT's scratch memory in MiB where nothing else is asked for: upstream's default.
DEFAULT_WORKSPACE_MIB = 2500

#: How often TensorRT's builder times each kernel where nothing else is asked for: demoBERT's number.
DEFAULT_TIMING_ITERATIONS = 8


@dataclass(frozen=True)
class BuildOptions:
    """What builder.py was asked for, as far as it concerns a backend. Sizes are ascending, without repeats.

    precision       "fp32", "fp16" or "bf16": what is not quantized
    quantize        "int8", "fp8", or None
    workspace_mib   None: DEFAULT_WORKSPACE_MIB
    optimization_level   TensorRT's, 0 to 5; None: its default
    timing_iterations    None: DEFAULT_TIMING_ITERATIONS
    logits_by_token   packed plugin networks give [T, 2, 1, 1]; else demoBERT's [2, T, 1, 1], all start logits first
    """

    batch_sizes: tuple = (1,)
    sequence_lengths: tuple = (128,)
    layout: str = "padded"
    precision: str = "fp32"
    quantize: str | None = None
    strict: bool = False
    workspace_mib: int | None = None
    sparse: bool = False
    timing_cache: str | None = None
    optimization_level: int | None = None
    timing_iterations: int | None = None
    distributive_independence: bool = False
    force_int8_skipln: bool = False
    force_int8_multihead: bool = False
    plugin_version: str | None = None
    network: str = "auto"
    verbose: bool = False
    compute_capabilities: tuple = ()
    interleaved: bool = False
    megatron: bool = False
    logits_by_token: bool = False

    @property
    def max_batch_size(self) -> int:
        return self.batch_sizes[-1]

    @property
    def max_sequence_length(self) -> int:
        return self.sequence_lengths[-1]
