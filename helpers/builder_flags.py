"""The command line of builder.py and builder_varseqlen.py, which differ in the flags of their layouts only."""

import argparse

from helpers import cli
from helpers.build_options import (
    BACKENDS,
    CALIBRATION_METHODS,
    DEFAULT_CALIBRATION_SAMPLES,
    DEFAULT_TIMING_ITERATIONS,
    DEFAULT_WORKSPACE_MIB,
    BuildOptions,
)
from helpers.errors import UsageError

#: The flags of those fields of BuildOptions that are called otherwise.
_FLAG_OF_OPTION = {
    "workspace_mib": "--workspace-size",
    "timing_cache": "--timing-cache-file",
    "distributive_independence": "--distributive_independence",
    "compute_capabilities": "--compute-capability",
}
_FLAG_OF_PLUGINS = {"v3": "--use-v3-plugins", "deprecated": "--use-deprecated-plugins"}

#: Flags that mean something only where ranges are calibrated.
_CALIBRATION_ONLY = (
    ("squad_json", "--squad-json"),
    ("calib_num", "--calib-num"),
    ("calib_path", "--calib-path"),
    ("calib_method", "--calib-method"),
)

#: Flags that mean something only with --int8.
_INT8_ONLY = (
    ("force_int8_skipln", "--force-int8-skipln"),
    ("force_int8_multihead", "--force-int8-multihead"),
)


def add_build_arguments(parser: cli.Parser, layout: str) -> None:
    """The flags of builder.py, or, with layout "packed", of builder_varseqlen.py.

    Those whose use has to be noticed default to None; their help names the real default.
    """
    parser.set_defaults(layout=layout, pickle=None, interleaved=False, megatron=False, logits_by_token=False)
    parser.set_defaults(force_int8_skipln=False, force_int8_multihead=False)
    _add_checkpoint(parser, layout)
    engine = parser.add_argument_group("engine")
    engine.add_argument("-o", "--output", required=True, metavar="FILE", help="engine file to write")
    _add_sizes(engine, layout)
    _add_backend(engine)
    precision = parser.add_argument_group("precision (default: fp32)")
    _add_precision(precision)
    if layout == "packed":
        _add_packed_int8(precision)
    else:
        _add_padded_int8(precision)
    _add_calibration(precision)


def _add_checkpoint(parser: cli.Parser, layout: str) -> None:
    packed = layout == "packed"
    kinds = "-m, -x, -pt, --pickle" if packed else "-m, -x, -pt"
    group = parser.add_argument_group(f"checkpoint (one of {kinds})")
    group.add_argument("-m", "--ckpt", metavar="PREFIX", help="TensorFlow checkpoint prefix, such as model.ckpt")
    group.add_argument("-x", "--onnx", metavar="FILE", help="ONNX model, plain or with QAT ranges")
    group.add_argument(
        "-pt", "--pytorch", metavar="PATH", help="PyTorch checkpoint: .safetensors, .bin, .pt, or a Hugging Face folder"
    )
    if packed:
        group.add_argument("-pkl", "--pickle", metavar="FILE", help="Megatron's pickled weights")
    group.add_argument(
        "-c",
        "--config-dir",
        metavar="DIR",
        help="folder with bert_config.json or config.json (default: the folder of -pt, where it has one)",
    )
    formula = "formula of GELU (default: by the checkpoint's kind)"
    group.add_argument("--gelu", choices=("tanh", "erf"), help=formula)
    cli.add_vocabulary(group)
    case = group.add_mutually_exclusive_group()
    case.add_argument(
        "--cased", action="store_true", help="WordPiece: keep upper case and accents, whatever the files say"
    )
    case.add_argument(
        "--uncased", action="store_true", help="WordPiece: lower-case the text and strip its accents, likewise"
    )


def _add_sizes(group, layout: str) -> None:
    prefix, lengths = ("", "; repeat for one optimization profile each") if layout == "padded" else ("max-", "")
    number = {"type": cli.positive_int, "action": "append", "metavar": "N"}
    group.add_argument(
        "-b",
        f"--{prefix}batch-size",
        dest="batch_size",
        help="batch size to optimise for; repeat for one optimization profile each (default: 1)",
        **number,
    )
    group.add_argument(
        "-s",
        f"--{prefix}sequence-length",
        dest="sequence_length",
        help=f"sequence length in tokens{lengths} (default: 128)",
        **number,
    )


def _add_backend(group) -> None:
    group.add_argument("--backend", choices=("auto", *BACKENDS), default="auto", help="which engine to build")
    forms = ("auto", "plugin", "native")
    group.add_argument("--network", choices=forms, default="auto", help="TensorRT's form of the network")
    group.add_argument(
        "-w",
        "--workspace-size",
        type=cli.positive_int,
        metavar="MIB",
        help=f"TensorRT's scratch memory in MiB (default: {DEFAULT_WORKSPACE_MIB})",
    )
    cache = "TensorRT timing cache, read and written back"
    group.add_argument("-tcf", "--timing-cache-file", metavar="FILE", help=cache)
    level = "TensorRT's builder optimization level: a higher one tries more kernels, and takes longer (default: TensorRT's, 3)"
    group.add_argument("--optimization-level", type=int, choices=range(6), metavar="N", help=level)
    group.add_argument(
        "--timing-iterations",
        type=cli.positive_int,
        metavar="N",
        help=f"how often TensorRT's builder times each kernel (default: {DEFAULT_TIMING_ITERATIONS})",
    )
    group.add_argument(
        "--compute-capability",
        action="append",
        metavar="X.Y",
        help="GPUs that TensorRT-RTX builds for, such as 8.6; repeatable (default: all that it knows but 7.5)",
    )
    independent = "rows independent of their batch; one profile"
    group.add_argument("--distributive_independence", action="store_true", help=independent)
    plugins = group.add_mutually_exclusive_group()
    plugins.add_argument("--use-v3-plugins", action="store_true", help="plugins of the IPluginV3 interface")
    deprecated = "plugins of the IPluginV2 interface (the default where it exists)"
    plugins.add_argument("--use-deprecated-plugins", action="store_true", help=deprecated)
    cli.add_verbose(group)


def _add_precision(group) -> None:
    for *flags, text in (
        ("-f", "--fp16", "half precision; on a CPU its own half type"),
        ("--bf16", "bfloat16 (native networks; CPUs that have it)"),
        ("-i", "--int8", "8-bit integers, calibrated or from QAT ranges"),
        ("--fp8", "8-bit floats in the matmuls (native networks, SM 8.9 and newer)"),
        ("-t", "--strict", "obey the precision asked for"),
        ("-sp", "--sparse", "the weights are 2:4 sparse: checked, then made use of"),
        ("-g", "--force-fc2-gemm", "accepted as upstream; has no effect since the FC plugin left"),
    ):
        group.add_argument(*flags, action="store_true", help=text)


def _add_padded_int8(group) -> None:
    norms = "add + layer norm with int8 inputs and outputs; their channels are not evened out then"
    group.add_argument("-iln", "--force-int8-skipln", action="store_true", help=norms)
    attention = "attention with int8 inputs and outputs; on the CPU, query and key"
    group.add_argument("-imh", "--force-int8-multihead", action="store_true", help=attention)


class _OfBuilder(argparse.Action):
    """A flag of builder.py that packed engines have no use for."""

    def __init__(self, option_strings, dest, **settings):
        super().__init__(option_strings, dest, nargs=0, **settings)

    def __call__(self, parser, namespace, values, option_string=None):
        parser.error(
            f"{option_string} is builder.py's: a packed int8 engine takes attention and add + norm in int8 anyway"
        )


def _add_packed_int8(group) -> None:
    # Without them argparse would read -imh as -i -m h.
    group.add_argument("-iln", "--force-int8-skipln", action=_OfBuilder, help=argparse.SUPPRESS)
    group.add_argument("-imh", "--force-int8-multihead", action=_OfBuilder, help=argparse.SUPPRESS)
    interleaved = "int8 plugins with interleaved channels (with --int8)"
    group.add_argument("-il", "--interleaved", action="store_true", help=interleaved)
    residual = "Megatron's residual, before the layer norm (with --int8 --pickle; plugins: and -il)"
    group.add_argument("--megatron", action="store_true", help=residual)
    logits = "plugins: each token's two logits side by side, as Triton needs them (default: all start logits first)"
    group.add_argument("--logits-by-token", action="store_true", help=logits)


def _add_calibration(group) -> None:
    group.add_argument(
        "-j",
        "--squad-json",
        metavar="FILE",
        help="calibration data, SQuAD format (default: the repository's squad/dev-v1.1.json)",
    )
    samples = f"calibration samples (default: {DEFAULT_CALIBRATION_SAMPLES})"
    group.add_argument("-n", "--calib-num", type=cli.positive_int, metavar="N", help=samples)
    cache = "calibration cache (default: beside the engine, named from the model and the length)"
    group.add_argument("-p", "--calib-path", metavar="FILE", help=cache)
    method = f"how a range is chosen from the values seen (default: {CALIBRATION_METHODS[0]})"
    group.add_argument("--calib-method", choices=CALIBRATION_METHODS, help=method)


def check_build_arguments(args) -> None:
    """Raises UsageError where the arguments contradict each other, whatever the model: no package is needed to say so."""
    _check_one_checkpoint(args)
    _one_of(args, "fp16", "bf16")
    _one_of(args, "int8", "fp8")
    if args.layout == "packed":
        _check_packed(args)


def _check_one_checkpoint(args) -> None:
    kinds = {"-m": args.ckpt, "-x": args.onnx, "-pt": args.pytorch}
    if args.layout == "packed":
        kinds["--pickle"] = args.pickle
    named = [flag for flag, value in kinds.items() if value]
    if len(named) != 1:
        *others, last = kinds
        instead = f", not {' and '.join(named)}" if named else ""
        raise UsageError(f"name one checkpoint with {', '.join(others)} or {last}{instead}")


def _check_packed(args) -> None:
    """Raises UsageError for several lengths, and where -il or --megatron lack what they need."""
    if len(set(args.sequence_length or ())) > 1:
        raise UsageError("a packed engine serves all lengths up to one: give -s once, the longest")
    if args.interleaved and not args.int8:
        raise UsageError("--interleaved is a layout of int8 plugins: add --int8, or leave it out")
    if args.megatron and not (args.int8 and args.pickle):
        raise UsageError("--megatron needs --int8 and the weights from --pickle")
    if args.megatron and args.network == "plugin" and not args.interleaved:
        raise UsageError("--megatron in a plugin network needs --interleaved")


def build_options(args, positions: int) -> BuildOptions:
    """The backend's part of the arguments, which were checked. Raises UsageError for more tokens than the model has positions."""
    lengths = tuple(sorted(set(args.sequence_length or [128])))
    if lengths[-1] > positions:
        raise UsageError(f"-s {lengths[-1]} is over the model's max_position_embeddings, {positions}")
    return BuildOptions(
        batch_sizes=tuple(sorted(set(args.batch_size or [1]))),
        sequence_lengths=lengths,
        layout=args.layout,
        precision=_one_of(args, "fp16", "bf16") or "fp32",
        quantize=_one_of(args, "int8", "fp8"),
        strict=args.strict,
        workspace_mib=args.workspace_size,
        sparse=args.sparse,
        timing_cache=args.timing_cache_file,
        optimization_level=args.optimization_level,
        timing_iterations=args.timing_iterations,
        distributive_independence=args.distributive_independence,
        force_int8_skipln=args.force_int8_skipln,
        force_int8_multihead=args.force_int8_multihead,
        plugin_version="v3" if args.use_v3_plugins else "deprecated" if args.use_deprecated_plugins else None,
        network=args.network,
        verbose=args.verbose,
        compute_capabilities=tuple(args.compute_capability or ()),
        interleaved=args.interleaved,
        megatron=args.megatron,
        logits_by_token=args.logits_by_token,
    )


def _one_of(args, first: str, second: str) -> str | None:
    """Which of two flags was given; None: neither. Raises UsageError for both."""
    given = [name for name in (first, second) if getattr(args, name)]
    if len(given) > 1:
        raise UsageError(f"--{first} and --{second} exclude each other")
    return given[0] if given else None


def notes_on_unused_flags(args, options: BuildOptions, ignored: dict[str, str]) -> None:
    """Say of each flag that was given and changes nothing that it changes nothing.

    `ignored`: the fields of `options` that the backend ignores, with its reasons (IGNORED_OPTIONS).
    """
    if args.force_fc2_gemm:
        cli.note("Note: --force-fc2-gemm has no effect: the plugin that it chose is gone")
    unused = {}
    if options.quantize != "int8":
        unused |= {flag: "it means something with --int8 only" for name, flag in _INT8_ONLY if getattr(args, name)}
    if options.quantize is None:
        unused |= dict.fromkeys(calibration_flags(args), "it means something with --int8 and --fp8 only")
    default = BuildOptions()
    for name, reason in ignored.items():
        value = getattr(options, name)
        if value != getattr(default, name):
            flag = _FLAG_OF_OPTION.get(name, f"--{name.replace('_', '-')}")
            unused[_FLAG_OF_PLUGINS[value] if name == "plugin_version" else flag] = reason
    for flag, reason in unused.items():
        no_effect(flag, reason)


def calibration_flags(args) -> list[str]:
    """The flags of calibration that were given."""
    return [flag for name, flag in _CALIBRATION_ONLY if getattr(args, name)]


def no_effect(flag: str, reason: str) -> None:
    """Say that a flag changes nothing."""
    cli.note(f"Note: {flag} has no effect on this engine: {reason}")
