"""transformers' handlers, with every request looked at first: what is not done is refused."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from typing import Any

from fastapi import HTTPException
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.cli.serving.chat_completion import ChatCompletionHandler
from transformers.cli.serving.completion import CompletionHandler
from transformers.cli.serving.response import ResponseHandler
from transformers.cli.serving.utils import BaseHandler

from .models import Shelf
from .settings import Limits, current

TOKENS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
# what transformers' server leaves out in silence, or lets a client set past the limits
UNDONE = (
    *("n", "best_of", "logprobs", "top_logprobs", "echo", "response_format"),
    *("presence_penalty", "frequency_penalty", "generation_config", "modalities", "audio"),
    *("functions", "function_call", "prediction", "web_search_options"),
)
UNDONE_IN_CHATS = ("tool_choice", "reasoning_effort", "verbosity")
UNDONE_IN_RESPONSES = (
    *("previous_response_id", "conversation", "prompt", "background", "text", "tool_choice"),
    *("truncation", "max_tool_calls", "include", "reasoning"),
)
PLAIN: dict[str, tuple[object, ...]] = {  # what is done anyway
    "modalities": (["text"],),
    "response_format": ({"type": "text"},),
    "n": (1,),
    "best_of": (1,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "tool_choice": ("auto",),
    "text": ({"format": {"type": "text"}}, {}),
    "truncation": ("disabled",),
    "include": ([],),
    "reasoning": ({},),
}
OWN_TEMPLATE = frozenset(inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters)


def refused(name: str, got: object, want: str, fix: str) -> HTTPException:
    """400, in the four parts of every error."""
    return HTTPException(400, f"{name}: got {str(got)[:200]}, want {want}. {fix}")


class Checked(BaseHandler):
    """What all handlers have: checks, models by name, the limits."""

    limits: Limits
    undone: tuple[str, ...] = UNDONE

    async def handle_request(self, body: dict[str, Any], request_id: str) -> Any:
        """transformers' own; what a chat template refuses is the client's to mend."""
        handler: Any = super()
        try:
            return await handler.handle_request(body, request_id)
        except TemplateError as error:
            want, fix = "a chat that the model's template takes", "Look at its roles and order."
            raise refused("messages", error, want, fix) from error

    def _validate_request(self, body: dict[str, Any]) -> None:
        super()._validate_request(body)
        _text(body)
        for name in self.undone:
            if not _plain(name, body.get(name)):
                raise refused(name, repr(body[name]), "none", "This server does not do it.")
        _number(body, "temperature", 0.0, 2.0)
        _number(body, "top_p", 1e-6, 1.0)
        _whole(body, "seed", -(2**63), 2**63 - 1, "a number of 64 bits")
        for name in TOKENS:
            most = self.limits.tokens
            _whole(body, name, 1, most, f"1 ... {most}, which this server gives")
        _strings(body)
        _template(body.get("chat_template_kwargs"))

    def _resolve_model(self, body: dict[str, Any]) -> Any:
        shelf: Any = self.model_manager
        if body.get("model") is None:
            raise refused("model", "none", f"one of {', '.join(shelf.models)}", "Name one.")
        found = shelf.find(body["model"])
        current().model = found.name
        return found.name, found.model, found.tokenizer

    def _build_generation_config(
        self, body: dict[str, Any], model_generation_config: Any, use_cb: bool = False
    ) -> Any:
        told = current()
        told.seed = body.get("seed")
        told.asked = any(body.get(name) is not None for name in TOKENS)
        # transformers would seed every thread at once
        rest = {name: value for name, value in body.items() if name != "seed"}
        config = super()._build_generation_config(rest, model_generation_config, use_cb=use_cb)
        if not told.asked:
            config.max_new_tokens = self.limits.tokens
        config.max_length = None
        if body.get("temperature") or (
            body.get("temperature") is None and body.get("top_p") is not None
        ):
            config.do_sample = True  # transformers stays greedy, whatever the temperature
        if not config.do_sample:
            config.temperature = config.top_p = config.top_k = None
        return config


class Completions(Checked, CompletionHandler):
    """`/v1/completions`."""


class Chats(Checked, ChatCompletionHandler):
    """`/v1/chat/completions`."""

    undone = (*UNDONE, *UNDONE_IN_CHATS)

    def _validate_request(self, body: dict[str, Any]) -> None:
        super()._validate_request(body)
        _messages(body.get("messages"))

    def _resolve_model(self, body: dict[str, Any]) -> Any:
        return with_template(super()._resolve_model(body))


class Responses(Checked, ResponseHandler):
    """`/v1/responses`."""

    undone = (*UNDONE, *UNDONE_IN_RESPONSES)

    def _validate_request(self, body: dict[str, Any]) -> None:
        super()._validate_request(body)
        if not isinstance(given := body.get("input"), str):
            _messages(given, "input")
        body.setdefault("stream", False)  # transformers streams where nothing is said

    def _resolve_model(self, body: dict[str, Any]) -> Any:
        return with_template(super()._resolve_model(body))


def handlers(shelf: Shelf, state: Any, limits: Limits) -> tuple[Completions, Chats, Responses]:
    """One of each."""
    found = Completions(shelf, state), Chats(shelf, state), Responses(shelf, state)
    for one in found:
        one.limits = limits
    return found


def with_template(found: Any) -> Any:
    """Raises: HTTPException, 400, for a model that was not made for chats."""
    if not found[2].chat_template:
        fix = "Use /v1/completions."
        raise refused("model", f"{found[0]!r}, without a chat template", "one with it", fix)
    return found


def _text(body: Mapping[str, Any]) -> None:
    try:
        json.dumps(body, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        fix = "Send whole characters."
        raise refused("body", "half of a surrogate pair", "text", fix) from error


def _plain(name: str, value: object) -> bool:
    """Whether an option says only what is done anyway."""
    return value is None or value is False or value in PLAIN.get(name, ())


def _number(body: Mapping[str, Any], name: str, low: float, high: float) -> None:
    value = body.get(name)
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise refused(name, repr(value), f"a number, {low:g} ... {high:g}", "Leave it out.")


def _whole(body: Mapping[str, Any], name: str, low: int, high: int, want: str) -> None:
    value = body.get(name)
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise refused(name, repr(value), want, "Change it, or leave it out.")


def _strings(body: Mapping[str, Any]) -> None:
    stop = body.get("stop")
    words = [stop] if isinstance(stop, str) else stop or []
    if not isinstance(words, list) or not all(isinstance(w, str) and w for w in words):
        raise refused("stop", repr(stop), "a text, or a list of them", "Leave it out.")
    if not isinstance(body.get("suffix") or "", str):
        raise refused("suffix", repr(body["suffix"]), "a text", "Leave it out.")
    bias = body.get("logit_bias") or {}
    numbers = isinstance(bias, dict) and all(
        str(key).isdecimal() and isinstance(value, int | float) for key, value in bias.items()
    )
    if not numbers:
        raise refused("logit_bias", repr(bias), "token id -> number", "Leave it out.")


def _template(named: object) -> None:
    """Raises: HTTPException for what would take the place of the model's own template."""
    if named is None:
        return
    if not isinstance(named, dict) or (own := OWN_TEMPLATE & named.keys()):
        got = repr(named) if not isinstance(named, dict) else f"{sorted(own)[0]!r}"  # pyright: ignore
        fix = 'For example: {"enable_thinking": false}'
        raise refused("chat_template_kwargs", got, "values that the template reads", fix)


def _messages(messages: object, name: str = "messages") -> None:
    """Raises: HTTPException unless it is a chat of texts."""
    fix = 'For example: [{"role": "user", "content": "Hello"}]'
    if not isinstance(messages, list) or not messages:
        raise refused(name, repr(messages), "a list of messages", fix)
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("role", "user"), str):
            raise refused(name, repr(message), "messages with a role", fix)
        if name == "messages" and "role" not in message:
            raise refused(name, repr(message), "messages with a role", fix)
        parts = message.get("content") or []
        texts = [{"type": "text", "text": parts}] if isinstance(parts, str) else parts
        kinds = ("text", "input_text", "output_text")
        good = isinstance(texts, list) and all(
            isinstance(p, dict) and p.get("type") in kinds and isinstance(p.get("text"), str)
            for p in texts
        )
        if not good:
            raise refused(name, repr(message), "texts: this server reads nothing else", fix)
