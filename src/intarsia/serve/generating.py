"""How a model's requests are carried out: in one continuous batch, or one after another.

Requests of a model run together: in a batch of native steps where those can compute the model, else
in transformers' continuous batching. What its batch cannot do, such as penalties of repetition from
the model's own settings, runs separately, on the one thread that all models share.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import aclosing
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from ..decode.native_decoder import why_not
from ..decode.native_generation import generate_natively
from .models import ServedModel
from .native_batch import NativeBatch
from .refusals import DEAD, Refused
from .sampling import NewToken, RequestLogits, Sampling
from .settings import Limits
from .stock_batch import StockBatch, may_batch


class Generations:
    """Batches of all models, and the thread for requests that cannot be batched."""

    def __init__(self, models: Mapping[str, ServedModel], limits: Limits) -> None:
        self.thread = ThreadPoolExecutor(1, "generate")
        self.of = {n: Generation(model, limits, self.thread) for n, model in models.items()}

    def alive(self) -> bool:
        """Return whether no batch has died of an error."""
        return all(generation.alive() for generation in self.of.values())

    def shutdown(self) -> None:
        """Let go of every thread."""
        for generation in self.of.values():
            generation.stop()
        self.thread.shutdown(wait=True, cancel_futures=True)


class Generation:
    """Generator of the answers of one model, in a batch or one by one.

    A model that native steps can compute has a batch of them, which takes greedy and sampled
    requests; another model has transformers' batch, which takes greedy ones. served: the model;
    limits: of the server; thread: for requests that cannot be batched.
    """

    def __init__(self, served: ServedModel, limits: Limits, thread: ThreadPoolExecutor) -> None:
        self.served, self.limits, self.thread = served, limits, thread
        self.batch: NativeBatch | StockBatch | None = None
        self.native = not why_not(served.model)

    async def tokens(self, ids: list[int], sampling: Sampling) -> AsyncGenerator[NewToken]:
        """Yield the tokens of an answer; closing the generator stops the request.

        Raises: Refused, 503, if the batch has ended by an error.
        """
        if not self.alive():
            raise Refused(503, DEAD)
        # what the batch cannot do runs alone, on the thread that all models share
        batched = self.limits.batching != "none" and self._takes(sampling)
        draw = self._started(sampling).tokens if batched else self._by_itself
        async with aclosing(draw(ids, sampling)) as tokens:
            async for token in tokens:
                yield token

    def alive(self) -> bool:
        """Return whether the batch takes requests."""
        return self.batch is None or self.batch.alive()

    def stop(self) -> None:
        """End the batch; requests that are still in it fail."""
        if self.batch is not None:
            self.batch.stop()

    def _takes(self, sampling: Sampling) -> bool:
        """Return True if this model's batch can draw tokens by a request's settings."""
        if self.native:
            return sampling.usual
        return may_batch(self.served.model) and sampling.plain

    def _started(self, sampling: Sampling) -> NativeBatch | StockBatch:
        """Return the batch of this model, which is started for its first request."""
        if self.batch is None and self.native:
            self.batch = NativeBatch(self.served, self.limits)
        elif self.batch is None:
            self.batch = StockBatch(self.served, self.limits, sampling.config)
        return self.batch

    async def _by_itself(self, ids: list[int], sampling: Sampling) -> AsyncGenerator[NewToken]:
        """Yield the tokens of a request that runs alone, on the shared thread."""
        loop, tokens = asyncio.get_running_loop(), asyncio.Queue[NewToken | None]()
        client_gone = threading.Event()

        def send(token: NewToken) -> None:
            # `generate` runs on another thread, and queues of asyncio are not safe there
            loop.call_soon_threadsafe(tokens.put_nowait, token)

        def end(done: Future[None] | asyncio.Future[None]) -> None:
            if not done.cancelled():
                # marks the error as read: `await work` raises it below if the client is still there
                done.exception()
            tokens.put_nowait(None)

        work = loop.run_in_executor(self.thread, self._generate, ids, sampling, send, client_gone)
        work.add_done_callback(end)
        try:
            while (token := await tokens.get()) is not None:
                yield token
            await work
        finally:
            # this ends `generate` at its next token
            client_gone.set()
            work.cancel()

    def _generate(
        self,
        ids: list[int],
        sampling: Sampling,
        send: Callable[[NewToken], None],
        client_gone: threading.Event,
    ) -> None:
        """Run one request through transformers' `generate`, on the calling thread."""
        # the client may have left while the request waited for the thread
        if client_gone.is_set():
            return
        model = self.served.model
        rows = torch.tensor([ids], device=model.device)
        devices = [model.device] if model.device.type == "cuda" else []
        logits = RequestLogits(sampling, len(ids))
        # a seed of one request must not touch the draws of others
        with torch.random.fork_rng(devices, enabled=sampling.seed is not None):
            if sampling.seed is not None:
                torch.manual_seed(sampling.seed)
            generate_natively(
                model,
                input_ids=rows,
                attention_mask=torch.ones_like(rows),
                generation_config=sampling.config,
                tokenizer=self.served.tokenizer,
                streamer=_Streamer(logits, send),
                logits_processor=LogitsProcessorList([logits]),
                stopping_criteria=StoppingCriteriaList([_ClientGone(client_gone)]),
            )


class _Streamer:
    """Receiver of the tokens of transformers' `generate`: the prompt first, then each new token."""

    def __init__(self, logits: RequestLogits, send: Callable[[NewToken], None]) -> None:
        self.logits, self.send, self.prompt = logits, send, True

    def put(self, value: Tensor) -> None:
        """Send a new token; the first call has the prompt, which is skipped."""
        if not self.prompt:
            self.send(self.logits.token(int(value)))
        self.prompt = False

    def end(self) -> None:
        """Do nothing: the call of `generate` ends."""


class _ClientGone(StoppingCriteria):
    """Criterion that ends a generation after its client has hung up."""

    def __init__(self, event: threading.Event) -> None:
        self.event = event

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        return torch.full((len(input_ids),), self.event.is_set(), device=input_ids.device)
