"""inference.ipynb, run by a Jupyter kernel and on TensorRT's double; its pictures and its HTML."""

import html
import io
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import builder
from helpers import notebook
from helpers.answerer import Answerer
from helpers.bert_config import BertConfig
from helpers.errors import DemoBertError
from helpers.model_folder import ModelFolder
from scripts.benchmarks.random_model import write_random_model
from tests.conftest import BUNDLED, ROOT
from tests.test_scripts import README_PASSAGE

NOTEBOOK = ROOT / "inference.ipynb"
ANSWER = (
    "a high performance deep learning inference platform"  # to "What is TensorRT?": Hugging Face's, with this model
)
MARKED = re.compile(r"<mark[^>]*>(.*?)</mark>")


def code_cells() -> list[str]:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


@pytest.fixture(scope="module")
def answerer(bundled_engine) -> Answerer:
    return notebook.open_engine(bundled_engine)


def test_the_notebook_is_committed_clean():
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    for cell in cells:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
        assert cell["metadata"] == {}


def test_a_kernel_runs_the_notebook_from_top_to_bottom(tmp_path):
    """In a folder without engines: it builds one. Then somebody types into the form."""
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    for name in ("helpers", "models", "inference.ipynb"):
        (tmp_path / name).symlink_to(ROOT / name)
    read = nbformat.read(tmp_path / "inference.ipynb", as_version=4)
    read.cells[-1].source = f"form = {read.cells[-1].source}\nform"
    read.cells.append(
        nbformat.v4.new_code_cell(
            "passage, question, button, shown = form.children\n"
            "print(shown.value)\n"
            "question.value = 'When was the tower built?'\n"
            "print(shown.value)\n"
            "passage.value = 'The tower was built in 1912.'\n"
            "button.click()\n"
            "print(shown.value)\n"
            "question.value = ' '\n"
            "print(shown.value)"
        )
    )
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(read, timeout=120, kernel_name="python3", resources=resources).execute()
    assert (tmp_path / notebook.BUNDLED_ENGINE).exists()
    opened, asked, bars, tokens, timed, form, typed = [cell.outputs for cell in read.cells if cell.cell_type == "code"]
    assert "padded" in text_of(opened)
    answers = [MARKED.search(output.data["text/html"]).group(1) for output in asked]
    assert len(answers) == 4 and answers[0] == ANSWER
    for picture in (bars, tokens):
        assert [list(output.data) for output in picture] == [["text/plain", "image/png"]]
    assert "99th Percentile" in text_of(timed)
    assert "application/vnd.jupyter.widget-view+json" in form[0].data
    first, second, third, fourth = text_of(typed).splitlines()
    assert [MARKED.search(line).group(1) for line in (first, second, third)] == ["330 metres tall", "1889", "1912"]
    assert fourth == "<div>the question is empty</div>"


def text_of(outputs) -> str:
    return "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")


def test_the_same_cells_run_on_tensorrt(monkeypatch, tmp_path, rng):
    """By the double, which computes in numpy: a random model of one layer. The last cell needs a kernel's widgets."""
    from tests.tensorrt_double import install

    install("10.16.1", monkeypatch)
    monkeypatch.chdir(tmp_path)
    config = BertConfig(64, 1, 2, 128, ModelFolder.open(BUNDLED).tokenizer().size)
    write_random_model("model", config, BUNDLED / "vocab.txt", seed=int(rng.integers(1 << 30)))
    builder.main(["-pt", "model", "-o", "bert.engine", "-s", "64", "--backend", "tensorrt"])
    monkeypatch.setattr(notebook, "BUNDLED_ENGINE", "bert.engine")
    shown = []
    names = {"display": shown.append}
    for cell in code_cells()[:-1]:
        exec(compile(cell, "inference.ipynb", "exec"), names)
    assert names["answerer"].engine.card.backend == "tensorrt"
    answers = [MARKED.search(answered._repr_html_()).group(1) for answered in shown]
    assert len(answers) == 4 and all(answer in README_PASSAGE for answer in answers)


def test_text_is_escaped(answerer):
    passage = "<script>alert(1)</script> The <b>tower</b> & the bridge were built in 1889 by <i>Eiffel</i>."
    question = "Who built the <img src=x onerror=alert(1)> tower?"
    shown = notebook.ask(answerer, passage, question)._repr_html_()
    tags = set(re.findall(r"<\s*(\w+)", shown))
    assert tags == {"div", "b", "mark"} and shown.count("<b>") == 1 and "&lt;script&gt;" in shown
    assert "&lt;img src=x onerror=alert(1)&gt;" in shown


def test_the_mark_is_where_the_answer_is(answerer):
    """The passage around the mark is the passage as it was written, white space and all."""
    passage = "One tower.\n\n  The  tower was built in\t1889 by Eiffel's company — the other one, too."
    answered = notebook.ask(answerer, passage, "When was the tower built?")
    body = re.search(r'pre-wrap[^>]*>(.*?)</div><div style="color', answered._repr_html_(), re.DOTALL).group(1)
    assert html.unescape(re.sub(r"</?mark[^>]*>", "", body)) == passage
    assert MARKED.search(body).group(1) == "1889" == answered.reply.text


def png_size(picture) -> tuple[int, int]:
    assert picture._repr_png_().startswith(b"\x89PNG")
    return tuple(int.from_bytes(picture.png[place : place + 4], "big") for place in (16, 20))


def ink(picture) -> float:
    """The share of pixels that are not white."""
    from matplotlib.image import imread

    return float((imread(io.BytesIO(picture.png))[..., :3].min(axis=2) < 0.95).mean())


def test_pictures_of_any_text(answerer, rng):
    """Long passages, dollar signs (matplotlib's formulas), scripts the font may lack: a picture of bounded size."""
    words = ["$tower$", "\\frac{", "塔", "was", "built", "1889", "été", "🗼", "a_b^c"]
    for count in (2, 40, 700):
        passage = " ".join(rng.choice(words, count))
        answered = notebook.ask(answerer, passage, "When was the $tower$ built?")
        for picture in (answered.runners_up(), answered.token_probabilities()):
            width, height = png_size(picture)
            assert 100 < width < 1500 and 50 < height < 800 and 0.005 < ink(picture) < 0.7


def test_probabilities_of_tokens_are_those_of_the_windows(answerer):
    """Of a passage in one window: the engine's own logits. In many windows: each token's, where it has most context."""
    whole = answerer.ask(README_PASSAGE, "What is TensorRT?", with_tokens=True)
    assert whole.windows == 1 and whole.tokens.logits.shape == whole.tokens.offsets.shape
    best = whole.answer
    start = np.flatnonzero(whole.tokens.offsets[:, 0] == best.start_char)[0]
    end = np.flatnonzero(whole.tokens.offsets[:, 1] == best.end_char)[0]
    assert (whole.tokens.logits[start, 0], whole.tokens.logits[end, 1]) == (best.start_logit, best.end_logit)
    options = replace(answerer.options, sequence_length=48, doc_stride=16)
    cut = Answerer(answerer.engine, answerer.tokenizer, options).ask(
        README_PASSAGE, "What is TensorRT?", 5, with_tokens=True
    )
    assert cut.windows > 1 and cut.tokens.logits.shape == whole.tokens.logits.shape
    starts = np.searchsorted(cut.tokens.offsets[:, 0], [answer.start_char for answer in cut.n_best])
    assert [cut.tokens.logits[place, 0] for place in starts] == [answer.start_logit for answer in cut.n_best]


def test_timing_takes_the_engine_s_own_lengths(bundled_engine, tmp_path, script):
    packed = tmp_path / "packed.engine"
    assert script("builder_varseqlen.py", "-pt", BUNDLED, "-o", packed, "-s", 40, "--backend", "openvino").code == 0
    for path, length in ((bundled_engine, 24), (packed, 40)):
        answerer = notebook.open_engine(path)
        timing = notebook.time_engine(answerer.engine, 24 if path == bundled_engine else 128, iterations=3)
        assert (timing.sequence_length, timing.batch_size, timing.iterations) == (length, 1, 3) and timing.median_ms > 0
        assert notebook.ask(answerer, "Built in 1889.", "When was it built?").reply.text == "1889"


def test_only_the_bundled_engine_is_built_again(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    own = tmp_path / "own.engine"
    own.write_bytes(b"not an engine")
    with pytest.raises(DemoBertError):
        notebook.open_engine(own)
    assert own.read_bytes() == b"not an engine"
    with pytest.raises(DemoBertError, match="not found"):
        notebook.open_engine("missing.engine")
    bundled = Path(notebook.BUNDLED_ENGINE)
    bundled.parent.mkdir()
    bundled.write_bytes(b"of another version")
    assert notebook.open_engine().engine.card.max_sequence_length == 384


def test_without_ipywidgets_the_form_says_what_to_install(monkeypatch, answerer):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    with pytest.raises(DemoBertError, match="pip install -r requirements-notebook.txt"):
        notebook.question_form(answerer, "a", "b")
