"""The loop over an engine: a stand-in whose logits depend on the tokens alone, and the real model in torch."""

import dataclasses
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

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

    Several batches run at once, each in a thread of its own, and the memory of what it gave is used again.
    """

    def __init__(self, engine_card, multiple=1):
        super().__init__(engine_card)
        self.multiple = multiple
        self.batches = []
        self.threads = ThreadPoolExecutor(self.parallel_runs)

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
        return self.threads.submit(self._reused, batch)

    def _reused(self, batch):
        """The logits in memory that the next batches overwrite."""
        output = self.run(batch)
        threading.Timer(0.05, output.fill, [np.nan]).start()
        return output

    def timed_run(self, batch):
        return lambda: 1.0

    def describe(self):
        return "stand-in"


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
