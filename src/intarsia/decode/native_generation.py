"""transformers' `generate` with native steps that compute the tokens, where those can."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, GenerationConfig, GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast

from ..core.errors import TargetError
from ..hosts.anatomy.blocks import base_of
from .fixed_cache import cache_name
from .native_decoder import SLOTS, NativeText, why_not

# arguments that `generate` passes to its loop for a new text
KNOWN = (
    *("logits_processor", "stopping_criteria", "streamer"),  # used by the loop itself
    *("attention_mask", "position_ids", "use_cache", "logits_to_keep"),
)


def with_native_generate(model: nn.Module) -> nn.Module:
    """Let transformers' `generate` of a model compute its tokens by native steps.

    `model.generate(...)` then returns the same tokens as before, up to rounding, with one native
    call for each: see `generate_natively`. A model that `intarsia.compress` packed has it already.
    Returns the model.
    Raises: TargetError for a model without transformers' `generate`.
    """
    host = base_of(model)
    if not generates(host):
        want, fix = "a language model of transformers", "Use the model's own loop."
        raise TargetError("model", got=type(host).__name__, want=want, fix=fix)
    # a partial, not a closure: a copy of the model gets one of its own
    vars(host)["generate"] = functools.partial(generate_natively, host)
    return model


def generates(model: nn.Module) -> bool:
    """Return True for a language model with transformers' `generate`."""
    return isinstance(model, GenerationMixin)


def without_native_generate(host: nn.Module) -> None:
    """Give a model the `generate` of its class back."""
    vars(host).pop("generate", None)


def generate_natively(model: Any, *args: Any, **settings: Any) -> Any:
    """Call transformers' `generate`, with logits from native steps where those can compute them.

    args, settings: as its `generate` takes them. Everything around the logits is transformers':
    settings, processors, stopping, streamers, seeds.
    The model's own forward computes what native steps do not: beams, assisted decoding, outputs in
    a dict (their cache, attentions and states), a cache or embeddings that are passed in, padding
    on the right, more than 16 rows, training, and models that `why_not` has a reason against.
    """
    kind: Any = type(model)
    if not generates(model) or why_not(model):
        return kind.generate(model, *args, **settings)
    # a copy that shares all modules: its class decides what `generate` samples with
    view = copy.copy(model)
    # past nn.Module's `__setattr__`, which would make the model a layer of its own copy
    vars(view)["original"] = model
    view.__class__ = _sampling_class(kind)
    return kind.generate(view, *args, **settings)


@functools.cache
def _sampling_class(kind: type[Any]) -> type[Any]:
    """Return a subclass of a model's class with the sampling of `NativeSampling`."""
    return type(kind.__name__, (NativeSampling, kind), {"__module__": kind.__module__})


class NativeSampling:
    """Mixin in front of a model's class: `generate` of it samples from the logits of native steps.

    Only `_sample`, transformers' loop of greedy and sampled tokens, gets another forward; every
    other way of decoding stays as it is.
    """

    def _sample(self, input_ids: Tensor, generation_config: GenerationConfig, **rest: Any) -> Any:
        """Run transformers' loop of greedy and sampled tokens, with native logits if they suit."""
        original = vars(self)["original"]
        if _suits(original, input_ids, generation_config, rest):
            length = int(generation_config.max_length or 0)
            text = NativeText(original, slots=len(input_ids), length=length)
            # `self` is the copy that `generate` made for this call: the model's own forward stays
            vars(self)["forward"] = functools.partial(_forward, text)
        sample: Any = super()
        return sample._sample(input_ids, generation_config=generation_config, **rest)


def _suits(model: Any, ids: Tensor, config: GenerationConfig, arguments: Mapping[str, Any]) -> bool:
    """Return True if native steps can compute the logits of a call of `generate`."""
    name = cache_name(model)
    cache, mask = arguments.get(name), arguments.get("attention_mask")
    passed = {key for key, value in arguments.items() if not (value is None or value is False)}
    if (
        passed - {name, *KNOWN}
        or len(ids) > SLOTS
        or model.training
        or not arguments.get("use_cache")
    ):
        return False
    # a cache that the caller holds must be filled, and outputs in a dict contain one
    if type(cache) is not DynamicCache or getattr(cache, "_is_user_defined", False):
        return False
    if config.cache_implementation or config.return_dict_in_generate or config.prefill_chunk_size:
        return False
    keep = torch.ones_like(ids) if mask is None else mask.long()
    if keep.shape != ids.shape or not (keep[:, -1].all() and (keep.diff(dim=1) >= 0).all()):
        return False
    # places count from a row's first token, as `generate` counts them itself
    places = arguments.get("position_ids")
    return places is None or torch.equal(places * keep, (keep.cumsum(1) - 1) * keep)


def _forward(
    text: NativeText, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any
) -> CausalLMOutputWithPast:
    """Add the prompts (B, n), or one token to each row; return the last logits, (B, 1, V)."""
    # after the prompts each call has one token of each row
    if any(text.counts):
        logits = text.step(input_ids[:, 0].tolist())
    else:
        keep = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        logits = text.prefill_rows(input_ids, keep)
    return CausalLMOutputWithPast(logits=logits[:, None])  # pyright: ignore[reportArgumentType]
