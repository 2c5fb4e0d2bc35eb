"""Requests of a model in one batch of native steps: they join and leave between two tokens."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Any

from ..decode.native_decoder import ROWS, SLOTS, NativeText
from .models import ServedModel
from .refusals import DEAD, Refused
from .sampling import NewToken, Sampling, TokenDraw, end_tokens
from .settings import Limits

LOG = logging.getLogger(__name__)
PIECE = 256  # tokens of a prompt that torch's products compute between two tokens of the answers


@dataclass
class _SlotRequest:
    """Request in the batch, with its place in the cache and the number of prompt tokens in it."""

    ids: list[int]
    draw: TokenDraw
    last: frozenset[int]  # tokens that end an answer
    tokens: int  # of the answer, at most
    # gets each token, None at the end, or an error; called from the batch's thread
    send: Callable[[Any], object]
    # the client has left
    abandoned: bool = False
    slot: int = -1
    read: int = 0


class NativeBatch:
    """Continuous batch of a decoder that `NativeText` computes, on a thread of its own.

    Requests join and leave between two tokens. Each has a slot of the cache, up to 16 at once, and
    its own random draws: greedy and sampled requests share the batch. Its tokens do not depend on
    the others, to the last bit. Prompts are read by pieces, of 64 tokens where native steps compute
    them and of 256 where torch does, one or two between two tokens of the answers: what is left of
    a prompt first if it is no more than a piece, then a piece of the oldest longer one, so that a
    long prompt delays neither answers nor short prompts.
    """

    def __init__(self, served: ServedModel, limits: Limits) -> None:
        """Start the thread that computes all requests of a model, `limits.at_once` at a time."""
        self.served, self.slots = served, min(limits.at_once, SLOTS)
        self.waiting, self.running = deque[_SlotRequest](), list[_SlotRequest]()
        self.free = list(range(self.slots))
        self.changed = threading.Condition()  # guards the three lists above, and `ending`
        self.ending, self.failed = False, False
        self.thread = threading.Thread(target=self._run, name=f"native {served.name}", daemon=True)
        self.thread.start()

    def alive(self) -> bool:
        """Return whether the batch takes requests."""
        return not self.failed

    async def tokens(self, ids: list[int], sampling: Sampling) -> AsyncGenerator[NewToken]:
        """Yield the tokens of a request; closing the generator stops it.

        Raises: Refused, 503, if the batch has ended.
        """
        loop, news = asyncio.get_running_loop(), asyncio.Queue[Any]()
        config = sampling.config
        request = _SlotRequest(
            ids,
            TokenDraw(sampling, ids),
            end_tokens(config.eos_token_id),
            config.max_new_tokens,
            # the batch has its own thread, and queues of asyncio are not safe there
            lambda news_item: loop.call_soon_threadsafe(news.put_nowait, news_item),
        )
        with self.changed:
            if self.ending or self.failed:
                raise Refused(503, DEAD)
            self.waiting.append(request)
            self.changed.notify()
        try:
            while (item := await news.get()) is not None:
                if isinstance(item, Refused):
                    raise item
                yield item
        finally:
            with self.changed:
                request.abandoned = True
                self.changed.notify()

    def stop(self) -> None:
        """End the batch and its thread; requests that are still in it fail."""
        with self.changed:
            self.ending = True
            self.changed.notify()
        self.thread.join(30)

    def _run(self) -> None:
        """Read prompts and draw tokens until the batch ends; an error ends it, too."""
        try:
            length = self.served.context
            text = NativeText(self.served.model, slots=self.slots, length=length)
            while self._admit(text):
                self._read_prompts(text)
                self._draw_tokens(text)
        except Exception:
            LOG.exception("the batch of %s has died", self.served.name)
            self.failed = True
        with self.changed:
            self.ending = True
            for request in (*self.waiting, *self.running):
                self._send(request, Refused(503, DEAD))

    def _admit(self, text: NativeText) -> bool:
        """Wait for work, and give waiting requests free slots; return False once the batch ends."""
        with self.changed:
            self.changed.wait_for(lambda: self.ending or self.waiting or self.running)
            for request in [request for request in self.running if request.abandoned]:
                self._release(request)
            while self.free and self.waiting:
                request = self.waiting.popleft()
                if not request.abandoned:
                    request.slot = self.free.pop()
                    text.clear(request.slot)
                    self.running.append(request)
            return not self.ending

    def _read_prompts(self, text: NativeText) -> None:
        """Read about a piece of short prompts and one of a long one; draw behind whole prompts."""
        # pieces have a fixed length, since the last bits depend on where a prompt is divided
        piece = ROWS if text.most >= PIECE or text.windows else PIECE
        unread = [(len(r.ids) - r.read, r) for r in self.running if r.read < len(r.ids)]
        room = piece
        for count, request in unread:
            if count <= piece and room > 0:
                self._read(text, request, piece)
                room -= count
        if longer := [request for count, request in unread if count > piece]:
            self._read(text, longer[0], piece)

    def _read(self, text: NativeText, request: _SlotRequest, piece: int) -> None:
        """Read the next piece of a prompt, and draw the first token behind a whole one."""
        tokens = request.ids[request.read : request.read + piece]
        logits = text.prefill(request.slot, tokens)
        request.read += len(tokens)
        if request.read == len(request.ids):
            self._draw(request, logits)

    def _draw_tokens(self, text: NativeText) -> None:
        """Draw the next token of each answer that has begun, all in one native call."""
        begun = [request for request in self.running if request.read == len(request.ids)]
        if not begun:
            return
        tokens = [request.draw.ids[-1] for request in begun]
        logits = text.step(tokens, [request.slot for request in begun])
        for request, row in zip(begun, logits, strict=True):
            self._draw(request, row)

    def _draw(self, request: _SlotRequest, logits: Any) -> None:
        """Draw a request's next token and send it, and release the request after its last one."""
        try:
            token = request.draw(logits)
        # logits that are no numbers: this request is refused, others continue
        except Refused as refusal:
            self._send(request, refusal)
            self._release(request)
            return
        self._send(request, token)
        count = len(request.draw.ids) - len(request.ids)
        if token.id in request.last or count >= request.tokens:
            self._send(request, None)
            self._release(request)

    def _release(self, request: _SlotRequest) -> None:
        """Remove a request from the batch, and free its slot."""
        self.running.remove(request)
        self.free.append(request.slot)

    def _send(self, request: _SlotRequest, item: Any) -> None:
        """Send a token, None for the end, or an error to the request's client."""
        try:
            request.send(item)
        except RuntimeError:
            request.abandoned = True
