"""PyTorch's times of one batch:

    python torch_times.py DEVICE MODEL LAYERS LENGTH BATCH RUNS LOCK [--no-compile] > JSON

Several may run at once, since most of it is the compiler's work on one core: each holds the file LOCK with others while it
prepares, and alone while it is timed.
"""

import fcntl
import json
import sys
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":  # the process's own run, whose path begins with this file's folder
    sys.path[0] = str(ROOT)

from scripts.benchmarks.random_model import RANDOM_SIZES
from scripts.gpu_checking import torch_models


def times(config, length: int, batch: int, runs: int, lock, compiled: bool) -> dict:
    """PyTorch's BERT in fp16, as a CUDA graph: {"SDPA": ms, "torch.compile": ms}. `lock` is an open file."""
    fcntl.flock(lock, fcntl.LOCK_SH)
    replays = torch_models.model_replays(config, length, batch, compiled)
    fcntl.flock(lock, fcntl.LOCK_EX)
    return {name: torch_models.figures(torch_models.timed(replay, runs)) for name, replay in replays.items()}


def main(device: str, model: str, layers: str, length: str, batch: str, runs: str, lock: str, *flags: str) -> None:
    torch_models.DEVICE = device
    config = replace(RANDOM_SIZES[model], num_hidden_layers=int(layers))
    with open(lock, "a") as file:
        print(json.dumps(times(config, int(length), int(batch), int(runs), file, "--no-compile" not in flags)))


if __name__ == "__main__":
    main(*sys.argv[1:])
