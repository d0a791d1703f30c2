"""What inference.ipynb shows: an engine, built where there is none, answers in their passage, pictures, a form."""

import contextlib
import html
import io
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from helpers import cli
from helpers.answerer import Answerer, Reply
from helpers.backends.base import BuildOptions, Engine
from helpers.benchmark import Timing, random_batch, random_packed_batch
from helpers.building import build_folder
from helpers.errors import DemoBertError, missing_package
from helpers.pictures import new_figure

BUNDLED_MODEL = Path(__file__).resolve().parent.parent / "models" / "bundled" / "bert_mini_squad11"

#: Where scripts/quickstart.sh puts the bundled model's engine; that one may be built again, others may not.
BUNDLED_ENGINE = "engines/bert_mini_384.engine"

#: Tokens that a picture shows at most: more names could not be read.
_MAX_TOKENS_SHOWN = 90

_MAX_ANSWERS_SHOWN = 8


def open_engine(path=BUNDLED_ENGINE) -> Answerer:
    """The engine at `path`, CPU or TensorRT, padded or packed, ready for questions. Raises DemoBertError.

    The bundled model's engine is built first where it is missing, or can't be loaded by this machine.
    """
    path = Path(path)
    try:
        return Answerer.open(path, say=cli.note)
    except DemoBertError:
        if path != Path(BUNDLED_ENGINE):
            raise
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.redirect_stderr(sys.stdout):  # Jupyter shows what comes by stderr as if it were a failure
        build_folder(BUNDLED_MODEL, path, BuildOptions(batch_sizes=(8,), sequence_lengths=(384,)))
    return Answerer.open(path, say=cli.note)


def ask(answerer: Answerer, passage: str, question: str) -> "Answered":
    """The answer to one question, which shows itself in its passage. Raises DemoBertError for text without words."""
    reply = answerer.ask(passage, question, answerer.options.n_best_size, with_tokens=True)
    return Answered(passage, question, reply)


@dataclass(frozen=True)
class Picture:
    """A PNG image, as Jupyter shows one."""

    png: bytes

    def _repr_png_(self) -> bytes:
        return self.png


@dataclass(frozen=True)
class Answered:
    """A question with its answers. Jupyter shows it as HTML, in which every text is escaped."""

    passage: str
    question: str
    reply: Reply

    def _repr_html_(self) -> str:
        best = self.reply.answer
        start, end = best.start_char, best.end_char
        before, answer, after = (html.escape(text) for text in (self.passage[:start], best.text, self.passage[end:]))
        milliseconds = self.reply.seconds * 1e3
        return (
            '<div style="max-width: 50em; margin: 0.5em 0 1em">'
            f"<div><b>{html.escape(self.question)}</b></div>"
            f'<div style="white-space: pre-wrap; margin: 0.3em 0">{before}'
            f'<mark style="background: #ffe08a; color: black; padding: 0 0.15em">{answer}</mark>{after}</div>'
            f'<div style="color: gray">probability {best.probability:.1%}, {milliseconds:.1f} ms</div></div>'
        )

    def runners_up(self) -> Picture:
        """The best answers and their probabilities, as bars."""
        answers = self.reply.n_best[:_MAX_ANSWERS_SHOWN][::-1]
        figure, axes = new_figure(8, 0.6 + 0.4 * len(answers), "the pictures")
        shares = [100 * answer.probability for answer in answers]
        names = [_shortened(answer.text, 60) for answer in answers]
        bars = axes.barh(range(len(answers)), shares, color=["tab:blue"] * (len(answers) - 1) + ["tab:orange"])
        axes.bar_label(bars, fmt="%.1f %%", padding=3)
        axes.set_yticks(range(len(answers)), names, parse_math=False)
        axes.set(xlabel="probability among the answers (%)", xlim=(0, max(shares) * 1.15))
        axes.spines[["top", "right"]].set_visible(False)
        return _as_picture(figure)

    def token_probabilities(self) -> Picture:
        """The probability of each token to be the answer's first and its last: softmax over the passage's tokens."""
        shown = self._tokens_shown()
        probabilities = 100 * _softmax(self.reply.tokens.logits)[shown]
        names = [_shortened(self.passage[start:end], 14) for start, end in self.reply.tokens.offsets[shown].tolist()]
        figure, axes = new_figure(max(4, 1 + 0.13 * len(names)), 3.4, "the pictures")
        places = np.arange(len(names))
        for column, (label, color) in enumerate((("start", "tab:blue"), ("end", "tab:orange"))):
            axes.bar(places + 0.4 * column - 0.2, probabilities[:, column], 0.4, label=label, color=color)
        axes.set_xticks(places, names, rotation=90, fontsize=7, parse_math=False)
        axes.set(ylabel="probability (%)", xlim=(-1, len(names)))
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend()
        return _as_picture(figure)

    def _tokens_shown(self) -> slice:
        """All of the passage's tokens, or, of a long passage, those around the answer."""
        offsets, best = self.reply.tokens.offsets, self.reply.answer
        middle = int(np.searchsorted(offsets[:, 0], best.start_char))
        first = min(middle - _MAX_TOKENS_SHOWN // 2, len(offsets) - _MAX_TOKENS_SHOWN)
        first = max(first, 0)
        return slice(first, first + _MAX_TOKENS_SHOWN)


def time_engine(engine: Engine, sequence_length: int = 128, iterations: int = 50) -> Timing:
    """Latency of one full sequence, or of the engine's longest where that is shorter."""
    length = min(sequence_length, engine.card.max_sequence_length)
    if engine.card.layout == "packed":
        batch = random_packed_batch(engine.card, [length], seed=0)
    else:
        batch = random_batch(engine.card, 1, length, seed=0)
    return Timing.of(engine.time(batch, iterations, warm_up_runs=5), 1, length, length)


def question_form(answerer: Answerer, passage: str, question: str):
    """A form for a passage and a question of one's own, with the answer below; the given ones are answered at once."""
    try:
        import ipywidgets as widgets
    except ImportError as error:
        raise missing_package("ipywidgets", "-r requirements-notebook.txt", "the question form") from error
    wide = widgets.Layout(width="50em")
    passage_box = widgets.Textarea(passage, description="Passage", rows=7, layout=wide)
    question_box = widgets.Text(question, description="Question", layout=wide)
    button = widgets.Button(description="Ask", button_style="primary")
    shown = widgets.HTML()

    def answer(_=None) -> None:
        try:
            shown.value = ask(answerer, passage_box.value, question_box.value)._repr_html_()
        except DemoBertError as error:
            shown.value = f"<div>{html.escape(cli.one_line(error))}</div>"

    button.on_click(answer)
    question_box.continuous_update = False  # the value changes on Enter, or when the field is left
    question_box.observe(answer, "value")
    answer()
    return widgets.VBox([passage_box, question_box, button, shown])


def _softmax(logits: np.ndarray) -> np.ndarray:
    """Softmax over the first axis."""
    exponentials = np.exp(logits - logits.max(axis=0))
    return exponentials / exponentials.sum(axis=0)


def _shortened(text: str, length: int) -> str:
    text = cli.one_line(text)
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _as_picture(figure) -> Picture:
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # scripts that the font lacks are boxes
        figure.savefig(stream, format="png", dpi=100)
    return Picture(stream.getvalue())
