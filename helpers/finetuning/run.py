"""From squad/finetune.py's arguments to a fine-tuned model's folder."""

import ctypes
import hashlib
import json
import os
import signal
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from helpers import cli
from helpers.answer_options import AnswerOptions
from helpers.batching import PaddedBatch, length_sorted_batches, padded_batch
from helpers.bert_config import BertConfig
from helpers.errors import DemoBertError, UsageError
from helpers.families import FAMILIES
from helpers.files import read_json, sha256_of
from helpers.finetuning.checkpoint import (
    MODEL_NAME,
    ONNX_NAME,
    STATE_NAME,
    StateFile,
    all_ranges,
    read_checkpoint,
    to_torch,
    write_model,
)
from helpers.finetuning.network import Network
from helpers.finetuning.onnx_export import write_onnx
from helpers.finetuning.preparing import measured_ranges, prune_encoder, rounded_ranges
from helpers.finetuning.training import Progress, TrainingOptions, TrainingState, step_count, train, trained_names
from helpers.finetuning.windows import TrainingWindow, training_windows
from helpers.model_folder import ModelFolder, folder_of
from helpers.outputs import atomic_write, check_outputs
from helpers.squad import read_squad
from helpers.tokenizer_files import TOKENIZER_NAMES
from helpers.weights import BertWeights

#: Dropout where answers are learned (arXiv:1810.04805, A.2). What the teacher says needs none: it has no noise.
_DROPOUT = 0.1

#: Defaults by kind. Plain: BERT's own (arXiv:1810.04805, A.3); QAT, sparse: by the bundled model's F1 on XQuAD.
_EPOCHS, _QAT_EPOCHS, _SPARSE_EPOCHS = 2.0, 0.5, 4.0
_RATE, _SPARSE_RATE = 5e-5, 2e-4

#: Tokens in a window, where the model has as many positions.
_SEQUENCE_LENGTH = 384

_HIDDEN_ACT = {"erf": "gelu", "tanh": "gelu_new"}

#: Windows that are calibrated with at once.
_CALIBRATION_BATCH = 16


def finetune(args) -> None:
    """Fine-tune as the arguments say and write the model's folder. Raises DemoBertError."""
    _keep_freed_memory()
    try:
        _finetune(args)
    except torch.OutOfMemoryError as error:
        hint = f"give a smaller -b than {args.batch_size}, or a smaller -s"
        raise DemoBertError(f"the GPU's memory is too small: {hint}") from error


def _finetune(args) -> None:
    folder = _output_folder(args)
    model = _read_model(args)
    options, cut = _training_options(args), _window_options(args, model.config)
    cli.note(f"Reading {args.pytorch}")
    weights, fresh = read_checkpoint(args.pytorch, model.config, args.gelu, args.random_seed)
    if fresh and options.distill:
        raise UsageError("the checkpoint has no SQuAD head to distil from: first fine-tune it without --qat, --sparse")
    if fresh:
        cli.note("The checkpoint has no SQuAD head: it starts from random weights")
    windows = _read_windows(args, model, cut)

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    half = not args.fp32 and _has_bfloat16(device)
    network = Network(weights.config, to_torch(weights, device), half)
    teacher = Network(weights.config, to_torch(weights, device), half) if options.distill else None
    quantizes_or_prunes = args.qat or args.sparse
    calibration = _calibration_batches(windows, args.calib_num, args.random_seed) if quantizes_or_prunes else []
    state_file = StateFile(folder / STATE_NAME, _fingerprint(args, options, cut, model, weights, network))
    state = TrainingState(network, trained_names(network, embeddings=not quantizes_or_prunes))
    if state_file.read_into(state):
        cli.note(f"Going on after step {state.step}")
    else:
        _prepare(args, state, calibration)
    steps = step_count(len(windows), options)
    kind = "bf16" if half else "fp32"
    cli.note(f"Training {steps} steps of {options.batch_size} windows on {_device_name(device)}, {kind};")
    cli.note(f"its state is saved every {options.save_every} steps: stopped, it goes on with the same command")
    with tqdm(total=steps, initial=state.step, desc="Training", unit="step") as bar, _Stop() as stop:
        train(
            state, teacher, windows, options, lambda progress: _show(bar, progress), state_file.write, stop.is_asked_for
        )
    if state.step < steps:
        cli.note(f"Stopped after step {state.step}, which is saved: the same command goes on from there")
        raise KeyboardInterrupt
    _write(args, folder, model, network, calibration)
    state_file.path.unlink(missing_ok=True)


class _Stop:
    """While it is entered, Ctrl-C and SIGTERM let the step end that is running; a second one stops at once."""

    def __init__(self):
        self._handlers, self._asked = {}, False

    def is_asked_for(self) -> bool:
        return self._asked

    def __enter__(self) -> "_Stop":
        self._handlers = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *error) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _ask(self, number, frame) -> None:
        self.__exit__()
        self._asked = True
        cli.note("Stopping when this step is done and saved; once more stops at once")


def _output_folder(args) -> Path:
    """The folder of -o, made if only its last part is missing. Raises DemoBertError."""
    folder = Path(args.output)
    source = os.path.realpath(args.pytorch)
    taken = source, os.path.dirname(source), args.config_dir and os.path.realpath(args.config_dir)
    if os.path.realpath(folder) in taken:
        raise UsageError(f"-o {folder} is the folder of the model to start from: name another")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / STATE_NAME).exists():
        holds = "a finished model" if (folder / MODEL_NAME).exists() else "no run that was stopped"
        raise UsageError(f"-o {folder} is there, and holds {holds}: name another, or remove it first")
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise DemoBertError(f"can't make the folder {folder}: {error.strerror}") from error
    names = (MODEL_NAME, ONNX_NAME, STATE_NAME, "config.json", *TOKENIZER_NAMES)
    check_outputs({f"{name} of -o": folder / name for name in names}, (args.pytorch, args.squad_json, args.vocab_file))
    return folder


def _read_model(args) -> ModelFolder:
    model = ModelFolder.open(folder_of(args.config_dir, args.pytorch), args.vocab_file, cli.note)
    model.tokenizer()  # says so if there is none
    return model


def _training_options(args) -> TrainingOptions:
    to_teacher = args.qat or args.sparse
    distill = float(to_teacher) if args.distill is None else args.distill
    dropout = args.dropout if args.dropout is not None else 0.0 if distill == 1 else _DROPOUT
    epochs = _SPARSE_EPOCHS if args.sparse else _QAT_EPOCHS if args.qat else _EPOCHS
    return TrainingOptions(
        epochs=args.epochs or epochs,
        learning_rate=args.lr or (_SPARSE_RATE if args.sparse else _RATE),
        batch_size=args.batch_size,
        distill=distill,
        dropout=dropout,
        seed=args.random_seed,
        save_every=args.save_every,
    )


def _window_options(args, config: BertConfig) -> AnswerOptions:
    limit = config.max_position_embeddings
    length = args.sequence_length or min(_SEQUENCE_LENGTH, limit)
    if length > limit:
        raise UsageError(f"-s {length} is over the model's max_position_embeddings, {limit}")
    return AnswerOptions(sequence_length=length, doc_stride=args.doc_stride)


def _read_windows(args, model: ModelFolder, cut: AnswerOptions) -> list[TrainingWindow]:
    data = read_squad(args.squad_json)
    windows, left_out = training_windows(data, model.tokenizer(), cut)
    if left_out:
        why = "they are blank, or their passage lacks the answer"
        cli.note(f"Note: {left_out} of {len(data.examples)} questions are left out: {why}")
    return windows


def _calibration_batches(windows: list[TrainingWindow], count: int, seed: int) -> list[PaddedBatch]:
    if count > len(windows):
        cli.note(f"Note: calibrating with all {len(windows)} windows: there are no {count}")
    chosen = np.random.default_rng(seed).permutation(len(windows))[:count]
    features = [windows[i].feature for i in chosen]
    groups = length_sorted_batches(features, _CALIBRATION_BATCH)
    return [padded_batch([features[i] for i in group]) for group in groups]


def _prepare(args, state: TrainingState, calibration: list[PaddedBatch]) -> None:
    if args.sparse:
        state.masks = prune_encoder(state.network, calibration)
    if args.qat:
        state.network.input_ranges = rounded_ranges(state.network, measured_ranges(state.network, calibration))


def _show(bar: tqdm, progress: Progress) -> None:
    bar.set_postfix(loss=f"{progress.loss:.4f}", lr=f"{progress.learning_rate:.1e}", refresh=False)
    bar.update()


def _write(args, folder: Path, model: ModelFolder, network: Network, calibration: list[PaddedBatch]) -> None:
    ranges = all_ranges(network, measured_ranges(network, calibration)) if args.qat else {}
    for name, content in model.found.copies().items():
        with atomic_write(folder / name) as file:
            file.write(content)
    if args.qat:
        weights = {name: tensor.detach().cpu().numpy() for name, tensor in network.weights.items()}
        write_onnx(folder / ONNX_NAME, network.config, weights, ranges)
    values = read_json(model.config_path, "model configuration")
    activation = FAMILIES[network.config.model_type].key_of("hidden_act")
    write_model(folder, network, ranges, values | {activation: _HIDDEN_ACT[network.config.gelu]})
    print(f"Model: {folder / MODEL_NAME}" + (f" ({len(ranges)} quantization ranges)" if ranges else ""))
    if args.qat:
        print(f"ONNX:  {folder / ONNX_NAME}")


def _fingerprint(
    args, options: TrainingOptions, cut: AnswerOptions, model: ModelFolder, weights: BertWeights, network: Network
) -> str:
    """SHA-256 of all that the outcome of a run depends on."""
    digest = hashlib.sha256()
    for name in sorted(weights.tensors):
        digest.update(name.encode() + weights[name].tobytes())
    settings = {
        "kind": [args.qat, args.sparse, args.calib_num],
        "training": {name: value for name, value in asdict(options).items() if name != "save_every"},
        "windows": asdict(cut),
        "model": [asdict(model.config), weights.config.gelu, model.tokenizer().sha256],
        "data": sha256_of(args.squad_json),
        "arithmetic": [network.device.type, network.half],
    }
    digest.update(json.dumps(settings, sort_keys=True).encode())
    return digest.hexdigest()


def _has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 itself; where it is emulated, float32 is faster."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu.get_capabilities().get("avx512_bf16"))


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} threads of the CPU"


def _keep_freed_memory() -> None:
    """Tell the C library to keep freed memory instead of handing it back.

    A step frees and takes large tensors by the hundred, and new pages from the kernel cost more than the arithmetic on
    them. mallopt(3): M_TRIM_THRESHOLD is -1, M_MMAP_MAX -4. Without glibc nothing changes.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    mallopt(-1, 2**31 - 1)
    mallopt(-4, 0)
