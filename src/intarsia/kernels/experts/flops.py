"""The cost of the operators of this folder, for torch's `FlopCounterMode`."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from . import grouped as _1  # noqa: F401 - the operators must be there
from . import mlps as _2  # noqa: F401

Shape = tuple[int, ...]
_OPS: Any = torch.ops.intarsia


@register_flop_formula(_OPS.grouped)
def grouped_flops(rows: Shape, weight: Shape, *_: Any, **__: Any) -> int:
    """Return 2 N h d: every row is multiplied once."""
    return 2 * rows[0] * weight[1] * weight[2]


@register_flop_formula(_OPS.grouped_outer)
def outer_flops(a: Shape, b: Shape, *_: Any, **__: Any) -> int:
    """Return 2 N h d."""
    return 2 * a[0] * a[1] * b[1]


@register_flop_formula(_OPS.mixed_mlps, get_raw=True)
def mlps_flops(*args: Any, **_: Any) -> int:
    """Return 2 N h (d + out), and 2 N h d of the gates."""
    _x, token, _expert, _weight, up, gate, down, *_rest = args
    reads = up.shape[2] * (1 if gate is None else 2)
    return 2 * token.shape[0] * up.shape[1] * (reads + down.shape[1])


@register_flop_formula(_OPS.mixed_mlps_backward, get_raw=True)
def mlps_backward_flops(*args: Any, **_: Any) -> int:
    """Return the cost of a product for each needed gradient, and of one that all of them need."""
    _dy, x, token, _expert, _weight, up, gate, down, *_rest, need = args
    reads = 1 if gate is None else 2
    inner = (need[0] * reads + need[2] + need[3] * (reads - 1)) * x.shape[1]
    outer = (1 + need[4]) * down.shape[1]
    return 2 * token.shape[0] * up.shape[1] * (inner + outer)
