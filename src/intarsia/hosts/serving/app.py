"""transformers' application with our models: fewer routes, limits in front, counters, a page."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.middleware.trustedhost import TrustedHostMiddleware
from transformers.cli.serving.server import build_server
from transformers.cli.serving.utils import CBWorkerDeadError

from .counters import TYPE, Counters
from .gate import Gate, error_body
from .generating import Generations
from .models import ServedModel, Shelf
from .requests import handlers
from .settings import Limits

# of transformers' routes, those that load what a client names, forget what runs, or need more
LEFT_OUT = (
    *("/load_model", "/reset", "/v1/systemone", "/v1/audio/transcriptions"),
    *("/docs", "/redoc", "/openapi.json", "/docs/oauth2-redirect"),
)
PAGE = Path(__file__).with_name("page.html")
LOCAL = ("127.0.0.1", "localhost", "::1", "[::1]")


class Application:
    """An ASGI application over some models; `close` ends its threads.

    hosts: names under which the server may be asked for; () for any.
    """

    def __init__(
        self,
        models: Mapping[str, ServedModel],
        limits: Limits | None = None,
        hosts: tuple[str, ...] = LOCAL,
    ) -> None:
        self.limits = limits or Limits()
        self.shelf = Shelf(models)
        self.state = Generations(dict(models), self.limits)
        self.counters = Counters(self.shelf)
        completions, chats, responses = handlers(self.shelf, self.state, self.limits)
        unused: Any = None
        app = build_server(
            self.shelf, chats, completions, responses, unused, unused, generation_state=self.state
        )
        app.router.routes[:] = [r for r in app.router.routes if _path(r) not in LEFT_OUT]
        _errors(app)
        self._routes(app)
        self.app = app
        self.gate = Gate(app, self.limits, self.counters)
        self.whole: Any = self.gate
        if hosts:  # a name of another site that leads here would pass for this one
            self.whole = TrustedHostMiddleware(self.gate, hosts, www_redirect=False)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.whole(scope, receive, send)

    def close(self) -> None:
        """End the threads of generation."""
        self.state.shutdown()

    def _routes(self, app: FastAPI) -> None:
        text, policy = _page()

        @app.get("/", include_in_schema=False)
        def page() -> HTMLResponse:
            return HTMLResponse(text, headers={"content-security-policy": policy})

        @app.get("/metrics", include_in_schema=False)
        def metrics() -> Response:
            return Response(self.counters.text(), media_type=TYPE)


def _path(route: Any) -> str:
    return getattr(route, "path", "")


def _page() -> tuple[str, str]:
    """The page, and the policy that lets it run its own script and nothing else."""
    text = PAGE.read_text("utf-8")
    said = {
        tag: "sha256-"
        + base64.b64encode(
            hashlib.sha256(
                re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)[0].encode()
            ).digest()
        ).decode()
        for tag in ("script", "style")
    }
    policy = (
        f"default-src 'none'; connect-src 'self'; img-src data:; script-src '{said['script']}'; "
        f"style-src '{said['style']}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return text, policy


def _errors(app: FastAPI) -> None:
    """Every error as OpenAI's clients read it."""

    async def told(_: Request, error: Any) -> JSONResponse:
        status = error.status_code
        return JSONResponse(error_body(status, str(error.detail)), status)

    async def invalid(_: Request, __: Any) -> JSONResponse:
        return JSONResponse(error_body(400, "body: want a JSON object."), 400)

    async def dead(_: Request, __: Any) -> JSONResponse:
        text = "The model has stopped after an error. Restart the server; its log says why."
        return JSONResponse(error_body(503, text), 503)

    async def unknown(_: Request, __: Any) -> JSONResponse:
        return JSONResponse(error_body(500, "An error inside; the server's log says which."), 500)

    app.add_exception_handler(HTTPException, told)
    app.add_exception_handler(404, told)
    app.add_exception_handler(405, told)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(CBWorkerDeadError, dead)
    app.add_exception_handler(Exception, unknown)
