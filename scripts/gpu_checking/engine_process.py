"""An engine in a process of its own: TensorRT may need another Python than PyTorch, and its crash must not end the run.

`EngineProcess` starts this file with an engine's path, writes requests to it and reads its answers: JSON, one a line.
"""

import contextlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":  # the process's own run, whose path begins with this file's folder
    sys.path[0] = str(ROOT)

from helpers.errors import DemoBertError

#: cuStreamBeginCapture's CU_STREAM_CAPTURE_MODE_THREAD_LOCAL.
_THREAD_LOCAL = 1


class EngineProcess:
    """The engine file `path`, loaded by `python` in another process. Raises DemoBertError, with that one's reason."""

    def __init__(
        self, path: Path, python: str = sys.executable, environment: dict | None = None, layout: str = "padded"
    ):
        command = [python, str(Path(__file__).resolve()), str(path), layout]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True, encoding="utf-8")
        self.description = self._answer()["description"]

    def logits(self, batches: list, folder: Path) -> list[np.ndarray]:
        """The logits [B, S, 2] of each PaddedBatch, [T, 2] of each PackedBatch, by way of files in `folder`."""
        inputs, outputs = folder / "batches.npz", folder / "logits.npz"
        arrays = {f"{name}_{i}": array for i, batch in enumerate(batches) for name, array in batch.inputs().items()}
        np.savez(inputs, **arrays)
        self._ask(logits=str(inputs), to=str(outputs), count=len(batches))
        with np.load(outputs) as file:
            return [file[f"logits_{i}"] for i in range(len(batches))]

    def time(self, batch_size: int, length: int, runs: int, graph: bool) -> list[float]:
        """ms of `runs` runs on random ids, by CUDA events, without copies; `graph`: replays of a CUDA graph."""
        return self._ask(time=[batch_size, length, runs], graph=graph)["ms"]

    def close(self) -> None:
        with contextlib.suppress(BrokenPipeError):  # it has ended already, before it read all
            self._process.stdin.close()
        self._process.stdout.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _ask(self, **request) -> dict:
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the answer says why
        return self._answer()

    def _answer(self) -> dict:
        for line in self._process.stdout:
            if line.startswith("{"):
                answer = json.loads(line)
                if "error" in answer:
                    raise DemoBertError(answer["error"])
                return answer
        code = self._process.wait()
        raise DemoBertError(f"the engine's process ended with exit code {code}")


def serve(path: str, layout: str = "padded") -> None:
    """Load the engine, then answer requests from stdin until it ends. One that fails is answered by its error."""
    from helpers.backends import load_engine

    try:
        engine = load_engine(path, layout)
        _say(description=engine.describe())
    except DemoBertError as error:
        _say(error=str(error))
        return
    timed = {}
    for line in sys.stdin:
        try:
            _say(**_respond(engine, timed, json.loads(line)))
        except DemoBertError as error:
            _say(error=str(error))


def _respond(engine, timed: dict, request: dict) -> dict:
    if "logits" in request:
        _compute(engine, request)
        return {"done": True}
    key = (*request["time"][:2], request["graph"])
    if key not in timed:
        timed[key] = timed_run(engine, *key)
    return {"ms": [timed[key]() for _ in range(request["time"][2])]}


def _compute(engine, request: dict) -> None:
    from helpers.batching import BATCH_OF_LAYOUT, INPUT_NAMES

    layout = engine.card.layout
    with np.load(request["logits"]) as file:
        arrays = [[file[f"{name}_{i}"] for name in INPUT_NAMES[layout]] for i in range(request["count"])]
    batches = [BATCH_OF_LAYOUT[layout](*of_batch) for of_batch in arrays]
    np.savez(request["to"], **{f"logits_{i}": engine.run(batch) for i, batch in enumerate(batches)})


def timed_run(engine, batch_size: int, length: int, graph: bool):
    """A function that runs the engine once, warm, and returns the ms by CUDA events."""
    from helpers.benchmark import random_batch

    run_once = engine.timed_run(random_batch(engine.card, batch_size, length, seed=length))
    for _ in range(3):
        run_once()
    return captured(engine.session) if graph else run_once


def captured(session):
    """The run that `session` is bound to, as replays of a CUDA graph, timed by CUDA events.

    By the driver itself (cuStreamBeginCapture_v2, cuGraphInstantiateWithFlags, cuGraphLaunch): PyCUDA has no graphs.
    """
    import ctypes

    cuda = ctypes.CDLL("libcuda.so.1")

    def call(name, *arguments):
        if code := getattr(cuda, name)(*arguments):
            raise DemoBertError(f"{name} failed with CUDA error {code}")

    graph, executable = ctypes.c_void_p(), ctypes.c_void_p()
    stream = ctypes.c_void_p(session.stream.handle)
    with session.current():
        call("cuStreamBeginCapture_v2", stream, ctypes.c_int(_THREAD_LOCAL))
        try:
            session.enqueue()
        except DemoBertError:
            cuda.cuStreamEndCapture(stream, ctypes.byref(graph))  # else the stream would take no other run
            raise
        call("cuStreamEndCapture", stream, ctypes.byref(graph))
        call("cuGraphInstantiateWithFlags", ctypes.byref(executable), graph, ctypes.c_ulonglong(0))
        start, end = session.driver.Event(), session.driver.Event()

    def run_once() -> float:
        with session.current():
            start.record(session.stream)
            call("cuGraphLaunch", executable, stream)
            end.record(session.stream)
            end.synchronize()
            return start.time_till(end)

    for _ in range(3):
        run_once()
    return run_once


def _say(**answer) -> None:
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve(*sys.argv[1:])
