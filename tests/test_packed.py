"""Packed sequences on the CPU: the same logits as padded and as numpy's, whatever a sequence is packed with."""

import json
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.answer_options import AnswerOptions
from helpers.answerer import Answerer
from helpers.backends import backend_module, load_engine
from helpers.backends.openvino import engine as openvino_engine
from helpers.batching import PackedBatch, PaddedBatch, packed_batch, packed_groups, padded_batch
from helpers.benchmark import random_packed_batch, spread_lengths
from helpers.bert_config import BertConfig
from helpers.build_options import BuildOptions
from helpers.engine_card import EngineCard
from helpers.errors import DemoBertError
from helpers.model_folder import ModelFolder
from helpers.squad import read_squad
from tests.checkpoints import bert_weights
from tests.conftest import BUNDLED
from tests.reference_bert import random_weights, reference_logits
from tests.test_answerer import OPTIONS, TOKENIZER, TokenEngine, card, expected_answers, token_logits

DATA = Path(__file__).parent / "data"

#: Two float32 paths through the same matrices, summed in another order: some 1e-6 of logits near 1.
SAME = 1e-5

#: Issue 4's bound on what separates packed from padded and from float64.
TOLERANCE = 1e-4

SMALL = BertConfig(48, 2, 3, 96, 211, 384)


def feature(config, rng, length):
    """A window of random tokens, as far as batching looks at it."""
    return SimpleNamespace(
        length=length,
        input_ids=rng.integers(0, config.vocab_size, length, dtype=np.int32),
        segment_ids=rng.integers(0, config.type_vocab_size, length, dtype=np.int32),
    )


def sequences_of(batch: PackedBatch, logits: np.ndarray) -> list[np.ndarray]:
    return np.split(logits, batch.cu_seqlens[1:-1])


def build_engine(folder, config, tensors, layout, batch_size, length, gelu="erf"):
    """A small engine by the backend alone, loaded with its card."""
    options = BuildOptions(batch_sizes=(batch_size,), sequence_lengths=(length,), layout=layout)
    built = backend_module("openvino").prepare(config, options).build(bert_weights(config, tensors, gelu))
    path = folder / f"{layout}.engine"
    path.write_bytes(built.data)
    head = "openvino", built.backend_version, built.device, layout, built.network, built.precision
    sizes = [batch_size], [length], config, None, "", len(built.data), built.settings
    return openvino_engine.load(path, EngineCard(*head, *sizes), throughput=False)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """(tensors, padded engine, packed engine) of one small random BERT: 32 sequences of up to 384 tokens."""
    tensors = random_weights(SMALL, np.random.default_rng(0))
    folder = tmp_path_factory.mktemp("small")
    return tensors, *(build_engine(folder, SMALL, tensors, layout, 32, 384) for layout in ("padded", "packed"))


@pytest.fixture(scope="module")
def bundled_packed_engine(tmp_path_factory, bundled_engine) -> Path:
    import builder_varseqlen

    path = tmp_path_factory.mktemp("packed") / "packed.engine"
    builder_varseqlen.main(f"-pt {BUNDLED} -o {path} -b 4 -b 8 -s 384 --backend openvino".split())
    return path


# -- the numbers


@pytest.mark.sampled(0.4)
@pytest.mark.parametrize("count", [1, 2, 9, 32])
def test_packed_equals_padded_and_numpy(small, rng, count):
    tensors, padded, packed = small
    features = [feature(SMALL, rng, int(length)) for length in rng.integers(1, 385, count)]
    features[0] = feature(SMALL, rng, int(rng.choice([1, 384])))  # the ends of the range, often
    rng.shuffle(features)
    batch, rows = packed_batch(features), padded_batch(features)
    logits = packed.run(batch)
    assert logits.shape == (batch.token_count, 2) and logits.dtype == np.float32
    beside = padded.run(rows)
    reference = reference_logits(SMALL, tensors, "erf", rows.input_ids, rows.segment_ids, rows.input_mask)
    for row, (some, ours) in enumerate(zip(features, sequences_of(batch, logits), strict=True)):
        np.testing.assert_allclose(ours, beside[row, : some.length], atol=TOLERANCE, rtol=0)
        np.testing.assert_allclose(ours, reference[row, : some.length], atol=TOLERANCE, rtol=0)


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32 - 1), lengths=st.lists(st.integers(1, 384), min_size=1, max_size=12), data=st.data())
def test_company_changes_nothing(small, seed, lengths, data):
    """Permuted and regrouped, each sequence keeps its logits."""
    packed = small[2]
    rng = np.random.default_rng(seed)
    features = [feature(SMALL, rng, length) for length in lengths]
    batch = packed_batch(features)
    before = sequences_of(batch, packed.run(batch))
    order = data.draw(st.permutations(range(len(features))))
    cuts = data.draw(st.sets(st.integers(1, max(len(features) - 1, 1))))
    for group in np.split(np.array(order), sorted(cut for cut in cuts if cut < len(features))):
        some = packed_batch([features[index] for index in group])
        for index, logits in zip(group, sequences_of(some, packed.run(some)), strict=True):
            np.testing.assert_allclose(logits, before[index], atol=SAME, rtol=0)


def test_a_max_seqlen_longer_than_needed_changes_nothing(small, rng):
    packed = small[2]
    batch = packed_batch([feature(SMALL, rng, length) for length in (5, 1, 17)])
    longer = PackedBatch(batch.input_ids, batch.segment_ids, batch.cu_seqlens, np.full(50, -7, np.int32))
    np.testing.assert_allclose(packed.run(longer), packed.run(batch), atol=SAME, rtol=0)


def test_what_is_submitted_gives_what_run_gives(bundled_packed_engine, rng):
    engine = load_engine(bundled_packed_engine, "packed", throughput=True)
    config = engine.card.config
    batches = [
        packed_batch([feature(config, rng, int(length)) for length in rng.integers(1, 60, int(rng.integers(1, 9)))])
        for _ in range(6)
    ]
    runs = [engine.submit(batch) for batch in batches]
    for batch, run in zip(batches, runs):
        np.testing.assert_allclose(run.result(), engine.run(batch), atol=SAME, rtol=0)


# -- batches


@given(st.lists(st.integers(1, 100), max_size=60), st.integers(100, 400), st.integers(1, 9))
def test_groups_hold_every_window_once_and_stay_within_both_limits(lengths, max_tokens, max_batch_size):
    groups = packed_groups([SimpleNamespace(length=length) for length in lengths], max_tokens, max_batch_size)
    assert Counter(index for group in groups for index in group) == Counter(range(len(lengths)))
    for group in groups:
        assert 1 <= len(group) <= max_batch_size and sum(lengths[index] for index in group) <= max_tokens
    for first, second in zip(groups, groups[1:]):  # first fit: what opened a group had no room in the one before
        assert len(first) == max_batch_size or sum(lengths[i] for i in first) + lengths[second[0]] > max_tokens


def test_short_windows_fill_what_long_ones_leave():
    features = [SimpleNamespace(length=length) for length in (10, 90, 60, 35, 5)]
    assert packed_groups(features, 100, 8) == [[1, 0], [2, 3, 4]]


def test_lengths_spread_as_those_of_the_file():
    lengths = [10] * 50 + [100] * 50
    assert sorted(spread_lengths(lengths, 4, seed=1)) == [10, 10, 100, 100]
    assert spread_lengths(list(range(1, 102)), 1, seed=1) == [51]
    assert spread_lengths(lengths, 16, seed=1) != spread_lengths(lengths, 16, seed=2)


# -- what Engine.run refuses (issue 4, "Done when" 4)


def batch_of(lengths, **changes) -> PackedBatch:
    batch = random_packed_batch(SimpleNamespace(config=SMALL), lengths, seed=0)
    arrays = batch.inputs() | {name: np.array(values, np.int32) for name, values in changes.items()}
    return PackedBatch(**arrays)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (lambda: batch_of([4, 4], cu_seqlens=[1, 4, 8]), "cu_seqlens must start at 0, not at 1"),
        (lambda: batch_of([4, 4], cu_seqlens=[0, 9, 8]), "cu_seqlens must ascend: 9 is followed by 8"),
        (lambda: batch_of([4, 4], cu_seqlens=[0, 2**31 - 1, -(2**31)]), "cu_seqlens must ascend"),
        (lambda: batch_of([4, 4], cu_seqlens=[0, 4, 9]), "cu_seqlens must end at the number of tokens, 8, not at 9"),
        (lambda: batch_of([4, 4], cu_seqlens=[0, 4, 7]), "cu_seqlens must end at the number of tokens, 8, not at 7"),
        (lambda: batch_of([4, 4], cu_seqlens=[0, 4, 4, 8]), "sequence 1 has no tokens"),
        (lambda: batch_of([4, 4], cu_seqlens=[0]), "at least two numbers"),
        (lambda: batch_of([4, 4], cu_seqlens=[]), "cu_seqlens must be an array of one dimension"),
        (lambda: batch_of([4, 4], cu_seqlens=[[0, 4, 8]]), "cu_seqlens must be an array of one dimension"),
        (lambda: batch_of([4], input_ids=[], segment_ids=[]), "input_ids must be an array of one dimension, not empty"),
        (lambda: batch_of([4, 4], segment_ids=[0] * 7), "8 input_ids and 7 segment_ids"),
        (lambda: batch_of([4, 9], max_seqlen=[0] * 8), "max_seqlen has the length 8, a sequence has 9 tokens"),
        (lambda: batch_of([385]), "sequence length 385 is over this engine's longest, 384; rebuild it with -s 385"),
        (lambda: batch_of([4], max_seqlen=[0] * 385), "sequence length 385 is over this engine's longest"),
        (lambda: batch_of([373] * 33), r"12309 tokens are over this engine's most, 12288 \(32 × 384\)"),
        (lambda: batch_of([1] * 33), "batch size 33 is over this engine's largest, 32; rebuild it with -b 33"),
        (lambda: batch_of([2], input_ids=[0, 211]), "a token id is outside the model's 211"),
        (lambda: batch_of([2], segment_ids=[0, -1]), "a segment id is outside the model's 2"),
    ],
)
def test_what_run_refuses(small, batch, message):
    with pytest.raises(DemoBertError, match=message) as refused:
        small[2].run(batch())
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["input_ids", "segment_ids", "cu_seqlens", "max_seqlen"])
def test_run_refuses_other_types(small, name):
    arrays = batch_of([3, 4]).inputs()
    with pytest.raises(DemoBertError, match="int32"):
        small[2].run(PackedBatch(**arrays | {name: arrays[name].astype(np.int64)}))


def test_run_refuses_the_other_layout(small):
    _, padded, packed = small
    ones = np.ones((1, 4), np.int32)
    with pytest.raises(DemoBertError, match="a packed engine: it takes a PackedBatch, not a PaddedBatch"):
        packed.run(PaddedBatch(ones, ones * 0, ones))
    with pytest.raises(DemoBertError, match="a padded engine: it takes a PaddedBatch, not a PackedBatch"):
        padded.run(batch_of([4]))


def test_the_largest_batch_is_served(small):
    batch = batch_of([384] * 32)
    assert small[2].run(batch).shape == (32 * 384, 2)


# -- the loop over an engine


class PackedTokenEngine(TokenEngine):
    """The stand-in of test_answerer.py, packed: noise seeded by each sequence's own tokens."""

    def __init__(self, batch_size):
        values = card(batch_size).__dict__ | {"layout": "packed"}
        super().__init__(EngineCard(**values))

    def _infer(self, batch):
        self.batches.append(batch)
        ids, segments = (np.split(array, batch.cu_seqlens[1:-1]) for array in (batch.input_ids, batch.segment_ids))
        return np.concatenate([token_logits(*pair) for pair in zip(ids, segments, strict=True)])


@pytest.mark.parametrize("options", OPTIONS)
def test_one_loop_answers_for_both_layouts(options):
    data = read_squad(DATA / "squad_v1.1.json")
    engine = PackedTokenEngine(4)
    results = Answerer(engine, TOKENIZER, options).answer_squad(data)
    for example in data.examples:
        answers, _ = expected_answers(example.passage, example.question, options)
        assert results[example.question_id].n_best == answers
    budget = options.batch_size * options.sequence_length
    assert all(batch.token_count <= budget and batch.batch_size <= 4 for batch in engine.batches)
    example = data.examples[1]
    reply = Answerer(engine, TOKENIZER, options).ask(example.passage, example.question, options.n_best_size)
    answers, windows = reply.n_best, reply.windows
    assert (answers, windows) == expected_answers(example.passage, example.question, options)


def test_packed_and_padded_answer_alike(bundled_engine, bundled_packed_engine):
    data = read_squad(DATA / "squad_v1.1.json")
    answers = []
    for path, layout in ((bundled_engine, "padded"), (bundled_packed_engine, "packed")):
        engine = load_engine(path, layout)
        tokenizer = ModelFolder.open(BUNDLED).tokenizer()
        results = Answerer(engine, tokenizer, AnswerOptions(batch_size=4)).answer_squad(data)
        answers.append({key: result.text for key, result in results.items()})
    assert answers[0] == answers[1]


# -- the scripts


def test_the_card_says_packed(bundled_packed_engine):
    values = json.loads(Path(f"{bundled_packed_engine}.json").read_text())
    assert values["layout"] == "packed" and values["batch_sizes"] == [4, 8] and values["sequence_lengths"] == [384]


def test_a_question_and_a_squad_file(script, bundled_packed_engine, tmp_path):
    words = ["The", "tower", "was", "built", "in", "1889", "by", "Gustave", "Eiffel's", "company."]
    result = script("inference_varseqlen.py", "-e", bundled_packed_engine, "-p", *words, "-q", "When was it built?")
    assert result.code == 0 and "Answer: '1889'" in result.out and "Sentences/Sec" in result.out
    squad, predictions = DATA / "squad_v2.0.json", tmp_path / "p.json"
    result = script("inference_varseqlen.py", "-e", bundled_packed_engine, "-sq", squad, "-o", predictions, "-b", 2)
    assert result.code == 0 and "questions per second" in result.out
    assert json.loads(predictions.read_text()).keys() == {example.question_id for example in read_squad(squad).examples}


def test_perf_on_full_sequences_and_on_real_lengths(script, bundled_packed_engine, tmp_path):
    figures, picture = tmp_path / "perf.json", tmp_path / "perf.png"
    flags = ["-e", bundled_packed_engine, "-i", 2, "-w", 0, "--json", figures]
    result = script("perf_varseqlen.py", *flags, "-b", 1, "-b", 3, "-s", 16, "--plot", picture)
    assert "--vocab-file" not in result.err
    assert result.code == 0 and result.out.count("Tokens/Sec") == 2 and picture.stat().st_size
    full = json.loads(figures.read_text())["timings"]
    assert [timing["tokens"] for timing in full] == [16, 48] and all(timing["padding_saved"] == 0 for timing in full)
    result = script("perf_varseqlen.py", *flags, "-s", 8, "-v", "nowhere")
    assert result.code == 0 and "Note: --vocab-file has no effect without --lengths-from" in result.err
    result = script("perf_varseqlen.py", *flags, "-b", 8, "--lengths-from", DATA / "squad_v1.1.json")
    assert result.code == 0 and "windows of at most 384 tokens" in result.err
    (timing,) = json.loads(figures.read_text())["timings"]
    assert timing["sequence_length"] == 384 and 0 < timing["tokens"] < 8 * 384
    assert timing["padding_saved"] == pytest.approx(1 - timing["tokens"] / (8 * 384))
    assert timing["tokens_per_second"] == pytest.approx(timing["tokens"] * 1000 / timing["average_ms"])


def test_an_engine_of_the_other_layout(script, bundled_engine, bundled_packed_engine):
    ask = ["-p", "A passage.", "-q", "Why?"]
    for program, engine, other in (
        ("inference.py", bundled_packed_engine, "inference_varseqlen.py or perf_varseqlen.py"),
        ("perf.py", bundled_packed_engine, "inference_varseqlen.py or perf_varseqlen.py"),
        ("inference_varseqlen.py", bundled_engine, "inference.py or perf.py"),
        ("perf_varseqlen.py", bundled_engine, "inference.py or perf.py"),
    ):
        flags = ask if program.startswith("inference") else []
        result = script(program, "-e", engine, *flags)
        assert result.code == 1 and result.error.endswith(f"engine, run it with {other}")


def test_a_packed_blob_without_a_card_is_recognised(script, bundled_packed_engine, tmp_path):
    lone = tmp_path / "lone.engine"
    shutil.copy(bundled_packed_engine, lone)
    trusted = ["-e", lone, "--trust-engine", "-s", 8, "-i", 1]
    result = script("perf_varseqlen.py", *trusted, "-w", 0)
    assert result.code == 0 and "openvino, packed" in result.err
    assert "batch size up to 8, sequence length up to 384" in result.err
    assert "run it with inference_varseqlen.py" in script("perf.py", *trusted).error


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["-s", 64, "-s", 128], "give -s once"),
        (["-s", 513], "max_position_embeddings, 512"),
        (["--interleaved"], "--interleaved is a layout of int8 plugins: add --int8"),
        (["--int8", "-imh"], "-imh is builder.py's: a packed int8 engine"),
        (["--megatron"], "--megatron needs --int8 and the weights from --pickle"),
        (["--megatron", "--int8"], "--megatron needs --int8 and the weights from --pickle"),
        (["--pickle", "x.pickle"], "name one checkpoint with -m, -x, -pt or --pickle, not -pt and --pickle"),
        (["--network", "plugin"], "--network plugin is a form of TensorRT's"),
        (["--force-int8-skipln"], "--force-int8-skipln is builder.py's: a packed int8 engine"),
        (["--batch-size", 4], "unrecognized arguments: --batch-size 4"),
    ],
)
def test_builder_refuses(script, tmp_path, flags, message):
    output = tmp_path / "x.engine"
    result = script("builder_varseqlen.py", "-pt", BUNDLED, "-o", output, "--backend", "openvino", *flags)
    assert result.code == 2 and message in result.error and not list(tmp_path.iterdir())


def test_builder_s_pickle_and_megatron_flags(script, tmp_path):
    for flags, message in (
        ([], "checkpoint not found"),
        (["--int8", "--megatron", "--network", "plugin"], "--megatron in a plugin network needs --interleaved"),
    ):
        common = ["-c", BUNDLED, "-o", tmp_path / "x.engine", "--backend", "openvino"]
        result = script("builder_varseqlen.py", "-pkl", tmp_path / "x.pickle", *common, *flags)
        assert result.code == (2 if flags else 1) and message in result.error


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["-b", 9], "batch size 9 is over this engine's largest, 8"),
        (["-b", 10**12], "batch size 1000000000000 is over"),
        (["-s", 385], "sequence length 385 is over this engine's longest, 384"),
        (["--lengths-from", "nowhere.json"], "nowhere.json"),
        (["-s", 385, "--lengths-from", DATA / "squad_v1.1.json"], "sequence length 385 is over"),
    ],
)
def test_perf_refuses(script, bundled_packed_engine, flags, message):
    result = script("perf_varseqlen.py", "-e", bundled_packed_engine, "-i", 1, *flags)
    assert result.code in (1, 2) and message in result.error


def test_inference_refuses_more_than_the_engine_holds(script, bundled_packed_engine):
    flags = ["-p", "A passage.", "-q", "Why?"]
    result = script("inference_varseqlen.py", "-e", bundled_packed_engine, *flags, "-b", 9)
    assert result.code == 2 and "batch size 9 is over this engine's largest, 8" in result.error
