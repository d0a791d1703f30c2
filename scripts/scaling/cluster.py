"""Ray on this machine, heard by nobody else and gone at the end; or a cluster that runs already."""

import contextlib
import ctypes
import logging
import os
import secrets
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

from helpers.errors import ROOT, DemoBertError, UsageError, one_line

#: Of Ray's store of what is under way between its processes, in bytes: parts and answers have some MB.
_STORE_BYTES = 256 << 20

#: The sockets in Ray's folder have long names, and a socket's path has 107 bytes at most.
_LONGEST_FOLDER = 40

#: Of Linux's prctl.
_PR_SET_CHILD_SUBREAPER = 36

#: How long the processes that Ray leaves may take for their end, in seconds.
_PATIENCE = 5.0

#: Settings of a Ray that this process starts. Each is read when Ray is imported or started.
_ALONE = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # the address of a machine that has no others: 127.0.0.1, on Linux, too
    "RAY_AUTH_MODE": "token",  # other users of this machine reach 127.0.0.1, and whoever may use Ray runs programs
    "RAY_worker_niceness": "0",  # else, where cores are few, whoever waits for the engines has nearly all of their time
    "RAY_prestart_worker_first_driver": "0",  # a process for each core, most of them for nothing
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


@contextlib.contextmanager
def ray_running(address: str | None, with_gpus: bool, verbose: bool) -> Iterator[list[dict]]:
    """Ray, started on this machine or, at `address`, connected to; gives its machines' resources: {"CPU": 16.0, …}.

    While it is entered nothing can be printed to stdout, where Ray would, too. Raises DemoBertError.
    """
    _set_environment(address)
    with contextlib.ExitStack() as stack:
        folder = None
        if address is None:
            folder = _short_folder()
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            stack.enter_context(no_orphans())
        if not verbose:
            stack.enter_context(_quiet())
        import ray

        if not verbose:  # its import asks for its own warnings
            warnings.simplefilter("ignore")
        stack.callback(ray.shutdown)
        _start(ray, address, folder, with_gpus, verbose)
        yield [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _start(ray, address: str | None, folder: str | None, with_gpus: bool, verbose: bool) -> None:
    level = logging.INFO if verbose else logging.CRITICAL
    settings = {"include_dashboard": False, "log_to_driver": verbose, "logging_level": level}
    if address is None:
        cores = len(os.sched_getaffinity(0))
        settings |= {"num_cpus": cores, "object_store_memory": _STORE_BYTES, "_temp_dir": folder}
        settings |= {} if with_gpus else {"num_gpus": 0}
    else:
        del settings["include_dashboard"]
        # Its workers look for this repository's modules where it lies here, whatever folder this was started in.
        settings["job_config"] = ray.job_config.JobConfig(code_search_path=[str(ROOT)])
    numbers = (signal.SIGTERM, signal.SIGINT)
    handlers = {number: signal.getsignal(number) for number in numbers}
    try:
        ray.init(address or "local", **settings)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError, OSError) as error:
        what = f"there is no Ray cluster at {address}" if address else "Ray can't be started on this machine"
        raise DemoBertError(f"{what}: {one_line(error, 300)}") from error
    except SystemExit as end:  # by Ray's own handler, which is in force until it has started
        raise SystemExit(128 + signal.SIGTERM if end.code == signal.SIGTERM else end.code) from None
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _set_environment(address: str | None) -> None:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    if address is None:
        os.environ.pop("RAY_ADDRESS", None)
        # Workers are told of the driver's folders, not of its sys.path.
        paths = [str(ROOT), os.environ.get("PYTHONPATH")]
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        os.environ.update(_ALONE, RAY_AUTH_TOKEN=secrets.token_hex(32))


def _short_folder() -> str:
    """A new folder for Ray's sockets and logs, whose own path is short enough for them. Raises DemoBertError."""
    for place in (tempfile.gettempdir(), "/tmp"):
        if len(os.fsencode(place)) + len("/ray-12345678") <= _LONGEST_FOLDER:
            try:
                return tempfile.mkdtemp(prefix="ray-", dir=place)
            except OSError as error:
                reason = error.strerror
                continue
        reason = f"its path is longer than {_LONGEST_FOLDER} bytes"
    raise DemoBertError(f"Ray needs a folder for its sockets, and none can be made in {place}: {reason}")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what Ray prints off both streams, its libraries' and processes' lines, too. sys.stderr goes on to be shown."""
    streams = sys.stdout, sys.stderr
    for stream in streams:
        stream.flush()
    saved = [os.dup(number) for number in (1, 2)]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    shown = os.fdopen(os.dup(saved[1]), "w", buffering=1, encoding=sys.stderr.encoding, errors="replace")
    try:
        for number in (1, 2):
            os.dup2(nowhere, number)
        sys.stderr = shown
        for name in ("ray", "ray.data"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for stream in (sys.stdout, shown):
            with contextlib.suppress(OSError):
                stream.flush()
        for number, handle in zip((1, 2), saved):
            os.dup2(handle, number)
        sys.stdout, sys.stderr = streams
        with contextlib.suppress(OSError):
            shown.close()
        for handle in (*saved, nowhere):
            os.close(handle)


@contextlib.contextmanager
def no_orphans() -> Iterator[None]:
    """Processes that Ray's own processes have started end with it: this one becomes their parent, and sees them end."""
    is_parent = _adopt(True)
    try:
        yield
    finally:
        if is_parent:
            _end_children(_PATIENCE)
            _adopt(False)


def _adopt(orphans: bool) -> bool:
    """Whether the system makes this process the parent of its descendants whose parents end (Linux's subreaper)."""
    try:
        return ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, int(orphans), 0, 0, 0) == 0
    except (OSError, AttributeError):
        return False


def _end_children(seconds: float) -> None:
    """Wait so long for all children, then kill those that are left."""
    end = time.monotonic() + seconds
    with contextlib.suppress(ChildProcessError):  # none is left
        while True:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                if time.monotonic() > end:
                    for child in _children():
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(child, signal.SIGKILL)
                time.sleep(0.02)


def _children() -> list[int]:
    found = []
    for process in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError, ValueError):
            status = Path("/proc", process, "stat").read_text(errors="replace")
            if int(status.rpartition(")")[2].split()[1]) == os.getpid():
                found.append(int(process))
    return found


def shares(engines: int | None, cores: int | None, machines: list[int]) -> tuple[int, int]:
    """(engines, cores of each) on machines of so many cores, as far as they are not given. Raises UsageError."""
    largest = max(machines, default=0)
    if cores is None and engines is None:
        cores = max(1, min(2, largest))
    elif cores is None:
        fits = (size for size in range(largest, 0, -1) if _room(machines, size) >= engines)
        cores = next(fits, 1)
    room = _room(machines, cores)
    if not room or (engines or 0) > room:
        there = " + ".join(map(str, machines)) or "0"
        raise UsageError(f"{engines or 1} engines of {cores} cores each are more than the {there} cores that there are")
    return engines or room, cores


def _room(machines: list[int], size: int) -> int:
    return sum(count // size for count in machines)
