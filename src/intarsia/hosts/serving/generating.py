"""How a model's requests are carried out: in one continuous batch, or one after another.

Greedy requests of a model run together, as transformers' continuous batching does it. That has one
setting for the whole batch, so a request that samples, or ends at a string, runs by itself on the
one thread that all models share.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from fastapi import HTTPException
from transformers import ContinuousBatchingConfig, GenerationConfig, StoppingCriteria
from transformers.cli.serving.utils import (
    BaseGenerateManager,
    CBGenerateManager,
    CBStreamer,
    CBWorkerDeadError,
    DirectStreamer,
    GenerationState,
    _GenerationCancelled,
    _StreamError,
)

from .models import ServedModel
from .settings import Limits, Request, current

LOG = logging.getLogger(__name__)
PAGE = 32  # tokens of a block of the cache of keys and values
PREFILL = 1024  # tokens of one forward at most


class Generations(GenerationState):
    """The batch of each model, and the thread for what cannot be batched.

    transformers' own has one batch, which ends when another model is asked for.
    """

    def __init__(self, models: dict[str, ServedModel], limits: Limits) -> None:
        super().__init__(continuous_batching=True)
        self.limits, self.models = limits, models
        self.thread = ThreadPoolExecutor(1, "generate")
        self.found: dict[str, Generation] = {}

    def use_continuous_batching(self, model: Any, modality: Any) -> bool:
        """Always: prompts come as lists, and `Generation` decides."""
        return True

    def get_manager(self, model_id: str, use_cb: bool = False) -> Generation:
        if model_id not in self.found:
            of = self.models[model_id]
            self.found[model_id] = Generation(of, self.limits, self.thread)
        return self.found[model_id]

    def is_cb_alive(self) -> bool:
        return all(one.batch.is_alive() for one in self.found.values())

    def shutdown(self) -> None:
        """Let go of every thread."""
        for one in self.found.values():
            one.stop()
        self.thread.shutdown(wait=True, cancel_futures=True)


class _Texts(asyncio.Queue[Any]):
    """The texts of a stream, and at its end what was held back: half of a character.

    transformers' streams leave that out, so that their text is not that of the whole answer.
    """

    def __init__(self, whole: Callable[[], str]) -> None:
        super().__init__()
        self.sent, self.whole = "", whole

    def put_nowait(self, item: Any) -> None:
        if isinstance(item, str):
            self.sent += item
        elif item is None and (whole := self.whole()).startswith(self.sent) and whole != self.sent:
            super().put_nowait(whole[len(self.sent) :])
        super().put_nowait(item)


class _Streamer(CBStreamer):
    """Tells the request of each token, and takes its handler along when it is cancelled."""

    def __init__(self, forget: Callable[[], None], *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._forget = forget

    def cancel(self) -> None:
        super().cancel()
        self._forget()


class _Direct(DirectStreamer):
    """Tells the request of each token."""

    def __init__(self, told: Request, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._told, self.made = told, list[int]()

    def put(self, value: torch.Tensor) -> None:
        prompt = self._first
        if not prompt:
            self.made += value.tolist()
        super().put(value)
        if not prompt:
            self._told.token()


class _Gone(StoppingCriteria):
    """Ends a generation whose client has hung up."""

    def __init__(self) -> None:
        self.event = threading.Event()

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        return torch.full((len(input_ids),), self.event.is_set(), device=input_ids.device)


class Generation(BaseGenerateManager):
    """The requests of one model."""

    def __init__(self, of: ServedModel, limits: Limits, thread: ThreadPoolExecutor) -> None:
        self.of, self.limits, self.thread = of, limits, thread
        self.batch = CBGenerateManager(_batch_config(of, limits))
        self.lock = threading.Lock()

    def generate_streaming(
        self,
        model: Any,
        processor: Any,
        inputs: Any,
        gen_config: GenerationConfig,
        request_id: str,
        response_parser: Any = None,
    ) -> tuple[asyncio.Queue[Any], Any]:
        ids = self._fitted(inputs, gen_config)
        loop, rust, told = asyncio.get_running_loop(), processor._tokenizer, current()
        made: list[int] = []
        plain = response_parser is None
        queue = _Texts(lambda: processor.decode(made, skip_special_tokens=plain) if plain else "")
        if not self._batched(gen_config):
            direct = _Direct(told, rust, loop, queue, response_parser=response_parser)
            made = direct.made

            def run() -> None:
                try:
                    self._alone(ids, gen_config, told, streamer=direct)
                except _GenerationCancelled:
                    loop.call_soon_threadsafe(queue.put_nowait, None)
                except Exception as error:
                    loop.call_soon_threadsafe(queue.put_nowait, _said(error))

            self.thread.submit(run)
            return queue, direct
        name, forget = self._name()
        cb = self.batch._cb
        streamer = _Streamer(forget, cb, name, rust, loop, queue, response_parser=response_parser)

        def hear(output: Any) -> None:
            made[:] = output.generated_tokens
            try:
                told.generated = len(output.generated_tokens) - 1
                told.token()
                streamer.put(output)
            except Exception as error:
                queue.put_nowait(_said(error))
                return
            if output.error is not None:
                queue.put_nowait(_said(output.error))
            if output.error is not None or output.is_finished():
                streamer.end()

        self._add(name, ids, gen_config, hear, streaming=True)
        return queue, streamer

    async def generate_non_streaming(
        self,
        model: Any,
        processor: Any,
        inputs: Any,
        gen_config: GenerationConfig,
        request_id: str,
    ) -> tuple[str, int, Any]:
        ids, told = self._fitted(inputs, gen_config), current()
        if self._batched(gen_config):
            made = await self._in_batch(ids, gen_config)
        else:
            made = await self._by_itself(ids, gen_config, told)
        told.generated = len(made)
        return processor.decode(made, skip_special_tokens=True), len(ids), made

    async def _in_batch(self, ids: list[int], config: GenerationConfig) -> list[int]:
        name, forget = self._name()
        future = asyncio.get_running_loop().create_future()

        def hear(output: Any) -> None:
            if not future.done():
                future.set_result(output)

        try:
            self._add(name, ids, config, hear, streaming=False)
            output = await future
        except asyncio.CancelledError:
            self.batch._cb.cancel_request(name)  # pyright: ignore[reportOptionalMemberAccess]
            raise
        finally:
            forget()
        if output.error is not None:  # whatever fails in the batch ends it
            raise CBWorkerDeadError(output.error)
        return output.generated_tokens

    async def _by_itself(
        self, ids: list[int], config: GenerationConfig, told: Request
    ) -> list[int]:
        gone, loop = _Gone(), asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(
                self.thread, lambda: self._alone(ids, config, told, stopping_criteria=[gone])
            )
        except asyncio.CancelledError:
            gone.event.set()
            raise

    def _alone(self, ids: list[int], config: Any, told: Request, **named: Any) -> list[int]:
        """One request through `generate`: the new tokens."""
        model, config = self.of.model, copy.deepcopy(config)
        config.use_cache = True
        rows = torch.tensor([ids], device=model.device)
        devices = [model.device] if model.device.type == "cuda" else []
        with torch.random.fork_rng(devices, enabled=told.seed is not None):
            if told.seed is not None:
                torch.manual_seed(told.seed)
            whole = model.generate(
                input_ids=rows,
                attention_mask=torch.ones_like(rows),
                generation_config=config,
                tokenizer=self.of.tokenizer,
                **named,
            )
        return whole[0, len(ids) :].tolist()

    def _fitted(self, inputs: Any, config: GenerationConfig) -> list[int]:
        """The prompt's tokens.  Raises: HTTPException, 400, where answer and prompt have no room.

        A number of tokens that was not asked for gives way to the model's context.
        """
        ids, told, context = list(inputs["input_ids"]), current(), self.of.context
        told.prompt, room = len(ids), context - len(ids)
        asked = int(config.max_new_tokens or 1) if told.asked else 1
        if not ids:
            raise HTTPException(400, "prompt: got no tokens, want some text. Say something.")
        if room < asked:
            got = f"{len(ids)} tokens of prompt and {asked} of answer"
            fix = "Shorten the prompt, or lower max_tokens."
            raise HTTPException(400, f"prompt: got {got}, want at most {context} together. {fix}")
        config.max_new_tokens = min(int(config.max_new_tokens or 1), room)
        return ids

    def _batched(self, config: Any) -> bool:
        """Whether a request may run in the batch: greedy, and nothing else is asked for."""
        model = self.of.model
        greedy = not config.do_sample and not config.stop_strings and config.num_beams in (None, 1)
        if self.limits.batching == "none" or not greedy or not _may_batch(model):
            return False
        if len(model._get_logits_processor(config)):
            return False
        with self.lock:
            if self.batch._cb is None:
                plain = GenerationConfig(
                    do_sample=False, eos_token_id=config.eos_token_id, max_new_tokens=1
                )
                self.batch.init_cb(model, plain)
        return True

    def _name(self) -> tuple[str, Callable[[], None]]:
        """A name of our own for the batch, since clients choose theirs, and how to forget it."""
        name, cb = uuid.uuid4().hex, self.batch._cb
        assert cb is not None
        self.batch._check_alive(name)

        def forget() -> None:
            with cb.output_router._lock:
                cb.output_router.result_handlers.pop(name, None)

        return name, forget

    def _add(
        self,
        name: str,
        ids: list[int],
        config: Any,
        hear: Callable[[Any], None],
        *,
        streaming: bool,
    ) -> None:
        """Hand a request to the batch; whoever hears its answer listens before it can come."""
        cb = self.batch._cb
        assert cb is not None
        cb.register_result_handler(name, hear)
        added = cb.add_request(
            ids,
            request_id=name,
            max_new_tokens=config.max_new_tokens,
            streaming=streaming,
            eos_token_id=config.eos_token_id,
        )
        if added is None:  # refused, and nobody would ever answer
            raise CBWorkerDeadError("The batch takes no more requests.")

    def stop(self) -> None:
        """End the batch; what is still in it fails.  transformers' `stop` collects garbage, too."""
        if (cb := self.batch._cb) is not None:
            cb.background_thread_status.request_stop(
                cb.background_thread_status.HARD_STOP, cb.distributed_helper.global_rank
            )
            cb._wake_up_loop.set()
            cb.join(time.perf_counter(), timeout=30)


def _may_batch(model: Any) -> bool:
    """Paged attention needs SDPA or flash attention, and a model that knows them."""
    return hasattr(model, "init_continuous_batching") and model.config._attn_implementation != (
        "eager"
    )


def _batch_config(of: ServedModel, limits: Limits) -> ContinuousBatchingConfig:
    """On a CPU, room for what may be in the works at once; elsewhere transformers measures it."""
    if of.model.device.type != "cpu":
        return ContinuousBatchingConfig(max_requests_per_batch=limits.at_once)
    pages = -(-of.context // PAGE)
    return ContinuousBatchingConfig(
        page_size=PAGE,
        num_blocks=pages * min(limits.at_once, 4) + 1,
        max_batch_tokens=max(PREFILL, limits.at_once),
        max_requests_per_batch=limits.at_once,
    )


def _said(error: object) -> _StreamError:
    """An error for a stream, which has begun; what is wrong inside is no client's business."""
    known = isinstance(error, Exception)
    LOG.error("generation failed: %s", error, exc_info=error if known else None)
    return _StreamError("An error inside; the server's log says which.")
