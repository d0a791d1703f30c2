"""From the builders' arguments (builder_flags.py) to an engine file, its card and its tokenizer."""

import os
import time
from pathlib import Path

from helpers import cli
from helpers.backends import backend_module, choose_backend, write_engine
from helpers.backends.base import Prepared
from helpers.bert_config import BertConfig
from helpers.build_options import DEFAULT_CALIBRATION_SAMPLES, BuildOptions
from helpers.builder_flags import (
    build_options,
    calibration_flags,
    no_effect,
    notes_on_unused_flags,
)
from helpers.engine_card import EngineCard, is_engine
from helpers.model_folder import ModelFolder, folder_of, is_folder_of
from helpers.outputs import check_outputs, finish_pending, input_files, only_writer
from helpers.quantization import Quantization
from helpers.ranges import CalibrationOptions, calibrated_ranges, trained_ranges
from helpers.weights import BertWeights, load_weights
from helpers.weights.pytorch_checkpoint import only_file


def build_engine(args) -> None:
    """Build the engine that the arguments, once checked, describe; write it with card and tokenizer. Raises DemoBertError.

    From its first check on, no other process builds it.
    """
    tokenizer, engine, card = EngineCard.set_of(args.output)
    # A cache that is yet to be written must not be replaced by the engine, either.
    caches = [_calibration_cache(args)] if args.int8 or args.fp8 else []
    outputs = {"--output": engine, "the engine's card": card, "the engine's tokenizer": tokenizer}
    with only_writer(engine, "--output"):
        finish_pending(engine, outputs.values(), discard=True)
        check_outputs(outputs, _inputs(args) + caches)
        _build(args)


def _build(args) -> None:
    lower_case = True if args.uncased else False if args.cased else None
    folder = folder_of(args.config_dir, args.pytorch)
    # A configuration of its own may be that of the model before it was fine-tuned.
    answers_questions = bool(args.pytorch or args.onnx) and is_folder_of(folder, args.pytorch or args.onnx)
    tensorflow = args.ckpt is not None
    model = ModelFolder.open(folder, args.vocab_file, cli.note, lower_case, tensorflow, answers_questions)
    options = build_options(args, model.config.max_position_embeddings)
    backend, prepared = prepare_backend(args.backend, model.config, options)
    notes_on_unused_flags(args, options, backend_module(backend).IGNORED_OPTIONS)
    weights = _read_weights(args, model.config)
    if args.sparse:
        _report_sparsity(weights)
    quantization = _quantization(args, options.quantize, model, weights) if options.quantize else None
    build_and_write(args.output, backend, prepared, model, weights, quantization)


def prepare_backend(asked: str, config: BertConfig, options: BuildOptions) -> tuple[str, Prepared]:
    """The backend that `--backend` asks for, said and prepared. Raises DemoBertError for what it can't do."""
    backend, reason = choose_backend(asked)
    cli.note(f"Backend: {backend} ({reason})")
    return backend, backend_module(backend).prepare(config, options)


def build_folder(folder, path, options: BuildOptions, backend: str = "auto") -> None:
    """A float engine of a Hugging Face folder, as the builders make it, without their command line."""
    model = ModelFolder.open(folder)
    backend, prepared = prepare_backend(backend, model.config, options)
    cli.note(f"Reading {folder}")
    build_and_write(path, backend, prepared, model, load_weights(model.config, pytorch=folder))


def build_and_write(
    path,
    backend: str,
    prepared: Prepared,
    model: ModelFolder,
    weights: BertWeights,
    quantization: Quantization | None = None,
) -> None:
    """Build, write engine, card and tokenizer to `path`, say what came out. Raises DemoBertError."""
    start = time.perf_counter()
    built = prepared.build(weights, quantization)
    for note in built.notes:
        cli.note(note)
    options, config = prepared.options, weights.config
    card = write_engine(path, built, backend, options, config, model.found and model.tokenizer())
    seconds = time.perf_counter() - start
    mebibytes = card.engine_bytes / 2**20
    print(
        f"Engine: {path} ({mebibytes:.1f} MiB, {'+'.join(card.precision)} on {card.device}), built in {seconds:.1f} s"
    )
    print(f"Card:   {EngineCard.path_for(path)}")


def _checkpoint(args) -> str | None:
    return args.ckpt or args.onnx or args.pytorch or args.pickle


def _inputs(args) -> list:
    """The files that a build reads, as far as the arguments name them; of folders, what lies in them but engines.

    A checkpoint's name may begin those of its files: TensorFlow's, and ONNX's external data.
    """
    named = (_checkpoint(args), args.config_dir, args.vocab_file, args.squad_json, args.timing_cache_file)
    named = [Path(name) for name in named if name is not None]
    found = [file for path in named for file in input_files(path)]
    if checkpoint := _checkpoint(args):
        beside = input_files(os.path.dirname(checkpoint) or ".")
        found += [path for path in beside if path.name.startswith(os.path.basename(checkpoint) or "/")]
    return named + [path for path in found if not is_engine(path)]


def _read_weights(args, config: BertConfig) -> BertWeights:
    """The checkpoint that the arguments name, checked against `config`. Raises DemoBertError."""
    cli.note(f"Reading {(args.pytorch and only_file(args.pytorch)) or _checkpoint(args)}")
    named = {"tensorflow": args.ckpt, "pytorch": args.pytorch, "onnx": args.onnx, "megatron": args.pickle}
    return load_weights(config, **named, gelu=args.gelu)


def _quantization(args, kind: str, model: ModelFolder, weights: BertWeights) -> Quantization:
    """The checkpoint's own ranges, a cache's, or calibrated now. Raises DemoBertError where they can't be had."""
    own = trained_ranges(kind, weights, bool(args.squad_json or args.calib_path))
    if own is not None:
        for flag in calibration_flags(args):
            no_effect(flag, "the checkpoint has its own ranges")
        return own
    options = CalibrationOptions(
        cache=_calibration_cache(args),
        cache_is_named=args.calib_path is not None,
        length=_longest(args),
        default_samples=DEFAULT_CALIBRATION_SAMPLES,
        data=args.squad_json,
        samples=args.calib_num,
        method=args.calib_method,
        pre_normalised=args.megatron,
    )
    return calibrated_ranges(kind, weights, model, options)


def _calibration_cache(args) -> Path:
    """The calibration cache of --calib-path, or the engine's neighbour with the model's name and the length."""
    if args.calib_path:
        return Path(args.calib_path)
    model = Path(os.path.realpath(_checkpoint(args) or "model")).stem
    return Path(args.output).parent / f"{model}_{_longest(args)}.calibration"


def _longest(args) -> int:
    return max(args.sequence_length or [128])


def _report_sparsity(weights: BertWeights) -> None:
    """Say how many kernels are 2:4 sparse. Dense ones are not an error, only dense."""
    from helpers.weights.sparsity import sparse_2_4_kernels

    sparse, dense = sparse_2_4_kernels(weights)
    cli.note(f"Sparsity: {len(sparse)} of {len(sparse) + len(dense)} kernels are 2:4 sparse")
    if not sparse:
        no_effect("--sparse", "no kernel is sparse")
