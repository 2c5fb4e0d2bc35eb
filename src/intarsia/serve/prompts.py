"""What a client wants to have continued, as token ids."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from jinja2 import TemplateError

from .models import ServedModel
from .refusals import Refused, invalid_type, invalid_value, missing, unknown, unsupported

ROLES = ("system", "developer", "user", "assistant", "tool")
PARTS = ("text", "input_text", "output_text")
IN_MESSAGE = (
    *("role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content", "refusal"),
    # fields of a response's items, which clients send back as input
    *("id", "status", "type", "phase"),
)
Messages = list[dict[str, Any]]


def of_completion(
    parameters: Mapping[str, Any], served: ServedModel, limit: int
) -> list[list[int]]:
    """Return the token ids of each prompt of a request for completions.

    Raises: Refused for anything but texts and ids.
    """
    prompt = parameters.get("prompt")
    if prompt is None:
        raise missing("prompt")
    want = "a string, or an array of strings, token ids or arrays of token ids"
    if not isinstance(prompt, str | list):
        raise invalid_type("prompt", want, prompt)
    # one prompt as a text or as ids, or several of either
    flat = isinstance(prompt, str) or (bool(prompt) and all(_is_id(t) for t in prompt))
    prompts = [prompt] if flat else prompt
    if not prompts:
        raise invalid_value("prompt", "empty array. Expected at least one prompt.", "empty_array")
    # each prompt takes as much time as a request of its own
    if len(prompts) > limit:
        message = f"array too long. Expected at most {limit} prompts, but got {len(prompts)}."
        raise invalid_value("prompt", message, "array_above_max_length")
    return [_ids(item, served, want) for item in prompts]


def _ids(prompt: object, served: ServedModel, want: str) -> list[int]:
    """Return the token ids of one prompt, a text or a list of ids."""
    if isinstance(prompt, str):
        return list(served.tokenizer(prompt)["input_ids"])
    if not isinstance(prompt, list) or not all(_is_id(token) for token in prompt):
        raise invalid_type("prompt", want, prompt)
    if wrong := [token for token in prompt if not 0 <= token < served.vocabulary]:
        message = f"{str(wrong[0])[:50]} is no token id of 0 to {served.vocabulary - 1}."
        raise invalid_value("prompt", message)
    return prompt


def _is_id(value: object) -> bool:
    """Return True for a whole number; JSON's booleans are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def of_chat(
    messages: Messages, parameters: Mapping[str, Any], served: ServedModel
) -> tuple[list[int], list[Any] | None]:
    """Return the token ids of a chat by the model's template, and the tools it was given.

    Raises: Refused for a model without a template, tools that its template does not read, and
    messages that the template itself refuses.
    """
    template = served.tokenizer.chat_template
    if not template:
        message = f"The model '{served.name}' has no chat template. Use /v1/completions."
        raise Refused(400, message, param="model", code="unsupported_value")
    tools = [_tool_for_templates(tool) for tool in parameters.get("tools") or []] or None
    if parameters.get("tool_choice") == "none":
        tools = None
    # a template that ignores tools would answer as if there were none
    if tools and "tools" not in str(template):
        raise unsupported("tools", "functions", "The model's chat template does not read them.")
    try:
        inputs = served.tokenizer.apply_chat_template(
            messages,
            add_generation_prompt=True,
            tools=tools,
            tokenize=True,
            return_dict=True,
            **parameters.get("chat_template_kwargs", {}),
        )
    # a template is the model's makers' program, and messages that it does not expect break it
    except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
        message = f"the model's chat template does not take it: {str(error)[:200]}."
        raise invalid_value("messages", message) from error
    return list(inputs["input_ids"]), tools


def _tool_for_templates(tool: Mapping[str, Any]) -> dict[str, Any]:
    """Return a tool in the form of chats, {"type", "function": ...}, which templates read."""
    if "function" in tool:
        return dict(tool)
    return {"type": "function", "function": {k: v for k, v in tool.items() if k != "type"}}


def messages_of(parameters: Mapping[str, Any]) -> Messages:
    """Return the messages of a chat request, checked, as templates read them.  Raises: Refused."""
    messages = parameters.get("messages")
    if messages is None:
        raise missing("messages")
    _check_filled(messages, "messages")
    return [_message(message, f"messages[{i}]") for i, message in enumerate(messages)]


def items_of(parameters: Mapping[str, Any]) -> Messages:
    """Return the input of a request for a response as messages, as templates read them.

    Items are messages, thoughts, calls of functions and their outputs. Raises: Refused.
    """
    items = parameters.get("input")
    if items is None:
        raise missing("input")
    if isinstance(items, str):
        items = [{"role": "user", "content": items}]
    _check_filled(items, "input")
    # thoughts and calls are items of their own here, and fields of a message in templates
    messages: Messages = []
    thoughts = ""
    for number, item in enumerate(items):
        place = f"input[{number}]"
        kind = item.get("type", "message") if isinstance(item, dict) else "message"
        if kind == "reasoning":
            thoughts = _text(item.get("content"), f"{place}.content", ("reasoning_text",))
        elif kind == "function_call":
            fields = ("call_id", "name", "arguments")
            # a call has one level less here than in chats, and another name for its id
            call = dict(
                zip(("id", *fields[1:]), (_field(item, n, place) for n in fields), strict=True)
            )
            _add_call(messages, _tool_call({"id": call.pop("id"), "function": call}, place))
        elif kind == "function_call_output":
            output = {"role": "tool", "tool_call_id": _field(item, "call_id", place)}
            messages.append(output | {"content": _text(item.get("output"), f"{place}.output")})
        elif kind == "message":
            message = _message(item, place)
            # thoughts come as an item before the message that they led to
            if thoughts and message["role"] == "assistant":
                message["reasoning_content"], thoughts = thoughts, ""
            messages.append(message)
        else:
            raise unsupported(f"{place}.type", kind, "It takes messages and calls of functions.")
    if parameters.get("instructions"):
        messages.insert(0, {"role": "system", "content": parameters["instructions"]})
    return messages


def _check_filled(items: object, name: str) -> None:
    """Check that a field of a request is a list with at least one entry."""
    if not isinstance(items, list):
        raise invalid_type(name, "an array of objects", items)
    if not items:
        raise invalid_value(name, "empty array. Expected at least one message.", "empty_array")


def _message(message: object, place: str) -> dict[str, Any]:
    """Check a message of a request, and return it as templates read it."""
    if not isinstance(message, dict):
        raise invalid_type(place, "an object", message)
    if unknown_fields := sorted(message.keys() - set(IN_MESSAGE)):
        raise unknown(f"{place}.{unknown_fields[0]}")
    role = _field(message, "role", place)
    if role not in ROLES:
        roles = ", ".join(repr(name) for name in ROLES)
        problem = f"{role[:50]!r} is none of {roles}."
        raise invalid_value(f"{place}.role", problem)
    # only an assistant's message may lack content, if it has calls of functions
    content = message.get("content")
    if content is None and role != "assistant":
        raise missing(f"{place}.content")
    result: dict[str, Any] = {
        "role": "system" if role == "developer" else role,
        "content": _text(content, f"{place}.content"),
    }
    # a null counts as absent: templates ask whether a field is there
    for name in ("name", "tool_call_id", "reasoning_content"):
        if message.get(name) is not None:
            result[name] = _field(message, name, place)
    if (calls := message.get("tool_calls")) is not None:
        if not isinstance(calls, list):
            raise invalid_type(f"{place}.tool_calls", "an array of objects", calls)
        result["tool_calls"] = [
            _tool_call(c, f"{place}.tool_calls[{i}]") for i, c in enumerate(calls)
        ]
    return result


def _tool_call(call: object, place: str) -> dict[str, Any]:
    """Check a call of a tool, and return it with its arguments as an object."""
    if not isinstance(call, dict) or not isinstance(function := call.get("function"), dict):
        raise invalid_type(place, "an object with a function", call)
    name, text = (_field(function, field, f"{place}.function") for field in ("name", "arguments"))
    try:
        arguments = json.loads(text)
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise invalid_value(f"{place}.function.arguments", "it is no JSON of an object.")
    function = {"name": name, "arguments": arguments}
    return {"id": str(call.get("id", ""))[:200], "type": "function", "function": function}


def _add_call(messages: Messages, call: dict[str, Any]) -> None:
    """Append a call to the assistant's message at the end, or to a new one."""
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": ""})
    messages[-1].setdefault("tool_calls", []).append(call)


def _field(fields: Mapping[str, Any], name: str, place: str) -> str:
    """Return a text that an object of the request must have."""
    value = fields.get(name)
    if value is None:
        raise missing(f"{place}.{name}")
    if not isinstance(value, str):
        raise invalid_type(f"{place}.{name}", "a string", value)
    return value


def _text(content: object, place: str, kinds: tuple[str, ...] = PARTS) -> str:
    """Return a message's content as one text; its parts are joined by spaces."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise invalid_type(place, "a string or an array of objects", content)
    texts: list[str] = []
    for number, part in enumerate(content):
        if not isinstance(part, dict):
            raise invalid_type(f"{place}[{number}]", "an object", part)
        if part.get("type") not in kinds:
            raise unsupported(
                f"{place}[{number}].type", part.get("type"), "This server reads texts."
            )
        texts.append(_field(part, "text", f"{place}[{number}]"))
    return " ".join(texts)
