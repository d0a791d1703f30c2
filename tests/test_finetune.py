"""squad/finetune.py: its network, quantizers, masks, windows and loop; the script end to end on a tiny random model."""

import json
import shutil
import signal
import string
from dataclasses import replace

import numpy as np
import pytest

from helpers import cli, quantization
from helpers.answer_options import AnswerOptions
from helpers.batching import PaddedBatch, padded_batch
from helpers.bert_config import BertConfig
from helpers.errors import DemoBertError
from helpers.model_folder import ModelFolder
from helpers.squad import read_squad
from helpers.weights import load_weights
from helpers.weights.canonical import expected_shapes
from helpers.weights.pytorch_names import canonical_name, pytorch_name
from helpers.weights.sparsity import is_sparse_2_4, sparse_2_4_kernels
from tests.checkpoints import bert_weights, pytorch_state, write_folder
from tests.conftest import Result
from tests.reference_bert import fake_int8, random_config, random_inputs, random_weights, reference_logits

torch = pytest.importorskip("torch")

from helpers.finetuning import pruning, run, training, windows  # noqa: E402
from helpers.finetuning.checkpoint import STATE_NAME, to_torch  # noqa: E402
from helpers.finetuning.network import Network, _Int8Dense, _Int8Values, kernel_range  # noqa: E402
from helpers.finetuning.onnx_export import write_onnx  # noqa: E402

CPU = torch.device("cpu")

WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "red",
    "mat",
    "while",
    "two",
    "dogs",
    "ran",
    "past",
    "seven",
    "blue",
    "birds",
    "in",
    "old",
    "paris",
    "near",
    "london",
]


def network_of(config, tensors, gelu="erf", half=False, ranges=None) -> Network:
    weights = bert_weights(config, tensors, gelu)
    return Network(weights.config, to_torch(weights, CPU), half, ranges)


@pytest.fixture
def tiny(tmp_path, rng):
    """A folder with a random two-layer BERT and its vocabulary, and a SQuAD file of made-up text."""
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "?", ".", *WORDS, *string.ascii_lowercase[1:]]
    config = BertConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        vocab_size=len(vocabulary),
        max_position_embeddings=64,
    )
    folder = write_folder(tmp_path / "start", config, pytorch_state(config, random_weights(config, rng)))
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    data = tmp_path / "train.json"
    data.write_text(json.dumps({"data": [{"paragraphs": [_paragraph(rng, i) for i in range(6)]}]}), encoding="utf-8")
    return folder, data


def _paragraph(rng, number: int) -> dict:
    context = " ".join(rng.choice(WORDS, int(rng.integers(12, 40))))
    questions = []
    for i in range(4):
        start = int(rng.integers(0, 6))
        text = " ".join(context.split()[start : start + int(rng.integers(1, 4))])
        answer = {"text": text, "answer_start": len(" ".join(context.split()[:start])) + (start > 0)}
        question = " ".join(rng.choice(WORDS, 4)) + "?"
        questions.append({"id": f"{number}-{i}", "question": question, "answers": [answer]})
    return {"context": context, "qas": questions}


@pytest.fixture
def finetune(script, capsys, monkeypatch):
    """`finetune("-pt", folder, …)` runs squad/finetune.py in this process, on the CPU in float32."""
    import importlib.util

    from tests.conftest import ROOT

    spec = importlib.util.spec_from_file_location("finetune", ROOT / "squad" / "finetune.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def call(*arguments) -> Result:
        arguments = [str(argument) for argument in (*arguments, "--fp32")]
        monkeypatch.setattr("sys.argv", ["finetune.py", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.run(module.main)
        captured = capsys.readouterr()
        return Result(ended.value.code or 0, captured.out, captured.err)

    return call


def run_of(finetune, folder, data, out, *flags) -> Result:
    return finetune("-pt", folder, "-j", data, "-o", out, "-s", 48, "-b", 4, "-n", 8, *flags)


# ---------------------------------------------------------------------------------------------------- the network


def test_float_network_matches_the_reference(rng):
    config = random_config(rng)
    tensors, gelu = random_weights(config, rng), str(rng.choice(["erf", "tanh"]))
    inputs = random_inputs(config, rng, 3, min(24, config.max_position_embeddings))
    with torch.inference_mode():
        logits, hidden = network_of(config, tensors, gelu).run(PaddedBatch(*inputs))
    wanted = reference_logits(config, tensors, gelu, *inputs)
    text = inputs[2].astype(bool)
    # float32 against float64 through at most five layers.
    np.testing.assert_allclose(logits.numpy()[text], wanted[text], atol=2e-4, rtol=2e-4)
    assert {tuple(layer.shape) for layer in hidden} == {(*inputs[0].shape, config.hidden_size)}
    assert len(hidden) == config.num_hidden_layers


def test_bfloat16_network_is_near_the_reference(rng):
    config = random_config(rng)
    tensors = random_weights(config, rng)
    inputs = random_inputs(config, rng, 2, min(24, config.max_position_embeddings))
    with torch.inference_mode():
        logits = network_of(config, tensors, half=True).run(PaddedBatch(*inputs))[0].numpy()
    wanted = reference_logits(config, tensors, "erf", *inputs)
    error = np.abs(logits - wanted)[inputs[2].astype(bool)]
    # bfloat16 keeps eight bits: products err by a few thousandths of values of about 1, in up to 25 products in a row.
    assert 1e-6 < error.mean() < 0.05 * (1 + np.abs(wanted).mean())


def _int8_case(rng):
    out_size, in_size = int(rng.integers(3, 40)), int(rng.integers(3, 60))
    hidden = rng.standard_normal((2, 5, in_size)) * 2
    kernel, bias = rng.standard_normal((out_size, in_size)), rng.standard_normal(out_size)
    kernel[rng.integers(out_size)] = 0  # a channel of zeros
    amax = 1.5 + rng.random()  # some of the values are clipped
    return [array.astype(np.float32) for array in (hidden, kernel, bias)], np.float32(amax)


def _fake_quantized(values, step):
    return np.clip(np.rint(values / step), -127, 127) * step


def test_int8_dense_is_fake_quantization(rng):
    (hidden, kernel, bias), amax = _int8_case(rng)
    steps = np.abs(kernel).max(1, keepdims=True) / np.float32(127)
    rounded = _fake_quantized(kernel, np.where(steps > 0, steps, 1))
    wanted = _fake_quantized(hidden, amax / np.float32(127)).astype(np.float64) @ rounded.T + bias
    arguments = [torch.tensor(array) for array in (hidden, kernel, bias, amax)]
    exact = _Int8Dense.apply(*arguments, torch.float32).numpy()
    half = _Int8Dense.apply(*arguments, torch.bfloat16).float().numpy()
    np.testing.assert_allclose(exact, wanted, atol=1e-4)
    # bfloat16 multiplies the same integers; its sum and its result are rounded to eight bits.
    np.testing.assert_allclose(half, wanted, atol=0.02 * np.abs(wanted).max())


def test_int8_dense_has_the_straight_through_gradient(rng):
    """Against torch's own differentiation of the same, put together of parts that have a gradient."""
    (hidden, kernel, bias), amax = _int8_case(rng)

    def through(values, rounded):  # rounded in the forward pass, as if it were not there in the backward
        return values + (rounded - values).detach()

    def by_parts(hidden, kernel, bias, amax):
        step = amax / 127
        scaled = (hidden / step).clamp(-127, 127)
        steps = kernel_range(kernel) / 127
        integers = through(kernel / steps, (kernel / steps).round())
        return torch.nn.functional.linear(through(scaled, scaled.round()) * step, integers * steps, bias)

    gradients = []
    weight = torch.tensor(rng.standard_normal((2, 5, len(bias))).astype(np.float32))
    for function in (lambda *leaves: _Int8Dense.apply(*leaves, torch.float32), by_parts):
        leaves = [torch.tensor(array, requires_grad=True) for array in (hidden, kernel, bias, amax)]
        (function(*leaves) * weight).sum().backward()
        gradients.append([leaf.grad.numpy() for leaf in leaves])
    for ours, wanted in zip(*gradients, strict=True):
        np.testing.assert_allclose(ours, wanted, rtol=1e-3, atol=1e-3 * max(1.0, np.abs(wanted).max()))
    assert np.abs(gradients[0][3]) > 0


def test_int8_values_have_the_straight_through_gradient(rng):
    values, amax = rng.standard_normal((3, 4, 5)).astype(np.float32) * 2, np.float32(rng.uniform(0.5, 3))
    weight = torch.tensor(rng.standard_normal(values.shape).astype(np.float32))
    gradients = []

    def by_parts(values, amax):
        scaled = (values / amax * 127).clamp(-127, 127)
        return (scaled + (scaled.round() - scaled).detach()) * amax / 127

    for function in (_Int8Values.apply, by_parts):
        leaves = [torch.tensor(array, requires_grad=True) for array in (values, amax)]
        found = function(*leaves)
        np.testing.assert_allclose(found.detach(), _fake_quantized(values, amax / np.float32(127)), atol=1e-6)
        (found * weight).sum().backward()
        gradients.append([leaf.grad.numpy() for leaf in leaves])
    for ours, wanted in zip(*gradients, strict=True):
        np.testing.assert_allclose(ours, wanted, rtol=1e-3, atol=1e-4)
    assert np.abs(gradients[0][1]) > 0


@pytest.mark.parametrize("attention, norms", [(True, True), (True, False), (False, True), (False, False)])
def test_the_network_rounds_where_the_plugins_do(attention, norms, rng):
    """Against numpy's, whose every place has a range of its own: those that are one tensor in plugins are one here."""
    config = replace(random_config(rng), num_hidden_layers=int(rng.integers(1, 3)))
    tensors = random_weights(config, rng)
    network = network_of(config, tensors)
    batch = PaddedBatch(*random_inputs(config, rng, 24, min(8, config.max_position_embeddings)))
    measured = run.measured_ranges(network, [batch])
    tight = run.rounded_ranges(network, measured, attention, norms)
    network.input_ranges = {name: 0.8 * amax for name, amax in tight.items()}
    ranges = run.all_ranges(network, measured)
    for i in range(config.num_hidden_layers):
        residual = ranges[f"l{i}_attention_self_query_input_amax"]
        ranges[f"l{i}_attention_output_add_residual_input_quantizer_amax"] = residual
        ranges[f"l{i}_output_add_residual_input_quantizer_amax"] = ranges[f"l{i}_intermediate_dense_input_amax"]

    def places(name):
        return "quantizer" not in name or (attention if "_attention_self_" in name else norms)

    def quantize(name, values):
        amax = ranges[name] if places(name) else np.inf
        return values if np.isinf(amax).all() else fake_int8(values, np.float64(amax), lowest=-127)

    wanted = reference_logits(config, tensors, "erf", *batch.inputs().values(), quantize=quantize)
    with torch.inference_mode():
        found = network.run(batch)[0].numpy()
        network.input_ranges = None
        unrounded = network.run(batch)[0].numpy()
    text = batch.input_mask.astype(bool)[..., None]
    error, effect = ((np.abs(other - wanted) * text).max((1, 2)) for other in (found, unrounded))
    # float32 sums tip a value over an edge of rounding in many rows; a wrong place or range shows in every one.
    assert np.sort(error)[2] < 1e-4 < 1e-3 < np.sort(effect)[2]


def test_attention_and_norms_are_rounded_with_qat_only(tiny, finetune):
    folder, data = tiny
    for flag in ("-imh", "-iln"):
        result = finetune("-pt", folder, "-j", data, "-o", folder.parent / "nothing", flag)
        assert "say where --qat rounds: add --qat" in result.error
    assert not (folder.parent / "nothing").exists()


# ---------------------------------------------------------------------------------------------------- 2:4 masks


def test_pruned_kernels_are_sparse_and_better_than_magnitudes(rng):
    out_size, in_size = int(rng.integers(8, 40)), 4 * int(rng.integers(4, 16))
    mixing = rng.standard_normal((in_size, in_size))
    inputs = rng.standard_normal((400, in_size)) @ mixing  # correlated, as activations are
    kernel = rng.standard_normal((out_size, in_size)).astype(np.float32)
    moments = torch.tensor((inputs.T @ inputs).astype(np.float32))
    pruned, mask = (tensor.numpy() for tensor in pruning.pruned_2_4(torch.tensor(kernel), moments))
    assert is_sparse_2_4(pruned) and not is_sparse_2_4(kernel)
    assert (mask.reshape(-1, 4).sum(1) == 2).all() and not pruned[~mask].any()

    order = np.abs(kernel).reshape(-1, 4).argsort(1)
    by_magnitude = kernel.reshape(-1, 4).copy()
    np.put_along_axis(by_magnitude, order[:, :2], 0, 1)
    error = np.linalg.norm(inputs @ (pruned - kernel).T)
    assert error < 0.9 * np.linalg.norm(inputs @ (by_magnitude.reshape(kernel.shape) - kernel).T)


def test_pruning_survives_inputs_that_never_vary(rng):
    kernel = torch.tensor(rng.standard_normal((6, 8)).astype(np.float32))
    pruned, _ = pruning.pruned_2_4(kernel, torch.zeros(8, 8))
    assert is_sparse_2_4(pruned.numpy()) and torch.isfinite(pruned).all()


# ---------------------------------------------------------------------------------------------------- windows


def _windows(tiny, **options):
    folder, data = tiny
    tokenizer = ModelFolder.open(folder).tokenizer()
    cut = AnswerOptions(**({"sequence_length": 24, "doc_stride": 5} | options))
    return windows.training_windows(read_squad(data), tokenizer, cut), tokenizer, read_squad(data)


def test_windows_point_at_the_answer(tiny):
    (found, left_out), tokenizer, data = _windows(tiny)
    pieces = list(tokenizer.values["model"]["vocab"])
    answers = {example.answers[0] for example in data.examples}
    shown = [window for window in found if window.end]
    assert left_out == 0 and len(found) > len(data.examples)  # long passages have several windows
    assert 0 < len(shown) < len(found)
    for window in shown:
        assert " ".join(pieces[i] for i in window.feature.input_ids[window.start : window.end + 1]) in answers
        assert window.start >= window.feature.passage_position
    assert all((window.start, window.end) == (0, 0) for window in found if not window.end)


def test_a_wrong_answer_start_is_mended_and_a_missing_answer_left_out(tiny):
    folder, data = tiny
    content = json.loads(data.read_text())
    questions = content["data"][0]["paragraphs"][0]["qas"]
    questions[0]["answers"][0]["answer_start"] += 1000
    del questions[1]["answers"][0]["answer_start"]
    questions[2]["answers"] = [{"text": "not in it", "answer_start": 0}]
    questions[3] |= {"answers": [], "is_impossible": True}
    data.write_text(json.dumps(content))
    (found, left_out), _, parsed = _windows(tiny, sequence_length=60)
    assert left_out == 1 and len(found) == len(parsed.examples) - 1
    first, second, impossible = found[:3]
    assert first.end and second.end and (impossible.start, impossible.end) == (0, 0)


@pytest.mark.parametrize("kind", ["question", "passage", "both"])
@pytest.mark.parametrize("blank", ["", " \n", "\u200b\u0000"])  # the last has no letters that BERT reads
def test_blank_text_costs_its_own_questions_only(tiny, kind, blank):
    folder, data = tiny
    content = json.loads(data.read_text())
    first, second = content["data"][0]["paragraphs"][:2]
    count = 0
    if kind != "passage":
        first["qas"][0]["question"], first["qas"][1]["question"] = blank, blank
        first["qas"][1] |= {"is_impossible": True}
        count += 2
    if kind != "question":
        second["context"] = blank
        second["qas"][0] |= {"is_impossible": True}
        count += 4
    data.write_text(json.dumps(content))
    (found, left_out), _, parsed = _windows(tiny, sequence_length=60)
    assert left_out == count and len(found) == len(parsed.examples) - count


def test_training_notes_how_many_questions_are_blank(tiny, finetune, tmp_path):
    folder, data = tiny
    content = json.loads(data.read_text())
    content["data"][0]["paragraphs"][0]["qas"][0]["question"] = " "
    data.write_text(json.dumps(content))
    result = run_of(finetune, folder, data, tmp_path / "out", "--epochs", 1)
    assert result.code == 0 and "1 of 24 questions are left out: they are blank, or" in result.err, result


def _span(tiny, passage, *answers) -> tuple[int, int] | None:
    """The characters of `passage` that the label marks, for (answer, start) pairs."""
    from helpers.squad import SquadExample

    folder, _ = tiny
    tokens = ModelFolder.open(folder).tokenizer().encode(passage)
    texts, starts = zip(*answers)
    span = windows._answer_tokens(SquadExample("1", "q", passage, 0, texts, starts), tokens)
    return span and (int(tokens.offsets[span[0], 0]), int(tokens.offsets[span[1], 1]))


def test_a_label_takes_the_occurrence_nearest_to_answer_start(tiny):
    passage = "the cat sat, a red cat ran past the old cat."  # "cat" at 4, 19 and 40
    expected = {-7: 4, 0: 4, 4: 4, 5: 4, 11: 4, 12: 19, 18: 19, 20: 19, 29: 19, 30: 40, 41: 40, 999: 40, 10**30: 40}
    expected |= {None: 4}
    for start, place in expected.items():
        assert _span(tiny, passage, ("cat", start)) == (place, place + 3), start
    assert _span(tiny, "red cat, red cat", ("red cat", 5)) == (9, 16)
    assert _span(tiny, "cat x cat", ("cat", 3)) == (0, 3)  # as near on both sides: the earlier
    assert _span(tiny, passage, ("dog", 4)) is None and _span(tiny, passage, (" ", 3)) is None


def test_a_label_of_mrqa_may_differ_in_letter_case(tiny):
    """Its answers are found by their normalised text; one whose place is known goes before those that are not."""
    passage = "the Cat sat, a Red cat."
    assert _span(tiny, passage, ("cat", 4)) == (4, 7)
    assert _span(tiny, passage, ("red", 5)) is None
    assert _span(tiny, passage, ("the", None), ("Red", 15)) == (15, 18)
    assert _span(tiny, passage, ("cat", None)) == (19, 22)


def test_labels_take_linear_time(tiny):
    """Passages of 2 million letters, of the kinds that make plain searches compare half of it at every place."""
    import time

    half = "a" * 1_000_000
    begin = time.perf_counter()
    for text in ("b" + half, half + "b", half[:500_000] + "b" + half[500_000:]):
        for place in (0, 1_000_000, 2_000_000):
            assert windows._nearest(half * 2, text, place) == -1
    assert time.perf_counter() - begin < 10


def test_batches_hold_every_window_once_and_depend_on_seed_and_epoch_alone(tiny):
    (found, _), _, _ = _windows(tiny)

    def batches(seed, epoch):
        return windows.shuffled_batches(found, 4, seed, epoch)

    assert sorted(i for batch in batches(7, 0) for i in batch) == list(range(len(found)))
    assert batches(7, 1) == batches(7, 1) and batches(7, 0) != batches(7, 1) != batches(8, 1)
    lengths = [found[i].feature.length for batch in batches(7, 0) for i in batch]
    padded = sum(len(batch) * max(found[i].feature.length for i in batch) for batch in batches(7, 0))
    assert padded < 1.1 * sum(lengths)


# ---------------------------------------------------------------------------------------------------- names


def test_pytorch_names_are_the_inverse_of_canonical_names(rng):
    config = random_config(rng)
    ranges = ["bert_encoder_final_input_quantizer_amax", "cls_squad_output_input_amax"]
    for name in (*expected_shapes(config), *ranges, *(f"l3_{part}" for part in _RANGES_OF_A_LAYER)):
        assert canonical_name(pytorch_name(name)) == name
    assert pytorch_name("l3_output_layernorm_gamma") == "bert.encoder.layer.3.output.LayerNorm.weight"


_DENSE_PLACES, _ADD_PLACES = ("attention_output", "intermediate", "output"), ("attention_output", "output")

#: What every layer of a QAT checkpoint has a range for.
_RANGES_OF_A_LAYER = (
    *(f"attention_self_{part}_{kind}_amax" for part in ("query", "key", "value") for kind in ("input", "kernel")),
    *(f"attention_self_{which}_input_quantizer_amax" for which in ("qv_a", "qv_b", "av_a", "av_b")),
    *(f"{place}_dense_{kind}_amax" for place in _DENSE_PLACES for kind in ("input", "kernel")),
    *(f"{place}_add_{which}_input_quantizer_amax" for place in _ADD_PLACES for which in ("local", "residual")),
)


# ---------------------------------------------------------------------------------------------------- training


def test_training_learns_the_answers(tiny):
    folder, _ = tiny
    (found, _), _, _ = _windows(tiny, sequence_length=60)
    network = _start(folder)
    options = training.TrainingOptions(epochs=20, learning_rate=3e-3, batch_size=4)
    losses = _train(network, None, found, options)
    assert np.mean(losses[-6:]) < 0.5 * np.mean(losses[:6])


def test_distillation_brings_a_pruned_int8_network_back_to_its_teacher(tiny):
    folder, _ = tiny
    (found, _), _, _ = _windows(tiny, sequence_length=60)
    network, teacher = _start(folder), _start(folder)
    groups = run._calibration_windows(found, 16, 0)
    batches = [padded_batch([window.feature for window in group]) for group in groups]
    masks = run.prune_encoder(network, batches)
    network.input_ranges = run.rounded_ranges(network, run.measured_ranges(network, batches))
    options = training.TrainingOptions(epochs=10, learning_rate=2e-3, batch_size=4, distill=1.0)
    losses = _train(network, teacher, found, options, masks)
    assert np.mean(losses[-6:]) < 0.7 * np.mean(losses[:6])
    assert all(is_sparse_2_4(network.weights[name].numpy()) for name in masks) and len(masks) == 12
    assert teacher.weights["l0_output_dense_kernel"].equal(_start(folder).weights["l0_output_dense_kernel"])


def test_channels_have_ranges_too(rng):
    """What the float network's layer norms put out, over text: padding is left out."""
    config = random_config(rng)
    tensors = random_weights(config, rng)
    inputs = random_inputs(config, rng, 3, min(30, config.max_position_embeddings))
    measured = run.measured_ranges(network_of(config, tensors), [PaddedBatch(*inputs)])
    seen, text = {}, inputs[2].astype(bool)
    reference_logits(config, tensors, "erf", *inputs, quantize=seen.setdefault)
    names = quantization.channel_range_names(config)
    assert measured.keys() - quantization.range_names(config) == names.keys()
    for name, tensor in names.items():
        np.testing.assert_allclose(measured[name], np.abs(seen[tensor][text]).max(0), rtol=1e-3, atol=1e-5)
        assert measured[name].max() == np.float32(measured[tensor])


def test_the_rate_rises_and_falls():
    options = training.TrainingOptions(learning_rate=1.0)
    rates = [training.learning_rate_at(step, 50, options) for step in range(50)]
    assert rates[4] == max(rates) == 1.0 and rates[0] == pytest.approx(0.2) and rates[-1] == pytest.approx(1 / 45)
    assert training.learning_rate_at(0, 1, options) == 1.0


def _start(folder) -> Network:
    config = BertConfig.from_folder(folder)
    return network_of(config, load_weights(config, pytorch=folder).tensors)


def _train(network, teacher, found, options, masks=None) -> list[float]:
    losses = []
    trained = training.trained_names(network, embeddings=teacher is None)
    state = training.TrainingState(network, trained, masks or {})
    original, training._loss = training._loss, lambda *given: _kept(losses, original(*given))
    try:
        training.train(state, teacher, found, options)
    finally:
        training._loss = original
    return losses


def _kept(losses: list, loss):
    losses.append(float(loss.detach()))
    return loss


# ---------------------------------------------------------------------------------------------------- the script


def test_sparse_qat_end_to_end(tiny, finetune, tmp_path):
    """What is written is read alike from safetensors and ONNX, has every range, and is sparse."""
    onnx = pytest.importorskip("onnx")
    folder, data = tiny
    out = tmp_path / "out"
    result = run_of(finetune, folder, data, out, "--qat", "--sparse", "--epochs", 1)
    assert result.code == 0, result.err
    assert "Training" in result.err and str(out) in result.out
    assert sorted(path.name for path in out.iterdir()) == [
        "config.json",
        "model.safetensors",
        "model_fake_quant.onnx",
        "tokenizer_config.json",
        "vocab.txt",
    ]
    text = "one two? Three"
    ids = pytest.importorskip("transformers").AutoTokenizer.from_pretrained(out)(text, add_special_tokens=False)
    assert ids["input_ids"] == ModelFolder.open(out).tokenizer().encode(text).ids.tolist()
    config = BertConfig.from_folder(out)
    weights, from_onnx = load_weights(config, pytorch=out), load_weights(config, onnx=out / "model_fake_quant.onnx")
    assert from_onnx.config.gelu == weights.config.gelu == "erf"
    for ours, theirs in ((weights.tensors, from_onnx.tensors), (weights.ranges, from_onnx.ranges)):
        assert ours.keys() == theirs.keys()
        assert all(np.array_equal(ours[name], theirs[name]) and ours[name].shape == theirs[name].shape for name in ours)
    expected = {f"l{i}_{part}" for i in range(2) for part in _RANGES_OF_A_LAYER}
    channels = quantization.channel_range_names(config)
    assert weights.ranges.keys() == expected | channels.keys() | {"bert_encoder_final_input_quantizer_amax"}
    assert all((amax > 0).all() for amax in weights.ranges.values())
    kernel = weights["l1_output_dense_kernel"]
    np.testing.assert_array_equal(weights.ranges["l1_output_dense_kernel_amax"][:, 0], np.abs(kernel).max(1))
    assert not sparse_2_4_kernels(weights)[1]
    start = load_weights(config, pytorch=folder)
    assert np.array_equal(weights["bert_embeddings_word_embeddings"], start["bert_embeddings_word_embeddings"])
    assert not np.array_equal(weights["l0_output_layernorm_gamma"], start["l0_output_layernorm_gamma"])
    onnx.checker.check_model(str(out / "model_fake_quant.onnx"), full_check=True)


@pytest.mark.parametrize("gelu", ["erf", "tanh"])
def test_onnx_computes_what_the_trained_network_does(rng, tmp_path, gelu):
    ort = pytest.importorskip("onnxruntime")
    config = random_config(rng)
    tensors = random_weights(config, rng)
    network = network_of(config, tensors, gelu)
    inputs = random_inputs(config, rng, 24, min(8, config.max_position_embeddings))
    batch = PaddedBatch(*inputs)
    measured = run.measured_ranges(network, [batch])
    # Ranges that clip: every tensor has values beyond them.
    network.input_ranges = {name: 0.8 * amax for name, amax in run.rounded_ranges(network, measured).items()}
    path = tmp_path / "model.onnx"
    write_onnx(path, network.config, tensors, run.all_ranges(network, measured))
    options = ort.SessionOptions()
    options.log_severity_level = 3  # the ranges without a node are worth a warning to it
    options.intra_op_num_threads = 1
    # Rounded values multiplied in float: fused into int8 products, they would overflow on a CPU without VNNI.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = ("input_ids", "token_type_ids", "attention_mask")
    starts, ends = session.run(None, {name: array.astype(np.int64) for name, array in zip(names, inputs, strict=True)})
    with torch.inference_mode():
        wanted = network.run(batch)[0].numpy()
        network.input_ranges = None
        unrounded = network.run(batch)[0].numpy()
    text = inputs[2].astype(bool)[..., None]
    error = (np.abs(np.stack([starts, ends], -1) - wanted) * text).max((1, 2))
    effect = (np.abs(unrounded - wanted) * text).max((1, 2))
    # Float sums differ in their last bits, which now and then tips a value over an edge of rounding: that row then has
    # a whole int8 step of difference (in 150 draws in a third of the rows at most); a wrong range shows in all.
    assert np.quantile(error, 0.25) < 1e-4 < 1e-3 < np.median(effect)


@pytest.mark.parametrize("by, done", [("an error", 4), (signal.SIGINT, 5), (signal.SIGTERM, 5)], ids=str)
def test_a_stopped_run_ends_like_one_that_was_not(by, done, tiny, finetune, tmp_path, monkeypatch):
    """By a signal, the step is still done and saved; by what nothing catches, the last saved state is what is left."""
    folder, data = tiny
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    flags = ("--qat", "--sparse", "--epochs", 2, "--save-every", 2, "--distill", 0.5)
    assert run_of(finetune, folder, data, tmp_path / "whole", *flags).code == 0
    show = run._show

    def stop_at_five(bar, progress):
        show(bar, progress)
        if progress.step == 5 and by == "an error":
            raise KeyboardInterrupt
        if progress.step == 5:
            # What the signal calls. Sent, it may crash: OpenVINO, which other tests load, sets a signal stack of its own and
            # takes its memory back when it is freed, not always in the thread that has the stack.
            signal.getsignal(by)(by, None)

    monkeypatch.setattr(run, "_show", stop_at_five)
    stopped = tmp_path / "stopped"
    result = run_of(finetune, folder, data, stopped, *flags)
    assert result.code == 130 and (by == "an error" or "Stopped after step 5, which is saved" in result.err), result
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert [path.name for path in stopped.iterdir()] == [STATE_NAME]
    monkeypatch.setattr(run, "_show", show)
    again = run_of(finetune, folder, data, stopped, *flags)
    assert again.code == 0 and f"Going on after step {done}" in again.err
    for name in ("model.safetensors", "model_fake_quant.onnx", "config.json"):
        assert (stopped / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert not (stopped / STATE_NAME).exists()


@pytest.fixture
def stopped_run(tiny, finetune, tmp_path, monkeypatch):
    """The folder of a run that was stopped after its first saved state, and its flags."""
    folder, data = tiny

    def stop(bar, progress):
        if progress.step == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(run, "_show", stop)
    out = tmp_path / "out"
    assert run_of(finetune, folder, data, out, "--qat", "--save-every", 1).code == 130
    monkeypatch.undo()
    return out


def test_the_state_of_another_run_is_refused(tiny, finetune, stopped_run):
    error = run_of(finetune, *tiny, stopped_run, "--qat", "--lr", "0.001").error
    assert "other data or settings" in error and str(stopped_run / STATE_NAME) in error


@pytest.mark.parametrize("damage", ["cut", "noise", "not finite"])
def test_a_damaged_state_is_refused(tiny, finetune, stopped_run, rng, damage):
    from safetensors import safe_open
    from safetensors.torch import save_file

    state = stopped_run / STATE_NAME
    content = state.read_bytes()
    if damage == "cut":
        state.write_bytes(content[: int(rng.integers(1, len(content)))])
    elif damage == "noise":
        state.write_bytes(rng.bytes(500))
    else:
        with safe_open(state, framework="pt") as file:
            header, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}
        tensors["mean/l0_output_dense_kernel"][0, 0] = float("nan")
        save_file(tensors, state, metadata=header)
    result = run_of(finetune, *tiny, stopped_run, "--qat", "--save-every", 1)
    assert result.code == 1 and "damaged" in result.error and "delete it" in result.error


def test_plain_fine_tuning_of_a_checkpoint_without_a_head(tiny, finetune, tmp_path):
    from safetensors.numpy import load_file, save_file

    folder, data = tiny
    path = folder / "model.safetensors"
    tensors = {name: array for name, array in load_file(path).items() if not name.startswith("qa_outputs")}
    save_file(tensors, path)
    refused = run_of(finetune, folder, data, tmp_path / "out", "--qat")
    assert refused.code == 2 and "no SQuAD head" in refused.error
    result = run_of(finetune, folder, data, tmp_path / "out", "--epochs", 0.5)
    assert result.code == 0 and "random weights" in result.err
    weights = load_weights(BertConfig.from_folder(tmp_path / "out"), pytorch=tmp_path / "out")
    assert not weights.ranges and not (tmp_path / "out" / "model_fake_quant.onnx").exists()
    table = weights["bert_embeddings_word_embeddings"]
    assert not np.array_equal(table, tensors["bert.embeddings.word_embeddings.weight"])


def test_mistakes_are_told_in_one_line(tiny, finetune, tmp_path):
    folder, data = tiny
    out = tmp_path / "out"
    cases = [
        (("-pt", folder, "-j", data, "-o", folder), "name another"),
        (("-pt", folder, "-j", data, "-o", tmp_path / "no" / "where"), "can't make the folder"),
        (("-pt", tmp_path / "missing", "-j", data, "-o", out), "does not exist"),
        (("-pt", folder, "-j", tmp_path / "missing.json", "-o", out), "not found"),
        (("-pt", folder, "-j", data, "-o", out, "-s", 65), "max_position_embeddings"),
        (("-pt", folder, "-j", data, "-o", out, "-s", 8), "leaves no room"),
        (("-pt", folder, "-j", data, "-o", out, "-v", data), "the tokenizer of"),
    ]
    for arguments, words in cases:
        assert words in finetune(*arguments).error
    assert not out.exists() or not any(out.iterdir())


def test_sizes_that_are_no_multiples_of_four_cannot_be_sparse(tiny, finetune, tmp_path, rng):
    folder, data = tiny
    config = BertConfig.from_folder(folder)
    odd = BertConfig(**{**vars(config), "intermediate_size": 50})
    other = write_folder(tmp_path / "odd", odd, pytorch_state(odd, random_weights(odd, rng)))
    shutil.copy(folder / "vocab.txt", other)
    assert "multiples of 4" in run_of(finetune, other, data, tmp_path / "out", "--sparse").error


def test_a_loss_that_is_not_finite_ends_the_run(tiny, monkeypatch):
    folder, _ = tiny
    (found, _), _, _ = _windows(tiny, sequence_length=60)
    network = _start(folder)
    network.weights["cls_squad_output_bias"][0] = float("nan")
    with pytest.raises(DemoBertError, match="smaller --lr"):
        _train(network, None, found, training.TrainingOptions(batch_size=4))


def test_without_torch_the_package_is_named(tiny, finetune, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    error = finetune("-pt", tiny[0], "-j", tiny[1], "-o", tmp_path / "out").error
    assert "requirements-finetune.txt" in error
