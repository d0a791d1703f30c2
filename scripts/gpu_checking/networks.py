"""Every form of BERT that TensorRT's plugins and layers have: how each is built, and from which checkpoint.

The bundled model gives numbers that mean something. It is 384 wide, and int8 add + norm has kernels for 768 and 1024: so
where a network has that, every channel is there twice ("wide"), which computes the same. Megatron's network has random
weights, since none trained is at hand.
"""

from dataclasses import dataclass

#: What travels beside the checkpoints: the bundled model's ranges, calibrated where OpenVINO is installed.
CALIBRATION = "bundled.calibration"

#: The same of the wide one, made of them on the GPU machine.
WIDE_CALIBRATION = "wide.calibration"

#: Text that the bundled model's QAT variant is trained on.
TRAINING = "training.json"

#: As in demoBERT's commands: without --strict TensorRT may take fp16 for all, and did for the bundled model.
PTQ = ("--int8", "--fp16", "--strict")
_INT8_ALL = ("-iln", "-imh")


@dataclass(frozen=True)
class Network:
    """One engine: `flags` of the builder of its `layout`; `checkpoint` is one of "bundled", "qat", the bundled one and "qat all"
    as "wide" and "wide qat", and "megatron".

    `form` says which layers are written otherwise than the project does (other_forms.py).

    `exact` networks are held to PyTorch's float32, the others to the double, which computes the same integers.
    """

    name: str
    flags: tuple
    layout: str = "padded"
    checkpoint: str = "bundled"
    form: str | None = None

    @property
    def exact(self) -> bool:
        return "--int8" not in self.flags

    @property
    def calibrated(self) -> bool:
        return not self.exact and self.checkpoint in ("bundled", "wide")

    @property
    def answers(self) -> bool:
        """Whether its answers mean something: random weights answer nothing."""
        return self.checkpoint != "megatron"

    @property
    def file_name(self) -> str:
        return self.name.replace(", ", "-").replace(" ", "_") + ".engine"


def _plugin(name: str, *flags, **settings) -> Network:
    return Network(f"plugin, {name}", ("--network", "plugin", *flags), **settings)


def _native(name: str, *flags, **settings) -> Network:
    return Network(f"native, {name}", ("--network", "native", *flags), **settings)


#: The most telling first: a machine may be taken back.
NETWORKS = (
    _plugin("fp16", "--fp16"),
    _plugin("int8", *PTQ),
    _plugin("int8 -iln -imh", *PTQ, *_INT8_ALL, checkpoint="wide"),
    _plugin("QAT int8", *PTQ, checkpoint="qat"),
    _plugin("QAT int8 -iln -imh", *PTQ, *_INT8_ALL, checkpoint="wide qat"),
    _plugin("packed fp16", "--fp16", layout="packed"),
    _plugin("packed int8", *PTQ, layout="packed", checkpoint="wide"),
    _plugin("packed QAT int8", *PTQ, layout="packed", checkpoint="wide qat"),
    _plugin("interleaved int8", *PTQ, "-il", layout="packed", checkpoint="wide"),
    _plugin("interleaved QAT int8", *PTQ, "-il", layout="packed", checkpoint="wide qat"),
    _plugin("Megatron int8", *PTQ, "-il", "--megatron", layout="packed", checkpoint="megatron"),
    _plugin("Megatron sparse int8", *PTQ, "-il", "--megatron", "-sp", layout="packed", checkpoint="megatron"),
    _plugin("fp32"),
    _native("fp16", "--fp16"),
    _native("fp32"),
    _native("int8", *PTQ),
    _native("QAT int8", *PTQ, checkpoint="qat"),
    _native("packed fp16", "--fp16", layout="packed"),
    _plugin("fp16, matrix products", "--fp16", "--strict", form="matrix_product"),
    _plugin("fp16, rows together", "--fp16", "--strict", form="rows_together"),
    _plugin("fp16, float norms", "--fp16", "--strict", form="float_norms"),
    _plugin("fp16, norm layers", "--fp16", "--strict", form="norm_layers"),
    _plugin("fp16, GELU by erf", "--fp16", "--strict", form="gelu_erf"),
    _plugin("packed int8, half before GELU", *PTQ, layout="packed", checkpoint="wide", form="gelu_in_half"),
)


def build_command(python: str, root, network: Network, checkpoints: dict, engine, sizes: dict, extra=()) -> list[str]:
    """The command that builds `network` into the file `engine`, as a user would type it.

    `checkpoints` has a path for each name and for both calibrations; `sizes` are {"batch": […], "length": […]}.
    """
    script = "builder.py" if network.layout == "padded" else "builder_varseqlen.py"
    path = checkpoints[network.checkpoint]
    source = ["--pickle", path, "-c", path.parent, "-v", checkpoints["vocabulary"]]
    if network.checkpoint != "megatron":
        source = ["-pt", path]
    if network.calibrated:
        source += ["-p", checkpoints[WIDE_CALIBRATION if network.checkpoint == "wide" else CALIBRATION]]
    program = [root / script]
    if network.form:
        program = [root / "scripts" / "gpu_checking" / "other_forms.py", network.form, *program]
    words = [python, *program, *source, "-o", engine, "--backend", "tensorrt", *network.flags, *extra]
    for flag, values in (("-b", sizes["batch"]), ("-s", sizes["length"])):
        words += [word for value in values for word in (flag, value)]
    return [str(word) for word in words]
