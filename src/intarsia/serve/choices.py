"""The text of an answer, token by token: where it ends, and its content, thoughts and calls."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from tokenizers.decoders import DecodeStream
from transformers.cli.serving.utils import (
    ReasoningText,
    ToolCall,
    build_response_parser,
    response_events_to_chunks,
)

from .generating import Generation
from .sampling import NewToken, Sampling, end_tokens
from .settings import current

LOG = logging.getLogger(__name__)


@dataclass
class Increment:
    """Addition of one step to an answer, the choice of number `index`.

    parts: texts, `ReasoningText` and `ToolCall` of transformers.  tokens: of the texts.
    finish: reason why the choice is over, in its last increment.
    """

    index: int
    parts: list[Any] = field(default_factory=list)
    tokens: list[NewToken] = field(default_factory=list)
    finish: str | None = None


@dataclass(frozen=True)
class ChoicesRequest:
    """Request for answers, which OpenAI calls choices: n for each prompt.

    prompts: token ids.  sampling: settings of each choice.  stops: texts that end an answer.
    tools: functions, as the model's chat template has them.  parsed: separate thoughts and calls of
    tools from the text, if the model comes with rules for that.
    """

    generation: Generation
    prompts: Sequence[list[int]]
    sampling: Sequence[Sampling]
    n: int = 1
    stops: tuple[str, ...] = ()
    tools: list[Any] | None = None
    parsed: bool = False

    async def increments(self) -> AsyncGenerator[Increment]:
        """Yield the new text of any choice as it is generated.

        Choice i of prompt p has the index p * n + i. Closing the generator stops all choices.
        """
        news = asyncio.Queue[Increment | BaseException]()
        # choices are generated at the same time, and share one queue
        tasks = [
            asyncio.create_task(self._choice(p * self.n + i, p, news))
            for p in range(len(self.prompts))
            for i in range(self.n)
        ]
        open_choices = len(tasks)
        try:
            while open_choices:
                increment = await news.get()
                if isinstance(increment, BaseException):
                    raise increment
                open_choices -= increment.finish is not None
                yield increment
        finally:
            for task in tasks:
                task.cancel()
            # a client that is gone, or an error of one choice, stops the others
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _choice(self, index: int, prompt: int, news: asyncio.Queue[Any]) -> None:
        try:
            async with aclosing(self._increments(index, prompt)) as steps:
                async for step in steps:
                    news.put_nowait(step)
        except Exception as error:
            news.put_nowait(error)

    async def _increments(self, index: int, prompt: int) -> AsyncGenerator[Increment]:
        ids, sampling = self.prompts[prompt], self.sampling[index]
        served, record = self.generation.served, current()
        tokenizer: Any = served.tokenizer
        parser = _AnswerParser(tokenizer, served.model, ids, self.tools) if self.parsed else None
        words = AnswerText(tokenizer, self.stops, special=parser is not None and parser.active)
        eos, pending = end_tokens(sampling.config.eos_token_id), list[NewToken]()
        has_call, text = False, ""
        # the prompt may end inside a thought, which the answer continues
        yield Increment(index, parser.start() if parser else [])
        async with aclosing(self.generation.tokens(ids, sampling)) as tokens:
            async for token in tokens:
                record.token(sampling.streamed)
                text = words.feed(token.id)
                pending += [] if token.id in eos else [token]
                # neither text nor tokens behind a stop text belong to the answer
                if words.stopped:
                    break
                if text:
                    parts = parser.feed(text) if parser else [text]
                    has_call = has_call or _has_call(parts)
                    yield Increment(index, parts, pending)
                    pending = []
        # the rest: the text held back because a stop text might have begun in it
        text = text if words.stopped else words.end()
        parts = (parser.feed(text) + parser.end()) if parser else [text] if text else []
        ended = words.stopped or not eos.isdisjoint(words.ids[-1:])
        # "stop" by an end token or a stop text, "length" if the tokens were used up
        finish = "stop" if ended or len(words.ids) < sampling.config.max_new_tokens else "length"
        finish = "tool_calls" if has_call or _has_call(parts) else finish
        yield Increment(index, parts, [] if words.stopped else pending, finish)


class AnswerText:
    """Decoder of tokens into text that can be sent: whole characters, and no stop text.

    An end of the text in which a stop text may begin is held back. tokenizer: of the model; stops:
    texts that end the answer; special: special tokens are shown. `ids`: all tokens; `stopped`: a
    stop text has come, and nothing behind it counts.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str] = (), *, special: bool = False) -> None:
        self.tokenizer, self.stops, self.special = tokenizer, stops, special
        self.stream = DecodeStream([], skip_special_tokens=not special)
        self.ids, self.stopped = list[int](), False
        self.decoded = self.held = ""

    def feed(self, token: int) -> str:
        """Add a token, and return the text that can be sent now, "" if none can."""
        self.ids.append(token)
        return self._sendable_text(self.stream.step(self.tokenizer.backend_tokenizer, token) or "")

    def end(self) -> str:
        """Return the text that was held back, half of a character included."""
        decoded = self.tokenizer.decode(self.ids, skip_special_tokens=not self.special)
        rest = decoded[len(self.decoded) :] if decoded.startswith(self.decoded) else ""
        return self._sendable_text(rest) + ("" if self.stopped else self.held)

    def _sendable_text(self, text: str) -> str:
        """Add decoded text, and return all of it but an end in which a stop text may begin."""
        self.decoded += text
        self.held += text
        if starts := [start for stop in self.stops if (start := self.held.find(stop)) >= 0]:
            self.stopped = True
            return self.held[: min(starts)]
        # hold back the longest end that a stop text begins with
        longest = min(len(self.held), max(map(len, self.stops), default=1) - 1)
        keep = next(
            (size for size in range(longest, 0, -1) if self._begins_stop_text(self.held[-size:])),
            0,
        )
        out, self.held = self.held[: len(self.held) - keep], self.held[len(self.held) - keep :]
        return out

    def _begins_stop_text(self, text: str) -> bool:
        return any(stop.startswith(text) for stop in self.stops)


class _AnswerParser:
    """Parser of text into content, thoughts and calls of tools, by the model's own rules."""

    def __init__(self, tokenizer: Any, model: Any, ids: list[int], tools: list[Any] | None) -> None:
        # text that does not fit the rules, such as a call that is no JSON, is content
        self.parser = build_response_parser(tokenizer, model, ids, tools=tools)

    @property
    def active(self) -> bool:
        """True if marks between the parts are to be read."""
        return self.parser is not None

    def start(self) -> list[Any]:
        """Return the thoughts that the prompt has begun, which the answer continues."""
        events = [] if self.parser is None else self.parser.initial_events
        return [p for p in response_events_to_chunks(events) if isinstance(p, ReasoningText)]

    def feed(self, text: str) -> list[Any]:
        """Return the parts that a piece of text completes: str, `ReasoningText` or `ToolCall`."""
        if self.parser is None or not text:
            return [text] if text else []
        try:
            return response_events_to_chunks(self.parser.feed(text))
        # a small model's call may be no JSON: the client then sees the text itself
        except (ValueError, RuntimeError, KeyError, TypeError) as error:
            LOG.warning("an answer does not have its model's form: %s", error)
            self.parser = None
            return [text]

    def end(self) -> list[Any]:
        """Return the parts that are still open at the end of the answer."""
        if self.parser is None:
            return []
        try:
            return response_events_to_chunks(self.parser.finalize()[1])
        except (ValueError, RuntimeError, KeyError, TypeError):  # it ends in the middle of a call
            return []


def _has_call(parts: list[Any]) -> bool:
    return any(isinstance(part, ToolCall) for part in parts)
