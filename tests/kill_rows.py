"""Kills inference.py --rows again and again, at random moments, and compares what comes out with an undisturbed run.

    python3 -m tests.kill_rows --kills 100 --rows 2000 -e ENGINE

goes on until a run ends by itself after the last kill. Moments lie anywhere from the start of Python to the last
rename. It ends with 1 where the bytes differ, or anything but the answers is left.
"""

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

from tests.conftest import ROOT
from tests.stand_in import random_rows, write_rows


def start(engine: str, asked: Path, output: Path) -> subprocess.Popen:
    command = [sys.executable, ROOT / "inference.py", "-e", engine, "--rows", asked, "-o", output]
    return subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finished(process: subprocess.Popen) -> None:
    """Wait for a run that nobody kills. Raises RuntimeError where it fails."""
    _, err = process.communicate()
    if process.returncode:
        raise RuntimeError(f"a run ended with {process.returncode}: {err[-1000:]}")


def wait_for_the_end(process: subprocess.Popen, output: Path, moments: random.Random) -> None:
    """Until the answers are whole or nearly: the partial output's state says so, or the output is there."""
    state = Path(f"{output}.partial.json")
    while process.poll() is None and not output.exists():
        if state.exists() and '"whole": true' in state.read_text(encoding="utf-8", errors="replace"):
            break
    time.sleep(moments.choice([0, 0, 1e-4, 1e-3]))


def kill_once(process: subprocess.Popen, output: Path, seconds: float, moments: random.Random) -> bool:
    """Kill a run at a random moment, of runs of `seconds`; whether it was alive then."""
    kind = moments.random()
    if kind < 0.1:
        wait_for_the_end(process, output, moments)
    else:
        time.sleep(moments.uniform(0, 1.5 if kind < 0.4 else seconds))  # imports and loading; anywhere
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return process.returncode == -signal.SIGKILL


def main(arguments) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-e", "--engine", required=True, help="engine file, written by builder.py")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--form", choices=["jsonl", "csv"], default="jsonl", help="of the questions and the answers")
    parser.add_argument("--seed", type=int, default=int.from_bytes(np.random.bytes(4), "little"))
    args = parser.parse_args(arguments)
    rng, moments = np.random.default_rng(args.seed), random.Random(args.seed)
    with tempfile.TemporaryDirectory() as root:
        asked = Path(root) / f"asked.{args.form}"
        write_rows(asked, random_rows(rng, args.rows, longest=int(rng.integers(10, 200))))
        outputs = [Path(root) / name / f"answers.{args.form}" for name in ("whole", "killed")]
        for output in outputs:
            output.parent.mkdir()
        begin = time.perf_counter()
        finished(start(args.engine, asked, outputs[0]))
        seconds, expected = time.perf_counter() - begin, outputs[0].read_bytes()
        kills = runs = wrong = 0
        progress = tqdm(total=args.kills, unit="kill")
        while kills < args.kills:
            if kill_once(start(args.engine, asked, outputs[1]), outputs[1], seconds, moments):
                kills += 1
                progress.update()
            elif outputs[1].exists():  # it was faster: the next one begins again
                runs += 1
                wrong += outputs[1].read_bytes() != expected
                outputs[1].unlink()
        progress.close()
        finished(start(args.engine, asked, outputs[1]))
        wrong += outputs[1].read_bytes() != expected
        left = sorted(path.name for path in outputs[1].parent.iterdir() if path != outputs[1])
    verdict = "the same bytes" if not wrong else f"OTHER BYTES in {wrong}"
    rest = f", LEFT: {', '.join(left)}" if left else ""
    print(f"{kills} kills, {args.rows} rows, {runs + 1} runs to the end (seed {args.seed}): {verdict}{rest}")
    return int(bool(wrong or left))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
