"""A web server on the loopback address that can be slow of speech: for the tests of the download scripts."""

import contextlib
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Site:
    """What the server has, and what it was asked for.

    pages       path → content; a path that is not here gets a 404
    breaks      how many of the next answers end in the middle of what they should have sent
    errors      HTTP statuses of the next answers, before any page is given
    ranges      whether it can begin in the middle
    requests    (path, Range header or None), in order
    """

    pages: dict = field(default_factory=dict)
    breaks: int = 0
    errors: list = field(default_factory=list)
    ranges: bool = True
    requests: list = field(default_factory=list)
    url: str = ""


@contextlib.contextmanager
def serve(site: Site):
    """Serve `site`, whose `url` is set, until the block ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(site))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    site.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(site: Site):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked = self.headers.get("Range")
            site.requests.append((self.path, asked))
            content = site.pages.get(self.path)
            if site.errors:
                self.send_error(site.errors.pop(0))
                return
            if content is None:
                self.send_error(404)
                return
            first = int(asked.removeprefix("bytes=").rstrip("-")) if asked and site.ranges else 0
            if first >= len(content):
                self.send_error(416)
                return
            part = content[first:]
            self.send_response(206 if first else 200)
            self.send_header("Content-Length", str(len(part)))
            if first:
                self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
            self.end_headers()
            if site.breaks:
                site.breaks -= 1
                part = part[: len(part) // 2]
            self.wfile.write(part)  # the connection closes after each answer: HTTP/1.0

        def log_message(self, *arguments):
            pass

    return Handler
