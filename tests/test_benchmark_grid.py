"""inference_benchmark.sh: its grid, its commands, and a small grid run from end to end."""

import csv
import importlib
import shlex
from pathlib import Path

import numpy as np
import pytest

from helpers.bert_config import BertConfig
from helpers.errors import DemoBertError
from helpers.weights import load_weights
from helpers.weights.canonical import expected_shapes
from scripts.benchmarks import grid
from scripts.benchmarks.plot import one_two_five, plot
from scripts.benchmarks.random_model import RANDOM_SIZES, random_state, write_random_model
from scripts.benchmarks.table import GridRow, markdown
from tests import checkpoints
from tests.conftest import BUNDLED, ROOT
from tests.reference_bert import random_config
from tests.test_shell_scripts import scratch_tree, shell

GPUS = ("Volta", "Xavier", "Turing", "Ampere", "Hopper")


def benchmark(*arguments):
    return shell(ROOT / "scripts" / "inference_benchmark.sh", *arguments)


def dry_run(*arguments) -> list[list[str]]:
    result = benchmark(*arguments, "--dry-run")
    assert result.returncode == 0, result
    return [shlex.split(line) for line in result.stdout.splitlines()]


def parsed(command: list[str]):
    """The arguments of a command of one of our Python scripts, as that script reads them."""
    return importlib.import_module(Path(command[1]).stem).parse(command[2:])


@pytest.fixture(scope="module")
def commands() -> dict:
    return {gpu: dry_run("--gpu", gpu, "--perf", ROOT / "perf.py") for gpu in (*GPUS, "CPU")}


@pytest.mark.parametrize("gpu", GPUS)
def test_a_gpu_s_grid(commands, gpu):
    """Base and large by 128 and 384 by FP16 and INT8, all batch sizes, and Megatron where sparse kernels are."""
    python = [command for command in commands[gpu] if command[0] != "bash"]
    builds = [parsed(command) for command in python if "builder" in command[1]]
    assert all(args.backend == "tensorrt" and args.fp16 for args in builds)
    padded = [args for args in builds if args.layout == "padded"]
    points = {(Path(args.output).name, args.sequence_length[0], args.int8) for args in padded}
    assert points == {
        (f"bert-{size}_{'int8' if int8 else 'fp16'}_{length}.engine", length, int8)
        for size in ("base", "large")
        for length in (128, 384)
        for int8 in (False, True)
    }
    assert all(args.batch_size == [1, 2, 4, 8, 12, 16, 24, 32, 64, 128] for args in builds)
    flags = {(args.force_int8_skipln, args.force_int8_multihead) for args in padded if args.int8}
    assert flags == {(gpu != "Volta", gpu not in ("Volta", "Xavier"))}
    packed = [args for args in builds if args.layout == "packed"]
    assert len(packed) == (2 if gpu in ("Ampere", "Hopper") else 0)
    assert all(args.megatron and args.interleaved and args.sparse and args.int8 and args.strict for args in packed)
    timings = [parsed(command) for command in python if "perf" in command[1]]
    assert len(timings) == len(builds) * 10
    assert all((args.iterations, args.warm_up_runs) == (1000, 100) for args in timings)


@pytest.mark.parametrize("gpu", GPUS)
def test_everything_that_is_built_from_is_downloaded_before(commands, gpu):
    """Each path under models/fine-tuned or squad/ in a command is what one of the downloads before it brings."""
    brought = set()
    for command in commands[gpu]:
        if command[0] == "bash":
            brought.add((Path(command[1]).name, *command[2:]))
            continue
        text = " ".join(command)
        for size in ("base", "large"):
            for length in ("128", "384"):
                if f"bert_tf_ckpt_{size}_qa_squad2_amp_{length}" in text:
                    words = ("download_model.sh", size, length, "v2")
                    assert words in brought or (size == "large" and ("download_model.sh", length, "v2") in brought)
        if "fake_quant" in text:
            assert ("download_model.sh", "pyt", "v1_1") in brought
        if "megatron_sparse" in text:
            assert ("download_model.sh", "pyt", "megatron-large", "int8-qat", "sparse") in brought
        if "train-v1.1.json" in text:
            assert ("download_squad.sh", "v1_1") in brought
    assert len(brought) >= 5


def test_the_cpu_s_grid(commands):
    builds = [parsed(command) for command in commands["CPU"] if "builder" in command[1]]
    assert [(args.fp16, args.int8) for args in builds] == 2 * [(False, False), (True, False), (True, True)]
    assert all(args.backend == "openvino" and args.sequence_length == [384] for args in builds)
    assert not any(command[0] == "bash" for command in commands["CPU"])  # nothing to download
    timings = [parsed(command) for command in commands["CPU"] if "perf" in command[1]]
    assert {(args.batch_size[0], args.sequence_length) for args in timings} == {
        (batch_size, length) for batch_size in (1, 2, 4, 8) for length in (128, 384)
    }
    assert {(args.iterations, args.warm_up_runs) for args in timings} == {(20, 3)}


def test_the_built_program_is_preferred_and_replays_graphs_on_gpus(tmp_path):
    gpu = ["--gpu", "Ampere", "--model", "large", "--precision", "fp16", "-s", 128, "-b", 4, "-i", 2000, "-w", 7]
    timing = [command for command in dry_run(*gpu, "--perf", tmp_path / "perf") if "perf" in Path(command[0]).name]
    engine = ROOT / "engines" / "benchmark" / "Ampere" / "bert-large_fp16_128.engine"
    sizes = ["-b", "4", "-s", "128", "-i", "2000", "-w", "7", "--json", "figures.json"]
    assert timing == [[str(tmp_path / "perf"), "--enable_graph", "-e", str(engine), *sizes]]
    cpu = dry_run("--gpu", "CPU", "--model", "bundled", "--precision", "fp32", "--perf", tmp_path / "perf")
    assert not any("--enable_graph" in command for command in cpu)


@pytest.mark.parametrize("built", [True, False])
def test_what_times_is_the_built_program_where_it_is_built(tmp_path, built):
    tree = scratch_tree(tmp_path)
    (tree / "build").mkdir()
    (tree / "build" / "perf").write_text("")
    (tree / "build" / "perf").chmod(0o755 if built else 0o644)
    arguments = ["--gpu", "CPU", "--model", "bundled", "--precision", "fp32", "--dry-run"]
    result = shell(tree / "scripts" / "inference_benchmark.sh", *arguments)
    timings = [shlex.split(line) for line in result.stdout.splitlines() if "figures.json" in line]
    assert len(timings) == 8, result
    programs = {words[0] if built else words[1] for words in timings}
    assert programs == {str(tree / ("build/perf" if built else "perf.py"))}


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "--gpu"),
        (["--gpu", "Kepler"], "Kepler"),
        (["--gpu", "CPU", "-b", "0"], "whole number"),
        (["--gpu", "CPU", "--model", "huge"], "leave nothing to measure"),
        (["--gpu", "CPU", "--nonsense"], "--nonsense"),
    ],
)
def test_arguments_that_make_no_sense(arguments, complaint):
    result = benchmark(*arguments)
    assert result.returncode == 2 and complaint in result.stderr and len(result.stderr.splitlines()) == 1, result
    assert result.stderr.startswith("inference_benchmark.sh: error: ")


@pytest.fixture(scope="module")
def small_grid(tmp_path_factory):
    """A grid of 2 × 2 points of the bundled model: its folder, its arguments, what came of it."""
    folder = tmp_path_factory.mktemp("grid")
    arguments = ["--gpu", "CPU", "--model", "bundled", "--precision", "fp32", "--perf", ROOT / "perf.py"]
    arguments += ["-b", 1, "-b", 3, "-s", 8, "-s", 16, "-i", 4, "-w", 1]
    arguments += ["-o", folder / "figures", "--engines", folder / "engines"]
    return folder, arguments, benchmark(*arguments)


def test_a_small_grid_gives_table_csv_and_plot(small_grid):
    folder, _, result = small_grid
    assert result.returncode == 0, result
    rows = list(csv.DictReader((folder / "figures.csv").open()))
    points = [(row["sequence_length"], row["batch_size"]) for row in rows]
    assert points == [("8", "1"), ("8", "3"), ("16", "1"), ("16", "3")]
    for row in rows:
        assert (row["model"], row["precision"], row["iterations"], row["error"]) == ("bundled model", "fp32", "4", "")
        assert 0 < float(row["median_ms"]) <= float(row["percentile_95_ms"]) <= float(row["percentile_99_ms"])
        rate = int(row["batch_size"]) * 1e3 / float(row["average_ms"])
        assert float(row["sentences_per_second"]) == pytest.approx(rate)
    table = (folder / "figures.md").read_text()
    assert table in result.stdout and table.count("| bundled model | fp32 |") == 4 and "could not" not in table
    assert f"{float(rows[0]['median_ms']):.2f}" in table
    assert (folder / "figures.png").read_bytes().startswith(b"\x89PNG")
    assert "perf.py" in (folder / "figures.log").read_text()


@pytest.mark.sampled(0.4, group="slow")
def test_engines_are_kept_and_what_fails_is_said(small_grid, tmp_path):
    """A damaged engine is kept, fails its points and no others, and is built again when that is asked for."""
    folder, arguments, _ = small_grid
    engine = folder / "engines" / "bundled_model_fp32_384.engine"
    sound = engine.read_bytes()
    damaged = bytearray(sound)
    damaged[len(damaged) // 2] ^= 1
    engine.write_bytes(damaged)
    short = [*arguments[:8], "-b", 1, "-s", 8, "-i", 1, "-w", 0, "-o", tmp_path / "x", "--engines", folder / "engines"]
    result = benchmark(*short, "--precision", "fp16")
    assert result.returncode == 0 and engine.read_bytes() == damaged, result
    failed, timed = csv.DictReader((tmp_path / "x.csv").open())
    assert "build it again" in failed["error"] and timed["error"] == "" and float(timed["median_ms"]) > 0
    assert "1 of 2 could not be measured" in result.stdout
    assert "bundled model, fp32: perf.py: error: " in result.stderr
    result = benchmark(*short, "--rebuild")
    assert result.returncode == 0 and "could not" not in result.stdout and engine.read_bytes() != damaged


def test_nothing_measured_is_a_failure(small_grid, tmp_path):
    folder, arguments, _ = small_grid
    result = benchmark(*arguments, "-s", 513, "-o", tmp_path / "x", "--engines", tmp_path)
    assert result.returncode == 1 and "6 of 6 could not be measured" in result.stdout, result
    assert "max_position_embeddings" in result.stdout and not (tmp_path / "x.png").exists()


def test_the_table_names_failures_once():
    point = {"model": "BERT-large", "precision": "int8", "sequence_length": 384}
    rows = [GridRow(**point, batch_size=size).failed("out of memory") for size in (64, 128)]
    rows.append(GridRow("BERT-large", "fp16", 128, 1, 10, 2.0, 1.5, 3.0, 4.0, 500.0))
    lines = markdown(rows, "Ampere").splitlines()
    assert lines[4] == "| BERT-large | fp16 | 128 | 1 | 1.50 | 3.00 | 4.00 | 500.0 |"
    assert lines[-3:] == [
        *("2 of 3 could not be measured:", ""),
        "- BERT-large, int8, 384 tokens, batch size 64, 128: out of memory",
    ]


@pytest.fixture
def figures(monkeypatch) -> list:
    """(figure, its panels) of every plot that is drawn."""
    import scripts.benchmarks.plot as module

    figures = []
    real = module.new_figure
    monkeypatch.setattr(module, "new_figure", lambda *a, **k: figures.append(real(*a, **k)) or figures[-1])
    return figures


def test_the_plot_has_a_panel_for_each_model_and_length(tmp_path, figures):
    """A line per precision, its points at the medians, whatever the order of the rows."""
    rows = [
        GridRow(model, precision, length, size, 1, 0.0, size * length / 10, 0.0, 0.0, 0.0)
        for model in ("a", "b")
        for precision in ("fp32", "int8+bf16")
        for length in (384, 128)
        for size in (8, 1, 2)
    ]
    plot(rows, "title", tmp_path / "x.png")
    _, panels = figures[0]
    assert [[panel.get_title() for panel in line] for line in panels] == [
        [f"{model}, {length} tokens" for length in (128, 384)] for model in ("a", "b")
    ]
    lines = panels[1, 1].lines
    assert [line.get_label() for line in lines] == ["fp32", "int8+bf16"]
    np.testing.assert_allclose(lines[0].get_xydata(), [[1, 38.4], [2, 76.8], [8, 307.2]])
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def random_rows(rng) -> list[GridRow]:
    """A grid of up to 3 models × 2 lengths × 4 precisions × 12 batch sizes, near to each other or far apart."""
    models = [f"model {number}" for number in range(int(rng.integers(1, 4)))]
    lengths = [128, 384][: int(rng.integers(1, 3))]
    batch_sizes = sorted({int(size) for size in rng.integers(1, rng.choice([14, 40, 1000]), int(rng.integers(1, 13)))})
    precisions = ["fp32", "bf16", "int8+bf16", "fp8"][: int(rng.integers(1, 5))]
    low, decades = rng.uniform(-2, 4), rng.choice([0, 0.05, 1, 3, 6])
    return [
        GridRow(model, precision, length, size, 1, 0.0, float(10 ** (low + decades * rng.uniform())), 0.0, 0.0, 0.0)
        for model in models
        for precision in precisions
        for length in lengths
        for size in batch_sizes
    ]


def test_no_two_labels_overlap(tmp_path, rng, figures):
    """Tick labels, axis labels and titles, in one panel and across panels; none is cut."""
    for _ in range(4):
        rows = random_rows(rng)
        plot(rows, "CPU, perf.py, 20 iterations after 3 warm-ups", tmp_path / "x.png")
        figure, panels = figures.pop()
        figure.draw_without_rendering()  # as it was saved
        texts = [figure._suptitle]
        for panel in panels.flat:
            texts += [panel.title, panel.xaxis.label, panel.yaxis.label]
            for axis in (panel.xaxis, panel.yaxis):
                texts += [*axis.get_ticklabels(), *axis.get_ticklabels(minor=True)]
            assert sum(bool(label.get_text()) for label in panel.get_yticklabels()) >= 2
            medians = [median for line in panel.lines for median in line.get_ydata()]
            assert panel.get_ylim()[0] < min(medians) <= max(medians) < panel.get_ylim()[1]
        boxes = [(text.get_text(), text.get_window_extent()) for text in texts if text.get_text()]
        for place, (text, box) in enumerate(boxes):
            assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1, text
            for other_text, other in boxes[:place]:
                assert not box.overlaps(other), (text, other_text, rows)


def test_ticks_enclose_whatever_they_are_asked_for(rng):
    for low, high in (
        *np.sort(10 ** rng.uniform(-6, 8, (500, 2))),
        (1, 1),
        (1000, 1000),
        (np.nextafter(1000, 0), 1000),
    ):
        ticks = one_two_five(low, high)
        assert ticks == sorted(set(ticks)) and len(ticks) >= 2 and ticks[0] <= low <= high < ticks[-1]
        assert {f"{tick:.0e}"[0] for tick in ticks} <= set("125")
        assert len(ticks) <= 13 or high / low > 1e10
    assert one_two_five(7.2, 178) == [5, 10, 20, 50, 100, 200]


def test_the_plot_of_a_csv_file_can_be_redrawn(tmp_path, figures):
    """The published one: every figure of it, under its table's heading; -o names another place."""
    published = ROOT / "docs" / "cpu_benchmark.csv"
    for ending in (".csv", ".md"):
        (tmp_path / f"a{ending}").write_text(published.with_suffix(ending).read_text())
    assert grid.main(["--redraw", str(tmp_path / "a.csv")]) == 0
    figure, panels = figures[0]
    assert figure.get_suptitle() == "CPU, perf.py, 20 iterations after 3 warm-ups"
    points = {
        (panel.get_title(), line.get_label(), size, median)
        for panel in panels.flat
        for line in panel.lines
        for size, median in line.get_xydata()
    }
    assert points == {
        (f"{row['model']}, {row['sequence_length']} tokens", row["precision"], float(size), float(row["median_ms"]))
        for row in csv.DictReader(published.open())
        for size in [row["batch_size"]]
    }
    drawn = (tmp_path / "a.png").read_bytes()
    result = benchmark("--redraw", tmp_path / "a.csv", "-o", tmp_path / "b")
    assert result.returncode == 0 and result.stderr == f"Written: {tmp_path / 'b.png'}\n", result
    assert (tmp_path / "b.png").read_bytes() == drawn


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "CSV file is empty"),
        ("a,b\n1,2\n", "line 2, is not of an inference benchmark"),
        ("HEADER\nm,fp32,128,1,20,1.0,fast,1.0,1.0,1.0,\n", "line 2, is not of an inference benchmark"),
        ("HEADER\nm,fp32,128,1,20,1.0,0.0,1.0,1.0,1.0,\n", "latency or a batch size of 0"),
        ("HEADER\nm,fp32,128,1,20\n", "line 2, is not of an inference benchmark"),
        ("HEADER\nm,fp32,128,1,,,,,,,out of memory\n", "has no figures to draw"),
    ],
)
def test_what_is_no_csv_file_of_ours_is_not_redrawn(tmp_path, text, complaint):
    header = (ROOT / "docs" / "cpu_benchmark.csv").read_text().splitlines()[0]
    (tmp_path / "a.csv").write_text(text.replace("HEADER", header))
    with pytest.raises(DemoBertError, match=complaint):
        grid.main(["--redraw", str(tmp_path / "a.csv")])
    assert not (tmp_path / "a.png").exists()


# The random model.


def test_a_random_model_is_a_whole_checkpoint(tmp_path, rng):
    config = random_config(rng)
    folder = write_random_model(tmp_path / "random", config, BUNDLED / "vocab.txt", seed=int(rng.integers(1000)))
    read = BertConfig.from_folder(folder)
    weights = load_weights(read, pytorch=folder)
    assert {name: array.shape for name, array in weights.tensors.items()} == expected_shapes(config)
    kernels = np.concatenate([array.ravel() for name, array in weights.tensors.items() if name.endswith("_kernel")])
    # The standard error of a deviation from n draws is σ/√(2n); ten of them.
    assert abs(kernels.std() - 0.02) < 10 * 0.02 / np.sqrt(2 * kernels.size) and kernels.dtype == np.float32
    assert (folder / "vocab.txt").read_bytes() == (BUNDLED / "vocab.txt").read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["random"]
    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    write_random_model(folder, config)
    assert (folder / "model.safetensors").stat().st_mtime_ns == stamp


def test_random_names_are_hugging_face_s(rng):
    """Written out apart, in the tests' own list."""
    config = random_config(rng)
    state = random_state(config)
    assert state.keys() == {name for _, name, _ in checkpoints.names(config)}


def test_a_random_model_is_there_whole_or_not_at_all(tmp_path, rng):
    with pytest.raises(FileNotFoundError):
        write_random_model(tmp_path / "random", random_config(rng), tmp_path / "missing.txt")
    assert list(tmp_path.iterdir()) == []


def test_the_published_sizes():
    """110 and 340 million parameters, the paper says (arXiv:1810.04805); its pooler and MLM head are not in these."""
    count = {}
    for size, config in RANDOM_SIZES.items():
        count[size] = sum(np.prod(shape) for shape in expected_shapes(config).values())
    assert 108e6 < count["base"] < 110e6 and 333e6 < count["large"] < 340e6
