"""Ray on this machine, heard by nobody else and gone at the end; or a cluster that runs already."""

import contextlib
import logging
import os
import secrets
import shutil
import signal
import sys
import tempfile
import warnings
from collections.abc import Iterator

from helpers.errors import DemoBertError, UsageError, one_line

#: Of Ray's store of what is under way between its processes, in bytes: parts and answers have some MB.
_STORE_BYTES = 256 << 20

#: The sockets in Ray's folder have long names, and a socket's path has 107 bytes at most.
_LONGEST_FOLDER = 40

#: Settings of a Ray that this process starts. Each is read when Ray is imported or started.
_ALONE = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # the address of a machine that has no others: 127.0.0.1, on Linux, too
    "RAY_AUTH_MODE": "token",  # other users of this machine reach 127.0.0.1, and whoever may use Ray runs programs
    "RAY_prestart_worker_first_driver": "0",  # a process for each core, most of them for nothing
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


@contextlib.contextmanager
def ray_running(address: str | None, with_gpus: bool, verbose: bool) -> Iterator[list[dict]]:
    """Ray, started on this machine or, at `address`, connected to; gives its machines' resources: {"CPU": 16.0, …}.

    While it is entered, nothing but results may be printed: Ray prints to stdout, which goes to stderr where `verbose`,
    else nowhere. Raises DemoBertError.
    """
    folder = None if address else _short_folder()
    _set_environment(address, verbose)
    with contextlib.ExitStack() as stack:
        if folder is not None:
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
        stack.enter_context(_quiet(verbose))
        import ray

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


def _set_environment(address: str | None, verbose: bool) -> None:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    if not verbose:
        os.environ["RAY_BACKEND_LOG_LEVEL"] = "fatal"
    if address is None:
        os.environ.pop("RAY_ADDRESS", None)
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


class _Nowhere:
    """A stream that holds nothing."""

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        """Nothing is kept."""


@contextlib.contextmanager
def _quiet(verbose: bool) -> Iterator[None]:
    """Keep Ray from stdout, and, unless `verbose`, from stderr."""
    loggers = [logging.getLogger(name) for name in ("ray", "ray.data")]
    with contextlib.redirect_stdout(sys.stderr if verbose else _Nowhere()), warnings.catch_warnings():
        if not verbose:
            warnings.simplefilter("ignore")
            for logger in loggers:
                logger.setLevel(logging.CRITICAL)
        yield


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
