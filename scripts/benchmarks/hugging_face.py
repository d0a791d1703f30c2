"""Hugging Face's BertForQuestionAnswering: loading it, a run of it, its recipe for SQuAD. torch is imported when used."""

import copy
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from helpers.bert_config import BertConfig, find_config
from helpers.errors import DemoBertError, missing_package
from helpers.files import read_json
from helpers.squad import SquadData

#: The recipe's defaults: candidates for a start and for an end, an answer's longest, the overlap of two windows.
N_BEST = 20
MAX_ANSWER_LENGTH = 30
STRIDE = 128


def import_torch(install: str, why: str):
    """torch, beside a transformers that keeps quiet. Raises DemoBertError: `why` needs them, pip install `install`."""
    try:
        import torch
        import transformers
    except ImportError as error:
        raise missing_package(error.name, install, why) from error
    transformers.logging.set_verbosity_error()
    return torch


def load(folder: Path):
    """The model of a folder in float32, on the CPU, with transformers' default attention (SDPA). Raises DemoBertError."""
    from safetensors.torch import load_file
    from transformers import BertConfig as HuggingFaceConfig
    from transformers import BertForQuestionAnswering

    gelu = BertConfig.from_folder(folder).gelu
    values = read_json(find_config(folder), "model configuration")
    values["hidden_act"] = "gelu_new" if gelu == "tanh" else "gelu"
    model = BertForQuestionAnswering(HuggingFaceConfig.from_dict(values))
    state = {key: value.float() for key, value in load_file(folder / "model.safetensors").items()}
    _resize(model, state)
    missing = model.load_state_dict(state, strict=False).missing_keys
    if missing:
        raise DemoBertError(f"{folder} has no {missing[0]}")
    return model.eval()


def _resize(model, state: dict) -> None:
    """Give a pruned model's dense layers the sizes of its tensors, [out, in]; its attention then counts its own heads."""
    import torch

    for name, module in list(model.named_modules()):
        kernel = state.get(f"{name}.weight")
        if isinstance(module, torch.nn.Linear) and kernel is not None and kernel.shape != module.weight.shape:
            model.set_submodule(name, torch.nn.Linear(*reversed(kernel.shape)))
    for layer in model.bert.encoder.layer:
        attention = layer.attention.self
        attention.all_head_size = attention.query.out_features
        attention.num_attention_heads = attention.all_head_size // attention.attention_head_size


def inputs_of(batch, device: str = "cpu") -> dict:
    """A PaddedBatch as tensors on `device`, under Hugging Face's names."""
    import torch

    arrays = {"input_ids": batch.input_ids, "attention_mask": batch.input_mask, "token_type_ids": batch.segment_ids}
    return {name: torch.from_numpy(array.astype(np.int64)).to(device) for name, array in arrays.items()}


def prepare_run(model, batch, dtype: str, compiled: bool = False, attention: str = "sdpa") -> Callable:
    """A function that runs `batch` once. `attention`: "sdpa" is transformers' default, "eager" its plain form."""
    import torch

    model = copy.deepcopy(model).to(getattr(torch, dtype))
    model.set_attn_implementation(attention)
    forward = torch.compile(model) if compiled else model
    inputs = inputs_of(batch)

    def run():
        with torch.inference_mode():
            forward(**inputs)

    run()  # compiles
    return run


def latency_peers(model, batch) -> dict:
    """Name → a function that prepares the peer and returns a function that runs `batch` once."""
    forms = {
        "Hugging Face eager": {"attention": "eager"},
        "Hugging Face SDPA": {},
        "torch.compile": {"compiled": True},
    }
    return {
        f"{form}, {precision}": partial(prepare_run, model, batch, dtype, **settings)
        for form, settings in forms.items()
        for precision, dtype in (("fp32", "float32"), ("bf16", "bfloat16"))
    }


def answer_squad(model, text: Path, data: SquadData, length: int, batch_size: int = 8) -> dict[str, str]:
    """Question id → text by the recipe of transformers' documentation, "Question answering".

    `text` is the folder of the model's tokenizer, or a BERT's vocab.txt.
    Windows are padded to `length` and overlap; of each, the best starts are tried with the best ends.
    """
    encoded = _encode(text, data, length)
    best = {}
    for index, (starts, ends) in enumerate(_logits(model, encoded, batch_size)):
        example = data.examples[int(encoded["overflow_to_sample_mapping"][index])]
        in_passage = [sequence == 1 for sequence in encoded.sequence_ids(index)]
        score, start, end = _best_span(starts, ends, in_passage)
        if score > best.get(example.question_id, (-np.inf,))[0]:
            offsets = encoded["offset_mapping"][index]
            best[example.question_id] = (score, example.passage[int(offsets[start, 0]) : int(offsets[end, 1])])
    return {example.question_id: best.get(example.question_id, (0, ""))[1] for example in data.examples}


def _encode(text: Path, data: SquadData, length: int):
    """The questions' windows, as transformers' tokenizer returns them."""
    from transformers import AutoTokenizer, BertTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(text)) if text.is_dir() else BertTokenizer(str(text))
    return tokenizer(
        [example.question for example in data.examples],
        [example.passage for example in data.examples],
        truncation="only_second",
        max_length=length,
        stride=min(STRIDE, length // 3),  # of short windows, too, most tokens have to be new
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        padding="max_length",
        return_tensors="pt",
    )


def _logits(model, encoded, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Start and end logits of each window, float32 [S]."""
    import torch

    for first in range(0, len(encoded["input_ids"]), batch_size):
        rows = slice(first, first + batch_size)
        with torch.inference_mode():
            names = ("input_ids", "token_type_ids", "attention_mask")
            output = model(**{name: encoded[name][rows] for name in names})
        yield from zip(output.start_logits.float().numpy(), output.end_logits.float().numpy())


def _best_span(starts: np.ndarray, ends: np.ndarray, in_passage: list) -> tuple:
    """(score, first token, last token); the score is -inf where there is none."""
    candidates = (
        (starts[start] + ends[end], start, end)
        for start in np.argsort(-starts)[:N_BEST]
        for end in np.argsort(-ends)[:N_BEST]
        if in_passage[start] and in_passage[end] and start <= end < start + MAX_ANSWER_LENGTH
    )
    return max(candidates, default=(-np.inf, 0, 0))
