"""The application: OpenAI's routes over the models of a server, counters, and a page to try it."""

from __future__ import annotations

import base64
import hashlib
import logging
import re
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route, Router

from .connections import Connections
from .counters import TYPE, Counters
from .formats import Completions, event
from .gate import RequestGate
from .generating import Generations
from .models import ServedModel, ServedModels
from .parameters import RESPONSES
from .refusals import DEAD, Refused, broken, shown
from .requests import ROUTES, RequestReader
from .responses import Responses
from .settings import Limits, current

LOG = logging.getLogger(__name__)
PAGE = Path(__file__).with_name("page.html")
LOCAL = ("127.0.0.1", "localhost", "::1")


class Application:
    """ASGI application over some models; `close` ends its threads.

    models: by the names that clients ask for.  limits: None = the defaults.
    hosts: host names that requests may be addressed to; () for any.
    """

    def __init__(
        self,
        models: Mapping[str, ServedModel],
        limits: Limits | None = None,
        hosts: tuple[str, ...] = LOCAL,
    ) -> None:
        self.limits = limits or Limits()
        self.served_models = ServedModels(models)
        self.generations = Generations(models, self.limits)
        self.reader = RequestReader(self.served_models, self.generations, self.limits)
        self.counters = Counters(self.served_models)
        self.connections = Connections(
            self.limits.connections, self.limits.arrival, self.counters.refused
        )
        # OpenAI's routes, lists of models, health, metrics and the web page
        self.router = Router(
            routes=[
                *(Route(path, self._ask, methods=["POST"]) for path in ROUTES),
                Route("/v1/models", self._models),
                Route("/v1/models/{name:path}", self._model),
                Route("/health", self._health),
                Route("/metrics", self._metrics),
                Route("/", _page()),
            ],
            redirect_slashes=False,
        )
        self.gate = RequestGate(self._routed, self.limits, self.counters, hosts, self.connections)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.gate(scope, receive, send)

    def close(self) -> None:
        """End the threads of generation."""
        self.generations.shutdown()

    async def _routed(self, scope: Any, receive: Any, send: Any) -> None:
        scope["app"] = self  # has the router raise its errors, and not answer in plain text
        try:
            await self.router(scope, receive, send)
        except HTTPException as error:
            url = f"{scope['method'][:20]} {shown(scope['path'])}"
            if error.status_code == 405:
                raise Refused(405, f"Not allowed: {url}.", code="method_not_supported") from error
            message = f"Unknown request URL: {url}. There are {', '.join(ROUTES)} and /v1/models."
            raise Refused(404, message, code="unknown_url") from error

    async def _ask(self, request: Request) -> Response:
        """Answer a POST request for generated text, as one JSON or as a stream of events."""
        # a web page of another site can send other types, without the browser asking this server
        # first
        media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media != "application/json":
            message = f"Unsupported content type: {shown(media)}. It must be 'application/json'."
            raise Refused(415, message, code="unsupported_content_type")
        route = ROUTES[request.url.path]
        ask, parameters = self.reader.read(await request.body(), route)
        answer: Any = Completions(ask, parameters, route)
        if route == RESPONSES:
            answer = Responses(ask, parameters)
        if not parameters.get("stream"):
            return JSONResponse(await answer.whole())
        # a stream has sent 200 before its first token: refuse while a status can still be sent
        if not ask.generation.alive():
            raise Refused(503, DEAD)
        headers = {"cache-control": "no-cache"}
        return StreamingResponse(_events(answer.events()), 200, headers, "text/event-stream")

    async def _models(self, _: Request) -> Response:
        return JSONResponse({"object": "list", "data": self.served_models.listed()})

    async def _model(self, request: Request) -> Response:
        name = self.served_models.find(request.path_params["name"]).name
        return JSONResponse(
            next(fields for fields in self.served_models.listed() if fields["id"] == name)
        )

    async def _health(self, _: Request) -> Response:
        """Answer {"status": "ok"}, or 503 if a batch of requests has ended by an error."""
        if not self.generations.alive():
            raise Refused(503, DEAD)
        return JSONResponse({"status": "ok"})

    async def _metrics(self, _: Request) -> Response:
        """Answer with the counters in the text format of Prometheus."""
        return Response(self.counters.text(), media_type=TYPE)


async def _events(events: AsyncIterator[str]) -> AsyncIterator[str]:
    """Yield the events of an answer; an error becomes its last event."""
    try:
        async for text in events:
            yield text
    except Refused as error:
        current().failed = error.status
        yield event(error.body())
    except Exception:
        LOG.exception("a stream failed")
        current().failed = 500
        yield event(broken().body())


def _page() -> Any:
    """Return the handler of the web page, with a policy that lets it run its own script alone."""
    text = PAGE.read_text("utf-8")
    digests = {
        tag: "sha256-"
        + base64.b64encode(
            hashlib.sha256(
                re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)[0].encode()
            ).digest()
        ).decode()
        for tag in ("script", "style")
    }
    # only this page's own script and style run, by their digests; it talks to this server alone
    policy = (
        "default-src 'none'; connect-src 'self'; img-src data:; "
        f"script-src '{digests['script']}'; style-src '{digests['style']}'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )

    async def page(_: Request) -> Response:
        return HTMLResponse(text, headers={"content-security-policy": policy})

    return page
