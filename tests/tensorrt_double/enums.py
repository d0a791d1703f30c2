"""The enums of each TensorRT version the double plays, and the class that stands for pybind11's enums.

The values are those of NVIDIA's bindings; tests/test_tensorrt_bindings.py compares them with the real modules.
"""

#: One row: enum, versions that have these members ("all", or a list), members with their values.
_TABLE = """
ActivationType all RELU=0 SIGMOID=1 TANH=2 LEAKY_RELU=3 ELU=4 SELU=5 SOFTSIGN=6 SOFTPLUS=7 CLIP=8
ActivationType all HARD_SIGMOID=9 SCALED_TANH=10 THRESHOLDED_RELU=11
ActivationType 10.0,10.16,11.4,rtx GELU_ERF=12 GELU_TANH=13
AttentionIOForm 11.4,rtx PADDED_BHND=0 PACKED_NHD=1
AttentionNormalizationOp 10.16,11.4,rtx NONE=0 SOFTMAX=1
BuilderFlag 8.6,10.0,10.16 FP16=0 INT8=1
BuilderFlag all DEBUG=2 GPU_FALLBACK=3
BuilderFlag 8.6 STRICT_TYPES=4 REFIT=5 DISABLE_TIMING_CACHE=6 TF32=7 SPARSE_WEIGHTS=8 SAFETY_SCOPE=9
BuilderFlag 8.6 OBEY_PRECISION_CONSTRAINTS=10 PREFER_PRECISION_CONSTRAINTS=11 DIRECT_IO=12
BuilderFlag 8.6 REJECT_EMPTY_ALGORITHMS=13 ENABLE_TACTIC_HEURISTIC=14 VERSION_COMPATIBLE=15
BuilderFlag 8.6 EXCLUDE_LEAN_RUNTIME=16 FP8=17
BuilderFlag 10.0,10.16 OBEY_PRECISION_CONSTRAINTS=9 PREFER_PRECISION_CONSTRAINTS=10
BuilderFlag 10.0,10.16 REJECT_EMPTY_ALGORITHMS=12 VERSION_COMPATIBLE=13 EXCLUDE_LEAN_RUNTIME=14 FP8=15
BuilderFlag 10.0,10.16 ERROR_ON_TIMING_CACHE_MISS=16 BF16=17 DISABLE_COMPILATION_CACHE=18 WEIGHTLESS=19
BuilderFlag 10.0,10.16 STRIP_PLAN=19 REFIT_IDENTICAL=20 WEIGHT_STREAMING=21
BuilderFlag 10.0,10.16,11.4,rtx REFIT=4 DISABLE_TIMING_CACHE=5 TF32=6 SPARSE_WEIGHTS=7 SAFETY_SCOPE=8
BuilderFlag 10.0,10.16,11.4,rtx DIRECT_IO=11
BuilderFlag 10.16 INT4=22 REFIT_INDIVIDUAL=23 STRICT_NANS=24 MONITOR_MEMORY=25 FP4=26
BuilderFlag 10.16 EDITABLE_TIMING_CACHE=27 DISTRIBUTIVE_INDEPENDENCE=28
BuilderFlag 11.4,rtx VERSION_COMPATIBLE=12 EXCLUDE_LEAN_RUNTIME=13 ERROR_ON_TIMING_CACHE_MISS=15
BuilderFlag 11.4,rtx DISABLE_COMPILATION_CACHE=17 STRIP_PLAN=18 REFIT_IDENTICAL=19 WEIGHT_STREAMING=20
BuilderFlag 11.4,rtx REFIT_INDIVIDUAL=22 STRICT_NANS=23 MONITOR_MEMORY=24 EDITABLE_TIMING_CACHE=26
BuilderFlag 11.4,rtx DISTRIBUTIVE_INDEPENDENCE=27
BuilderFlag rtx REQUIRE_USER_ALLOCATION=28
CausalMaskKind 11.4,rtx NONE=0 UPPER_LEFT=1 LOWER_RIGHT=2
ComputeCapability rtx NONE=0 CURRENT=1 SM75=75 SM80=80 SM86=86 SM89=89 SM120=120 SM121=121
DataType all FLOAT=0 HALF=1 INT8=2 INT32=3 BOOL=4 UINT8=5 FP8=6
DataType 10.0,10.16,11.4,rtx BF16=7 INT64=8 INT4=9
DataType 10.16,11.4,rtx FP4=10 E8M0=11
ElementWiseOperation all SUM=0 PROD=1 MAX=2 MIN=3 SUB=4 DIV=5 POW=6 FLOOR_DIV=7 AND=8 OR=9 XOR=10 EQUAL=11
ElementWiseOperation all GREATER=12 LESS=13
LayerType all CONVOLUTION=0 ACTIVATION=2 SOFTMAX=6 CONCATENATION=8 ELEMENTWISE=9 UNARY=11 SHUFFLE=13 REDUCE=14
LayerType all GATHER=16 MATRIX_MULTIPLY=17 CONSTANT=19
LayerType 8.6 PLUGIN_V2=22 SLICE=23 SHAPE=24 QUANTIZE=33 DEQUANTIZE=34 NORMALIZATION=46 CAST=47
LayerType 10.0,10.16,11.4,rtx CAST=1 PLUGIN_V2=21 SLICE=22 SHAPE=23 QUANTIZE=32 DEQUANTIZE=33
LayerType 10.0,10.16,11.4,rtx NORMALIZATION=45 PLUGIN_V3=46
LayerType 10.16,11.4,rtx ATTENTION_INPUT=51 ATTENTION_OUTPUT=52
MatrixOperation all NONE=0 TRANSPOSE=1 VECTOR=2
MemoryPoolType all WORKSPACE=0 DLA_MANAGED_SRAM=1 DLA_LOCAL_DRAM=2 DLA_GLOBAL_DRAM=3 TACTIC_DRAM=4
MemoryPoolType 10.0,10.16,11.4,rtx TACTIC_SHARED_MEMORY=5
NetworkDefinitionCreationFlag 8.6,10.0,10.16 EXPLICIT_BATCH=0
NetworkDefinitionCreationFlag 8.6 EXPLICIT_PRECISION=1
NetworkDefinitionCreationFlag 10.0,10.16 STRONGLY_TYPED=1
NetworkDefinitionCreationFlag 10.16 PREFER_JIT_PYTHON_PLUGINS=2 PREFER_AOT_PYTHON_PLUGINS=3
NetworkDefinitionCreationFlag 11.4,rtx STRONGLY_TYPED=0
NetworkDefinitionCreationFlag 11.4 PREFER_JIT_PYTHON_PLUGINS=1 PREFER_AOT_PYTHON_PLUGINS=2
PluginFieldType all FLOAT16=0 FLOAT32=1 FLOAT64=2 INT8=3 INT16=4 INT32=5 CHAR=6 DIMS=7 UNKNOWN=8
PluginFieldType 10.0,10.16,11.4,rtx BF16=9 INT64=10 FP8=11
PluginFieldType 10.16,11.4,rtx INT4=12 FP4=13
ProfilingVerbosity all LAYER_NAMES_ONLY=0 NONE=1 DETAILED=2
ProfilingVerbosity 8.6 DEFAULT=0 VERBOSE=2
ReduceOperation all SUM=0 PROD=1 MAX=2 MIN=3 AVG=4
ReduceOperation 10.16,11.4,rtx NONE=5
TacticSource 8.6,10.0,10.16 CUBLAS=0 CUBLAS_LT=1 CUDNN=2 EDGE_MASK_CONVOLUTIONS=3 JIT_CONVOLUTIONS=4
TacticSource 11.4,rtx EDGE_MASK_CONVOLUTIONS=0 JIT_CONVOLUTIONS=1
TensorIOMode all NONE=0 INPUT=1 OUTPUT=2
TensorRTPhase 10.0,10.16,11.4,rtx BUILD=0 RUNTIME=1
UnaryOperation all EXP=0 LOG=1 SQRT=2 RECIP=3 ABS=4 NEG=5 SIN=6 COS=7 TAN=8 SINH=9 COSH=10 ASIN=11 ACOS=12
UnaryOperation all ATAN=13 ASINH=14 ACOSH=15 ATANH=16 CEIL=17 FLOOR=18 ERF=19 NOT=20 SIGN=21 ROUND=22 ISINF=23
UnaryOperation 10.16,11.4,rtx ISNAN=24
"""


class Enum:
    """Like a pybind11 enum: members compare by identity, convert with int(), and take no arithmetic."""

    def __init__(self, value: int):
        """The member with this value, as in `DataType(0)`; ValueError for an unknown one."""
        raise TypeError("replaced by make_enum")

    name: str
    value: int

    def __int__(self) -> int:
        return self.value

    def __repr__(self) -> str:
        return f"<{type(self).__name__}.{self.name}: {self.value}>"

    def __str__(self) -> str:
        return f"{type(self).__name__}.{self.name}"

    def __setattr__(self, name, value):
        raise AttributeError(f"{self} is read-only")


def _lookup(cls, value: int):
    for member in cls.__members__.values():
        if member.value == value:
            return member
    raise ValueError(f"{value} is no {cls.__name__}")


class OrderedEnum(Enum):
    """An enum whose members can be compared with each other (not with numbers): logger severities."""

    def __lt__(self, other):
        return self.value < other.value if type(other) is type(self) else NotImplemented

    def __le__(self, other):
        return self.value <= other.value if type(other) is type(self) else NotImplemented


def make_enum(name: str, members: dict[str, int], module: str, base: type = Enum) -> type:
    """A new enum class; names that share a value are one member, as in pybind11's aliases by value."""
    cls = type(name, (base,), {"__new__": _lookup, "__init__": lambda self, value: None, "__module__": module})
    by_value, by_name = {}, {}
    for member_name, value in members.items():
        if value not in by_value:
            member = by_value[value] = object.__new__(cls)
            member.__dict__.update(name=member_name, value=value)
        by_name[member_name] = by_value[value]
        setattr(cls, member_name, by_value[value])
    cls.__members__ = by_name
    return cls


def enums_of(version_key: str) -> dict[str, dict[str, int]]:
    """{enum: {member: value}} of one version ("8.6", "10.0", "10.16", "11.4" or "rtx")."""
    found = {}
    for row in _TABLE.split("\n"):
        if not row:
            continue
        name, versions, *members = row.split()
        if versions == "all" or version_key in versions.split(","):
            found.setdefault(name, {}).update((m.split("=")[0], int(m.split("=")[1])) for m in members)
    return found
