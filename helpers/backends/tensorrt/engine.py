"""Load a TensorRT plan and run it: one CUDA stream, PyCUDA's primary context, buffers for the largest profile.

The buffers are there twice (`Slot`): while one batch is at work, the next is prepared and put behind it in the stream.
"""

import contextlib
import functools
import math
import threading
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np

from helpers.backends.base import Engine
from helpers.backends.tensorrt.bert_plugins import MAX_PACKED_LENGTH
from helpers.backends.tensorrt.gpu import Gpu, cuda_driver, gpu, rtx_supports
from helpers.backends.tensorrt.module import Flavour, explain, load, logger_of, plugin_registry
from helpers.backends.tensorrt.plan_builder import RTX_DEVICE, Profile
from helpers.batching import INPUT_NAMES, Batch, PaddedBatch
from helpers.bert_config import BertConfig
from helpers.engine_card import EngineCard, EngineFacts
from helpers.errors import DemoBertError

OUTPUT = "logits_out"

#: Start and end: logits of one token.
LOGITS = 2


def load_engine(
    path: Path, card: EngineCard | None, flavour: Flavour, config: BertConfig | None = None
) -> "TensorRTEngine":
    """Load a plan; without a card, by what it tells and `config`, what the user says of it.

    Raises DemoBertError for a plan that does not fit, or whose tables' sizes neither tells.
    """
    trt = load(flavour)
    if card is not None:
        _check_version(path, card, trt, flavour)
    driver = cuda_driver()
    device = gpu(driver)
    if card is not None:
        _check_device(path, card, device, flavour)
    try:
        plan = Path(path).read_bytes()
    except OSError as error:
        raise DemoBertError(f"the engine {path} can't be read: {error.strerror}") from error
    session = Session(trt, driver)
    try:
        session.open(plan, path)
        if card is None:
            facts = EngineFacts.told(path, session.engine.name, config)
            card = _card_told_by(session, device, flavour, len(plan), facts)
        return TensorRTEngine(card, session, device)
    except BaseException:
        session.close()
        raise


def _check_version(path, card: EngineCard, trt, flavour: Flavour) -> None:
    if card.backend_version != trt.__version__:
        raise DemoBertError(
            f"{path} was built with {flavour.module} {card.backend_version}, this is {trt.__version__}; "
            "plans fit their own version only: build it again"
        )


def _check_device(path, card: EngineCard, device: Gpu, flavour: Flavour) -> None:
    """TensorRT builds for one GPU model; TensorRT-RTX for compute capabilities, by default all it has from 8.0 on."""
    if flavour.portable and not rtx_supports(device.compute_capability):
        raise DemoBertError(f"TensorRT-RTX does not support this GPU, {device}; it runs on {RTX_DEVICE}, and on 7.5")
    if not flavour.portable:
        fits = card.device == str(device)
    elif targets := card.settings.get("compute_capabilities", ""):
        fits = "{}.{}".format(*device.compute_capability) in targets.split()
    else:
        fits = device.compute_capability >= (8, 0)
    if not fits:
        raise DemoBertError(f"{path} was built for {card.device}, this GPU is {device}; build it again")


def deserialize(trt, logger, runtime, plan: bytes, path):
    """The engine of a plan. Raises DemoBertError, with TensorRT's reason, where it refuses it."""
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        what = (
            f"{trt.__name__} {trt.__version__} can't load {path}: it is damaged, or the plan of another version "
            "or GPU; build it again"
        )
        raise explain(logger, what)
    return engine


class Slot:
    """Pinned and device memory for the tensors of one batch on its way: tensor → host array, device allocation."""

    def __init__(self, driver):
        self.host, self.device = {}, {}
        self.done = driver.Event()
        self.run: SubmittedRun | None = None

    def allocate(self, driver, counts: dict[str, int]) -> None:
        for name, count in counts.items():
            dtype = np.dtype(np.float32 if name == OUTPUT else np.int32)
            self.host[name] = driver.pagelocked_empty(count, dtype)
            self.device[name] = driver.mem_alloc(count * dtype.itemsize)

    def settle(self) -> None:
        """Wait for the batch that is on its way in this memory; what became of it, its own run says."""
        if run := self.run:
            with contextlib.suppress(DemoBertError):
                run.result()

    def free(self) -> None:
        for buffer in self.device.values():
            buffer.free()
        self.device.clear()
        self.host.clear()


class SubmittedRun:
    """A batch whose logits are on their way; `shaped` makes of the plan's output, flat, what the caller asked for.

    It holds on to neither the engine nor its memory once it has been waited for.
    """

    def __init__(self, session: "Session", slot: Slot, tokens: int, shaped: Callable[[np.ndarray], np.ndarray]):
        self._waiting: tuple | None = session, slot, tokens, shaped
        self._lock = threading.Lock()
        self._logits: np.ndarray | None = None
        self._error: DemoBertError | None = None

    def result(self) -> np.ndarray:
        """The logits, float32. May be asked for again, and by several threads. Raises DemoBertError."""
        with self._lock:
            if self._waiting:
                self._wait(*self._waiting)
                self._waiting = None
            if self._error:
                raise self._error
            return self._logits

    def _wait(self, session: "Session", slot: Slot, tokens: int, shaped) -> None:
        try:
            self._logits = shaped(session.downloaded(slot, tokens))
        except DemoBertError as error:
            self._error = error
        if slot.run is self:
            slot.run = None


_CLOSED = "the engine was closed: load it again"

#: Batches that can be on their way at once: while the GPU has one, the next is prepared.
SLOTS = 2


class Session:
    """The CUDA and TensorRT objects of one loaded plan, in the order in which they have to go.

    `layout` is the plan's: "padded" or "packed", by its inputs.
    """

    def __init__(self, trt, driver):
        self.trt = trt
        self.driver = driver
        self.logger = logger_of(trt)
        self.cuda_context = None
        self.runtime = self.engine = self.context = self.stream = None
        self.slots = []
        self.layout = "padded"
        self.profiles = []
        self.active_profile = 0

    @contextlib.contextmanager
    def current(self):
        """Within it, the CUDA context is this thread's current one. CUDA's own errors become DemoBertError."""
        cuda_context = self.cuda_context
        if cuda_context is None:
            raise DemoBertError(_CLOSED)
        try:
            cuda_context.push()
            try:
                yield
            finally:
                cuda_context.pop()
        except self.driver.Error as error:
            raise DemoBertError(f"the GPU failed: {' '.join(str(error).split())}") from error

    def open(self, plan: bytes, path) -> None:
        """Deserialize the plan and allocate its buffers. Raises DemoBertError."""
        driver, trt = self.driver, self.trt
        self.logger.start(verbose=False)
        self.cuda_context = driver.Device(0).retain_primary_context()
        with self.current():
            plugin_registry(trt, self.logger)
            self.runtime = trt.Runtime(self.logger)
            self.engine = deserialize(trt, self.logger, self.runtime, plan, path)
            self._check_interface(path)
            self.profiles = [self._profile(index) for index in range(self.engine.num_optimization_profiles)]
            self._check_lengths(path)
            self.context = self.engine.create_execution_context()
            if self.context is None:
                raise explain(self.logger, "TensorRT could not make an execution context; free GPU memory may be short")
            self.stream = driver.Stream()
            self._allocate()

    @property
    def inputs(self) -> tuple:
        return INPUT_NAMES[self.layout]

    def _check_interface(self, path) -> None:
        """Sets `layout`. Raises DemoBertError unless inputs and output are those of a BERT engine of either layout."""
        engine = self.engine
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        self.layout = "packed" if "cu_seqlens" in names else "padded"
        known = sorted(names) == sorted((*self.inputs, OUTPUT))
        if not known or not self._is_input(*self.inputs) or self._is_input(OUTPUT):
            raise DemoBertError(f"{path} is a TensorRT plan, but not one of builder.py's: it has {', '.join(names)}")
        types = [engine.get_tensor_dtype(name) for name in (*self.inputs, OUTPUT)]
        if types != [self.trt.int32] * len(self.inputs) + [self.trt.float32]:
            raise DemoBertError(f"{path} does not take int32 and give float32; build it again")
        ranks = {len(engine.get_tensor_shape(name)) for name in self.inputs}
        if ranks != {2 if self.layout == "padded" else 1}:
            raise DemoBertError(f"{path} does not take {self.layout} inputs; build it again")

    def _check_lengths(self, path) -> None:
        """Raises DemoBertError for packed plugins and longer sequences than they write: builder.py once built that."""
        longest = max(profile.length for profile in self.profiles)
        if self.layout == "packed" and self.is_plugin_network and longest > MAX_PACKED_LENGTH:
            raise DemoBertError(
                f"{path} takes sequences of {longest} tokens, of which packed BERT plugins leave those behind the first "
                f"{MAX_PACKED_LENGTH} unwritten; build it again, with -s {MAX_PACKED_LENGTH} or --network native"
            )

    @property
    def is_plugin_network(self) -> bool:
        """Plugin networks keep the two dimensions of size 1 that their convolutions need."""
        return len(self.engine.get_tensor_shape(OUTPUT)) == {"padded": 5, "packed": 4}[self.layout]

    @property
    def gives_starts_first(self) -> bool:
        """Whether a packed plan gives all start logits, then all end logits, [2, T, 1, 1], as demoBERT's plugin network."""
        return self.layout == "packed" and self.engine.get_tensor_shape(OUTPUT)[0] == LOGITS

    def _is_input(self, *names) -> bool:
        return all(self.engine.get_tensor_mode(name) == self.trt.TensorIOMode.INPUT for name in names)

    def _shapes(self, name: str, index: int) -> tuple[tuple, tuple]:
        """The smallest and the largest shape of an input in profile `index`; the same where it is static."""
        shape = tuple(self.engine.get_tensor_shape(name))
        if -1 not in shape:
            return shape, shape
        smallest, _, largest = (tuple(dims) for dims in self.engine.get_tensor_profile_shape(name, index))
        return smallest, largest

    def _profile(self, index: int) -> Profile:
        """The batch sizes and the length of profile `index`."""
        if self.layout == "padded":
            smallest, largest = self._shapes("input_ids", index)
            return Profile(max_batch=largest[0], length=largest[1], min_batch=smallest[0])
        (fewest,), (most,) = self._shapes("cu_seqlens", index)
        longest = self._shapes("max_seqlen", index)[1][0]
        return Profile(max_batch=most - 1, length=longest, min_batch=max(1, fewest - 1))

    def _allocate(self) -> None:
        """Memory for every tensor of the largest profile."""
        profiles = range(len(self.profiles))
        counts = {name: max(math.prod(self._shapes(name, index)[1]) for index in profiles) for name in self.inputs}
        counts[OUTPUT] = counts["input_ids"] * LOGITS
        for _ in range(SLOTS):
            self.slots.append(Slot(self.driver))  # first, so that what it has is freed where the next is too much
            self.slots[-1].allocate(self.driver, counts)

    def next_slot(self) -> Slot:
        """The memory that was used longest ago, free again. Raises DemoBertError."""
        try:
            slot = self.slots.pop(0)
        except IndexError:
            raise DemoBertError(_CLOSED) from None
        self.slots.append(slot)
        slot.settle()
        return slot

    def profile_for(self, batch_size: int, length: int) -> int | None:
        """The profile with the least padding for a batch: the shortest that holds it, then the smallest batch."""
        fitting = [
            (profile.length, profile.max_batch, index)
            for index, profile in enumerate(self.profiles)
            if profile.max_batch >= batch_size and profile.length >= length
        ]
        return min(fitting)[-1] if fitting else None

    def bind(self, index: int, arrays: dict, slot: Slot) -> None:
        """Make profile `index` the active one, for inputs of the shapes of `arrays`. The context must be current."""
        if index != self.active_profile:
            self._require(self.context.set_optimization_profile_async(index, self.stream.handle), f"profile {index}")
            self.stream.synchronize()
            self.active_profile = index
        for name, array in arrays.items():
            self._require(self.context.set_input_shape(name, array.shape), f"shape {array.shape} of {name}")
        for name, buffer in slot.device.items():
            self._require(self.context.set_tensor_address(name, int(buffer)), f"address of {name}")

    def upload(self, arrays: dict, slot: Slot) -> None:
        """Copy int32 arrays to the device, asynchronously, through the pinned buffers."""
        for name, array in arrays.items():
            pinned = slot.host[name][: array.size]
            pinned[:] = array.ravel()
            self.driver.memcpy_htod_async(slot.device[name], pinned, self.stream)

    def enqueue(self) -> None:
        self._require(self.context.execute_async_v3(self.stream.handle), "run")

    def download(self, slot: Slot, tokens: int) -> None:
        """Copy the output of the run on `tokens` tokens to the host, asynchronously."""
        self.driver.memcpy_dtoh_async(slot.host[OUTPUT][: tokens * LOGITS], slot.device[OUTPUT], self.stream)
        slot.done.record(self.stream)

    def downloaded(self, slot: Slot, tokens: int) -> np.ndarray:
        """That output, float32, flat, as a copy; waits for it."""
        with self.current():
            slot.done.synchronize()
        return slot.host[OUTPUT][: tokens * LOGITS].copy()

    def _require(self, accepted: bool, what: str) -> None:
        if not accepted:
            raise explain(self.logger, f"TensorRT refused the {what}", index=-1)

    def close(self) -> None:
        """Free everything: TensorRT's objects before the buffers they use, the CUDA context last. May be repeated."""
        if self.cuda_context is None:
            return
        for slot in self.slots:
            slot.settle()
        cuda_context, self.cuda_context = self.cuda_context, None
        cuda_context.push()
        try:
            if self.stream is not None:  # what an error or Ctrl-C left in it works on memory that goes now
                with contextlib.suppress(self.driver.Error):
                    self.stream.synchronize()
            self.context = None
            self.engine = None
            self.runtime = None
            for slot in self.slots:
                slot.free()
            self.slots.clear()
            self.stream = None
        finally:
            cuda_context.pop()
            cuda_context.detach()


class TensorRTEngine(Engine):
    """A plan on a GPU. Rows and columns are padded to the profile that fits; the caller sees its own shape."""

    def __init__(self, card: EngineCard, session: Session, device: Gpu):
        super().__init__(card)
        self.session = session
        self._device = device
        # Closes at the latest when the interpreter ends, while CUDA still answers.
        self._finalizer = weakref.finalize(self, session.close)

    def close(self) -> None:
        """Free the GPU's memory; the engine can't be used afterwards."""
        self._finalizer()

    def padded_length(self, length: int) -> int:
        """The shortest length of a profile that holds `length` tokens; `length` itself where none does."""
        return min((p.length for p in self.session.profiles if p.length >= length), default=length)

    parallel_runs = SLOTS

    def submit(self, batch: Batch) -> SubmittedRun:
        self.check(batch)
        return self._submit(batch)

    def _infer(self, batch: Batch) -> np.ndarray:
        return self._submit(batch).result()

    def _submit(self, batch: Batch) -> SubmittedRun:
        session, slot = self.session, self.session.next_slot()
        with session.current():
            inputs = self._bind(batch, slot)
            session.upload(inputs, slot)
            session.enqueue()
            tokens = inputs["input_ids"].size
            session.download(slot, tokens)
        if session.layout == "padded":
            sizes = inputs["input_ids"].shape, batch.batch_size, batch.sequence_length
            shaped = functools.partial(_rows_and_columns, *sizes)
        else:
            shaped = _starts_beside_ends if session.gives_starts_first else _as_they_are
        slot.run = SubmittedRun(session, slot, tokens, shaped)
        return slot.run

    def _bind(self, batch: Batch, slot: Slot) -> dict:
        """Choose the profile for `batch`; its inputs, int32, padded (in a padded engine) to what the profile takes."""
        session = self.session
        index = session.profile_for(batch.batch_size, batch.sequence_length)
        if index is None:
            raise DemoBertError(
                f"no profile of this engine holds {batch.batch_size} × {batch.sequence_length} tokens; "
                f"rebuild it with -b {batch.batch_size} -s {batch.sequence_length}"
            )
        inputs = batch.inputs()
        if session.layout == "padded":
            profile = session.profiles[index]
            inputs = _padded_inputs(batch, max(profile.min_batch, batch.batch_size), profile.length)
        session.bind(index, inputs, slot)
        return inputs

    def timed_run(self, batch: Batch) -> Callable[[], float]:
        session, slot = self.session, self.session.next_slot()
        with session.current():
            session.upload(self._bind(batch, slot), slot)
            session.stream.synchronize()
            start, end = session.driver.Event(), session.driver.Event()

        def run_once() -> float:
            with session.current():
                start.record(session.stream)
                session.enqueue()
                end.record(session.stream)
                end.synchronize()
                return start.time_till(end)

        return run_once

    def describe(self) -> str:
        card = self.card
        profiles = len(self.session.profiles)
        return (
            f"{self.session.trt.__name__} {card.backend_version} on {self._device}: {card.network} network, "
            f"{card.precisions}, {profiles} profile{'s' * (profiles != 1)}, "
            f"batch size up to {card.max_batch_size}, sequence length up to {card.max_sequence_length}"
        )


def _rows_and_columns(shape: tuple, batch_size: int, length: int, logits: np.ndarray) -> np.ndarray:
    """A padded plan's output for inputs of `shape`, flat, as the logits of a batch, [batch_size, length, 2]."""
    return logits.reshape(*shape, LOGITS)[:batch_size, :length]


def _starts_beside_ends(logits: np.ndarray) -> np.ndarray:
    """All start logits, then all end logits, as [T, 2]."""
    return logits.reshape(LOGITS, -1).T


def _as_they_are(logits: np.ndarray) -> np.ndarray:
    return logits.reshape(-1, LOGITS)


def _padded_inputs(batch: PaddedBatch, rows: int, length: int) -> dict:
    """Inputs padded to [rows, length]: masked columns on the right, copies of the first row below."""
    missing_rows, missing_columns = rows - batch.batch_size, length - batch.sequence_length

    def padded(array):
        wide = np.pad(array, ((0, 0), (0, missing_columns)))
        return np.concatenate([wide, np.repeat(wide[:1], missing_rows, axis=0)])

    return {name: padded(array) for name, array in batch.inputs().items()}


def _card_told_by(session: Session, device: Gpu, flavour: Flavour, size: int, facts: EngineFacts) -> EngineCard:
    """The card of a plan that has none."""
    profiles = session.profiles
    return EngineCard(
        backend=flavour.backend,
        backend_version=session.trt.__version__,
        device=RTX_DEVICE if flavour.portable else str(device),
        layout=session.layout,
        network="plugin" if session.is_plugin_network else "native",
        precision=facts.precision,
        config=facts.config,
        batch_sizes=sorted({profile.max_batch for profile in profiles}),
        sequence_lengths=sorted({profile.length for profile in profiles}),
        engine_bytes=size,
    )
