"""A page on this machine: one HTML document, and questions of it that Python answers.

    with LocalPage(live(Report("Search docs", ()), "search"), {"/search": answer}) as page:
        print(page.url); page.run()                  # until Ctrl-C

`page.live` writes the document. An answer takes the JSON object that the page sent and returns what
JSON can hold.

Only this machine is listened to. A question must name this server as its host and be JSON, which a
page from elsewhere can neither send nor read; a policy lets the page run its one script alone.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from ..core.errors import ConfigError, IntarsiaError
from ..core.files import parse_json

HOST = "127.0.0.1"
LARGEST = 1 << 20  # bytes of a question
PATIENCE = 30.0  # seconds for a question to arrive
Answer = Callable[[dict[str, Any]], Any]


class LocalPage:
    """A server of one page on 127.0.0.1.  port: 0 = any that is free.

    answers: path -> what answers a question that is sent there.
    Raises: ConfigError where the port is taken.
    """

    def __init__(self, page: str, answers: Mapping[str, Answer], *, port: int = 0) -> None:
        # the server makes a handler for each request, so that it carries its data as a class
        handler = type("Handler", (_Handler,), {"page": page.encode(), "answers": dict(answers)})
        try:
            self.server = ThreadingHTTPServer((HOST, port), handler)
        except (OSError, OverflowError) as error:
            fix = "Choose another, or 0 for any."
            want = "a free port of this machine"
            raise ConfigError(f"port {port}", got=error, want=want, fix=fix) from error
        self.server.daemon_threads = True  # Ctrl-C does not wait for an answer

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.server.server_port}/"

    def run(self) -> None:
        """Answer until `stop`, or Ctrl-C."""
        self.server.serve_forever(poll_interval=0.1)

    def stop(self) -> None:
        """End `run`, which another thread is in."""
        self.server.shutdown()

    def __enter__(self) -> LocalPage:
        return self

    def __exit__(self, *_: object) -> None:
        self.server.server_close()


class running:
    """Context in which a thread of its own answers a page; yields the page's address."""

    def __init__(self, page: LocalPage) -> None:
        self.page = page
        self.thread = threading.Thread(target=page.run, daemon=True)

    def __enter__(self) -> str:
        self.thread.start()
        return self.page.url

    def __exit__(self, *_: object) -> None:
        self.page.stop()
        self.thread.join()
        self.page.server.server_close()


def serve_page(
    page: str,
    answers: Mapping[str, Answer],
    port: int,
    say: Callable[[str], None],
    note: Callable[[str], None],
) -> None:
    """Serve a page on this machine until the user presses Ctrl-C.

    page: the HTML text; answers, port: see `LocalPage`.
    """
    with LocalPage(page, answers, port=port) as served:
        say(f"{served.url}  (Ctrl-C stops it)")
        try:
            served.run()
        except KeyboardInterrupt:
            note("Stopped.")


class _Handler(BaseHTTPRequestHandler):
    """GET / is the page; POST asks."""

    page: bytes
    answers: Mapping[str, Answer]
    timeout = PATIENCE
    # the answer's headers do not tell which Python runs here
    server_version, sys_version = "intarsia", ""

    def do_GET(self) -> None:  # noqa: N802 (the library's name)
        """Answer a GET request: with the page, an empty icon, or an error."""
        if not self._is_ours():
            self._refuse(403, "this server's own address", "Open the address that was printed.")
        elif self.path.partition("?")[0] == "/":  # the page's script reads what follows
            self._send(200, self.page, "text/html; charset=utf-8")
        elif self.path == "/favicon.ico":
            self._send(204, b"", "image/x-icon")
        else:
            self._refuse(404, "the page, /", "Open the address that was printed.")

    def do_POST(self) -> None:  # noqa: N802
        """Answer a POST request, after its host, path, type and length were checked."""
        if not self._is_ours():
            self._refuse(403, "this server's own address", "Open the address that was printed.")
        elif self.path not in self.answers:
            self._refuse(404, f"one of {sorted(self.answers)}", "Ask there.")
        # a page of another site can send a form without asking, but no JSON
        elif self.headers.get_content_type() != "application/json":
            self._refuse(415, "application/json", "Set the content type.")
        elif not (size := self.headers.get("Content-Length", "")).isdecimal():
            self._refuse(411, "a length", "Send Content-Length.")
        elif int(size) > LARGEST:
            # the body is not read, so that nothing after it can be a request
            self.close_connection = True
            self._refuse(413, f"at most {LARGEST:,} bytes", "Ask for less.", got=f"{int(size):,}")
        else:
            self._answer(self.rfile.read(int(size)))

    def _answer(self, body: bytes) -> None:
        """Answer a POST request with a path in `answers`; errors are sent as JSON, too."""
        try:
            question = parse_json(body)
            if not isinstance(question, dict):
                raise ValueError(type(question).__name__)
        except ValueError as error:
            self._refuse(400, "one JSON object", "Send one.", got=str(error))
            return
        try:
            content, status = self.answers[self.path](question), 200
        except IntarsiaError as error:
            content, status = _error_content(error.what, error.got, error.want, error.fix), 400
        except Exception as error:  # the page says so; the terminal has the traceback
            self.log_error("%s", repr(error))
            got, fix = type(error).__name__, "See the terminal."
            content, status = _error_content("the answer", got, "none of its own errors", fix), 500
        text = json.dumps(content, ensure_ascii=False)
        self._send(status, text.encode("utf-8", "replace"), "application/json")

    def _is_ours(self) -> bool:
        """Return True if the request names this machine as its host, not another site's name."""
        # a site could give its own name this machine's address (DNS rebinding)
        address: Any = self.server.server_address
        port = address[1]
        return self.headers.get("Host") in (f"{HOST}:{port}", f"localhost:{port}")

    def _refuse(self, status: int, want: str, fix: str, got: str = "") -> None:
        content = _error_content("question", got or f"{self.command} {self.path[:80]}", want, fix)
        self._send(status, json.dumps(content).encode("utf-8", "replace"), "application/json")

    def _send(self, status: int, body: bytes, kind: str) -> None:
        """Send a response that browsers neither cache nor show inside other pages."""
        self.send_response(status)
        for name, value in (
            ("Content-Type", kind),
            ("Content-Length", str(len(body))),
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
            ("X-Frame-Options", "DENY"),
            ("Cross-Origin-Resource-Policy", "same-origin"),
        ):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: what a person searches for is no one's business."""

    def log_error(self, format: str, *args: Any) -> None:
        print(format % args, file=sys.stderr, flush=True)


def _error_content(subject: str, got: object, want: object, fix: str) -> dict[str, Any]:
    return {"error": {"what": subject, "got": str(got), "want": str(want), "fix": fix}}
