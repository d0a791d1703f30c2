"""The reference BERT of the tests, held to Hugging Face's implementation."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.checkpoints import hugging_face_logits, hugging_face_model
from tests.reference_bert import (
    fake_fp8,
    fake_int8,
    fake_quantizer,
    masked_softmax,
    random_config,
    random_inputs,
    random_weights,
    reference_logits,
)

DRAWS = range(4)


@pytest.mark.parametrize("gelu", ["erf", "tanh"])
@pytest.mark.parametrize("draw", DRAWS)
def test_reference_equals_hugging_face(draw, gelu, rng):
    config = random_config(rng)
    tensors = random_weights(config, rng)
    length = int(rng.integers(1, min(60, config.max_position_embeddings) + 1))
    inputs = random_inputs(config, rng, int(rng.integers(1, 5)), length)
    theirs = hugging_face_logits(hugging_face_model(config, tensors, "float64", gelu), *inputs)
    ours = reference_logits(config, tensors, gelu, *inputs)
    valid = inputs[2].astype(bool)
    assert ours.dtype == np.float64
    # float64 throughout on both sides; sums of some hundred terms in another order differ by 1e-13 or so.
    np.testing.assert_allclose(ours[valid], theirs[valid], rtol=0, atol=1e-9)


def test_logits_tell_the_formulas_of_gelu_apart():
    rng = np.random.default_rng(0)
    config = random_config(rng)
    tensors = random_weights(config, rng)
    inputs = random_inputs(config, rng, 2, 7)
    difference = reference_logits(config, tensors, "erf", *inputs) - reference_logits(config, tensors, "tanh", *inputs)
    assert 1e-5 < np.abs(difference).max() < 0.1


def test_what_is_masked_does_not_count(rng):
    config = random_config(rng)
    tensors = random_weights(config, rng)
    ids, segments, _ = random_inputs(config, rng, 1, 7)
    mask = np.array([[1, 1, 1, 1, 0, 0, 0]], np.int32)
    short = reference_logits(config, tensors, "erf", ids[:, :4], segments[:, :4], mask[:, :4])
    long = reference_logits(config, tensors, "erf", ids, segments, mask)
    np.testing.assert_allclose(long[:, :4], short, rtol=0, atol=1e-12)


def test_masked_softmax_gives_no_weight_to_padding():
    weights = masked_softmax(np.array([[1e4, -1e4, 3.0]]), np.array([[False, True, True]]))
    assert weights[0, 0] == 0.0 and weights[0, 1:].sum() == 1.0


@pytest.mark.parametrize("seed", range(20))
def test_random_configs_keep_their_promises(seed):
    config = random_config(np.random.default_rng(seed))
    assert 1 <= config.num_hidden_layers <= 5
    assert 48 <= config.hidden_size <= 320
    assert 8 <= config.head_size <= 64
    assert config.intermediate_size != 4 * config.hidden_size
    assert 101 <= config.vocab_size <= 40_000
    assert 1 <= config.type_vocab_size <= 3


@pytest.mark.parametrize("draw", DRAWS)
def test_pre_normalised_reference_equals_transformers_megatron(draw, rng):
    """Hugging Face's Megatron-BERT has no embedding norm, but one before each sub-layer and one at the end.

    So it is ours with every norm moved: the embeddings' is its first layer's, ours of one layer is its next one's.
    """
    from transformers import MegatronBertConfig, MegatronBertForQuestionAnswering

    config = random_config(rng)
    tensors = random_weights(config, rng)
    inputs = random_inputs(config, rng, 2, int(rng.integers(1, min(40, config.max_position_embeddings) + 1)))
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
    sizes = {name: getattr(config, name) for name in (*names, "max_position_embeddings", "type_vocab_size")}
    theirs = MegatronBertConfig(**sizes, hidden_act="gelu", layer_norm_eps=config.layer_norm_eps, num_labels=2)
    model = MegatronBertForQuestionAnswering(theirs).double().eval()
    model.load_state_dict(megatron_state(config, tensors))
    ids, segments, mask = (torch.tensor(array, dtype=torch.int64) for array in inputs)
    with torch.no_grad():
        found = model(input_ids=ids, token_type_ids=segments, attention_mask=mask)
    logits = torch.stack([found.start_logits, found.end_logits], -1).numpy()
    ours = reference_logits(config, tensors, "erf", *inputs, pre_normalised=True)
    valid = inputs[2].astype(bool)
    # float64 throughout on both sides; sums of some hundred terms in another order differ by 1e-13 or so.
    np.testing.assert_allclose(ours[valid], logits[valid], rtol=0, atol=1e-9)
    assert np.abs(ours - reference_logits(config, tensors, "erf", *inputs)).max() > 1e-3


def megatron_state(config, tensors) -> dict:
    """Canonical tensors under the names of Hugging Face's Megatron-BERT."""
    state, last = {}, config.num_hidden_layers

    def put(theirs, ours, kinds):
        for kind, tensor in kinds.items():
            state[f"bert.{theirs}.{kind}"] = torch.tensor(tensors[f"{ours}_{tensor}"], dtype=torch.float64)

    dense, norm = {"weight": "kernel", "bias": "bias"}, {"weight": "gamma", "bias": "beta"}
    for table in ("word", "token_type", "position"):
        put(f"embeddings.{table}_embeddings", "bert_embeddings", {"weight": f"{table}_embeddings"})
    for i in range(last):
        layer, before = f"encoder.layer.{i}", f"l{i - 1}_output_layernorm" if i else "bert_embeddings_layernorm"
        put(f"{layer}.attention.ln", before, norm)
        for part in ("query", "key", "value"):
            put(f"{layer}.attention.self.{part}", f"l{i}_attention_self_{part}", dense)
        put(f"{layer}.attention.output.dense", f"l{i}_attention_output_dense", dense)
        put(f"{layer}.ln", f"l{i}_attention_output_layernorm", norm)
        put(f"{layer}.intermediate.dense", f"l{i}_intermediate_dense", dense)
        put(f"{layer}.output.dense", f"l{i}_output_dense", dense)
    put("encoder.ln", f"l{last - 1}_output_layernorm", norm)
    for kind, tensor in {"weight": "weights", "bias": "bias"}.items():
        state[f"qa_outputs.{kind}"] = torch.tensor(tensors[f"cls_squad_output_{tensor}"], dtype=torch.float64)
    return state


def test_quantization_of_the_reference():
    values = np.array([0.05, 0.15, -0.25, 3.0, -12.7, -12.8, 12.8, 99.0])
    # Steps of 0.1, saturation at 127 and -128 of them; then ties, to even.
    stepwise = [0.1, 0.2, -0.3, 3.0, -12.7, -12.8, 12.7, 12.7]
    np.testing.assert_allclose(fake_int8(values * 1.0001, 12.7), stepwise, atol=1e-6)
    assert fake_int8(np.array([2.5, 3.5, -2.5]), 127).tolist() == [2.0, 4.0, -2.0]
    torches = torch.tensor(np.clip(values * 10, -448, 448)).to(torch.float8_e4m3fn).double().numpy() / 10
    np.testing.assert_allclose(fake_fp8(values, 44.8), torches, rtol=1e-6)
    assert fake_fp8(np.array([17.0, 19.0, -17.0, 17 + 1e-9, 9e9]), 448).tolist() == [16.0, 20.0, -16.0, 18.0, 448.0]


def test_every_range_of_the_reference_counts(rng):
    """Each place is quantized by its own range: a coarser one changes the logits."""
    config = replace(random_config(rng), num_hidden_layers=1)
    tensors = random_weights(config, rng)
    inputs = random_inputs(config, rng, 2, 7)
    places = {}
    reference_logits(config, tensors, "erf", *inputs, quantize=lambda name, x: places.setdefault(name, x))
    assert len(places) == 6 + 4 + 6 + 4 + 1  # kernels, inputs of attention's products, of dense layers, of sums, final
    float_logits = reference_logits(config, tensors, "erf", *inputs)
    for place, values in places.items():
        ranges = {place: np.abs(values).max() / 2}
        coarse = fake_quantizer("int8", ranges, lambda name: name == place)
        assert np.abs(reference_logits(config, tensors, "erf", *inputs, quantize=coarse) - float_logits).max() > 1e-4
