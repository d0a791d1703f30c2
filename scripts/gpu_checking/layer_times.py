"""Where a TensorRT engine's time goes, layer by layer: `python layer_times.py ENGINE LAYOUT LENGTH BATCH… > JSON`.

TensorRT's profiler times each layer by itself, so that the sum is more than the engine takes. Layers that differ by
their numbers only are one line: BERT's are all alike.
"""

import json
import re
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":  # the process's own run, whose path begins with this file's folder
    sys.path[0] = str(ROOT)

#: Timed runs, and as many before them.
RUNS = 10


def kind_of(layer: str) -> str:
    """`l11_output_dense_kernel` → `l*_output_dense_kernel`."""
    return re.sub(r"\d+", "*", layer)


def profiled(trt, context, run_once) -> dict:
    """{kind of layer: {"ms": of one run, "layers": how many}}, the longest first."""
    times, names = defaultdict(float), defaultdict(set)

    class Profiler(trt.IProfiler):
        def __init__(self):
            trt.IProfiler.__init__(self)

        def report_layer_time(self, layer_name, ms):
            times[kind_of(layer_name)] += ms / RUNS
            names[kind_of(layer_name)].add(layer_name)

    for _ in range(RUNS):
        run_once()
    context.profiler = Profiler()
    for _ in range(RUNS):
        run_once()
    longest = sorted(times, key=times.get, reverse=True)
    return {kind: {"ms": round(times[kind], 4), "layers": len(names[kind])} for kind in longest}


def main(path: str, layout: str, length: str, *batches: str) -> None:
    from helpers.backends import load_engine
    from helpers.benchmark import random_batch, random_packed_batch

    found = {}
    for size in map(int, batches):
        engine = load_engine(path, layout)  # anew: a profiler stays with its context
        if layout == "packed":
            batch = random_packed_batch(engine.card, [int(length)] * size, seed=1)
        else:
            batch = random_batch(engine.card, size, int(length), seed=1)
        session = engine.session
        found[str(size)] = profiled(session.trt, session.context, engine.timed_run(batch))
        engine.close()
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
