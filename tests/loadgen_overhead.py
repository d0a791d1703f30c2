"""What scripts/mlperf.py and LoadGen themselves take for a sample: CPU time over an engine that computes nothing.

python3 -m tests.loadgen_overhead -e ENGINE -b 1280
"""

import dataclasses
import tempfile
import time

import numpy as np

from helpers import cli
from helpers.backends.base import Engine
from helpers.engine_card import EngineCard
from scripts.loadgen.one_run import RunSpec, read_result, run_loadgen
from scripts.loadgen.samples import random_features
from scripts.loadgen.system import Limits, System

#: Different windows, and their lengths, of a uniform distribution.
WINDOWS, SHORTEST, LONGEST = 4000, 60, 300


class NullEngine(Engine):
    """Logits of 0, after a while in which the engine is busy and Python is not."""

    def __init__(self, card: EngineCard, seconds: float):
        super().__init__(card)
        self._seconds = seconds

    def _infer(self, batch):
        time.sleep(self._seconds)
        return np.zeros((*batch.input_ids.shape, 2), np.float32)

    def timed_run(self, batch):
        raise NotImplementedError

    def describe(self):
        return "nothing"


def parse(arguments):
    parser = cli.Parser(__doc__.partition("\n")[0])
    cli.add_engine(parser)
    parser.add_argument("-b", "--batch-size", type=cli.positive_int, default=1280, help="sequences in a batch")
    parser.add_argument("--run-ms", type=cli.positive_float, default=10.0, help="how long the engine takes for a batch")
    parser.add_argument("--rate", type=cli.positive_float, default=10_000.0, help="of Server, queries a second")
    parser.add_argument("--seconds", type=cli.positive_int, default=5, help="how long each run takes, about")
    return parser.parse_args(arguments)


def main(arguments) -> None:
    args = parse(arguments)
    card = EngineCard.read(EngineCard.path_for(args.engine))
    lengths = np.random.default_rng(1).integers(SHORTEST, LONGEST, WINDOWS).tolist()
    for layout in ("packed", "padded"):
        sizes = {"layout": layout, "batch_sizes": [args.batch_size], "sequence_lengths": [LONGEST]}
        engine = NullEngine(dataclasses.replace(card, **sizes), args.run_ms / 1e3)
        features = random_features(engine, lengths, 1)
        system = System(engine, features, Limits.of(engine.card, args.batch_size, LONGEST), 2, print)
        for scenario in ("Offline", "Server"):
            system.begin(scenario)
            with tempfile.TemporaryDirectory() as folder:
                spec = RunSpec(scenario, "PerformanceOnly", folder, args.seconds, 1, args.rate, 1000.0)
                start = time.process_time()
                run_loadgen(spec, system, WINDOWS)
                taken = (time.process_time() - start) / system.answered
                rate = read_result(spec).rate
            print(f"{layout}, {scenario}: {1e6 * taken:.1f} us of CPU a sample, {rate:.0f} samples/s were answered")
        system.close()


if __name__ == "__main__":
    cli.run(main)
