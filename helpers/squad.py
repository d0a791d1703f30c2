"""SQuAD files (v1.1: arXiv:1606.05250, v2.0: arXiv:1806.03822) and their metrics. Standard library only."""

import re
import string
from collections import Counter
from dataclasses import dataclass, replace

from helpers.errors import DemoBertError
from helpers.files import read_json, read_json_values

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(?:an?|the)\b")


@dataclass(frozen=True)
class SquadExample:
    """One question of a SQuAD file. `paragraph` counts its passages: neighbours with the same passage share it.

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
    """A SQuAD file. `version_2`: it says whether questions are impossible to answer, so "" may be an answer."""

    examples: list[SquadExample]
    version_2: bool


def read_squad(path) -> SquadData:
    """Read a SQuAD v1.1 or v2.0 file, or a relative in another form: the README in squad/ lists them.

    Raises DemoBertError naming the first field that is missing or wrong.
    """
    values = read_json_values(path, "SQuAD file")
    try:
        return _squad_data(values)
    except DemoBertError as error:
        raise DemoBertError(f"not a usable SQuAD file: {error}: {path}") from None


def _squad_data(values) -> SquadData:
    examples, seen, silent, version_2 = [], set(), [], False
    paragraph, last_passage = -1, None
    for question, place, passage in _questions(values):
        paragraph, last_passage = paragraph + (passage != last_passage), passage
        example = _example(question, place, passage, paragraph)
        if example.question_id in seen:
            raise DemoBertError(f"{_name(place)}: the id {example.question_id!r} is there twice")
        seen.add(example.question_id)
        if "is_impossible" in question:
            version_2 = True
        elif isinstance(question.get("answers"), dict) and not example.answers:
            silent.append(len(examples))
        examples.append(example)
    if not examples:
        raise DemoBertError("it has no questions")
    # Hugging Face's rows have no is_impossible: empty lists say it, unless they all are, as in a test set.
    if silent and any(example.answers for example in examples):
        version_2 = True
        for index in silent:
            examples[index] = replace(examples[index], is_impossible=True)
    return SquadData(examples, version_2)


# Below, a "place" is what a field's name in an error begins with: "data[0].paragraphs[3].", "line 7: ", "" for the file.


def _questions(values):
    """(question, its place, its passage): of articles, of paragraphs alone, of rows that have a passage each."""
    for entry, place in _entries(values):
        if not {"paragraphs", "qas"} & entry.keys() and {"context", "question"} & entry.keys():
            yield entry, place, _text(entry, "context", place)
            continue
        is_paragraph = "qas" in entry and "paragraphs" not in entry
        for paragraph, place in [(entry, place)] if is_paragraph else _objects(entry, "paragraphs", place):
            passage = _text(paragraph, "context", place)
            for question, place in _objects(paragraph, "qas", place):
                yield question, place, passage


def _entries(values):
    """The objects of `data`, or those of all lines but MRQA's header, each with its place."""
    content = values[0][1]
    is_line = isinstance(content, dict) and "data" not in content and {"header", "context"} & content.keys()
    if len(values) == 1 and not is_line:
        yield from _objects(content, "data", "")
        return
    for number, line in values:
        if not isinstance(line, dict):
            raise DemoBertError(f"line {number} is not an object")
        if "header" not in line or "context" in line:
            yield line, f"line {number}: "


def _example(question: dict, place: str, passage: str, paragraph: int) -> SquadExample:
    answers = _answers(question, place)
    is_impossible = question.get("is_impossible", False)
    if not isinstance(is_impossible, bool):
        raise DemoBertError(f"{place}is_impossible is not true or false")
    return SquadExample(
        question_id=_question_id(question, place),
        question=_text(question, "question", place),
        passage=passage,
        paragraph=paragraph,
        answers=tuple(text for text, _ in answers),
        answer_starts=tuple(start if type(start) is int else None for _, start in answers),
        is_impossible=is_impossible,
    )


def _question_id(question: dict, place: str) -> str:
    """The id, which KLUE calls guid and MRQA qid. A whole number becomes text, as a key of the predictions is."""
    key = next((key for key in ("id", "guid", "qid") if key in question), "id")
    value = question.get(key)
    return str(value) if type(value) is int else _text(question, key, place)


def _answers(question: dict, place: str) -> list[tuple[str, object]]:
    """(text, what the file says of its start) of the gold answers."""
    answers = question.get("answers", [])
    if isinstance(answers, dict):
        return _answers_in_columns(answers, f"{place}answers.")
    if isinstance(answers, list) and answers and isinstance(answers[0], str):
        starts = _detected_starts(question)
        texts = [_checked_text(text, f"{place}answers[{number}]") for number, text in enumerate(answers)]
        return [(text, starts.get(normalise_answer(text))) for text in texts]
    found = _objects({"answers": answers}, "answers", place)
    return [(_text(answer, "text", place), answer.get("answer_start")) for answer, place in found]


def _answers_in_columns(answers: dict, place: str) -> list[tuple[str, object]]:
    """Hugging Face's form: a list of texts beside a list of their starts, which may be missing."""
    texts = _list(answers, "text", place)
    starts = _list(answers, "answer_start", place) if "answer_start" in answers else [None] * len(texts)
    if len(starts) != len(texts):
        raise DemoBertError(f"{place}answer_start has the length {len(starts)}, not that of text, {len(texts)}")
    return [(_checked_text(text, f"{place}text[{i}]"), start) for i, (text, start) in enumerate(zip(texts, starts))]


def _detected_starts(question: dict) -> dict[str, int]:
    """MRQA: where the first of an answer's places begins, by its normalised text; a place is [start, last character]."""
    starts, detected = {}, question.get("detected_answers")
    for answer in detected if isinstance(detected, list) else []:
        match answer:
            case {"text": str(text), "char_spans": [[start, *_], *_]}:
                starts.setdefault(normalise_answer(text), start)
    return starts


def _objects(parent, key: str, place: str):
    """The items of the list `parent[key]`, each with its place."""
    if not isinstance(parent, dict):
        raise DemoBertError(f"{_name(place)} is not an object")
    for number, item in enumerate(_list(parent, key, place)):
        here = f"{place}{key}[{number}]."
        if not isinstance(item, dict):
            raise DemoBertError(f"{_name(here)} is not an object")
        yield item, here


def _name(place: str) -> str:
    return place.rstrip(".: ") or "the file"


def _list(parent: dict, key: str, place: str) -> list:
    if not isinstance(parent.get(key), list):
        raise DemoBertError(f"{place}{key} is {'not a list' if key in parent else 'missing'}")
    return parent[key]


def _text(parent: dict, key: str, place: str) -> str:
    if key not in parent:
        raise DemoBertError(f"{place}{key} is missing")
    return _checked_text(parent[key], f"{place}{key}")


def _checked_text(value, name: str) -> str:
    if not isinstance(value, str):
        raise DemoBertError(f"{name} is not text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:  # "\ud800" is JSON, but no text: it could not be written again
        raise DemoBertError(f"{name} has half of a surrogate pair, which is no Unicode text") from None
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
