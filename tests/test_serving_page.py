"""The page of scripts/serve.sh --page: what its server passes on and refuses; and, in Chromium, what one sees of it."""

import base64
import http.client
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from scripts.serving import page_server
from scripts.serving.page_server import PageServer
from tests import chromium, triton_server

PATH = "/v2/models/bert_qa/infer"


class Triton(BaseHTTPRequestHandler):
    """In Triton's place: replies what `server.reply(passage, question)` says, a status and a reply."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, dict(self.headers), body))
        texts = {tensor["name"]: tensor["data"][0] for tensor in body["inputs"]}
        status, reply = self.server.reply(**texts)
        data = json.dumps(reply).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments):
        pass


def answers(passage: str, *texts: str, shares=(0.7, 0.2, 0.1)):
    """A reply as Triton gives it, the first of `texts` being the answer."""
    found = []
    for text, share in zip(texts, shares):
        start = passage.index(text)
        found.append({"text": text, "probability": share, "start_char": start, "end_char": start + len(text)})
    best = found[0]
    values = {"answer": best["text"], "probability": best["probability"], "start": best["start_char"]}
    values |= {"end": best["end_char"], "n_best": json.dumps(found)}
    return 200, {"outputs": [{"name": name, "shape": [1, 1], "data": [value]} for name, value in values.items()]}


@pytest.fixture
def triton():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Triton)
    server.asked, server.reply = [], lambda passage, question: answers(passage, "Ann Roe", "1790", "The mill")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def site(triton):
    server = PageServer("127.0.0.1", 0, triton.server_address, "bert_qa")
    server.start()
    yield server
    server.close()


JSON = {"Content-Type": "application/json"}
QUESTION = triton_server.body_of("The mill was built by Ann Roe in 1790.", "Who?")


def request(site, method: str, path: str, body: bytes | None = None, headers: dict | None = None):
    """(status, headers, body)."""
    connection = http.client.HTTPConnection("127.0.0.1", site.server_port, timeout=30)
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return response.status, dict(response.getheaders()), response.read()
    finally:
        connection.close()


# Its server


def test_the_page_is_handed_out_with_a_policy_that_runs_nothing_else(site):
    status, headers, body = request(site, "GET", "/")
    assert status == 200 and body == page_server.PAGE.read_bytes()
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    policy = dict(part.strip().split(" ", 1) for part in headers["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == "'none'" and "unsafe" not in headers["Content-Security-Policy"]
    assert policy["connect-src"] == "'self'" and policy["frame-ancestors"] == "'none'"
    assert all(len(base64.b64decode(policy[kind].split("-")[1][:-1])) == 32 for kind in ("script-src", "style-src"))
    assert headers["X-Content-Type-Options"] == "nosniff" and headers["Cache-Control"] == "no-store"


def test_the_page_loads_nothing_from_elsewhere_and_inserts_no_html():
    text = page_server.PAGE.read_text(encoding="utf-8")
    assert "//" not in text.replace("// ", "") and "http" not in text.replace("http-equiv", "")
    assert not [
        word for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(") if word in text
    ]


def test_a_question_is_passed_on(site, triton):
    status, _, body = request(site, "POST", PATH, QUESTION, JSON)
    assert status == 200 and b"Ann Roe" in body
    ((path, _, asked),) = triton.asked
    assert path == PATH and asked == json.loads(QUESTION)


def test_so_is_a_refusal(site, triton):
    triton.reply = lambda passage, question: (400, {"error": "the passage is empty"})
    assert request(site, "POST", PATH, QUESTION, JSON)[::2] == (400, b'{"error": "the passage is empty"}')


@pytest.mark.parametrize(
    "method, path, headers, status",
    [
        ("POST", "/v2/models/other/infer", JSON, 404),
        ("POST", "/v2/repository/index", JSON, 404),
        ("POST", f"{PATH}/../../../repository/index", JSON, 404),
        ("POST", f"http://127.0.0.1:1{PATH}", JSON, 404),
        ("GET", "/v2/health/ready", {}, 404),
        ("GET", "/../serve.py", {}, 404),
        ("GET", "/page_server.py", {}, 404),
        ("PUT", PATH, JSON, 501),
        ("OPTIONS", PATH, {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}, 501),
        # What other pages may send without being asked whether they may:
        ("POST", PATH, {"Content-Type": "text/plain"}, 403),
        ("POST", PATH, {}, 403),
        ("POST", PATH, JSON | {"Origin": "https://evil.example"}, 403),
        ("POST", PATH, JSON | {"Origin": "null"}, 403),
        # A name of others that leads here:
        ("POST", PATH, JSON | {"Host": "evil.example"}, 403),
        ("GET", "/", {"Host": "evil.example:8080"}, 403),
    ],
)
def test_nothing_else_is_passed_on(site, triton, method, path, headers, status):
    got, _, body = request(site, method, path, QUESTION if method != "GET" else None, headers)
    assert got == status and triton.asked == []
    if status != 501:
        assert set(json.loads(body)) == {"error"}


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "localhost:80", "192.0.2.7:8080", "[::1]:9"])
def test_addresses_and_localhost_are_its_own_names(site, host):
    assert request(site, "POST", PATH, QUESTION, JSON | {"Host": host, "Origin": f"http://{host}"})[0] == 200


@pytest.mark.parametrize("length, status", [("-1", 411), ("x", 411), ("9" * 30, 411), (str((16 << 20) + 1), 413)])
def test_a_request_says_how_long_it_is(site, triton, length, status):
    assert request(site, "POST", PATH, None, JSON | {"Content-Length": length})[0] == status and triton.asked == []


def test_a_server_that_is_away_is_said(site, triton):
    triton.shutdown()
    triton.server_close()
    status, _, body = request(site, "POST", PATH, QUESTION, JSON)
    assert status == 503 and json.loads(body) == {"error": "the server does not answer just now; ask again"}


# In Chromium

in_chromium = pytest.mark.skipif(chromium.program() is None, reason="there is no Chromium (apt-get install chromium)")


@pytest.fixture(scope="module")
def browser():
    with chromium.page() as page:
        yield page


def ask(page, site, passage: str, question: str) -> None:
    page.events.clear()
    page.open(f"http://127.0.0.1:{site.server_port}/")
    page.type("#passage", passage)
    page.type("#question", question)
    page.click("#ask")
    page.wait_for(
        "!document.getElementById('ask').disabled && document.getElementById('said').textContent !== 'Asking …'"
    )


SHOWN = """(() => {
  const shown = document.getElementById('shown'), mark = shown.querySelector('mark');
  return {text: shown.textContent, mark: mark && mark.textContent, before: mark && mark.previousSibling.textContent,
          tags: [...document.querySelectorAll('#shown *, #answers *')].map((one) => one.tagName)};
})()"""


@pytest.mark.sampled(0.4)
@in_chromium
@pytest.mark.parametrize("before", ["", "😀👩‍👩‍👧 ", "é日本 \U0001f469\U0001f3fd ", "\u202e right to left \u202c"])
def test_the_answer_is_marked_in_its_passage(browser, site, triton, before):
    """Whatever stands before it: places count code points, JavaScript's strings count UTF-16."""
    passage = f"{before}The mill was built by Ann Roe in 1790.\nIt burned."
    ask(browser, site, passage, "Who built it?")
    shown = browser.run(SHOWN)
    assert shown["text"] == passage and shown["mark"] == "Ann Roe"
    assert shown["before"] == f"{before}The mill was built by "
    ((_, _, asked),) = triton.asked
    assert asked["parameters"] == {"top_k": 5} and asked["inputs"][0]["data"] == [passage]
    assert asked["inputs"][1]["data"] == ["Who built it?"] and browser.faults() == []


@in_chromium
def test_half_a_character_moves_no_place(browser, site, triton):
    """Half a surrogate pair is no Unicode: it can't be sent."""
    ask(browser, site, "The mill was built by Ann Roe in 1790.", "Who?")
    browser.run(
        "document.getElementById('passage').value = '\\ud83d\\ude00 \\ud83d by Ann Roe \\ude00 in 1790. The mill.'"
    )
    browser.click("#ask")
    browser.wait_for("document.getElementById('shown').textContent.includes('1790. The mill')")
    assert triton.asked[-1][2]["inputs"][0]["data"] == ["\U0001f600 \ufffd by Ann Roe \ufffd in 1790. The mill."]
    shown = browser.run(SHOWN)
    assert (shown["mark"], shown["before"]) == ("Ann Roe", "\U0001f600 \ufffd by ")


@in_chromium
def test_runners_up_are_bars_and_can_be_marked(browser, site):
    ask(browser, site, "The mill was built by Ann Roe in 1790.", "Who built it?")
    shares = browser.run("[...document.querySelectorAll('.bar')].map((bar) => bar.style.width)")
    assert shares == ["70%", "20%", "10%"]
    widths = browser.run("[...document.querySelectorAll('.bar')].map((bar) => bar.getBoundingClientRect().width)")
    assert widths[0] > 3 * widths[1] > 5 * widths[2] > 0
    assert browser.run("[...document.querySelectorAll('.text')].map((one) => one.innerText)") == [
        "Ann Roe\n70.0 %",
        "1790\n20.0 %",
        "The mill\n10.0 %",
    ]
    browser.click("#answers li:nth-child(2) button")
    assert browser.run(SHOWN)["mark"] == "1790"
    assert browser.run("document.querySelector('[aria-pressed=true]').innerText").startswith("1790")


@in_chromium
def test_text_is_never_html(browser, site, triton):
    """Neither the passage, nor the question, nor what the server answers."""
    evil = "<img src=x onerror=\"document.title='evil'\"><script>document.title='evil'</script>"
    triton.reply = lambda passage, question: answers(passage, evil, "Ann Roe")
    ask(browser, site, f"The mill {evil} was built by Ann Roe.", evil)
    shown = browser.run(SHOWN)
    assert shown["mark"] == evil and set(shown["tags"]) == {"MARK", "LI", "BUTTON", "SPAN"}
    triton.reply = lambda passage, question: (400, {"error": evil})
    ask(browser, site, "The mill", "Who?")
    assert browser.run("document.getElementById('said').textContent") == evil
    assert browser.run("document.getElementById('said').childElementCount") == 0
    assert browser.run("document.title") == "demoBERT"


@in_chromium
def test_refusals_and_no_answer_are_said(browser, site, triton):
    triton.reply = lambda passage, question: (503, {"error": "Exceeds maximum queue size"})
    ask(browser, site, "The mill", "Who?")
    assert browser.run("document.getElementById('said').className") == "error"
    assert browser.run("document.getElementById('said').textContent") == "Exceeds maximum queue size"
    assert browser.run("document.getElementById('shown').hidden")
    nothing = {"answer": "", "probability": 0.9, "start": 0, "end": 0}
    best = [{"text": "", "probability": 0.9, "start_char": 0, "end_char": 0}]
    outputs = [{"name": name, "data": [value]} for name, value in (nothing | {"n_best": json.dumps(best)}).items()]
    triton.reply = lambda passage, question: (200, {"outputs": outputs})
    ask(browser, site, "The mill", "Who?")
    assert browser.run("document.getElementById('said').textContent").startswith("(no answer)")
    assert browser.run(SHOWN)["mark"] is None and browser.run(SHOWN)["text"] == "The mill"


@in_chromium
@pytest.mark.xdist_group("triton")
def test_a_question_that_is_typed_finds_its_mark_by_the_real_server(browser, bundled_engine):
    if (reason := triton_server.missing()) is not None:
        pytest.skip(reason)
    passage = "😀😀😀 The mill was built by Ann Roe in 1790. It burned in 1901."
    with triton_server.serving("-e", bundled_engine, page=True) as server:

        class Site:
            server_port = server.page

        ask(browser, Site, passage, "When did the mill burn?")
        shown = browser.run(SHOWN)
        assert "1901" in shown["mark"] and shown["text"] == passage
        assert passage.startswith(shown["before"] + shown["mark"])
        assert browser.run("document.querySelectorAll('#answers li').length") == 5
        assert browser.faults() == []
        ask(browser, Site, passage, " ")
        assert browser.run("document.getElementById('said').textContent") == "the question is empty"
