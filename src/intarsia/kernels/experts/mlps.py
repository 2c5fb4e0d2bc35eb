"""A whole mixture of MLPs as one operator on the CPU: rows out, products, rows back, gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import dense
from ..native.pages import use_large_pages
from . import native
from .acts import ACTS
from .blocks import LARGE, Layout, roomy
from .naive import mlps_naive


def mix_mlps(
    x: Tensor,
    token: Tensor,
    expert: Tensor,
    weight: Tensor,
    up: Tensor,
    gate: Tensor | None,
    down: Tensor,
    act: str,
    *,
    learned: bool,
) -> Tensor:
    """Compute y of `mixed_mlps`, without a backward in one native call where there is one.

    The other arguments: see `mixed_mlps`; learned: a backward will follow.  -> (T, out).
    """
    # a graph cannot ask which kernels there are
    asks = not learned and not torch.compiler.is_compiling()
    if asks and native.mixes(x, up, gate, down) and native.is_faster(x, len(token), up):
        weights = [w for w in (up, gate, down) if w is not None]
        use_large_pages(w for w in weights if w.nbytes >= LARGE)
        return native.mix(x, token, expert, weight, up, gate, down, act)
    return mixed_mlps(x, token, expert, weight, up, gate, down, act, learned)[0]


@torch.library.custom_op(
    "intarsia::mixed_mlps",
    mutates_args=(),
    schema="(Tensor x, Tensor token, Tensor expert, Tensor weight, Tensor up, Tensor? gate, "
    "Tensor down, str act, bool keep) -> (Tensor, Tensor, Tensor)",
)
def mixed_mlps(
    x: Tensor,
    token: Tensor,
    expert: Tensor,
    weight: Tensor,
    up: Tensor,
    gate: Tensor | None,
    down: Tensor,
    act: str,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute y_t = sum_n weight_n MLP_e(n)(x_t) over the pairs n (token t, expert e) of token t.

    MLP_e(x) = down_e (act(gate_e x) * (up_e x)), or down_e act(up_e x) without a gate.
    x: (T, d); token, expert, weight: (N,), of each pair; up, gate: (E, h, d), gate None = none;
      down: (E, out, h); act: its name in ACTS; keep: a backward will follow.
    Returns y (T, out) and, if `keep`, up_e x and gate_e x for the backward, (rows, h) each: a row
      for each pair, sorted by expert, and some of zeros that fill up blocks; else empty tensors.
    Experts are taken block by block, so that hidden units stay in the cache between two products.
    Neither rows of x nor outputs are kept: the backward gathers x again, and needs no output.
    """
    kernel = all(w is None or dense.runs_grouped(x, w) for w in (up, gate, down))
    if x.device.type == "cpu":  # each call reads all weights that have rows
        weights = [w for w in (up, gate, down) if w is not None]
        use_large_pages(w for w in weights if w.nbytes >= LARGE and w.is_contiguous())
    layout, f = Layout.of(token, expert, len(x), len(up), kernel), ACTS[act].forward
    size = (layout.rows, up.shape[1])
    all_z = roomy(size, x) if keep else x.new_empty(0)
    all_g = roomy(size, x) if keep and gate is not None else x.new_empty(0)
    outputs, source = roomy((layout.rows, down.shape[1]), x), layout.padded(x)
    for block in layout.blocks:
        # gather a block's rows, both products into the hidden units, and the product out of them
        block_x = source.index_select(0, layout.source[block.rows])
        z = all_z[block.rows] if keep else x.new_empty(len(block_x), up.shape[1])
        block.products(block_x, up[block.experts].transpose(1, 2), z)
        if gate is None:
            hidden = f(z)
        else:
            g = all_g[block.rows] if keep else torch.empty_like(z)
            block.products(block_x, gate[block.experts].transpose(1, 2), g)
            hidden = f(g).mul_(z)
        block.products(hidden, down[block.experts].transpose(1, 2), outputs[block.rows])
    # weighted sums by token, in the wider type of outputs and weights
    outputs = outputs.to(torch.promote_types(x.dtype, weight.dtype))
    return layout.sums(outputs, weight.to(outputs.dtype)), all_z, all_g


@torch.library.custom_op(
    "intarsia::mixed_mlps_backward",
    mutates_args=(),
    schema="(Tensor dy, Tensor x, Tensor token, Tensor expert, Tensor weight, Tensor up, "
    "Tensor? gate, Tensor down, Tensor z, Tensor g, str act, bool[] need) -> Tensor[]",
)
def mixed_mlps_backward(
    dy: Tensor,
    x: Tensor,
    token: Tensor,
    expert: Tensor,
    weight: Tensor,
    up: Tensor,
    gate: Tensor | None,
    down: Tensor,
    z: Tensor,
    g: Tensor,
    act: str,
    need: list[bool],
) -> list[Tensor]:
    """Return the gradients of x, weight, up, gate and down; empty ones where `need` is False.

    dy: (T, out), the gradient of the output; x, token, expert, weight, up, gate, down, act: the
      arguments of `mixed_mlps`; z, g: up_e x and gate_e x, (rows, h), which it kept; need: five
      bools, in the order of the result.
    """
    kernel = all(w is None or dense.runs_grouped(x, w) for w in (up, gate, down))
    layout, f = Layout.of(token, expert, len(x), len(up), kernel), ACTS[act]
    source, grads = layout.padded(x), layout.padded(dy.to(x.dtype))
    scale = layout.spread(weight)[:, None].to(x.dtype)
    # a gradient of each row of x; rows of one token are added up at the end
    of_rows = roomy((layout.rows, x.shape[1] if need[0] else 0), x)
    of_weight = weight.new_empty(layout.rows)
    of_up, of_gate, of_down = (
        roomy(tuple(w.shape), w) if w is not None and needed else x.new_empty(0)
        for w, needed in zip((up, gate, down), need[2:], strict=True)
    )
    # hidden = act(z), or act(g) * z if gated; need: of 0 x, 1 weight, 2 up, 3 gate, 4 down
    for block in layout.blocks:
        block_token, e = layout.source[block.rows], block.experts
        block_dy = grads.index_select(0, block_token)
        # dL/d hidden without the pair's weight: block_dy down_e
        dh = block.products(block_dy, down[e], block_dy.new_empty(len(block_dy), up.shape[1]))
        inner = z if gate is None else g
        a = f.forward(inner[block.rows])
        hidden = a if gate is None else a * z[block.rows]
        if need[1]:
            # dL/d weight_n = <down_e^T dy, hidden>
            of_weight[block.rows] = (dh * hidden).sum(-1).to(weight.dtype)
        if need[4]:
            block.outer(block_dy.mul_(scale[block.rows]), hidden, of_down[e])
        # from here on with the pair's weight
        dh.mul_(scale[block.rows])
        if gate is None:
            dz, dg = f.backward(dh, z[block.rows]), dh
        else:
            dz, dg = dh * a, f.backward(dh.mul_(z[block.rows]), g[block.rows])
        block_x = source.index_select(0, block_token) if need[2] or need[3] else source
        if need[2]:
            block.outer(dz, block_x, of_up[e])
        if need[3] and gate is not None:
            block.outer(dg, block_x, of_gate[e])
        if need[0]:
            block.products(dz, up[e], of_rows[block.rows])
            if gate is not None:
                block.products(dg, gate[e], of_rows[block.rows], add=True)
    of_x = layout.sums(of_rows, None) if need[0] else of_rows
    of_pairs = of_weight[layout.place] if need[1] else weight.new_empty(0)
    return [of_x, of_pairs, of_up, of_gate, of_down]


@mixed_mlps.register_fake
def _(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return empty tensors of `mixed_mlps`'s shapes, for tracing without data."""
    x, _, _, weight, up, gate, down, _, keep = args
    y = x.new_empty(len(x), down.shape[1], dtype=torch.promote_types(x.dtype, weight.dtype))
    # the number of kept rows depends on the routing: symbolic
    rows = torch.library.get_ctx().new_dynamic_size() if keep else 0
    z = x.new_empty(rows, up.shape[1]) if keep else x.new_empty(0)
    return y, z, x.new_empty(0) if gate is None or not keep else torch.empty_like(z)


@mixed_mlps_backward.register_fake
def _(*args: Any) -> list[Tensor]:
    """Return empty tensors of the shapes of `mixed_mlps_backward`'s gradients, for tracing."""
    _, x, _, _, weight, up, gate, down, _, _, _, need = args
    return [
        x.new_empty(0) if t is None or not n else torch.empty_like(t)
        for t, n in zip((x, weight, up, gate, down), need, strict=True)
    ]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.act, _ = inputs
    ctx.save_for_backward(*tensors, *output[1:])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, dy: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    """Return the gradients of `mixed_mlps`'s nine inputs; None for those that need none."""
    # y was not used
    if dy is None:
        return (None,) * 9
    x, token, expert, weight, up, gate, down, z, g = ctx.saved_tensors
    needs_grad = ctx.needs_input_grad
    need = [bool(needs_grad[i]) for i in (0, 3, 4, 5, 6)]
    if torch.is_grad_enabled():  # create_graph=True: gradients of these gradients are needed
        y = mlps_naive(x, token, expert, weight, up, gate, down, ctx.act)
        inputs = [t for t, n in zip((x, weight, up, gate, down), need, strict=True) if n]
        gradients = iter(
            torch.autograd.grad(y, inputs, dy, create_graph=True, materialize_grads=True)
        )
        dx, dw, *rest = (next(gradients) if n else None for n in need)
    else:
        grads = mixed_mlps_backward(
            dy, x, token, expert, weight, up, gate, down, z, g, ctx.act, need
        )
        dx, dw, *rest = (t if n else None for t, n in zip(grads, need, strict=True))
    return dx, None, None, dw, *rest, None, None


mixed_mlps.register_autograd(_backward, setup_context=_save)
