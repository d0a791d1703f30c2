"""From the builders' arguments to an engine: builder.py and builder_varseqlen.py differ in their flags' layout only."""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from helpers import calibrator, cli, quantization
from helpers.backends import backend_module, choose_backend, write_engine
from helpers.backends.base import BuildOptions
from helpers.bert_config import BertConfig
from helpers.engine_card import EngineCard, is_engine
from helpers.errors import DemoBertError, UsageError
from helpers.files import check_outputs
from helpers.squad import read_squad
from helpers.tokenization import BertTokenizer, Vocabulary, check_vocabulary, load_vocabulary
from helpers.weights import BertWeights, load_weights

#: TensorRT's own default for upstream's users: MiB of scratch memory.
DEFAULT_WORKSPACE_MIB = 2500

#: Calibration: text and samples where the arguments name none.
DEFAULT_CALIBRATION_DATA = Path(__file__).resolve().parent.parent / "squad" / "dev-v1.1.json"
DEFAULT_CALIBRATION_SAMPLES = 100

#: Flags that only TensorRT can obey: attribute, spelling, what the CPU engine does instead.
_TENSORRT_ONLY = (
    ("strict", "--strict", "it always computes in the precision asked for"),
    ("workspace_size", "--workspace-size", "it takes the memory that it needs"),
    ("timing_cache_file", "--timing-cache-file", "it times no tactics"),
    ("distributive_independence", "--distributive_independence", "its rows do not depend on the batch around them"),
    ("use_v3_plugins", "--use-v3-plugins", "it has no plugins"),
    ("use_deprecated_plugins", "--use-deprecated-plugins", "it has no plugins"),
    ("force_int8_skipln", "--force-int8-skipln", "its int8 is in the dense layers, where the time is"),
    ("interleaved", "--interleaved", "its own layout is the fastest that it has"),
    ("compute_capability", "--compute-capability", "it runs on the CPU"),
)

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
    packed = layout == "packed"
    parser.set_defaults(layout=layout, pickle=None, interleaved=False, megatron=False)
    parser.set_defaults(force_int8_skipln=False, force_int8_multihead=False)
    kinds = "-m, -x, -pt, --pickle" if packed else "-m, -x, -pt"
    checkpoint = parser.add_argument_group(f"checkpoint (one of {kinds})")
    checkpoint.add_argument("-m", "--ckpt", metavar="PREFIX", help="TensorFlow checkpoint prefix, such as model.ckpt")
    checkpoint.add_argument("-x", "--onnx", metavar="FILE", help="ONNX model, plain or with QAT ranges")
    checkpoint.add_argument(
        "-pt", "--pytorch", metavar="PATH", help="PyTorch checkpoint: .safetensors, .bin, .pt, or a Hugging Face folder"
    )
    if packed:
        checkpoint.add_argument("-pkl", "--pickle", metavar="FILE", help="Megatron's pickled weights")
    checkpoint.add_argument(
        "-c",
        "--config-dir",
        metavar="DIR",
        help="folder with bert_config.json or config.json (default: the folder of -pt, where it has one)",
    )
    checkpoint.add_argument(
        "--gelu", choices=("tanh", "erf"), help="formula of GELU (default: by the checkpoint's kind)"
    )
    checkpoint.add_argument(
        "-v",
        "--vocab-file",
        metavar="FILE",
        help="vocabulary, recorded in the card (default: vocab.txt of the config folder)",
    )

    engine = parser.add_argument_group("engine")
    engine.add_argument("-o", "--output", required=True, metavar="FILE", help="engine file to write")
    _add_sizes(engine, layout)
    engine.add_argument("--backend", choices=("auto", *cli.BACKENDS), default="auto", help="which engine to build")
    engine.add_argument(
        "--network", choices=("auto", "plugin", "native"), default="auto", help="TensorRT's form of the network"
    )
    engine.add_argument(
        "-w",
        "--workspace-size",
        type=cli.positive_int,
        metavar="MIB",
        help=f"TensorRT's scratch memory in MiB (default: {DEFAULT_WORKSPACE_MIB})",
    )
    engine.add_argument(
        "-tcf", "--timing-cache-file", metavar="FILE", help="TensorRT timing cache, read and written back"
    )
    engine.add_argument(
        "--compute-capability",
        action="append",
        metavar="X.Y",
        help="GPUs that TensorRT-RTX builds for, such as 8.6; repeatable (default: all that it knows but 7.5)",
    )
    engine.add_argument(
        "--distributive_independence", action="store_true", help="rows independent of their batch; one profile"
    )
    plugins = engine.add_mutually_exclusive_group()
    plugins.add_argument("--use-v3-plugins", action="store_true", help="plugins of the IPluginV3 interface")
    plugins.add_argument(
        "--use-deprecated-plugins",
        action="store_true",
        help="plugins of the IPluginV2 interface (the default where it exists)",
    )
    cli.add_verbose(engine)

    precision = parser.add_argument_group("precision (default: fp32)")
    precision.add_argument("-f", "--fp16", action="store_true", help="half precision; on a CPU its own half type")
    precision.add_argument("--bf16", action="store_true", help="bfloat16 (native networks; CPUs that have it)")
    precision.add_argument("-i", "--int8", action="store_true", help="8-bit integers, calibrated or from QAT ranges")
    precision.add_argument(
        "--fp8", action="store_true", help="8-bit floats in the matmuls (native networks, SM 8.9 and newer)"
    )
    precision.add_argument("-t", "--strict", action="store_true", help="obey the precision asked for")
    precision.add_argument(
        "-sp", "--sparse", action="store_true", help="the weights are 2:4 sparse: checked, then made use of"
    )
    precision.add_argument(
        "-g",
        "--force-fc2-gemm",
        action="store_true",
        help="accepted as upstream; has no effect since the FC plugin left",
    )
    if packed:
        _add_packed_int8(precision)
    else:
        _add_padded_int8(precision)
    precision.add_argument(
        "-j",
        "--squad-json",
        metavar="FILE",
        help="calibration data, SQuAD format (default: the repository's squad/dev-v1.1.json)",
    )
    precision.add_argument(
        "-n",
        "--calib-num",
        type=cli.positive_int,
        metavar="N",
        help=f"calibration samples (default: {DEFAULT_CALIBRATION_SAMPLES})",
    )
    precision.add_argument(
        "-p",
        "--calib-path",
        metavar="FILE",
        help="calibration cache (default: beside the engine, named from the model and the length)",
    )
    precision.add_argument(
        "--calib-method",
        choices=calibrator.METHODS,
        help=f"how a range is chosen from the values seen (default: {calibrator.METHODS[0]})",
    )


def _add_sizes(group, layout: str) -> None:
    prefix, lengths = ("", "; repeat for one optimization profile each") if layout == "padded" else ("max-", "")
    group.add_argument(
        "-b",
        f"--{prefix}batch-size",
        dest="batch_size",
        type=cli.positive_int,
        action="append",
        metavar="N",
        help="batch size to optimise for; repeat for one optimization profile each (default: 1)",
    )
    group.add_argument(
        "-s",
        f"--{prefix}sequence-length",
        dest="sequence_length",
        type=cli.positive_int,
        action="append",
        metavar="N",
        help=f"sequence length in tokens{lengths} (default: 128)",
    )


def _add_padded_int8(group) -> None:
    group.add_argument(
        "-iln", "--force-int8-skipln", action="store_true", help="add + layer norm with int8 inputs and outputs"
    )
    group.add_argument(
        "-imh",
        "--force-int8-multihead",
        action="store_true",
        help="attention with int8 inputs and outputs; on the CPU, query and key",
    )


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
    group.add_argument(
        "-il", "--interleaved", action="store_true", help="int8 plugins with interleaved channels (with --int8)"
    )
    group.add_argument(
        "--megatron",
        action="store_true",
        help="Megatron's residual, before the layer norm (with --int8 --pickle; plugins: and -il)",
    )


def build_engine(args) -> None:
    """Build the engine that the arguments describe, write it with its card, say what came out. Raises DemoBertError."""
    card = EngineCard.path_for(args.output)
    # A cache that is yet to be written must not be replaced by the engine, either.
    caches = [calibration_cache(args)] if args.int8 or args.fp8 else []
    check_outputs({"--output": args.output, "the engine's card": card}, _inputs(args) + caches)
    config = read_config(args)
    options = build_options(args, config)
    backend, reason = choose_backend(args.backend)
    cli.note(f"Backend: {backend} ({reason})")
    backend_module(backend).check(config, options)
    notes_on_unused_flags(args, backend)
    weights = read_weights(args, config)
    report_sparsity(args, weights)
    vocabulary = find_vocabulary(args, config)
    gelu = args.gelu or config.gelu or weights.gelu
    if args.int8 or args.fp8:
        trained = quantization.has_dense_ranges(config, weights.ranges)
        weights = with_ranges(args, config, weights, gelu, vocabulary)
        if backend == "openvino" and not trained and (args.fp16 or args.bf16):
            # Speed is asked for, not fp32's accuracy, and no training says what may be rounded: int8 where it pays.
            options = replace(options, force_int8_multihead=True)

    start = time.perf_counter()
    built = backend_module(backend).build(config, weights, gelu, options)
    for note in built.notes:
        cli.note(note)
    if args.force_int8_skipln and args.int8 and built.network == "native":
        # Only the build tells: without plugins that suit the model, --network auto ends in a native network.
        cli.note("Note: --force-int8-skipln has no effect on this engine: native networks add and normalise in float")
    do_lower_case = lower_cases(config, vocabulary)
    config = replace(config, gelu=gelu)
    card = write_engine(args.output, built, backend, options, config, do_lower_case, vocabulary)
    seconds = time.perf_counter() - start
    mebibytes = card.engine_bytes / 2**20
    print(
        f"Engine: {args.output} ({mebibytes:.1f} MiB, {'+'.join(card.precision)} on {card.device}), "
        f"built in {seconds:.1f} s"
    )
    print(f"Card:   {Path(args.output)}.json")


def _inputs(args) -> list:
    """The files that a build reads, as far as the arguments name them; of folders, what lies in them."""
    named = [args.ckpt, args.onnx, args.pytorch, args.pickle, args.config_dir, args.vocab_file]
    named += [args.squad_json, args.timing_cache_file]
    paths = [Path(name) for name in named if name is not None]
    return paths + [entry for path in paths if path.is_dir() for entry in path.glob("*") if not is_engine(entry)]


def config_folder(args) -> str:
    """The folder of the model's configuration and vocabulary. Raises UsageError where the arguments name none."""
    if args.config_dir:
        return args.config_dir
    if args.pytorch and Path(args.pytorch).exists():
        return args.pytorch if Path(args.pytorch).is_dir() else str(Path(args.pytorch).parent)
    if args.pytorch:
        raise UsageError(f"the checkpoint does not exist: {args.pytorch}")
    raise UsageError("name the folder of the model's bert_config.json with -c/--config-dir")


def read_config(args) -> BertConfig:
    """The configuration that the arguments name. Raises DemoBertError."""
    check_one_checkpoint(args)
    return BertConfig.from_folder(config_folder(args))


def check_one_checkpoint(args) -> None:
    """Raises UsageError unless the arguments name just one checkpoint."""
    kinds = {"-m": args.ckpt, "-x": args.onnx, "-pt": args.pytorch}
    if args.layout == "packed":
        kinds["--pickle"] = args.pickle
    named = [flag for flag, value in kinds.items() if value]
    if len(named) != 1:
        *others, last = kinds
        instead = f", not {' and '.join(named)}" if named else ""
        raise UsageError(f"name one checkpoint with {', '.join(others)} or {last}{instead}")


def check_packed_int8(args) -> None:
    """Raises UsageError where -il or --megatron lack what they need."""
    if args.interleaved and not args.int8:
        raise UsageError("--interleaved is a layout of int8 plugins: add --int8, or leave it out")
    if args.megatron and not (args.int8 and args.pickle):
        raise UsageError("--megatron needs --int8 and the weights from --pickle")
    if args.megatron and args.network == "plugin" and not args.interleaved:
        raise UsageError("--megatron in a plugin network needs --interleaved")


def build_options(args, config: BertConfig) -> BuildOptions:
    """The backend's part of the arguments. Raises UsageError where they contradict the model or each other."""
    lengths = tuple(sorted(set(args.sequence_length or [128])))
    if lengths[-1] > config.max_position_embeddings:
        raise UsageError(
            f"-s {lengths[-1]} is over the model's max_position_embeddings, {config.max_position_embeddings}"
        )
    if args.layout == "packed" and len(lengths) > 1:
        raise UsageError("a packed engine serves all lengths up to one: give -s once, the longest")
    check_packed_int8(args)
    if args.fp16 and args.bf16:
        raise UsageError("--fp16 and --bf16 exclude each other")
    if args.int8 and args.fp8:
        raise UsageError("--int8 and --fp8 exclude each other")
    return BuildOptions(
        batch_sizes=tuple(sorted(set(args.batch_size or [1]))),
        sequence_lengths=lengths,
        layout=args.layout,
        fp16=args.fp16,
        bf16=args.bf16,
        int8=args.int8,
        fp8=args.fp8,
        strict=args.strict,
        workspace_mib=args.workspace_size or DEFAULT_WORKSPACE_MIB,
        sparse=args.sparse,
        timing_cache=args.timing_cache_file,
        distributive_independence=args.distributive_independence,
        force_int8_skipln=args.force_int8_skipln,
        force_int8_multihead=args.force_int8_multihead,
        plugin_version="v3" if args.use_v3_plugins else "deprecated" if args.use_deprecated_plugins else None,
        network=args.network,
        verbose=args.verbose,
        compute_capabilities=tuple(args.compute_capability or ()),
        interleaved=args.interleaved,
        megatron=args.megatron,
    )


def notes_on_unused_flags(args, backend: str) -> None:
    """Say of each flag that was given and changes nothing that it changes nothing."""
    if args.force_fc2_gemm:
        cli.note("Note: --force-fc2-gemm has no effect: the plugin that it chose is gone")
    unused = {}
    if not args.int8:
        unused |= {flag: "it means something with --int8 only" for name, flag in _INT8_ONLY if getattr(args, name)}
    if not (args.int8 or args.fp8):
        reason = "it means something with --int8 and --fp8 only"
        unused |= {flag: reason for name, flag in _CALIBRATION_ONLY if getattr(args, name)}
    if backend == "openvino":
        unused |= {flag: reason for name, flag, reason in _TENSORRT_ONLY if getattr(args, name)}
    if backend == "tensorrt_rtx" and args.timing_cache_file:
        unused["--timing-cache-file"] = "TensorRT-RTX chooses its kernels where the engine runs"
    for flag, reason in unused.items():
        cli.note(f"Note: {flag} has no effect on this engine: {reason}")


def read_weights(args, config: BertConfig) -> BertWeights:
    """The checkpoint that the arguments name, checked against `config`. Raises DemoBertError."""
    cli.note(f"Reading {args.ckpt or args.onnx or args.pytorch or args.pickle}")
    return load_weights(config, tensorflow=args.ckpt, pytorch=args.pytorch, onnx=args.onnx, megatron=args.pickle)


def with_ranges(
    args, config: BertConfig, weights: BertWeights, gelu: str, vocabulary: Vocabulary | None
) -> BertWeights:
    """`weights` with the ranges that int8 and fp8 need: their own (QAT), the calibration cache's, or calibrated now.

    A checkpoint's own ranges come first. Those that it lacks, its channels' too, are calibrated where text or a cache is
    named.
    Raises DemoBertError where they can't be had.
    """
    if weights.ranges:
        cli.note(f"Ranges: {len(weights.ranges)} of the checkpoint (quantization-aware training)")
    complete = quantization.channel_range_names(config).keys() <= weights.ranges.keys()
    if quantization.has_dense_ranges(config, weights.ranges) and (complete or not (args.squad_json or args.calib_path)):
        for flag in [flag for name, flag in _CALIBRATION_ONLY if getattr(args, name)]:
            cli.note(f"Note: {flag} has no effect on this engine: the checkpoint has its own ranges")
        return weights
    cache = calibration_cache(args)
    if vocabulary is None:
        raise DemoBertError("calibration reads text, and no vocabulary is known: name it with -v/--vocab-file")
    tokenizer = BertTokenizer(vocabulary, lower_cases(config, vocabulary))
    data = Path(args.squad_json or DEFAULT_CALIBRATION_DATA)
    # A cache that is named, without its text, is taken at its word.
    text_is_here = args.squad_json is not None or (data.exists() and not (args.calib_path and cache.exists()))
    examples = read_squad(data).examples if text_is_here else []
    wanted = calibrator.Fingerprint(
        model=calibrator.model_fingerprint(config, weights, gelu, args.megatron),
        data=calibrator.data_fingerprint(data, tokenizer) if text_is_here else None,
        length=max(args.sequence_length or [128]),
        samples=min(args.calib_num, len(examples)) if args.calib_num and text_is_here else None,
        method=args.calib_method,
    )
    if cache.exists():
        ranges = calibrator.read_cache(cache, wanted, config)
        compared = "" if text_is_here else ", not compared with any text"
        cli.note(f"Ranges: calibration cache {cache} ({cli.one_line(calibrator.origin(cache))}{compared})")
    elif text_is_here:
        samples = args.calib_num or DEFAULT_CALIBRATION_SAMPLES
        if len(examples) < samples:
            cli.note(f"Note: {data} has {len(examples)} questions, not {samples}: calibrating with those")
        check_outputs({"--calib-path": cache}, [data])
        cli.note(f"Calibrating on {min(samples, len(examples))} windows of {data}")
        batches = calibrator.calibration_batches(examples, tokenizer, wanted.length, samples)
        done = replace(wanted, samples=len(batches), method=args.calib_method or calibrator.METHODS[0])
        with tqdm(total=len(batches), unit="window", disable=None) as progress:
            ranges = calibrator.calibrate(config, weights, gelu, args.megatron, batches, done.method, progress.update)
        calibrator.write_cache(cache, done, ranges)
        cli.note(f"Ranges: calibration cache {cache} written")
    else:
        raise DemoBertError(
            f"calibration data not found: {data}; get it with scripts/download_squad.sh, or name text in SQuAD's format "
            "with --squad-json, or a cache with --calib-path"
        )
    ranges = {name: np.float32(amax) for name, amax in ranges.items()}
    source = f"{weights.source} with the calibration cache {cache}"
    return replace(weights, ranges=ranges | weights.ranges, source=source)


def calibration_cache(args) -> Path:
    """The calibration cache of --calib-path, or the engine's neighbour with the model's name and the length."""
    if args.calib_path:
        return Path(args.calib_path)
    model = Path(args.ckpt or args.onnx or args.pytorch or args.pickle or "model").resolve().stem
    return Path(args.output).parent / f"{model}_{max(args.sequence_length or [128])}.calibration"


def report_sparsity(args, weights: BertWeights) -> None:
    """With -sp: say how many kernels are 2:4 sparse. Dense ones are not an error, only dense."""
    if args.sparse:
        from helpers.weights.sparsity import sparse_2_4_kernels

        sparse, dense = sparse_2_4_kernels(weights)
        cli.note(f"Sparsity: {len(sparse)} of {len(sparse) + len(dense)} kernels are 2:4 sparse")
        if not sparse:
            cli.note("Note: --sparse has no effect on this engine: no kernel is sparse")


def find_vocabulary(args, config: BertConfig) -> Vocabulary | None:
    """The vocabulary of -v, or vocab.txt beside the configuration; None, with a note, where there is none."""
    path = args.vocab_file
    if path is None:
        folder = Path(config_folder(args))
        beside = (folder if folder.is_dir() else folder.parent) / "vocab.txt"
        if not beside.is_file():
            cli.note(f"Note: no vocabulary ({beside} does not exist): the engine will need -v to answer")
            return None
        path = beside
    vocabulary = load_vocabulary(path)
    check_vocabulary(vocabulary, config)
    return vocabulary


def lower_cases(config: BertConfig, vocabulary: Vocabulary | None) -> bool:
    """Whether the model reads lower-cased text: as its configuration says, else as its vocabulary is spelled."""
    if config.do_lower_case is not None:
        return config.do_lower_case
    if vocabulary is None:
        return True
    return not any(piece != piece.lower() for piece in vocabulary.ids if not piece.startswith("["))
