"""Attentions with heads that can become experts, and back: timm's `Attention`, Llama's family."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import Attention
from torch import Tensor, nn
from torch.nn import Identity

from ...core import Routing
from ...core.errors import ConfigError, TargetError
from ...core.foreign import config_of
from ...mixtures.union import CutLinear, SelectiveAttention, SelectiveQueries, UnionAttention
from ...routers.union import UnionRouter

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj")
NORMS = ("q_norm", "k_norm")
SOFTCAP = "attn_logit_softcapping"
KNOWN = "timm's Attention, or q_proj, k_proj, v_proj, o_proj with rotary positions (Llama, Qwen)"


@dataclass(frozen=True)
class HeadCounts:
    """Sizes of an attention.  width: of its input; count: number of heads; causal: in a decoder."""

    width: int
    count: int
    causal: bool


def heads_of(path: str, module: nn.Module) -> HeadCounts:
    """Return width and number of heads of an attention.

    Raises: TargetError for an attention of another kind than `KNOWN`.
    """
    attention: Any = module
    children = {n for n, m in module.named_children() if type(m) is not Identity}
    if type(module) is Attention:
        plain = {"qkv", "proj", *NORMS, "attn_drop", "proj_drop"}
        if children <= plain and all(type(m) is nn.Linear for m in (attention.qkv, attention.proj)):
            return HeadCounts(attention.qkv.in_features, attention.num_heads, causal=False)
    elif set(LINEARS) <= children <= {*LINEARS, *NORMS}:
        # windows, or scores limited by a tanh (Gemma 2), are not in the attentions that are built
        is_full = not any(getattr(module, n, None) for n in ("sliding_window", SOFTCAP))
        rotary = getattr(config_of(module), "rope_parameters", None) or {}
        # GLM rotates only half of each head
        is_full = is_full and rotary.get("partial_rotary_factor", 1) == 1
        # of a decoder: transformers' ViT has the same names, without positions or a cache
        is_full = is_full and hasattr(module, "layer_idx")
        if is_full and all(type(getattr(module, n)) is nn.Linear for n in LINEARS):
            # queries may have more heads than keys (grouped-query attention)
            q, causal = attention.q_proj, bool(getattr(module, "is_causal", True))
            return HeadCounts(q.in_features, q.out_features // attention.head_dim, causal)
    got = f"{type(module).__name__} of {', '.join(sorted(children)) or 'nothing'}"
    fix = 'Choose layers=[...] without it, or parts=("mlp",).'
    raise TargetError(f"attention {path!r}", got=got, want=KNOWN, fix=fix)


def check_heads(path: str, heads: int, experts: int) -> None:
    """Check that the number of experts divides an attention's heads.  Raises: ConfigError."""
    if experts < 1 or heads % experts:
        want = f"a divisor of the {heads} heads of {path!r}"
        fix = "Experts are of one size; heads=None makes an expert of every head."
        raise ConfigError("heads", got=experts, want=want, fix=fix)


def union_of(path: str, module: nn.Module, router: UnionRouter) -> UnionAttention:
    """Build the union of experts of an attention, on the attention's own parameters.

    Each expert is some of its heads.
    Raises: TargetError if the attention computes something else than its parts say.
    """
    attention: Any = module
    counts = heads_of(path, module)
    # the old attention without memory, from which it can be rebuilt
    shell = copy.deepcopy(module).to("meta")
    if not counts.causal and type(module) is Attention:
        union: UnionAttention = SelectiveAttention(
            router,
            attention.qkv,
            attention.proj,
            counts.count,
            norms=(attention.q_norm, attention.k_norm),
            drop=attention.attn_drop.p,
            behind=attention.proj_drop,
            shell=shell,
        )
    else:
        union = SelectiveQueries(
            router,
            tuple(getattr(attention, n) for n in LINEARS),
            counts.count,  # pyright: ignore
            norms=(getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)),
            scale=float(attention.scaling),
            drop=float(attention.attention_dropout),
            layer=int(attention.layer_idx),
            shell=shell,
        )
    union.train(module.training)
    _check_output(path, module, union)
    return union


@torch.no_grad()
def _check_output(path: str, module: nn.Module, union: UnionAttention) -> None:
    """Check that a union with every expert active gives the attention's output, on a few inputs."""
    like = next(module.parameters())
    if like.is_meta:
        return
    modes = module.training, union.training
    x = torch.linspace(-1, 1, 3 * union.router.weight.shape[1]).to(like).view(1, 3, -1)
    pairs = torch.arange(3 * union.experts, device=like.device)
    # every token with every expert: the sum is the whole attention
    token = torch.div(pairs, union.experts, rounding_mode="floor")
    gates = torch.ones(3, union.experts).to(like)
    routing = Routing(token, pairs % union.experts, gates.flatten(), 3, union.experts)
    module.eval(), union.eval()  # pyright: ignore
    try:
        if isinstance(union, SelectiveQueries):
            want, got = _decoder_outputs(module, union, x, routing)
        else:
            want, got = module(x), union.naive(x, routing)  # pyright: ignore
    finally:
        module.train(modes[0]), union.train(modes[1])  # pyright: ignore
    close = 1e-4 if like.dtype in (torch.float32, torch.float64) else 0.1
    if not torch.allclose(got, want, rtol=close, atol=close, equal_nan=True):
        subject = f"attention {path!r}"
        description = f"a {type(module).__name__} with a forward of its own"
        fix = 'Choose layers=[...] without it, or parts=("mlp",).'
        raise TargetError(subject, got=description, want=KNOWN, fix=fix)


def _decoder_outputs(
    module: nn.Module, union: SelectiveQueries, x: Tensor, routing: Any
) -> tuple[Tensor, Tensor]:
    """Compute the outputs of a decoder's attention and of its union: (want, got)."""
    # x: (1, 3, d), three tokens at made-up positions
    angles = torch.linspace(0, 2, 3 * (union.width // 2)).to(x).view(1, 3, -1).repeat(1, 1, 2)
    rotations = angles.cos(), angles.sin()
    # causal: tokens see themselves and those before
    mask = torch.full((3, 3), torch.finfo(x.dtype).min).to(x).triu(1)[None, None]
    attention: Any = module
    want = attention(hidden_states=x, position_embeddings=rotations, attention_mask=mask)[0]
    return want, union.naive(x, routing, rotations)


def attention_from(union: UnionAttention) -> nn.Module:
    """Build a plain attention from the union of experts that replaced it, with present weights."""
    attention: Any = copy.deepcopy(union.shell[0])
    for name, part in union.named_children():
        if name != "router":
            setattr(attention, name, part.layer() if isinstance(part, CutLinear) else part)
    return attention.train(union.training)
