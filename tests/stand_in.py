"""inference.py with an engine that computes no network, and random tables of questions to ask it.

What a question gets follows from its tokens alone: `python3 -m tests.stand_in` takes inference.py's flags, and
`write_stand_in` writes the engine that -e names.
"""

import csv
import io
import json
from pathlib import Path
from unittest import mock

import numpy as np

import inference
from helpers import asking, cli
from helpers.answerer import Answerer
from helpers.backends.base import Engine
from helpers.engine_card import EngineCard
from helpers.inference_flags import check_inference_arguments
from helpers.squad import read_squad
from tests.test_answerer import DATA, TOKENIZER, card


class StandIn(Engine):
    """Logits are the remainders of numbers that a token's id and place give; a padded row has the same as one alone."""

    parallel_runs = 3

    def __init__(self, engine_card: EngineCard | None = None):
        super().__init__(engine_card or card())

    def _infer(self, batch):
        numbers = (batch.input_ids.astype(np.uint64) + np.uint64(1)) * np.uint64(2654435761)
        numbers += batch.segment_ids.astype(np.uint64) * np.uint64(40503)
        # What stands before a token counts: the same passage after another question has other answers.
        numbers = np.cumsum(numbers, axis=1)
        both = numbers % np.uint64(10007), numbers % np.uint64(9973)
        return (np.stack(both, axis=-1) / 1000 - 5).astype(np.float32)

    def timed_run(self, batch):
        raise NotImplementedError

    def describe(self):
        return "stand-in"


def write_stand_in(folder: Path) -> Path:
    """An engine's files as far as a stand-in has any."""
    path = folder / "stand_in.engine"
    path.write_bytes(b"stand-in")
    EngineCard.tokenizer_path_for(path).write_bytes(TOKENIZER.json)
    return path


def load(path, layout=None, **_) -> Engine:
    """As `helpers.backends.load_engine`."""
    return StandIn()


def main(arguments) -> int:
    args = inference.parse(arguments)
    check_inference_arguments(args)
    with mock.patch("helpers.answerer.load_tokenizer", lambda *_: TOKENIZER):  # read once for all the tests
        return asking.answer(args, "padded", load)


def answerer(options, engine: Engine | None = None) -> Answerer:
    return Answerer(engine or StandIn(), TOKENIZER, options)


#: What makes a text hard to carry through a CSV file, a JSON line, or a terminal.
_ODD = (
    *('"', '""', ",", ";", "\t", "\n", "\r\n", "\r", "\\", "'", "a,b", 'say "no"', "\u00a0", "   ", "\u2028", "\x0b"),
    *("é", "e\u0301", "東京", "👨\u200d👩\u200d👧", "\U0001f3fd", "\u202e", "\x1b[31m", "\0", "[SEP]", "=1+1", "null"),
)

WORDS = sorted({word for name in ("squad_v1.1.json", "squad_v2.0.json") for example in read_squad(DATA / name).examples
                for word in f"{example.passage} {example.question}".split()})  # fmt: skip


def random_text(rng, longest: int, odd: float = 0.15) -> str:
    """Words, some of them odd; it can be asked about."""
    words = rng.choice(WORDS, int(rng.integers(1, longest + 1))).tolist()
    mixed = [str(rng.choice(_ODD)) if rng.random() < odd else word for word in words[1:]]
    return " ".join([words[0], *mixed])


def random_rows(rng, count: int, longest: int = 40, odd: float = 0.15) -> list[dict]:
    """Rows {id, question, context}: some contexts are those of the row before."""
    rows = []
    for number in range(count):
        is_new = not rows or rng.random() < 0.7
        context = random_text(rng, longest, odd) if is_new else rows[-1]["context"]
        rows.append({"id": f"q{number}", "question": random_text(rng, 8, odd), "context": context})
    return rows


def write_rows(path: Path, rows: list[dict], columns=("id", "question", "context"), delimiter: str = ",") -> Path:
    """`rows` as JSON lines or CSV, as the name says."""
    if path.suffix == ".csv":
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, delimiter=delimiter, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
        path.write_bytes(text.getvalue().encode())
    else:
        path.write_bytes(b"".join(json.dumps(row).encode() + b"\n" for row in rows))
    return path


def read_answers(path: Path) -> list[dict]:
    """The rows of a file of answers; a CSV file's as text."""
    if path.suffix == ".csv":
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    return [json.loads(line) for line in path.read_bytes().splitlines()]


if __name__ == "__main__":
    cli.run(main)
