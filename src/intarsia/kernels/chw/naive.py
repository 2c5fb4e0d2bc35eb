"""The definition of each step, in torch; its weights are made dense once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .coded import codings_of
from .steps import DEEP, ProgramStep, checked_blocks, shapes_of

ACT: Mapping[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": F.relu,
    "relu6": F.relu6,
    "hardswish": F.hardswish,
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
    "hardsigmoid": F.hardsigmoid,
}


class NaiveProgram:
    """Steps on maps (channels, height, width) and vectors (channels,)."""

    def __init__(self, steps: Sequence[ProgramStep], inputs: Mapping[int, tuple[int, ...]]) -> None:
        """Compute the shapes of all values, and make the steps' weights dense."""
        self.steps, self.shapes = tuple(steps), shapes_of(steps, inputs)
        codings_of(self.steps)  # refuses what does not fit together
        self.inputs = tuple(inputs)
        self.weights = [dense_of(s, self.shapes[s.src][0]) for s in self.steps]

    def __call__(self, inputs: Sequence[Tensor], outputs: Sequence[int]) -> list[Tensor]:
        """Carry out the program on float32 inputs, in the order of `self.inputs`."""
        values = dict(zip(self.inputs, inputs, strict=True))
        # Every value is written once, by its number.
        for step, weight in zip(self.steps, self.weights, strict=True):
            operand = None if step.other is None else values[step.other]
            result = run(step, values[step.src], operand, weight)
            values[step.dst] = (
                result if step.result_coding is None else step.result_coding.rounded(result)
            )
        return [values[number] for number in outputs]


def dense_of(step: ProgramStep, inputs: int) -> Tensor:
    """Return a step's weight as a dense tensor; an empty one for a step without a weight.

    step: its weight is stored whole, or as blocks of rows that share their columns. Returns (out,
      in, k, k) for a convolution with kernels of side k, (out, 1, k, k) for a depthwise one, (out,
      in) for a linear map.
    """
    # A weight that is stored whole; a depthwise one has a single input channel each.
    if "weight" in step.weights:
        weight = step.weights["weight"]
        return weight[:, None] if step.kind == "depthwise" else weight
    if step.coded:
        return _decoded(step, inputs)
    if "values" not in step.weights:
        return torch.empty(0)
    checked_blocks(step, inputs)
    ptr, channels, values = (step.weights[name] for name in ("ptr", "channels", "values"))
    k, blocks = step.window.size, len(ptr) - 1
    weight = values.new_zeros(blocks, inputs, k * k, step.rows)
    # row blocks: put the kept (block, channel) columns in their places
    block = torch.arange(blocks).repeat_interleave(ptr.long().diff())
    weight[block, channels.long()] = values.view(-1, k * k, step.rows)
    rows = weight.permute(0, 3, 1, 2).flatten(0, 1)[: step.outputs]  # (out, in, k k)
    return rows.reshape(step.outputs, inputs, k, k)


def _decoded(step: ProgramStep, inputs: int) -> Tensor:
    """Return a weight in codes as numbers, in the shape that `dense_of` has."""
    codes, scales = step.weights["codes"].float(), step.weights["scales"]
    if step.kind in ("spmm", "conv"):
        checked_blocks(step, inputs)
        ptr, fours, k = step.weights["ptr"], step.weights["channels"], step.window.size
        weight = codes.new_zeros(len(ptr) - 1, -(-inputs // DEEP), k * k, step.rows, DEEP)
        block = torch.arange(len(ptr) - 1).repeat_interleave(ptr.long().diff())
        weight[block, fours.long()] = codes.view(-1, k * k, step.rows, DEEP)
        # behind the last channel, where a four is not full, codes are 0
        rows = weight.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)[: step.outputs, :inputs]
        return (rows * scales[:, None, None]).reshape(step.outputs, inputs, k, k)
    weight = codes * scales.view(-1, *[1] * (codes.dim() - 1))
    return weight[:, None] if step.kind == "depthwise" else weight


def run(step: ProgramStep, x: Tensor, operand: Tensor | None, weight: Tensor) -> Tensor:
    """Compute one step of a program: a product, mean, maximum, sum or activation.

    step: its kind, activations and window; x: the value that the step reads first (`src`), a map
      (channels, height, width) or a vector; operand: the second one (`other`), or None; weight: as
      `dense_of` returns it. Returns a map or a vector.
    """
    first, second = (ACT[name] for name in step.acts)
    bias = step.weights.get("bias")
    # A 1x1 convolution, and a residual addition behind it.
    if step.kind == "spmm":
        y = first(F.conv2d(x[None], weight.view(*weight.shape[:2], 1, 1), bias)[0])
        return y if operand is None else second(y + operand)
    if step.kind in ("conv", "depthwise"):
        # Padding may differ between sides, which conv2d itself does not offer.
        window = step.window.at(*x.shape[1:])
        padded = F.pad(x[None], (window.left, window.right, window.top, window.bottom))
        groups = len(x) if step.kind == "depthwise" else 1
        y = first(F.conv2d(padded, weight, bias, window.stride, groups=groups)[0])
        return y if operand is None else second(y + operand)
    if step.kind == "max":
        window = step.window.at(*x.shape[1:])
        zeros = (window.left, window.right, window.top, window.bottom)
        padded = F.pad(x[None], zeros, value=float("-inf"))
        return first(F.max_pool2d(padded, window.size, window.stride)[0])
    if step.kind == "linear":
        return first(F.linear(x, weight, bias))
    if step.kind == "pool":
        return first(x.mean((1, 2)))
    if step.kind == "add":
        assert operand is not None
        return first(x + operand)
    # a factor for each channel, or an activation alone
    return first(x * operand[:, None, None]) if operand is not None else first(x)
