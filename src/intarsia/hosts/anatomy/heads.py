"""Attentions whose heads can become experts, and back: timm's `Attention`, Llama and its kin."""

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
from ...mixtures.union import HeldMap, SelectiveAttention, SelectiveQueries, UnionAttention
from ...routers.union import UnionRouter

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj")
NORMS = ("q_norm", "k_norm")
SOFTCAP = "attn_logit_softcapping"
KNOWN = "timm's Attention, or q_proj, k_proj, v_proj, o_proj with rotary positions (Llama, Qwen)"


@dataclass(frozen=True)
class HeadCounts:
    """An attention in numbers.  width: of its input; count: heads; causal: is it a decoder's?"""

    width: int
    count: int
    causal: bool


def heads_of(path: str, module: nn.Module) -> HeadCounts:
    """The heads of an attention.  Raises: TargetError for one of another kind."""
    own: Any = module
    children = {n for n, m in module.named_children() if type(m) is not Identity}
    if type(module) is Attention:
        plain = {"qkv", "proj", *NORMS, "attn_drop", "proj_drop"}
        if children <= plain and all(type(m) is nn.Linear for m in (own.qkv, own.proj)):
            return HeadCounts(own.qkv.in_features, own.num_heads, causal=False)
    elif set(LINEARS) <= children <= {*LINEARS, *NORMS}:
        # a window, or scores cut by a tanh (Gemma 2): the kinds that are built have neither
        whole = not any(getattr(module, n, None) for n in ("sliding_window", SOFTCAP))
        rotary = getattr(config_of(module), "rope_parameters", None) or {}
        whole = whole and rotary.get("partial_rotary_factor", 1) == 1  # GLM turns half of a head
        if whole and all(type(getattr(module, n)) is nn.Linear for n in LINEARS):
            q, causal = own.q_proj, bool(getattr(module, "is_causal", True))
            return HeadCounts(q.in_features, q.out_features // own.head_dim, causal)
    got = f"{type(module).__name__} of {', '.join(sorted(children)) or 'nothing'}"
    fix = 'Choose layers=[...] without it, or parts=("mlp",).'
    raise TargetError(f"attention {path!r}", got=got, want=KNOWN, fix=fix)


def check_heads(path: str, heads: int, experts: int) -> None:
    """Raises: ConfigError for experts that do not divide the heads."""
    if experts < 1 or heads % experts:
        want = f"a divisor of the {heads} heads of {path!r}"
        fix = "Experts are of one size; heads=None makes an expert of every head."
        raise ConfigError("heads", got=experts, want=want, fix=fix)


def union_of(path: str, module: nn.Module, router: UnionRouter) -> UnionAttention:
    """The attention as experts, with the host's own parameters.

    Raises: TargetError if its forward is not what its parts say.
    """
    own: Any = module
    known = heads_of(path, module)
    shell = copy.deepcopy(module).to("meta")
    if not known.causal and type(module) is Attention:
        made: UnionAttention = SelectiveAttention(
            router, own.qkv, own.proj, known.count, norms=(own.q_norm, own.k_norm),
            drop=own.attn_drop.p, behind=own.proj_drop, shell=shell,
        )  # fmt: skip
    else:
        made = SelectiveQueries(
            router, tuple(getattr(own, n) for n in LINEARS), known.count,  # pyright: ignore
            norms=(getattr(own, "q_norm", None), getattr(own, "k_norm", None)),
            scale=float(own.scaling), drop=float(own.attention_dropout),
            layer=int(own.layer_idx), shell=shell,
        )  # fmt: skip
    made.train(module.training)
    _check_output(path, module, made)
    return made


@torch.no_grad()
def _check_output(path: str, module: nn.Module, made: UnionAttention) -> None:
    """With every pair, the output is that of the attention that was there."""
    like = next(module.parameters())
    if like.is_meta:
        return
    modes = module.training, made.training
    x = torch.linspace(-1, 1, 3 * made.router.weight.shape[1]).to(like).view(1, 3, -1)
    every = torch.arange(3 * made.experts, device=like.device)
    token = torch.div(every, made.experts, rounding_mode="floor")
    gates = torch.ones(3, made.experts).to(like)
    routing = Routing(token, every % made.experts, gates.flatten(), 3, made.experts)
    module.eval(), made.eval()  # pyright: ignore
    try:
        if isinstance(made, SelectiveQueries):
            want, got = _decoded(module, made, x, routing)
        else:
            want, got = module(x), made.naive(x, routing)  # pyright: ignore
    finally:
        module.train(modes[0]), made.train(modes[1])  # pyright: ignore
    close = 1e-4 if like.dtype in (torch.float32, torch.float64) else 0.1
    if not torch.allclose(got, want, rtol=close, atol=close, equal_nan=True):
        what = f"attention {path!r}"
        found = f"a {type(module).__name__} with a forward of its own"
        fix = 'Choose layers=[...] without it, or parts=("mlp",).'
        raise TargetError(what, got=found, want=KNOWN, fix=fix)


def _decoded(
    module: nn.Module, made: SelectiveQueries, x: Tensor, routing: Any
) -> tuple[Tensor, Tensor]:
    angles = torch.linspace(0, 2, 3 * (made.width // 2)).to(x).view(1, 3, -1).repeat(1, 1, 2)
    at = angles.cos(), angles.sin()
    mask = torch.full((3, 3), torch.finfo(x.dtype).min).to(x).triu(1)[None, None]
    own: Any = module
    want = own(hidden_states=x, position_embeddings=at, attention_mask=mask)[0]
    return want, made.naive(x, routing, at)


def attention_from(union: UnionAttention) -> nn.Module:
    """The attention that a union was, with the weights that it has now."""
    made: Any = copy.deepcopy(union.shell[0])
    for name, part in union.named_children():
        if name != "router":
            setattr(made, name, part.layer() if isinstance(part, HeldMap) else part)
    return made.train(union.training)
