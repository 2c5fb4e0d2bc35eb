"""The steps of a program on maps, and the shapes of their values; nothing is computed here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from ...core.errors import ShapeError

ACTS = ("none", "relu", "relu6", "hardswish", "silu", "sigmoid", "hardsigmoid")
KINDS = ("spmm", "depthwise", "conv", "linear", "add", "scale", "pool", "act", "encode", "max")
BLOCKS = (1, 2, 4, 8)  # rows of a weight that may share their columns
CODED_BLOCKS = (1, 2, 4)  # the same where weights are codes
DEEP = 4  # neighbouring input channels that a product of codes sums at once
LARGEST_CODE = 255
Shape = tuple[int, ...]  # a map (channels, height, width), or a vector (channels,)


class Window(NamedTuple):
    """The window of a convolution: the kernel's side, its stride, and zeros around the picture.

    same: the zeros are TensorFlow's, by the size of the picture: ceil(side / stride) outputs.
    """

    size: int = 1
    stride: int = 1
    top: int = 0
    left: int = 0
    bottom: int = 0
    right: int = 0
    same: bool = False

    def at(self, height: int, width: int) -> Window:
        """Return the same window with its padding as numbers, for a picture of some size.

        With `same` the padding depends on them.
        """
        if not self.same:
            return self
        # ceil(side / stride) outputs, the odd zero behind, as TensorFlow pads
        zeros = [
            max(0, (-(-side // self.stride) - 1) * self.stride + self.size - side)
            for side in (height, width)
        ]
        (top, left), (bottom, right) = ([z // 2 for z in zeros], [z - z // 2 for z in zeros])
        return Window(self.size, self.stride, top, left, bottom, right)

    def outputs(self, height: int, width: int) -> tuple[int, int]:
        """Return (height, width) of a convolution's result for a picture of some size."""
        window = self.at(height, width)
        # The number of places of the window, stride by stride.
        high = (height + window.top + window.bottom - window.size) // window.stride + 1
        return high, (width + window.left + window.right - window.size) // window.stride + 1


class Coding(NamedTuple):
    """Storage of a value in 8 bits: a number x is scale (code - zero), with codes 0 to 255."""

    scale: float
    zero: int

    def rounded(self, x: Tensor) -> Tensor:
        """Return numbers as their codes have them.  x: float32, of any shape."""
        codes = torch.round(x / self.scale + self.zero).clamp(0, LARGEST_CODE)
        return self.scale * (codes - self.zero)


@dataclass(frozen=True)
class ProgramStep:
    """A step of a program, where values are numbered and written once each.

    kind: "spmm", a 1x1 convolution with zeros; "conv", k x k by row blocks; "depthwise"; "linear",
      of vectors; "add" src + other; "scale", src times the vector other; "pool", the mean of each
      channel; "act"; "encode", which only stores src in codes; "max", the largest of a window.
    acts: (a, b) for b(a(y) + other) of "spmm" and "conv", a(y) of all others.
    weights: "bias" (out,), and "weight" (out, k, k) of a depthwise and (out, in) of a linear step
      or a dense 1x1 one; "ptr", "channels", "values" of `RowBlocks` for "spmm" and "conv".
      Weights in codes have "codes" (int8) and "scales" (out,) instead of "values" or "weight": a
      weight is scale times code. The codes of "spmm" are (kept, rows, 4) of four neighbouring
      channels, those of "conv" (kept, k k, rows, 4), and "channels" are numbers of such fours.
    rows: of a block.  reads: channels that its blocks were cut from, 0 = any that has them.
    result_coding: how the result is stored; None = float32. A step with weights in codes reads a
      value in codes, as "pool" may; so may "max", with a result of the same coding.
    """

    kind: str
    src: int
    dst: int
    other: int | None = None
    acts: tuple[str, str] = ("none", "none")
    weights: Mapping[str, Tensor] = field(default_factory=lambda: dict[str, Tensor]())
    window: Window = Window()
    rows: int = 1
    reads: int = 0
    result_coding: Coding | None = None

    @property
    def coded(self) -> bool:
        """True if its weight is stored in codes."""
        return "codes" in self.weights

    @property
    def outputs(self) -> int:
        """The channels of the result; 0 = the channels of src."""
        return len(self.weights["bias"]) if "bias" in self.weights else 0

    @property
    def dense(self) -> bool:
        """True if its weight is stored whole."""
        return "weight" in self.weights


def shapes_of(steps: Sequence[ProgramStep], inputs: Mapping[int, Shape]) -> dict[int, Shape]:
    """Return the shape of every value of a program, by number.

    inputs: number of an input value -> its shape. Raises: ShapeError for a step with an input shape
      that it cannot read.
    """
    shapes = dict(inputs)
    for number, step in enumerate(steps):
        source = shapes[step.src]
        ins = _inputs(step)
        # A linear step reads a vector, every other one a map.
        if (ins and ins != source[0]) or (len(source) == 1) != (step.kind == "linear"):
            _refuse(number, step, source)
        if step.kind in ("linear", "pool"):
            shapes[step.dst] = (step.outputs or source[0],)
        elif step.kind in ("conv", "depthwise", "max"):
            high, wide = step.window.outputs(*source[1:])
            if high < 1 or wide < 1:
                _refuse(number, step, source)
            shapes[step.dst] = (step.outputs or source[0], high, wide)
        else:
            shapes[step.dst] = (step.outputs or source[0], *source[1:])
        if step.other is not None:
            result = shapes[step.dst]
            # "scale" multiplies by a vector of channels, "add" by a map of the same shape
            want = result[:1] if step.kind == "scale" else result
            if shapes[step.other] != want:
                _refuse(number, step, shapes[step.other], want)
    return shapes


def _inputs(step: ProgramStep) -> int:
    """Return how many channels a step's input must have; 0 = any."""
    if step.kind == "depthwise":
        return step.outputs
    if step.kind == "linear" and step.coded:
        return step.weights["codes"].shape[1]
    return step.weights["weight"].shape[1] if step.dense else step.reads


def _refuse(number: int, step: ProgramStep, got: Shape, want: Shape | None = None) -> None:
    words = "what its weights read" if want is None else str(want)
    fix = "Give the net inputs of the size and channels that it was compressed for."
    raise ShapeError(f"input of step {number}, {step.kind!r}", got=got, want=words, fix=fix)


def checked_blocks(step: ProgramStep, inputs: int) -> None:
    """Raise ShapeError for row blocks that do not fit together, as in a damaged file.

    step: its weights are a matrix in blocks of `step.rows` rows: "ptr" (blocks + 1,), where each
      block's columns begin; "channels", the input channel of each column, or four of them; "values"
      or "codes", the column's weights; inputs: the channels that the step reads.
    """
    ptr, channels = step.weights["ptr"], step.weights["channels"]
    values = step.weights["codes" if step.coded else "values"]
    blocks, taps = -(-step.outputs // step.rows), step.window.size**2
    if step.coded:
        inputs, taps = -(-inputs // DEEP), DEEP * taps
    counts = ptr.long().diff()
    # Each block's channels lie between two entries of ptr, which may not fall.
    fits = (
        len(ptr) == blocks + 1
        and not int(ptr[0])
        and bool((counts >= 0).all())
        and int(ptr[-1]) == len(channels)
        and values.numel() == len(channels) * taps * step.rows
    )
    if not fits or (len(channels) and not 0 <= int(channels.min()) <= int(channels.max()) < inputs):
        got = f"{len(ptr) - 1} blocks, {len(channels)} channels, {values.numel()} values"
        want = f"{blocks} blocks of {step.rows} rows on {inputs} channels"
        raise ShapeError("row blocks", got=got, want=want, fix="Copy the file again.")
