"""Megatron's pickles: the same tensors whatever wrote them, and hostile ones are refused before anything runs."""

import builtins
import codecs
import collections
import functools
import io
import operator
import os
import pickle
import runpy
import struct
import subprocess
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.errors import DemoBertError
from helpers.weights import load_weights
from helpers.weights.plain_pickle import read_plain_pickle
from tests.checkpoints import megatron_state, pytorch_state, write_pickled, write_safetensors
from tests.test_weights import CONFIG, FLIPS, FUZZ, TENSORS, assert_ranges, assert_same, damage, error_of, state

#: What may be allocated for a hostile file of a few hundred bytes: reading modules and tables takes about 1 MiB.
BOMB_BYTES = 16 << 20


def write(path, content, protocol: int = 4):
    path.write_bytes(pickle.dumps(content, protocol))
    return path


def demobert_state() -> dict:
    """demoBERT's pickles: PyTorch's names but for the embeddings', Q, K and V stacked."""
    names = pytorch_state(CONFIG, TENSORS)
    found = {}
    for name, array in names.items():
        name = name.replace("bert.embeddings.", "bert.embedding.").replace("token_type_", "tokentype_")
        if ".self." not in name:
            found[name.replace("encoder.layer.", "encoder.layers.")] = array
    for i in range(CONFIG.num_hidden_layers):
        for kind in ("weight", "bias"):
            parts = [
                names[f"bert.encoder.layer.{i}.attention.self.{part}.{kind}"] for part in ("query", "key", "value")
            ]
            found[f"bert.encoder.layers.{i}.attention.query_key_value.{kind}"] = np.concatenate(parts)
    return found | {"bert.encoder.layers.0.attention.query_key_value._input_scale": np.float32(3)}


def nested(names: dict) -> dict:
    """Dotted names as dicts in dicts, as Megatron-LM writes them; in numpy's column order."""
    root = collections.OrderedDict()
    for name, array in names.items():
        *folders, last = name.split(".")
        place = root
        for folder in folders:
            place = place.setdefault(folder, {})
        place[last] = np.asfortranarray(array)
    return {"model": root, "iteration": 1000, "checkpoint_version": 1.0, "comment": "text"}


STATES = {
    "canonical": lambda: dict(TENSORS),
    "demobert": demobert_state,
    "megatron": lambda: megatron_state(CONFIG, TENSORS),
    "nested": lambda: nested(megatron_state(CONFIG, TENSORS)),
}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("names", STATES)
def test_names_and_protocols(tmp_path, names, protocol):
    assert_same(load_weights(CONFIG, megatron=write(tmp_path / "a.pkl", STATES[names](), protocol)), "tanh")


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_torch_values(tmp_path, protocol, dtype):
    """Parameters and tensors, some of them views of larger ones and turned."""
    import torch

    tensors = {name: torch.tensor(array).to(getattr(torch, dtype)) for name, array in TENSORS.items()}
    expected = {name: tensor.float().numpy() for name, tensor in tensors.items()}
    kernel, bias = "l1_output_dense_kernel", "l1_output_dense_bias"
    tensors[kernel] = tensors[kernel].T.contiguous().T
    tensors[bias] = torch.cat([tensors[bias] * 2, tensors[bias]])[CONFIG.hidden_size :]
    tensors["cls_squad_output_bias"] = torch.nn.Parameter(tensors["cls_squad_output_bias"])
    path = write(tmp_path / "a.pkl", collections.OrderedDict(tensors), protocol)
    assert_same(load_weights(CONFIG, megatron=path), "tanh", expected)


@pytest.mark.parametrize("dtype", [">f4", "<f8", ">f2"])
def test_numpy_types(tmp_path, dtype):
    arrays = {name: array.astype(dtype) for name, array in TENSORS.items()}
    expected = {name: array.astype(np.float32) for name, array in arrays.items()}
    assert_same(load_weights(CONFIG, megatron=write(tmp_path / "a.pkl", arrays)), "tanh", expected)


def test_python_2_and_numpy_1(tmp_path):
    """Written by hand as Python 2 did, protocol 0: bytes are a quoted text with escapes, modules have numpy's old names."""
    values = np.array([1.5, -2.25, 3e20], "<f4")
    quoted = repr(values.tobytes())[1:].encode()
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(I3\ntcnumpy\ndtype\n(S'f4'\nI0\nI1\ntR"
    array += b"(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI00\nS" + quoted + b"\ntb"
    path = tmp_path / "a.pkl"
    path.write_bytes(b"(dS'a'\n" + array + b"s.")
    assert pickle.loads(path.read_bytes(), encoding="latin1")["a"].tolist() == values.tolist()
    assert read_plain_pickle(path)["a"].read().tolist() == values.tolist()


@pytest.mark.parametrize("as_number", [float, np.float32, np.array])
@pytest.mark.parametrize("dotted", [False, True])
def test_ranges(tmp_path, rng, dotted, as_number):
    """Ranges of a stack are split or shared; that of the last layer norm's output is the range before the SQuAD head."""
    amax = [np.float32(value) for value in rng.uniform(0.5, 9, 8)]
    channels = rng.uniform(0.5, 9, (48, 1)).astype(np.float32)
    names = {
        "l1_attention_query_key_value_input_amax": "bert.encoder.layers.1.attention.query_key_value._input_quantizer._amax",
        "l1_attention_query_key_value_kernel_amax": "bert.encoder.layers.1.attention.query_key_value._weight_quantizer._amax",
        "l1_attention_self_qv_a_input_quantizer_amax": "bert.encoder.layers.1.attention.self.matmul_q_input_quantizer._amax",
        "l0_attention_output_add_residual_input_quantizer_amax": (
            "bert.encoder.layers.0.attention.output.add_residual_input_quantizer._amax"
        ),
        "l0_output_dense_input_amax": "bert.encoder.layers.0.mlp.dense_4h_to_h.input_quantizer._amax",
        "l1_output_layernorm_output_quantizer_amax": "l1_output_layernorm_output_quantizer_amax",
    }
    given = dict(zip(names.values() if dotted else names, [amax[0], channels, *amax[1:]]))
    given = {name: value if value is channels else as_number(value) for name, value in given.items()}
    expected = {f"l1_attention_self_{part}_input_amax": amax[0] for part in ("query", "key", "value")}
    for number, part in enumerate(("query", "key", "value")):
        expected[f"l1_attention_self_{part}_kernel_amax"] = channels[16 * number : 16 * number + 16]
    expected |= {
        "l1_attention_self_qv_a_input_quantizer_amax": amax[1],
        "l0_attention_output_add_residual_input_quantizer_amax": amax[2],
        "l0_output_dense_input_amax": amax[3],
        "bert_encoder_final_input_quantizer_amax": amax[4],
    }
    weights = load_weights(CONFIG, megatron=write(tmp_path / "a.pkl", demobert_state() | given))
    assert_same(weights, "tanh")
    assert_ranges(weights, expected)


def test_what_does_not_fit(tmp_path):
    stack = "bert.encoder.layers.0.attention.query_key_value.weight"
    state = demobert_state()
    short = error_of(megatron=write(tmp_path / "a.pkl", state | {stack: state[stack][:-1]}))
    assert "no stack of query, key and value" in short
    unknown = error_of(megatron=write(tmp_path / "b.pkl", state | {"bert.encoder.layers.0.swiglu.weight": np.ones(3)}))
    assert "extra: bert.encoder.layers.0.swiglu.weight" in unknown
    twice = error_of(megatron=write(tmp_path / "c.pkl", state | {"l0_attention_self_query_bias": np.ones(16)}))
    assert "twice" in twice
    assert "not a floating-point type" in error_of(
        megatron=write(tmp_path / "d.pkl", state | {"qa_outputs.bias": np.arange(2)})
    )


# --- hostile pickles -------------------------------------------------------------------------------------------------


class Call:
    """Unpickled in earnest, it calls `function`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def persistent(marker) -> bytes:
    """A pickle with an object outside of it."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return "outside" if value is marker else None

    file = io.BytesIO()
    Pickler(file).dump({"a": marker})
    return file.getvalue()


def dotted(marker) -> bytes:
    """Protocol 4's names reach through modules, here one that torch's tensors are rebuilt by."""
    path = str(marker).encode()
    function = b"\x8c\x0ctorch._utils\x8c\x10logging.os.mkdir\x93"
    return b"\x80\x04}\x8c\x01a" + function + b"X" + struct.pack("<I", len(path)) + path + b"\x85Rs."


def torch_storage(marker) -> bytes:
    """torch.storage._load_from_bytes unpickles its argument: with torch before 2.6, whatever is in it."""
    inner = io.BytesIO()
    import torch

    torch.save(Call(os.mkdir, str(marker)), inner, _use_new_zipfile_serialization=False)
    load = torch.storage._load_from_bytes
    tensor = Call(torch._utils._rebuild_tensor_v2, Call(load, inner.getvalue()), 0, (2,), (1,), False, {})
    return pickle.dumps({"a": tensor})


def object_scalar(marker) -> bytes:
    """numpy's scalar() of an object type unpickles its bytes."""
    scalar = Call(np._core.multiarray.scalar, np.dtype("O"), pickle.dumps(Call(os.mkdir, str(marker))))
    return pickle.dumps({"a": scalar})


def dumped(make):
    return lambda marker: pickle.dumps({"a": make(str(marker))})


PAYLOADS = {
    "os.system": dumped(lambda marker: Call(os.system, f"mkdir {marker}")),
    "os.mkdir, protocol 0": lambda marker: pickle.dumps({"a": Call(os.mkdir, str(marker))}, 0),
    "eval": dumped(lambda marker: Call(eval, f"__import__('os').mkdir({marker!r})")),
    "exec": dumped(lambda marker: Call(exec, f"import os; os.mkdir({marker!r})")),
    "open": dumped(lambda marker: Call(builtins.open, marker, "w")),
    "subprocess": dumped(lambda marker: Call(subprocess.check_call, ["mkdir", marker])),
    "runpy": dumped(lambda marker: Call(runpy.run_path, marker)),
    "partial": dumped(lambda marker: functools.partial(os.mkdir, marker)),
    "methodcaller": dumped(lambda marker: operator.methodcaller("mkdir", marker)),
    "getattr": dumped(lambda marker: Call(getattr, Call(__import__, "os"), "mkdir")),
    "codecs.open": dumped(lambda marker: Call(codecs.open, marker, "w")),
    "numpy save": dumped(lambda marker: Call(np.save, marker, 1)),
    "object array": dumped(lambda marker: np.array([Call(os.mkdir, marker)], dtype=object)),
    "object scalar": object_scalar,
    "torch storage": torch_storage,
    "dotted name": dotted,
    "persistent id": persistent,
    "persistent id, protocol 0": lambda marker: b"(dS'a'\nPoutside\ns.",
    "extension registry": lambda marker: b"\x80\x02}U\x01a\x82\x01s.",
    "INST": lambda marker: f"(dS'a'\n(S'mkdir {marker}'\nios\nsystem\ns.".encode(),
    "OBJ": lambda marker: f"(dS'a'\n(cos\nsystem\nS'mkdir {marker}'\nos.".encode(),
    "copyreg": lambda marker: b"(dS'a'\nccopy_reg\n_reconstructor\n(c__builtin__\nobject\nc__builtin__\nobject\nNtRs.",
    "NEWOBJ": lambda marker: b"\x80\x02}U\x01acnumpy\nndarray\nK\x02\x85\x85\x81s.",
    "call of an array": lambda marker: b"\x80\x02}U\x01acnumpy\nndarray\nK\x02\x85R)Rs.",
    "state of a global": lambda marker: b"\x80\x02}U\x01acnumpy\nndarray\n}U\x01bK\x01sbs.",
    "out of band": lambda marker: b"\x80\x05}\x8c\x01a\x97s.",
    "no dict": lambda marker: pickle.dumps([np.ones(2)]),
}

#: They run on unpickling in earnest; the others are refused by Python's own unpickler too, or do no harm.
RUNNING = (
    "os.system", "os.mkdir, protocol 0", "eval", "exec", "open", "subprocess", "codecs.open", "object array",
    "INST", "OBJ", "dotted name",
)  # fmt: skip


@pytest.mark.parametrize("payload", PAYLOADS)
def test_hostile_pickles(tmp_path, payload):
    path, marker = tmp_path / "a.pkl", tmp_path / "ran"
    path.write_bytes(PAYLOADS[payload](marker))
    message = error_of(megatron=path)
    assert "is not a pickle of plain names and arrays" in message and str(path) in message
    assert not marker.exists() and sorted(tmp_path.iterdir()) == [path]
    if payload in RUNNING:
        pickle.loads(path.read_bytes())
        assert marker.exists()


def numpy_claim(shape: tuple, data: bytes = b"\0" * 4) -> bytes:
    """A dict of one array of floats that claims `shape`."""

    class Claim:
        def __reduce__(self):
            start = np._core.multiarray._reconstruct, (np.ndarray, (0,), b"b")
            return *start, (1, shape, np.dtype("f4"), False, data)

    return pickle.dumps({"a": Claim()}, 2)


def nested_lists(depth: int) -> bytes:
    return b"\x80\x02}U\x01a" + b"]" * depth + b"a" * (depth - 1) + b"s."


def laughs(levels: int) -> bytes:
    """Dicts of ten times the same dict, `levels` deep: 10^levels names."""
    content = b"\x80\x04" + pickle.dumps({"a": 1.0}, 4)[11:-1]
    for level in range(levels):
        content += b"r" + struct.pack("<I", level) + b"}"
        content += b"".join(b"\x8c\x01" + bytes([97 + n]) + b"j" + struct.pack("<I", level) + b"s" for n in range(10))
    return content + b"."


def test_the_claims_are_sound_but_for_their_sizes(tmp_path):
    (tmp_path / "a.pkl").write_bytes(numpy_claim((1, 1)))
    assert read_plain_pickle(tmp_path / "a.pkl")["a"].read().tolist() == [[0.0]]
    (tmp_path / "a.pkl").write_bytes(torch_claim(2, (2,), (1,)))
    assert read_plain_pickle(tmp_path / "a.pkl")["a"].read().tolist() == [0.0, 0.0]
    assert "array of shape [1048576, 1048576] has 4 bytes" in bomb_error(tmp_path, "array of 4 TB")
    assert "nested without end" in bomb_error(tmp_path, "laughs")


def bomb_error(folder, bomb: str) -> str:
    (folder / "a.pkl").write_bytes(BOMBS[bomb]())
    return error_of(megatron=folder / "a.pkl")


def torch_claim(count: int, shape: tuple, strides: tuple) -> bytes:
    """A dict of one tensor whose storage claims `count` values, but has two."""
    import torch

    values = torch.storage.TypedStorage(
        wrap_storage=torch.zeros(2).untyped_storage(), dtype=torch.float32, _internal=True
    )
    inner = io.BytesIO()
    torch.save(values, inner, _use_new_zipfile_serialization=False)
    saved = inner.getvalue().replace(b"cpuq\x03K\x02N", b"cpuq\x03\x8a\x08" + struct.pack("<q", count) + b"N")
    assert count == 2 or saved != inner.getvalue()
    call = Call(
        torch._utils._rebuild_tensor_v2, Call(torch.storage._load_from_bytes, saved), 0, shape, strides, False, {}
    )
    return pickle.dumps({"a": call})


BOMBS = {
    "array of 4 TB": lambda: numpy_claim((1 << 20, 1 << 20)),
    "array of 2^90": lambda: numpy_claim((1 << 30, 1 << 30, 1 << 30)),
    "negative shape": lambda: numpy_claim((-1, -1)),
    "shape too short": lambda: numpy_claim((2,), data=b"\0" * 4096),
    "BINBYTES8 of 1 TB": lambda: b"\x80\x04}\x8c\x01a\x8e" + struct.pack("<Q", 1 << 40) + b"xs.",
    "BYTEARRAY8 of 1 TB": lambda: b"\x80\x05}\x8c\x01a\x96" + struct.pack("<Q", 1 << 40) + b"xs.",
    "BINUNICODE8 of 2^63": lambda: b"\x80\x04}\x8c\x01a\x8d" + struct.pack("<Q", 1 << 63) + b"xs.",
    "frame of 1 TB": lambda: b"\x80\x04\x95" + struct.pack("<Q", 1 << 40) + b"}\x8c\x01aj\xff\xff\xff\xffs.",
    "memo of 2^32": lambda: b"\x80\x02}U\x01ar\xff\xff\xff\xff0j\xfe\xff\xff\xffs.",
    "long of 2 GB": lambda: b"\x80\x02}U\x01a\x8b\xff\xff\xff\x7f\x01s.",
    "digits": lambda: b"(dS'a'\nI" + b"9" * 100_000 + b"\ns.",
    "nested lists": lambda: nested_lists(50_000) + b"garbage",
    "laughs": lambda: laughs(9),
    "dict in itself": lambda: b"\x80\x02}q\x00U\x01ah\x00s.",
    "deep key": lambda: b"\x80\x02})" + b"\x85" * 100_000 + b"K\x01s.",
    "torch storage of 4 TB": lambda: torch_claim(1 << 40, (1 << 40,), (1,)),
    "torch expanded": lambda: torch_claim(2, (1 << 20, 1 << 20), (0, 0)),
    "torch beyond": lambda: torch_claim(2, (2,), (5,)),
}


@pytest.mark.sampled(0.4)
@pytest.mark.parametrize("bomb", BOMBS)
def test_memory_bombs(tmp_path, bomb):
    path = tmp_path / "a.pkl"
    path.write_bytes(BOMBS[bomb]())
    error_of(megatron=path)  # what is imported on first use is no part of the measure
    tracemalloc.start()
    try:
        message = error_of(megatron=path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < BOMB_BYTES and len(message) < 2000


def test_bytes_of_one_text_are_made_once(tmp_path):
    """Protocol 2 writes bytes as a text to be encoded: asking for it thousandfold must not take thousandfold memory."""
    text = b"X" + struct.pack("<I", 1 << 20) + b"x" * (1 << 20) + b"q\x01"
    encode = b"c_codecs\nencode\nq\x02" + b"h\x02h\x01U\x06latin1\x86R" * 1000
    path = tmp_path / "a.pkl"
    path.write_bytes(b"\x80\x02" + text + encode + b"N.")
    tracemalloc.start()
    try:
        assert "no dict" in error_of(megatron=path)
        assert tracemalloc.get_traced_memory()[1] < BOMB_BYTES
    finally:
        tracemalloc.stop()


def test_too_many_opcodes(tmp_path):
    (tmp_path / "a.pkl").write_bytes(b"\x80\x02" + b"]0" * 600_000 + b"}.")
    assert "opcodes" in error_of(megatron=tmp_path / "a.pkl")


@pytest.fixture(scope="module")
def damaged_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("damaged")


@pytest.mark.sampled(0.4)
@pytest.mark.parametrize("torch_values", [False, True])
@pytest.mark.parametrize("protocol", [0, 2, 5])
@FUZZ
@given(flips=FLIPS, cut=st.none() | st.integers(0))
def test_damaged_pickles(damaged_folder, protocol, torch_values, flips, cut):
    import torch

    whole = damaged_folder / f"whole{protocol}{torch_values}.pkl"
    if not whole.exists():
        make = torch.tensor if torch_values else np.array
        write(whole, {name: make(array) for name, array in demobert_state().items()}, protocol)
    path = damaged_folder / "a.pkl"
    damage(path, whole.read_bytes(), flips, cut)
    try:
        load_weights(CONFIG, megatron=path)
    except DemoBertError as error:
        assert "\n" not in str(error)


# --- NVIDIA ModelOpt's names in PyTorch checkpoints ------------------------------------------------------------------


def modelopt_ranges(rng) -> tuple[dict, dict]:
    """Buffers that modelopt 0.47 adds to BertForQuestionAnswering with INT8_DEFAULT_CFG; the ranges by canonical name.

    The attention's are those of its configurations that quantize the matmuls too; ranges of norms' inputs are left out.
    """
    buffers, expected = {}, {}
    for i in range(CONFIG.num_hidden_layers):
        layer = f"bert.encoder.layer.{i}"
        for module in ("attention.self.query", "attention.output.dense", "intermediate.dense", "output.dense"):
            flat = f"l{i}_{module.replace('.', '_')}"
            amax, channels = np.float32(rng.uniform(1, 9)), rng.uniform(0.1, 1, (16, 1)).astype(np.float32)
            buffers |= {
                f"{layer}.{module}.input_quantizer._amax": amax,
                f"{layer}.{module}.weight_quantizer._amax": channels,
            }
            expected |= {f"{flat}_input_amax": amax, f"{flat}_kernel_amax": channels}
        for theirs, ours in (("q", "qv_a"), ("k", "qv_b"), ("v", "av_b"), ("p", "av_a")):
            amax = np.float32(rng.uniform(1, 9))
            buffers[f"{layer}.attention.self.{theirs}_bmm_quantizer._amax"] = amax
            expected[f"l{i}_attention_self_{ours}_input_quantizer_amax"] = amax
        for module in ("attention.output", "output"):
            buffers[f"{layer}.{module}.LayerNorm.input_quantizer._amax"] = np.float32(3)
    buffers |= {"bert.embeddings.LayerNorm.input_quantizer._amax": np.float32(2)}
    buffers |= {"qa_outputs.input_quantizer._amax": np.float32(4), "qa_outputs.weight_quantizer._amax": np.ones((2, 1))}
    expected |= {"cls_squad_output_input_amax": np.float32(4)}
    expected |= {"cls_squad_output_weights_amax": np.ones((2, 1), np.float32)}
    return buffers, expected


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth"])
def test_modelopt_names(tmp_path, rng, suffix):
    buffers, expected = modelopt_ranges(rng)
    path = tmp_path / f"a{suffix}"
    if suffix == ".safetensors":
        write_safetensors(path, state() | buffers)
    else:
        write_pickled(path, state() | buffers, key="model_state_dict" if suffix == ".pth" else None)
    weights = load_weights(CONFIG, pytorch=path)
    assert_same(weights, "erf")
    assert_ranges(weights, expected)


@pytest.mark.parametrize("buffer", ["_pre_quant_scale", "_bias_value", "_unheard_of"])
def test_quantizer_state_that_changes_the_network(tmp_path, buffer):
    name = f"bert.encoder.layer.0.output.dense.input_quantizer.{buffer}"
    path = write_safetensors(tmp_path / "a.safetensors", state() | {name: np.ones(16)})
    assert f"extra: {name}" in error_of(pytorch=path)
