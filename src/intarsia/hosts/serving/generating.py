"""How a model's requests are carried out: in one continuous batch, or one after another.

Greedy requests of a model run together, as transformers' continuous batching does it. That has one
setting for the whole batch and tells no other token's probability, so a request that samples,
changes logits or wants log-probabilities runs by itself, on the one thread that all models share.
"""

from __future__ import annotations

import asyncio
import copy
import threading
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import (
    ContinuousBatchingConfig,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from .models import ServedModel
from .refusals import Refused
from .settings import Limits

PAGE = 32  # tokens of a block of the cache of keys and values
PREFILL = 1024  # tokens of one forward at most
COLD = 1e-4  # a temperature below it overflows logits: it takes the likeliest token
# of a GenerationConfig, what leaves a greedy answer alone, or is given to the batch by request
IN_BATCH = frozenset(
    (
        *("bos_token_id", "eos_token_id", "pad_token_id", "max_new_tokens", "do_sample"),
        *("num_beams", "use_cache", "transformers_version", "_from_model_config"),
    )
)
DEAD = "The model has stopped after an error. Restart the server; its log says why."


@dataclass(frozen=True)
class Sampling:
    """Settings by which the tokens of one answer are drawn.

    bias: added to logits, by token id.  frequency, presence: OpenAI's penalties.  top: number of
    the likeliest tokens that come with log-probabilities; None: no log-probabilities.
    streamed: tokens are sent one by one.
    """

    config: GenerationConfig
    seed: int | None = None
    bias: Mapping[int, float] = field(default_factory=dict)
    frequency: float = 0.0
    presence: float = 0.0
    top: int | None = None
    streamed: bool = False

    @property
    def plain(self) -> bool:
        """True if a batch of greedy requests draws the same tokens."""
        settings = self.config.to_diff_dict().items()
        # anything that differs from a greedy default would change the draws of others in the batch
        changed = {name for name, value in settings if value not in (None, False)} - IN_BATCH
        adjusted = self.bias or self.frequency or self.presence or self.top is not None
        return not (changed or adjusted or self.config.do_sample)


@dataclass(frozen=True)
class NewToken:
    """Drawn token, with its log-probability and those of the likeliest, if requested."""

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


def configured(defaults: GenerationConfig, parameters: Mapping[str, Any]) -> GenerationConfig:
    """Return a model's own settings with a request's: temperature, top_p.

    Without either the model's own hold, whether they sample or not.
    """
    # temperature 0 is greedy, as OpenAI has it; transformers refuses a 0
    config = copy.deepcopy(defaults)
    config.max_length, config.use_cache, config.num_beams = None, True, 1
    temperature, top_p = parameters.get("temperature"), parameters.get("top_p")
    if (temperature is not None and temperature < COLD) or top_p == 0:
        config.do_sample = False
    elif temperature is not None or top_p is not None:
        config.do_sample = True
        config.temperature = config.temperature if temperature is None else float(temperature)
        config.top_p = config.top_p if top_p is None else float(top_p)
    if not config.do_sample:
        config.temperature = config.top_p = config.top_k = None
    return config


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
    """Generator of the answers of one model, in its batch or one by one."""

    def __init__(self, served: ServedModel, limits: Limits, thread: ThreadPoolExecutor) -> None:
        self.served, self.limits, self.thread = served, limits, thread
        self.batch: Any = None

    async def tokens(self, ids: list[int], sampling: Sampling) -> AsyncGenerator[NewToken]:
        """Yield the tokens of an answer; one that is closed before its end is given up.

        Raises: Refused, 503, where the model has died of an error.
        """
        if not self.alive():
            raise Refused(503, DEAD)
        # greedy requests share a batch, all others run one by one
        draw = self._in_batch if self._batched(sampling) else self._by_itself
        async with aclosing(draw(ids, sampling)) as tokens:
            async for token in tokens:
                yield token

    def alive(self) -> bool:
        """Return whether the batch takes requests."""
        return self.batch is None or self.batch.background_thread_status.fatal_error is None

    async def _in_batch(self, ids: list[int], sampling: Sampling) -> AsyncGenerator[NewToken]:
        """Yield the tokens of a request that runs in the continuous batch."""
        # a name of our own, since clients choose theirs
        name, outputs = uuid.uuid4().hex, asyncio.Queue[Any]()
        config, batch = sampling.config, self._started(sampling.config)
        batch.register_result_handler(name, outputs.put_nowait)
        count, finished = 0, False
        try:
            # None where the batch takes no more: it has ended
            added = batch.add_request(
                ids,
                request_id=name,
                max_new_tokens=config.max_new_tokens,
                streaming=sampling.streamed,
                eos_token_id=config.eos_token_id,
            )
            while not finished:
                output = await outputs.get() if added is not None else None
                if output is None or output.error is not None:  # whatever fails in a batch ends it
                    raise Refused(503, DEAD)
                for token in output.generated_tokens[count:]:
                    yield NewToken(token)
                count, finished = len(output.generated_tokens), output.is_finished()
        finally:
            if not finished:
                batch.cancel_request(name)
            batch.output_router.result_handlers.pop(name, None)

    async def _by_itself(self, ids: list[int], sampling: Sampling) -> AsyncGenerator[NewToken]:
        """Yield the tokens of a request that runs alone, on the shared thread."""
        loop, tokens = asyncio.get_running_loop(), asyncio.Queue[NewToken | None]()
        client_gone = threading.Event()

        def send(token: NewToken) -> None:
            # `generate` runs on another thread, and queues of asyncio are not safe there
            loop.call_soon_threadsafe(tokens.put_nowait, token)

        def end(done: Future[None] | asyncio.Future[None]) -> None:
            if not done.cancelled():
                done.exception()  # heard below, unless nobody is there any more
            tokens.put_nowait(None)

        work = loop.run_in_executor(self.thread, self._generate, ids, sampling, send, client_gone)
        work.add_done_callback(end)
        try:
            while (token := await tokens.get()) is not None:
                yield token
            await work
        finally:
            client_gone.set()
            work.cancel()

    def _generate(
        self,
        ids: list[int],
        sampling: Sampling,
        send: Callable[[NewToken], None],
        client_gone: threading.Event,
    ) -> None:
        """Run one request through `generate`.  send: is called with each token, on this thread."""
        if client_gone.is_set():
            return
        model = self.served.model
        rows = torch.tensor([ids], device=model.device)
        devices = [model.device] if model.device.type == "cuda" else []
        logits = _Logits(sampling, len(ids))
        # a seed of one request must not touch the draws of others
        with torch.random.fork_rng(devices, enabled=sampling.seed is not None):
            if sampling.seed is not None:
                torch.manual_seed(sampling.seed)
            model.generate(
                input_ids=rows,
                attention_mask=torch.ones_like(rows),
                generation_config=sampling.config,
                tokenizer=self.served.tokenizer,
                streamer=_Streamer(logits, send),
                logits_processor=LogitsProcessorList([logits]),
                stopping_criteria=StoppingCriteriaList([_ClientGone(client_gone)]),
            )

    def _batched(self, sampling: Sampling) -> bool:
        """Return whether a request runs in the batch: it is greedy, and asks for nothing else."""
        return self.limits.batching != "none" and _may_batch(self.served.model) and sampling.plain

    def _started(self, config: GenerationConfig) -> Any:
        """Return the batch, which is made for the first request."""
        if self.batch is None:
            # settings of the whole batch; length and end tokens come with each request
            plain = GenerationConfig(
                do_sample=False, eos_token_id=config.eos_token_id, max_new_tokens=1
            )
            self.batch = self.served.model.init_continuous_batching(
                generation_config=plain,
                continuous_batching_config=_batch_config(self.served, self.limits),
            )
            self.batch.start()
        return self.batch

    def stop(self) -> None:
        """End the batch; what is still in it fails.  transformers' `stop` collects garbage, too."""
        if self.batch is not None:
            status = self.batch.background_thread_status
            status.request_stop(status.HARD_STOP, self.batch.distributed_helper.global_rank)
            self.batch.join(time.perf_counter(), timeout=30)


class _Logits(LogitsProcessor):
    """Processor that notes the model's log-probabilities, adds a bias and subtracts penalties."""

    def __init__(self, sampling: Sampling, prompt: int) -> None:
        self.sampling, self.prompt = sampling, prompt
        self.raw: Tensor | None = None  # (V,)

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Return logits (1, V).  A penalty is frequency * count + presence * (count > 0)."""
        sampling = self.sampling
        if sampling.top is not None:
            # before any bias or penalty, as OpenAI reports them
            self.raw = scores[0].float().log_softmax(-1)
        if sampling.frequency or sampling.presence:
            # OpenAI counts drawn tokens alone, not those of the prompt
            drawn = input_ids[0, self.prompt :]
            count = torch.zeros_like(scores[0]).index_add_(
                0, drawn, torch.ones_like(drawn, dtype=scores.dtype)
            )
            penalty = sampling.frequency * count + sampling.presence * (count > 0)
            scores = scores - penalty
        if sampling.bias:
            scores = scores.clone()
            biased = torch.tensor(list(sampling.bias), device=scores.device)
            scores[0, biased] += torch.tensor(list(sampling.bias.values())).to(scores)
        return scores

    def token(self, number: int) -> NewToken:
        """Return a token that was drawn, with its log-probability."""
        if self.raw is None:
            return NewToken(number)
        values, ids = self.raw.topk(min(self.sampling.top or 0, len(self.raw)))
        top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
        return NewToken(number, self.raw[number].item(), top)


class _Streamer:
    """Receiver of the tokens of `generate`, the prompt's first."""

    def __init__(self, logits: _Logits, send: Callable[[NewToken], None]) -> None:
        self.logits, self.send, self.prompt = logits, send, True

    def put(self, value: Tensor) -> None:
        """Send a new token; the first call has the prompt, which is skipped."""
        if not self.prompt:
            self.send(self.logits.token(int(value)))
        self.prompt = False

    def end(self) -> None:
        """Do nothing: the call of `generate` ends."""


class _ClientGone(StoppingCriteria):
    """Criterion that ends a generation whose client has hung up."""

    def __init__(self, event: threading.Event) -> None:
        self.event = event

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        return torch.full((len(input_ids),), self.event.is_set(), device=input_ids.device)


def _may_batch(model: Any) -> bool:
    """Return True if paged attention can replace a model's own: SDPA or flash attention."""
    attention = str(model.config._attn_implementation)
    replaceable = attention == "sdpa" or attention.startswith("flash_attention")
    return replaceable and hasattr(model, "init_continuous_batching")


def _batch_config(served: ServedModel, limits: Limits) -> ContinuousBatchingConfig:
    """Configure the batch: on a CPU with room for all requests, elsewhere as transformers measures
    it.
    """
    if served.model.device.type != "cpu":
        return ContinuousBatchingConfig(max_requests_per_batch=limits.at_once)
    # whole contexts of four requests; more wait until pages are free
    pages = -(-served.context // PAGE)
    return ContinuousBatchingConfig(
        page_size=PAGE,
        num_blocks=pages * min(limits.at_once, 4) + 1,
        max_batch_tokens=max(PREFILL, limits.at_once),
        max_requests_per_batch=limits.at_once,
    )
