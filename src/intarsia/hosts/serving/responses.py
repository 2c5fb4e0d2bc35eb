"""Answers in the JSON of OpenAI's responses, whole or as events."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import aclosing
from typing import Any

from transformers.cli.serving.utils import ReasoningText, ToolCall

from .choices import Ask
from .settings import Request, current

Json = dict[str, Any]
THOUGHTS, MESSAGE = "reasoning", "message"


class Responses:
    """A response: items of thoughts, texts and calls of functions, in the order in which they come.

    Each event has a number and what changed; a whole response is what its last event holds.
    """

    def __init__(self, ask: Ask, parameters: Mapping[str, Any]) -> None:
        self.ask, self.number, self.open = ask, 0, ""
        self.id = uuid.uuid4().hex
        self.output = list[Json]()
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
        """Return the response when all of it is there."""
        return [step async for step in self._steps()][-1]["response"]

    async def events(self) -> AsyncIterator[str]:
        """Yield the response as events."""
        async with aclosing(self._steps()) as steps:
            async for step in steps:
                yield f"event: {step['type']}\ndata: {json.dumps(step)}\n\n"

    async def _steps(self) -> AsyncGenerator[Json]:
        begun = self.head | {"status": "in_progress", "output": [], "usage": None}
        yield self._event("response.created", response=begun)
        yield self._event("response.in_progress", response=begun)
        finish: str | None = None
        async with aclosing(self.ask.increments()) as increments:
            async for new in increments:
                for part in new.parts:
                    for step in self._part(part):
                        yield step
                finish = new.finish
        if not self.output:  # an answer without any text is an empty message
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
        self.number += 1
        return {"type": kind, "sequence_number": self.number - 1, **fields}

    def _part(self, part: Any) -> Iterator[Json]:
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
        yield self._event(f"{self._words}.delta", **self._at(item), delta=str(part), **self._more)

    @property
    def _words(self) -> str:
        return "response.output_text" if self.open == MESSAGE else "response.reasoning_text"

    @property
    def _more(self) -> Json:
        return {"logprobs": []} if self.open == MESSAGE else {}

    def _at(self, item: Json, content: bool = True) -> Json:
        at: Json = {"item_id": item["id"], "output_index": len(self.output) - 1}
        return at | {"content_index": 0} if content else at

    def _begin(self, kind: str) -> Iterator[Json]:
        self.open = kind
        item: Json = {"type": kind, "status": "in_progress", "content": []}
        item |= {"role": "assistant"} if kind == MESSAGE else {"summary": []}
        item["id"] = f"{'msg' if kind == MESSAGE else 'rs'}_{self.id}_{len(self.output)}"
        self.output.append(item)
        yield self._item("added", item)
        part: Json = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        if kind != MESSAGE:
            part = {"type": "reasoning_text", "text": ""}
        item["content"] = [part]
        yield self._event("response.content_part.added", **self._at(item), part=dict(part))

    def _close(self) -> Iterator[Json]:
        if not self.open:
            return
        item = self.output[-1]
        (part,) = item["content"]
        yield self._event(f"{self._words}.done", **self._at(item), text=part["text"], **self._more)
        yield self._event("response.content_part.done", **self._at(item), part=part)
        item["status"] = "completed"
        self.open = ""
        yield self._item("done", item)

    def _called(self, call: ToolCall) -> Iterator[Json]:
        name = f"{self.id}_{len(self.output)}"
        item: Json = {"type": "function_call", "id": f"fc_{name}", "call_id": f"call_{name}"}
        item |= {"name": call.name, "arguments": "", "status": "in_progress"}
        self.output.append(item)
        yield self._item("added", item)
        item |= {"arguments": call.arguments, "status": "completed"}
        rest = {"arguments": call.arguments, "name": call.name}
        at = self._at(item, content=False)
        yield self._event("response.function_call_arguments.done", **at, **rest)
        yield self._item("done", item)

    def _item(self, what: str, item: Json) -> Json:
        at = {"output_index": len(self.output) - 1, "item": dict(item)}
        return self._event(f"response.output_item.{what}", **at)


def _usage(record: Request) -> Json:
    return {
        "input_tokens": record.prompt,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": record.generated,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": record.prompt + record.generated,
    }
