"""A decode loop with room made once: greedy tokens of any causal language model of transformers."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.generation.streamers import BaseStreamer

from ..core.checks import at_least
from ..core.errors import ShapeError
from ..core.modes import evaluating
from .fixed_cache import cache_name, fixed_cache
from .native_decoder import SLOTS, NativeText, why_not
from .one_token import one_token
from .spans.head_spans import cache_bytes


@dataclass(frozen=True)
class Generated:
    """Tokens that were added, (B, tokens); seconds of the prompt, and of all but the first.

    bytes: of keys and values.  path: which code computed the tokens, and why not native steps.
    """

    tokens: Tensor
    prompt_seconds: float
    seconds: float
    bytes: int
    path: str = "transformers' generate"

    @property
    def rate(self) -> float:
        """Tokens a second and row, the first apart."""
        return (self.tokens.shape[1] - 1) / max(self.seconds, 1e-9)


@torch.inference_mode()
def generate(
    model: nn.Module,
    ids: Tensor,
    tokens: int,
    *,
    mask: Tensor | None = None,
    heard: Callable[[Tensor], bool | None] = lambda _: None,
) -> Generated:
    """The most likely continuation of prompts, token by token, as `generate` without sampling.

    ids: (B, T); padded on the left, with mask (B, T).  tokens: to add; the end of a text does not
    stop it.  heard: is given each new token (B,), and stops by True.
    Keys and values have their room from the start. A token of a Llama-like decoder is one call of
    native steps (`NativeText`), of another model its own forward: the result's `path` says which.
    For throughput of many requests see `intarsia serve`, which batches; this is for latency.
    Raises: ShapeError for anything but rows of tokens; ConfigError for no token.
    """
    if ids.dim() != 2 or ids.is_floating_point() or not ids.numel():
        fix = "Pass tokenizer(text, return_tensors='pt').input_ids."
        raise ShapeError("ids", got=tuple(ids.shape), want="(B, T) token ids", fix=fix)
    at_least("tokens", tokens, 1)
    padded = mask is not None and not bool(mask.all())
    reason = why_not(model) or ("" if len(ids) <= SLOTS else f"more than {SLOTS} texts")
    way: _Native | _Stock
    if reason:
        way = _Stock(model, ids, mask if padded else None, tokens)
    else:
        way = _Native(model, ids, mask if padded else None, tokens)
    made = ids.new_zeros(len(ids), tokens)
    clock = began = time.perf_counter()
    with evaluating(model):
        for at in range(tokens):
            logits = way.prompt() if at == 0 else way.step(made[:, at - 1])
            made[:, at] = new = logits.argmax(-1)
            if at == 0:
                clock = time.perf_counter()
            if heard(new):
                made = made[:, : at + 1]
                break
    ended = time.perf_counter()
    path = f"transformers' layers: {reason}" if reason else "native steps, one call a token"
    return Generated(made, clock - began, ended - clock, way.nbytes, path)


class _Native:
    """Texts by native steps; padding is left out."""

    def __init__(self, model: nn.Module, ids: Tensor, mask: Tensor | None, tokens: int) -> None:
        keep = torch.ones_like(ids) if mask is None else mask
        self.prompts = [row[some.bool()].tolist() for row, some in zip(ids, keep, strict=True)]
        self.text = NativeText(model, slots=len(ids), length=ids.shape[1] + tokens)
        self.nbytes = self.text.nbytes

    def prompt(self) -> Tensor:
        """(B, V), behind the prompts."""
        return torch.stack([self.text.prefill(slot, row) for slot, row in enumerate(self.prompts)])

    def step(self, new: Tensor) -> Tensor:
        """(B,) -> (B, V)."""
        return self.text.step(new.tolist())


class _Stock:
    """Texts by the model's own modules, with a cache that is taken once."""

    def __init__(self, model: nn.Module, ids: Tensor, mask: Tensor | None, tokens: int) -> None:
        self.model, self.ids = model, ids
        self.cache = fixed_cache(model, ids.shape[1] + tokens)
        self.name, self.count = cache_name(model), 0
        self.mask = None if mask is None else torch.cat([mask, mask.new_ones(len(ids), tokens)], 1)
        self.short = None if mask is not None else one_token(model)

    @property
    def nbytes(self) -> int:
        return cache_bytes(self.cache)

    def prompt(self) -> Tensor:
        """(B, V), behind the prompts."""
        return self._forward(self.ids)

    def step(self, new: Tensor) -> Tensor:
        """(B,) -> (B, V)."""
        if self.short is None:
            return self._forward(new[:, None])
        self.count += 1
        return self.short(new[:, None], self.cache, self.count - 1)[:, -1]

    def _forward(self, new: Tensor) -> Tensor:
        first, self.count = self.count, self.count + new.shape[1]
        given: dict[str, Any] = {self.name: self.cache, "use_cache": True, "logits_to_keep": 1}
        if self.mask is not None:
            given["attention_mask"] = self.mask[:, : self.count]
            places = (self.mask.cumsum(1) - 1).clamp_min(0)
            given["position_ids"] = places[:, first : self.count]
        return self.model(input_ids=new, **given).logits[:, -1]


class _Clock(BaseStreamer):
    """When the first and the last token came."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Any) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        return


@torch.inference_mode()
def stock_generate(model: nn.Module, ids: Tensor, tokens: int) -> Generated:
    """The same by transformers' own `generate`, to hold `generate` against.

    ids: (B, T), not padded.  bytes are not counted: 0.
    """
    host: Any = model
    clock, began = _Clock(), time.perf_counter()
    with evaluating(model):
        made = host.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            use_cache=True,
            streamer=clock if len(ids) == 1 else None,
        )
    ended = time.perf_counter()
    first = clock.times[1] if len(clock.times) > 1 else began  # the prompt comes before it
    return Generated(made[:, ids.shape[1] :], first - began, ended - first, 0)
