"""scripts/gpu_checking/other_forms.py: each form changes what it says, and the answer stays what it is."""

import numpy as np
import pytest

from helpers.backends import load_engine
from helpers.backends.tensorrt import plan_builder, plugin_layers
from helpers.backends.tensorrt.plugin_layers import PluginWriter, TypedPluginWriter
from helpers.batching import PaddedBatch
from helpers.bert_config import BertConfig
from scripts.gpu_checking import checkpoints, other_forms
from tests.checkpoints import bert_weights
from tests.reference_bert import gelu_of, random_inputs, random_weights, reference_logits
from tests.tensorrt_double import api, install
from tests.test_tensorrt_engines import TOLERANCE, difference, weights_of, write

pytestmark = pytest.mark.usefixtures("int8_norms_of_any_size")

#: Heads of 64, as half precision wants them.
CONFIG = BertConfig(128, 2, 2, 40, 50, 16)


@pytest.fixture
def engine_path(tmp_path):
    return tmp_path / "bert.engine"


@pytest.fixture
def put_back(monkeypatch):
    """What forms replace is what it was at the end."""
    for owner, name in (
        (PluginWriter, "_convolution"),
        (PluginWriter, "_dense"),
        (PluginWriter, "gelu"),
        (PluginWriter, "sigmoid_gelu"),
        (PluginWriter, "add_and_normalise"),
        (TypedPluginWriter, "_make_inputs"),
        (plugin_layers, "TANH_SIGMOID"),
        (plan_builder, "_packs_rows"),
        (plan_builder, "RowsPluginLayers"),
    ):
        monkeypatch.setattr(owner, name, getattr(owner, name))


def facts(graph) -> dict:
    """What forms change of a network of two layers."""
    kinds = [node.kind for node in graph.nodes]
    plugins = {node.params["family"]: node.params for node in graph.nodes if node.kind == "plugin"}
    dense = {node.name: node for node in graph.nodes if node.kind == "convolution"}
    before = dense.get("l0_intermediate_dense")
    return {
        "convolutions": len(dense),
        "products": kinds.count("matrix_multiply"),
        "norms": plugins.get("add_norm", {}).get("type_id", "none"),
        "norm layers": kinds.count("normalization"),
        "erf": sum(node.params.get("op") == "ERF" for node in graph.nodes),
        "bounds": sum(node.params.get("op") == "MIN" for node in graph.nodes if "intermediate" in node.name),
        "packed": plugins["attention"].get("var_seqlen"),
        "range before GELU": before is not None and graph.tensors[before.outputs[0]].dynamic_range is not None,
        "reductions": kinds.count("reduce"),
    }


#: Form → what of the facts it changes, in a half network or (gelu_in_half) in an int8 one.
CHANGES = {
    "matrix_product": {"convolutions": 0, "products": 9},
    "products_but_gelu": {"convolutions": 2, "products": 7},
    "gelu_short": {"bounds": 0},
    "gelu_erf": {"erf": 2, "bounds": 0},
    "gelu_in_half": {"range before GELU": False},
    "float_norms": {"norms": 0},
    "norm_layers": {"norms": "none", "norm layers": 4},
    "packed_rows": {"packed": 1, "reductions": 1},
    "rows_together": {"packed": 1, "reductions": 3},
    "rows_together+products_but_gelu": {"packed": 1, "reductions": 3, "convolutions": 2, "products": 7},
}


def test_every_form_is_tried_here():
    assert {form for forms in CHANGES for form in forms.split("+")} == other_forms.FORMS.keys()


@pytest.mark.parametrize("form", CHANGES)
def test_a_form_changes_what_it_says(form, engine_path, put_back, monkeypatch, rng):
    install("8.6.1", monkeypatch)
    graphs, check = [], api._check_build
    monkeypatch.setattr(api, "_check_build", lambda *given: graphs.append(given[1]._graph) or check(*given))
    options = {"batch_sizes": (3,), "sequence_lengths": (9,), "network": "plugin", "precision": "fp16", "strict": True}
    weights = weights_of(CONFIG, rng)
    if form == "gelu_in_half":
        options |= {"quantize": "int8"}
        weights = bert_weights(CONFIG, random_weights(CONFIG, rng), "erf", checkpoints.ranges(CONFIG), "model.onnx")
    write(engine_path, "8.6.1", CONFIG, weights, **options)
    for one in form.split("+"):
        other_forms.FORMS[one](PluginWriter)
    write(engine_path, "8.6.1", CONFIG, weights, **options)
    before, after = map(facts, graphs)
    assert {name: after[name] for name in after if after[name] != before[name]} == CHANGES[form]


def test_the_short_sigmoid_is_as_near_to_gelu_as_is_said():
    x, (a, b) = np.linspace(-60, 60, 200_001), other_forms.GELU_SHORT
    shares = 1 / (1 + np.exp(-np.clip(x * (a + b * x * x), -700, 700)))
    assert np.abs(x * shares - gelu_of(x, "erf")).max() < 3e-4


SAME_LAYERS = [form for form in other_forms.FORMS if form not in ("gelu_in_half", "packed_rows", "rows_together")]


@pytest.mark.parametrize("form", SAME_LAYERS)
def test_layers_written_otherwise_compute_the_same(form, engine_path, put_back, monkeypatch, rng):
    """What gpu_check.sh compares with the project's own."""
    install("8.6.1", monkeypatch)
    other_forms.FORMS[form](PluginWriter)
    config = BertConfig(128, 2, 2, int(rng.integers(20, 90)), 50, 16)  # heads of 64, as half precision wants them
    weights = weights_of(config, rng)
    sizes = {"batch_sizes": (3,), "sequence_lengths": (9,)}
    precision = "fp32" if "product" in form else "fp16"
    for strict in (False, True):
        write(engine_path, "8.6.1", config, weights, network="plugin", precision=precision, strict=strict, **sizes)
        engine = load_engine(engine_path, "padded")
        assert difference(engine, config, weights, "erf", 3, 9, rng) < TOLERANCE[precision]
        engine.close()


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_rows_that_are_moved_together(batch_size, engine_path, put_back, monkeypatch, rng):
    """What gpu_check.sh compares with two sequences a row."""
    install("8.6.1", monkeypatch)
    other_forms.FORMS["rows_together"](PluginWriter)
    config, length = CONFIG, 9
    weights = weights_of(config, rng)
    options = {"batch_sizes": (batch_size,), "sequence_lengths": (length,), "network": "plugin", "precision": "fp16"}
    write(engine_path, "8.6.1", config, weights, **options)
    engine = load_engine(engine_path, "padded")
    for counts in (rng.integers(1, length + 1, batch_size), np.full(batch_size, length), np.full(batch_size, 1)):
        ids, segments, _ = random_inputs(config, rng, batch_size, length)
        inputs = ids, segments, (np.arange(length) < counts[:, None]).astype(np.int32)
        off = np.abs(engine.run(PaddedBatch(*inputs)) - reference_logits(config, weights.tensors, "erf", *inputs))
        assert off[inputs[2] == 1].max() < TOLERANCE["fp16"]
    engine.close()
