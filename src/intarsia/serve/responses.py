"""Answers in the JSON of OpenAI's responses, whole or as events."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import aclosing
from typing import Any

from transformers.cli.serving.utils import ReasoningText, ToolCall

from .choices import ChoicesRequest
from .settings import Request, current

Json = dict[str, Any]
THOUGHTS, MESSAGE = "reasoning", "message"


class Responses:
    """Answer in the JSON of OpenAI's responses, whole or as events.

    It is a list of items, thoughts, texts and calls of functions, in the order in which they are
    generated. Each event has a number and a change; the last one holds the whole answer.
    """

    def __init__(self, ask: ChoicesRequest, parameters: Mapping[str, Any]) -> None:
        # number: of the next event; open: kind of the item that parts go into, "" for none
        self.ask, self.number, self.open = ask, 0, ""
        self.id = uuid.uuid4().hex
        self.output = list[Json]()
        # fields that the first and the last event share; status, output and usage are added
        self.head: Json = {
            "id": f"resp_{self.id}",
            "object": "response",
            "created_at": time.time(),
            "model": ask.generation.served.name,
            "error": None,
            "incomplete_details": None,
            "instructions": parameters.get("instructions"),
            "metadata": parameters.get("metadata") or {},
            "max_output_tokens": parameters.get("max_output_tokens"),
            "temperature": parameters.get("temperature"),
            "top_p": parameters.get("top_p"),
            "parallel_tool_calls": True,
            "tool_choice": parameters.get("tool_choice", "auto"),
            "tools": parameters.get("tools") or [],
            "store": False,
        }

    async def whole(self) -> Json:
        """Generate the answer, and return it as one JSON object."""
        return [step async for step in self._steps()][-1]["response"]

    async def events(self) -> AsyncIterator[str]:
        """Yield the answer as server-sent events, while it is generated."""
        async with aclosing(self._steps()) as steps:
            async for step in steps:
                yield f"event: {step['type']}\ndata: {json.dumps(step)}\n\n"

    async def _steps(self) -> AsyncGenerator[Json]:
        """Yield the events of an answer as JSON; the last one holds all of it."""
        # 1. the response begins
        begun = self.head | {"status": "in_progress", "output": [], "usage": None}
        yield self._event("response.created", response=begun)
        yield self._event("response.in_progress", response=begun)
        finish: str | None = None
        # 2. items, as parts of the answer come
        async with aclosing(self.ask.increments()) as increments:
            async for new in increments:
                for part in new.parts:
                    for step in self._part(part):
                        yield step
                finish = new.finish
        # 3. the open item ends, and the response with it
        if not self.output:
            for step in self._begin(MESSAGE):
                yield step
        for step in self._close():
            yield step
        cut_off = finish == "length"
        status = "incomplete" if cut_off else "completed"
        details = {"reason": "max_output_tokens"} if cut_off else None
        last = {"status": status, "incomplete_details": details, "output": self.output}
        last["usage"] = _usage(current())
        yield self._event(f"response.{status}", response=self.head | last)

    def _event(self, kind: str, **fields: Any) -> Json:
        """Return an event of a type with the next number; fields: its content."""
        self.number += 1
        return {"type": kind, "sequence_number": self.number - 1, **fields}

    def _part(self, part: Any) -> Iterator[Json]:
        """Yield the events by which a part of the answer is added."""
        # a call comes whole, so that its item opens and closes at once
        if isinstance(part, ToolCall):
            yield from self._close()
            yield from self._called(part)
            return
        kind = THOUGHTS if isinstance(part, ReasoningText) else MESSAGE
        if self.open != kind:
            yield from self._close()
            yield from self._begin(kind)
        item = self.output[-1]
        item["content"][0]["text"] += part
        yield self._event(
            f"{self._event_prefix}.delta",
            **self._position(item),
            delta=str(part),
            **self._text_fields,
        )

    @property
    def _event_prefix(self) -> str:
        """Begin of the names of the open item's events."""
        return "response.output_text" if self.open == MESSAGE else "response.reasoning_text"

    @property
    def _text_fields(self) -> Json:
        """Further fields of the open item's text events."""
        return {"logprobs": []} if self.open == MESSAGE else {}

    def _position(self, item: Json, content: bool = True) -> Json:
        """Return the fields by which an event names an item, the newest one."""
        position: Json = {"item_id": item["id"], "output_index": len(self.output) - 1}
        return position | {"content_index": 0} if content else position

    def _begin(self, kind: str) -> Iterator[Json]:
        """Open a new item of the answer's output, and yield the events that say so."""
        self.open = kind
        item: Json = {"type": kind, "status": "in_progress", "content": []}
        item |= {"role": "assistant"} if kind == MESSAGE else {"summary": []}
        item["id"] = f"{'msg' if kind == MESSAGE else 'rs'}_{self.id}_{len(self.output)}"
        self.output.append(item)
        yield self._item("added", item)
        # events add text to this part until the item is closed
        part: Json = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        if kind != MESSAGE:
            part = {"type": "reasoning_text", "text": ""}
        item["content"] = [part]
        yield self._event("response.content_part.added", **self._position(item), part=dict(part))

    def _close(self) -> Iterator[Json]:
        """Close the open item of the output, and yield the events that say so."""
        if not self.open:
            return
        item = self.output[-1]
        # each item has one content
        (part,) = item["content"]
        yield self._event(
            f"{self._event_prefix}.done",
            **self._position(item),
            text=part["text"],
            **self._text_fields,
        )
        yield self._event("response.content_part.done", **self._position(item), part=part)
        item["status"] = "completed"
        self.open = ""
        yield self._item("done", item)

    def _called(self, call: ToolCall) -> Iterator[Json]:
        """Add a call of a function to the output as an item, and yield the events that say so."""
        name = f"{self.id}_{len(self.output)}"
        item: Json = {"type": "function_call", "id": f"fc_{name}", "call_id": f"call_{name}"}
        item |= {"name": call.name, "arguments": "", "status": "in_progress"}
        self.output.append(item)
        yield self._item("added", item)
        item |= {"arguments": call.arguments, "status": "completed"}
        rest = {"arguments": call.arguments, "name": call.name}
        position = self._position(item, content=False)
        yield self._event("response.function_call_arguments.done", **position, **rest)
        yield self._item("done", item)

    def _item(self, stage: str, item: Json) -> Json:
        """Return the event for an item; stage: "added" or "done"."""
        fields = {"output_index": len(self.output) - 1, "item": dict(item)}
        return self._event(f"response.output_item.{stage}", **fields)


def _usage(record: Request) -> Json:
    return {
        "input_tokens": record.prompt,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": record.generated,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": record.prompt + record.generated,
    }
