"""By which settings the tokens of one answer are drawn, and the draw of one token."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from ..hosts.in_memory import is_number
from .refusals import broken

COLD = 1e-4  # a temperature below it overflows logits: it takes the likeliest token
# settings of a GenerationConfig that do not change a greedy answer, or that each request has
IN_BATCH = frozenset(
    (
        *("bos_token_id", "eos_token_id", "pad_token_id", "max_new_tokens", "do_sample"),
        *("num_beams", "use_cache", "transformers_version", "_from_model_config"),
    )
)
# settings by which `TokenDraw` changes logits
WARPERS = frozenset(("temperature", "top_k", "top_p"))


@dataclass(frozen=True)
class Sampling:
    """Settings by which the tokens of one answer are drawn.

    config: temperature, length and end tokens; seed: None = random. bias: added to logits, by token
    id.
    frequency, presence: OpenAI's penalties.  top: how many of the most probable tokens are
    reported with log-probabilities; None: no log-probabilities.
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
        """True if a batch of greedy requests gives this request the tokens that it gets alone."""
        adjusted = self.bias or self.frequency or self.presence or self.top is not None
        return not (self._unusual or adjusted or self.config.do_sample)

    @property
    def usual(self) -> bool:
        """True if `TokenDraw` draws the tokens that transformers' `generate` would draw."""
        return self._unusual <= WARPERS

    @property
    def _unusual(self) -> set[str]:
        """Settings other than a greedy default's, which would change the tokens."""
        settings = self.config.to_diff_dict().items()
        return {name for name, value in settings if value not in (None, False)} - IN_BATCH


@dataclass(frozen=True)
class NewToken:
    """Token that was drawn, with its log-probability, and the most probable tokens with theirs.

    logprob: None if not requested; top: (token, log-probability).
    """

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


def configured(defaults: GenerationConfig, parameters: Mapping[str, Any]) -> GenerationConfig:
    """Return a model's generation settings with the temperature and top_p of a request.

    If the request has neither, the model's settings stay; temperature 0 takes the most probable
    token.
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


class RequestLogits(LogitsProcessor):
    """Processor of logits that records log-probabilities, adds a bias and subtracts penalties.

    sampling: settings of the request; prompt: number of its tokens.
    """

    def __init__(self, sampling: Sampling, prompt: int) -> None:
        self.sampling, self.prompt = sampling, prompt
        self.raw: Tensor | None = None  # (V,)

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Return the logits (1, V) with bias and penalties; Refused, 500, for NaN or infinity."""
        sampling = self.sampling
        if not is_number(scores):
            raise broken("The model's logits are not finite.")
        if sampling.top is not None:
            # before any bias or penalty, as OpenAI reports them
            self.raw = scores[0].float().log_softmax(-1)
        if sampling.frequency or sampling.presence:
            # OpenAI counts drawn tokens alone, not the prompt's
            drawn = input_ids[0, self.prompt :]
            count = torch.zeros_like(scores[0]).index_add_(
                0, drawn, torch.ones_like(drawn, dtype=scores.dtype)
            )
            # frequency * count + presence * (count > 0), of a token's count among the new ones
            penalty = sampling.frequency * count + sampling.presence * (count > 0)
            scores = scores - penalty
        if sampling.bias:
            scores = scores.clone()
            biased = torch.tensor(list(sampling.bias), device=scores.device)
            scores[0, biased] += torch.tensor(list(sampling.bias.values())).to(scores)
        return scores

    def token(self, number: int) -> NewToken:
        """Return a drawn token with the log-probabilities that were recorded for it."""
        if self.raw is None:
            return NewToken(number)
        values, ids = self.raw.topk(min(self.sampling.top or 0, len(self.raw)))
        top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
        return NewToken(number, self.raw[number].item(), top)


class TokenDraw:
    """Draw of one request's tokens from logits, as transformers' `generate` draws them.

    Raises: as the warpers of transformers, for settings that are none.
    """

    def __init__(self, sampling: Sampling, ids: Sequence[int]) -> None:
        """Prepare a request's changes of logits, and its random numbers."""
        config = sampling.config
        self.logits, self.sample = RequestLogits(sampling, len(ids)), bool(config.do_sample)
        self.ids, self.generator = list(ids), None
        # the order of transformers: what a request adds to logits, then the warpers
        self.processors = LogitsProcessorList([self.logits])
        if self.sample:
            if config.temperature not in (None, 1.0):
                self.processors.append(TemperatureLogitsWarper(config.temperature))
            # if neither request nor model says how many, `generate` draws from the 50 most probable
            usual = GenerationConfig._get_default_generation_params()["top_k"]
            if top_k := usual if config.top_k is None else config.top_k:
                self.processors.append(TopKLogitsWarper(top_k))
            if config.top_p is not None and config.top_p < 1:
                self.processors.append(TopPLogitsWarper(config.top_p))
            # a seed of one request must not touch the draws of others
            if sampling.seed is not None:
                self.generator = torch.Generator().manual_seed(sampling.seed)

    def __call__(self, logits: Tensor) -> NewToken:
        """Draw the next token from logits (V,)."""
        ids: Any = torch.tensor([self.ids])
        scores = self.processors(ids, logits[None])[0]
        if self.sample:
            token = torch.multinomial(scores.softmax(0), 1, generator=self.generator)
        else:
            token = scores.argmax()
        self.ids.append(int(token))
        return self.logits.token(self.ids[-1])


def end_tokens(eos: Any) -> frozenset[int]:
    """Return the end tokens of a configuration, which may be none, one or several."""
    return frozenset(eos if isinstance(eos, list | tuple) else [] if eos is None else [eos])
