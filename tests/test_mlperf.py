"""scripts/mlperf.py, with the real LoadGen and runs of a second or less. How fast anything is, is not looked at."""

import dataclasses
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from helpers.backends.base import Engine
from helpers.engine_card import EngineCard
from helpers.errors import DemoBertError
from helpers.squad import read_squad
from tests.conftest import ROOT
from tests.test_scripts import DATA, evaluate, xquad

pytest.importorskip("mlperf_loadgen", reason="LoadGen is not installed: pip install -r requirements-loadgen.txt")

from scripts.loadgen import search
from scripts.loadgen.one_run import RunSpec, read_result, run_loadgen
from scripts.loadgen.samples import random_features, read_log
from scripts.loadgen.system import Limits, System, Waiting, offline_groups

#: Runs that end soon.
SHORT = ("--min-duration", 0.2, "--search-duration", 0.2, "--min-queries", 70, "--search-precision", 0.3)

LOGS = {"mlperf_log_summary.txt", "mlperf_log_detail.txt", "mlperf_log_accuracy.json"}


class FakeEngine(Engine):
    """Logits that tell the tokens: each one's id and segment. `fails_after` so many batches it raises."""

    def __init__(self, card: EngineCard, fails_after: int | None = None):
        super().__init__(card)
        self.batches, self._fails_after = [], fails_after

    def _infer(self, batch):
        if self._fails_after is not None and len(self.batches) >= self._fails_after:
            raise DemoBertError("the engine gave up")
        self.batches.append(batch)
        return np.stack((batch.input_ids, batch.segment_ids), axis=-1).astype(np.float32)

    def timed_run(self, batch):
        raise NotImplementedError

    def describe(self):
        return "fake"


@pytest.fixture
def card(small_engine):
    return EngineCard.read(EngineCard.path_for(small_engine))


@pytest.fixture
def lengths_file(tmp_path, rng):
    path = tmp_path / "lengths.txt"
    path.write_text("\n".join(map(str, rng.integers(1, 65, 20))))
    return path


def started(engine: FakeEngine, lengths, batch_size: int, errors: list) -> tuple[System, list]:
    features = random_features(engine, lengths, 3)
    return System(engine, features, Limits.of(engine.card, batch_size, 64), 3, errors.append), features


@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("scenario", ["SingleStream", "Offline", "Server"])
@pytest.mark.parametrize("batch_size", [1, 5])
def test_each_sample_is_answered_once_by_its_own_logits(card, rng, tmp_path, layout, scenario, batch_size):
    engine = FakeEngine(dataclasses.replace(card, layout=layout))
    system, features = started(engine, rng.integers(1, 65, 50).tolist(), batch_size, errors := [])
    spec = RunSpec(scenario, "AccuracyOnly", str(tmp_path / "logs"), 0, rate=2000.0, latency_ms=10.0)
    system.begin(scenario)
    run_loadgen(spec, system, len(features))
    system.close()
    assert not errors and system.answered == len(features)
    assert {path.name for path in (tmp_path / "logs").iterdir()} >= LOGS
    logged = list(read_log(tmp_path / "logs" / "mlperf_log_accuracy.json"))
    assert sorted(place for place, _ in logged) == list(range(len(features)))
    for place, logits in logged:
        assert logits[:, 0].tolist() == features[place].input_ids.tolist()
        assert logits[:, 1].tolist() == features[place].segment_ids.tolist()
    assert all(batch.batch_size <= (8 if layout == "packed" else batch_size) for batch in engine.batches)
    assert scenario != "SingleStream" or {batch.batch_size for batch in engine.batches} == {1}


@pytest.mark.parametrize("scenario", ["SingleStream", "Offline", "Server"])
def test_a_failure_is_told_once_and_loadgen_ends(card, tmp_path, scenario):
    """All its samples are answered, by nothing."""
    system, features = started(FakeEngine(card, fails_after=4), [9] * 30, 2, errors := [])
    system.begin(scenario)
    run_loadgen(RunSpec(scenario, "PerformanceOnly", str(tmp_path), 0.1, 30, 500.0, 10.0), system, len(features))
    system.close()
    assert [str(error) for error in errors] == ["the engine gave up"]
    assert read_result(RunSpec(scenario, "PerformanceOnly", str(tmp_path), 0.1)).samples >= 30


def test_offline_groups_are_full_and_alike(rng):
    lengths = rng.integers(1, 385, int(rng.integers(1, 3000)))
    limits = Limits(int(rng.integers(1, 50)), int(rng.integers(384, 5000)))
    for packed in (False, True):
        groups = offline_groups(lengths, limits, packed)
        places = np.concatenate(groups)
        assert sorted(places.tolist()) == list(range(len(lengths)))
        assert (np.diff(lengths[places]) <= 0).all() and max(map(len, groups)) <= limits.windows
        for group, following in zip(groups, groups[1:]):
            tokens = lengths[group].sum()
            assert not packed or tokens <= limits.tokens
            full = len(group) == limits.windows or (packed and tokens + lengths[following[0]] > limits.tokens)
            assert full


@pytest.mark.parametrize("packed", [False, True])
def test_what_waits_longest_is_taken_first(rng, packed):
    lengths = rng.integers(1, 385, 200).tolist()
    limits = Limits(int(rng.integers(1, 9)), 1000)
    waiting = Waiting(lengths, [-(-length // 16) * 16 for length in lengths], limits, packed)
    left = list(range(len(lengths)))
    waiting.add([(-place, place) for place in left])
    while len(waiting):
        taken = [place for _, place in waiting.take()]
        assert taken[0] == left[0] and len(set(taken)) == len(taken) <= limits.windows
        assert not packed or (sum(lengths[place] for place in taken) <= 1000 and taken == left[: len(taken)])
        left = [place for place in left if place not in taken]
        assert len(waiting) == len(left)
    assert not left


@pytest.mark.parametrize("packed", [False, True])
def test_what_is_late_waits_for_all_that_is_not(rng, packed):
    count, bound, lasts = 60, 1.0, 0.25
    waiting = Waiting([10] * count, [16] * count, Limits(1, 10), packed)
    waiting.bound = bound
    arrivals = np.sort(rng.uniform(0, 3, count)).tolist()
    for place, arrival in enumerate(arrivals):
        waiting.add([(place, place)], arrival)
    waiting.took([(0, 0)], lasts)
    now = float(rng.uniform(1.5, 2.5))
    taken = [waiting.take(now)[0][1] for _ in range(count)]
    late = [place for place in range(count) if now + lasts > arrivals[place] + bound]
    assert 0 < len(late) < count and taken == [*range(len(late), count), *late]
    waiting.add([(0, 0), (1, 1)], 0.0)
    waiting.bound = None  # Offline's, and what is not to be answered in any time
    assert [waiting.take(99.0)[0][1] for _ in range(2)] == [0, 1]


def test_the_search_finds_the_highest_rate(rng):
    for limit in (10.0 ** rng.uniform(0, 4, 20)).tolist():
        tried = []

        def passes(rate):
            tried.append(rate)
            return rate <= limit

        found = search.highest_passing(passes, limit * float(rng.uniform(0.6, 2)), 0.02)
        assert found <= limit <= 1.021 * found and len(tried) < 20
    assert search.highest_passing(lambda rate: False, 5, 0.02) is None
    assert search.highest_passing(lambda rate: True, 5, 0.02) > 20


@pytest.fixture(scope="module")
def measured(small_engine, tmp_path_factory):
    """All three scenarios on a tiny engine: (exit code, stdout, stderr, folder, what --json wrote)."""
    folder = tmp_path_factory.mktemp("measured")
    (folder / "lengths.txt").write_text("7 64 30\n12 500\n")
    # The bound is a whole minute: whatever else runs here, the rate that Offline has is served.
    flags = (*SHORT, "--latency-bound", 60_000, "--lengths", folder / "lengths.txt", "--json", folder / "figures.json")
    result = run_script("-e", small_engine, "-o", folder / "logs", *flags)
    return result, folder / "logs", json.loads((folder / "figures.json").read_text())


def run_script(*arguments, environment=None):
    command = [sys.executable, str(ROOT / "scripts" / "mlperf.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ | (environment or {}))


def test_all_scenarios_are_valid(measured):
    result, folder, figures = measured
    assert result.returncode == 0, result
    for scenario in ("SingleStream", "Offline", "Server"):
        assert re.search(rf"^\| {scenario} \| VALID \| [\d.]+ \|", result.stdout, re.M)
        summary = (folder / scenario / "performance" / "mlperf_log_summary.txt").read_text()
        assert f"Scenario : {scenario}\n" in summary and "Result is : VALID" in summary
        assert "qsl_rng_seed : 2085463073848966840" in summary  # MLPerf's published one
    assert [row["scenario"] for row in figures["results"]] == ["SingleStream", "Offline", "Server"]
    assert all(row["valid"] and row["samples"] >= 64 for row in figures["results"])
    assert figures["facts"]["samples"] == 5 and figures["facts"]["mean_length"] == (7 + 64 + 30 + 12 + 64) / 5
    assert "Server / Offline: " in result.stdout and "MLPerf's 600 s" in result.stdout


def test_every_trial_of_the_search_is_shown(measured):
    result, folder, figures = measured
    assert figures["search"] and figures["results"][2]["target"] <= max(trial["target"] for trial in figures["search"])
    for number, trial in enumerate(figures["search"], start=1):
        said = f"Server, PerformanceOnly, search/{number} at {trial['target']:.2f} queries/s"
        assert said in result.stderr and (folder / "Server" / "search" / str(number) / "mlperf_log_detail.txt").exists()


def test_a_bound_that_can_t_be_kept_is_invalid(script, small_engine, lengths_file, tmp_path):
    flags = ("--scenario", "Server", "--latency-bound", 0.0001, "--target-qps", 200, "--lengths", lengths_file, *SHORT)
    result = script("scripts.mlperf", "-e", small_engine, "-o", tmp_path / "logs", *flags)
    assert (
        result.code == 1
        and "| Server | INVALID |" in result.out
        and "Server is INVALID: Reduce target QPS" in result.out
    )


def test_f1_is_the_evaluator_s(script, bundled_engine, tmp_path):
    """On some of XQuAD's questions: by LoadGen's log, by inference.py and squad/evaluate-v1.1.py."""
    content = json.loads(xquad().read_text(encoding="utf-8"))
    kept = [paragraph for article in content["data"] for paragraph in article["paragraphs"]][::40]
    some = tmp_path / "some.json"
    some.write_text(json.dumps({"version": "1.1", "data": [{"title": "some", "paragraphs": kept}]}))
    assert len(read_squad(some).examples) >= 24
    assert script("inference.py", "-e", bundled_engine, "-sq", some, "-o", tmp_path / "p.json").code == 0
    wanted = json.loads(evaluate("evaluate-v1.1.py", some, tmp_path / "p.json").stdout)
    flags = (
        "--mode",
        "AccuracyOnly",
        "--scenario",
        "Offline",
        "--reference-f1",
        wanted["f1"],
        "--json",
        tmp_path / "j",
    )
    result = script("scripts.mlperf", "-e", bundled_engine, "-o", tmp_path / "logs", "--squad", some, *flags)
    assert result.code == 0 and re.search(r"^\| Offline \| .* \| 100.00 % \| passed \| passed \|$", result.out, re.M)
    (row,) = json.loads((tmp_path / "j").read_text())["accuracy"]
    assert row == {"scenario": "Offline", **wanted}
    predicted = json.loads((tmp_path / "logs" / "Offline" / "accuracy" / "predictions.json").read_text())
    assert predicted == json.loads((tmp_path / "p.json").read_text())


@pytest.mark.parametrize("version", ["1.1", "2.0"])
def test_too_low_an_f1_fails(script, small_engine, tmp_path, version):
    squad = DATA / f"squad_v{version}.json"
    flags = ("--mode", "AccuracyOnly", "--scenario", "SingleStream", "--reference-f1", 99.99, "--squad", squad)
    result = script("scripts.mlperf", "-e", small_engine, "-o", tmp_path / "logs", *flags)
    assert result.code == 1 and "| failed | failed |" in result.out


def test_the_float_engine_is_asked_for_the_reference(script, small_engine, tmp_path):
    flags = ("--mode", "AccuracyOnly", "--scenario", "Offline", "--float-engine", small_engine)
    squad = DATA / "squad_v1.1.json"
    result = script("scripts.mlperf", "-e", small_engine, "-o", tmp_path / "logs", "--squad", squad, *flags, "-b", 2)
    assert result.code == 0 and re.search(r"^\| Offline \| .* \| 100.00 % \| passed \| passed \|$", result.out, re.M)


#: What another process of Python does with its engine, after some batches.
BROKEN = """
from helpers.backends.openvino.engine import OpenVINOEngine
from helpers.errors import DemoBertError
import os
submit, runs = OpenVINOEngine.submit, []
def broken(self, batch):
    runs.append(batch)
    if len(runs) > 40:
        {what}
    return submit(self, batch)
OpenVINOEngine.submit = broken
"""


@pytest.mark.parametrize(
    "what, said",
    [
        ("raise DemoBertError('the engine gave up')", "the engine gave up"),
        ("raise KeyError('a bug')", "KeyError: 'a bug'"),
        ("os.kill(os.getpid(), 9)", "the process that LoadGen runs in ended by itself, with exit code -9"),
    ],
)
def test_an_engine_that_breaks_ends_the_run_in_one_line(small_engine, lengths_file, tmp_path, what, said):
    """At once: not after the ten minutes that LoadGen is asked for."""
    (tmp_path / "sitecustomize.py").write_text(BROKEN.format(what=what))
    flags = ("--scenario", "Server", "--latency-bound", 10, "--target-qps", 100, "--min-duration", 600)
    path = {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    result = run_script(
        "-e", small_engine, "-o", tmp_path / "logs", "--lengths", lengths_file, *flags, environment=path
    )
    assert result.returncode == 1 and result.stderr.splitlines()[-1] == f"mlperf.py: error: {said}", result
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_both_processes(small_engine, lengths_file, tmp_path, number, code):
    mark = f"DEMOBERT_MARK={tmp_path}"
    flags = ("--scenario", "Server", "--latency-bound", 10, "--target-qps", 100, "--min-duration", 600)
    command = [sys.executable, ROOT / "scripts" / "mlperf.py", "-e", small_engine, "-o", tmp_path / "logs", *flags]
    command = [str(word) for word in (*command, "--lengths", lengths_file)]
    environment = os.environ | dict([mark.split("=")])
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # a shell's background jobs ignore SIGINT
    )  # fmt: skip
    lines = []
    for line in process.stderr:
        lines.append(line)
        if line.startswith("Server, "):
            break
    time.sleep(0.3)
    process.send_signal(number)
    lines += process.stderr.readlines()
    assert process.wait(timeout=30) == code and not [line for line in lines if "Traceback" in line], lines
    assert not processes_with(mark)


def processes_with(mark: str) -> list[str]:
    """Of this system that have it in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark.encode() in path.read_bytes():
                found.append(path.parent.name)
        except OSError:  # another's, or gone
            continue
    return found


@pytest.mark.parametrize(
    "flags, said",
    [
        ("", "name the samples with --squad or with --lengths"),
        ("--squad X --lengths X", "name the samples with --squad or with --lengths"),
        ("--lengths X --mode AccuracyOnly", "needs questions"),
        ("--lengths X --scenario Server", "Server needs --latency-bound, or --scenario SingleStream"),
        ("--lengths X --scenario Offline --target-qps 3", "are of the Server scenario"),
        ("--squad X --scenario Server --mode AccuracyOnly", "needs --target-qps"),
        ("--squad X --reference-f1 80", "a reference has no effect"),
        ("--squad X --mode AccuracyOnly --reference-f1 80 --float-engine X", "not both"),
        ("--lengths X --search-precision 0.7", "from above 0 to 0.5"),
    ],
)
def test_arguments_that_make_no_sense(script, tmp_path, flags, said):
    result = script("scripts.mlperf", "-e", "X", "-o", tmp_path / "logs", *flags.split())
    assert result.code == 2 and said in result.error and not (tmp_path / "logs").exists()


def test_what_can_t_be_used_is_one_line(script, small_engine, lengths_file, tmp_path):
    def refused(*arguments):
        result = script("scripts.mlperf", "-e", small_engine, *arguments)
        assert "Traceback" not in result.err
        return result.code, result.error

    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "something").touch()
    (tmp_path / "wrong.txt").write_text("0 1")
    new = tmp_path / "new"
    some = ("--lengths", lengths_file, "--scenario", "Offline")
    assert "is not empty" in refused("-o", tmp_path / "full", *some)[1]
    assert "is no folder" in refused("-o", lengths_file, *some)[1]
    assert "does not exist" in refused("-o", tmp_path / "none" / "logs", *some)[1]
    assert "would replace an input" in refused("-o", new, *some, "--json", lengths_file)[1]
    assert not new.exists()
    assert refused("-o", new, *some, "-b", 9)[0] == 2 and "-b 9 is over" in refused("-o", new, *some, "-b", 9)[1]
    assert "lengths are from 1 on" in refused("-o", new, "--lengths", tmp_path / "wrong.txt", *some[2:])[1]
    assert "file of lengths not found" in refused("-o", new, "--lengths", tmp_path / "no.txt", *some[2:])[1]
    assert list((tmp_path / "full").iterdir()) == [tmp_path / "full" / "something"]


def test_without_loadgen_it_says_what_to_install(script, small_engine, lengths_file, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *more: None if name == "mlperf_loadgen" else find(name, *more)
    )
    result = script("scripts.mlperf", "-e", small_engine, "-o", tmp_path / "logs", "--lengths", lengths_file)
    assert result.code == 1 and result.error.endswith("pip install -r requirements-loadgen.txt")


def test_a_packed_engine_on_the_lengths_of_a_squad_file(script, small_model, tmp_path):
    builder = importlib.import_module("builder_varseqlen")
    engine = tmp_path / "packed.engine"
    builder.main(["-pt", str(small_model), "-o", str(engine), "-b", "8", "-s", "64", "--backend", "openvino"])
    flags = ("--lengths", DATA / "squad_v1.1.json", "--scenario", "Offline", "-b", 8, *SHORT, "--json", tmp_path / "j")
    result = script("scripts.mlperf", "-e", engine, "-o", tmp_path / "logs", *flags)
    assert result.code == 0 and "| Offline | VALID |" in result.out
    facts = json.loads((tmp_path / "j").read_text())["facts"]
    assert facts["batch_size"] == 8 and facts["samples"] >= len(read_squad(DATA / "squad_v1.1.json").examples)


def test_threads_end_with_the_system(card):
    before = threading.active_count()
    system, _ = started(FakeEngine(card), [5, 6], 1, [])
    assert threading.active_count() == before + 3
    system.close()
    assert threading.active_count() == before
