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
    """Storage form of a layer: rows of its blocks, 0 = dense; stored columns; density; timings.

    measured: rows -> microseconds of a call.
    """

    rows: int  # 0 = dense
    columns: int
    density: float
    measured: dict[str, float]


Forms = dict[str, Form]


def lowered(net: nn.Module, example: Tensor) -> tuple[fx.GraphModule, list[Cluster]]:
    """Trace a net for pictures of the example's size, and find its clusters.

    Raises: TargetError for a net that cannot be traced, or of which no layer is known.
    """
    graph = traced(net, example)
    clusters = clusters_of(graph)
    if not any(layer.tensors for cluster in clusters for layer in cluster.layers):
        got, fix = f"{type(net).__name__}, with none", "Use EfficientNet or MobileNet."
        raise TargetError("net in CHW", got=got, want="convolutions that kernels know", fix=fix)
    return graph, clusters


def choose_forms(clusters: Iterable[Cluster], rows: int | None) -> Forms:
    """Choose the form of each 1x1 and k x k layer.

    clusters: layers that native kernels compute.
    rows: height of the blocks of all layers; None = the form that is fastest on this machine, for
    each layer.
    """
    forms: Forms = {}
    for cluster in clusters:
        nodes = {value: node for node, value in (cluster.values | cluster.inputs).items()}
        for layer in cluster.layers:
            if layer.kind in ("spmm", "conv"):
                shape = tuple(nodes[layer.src].meta["shape"][1:])
                forms[key_of(layer)] = _choose_form(layer, shape, rows)
    return forms


def key_of(layer: DenseStep) -> str:
    """Return the name of a layer in a plan; a layer that is called twice has one for each call."""
    return f"{layer.name}@{layer.dst}"


def _choose_form(layer: DenseStep, shape: tuple[int, ...], rows: int | None) -> Form:
    """Choose the form of one layer: as many rows as asked, or the fastest by measurement."""
    weight = layer.tensors["weight"]
    # for the report alone: it decides nothing
    density = round(int(weight.count_nonzero()) / max(1, weight.numel()), 6)
    # in torch every form is a dense product
    if rows is not None or not available():
        return Form(rows or 1, _stored_columns(weight, rows or 1), density, {})
    times: dict[int, float] = {}
    for block in (*FORMS, *([0] if layer.kind == "spmm" else [])):
        # blocks that would store mostly zeros cannot win, and are not measured
        if block in (0, 1) or filled(weight, block) >= LEAST:
            # the layer alone, reading value 0 and writing value 1, on a picture of its own size
            alone = replace(layer, src=0, dst=1, other=None)
            program = NativeProgram([step_of(alone, Form(block, 0, 1, {}))], {0: shape}, [1])
            x = torch.ones(shape)
            times[block] = seconds(lambda p=program, x=x: p([x], [1]))
    best = min(times, key=lambda block: times[block])
    microseconds = {str(block): round(1e6 * t, 1) for block, t in times.items()}
    return Form(best, _stored_columns(weight, best), density, microseconds)


def _stored_columns(weight: Tensor, rows: int) -> int:
    """Return how many columns blocks of `rows` rows store; 0 for a dense layer."""
    return len(RowBlocks(rows).encode(weight)["channels"]) if rows else 0


def seconds(run: Callable[[], Any], repeats: int = REPEATS) -> float:
    """Return the least seconds of several calls, after a first one that is not counted."""
    run()
    times: list[float] = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


@torch.no_grad()
def net_seconds(net: nn.Module, picture: Tensor) -> float:
    """Return the least time of a forward in evaluation."""
    with evaluating(net):
        return seconds(lambda: net(picture))


def step_of(layer: DenseStep, form: Form | None) -> ProgramStep:
    """Encode a layer in its form, as a step of a program; None leaves it as it is."""
    tensors, rows, reads = dict(layer.tensors), 1, 0
    if form is not None and form.rows:
        rows, reads = form.rows, tensors["weight"].shape[1]
        stored = _with_planned_columns(RowBlocks(rows).encode(tensors["weight"]), form)
        tensors = {**stored, "bias": tensors["bias"]}
    elif form is not None:
        tensors["weight"] = tensors["weight"].flatten(1)
    place = (layer.kind, layer.src, layer.dst, layer.other, layer.acts)
    return ProgramStep(*place, tensors, layer.window, rows, reads)


def _with_planned_columns(stored: dict[str, Tensor], form: Form) -> dict[str, Tensor]:
    """Give the stored tensors the planned number of columns, whose values are read from a file
    later.
    """
    if form.columns == len(stored["channels"]) or form.density == 1 and not form.columns:
        return stored
    values = stored["values"].new_zeros(form.columns, *stored["values"].shape[1:])
    return stored | {"channels": torch.zeros(form.columns, dtype=torch.int32), "values": values}


def rewritten(
    net: nn.Module,
    graph: fx.GraphModule,
    clusters: Iterable[Cluster],
    forms: Forms,
    batches: bool = False,
) -> ChwNet:
    """Build a net in which one `ChwCluster` module computes each cluster of adjacent layers.

    net: the original, with which the rest is shared; graph: its trace by torch.fx; clusters: layers
    that native kernels compute in one call; forms: layer's key -> how its weight is stored;
    batches: True if the net is called with several pictures at a time, False if with one.
    """
    for number, cluster in enumerate(clusters):
        steps = [step_of(layer, forms.get(key_of(layer))) for layer in cluster.layers]
        names = [key_of(layer) for layer in cluster.layers]
        # several nodes may be one value, such as a map and what dropout makes of it
        readers: dict[int, list[fx.Node]] = {}
        for node, value in cluster.outputs().items():
            readers.setdefault(value, []).append(node)
        # 1. the cluster becomes one module, called before the first node that it does not contain
        axes = {v: len(nodes[0].meta["shape"]) for v, nodes in readers.items()}
        module = ChwCluster(steps, names, tuple(cluster.inputs.values()), axes, batches)
        graph.add_submodule(f"chw_{number}", module)
        with graph.graph.inserting_before(cluster.before):
            call = graph.graph.call_module(f"chw_{number}", tuple(cluster.inputs))
            # 2. whoever read a value of the cluster from outside now reads the module's output
            for i, nodes in enumerate(readers.values()):
                result = call
                if len(axes) > 1:
                    result = graph.graph.call_function(_item, (call, i))
                for node in nodes:  # those inside go away by themselves
                    new = _reshape(graph, result, node, nodes[0])
                    node.replace_all_uses_with(new, partial(_is_outside, cluster))
    # 3. the nodes inside have no readers any more
    graph.graph.eliminate_dead_code()
    return ChwNet(graph, net)


def _is_outside(cluster: Cluster, user: fx.Node) -> bool:
    """Return True if a node that reads a value is not part of the cluster."""
    return user not in cluster.values


def _item(values: tuple[Tensor, ...], number: int) -> Tensor:
    """Return one of a cluster's several outputs."""
    return values[number]


def _reshape(graph: fx.GraphModule, result: fx.Node, node: fx.Node, first: fx.Node) -> fx.Node:
    """Reshape a value as a node has it: one vector may be (1, C) and (1, C, 1, 1)."""
    wide, axes = (len(n.meta["shape"]) for n in (node, first))
    if wide == axes:
        return result
    ends = (1,) if wide == 2 else (-1, node.meta["shape"][1], 1, 1)
    return graph.graph.call_method("flatten" if wide == 2 else "view", (result, *ends))
