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
from ..core.errors import ConfigError, ShapeError
from ..core.modes import evaluating
from ..hosts.anatomy.blocks import base_of
from ..hosts.in_memory import check_logits
from ..hosts.spans.head_spans import cache_bytes, spans_of
from .fixed_cache import cache_name, fixed_cache
from .native_decoder import SLOTS, NativeText, path_of, why_not
from .one_token import one_token


@dataclass(frozen=True)
class Generated:
    """New tokens (B, tokens), with the time that they took; generated[0] has the first row's.

    prompt_seconds: until the first token; seconds: of all further tokens; bytes: of keys and
    values.
    path: the code that computed the tokens, and the reason if it was not native steps.
    """

    tokens: Tensor
    prompt_seconds: float
    seconds: float
    bytes: int
    path: str = "transformers' generate"

    def __getitem__(self, row: Any) -> Tensor:
        return self.tokens[row]

    def __len__(self) -> int:
        """Return the number of rows, B."""
        return len(self.tokens)

    @property
    def rate(self) -> float:
        """Tokens per second in each row, the first token left out."""
        return (self.tokens.shape[1] - 1) / max(self.seconds, 1e-9)


@torch.inference_mode()
def generate(
    model: nn.Module,
    ids: Tensor,
    tokens: int,
    *,
    mask: Tensor | None = None,
    on_token: Callable[[Tensor], bool | None] = lambda _: None,
) -> Generated:
    """Generate the most probable continuation of prompts, token by token.

    model: a causal language model of transformers.
    ids: (B, T), padded on the left; mask: (B, T), 0 = padding, None = without.
    tokens: how many to add to each row; the end of a text does not stop it.
    on_token: is called with each new token (B,), and stops the loop by returning True.
    Memory for keys and values is allocated once. A token of a Llama-like decoder is one call of
    native steps (`NativeText`), of another model its own forward: the result's `path` says which.
    For throughput of many requests see `intarsia serve`, which batches; this is for latency.
    Raises: ShapeError for anything but rows of tokens; ConfigError for no token, or more
    than the model has positions for; DataError for a
    model with NaN or infinity among its first logits.
    """
    if ids.dim() != 2 or ids.is_floating_point() or not ids.numel():
        fix = "Pass tokenizer(text, return_tensors='pt').input_ids."
        raise ShapeError("ids", got=tuple(ids.shape), want="(B, T) token ids", fix=fix)
    at_least("tokens", tokens, 1)
    _check_room(model, ids.shape[1] + tokens)
    # a mask of ones is no padding: the code without a mask is faster
    padded = mask is not None and not bool(mask.all())
    reason = why_not(model) or ("" if len(ids) <= SLOTS else f"more than {SLOTS} texts")
    engine: _Native | _Stock
    if reason:
        engine = _Stock(model, ids, mask if padded else None, tokens)
    else:
        engine = _Native(model, ids, mask if padded else None, tokens)
    answer = ids.new_zeros(len(ids), tokens)
    clock = began = time.perf_counter()
    with evaluating(model):
        for position in range(tokens):
            # the first token comes from the prompt, every later one from the token before it
            logits = engine.prompt() if position == 0 else engine.step(answer[:, position - 1])
            if position == 0:
                check_logits(logits)
            answer[:, position] = new = logits.argmax(-1)
            # the clock of the rate starts behind the prompt
            if position == 0:
                clock = time.perf_counter()
            if on_token(new):
                answer = answer[:, : position + 1]
                break
    ended = time.perf_counter()
    return Generated(answer, clock - began, ended - clock, engine.nbytes, path_of(reason))


def _check_room(model: nn.Module, length: int) -> None:
    config: Any = getattr(base_of(model), "config", None)
    spans = spans_of(model)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    most = getattr(text, "max_position_embeddings", None) if spans is None else spans[1]
    if most is not None and length > most:
        got, want = f"{length:,} of prompt and answer", f"at most {most:,}, which the model has"
        fix = "Ask for fewer tokens, or give a shorter prompt."
        raise ConfigError("tokens", got=got, want=want, fix=fix)


class _Native:
    """Decoder of prompts (B, n) by native steps; padding is left out of its cache."""

    def __init__(self, model: nn.Module, ids: Tensor, mask: Tensor | None, tokens: int) -> None:
        # mask: (B, n), 0 = padding
        self.ids, self.mask = ids, torch.ones_like(ids) if mask is None else mask
        self.text = NativeText(model, slots=len(ids), length=ids.shape[1] + tokens)
        self.nbytes = self.text.nbytes

    def prompt(self) -> Tensor:
        """Compute the logits behind the prompts, (B, V)."""
        return self.text.prefill_rows(self.ids, self.mask)

    def step(self, new: Tensor) -> Tensor:
        """Add one token to each row, (B,), and compute its logits, (B, V)."""
        return self.text.step(new.tolist())


class _Stock:
    """Decoder of prompts by the model's own modules, with a cache that is allocated once."""

    def __init__(self, model: nn.Module, ids: Tensor, mask: Tensor | None, tokens: int) -> None:
        self.model, self.ids = model, ids
        self.cache = fixed_cache(model, ids.shape[1] + tokens)
        self.name, self.count = cache_name(model), 0
        # (B, n + tokens), 0 = padding; None = there is none
        self.mask = None if mask is None else torch.cat([mask, mask.new_ones(len(ids), tokens)], 1)
        self.one_token = None if mask is not None else one_token(model)

    @property
    def nbytes(self) -> int:
        return cache_bytes(self.cache)

    def prompt(self) -> Tensor:
        """Compute the logits behind the prompts, (B, V)."""
        return self._forward(self.ids)

    def step(self, new: Tensor) -> Tensor:
        """Add one token to each row, (B,); return the logits behind it, (B, V)."""
        if self.one_token is None:
            return self._forward(new[:, None])
        self.count += 1
        return self.one_token(new[:, None], self.cache, self.count - 1)[:, -1]

    def _forward(self, new: Tensor) -> Tensor:
        """Run the model on new tokens (B, n) behind those in the cache; return logits (B, V)."""
        first, self.count = self.count, self.count + new.shape[1]
        arguments: dict[str, Any] = {self.name: self.cache, "use_cache": True, "logits_to_keep": 1}
        if self.mask is not None:
            arguments["attention_mask"] = self.mask[:, : self.count]
            # padding is on the left: positions count from the first token of the text itself
            places = (self.mask.cumsum(1) - 1).clamp_min(0)
            arguments["position_ids"] = places[:, first : self.count]
        return self.model(input_ids=new, **arguments).logits[:, -1]


class _Clock(BaseStreamer):
    """Streamer that notes when each token came."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Any) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        return


@torch.inference_mode()
def stock_generate(model: nn.Module, ids: Tensor, tokens: int) -> Generated:
    """Generate the same tokens by transformers' own `generate`, to compare `generate` with.

    ids: (B, T), not padded. The result's bytes are 0, not counted; of several rows the seconds of
    the prompt are 0, too, and among the seconds of further tokens: a streamer takes one row.
    """
    host: Any = model
    clock, began = _Clock(), time.perf_counter()
    with evaluating(model):
        # the class's own, since the model may have native `generate` (`with_native_generate`)
        sequences = type(host).generate(
            host,
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            use_cache=True,
            streamer=clock if len(ids) == 1 else None,
        )
    ended = time.perf_counter()
    first = clock.times[1] if len(clock.times) > 1 else began  # times[0] is the prompt's
    return Generated(sequences[:, ids.shape[1] :], first - began, ended - first, 0)
