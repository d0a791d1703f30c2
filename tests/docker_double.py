"""In docker's place, and so in the server's: listens on the port that is published for HTTP, and says that it is ready.

Its first argument is a folder: what it was asked is noted there, in `asked`; what it does else is in `mode`.
"""

import http.server
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

_LINE = '{}1127 20:00:00.000000 1 x.cc:1] "{}"'
_FAILURE = (
    r"failed to load 'bert_qa' version 1: Internal: TritonModelException: the engine is damaged"
    r"\n\nAt:\n  /models/model.py(3): initialize\n"
)


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

    def log_message(self, *arguments):
        pass


def say(level: str, text: str) -> None:
    print(_LINE.format(level, text), flush=True)


def main(folder: Path, arguments: list[str]) -> int:
    with (folder / "asked").open("a") as file:
        print(os.getpid(), *arguments, sep="\0", file=file)
    mode = (folder / "mode").read_text()
    say("I", "starting")
    if mode == "fails":
        say("E", _FAILURE)
        return 1
    if mode == "no image":
        print("docker: no such image", flush=True)
        return 125
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    child = subprocess.Popen(["sleep", "1000"])
    say("W", "a warning")
    port = next(int(found[1]) for word in arguments if (found := re.fullmatch(r"--publish=.*:(\d+):8000", word)))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    if not ended.wait(0.5 if mode == "dies" else None):
        child.kill()
        os._exit(7)
    if mode == "hangs":
        say("I", "All models are stopped, unloading models")
        time.sleep(1000)
    child.kill()
    child.wait()
    return 1 if mode == "cut off" else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
