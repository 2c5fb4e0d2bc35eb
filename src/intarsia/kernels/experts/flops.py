"""The cost of the operators of this folder, for torch's `FlopCounterMode`."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from . import grouped as _1  # noqa: F401 - the operators must be there
from . import mlps as _2  # noqa: F401
from .native import operator

Shape = tuple[int, ...]
_OPS: Any = torch.ops.intarsia


@register_flop_formula(_OPS.grouped)
def grouped_flops(rows: Shape, weight: Shape, *_: Any, **__: Any) -> int:
    """Return the FLOPs of `grouped`, 2 N h d: N rows, each times an (h, d) matrix.

    rows, weight: the shapes (N, d) and (E, h, d) of its arguments.
    """
    return 2 * rows[0] * weight[1] * weight[2]


@register_flop_formula(_OPS.grouped_outer)
def outer_flops(a: Shape, b: Shape, *_: Any, **__: Any) -> int:
    """Return the FLOPs of `grouped_outer`, 2 N h d: an outer product for each of N rows.

    a, b: the shapes (N, h) and (N, d) of its arguments.
    """
    return 2 * a[0] * a[1] * b[1]


@register_flop_formula(operator().overloadpacket, get_raw=True)
@register_flop_formula(_OPS.mixed_mlps, get_raw=True)
def mlps_flops(*args: Any, **_: Any) -> int:
    """Return the FLOPs of `mixed_mlps`, native or not, 2 N h (d + out), 2 N h d more with gates.

    args: the arguments of that operator, in order. N: pairs of a token and an expert; h: hidden
      units of an expert; d, out: its inputs and outputs.
    """
    _x, token, _expert, _weight, up, gate, down, *_rest = args
    reads = up.shape[2] * (1 if gate is None else 2)
    return 2 * token.shape[0] * up.shape[1] * (reads + down.shape[1])


@register_flop_formula(_OPS.mixed_mlps_backward, get_raw=True)
def mlps_backward_flops(*args: Any, **_: Any) -> int:
    """Return the FLOPs of `mixed_mlps_backward`: one product for dL/d hidden and for each gradient.

    args: the arguments of that operator; the last, `need`, has five bools: which gradients are
      computed, of x, weight, up, gate and down. A product with inputs has 2 N h d FLOPs, one with
      outputs 2 N h out: N pairs, h hidden units, d inputs.
    """
    _dy, x, token, _expert, _weight, up, gate, down, *_rest, need = args
    reads = 1 if gate is None else 2
    # of width d: dx by up and by gate, d up, d gate
    inner = (need[0] * reads + need[2] + need[3] * (reads - 1)) * x.shape[1]
    # of width out: dL/d hidden, always, and d down
    outer = (1 + need[4]) * down.shape[1]
    return 2 * token.shape[0] * up.shape[1] * (inner + outer)
