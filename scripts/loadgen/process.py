"""LoadGen, engine and samples in a process of their own: nothing but its end ends a run of LoadGen before its time.

`LoadGenProcess` starts this file, writes requests to it and reads what it says: JSON, one a line. A request is
{"name": arguments}; what is said is {"answered": n} now and then, {"note": line} for people, and in the end
{"done": value} or {"error": line, "usage": whether it is the arguments' fault}.
"""

import contextlib
import dataclasses
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":  # the process's own run, whose path begins with this file's folder
    sys.path[0] = str(ROOT)

from helpers import cli
from helpers.errors import DemoBertError, UsageError, is_short_of_memory

#: How often a run says how far it is, in seconds.
_EVERY = 0.25


class LoadGenProcess:
    """The engine and the samples of `request` (see `Host`), loaded by another process.

    `facts` is what that one says of them. Raises DemoBertError, with that one's reason; so does all that is asked.
    """

    def __init__(self, request: dict):
        command = [sys.executable, str(Path(__file__).resolve())]
        pipe = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "encoding": "utf-8"}
        # In a session of its own, a terminal's Ctrl-C reaches this process only, which ends that one.
        self._process = subprocess.Popen(command, start_new_session=True, **pipe)
        try:
            self.facts = self.ask("load", request)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "LoadGenProcess":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def ask(self, name: str, arguments=None, on_answered: Callable[[int], object] = lambda count: None):
        """What the process answers. `on_answered(n)` is called now and then: so many samples have been answered."""
        with contextlib.suppress(BrokenPipeError):  # what it said before it ended tells why
            self._process.stdin.write(json.dumps({name: arguments}) + "\n")
            self._process.stdin.flush()
        for line in self._process.stdout:
            said = json.loads(line)
            if "error" in said:
                raise (UsageError if said["usage"] else DemoBertError)(said["error"])
            if "done" in said:
                return said["done"]
            if "note" in said:
                cli.note(said["note"])
            else:
                on_answered(said["answered"])
        code = self._process.wait()
        raise DemoBertError(f"the process that LoadGen runs in ended by itself, with exit code {code}")

    def close(self) -> None:
        """End it, whatever it does: it has nothing to lose."""
        self._process.kill()
        self._process.wait()
        with contextlib.suppress(OSError):  # of what was not sent any more
            self._process.stdin.close()
        self._process.stdout.close()


class Host:
    """What the process holds: the request's engine, and its samples, `system` that answers with the one for the other.

    The request has what the flags of the same names say: engine, squad, lengths, sequence_length, batch_size,
    max_query_length, doc_stride, vocab_file, trust_engine, config_dir, random_seed, workers, verbose; and `throughput`,
    which prepares the engine for the rate of many, not for the latency of one. `say` tells the other process.
    """

    def __init__(self, request: dict, say: Callable[..., None]):
        from helpers.backends import load_engine
        from scripts.loadgen.samples import load_samples
        from scripts.loadgen.system import Limits, System

        def note(line):
            say(note=line)

        trust = {name: request[name] for name in ("trust_engine", "config_dir")}
        engine = load_engine(request["engine"], None, throughput=request["throughput"], say=note, **trust)
        self.engine, self._say, self.verbose = engine, say, request["verbose"]
        self.samples = load_samples(request, engine, note)
        options = self.samples.options
        self.limits = Limits.of(engine.card, options.batch_size, options.sequence_length)
        workers = request["workers"] or max(engine.parallel_runs, 2)
        self.system = System(engine, self.samples.features, self.limits, workers, self._fail)
        self.system.warm_up()

    def facts(self) -> dict:
        card, samples = self.engine.card, self.samples
        return {
            "engine": self.engine.describe(),
            "card": dataclasses.asdict(card),
            "samples": len(samples.features),
            "mean_length": samples.mean_length,
            "batch_size": samples.options.batch_size,
            "windows_at_once": self.limits.windows,
            "questions": samples.data and len(samples.data.examples),
        }

    def run(self, arguments: dict) -> dict:
        """One run of LoadGen by a RunSpec's fields; a RunResult's fields. Raises DemoBertError."""
        from scripts.loadgen.one_run import RunSpec, read_result, run_loadgen

        spec, done = RunSpec(**arguments), threading.Event()
        self.system.begin(spec.scenario, spec.latency_ms and spec.latency_ms / 1000)
        progress = threading.Thread(target=self._tell_progress, args=(done,), daemon=True)
        progress.start()
        try:
            run_loadgen(spec, self.system, len(self.samples.features))
        finally:
            done.set()
            progress.join()
        return dataclasses.asdict(read_result(spec))

    def score(self, log: str | None) -> dict:
        """F1 of the logits in an accuracy log; of None: of the engine's own. See `Samples.score`."""
        from scripts.loadgen.samples import LoggedEngine

        engine = self.engine if log is None else LoggedEngine(self.engine, self.samples.features, log)
        return self.samples.score(engine)

    def _tell_progress(self, done: threading.Event) -> None:
        while not done.wait(_EVERY):
            self._say(answered=self.system.answered)

    def _fail(self, error: BaseException) -> None:
        """A batch could not be run: the other process is told at once, and ends this one."""
        self._say(**_error(error, self.verbose))


def _error(error: BaseException, verbose: bool) -> dict:
    """What the other process is told of an error."""
    if verbose:
        traceback.print_exception(error)
    line = cli.one_line(error) if isinstance(error, DemoBertError) else f"{type(error).__name__}: {cli.one_line(error)}"
    if is_short_of_memory(error):
        line = "not enough memory for this model, batch size and sequence length"
    return {"error": line, "usage": isinstance(error, UsageError)}


class _Channel:
    """Where this process is told and tells: its stdin and stdout; what others print to stdout goes to stderr."""

    def __init__(self):
        self._out = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        self._lock = threading.Lock()

    def say(self, **values) -> None:
        with self._lock, contextlib.suppress(OSError):  # who has gone needs no answer
            self._out.write(json.dumps(values) + "\n")
            self._out.flush()


def serve() -> None:
    """Do what is asked. When stdin ends, the other process has ended: so does this one then, at once.

    The engine is loaded before there is another thread: OpenVINO forks a process for its telemetry, which would wait
    for ever for a lock that one of them held.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    channel, requests = _Channel(), queue.SimpleQueue()
    ((_, request),) = json.loads(sys.stdin.readline()).items()
    try:
        host = Host(request, channel.say)
        channel.say(done=host.facts())
    except BaseException as error:
        channel.say(**_error(error, request["verbose"]))
        return
    threading.Thread(target=_work, args=(host, requests, channel), daemon=True).start()
    for line in sys.stdin:
        requests.put(json.loads(line))
    os._exit(0)  # LoadGen and the engine's threads are perhaps in the middle of what nobody waits for any more


def _work(host: Host, requests: queue.SimpleQueue, channel: _Channel) -> None:
    while True:
        ((name, arguments),) = requests.get().items()
        try:
            channel.say(done=getattr(host, name)(arguments))
        except BaseException as error:
            channel.say(**_error(error, host.verbose))


if __name__ == "__main__":
    serve()
