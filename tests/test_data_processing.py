"""Windows, maximum context and n-best answers against their definitions, spelled out slowly; SQuAD files."""

import dataclasses
import json
import math
import random
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import data_processing
from helpers.answer_options import AnswerOptions
from helpers.batching import length_sorted_batches, padded_batch
from helpers.data_processing import (
    AnswerSearch,
    make_features,
    max_context_masks,
    require_tokens,
    window_spans,
)
from helpers.errors import DemoBertError, UsageError
from helpers.squad import read_squad
from helpers.tokenization import TokenizedText, Tokenizer
from tests.tokenizer_folders import word_piece_values

DATA = Path(__file__).parent / "data"
CLS_ID, SEP_ID = 1, 2
TOKENIZER = Tokenizer(word_piece_values({"[UNK]": 0, "[CLS]": CLS_ID, "[SEP]": SEP_ID}))


def spaced(words):
    """A TokenizedText of one token a word, ids from 100."""
    text = " ".join(words)
    ends = np.cumsum([len(word) + 1 for word in words]) - 1
    starts = ends - [len(word) for word in words]
    return TokenizedText(text, np.arange(100, 100 + len(words), dtype=np.int32), np.stack([starts, ends], axis=1))


def features_of(question_length, passage, sequence_length, doc_stride, max_query_length=64):
    question = spaced(["q"] * question_length)
    return make_features(question, passage, TOKENIZER, sequence_length, max_query_length, doc_stride)


# Windows


sizes = st.tuples(st.integers(1, 300), st.integers(1, 90), st.integers(1, 120))


@settings(deadline=None)
@given(sizes)
def test_windows_cover_the_passage(sizes):
    token_count, capacity, doc_stride = sizes
    spans = window_spans(token_count, capacity, doc_stride)
    assert spans[0][0] == 0 and sum(spans[-1]) == token_count
    assert all(1 <= length <= capacity for _, length in spans)
    assert all(sum(span) < token_count for span in spans[:-1])  # none after the one that ends the passage
    for (start, length), (following, _) in zip(spans, spans[1:]):
        assert length == capacity and following - start == min(doc_stride, capacity)
    assert set(range(token_count)) == {i for start, length in spans for i in range(start, start + length)}


def test_windows_by_hand():
    assert window_spans(10, 10, 3) == [(0, 10)]
    assert window_spans(11, 10, 3) == [(0, 10), (3, 8)]
    assert window_spans(17, 10, 3) == [(0, 10), (3, 10), (6, 10), (9, 8)]
    assert window_spans(7, 3, 128) == [(0, 3), (3, 3), (6, 1)]


@settings(deadline=None)
@given(sizes)
def test_every_token_has_one_window_of_maximum_context(sizes):
    token_count, capacity, doc_stride = sizes
    spans = window_spans(token_count, capacity, doc_stride)
    masks = max_context_masks(spans, token_count)
    for token in range(token_count):
        scores = {
            window: min(token - start, start + length - 1 - token) + 0.01 * length
            for window, (start, length) in enumerate(spans)
            if start <= token < start + length
        }
        chosen = [window for window in scores if masks[window][token - spans[window][0]]]
        assert len(chosen) == 1
        assert math.isclose(scores[chosen[0]], max(scores.values()), abs_tol=1e-9)


def window_of(token, spans):
    masks = max_context_masks(spans, sum(spans[-1]))
    return [
        window
        for window, (start, length) in enumerate(spans)
        if start <= token < start + length and masks[window][token - start]
    ]


def test_maximum_context_by_hand():
    # Token 6 has 3 tokens to its right in the first window, 3 to its left in the second, of equal length: a tie.
    assert window_of(6, [(0, 10), (3, 10)]) == [0]
    assert window_of(7, [(0, 10), (3, 10)]) == [1]
    # 49 tokens to the right + 0.01 · 300 = 52 in the first; 50 to the left + 0.01 · 110 = 51.1 in the second.
    assert window_of(250, [(0, 300), (200, 110)]) == [0]
    assert window_of(251, [(0, 300), (200, 110)]) == [1]


@settings(deadline=None)
@given(sizes, st.integers(1, 20), st.integers(1, 10))
def test_features_are_windows(sizes, question_length, max_query_length):
    token_count, capacity, doc_stride = sizes
    passage = spaced(["w"] * token_count)
    query = list(range(100, 100 + min(question_length, max_query_length)))
    sequence_length = capacity + len(query) + 3
    features = features_of(question_length, passage, sequence_length, doc_stride, max_query_length)
    for feature, (start, length) in zip(features, window_spans(token_count, capacity, doc_stride), strict=True):
        part = list(range(100 + start, 100 + start + length))
        assert feature.input_ids.tolist() == [CLS_ID, *query, SEP_ID, *part, SEP_ID]
        assert feature.segment_ids.tolist() == [0] * (len(query) + 2) + [1] * (length + 1)
        assert feature.input_ids.dtype == feature.segment_ids.dtype == np.int32
        assert (feature.passage_start, feature.passage_length) == (start, length)
        assert feature.passage_position == len(query) + 2
        assert feature.length <= sequence_length
    assert sum(feature.is_max_context.sum() for feature in features) == token_count


@pytest.mark.parametrize("question_length, sequence_length", [(6, 9), (64, 64), (1, 1), (100, 67)])
def test_question_longer_than_the_window(question_length, sequence_length):
    with pytest.raises(UsageError, match="-s.*--max-query-length") as caught:
        features_of(question_length, spaced(["a", "b"]), sequence_length, 128)
    assert caught.value.exit_code == 2 and "\n" not in str(caught.value)


def test_question_that_leaves_room_for_one_token():
    features = features_of(6, spaced(["a", "b", "c"]), 10, 128)
    assert [feature.passage_length for feature in features] == [1, 1, 1]


@pytest.mark.parametrize("text", ["", " \n\t", "\u3000\u2003", "\0\x07", "\u200b"])
def test_text_without_tokens(text):
    with pytest.raises(DemoBertError, match="^the passage (is empty|has no readable characters)$"):
        require_tokens(TOKENIZER.encode(text), "passage")


@pytest.mark.parametrize(
    "name", ["sequence_length", "batch_size", "max_query_length", "doc_stride", "max_answer_length", "n_best_size"]
)
@pytest.mark.parametrize("value", [0, -1, 1.5, True])
def test_options_must_be_whole_and_positive(name, value):
    with pytest.raises(UsageError, match=f"--{name.replace('_', '-')} must be"):
        AnswerOptions(**{name: value})


def test_options_threshold_must_be_finite():
    with pytest.raises(UsageError, match="--null-score-diff-threshold"):
        AnswerOptions(null_score_diff_threshold=math.nan)


# Batches


@settings(deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=40), st.integers(1, 9))
def test_batches(lengths, batch_size):
    features = [features_of(2, spaced(["w"] * length), 100, 128)[0] for length in lengths]
    groups = length_sorted_batches(features, batch_size)
    assert sorted(index for group in groups for index in group) == list(range(len(features)))
    assert all(1 <= len(group) <= batch_size for group in groups) and len(groups) == -(-len(features) // batch_size)
    in_order = [features[index].length for group in groups for index in group]
    assert in_order == sorted(in_order, reverse=True)
    for group in groups:
        some = [features[index] for index in group]
        batch = padded_batch(some)
        assert batch.sequence_length == max(feature.length for feature in some)
        wider = padded_batch(some, batch.sequence_length + 3)
        assert wider.input_ids.shape == (len(some), batch.sequence_length + 3)
        for row, feature in enumerate(some):
            for padded in (batch, wider):
                for array, expected in (
                    (padded.input_ids, feature.input_ids),
                    (padded.segment_ids, feature.segment_ids),
                    (padded.input_mask, np.ones(feature.length)),
                ):
                    assert array.dtype == np.int32
                    assert array[row, : feature.length].tolist() == expected.tolist()
                    assert not array[row, feature.length :].any()


# Answers


def best_answers(passage, features, logits, options, version_2=False):
    """The search's answers, from windows in a random order."""
    search = AnswerSearch(passage, options)
    windows = list(zip(features, logits, strict=True))
    random.shuffle(windows)
    for window in windows:
        search.add(*window)
    return search.answers(version_2)


def slow_best(passage, features, logits, options):
    """(text, score) of the best spans, by trying all of them: the definition of the best answers."""
    found = {}
    for feature, window in zip(features, logits):
        for i in range(feature.passage_length):
            if not feature.is_max_context[i]:
                continue
            for j in range(i, min(i + options.max_answer_length, feature.passage_length)):
                score = float(window[feature.passage_position + i, 0]) + float(window[feature.passage_position + j, 1])
                first = passage.offsets[feature.passage_start + i, 0]
                text = passage.text[first : passage.offsets[feature.passage_start + j, 1]]
                found[text] = max(score, found.get(text, -math.inf))
    return sorted(found.items(), key=lambda item: -item[1])[: options.n_best_size]


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    token_count=st.integers(1, 60),
    capacity=st.integers(1, 40),
    doc_stride=st.integers(1, 45),
    max_answer_length=st.integers(1, 50),
    n_best_size=st.integers(1, 25),
)
def test_answers_are_the_best_spans(seed, token_count, capacity, doc_stride, max_answer_length, n_best_size):
    rng = np.random.default_rng(seed)
    passage = spaced([f"word{number}" for number in rng.integers(0, 40, token_count)])
    features = features_of(3, passage, capacity + 6, doc_stride)
    # Rows longer than the window, as of a padded batch: what lies beyond must not count.
    logits = [rng.normal(0, 3, (feature.length + 4, 2)).astype(np.float32) for feature in features]
    for window, feature in zip(logits, features):
        window[feature.length :] = np.nan
    options = AnswerOptions(max_answer_length=max_answer_length, n_best_size=n_best_size)
    answers = best_answers(passage, features, logits, options)
    expected = slow_best(passage, features, logits, options)
    assert [answer.text for answer in answers] == [text for text, _ in expected]
    np.testing.assert_allclose([answer.score for answer in answers], [score for _, score in expected], rtol=1e-12)
    assert all(answer.text == passage.text[answer.start_char : answer.end_char] != "" for answer in answers)
    weights = [math.exp(score - expected[0][1]) for _, score in expected]
    # float64 on both sides: rounding only
    np.testing.assert_allclose([answer.probability for answer in answers], np.array(weights) / sum(weights), rtol=1e-9)


def test_probability_is_stable_for_huge_logits():
    passage = spaced(["a", "b"])
    features = features_of(1, passage, 10, 128)
    logits = np.zeros((features[0].length, 2), dtype=np.float32)
    logits[3:5] = [[3e38, 3e38], [3e38, 3e38]]
    answers = best_answers(passage, features, [logits], AnswerOptions())
    assert {answer.text for answer in answers} == {"a", "b", "a b"}
    # three equal scores: a third each, to rounding
    assert [answer.probability for answer in answers] == pytest.approx([1 / 3] * 3, abs=1e-12)


def test_the_same_text_elsewhere_counts_once():
    passage = spaced(["yes", "no", "yes"])
    features = features_of(1, passage, 10, 128)
    logits = np.zeros((features[0].length, 2), dtype=np.float32)
    logits[5] = 5  # the second "yes"
    answers = best_answers(passage, features, [logits], AnswerOptions(max_answer_length=1))
    assert [(answer.text, answer.start_char, answer.score) for answer in answers] == [("yes", 7, 10), ("no", 4, 0)]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [(0, 0), (3, 1)])
def test_logits_that_are_not_finite(bad, place):
    passage = spaced(["a", "b"])
    features = features_of(1, passage, 10, 128)
    logits = np.zeros((features[0].length, 2), dtype=np.float32)
    logits[place] = bad
    with pytest.raises(DemoBertError, match="not finite"):
        best_answers(passage, features, [logits], AnswerOptions())


def test_logits_of_a_shorter_window_are_refused():
    passage = spaced(["a", "b"])
    features = features_of(1, passage, 10, 128)
    with pytest.raises(DemoBertError, match="logits of shape"):
        best_answers(passage, features, [np.zeros((features[0].length - 1, 2))], AnswerOptions())


def test_null_answer_is_the_lowest_over_the_windows():
    passage = spaced([f"w{number}" for number in range(12)])
    features = features_of(1, passage, 10, 3)
    logits = [np.zeros((feature.length, 2), dtype=np.float32) for feature in features]
    logits[0][0], logits[1][0], logits[2][0] = (4, 3), (1.5, 2), (9, -1)
    answers = best_answers(passage, features, logits, AnswerOptions(), version_2=True)
    null = [answer for answer in answers if answer.text == ""]
    assert [(answer.start_logit, answer.end_logit) for answer in null] == [(1.5, 2)]
    assert sum(answer.probability for answer in answers) == pytest.approx(1, abs=1e-12)
    assert [answer.score for answer in answers] == sorted((answer.score for answer in answers), reverse=True)


def test_no_answer_is_among_them_where_it_may_be_only():
    passage = spaced(["a", "b"])
    features = features_of(1, passage, 10, 128)
    logits = np.zeros((features[0].length, 2), dtype=np.float32)
    logits[0] = 99
    assert all(answer.text for answer in best_answers(passage, features, [logits], AnswerOptions()))
    assert best_answers(passage, features, [logits], AnswerOptions(), True)[0].text == ""


def test_a_text_that_fills_many_windows_hides_no_other(monkeypatch):
    """What is kept of earlier windows is the best of every text, however often the best one stands there."""
    monkeypatch.setattr(data_processing, "_WINDOWS_MERGED_AT_ONCE", 3)
    words = [*(["yes"] * 200), "no", *(["yes"] * 200), "so"]
    passage = spaced(words)
    features = features_of(1, passage, 10, 4)
    logits = [np.array([[len(words[int(i) - 100]) if i >= 100 else 0] * 2 for i in f.input_ids]) for f in features]
    answers = best_answers(passage, features, logits, AnswerOptions(max_answer_length=1, n_best_size=3))
    assert [answer.text for answer in answers] == ["yes", "no", "so"]


def test_a_passage_whose_tokens_show_nothing():
    passage = TokenizedText("a", np.array([5], dtype=np.int32), np.array([[1, 1]]))
    features = features_of(1, passage, 10, 128)
    with pytest.raises(DemoBertError, match="no readable"):
        best_answers(passage, features, [np.zeros((features[0].length, 2))], AnswerOptions())


@pytest.mark.parametrize(
    "text, word, expected",
    [
        ("a cafe\u0301 b", "e", "cafe\u0301"),  # BERT strips the accent: the word piece ends before it
        ("a q\u0323\u0302\u20dd b", "q", "q\u0323\u0302\u20dd"),
        ("a \U0001f469\u200d\U0001f467 b", "\U0001f469", "\U0001f469\u200d\U0001f467"),
        ("a \U0001f44d\U0001f3fd b", "\U0001f44d", "\U0001f44d\U0001f3fd"),
        ("a \u2764\ufe0f b", "\u2764", "\u2764\ufe0f"),
        ("a \u1112\u1161\u11ab b", "\u1112", "\u1112\u1161\u11ab"),
        ("a cat b", "t", "cat"),
    ],
)
def test_an_answer_keeps_its_letters_whole(text, word, expected):
    start = text.index(expected)
    end = text.index(word, start) + len(word)
    passage = TokenizedText(text, np.array([5], dtype=np.int32), np.array([[start, end]]))
    features = features_of(1, passage, 10, 128)
    (answer,) = best_answers(passage, features, [np.zeros((features[0].length, 2))], AnswerOptions())
    assert answer.text == expected == text[answer.start_char : answer.end_char]


def test_an_answer_does_not_start_with_a_mark():
    text = "ae\u0301x"
    passage = TokenizedText(text, np.array([5], dtype=np.int32), np.array([[2, 4]]))
    features = features_of(1, passage, 10, 128)
    (answer,) = best_answers(passage, features, [np.zeros((features[0].length, 2))], AnswerOptions())
    assert answer.text == "e\u0301x"


@settings(deadline=None)
@given(st.text(alphabet=st.characters(codec="utf-8"), min_size=1, max_size=30), st.integers(0, 2**32 - 1))
def test_answers_are_slices_of_any_text(text, seed):
    passage = TOKENIZER.encode(text)
    if not len(passage):
        return
    rng = np.random.default_rng(seed)
    features = features_of(1, passage, 9, 2)
    logits = [rng.normal(size=(feature.length, 2)) for feature in features]
    for answer in best_answers(passage, features, logits, AnswerOptions(n_best_size=50)):
        assert answer.text == text[answer.start_char : answer.end_char] != ""
        rest = text[answer.end_char : answer.end_char + 1]
        assert not rest or unicodedata.category(rest) not in ("Mn", "Me")


# SQuAD files


def test_read_v1():
    data = read_squad(DATA / "squad_v1.1.json")
    assert not data.version_2
    assert [example.question_id for example in data.examples] == ["l1", "l2", "l3", "c1", "c2", "r1", "r2", "r3"]
    assert [example.paragraph for example in data.examples] == [0, 0, 0, 1, 1, 2, 2, 2]
    first = data.examples[0]
    assert first.question == "When was the lighthouse finished?" and first.answers == ("1874", "in 1874")
    assert all(answer in example.passage for example in data.examples for answer in example.answers)


def test_read_v2():
    data = read_squad(DATA / "squad_v2.0.json")
    assert data.version_2
    assert [example.is_impossible for example in data.examples] == [False, False, True, True]
    assert data.examples[2].answers == ()


def squad(**changes):
    """A small SQuAD file's content with fields of its first question or its paragraph changed; None: taken out."""
    answers = [{"text": "me", "answer_start": 0}]
    question = {"id": "1", "question": "Who?", "answers": answers, "is_impossible": False}
    paragraph = {"context": "me", "qas": [question, {**question, "id": "2"}]}
    for place in (question, paragraph):
        for key in [key for key in changes if key in place]:
            place[key] = changes[key]
            if changes[key] is None:
                del place[key]
    return {"data": [{"title": "t", "paragraphs": [paragraph]}]}


def test_a_test_set_has_no_answers(tmp_path):
    content = {"data": [{"paragraphs": [{"context": "c", "qas": [{"id": "1", "question": "q"}]}]}]}
    (tmp_path / "squad.json").write_text(json.dumps(content))
    data = read_squad(tmp_path / "squad.json")
    assert data.examples[0].answers == () and not data.version_2


@pytest.mark.parametrize(
    "content, message",
    [
        ("", "empty"),
        ("{", "not JSON"),
        ("[" * 100_000, "JSON"),
        ([], "the file is not an object"),
        ({"a": 1}, "data is missing"),
        ({"data": {}}, "data is not a list"),
        ({"data": []}, "no questions"),
        ({"data": [{"paragraphs": [{"context": "c", "qas": []}]}]}, "no questions"),
        ({"data": [5]}, r"data\[0\] is not an object"),
        ({"data": [{}]}, r"data\[0\].paragraphs is missing"),
        ({"data": [{"paragraphs": [None]}]}, r"data\[0\].paragraphs\[0\] is not an object"),
        (squad(context=None), r"data\[0\].paragraphs\[0\].context is missing"),
        (squad(context=5), "context is not text"),
        (squad(qas="x"), "qas is not a list"),
        (squad(id=7.5), r"qas\[0\].id is not text"),
        (squad(id="2"), r"qas\[1\]: the id '2' is there twice"),
        (squad(question=None), "question is missing"),
        (squad(question="\ud800"), "question has half of a surrogate pair"),
        (squad(answers="x"), "answers is not a list"),
        (squad(answers=[{}]), r"answers\[0\].text is missing"),
        (squad(is_impossible="no"), "is_impossible is not true or false"),
    ],
)
def test_files_that_are_not_squad(tmp_path, content, message):
    path = tmp_path / "squad.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(DemoBertError, match=message) as caught:
        read_squad(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_the_answer_s_fields_are_final():
    passage = spaced(["a"])
    features = features_of(1, passage, 10, 128)
    (answer,) = best_answers(passage, features, [np.zeros((features[0].length, 2))], AnswerOptions())
    with pytest.raises(dataclasses.FrozenInstanceError):
        answer.text = "b"
