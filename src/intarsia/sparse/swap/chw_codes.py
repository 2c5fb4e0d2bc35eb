"""Nets in CHW with maps and weights as codes of 8 bits: ranges from pictures, and the steps.

A value x between two layers is stored as x / scale + zero, rounded to 0 ... 255, with one scale and
zero for all of its channels; a weight as a code from -127 to 127 times the scale of its output.
Products of codes are exact, and each layer rounds its result once (arXiv:1712.05877).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from ...formats.row_blocks import RowBlocks
from ...kernels.chw import Coding, ProgramStep, Window
from ...kernels.chw.steps import DEEP, LARGEST_CODE
from .lowering import Cluster, DenseStep

LARGEST = 127  # code of a weight
BATCH = 16  # pictures of a forward
SIDE, STRIDE = 8, 3  # the largest kernel, and the largest stride, of depthwise steps on codes
MAKES = (
    "spmm",
    "conv",
    "depthwise",
    "pool",
    "linear",
    "max",
)  # kinds with results that can be codes
Codings = Mapping[int, Coding]  # number of a value -> how it is stored
Range = tuple[float, float]  # of a value's numbers


@torch.no_grad()
def codings_of_clusters(
    graph: fx.GraphModule, clusters: Sequence[Cluster], pictures: Tensor
) -> list[dict[int, Coding]]:
    """Choose for each cluster which values are codes, and how, by what pictures make of them.

    A value's range is from the least to the largest of its numbers in all pictures, and holds 0.
    pictures: (n, C, H, W), about a hundred.
    Returns for each cluster the number of a value -> its coding; other values stay float32.
    """
    reader = _RangeReader(graph, clusters)
    for some in pictures.split(BATCH):
        reader.run(some)
    codings: list[dict[int, Coding]] = []
    for cluster in clusters:
        ranges = {value: reader.ranges[node] for value, node in _last_nodes(cluster).items()}
        of_cluster = {v: _coding(ranges[v]) for v in coded_values(cluster)}
        # a maximum is one of the codes that it is taken from
        for layer in cluster.layers:
            if layer.kind == "max" and layer.dst in _values_kept_as_codes(cluster):
                of_cluster[layer.dst] = of_cluster[layer.src]
        codings.append(of_cluster)
    return codings


def coded_values(cluster: Cluster) -> set[int]:
    """Return the numbers of the values that are stored in codes at least once.

    Those are the values that stay codes, and what a layer on codes reads from elsewhere.
    """
    read = {layer.src for layer in cluster.layers if wants_codes(layer, cluster.kxk)}
    return _values_kept_as_codes(cluster) | read


def _values_kept_as_codes(cluster: Cluster) -> set[int]:
    """Return the numbers of the values that are stored as codes alone: no layer reads floats."""
    # a maximum has its input's form, so that values drop out until no more do
    outputs = {*cluster.outputs().values()}
    staying = {layer.dst for layer in cluster.layers if _makes_codes(layer)} - outputs
    maxima = {layer.dst: layer.src for layer in cluster.layers if layer.kind == "max"}
    while True:
        read_as_floats = {
            value
            for layer in cluster.layers
            for value in (layer.src, layer.other)
            if not (
                layer.dst in staying
                if layer.kind == "max"
                # pools and linear layers read either
                else wants_codes(layer, cluster.kxk) or layer.kind in ("pool", "linear")
            )
        }
        remaining = {v for v in staying - read_as_floats if maxima.get(v, v) in staying}
        if remaining == staying:
            return staying
        staying = remaining


def _makes_codes(layer: DenseStep) -> bool:
    return layer.kind in MAKES and (layer.kind != "depthwise" or wants_codes(layer))


def wants_codes(layer: DenseStep, kxk: bool = True) -> bool:
    """Return True for a layer that is always computed on codes.  kxk: as of `Cluster`."""
    if layer.kind == "depthwise":
        return _fits(layer.window)
    return layer.kind == "spmm" or (layer.kind == "conv" and kxk)


def _fits(window: Window) -> bool:
    """Return True if the kernels know a depthwise step of this window on codes."""
    zeros = max(window.top, window.left, window.bottom, window.right)
    return window.size <= SIDE and window.stride <= STRIDE and zeros < SIDE


def _coding(numbers: Range) -> Coding:
    """Return the coding of a range of numbers that holds 0, which is then a code exactly."""
    low, high = numbers
    scale = max(high - low, 1e-8) / LARGEST_CODE
    return Coding(scale, min(LARGEST_CODE, max(0, round(-low / scale))))


def _last_nodes(cluster: Cluster) -> dict[int, fx.Node]:
    """Return the node behind which each value of a cluster is whole, with activation and sum."""
    return {value: node for node, value in (cluster.inputs | cluster.values).items()}


class _RangeReader(fx.Interpreter):
    """Forward of a traced net that notes the least and the largest number of values."""

    def __init__(self, graph: fx.GraphModule, clusters: Sequence[Cluster]) -> None:
        """Watch the values of all clusters.  graph: trace of the net, in evaluation."""
        super().__init__(graph)
        # a range holds 0, which is the padding of convolutions
        self.ranges: dict[fx.Node, Range] = {
            node: (0.0, 0.0) for cluster in clusters for node in _last_nodes(cluster).values()
        }

    def run_node(self, n: fx.Node) -> Any:
        """Compute a node, and widen the range of its result."""
        result = super().run_node(n)
        if n in self.ranges:
            low, high = self.ranges[n]
            self.ranges[n] = min(low, float(result.min())), max(high, float(result.max()))
        return result


def coded_steps(
    cluster: Cluster, codings: Codings, rows: Mapping[int, int]
) -> list[tuple[DenseStep, ProgramStep]]:
    """Return the steps of a cluster on codes, each with the layer that it computes.

    rows: number of a 1x1 or k x k layer's result -> rows of a block. A value that is encoded before
    a layer reads it has a step of its own, and a number behind the cluster's numbers.
    """
    staying = _values_kept_as_codes(cluster)
    steps: list[tuple[DenseStep, ProgramStep]] = []
    encoded: dict[int, int] = {}  # number of a value -> of its codes
    for layer in cluster.layers:
        src = layer.src
        wants = wants_codes(layer, cluster.kxk)
        if wants and src not in staying:
            if src not in encoded:
                encoded[src] = cluster.count + len(encoded)
                step = ProgramStep("encode", src, encoded[src], result_coding=codings[src])
                steps.append((DenseStep(f"{layer.name}.codes", "encode", src, encoded[src]), step))
            src = encoded[src]
        on_codes = wants or (layer.kind == "linear" and src in staying)
        coding = codings[layer.dst] if layer.dst in staying else None
        step = coded_step(layer, rows.get(layer.dst, 1), coding, on_codes=on_codes)
        steps.append((layer, replace(step, src=src)))
    return steps


def coded_step(
    layer: DenseStep, rows: int, coding: Coding | None, *, on_codes: bool = True
) -> ProgramStep:
    """Turn a layer into a step with its result, and perhaps its weight, in codes.

    rows: of a block of a convolution that is not depthwise; coding: of the result, None = float32.
    """
    tensors, reads = dict(layer.tensors), 0
    if on_codes:
        codes, scales = rounded_weight(tensors.pop("weight"))
        if layer.kind in ("spmm", "conv"):
            reads = codes.shape[1]
            stored = RowBlocks(rows, inputs=DEEP).encode(codes)
            # (kept, 4 taps, rows) -> (kept, taps, rows, 4), of a 1x1 layer without its one tap
            codes = stored.pop("values").unflatten(1, (DEEP, -1)).permute(0, 2, 3, 1)
            codes = codes.flatten(0, 1) if layer.kind == "spmm" else codes
            tensors |= stored
        tensors |= {"codes": codes.to(torch.int8).contiguous(), "scales": scales}
    elif layer.kind == "conv":
        reads = tensors["weight"].shape[1]
        tensors |= RowBlocks(rows).encode(tensors.pop("weight"))
    place = (layer.kind, layer.src, layer.dst, layer.other, layer.acts)
    return ProgramStep(*place, tensors, layer.window, rows, reads, coding)


def rounded_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round a weight to codes from -127 to 127 times a scale of each output.

    weight: (out, ...). Returns the codes, float32 of its shape, and the scales, (out,).
    """
    scales = weight.flatten(1).abs().amax(1).clamp_min(1e-12) / LARGEST
    by_row = scales.view(-1, *[1] * (weight.dim() - 1))
    return torch.round(weight / by_row), scales
