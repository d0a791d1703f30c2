"""Time this project's CPU engine beside its peers: one checkpoint, the same inputs, in turn, in one process.

Latency (default): this engine (fp32, bf16, int8 with bf16), Hugging Face (eager, torch.compile; fp32, bf16), ONNX
Runtime on the Hugging Face export (fp32, dynamic INT8), OpenVINO on the same export with static shapes (f32, bf16),
NNCF's post-training quantization of this engine's float network (int8 with bf16).
Throughput (--squad FILE): questions per second and F1 over a SQuAD file, this engine beside Hugging Face's recipe for
it (windows padded to -s, in batches, torch) and beside NNCF's model.

Needs requirements-bench.txt. scripts/benchmark_peers.py runs it.
"""

import importlib.metadata
import os
import platform
import tempfile
import warnings
from pathlib import Path

from helpers.outputs import place_of, write_json
from scripts.benchmarks import hugging_face
from scripts.benchmarks.latency import measure_latency
from scripts.benchmarks.project_engines import EngineBuilder
from scripts.benchmarks.random_model import RANDOM_SIZES, write_random_model
from scripts.benchmarks.throughput import measure_throughput

#: -s where it is not given: for latency, for throughput.
LATENCY_LENGTHS = (128, 384)
THROUGHPUT_LENGTH = 384


def benchmark(args) -> None:
    """What scripts/benchmark_peers.py was asked for. Raises DemoBertError."""
    if args.json:
        place_of(args.json, "--json")
    hugging_face.import_torch("-r requirements-bench.txt", "scripts/benchmark_peers.py")
    warnings.filterwarnings("ignore")  # the peers' packages, between the lines of the tables
    with tempfile.TemporaryDirectory(prefix="demobert-peers-") as folder:
        report = measure(args, Path(folder))
    if args.json:
        figures = {"model": args.model, "batch_size": args.batch_size, "machine": machine(), "report": report}
        write_json(args.json, figures)


def measure(args, folder: Path) -> dict | list[dict]:
    """The figures of --squad, or a list of each length's latencies; engines are written into `folder`."""
    model = Path(args.model)
    if args.model in RANDOM_SIZES:
        model = write_random_model(folder / args.model, RANDOM_SIZES[args.model])
    torch_model = hugging_face.load(model)
    lengths = args.sequence_length or ([THROUGHPUT_LENGTH] if args.squad else LATENCY_LENGTHS)
    builder = EngineBuilder(model, args.calibration, max(lengths), folder)
    if args.squad:
        return measure_throughput(args, builder, torch_model, model, lengths[0])
    return [measure_latency(args, builder, torch_model, length, folder) for length in lengths]


def machine() -> dict:
    """What the figures were taken on."""
    packages = ("openvino", "nncf", "torch", "transformers", "onnxruntime", "numpy")
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")
    return {
        "cpu": cpu or platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        **{package: importlib.metadata.version(package) for package in packages},
    }
