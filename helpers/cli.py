"""What the command lines share: argument groups, notes on stderr, errors → one line and an exit code."""

import argparse
import contextlib
import errno
import os
import signal
import sys
import traceback

from helpers.errors import ERROR_LENGTH, DemoBertError, harmless, is_short_of_memory, not_installed, one_line


class Parser(argparse.ArgumentParser):
    """argparse with one-line errors, defaults in the help, and no abbreviated flags."""

    def __init__(self, description: str):
        super().__init__(description=description, formatter_class=_HelpFormatter, allow_abbrev=False)

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {one_line(message)} (-h explains the flags)\n")

    def _print_message(self, message, file=None):
        # argparse's own passes over a stream that can't be written, and the script would end well.
        (file or sys.stderr).write(message)


class _HelpFormatter(argparse.HelpFormatter):
    """Appends each flag's default to its help text, where there is one to speak of."""

    def _get_help_string(self, action):
        silent = action.default in (None, False, argparse.SUPPRESS) or "default" in action.help
        return action.help if silent else f"{action.help} (default: %(default)s)"


def _number(kind, wanted: str, accept):
    """An argparse type: a number of `kind` that `accept` takes; `wanted` says which."""

    def read(text: str):
        try:
            value = kind(text)
        except (ValueError, OverflowError):
            value = None
        if value is None or not accept(value):
            raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}")
        return value

    return read


positive_int = _number(int, "a whole number of at least 1", lambda value: value >= 1)
non_negative_int = _number(int, "a whole number of at least 0", lambda value: value >= 0)
seconds = _number(float, "a number of seconds from 0 to 86400", lambda value: 0 <= value <= 86400)
finite_float = _number(float, "a number", lambda value: abs(value) < float("inf"))
positive_float = _number(float, "a number over 0", lambda value: 0 < value < float("inf"))
share = _number(float, "a number from 0 to 1", lambda value: 0 <= value <= 1)


def add_verbose(parser: Parser) -> None:
    parser.add_argument("--verbose", action="store_true", help="detailed log, and the traceback of an error")


def add_engine(parser: Parser) -> None:
    parser.add_argument("-e", "--engine", required=True, help="engine file, written by builder.py")


def add_trust(group) -> None:
    """Flags of those who load the engine; see `trust_of`."""
    trust = "load an engine that has no card beside it: loading an engine runs what is in it"
    group.add_argument("--trust-engine", action="store_true", help=trust)
    config = "folder of the model's configuration, for such an engine where it does not tell the sizes of its tables"
    group.add_argument("-c", "--config-dir", metavar="DIR", help=config)


def trust_of(args) -> dict:
    """What `load_engine` and `Answerer.open` are to know of an engine without its card."""
    return {"trust_engine": args.trust_engine, "config_dir": args.config_dir}


def add_vocabulary(group, default: str = "the tokenizer's files of the config folder") -> None:
    text = f"vocab.txt, tokenizer.json or a folder with the tokenizer's files (default: {default})"
    group.add_argument("-v", "--vocab-file", metavar="FILE", help=text)


def add_benchmark_arguments(parser: Parser) -> None:
    """perf.py's flags but -e; shared with perf_varseqlen.py."""
    number = {"type": positive_int, "metavar": "N"}
    sizes = "batch size; repeat for more (default: 1)"
    parser.add_argument("-b", "--batch-size", **number, action="append", help=sizes)
    length = "sequence length in tokens (default: 128, or the engine's longest if that is shorter)"
    parser.add_argument("-s", "--sequence-length", **number, help=length)
    parser.add_argument("-i", "--iterations", **number, default=200, help="runs to time")
    for *flags, kind, default, letter, text in (
        ("-w", "--warm-up-runs", non_negative_int, 10, "N", "runs before that"),
        ("-d", "--duration", seconds, 0.0, "S", "go on for at least so many seconds"),
        ("-r", "--random-seed", non_negative_int, 12345, "N", "seed of the random inputs"),
    ):
        parser.add_argument(*flags, type=kind, default=default, metavar=letter, help=text)
    parser.add_argument("--json", metavar="FILE", help="write the figures as JSON")
    parser.add_argument("--plot", metavar="FILE.png", help="plot the latency percentiles against the batch size")


def note(message: str) -> None:
    """A line for people, on stderr; stdout holds results only. Where stderr can't be written, nobody reads it.

    Names of files may be in it, which can hold what would drive a terminal.
    """
    with contextlib.suppress(OSError):
        print("\n".join(map(harmless, message.split("\n"))), file=sys.stderr, flush=True)


def run(main) -> None:
    """Run `main(arguments)` as a script; this is where a process's end is decided.

    One line and an exit code for what the user can mend, 130 for Ctrl-C, 143 and 129 for SIGTERM and SIGHUP, for which
    files that are being written are removed first. A traceback is a bug of ours.
    """
    arguments = sys.argv[1:]
    program = os.path.basename(sys.argv[0])
    _open_standard_streams()
    for name in ("SIGTERM", "SIGHUP"):
        if number := getattr(signal, name, None):
            if signal.getsignal(number) is signal.SIG_DFL:  # nohup's stays ignored
                signal.signal(number, _end_by_signal)
    try:
        code = _code_of(main, arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:  # the reader of a pipe has gone: nobody is left to be told
        code = 1
    except Exception as error:
        line = _line_of(error)
        if line is None:
            raise
        if "--verbose" in arguments:
            traceback.print_exc()
        note(f"{program}: error: {line}")
        code = getattr(error, "exit_code", 1)
    _give_up_streams()
    sys.exit(code or 0)


def _code_of(main, arguments: list[str]) -> int | None:
    try:
        return main(arguments)
    except SystemExit as end:  # argparse's, after the help or an error; a signal's
        return end.code


def _open_standard_streams() -> None:
    """Give those that are closed a place: else the next file that is opened would be one of them.

    Nothing is read from it; what is written to stdout fails there as it should, what is written to stderr is lost.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            handle = os.open(os.devnull, os.O_WRONLY if name == "stderr" else os.O_RDONLY)
            if handle != number:
                os.dup2(handle, number)
                os.close(handle)
            setattr(sys, name, open(number, "r" if name == "stdin" else "w", closefd=False))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):  # a terminal that can't show a letter is no reason to end
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def _end_by_signal(number, frame) -> None:
    signal.signal(number, signal.SIG_DFL)  # a second one ends it at once
    raise SystemExit(128 + number)


def _give_up_streams() -> None:
    """Python would try again, at its end, to write what could not be written, and say so in many lines."""
    for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
        try:
            stream.flush()
        except (OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)


def _line_of(error: Exception) -> str | None:
    """What the user is told of an error; None: it is a bug of ours."""
    if isinstance(error, DemoBertError):
        return one_line(error, ERROR_LENGTH)
    if isinstance(error, ModuleNotFoundError):
        return not_installed(error.name)
    if is_short_of_memory(error):
        return "not enough memory for this model, batch size and sequence length"
    if isinstance(error, ImportError):
        return one_line(f"a package can't be loaded ({error}): install it again", ERROR_LENGTH)
    if isinstance(error, OSError):
        # Files are read and written by functions that say what they are: this is a stream, or a path that is odd.
        stream = "stdin can't be read" if error.errno == errno.EISDIR else "stdout can't be written"
        if error.errno == errno.ENOENT and error.filename is None:  # os.getcwd's
            stream = "the folder that this runs in is gone"
        what = stream if error.filename is None else f"can't use {error.filename}"
        return one_line(f"{what}: {error.strerror or error}", ERROR_LENGTH)
    return None
