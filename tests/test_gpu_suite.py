"""gpu_check.sh --suite and --report, as far as that goes without a GPU: OpenVINO or the double in TensorRT's place."""

import fcntl
import json
import os
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from helpers.batching import PaddedBatch
from helpers.bert_config import BertConfig
from helpers.builder_flags import add_build_arguments, check_build_arguments
from helpers.calibration_cache import Fingerprint, model_fingerprint, read_cache, write_cache
from helpers.cli import Parser
from helpers.errors import DemoBertError
from helpers.quantization import channel_range_names, range_names
from helpers.weights import load_weights
from helpers.weights.pytorch_names import pytorch_name
from scripts.gpu_checking import check as gpu_check
from scripts.gpu_checking import (
    checkpoints,
    layer_times,
    loadgen,
    other_forms,
    report,
    suite,
    table,
    torch_models,
    torch_times,
)
from scripts.gpu_checking.networks import CALIBRATION, NETWORKS, WIDE_CALIBRATION, build_command
from scripts.gpu_checking.record import OutOfTime, Record
from tests.checkpoints import pytorch_state, write_folder
from tests.conftest import ROOT
from tests.reference_bert import (
    channels_of,
    fake_quantizer,
    random_config,
    random_inputs,
    random_weights,
    reference_logits,
    smoothed,
)
from tests.test_tensorrt_native_int8 import is_dense

SQUAD = ROOT / "tests" / "data" / "squad_v1.1.json"
TINY = BertConfig(768, 1, 12, 128, 30522, gelu="tanh")
CHECKPOINTS = {name: ROOT / name for name in ("bundled", "qat", "wide", "wide qat", "vocabulary")}
CHECKPOINTS["megatron"] = ROOT / "m" / "w.pickle"


# The record


def broken():
    raise DemoBertError("it broke\nin two lines")


def test_a_step_is_done_once_and_a_failure_again(tmp_path):
    path, done = tmp_path / "record.json", []
    for _ in range(2):
        record = Record(path)
        assert record.step("good", lambda: done.append(1) or {"ms": 1.5}) == {"ms": 1.5}
        assert record.step("bad", broken) is None
        assert record.step("worse", lambda: [][done[0]]) is None
    steps = json.loads(path.read_text())["steps"]
    assert done == [1] and steps["good"]["result"] == {"ms": 1.5}
    assert steps["bad"]["error"].startswith("it broke") and "\n" not in steps["bad"]["error"]
    assert steps["worse"]["error"].startswith("IndexError: list index out of range (")
    assert Record(path).step("worse", lambda: 3) == 3


def test_no_step_begins_after_the_minutes(tmp_path, monkeypatch):
    record = Record(tmp_path / "record.json", minutes=1)
    record.step("first", lambda: 1)
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 61)
    with pytest.raises(OutOfTime):
        record.step("second", lambda: 2)
    assert record.step("first", lambda: 3) == 1  # what is there is told at any time
    assert list(json.loads((tmp_path / "record.json").read_text())["steps"]) == ["first"]


@pytest.mark.parametrize("content", ["[]", '{"steps": []}', "nonsense"])
def test_what_is_no_record_is_refused(tmp_path, content):
    path = tmp_path / "record.json"
    path.write_text(content)
    with pytest.raises(DemoBertError, match="record of steps"):
        Record(path)
    with pytest.raises(DemoBertError, match="record"):
        report.write([path], tmp_path / "page.md")


# Networks: what the builders are told


def parsed(command: list, layout: str):
    parser = Parser("")
    add_build_arguments(parser, layout)
    args = parser.parse_args(command[2:])
    check_build_arguments(args)
    return args


@pytest.mark.parametrize("network", (*NETWORKS, *table.KINDS, *table.TRIED), ids=lambda network: network.name)
def test_the_builders_take_every_network_s_flags(network):
    paths = CHECKPOINTS | {CALIBRATION: ROOT / "c", WIDE_CALIBRATION: ROOT / "w"}
    command = build_command("python", ROOT, network, paths, "x.engine", {"batch": [1, 8], "length": [384]})
    if network.form:
        program = command.pop(1), command.pop(1)
        assert program == (str(ROOT / "scripts" / "gpu_checking" / "other_forms.py"), network.form)
        assert set(network.form.split("+")) <= other_forms.FORMS.keys()
    args = parsed(command, network.layout)
    assert (ROOT / command[1]).is_file() and args.batch_size == [1, 8] and args.backend == "tensorrt"
    assert bool(args.pickle) == (network.checkpoint == "megatron") and args.int8 == (not network.exact)
    assert bool(args.calib_path) == network.calibrated and (args.layout == "packed") == (network.layout == "packed")


def test_networks_have_names_and_files_of_their_own():
    assert len({network.name for network in NETWORKS}) == len({network.file_name for network in NETWORKS}) == 24
    assert {name for pair in suite.PAIRS for name in pair} <= {network.name for network in NETWORKS}


def test_random_checkpoints_have_every_range(tmp_path):
    folder = checkpoints.write_random_qat(tmp_path / "qat", TINY)
    pickled = checkpoints.write_random_megatron(tmp_path / "megatron" / "w.pickle", TINY)
    qat, megatron = load_weights(TINY, pytorch=folder), load_weights(TINY, megatron=pickled)
    assert qat.ranges.keys() == megatron.ranges.keys() == checkpoints.ranges(TINY).keys()
    for name, tensor in megatron.tensors.items():
        if name.endswith("_kernel"):
            assert ((tensor.reshape(-1, 4) != 0).sum(axis=1) == 2).all()
    before = pickled.stat().st_mtime_ns
    assert checkpoints.write_random_megatron(pickled, TINY).stat().st_mtime_ns == before


def test_a_widened_model_computes_the_same(tmp_path, rng):
    config = replace(random_config(rng), gelu="erf")
    tensors = random_weights(config, rng)
    amax = checkpoints.ranges(config)
    stored = pytorch_state(config, tensors) | {pytorch_name(name): np.array(value) for name, value in amax.items()}
    source = write_folder(tmp_path / "one", config, stored)
    (source / "vocab.txt").write_text("a\n")
    channels = {name: rng.random(config.hidden_size) for name in channel_range_names(config)}
    fingerprint = Fingerprint(model_fingerprint(load_weights(config, pytorch=source), False), "d", 9, 3, "minmax")
    write_cache(tmp_path / "ranges", fingerprint, amax | channels)

    folder = checkpoints.write_widened(tmp_path / "two", source, tmp_path / "ranges", tmp_path / "wide ranges")
    wide = load_weights(BertConfig.from_folder(folder), pytorch=folder)
    inputs = random_inputs(config, rng, 3, min(12, config.max_position_embeddings))
    quantize = fake_quantizer("int8", amax)
    for rounding in ({}, {"quantize": quantize}):
        ours = reference_logits(wide.config, wide.tensors, "erf", *inputs, **rounding)
        theirs = reference_logits(config, tensors, "erf", *inputs, **rounding)
        assert np.abs(ours - theirs).max() < 1e-4  # the folders are float32; in int8 the steps are the same, too
    assert wide.config.hidden_size == 2 * config.hidden_size and wide.config.head_size == config.head_size
    assert {name: float(value) for name, value in wide.ranges.items()} == pytest.approx(amax)
    wanted = replace(fingerprint, model=model_fingerprint(wide, False))
    found = read_cache(tmp_path / "wide ranges", wanted, wide.config).ranges
    for name, value in (amax | channels).items():
        assert np.allclose(found[name], np.tile(value, 2) if name in channels else value)


@pytest.mark.parametrize("calibrated", [False, True])
def test_pytorch_s_fake_quantized_network(calibrated, rng, tmp_path, monkeypatch):
    """Hugging Face's, rounded by torch's operators, beside numpy's. A cache's channels are evened out, QAT's have one range.

    In float32 some values fall to another step: so there is one layer, and it is the median logit that is compared.
    """
    monkeypatch.setattr(torch_models, "DEVICE", "cpu")
    config = replace(random_config(rng), gelu="erf", num_hidden_layers=1)
    tensors = random_weights(config, rng)
    inputs = random_inputs(config, rng, 3, min(12, config.max_position_embeddings))
    seen = {}
    exact = reference_logits(config, tensors, "erf", *inputs, quantize=lambda name, x: seen.setdefault(name, x))
    amax = {name: np.float32(np.abs(seen[name]).max() * rng.uniform(1, 1.2)) for name in range_names(config)}
    for name in [name for name in amax if name.endswith("_query_input_amax")]:  # one tensor, one range
        amax |= {name.replace("query", part): amax[name] for part in ("key", "value")}
    quantize, state, cache = fake_quantizer("int8", amax, is_dense), pytorch_state(config, tensors), None
    if calibrated:
        channels, cache = channels_of(seen), tmp_path / "ranges"
        quantize = smoothed(quantize, tensors, channels, amax)
        by_channel = {f"{dense}_input_channel_amax": largest for dense, largest in channels.items()}
        write_cache(cache, Fingerprint("m", "d", 9, 3, "max"), amax | by_channel)
    else:
        state |= {pytorch_name(name): np.array(value) for name, value in amax.items()}
    folder = write_folder(tmp_path / "one", config, state)
    (found,) = torch_models.fake_quantized_logits(folder, cache, [PaddedBatch(*inputs)])
    wanted, tokens = reference_logits(config, tensors, "erf", *inputs, quantize=quantize), inputs[2].astype(bool)
    off = [np.median(np.abs(found - logits)[tokens]) for logits in (wanted, exact)]
    assert off[0] < 0.1 * off[1], off


# Whole parts, on a CPU

ON_OPENVINO = """#!{python}
import os, sys
words, kept = sys.argv[1:], []
if "builder" in words[0]:
    while words:
        word = words.pop(0)
        if word in ("--network", "-w", "-tcf"):
            words.pop(0)
        elif word not in ("-il", "-iln"):
            kept.append("openvino" if word == "tensorrt" else word)
os.execv(sys.executable, [sys.executable, *(kept or words)])
"""

PERF = """#!{python}
import json, sys
words = sys.argv[1:]
batches = [int(value) for flag, value in zip(words, words[1:]) if flag == "-b"]
if "--enable_graph" in words and 24 in batches:
    sys.exit("perf: error: this engine can't be captured")
names = ("average_ms", "median_ms", "percentile_95_ms", "percentile_99_ms", "sentences_per_second")
timings = [{{"batch_size": batch}} | dict.fromkeys(names, batch / 2) for batch in batches]
open(words[words.index("--json") + 1], "w").write(json.dumps({{"timings": timings}}))
"""


def program(path, text: str):
    path.write_text(text.format(python=sys.executable))
    path.chmod(0o755)
    return path


@pytest.fixture
def on_a_cpu(tmp_path, monkeypatch):
    """Flags of a run without a GPU: OpenVINO for TensorRT, PyTorch on the CPU, a build/perf that makes figures up."""
    cuda = SimpleNamespace(get_device_name=lambda index: "no GPU")
    monkeypatch.setattr(torch_models, "import_torch", lambda: SimpleNamespace(cuda=cuda, __version__="2"))
    monkeypatch.setattr(torch_models, "DEVICE", "cpu")
    monkeypatch.setattr(suite, "MEGATRON", TINY)
    monkeypatch.setattr(suite, "LENGTH", 96)
    monkeypatch.setattr(table, "PROFILED", ())  # neither OpenVINO nor the double has a profiler
    monkeypatch.setattr(table, "RANDOM_SIZES", dict.fromkeys(("base", "large"), TINY))
    monkeypatch.setattr(suite.Suite, "make_checkpoints", make_checkpoints)
    flags = {"--folder": tmp_path, "--squad": SQUAD, "--json": tmp_path / "suite.json", "--iterations": 2}
    flags["--engine-python"] = program(tmp_path / "python", ON_OPENVINO)
    flags["--perf"] = program(tmp_path / "perf", PERF)
    return [str(word) for pair in flags.items() for word in pair]


def make_checkpoints(self):
    checkpoints.write_random_megatron(self.checkpoints["megatron"], suite.MEGATRON)


def steps_of(tmp_path) -> dict:
    return json.loads((tmp_path / "suite.json").read_text())["steps"]


@pytest.mark.sampled(0.4, group="slow")
def test_networks_are_built_compared_and_asked(on_a_cpu, tmp_path, capsys):
    flags = [*on_a_cpu, "--suite", "networks", "--suite", "answers", "--windows", "2"]
    assert gpu_check.main([*flags, "--only", "plugin, packed fp16"]) == 0
    steps = steps_of(tmp_path)
    logits = steps["logits: plugin, packed fp16"]["result"]
    assert logits["windows"] == 2 and logits["largest"] < 0.2 and logits["deviation"] > 1
    assert set(steps["answers: plugin, packed fp16"]["result"]) == {"exact_match", "f1"}
    assert gpu_check.main([*flags, "--only", "Megatron int8"]) == 0
    steps = steps_of(tmp_path)
    double = steps["double: plugin, Megatron int8"]["result"]
    assert double["largest"] < 1 and 0 < double["in_half"]["rms"] < 0.3
    assert "answers: plugin, Megatron int8" not in steps and "steps done, 0 failed" in capsys.readouterr().out


def test_a_network_that_can_not_be_built_costs_no_other(on_a_cpu, tmp_path, capsys):
    assert gpu_check.main([*on_a_cpu, "--suite", "networks", "--windows", "1", "--only", "plugin, QAT int8"]) == 1
    steps = steps_of(tmp_path)
    assert set(steps) == {"build: plugin, QAT int8", "build: plugin, QAT int8 -iln -imh", "pairs"}
    assert "the checkpoint does not exist" in steps["build: plugin, QAT int8"]["error"]
    assert capsys.readouterr().out.count("FAILED: build: ") == 2


@pytest.mark.sampled(0.4, group="slow")
def test_the_table(on_a_cpu, tmp_path, monkeypatch, rng):
    monkeypatch.setattr(table, "BATCHES", ((1, 24), (2,)))
    monkeypatch.setattr(table, "SIZES", (("base", 16),))
    monkeypatch.setattr(table, "KINDS", tuple(rng.permutation(np.array(table.KINDS, object))[:2]))
    assert gpu_check.main([*on_a_cpu, "--suite", "table", "--no-compile", "--jobs", "3"]) == 0
    kind, steps = table.KINDS[0].name, steps_of(tmp_path)
    places = ("1 to 24", "1 to 24") if table.KINDS[0].layout == "packed" else ("1", "24")
    found = [steps[f"table: base × 16 × {place}, {kind}"]["result"]["times"] for place in places]
    assert found[1][kind]["24"]["percentile_99_ms"] == 12 and found[0][kind]["1"]["average_ms"] == 0.5
    graph = f"{kind}, CUDA graph"
    assert found[0][graph]["1"]["average_ms"] == 0.5 and "can't be captured" in found[1][graph]["24"]["error"]
    assert f"table: base × 16 × 2, {table.KINDS[1].name}" in steps_of(tmp_path)
    assert steps_of(tmp_path)["table: base × 16, PyTorch × 24"]["result"]["times"]["SDPA"]["24"]["median_ms"] > 0
    assert not list((tmp_path / "work").glob("*.engine*"))  # large engines would fill a disk
    rows = report.rows_of(steps_of(tmp_path))
    assert {row.name for row in rows} >= {kind, f"{kind}, CUDA graph", "SDPA", "products alone, fp16"}


def test_the_double_builds_every_line_of_the_table(on_a_cpu, tmp_path, monkeypatch, rng):
    """One of them, drawn anew each time, by the double of the release that runs on the GPU."""
    monkeypatch.setattr(table, "BATCHES", ((1, 2),))
    monkeypatch.setattr(table, "SIZES", (("large", 32),))
    kind = table.KINDS[int(rng.integers(len(table.KINDS)))]
    flags = [*on_a_cpu, "--engine-python", suite.double_python(tmp_path), "--suite", "table"]
    assert gpu_check.main([*flags, "--only", f", {kind.name}"]) == 0
    steps, place = steps_of(tmp_path), "1 to 2" if kind.layout == "packed" else "2"
    assert steps[f"build: large × 32 × {place}, {kind.name}"]["result"]["mib"] > 1
    assert steps[f"table: large × 32 × {place}, {kind.name}"]["result"]["times"][kind.name]["2"]["average_ms"] == 1


def test_what_might_be_faster_is_tried(on_a_cpu, tmp_path, monkeypatch, rng):
    """One of them, drawn anew each time."""
    monkeypatch.setattr(table, "TRIED_AT", (("large", 32, (2,)),))
    kind = table.TRIED[int(rng.integers(len(table.TRIED)))]
    flags = [*on_a_cpu, "--engine-python", suite.double_python(tmp_path), "--suite", "tried"]
    assert gpu_check.main([*flags, "--only", f"2, {kind.name}"]) == 0
    steps = steps_of(tmp_path)
    assert set(steps) == {f"build: large × 32 × 2, {kind.name}", f"tried: large × 32 × 2, {kind.name}"}
    assert steps[f"tried: large × 32 × 2, {kind.name}"]["result"]["times"][kind.name]["2"]["average_ms"] == 1
    assert not report.rows_of(steps)


def is_locked(path) -> bool:
    with open(path, "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_engines_are_timed_alone(tmp_path, monkeypatch):
    """And those of other GPUs meanwhile."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU/1")
    one = suite.Suite(SimpleNamespace(folder=tmp_path), SQUAD, Record(tmp_path / "record.json"))
    locked = []
    monkeypatch.setattr(table, "perf", lambda *given: locked.append(is_locked(one.timing_lock)) or {})
    table.engine_times(one, table.Task(table.Place("base", TINY, 8, (2,)), table.KINDS[0]))
    assert locked == [True, True] and not is_locked(one.timing_lock)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert one.timing_lock.parent == tmp_path / "work" and "1" not in one.timing_lock.name


def test_pytorch_s_batches_are_compiled_together_and_timed_alone(tmp_path, monkeypatch):
    alone, together = [], []
    path = tmp_path / "lock"

    def model_replays(*given):
        with open(path, "a") as lock:  # another one compiles meanwhile
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            with open(path, "a") as other, pytest.raises(BlockingIOError):
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        together.append(given)
        return {"SDPA": lambda: None}

    monkeypatch.setattr(torch_models, "model_replays", model_replays)
    monkeypatch.setattr(torch_models, "timed", lambda replay, runs: alone.append(is_locked(path)) or [1.0] * runs)
    with path.open("a") as lock:
        found = torch_times.times(TINY, 8, 2, 3, lock, True)
    assert found["SDPA"]["average_ms"] == 1 and alone == [True] and together == [(TINY, 8, 2, True)]


def test_what_a_graph_reads_lives_as_long_as_its_replay(monkeypatch):
    import gc
    import weakref

    class Model:
        def __call__(self):
            return 1

    model, replayed = Model(), []
    monkeypatch.setattr(torch_models, "DEVICE", "cuda")
    monkeypatch.setattr(torch_models, "_captured", lambda forward: SimpleNamespace(replay=lambda: replayed.append(1)))
    replay, alive = torch_models.warm_replay(model), weakref.ref(model)
    del model
    gc.collect()
    replay()
    assert alive() is not None and replayed == [1]


def test_which_checkpoints_are_trained_and_widened(tmp_path, monkeypatch):
    monkeypatch.setattr(suite, "MEGATRON", TINY)
    args = SimpleNamespace(folder=tmp_path, finetune=["--epochs", "1"])
    one = suite.Suite(args, SQUAD, Record(tmp_path / "record.json"))
    trained, widened = {}, {}
    monkeypatch.setattr(one, "run", lambda command, what: trained.update({command[command.index("-o") + 1]: command}))
    monkeypatch.setattr(one, "_widen", lambda source, name, *ranges: widened.update({name: source}) or "")
    one.make_checkpoints()
    assert widened == {"wide": "bundled", "wide qat": "qat all"}
    dense, all_int8 = (list(map(str, trained[one.checkpoints[name]])) for name in ("qat", "qat all"))
    assert dense[-3:] == ["--qat", "--epochs", "1"] and "-imh" in all_int8 and "-iln" in all_int8
    assert {network.checkpoint for network in NETWORKS if network.name.endswith(", QAT int8")} == {"qat"}


def test_no_line_s_name_begins_another_s():
    """--only TEXT chooses by a part of the name."""
    names = [f"{network.name}" for network in table.TRIED]
    assert not [(a, b) for a in names for b in names if a != b and b.startswith(a)]


@pytest.mark.sampled(0.4, group="slow")
def test_loadgen_asks_large_engines(on_a_cpu, tmp_path, monkeypatch):
    """The real one, a fraction of a second. What it calls INVALID has figures, too."""
    monkeypatch.setattr(loadgen, "LENGTH", 96)
    monkeypatch.setattr(loadgen, "QUESTIONS", tuple(replace(one, batch=4) for one in loadgen.QUESTIONS))
    flags = [*on_a_cpu, "--suite", "loadgen", "--loadgen-seconds", "0.6", "--only", "packed int8, Offline"]
    assert gpu_check.main(flags) == 0
    steps = steps_of(tmp_path)
    found = steps["loadgen: large, packed int8, Offline"]["result"]
    assert found["rate"] > 0 and isinstance(found["valid"], bool)
    page = report.write([tmp_path / "suite.json"], tmp_path / "page.md")[0].read_text()
    assert f"| large, packed int8, Offline | {'VALID' if found['valid'] else 'INVALID'} | {found['rate']:.1f} |" in page


def test_the_documents_page_is_made_of_its_record(tmp_path):
    page, table, picture = report.write([ROOT / "docs" / "h200.json"], tmp_path / "h200.md")
    assert page.read_text() == (ROOT / "docs" / "h200.md").read_text()
    assert table.read_text() == (ROOT / "docs" / "h200.csv").read_text() and picture.stat().st_size > 10_000


def test_a_record_of_pytorch_alone_is_of_any_tensorrt(tmp_path):
    paths = [tmp_path / f"{n}.json" for n in range(3)]
    machine = {"gpu": "NVIDIA H200", "torch": "2.11.0"}
    found = {"windows": 1, "largest": 0.5, "rms": 0.125, "other_argmax": 0}
    fake = {
        "fake-quantized: qat all": {"result": {"plugin, QAT int8 -iln -imh": found}},
        "logits: x": {"result": found},
    }
    for path, tensorrt, steps in zip(paths, (None, "8.6.0", "10.0.1"), ({}, fake, {})):
        path.write_text(json.dumps({"machine": machine, "tensorrt": tensorrt, "steps": steps}))
    page = report.write(paths[:2], tmp_path / "page.md")[0].read_text()
    assert "TensorRT 8.6.0, PyTorch 2.11.0" in page
    assert "| QAT `-iln -imh` | plugin, QAT int8 -iln -imh | 0.5000 | 0.1250 |" in page
    with pytest.raises(DemoBertError, match="different machines"):
        report.write(paths, tmp_path / "page.md")


@pytest.mark.parametrize("turned", [False, True])
def test_a_cell_of_two_records_is_the_engine_s_of_its_own_size(turned):
    """Records of earlier days have two batches of one padded engine, which fills up the smaller."""

    def step(place, times):
        facts = {"model": "large", "tokens": 384, "times": {"fp16": {b: {"average_ms": ms} for b, ms in times.items()}}}
        return f"table: large × 384 × {place}, fp16", {"result": facts}

    steps = [step("2 to 4", {"2": 3.24, "4": 3.25}), step("2", {"2": 2.0})]
    rows = report.rows_of(dict(reversed(steps) if turned else steps))
    assert [(row.batch, row.times["average_ms"]) for row in rows] == [(2, 2.0), (4, 3.25)]


def test_a_program_that_hangs_is_ended(tmp_path):
    one = suite.Suite(SimpleNamespace(folder=tmp_path), SQUAD, Record(tmp_path / "record.json"))
    with pytest.raises(DemoBertError, match=r"sleep took longer than 0 s|sleep took longer than 1 s"):
        one.run(["sleep", "60"], "sleep", seconds=0.5)
    with pytest.raises(DemoBertError, match="nowhere: /nowhere can't be run: No such file"):
        one.run(["/nowhere"], "nowhere")
    with pytest.raises(DemoBertError, match="sh failed: one | two"):
        one.run(["sh", "-c", "echo one >&2; echo two >&2; exit 3"], "sh")
    assert one.run(["sh", "-c", 'printf %s "$WORD"'], "sh", WORD="said") == "said"


def test_layers_that_differ_by_number_are_one_line():
    class Context:
        profiler = None

    context = Context()

    def run_once():
        if context.profiler is not None:
            for name, ms in (("l0_dense", 1.0), ("l11_dense", 0.5), ("head", 2.0)):
                context.profiler.report_layer_time(name, ms)

    found = layer_times.profiled(SimpleNamespace(IProfiler=object), context, run_once)
    assert list(found.items()) == [("head", {"ms": 2.0, "layers": 1}), ("l*_dense", {"ms": 1.5, "layers": 2})]


# The page


def made_up_steps() -> dict:
    row = {"average_ms": 2.0, "median_ms": 1.9, "percentile_95_ms": 2.5, "percentile_99_ms": 3.0}
    int8 = {"int8": {"1": row, "8": row | {"average_ms": 1.2}}, "int8, CUDA graph": {"1": {"error": "not captured"}}}
    level = {"int8, level 5": {"8": row}, "int8, level 5, CUDA graph": {"8": row | {"average_ms": 0.9}}}
    layers = {"l*_dense": {"ms": 1.5, "layers": 24}, "head": {"ms": 0.5, "layers": 1}}
    beside = {"torch.compile": {"8": row}, "SDPA": {"8": row}}
    place = {"model": "large", "tokens": 384}
    distances = {"windows": 64, "largest": 0.5, "rms": 0.125, "deviation": 3.0, "other_argmax": 2}
    return {
        "build: plugin, int8": {"result": 86.1, "seconds": 20},
        "logits: plugin, int8": {"result": distances, "seconds": 3},
        "double: plugin, int8": {
            "result": distances | {"largest": 0.0625, "in_half": distances | {"rms": 0.03125}},
            "seconds": 3,
        },
        "logits: plugin, Megatron int8": {"result": {}, "seconds": 3},
        "answers: plugin, int8": {"result": {"exact_match": 54.5, "f1": 68.25}, "seconds": 3},
        "pairs": {"result": {"one / other": distances}, "seconds": 0},
        "table: large × 384 × 1 to 8, int8": {"result": place | {"times": int8, "mib": 300}, "seconds": 90},
        "table: large × 384, PyTorch × 8": {"result": place | {"times": beside}, "seconds": 9},
        "table: large × 384, products × 8": {"result": place | {"times": {"fp8": {"8": row}}}, "seconds": 9},
        "tried: large × 384 × 8, int8": {"result": place | {"times": int8}, "seconds": 9},
        "tried: large × 384 × 8, int8, level 5": {"result": place | {"times": level}, "seconds": 9},
        "tried: base × 384 × 1, fp16, level 5": {"error": "builder.py failed: no time", "seconds": 9},
        "layers: large × 384 × 1 to 8, int8": {"result": {"8": layers, "1": layers}, "seconds": 9},
        "table: base × 384 × 1 to 8, int8": {"error": "builder.py failed: no kernel", "seconds": 9},
    }


def test_the_page_holds_every_figure(tmp_path, capsys):
    record, page = tmp_path / "suite.json", tmp_path / "h100.md"
    machine = {"gpu": "NVIDIA H100", "torch": "2.11.0"}
    record.write_text(json.dumps({"machine": machine, "tensorrt": "8.6.0", "steps": made_up_steps()}))
    assert gpu_check.main(["--report", str(record), "--output", str(page)]) == 0
    text = page.read_text()
    for line in (
        "# TensorRT on an NVIDIA H100",
        "| plugin, int8 | 0.5000 | 0.1250 | 2 of 64 | 0.0625 | 0.1250 | 0.5000 | 0.0312 |",
        "| plugin, Megatron int8 |  |  |  |  |  |  |  |",
        "| one / other | 0.5000 | 0.1250 |",
        "| plugin, int8 | 54.50 | 68.25 |",
        "| batch | int8 | SDPA | products alone, fp8 | torch.compile | int8 / torch.compile | fp16 / torch.compile |",
        "| 1 | 2.000 |  |  |  |  |  |",
        "| 8 | 1.200 | 2.000 | 2.000 | 2.000 | 0.60 |  |",
        "- table: base × 384 × 1 to 8, int8: builder.py failed: no kernel",
        "| large × 384 × 8 | int8 | 8 | 1.200 |  |  |",
        "| large × 384 × 8 | int8, level 5 | 8 | 2.000 | 0.900 | 0.45 |",
        "### large × 384, int8",
        "| l*_dense | 24 | 1.500 | 1.500 |",
        "| sum | 25 | 2.000 | 2.000 |",
    ):
        assert line in text.splitlines(), line
    rows = page.with_suffix(".csv").read_text().splitlines()
    assert rows[0].startswith("model,tokens,batch,engine,average_ms") and len(rows) == 6
    assert "large,384,8,int8,1.2000,1.9000,2.5000,3.0000" in rows
    assert page.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out.split() == [str(page.with_suffix(suffix)) for suffix in (".md", ".csv", ".png")]


ROW = dict.fromkeys(("average_ms", "median_ms", "percentile_95_ms", "percentile_99_ms"), 1.0)
DISTANCE = {"windows": 1, "largest": 1.0, "rms": 1.0, "other_argmax": 0}


def of_table(**values) -> dict:
    result = {"model": "large", "tokens": 384, "times": {"int8, CUDA graph": {"8": ROW}}} | values
    return {"table: x": {"result": result}}


@pytest.mark.parametrize(
    "steps",
    [
        {"a": None},
        {"a": 1},
        {"a": ["error"]},
        {"a": {"error": None}},
        {"logits: a\n# X": {}},
        {"logits: a | b": {}},
        {"logits: \ud800": {}},
        *({"table: x": {"result": result}} for result in (3, [], {"model": "l", "tokens": 1}, {"times": {}})),
        *(of_table(model=model) for model in (["a"], None, "", "\ud800", "a\nb")),
        *(of_table(tokens=tokens) for tokens in ("384", None, -1, 1.5, True)),
        *(of_table(times=times) for times in ([], None, {"int8": None}, {"int8": {"8": 3}}, {"int8": {"x": ROW}})),
        *(of_table(times={"int8": {"8": ROW | {"average_ms": value}}}) for value in (0, -1, None, "3", 10**400)),
        *(of_table(times={"int8": {"8": ROW | {"average_ms": float(value)}}}) for value in ("nan", "inf")),
        of_table(times={"int8": {"0": ROW}}),
        of_table(times={"int8": {"8": {"average_ms": 1.0}}}),
        *({"logits: a": {"result": result}} for result in (3, {"largest": "x"}, {"largest": 1.0})),
        {"double: a": {"result": {}}},
        {"double: a": {"result": DISTANCE | {"in_half": {}}}},
        *({"pairs": {"result": result}} for result in ([1], {"a": 2})),
        {"fake-quantized: qat": {"result": [1]}},
        *({"answers: a": {"result": result}} for result in ([1], {"f1": 1.0})),
        *({"layers: a": {"result": result}} for result in ([1], {"x": {}}, {"8": {"q": {}}})),
        *({"tried: a, b": {"result": result}} for result in ([1], {"model": 1}, {"times": {"b": None}})),
    ],
    ids=lambda steps: ascii(steps)[:60],
)
def test_a_record_that_is_none_is_one_line(steps, tmp_path):
    record, page = tmp_path / "suite.json", tmp_path / "page.md"
    record.write_text(json.dumps({"steps": steps}))
    with pytest.raises(DemoBertError, match="suite.json"):
        report.write([record], page)
    assert os.listdir(tmp_path) == ["suite.json"]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "steps",
    [
        of_table(model="a$\\frac{$b"),
        of_table(times={"int8, CUDA graph": {"8": {"error": "no graph"}}, "int8": {"8": ROW}}),
        {"layers: a, b": {"result": {"8": {}, "1": {"l*_dense|x": {"ms": 1.0, "layers": 2}}}}},
        {"tried: a, b": {"error": "x"}, "tried: a, c": {"result": of_table()["table: x"]["result"]}},
        {"double: a": {"error": "one\ntwo"}, "logits: a": {"result": DISTANCE}},
    ],
)
def test_odd_records_make_a_page(steps, tmp_path):
    record, page = tmp_path / "suite.json", tmp_path / "page.md"
    record.write_text(json.dumps({"steps": steps, "machine": {"gpu": "some GPU"}, "tensorrt": "8.6.0"}))
    assert all(path.is_file() for path in report.write([record], page))


@pytest.mark.parametrize(
    "facts", [{"machine": [1]}, {"machine": {"gpu": None}}, {"machine": {"gpu": 3}}, {"tensorrt": 8}]
)
def test_facts_that_are_none(facts, tmp_path):
    record = tmp_path / "suite.json"
    record.write_text(json.dumps({"steps": {}} | facts))
    with pytest.raises(DemoBertError, match="does not say what machine"):
        report.write([record], tmp_path / "page.md")


def test_a_page_of_nothing_says_nothing(tmp_path):
    record = tmp_path / "suite.json"
    record.write_text(json.dumps({"steps": {}}))
    assert [path.suffix for path in report.write([record], tmp_path / "page.md")] == [".md", ".csv"]
    assert "## " not in (tmp_path / "page.md").read_text()
    with pytest.raises(DemoBertError, match="--output"):
        report.write([record], record)
    assert os.listdir(tmp_path)
