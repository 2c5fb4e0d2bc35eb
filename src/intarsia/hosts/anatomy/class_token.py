"""Compute of the last block what the head reads: the class token, out of all tokens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from timm.layers import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from ...core.foreign import logits_in
from ...core.modes import evaluating, forward_as
from ...gating import learned_routers
from .blocks import base_of, unwrapped


@contextmanager
def reading_class_token(model: nn.Module, x: Tensor) -> Iterator[bool]:
    """Compute the last block of a ViT for its class token alone, inside the `with`.

    In the last block queries, projection and MLP then see one token instead of T; keys and values
    cover all tokens. The logits are the same to rounding. Yields True if this is done;
    False, with the model unchanged, for a model that pools its tokens, other kinds of blocks,
    adapters that mix tokens, or routers that learn, since their loads and losses are over all
    tokens.
    x: an input of the model, (1, ...), to try it on while its weights are in float32.
    Not with an objective that reads more than logits.
    """
    block, attention = _last_block(model) or (None, None)
    if block is None or attention is None or not _same_logits(model, block, attention, x):
        yield False
        return
    with _first_token_alone(block, attention):
        yield True


def _last_block(model: nn.Module) -> tuple[Block, Attention] | None:
    """Return the last block and its attention, if their forwards are timm's own."""
    host = base_of(model)
    if not isinstance(host, VisionTransformer) or learned_routers(model):
        return None
    # any other pooling reads all tokens of the last block
    if host.global_pool != "token" or host.attn_pool is not None or not host.num_prefix_tokens:
        return None
    outer = cast(nn.Sequential, host.blocks)[-1]
    block = unwrapped(outer)
    if type(block) is not Block:
        return None
    attention = unwrapped(block.attn)
    modules = outer, block, block.attn, attention
    hooked = any(m._forward_hooks or m._forward_pre_hooks for m in modules)
    if type(attention) is not Attention or attention.gate is not None or hooked:
        return None
    return block, attention


def _same_logits(model: nn.Module, block: Block, attention: Attention, x: Tensor) -> bool:
    """Return True if computing the class token alone gives the logits of the full forward."""
    learns = [p for p in model.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in learns]
    noise = torch.Generator().manual_seed(0)
    x, tokens = x.to(learns[0].device, learns[0].dtype), list[int]()
    norm = cast(nn.Module, base_of(model).norm)
    with torch.no_grad(), evaluating(model):
        try:
            # adapters begin at 0, where one that mixes tokens would not show
            for p in learns:
                p += 0.02 * torch.randn(p.shape, generator=noise).to(p)
            # both ways on the same input
            long = _logits(model, x)
            hook = norm.register_forward_pre_hook(lambda _m, args: tokens.append(args[0].shape[1]))
            try:
                with _first_token_alone(block, attention):
                    short = _logits(model, x)
            finally:
                hook.remove()
        finally:
            for p, value in zip(learns, before, strict=True):
                p.copy_(value)
    near = torch.allclose(short, long, rtol=0, atol=1e-3 * float(long.abs().max()))
    # the norm behind the blocks must have seen one token, or nothing was saved
    return tokens == [1] and near


def _logits(model: nn.Module, x: Tensor) -> Tensor:
    """Compute the model's logits on x, and convert them to float32."""
    out = model(x)
    return logits_in(out).float()


@contextmanager
def _first_token_alone(block: Block, attention: Attention) -> Iterator[None]:
    """Compute only the first token's output of a block inside the `with`; it sees all tokens."""
    first_token = partial(_attention, attention)
    with (
        forward_as(block, partial(_block_of_first_token, block)),
        forward_as(attention, first_token),
    ):
        yield


def _block_of_first_token(block: Any, x: Tensor, **kwargs: Any) -> Tensor:
    """Compute timm's `Block.forward` for the first token: (B, T, d) -> (B, 1, d)."""
    attended = block.attn(block.norm1(x), **kwargs)
    x = x[:, :1] + block.drop_path1(block.ls1(attended))
    return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))


def _attention(
    attention: Any, x: Tensor, attn_mask: None = None, is_causal: bool = False
) -> Tensor:
    """Compute timm's `Attention.forward` for the first token: (B, T, d) -> (B, 1, d)."""
    norms = attention.q_norm, attention.k_norm
    is_plain_layer = type(attention.qkv) is nn.Linear and "forward" not in vars(attention.qkv)
    plain = is_plain_layer and all(type(n) is nn.Identity for n in norms)
    # norms of keys, adapters at qkv and dropout of attention weights need those tensors themselves
    if plain and not (attention.training and attention.attn_drop.p):
        attended = _without_keys(attention, x)
        return attention.proj_drop(attention.proj(attention.norm(attended)))
    rows, count, _ = x.shape
    shape = rows, count, 3, attention.num_heads, attention.head_dim
    # the general case: keys and values of all tokens, the query of the first
    q, k, v = attention.qkv(x).reshape(shape).permute(2, 0, 3, 1, 4).unbind(0)
    q, k = attention.q_norm(q[:, :, :1]), attention.k_norm(k)  # (B, h, 1, d / h), (B, h, T, d / h)
    shares = (attention.scale * q @ k.transpose(-2, -1)).softmax(-1)
    x = (attention.attn_drop(shares) @ v).transpose(1, 2).reshape(rows, 1, attention.attn_dim)
    return attention.proj_drop(attention.proj(attention.norm(x)))


def _without_keys(attention: Any, x: Tensor) -> Tensor:
    """Compute the first token's attention without keys or values: (B, T, d) -> (B, 1, h e)."""
    # q.(W_k x_t + b_k) = (q W_k).x_t + q.b_k: the last term is the same for all t, and cancels in
    # the softmax; sum_t a_t (W_v x_t + b_v) = W_v sum_t a_t x_t + b_v, since sum_t a_t = 1
    heads, width = attention.num_heads, attention.head_dim
    weight_q, *_ = attention.qkv.weight.chunk(3)
    bias = attention.qkv.bias
    bias_q, _, bias_v = (None, None, None) if bias is None else bias.chunk(3)
    _, keys, values = attention.qkv.weight.view(3, heads, width, -1)  # (h, e, d)
    q = F.linear(x[:, 0], weight_q, bias_q) * attention.scale
    q = q.view(-1, heads, width).transpose(0, 1) @ keys  # (h, B, d)
    shares = (x @ q.permute(1, 2, 0)).softmax(1)  # (B, T, h)
    mixed = (shares.transpose(1, 2) @ x).transpose(0, 1)  # (h, B, d)
    output = (mixed @ values.transpose(1, 2)).transpose(0, 1).reshape(len(x), 1, heads * width)
    return output if bias_v is None else output + bias_v
