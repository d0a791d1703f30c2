"""The check of one model after the other: its engines are built, compared with PyTorch, and timed beside it."""

import statistics
import subprocess
import sys
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from helpers import cli
from helpers.answer_options import AnswerOptions
from helpers.backends.tensorrt.gpu import rtx_supports
from helpers.batching import PaddedBatch, padded_batch
from helpers.bert_config import BertConfig
from helpers.data_processing import make_features
from helpers.errors import DemoBertError
from helpers.model_folder import ModelFolder
from helpers.squad import read_squad
from scripts.benchmarks.random_model import RANDOM_SIZES, write_random_model
from scripts.benchmarks.turns import turns
from scripts.gpu_checking import comparison, torch_models
from scripts.gpu_checking.engine_process import EngineProcess

ROOT = Path(__file__).resolve().parents[2]
BUNDLED = ROOT / "models" / "bundled" / "bert_mini_squad11"

#: Enough for the ranges of a check.
CALIBRATION_SAMPLES = 25


class Check:
    """What was found out so far: comparisons, latencies, what was refused here and what failed, each in one line."""

    def __init__(self, args, squad: Path, capability: tuple, environment: dict):
        self.args = args
        self.squad = squad
        self.capability = capability
        # Another Python has packages of its own, which must not be hidden by those that were unpacked for this one.
        self.environment = environment if args.engine_python == sys.executable else None
        self.comparisons, self.latencies = {}, {}
        self.refused, self.failed = [], []

    def run(self, model: str, folder: Path) -> None:
        """Build, compare and time one model."""
        checkpoint = BUNDLED if model == "bundled" else write_random_model(folder / model, RANDOM_SIZES[model])
        engines = self.engines(model, checkpoint, folder)
        try:
            torch_half = torch_models.load(checkpoint, half=True)
            self.compare(model, checkpoint, torch_half, engines, folder)
            self.time(model, checkpoint, torch_half, engines)
        finally:
            for engine in engines.values():
                engine.close()

    def engines(self, model: str, checkpoint: Path, folder: Path) -> dict:
        """Name → EngineProcess of each engine that can be built and loaded here."""
        engines = {}
        for backend in self.args.backend:
            for network in self.args.network:
                for precision in self.args.precision:
                    name = f"{backend}, {network}, {precision}".replace(", auto", "")
                    path = folder / f"{model}-{backend}-{network}-{precision}.engine"
                    cli.note(f"Building {name} of {model}")
                    try:
                        self.build(checkpoint, path, backend, network, precision)
                        engines[name] = EngineProcess(path, self.args.engine_python, self.environment)
                        cli.note(engines[name].description)
                    except DemoBertError as error:
                        self.gave_up(f"{name}, {model}: {error}", backend)
        return engines

    def build(self, checkpoint: Path, path: Path, backend: str, network: str, precision: str) -> None:
        """By builder.py, as a user would. Raises DemoBertError with its last line."""
        flags = ["-pt", checkpoint, "-v", BUNDLED / "vocab.txt", "-o", path, "--backend", backend, "--network", network]
        flags += [] if precision == "fp32" else [f"--{precision}"]
        if precision in ("int8", "fp8"):
            flags += ["-j", self.squad, "-n", CALIBRATION_SAMPLES, "-p", path.with_suffix(".calibration")]
        flags += [word for size in self.args.batch_size for word in ("-b", size)]
        flags += [word for length in self.args.sequence_length for word in ("-s", length)]
        if backend == "tensorrt_rtx" and rtx_supports(self.capability):
            flags += ["--compute-capability", "{}.{}".format(*self.capability)]
        flags += ["-tcf", path.parent / "timing.cache"] if backend == "tensorrt" else []
        command = [self.args.engine_python, ROOT / "builder.py", *flags]
        words = [str(word) for word in command]
        result = subprocess.run(words, env=self.environment, capture_output=True, text=True, errors="replace")
        if result.returncode:
            lines = result.stderr.splitlines() or [f"builder.py ended with exit code {result.returncode}"]
            raise DemoBertError(lines[-1].removeprefix("builder.py: error: "))

    def gave_up(self, line: str, backend: str) -> None:
        """An engine that is not to be had: refused where that is this machine's nature, failed otherwise."""
        line = cli.one_line(line)
        foreign = backend == "tensorrt_rtx" and not rtx_supports(self.capability)
        expected = foreign or "which is not installed" in line
        (self.refused if expected else self.failed).append(line)
        cli.note(f"{'Not here' if expected else 'FAILED'}: {line}")

    @cached_property
    def batches(self) -> list:
        """The windows that every model is compared on."""
        return windows(self.squad, self.args)

    def compare(self, model: str, checkpoint: Path, torch_half, engines: dict, folder: Path) -> None:
        """Every engine and PyTorch in half precision beside PyTorch in float32, on windows of real questions."""
        batches = self.batches
        lengths = [int(row.sum()) for batch in batches for row in batch.input_mask]
        cli.note(f"Comparing {len(lengths)} windows of {self.squad}")
        reference = rows(torch_models.logits(torch_models.load(checkpoint, half=False), batches))
        found = self.comparisons.setdefault(model, {})
        half_logits = rows(torch_models.logits(torch_half, batches))
        found["PyTorch, fp16"] = comparison.compare(half_logits, reference, lengths, tolerance=None)
        for name, engine in list(engines.items()):
            try:
                logits = rows(engine.logits(batches, folder))
            except DemoBertError as error:
                self.gave_up(f"{name}, {model}: {error}", "")
                engines.pop(name).close()
                continue
            tolerance = comparison.tolerance_for(name.split(", ")[-1])
            found[name] = comparison.compare(logits, reference, lengths, tolerance, same_tokens=model == "bundled")
            if not found[name].passed:
                self.failed.append(f"{name}, {model}: its logits are not PyTorch's (see the table)")
        print(f"\n{model}\n\n{comparison.comparison_table(found)}\n", flush=True)

    def time(self, model: str, checkpoint: Path, torch_half, engines: dict) -> None:
        """Medians of every engine and of PyTorch in half precision, each in its turn, with and without CUDA graphs."""
        medians = self.latencies.setdefault(model, {})
        for batch_size in self.args.batch_size:
            for length in self.args.sequence_length:
                cli.note(f"Timing {model}, {batch_size} × {length}")
                ways = {}
                for name, engine in engines.items():
                    for graph in (False, True):
                        ways[name + ", CUDA graph" * graph] = partial(engine.time, batch_size, length, graph=graph)
                batch = random_padded_batch(checkpoint, batch_size, length)
                peers = torch_models.runs(torch_half, batch, compiled=not self.args.no_compile)
                ways |= {f"PyTorch, fp16, {way}": run for way, run in peers.items()}
                medians[batch_size, length] = self.in_turn(model, ways)
        print(
            f"\n{model}: batch size × tokens, ms, median of {self.args.rounds * self.args.runs_per_turn} runs each, in turn\n"
        )
        print(f"{comparison.latency_table(medians)}\n", flush=True)

    def in_turn(self, model: str, ways: dict) -> dict:
        """Name → median ms. A way that fails is left out of the rest."""
        from tqdm import tqdm

        latencies, rounds = {name: [] for name in ways}, self.args.rounds
        order = turns(ways, rounds, pause=0)  # what ran before waits for the GPU, and spins no more
        for _, name in tqdm(order, total=rounds * len(ways), unit="turn", leave=False, disable=None):
            try:
                latencies[name] += ways[name](runs=self.args.runs_per_turn)
            except DemoBertError as error:
                self.gave_up(f"{name}, {model}: {error}", "")
                del ways[name]
        return {name: statistics.median(latencies[name]) for name in ways}

    def summary(self) -> int:
        """Says what was refused and what failed; the exit code."""
        for line in self.refused:
            print(f"Not here: {line}")
        for line in self.failed:
            print(f"FAILED: {line}")
        engines = sum(not name.startswith("PyTorch") for found in self.comparisons.values() for name in found)
        print(f"{engines} engines compared, {len(self.refused)} not to be had here, {len(self.failed)} failures")
        return 1 if self.failed else 0


def windows(squad: Path, args) -> list:
    """The first `args.windows` windows of a SQuAD file, in its order, as PaddedBatches of their longest length."""
    length, size = args.sequence_length[-1], args.batch_size[-1]
    found = features(squad, args.windows, length)
    return [padded_batch(found[first : first + size], length) for first in range(0, len(found), size)]


def features(squad: Path, count: int, length: int) -> list:
    """The first `count` windows of a SQuAD file, of up to `length` tokens, as the bundled model's tokenizer reads it."""
    options, tokenizer, found = AnswerOptions(), ModelFolder.open(BUNDLED).tokenizer(), []
    for example in read_squad(squad).examples:
        texts = tokenizer.encode(example.question), tokenizer.encode(example.passage)
        found += make_features(*texts, tokenizer, length, options.max_query_length, options.doc_stride)
        if len(found) >= count:
            break
    return found[:count]


def rows(logits: list) -> list:
    """Batches [B, S, 2] → windows [S, 2]."""
    return [row for batch in logits for row in batch]


def random_padded_batch(checkpoint: Path, batch_size: int, length: int):
    """Random ids of full rows, as perf.py draws them."""
    vocab_size = BertConfig.from_folder(checkpoint).vocab_size
    ids = np.random.default_rng(length).integers(vocab_size, size=(batch_size, length))
    zeros = np.zeros((batch_size, length), np.int32)
    return PaddedBatch(ids.astype(np.int32), zeros, zeros + 1)
