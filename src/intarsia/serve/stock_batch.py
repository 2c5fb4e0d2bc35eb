"""Greedy requests of a model in one batch of transformers' continuous batching."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator
from typing import Any

from transformers import ContinuousBatchingConfig, GenerationConfig

from .models import ServedModel
from .refusals import DEAD, Refused
from .sampling import NewToken, Sampling
from .settings import Limits

PAGE = 32  # tokens of a block of the cache of keys and values
PREFILL = 1024  # tokens of one forward at most


def may_batch(model: Any) -> bool:
    """Return True if paged attention can replace a model's own: SDPA or flash attention."""
    attention = str(model.config._attn_implementation)
    replaceable = attention == "sdpa" or attention.startswith("flash_attention")
    return replaceable and hasattr(model, "init_continuous_batching")


class StockBatch:
    """Batch of transformers' continuous batching, with one setting for all: greedy requests alone.

    It returns no log-probabilities, and has no penalties.
    """

    def __init__(self, served: ServedModel, limits: Limits, config: GenerationConfig) -> None:
        """Start transformers' continuous batching for a model."""
        # settings of the whole batch; length and end tokens come with each request
        ends = config.eos_token_id
        plain = GenerationConfig(do_sample=False, eos_token_id=ends, max_new_tokens=1)
        self.manager: Any = served.model.init_continuous_batching(
            generation_config=plain, continuous_batching_config=_settings(served, limits)
        )
        self.manager.start()

    def alive(self) -> bool:
        """Return whether the batch takes requests."""
        return self.manager.background_thread_status.fatal_error is None

    async def tokens(self, ids: list[int], sampling: Sampling) -> AsyncGenerator[NewToken]:
        """Yield the tokens of a request; closing the generator stops it.

        Raises: Refused, 503, if the batch has ended.
        """
        # a name of our own, since clients choose theirs
        name, outputs = uuid.uuid4().hex, asyncio.Queue[Any]()
        config, manager = sampling.config, self.manager
        manager.register_result_handler(name, outputs.put_nowait)
        count, finished = 0, False
        try:
            # None if the batch has ended, and accepts no requests
            added = manager.add_request(
                ids,
                request_id=name,
                max_new_tokens=config.max_new_tokens,
                streaming=sampling.streamed,
                eos_token_id=config.eos_token_id,
            )
            while not finished:
                output = await outputs.get() if added is not None else None
                if output is None or output.error is not None:  # any error in a batch ends it
                    raise Refused(503, DEAD)
                for token in output.generated_tokens[count:]:
                    yield NewToken(token)
                count, finished = len(output.generated_tokens), output.is_finished()
        finally:
            if not finished:
                manager.cancel_request(name)
            manager.output_router.result_handlers.pop(name, None)

    def stop(self) -> None:
        """End the batch; requests that are still in it fail.

        transformers' own `stop` would also collect garbage.
        """
        status = self.manager.background_thread_status
        status.request_stop(status.HARD_STOP, self.manager.distributed_helper.global_rank)
        self.manager.join(time.perf_counter(), timeout=30)


def _settings(served: ServedModel, limits: Limits) -> ContinuousBatchingConfig:
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
