"""Nets whose clusters run in CHW: how each layer is stored, measured, and the net made of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from ...core.errors import TargetError
from ...core.modes import evaluating
from ...formats.row_blocks import RowBlocks, filled
from ...kernels.chw import NativeProgram, ProgramStep, available
from ..anatomy.traced import traced
from .chw_cluster import ChwCluster
from .chw_net import ChwNet
from .lowering import Cluster, DenseStep, clusters_of

FORMS = (1, 2, 4, 8)  # rows of a block
LEAST = 0.4  # of what blocks store that is not 0, to be worth a measurement
REPEATS = 5


class Form(NamedTuple):
    """How a layer is stored: rows of its blocks, 0 = dense; kept columns; its density; timings.

    measured: rows -> microseconds of a call.
    """

    rows: int
    kept: int
    density: float
    measured: dict[str, float]


Forms = dict[str, Form]


def lowered(net: nn.Module, example: Tensor) -> tuple[fx.GraphModule, list[Cluster]]:
    """The traced net and its clusters.

    Raises: TargetError for a net that cannot be traced, or of which no layer is known.
    """
    graph = traced(net, example)
    clusters = clusters_of(graph)
    if not any(layer.tensors for cluster in clusters for layer in cluster.layers):
        got, fix = f"{type(net).__name__}, with none", "Use EfficientNet or MobileNet."
        raise TargetError("net in CHW", got=got, want="convolutions that kernels know", fix=fix)
    return graph, clusters


def choose_forms(clusters: Iterable[Cluster], rows: int | None) -> Forms:
    """The form of each 1x1 and k x k layer; rows: of all of them, None = what is fastest here."""
    forms: Forms = {}
    for cluster in clusters:
        nodes = {value: node for node, value in (cluster.values | cluster.inputs).items()}
        for layer in cluster.layers:
            if layer.kind in ("spmm", "conv"):
                shape = tuple(nodes[layer.src].meta["shape"][1:])
                forms[key_of(layer)] = _form(layer, shape, rows)
    return forms


def key_of(layer: DenseStep) -> str:
    """The name of a layer in a plan: of one that is called twice, each call has its own."""
    return f"{layer.name}@{layer.dst}"


def _form(layer: DenseStep, shape: tuple[int, ...], rows: int | None) -> Form:
    weight = layer.tensors["weight"]
    density = round(int(weight.count_nonzero()) / max(1, weight.numel()), 6)
    if rows is not None or not available():  # in torch every form is a dense product
        return Form(rows or 1, _kept(weight, rows or 1), density, {})
    found: dict[int, float] = {}
    for one in (*FORMS, *([0] if layer.kind == "spmm" else [])):
        if one in (0, 1) or filled(weight, one) >= LEAST:
            alone = replace(layer, src=0, dst=1, other=None)
            program = NativeProgram([step_of(alone, Form(one, 0, 1, {}))], {0: shape}, [1])
            x = torch.ones(shape)
            found[one] = seconds(lambda p=program, x=x: p([x], [1]))
    best = min(found, key=lambda one: found[one])
    measured = {str(one): round(1e6 * t, 1) for one, t in found.items()}
    return Form(best, _kept(weight, best), density, measured)


def _kept(weight: Tensor, rows: int) -> int:
    return len(RowBlocks(rows).encode(weight)["channels"]) if rows else 0


def seconds(run: Callable[[], Any], repeats: int = REPEATS) -> float:
    """The least time of a call, after a first one."""
    run()
    found: list[float] = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return min(found)


@torch.no_grad()
def net_seconds(net: nn.Module, picture: Tensor) -> float:
    """The least time of a forward in evaluation."""
    with evaluating(net):
        return seconds(lambda: net(picture))


def step_of(layer: DenseStep, form: Form | None) -> ProgramStep:
    """A layer as a step, in its form."""
    tensors, rows, reads = dict(layer.tensors), 1, 0
    if form is not None and form.rows:
        rows, reads = form.rows, tensors["weight"].shape[1]
        stored = _as_decided(RowBlocks(rows).encode(tensors["weight"]), form)
        tensors = {**stored, "bias": tensors["bias"]}
    elif form is not None:
        tensors["weight"] = tensors["weight"].flatten(1)
    place = (layer.kind, layer.src, layer.dst, layer.other, layer.acts)
    return ProgramStep(*place, tensors, layer.window, rows, reads)


def _as_decided(stored: dict[str, Tensor], form: Form) -> dict[str, Tensor]:
    """What was encoded, with as many columns as a saved net keeps, whose numbers are read later."""
    if form.kept == len(stored["channels"]) or form.density == 1 and not form.kept:
        return stored
    values = stored["values"].new_zeros(form.kept, *stored["values"].shape[1:])
    return stored | {"channels": torch.zeros(form.kept, dtype=torch.int32), "values": values}


def rewritten(
    net: nn.Module,
    graph: fx.GraphModule,
    clusters: Iterable[Cluster],
    forms: Forms,
    batches: bool = False,
) -> ChwNet:
    """A net with a `ChwCluster` in the place of each cluster; the rest is shared with `net`."""
    for number, cluster in enumerate(clusters):
        steps = [step_of(layer, forms.get(key_of(layer))) for layer in cluster.layers]
        names = [key_of(layer) for layer in cluster.layers]
        readers: dict[int, list[fx.Node]] = {}
        for node, value in cluster.outputs().items():
            readers.setdefault(value, []).append(node)
        axes = {v: len(nodes[0].meta["shape"]) for v, nodes in readers.items()}
        module = ChwCluster(steps, names, tuple(cluster.inputs.values()), axes, batches)
        graph.add_submodule(f"chw_{number}", module)
        with graph.graph.inserting_before(cluster.before):
            call = graph.graph.call_module(f"chw_{number}", tuple(cluster.inputs))
            for i, nodes in enumerate(readers.values()):
                made = call
                if len(axes) > 1:
                    made = graph.graph.call_function(_item, (call, i))
                for node in nodes:  # those inside go away by themselves
                    new = _shaped(graph, made, node, nodes[0])
                    node.replace_all_uses_with(new, partial(_outside, cluster))
    graph.graph.eliminate_dead_code()
    return ChwNet(graph, net)


def _outside(cluster: Cluster, user: fx.Node) -> bool:
    return user not in cluster.values


def _item(values: tuple[Tensor, ...], number: int) -> Tensor:
    return values[number]


def _shaped(graph: fx.GraphModule, made: fx.Node, node: fx.Node, first: fx.Node) -> fx.Node:
    """A value as a node has it: one vector may be (1, C) and (1, C, 1, 1)."""
    wide, axes = (len(n.meta["shape"]) for n in (node, first))
    if wide == axes:
        return made
    ends = (1,) if wide == 2 else (-1, node.meta["shape"][1], 1, 1)
    return graph.graph.call_method("flatten" if wide == 2 else "view", (made, *ends))
