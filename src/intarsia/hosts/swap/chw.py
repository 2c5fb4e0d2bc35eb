"""Nets whose clusters run in CHW: how each layer is stored, by measurement, and the net made of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from ...core.errors import TargetError
from ...core.modes import evaluating
from ...formats.row_blocks import RowBlocks, filled
from ...kernels.chw import NaiveProgram, NativeProgram, Step, available
from ..anatomy.traced import traced
from .chw_cluster import ChwCluster
from .lowering import Cluster, Layer, clusters_of

DENSE = "dense"
FORMS = (1, 2, 4, 8)  # rows of a block
LEAST = 0.4  # of what blocks store that is not 0, to be worth a measurement
REPEATS = 5


class Form(NamedTuple):
    """How a layer is stored: rows of its blocks, 0 = dense; kept columns; measured microseconds."""

    rows: int
    kept: int
    measured: Mapping[str, float]


class ChwLayer(NamedTuple):
    """A sparse layer of a compressed net: the share of its weights that is not 0, and its form."""

    path: str
    density: float
    form: str
    microseconds: Mapping[str, float]


class ChwReport(NamedTuple):
    """What became of a net: its clusters and their layers, what stayed in torch, layout changes."""

    layers: tuple[ChwLayer, ...]
    clusters: int
    steps: int
    left: tuple[str, ...]
    changes: int


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


def choose_forms(
    graph: fx.GraphModule, clusters: Iterable[Cluster], example: Tensor, rows: int | None
) -> Forms:
    """The form of each 1x1 and k x k layer; rows: of all of them, None = what is fastest here."""
    forms: Forms = {}
    for cluster in clusters:
        nodes = {value: node for node, value in (cluster.inputs | cluster.values).items()}
        for layer in cluster.layers:
            if layer.kind in ("spmm", "conv"):
                shape = tuple(nodes[layer.src].meta["shape"][1:])
                forms[key_of(layer)] = _form(layer, shape, rows)
    return forms


def key_of(layer: Layer) -> str:
    """The name of a layer in a plan; of one that is called twice, each call's."""
    return f"{layer.name}@{layer.dst}"


def _form(layer: Layer, shape: tuple[int, ...], rows: int | None) -> Form:
    weight = layer.tensors["weight"]
    if rows is not None:
        return Form(rows, _kept(weight, rows), {})
    if not available():  # in torch every form is a dense product
        return Form(1, _kept(weight, 1), {})
    found: dict[int, float] = {}
    for one in (*FORMS, *([0] if layer.kind == "spmm" else [])):
        if one in (0, 1) or filled(weight, one) >= LEAST:
            step = step_of(replace(layer, src=0, dst=1, other=None), Form(one, 0, {}))
            program = NativeProgram([step], {0: shape}, [1])
            found[one] = seconds(lambda p=program: p([torch.ones(shape)], [1]))
    best = min(found, key=lambda one: found[one])
    measured = {str(one or DENSE): round(1e6 * t, 1) for one, t in found.items()}
    return Form(best, _kept(weight, best), measured)


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


def step_of(layer: Layer, form: Form | None) -> Step:
    """A layer as a step, in its form."""
    tensors = dict(layer.tensors)
    rows = 1
    if form is not None and form.rows:
        rows = form.rows
        bias, weight = tensors["bias"], tensors["weight"]
        tensors = {**_as_decided(RowBlocks(rows).encode(weight), form), "bias": bias}
    elif form is not None:
        tensors["weight"] = tensors["weight"].flatten(1)
    place = (layer.kind, layer.src, layer.dst, layer.other, layer.acts)
    return Step(*place, tensors, layer.window, rows)


def _as_decided(stored: dict[str, Tensor], form: Form) -> dict[str, Tensor]:
    """What was encoded; with room for what a saved net keeps, where this one keeps another number."""
    if form.kept in (0, len(stored["channels"])):
        return stored
    values = stored["values"].new_zeros(form.kept, *stored["values"].shape[1:])
    return stored | {"channels": torch.zeros(form.kept, dtype=torch.int32), "values": values}


def rewritten(
    graph: fx.GraphModule, clusters: Iterable[Cluster], forms: Forms, batches: bool
) -> fx.GraphModule:
    """The traced net with a `ChwCluster` in the place of each cluster, in place."""
    for number, cluster in enumerate(clusters):
        steps = [step_of(layer, forms.get(key_of(layer))) for layer in cluster.layers]
        outputs = cluster.outputs()
        axes = {value: len(node.meta["shape"]) for node, value in outputs.items()}
        groups: dict[tuple[int, int], list[fx.Node]] = {}
        for node, value in outputs.items():
            groups.setdefault((value, len(node.meta["shape"])), []).append(node)
        module = ChwCluster(
            steps, [key_of(layer) for layer in cluster.layers], tuple(cluster.inputs.values()), axes, batches
        )  # fmt: skip
        name = f"chw_{number}"
        graph.add_submodule(name, module)
        with graph.graph.inserting_before(cluster.before):
            call = graph.graph.call_module(name, tuple(cluster.inputs))
            for i, value in enumerate(axes):
                made = call if len(axes) == 1 else graph.graph.call_function(_item, (call, i))
                for (of, wide), nodes in groups.items():
                    if of == value:
                        _replace(graph, nodes, made, wide, axes[value])
    graph.graph.eliminate_dead_code()
    graph.delete_all_unused_submodules()
    graph.recompile()
    return graph


def _item(values: tuple[Tensor, ...], number: int) -> Tensor:
    return values[number]


def _replace(
    graph: fx.GraphModule, nodes: list[fx.Node], made: fx.Node, wide: int, axes: int
) -> None:
    if wide != axes:  # one vector as (1, C) and as (1, C, 1, 1)
        name, ends = ("flatten", (1,)) if wide == 2 else ("view", (1, -1, 1, 1))
        made = graph.graph.call_method(name, (made, *ends))
    for node in nodes:
        node.replace_all_uses_with(made)


def chw_report(net: nn.Module, forms: Mapping[str, Form] | None = None) -> ChwReport:
    """What a compressed net consists of: each sparse layer's density and form, what stayed in torch.

    Raises: TargetError for a net that is not compressed so.
    """
    found = {n: m for n, m in net.named_modules() if isinstance(m, ChwCluster)}
    if not found:
        got, fix = type(net).__name__, "Call intarsia.compress(net, intarsia.Chw(), example)."
        raise TargetError("net", got=got, want="one compressed to CHW", fix=fix)
    layers: list[ChwLayer] = []
    for cluster in found.values():
        for step, name in zip(cluster.packed_steps(), cluster.names, strict=True):
            if step.kind in ("spmm", "conv"):
                layers.append(_layer(step, name, (forms or {}).get(name)))
    inside = {m for c in found.values() for m in c.modules()}
    left = tuple(n for n, m in net.named_modules() if n and m not in inside and not _parent(m))
    changes = sum(len(c.inputs) + len(c.outputs) for c in found.values())
    steps = sum(len(c.steps) for c in found.values())
    return ChwReport(tuple(layers), len(found), steps, left, changes)


def _parent(module: nn.Module) -> bool:
    return next(module.children(), None) is not None or isinstance(module, nn.Identity)


def _layer(step: Step, name: str, form: Form | None) -> ChwLayer:
    values = step.weights["weight" if step.dense else "values"]
    inputs = values.shape[1] if step.dense else int(step.weights["channels"].max(initial=0)) + 1  # pyright: ignore
    return ChwLayer(name, inputs, "", {} if form is None else form.measured)


@torch.no_grad()
def whole(net: nn.Module, example: Tensor) -> float:
    """Seconds of a forward."""
    with evaluating(net):
        return seconds(lambda: net(example))


def naive_outputs(cluster: ChwCluster, given: list[Tensor]) -> list[Tensor]:
    """What a cluster's definition makes of one picture, in torch."""
    shapes = {n: tuple(x.shape) for n, x in zip(cluster.inputs, given, strict=True)}
    return NaiveProgram(cluster.packed_steps(), shapes)(given, tuple(cluster.outputs))
