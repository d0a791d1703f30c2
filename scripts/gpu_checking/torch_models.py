"""PyTorch on the GPU: the reference's logits, and runs to be timed. Heavy imports wait until they are asked for."""

import json
from functools import partial
from pathlib import Path

import numpy as np

from helpers.bert_config import BertConfig
from helpers.errors import DemoBertError, missing_package

#: Google's two published sizes, with random weights: speed does not depend on their values.
RANDOM_SIZES = {
    "base": {},
    "large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
}

#: Where models and their inputs go.
DEVICE = "cuda"


def import_torch():
    """torch, if it sees an NVIDIA GPU. Raises DemoBertError where it does not."""
    try:
        import torch
        import transformers
    except ImportError as error:
        raise missing_package(error.name, "torch transformers", "scripts/gpu_check.sh") from error
    transformers.logging.set_verbosity_error()
    if not torch.cuda.is_available():
        raise DemoBertError("PyTorch sees no NVIDIA GPU, which this check needs (for CPUs: scripts/benchmark_peers.py)")
    torch.backends.cuda.matmul.allow_tf32 = False
    return torch


def random_model(name: str, folder: Path) -> Path:
    """Write BERT-base or -large with random weights as a Hugging Face folder under `folder`; returns it."""
    import torch
    from transformers import BertConfig as HuggingFaceConfig
    from transformers import BertForQuestionAnswering

    torch.manual_seed(0)
    model = BertForQuestionAnswering(HuggingFaceConfig(**RANDOM_SIZES[name]))
    model.save_pretrained(folder / name)
    return folder / name


def load(folder: Path, half: bool):
    """Hugging Face's BertForQuestionAnswering of a folder, on the GPU, with its default attention (SDPA)."""
    import torch
    from safetensors.torch import load_file
    from transformers import BertConfig as HuggingFaceConfig
    from transformers import BertForQuestionAnswering

    path = next(path for path in (folder / "bert_config.json", folder / "config.json") if path.exists())
    values = json.loads(path.read_text(encoding="utf-8"))
    values["hidden_act"] = {"erf": "gelu", "tanh": "gelu_new"}.get(BertConfig.from_folder(folder).gelu, "gelu")
    model = BertForQuestionAnswering(HuggingFaceConfig.from_dict(values))
    state = {key: value.float() for key, value in load_file(folder / "model.safetensors").items()}
    missing = model.load_state_dict(state, strict=False).missing_keys
    if missing:
        raise DemoBertError(f"{folder} has no {missing[0]}")
    return model.to(DEVICE, torch.float16 if half else torch.float32).eval()


def inputs_of(batch) -> dict:
    """A PaddedBatch on the GPU, under Hugging Face's names."""
    import torch

    arrays = {"input_ids": batch.input_ids, "attention_mask": batch.input_mask, "token_type_ids": batch.segment_ids}
    return {name: torch.from_numpy(array.astype(np.int64)).to(DEVICE) for name, array in arrays.items()}


def logits(model, batches: list) -> list[np.ndarray]:
    """Start and end logits of each PaddedBatch, float32 [B, S, 2]."""
    import torch

    with torch.inference_mode():
        outputs = (model(**inputs_of(batch)) for batch in batches)
        return [torch.stack([o.start_logits, o.end_logits], dim=-1).float().cpu().numpy() for o in outputs]


def runs(model, batch, compiled: bool) -> dict:
    """Name → a function that runs `batch` `runs` times and returns each run's ms by CUDA events."""
    import torch

    inputs = inputs_of(batch)
    prepared = {"eager SDPA": model}
    if compiled:
        prepared["torch.compile"] = torch.compile(model, dynamic=False)
    ways = {}
    with torch.inference_mode():
        for name, forward in prepared.items():
            warm = partial(forward, **inputs)
            for _ in range(3):
                warm()
            ways[name] = partial(_timed, warm)
            ways[f"{name}, CUDA graph"] = partial(_timed, _captured(warm).replay)
    return ways


def _captured(forward):
    """`forward` as a CUDA graph, captured after warm runs on a stream of its own, as PyTorch's documentation asks."""
    import torch

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            forward()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        forward()
    return graph


def _timed(forward, runs: int) -> list[float]:
    import torch

    latencies = []
    with torch.inference_mode():
        for _ in range(runs):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            forward()
            end.record()
            end.synchronize()
            latencies.append(start.elapsed_time(end))
    return latencies
