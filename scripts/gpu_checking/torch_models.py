"""PyTorch on the GPU: the reference's logits, and runs to be timed. Heavy imports wait until they are asked for."""

from functools import partial
from pathlib import Path

import numpy as np

from helpers.errors import DemoBertError
from scripts.benchmarks import hugging_face

#: Where models and their inputs go.
DEVICE = "cuda"


def import_torch():
    """torch, if it sees an NVIDIA GPU. Raises DemoBertError where it does not."""
    torch = hugging_face.import_torch("torch transformers", "scripts/gpu_check.sh")
    if not torch.cuda.is_available():
        raise DemoBertError("PyTorch sees no NVIDIA GPU, which this check needs (for CPUs: scripts/benchmark_peers.py)")
    torch.backends.cuda.matmul.allow_tf32 = False
    return torch


def load(folder: Path, half: bool):
    """Hugging Face's BertForQuestionAnswering of a folder, on the GPU."""
    import torch

    return hugging_face.load(folder).to(DEVICE, torch.float16 if half else torch.float32)


def logits(model, batches: list) -> list[np.ndarray]:
    """Start and end logits of each PaddedBatch, float32 [B, S, 2]."""
    import torch

    with torch.inference_mode():
        outputs = (model(**hugging_face.inputs_of(batch, DEVICE)) for batch in batches)
        return [torch.stack([o.start_logits, o.end_logits], dim=-1).float().cpu().numpy() for o in outputs]


def runs(model, batch, compiled: bool) -> dict:
    """Name → a function that runs `batch` `runs` times and returns each run's ms by CUDA events."""
    import torch

    inputs = hugging_face.inputs_of(batch, DEVICE)
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
