"""An engine behind infer_c, the C++ module that cmake builds into build/ (sources: infer_c/)."""

import functools
import importlib.machinery
import importlib.util
import json
import shlex
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np

from helpers.backends import card_of, without_card
from helpers.backends.base import Engine
from helpers.batching import Batch
from helpers.bert_config import BertConfig
from helpers.engine_card import EngineCard
from helpers.errors import DemoBertError

ROOT = Path(__file__).resolve().parent.parent

#: Where cmake writes the module.
BUILD_FOLDER = ROOT / "build"


def load_engine(
    path,
    layout: str | None = None,
    throughput: bool = False,
    say: Callable[[str], object] = lambda message: None,
    trust_engine: bool = False,
    config_dir=None,
    enable_graph: bool = False,
) -> "InferCEngine":
    """As `helpers.backends.load_engine`, through infer_c; `layout` None takes either. Raises DemoBertError.

    `enable_graph` replays a CUDA graph for each shape that comes again (TensorRT).
    """
    module = _module()
    card = card_of(path, say, trust_engine, config_dir)
    config = "" if config_dir is None else json.dumps(asdict(BertConfig.from_folder(config_dir)))
    try:
        trust = {"trust_engine": trust_engine, "config": config}
        bert = module.bert_inf(path, enable_graph=enable_graph, throughput=throughput, **trust)
    except module.Error as error:
        raise DemoBertError(error) from error
    engine = InferCEngine(card or _card_told_by(bert), module, bert)
    if card is None:
        say(without_card(path, engine.card))
    if layout not in (None, engine.card.layout):
        raise DemoBertError(f"{path} is a {engine.card.layout} engine, not a {layout} one")
    return engine


def _card_told_by(bert) -> EngineCard:
    """The card of an engine that has no card file. Raises DemoBertError where what it tells makes no sense."""
    fields = json.loads(bert.card)
    return EngineCard(**fields | {"config": BertConfig.from_dict(fields["config"])})


def _module():
    """infer_c, from BUILD_FOLDER. Raises DemoBertError, with the commands that build it, where it is not there."""
    source, build, python = (shlex.quote(str(path)) for path in (ROOT, BUILD_FOLDER, sys.executable))
    commands = f"cmake -S {source} -B {build} -DPYTHON_EXECUTABLE={python} && make -C {build}"
    names = [f"infer_c{suffix}" for suffix in importlib.machinery.EXTENSION_SUFFIXES]
    found = [BUILD_FOLDER / name for name in names if (BUILD_FOLDER / name).exists()]
    if not found:
        raise DemoBertError(f"the C++ module infer_c is not built for this Python; build it: {commands}")
    try:
        return _imported(found[0])
    except ImportError as error:
        raise DemoBertError(
            f"the C++ module {found[0]} can't be loaded ({error}); build it again: {commands}"
        ) from error


@functools.cache  # a process can hold its types once only
def _imported(path: Path):
    """The module in the file `path`: by its path, since `import infer_c` could find the folder of its sources."""
    spec = importlib.util.spec_from_file_location("infer_c", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class InferCEngine(Engine):
    """An infer_c.bert_inf. Unlike other engines', its `run` may be called from several threads at once."""

    def __init__(self, card: EngineCard, module, bert):
        super().__init__(card)
        self._error = module.Error
        self._bert = bert
        self._threads = ThreadPoolExecutor(self.parallel_runs)  # it starts no thread before it needs one

    def _infer(self, batch: Batch) -> np.ndarray:
        return self._run(batch.inputs().values())

    def _run(self, inputs: Iterable[np.ndarray]) -> np.ndarray:
        try:
            return self._bert.run(*inputs)
        except self._error as error:
            raise DemoBertError(error) from error

    @property
    def parallel_runs(self) -> int:
        # Two threads for each run that the device does at once: one prepares the next batch meanwhile.
        return 2 * self._bert.parallel_runs

    def submit(self, batch: Batch) -> Future:
        return self._threads.submit(self.run, batch)

    def close(self) -> None:
        self._threads.shutdown()
        self._bert = None

    def padded_length(self, length: int) -> int:
        return self._bert.padded_length(length)

    def timed_run(self, batch: Batch) -> Callable[[], float]:
        inputs = list(batch.inputs().values())

        def run_once() -> float:
            start = time.perf_counter()
            self._run(inputs)
            return (time.perf_counter() - start) * 1e3

        return run_once

    def describe(self) -> str:
        return f"infer_c, {self._bert.describe()}"
