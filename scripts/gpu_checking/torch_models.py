"""PyTorch on the GPU: the reference's logits, and runs to be timed. Heavy imports wait until they are asked for."""

import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from helpers.bert_config import BertConfig
from helpers.calibration_cache import read_cache, read_fingerprint
from helpers.errors import DemoBertError
from helpers.quantization import LARGEST, Quantization, QuantizedDense, dense_kernel_names
from helpers.weights import load_weights
from helpers.weights.pytorch_names import pytorch_name
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


def fake_quantized_logits(folder: Path, calibration: Path | None, batches: list) -> list[np.ndarray]:
    """The same of a folder's model with the inputs and kernels of its dense layers rounded to int8's steps, in float32.

    Channels are evened out where an engine would. The ranges are the checkpoint's own (QAT), or those of a calibration
    cache.
    """
    from helpers.finetuning.network import encoder_denses

    weights = load_weights(BertConfig.from_folder(folder), pytorch=folder)
    ranges = weights.ranges
    if calibration is not None:
        ranges = read_cache(calibration, read_fingerprint(calibration), weights.config).ranges
    quantization = Quantization("int8", ranges, str(calibration or folder))
    model = load(folder, half=False)
    for dense in (dense for layer in range(weights.config.num_hidden_layers) for dense in encoder_denses(layer)):
        names = dense_kernel_names(dense)
        rounded = quantization.dense(dense, weights.stacked(names))
        kernels, amaxes = (np.split(array, len(names)) for array in (rounded.kernel, rounded.kernel_amax))
        for name, kernel, amax in zip(names, kernels, amaxes, strict=True):
            linear = model.get_submodule(pytorch_name(name).removesuffix(".weight"))
            _fake_quantize(linear, replace(rounded, kernel=kernel, kernel_amax=amax))
    return logits(model, batches)


def _fake_quantize(linear, rounded: QuantizedDense) -> None:
    """Has a torch.nn.Linear round its weight once, and what it is given each time, by torch's own operators."""
    import torch

    largest = int(LARGEST["int8"])
    kernel, steps = (torch.tensor(array, device=DEVICE) for array in (rounded.kernel, rounded.kernel_amax / largest))
    places = torch.zeros(len(steps), dtype=torch.int32, device=DEVICE)
    linear.weight.data = torch.fake_quantize_per_channel_affine(kernel, steps, places, 0, -largest, largest)
    limits = 1.0 if rounded.limits is None else torch.tensor(rounded.limits, device=DEVICE)

    def round_input(module, inputs):
        step = rounded.input_amax / largest
        return torch.fake_quantize_per_tensor_affine(inputs[0] / limits, step, 0, -largest, largest)

    linear.register_forward_pre_hook(round_input)


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


def model_replays(config: BertConfig, length: int, batch: int, compiled: bool) -> dict:
    """PyTorch's BERT of random weights in fp16: name → a function that runs it once, warm; on a GPU by a CUDA graph."""
    import torch
    import transformers

    sizes = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    settings = {name: getattr(config, name) for name in sizes} | {"attn_implementation": "sdpa"}
    model = transformers.BertForQuestionAnswering(transformers.BertConfig(**settings)).to(DEVICE, torch.float16).eval()
    ids = torch.randint(config.vocab_size, (batch, length), device=DEVICE)
    inputs = {"input_ids": ids, "token_type_ids": torch.zeros_like(ids), "attention_mask": torch.ones_like(ids)}
    ways = {"SDPA": model}
    if compiled:
        ways["torch.compile"] = torch.compile(model, dynamic=False)
    return {name: warm_replay(partial(forward, **inputs)) for name, forward in ways.items()}


def product_times(suite, place, batch: int) -> dict:
    """The dense layers' matrix products alone, of all layers, as a CUDA graph: {"fp16": ms, "fp8": ms}."""
    kinds = ("fp16",) if DEVICE == "cpu" else ("fp16", "fp8")
    return {kind: graph_times(_products(place, batch, kind), suite.args.iterations) for kind in kinds}


def _products(place, batch: int, kind: str):
    """A function that multiplies as BERT's encoder does, each layer by kernels of its own."""
    import torch

    hidden, inner = place.config.hidden_size, place.config.intermediate_size
    rows, half = batch * place.length, {"device": DEVICE, "dtype": torch.float16}
    shapes = ((hidden, 3 * hidden), (hidden, hidden), (hidden, inner), (inner, hidden))
    inputs = {size: torch.randn(rows, size, **half) for size in (hidden, inner)}
    kernels = [torch.randn(out, size, **half) for _ in range(place.config.num_hidden_layers) for size, out in shapes]
    if kind == "fp16":
        return lambda: [torch.nn.functional.linear(inputs[kernel.shape[1]], kernel) for kernel in kernels]
    one = torch.ones((), device=DEVICE)
    eighth = torch.float8_e4m3fn
    inputs = {size: tensor.to(eighth) for size, tensor in inputs.items()}
    kernels = [kernel.to(eighth) for kernel in kernels]
    settings = {"scale_a": one, "scale_b": one, "out_dtype": torch.float16, "use_fast_accum": True}
    return lambda: [torch._scaled_mm(inputs[kernel.shape[1]], kernel.t(), **settings) for kernel in kernels]


def graph_times(forward, runs: int) -> dict:
    return figures(timed(warm_replay(forward), runs))


def warm_replay(forward):
    """What runs `forward` once: the replay of a CUDA graph, on a CPU itself. It keeps `forward`'s model and inputs."""
    import torch

    with torch.inference_mode():
        for _ in range(3):
            forward()
        if DEVICE == "cpu":
            return forward
        graph = _captured(forward)

    def replay():
        graph.replay()
        return forward  # whose memory the graph reads, and does not hold

    return replay


def timed(replay, runs: int) -> list[float]:
    """ms of each of `runs` runs, after ten others on a GPU."""
    import torch

    with torch.inference_mode():
        if DEVICE == "cpu":
            return [_wall_time(replay) for _ in range(runs)]
        _timed(replay, 10)
        return _timed(replay, runs)


def figures(times: list[float]) -> dict:
    """Average, median, 95th and 99th percentile of times in ms."""
    percentiles = np.percentile(times, (50, 95, 99))
    names = ("median_ms", "percentile_95_ms", "percentile_99_ms")
    return {"average_ms": float(np.mean(times)), **{name: float(ms) for name, ms in zip(names, percentiles)}}


def _wall_time(forward) -> float:
    started = time.perf_counter()
    forward()
    return 1000 * (time.perf_counter() - started)
