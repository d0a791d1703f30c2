"""Hands out page.html, and passes its questions on to Triton, which lets no page of another origin ask it (no CORS).

Python's own http.server, on the loopback address unless asked; it knows two paths. Standard library only.
"""

import base64
import hashlib
import http.client
import ipaddress
import json
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from helpers.errors import DemoBertError

PAGE = Path(__file__).with_name("page.html")

#: A passage and a question from a browser have no more bytes as JSON: what is larger is not read.
_MOST_BYTES = 16 << 20

#: Seconds that a connection may be silent; and that an answer may take.
_SILENCE, _PATIENCE = 30, 600


class PageServer(ThreadingHTTPServer):
    """Listens from the start; `start` serves in threads, `close` ends that. Raises DemoBertError for a port in use.

    `triton` is the (host, port) of Triton's HTTP, `model` the one that may be asked.
    """

    def handle_error(self, request, client_address):
        """Who has gone away is not told, and nobody else either."""
        if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, address: str, port: int, triton: tuple[str, int], model: str):
        self.triton = triton
        self.question_path = f"/v2/models/{model}/infer"
        self.page = PAGE.read_bytes()
        self.policy = _policy(self.page.decode("utf-8"))
        try:
            super().__init__((address, port), _Handler)
        except OSError as error:
            raise DemoBertError(f"the page can't be served on {address}:{port}: {error.strerror}") from error

    def start(self) -> None:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def close(self) -> None:
        self.shutdown()
        self.server_close()


def _policy(page: str) -> str:
    """A Content-Security-Policy by which the page's own script and style run, and nothing else."""

    def hashes(tag: str) -> str:
        parts = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.S)
        digests = (base64.b64encode(hashlib.sha256(part.encode("utf-8")).digest()).decode("ascii") for part in parts)
        return " ".join(f"'sha256-{digest}'" for digest in digests)

    return (
        f"default-src 'none'; script-src {hashes('script')}; style-src {hashes('style')}; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


class _Handler(BaseHTTPRequestHandler):
    timeout = _SILENCE
    server_version, sys_version = "demoBERT", ""

    def do_GET(self):
        if not self._is_own_host():
            self._refuse(403, "this name is not the server's")
        elif self.path.partition("?")[0] == "/":
            self._reply(200, "text/html; charset=utf-8", self.server.page)
        else:
            self._refuse(404, "there is only the page, /")

    def do_POST(self):
        if not self._is_own_host() or not self._is_own_page():
            self._refuse(403, "only the page itself may ask")
        elif self.path != self.server.question_path:
            self._refuse(404, f"there is only {self.server.question_path}")
        elif (length := self._length()) is not None:
            self._pass_on(self.rfile.read(length))

    def _is_own_host(self) -> bool:
        """Whether the request names this machine by an address: a name could be one that others let lead here."""
        host = self.headers.get("Host", "")
        name = host.rpartition(":")[0] if re.search(r":\d+$", host) else host
        try:
            return name == "localhost" or bool(ipaddress.ip_address(name.strip("[]")))
        except ValueError:
            return False

    def _is_own_page(self) -> bool:
        """Whether a page of this server asks, or a program: a browser says which page it is that asks."""
        origin = self.headers.get("Origin")
        own = origin is None or origin == f"http://{self.headers.get('Host')}"
        return own and self.headers.get_content_type() == "application/json"

    def _length(self) -> int | None:
        """Of the body; None: it was refused."""
        text = self.headers.get("Content-Length", "")
        if not re.fullmatch(r"[0-9]{1,18}", text):
            self._refuse(411, "the request does not say how long it is")
        elif int(text) > _MOST_BYTES:
            self._refuse(413, f"the request is larger than {_MOST_BYTES >> 20} MiB")
        else:
            return int(text)
        return None

    def _pass_on(self, body: bytes) -> None:
        connection = http.client.HTTPConnection(*self.server.triton, timeout=_PATIENCE)
        try:
            connection.request("POST", self.path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            status, reply = response.status, response.read()
        except (OSError, http.client.HTTPException):
            return self._refuse(503, "the server does not answer just now; ask again")
        finally:
            connection.close()
        return self._reply(status, "application/json", reply)

    def _refuse(self, status: int, why: str) -> None:
        self._reply(status, "application/json", json.dumps({"error": why}).encode("utf-8"))

    def _reply(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        for name, value in {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            "Content-Security-Policy": self.server.policy,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-store",
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        """What is asked is nobody's business."""
