"""The parameters of OpenAI's reference: what each one does here, or that it is refused.

`PARAMETERS` is the only list of them: requests are checked by it, and the table in
docs/how-to/serve-a-mixture.md is `table()`.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from .refusals import invalid_type, invalid_value, unknown, unsupported
from .settings import Limits

Check = Callable[[str, Any, Limits], None]
COMPLETIONS, CHATS, RESPONSES = "completions", "chat completions", "responses"
OF_TEXT, OF_CHOICES, ALL = (CHATS, RESPONSES), (COMPLETIONS, CHATS), (COMPLETIONS, CHATS, RESPONSES)
STOPS, TOP_TEXT, TOP_CHAT = 4, 5, 20  # as many as OpenAI takes
TEMPLATE = frozenset(inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters)


@dataclass(frozen=True)
class Parameter:
    """Parameter of a request: its name, the routes that accept it, its check, and its effect."""

    name: str
    routes: tuple[str, ...]
    check: Check
    effect: str


def anything(name: str, value: Any, limits: Limits) -> None:
    """Accept any value: it is checked where it is used, or it has no effect."""


def boolean(name: str, value: Any, limits: Limits) -> None:
    """Check for true or false.  Raises: Refused."""
    if not isinstance(value, bool):
        raise invalid_type(name, "a boolean", value)


def text(name: str, value: Any, limits: Limits) -> None:
    """Check for a text.  Raises: Refused."""
    if not isinstance(value, str):
        raise invalid_type(name, "a string", value)


def number(low: float, high: float) -> Check:
    """Return a check for a number between low and high; whole numbers count, booleans do not."""

    def check(name: str, value: Any, limits: Limits) -> None:
        # True is an int in Python
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise invalid_type(name, "a number", value)
        _between(name, value, low, high, "decimal")

    return check


def integer(low: int, high: int | Callable[[Limits], int]) -> Check:
    """Return a check for a whole number between low and high."""

    def check(name: str, value: Any, limits: Limits) -> None:
        if isinstance(value, bool) or not isinstance(value, int):
            raise invalid_type(name, "an integer", value)
        _between(name, value, low, high if isinstance(high, int) else high(limits), "integer")

    return check


def only(*values: object) -> Check:
    """Return a check for a parameter that this server supports only with the given values."""
    want = f"It takes {', '.join(shown_json(v) for v in values)}." if values else "Leave it out."

    def check(name: str, value: Any, limits: Limits) -> None:
        # types are compared, too, since 1 == True
        if not any(type(value) is type(v) and value == v for v in values):
            raise unsupported(name, value, want)

    return check


def stops(name: str, value: Any, limits: Limits) -> None:
    """Check stop texts: one text, or a list of up to four.

    limits: unused, other checks need them.
    Raises: Refused.
    """
    words = [value] if isinstance(value, str) else value
    if not isinstance(words, list) or not all(isinstance(w, str) for w in words):
        raise invalid_type(name, "a string or an array of strings", value)
    if not all(words):
        raise invalid_value(name, "a stop sequence has no characters.")
    if len(words) > STOPS:
        message = f"array too long. Expected at most {STOPS} strings, but got {len(words)}."
        raise invalid_value(name, message, "array_above_max_length")


def bias(name: str, value: Any, limits: Limits) -> None:
    """Check `logit_bias`: {"token id": number from -100 to 100}.

    limits: unused, other checks need them.
    Raises: Refused.
    """
    if not isinstance(value, dict):
        raise invalid_type(name, "an object", value)
    for key, amount in value.items():
        # keys of JSON are texts; `isdecimal` alone also holds for digits of other scripts
        if not (key.isascii() and key.isdecimal() and len(key) < 10):
            raise invalid_value(name, f"key {key[:50]!r} is no token id.")
        if isinstance(amount, bool) or not isinstance(amount, int | float):
            raise invalid_type(f"{name}.{key}", "a number", amount)
        _between(f"{name}.{key}", amount, -100, 100, "decimal")


def stream_options(name: str, value: Any, limits: Limits) -> None:
    """Check `stream_options`: an object of two booleans.

    limits: unused, other checks need them.
    Raises: Refused.
    """
    if not isinstance(value, dict):
        raise invalid_type(name, "an object", value)
    for key, flag in value.items():
        if key not in ("include_usage", "include_obfuscation"):
            raise unknown(f"{name}.{key}")
        boolean(f"{name}.{key}", flag, limits)


def tools(name: str, value: Any, limits: Limits) -> None:
    """Check a list of functions that the model may call.

    limits: unused, other checks need them.
    Raises: Refused.
    """
    if not isinstance(value, list):
        raise invalid_type(name, "an array of objects", value)
    for number, tool in enumerate(value):
        place = f"{name}[{number}]"
        if not isinstance(tool, dict):
            raise invalid_type(place, "an object", tool)
        if tool.get("type") != "function":
            raise unsupported(f"{place}.type", tool.get("type"), 'It takes "function".')
        # the function is one level deeper in chats than in responses
        function = tool.get("function", tool)
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise invalid_type(f"{place}.function", "an object with a name", function)
        if not isinstance(function.get("parameters") or {}, dict):
            raise invalid_type(f"{place}.function.parameters", "an object", function["parameters"])


def template(name: str, value: Any, limits: Limits) -> None:
    """Check arguments for the chat template, which may not replace those that the server passes.

    limits: unused, other checks need them.
    Raises: Refused.
    """
    if not isinstance(value, dict):
        raise invalid_type(name, "an object", value)
    if reserved := sorted(TEMPLATE & value.keys()):
        raise invalid_value(name, f"{reserved[0]!r} is not for the template to read.")


def _between(name: str, value: float, low: float, high: float, kind: str) -> None:
    """Check that a number lies between low and high, with a message in OpenAI's words."""
    if value != value:  # NaN is no JSON, but Python's parser accepts it
        raise invalid_type(name, f"a {kind}", value)
    for outside, word, comparison, bound in (
        (value < low, "below_min", ">=", low),
        (value > high, "above_max", "<=", high),
    ):
        if outside:
            side = word.replace("_", " ").replace("min", "minimum").replace("max", "maximum")
            message = f"{kind} {side} value. Expected a value {comparison} {bound:g}"
            got = f"{value:g}" if isinstance(value, float) else str(value)[:50]
            raise invalid_value(name, f"{message}, but got {got} instead.", f"{kind}_{word}_value")


def shown_json(value: object) -> str:
    """Return a value as JSON has it."""
    return json.dumps(value)


_TOKENS = "New tokens of an answer, at most; more than `--tokens` is refused."
_NO = "Refused."
_NOTED = "Taken; it changes no answer."
PARAMETERS = (
    Parameter("model", ALL, text, "A name of `/v1/models`; there is no default."),
    Parameter(
        "prompt",
        (COMPLETIONS,),
        anything,
        "A text, token ids, or an array of either: each one has its choices.",
    ),
    Parameter("messages", (CHATS,), anything, "Texts and calls of tools, by the model's template."),
    Parameter("input", (RESPONSES,), anything, "A text, or messages and calls of tools."),
    Parameter("instructions", (RESPONSES,), text, "A system message in front."),
    Parameter("max_tokens", OF_CHOICES, integer(1, lambda limits: limits.tokens), _TOKENS),
    Parameter("max_completion_tokens", (CHATS,), integer(1, lambda lim: lim.tokens), _TOKENS),
    Parameter("max_output_tokens", (RESPONSES,), integer(1, lambda lim: lim.tokens), _TOKENS),
    Parameter(
        "n",
        OF_CHOICES,
        integer(1, lambda limits: limits.at_once),
        "Choices for each prompt; all of a request together are at most `--at-once`.",
    ),
    Parameter(
        "temperature",
        ALL,
        number(0, 2),
        "0 takes the likeliest token. Left out, the model's own settings hold.",
    ),
    Parameter("top_p", ALL, number(0, 1), "Draws from the likeliest tokens of that probability."),
    Parameter(
        "seed",
        ALL,
        integer(-(2**63), 2**63 - 1),
        "Draws are the same again; choice i has seed + i.",
    ),
    Parameter(
        "frequency_penalty", OF_CHOICES, number(-2, 2), "Off a logit for each time it was drawn."
    ),
    Parameter("presence_penalty", OF_CHOICES, number(-2, 2), "Off a logit if it was drawn."),
    Parameter("logit_bias", OF_CHOICES, bias, "Added to logits, by token id."),
    Parameter("stop", OF_CHOICES, stops, f"Up to {STOPS} texts; the answer ends before them."),
    Parameter("stream", ALL, boolean, "Events, `[DONE]` at the end of choices."),
    Parameter("stream_options", ALL, stream_options, "`include_usage`: a last event with counts."),
    Parameter(
        "logprobs",
        (COMPLETIONS,),
        integer(0, TOP_TEXT),
        f"Of the model's own logits, with that many of the likeliest (0 to {TOP_TEXT}).",
    ),
    Parameter("logprobs", (CHATS,), boolean, "Of the model's own logits."),
    Parameter(
        "top_logprobs", (CHATS,), integer(0, TOP_CHAT), f"So many of the likeliest, to {TOP_CHAT}."
    ),
    Parameter("tools", OF_TEXT, tools, "Functions, where the model's template knows them."),
    Parameter("tool_choice", OF_TEXT, only("auto", "none"), '`"auto"` and `"none"` only.'),
    Parameter("parallel_tool_calls", OF_TEXT, only(True), "`true` only."),
    Parameter("response_format", (CHATS,), only({"type": "text"}), "Text only."),
    Parameter("text", (RESPONSES,), only({}, {"format": {"type": "text"}}), "Text only."),
    Parameter("modalities", (CHATS,), only(["text"]), "Text only."),
    Parameter("chat_template_kwargs", OF_TEXT, template, "Values that the model's template reads."),
    Parameter("best_of", (COMPLETIONS,), only(1), "1 only."),
    Parameter("echo", (COMPLETIONS,), only(False), "`false` only."),
    Parameter("suffix", (COMPLETIONS,), only(""), _NO),
    Parameter("truncation", (RESPONSES,), only("disabled"), '`"disabled"` only.'),
    Parameter("background", (RESPONSES,), only(False), "`false` only."),
    Parameter("store", OF_TEXT, only(False), "`false` only: nothing is kept."),
    Parameter("include", (RESPONSES,), only([]), "Nothing."),
    Parameter("reasoning", (RESPONSES,), only({}), _NO),
    Parameter("service_tier", OF_TEXT, only("auto", "default"), '`"auto"` and `"default"` only.'),
    Parameter("user", ALL, text, _NOTED),
    *(
        Parameter(name, OF_TEXT, anything, _NOTED)
        for name in ("metadata", "safety_identifier", "prompt_cache_key")
    ),
    *(
        Parameter(name, OF_TEXT, only(), _NO)
        for name in ("moderation", "prompt_cache_options", "prompt_cache_retention")
    ),
    *(
        Parameter(name, (CHATS,), only(), _NO)
        for name in (
            *("audio", "function_call", "functions", "prediction", "reasoning_effort"),
            *("verbosity", "web_search_options"),
        )
    ),
    *(
        Parameter(name, (RESPONSES,), only(), _NO)
        for name in (
            *("access_programs", "background_options", "context_management", "conversation"),
            *("image", "max_tool_calls", "previous_response_id", "prompt", "top_logprobs"),
        )
    ),
)


def names(route: str) -> Collection[str]:
    """Return the parameters that a route knows."""
    return [parameter.name for parameter in PARAMETERS if route in parameter.routes]


def checked(body: Mapping[str, Any], route: str, limits: Limits) -> dict[str, Any]:
    """Return a request's parameters, checked, without those that are null (their default).

    Raises: Refused for a name that the route does not know, and for a value that is wrong or not
    supported.
    """
    # a name may have another check on another route, as "logprobs"
    by_name = {p.name: p for p in PARAMETERS if route in p.routes}
    for name in body:
        if name not in by_name:
            raise unknown(name)
    # null is the default, as OpenAI has it
    values = {name: value for name, value in body.items() if value is not None}
    for name, value in values.items():
        by_name[name].check(name, value, limits)
    if "top_logprobs" in values and not values.get("logprobs"):
        raise invalid_value("top_logprobs", "'logprobs' must be true where it is given.")
    if "stream_options" in values and not values.get("stream"):
        raise invalid_value("stream_options", "'stream' must be true where it is given.")
    return values


def table() -> str:
    """Return the documentation's table, a row for each parameter, in Markdown."""
    rows = ["| parameter | route | |", "|---|---|---|"]
    for p in PARAMETERS:
        routes = "all" if p.routes == ALL else ", ".join(p.routes)
        rows.append(f"| `{p.name}` | {routes} | {p.effect} |")
    return "\n".join(rows)
