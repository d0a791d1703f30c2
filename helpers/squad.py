"""SQuAD files (v1.1: arXiv:1606.05250, v2.0: arXiv:1806.03822) and their metrics. Standard library only."""

import re
import string
from collections import Counter
from dataclasses import dataclass

from helpers.errors import DemoBertError
from helpers.files import read_json

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(?:an?|the)\b")


@dataclass(frozen=True)
class SquadExample:
    """One question of a SQuAD file. `paragraph` counts the file's paragraphs: questions that share one share it.

    `answers` are the gold answers' texts; empty where the file gives none (test sets, unanswerable questions).
    `answer_starts` says where in `passage` each begins, in characters, as far as the file does (None: not a number).
    """

    question_id: str
    question: str
    passage: str
    paragraph: int
    answers: tuple[str, ...] = ()
    answer_starts: tuple[int | None, ...] = ()
    is_impossible: bool = False


@dataclass(frozen=True)
class SquadData:
    """A SQuAD file. `version_2`: some question says whether it is impossible to answer, so "" may be an answer."""

    examples: list[SquadExample]
    version_2: bool


def read_squad(path) -> SquadData:
    """Read a SQuAD v1.1 or v2.0 file. Raises DemoBertError naming the first field that is missing or wrong."""
    content = read_json(path, "SQuAD file")
    try:
        return _squad_data(content)
    except DemoBertError as error:
        raise DemoBertError(f"not a usable SQuAD file: {error}: {path}") from None


def _squad_data(content) -> SquadData:
    examples, seen, paragraphs, version_2 = [], set(), 0, False
    for article, place in _objects(content, "data", "the file"):
        for paragraph, place in _objects(article, "paragraphs", place):
            passage = _text(paragraph, "context", place)
            for question, place in _objects(paragraph, "qas", place):
                example = _example(question, place, passage, paragraphs)
                if example.question_id in seen:
                    raise DemoBertError(f"{place}: the id {example.question_id!r} is there twice")
                seen.add(example.question_id)
                examples.append(example)
                version_2 = version_2 or "is_impossible" in question
            paragraphs += 1
    if not examples:
        raise DemoBertError("it has no questions")
    return SquadData(examples, version_2)


def _example(question: dict, place: str, passage: str, paragraph: int) -> SquadExample:
    answers = [] if "answers" not in question else list(_objects(question, "answers", place))
    is_impossible = question.get("is_impossible", False)
    if not isinstance(is_impossible, bool):
        raise DemoBertError(f"{place}.is_impossible is not true or false")
    return SquadExample(
        question_id=_text(question, "id", place),
        question=_text(question, "question", place),
        passage=passage,
        paragraph=paragraph,
        answers=tuple(_text(answer, "text", place) for answer, place in answers),
        answer_starts=tuple(_start(answer) for answer, _ in answers),
        is_impossible=is_impossible,
    )


def _start(answer: dict) -> int | None:
    start = answer.get("answer_start")
    return start if type(start) is int else None


def _objects(parent, key: str, place: str):
    """The items of the list `parent[key]`, each with the place it has in the file."""
    prefix = "" if place == "the file" else f"{place}."
    if not isinstance(parent, dict):
        raise DemoBertError(f"{place} is not an object")
    if not isinstance(parent.get(key), list):
        raise DemoBertError(f"{prefix}{key} is {'not a list' if key in parent else 'missing'}")
    for number, item in enumerate(parent[key]):
        here = f"{prefix}{key}[{number}]"
        if not isinstance(item, dict):
            raise DemoBertError(f"{here} is not an object")
        yield item, here


def _text(parent: dict, key: str, place: str) -> str:
    value = parent.get(key)
    if not isinstance(value, str):
        raise DemoBertError(f"{place}.{key} is {'not text' if key in parent else 'missing'}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:  # "\ud800" is JSON, but no text: it could not be written again
        raise DemoBertError(f"{place}.{key} has half of a surrogate pair, which is no Unicode text") from None
    return value


def read_predictions(path) -> dict[str, str]:
    """Read a predictions file: a JSON object, question id → answer. Raises DemoBertError."""
    predictions = read_json(path, "predictions file")
    if not isinstance(predictions, dict):
        raise DemoBertError(f"the predictions file is not a JSON object (question id → answer): {path}")
    for question_id, answer in predictions.items():
        if not isinstance(answer, str):
            raise DemoBertError(f"the prediction for {question_id!r} is not text: {path}")
    return predictions


def normalise_answer(text: str) -> str:
    """Lower-cased, without ASCII punctuation and English articles, single spaces: how SQuAD compares answers."""
    without_punctuation = text.lower().translate(_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", without_punctuation).split())


def exact_match(prediction: str, gold: str) -> int:
    """1 if both are the same after normalisation, else 0."""
    return int(normalise_answer(prediction) == normalise_answer(gold))


def token_f1(prediction: str, gold: str) -> float:
    """Harmonic mean of precision and recall over the bag of normalised words, 0 to 1. No word in common: 0."""
    predicted_words, gold_words = normalise_answer(prediction).split(), normalise_answer(gold).split()
    common = sum((Counter(predicted_words) & Counter(gold_words)).values())
    if common == 0:
        return 0.0
    precision, recall = common / len(predicted_words), common / len(gold_words)
    return 2 * precision * recall / (precision + recall)
