"""The loop over an engine: a stand-in whose logits depend on the tokens alone, and the real model in torch."""

import dataclasses
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from helpers.answer_options import AnswerOptions
from helpers.answerer import Answerer, predicted_text
from helpers.backends.base import Engine
from helpers.bert_config import BertConfig
from helpers.data_processing import AnswerSearch, make_features
from helpers.engine_card import EngineCard
from helpers.errors import DemoBertError, UsageError
from helpers.model_folder import ModelFolder
from helpers.squad import SquadData, read_squad, token_f1
from helpers.tokenization import Tokenizer

DATA = Path(__file__).parent / "data"
MODEL = Path(__file__).parent.parent / "models/bundled/bert_mini_squad11"
TOKENIZER = ModelFolder.open(MODEL).tokenizer()
CONFIG = BertConfig.from_folder(MODEL)


def card(batch_size=4, sequence_length=64, config=CONFIG):
    head = "openvino", "1", "CPU", "padded", "layers", ["fp32"], [batch_size], [sequence_length]
    return EngineCard(*head, config, TOKENIZER.sha256, "", 0, {})


class TokenEngine(Engine):
    """Logits are noise seeded by a row's tokens, NaN on the padding: which batch a row is in must not matter.

    Several batches run at once, each in a thread of its own, and the next result overwrites what one gave.
    """

    def __init__(self, engine_card, multiple=1):
        super().__init__(engine_card)
        self.multiple = multiple
        self.batches = []
        self.threads = ThreadPoolExecutor(self.parallel_runs)
        self.given = np.zeros(1)

    def padded_length(self, length):
        return -(-length // self.multiple) * self.multiple

    def _infer(self, batch):
        self.batches.append(batch)
        output = np.full((batch.batch_size, batch.sequence_length, 2), np.nan, dtype=np.float32)
        for row, length in enumerate(batch.input_mask.sum(axis=1)):
            output[row, :length] = token_logits(batch.input_ids[row, :length], batch.segment_ids[row, :length])
        return output

    parallel_runs = 3

    def submit(self, batch):
        return Reused(self, self.threads.submit(self.run, batch))

    def timed_run(self, batch):
        return lambda: 1.0

    def describe(self):
        return "stand-in"


class Reused:
    """A run whose logits last until the engine gives the next ones."""

    def __init__(self, engine, running):
        self.engine, self.running = engine, running

    def result(self):
        self.engine.given.fill(np.nan)
        self.engine.given = self.running.result()
        return self.engine.given


def token_logits(input_ids, segment_ids):
    seed = zlib.crc32(np.concatenate((input_ids, segment_ids)).astype("<i4").tobytes())
    return np.random.default_rng(seed).normal(0, 3, (len(input_ids), 2)).astype(np.float32)


def expected_answers(passage, question, options, version_2=False):
    """What the loop must give, window by window, without batches."""
    passage = TOKENIZER.encode(passage)
    lengths = options.sequence_length, options.max_query_length, options.doc_stride
    features = make_features(TOKENIZER.encode(question), passage, TOKENIZER, *lengths)
    logits = [token_logits(feature.input_ids, feature.segment_ids) for feature in features]
    search = AnswerSearch(passage, options)
    for window in zip(features, logits):
        search.add(*window)
    return search.answers(version_2), len(features)


OPTIONS = [
    AnswerOptions(sequence_length=40, batch_size=1, doc_stride=8),
    AnswerOptions(sequence_length=33, batch_size=4, doc_stride=5, max_query_length=6, n_best_size=3),
    AnswerOptions(sequence_length=64, batch_size=3, max_answer_length=4),
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", ["squad_v1.1.json", "squad_v2.0.json"])
@pytest.mark.parametrize("multiple", [1, 16])
def test_a_squad_file(options, name, multiple):
    data = read_squad(DATA / name)
    engine = TokenEngine(card(), multiple)
    results = Answerer(engine, TOKENIZER, options).answer_squad(data)
    assert list(results) == [example.question_id for example in data.examples]
    windows = 0
    for example in data.examples:
        answers, count = expected_answers(example.passage, example.question, options, data.version_2)
        windows += count
        best = next(answer for answer in answers if answer.text)
        result = results[example.question_id]
        assert result.n_best == answers and result.seconds is None
        if data.version_2:
            null = next(answer for answer in answers if not answer.text)
            assert result.null_odds == null.score - best.score
            best = null if result.null_odds > 0 else best
        assert result.answer == best
    assert sum(batch.batch_size for batch in engine.batches) == windows
    assert len(engine.batches) == -(-windows // options.batch_size)
    assert all(batch.sequence_length % multiple == 0 for batch in engine.batches)


@pytest.mark.parametrize("options", OPTIONS)
def test_ask(options):
    example = read_squad(DATA / "squad_v1.1.json").examples[1]
    engine = TokenEngine(card())
    progress = []
    reply = Answerer(engine, TOKENIZER, options).ask(
        example.passage,
        example.question,
        options.n_best_size,
        on_progress=lambda *counts: progress.append(counts),
    )
    answers, windows = reply.n_best, reply.windows
    assert (answers, windows) == expected_answers(example.passage, example.question, options)
    size = options.batch_size
    assert progress == [(min(done, windows), windows) for done in range(size, windows + size, size)]
    assert (
        reply.seconds > 0
        and reply.answer == answers[0]
        and sum(batch.batch_size for batch in engine.batches) == windows
    )
    assert max(batch.batch_size for batch in engine.batches) <= options.batch_size


def test_threshold_decides_between_text_and_none():
    data = read_squad(DATA / "squad_v2.0.json")
    for threshold, is_text in ((1e6, True), (-1e6, False)):
        options = dataclasses.replace(OPTIONS[0], null_score_diff_threshold=threshold)
        results = Answerer(TokenEngine(card()), TOKENIZER, options).answer_squad(data)
        assert all(bool(result.text) == is_text for result in results.values())


def test_each_paragraph_is_tokenised_once(monkeypatch):
    data = read_squad(DATA / "squad_v1.1.json")
    texts = []
    encode_batch = Tokenizer.encode_batch

    def recorded(self, some, what="text"):
        texts.extend(some)
        return encode_batch(self, some, what)

    monkeypatch.setattr(Tokenizer, "encode_batch", recorded)
    Answerer(TokenEngine(card()), TOKENIZER, OPTIONS[0]).answer_squad(data)
    passages = {example.passage for example in data.examples}
    assert sorted(texts) == sorted([*passages, *(example.question for example in data.examples)])


def test_sequence_length_is_the_engine_s_by_default():
    assert Answerer(TokenEngine(card(1, 96)), TOKENIZER).options.sequence_length == 96
    assert Answerer(TokenEngine(card(1, 4096)), TOKENIZER).options.sequence_length == 512  # the model's


@pytest.mark.parametrize(
    "options, message",
    [
        (AnswerOptions(batch_size=5), "batch size 5 is over.*4.*-b 5"),
        (AnswerOptions(sequence_length=65), "sequence length 65 is over.*64.*-s 65"),
    ],
)
def test_more_than_the_engine_serves(options, message):
    with pytest.raises(UsageError, match=message):
        Answerer(TokenEngine(card()), TOKENIZER, options)


def test_another_vocabulary_is_refused():
    config = dataclasses.replace(CONFIG, vocab_size=21128)
    with pytest.raises(DemoBertError, match="30522 pieces, the model 21128"):
        Answerer(TokenEngine(card(config=config)), TOKENIZER)


@pytest.mark.parametrize(
    "passage, question, message",
    [
        ("", "Who?", "the passage is empty"),
        (" \n", "Who?", "the passage is empty"),
        ("\0\0", "Who?", "the passage has no readable"),
        ("Me.", "", "the question is empty"),
        ("Me.", "\u200b", "the question has no readable"),
        ("Me.", "wh\udce9?", "the question is not valid UTF-8"),
        ("M\ud800.", "Who?", "the passage is not valid UTF-8"),
    ],
)
def test_unusable_text(passage, question, message):
    answerer = Answerer(TokenEngine(card()), TOKENIZER)
    with pytest.raises(DemoBertError, match=f"^{message}"):
        answerer.ask(passage, question)
    example = dataclasses.replace(read_squad(DATA / "squad_v1.1.json").examples[0], passage=passage, question=question)
    (reply,) = answerer.answer_squad(SquadData([example], False)).values()
    assert isinstance(reply, DemoBertError) and str(reply).startswith(message) and predicted_text(reply) == ""


def test_question_longer_than_the_window():
    answerer = Answerer(TokenEngine(card()), TOKENIZER, AnswerOptions(sequence_length=20))
    with pytest.raises(UsageError, match="--max-query-length"):
        answerer.ask("Me.", "who " * 30)


HARD_PASSAGES = [
    "I saw \0 NUL.",
    "emoji 😀 👨‍👩‍👧 here",
    "日本語の文章です。",
    "e\u0301te\u0301 a\u0323\u0302",
    "字" * 30_000,
]


@pytest.mark.parametrize("text", HARD_PASSAGES, ids=range(len(HARD_PASSAGES)))
def test_hard_passages(text):
    answerer = Answerer(TokenEngine(card()), TOKENIZER, AnswerOptions(batch_size=4))
    reply = answerer.ask(text, "What is it?", 20)
    answers, windows = reply.n_best, reply.windows
    assert windows >= 1 and all(answer.text == text[answer.start_char : answer.end_char] for answer in answers)


class TorchEngine(TokenEngine):
    """The bundled model in Hugging Face's BERT, float32."""

    def __init__(self, engine_card, model):
        super().__init__(engine_card)
        self.model = model

    def _infer(self, batch):
        import torch

        self.batches.append(batch)
        ids, segments, mask = (
            torch.from_numpy(array).long() for array in (batch.input_ids, batch.segment_ids, batch.input_mask)
        )
        with torch.inference_mode():
            output = self.model(input_ids=ids, token_type_ids=segments, attention_mask=mask)
        return torch.stack((output.start_logits, output.end_logits), dim=-1).numpy()


@pytest.fixture(scope="module")
def torch_model():
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    safetensors = pytest.importorskip("safetensors.torch")
    model = transformers.BertForQuestionAnswering(transformers.BertConfig.from_pretrained(MODEL))
    state = {name: tensor.float() for name, tensor in safetensors.load_file(MODEL / "model.safetensors").items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not [name for name in missing if "position_ids" not in name] and not unexpected
    return model.eval()


def test_the_bundled_model_answers(torch_model):
    data = read_squad(DATA / "squad_v1.1.json")
    together = Answerer(TorchEngine(card(8, 384), torch_model), TOKENIZER, AnswerOptions(batch_size=8))
    results = together.answer_squad(data)
    scores = [
        max(token_f1(results[example.question_id].text, gold) for gold in example.answers) for example in data.examples
    ]
    assert sum(scores) / len(scores) > 0.8, {key: result.text for key, result in results.items()}
    alone = Answerer(TorchEngine(card(1, 384), torch_model), TOKENIZER)
    for example in data.examples:
        answers = alone.ask(example.passage, example.question).n_best
        best = results[example.question_id].n_best[0]
        assert answers[0].text == best.text
        assert answers[0].probability == pytest.approx(best.probability, abs=1e-4)  # float32 sums in another order


def test_windows_do_not_lose_the_answer(torch_model):
    data = read_squad(DATA / "squad_v1.1.json")
    filler = "Nothing of note happened there in the long years that followed. " * 12
    example = dataclasses.replace(data.examples[1], passage=filler + data.examples[1].passage + " " + filler)
    engine = TorchEngine(card(4, 96), torch_model)
    options = AnswerOptions(batch_size=4, doc_stride=32)
    reply = Answerer(engine, TOKENIZER, options).ask(example.passage, example.question)
    answers, windows = reply.n_best, reply.windows
    assert windows > 4 and "Marta Olsen" in answers[0].text
    assert example.passage[answers[0].start_char : answers[0].end_char] == answers[0].text


# -- many questions


def rows_of(rng, count, bad=0.0, longest=25):
    """Random rows as `ask_many` takes them; a share of them can't be asked."""
    from tests.stand_in import random_rows  # which takes this module's engine

    rows = [(row["context"], row["question"]) for row in random_rows(rng, count, longest)]
    faults = [DemoBertError("a fault"), (" ", "Who?"), ("Me.", ""), ("Me.", "\0"), ("M\ud800.", "Who?")]
    return [faults[int(rng.integers(len(faults)))] if rng.random() < bad else row for row in rows]


def alone(answerer, row, top_k=1):
    """What `ask` gives; a DemoBertError as it is."""
    try:
        if isinstance(row, DemoBertError):
            return row
        return dataclasses.replace(answerer.ask(*row, top_k), seconds=None)
    except DemoBertError as error:
        return error


def same(ours, theirs):
    if isinstance(theirs, DemoBertError):
        return type(ours) is type(theirs) and str(ours) == str(theirs)
    return ours == theirs


@pytest.mark.sampled(0.4)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("threshold", [None, 0.0])
def test_many_get_what_each_gets_alone(rng, options, threshold):
    options = dataclasses.replace(options, null_score_diff_threshold=threshold)
    rows = rows_of(rng, int(rng.integers(1, 400)), bad=0.1)
    answerer = Answerer(TokenEngine(card()), TOKENIZER, options)
    top_k = int(rng.integers(1, 4))
    replies = list(answerer.ask_many(iter(rows), top_k))
    other = Answerer(TokenEngine(card()), TOKENIZER, options)
    assert len(replies) == len(rows)
    assert all(same(reply, alone(other, row, top_k)) for reply, row in zip(replies, rows))
    assert list(answerer.ask_many([])) == []


class Counted:
    """Rows without end, counted as they are taken; `row(number)` makes one."""

    def __init__(self, row):
        self.row, self.taken = row, 0

    def __iter__(self):
        return self

    def __next__(self):
        self.taken += 1
        return self.row(self.taken)


@pytest.mark.parametrize("kind", ["good", "bad", "errors", "mixed"])
def test_rows_are_read_as_they_are_needed(kind):
    """From rows without end: what is read ahead is a few chunks, whatever the rows are."""
    good, bad = ("Ann Roe built the mill.", "Who?"), ("", "")
    row = {
        "good": lambda number: good,
        "bad": lambda number: bad,
        "errors": lambda number: DemoBertError("x"),
        "mixed": lambda number: good if number // 100 % 7 == 0 else bad,
    }[kind]
    rows = Counted(row)
    replies = Answerer(TokenEngine(card()), TOKENIZER, AnswerOptions(batch_size=1)).ask_many(rows)
    assert rows.taken == 0
    for done in range(1, 1000):
        next(replies)
        assert rows.taken < done + 64 * 4
    replies.close()


def test_long_passages_make_small_chunks():
    """Chunks of texts that are long together hold fewer rows; a passage that repeats counts once."""
    answerer = Answerer(TokenEngine(card()), TOKENIZER, AnswerOptions(batch_size=1))
    taken = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("helpers.answerer._CHARACTERS_AT_ONCE", 1000)
        for chunk in answerer.ask_in_chunks((f"Ann {number} " + "x " * 150, "Who?") for number in range(12)):
            taken.append(len(chunk))
        assert taken == [4, 4, 4]
        assert [len(chunk) for chunk in answerer.ask_in_chunks([("x " * 300, "Who?")] * 20)] == [20]


def test_memory_is_flat(rng):
    """What is kept of rows that are answered does not grow with their number."""
    import gc
    import weakref

    class Text(str):
        pass

    alive, most = weakref.WeakSet(), 0

    def row(number):
        texts = Text(f"Ann Roe built mill {number}."), Text("Who?")
        for text in texts:
            alive.add(text)
        return texts

    rows = Counted(row)
    replies = Answerer(TokenEngine(card()), TOKENIZER, AnswerOptions(batch_size=1)).ask_many(rows)
    for done in range(448):
        next(replies)
        if done % 128 == 0:
            gc.collect()
            most = max(most, len(alive))
    assert rows.taken >= 448
    assert most < 64 * 5 * 2, most


@pytest.mark.parametrize("options", OPTIONS)
def test_a_run_that_begins_at_a_chunk_makes_the_same_batches(rng, options):
    """And the same answers: which rows are sorted together depends on nothing before them."""
    rows = rows_of(rng, 400, bad=0.1)
    if rng.random() < 0.5:  # chunks that end where their passages are long
        rows[::7] = [(f"Ann {number} " + "mill " * 200, "Who?") for number in range(len(rows[::7]))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("helpers.answerer._CHARACTERS_AT_ONCE", 6000)
        whole = list(Answerer(TokenEngine(card()), TOKENIZER, options).ask_in_chunks(rows))
        assert len(whole) > 2
        first = int(rng.integers(1, len(whole)))
        skipped = sum(map(len, whole[:first]))
        engine = TokenEngine(card())
        rest = list(Answerer(engine, TOKENIZER, options).ask_in_chunks(rows[skipped:]))
        assert [len(chunk) for chunk in rest] == [len(chunk) for chunk in whole[first:]]
        assert all(same(*pair) for ours, theirs in zip(rest, whole[first:]) for pair in zip(ours, theirs))
        again = TokenEngine(card())
        list(Answerer(again, TOKENIZER, options).ask_in_chunks(rows))
    shapes = [sorted(batch.input_ids.tobytes() for batch in some.batches) for some in (engine, again)]
    assert set(shapes[0]) <= set(shapes[1])


def test_a_passage_is_tokenised_once_over_chunks_too(rng, monkeypatch):
    """Also where others are asked about in between, as long as it is the chunk's last."""
    texts = []
    encode_batch = Tokenizer.encode_batch

    def recorded(self, some, what="text"):
        if what == "passage":
            texts.extend(some)
        return encode_batch(self, some, what)

    monkeypatch.setattr(Tokenizer, "encode_batch", recorded)
    answerer = Answerer(TokenEngine(card()), TOKENIZER, AnswerOptions(batch_size=1))
    rows = [("Ann Roe.", f"Who is {number}?") for number in range(300)]
    rows[int(rng.integers(50))] = ("Bert Lee.", "Who?")
    rows[int(rng.integers(100, 110))] = DemoBertError("a fault")
    assert len(list(answerer.ask_many(rows))) == 300
    assert sorted(texts) == ["Ann Roe.", "Bert Lee."]
    answerer.ask("Ann Roe.", "Who else?")
    assert len(texts) == 2


def test_progress_counts_every_row(rng):
    rows = rows_of(rng, 200, bad=0.3)
    counts = []
    answerer = Answerer(TokenEngine(card()), TOKENIZER, OPTIONS[0])
    list(answerer.ask_in_chunks(rows, 1, counts.append))
    assert counts == sorted(counts) and counts[-1] == 200


@pytest.mark.parametrize("top_k", [0, -1, 4])
def test_top_k_is_checked(top_k):
    answerer = Answerer(TokenEngine(card()), TOKENIZER, AnswerOptions(n_best_size=3))
    with pytest.raises(UsageError, match="--top-k"):
        answerer.ask("Me.", "Who?", top_k)
    with pytest.raises(UsageError, match="--top-k"):
        next(answerer.ask_many([("Me.", "Who?")], top_k))


@pytest.mark.parametrize("place", ["submit", "result"])
def test_an_engine_that_fails_ends_it(rng, place):
    class Failing(TokenEngine):
        left = 5

        def submit(self, batch):
            if place == "submit" and not self.left:
                raise DemoBertError("it broke")
            return super().submit(batch)

        def _infer(self, batch):
            if place == "result" and not self.left:
                raise DemoBertError("it broke")
            self.left = max(self.left - 1, 0)
            return super()._infer(batch)

    answerer = Answerer(Failing(card()), TOKENIZER, OPTIONS[0])
    with pytest.raises(DemoBertError, match="it broke"):
        list(answerer.ask_many(rows_of(rng, 300)))


def test_logits_that_are_not_finite_end_it():
    class Broken(TokenEngine):
        def _infer(self, batch):
            return np.full((batch.batch_size, batch.sequence_length, 2), np.nan, np.float32)

    answerer = Answerer(Broken(card()), TOKENIZER)
    with pytest.raises(DemoBertError, match="not finite"):
        list(answerer.ask_many([("Me.", "Who?")] * 3))


class Guarded(TokenEngine):
    """Finds out whether two threads are in it at once; counts runs begun and those whose results were taken."""

    def __init__(self):
        super().__init__(card())
        self.inside, self.met, self.begun, self.taken, self.most = threading.Lock(), 0, 0, 0, 0

    def submit(self, batch):
        return self._alone(lambda: self._begin(batch))

    def run(self, batch):
        return self._alone(lambda: super(Guarded, self).run(batch))

    def _alone(self, what):
        is_free = self.inside.acquire(blocking=False)
        self.met += not is_free
        time.sleep(0.001)
        result = what()
        if is_free:
            self.inside.release()
        return result

    def _begin(self, batch):
        logits, self.begun = super().run(batch), self.begun + 1
        self.most = max(self.most, self.begun - self.taken)
        return SimpleNamespace(result=lambda: self._take(logits))

    def _take(self, logits):
        self.taken += 1
        return logits


def test_one_thread_is_in_the_engine_at_a_time(rng):
    engine, rows = Guarded(), rows_of(rng, 60, longest=8)
    answerer = Answerer(engine, TOKENIZER, AnswerOptions(batch_size=4))
    expected = [alone(answerer, row) for row in rows]

    def ask(number):
        return list(answerer.ask_many(rows)) if number % 2 else [alone(answerer, row) for row in rows[:20]]

    with ThreadPoolExecutor(8) as threads:
        for result in threads.map(ask, range(8)):
            assert result == expected[: len(result)]
    assert not engine.met and engine.begun


def test_nothing_runs_after_it_was_abandoned(rng):
    engine = Guarded()
    replies = Answerer(engine, TOKENIZER, AnswerOptions(batch_size=1)).ask_many(rows_of(rng, 300, longest=8))
    next(replies)
    assert engine.begun > engine.taken
    replies.close()
    assert engine.begun == engine.taken and engine.most == engine.parallel_runs


# -- the real engine


@pytest.fixture(scope="module")
def real(bundled_engine):
    with Answerer.open(bundled_engine, AnswerOptions(batch_size=2), throughput=True) as answerer:
        yield answerer


def test_open_ask_close(bundled_engine):
    said = []
    with Answerer.open(
        bundled_engine, AnswerOptions(sequence_length=128), layout="padded", say=said.append
    ) as answerer:
        reply = answerer.ask("The tower was built in 1889.", "When was the tower built?", 2)
        assert reply.text == "1889" == reply.n_best[0].text and len(reply.n_best) == 2 and reply.windows == 1
        waiting = answerer.ask_many([("The tower was built in 1889.", "When?")] * 500)
        assert next(waiting).text == "1889"
    assert not said
    for asked in (
        lambda: answerer.ask("The tower.", "What?"),
        lambda: next(answerer.ask_many([("The tower.", "What?")])),
        lambda: list(waiting),
    ):
        with pytest.raises(DemoBertError, match="the engine was closed: open it again"):
            asked()
    answerer.close()  # once more is no error
    with pytest.raises(DemoBertError, match="is a padded engine"):
        Answerer.open(bundled_engine, layout="packed")
    with pytest.raises(DemoBertError, match="not found"):
        Answerer.open(f"{bundled_engine}.none")


def test_it_closes_when_something_is_raised(bundled_engine):
    with pytest.raises(ZeroDivisionError), Answerer.open(bundled_engine) as answerer:
        raise ZeroDivisionError
    with pytest.raises(DemoBertError, match="closed"):
        answerer.ask("The tower.", "What?")


def test_abandoned_half_way(real, rng):
    """The engine goes on to be asked, by itself and by others that were begun before."""
    rows = rows_of(rng, 100, bad=0.05, longest=4)
    expected = [alone(real, row) for row in rows[:30]]
    for count in (1, 30):
        replies = real.ask_many(rows)
        some = [next(replies) for _ in range(count)]
        replies.close()
        assert all(same(rounded(ours), rounded(theirs)) for ours, theirs in zip(some, expected))
    assert all(same(rounded(alone(real, row)), rounded(theirs)) for row, theirs in zip(rows[:20], expected))


def rounded(reply):
    """Its text and place: batches of other companies sum in another order."""
    return reply if isinstance(reply, DemoBertError) else (reply.text, reply.answer.start_char, reply.windows)


def test_many_threads(real, rng):
    """One Answerer, many threads that ask one by one and many at once: the answers that one thread gets."""
    tables = [rows_of(rng, 40, bad=0.05, longest=4) for _ in range(3)]
    many = [list(real.ask_many(table, 2)) for table in tables]
    single = [[alone(real, row, 2) for row in table[:10]] for table in tables]

    def ask(number):
        if number % 2:
            return list(real.ask_many(tables[number // 2], 2))
        return [alone(real, row, 2) for row in tables[number // 2][:10]]

    with ThreadPoolExecutor(6) as threads:
        results = list(threads.map(ask, range(6)))
    for number, result in enumerate(results):
        expected = (many if number % 2 else single)[number // 2]
        assert len(result) == len(expected) and all(same(*pair) for pair in zip(result, expected))


def test_rows_that_are_no_pairs_are_errors_in_their_place():
    answerer = Answerer(TokenEngine(card()), TOKENIZER)
    rows = [("Me.", "Who?"), "ab", ("a", "b", "c"), None, ("Me.", 3), ["Me.", "Who?"]]
    replies = list(answerer.ask_many(rows))
    assert [isinstance(reply, DemoBertError) for reply in replies] == [False, True, True, True, True, False]
    for top_k in ("3", 1.0, True, 0):
        with pytest.raises(UsageError, match="--top-k"):
            answerer.ask("Me.", "Who?", top_k)


def test_closed_for_those_made_of_it_too():
    data = read_squad(DATA / "squad_v2.0.json")
    answerer = Answerer(TokenEngine(card()), TOKENIZER)
    other = answerer.for_squad(data)
    answerer.close()
    with pytest.raises(DemoBertError, match="closed"):
        other.ask("Me.", "Who?")
