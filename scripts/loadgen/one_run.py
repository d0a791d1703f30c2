"""One run of LoadGen: what it is told, and what it says in the end."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import mlperf_loadgen as loadgen

from helpers.errors import DemoBertError

#: The model of LoadGen's own table of rules (mlperf.conf, which is part of the package) whose rules are taken.
_MODEL = "bert"

#: LoadGen's log of facts: each line is this and JSON.
_LOG, _LINE = "mlperf_log_detail.txt", ":::MLLOG "

#: Per cent → the name of the latency in the log, in ns.
_PERCENTILES = {percent: f"result_{percent}.00_percentile_latency_ns" for percent in (50, 90, 99)}

#: The rate of each scenario, in samples a second, by its name in the log.
_RATES = {
    "SingleStream": "result_qps_with_loadgen_overhead",
    "Offline": "result_samples_per_second",
    "Server": "result_completed_samples_per_sec",
}


@dataclass(frozen=True)
class RunSpec:
    """What LoadGen is told. Rules that are not here are MLPerf's for BERT.

    folder        where its logs go; it is made
    min_duration  s
    min_queries   Offline: samples; None: LoadGen's own
    rate          samples/s. Server: at which they come; Offline: at which they are expected to be answered
    latency_ms    SingleStream: in which one is expected to be answered; Server: the bound of 99 of 100
    seeds         TestSettings' name → seed, for those that are not MLPerf's
    """

    scenario: str
    mode: str
    folder: str
    min_duration: float
    min_queries: int | None = None
    rate: float | None = None
    latency_ms: float | None = None
    seeds: dict = field(default_factory=dict)

    def settings(self, count: int) -> loadgen.TestSettings:
        """For `count` samples, all of which are in memory. LoadGen asks for 10 % more than rate and duration make."""
        settings = loadgen.TestSettings()
        settings.FromConfig("", _MODEL, self.scenario, 0)  # 0: the table in the package
        settings.scenario = getattr(loadgen.TestScenario, self.scenario)
        settings.mode = getattr(loadgen.TestMode, self.mode)
        settings.performance_sample_count_override = count
        settings.min_duration_ms = round(self.min_duration * 1e3)
        if self.min_queries is not None:
            settings.min_query_count = self.min_queries
        if self.rate is not None:
            settings.server_target_qps = settings.offline_expected_qps = self.rate
        if self.latency_ms is not None:
            settings.server_target_latency_ns = settings.single_stream_expected_latency_ns = round(
                self.latency_ms * 1e6
            )
        for name, seed in self.seeds.items():
            setattr(settings, name, seed)
        return settings


@dataclass(frozen=True)
class RunResult:
    """What LoadGen says of a run; latencies in ms, rates in samples/s.

    valid          its verdict; None: AccuracyOnly has none
    reasons        why it is not valid, in its words
    rate           answered, over the whole run
    target         Server: asked for
    bound_ms       Server: what 99 of 100 had to be answered in
    within_bound   Server: whether they were, whatever else the verdict says
    long_enough    whether it took the duration that was asked for
    samples        that were answered
    percentiles    per cent, as text → latency; {} of AccuracyOnly, and of Offline, whose one query has one latency
    """

    scenario: str
    mode: str
    folder: str
    valid: bool | None
    reasons: str = ""
    rate: float | None = None
    target: float | None = None
    bound_ms: float | None = None
    within_bound: bool = True
    long_enough: bool = True
    samples: int = 0
    mean_ms: float | None = None
    min_ms: float | None = None
    percentiles: dict = field(default_factory=dict)
    loadgen: str = ""


def run_loadgen(spec: RunSpec, system, count: int) -> None:
    """Let LoadGen ask `system` (issue, flush) for some of `count` samples; its logs are in `spec.folder` then."""
    Path(spec.folder).mkdir(parents=True, exist_ok=True)
    logs = loadgen.LogSettings()
    logs.log_output = loadgen.LogOutputSettings()
    logs.log_output.outdir = spec.folder
    logs.log_output.copy_summary_to_stdout = False
    logs.enable_trace = False
    library = loadgen.ConstructQSL(count, count, _all_are_in_memory, _all_are_in_memory)
    under_test = loadgen.ConstructSUT(system.issue, system.flush)
    try:
        loadgen.StartTestWithLogSettings(under_test, library, spec.settings(count), logs)
    finally:
        loadgen.DestroySUT(under_test)
        loadgen.DestroyQSL(library)


def _all_are_in_memory(indices: list[int]) -> None:
    """LoadGen says what to load, and what to let go of; all samples are in memory from the start to the end."""


def read_result(spec: RunSpec) -> RunResult:
    """Of the logs in `spec.folder`. Raises DemoBertError where LoadGen wrote none that can be read."""
    try:
        facts, errors = _read_log(Path(spec.folder) / _LOG)
        performance = _performance(spec, facts, errors) if spec.mode == "PerformanceOnly" else {"valid": None}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DemoBertError(f"LoadGen's log in {spec.folder} can't be read: {error!r}") from error
    version = str(facts.get("loadgen_version", "")).partition(" ")[0]
    return RunResult(spec.scenario, spec.mode, spec.folder, loadgen=version, **performance)


def _performance(spec: RunSpec, facts: dict, errors: list[str]) -> dict:
    """Fields of RunResult. Raises KeyError."""
    server, offline = spec.scenario == "Server", spec.scenario == "Offline"
    reasons = str(facts.get("result_invalid_reason", "")).strip()
    count = facts["effective_min_sample_count"] if offline else facts["result_query_count"]
    latencies = {str(percent): facts[name] / 1e6 for percent, name in _PERCENTILES.items()}
    return {
        "valid": facts["result_validity"] == "VALID" and not errors,
        "reasons": " ".join([reasons, *errors]).strip(),
        "rate": float(facts[_RATES[spec.scenario]]),
        "target": spec.rate if server else None,
        "bound_ms": spec.latency_ms if server else None,
        "within_bound": bool(facts.get("result_perf_constraints_met", True)),
        "long_enough": bool(facts["result_min_duration_met"]),
        "samples": int(count),
        "mean_ms": None if offline else facts["result_mean_latency_ns"] / 1e6,
        "min_ms": None if offline else facts["result_min_latency_ns"] / 1e6,
        "percentiles": {} if offline else latencies,
    }


def _read_log(path: Path) -> tuple[dict, list[str]]:
    """(what is said under each name, the last of several; what is said as an error). Raises OSError, ValueError."""
    facts, errors = {}, []
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            if not line.startswith(_LINE):
                continue
            fact = json.loads(line[len(_LINE) :])
            facts[fact["key"]] = fact["value"]
            if fact["metadata"]["is_error"]:
                errors.append(str(fact["value"]))
    return facts, errors
