"""Answers in the JSON of OpenAI's completions and chat completions, whole or as events."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from transformers.cli.serving.utils import ReasoningText, ToolCall

from .choices import ChoicesRequest, Increment
from .parameters import COMPLETIONS
from .sampling import NewToken
from .settings import Request, current

DONE = "data: [DONE]\n\n"
Json = dict[str, Any]


def event(content: Mapping[str, Any]) -> str:
    """Return a server-sent event."""
    return f"data: {json.dumps(content)}\n\n"


class Completions:
    """Answer in the JSON of completions or chat completions, whole or as events.

    The two differ in the form of a choice, as OpenAI calls one of several answers.
    """

    def __init__(self, ask: ChoicesRequest, parameters: Mapping[str, Any], route: str) -> None:
        """Start an answer: its id, its time and the fields that all its events share."""
        self.ask, self.chat = ask, route != COMPLETIONS
        self.usage = bool((parameters.get("stream_options") or {}).get("include_usage"))
        self.tokenizer: Any = ask.generation.served.tokenizer
        self.offsets: dict[int, int] = {}  # choice -> number of characters before its next token
        self.calls: dict[int, int] = {}  # choice -> number of its calls of tools so far
        # ids begin as OpenAI's do
        name = "chatcmpl" if self.chat else "cmpl"
        self.head: Json = {
            "id": f"{name}-{uuid.uuid4().hex}",
            "object": "chat.completion" if self.chat else "text_completion",
            "created": int(time.time()),
            "model": ask.generation.served.name,
        }

    async def whole(self) -> Json:
        """Generate all choices, and return the answer as one JSON object."""
        choices: list[list[Increment]] = [[] for _ in self.ask.sampling]
        async with aclosing(self.ask.increments()) as increments:
            async for increment in increments:
                choices[increment.index].append(increment)
        answers = [self._choice(i, steps) for i, steps in enumerate(choices)]
        return self.head | {"choices": answers, "usage": usage(current())}

    async def events(self) -> AsyncIterator[str]:
        """Yield the answer as server-sent events, while it is generated."""
        if self.chat:
            self.head["object"] = "chat.completion.chunk"
        async with aclosing(self.ask.increments()) as increments:
            async for increment in increments:
                for choice in self._chunks(increment):
                    # with include_usage each event has the field, and the last one the counts
                    rest = {"usage": None} if self.usage else {}
                    yield event(self.head | {"choices": [choice]} | rest)
        if self.usage:
            yield event(self.head | {"choices": [], "usage": usage(current())})
        yield DONE

    def _choice(self, index: int, steps: Sequence[Increment]) -> Json:
        """Return a choice in OpenAI's form, made of all of its increments."""
        parts = [part for step in steps for part in step.parts]
        tokens = [token for step in steps for token in step.tokens]
        text = "".join(p for p in parts if isinstance(p, str) and not isinstance(p, ReasoningText))
        choice: Json = {
            "index": index,
            "finish_reason": steps[-1].finish,
            "logprobs": self._logprobs(index, tokens),
        }
        if not self.chat:
            return choice | {"text": text}
        # a chat's message has thoughts and calls in fields of their own, next to the text
        calls = [self._call(index, part) for part in parts if isinstance(part, ToolCall)]
        thoughts = "".join(part for part in parts if isinstance(part, ReasoningText))
        message: Json = {"role": "assistant", "content": text, "refusal": None}
        message |= {"tool_calls": calls} if calls else {}
        message |= {"reasoning_content": thoughts} if thoughts else {}
        return choice | {"message": message}

    def _chunks(self, increment: Increment) -> Iterator[Json]:
        """Yield the choices of the events that stream an increment, one for each of its parts."""
        logprobs = self._logprobs(increment.index, increment.tokens) if increment.tokens else None
        # the first event of a chat's choice says who speaks
        begun = increment.index in self.calls
        self.calls.setdefault(increment.index, 0)
        if self.chat and not begun:
            yield self._chunk(increment.index, {"role": "assistant", "content": ""}, None)
        for part in increment.parts:
            yield self._chunk(increment.index, self._delta(increment.index, part), logprobs)
            logprobs = None
        if increment.finish is not None or logprobs is not None:
            yield self._chunk(
                increment.index, self._delta(increment.index, None), logprobs, increment.finish
            )

    def _chunk(self, index: int, delta: Json, logprobs: Any, finish: str | None = None) -> Json:
        """Return a streamed event's choice, as OpenAI has it; delta: what it adds to the answer."""
        choice = {"index": index, "logprobs": logprobs, "finish_reason": finish}
        return choice | ({"delta": delta} if self.chat else delta)

    def _delta(self, index: int, part: Any) -> Json:
        """Return what an event adds to a choice, as the route has it."""
        if not self.chat:
            return {"text": part or ""}
        if isinstance(part, ToolCall):
            number = self.calls[index]
            return {"tool_calls": [{"index": number, **self._call(index, part)}]}
        if isinstance(part, ReasoningText):
            return {"reasoning_content": str(part)}
        return {} if part is None else {"content": part}

    def _call(self, index: int, part: ToolCall) -> Json:
        """Return a call of a tool in OpenAI's form, with an id."""
        number = self.calls.get(index, 0)
        self.calls[index] = number + 1
        function = {"name": part.name, "arguments": part.arguments}
        name = f"call_{self.head['id'].rpartition('-')[2]}_{index}_{number}"
        return {"id": name, "type": "function", "function": function}

    def _logprobs(self, index: int, tokens: Sequence[NewToken]) -> Json | None:
        """Return log-probabilities of tokens in the route's form; None if not requested."""
        if self.ask.sampling[index].top is None:
            return None
        if self.chat:
            return {"content": [self._token(token) for token in tokens], "refusal": None}
        # offsets continue from event to event
        texts = [self._name(token.id) for token in tokens]
        offsets: list[int] = []
        for text in texts:
            offsets.append(self.offsets.get(index, 0))
            self.offsets[index] = offsets[-1] + len(text)
        return {
            "tokens": texts,
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [{self._name(i): value for i, value in token.top} for token in tokens],
            "text_offset": offsets,
        }

    def _token(self, token: NewToken) -> Json:
        """Return a token with its log-probability and the most probable ones, for a chat."""
        top = [self._entry(number, value) for number, value in token.top]
        return self._entry(token.id, token.logprob) | {"top_logprobs": top}

    def _name(self, number: int) -> str:
        """Return a token's text; if it is a part of a character, its name in the vocabulary."""
        text = self.tokenizer.decode([number])
        return self.tokenizer.convert_ids_to_tokens(number) if "\ufffd" in text else text

    def _entry(self, number: int, value: float | None) -> Json:
        """Return {"token", "logprob", "bytes"}; bytes are None for a part of a character."""
        is_text = "\ufffd" not in self.tokenizer.decode([number])
        name = self._name(number)
        return {"token": name, "logprob": value, "bytes": list(name.encode()) if is_text else None}


def usage(record: Request) -> Json:
    """Return the counts of tokens of a request, as completions report them."""
    return {
        "prompt_tokens": record.prompt,
        "completion_tokens": record.generated,
        "total_tokens": record.prompt + record.generated,
    }
