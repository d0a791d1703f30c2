"""What scripts/mlperf.py does: LoadGen's scenarios in their order, the tables, the exit code."""

import dataclasses
import importlib.util
import os
import tempfile
from pathlib import Path

from tqdm import tqdm

from helpers import cli
from helpers.engine_card import EngineCard
from helpers.errors import DemoBertError, missing_package
from helpers.files import require_file
from helpers.outputs import check_outputs, input_files, write_json
from scripts.loadgen import search
from scripts.loadgen.process import LoadGenProcess

#: What the process is told of the arguments.
_REQUEST = ("engine", "squad", "lengths", "sequence_length", "batch_size", "max_query_length", "doc_stride")
_REQUEST += ("vocab_file", "trust_engine", "config_dir", "random_seed", "workers", "verbose")

#: Samples of the short runs that tell what to expect: so many, and so many batches for each thread that makes them.
_PILOT_SAMPLES, _PILOT_BATCHES = 100, 8

#: Of MLPerf's rules: samples of an Offline run, where the data has more.
_OFFLINE_SAMPLES = 24_576

#: Server: where the search begins, as a share of the rate of Offline.
_FIRST_SHARE = 0.85

#: Short runs of the search that may fail at one rate before it has failed.
_TRIES = 2

#: Whole runs at most that are begun again: with another rate, or another expectation of it.
_MOST_RUNS = 6

#: The share that Server's rate goes down by from one whole run to the next, at most.
_LARGEST_STEP = 0.08

#: Queries of a run of the search, and of Server's whole run, at least: 99 of 100 mean little of fewer, and LoadGen's rule
#: for ending early ("early stopping") asks for 662 where none of them is too late.
_SEARCH_QUERIES, _SERVER_QUERIES = 300, 1000

#: Where the bound is kept, but of too few queries to be sure, the next run has twice as many, unless it had so many.
_MANY_QUERIES = 3000


def measure(args) -> int:
    """Run all that is asked for; the exit code: 1 where LoadGen says INVALID, or F1 is too low. Raises DemoBertError."""
    if importlib.util.find_spec("mlperf_loadgen") is None:
        raise missing_package("mlperf_loadgen", "-r requirements-loadgen.txt", "scripts/mlperf.py")
    folder = _checked_outputs(args)
    measurement = Measurement(args, folder)
    if "SingleStream" in args.scenario:
        with _process(args, throughput=False) as process:
            measurement.single_stream(process)
    if {"Offline", "Server"} & set(args.scenario):
        with _process(args, throughput=True) as process:
            measurement.offline_and_server(process)
    return measurement.report()


def _checked_outputs(args) -> Path:
    """The folder of -o, made. Raises DemoBertError for one that holds anything, before any work."""
    folder = Path(args.output)
    if folder.exists() and not folder.is_dir():
        raise DemoBertError(f"-o {folder} is there, and is no folder: name another")
    if not folder.parent.is_dir():
        raise DemoBertError(f"-o: the folder {folder.parent} does not exist; create it first")
    if args.float_engine:  # it is asked last, after all that takes minutes
        EngineCard.read(EngineCard.path_for(require_file(args.float_engine, "float engine")))
    named = args.squad, args.lengths, args.float_engine, args.vocab_file, args.config_dir
    inputs = [file for path in named for file in input_files(path)]
    check_outputs({"--json": args.json}, (*EngineCard.set_of(args.engine), *inputs))
    try:
        folder.mkdir(exist_ok=True)
        if os.listdir(folder):
            raise DemoBertError(f"-o {folder} is not empty: name a new folder, logs are not overwritten")
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise DemoBertError(f"-o: can't write into {folder}: {error.strerror}") from error
    return folder


def _process(args, throughput: bool, **other) -> LoadGenProcess:
    request = {name: getattr(args, name) for name in _REQUEST} | {"throughput": throughput} | other
    cli.note(f"Loading {request['engine']}, cutting windows, warming up")
    process = LoadGenProcess(request)
    facts = process.facts
    cli.note(facts["engine"])
    cli.note(
        f"{facts['samples']} windows of {facts['mean_length']:.0f} tokens on average, {facts['batch_size']} at once"
    )
    return process


class Measurement:
    """The runs so far. `results` are RunResult's, of the performance runs; `trials` those of the search."""

    def __init__(self, args, folder: Path):
        from scripts.loadgen import one_run, report  # not before LoadGen is known to be installed

        self._args, self._folder, self._one_run, self._report = args, folder, one_run, report
        self.results, self.trials, self.scores = [], [], []
        self._facts: dict = {}
        seeds = {"qsl_rng_seed": args.qsl_seed, "sample_index_rng_seed": args.sample_seed}
        seeds["schedule_rng_seed"] = args.schedule_seed
        self._seeds = {name: seed for name, seed in seeds.items() if seed is not None}

    def single_stream(self, process: LoadGenProcess) -> None:
        """One sample after the other."""
        self._facts = process.facts
        if "PerformanceOnly" in self._args.mode:
            pilot = self._run(
                process, "SingleStream", "pilot", min_duration=0, min_queries=_PILOT_SAMPLES, latency_ms=1
            )
            # LoadGen makes a list of queries for the whole duration by it; one that is too long is no harm.
            expected = pilot.min_ms / 4
            least = self._args.min_queries
            self.results.append(self._full(process, "SingleStream", latency_ms=expected, min_queries=least))
        self._accuracy(process, "SingleStream")

    def offline_and_server(self, process: LoadGenProcess) -> None:
        """All samples at once; samples that come by themselves."""
        self._facts, args = process.facts, self._args
        rate = args.target_qps
        if "PerformanceOnly" in args.mode and ("Offline" in args.scenario or not rate):
            rate = self._pilot(process)
        if "Offline" in args.scenario:
            if "PerformanceOnly" in args.mode:
                rate = self._offline(process, rate)
            self._accuracy(process, "Offline")
        if "Server" in args.scenario:
            if "PerformanceOnly" in args.mode:
                rate = self._server(process, rate)
            self._accuracy(process, "Server", args.target_qps or rate)

    def _pilot(self, process: LoadGenProcess) -> float:
        """Samples a second, roughly."""
        count = max(_PILOT_SAMPLES, _PILOT_BATCHES * self._facts["windows_at_once"])
        return self._run(process, "Offline", "pilot", min_duration=0, min_queries=count, rate=1).rate

    def _offline(self, process: LoadGenProcess, rate: float) -> float:
        """Its rate. LoadGen asks for 10 % more samples than the expected rate makes of the duration."""
        least = self._args.min_queries or min(self._facts["samples"], _OFFLINE_SAMPLES)
        for number in range(_MOST_RUNS):
            result = self._full(process, "Offline", number, rate=rate, min_queries=least)
            if result.long_enough:
                break
            rate = 1.1 * max(rate, result.rate)  # it was faster than expected: more samples
        self.results.append(result)
        return result.rate

    def _server(self, process: LoadGenProcess, offline_rate: float) -> float:
        """The rate at which it passes, or that of the last run that did not. The steps down grow.

        A run that keeps to the bound is INVALID where so few queries could have done so by luck ("early stopping").
        """
        args, bound, least = self._args, self._bound(), self._args.min_queries or _SERVER_QUERIES
        rate = args.target_qps or self._search(process, offline_rate, bound)
        for number in range(_MOST_RUNS):
            result = self._full(process, "Server", number, rate=rate, latency_ms=bound, min_queries=least)
            unsure = result.within_bound and not result.reasons and result.samples < _MANY_QUERIES
            if result.valid or args.target_qps and not unsure:
                break
            if unsure:
                least = 2 * result.samples
            else:
                rate *= 1 - min(_LARGEST_STEP, args.search_precision * 2**number)
        self.results.append(result)
        return result.target

    def _bound(self) -> float:
        """ms in which 99 of 100 queries have to be answered."""
        if self._args.latency_bound:
            return self._args.latency_bound
        (single,) = (result for result in self.results if result.scenario == "SingleStream")
        return self._args.bound_medians * single.percentiles["50"]

    def _search(self, process: LoadGenProcess, offline_rate: float, bound: float) -> float:
        """The highest rate at which short runs keep to the bound; the lowest that was tried, where none does.

        A rate has failed when it failed twice: whatever else the machine did meanwhile would set the limit else.
        """

        def passes(rate: float) -> bool:
            return any(self._trial(process, rate, bound) for _ in range(_TRIES))

        found = search.highest_passing(passes, _FIRST_SHARE * offline_rate, self._args.search_precision)
        return found or min(trial.target for trial in self.trials)

    def _trial(self, process: LoadGenProcess, rate: float, bound: float) -> bool:
        """Whether one short run keeps to the bound."""
        name, least = f"search/{len(self.trials) + 1}", self._args.min_queries or _SEARCH_QUERIES
        values = {"rate": rate, "latency_ms": bound, "min_queries": least, "min_duration": self._args.search_duration}
        trial = self._run(process, "Server", name, **values)
        self.trials.append(trial)
        verdict = "passes" if trial.within_bound else "fails"
        cli.note(f"    {verdict}: 99 % in {trial.percentiles['99']:.2f} ms of {bound:.2f}")
        return trial.within_bound

    def _full(self, process: LoadGenProcess, scenario: str, number: int = 0, **values):
        """A run that counts, unless another is begun after it: the logs of the last are in SCENARIO/performance."""
        if number:
            os.rename(self._folder / scenario / "performance", self._folder / scenario / f"discarded_{number}")
        result = self._run(process, scenario, "performance", min_duration=self._args.min_duration, **values)
        verdict = "VALID" if result.valid else f"INVALID: {self._report.why_invalid(result)}"
        cli.note(f"    {verdict} {result.rate:.2f} samples/s")
        return result

    def _accuracy(self, process: LoadGenProcess, scenario: str, rate: float | None = None) -> None:
        if "AccuracyOnly" not in self._args.mode:
            return
        result = self._run(process, scenario, "accuracy", mode="AccuracyOnly", min_duration=0, rate=rate)
        score = process.ask("score", str(Path(result.folder) / "mlperf_log_accuracy.json"))
        write_json(Path(result.folder) / "predictions.json", score.pop("predictions"))
        self.scores.append({"scenario": scenario, **score})

    def _run(self, process: LoadGenProcess, scenario: str, name: str, mode: str = "PerformanceOnly", **values):
        """One run of LoadGen, with its progress; RunSpec has the names of `values`. Raises DemoBertError."""
        folder = str((self._folder / scenario / name).absolute())
        spec = self._one_run.RunSpec(scenario, mode, folder, seeds=self._seeds, **values)
        at = f" at {spec.rate:.2f} queries/s" if scenario == "Server" and spec.rate else ""
        cli.note(f"{scenario}, {mode}, {name}{at}: {folder}")
        total = self._facts["samples"] if mode == "AccuracyOnly" else None
        with tqdm(unit="sample", total=total, leave=False, disable=None) as progress:
            fields = process.ask("run", dataclasses.asdict(spec), lambda count: progress.update(count - progress.n))
        return self._one_run.RunResult(**fields)

    def _reference(self) -> float | None:
        """The F1 that the scores are held against, in percent."""
        args = self._args
        if not args.float_engine or not self.scores:
            return args.reference_f1
        with _process(args, throughput=True, engine=args.float_engine) as process:
            f1 = process.ask("score")["f1"]
        if not f1:
            raise DemoBertError(f"the F1 of {args.float_engine} is 0: nothing can be held against it")
        return f1

    def report(self) -> int:
        """Print the tables, write --json; the exit code."""
        args, report, reference = self._args, self._report, self._reference()
        left_out = report.departures(args, self._facts["samples"])
        if self.results:
            print("\n".join([report.performance_table(self.results), "", *report.remarks(self.results)]))
        if self.scores:
            print(f"\n{report.accuracy_table(self.scores, reference)}")
        if left_out:
            print(f"\nNot by MLPerf's rules: {'; '.join(left_out)}.", flush=True)
        if args.json:
            write_json(args.json, self._as_json(reference, left_out))
        accurate = all(reference is None or 100 * row["f1"] / reference >= args.accuracy_target for row in self.scores)
        return 0 if accurate and all(result.valid for result in self.results) else 1

    def _as_json(self, reference: float | None, left_out: list[str]) -> dict:
        results, trials = ([dataclasses.asdict(one) for one in some] for some in (self.results, self.trials))
        facts = {"facts": self._facts, "departures": left_out, "results": results, "search": trials}
        return facts | {"accuracy": self.scores, "reference_f1": reference}
