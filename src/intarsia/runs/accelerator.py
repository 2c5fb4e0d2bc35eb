"""A vision model's training step on the accelerator `Sat`."""

from __future__ import annotations

from typing import Any

import torch

from ..data import backbones
from ..data.transforms import input_config
from ..models.sat import Sat, each_layer, layer_shapes
from ..schedules import Bdwp


def step_cycles(
    model: str, pattern: str, directions: str, batch: int, size: int | None, side: int
) -> tuple[list[dict[str, Any]], int, int]:
    """Simulate one training step of a model on a systolic array, with dense and with N:M weights.

    model: name of a vision model. pattern: "N:M", N nonzero weights of every M. directions: passes
    of the training step in which the weights are sparse. size: side of a picture in px, None = the
    model's. side: multipliers along each side of the array. Returns a row for each layer, the
    cycles of the dense step and of the sparse one.
    """
    sat, training = Sat(side=side), Bdwp(pattern, directions)
    net = backbones.backbone(model, classes=1000, size=size, pretrained=False)
    picture = torch.zeros(1, 3, *input_config(net).size)
    rows: list[dict[str, Any]] = []
    # cycles of a step, summed over layers: "before" with dense weights, "after" with N:M
    dense = sparse = 0
    for layer, before, after in each_layer(sat, layer_shapes(net, picture, batch=batch), training):
        stages = {"FF": after.forward, "BP": after.backward, "WU": after.weights}
        row = {"layer": layer.name, "dense": before.total, **stages, "update": after.update}
        rows.append({**row, "flows": " ".join(after.flows)})
        dense, sparse = dense + before.total, sparse + after.total
    return rows, dense, sparse
