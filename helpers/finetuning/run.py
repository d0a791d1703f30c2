"""From squad/finetune.py's arguments to a fine-tuned model's folder."""

import contextlib
import ctypes
import hashlib
import json
import os
import signal
from collections.abc import Callable
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
from helpers.finetuning.structured_pruning import Pruner, check_speeds, encoder_flops
from helpers.finetuning.training import Progress, TrainingOptions, TrainingState, step_count, train, trained_names
from helpers.finetuning.window_file import read_windows, write_windows
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

#: Windows that are calibrated with, and those that structured pruning takes importance from.
_CALIBRATION, _IMPORTANCE = 64, 512

#: The share of structured pruning's steps in which every other one has random pairs of question and passage.
_RANDOM_PAIRS = 2 / 3

#: Tokens in a window, where the model has as many positions.
_SEQUENCE_LENGTH = 384

_HIDDEN_ACT = {"erf": "gelu", "tanh": "gelu_new"}

#: Windows that are calibrated with at once.
_CALIBRATION_BATCH = 16


def finetune(args) -> None:
    """Fine-tune as the arguments say and write the model's folder. Raises DemoBertError."""
    _keep_freed_memory()
    made = not Path(args.output).exists()
    try:
        _finetune(args)
    except torch.OutOfMemoryError as error:
        hint = f"give a smaller -b than {args.batch_size}, or a smaller -s"
        raise DemoBertError(f"the GPU's memory is too small: {hint}") from error
    finally:
        if made:
            with contextlib.suppress(OSError):  # it holds something: all but a run that began nothing
                os.rmdir(args.output)


def _finetune(args) -> None:
    folder = _output_folder(args)
    model = _read_model(args)
    options, cut = _training_options(args), _window_options(args, model.config)
    if args.prune and args.sparse:
        raise UsageError("--prune and --sparse are two runs: --sparse starts from the folder that --prune wrote")
    if _more_int8(args) and not args.qat:
        raise UsageError("-imh and -iln say where --qat rounds: add --qat")
    if args.prune:
        check_speeds(model.config, args.prune, cut.sequence_length)
    cli.note(f"Reading {args.pytorch}")
    weights, fresh = read_checkpoint(args.pytorch, model.config, args.gelu, args.random_seed)
    _say_fresh(fresh, options)
    windows, data = _read_windows(args, model, cut)

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    half = not args.fp32 and _has_bfloat16(device)
    network = Network(weights.config, to_torch(weights, device), half)
    teacher = Network(weights.config, to_torch(weights, device), half) if options.distill else None
    state_file = StateFile(folder / STATE_NAME, _fingerprint(args, options, cut, model, weights, network, data))
    state = TrainingState(network, trained_names(network, embeddings=not _keeps_embeddings(args)))
    run = _Run(args, model, options, windows, teacher, state, state_file)
    if state_file.read_into(state):
        cli.note(f"Going on after step {state.step}" + (f" for --prune {run.speed:g}" if args.prune else ""))
    else:
        run.prepare()
    run.finish(folder)


def _keeps_embeddings(args) -> bool:
    """Whether the tables of embeddings stay as they are."""
    return bool(args.qat or args.sparse or args.prune)


class _Run:
    """A run from where its state stands, for one speed of structured pruning after the other, or for none."""

    def __init__(
        self, args, model: ModelFolder, options, windows, teacher, state: TrainingState, state_file: StateFile
    ):
        self._args, self._model, self._options = args, model, options
        self._windows, self._teacher, self._state, self._file = windows, teacher, state, state_file
        self._whole = state.network.config
        wanted = _keeps_embeddings(args)
        self._calibration = _calibration_windows(windows, _calibration_count(args), args.random_seed) if wanted else []

    @property
    def speed(self) -> float:
        """What is trained for; 1 without structured pruning."""
        return self._args.prune[self._state.speed] if self._args.prune else 1.0

    def prepare(self) -> None:
        """What a network is given before its first step."""
        network = self._state.network
        if self._args.sparse:
            self._state.masks = prune_encoder(network, self._batches())
        if self._args.qat and not self._args.prune:
            network.input_ranges = self._rounded_ranges()

    def finish(self, folder: Path) -> None:
        """Train to the end, and write the models."""
        speeds = self._args.prune or [1.0]
        while self._state.speed < len(speeds):
            self._train()
            own = _folder_of(folder, speeds, self.speed)
            own.mkdir(exist_ok=True)
            _write(self._args, own, self._model, self._state.network, self._batches() if self._args.qat else [])
            self._state.begin_next_speed()
            if self._state.speed < len(speeds):
                self._file.write(self._state)
        self._file.path.unlink(missing_ok=True)

    def _train(self) -> None:
        """To the last step for this speed. Raises KeyboardInterrupt where it was stopped before, and saved."""
        state, options = self._state, self._options
        steps, kind = step_count(len(self._windows), options), "bf16" if state.network.half else "fp32"
        goal = f" for {self.speed:g} times fewer FLOPs" if self._args.prune else ""
        where = f"{_device_name(state.network.device)}, {kind}"
        cli.note(f"Training {steps} steps of {options.batch_size} windows{goal} on {where};")
        cli.note(f"its state is saved every {options.save_every} steps: stopped, it goes on with the same command")
        with tqdm(total=steps, initial=state.step, desc="Training", unit="step") as bar, _Stop() as stop:
            hooks = lambda progress: _show(bar, progress), self._file.write, stop.is_asked_for, self._change(steps)
            train(state, self._teacher, self._windows, options, *hooks)
        if state.step < steps:
            cli.note(f"Stopped after step {state.step}, which is saved: the same command goes on from there")
            raise KeyboardInterrupt

    def _change(self, steps: int) -> Callable[[TrainingState], bool]:
        """What is done to the network between steps: structured pruning, and ranges for int8 once that is over."""
        if not self._args.prune:
            return lambda state: False
        length = _length(self._args, self._whole)
        whole, speeds = encoder_flops(self._whole, length), [1.0, *self._args.prune]
        before, after = (whole / speed for speed in speeds[self._state.speed :][:2])
        pruner = Pruner(self._calibration, length, before, after, steps)

        def change(state: TrainingState) -> bool:
            if not pruner.is_due(state.step):
                return False
            state.forget_ranges()
            pruner.prune(state)
            if self._args.qat and pruner.is_last(state.step):
                state.network.input_ranges = self._rounded_ranges()
            return True

        return change

    def _rounded_ranges(self) -> dict:
        """What --qat begins with, by what the network shows now."""
        network, args = self._state.network, self._args
        measured = measured_ranges(network, self._batches())
        return rounded_ranges(network, measured, args.force_int8_multihead, args.force_int8_skipln)

    def _batches(self) -> list[PaddedBatch]:
        return [padded_batch([window.feature for window in windows]) for windows in self._calibration]


def _say_fresh(fresh: bool, options: TrainingOptions) -> None:
    if fresh and options.distill:
        why = "first fine-tune it without --qat, --sparse, --prune"
        raise UsageError(f"the checkpoint has no SQuAD head to distil from: {why}")
    if fresh:
        cli.note("The checkpoint has no SQuAD head: it starts from random weights")


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
    places = [folder, *(_folder_of(folder, args.prune, speed) for speed in args.prune or ())]
    outputs = {f"{name} of {place}": place / name for place in places if place.is_dir() for name in names}
    check_outputs(outputs | {"--windows": args.windows}, (args.pytorch, args.squad_json, args.vocab_file))
    return folder


def _folder_of(folder: Path, speeds: list[float], speed: float) -> Path:
    """Where the model of one of the speeds of --prune is written; of one alone, it is `folder`."""
    return folder if len(speeds) == 1 else folder / f"{speed:g}"


def _read_model(args) -> ModelFolder:
    model = ModelFolder.open(folder_of(args.config_dir, args.pytorch), args.vocab_file, cli.note)
    model.tokenizer()  # says so if there is none
    return model


def _training_options(args) -> TrainingOptions:
    distill = float(_keeps_embeddings(args)) if args.distill is None else args.distill
    dropout = args.dropout if args.dropout is not None else 0.0 if distill == 1 else _DROPOUT
    zeroes = bool(args.sparse or args.prune)
    epochs = _SPARSE_EPOCHS if zeroes else _QAT_EPOCHS if args.qat else _EPOCHS
    return TrainingOptions(
        epochs=args.epochs or epochs,
        learning_rate=args.lr or (_SPARSE_RATE if zeroes else _RATE),
        batch_size=args.batch_size,
        distill=distill,
        random_pairs=_RANDOM_PAIRS if args.prune else 0.0,
        dropout=dropout,
        seed=args.random_seed,
        save_every=args.save_every,
    )


def _window_options(args, config: BertConfig) -> AnswerOptions:
    return AnswerOptions(sequence_length=_length(args, config), doc_stride=args.doc_stride)


def _length(args, config: BertConfig) -> int:
    """Tokens of the longest window. Raises UsageError where the model has fewer positions."""
    limit = config.max_position_embeddings
    length = args.sequence_length or min(_SEQUENCE_LENGTH, limit)
    if length > limit:
        raise UsageError(f"-s {length} is over the model's max_position_embeddings, {limit}")
    return length


def _read_windows(args, model: ModelFolder, cut: AnswerOptions) -> tuple[list[TrainingWindow], str]:
    """The windows of the training data, and that file's SHA-256; from the file of --windows, where that is there."""
    facts = {"tokenizer": model.tokenizer().sha256, "windows": asdict(cut)}
    path = args.windows and Path(args.windows)
    if path and path.exists():
        windows, found = read_windows(path, model.config, cut.sequence_length)
        data = found.pop("data", None)
        known = not Path(args.squad_json).exists() or data == sha256_of(args.squad_json)
        if found != facts or not known or not isinstance(data, str):
            raise DemoBertError(f"the windows of {path} were cut from other text, or in another way: remove it")
        cli.note(f"Reading {len(windows)} windows from {path}")
        return windows, data
    squad = read_squad(args.squad_json)
    windows, left_out = training_windows(squad, model.tokenizer(), cut)
    if left_out:
        why = "they are blank, or their passage lacks the answer"
        cli.note(f"Note: {left_out} of {len(squad.examples)} questions are left out: {why}")
    data = sha256_of(args.squad_json)
    if path:
        write_windows(path, windows, facts | {"data": data})
    return windows, data


def _calibration_count(args) -> int:
    return args.calib_num or (_IMPORTANCE if args.prune else _CALIBRATION)


def _calibration_windows(windows: list[TrainingWindow], count: int, seed: int) -> list[list[TrainingWindow]]:
    """Windows to calibrate with, in batches of about one length."""
    if count > len(windows):
        cli.note(f"Note: calibrating with all {len(windows)} windows: there are no {count}")
    chosen = [windows[i] for i in np.random.default_rng(seed).permutation(len(windows))[:count]]
    groups = length_sorted_batches([window.feature for window in chosen], _CALIBRATION_BATCH)
    return [[chosen[i] for i in group] for group in groups]


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
    args,
    options: TrainingOptions,
    cut: AnswerOptions,
    model: ModelFolder,
    weights: BertWeights,
    network: Network,
    data: str,
) -> str:
    """SHA-256 of all that the outcome of a run depends on."""
    digest = hashlib.sha256()
    for name in sorted(weights.tensors):
        digest.update(name.encode() + weights[name].tobytes())
    settings = {
        "kind": [args.qat, args.sparse, args.prune, _calibration_count(args), *_more_int8(args)],
        "training": {name: value for name, value in asdict(options).items() if name != "save_every"},
        "windows": asdict(cut),
        "model": [asdict(model.config), weights.config.gelu, model.tokenizer().sha256],
        "data": data,
        "arithmetic": [network.device.type, network.half],
    }
    digest.update(json.dumps(settings, sort_keys=True).encode())
    return digest.hexdigest()


def _more_int8(args) -> list[str]:
    """Where --qat rounds beside the dense layers."""
    return [name for name in ("force_int8_multihead", "force_int8_skipln") if getattr(args, name)]


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
