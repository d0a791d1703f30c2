"""squad/finetune.py --prune: what goes and what is left, on networks and data of a few words; the script end to end."""

import contextlib
import json
import string
import zipfile
from dataclasses import replace

import numpy as np
import pytest

from helpers.backends import backend_module
from helpers.batching import PaddedBatch, padded_batch
from helpers.bert_config import BertConfig
from helpers.build_options import BuildOptions
from helpers.errors import DemoBertError, UsageError
from helpers.quantization import range_names
from helpers.weights import load_weights
from tests.checkpoints import bert_weights, pytorch_state, write_folder
from tests.reference_bert import random_inputs, random_weights, reference_logits
from tests.test_finetune import WORDS, _paragraph, _windows, finetune, network_of  # noqa: F401

torch = pytest.importorskip("torch")

from helpers.finetuning import run, structured_pruning, training, window_file, windows  # noqa: E402
from helpers.finetuning.checkpoint import STATE_NAME  # noqa: E402

#: Tokens of a window, for which FLOPs are counted.
LENGTH = 48


@pytest.fixture
def tiny(tmp_path, rng):
    """A folder with a random two-layer BERT and its vocabulary, and a SQuAD file of made-up text."""
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "?", ".", *WORDS, *string.ascii_lowercase[1:]]
    config = BertConfig(32, 2, 4, 240, len(vocabulary), 64)  # 240 columns: no multiple of 64
    folder = write_folder(tmp_path / "start", config, pytorch_state(config, random_weights(config, rng)))
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    data = tmp_path / "train.json"
    data.write_text(json.dumps({"data": [{"paragraphs": [_paragraph(rng, i) for i in range(6)]}]}), encoding="utf-8")
    return folder, data


def flops(config, length) -> int:
    """Products of matrices, written out: two FLOPs for each entry of each product's inner dimension, a token."""
    total, size, width = 0, config.hidden_size // config.num_attention_heads, config.hidden_size
    for heads, inner in zip(config.heads_by_layer, config.inner_sizes_by_layer, strict=True):
        total += 3 * 2 * width * heads * size + 2 * heads * size * width  # query, key, value; output
        total += 2 * length * heads * size + 2 * length * heads * size  # scores, context
        total += 2 * width * inner + 2 * inner * width
    return total


def test_flops_are_those_of_the_products(rng):
    config = BertConfig(
        64, 3, 8, 256, 9, num_attention_heads_per_layer=(1, 8, 3), intermediate_size_per_layer=(64, 1, 9)
    )
    for one in (config, replace(config, num_attention_heads_per_layer=None)):
        length = int(rng.integers(1, 400))
        assert structured_pruning.encoder_flops(one, length) == flops(one, length)


def test_importance_is_what_closing_a_gate_adds(tiny, monkeypatch):
    """The gradient by a gate, by finite differences: the weights that read a head or column are scaled a little."""
    folder, _ = tiny
    (found, _), _, _ = _windows(tiny, sequence_length=60)
    config = BertConfig.from_folder(folder)
    tensors = {name: np.float64(array) for name, array in load_weights(config, pytorch=folder).tensors.items()}
    network = network_of(config, load_weights(config, pytorch=folder).tensors)
    for tensor in network.weights.values():
        tensor.requires_grad_()
    some, drawn = found[:3], []
    draw = structured_pruning._drawn_answers
    monkeypatch.setattr(structured_pruning, "_drawn_answers", lambda *given: drawn.append(draw(*given)) or drawn[-1])
    scores = structured_pruning.importance(network, [some[:2], some[2:]])
    cases = {"l1_attention_output_dense": (2, slice(16, 24)), "l0_output_dense": (5, slice(5, 6))}
    for dense, (index, columns) in cases.items():
        expected = 0.0
        for window, places in zip(some, torch.cat(drawn).tolist(), strict=True):
            ids = window.feature.input_ids[None]
            inputs = ids, window.feature.segment_ids[None], np.ones_like(ids)
            losses = []
            for gate in (1 + 1e-5, 1 - 1e-5):
                kernel = tensors[f"{dense}_kernel"].copy()
                kernel[:, columns] *= gate
                logits = reference_logits(config, tensors | {f"{dense}_kernel": kernel}, "erf", *inputs)[0]
                log_sums = np.log(np.exp(logits).sum(0))
                losses.append((log_sums - logits[places, [0, 1]]).sum() / 2)
            expected += ((losses[0] - losses[1]) / 2e-5) ** 2
        assert float(scores[dense][index]) == pytest.approx(expected, rel=2e-2, abs=1e-9)


def test_answers_are_drawn_by_their_probabilities():
    logits = torch.tensor([0.0, 1.0, -50.0, 7.0]).log_softmax(0)[None, :, None].repeat(4000, 1, 2)
    text = torch.tensor([[True, True, True, False]]).expand(4000, -1)
    counts = torch.stack([structured_pruning._drawn_answers(logits, text).eq(i).float().mean(0) for i in range(4)])
    share = float(torch.tensor(1.0).sigmoid())  # six standard deviations: 0.04
    assert (counts - torch.tensor([1 - share, share, 0, 0])[:, None]).abs().max() < 0.045


def test_the_least_important_go_until_the_flops_are_reached(rng):
    config = BertConfig(64, 3, 8, 320, 9)
    scores = {f"l{i}_attention_output_dense": torch.tensor(rng.random(8)) for i in range(3)}
    scores |= {f"l{i}_output_dense": torch.tensor(rng.random(320)) for i in range(3)}
    whole = structured_pruning.encoder_flops(config, LENGTH)
    for speed in (1.0, 1.3, 2.0, 5.0, 1e9):
        kept = structured_pruning.kept_parts(config, scores, whole / speed, LENGTH)
        sizes = {dense: len(parts) for dense, parts in kept.items()}
        heads = tuple(sizes[f"l{i}_attention_output_dense"] for i in range(3))
        inner = tuple(sizes[f"l{i}_output_dense"] for i in range(3))
        assert min(heads) >= 1 and min(inner) >= 64 and not any(size % 64 for size in inner)
        left = replace(config, num_attention_heads_per_layer=heads, intermediate_size_per_layer=inner)
        assert flops(left, LENGTH) <= whole / speed or (set(heads), set(inner)) == ({1}, {64})
        for dense, parts in kept.items():
            assert (parts.diff() > 0).all()
            gone = [i for i in range(len(scores[dense])) if i not in parts]
            assert not gone or scores[dense][gone].max() <= scores[dense][parts].min()


def test_what_is_left_computes_what_the_whole_does_with_the_rest_at_zero(tiny, rng):
    folder, _ = tiny
    config = BertConfig.from_folder(folder)
    tensors = load_weights(config, pytorch=folder).tensors
    network = network_of(config, tensors)
    state = training.TrainingState(network, training.trained_names(network, embeddings=False))
    state.moments = {name: (tensor + 1, tensor**2) for name, tensor in state.parameters().items()}
    kept, zeroed = {}, dict(tensors)
    for i in range(2):
        heads = np.sort(rng.permutation(4)[: rng.integers(1, 5)])
        columns = np.sort(rng.permutation(240)[:64])
        kept[f"l{i}_attention_output_dense"], kept[f"l{i}_output_dense"] = torch.tensor(heads), torch.tensor(columns)
        gates = np.isin(np.arange(4), heads).repeat(8), np.isin(np.arange(240), columns)
        for dense, gate in zip((f"l{i}_attention_output_dense", f"l{i}_output_dense"), gates, strict=True):
            zeroed[f"{dense}_kernel"] = tensors[f"{dense}_kernel"] * gate
    structured_pruning.cut(state, kept)
    assert network.config.heads_by_layer == tuple(len(kept[f"l{i}_attention_output_dense"]) for i in range(2))
    inputs = random_inputs(config, rng, 3, 40)
    with torch.inference_mode():
        logits = network.run(PaddedBatch(*inputs))[0].numpy()
    expected = reference_logits(config, zeroed, "erf", *inputs)
    text = inputs[2].astype(bool)
    np.testing.assert_allclose(logits[text], expected[text], atol=2e-4)
    for name, tensor in state.parameters().items():  # what is known of a weight goes with it
        mean, square = state.moments[name]
        assert torch.equal(mean, tensor + 1) and torch.equal(square, tensor**2)


def test_random_pairs_ask_others_questions(tiny):
    (found, _), tokenizer, _ = _windows(tiny, sequence_length=30)
    pairs = windows.random_pairs(found, 7, 3)
    separator, longest = found[0].feature.input_ids[-1], max(window.feature.length for window in found)
    questions = {tuple(window.feature.input_ids[: window.feature.passage_position]) for window in found}
    changed = 0
    for pair, window in zip(pairs, found, strict=True):
        ours, theirs = pair.feature, window.feature
        place = ours.passage_position
        assert tuple(ours.input_ids[:place]) in questions and ours.length <= longest
        count = ours.passage_length
        passage = theirs.input_ids[theirs.passage_position :][:count]
        assert np.array_equal(ours.input_ids[place : place + count], passage)
        assert ours.input_ids[-1] == separator and ours.length == place + count + 1
        assert (ours.segment_ids == (np.arange(ours.length) >= place)).all() and (pair.start, pair.end) == (0, 0)
        changed += not np.array_equal(ours.input_ids, theirs.input_ids)
    assert changed > len(found) / 2
    again = windows.random_pairs(found, 7, 3)
    assert all(np.array_equal(a.feature.input_ids, b.feature.input_ids) for a, b in zip(pairs, again, strict=True))
    padded_batch([pair.feature for pair in pairs]).check()


# ---------------------------------------------------------------------------------------------------- the script


def run_of(finetune, folder, data, out, *flags):  # noqa: F811
    return finetune("-pt", folder, "-j", data, "-o", out, "-s", LENGTH, "-b", 4, "-n", 8, "--epochs", 2, *flags)


def check_model(start, out, speed):
    """The folder's model is as fast as it should be, loads, builds, and the engine computes what it does."""
    whole, config = (BertConfig.from_folder(folder) for folder in (start, out))
    assert flops(whole, LENGTH) / flops(config, LENGTH) >= speed
    assert not any(inner % 64 for inner in config.inner_sizes_by_layer) and (
        config.hidden_size,
        *whole.heads_by_layer[:1],
    ) == (32, 4)
    weights = load_weights(config, pytorch=out)
    options = BuildOptions(sequence_lengths=(LENGTH,))
    assert len(backend_module("openvino").prepare(weights.config, options).build(weights).data) > 0
    return config, weights


def test_a_list_of_speeds_with_qat(tiny, finetune, tmp_path, script):  # noqa: F811
    """Each from the one before: what is kept of a later one is part of what was kept before."""
    pytest.importorskip("onnx")
    folder, data = tiny
    out = tmp_path / "out"
    result = run_of(finetune, folder, data, out, "--prune", 1.5, "2.50", "--qat")
    assert result.code == 0, result.err
    assert sorted(path.name for path in out.iterdir()) == ["1.5", "2.5"]
    sizes = []
    for speed in ("1.5", "2.5"):
        config, weights = check_model(folder, out / speed, float(speed))
        sizes.append((*config.heads_by_layer, *config.inner_sizes_by_layer))
        assert set(range_names(config)) <= set(weights.ranges)
        from_onnx = load_weights(config, onnx=out / speed / "model_fake_quant.onnx")
        assert all(np.array_equal(from_onnx[name], tensor) for name, tensor in weights.tensors.items())
        flags = ("-o", tmp_path / "int8.engine", "-s", LENGTH, "--int8", "--backend", "openvino")
        built = script("builder.py", "-pt", out / speed, *flags)
        assert built.code == 0 and "int8+fp32" in built.out, built
    assert all(later <= earlier for earlier, later in zip(*sizes, strict=True)) and sizes[0] != sizes[1]


@pytest.mark.parametrize("flags", [("--prune", 2), ("--prune", 1.3, 2, "--qat")], ids=["one", "list"])
def test_a_stopped_run_ends_like_one_that_was_not(flags, tiny, finetune, tmp_path, monkeypatch, rng):  # noqa: F811
    folder, data = tiny
    flags = (*flags, "--save-every", 3, "--distill", 0.9)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert run_of(finetune, folder, data, whole, *flags).code == 0
    show, seen = run._show, []

    def stop(bar, progress):
        show(bar, progress)
        seen.append(progress.step)
        if len(seen) == stop_at:
            raise KeyboardInterrupt

    monkeypatch.setattr(run, "_show", stop)
    steps = 0
    for _ in range(3):  # in the middle of the cuts, behind them, in the next speed
        stop_at, steps = steps + int(rng.integers(4, 9)), steps + 4
        assert run_of(finetune, folder, data, stopped, *flags).code in (0, 130)
        if not (stopped / STATE_NAME).exists():
            break
        seen.clear()
    monkeypatch.setattr(run, "_show", show)
    if (stopped / STATE_NAME).exists():
        again = run_of(finetune, folder, data, stopped, *flags)
        assert again.code == 0 and "Going on after step" in again.err
    files = [path.relative_to(whole) for path in whole.rglob("*") if path.is_file()]
    assert len(files) > 2 and not (stopped / STATE_NAME).exists()
    for path in files:
        assert (stopped / path).read_bytes() == (whole / path).read_bytes(), path


def test_a_pruned_model_is_pruned_on_and_made_sparse(tiny, finetune, tmp_path):  # noqa: F811
    folder, data = tiny
    assert run_of(finetune, folder, data, tmp_path / "first", "--prune", 1.4).code == 0
    first, _ = check_model(folder, tmp_path / "first", 1.4)
    assert run_of(finetune, tmp_path / "first", data, tmp_path / "second", "--prune", 1.4).code == 0
    second, _ = check_model(folder, tmp_path / "second", 1.4 * 1.4)
    assert sum(second.inner_sizes_by_layer) <= sum(first.inner_sizes_by_layer)
    result = run_of(finetune, tmp_path / "second", data, tmp_path / "third", "--sparse", "--qat")
    assert result.code == 0, result
    assert BertConfig.from_folder(tmp_path / "third").heads_by_layer == second.heads_by_layer


def test_windows_are_kept_in_a_file(tiny, finetune, tmp_path):  # noqa: F811
    folder, data = tiny
    kept, flags = tmp_path / "train.windows", ("--prune", 1.5, "--windows", tmp_path / "train.windows")
    plain = ("--prune", 1.5)
    assert run_of(finetune, folder, data, tmp_path / "plain", *plain).code == 0
    for out in ("made", "read", "without"):
        result = run_of(finetune, folder, data, tmp_path / out, *flags)
        assert result.code == 0 and (f"windows from {kept}" in result.err) == (out != "made"), result
        assert (tmp_path / out / "model.safetensors").read_bytes() == (
            tmp_path / "plain/model.safetensors"
        ).read_bytes()
        if out == "read":
            content = data.read_text()
            data.unlink()
    data.write_text(content.replace("cat", "dog"))
    assert "cut from other text" in run_of(finetune, folder, data, tmp_path / "other", *flags).error
    data.write_text(content)
    assert "in another way" in run_of(finetune, folder, data, tmp_path / "other", *flags, "--doc-stride", 7).error


def test_a_damaged_file_of_windows_is_refused(tiny, tmp_path, rng):
    (found, _), _, _ = _windows(tiny)
    path, sizes = tmp_path / "train.windows", BertConfig(32, 2, 4, 64, 60, 128)
    window_file.write_windows(path, found, {"a": 1})
    windows_again, facts = window_file.read_windows(path, sizes, 99)
    assert facts == {"a": 1} and [w.end for w in windows_again] == [w.end for w in found]
    with pytest.raises(DemoBertError, match="is damaged, or none"):
        window_file.read_windows(path, replace(sizes, vocab_size=5), 99)
    for longest, segments in ((max(w.feature.length for w in found) - 1, 2), (99, 1)):
        with pytest.raises(DemoBertError, match="do not fit together"):
            window_file.read_windows(path, replace(sizes, type_vocab_size=segments), longest)
    content = path.read_bytes()
    for damaged in (b"", rng.bytes(300), content[: int(rng.integers(len(content)))], bytes(len(content))):
        path.write_bytes(damaged)
        with pytest.raises(DemoBertError, match="is damaged, or none"):
            window_file.read_windows(path, sizes, 99)
    for at in rng.integers(len(content), size=40):  # one byte of the archive: of its directory, or of packed data
        path.write_bytes(content[:at] + bytes([content[at] ^ int(rng.integers(1, 256))]) + content[at + 1 :])
        with contextlib.suppress(DemoBertError):
            window_file.read_windows(path, sizes, 99)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("facts.json", "{}")
        for name in ("input_ids.u4", "segment_ids.u4", "places.u4"):
            archive.writestr(name, bytes(10**6))
    with pytest.raises(DemoBertError, match="over 100 times as large"):
        window_file.read_windows(path, sizes, 99)
    for places in (
        [(9, 3, 0, 7, 0, 0)],
        [(9, 3, 0, 2**31 - 1, 0, 0)],
        [(9, 3, 0, 5, 3, 2)],
        [(9, 9, 0, 0, 0, 0)],
        [(9, 3, 0, 5, 9, 9)],
        [(8, 3, 0, 5, 0, 0)],
        [],
    ):
        arrays = {"input_ids.u4": np.zeros(9), "segment_ids.u4": np.zeros(9), "places.u4": np.array(places)}
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("facts.json", "{}")
            for name, array in arrays.items():
                archive.writestr(name, array.astype("<u4").tobytes())
        with pytest.raises(DemoBertError, match="is damaged, or none"):
            window_file.read_windows(path, sizes, 99)


def test_mistakes_are_told_in_one_line(tiny, finetune, tmp_path, rng):  # noqa: F811
    folder, data = tiny
    albert = BertConfig(32, 2, 4, 64, 60, 64, layer_groups=1)
    with pytest.raises(UsageError, match="ALBERT"):
        structured_pruning.check_speeds(albert, [2.0], LENGTH)
    cases = [
        (("--prune", 1), "above 1"),
        (("--prune", 2, 1.5), "each higher"),
        (("--prune", 2, 2), "each higher"),
        (("--prune", 1.50000001, 1.50000002), "folders of one name"),
        (("--prune", 90), "can't be reached"),
        (("--prune", 2, "--sparse"), "two runs"),
        (("--prune", "fast"), "fast"),
    ]
    for flags, words in cases:
        assert words in run_of(finetune, folder, data, tmp_path / "out", *flags).error
    assert not (tmp_path / "out").exists()


def test_distillation_brings_a_pruned_network_back(tiny):
    folder, _ = tiny
    (found, _), _, _ = _windows(tiny, sequence_length=60)
    config = BertConfig.from_folder(folder)
    tensors = load_weights(config, pytorch=folder).tensors
    network, teacher = network_of(config, tensors), network_of(config, tensors)
    state = training.TrainingState(network, training.trained_names(network, embeddings=False))
    options = training.TrainingOptions(epochs=20, learning_rate=2e-3, batch_size=4, distill=1.0, random_pairs=0.5)
    steps = training.step_count(len(found), options)
    whole = structured_pruning.encoder_flops(config, LENGTH)
    pruner = structured_pruning.Pruner([found[:8]], LENGTH, whole, whole / 2, steps)
    losses = []

    def change(state):
        due = pruner.is_due(state.step)
        if due:
            pruner.prune(state)
        return due

    training.train(state, teacher, found, options, lambda progress: losses.append(progress.loss), change=change)
    assert flops(network.config, LENGTH) <= whole / 2
    last_cut = pruner.cut_steps[-1]
    assert 0 < last_cut < steps / 2 and np.mean(losses[-4:]) < 0.6 * max(losses[last_cut:])
    assert bert_weights(config, tensors).tensors["l0_output_dense_kernel"].shape == (32, 240)
