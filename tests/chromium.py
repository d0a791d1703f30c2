"""Headless Chromium, told what to do over a pipe by the DevTools protocol: no package is needed for that."""

import contextlib
import fcntl
import itertools
import json
import os
import shutil
import subprocess
import tempfile
import time

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

#: Seconds that a page gets for anything.
PATIENCE = 120


def program() -> str | None:
    """Chromium's program; None: there is none here."""
    return next(filter(None, map(shutil.which, NAMES)), None)


def _pipe() -> list[int]:
    """A pipe whose ends have numbers from 10 on: none is in the way of another's 3 or 4."""
    ends = []
    for handle in os.pipe():
        ends.append(fcntl.fcntl(handle, fcntl.F_DUPFD, 10))
        os.close(handle)
    return ends


class Page:
    """One page of a browser."""

    def __init__(self, folder: str):
        # Chromium reads commands from its file 3 and writes replies to its file 4, each ended by a zero byte.
        read_commands, self._commands = _pipe()
        self._replies, write_replies = _pipe()
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        flags += ["--remote-debugging-pipe", f"--user-data-dir={folder}", "--window-size=900,1000", "about:blank"]
        place = f'exec 3<&{read_commands} 4>&{write_replies} {read_commands}<&- {write_replies}>&-; exec "$@"'
        self._process = subprocess.Popen(
            ["bash", "-c", place, "bash", program(), *flags],
            pass_fds=(read_commands, write_replies),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(read_commands)
        os.close(write_replies)
        self._numbers, self._rest = itertools.count(1), b""
        self.events: list[dict] = []
        targets = self._call("Target.getTargets")["targetInfos"]
        (target,) = (one["targetId"] for one in targets if one["type"] == "page")
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._send({"id": 0, "method": "Browser.close"})
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._commands)
        os.close(self._replies)

    def call(self, method: str, **parameters) -> dict:
        return self._call(method, self._session, **parameters)

    def _call(self, method: str, session: str | None = None, **parameters) -> dict:
        number = next(self._numbers)
        self._send({"id": number, "method": method, "params": parameters} | ({"sessionId": session} if session else {}))
        while True:
            message = self._receive()
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]
            self.events.append(message)

    def _send(self, message: dict) -> None:
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._commands, data) :]

    def _receive(self) -> dict:
        while b"\0" not in self._rest:
            data = os.read(self._replies, 1 << 16)
            assert data, "Chromium ended"
            self._rest += data
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        self.wait_for("document.readyState === 'complete' && location.href !== 'about:blank'")

    def run(self, script: str):
        """The value of a JavaScript expression on the page."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait_for(self, condition: str) -> None:
        end = time.monotonic() + PATIENCE
        while not self.run(condition):
            assert time.monotonic() < end, f"{condition}: {self.run('document.body.innerText')}"
            time.sleep(0.05)

    def type(self, selector: str, text: str) -> None:
        """As a user who pastes it into an empty field."""
        self.run(
            f"{{ const field = document.querySelector({json.dumps(selector)}); field.value = ''; field.focus(); }}"
        )
        self.call("Input.insertText", text=text)

    def click(self, selector: str) -> None:
        """With the mouse, in the middle of it."""
        where = f"document.querySelector({json.dumps(selector)})"
        self.run(f"{where}.scrollIntoView({{block: 'center'}})")
        x, y = self.run(
            f"(({{x, y, width, height}}) => [x + width / 2, y + height / 2])({where}.getBoundingClientRect())"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def faults(self) -> list[str]:
        """What the page has complained of: exceptions, errors, what its policy has blocked."""
        self.run("1")
        found = [event["params"] for event in self.events if event.get("method") in _COMPLAINTS]
        return [
            json.dumps(params)[:500] for params in found if params.get("entry", {}).get("level", "error") == "error"
        ]


_COMPLAINTS = ("Runtime.exceptionThrown", "Log.entryAdded")


@contextlib.contextmanager
def page():
    """A page of a browser of its own, until the block ends."""
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as folder:
        opened = Page(folder)
        try:
            yield opened
        finally:
            opened.close()
