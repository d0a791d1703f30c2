"""Many clients ask the real server at once: questions a second beside `inference.py -sq`, latencies, memory, answers.

    python3 -m tests.serving_load -e ENGINE --squad squad/dev-xquad-en-v1.1.json --seconds 60 --clients 16

inference.py answers the file before and after, on the same machine: the mean of both is what the server is held to.
Each client sends its next question when it has the answer to the last. Exit code 1: an answer differs.
"""

import itertools
import json
import re
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from helpers import cli
from helpers.squad import read_squad
from tests.conftest import ROOT
from tests.triton_server import Client, Server, body_of, missing, serving

#: Seconds that clients ask before anything is counted.
WARM_UP = 5


@dataclass
class Tally:
    """What the clients have seen: seconds that each answer took, the questions asked, those answered otherwise."""

    seconds: list[float] = field(default_factory=list)
    asked: set = field(default_factory=set)
    different: set = field(default_factory=set)
    refused: list = field(default_factory=list)


def predictions(engine, squad, folder: Path) -> tuple[dict, float]:
    """inference.py's answers to the file, {id: text}, and how many it gave a second."""
    path = folder / "predictions.json"
    command = [sys.executable, ROOT / "inference.py", "-e", engine, "-sq", squad, "-o", path, "--fresh"]
    out = subprocess.run([*map(str, command)], check=True, capture_output=True, text=True).stdout
    rate = float(re.search(r"([\d.]+) questions per second", out)[1])
    return json.loads(path.read_text(encoding="utf-8")), rate


def load(port: int, data, wanted: dict, clients: int, seconds: float, sample) -> tuple[Tally, list]:
    """So many clients for so many seconds after the warm-up; what `sample()` gives, once a second meanwhile."""
    questions = [(one.question_id, body_of(one.passage, one.question)) for one in data.examples]
    order, lock, tally = itertools.cycle(questions), threading.Lock(), Tally()
    begin = time.monotonic() + WARM_UP
    end = begin + seconds

    def run():
        with Client(port) as client:
            while time.monotonic() < end:
                with lock:
                    name, body = next(order)
                started = time.monotonic()
                status, reply = client.post(body)
                finished = time.monotonic()
                with lock:
                    _count(tally, name, status, reply, wanted)
                    if begin <= finished < end:
                        tally.seconds.append(finished - started)

    threads = [threading.Thread(target=run) for _ in range(clients)]
    for thread in threads:
        thread.start()
    samples = []
    time.sleep(max(0, begin - time.monotonic()))
    while time.monotonic() < end:
        samples.append(sample())
        time.sleep(1)
    for thread in threads:
        thread.join()
    return tally, samples


def _count(tally: Tally, name: str, status: int, reply: dict, wanted: dict) -> None:
    if status != 200:
        tally.refused.append(reply)
        return
    tally.asked.add(name)
    outputs = {output["name"]: output["data"][0] for output in reply["outputs"]}
    if outputs["answer"] != wanted[name]:
        tally.different.add(name)


def memory(server: Server) -> float:
    """MiB that the server's processes have for themselves, shared pages by their share."""
    total = 0
    for pid in (server.triton(), *server.backends()):
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        total += int(re.search(r"^Pss: *(\d+) kB", text, re.M)[1])
    return total / 1024


def report(tally: Tally, samples: list, seconds: float, rates: list[float]) -> dict:
    milliseconds = np.array(tally.seconds) * 1000
    quarter = max(1, len(samples) // 4)
    rate, reference = len(tally.seconds) / seconds, float(np.mean(rates))
    return {
        "questions_per_second": rate,
        "inference_py_before_and_after": rates,
        "ratio": rate / reference,
        "p50_ms": float(np.percentile(milliseconds, 50)),
        "p99_ms": float(np.percentile(milliseconds, 99)),
        "memory_mib_first_quarter": float(np.mean(samples[:quarter])),
        "memory_mib_last_quarter": float(np.mean(samples[-quarter:])),
        "questions_asked": len(tally.asked),
        "answered_otherwise": sorted(tally.different),
        "refused": len(tally.refused),
    }


def parse(arguments):
    parser = cli.Parser("Many clients ask the real server at once, beside inference.py -sq.")
    cli.add_engine(parser)
    parser.add_argument("--squad", required=True, metavar="FILE", help="SQuAD v1.1 file")
    number = {"type": cli.positive_int, "metavar": "N"}
    parser.add_argument("--clients", **number, default=16, help="clients that ask at once")
    parser.add_argument("--seconds", **number, default=60, help="how long they ask")
    parser.add_argument("--instances", **number, default=2, help="serve.sh's flag")
    parser.add_argument("--preferred-batch-size", **number, help="serve.sh's flag")
    cli.add_verbose(parser)
    return parser.parse_args(arguments)


def main(arguments) -> int:
    args = parse(arguments)
    if reason := missing():
        cli.note(f"no server can be started: {reason}")
        return 1
    data, engine = read_squad(args.squad), Path(args.engine).resolve()
    flags = [
        f"--instances={args.instances}",
        *([f"--preferred-batch-size={args.preferred_batch_size}"] if args.preferred_batch_size else []),
    ]
    with tempfile.TemporaryDirectory() as folder:
        wanted, before = predictions(engine, args.squad, Path(folder))
        with serving("-e", engine, *flags) as server:
            tally, samples = load(server.http, data, wanted, args.clients, args.seconds, lambda: memory(server))
        _, after = predictions(engine, args.squad, Path(folder))
    figures = report(tally, samples, args.seconds, [before, after])
    print(json.dumps(figures, indent=2))
    return 1 if tally.different else 0


if __name__ == "__main__":
    cli.run(main)
