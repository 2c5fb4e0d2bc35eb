"""A page on this machine answers its own questions and no one else's."""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from intarsia.core.errors import ConfigError, DataError
from intarsia.reports.local_page import LARGEST, LocalPage, running
from intarsia.reports.page import live
from intarsia.reports.report import Report


def _answer(request: dict[str, Any]) -> Any:
    if request.get("query") == "bad":
        raise DataError("query", got="bad", want="good", fix="Ask well.")
    if request.get("query") == "broken":
        raise RuntimeError("private detail")
    return {"echo": request}


@pytest.fixture(scope="module")
def place() -> Iterator[tuple[str, int]]:
    page = LocalPage(live(Report("A <b> & c", ()), "search"), {"/ask": _answer})
    with running(page):
        yield "127.0.0.1", page.server.server_port


def _ask(
    place: tuple[str, int], body: str | bytes = "{}", path: str = "/ask", **headers: str
) -> tuple[int, Any]:
    link = http.client.HTTPConnection(*place, timeout=20)
    sent = {"Content-Type": "application/json"} | {
        n.replace("_", "-"): v for n, v in headers.items()
    }
    link.request("POST", path, body, sent)
    answer = link.getresponse()
    record = json.loads(answer.read())
    link.close()
    return answer.status, record


def test_a_question_is_answered(place: tuple[str, int]) -> None:
    assert _ask(place, '{"query": "é"}'.encode()) == (200, {"echo": {"query": "é"}})


@pytest.mark.parametrize(
    ("status", "sent"),
    [
        (400, {"body": "["}),
        (400, {"body": "[1]"}),
        (400, {"body": "[" * 5000}),
        (400, {"body": '{"query": "bad"}'}),
        (403, {"Host": "evil.example"}),
        (404, {"path": "/other"}),
        (415, {"Content_Type": "text/plain"}),  # what a form of another site may send
        (500, {"body": '{"query": "broken"}'}),
    ],
    ids=["json", "list", "deep", "ours", "host", "path", "form", "fault"],
)
def test_what_cannot_be_answered_says_why(
    place: tuple[str, int], status: int, sent: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    got, answer = _ask(place, **sent)  # pyright: ignore
    assert got == status and answer["error"].keys() == {"what", "got", "want", "fix"}
    assert "private" not in json.dumps(answer)
    capsys.readouterr()


def test_a_question_has_a_largest_size(place: tuple[str, int]) -> None:
    link = http.client.HTTPConnection(*place, timeout=20)
    link.putrequest("POST", "/ask")
    link.putheader("Content-Type", "application/json")
    link.putheader("Content-Length", str(LARGEST + 1))
    link.endheaders()
    assert link.getresponse().status == 413
    link.close()


def test_the_page_is_one_file_and_its_script_the_only_one(place: tuple[str, int]) -> None:
    link = http.client.HTTPConnection(*place, timeout=20)
    link.request("GET", "/")
    answer = link.getresponse()
    text = answer.read().decode()
    link.request("GET", "/../secret")
    assert answer.status == 200 and link.getresponse().status == 404
    link.close()
    assert "A &lt;b&gt; &amp; c" in text and "{{" not in text
    assert not re.findall(r'(?:src|href)="(?!#)', text) and text.count("<script>") == 1
    assert "default-src 'none'" in text and "connect-src 'self'" in text


def test_a_port_that_is_taken_is_refused(place: tuple[str, int]) -> None:
    for port in (place[1], 70_000):
        with pytest.raises(ConfigError, match=f"port {port}"):
            LocalPage("", {}, port=port)
