"""Nets with clusters in CHW: how each layer is stored, measured, and the net made of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from ...core.errors import TargetError
from ...core.modes import evaluating
from ...formats.row_blocks import RowBlocks, filled
from ...hosts.anatomy.traced import traced
from ...kernels.chw import Coding, NativeProgram, ProgramStep, available
from ...kernels.chw.steps import CODED_BLOCKS, DEEP
from .chw_cluster import ChwCluster
from .chw_codes import Codings, coded_step, coded_steps, rounded_weight, wants_codes
from .chw_net import ChwNet
from .lowering import Cluster, DenseStep, clusters_of

FORMS = (1, 2, 4, 8)  # rows of a block
LEAST = 0.4  # least share of non-zero weights in the stored blocks for a form to be measured
REPEATS = 5


class Form(NamedTuple):
    """Storage of the weight of one layer, in blocks of rows or dense.

    rows: rows that share one block, 0 = dense; columns: (block, input) pairs that are stored, 0 if
    dense; density: share of the weights that are not 0, for the report alone.
    measured: rows of a block -> microseconds of one call with blocks of that height; empty if not
    measured.
    """

    rows: int  # 0 = dense
    columns: int
    density: float
    measured: dict[str, float]


Forms = dict[str, Form]


def lowered(
    net: nn.Module, example: Tensor, kxk: bool = True
) -> tuple[fx.GraphModule, list[Cluster]]:
    """Trace a net, and group its layers into clusters that native kernels can compute.

    A cluster is a run of adjacent layers that kernels in channel-height-width order (CHW) compute
    in one call. example: (1, 3, H, W), a picture of the size that it will see; kxk: as of
    `Cluster`.
    Returns the traced graph and its clusters.
    Raises: TargetError for a net that cannot be traced, or without any layer that kernels know.
    """
    graph = traced(net, example)
    clusters = clusters_of(graph, kxk)
    if not any(layer.tensors for cluster in clusters for layer in cluster.layers):
        got, fix = f"{type(net).__name__}, with none", "Use EfficientNet or MobileNet."
        raise TargetError("net in CHW", got=got, want="convolutions that kernels know", fix=fix)
    return graph, clusters


def choose_forms(
    clusters: Sequence[Cluster], rows: int | None, codings: Sequence[Codings] = ()
) -> Forms:
    """Choose how the weight of each 1x1 and k x k convolution is stored.

    rows: rows of a block in all layers; None = measure each layer on this machine, and take the
    form that is fastest.
    codings: of the values of each cluster, if 1x1 convolutions are computed on codes.
    Returns key of the layer (see `key_of`) -> its form.
    """
    forms: Forms = {}
    for number, cluster in enumerate(clusters):
        # sizes of the picture at each layer come from the trace
        nodes = {value: node for node, value in (cluster.values | cluster.inputs).items()}
        for layer in cluster.layers:
            if layer.kind in ("spmm", "conv"):
                shape = tuple(nodes[layer.src].meta["shape"][1:])
                codes = codings and wants_codes(layer, cluster.kxk)
                source = codings[number][layer.src] if codes else None
                forms[key_of(layer)] = _choose_form(layer, shape, rows, source)
    return forms


def key_of(layer: DenseStep) -> str:
    """Return the key of a layer in a plan, "path@value", where value is the number of its output.

    A layer that the net calls twice has one key for each call.
    """
    return f"{layer.name}@{layer.dst}"


def _choose_form(
    layer: DenseStep, shape: tuple[int, ...], rows: int | None, source: Coding | None
) -> Form:
    """Choose how the weight of one layer is stored; shape: (channels, height, width) it reads."""
    weight = layer.tensors["weight"]
    # for the report alone: it decides nothing
    density = round(int(weight.count_nonzero()) / max(1, weight.numel()), 6)
    inputs = 1 if source is None else DEEP
    stored = weight if source is None else rounded_weight(weight)[0]
    # in torch every form is a dense product
    if rows is not None or not available():
        return Form(rows or 1, _stored_columns(stored, rows or 1, inputs), density, {})
    times: dict[int, float] = {}
    blocks = FORMS if source is None else CODED_BLOCKS
    for block in (*blocks, *([0] if layer.kind == "spmm" and source is None else [])):
        # blocks that would store mostly zeros cannot win, and are not measured
        if block in (0, 1) or filled(stored, block, inputs) >= LEAST:
            # the layer alone, reading value 0 and writing value 1, on a picture of its own size
            alone = replace(layer, src=0, dst=1, other=None)
            if source is None:
                steps = [step_of(alone, Form(block, 0, 1, {}))]
            else:
                step = coded_step(replace(alone, src=2), block, None)
                steps = [ProgramStep("encode", 0, 2, result_coding=source), step]
            program = NativeProgram(steps, {0: shape}, [1])
            x = torch.ones(shape)
            times[block] = seconds(lambda p=program, x=x: p([x], [1]))
    best = min(times, key=lambda block: times[block])
    microseconds = {str(block): round(1e6 * t, 1) for block, t in times.items()}
    return Form(best, _stored_columns(stored, best, inputs), density, microseconds)


def _stored_columns(weight: Tensor, rows: int, inputs: int) -> int:
    """Count the (block, inputs) pairs with a weight that is not 0, which blocks must store."""
    return len(RowBlocks(rows, inputs).encode(weight)["channels"]) if rows else 0


def seconds(run: Callable[[], Any], repeats: int = REPEATS) -> float:
    """Return the least seconds of `repeats` calls, after a first one that is not counted."""
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


def _steps_of(
    cluster: Cluster, forms: Forms, codings: Codings | None
) -> list[tuple[DenseStep, ProgramStep]]:
    """Turn each layer of a cluster into a step; codings: of the values in int8, None = float32."""
    if codings is None:
        return [(layer, step_of(layer, forms.get(key_of(layer)))) for layer in cluster.layers]
    # a layer is named by the value that it writes
    form_of = {layer.dst: form for layer in cluster.layers if (form := forms.get(key_of(layer)))}
    rows = {value: form.rows for value, form in form_of.items()}
    steps: list[tuple[DenseStep, ProgramStep]] = []
    for layer, step in coded_steps(cluster, codings, rows):
        form = form_of.get(layer.dst)
        # a weight that is stored by blocks gets the number of them that the plan counted
        if form is not None and "channels" in step.weights:
            step = replace(step, weights=_with_planned_columns(dict(step.weights), form))
        steps.append((layer, step))
    return steps


def step_of(layer: DenseStep, form: Form | None) -> ProgramStep:
    """Turn a layer into a step of a native program, with its weight stored in a form.

    form: storage of its weight, None for layers without one, such as a sum.
    """
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
    """Return stored blocks, or as many empty ones as planned, which loaded weights will fill."""
    if form.columns == len(stored["channels"]) or form.density == 1 and not form.columns:
        return stored
    name = "codes" if "codes" in stored else "values"
    values = stored[name].new_zeros(form.columns, *stored[name].shape[1:])
    return stored | {"channels": torch.zeros(form.columns, dtype=torch.int32), name: values}


def rewritten(
    net: nn.Module,
    graph: fx.GraphModule,
    clusters: Sequence[Cluster],
    forms: Forms,
    batches: bool = False,
    codings: Sequence[Codings] = (),
) -> ChwNet:
    """Build a net in which one `ChwCluster` module computes each run of adjacent layers.

    net: the original, with which all other layers are shared. forms: key of a layer -> how its
    weight is stored.
    batches: accept several pictures in one call, computed one after the other; False = one picture.
    codings: of the values of each cluster that is computed on codes; none = all numbers.
    """
    moved: dict[fx.Node, fx.Node] = {}  # a node of a cluster -> what has its value now
    for number, cluster in enumerate(clusters):
        pairs = _steps_of(cluster, forms, codings[number] if codings else None)
        steps, names = [step for _, step in pairs], [key_of(layer) for layer, _ in pairs]
        # several nodes may have one value, as a layer and the dropout behind it
        readers: dict[int, list[fx.Node]] = {}
        for node, value in cluster.outputs().items():
            readers.setdefault(value, []).append(node)
        # 1. the cluster becomes one module, called before the first node that it does not contain
        axes = {v: len(nodes[0].meta["shape"]) for v, nodes in readers.items()}
        module = ChwCluster(steps, names, tuple(cluster.inputs.values()), axes, batches)
        graph.add_submodule(f"chw_{number}", module)
        with graph.graph.inserting_before(cluster.before):
            inputs = tuple(moved.get(node, node) for node in cluster.inputs)
            call = graph.graph.call_module(f"chw_{number}", inputs)
            # 2. whoever read a value of the cluster from outside now reads the module's output
            for i, nodes in enumerate(readers.values()):
                result = call
                if len(axes) > 1:
                    result = graph.graph.call_function(_item, (call, i))
                for node in nodes:  # uses inside the cluster are removed with it
                    new = _reshape(graph, result, node, nodes[0])
                    node.replace_all_uses_with(new, partial(_is_outside, cluster))
                    if cluster.kxk:  # saved nets of before have what torch computes twice
                        moved[node] = new
    # 3. the nodes inside have no readers any more
    graph.graph.eliminate_dead_code()
    return ChwNet(graph, net)


def _is_outside(cluster: Cluster, user: fx.Node) -> bool:
    return user not in cluster.values


def _item(values: tuple[Tensor, ...], number: int) -> Tensor:
    return values[number]


def _reshape(graph: fx.GraphModule, result: fx.Node, node: fx.Node, first: fx.Node) -> fx.Node:
    """Insert a node that gives a cluster's output the axes that its readers expect."""
    # a pooled vector may be (1, C) or (1, C, 1, 1)
    wide, axes = (len(n.meta["shape"]) for n in (node, first))
    if wide == axes:
        return result
    ends = (1,) if wide == 2 else (-1, node.meta["shape"][1], 1, 1)
    return graph.graph.call_method("flatten" if wide == 2 else "view", (result, *ends))
