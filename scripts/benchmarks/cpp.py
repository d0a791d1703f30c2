"""Time build/perf and perf.py on one engine, in turn, and print the medians and their ratio.

scripts/benchmark_cpp.py runs it.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from helpers.errors import DemoBertError
from helpers.infer_c_engine import BUILD_FOLDER

ROOT = Path(__file__).resolve().parents[2]


def benchmark(args) -> None:
    """What scripts/benchmark_cpp.py was asked for. Raises DemoBertError."""
    commands = {"perf.py": [sys.executable, str(ROOT / "perf.py")], "build/perf": [str(BUILD_FOLDER / "perf")]}
    medians = {name: [] for name in commands}
    for round_ in range(args.rounds):
        for name, command in commands.items():
            medians[name].append(median(command, args))
        print(
            f"round {round_ + 1}: " + ", ".join(f"{name} {values[-1]:.3f} ms" for name, values in medians.items()),
            flush=True,
        )
    python, cpp = (statistics.median(values) for values in medians.values())
    print(f"median: perf.py {python:.3f} ms, build/perf {cpp:.3f} ms, ratio {cpp / python:.3f}")


def median(command: list, args) -> float:
    """The median latency, in ms, that one run of a perf reports."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        sizes = ["-b", args.batch_size, "-s", args.sequence_length, "-i", args.iterations]
        flags = ["-e", args.engine, *sizes, "--json", report]
        try:
            result = subprocess.run([*command, *map(str, flags)], capture_output=True, text=True)
        except OSError as error:
            raise DemoBertError(
                f"{command[0]} can't be run ({error.strerror}); build it first, see README.md"
            ) from error
        if result.returncode:
            raise DemoBertError(result.stderr.strip().splitlines()[-1])
        return json.loads(report.read_text())["timings"][0]["median_ms"]
