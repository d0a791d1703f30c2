"""All of TensorRT 8.6's networks on one GPU, in parts that can be repeated and gone on with: `gpu_check.sh --suite`.

networks    each engine's logits beside PyTorch's float32 and beside what the tests' double computes for the same ranges
answers     each engine's F1 on real questions
table       demoBERT's table by build/perf, beside PyTorch and the dense products alone
tried       what might be faster: the builder's levels, layers written otherwise (other_forms.py)
loadgen     BERT-large, packed, in int8, asked by MLPerf's LoadGen

Every step is a process of its own with a time limit, and a line of the record (record.py).
"""

import contextlib
import fcntl
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from helpers import cli
from helpers.batching import packed_batch
from helpers.bert_config import BertConfig
from helpers.errors import DemoBertError
from scripts.gpu_checking import checkpoints, model_check, torch_models
from scripts.gpu_checking.engine_process import EngineProcess
from scripts.gpu_checking.networks import CALIBRATION, NETWORKS, TRAINING, WIDE_CALIBRATION, Network, build_command
from scripts.gpu_checking.record import OutOfTime, Record

ROOT = Path(__file__).resolve().parents[2]

#: Megatron's network for the numbers: of random weights, and as wide as its plugins want it.
MEGATRON = BertConfig(768, 4, 12, 3072, 30522, gelu="tanh")

#: How the bundled model's QAT variants are trained: for int8 in dense layers alone, and in attention and add + norm, too.
QAT = {"qat": (), "qat all": ("-imh", "-iln", "--epochs", "5")}

#: The release that the double plays, and the variable that has it hold floats in half.
DOUBLE, DOUBLE_FLOATS = "8.6.1", "TENSORRT_DOUBLE_FLOATS"

BATCH, LENGTH = 8, 384

#: Batches of windows that the double computes: it takes a core many seconds for each window.
DOUBLE_BATCHES = 1


class Suite:
    """The steps of the parts "networks" and "answers", and what they share with the table's."""

    def __init__(self, args, squad: Path, record: Record):
        self.args, self.squad, self.record = args, squad, record
        self.work = args.folder / "work"
        self.work.mkdir(parents=True, exist_ok=True)
        self.checkpoints = {
            "bundled": model_check.BUNDLED,
            "vocabulary": model_check.BUNDLED / "vocab.txt",
            "qat": self.work / "qat",
            "qat all": self.work / "qat_all",
            "wide": self.work / "wide",
            "wide qat": self.work / "wide_qat",
            "megatron": self.work / "megatron" / "weights.pickle",
            CALIBRATION: args.folder / CALIBRATION,
            WIDE_CALIBRATION: self.work / WIDE_CALIBRATION,
        }

    @property
    def timing_lock(self) -> Path:
        """Of this command's GPUs."""
        gpus = re.sub(r"[^\w-]", "_", os.environ.get("CUDA_VISIBLE_DEVICES", "all"))
        return self.work / f"timing-{gpus}.lock"

    def alone(self):
        """Nothing else is timed meanwhile on the same GPUs, by any command of the same folder."""
        return self.locked(self.timing_lock)

    @contextlib.contextmanager
    def locked(self, path: Path):
        with open(path, "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def wanted(self, name: str) -> bool:
        return not self.args.only or any(text in name for text in self.args.only)

    def run(self, command: list, what: str, seconds: float = 1200, **environment) -> str:
        """What `command` prints. Raises DemoBertError with its last line, or where it takes longer than it may."""
        words, limit = [str(word) for word in command], min(seconds, self.record.seconds_left)
        pipe = {"capture_output": True, "text": True, "errors": "replace", "stdin": subprocess.DEVNULL}
        try:
            result = subprocess.run(words, env=os.environ | environment, cwd=ROOT, timeout=limit, **pipe)
        except subprocess.TimeoutExpired as error:
            raise DemoBertError(f"{what} took longer than {limit:.0f} s") from error
        except OSError as error:
            raise DemoBertError(f"{what}: {words[0]} can't be run: {error.strerror}") from error
        if result.returncode:
            said = (result.stderr or result.stdout).splitlines() or [f"{what} ended with exit code {result.returncode}"]
            raise DemoBertError(f"{what} failed: {cli.one_line(' | '.join(said[-3:]))}")
        return result.stdout

    def make_checkpoints(self) -> None:
        """All but the bundled model. What failed costs the networks that are built from it."""
        paths = self.checkpoints
        checkpoints.write_random_megatron(paths["megatron"], MEGATRON)
        program = (sys.executable, ROOT / "squad" / "finetune.py", "-pt", paths["bundled"])
        for name, flags in QAT.items():
            train = [
                *program,
                "-j",
                self.args.folder / TRAINING,
                "-o",
                paths[name],
                "--qat",
                *flags,
                *self.args.finetune,
            ]
            self.make(paths[name] / "config.json", f"training {name}", self.run, train, "finetune.py")
        calibrations = [paths[name] for name in (CALIBRATION, WIDE_CALIBRATION)]
        self.make(paths[WIDE_CALIBRATION], "widening", self._widen, "bundled", "wide", *calibrations)
        wide = paths["wide qat"] / "model.safetensors"
        self.make(wide, "widening the QAT variant", self._widen, "qat all", "wide qat")

    def make(self, path: Path, key: str, work, *arguments) -> None:
        """A step that makes the file `path`, which the record of another machine may tell of, but not hold."""
        if not path.is_file():
            self.record.forget(key)
            self.record.step(key, work, *arguments)

    def _widen(self, source: str, name: str, *calibrations: Path) -> str:
        return str(checkpoints.write_widened(self.checkpoints[name], self.checkpoints[source], *calibrations))

    def build(self, network: Network, python: str, engine: Path, extra=()) -> float:
        """MiB of the engine, built unless it is there."""
        if not engine.is_file():
            sizes = {"batch": [BATCH], "length": [LENGTH]}
            command = build_command(python, ROOT, network, self.checkpoints, engine, sizes, extra)
            self.run(command, Path(command[1]).name)
        return round(engine.stat().st_size / 2**20, 1)

    def logits(
        self, network: Network, python: str, engine: Path, batches: int | None = None, environment: dict | None = None
    ) -> list[np.ndarray]:
        """Logits [length, 2] of each of the windows, or of those of the first `batches`."""
        process = EngineProcess(engine, python, environment, network.layout)
        folder = engine.with_suffix(".logits")
        folder.mkdir(exist_ok=True)
        lengths = self.lengths[: BATCH * batches if batches else None]
        try:
            if network.layout == "padded":
                return of_valid_tokens(process.logits(self.padded[:batches], folder), lengths)
            return np.split(np.concatenate(process.logits(self.packed[:batches], folder)), np.cumsum(lengths)[:-1])
        finally:
            process.close()

    def prepare_windows(self) -> None:
        features = model_check.features(self.squad, self.args.windows, LENGTH)
        groups = [features[first : first + BATCH] for first in range(0, len(features), BATCH)]
        self.padded = [model_check.padded_batch(group, LENGTH) for group in groups]
        self.packed = [packed_batch(group) for group in groups]
        self.lengths = [int(row.sum()) for batch in self.padded for row in batch.input_mask]
        reference = torch_models.logits(torch_models.load(model_check.BUNDLED, half=False), self.padded)
        self.reference = of_valid_tokens(reference, self.lengths)

    def check(self, network: Network) -> None:
        """Build one network, take its logits, and let it answer."""
        engine, name = self.engine(network), network.name
        try:
            if not engine.is_file():
                self.record.forget(f"build: {name}")
            if self.record.step(f"build: {name}", self.build, network, self.args.engine_python, engine) is None:
                return
            if "networks" in self.args.suite:
                self.record.step(f"logits: {name}", self.compare, network)
            if "answers" in self.args.suite and network.answers:
                self.record.step(f"answers: {name}", self.answer, network)
        except OutOfTime:
            pass

    def engine(self, network: Network) -> Path:
        return self.work / network.file_name

    def compare(self, network: Network) -> dict:
        """The distance to PyTorch's float32, which Megatron's network has no likeness in; the logits are kept."""
        ours = self.logits(network, self.args.engine_python, self.engine(network))
        np.savez(self.engine(network).with_suffix(".npz"), *ours)
        if not all(np.isfinite(logits).all() for logits in ours):
            raise DemoBertError("its logits are not finite")
        return {} if network.checkpoint == "megatron" else distance(ours, self.reference)

    def simulate(self, network: Network) -> None:
        """The distance of an int8 network's kept logits to what the double computes, on the first windows.

        And how far the double itself is from that with its floats in half: by so much the engine's may be, too.
        """
        with contextlib.suppress(OutOfTime):
            self.record.step(f"double: {network.name}", self._simulate, network)

    def _simulate(self, network: Network) -> dict:
        with self.locked(self.work / "double.lock"):  # several are simulated at once
            double = double_python(self.work)
        simulated = self.engine(network).with_suffix(".double")
        self.build(network, double, simulated)
        theirs = self.logits(network, double, simulated, DOUBLE_BATCHES)
        in_half = self.logits(network, double, simulated, DOUBLE_BATCHES, os.environ | {DOUBLE_FLOATS: "half"})
        return distance(self.kept(network.name)[: len(theirs)], theirs) | {"in_half": distance(in_half, theirs)}

    def fake_quantize(self, checkpoint: str, names: list[str]) -> dict:
        """PyTorch's network whose dense layers alone are rounded: its distance to float32, and the named networks' to it."""
        cache = self.checkpoints[CALIBRATION] if checkpoint == "bundled" else None
        batches = torch_models.fake_quantized_logits(self.checkpoints[checkpoint], cache, self.padded)
        fake = of_valid_tokens(batches, self.lengths)
        kept = {name: self.kept(name) for name in names}
        found = {name: distance(logits, fake) for name, logits in kept.items() if logits}
        return {"PyTorch, fake-quantized": distance(fake, self.reference), **found}

    def kept(self, name: str) -> list[np.ndarray] | None:
        """The logits that `compare` kept."""
        path = self.engine(Network(name, ())).with_suffix(".npz")
        if not path.is_file():
            return None
        with np.load(path) as file:
            return [file[key] for key in file.files]

    def answer(self, network: Network) -> dict:
        """F1 and exact match of all the questions."""
        engine = self.engine(network)
        script = "inference.py" if network.layout == "padded" else "inference_varseqlen.py"
        predictions = engine.with_suffix(".predictions.json")
        command = [
            self.args.engine_python,
            ROOT / script,
            "-e",
            engine,
            "-sq",
            self.squad,
            "-o",
            predictions,
            "--fresh",
        ]
        self.run([*command, "-b", BATCH], script)
        judge = ROOT / "squad" / "evaluate-v1.1.py"
        return json.loads(self.run([sys.executable, judge, self.squad, predictions], judge.name).splitlines()[-1])

    def compare_pairs(self) -> dict:
        """The distances between networks that are to compute the same."""
        kept = {pair: [self.kept(name) for name in pair] for pair in PAIRS}
        return {" / ".join(pair): distance(*logits) for pair, logits in kept.items() if all(logits)}


#: Padded and packed forms of one network.
PAIRS = (
    ("plugin, packed fp16", "plugin, fp16"),
    ("plugin, packed int8", "plugin, int8 -iln -imh"),
    ("plugin, packed QAT int8", "plugin, QAT int8 -iln -imh"),
    ("plugin, interleaved int8", "plugin, packed int8"),
    ("plugin, interleaved QAT int8", "plugin, packed QAT int8"),
    ("native, packed fp16", "native, fp16"),
)

#: Checkpoints that compute the same with the same ranges.
_SAME_RANGES = {"bundled": ("bundled", "wide"), "qat": ("qat",), "qat all": ("qat all", "wide qat")}


def run(args, squad: Path) -> int:
    """The parts of `args.suite`; the exit code: 1 where a step failed."""
    record = Record(args.json or args.folder / "suite.json", args.minutes)
    # TensorRT 8.6 has tens of thousands of kernels, and CUDA 12.0 loads all of them unless it is told not to.
    os.environ.setdefault("CUDA_MODULE_LOADING", "LAZY")
    torch = torch_models.import_torch()
    record.note(machine={"gpu": torch.cuda.get_device_name(0), "torch": torch.__version__})
    if args.tensorrt:  # what needs none may have been done before, or after
        record.note(tensorrt=args.tensorrt)
    suite = Suite(args, squad, record)
    try:
        if {"networks", "answers"} & set(args.suite):
            check_networks(suite)
        if {"table", "tried", "loadgen"} & set(args.suite):
            from scripts.gpu_checking import loadgen, table

            for part, work in (("loadgen", loadgen.measure), ("table", table.fill), ("tried", table.try_out)):
                if part in args.suite:
                    work(suite)
    except OutOfTime:
        cli.note("The minutes are over: the same command goes on")
    failed = [key for key, entry in record.content["steps"].items() if "error" in entry]
    for key in failed:
        print(f"FAILED: {key}: {record.content['steps'][key]['error']}")
    print(f"{len(record.content['steps']) - len(failed)} steps done, {len(failed)} failed: {record.path}")
    return 1 if failed else 0


def check_networks(suite: Suite) -> None:
    """Several at once: their times are not taken, and most of each is one core's work."""
    suite.make_checkpoints()
    suite.prepare_windows()
    wanted = [network for network in NETWORKS if suite.wanted(network.name)]
    with ThreadPoolExecutor(suite.args.jobs) as pool:
        list(pool.map(suite.check, wanted))
        simulated = [network for network in wanted if not network.exact and suite.kept(network.name)]
        list(pool.map(suite.simulate, simulated if "networks" in suite.args.suite else []))
    suite.record.forget("pairs")
    suite.record.step("pairs", suite.compare_pairs)
    for checkpoint, alike in _SAME_RANGES.items():
        names = [one.name for one in simulated if one.checkpoint in alike]
        if names:
            suite.record.forget(f"fake-quantized: {checkpoint}")
            suite.record.step(f"fake-quantized: {checkpoint}", suite.fake_quantize, checkpoint, names)


def of_valid_tokens(batches: list, lengths: list) -> list[np.ndarray]:
    """Batches [B, S, 2] → windows [length, 2]."""
    rows = [row for batch in batches for row in batch]
    return [np.asarray(row[:length], np.float64) for row, length in zip(rows, lengths, strict=True)]


def distance(ours: list, theirs: list) -> dict:
    """How far logits are from others: the largest and the root mean square difference, and the others' deviation."""
    difference = np.concatenate([np.ravel(a - b) for a, b in zip(ours, theirs, strict=True)])
    best = [(a.argmax(axis=0) != b.argmax(axis=0)).any() for a, b in zip(ours, theirs, strict=True)]
    return {
        "windows": len(ours),
        "largest": float(np.abs(difference).max()),
        "rms": float(np.sqrt(np.mean(difference**2))),
        "deviation": float(np.std(np.concatenate([np.ravel(b) for b in theirs]))),
        "other_argmax": int(np.sum(best)),
    }


def double_python(folder: Path) -> str:
    """A program that runs Python's scripts against the tests' double of TensorRT."""
    path = folder / "double_python"
    if not path.is_file():
        temporary = path.with_name(f"double_python.{os.getpid()}.tmp")
        temporary.write_text(
            "#!/bin/sh\nexport TENSORRT_DOUBLE_COMPUTE_CAPABILITY=9.0\n"
            f'PYTHONPATH="{ROOT}" exec "{sys.executable}" -m tests.tensorrt_double {DOUBLE} "$@"\n',
            encoding="utf-8",
        )
        temporary.chmod(0o755)
        temporary.replace(path)
    return str(path)
