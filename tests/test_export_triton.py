"""scripts/export_triton.py: what it writes, that it needs nothing else, and what Triton's own messages read of it.

TensorRT's plans come from the double. Their configurations are held to the plans' inputs, and played through as Triton
says that it fills and hands back a batch.
"""

import importlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tritonclient.grpc", reason="tritonclient is not installed (requirements-dev.txt)")
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as proto

from helpers.answerer import Answerer
from helpers.backends import backend_module, load_engine, write_engine
from helpers.backends.tensorrt import gpu, module
from helpers.backends.tensorrt.engine import Session
from helpers.batching import INPUT_NAMES, PackedBatch
from helpers.build_options import BuildOptions
from helpers.engine_card import EngineCard
from helpers.errors import DemoBertError
from scripts import export_triton
from scripts.serving import repository
from scripts.serving.contents import read_contents
from tests import triton_double
from tests.conftest import ROOT
from tests.tensorrt_double import install
from tests.test_answerer import TOKENIZER
from tests.test_shell_scripts import listing
from tests.test_tensorrt_engines import NETWORKS, RTX, small_config, weights_of
from tests.triton_double import batched, scattered

PASSAGE = "The mill was built by Ann Roe in 1790. It burned in 1901."


@pytest.fixture
def export(script, monkeypatch):
    monkeypatch.setitem(sys.modules, "export_triton", export_triton)
    return lambda *arguments: script("export_triton.py", *arguments)


@pytest.fixture(scope="module")
def exported_once(bundled_engine, tmp_path_factory) -> Path:
    """An export of the bundled model's engine, by the defaults. Tests copy it."""
    folder = tmp_path_factory.mktemp("exported") / "models"
    export_triton.main(["-e", str(bundled_engine), "-o", str(folder)])
    return folder


def config_of(folder: Path, model: str) -> proto.ModelConfig:
    text = (folder / model / "config.pbtxt").read_text(encoding="utf-8")
    return text_format.Parse(text, proto.ModelConfig())


def parameters(config) -> dict[str, str]:
    return {name: value.string_value for name, value in config.parameters.items()}


def test_what_is_written(export, bundled_engine, tmp_path):
    target = tmp_path / "models"
    result = export("-e", bundled_engine, "-o", target, "--name", "mini")
    assert result.code == 0 and "mini_qa" in result.out and result.err == "", result
    assert sorted(path.name for path in target.iterdir()) == ["README.md", "demobert_export.json", "mini_qa"]
    version = target / "mini_qa" / "1"
    for suffix in ("", ".json", ".tokenizer.json"):
        copied, original = version / f"bert.engine{suffix}", Path(f"{bundled_engine}{suffix}")
        assert copied.read_bytes() == original.read_bytes()
    assert sorted(read_contents(target).files) == [name for name in listing(target) if (target / name).is_file()]
    assert not [name for name in listing(tmp_path) if name.endswith((".tmp", ".old"))]
    umask = os.umask(0)
    os.umask(umask)
    assert (target.stat().st_mode & 0o777) == 0o777 & ~umask and (version / "model.py").stat().st_mode & 0o444


def test_question_answering_s_configuration(export, bundled_engine, tmp_path):
    sizes = (
        "--instances",
        3,
        "--max-batch-size",
        24,
        "--preferred-batch-size",
        7,
        "--max-queue-delay",
        700,
        "--max-queue-size",
        9,
    )
    texts = ("-s", 128, "-b", 2, "--doc-stride", 64, "--null-score-diff-threshold", -1.5, "--max-passage", 777)
    assert export("-e", bundled_engine, "-o", tmp_path / "models", *sizes, *texts, "--latency").code == 0
    config = config_of(tmp_path / "models", "bert_qa")
    assert (config.name, config.backend, config.platform, config.max_batch_size) == ("bert_qa", "python", "", 24)
    strings = [(tensor.name, tensor.data_type, list(tensor.dims)) for tensor in config.input]
    assert strings == [("passage", proto.TYPE_STRING, [1]), ("question", proto.TYPE_STRING, [1])]
    assert {(tensor.name, proto.DataType.Name(tensor.data_type), *tensor.dims) for tensor in config.output} == {
        ("answer", "TYPE_STRING", 1),
        ("probability", "TYPE_FP64", 1),
        ("start", "TYPE_INT64", 1),
        ("end", "TYPE_INT64", 1),
        ("n_best", "TYPE_STRING", 1),
    }
    (group,) = config.instance_group
    assert (group.count, group.kind) == (3, proto.ModelInstanceGroup.KIND_CPU)
    assert config.HasField("dynamic_batching")
    assert config.dynamic_batching.max_queue_delay_microseconds == 700
    assert list(config.dynamic_batching.preferred_batch_size) == [7]
    assert config.dynamic_batching.default_queue_policy.max_queue_size == 9
    settings = parameters(config)
    assert settings.keys() == {"engine", "options", "max_passage", "prepare_for"}
    assert (settings["engine"], settings["max_passage"], settings["prepare_for"]) == ("bert.engine", "777", "latency")
    assert json.loads(settings["options"]) == {
        "sequence_length": 128,
        "batch_size": 2,
        "max_query_length": 64,
        "doc_stride": 64,
        "max_answer_length": 30,
        "n_best_size": 20,
        "null_score_diff_threshold": -1.5,
    }
    for warm_up in config.model_warmup:
        for tensor in warm_up.inputs.values():
            data = (tmp_path / "models" / "bert_qa" / "warmup" / tensor.input_data_file).read_bytes()
            assert int.from_bytes(data[:4], "little") == len(data) - 4 and data[4:].decode("utf-8")


def test_the_defaults(exported_once):
    config = config_of(exported_once, "bert_qa")
    assert config.instance_group[0].count == 2 and config.max_batch_size == 32
    assert list(config.dynamic_batching.preferred_batch_size) == [4]
    assert json.loads(parameters(config)["options"])["batch_size"] == 1
    assert parameters(config)["prepare_for"] == "throughput"


def test_one_engine_has_all_cores_where_latency_counts(export, bundled_engine, tmp_path):
    assert export("-e", bundled_engine, "-o", tmp_path / "models", "--latency").code == 0
    assert config_of(tmp_path / "models", "bert_qa").instance_group[0].count == 1


#: Runs an exported model.py as Triton would: with its version folder on the path, and nothing of this repository.
_AS_TRITON = """
import json, sys
folder, double, packages, *blocked = sys.argv[1:]
sys.path += [packages]
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocker())
import importlib.util
def module(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    sys.modules[name] = loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded
double = module("double", double)
sys.modules["triton_python_backend_utils"] = double.backend_utils()
model = module("model", f"{folder}/1/model.py").TritonPythonModel()
config = json.loads(sys.stdin.read())
model.initialize({
    "model_config": json.dumps(config), "model_repository": folder, "model_version": "1",
    "model_instance_name": "bert_qa_0_0", "model_instance_kind": "CPU", "model_instance_device_id": "0",
})
(response,) = model.execute([double.question(*json.loads(config["asked"]))])
outputs = response.outputs()
print(json.dumps([outputs["answer"][0, 0].decode(), float(outputs["probability"][0, 0])]))
ours = [m.__file__ for n, m in sys.modules.items() if n.partition(".")[0] == "helpers"]
assert len(ours) > 10 and all(file.startswith(folder) for file in ours), ours
"""

#: What requirements.txt has and a server needs not.
_UNNEEDED = ("onnx", "safetensors", "ml_dtypes", "tqdm", "matplotlib", "torch", "tensorflow", "tritonclient", "google")


def test_an_export_needs_nothing_else(exported_once, script, bundled_engine, tmp_path):
    """It is moved away, and answers with no other module of ours, and no more packages than its README installs."""
    numpy, tokenizers, openvino = read_contents(exported_once).packages
    assert (numpy, tokenizers) == ("numpy", "tokenizers") and openvino.startswith("openvino==")
    moved = tmp_path / "elsewhere"
    shutil.copytree(exported_once, moved)
    config = text_format.Parse((moved / "bert_qa" / "config.pbtxt").read_text(), proto.ModelConfig())
    told = {
        "parameters": {name: {"string_value": text} for name, text in parameters(config).items()},
        "instance_group": [{"kind": "KIND_CPU", "count": 1}],
        "asked": json.dumps([PASSAGE, "Who built the mill?"]),
    }
    program = tmp_path / "as_triton.py"
    program.write_text(_AS_TRITON)
    packages = sysconfig.get_path("purelib")
    double = tmp_path / "double.py"
    shutil.copy(triton_double.__file__, double)
    command = [sys.executable, "-I", program, moved / "bert_qa", double, packages, *_UNNEEDED]
    result = subprocess.run(
        [*map(str, command)], cwd="/", input=json.dumps(told), capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    text, probability = json.loads(result.stdout)
    wanted = json.loads(
        script("inference.py", "-e", bundled_engine, "-p", PASSAGE, "-q", "Who built the mill?", "--json", "-").out
    )
    assert text == wanted["answer"] and probability == pytest.approx(wanted["probability"], abs=1e-4)


def test_the_backend_s_own_modules_go_along_and_no_other_s():
    for backend, other in (("openvino", "tensorrt"), ("tensorrt", "openvino"), ("tensorrt_rtx", "openvino")):
        names = repository.needed(backend)
        assert any(name.startswith(f"helpers/backends/{backend}/") for name in names)
        assert not any(f"/{other}/" in name for name in names)
        assert not any(part in name for name in names for part in ("finetuning", "calibrator", "notebook", "cli.py"))
        assert all((ROOT / name).is_file() for name in names)


# Whole or not at all


def contents_of(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in listing(folder) if (folder / name).is_file()}


def test_an_empty_folder_will_do(export, bundled_engine, tmp_path):
    (tmp_path / "models").mkdir()
    assert export("-e", bundled_engine, "-o", tmp_path / "models").code == 0
    assert config_of(tmp_path / "models", "bert_qa").max_batch_size == 32


def test_an_export_is_replaced_as_a_whole(export, exported_once, bundled_engine, tmp_path):
    target = tmp_path / "models"
    shutil.copytree(exported_once, target)
    (target / "bert_qa" / "1" / "__pycache__").mkdir()  # Triton's processes leave such behind
    (target / "bert_qa" / "1" / "__pycache__" / "model.cpython-311.pyc").write_bytes(b"x")
    assert export("-e", bundled_engine, "-o", target, "--max-batch-size", 5).code == 0
    assert config_of(target, "bert_qa").max_batch_size == 5
    assert not (target / "bert_qa" / "1" / "__pycache__").exists()
    assert listing(tmp_path) == ["models", *(f"models/{name}" for name in listing(target))]


@pytest.mark.parametrize(
    "what, said",
    [
        ("file", "is no folder"),
        ("link", "is no folder"),
        ("other files", "holds files that are no export"),
        ("another name", "is an export under another --name"),
        ("something added", "is an export to which bert_qa/2/model.py was added"),
        ("damaged list", "is not JSON"),
        ("strange list", "is no list of an export's files"),
    ],
)
def test_what_is_not_replaced(export, exported_once, bundled_engine, tmp_path, what, said):
    target = tmp_path / "models"
    if what == "file":
        target.write_text("mine")
    elif what == "link":
        (tmp_path / "folder").mkdir()
        target.symlink_to(tmp_path / "folder")
    elif what == "other files":
        target.mkdir()
        (target / "mine").write_text("mine")
    else:
        shutil.copytree(exported_once, target)
    if what == "another name":
        contents = json.loads((target / "demobert_export.json").read_text())
        (target / "demobert_export.json").write_text(json.dumps(contents | {"name": "other"}))
    elif what == "something added":
        (target / "bert_qa" / "2").mkdir()
        (target / "bert_qa" / "2" / "model.py").write_text("mine")
    elif what.endswith("list"):
        (target / "demobert_export.json").write_text(
            "{" if what == "damaged list" else '{"name": "bert", "files": [1]}'
        )
    before = contents_of(tmp_path)
    result = export("-e", bundled_engine, "-o", target)
    assert result.code == 1 and said in result.error
    assert contents_of(tmp_path) == before and len(result.err.splitlines()) == 1


@pytest.mark.parametrize("stop", ["copy", "rename"])
def test_an_export_that_fails_leaves_what_was_there(export, exported_once, bundled_engine, tmp_path, monkeypatch, stop):
    target = tmp_path / "models"
    shutil.copytree(exported_once, target)
    before = contents_of(tmp_path)
    if stop == "copy":

        def full(source, file, size):
            file.write(source.read(10))
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(shutil, "copyfileobj", full)
    else:
        rename = os.rename

        def failing(source, place):
            if Path(place) == target and ".tmp" in str(source):
                raise OSError(5, "Input/output error")
            rename(source, place)

        monkeypatch.setattr(os, "rename", failing)
    result = export("-e", bundled_engine, "-o", target, "--max-batch-size", 5)
    assert result.code == 1 and "can't write" in result.error
    assert contents_of(tmp_path) == before and listing(tmp_path)[0] == "models"


@pytest.mark.sampled(0.4)
@pytest.mark.parametrize(
    "arguments, code, said",
    [
        (("--name", "../x"), 2, "--name '../x': a letter, then letters"),
        (("--name", ""), 2, "--name '': a letter"),
        (("--instances", "0"), 2, "'0' is not a whole number of at least 1"),
        (("--max-queue-delay", "-1"), 2, "'-1' is not a whole number of at least 0"),
        (("-s", "9999"), 2, "sequence length 9999 is over this engine's largest, 384"),
        (("-b", "99"), 2, "batch size 99 is over this engine's largest, 8"),
        (("--null-score-diff-threshold", "nan"), 2, "'nan' is not a number"),
        (("--tensorrt-backend",), 2, "this engine is openvino's"),
        (("-o", "/no/such/folder/x"), 1, "the folder /no/such/folder does not exist"),
    ],
)
def test_wrong_arguments(export, bundled_engine, tmp_path, arguments, code, said):
    result = export("-e", bundled_engine, "-o", tmp_path / "models", *arguments)
    assert result.code == code and said in result.error and listing(tmp_path) == []


def test_an_engine_that_can_t_be_served_is_said_now(export, bundled_engine, tmp_path):
    assert "engine not found" in export("-e", tmp_path / "none", "-o", tmp_path / "models").error
    engine = tmp_path / "x.engine"
    for suffix in ("", ".json"):
        shutil.copy(f"{bundled_engine}{suffix}", f"{engine}{suffix}")
    assert "the engine's tokenizer is not at" in export("-e", engine, "-o", tmp_path / "models").error
    with engine.open("r+b") as file:
        file.truncate(1000)
    assert "truncated" in export("-e", engine, "-o", tmp_path / "models").error
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("package", ["tritonclient", "grpc"])
def test_triton_s_client_that_is_missing_is_one_line(package, bundled_engine, tmp_path):
    without = (
        f"import runpy, sys; sys.modules[{package!r}] = None; sys.argv[0] = 'export_triton.py'; "
        "runpy.run_path('scripts/export_triton.py', run_name='__main__')"
    )
    command = [sys.executable, "-c", without, "-e", bundled_engine, "-o", tmp_path / "models"]
    result = subprocess.run([*map(str, command)], cwd=ROOT, capture_output=True, text=True, timeout=60)
    said = (
        "writing a configuration for Triton needs the package tritonclient[grpc], which is not installed: pip install"
    )
    assert result.returncode == 1 and said in result.stderr and len(result.stderr.splitlines()) == 1, result
    assert result.stderr.endswith("requirements-serve.txt\n") and listing(tmp_path) == []


def test_a_card_s_version_does_not_become_part_of_a_command(export, bundled_engine, tmp_path, monkeypatch):
    engine = tmp_path / "x.engine"
    for suffix in ("", ".json", ".tokenizer.json"):
        shutil.copy(f"{bundled_engine}{suffix}", f"{engine}{suffix}")
    values = json.loads(EngineCard.path_for(engine).read_text())
    version = f"{values['backend_version']} --index-url=evil"
    monkeypatch.setattr("helpers.backends.openvino.engine._build_number", lambda: version)
    EngineCard.path_for(engine).write_text(json.dumps(values | {"backend_version": version}))
    monkeypatch.setattr("helpers.backends.openvino.engine.blob_facts", lambda path: {})
    assert "is no version" in export("-e", engine, "-o", tmp_path / "models").error


# TensorRT's plans

#: (release, form of the network, plugin interface) whose plans Triton's TensorRT backend takes.
PLANS = [network for network in NETWORKS if network[0] != RTX]


def write_plan(path: Path, rng, **options):
    """A small plan of the installed double with the bundled model's tokenizer; its engine card."""
    config = replace(small_config(rng), vocab_size=TOKENIZER.size, type_vocab_size=2, max_position_embeddings=64)
    options = BuildOptions(**options)
    built = backend_module("tensorrt").prepare(config, options).build(weights_of(config, rng))
    return write_engine(path, built, "tensorrt", options, config, TOKENIZER)


class Plan:
    """An exported plan, run as Triton's TensorRT backend runs it: by its configuration alone."""

    def __init__(self, folder: Path):
        self.config = config_of(folder, "bert_engine")
        path = folder / "bert_engine" / "1" / self.config.default_model_filename
        self.session = Session(module.load(module.TENSORRT), gpu.cuda_driver())
        self.session.open(path.read_bytes(), path)
        (group,) = self.config.instance_group
        self.profiles = [int(name) for name in group.profile]
        self.used: list[int] = []

    def run(self, requests: list[dict]) -> list[np.ndarray]:
        """The output of each request of one batch."""
        if self.config.max_batch_size:
            assert sum(len(request["input_ids"]) for request in requests) <= self.config.max_batch_size
        else:
            assert len(requests) == 1, "without a batch dimension there are no batches"
        inputs = batched(self.config, requests)
        assert sorted(inputs) == sorted(self.session.inputs)
        self.used.append(self._profile({name: inputs[name].shape for name in requests[0]}))
        session, slot, tokens = self.session, self.session.next_slot(), inputs["input_ids"].size
        with session.current():
            session.bind(self.used[-1], inputs, slot)
            session.upload(inputs, slot)
            session.enqueue()
            session.download(slot, tokens)
        flat = session.downloaded(slot, tokens)
        dims = tuple(session.context.get_tensor_shape("logits_out"))
        return scattered(self.config, requests, flat.reshape(dims))

    def _profile(self, shapes: dict) -> int:
        """The nearest by the requests' own inputs, among those of the instance group that hold them."""
        engine, distances = self.session.engine, {}
        for index in self.profiles:
            distances[index] = 0
            for name, shape in shapes.items():
                low, best, high = (tuple(dims) for dims in engine.get_tensor_profile_shape(name, index))
                if -1 not in engine.get_tensor_shape(name):
                    low = best = high = tuple(engine.get_tensor_shape(name))
                fits = all(first <= size <= last for first, size, last in zip(low, shape, high))
                distances[index] += sum(abs(x - y) for x, y in zip(best, shape)) if fits else 1 << 60
        return min(distances, key=distances.get)


def exported(export, tmp_path, rng, *flags, **options) -> Plan:
    engine = tmp_path / "plan.engine"
    write_plan(engine, rng, **options)
    result = export("-e", engine, "-o", tmp_path / "models", "--tensorrt-backend", *flags)
    assert result.code == 0, result
    assert (tmp_path / "models" / "bert_engine" / "1" / "model.plan").read_bytes() == engine.read_bytes()
    assert not (tmp_path / "models" / "bert_qa" / "1" / "bert.engine").exists()
    return Plan(tmp_path / "models")


def check_fields(plan: Plan, network: str) -> None:
    """What both layouts have in common, field by field against the plan."""
    config, engine = plan.config, plan.session.engine
    assert (config.name, config.platform, config.backend) == ("bert_engine", "tensorrt_plan", "")
    names = {engine.get_tensor_name(index) for index in range(engine.num_io_tensors)}
    targets = {name for batch_input in config.batch_input for name in batch_input.target_name}
    assert {tensor.name for tensor in config.input} | targets | {"logits_out"} == names
    assert not {tensor.name for tensor in config.input} & targets
    assert all(tensor.data_type == proto.TYPE_INT32 for tensor in (*config.input, *config.batch_input))
    (output,) = config.output
    assert (output.name, output.data_type) == ("logits_out", proto.TYPE_FP32)
    (group,) = config.instance_group
    assert (group.kind, group.count) == (proto.ModelInstanceGroup.KIND_GPU, 2)
    assert len(output.dims) - ({"native": 0, "plugin": 2}[network]) == (2 if config.max_batch_size else 3)


def single_requests(rng, lengths, names) -> list[dict]:
    """Requests of one sequence each."""
    requests = []
    for length in lengths:
        ids = rng.integers(0, TOKENIZER.size, (1, length), dtype=np.int32)
        segments = np.sort(rng.integers(0, 2, (1, length), dtype=np.int32))
        mask = np.arange(length)[None] < rng.integers(1, length + 1)
        request = {"input_ids": ids, "segment_ids": segments, "input_mask": mask.astype(np.int32)}
        requests.append({name: request[name] for name in names})
    return requests


@pytest.mark.sampled(0.4)
@pytest.mark.parametrize("version, network, interface", PLANS)
def test_packed_plans(version, network, interface, export, tmp_path, monkeypatch, rng):
    """Requests of any lengths become one batch; each gets the logits that it gets alone."""
    install(version, monkeypatch)
    kind = {"layout": "packed", "network": network, "plugin_version": interface, "logits_by_token": True}
    sizes = {"batch_sizes": (2, 8), "sequence_lengths": (40,)}
    plan = exported(export, tmp_path, rng, "--instances", 2, **kind, **sizes)
    check_fields(plan, network)
    config = plan.config
    assert [(tensor.name, list(tensor.dims), tensor.allow_ragged_batch) for tensor in config.input] == [
        ("input_ids", [-1], True),
        ("segment_ids", [-1], True),
    ]
    assert [(one.Kind.Name(one.kind), *one.target_name, *one.source_input) for one in config.batch_input] == [
        ("BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO", "cu_seqlens", "input_ids"),
        ("BATCH_MAX_ELEMENT_COUNT_AS_SHAPE", "max_seqlen", "input_ids"),
    ]
    (output,) = config.batch_output
    assert (list(output.target_name), list(output.source_input)) == (["logits_out"], ["input_ids"])
    assert output.Kind.Name(output.kind) == "BATCH_SCATTER_WITH_INPUT_SHAPE"
    engine = plan.session.engine
    # What ragged inputs have to be: one dimension, and dynamic.
    assert all(tuple(engine.get_tensor_shape(name)) == (-1,) for name in INPUT_NAMES["packed"])
    assert list(config.output[0].dims) == list(engine.get_tensor_shape("logits_out"))
    assert config.max_batch_size == 8 and config.HasField("dynamic_batching") and plan.profiles == [1]
    names = ("input_ids", "segment_ids")
    for lengths in ([40], [1], [3] * 8, [40] * 8, rng.integers(1, 41, 5), [1, 40, 1]):
        requests = single_requests(rng, lengths, names)
        together = plan.run(requests)
        assert [logits.shape[:3] for logits in together] == [(1, length, 2) for length in lengths]
        for request, logits in zip(requests, together):
            np.testing.assert_allclose(logits, plan.run([request])[0], atol=1e-5)
    reference = load_engine(tmp_path / "plan.engine", "packed")
    ids, segments = (np.concatenate([request[name][0] for request in requests]) for name in names)
    batch = PackedBatch(ids, segments, np.cumsum([0, 1, 40, 1], dtype=np.int32), np.zeros(40, np.int32))
    logits = np.concatenate([logits.reshape(-1, 2) for logits in together])
    np.testing.assert_allclose(logits, reference.run(batch), atol=1e-5)


@pytest.mark.sampled(0.4)
@pytest.mark.parametrize("version, network, interface", PLANS)
def test_padded_plans(version, network, interface, export, tmp_path, monkeypatch, rng):
    """All profiles are there; requests of one length become a batch, and each gets the logits that it gets alone."""
    install(version, monkeypatch)
    kind = {"network": network, "plugin_version": interface}
    sizes = {"batch_sizes": (1, 4), "sequence_lengths": (8, 16)}
    plan = exported(export, tmp_path, rng, "--instances", 2, **kind, **sizes)
    check_fields(plan, network)
    config = plan.config
    assert [(tensor.name, list(tensor.dims)) for tensor in config.input] == [
        (name, [-1]) for name in INPUT_NAMES["padded"]
    ]
    assert not config.batch_input and not config.batch_output
    assert not any(tensor.allow_ragged_batch for tensor in config.input)
    assert list(config.output[0].dims) == list(plan.session.engine.get_tensor_shape("logits_out"))[1:]
    assert config.max_batch_size == 4 and config.HasField("dynamic_batching") and plan.profiles == [0, 1, 2, 3]
    for length in (8, 16):
        for count in (1, 3, 4):
            requests = single_requests(rng, [length] * count, INPUT_NAMES["padded"])
            together = plan.run(requests)
            for request, logits in zip(requests, together):
                np.testing.assert_allclose(logits, plan.run([request])[0], atol=1e-5)
    assert set(plan.used) == {0, 1, 2, 3}


@pytest.mark.sampled(0.4)
@pytest.mark.parametrize("version, network, interface", PLANS)
def test_plans_of_one_shape_are_not_batched(version, network, interface, export, tmp_path, monkeypatch, rng):
    install(version, monkeypatch)
    sizes = {"batch_sizes": (3,), "sequence_lengths": (16,)}
    plan = exported(export, tmp_path, rng, "--instances", 2, network=network, plugin_version=interface, **sizes)
    check_fields(plan, network)
    config = plan.config
    assert config.max_batch_size == 0 and not config.HasField("dynamic_batching")
    assert {tuple(tensor.dims) for tensor in config.input} == {(3, 16)}
    assert list(config.output[0].dims) == list(plan.session.engine.get_tensor_shape("logits_out"))


def test_a_plan_that_gives_all_start_logits_first_can_t_be_scattered(export, tmp_path, monkeypatch, rng):
    install("10.16.1", monkeypatch)
    engine, options = tmp_path / "plan.engine", {"layout": "packed", "network": "plugin", "sequence_lengths": (16,)}
    write_plan(engine, rng, **options)
    result = export("-e", engine, "-o", tmp_path / "models", "--tensorrt-backend")
    assert "[2, -1, 1, 1], all start logits first" in result.error and not (tmp_path / "models").exists()
    assert export("-e", engine, "-o", tmp_path / "models").code == 0  # bert_qa runs it all the same


def test_scattering_such_a_plan_s_logits_would_be_wrong(export, tmp_path, monkeypatch, rng):
    """That is: the refusal is not for nothing, and the check of scattered logits sees it."""
    install("10.16.1", monkeypatch)
    plan = exported(export, tmp_path, rng, layout="packed", network="native", batch_sizes=(4,), sequence_lengths=(16,))
    requests = single_requests(rng, [5, 7], ("input_ids", "segment_ids"))
    logits = np.arange(24, dtype=np.float32).reshape(12, 2)
    right, wrong = scattered(plan.config, requests, logits), scattered(plan.config, requests, logits.T.copy())
    assert np.array_equal(np.concatenate(right, 1)[0], logits) and not np.array_equal(right[1], wrong[1])


@pytest.mark.parametrize("network", ["plugin", "native"])
def test_the_plugins_library_is_named_where_there_are_plugins(network, export, tmp_path, monkeypatch, rng):
    install("10.16.1", monkeypatch)
    exported(export, tmp_path, rng, network=network, sequence_lengths=(16,))
    contents, readme = read_contents(tmp_path / "models"), (tmp_path / "models" / "README.md").read_text()
    flag = "--backend-config=tensorrt,plugins=libnvinfer_plugin.so.10"
    assert contents.arguments == ([flag] if network == "plugin" else [])
    assert (flag in readme) == (network == "plugin") and "docker run" in readme
    assert contents.gpu and contents.packages == ["numpy", "tokenizers"]
    assert (contents.question_answering, contents.engine) == ("bert_qa", "bert_engine")


SHAPES = {
    "padded": {"batch_sizes": (1, 4), "sequence_lengths": (32, 64)},
    "static": {"batch_sizes": (3,), "sequence_lengths": (64,)},
    "packed": {"batch_sizes": (4,), "sequence_lengths": (64,), "layout": "packed", "logits_by_token": True},
}


@pytest.mark.sampled(0.4)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("network", ["plugin", "native"])
def test_questions_that_the_plan_s_model_is_called_for(shape, network, export, tmp_path, monkeypatch, rng):
    """bert_qa calls bert_engine, whose requests go through the plan one by one: answers are those of the plan itself."""
    install("10.16.1", monkeypatch)
    plan = exported(export, tmp_path, rng, "--n-best-size", 5, network=network, **SHAPES[shape])
    config = config_of(tmp_path / "models", "bert_qa")
    (group,) = config.instance_group
    assert (group.kind, group.count) == (proto.ModelInstanceGroup.KIND_CPU, 2) and not config.model_warmup
    lock, asked = threading.Lock(), []

    def run(model: str, inputs: dict) -> dict:
        assert model == "bert_engine"
        with lock:
            asked.append(inputs["input_ids"].shape)
            return {"logits_out": plan.run([inputs])[0]}

    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", triton_double.backend_utils(run))
    for name in ("helpers.serving.model", "helpers.serving.called_engine"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    model = importlib.import_module("helpers.serving.model")
    answerer = model.open_answerer(tmp_path / "models" / "bert_qa" / "1", parameters(config))
    questions = [(" ".join([PASSAGE] * count), "Who built the mill?") for count in (1, 5, 2, 7)]
    got = list(answerer.ask_many(questions))
    with Answerer.open(tmp_path / "plan.engine", answerer.options) as itself:
        for reply, wanted in zip(got, itself.ask_many(questions)):
            assert (reply.text, reply.windows) == (wanted.text, wanted.windows)
            assert reply.answer.score == pytest.approx(wanted.answer.score, abs=1e-4)
    assert max(reply.windows for reply in got) > 1
    if shape == "packed":
        assert {rows for rows, _ in asked} == {1} and len({length for _, length in asked}) > 2
    else:
        lengths = {"padded": {32, 64}, "static": {64}}[shape]
        assert {length for _, length in asked} == lengths
        assert {rows for rows, _ in asked} == ({3} if shape == "static" else {rows for rows, _ in asked})
    monkeypatch.setattr(plan, "run", lambda requests: (_ for _ in ()).throw(ValueError("out of memory")))
    with pytest.raises(DemoBertError, match="the model bert_engine failed: out of memory"):
        answerer.ask(*questions[0])
    answerer.close()
