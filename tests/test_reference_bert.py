"""The reference BERT of the tests, held to Hugging Face's implementation."""

import numpy as np
import pytest

from tests.checkpoints import hugging_face_logits, hugging_face_model
from tests.reference_bert import masked_softmax, random_config, random_inputs, random_weights, reference_logits

SEEDS = np.random.SeedSequence().generate_state(4).tolist()


@pytest.mark.parametrize("gelu", ["erf", "tanh"])
@pytest.mark.parametrize("seed", SEEDS)
def test_reference_equals_hugging_face(seed, gelu):
    rng = np.random.default_rng(seed)
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


def test_what_is_masked_does_not_count():
    rng = np.random.default_rng(SEEDS[0])
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
