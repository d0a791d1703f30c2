"""What runs inside Triton, without Triton: requests → replies, errors, the model's interface, its share of the cores."""

import ast
import json
import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from helpers.answer_options import AnswerOptions
from helpers.answerer import Answerer
from helpers.errors import DemoBertError
from helpers.serving.service import Request, Service
from tests import triton_double
from tests.conftest import ROOT
from tests.stand_in import StandIn
from tests.test_answerer import TOKENIZER
from tests.triton_double import question

PASSAGE = "The mill was built by Ann Roe in 1790. It burned in 1901, and was built again by her grandson Jack."
LONGEST = 2000


@pytest.fixture
def answerer():
    return Answerer(StandIn(), TOKENIZER, AnswerOptions(sequence_length=48, doc_stride=16))


@pytest.fixture
def service(answerer):
    return Service(answerer, LONGEST)


def asked(passage=PASSAGE, asks="Who built the mill?", **parameters) -> Request:
    def data(texts):
        texts = texts if isinstance(texts, list) else [texts]
        return [text if isinstance(text, bytes) else text.encode() for text in texts]

    return Request(data(passage), data(asks), parameters)


def test_requests_of_several_questions_get_what_the_answerer_says_of_each(service, answerer):
    requests = [
        asked(),
        asked([PASSAGE, "Tea is drunk hot."], ["When did it burn?", "How is tea drunk?"], top_k=3),
        asked(PASSAGE * 9, "Who is Jack?", top_k=2),
    ]
    outcomes = service.answer(requests)
    assert [len(outcome) for outcome in outcomes] == [1, 2, 1]
    for request, outcome in zip(requests, outcomes):
        for passage, one, reply in zip(request.passages, request.questions, outcome):
            alone = answerer.ask(passage.decode(), one.decode(), request.parameters.get("top_k", 1))
            assert reply.answer == alone.answer and reply.n_best == alone.n_best and reply.windows == alone.windows
            assert passage.decode()[reply.answer.start_char : reply.answer.end_char] == reply.text


def test_all_questions_of_a_batch_go_through_the_engine_together(service, answerer, monkeypatch):
    seen, ask_in_chunks = [], answerer.ask_in_chunks
    monkeypatch.setattr(answerer, "ask_in_chunks", lambda rows, top_k: seen.append(rows) or ask_in_chunks(rows, top_k))
    service.answer([asked(), asked([PASSAGE] * 3, ["a", "b", "c"])])
    assert [[one for _, one in rows] for rows in seen] == [["Who built the mill?", "a", "b", "c"]]


@pytest.mark.parametrize(
    "request_, said",
    [
        (asked(b"\xff\xfe"), "the passage is not UTF-8 text (byte 0)"),
        (asked(asks=b"who \xc3"), "the question is not UTF-8 text (byte 4)"),
        (asked(b"\xed\xa0\x80"), "the passage is not UTF-8 text (byte 0)"),  # half a surrogate pair
        (asked(""), "the passage is empty"),
        (asked(asks=" \n"), "the question is empty"),
        (asked(asks="\x00\x01"), "the question has no readable characters"),
        (asked("a" * (LONGEST + 1)), "the passage has 2001 characters: at most 2000 are answered"),
        (asked("é" * LONGEST * 9), "the passage has 18000 characters: at most 2000 are answered"),
        (asked(top_k=0), "top_k must be a whole number from 1 to 20, not 0"),
        (asked(top_k=21), "top_k must be a whole number from 1 to 20, not 21"),
        (asked(top_k=True), "top_k must be a whole number from 1 to 20, not True"),
        (asked(top_k="3"), "top_k must be a whole number from 1 to 20, not '3'"),
        (asked(top_k=2.0), "top_k must be a whole number from 1 to 20, not 2.0"),
        (asked(topk=3), "there is no parameter 'topk', only top_k"),
        (asked([PASSAGE, PASSAGE], ["Who?"]), "2 passages and 1 questions"),
        (asked([PASSAGE] * 3, ["Who?", "", "When?"]), "question 2 of 3: the question is empty"),
        (asked([PASSAGE, b"\xff"], ["Who?", "When?"]), "question 2 of 2: the passage is not UTF-8 text (byte 0)"),
    ],
)
def test_a_request_that_can_t_be_answered_costs_no_other(service, request_, said):
    before, outcome, after = service.answer([asked(), request_, asked(asks="When did it burn?")])
    assert isinstance(outcome, DemoBertError) and str(outcome) == said
    assert before[0].question == "Who built the mill?" and after[0].question == "When did it burn?"
    assert before[0].answer == service.answer([asked()])[0][0].answer


def test_what_is_said_of_a_request_is_one_line_however_long_its_words_are(service):
    (outcome,) = service.answer([asked(**{"x\n\x1b" * 5000: 1})])
    assert len(str(outcome)) <= 300 and str(outcome).isprintable()


def test_several_threads_share_a_service(service):
    questions = [f"Who built mill {number}?" for number in range(40)]
    alone = {text: service.answer([asked(asks=text)])[0][0].answer for text in questions}
    got = {}

    def ask(own):
        for text in own:
            got[text] = service.answer([asked(asks=text)])[0][0].answer

    threads = [threading.Thread(target=ask, args=(questions[first::4],)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == alone


# The model's interface


@pytest.fixture
def model(monkeypatch):
    """helpers/serving/model.py with Triton's module, and its functions."""
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", triton_double.backend_utils())
    monkeypatch.delitem(sys.modules, "helpers.serving.model", raising=False)
    import helpers.serving.model as module

    yield module
    sys.modules.pop("helpers.serving.model")


def config(settings: dict | None = None, groups=(("KIND_CPU", 1),)) -> dict:
    settings = {"engine": "x.engine", "options": "{}", "max_passage": str(LONGEST), "prepare_for": "latency"} | (
        settings or {}
    )
    return {
        "parameters": {name: {"string_value": value} for name, value in settings.items()},
        "instance_group": [{"kind": kind, "count": count} for kind, count in groups],
    }


def started(model, answerer, monkeypatch, tmp_path, **settings):
    """A TritonPythonModel over a stand-in."""
    monkeypatch.setattr(model, "open_answerer", lambda folder, values: answerer)
    monkeypatch.setattr(model, "take_device", lambda args, values: None)
    monkeypatch.setattr(sys, "path", list(sys.path))
    triton = model.TritonPythonModel()
    triton.initialize(
        {"model_config": json.dumps(config(settings)), "model_repository": str(tmp_path), "model_version": "1"}
    )
    assert sys.path[0] == str(tmp_path / "1")
    return triton


def test_outputs_have_a_row_for_each_question(model, answerer, monkeypatch, tmp_path):
    triton = started(model, answerer, monkeypatch, tmp_path)
    passage = "😀 Ä " + PASSAGE
    both, bad = triton.execute([question([passage, PASSAGE], ["Who?", "When?"], top_k=2), question("", "Who?")])
    outputs = both.outputs()
    assert {name: (array.shape, array.dtype) for name, array in outputs.items()} == {
        "answer": ((2, 1), object),
        "probability": ((2, 1), np.float64),
        "start": ((2, 1), np.int64),
        "end": ((2, 1), np.int64),
        "n_best": ((2, 1), object),
    }
    for row, text in enumerate((passage, PASSAGE)):
        start, end = int(outputs["start"][row, 0]), int(outputs["end"][row, 0])
        assert text[start:end] == outputs["answer"][row, 0].decode()
        n_best = json.loads(outputs["n_best"][row, 0])
        assert len(n_best) == 2 and n_best[0]["text"] == text[start:end]
        assert n_best[0]["probability"] == outputs["probability"][row, 0]
    assert bad.error().code() == "INVALID_ARG" and bad.error().message() == "the passage is empty"
    triton.finalize()
    with pytest.raises(DemoBertError, match="the engine was closed"):
        answerer.ask(PASSAGE, "Who?")


@pytest.mark.parametrize("error", [DemoBertError("/a/path broke"), RuntimeError("/a/path"), MemoryError()])
def test_a_failure_of_the_server_s_own_names_nothing_of_its_machine(
    model, answerer, monkeypatch, tmp_path, capfd, error
):
    triton = started(model, answerer, monkeypatch, tmp_path)

    def failing(batch):
        raise error

    monkeypatch.setattr(answerer.engine, "submit", failing)
    responses = triton.execute([question(PASSAGE, "Who?"), question(PASSAGE, "When?")])
    assert {(response.error().code(), response.error().message()) for response in responses} == {
        ("INTERNAL", "the server failed on this question; its log says why")
    }
    assert type(error).__name__ in capfd.readouterr().err
    monkeypatch.undo()
    assert not triton.execute([question(PASSAGE, "Who?")])[0].has_error()  # it goes on


def test_an_engine_that_can_t_be_opened_is_one_line(model, monkeypatch, tmp_path):
    monkeypatch.setattr(model, "take_device", lambda args, values: None)
    monkeypatch.setattr(sys, "path", list(sys.path))
    triton = model.TritonPythonModel()
    args = {"model_config": json.dumps(config()), "model_repository": str(tmp_path), "model_version": "1"}
    with pytest.raises(model.pb_utils.TritonModelException, match="^engine not found"):
        triton.initialize(args)


# Devices


@pytest.mark.parametrize("cores", [[0], [0, 1], [3, 5, 6], list(range(64))])
@pytest.mark.parametrize("instances", [1, 2, 3, 5, 64, 70])
def test_instances_divide_the_cores(model, cores, instances):
    shares = [model.cores_of(index, instances, cores) for index in range(instances)]
    assert all(share for share in shares) and set().union(*shares) <= set(cores)
    if instances <= len(cores):
        assert sorted(core for share in shares for core in share) == cores
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
    else:
        counts = [sum(core in share for share in shares) for core in cores]
        assert max(counts) - min(counts) <= 1


def args_of(name: str, kind: str = "CPU", device: str = "0") -> dict:
    return {"model_instance_name": name, "model_instance_kind": kind, "model_instance_device_id": device}


@pytest.mark.parametrize(
    "name, groups, wanted",
    [
        ("bert_qa_0_0", [("KIND_CPU", 1)], [0, 1, 2, 3]),
        ("bert_qa_0_1", [("KIND_CPU", 2)], [2, 3]),
        ("my_bert_2_qa_1_0", [("KIND_CPU", 1), ("KIND_CPU", 3)], [1]),
        ("bert_qa_0_5", [("KIND_CPU", 8)], [1]),
    ],
)
def test_a_process_keeps_to_its_share_of_the_cores(model, monkeypatch, name, groups, wanted):
    kept = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 1, 0, 2})
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cores: kept.append((pid, cores)))
    model.take_device(args_of(name), config(groups=groups))
    assert kept == [(0, wanted)]


@pytest.mark.parametrize(("seen", "wanted"), [(None, "1"), ("", "1"), ("4,7", "7"), ("GPU-a,GPU-b", "GPU-b")])
def test_a_process_keeps_to_its_gpu(model, monkeypatch, seen, wanted):
    monkeypatch.setattr(os, "sched_setaffinity", None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if seen is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", seen)
    model.take_device(args_of("bert_qa_0_0", "GPU", "1"), config(groups=[("KIND_GPU", 1)]))
    assert os.environ["CUDA_VISIBLE_DEVICES"] == wanted


def test_those_that_only_read_text_share_the_cores(model, monkeypatch):
    monkeypatch.setattr(os, "sched_setaffinity", None)
    model.take_device(args_of("bert_qa_0_1"), config({"engine_model": "{}"}, [("KIND_CPU", 2)]))


def test_openvino_takes_the_cores_that_the_process_may_use(bundled_engine):
    """Which is why no engine is told of a number of threads."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        pytest.skip("there is one core")
    script = (
        "import os, sys; os.sched_setaffinity(0, {int(sys.argv[2])})\n"
        "from helpers.backends import load_engine\n"
        "print(load_engine(sys.argv[1], None, throughput=True).describe())"
    )
    command = [sys.executable, "-c", script, str(bundled_engine), str(cores[-1])]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert "1 threads in 1 streams" in result.stdout


def test_the_model_imports_nothing_heavy_before_it_has_its_device():
    """Else OpenVINO would count all cores, CUDA all GPUs."""
    tree = ast.parse((ROOT / "helpers" / "serving" / "model.py").read_text(encoding="utf-8"))
    imports = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    names = {alias.name for node in imports for alias in node.names} | {
        getattr(node, "module", None) for node in imports
    }
    assert not [name for name in names if name and name.startswith("helpers")]
