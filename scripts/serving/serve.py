"""What scripts/serve.sh runs: an engine, or an exported repository, behind Triton's server on this machine.

Standard library only, as everything that this process imports: the server and the export are processes of their own.
"""

import argparse
import contextlib
import ipaddress
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":  # the process's own run, whose path begins with this file's folder
    sys.path[0] = str(ROOT)

from helpers import cli
from helpers.errors import DemoBertError, UsageError
from helpers.files import require_file
from scripts.serving import tritonserver
from scripts.serving.contents import Contents, read_contents
from scripts.serving.export_flags import add_export_arguments, answer_options, export_arguments
from scripts.serving.page_server import PageServer
from scripts.serving.supervisor import Supervisor
from scripts.serving.tritonserver import Place

#: The engine that quickstart.sh builds.
_ENGINE = ROOT / "engines" / "bert_mini_384.engine"

#: Signals that ask for an end, beside Ctrl-C's.
_ENDS = (signal.SIGTERM, signal.SIGHUP)

_EXAMPLE = """curl -s http://{host}:{port}/v2/models/{model}/infer -d '{{"inputs": [
  {{"name": "passage", "shape": [1, 1], "datatype": "BYTES", "data": ["The tower was built in 1889."]}},
  {{"name": "question", "shape": [1, 1], "datatype": "BYTES", "data": ["When was the tower built?"]}}]}}'"""


def parse(arguments):
    parser = cli.Parser("Serve an engine by NVIDIA's Triton on this machine, until Ctrl-C or SIGTERM.")
    parser.prog = "serve.sh"
    what = parser.add_argument_group("what is served")
    engine = "engine file, written by builder.py (default: quickstart.sh's)"
    what.add_argument("-e", "--engine", metavar="ENGINE", help=engine)
    what.add_argument("--repository", metavar="FOLDER", help="what export_triton.py wrote, instead of an engine")
    where = parser.add_argument_group("where")
    address = "IPv4 address to listen on: whoever reaches it may ask"
    where.add_argument("--address", default="127.0.0.1", metavar="A.B.C.D", help=address)
    for flag, port, text in (
        ("--http-port", 8000, "of HTTP"),
        ("--grpc-port", 8001, "of gRPC"),
        ("--metrics-port", 8002, "of the metrics"),
        ("--page-port", 8080, "of the page"),
    ):
        where.add_argument(flag, type=_port, default=port, metavar="N", help=f"port {text}")
    where.add_argument("--page", action="store_true", help="serve a page, too, on which one can ask")
    image = "run NVIDIA's image IMAGE of tritonserver in Docker, instead of the server that pip installs"
    where.add_argument("--docker", metavar="IMAGE", help=image)
    wait = "seconds that requests in flight get when the server is stopped"
    where.add_argument("--exit-timeout", type=cli.positive_int, default=30, metavar="N", help=wait)
    where.add_argument("--dry-run", action="store_true", help="print the server's command, and do nothing")
    add_export_arguments(parser)
    # What serve.sh asks before it installs anything: whether the arguments make sense, and what they need.
    parser.add_argument("--check", action="store_true", help=argparse.SUPPRESS)
    cli.add_verbose(parser)
    return parser.parse_args(arguments)


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 65535):
        raise argparse.ArgumentTypeError(f"{text!r} is not a port from 1 to 65535")
    return int(text)


def check(args) -> None:
    """Raises UsageError for arguments that make no sense together."""
    answer_options(args)
    if args.engine and args.repository:
        raise UsageError("give an engine (-e) or a repository (--repository), not both")
    defaults = parse([])
    if args.repository and export_arguments(args) != export_arguments(defaults):
        raise UsageError("how a repository is served was said when it was exported: leave those flags out")
    try:
        if ipaddress.ip_address(args.address).version != 4:
            raise ValueError
    except ValueError:
        raise UsageError(f"--address {args.address!r} is not an IPv4 address, such as 127.0.0.1") from None
    ports = {name: getattr(args, name) for name in ("http_port", "grpc_port", "metrics_port")}
    ports |= {"page_port": args.page_port} if args.page else {}
    if len(set(ports.values())) < len(ports):
        raise UsageError(f"the ports {', '.join(map(str, ports.values()))} must differ")


def _handle(numbers, handler) -> None:
    """Set the handler of these signals, but of those that whoever started this wants ignored, as nohup does."""
    for number in numbers:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def main(arguments) -> int:
    args = parse(arguments)
    check(args)
    place = Place(args.address, args.http_port, args.grpc_port, args.metrics_port)
    if args.check:
        if not args.repository:
            _engine(args)
        if not args.dry_run:
            _check_free(place)
        print("nothing" if args.docker is not None and args.repository else "server")
        return 0
    # Before there is a server to stop: the temporary folder goes.
    _handle(_ENDS, lambda number, frame: sys.exit(128 + number))
    with tempfile.TemporaryDirectory(prefix="demobert-serve-") as folder:
        repository = Path(args.repository) if args.repository else _exported(args, Path(folder))
        contents = read_contents(repository)
        command = _command(args, place, repository.resolve(), contents, Path(folder))
        if args.dry_run:
            print(shlex.join(command.words))
            return 0
        _check_free(place)
        return _serve(args, place, contents, Supervisor(command, place, cli.note, args.verbose, args.exit_timeout))


def _engine(args) -> Path:
    """The engine to serve. Raises DemoBertError where there is none."""
    if args.engine is None and not _ENGINE.exists():
        raise DemoBertError("there is no engine yet: name one with -e, or let scripts/quickstart.sh build one")
    return require_file(args.engine or _ENGINE, "engine")


def _exported(args, folder: Path) -> Path:
    """The engine as a repository in `folder`, by export_triton.py in a process of its own."""
    repository = folder / "repository"
    export = [sys.executable, ROOT / "scripts" / "export_triton.py", "-e", _engine(args), "-o", repository]
    result = subprocess.run([*map(str, export), *export_arguments(args)], stdout=subprocess.DEVNULL)
    if result.returncode:
        raise DemoBertError("the engine could not be exported: the line before this one says why")
    return repository


def _command(args, place: Place, repository: Path, contents: Contents, folder: Path) -> tritonserver.Command:
    if args.docker is not None:
        return tritonserver.container(args.docker, place, repository, contents, args.exit_timeout)
    if contents.engine:
        raise DemoBertError(
            f"{contents.engine} is for Triton's TensorRT backend, which only NVIDIA's image has: --docker IMAGE"
        )
    return tritonserver.installed(place, repository, folder, args.exit_timeout)


def _check_free(place: Place) -> None:
    """Raises DemoBertError for a port that is in use: Triton would say so after it has loaded everything."""
    for flag, port in place.ports.items():
        with socket.socket() as listener, _named(flag, place.address, port):
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((place.address, port))


@contextlib.contextmanager
def _named(flag: str, address: str, port: int):
    try:
        yield
    except OSError as error:
        raise DemoBertError(f"{address}:{port} can't be listened on: {error.strerror}; name another {flag}") from error


def _serve(args, place: Place, contents: Contents, supervisor: Supervisor) -> int:
    """Until a signal ends it; its exit code."""
    received = []

    def stop(number, frame):
        received.append(number)
        if len(received) == 1:
            cli.note("stopping: what is in flight is finished first; once more ends it at once")
            supervisor.stop_asked.set()
        else:
            supervisor.hurry.set()

    _handle((*_ENDS, signal.SIGINT), stop)
    page = None
    host = "127.0.0.1" if args.address == "0.0.0.0" else args.address
    model = contents.question_answering
    if args.page:
        page = PageServer(args.address, args.page_port, (host, place.http_port), model)
        page.start()
    try:
        cli.note("Starting the server")
        supervisor.run(lambda: _say_where(args, place, model, host))
    finally:
        if page:
            page.close()
    return 130 if received[:1] == [signal.SIGINT] else 0


def _say_where(args, place: Place, model: str, host: str) -> None:
    print(f"HTTP:    http://{host}:{place.http_port}/v2/models/{model}")
    print(f"gRPC:    {host}:{place.grpc_port}")
    print(f"Metrics: http://{host}:{place.metrics_port}/metrics")
    if args.page:
        other = "" if model == "bert_qa" else f"?model={model}"
        print(f"Page:    http://{host}:{args.page_port}/{other}")
    if not ipaddress.ip_address(args.address).is_loopback:
        print(f"It listens on {args.address}: whoever reaches that may ask it")
    print("Ask it:\n" + _EXAMPLE.format(host=host, port=place.http_port, model=model), flush=True)


if __name__ == "__main__":
    sys.argv[0] = "serve.sh"  # the name that its errors have
    cli.run(main)
