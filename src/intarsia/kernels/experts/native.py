"""The kernel of experts.c: a whole mixture of MLPs in one call, without a gradient."""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import torch
from torch import Tensor

from ...core.errors import ShapeError
from .. import dense, native
from ..native.building import processor
from .blocks import FEW, UNPADDED

P, I = ctypes.c_void_p, ctypes.c_int  # noqa: E741
MIX = (I, I, *[P] * 9, I)
# rows of an expert up to which the kernel beats torch's float32; sizes of a matrix, for any rows
MANY, SMALL = 128, 2**18
SIZES = ctypes.c_int64 * 6
ACTS = ("silu", "relu", "gelu", "gelu_tanh")  # in the order of experts.h


def mixes(x: Tensor, up: Tensor, gate: Tensor | None, down: Tensor) -> bool:
    """Return True if this machine has a kernel for such inputs and weights of experts.

    x: (T, d); up, gate: (E, h, d), gate None = none; down: (E, out, h).
    """
    weights = [w for w in (up, gate, down) if w is not None]
    same = all(w.dtype == x.dtype and dense.runs(x, w) for w in weights)
    return same and x.dtype in dense.KINDS


def is_faster(x: Tensor, pairs: int, up: Tensor) -> bool:
    """Return True if the kernel is faster than torch's products for this mean of rows an expert.

    x: (T, d); pairs: N; up: (E, h, d).
    """
    rows, size = pairs / len(up), up.shape[1] * up.shape[2]
    if x.dtype == torch.bfloat16 and "amx_bf16" in processor():
        return rows <= FEW
    if not native.instructions().startswith("AVX-512"):
        return rows <= UNPADDED
    # in bfloat16 these processors multiply no faster than in float32
    return x.dtype == torch.bfloat16 or rows <= MANY or size <= SMALL


def mix(
    x: Tensor,
    token: Tensor,
    expert: Tensor,
    weight: Tensor,
    up: Tensor,
    gate: Tensor | None,
    down: Tensor,
    act: str,
) -> Tensor:
    """Compute `mlps_naive` of the same arguments, where `mixes` is True.  -> (T, out)."""
    dtype = torch.promote_types(x.dtype, weight.dtype)
    return operator()(x, token, expert, weight, up, gate, down, act).to(dtype)


@functools.cache
def operator() -> Any:
    """Return the operator `intarsia::experts_mix`, which is `mix` in float32."""
    schema = (
        "experts_mix(Tensor x, Tensor token, Tensor expert, Tensor weight, Tensor up, "
        "Tensor? gate, Tensor down, str act) -> Tensor"
    )
    return native.operator(schema, _run, _empty)


def _empty(x: Tensor, *others: Any) -> Tensor:
    """Return an empty tensor of the shape of the result."""
    return x.new_empty(x.shape[0], others[5].shape[1], dtype=torch.float32)


def _run(
    x: Tensor,
    token: Tensor,
    expert: Tensor,
    weight: Tensor,
    up: Tensor,
    gate: Tensor | None,
    down: Tensor,
    act: str,
) -> Tensor:
    """Call the kernel: the operator on the CPU.  -> (T, out) float32."""
    kernel = native.function("experts_mix", *MIX)
    assert kernel is not None and up.shape[2] == x.shape[1] and down.shape[2] == up.shape[1]
    assert len(token) == len(expert) == len(weight) and (gate is None or gate.shape == up.shape)
    # C gets addresses, of numbers of 8 bytes: the tensors must live until the call returns
    x, token, expert = x.contiguous(), token.long().contiguous(), expert.long().contiguous()
    weight = weight.float().contiguous()
    y = x.new_zeros(len(x), down.shape[1], dtype=torch.float32)
    experts, outputs, hidden = down.shape
    sizes = SIZES(len(x), len(token), experts, x.shape[1], hidden, outputs)
    tensors = (x, token, expert, weight, up, gate, down, y)
    places = (None if t is None else t.data_ptr() for t in tensors)
    kinds = dense.KINDS[x.dtype], ACTS.index(act)
    if fault := kernel(*kinds, sizes, *places, torch.get_num_threads()):
        _refuse(fault, token, expert, (len(x), experts))
    return y


def _refuse(fault: int, token: Tensor, expert: Tensor, sides: tuple[int, int]) -> None:
    """Raise the error that the kernel's return value stands for.  sides: (T, E)."""
    if fault == native.NO_MEMORY:
        native.refuse(fault)
    pair = int(token[fault - 1]), int(expert[fault - 1])
    want, fix = f"both below {sides}", "Build it with Routing.from_topk or Routing.from_dense."
    raise ShapeError("token and expert of a pair", got=str(pair), want=want, fix=fix)
