"""NVIDIA's own Triton with its Python backend, as scripts/serve.sh starts it: answers, refusals, deaths, what listens."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from helpers.answer_options import AnswerOptions
from helpers.answerer import Answerer
from helpers.batching import INPUT_NAMES
from helpers.squad import read_squad
from tests import triton_server
from tests.conftest import BUNDLED, ROOT
from tests.listening import listeners
from tests.test_scripts import xquad
from tests.test_shell_scripts import error_of
from tests.triton_server import Client, Server, ask, body_of, compare, free_ports, post, serving

if (reason := triton_server.missing()) is not None:
    pytest.skip(reason, allow_module_level=True)

# The cores are few: what serves and what is measured stay in one process of a parallel run.
pytestmark = pytest.mark.xdist_group("triton")

PASSAGE = "The mill was built by Ann Roe in 1790. It burned in 1901, and was built again by her grandson Jack."
#: Some seconds of work for the engine.
LONG = " ".join([PASSAGE] * 100)
LONGEST = 30_000
SQUAD = ROOT / "tests" / "data" / "squad_v1.1.json"


@pytest.fixture(scope="module")
def repository(bundled_engine, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("repository") / "models"
    export = [ROOT / "scripts" / "export_triton.py", "-e", bundled_engine, "-o", folder]
    export += ["--instances", 1, "--max-batch-size", 4, "--max-queue-size", 4, "--max-passage", LONGEST]
    subprocess.run([sys.executable, *map(str, export)], check=True)
    return folder


@pytest.fixture(scope="module")
def server(repository):
    with serving("--repository", repository, page=True) as running:
        yield running


@pytest.fixture(scope="module")
def predictions(bundled_engine, tmp_path_factory) -> dict:
    """inference.py's answers to the small file."""
    path = tmp_path_factory.mktemp("predictions") / "predictions.json"
    command = [sys.executable, ROOT / "inference.py", "-e", bundled_engine, "-sq", SQUAD, "-o", path]
    subprocess.run([*map(str, command)], check=True, stdout=subprocess.DEVNULL)
    return json.loads(path.read_text(encoding="utf-8"))


# Answers


def test_it_answers_over_http(server):
    outputs = ask(server.http, PASSAGE, "Who built the mill?", top_k=3)
    (answer,), (start,), (end,) = (outputs[name] for name in ("answer", "start", "end"))
    n_best = json.loads(outputs["n_best"][0])
    assert PASSAGE[start:end] == answer == n_best[0]["text"] and "Ann Roe" in answer
    assert len(n_best) == 3 and n_best[0]["probability"] == outputs["probability"][0]
    assert [one["text"] for one in n_best] == [PASSAGE[one["start_char"] : one["end_char"]] for one in n_best]


def test_places_count_code_points(server):
    passage = "😀 Ünï 日本 — " + PASSAGE
    outputs = ask(server.http, passage, "When did the mill burn?")
    assert passage[outputs["start"][0] : outputs["end"][0]] == outputs["answer"][0] and "1901" in outputs["answer"][0]


def test_one_request_may_ask_several_questions(server):
    questions = ["Who built the mill?", "When did it burn?", "Who built it again?"]
    together = ask(server.http, [PASSAGE] * 3, questions)
    for row, question in enumerate(questions):
        assert ask(server.http, PASSAGE, question)["answer"][0] == together["answer"][row]


def test_it_answers_over_grpc(server):
    grpc = pytest.importorskip("tritonclient.grpc", reason="tritonclient is not installed (requirements-dev.txt)")
    import numpy as np

    with grpc.InferenceServerClient(f"127.0.0.1:{server.grpc}") as client:
        assert client.is_server_ready() and client.is_model_ready("bert_qa")

        def request(passage: bytes, question: bytes, **settings):
            inputs = []
            for name, text in (("passage", passage), ("question", question)):
                tensor = grpc.InferInput(name, [1, 1], "BYTES")
                tensor.set_data_from_numpy(np.array([[text]], object))
                inputs.append(tensor)
            return client.infer("bert_qa", inputs, **settings)

        result = request(PASSAGE.encode(), b"Who built the mill?", parameters={"top_k": 2})
        assert result.as_numpy("answer")[0, 0].decode() == ask(server.http, PASSAGE, "Who built the mill?")["answer"][0]
        assert len(json.loads(result.as_numpy("n_best")[0, 0])) == 2
        for passage, question, said in (
            (b"\xff", b"Who?", "the passage is not UTF-8 text (byte 0)"),
            (PASSAGE.encode(), b" ", "the question is empty"),
        ):
            with pytest.raises(grpc.InferenceServerException) as refused:
                request(passage, question)
            assert refused.value.status() == "StatusCode.INVALID_ARGUMENT" and said in refused.value.message()
        for locked in (client.get_model_repository_index, client.get_system_shared_memory_status):
            with pytest.raises(grpc.InferenceServerException, match="restricted"):
                locked()


def test_squad_s_answers_are_inference_py_s(server, predictions):
    data = read_squad(SQUAD)
    assert len(data.examples) >= 5 and compare(server.http, data, predictions, clients=4) == []


def test_xquad_s_answers_are_inference_py_s(server, bundled_engine, tmp_path):
    """A sample; python3 -m tests.serving_load asks all of them."""
    values = json.loads(xquad().read_text(encoding="utf-8"))
    values["data"] = [article | {"paragraphs": article["paragraphs"][:1]} for article in values["data"][::8]]
    sample, answers = tmp_path / "sample.json", tmp_path / "answers.json"
    sample.write_text(json.dumps(values), encoding="utf-8")
    command = [sys.executable, ROOT / "inference.py", "-e", bundled_engine, "-sq", sample, "-o", answers]
    subprocess.run([*map(str, command)], check=True, stdout=subprocess.DEVNULL)
    data = read_squad(sample)
    assert len(data.examples) >= 20
    assert compare(server.http, data, json.loads(answers.read_text(encoding="utf-8")), clients=4) == []


#: In the place of Triton's TensorRT backend, which is not here: an engine of OpenVINO's, given batches as that gives them.
_CALLED = """
import sys
from pathlib import Path
import numpy as np
import triton_python_backend_utils as pb_utils
sys.path.insert(0, str(Path(__file__).parents[2] / "bert_qa" / "1"))
from helpers.backends import load_engine
from helpers.batching import BATCH_OF_LAYOUT

class TritonPythonModel:
    def initialize(self, args):
        self.engine = load_engine(Path(__file__).with_name("bert.engine"), None)

    def execute(self, requests):
        tensors = [{tensor.name(): tensor.as_numpy() for tensor in request.inputs()} for request in requests]
        if self.engine.card.layout == "padded":
            return [self.response(self.engine.run(BATCH_OF_LAYOUT["padded"](**inputs))) for inputs in tensors]
        lengths = [inputs["input_ids"].size for inputs in tensors]
        assert all(inputs["input_ids"].shape == (1, length) for inputs, length in zip(tensors, lengths))
        ids, segments = (np.concatenate([one[name][0] for one in tensors]) for name in ("input_ids", "segment_ids"))
        bounds = np.cumsum([0, *lengths], dtype=np.int32)
        logits = self.engine.run(BATCH_OF_LAYOUT["packed"](ids, segments, bounds, np.zeros(max(lengths), np.int32)))
        return [self.response(logits[None, first:last]) for first, last in zip(bounds, bounds[1:])]

    def response(self, logits):
        return pb_utils.InferenceResponse([pb_utils.Tensor("logits_out", np.ascontiguousarray(logits, np.float32))])
"""


@pytest.mark.sampled(0.4, group="slow")
@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_a_model_that_runs_the_engine_is_called(layout, repository, bundled_engine, tmp_path):
    """bert_qa reads text, and asks another model of the server for the logits, as it does with TensorRT's plans."""
    pytest.importorskip("tritonclient.grpc", reason="tritonclient is not installed (requirements-dev.txt)")
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2 as proto

    engine = bundled_engine
    if layout == "packed":
        engine = tmp_path / "packed.engine"
        build = [
            ROOT / "builder_varseqlen.py",
            "-pt",
            BUNDLED,
            "-o",
            engine,
            "-b",
            8,
            "-s",
            128,
            "--backend",
            "openvino",
        ]
        subprocess.run([sys.executable, *map(str, build)], check=True, stdout=subprocess.DEVNULL)
    models = tmp_path / "models"
    shutil.copytree(repository, models)
    version = models / "bert_qa" / "1"
    (models / "bert_engine" / "1").mkdir(parents=True)
    for suffix in ("", ".json"):
        shutil.copy(f"{engine}{suffix}", models / "bert_engine" / "1" / f"bert.engine{suffix}")
    shutil.copy(f"{engine}.json", version / "bert.engine.json")
    (version / "bert.engine").unlink()
    (models / "bert_engine" / "1" / "model.py").write_text(_CALLED)
    config = text_format.Parse((models / "bert_qa" / "config.pbtxt").read_text(), proto.ModelConfig())
    called = {"name": "bert_engine", "lengths": [64, 128] if layout == "padded" else [], "rows": None}
    config.parameters["engine_model"].string_value = json.dumps(called)
    options = json.loads(config.parameters["options"].string_value) | {"sequence_length": 128, "batch_size": 4}
    config.parameters["options"].string_value = json.dumps(options)
    config.instance_group[0].count = 2
    del config.model_warmup[:]
    (models / "bert_qa" / "config.pbtxt").write_text(text_format.MessageToString(config))
    inputs = {"padded": INPUT_NAMES["padded"], "packed": INPUT_NAMES["packed"][:2]}[layout]
    own = proto.ModelConfig(name="bert_engine", backend="python", max_batch_size=8)
    for name in inputs:
        own.input.add(name=name, data_type="TYPE_INT32", dims=[-1], allow_ragged_batch=layout == "packed")
    own.output.add(name="logits_out", data_type="TYPE_FP32", dims=[-1, 2])
    own.dynamic_batching.SetInParent()
    own.instance_group.add(count=1, kind="KIND_CPU")
    (models / "bert_engine" / "config.pbtxt").write_text(text_format.MessageToString(own))
    passages = [" ".join([PASSAGE] * count) for count in (1, 4, 12)]
    with Answerer.open(engine, AnswerOptions(sequence_length=128)) as answerer:
        wanted = [answerer.ask(passage, "Who built the mill?") for passage in passages]
    with serving("--repository", models) as running:
        outputs = ask(running.http, passages, ["Who built the mill?"] * 3)
        assert outputs["answer"] == [reply.text for reply in wanted]
        for probability, reply in zip(outputs["probability"], wanted):
            assert probability == pytest.approx(reply.answer.probability, abs=1e-3)
        with Client(running.http) as client:
            _, _, stats = client.request("GET", "/v2/models/bert_engine/stats")
    (counts,) = json.loads(stats)["model_stats"]
    windows = sum(reply.windows for reply in wanted)
    assert windows >= 5 and counts["inference_count"] == windows


# Refusals


@pytest.mark.parametrize(
    "passage, question, parameters, said",
    [
        ("", "Who?", {}, "the passage is empty"),
        (PASSAGE, " \n", {}, "the question is empty"),
        ("a" * (LONGEST + 1), "Who?", {}, f"the passage has {LONGEST + 1} characters: at most {LONGEST} are answered"),
        (PASSAGE, "Who?", {"top_k": 0}, "top_k must be a whole number from 1 to 20, not 0"),
        (PASSAGE, "Who?", {"topk": 1}, "there is no parameter 'topk', only top_k"),
        ([PASSAGE, ""], ["Who?", "When?"], {}, "question 2 of 2: the passage is empty"),
    ],
)
def test_bad_requests_get_one_line_of_ours(server, passage, question, parameters, said):
    assert post(server.http, body_of(passage, question, parameters)) == (400, {"error": said})


def test_text_that_is_not_utf_8_is_refused(server):
    body = body_of("PASSAGE", "Who?").replace(b"PASSAGE", b"caf\xe9 \xff")
    assert post(server.http, body) == (400, {"error": "the passage is not UTF-8 text (byte 3)"})


def test_ten_megabytes_are_refused_at_once_and_disturb_nobody(server):
    """As text, and as Triton's binary form; a short one beside them is answered."""
    passage = "The mill was built by Ann Roe. " * (10_000_000 // 31)
    began = time.monotonic()
    status, reply = post(server.http, body_of(passage, "Who?"))
    assert status == 400 and f"at most {LONGEST} are answered" in reply["error"]
    assert time.monotonic() - began < 30
    assert "Ann Roe" in ask(server.http, PASSAGE, "Who built the mill?")["answer"][0]


@pytest.mark.sampled(0.4, group="slow")
def test_ten_megabytes_are_answered_where_that_is_asked_for(bundled_engine):
    """Mostly blanks: they take no windows, but all the way through Triton, and places count them."""
    passage = " " * 5_000_000 + "\n" + PASSAGE + "😀" * 5 + " " * 5_000_000
    with serving("-e", bundled_engine, "--max-passage", 11_000_000) as running:
        outputs = ask(running.http, passage, "Who built the mill?")
        assert passage[outputs["start"][0] : outputs["end"][0]] == outputs["answer"][0]
        assert "Ann Roe" in outputs["answer"][0] and outputs["start"][0] > 5_000_000
        assert len(running.backends()) == 2  # the default on a CPU


@pytest.mark.parametrize(
    "change",
    [
        lambda body: body["inputs"].pop(),
        lambda body: body["inputs"].append({"name": "x", "shape": [1, 1], "datatype": "BYTES", "data": ["a"]}),
        lambda body: body["inputs"][0].update(shape=[1, 2], data=["a", "b"]),
        lambda body: body["inputs"][0].update(shape=[2, 1], data=["a", "b"]),
        lambda body: body["inputs"][0].update(datatype="INT32", data=[1]),
        lambda body: [one.update(shape=[5, 1], data=["a"] * 5) for one in body["inputs"]],
        lambda body: [one.update(shape=[0, 1], data=[]) for one in body["inputs"]],
        lambda body: body.update(outputs=[{"name": "nonsense"}]),
    ],
    ids=["missing", "too many", "shape", "batch", "type", "batch size", "empty", "output"],
)
def test_requests_of_another_form_are_refused_by_triton(server, change):
    body = json.loads(body_of(PASSAGE, "Who?"))
    change(body)
    status, reply = post(server.http, json.dumps(body).encode())
    assert 400 <= status < 500 and reply["error"]
    assert_no_path(json.dumps(reply))


def assert_no_path(text: str) -> None:
    """Nothing of the server's machine: its folders, its programs."""
    assert not re.search(r"/(tmp|root|home|work|usr|opt|var|etc|proc|dev)/", text), text
    assert str(ROOT) not in text and "site-packages" not in text


def test_no_reply_names_a_path(server):
    """Of whatever the protocol has; JSON that is none, models that are none."""
    with Client(server.http) as client:
        paths = ["", "/health/ready", "/models/bert_qa", "/models/bert_qa/config", "/models/bert_qa/stats", "/logging"]
        paths += ["/models/nope", "/trace/setting", "/systemsharedmemory/status", "/models/bert_qa/versions/9"]
        for path in paths:
            _, headers, body = client.request("GET", f"/v2{path}")
            assert_no_path(json.dumps(headers) + body.decode())
        for path in ("/repository/index", "/repository/models/bert_qa/load", "/repository/models/x/unload", "/logging"):
            _, headers, body = client.request("POST", f"/v2{path}", b"{}")
            assert_no_path(json.dumps(headers) + body.decode())
        for body in (b"", b"{", b"[]", b'{"inputs": 1}', b"\xff" * 1000, b'{"inputs": [{"name": "passage"}]}'):
            status, _, reply = client.request("POST", "/v2/models/bert_qa/infer", body)
            assert status >= 400
            assert_no_path(reply.decode())


@pytest.mark.parametrize(
    "method, path, body",
    [
        ("POST", "/v2/repository/index", b""),
        ("POST", "/v2/repository/models/bert_qa/unload", b"{}"),
        ("POST", "/v2/repository/models/bert_qa/load", b"{}"),
        ("POST", "/v2/systemsharedmemory/region/x/register", b'{"key": "/x", "offset": 0, "byte_size": 8}'),
        ("POST", "/v2/cudasharedmemory/region/x/register", b"{}"),
        ("POST", "/v2/logging", b'{"log_verbose_level": 9}'),
        ("POST", "/v2/trace/setting", b'{"trace_level": ["TIMESTAMPS"]}'),
        ("POST", "/v2/models/bert_qa/trace/setting", b"{}"),
    ],
)
def test_what_only_its_owner_should_do_is_locked(server, method, path, body):
    with Client(server.http) as client:
        status, _, reply = client.request(method, path, body)
        assert status == 403 and b"restricted" in reply
        status, _, reply = client.request(method, path, body, {"nobody": "guess"})
        assert status == 403


def test_a_full_queue_refuses_at_once_and_says_so(server):
    """One is worked on, four may wait, the others are refused while it is still worked on."""
    ends = {}

    def run(name, passage):
        status, reply = post(server.http, body_of(passage, "Who built the mill?"))
        ends[name] = (status, reply, time.monotonic())

    threads = [threading.Thread(target=run, args=(name, PASSAGE if name else LONG)) for name in range(11)]
    threads[0].start()
    time.sleep(0.5)
    for thread in threads[1:]:
        thread.start()
    for thread in threads:
        thread.join()
    refused = [(reply, end) for status, reply, end in ends.values() if status == 503]
    assert len(refused) >= 5 and ends[0][0] == 200
    assert all(status in (200, 503) for status, _, _ in ends.values())
    assert all("Exceeds maximum queue size" in reply["error"] for reply, _ in refused)
    assert max(end for _, end in refused) < ends[0][2]


# What listens, and what does not


def processes(server: Server) -> set[int]:
    return {server.process.pid, server.triton(), *server.backends()}


def test_nothing_listens_on_another_address_than_loopback(server):
    found = listeners(processes(server))
    ports = {port for _, port in found}
    assert {server.http, server.grpc, server.metrics, server.page} == ports
    assert {address for address, _ in found} <= {"127.0.0.1", "::ffff:127.0.0.1"}


@pytest.mark.sampled(0.4, group="slow")
def test_another_address_is_asked_for(repository):
    with serving("--repository", repository, page=True, address="0.0.0.0") as running:
        assert {address for address, _ in listeners(processes(running))} <= {"0.0.0.0", "::", "::ffff:0.0.0.0"}
        assert "It listens on 0.0.0.0: whoever reaches that may ask it" in running.text
        assert ask(running.http, PASSAGE, "Who built the mill?")["answer"]


def test_health_and_metrics_are_there(server):
    with Client(server.http) as client:
        for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/bert_qa/ready"):
            assert client.request("GET", path)[0] == 200
    ask(server.http, PASSAGE, "Who?")
    with Client(server.metrics) as client:
        status, _, body = client.request("GET", "/metrics")
    metrics = body.decode()
    assert status == 200
    for name in (
        "nv_inference_request_success",
        "nv_inference_queue_duration_us",
        "nv_inference_pending_request_count",
    ):
        assert re.search(rf'^{name}{{model="bert_qa".* \d', metrics, re.M)


# Deaths, and ends


@pytest.mark.sampled(0.4, group="slow")
def test_a_backend_process_that_is_killed(repository):
    """Who asked it is told; the server says what was lost, and answers again."""
    with serving("--repository", repository) as running:
        (victim,) = running.backends()
        wanted = ask(running.http, PASSAGE, "Who built the mill?")["answer"]
        lost = []
        waiting = threading.Thread(target=lambda: lost.append(post(running.http, body_of(LONG, "Who?"))))
        waiting.start()
        time.sleep(0.5)
        os.kill(victim, signal.SIGKILL)
        waiting.join()
        ((status, reply),) = lost
        assert status == 500 and "not healthy" in reply["error"]
        assert_no_path(json.dumps(reply))
        running.wait_for("the server answers again")
        assert f"the backend process {victim} died (signal 9, SIGKILL): the questions that it worked on" in running.text
        assert "and who asked them is told so" in running.text and "starting the server again" in running.text
        assert ask(running.http, PASSAGE, "Who built the mill?")["answer"] == wanted
        assert victim not in running.backends()
        os.kill(running.triton(), signal.SIGKILL)
        running.wait_for("the server answers again", times=2)
        assert "the server died (signal 9, SIGKILL): what it was asked, and had not answered, is lost" in running.text
        assert ask(running.http, PASSAGE, "Who built the mill?")["answer"] == wanted


@pytest.mark.sampled(0.4, group="slow")
def test_a_server_that_dies_again_and_again_is_given_up(repository):
    server = Server("--repository", repository).wait_until_ready()
    try:
        for time_ in range(3):
            os.kill(server.triton(), signal.SIGKILL)
            if time_ < 2:
                server.wait_for("the server answers again", times=time_ + 1)
        server.process.wait(60)
    finally:
        server.stop()
    assert server.process.returncode == 1
    assert server.lines[-1] == "serve.sh: error: the server died 3 times within 60 seconds: it is given up"


@pytest.mark.sampled(0.4, group="slow")
def test_sigterm_finishes_what_is_in_flight(repository):
    server = Server("--repository", repository, "--exit-timeout", 150).wait_until_ready()
    pids = processes(server)
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(post(server.http, body_of(LONG, "Who?")))) for _ in "abc"]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    assert not answers
    assert server.stop(signal.SIGTERM) == 0
    for thread in threads:
        thread.join()
    assert [status for status, _ in answers] == [200, 200, 200]
    assert "stopping: what is in flight is finished first" in server.text
    assert "Traceback" not in server.text and "lost" not in server.text
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


@pytest.mark.sampled(0.4, group="slow")
def test_what_is_not_finished_in_time_is_said_to_be_lost(repository):
    server = Server("--repository", repository, "--exit-timeout", 1).wait_until_ready()
    with Client(server.http) as client:
        client.send(body_of(" ".join([LONG] * 2), "Who?"))
        time.sleep(0.5)
        began = time.monotonic()
        assert server.stop(signal.SIGTERM) == 0
        assert time.monotonic() - began < 30
        assert "what was still in flight, if anything was, is lost" in server.lines[-1]


@pytest.mark.sampled(0.4, group="slow")
def test_ctrl_c_ends_it_and_leaves_nothing(bundled_engine, tmp_path, monkeypatch):
    """Its temporary files are gone, too."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    server = Server("-e", bundled_engine).wait_until_ready()
    pids = processes(server)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("demobert-serve-")]
    assert server.stop(signal.SIGINT) == 130
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("demobert-serve-")]
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


@pytest.mark.sampled(0.4, group="slow")
def test_a_supervisor_that_is_killed_takes_the_server_along(repository):
    server = Server("--repository", repository).wait_until_ready()
    pids = processes(server) - {server.process.pid}
    server.process.kill()
    server.process.wait()
    end = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < end:
        time.sleep(0.1)
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


# Mistakes


def run_serve(*arguments) -> subprocess.CompletedProcess:
    command = [triton_server.PYTHON, ROOT / "scripts" / "serving" / "serve.py", *arguments]
    return subprocess.run([*map(str, command)], cwd="/", capture_output=True, text=True, timeout=triton_server.PATIENCE)


def test_a_port_in_use_is_one_line(repository):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        others = free_ports(2)
        flags = [f"--{name}-port={number}" for name, number in zip(("grpc", "metrics"), others)]
        result = run_serve("--repository", repository, f"--http-port={port}", *flags)
    assert f"127.0.0.1:{port} can't be listened on: Address already in use; name another --http-port" in error_of(
        result
    )
    assert len(result.stderr.splitlines()) == 1


def test_a_model_that_can_t_be_loaded_is_one_line(repository, tmp_path):
    """Here an engine that became another."""
    shutil.copytree(repository, tmp_path / "models")
    engine = tmp_path / "models" / "bert_qa" / "1" / "bert.engine"
    with engine.open("r+b") as file:
        file.truncate(1000)
    ports = [f"--{name}-port={port}" for name, port in zip(("http", "grpc", "metrics"), free_ports(3))]
    result = run_serve("--repository", tmp_path / "models", *ports)
    assert "the server could not start: " in error_of(result) and "truncated" in error_of(result)


def test_an_engine_that_can_t_be_exported_is_said(tmp_path):
    (tmp_path / "x.engine").write_text("nonsense")
    result = run_serve("-e", tmp_path / "x.engine")
    assert "the engine could not be exported" in error_of(result) and "export_triton.py: error: " in result.stderr
    assert "engine not found" in error_of(run_serve("-e", tmp_path / "none"))
    assert "it has no demobert_export.json" in error_of(run_serve("--repository", tmp_path))
