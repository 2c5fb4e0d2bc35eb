"""A part of a net that kernels carry out in CHW: packed weights, and a program for each size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ...core.errors import ConfigError, ShapeError
from ...kernels import native
from ...kernels.chw import NaiveProgram, NativeProgram, ProgramStep, available

SIZES = 8  # number of picture sizes with cached programs


class ChwCluster(nn.Module):
    """Run of adjacent layers that native kernels carry out on one picture; weights are buffers.

    A program of kernel calls is built for each size of picture, and cached.
    Inputs and outputs are (1, channels, height, width) or (1, channels), float32; several outputs
    come as a tuple. batches: accept several pictures, which are computed one after the other.
    Raises: ShapeError for more than one picture without `batches`, and for other numbers of
    channels; ConfigError for inputs that ask for a gradient.
    """

    def __init__(
        self,
        steps: Sequence[ProgramStep],
        names: Sequence[str],
        inputs: Sequence[int],
        outputs: Mapping[int, int],
        batches: bool = False,
    ) -> None:
        super().__init__()
        self.steps, self.names, self.batches = tuple(steps), tuple(names), batches
        # values to read, in `forward`'s order; value to return -> its axes in the net, 2 or 4
        self.inputs, self.outputs = tuple(inputs), dict(outputs)
        for i, step in enumerate(self.steps):
            for name, tensor in step.weights.items():
                self.register_buffer(f"{i}_{name}", tensor)
        self._programs: dict[Any, Any] = {}
        self.register_load_state_dict_post_hook(_forget)

    def forward(self, *inputs: Tensor) -> Any:
        """Compute the outputs of each picture, stacked along the first axis.

        inputs: one tensor for each number in `self.inputs`, (pictures, channels, height, width) or
        (pictures, channels).
        Returns a tensor, or a tuple of them if the cluster has several outputs.
        """
        for x in inputs:
            if x.requires_grad and torch.is_grad_enabled():
                got, fix = "an input that asks for a gradient", "Train the net, then compress it."
                raise ConfigError("compressed net", got=got, want="a forward alone", fix=fix)
        # kernels read one picture: several are computed in turn
        pictures = len(inputs[0])
        if pictures != 1 and not self.batches:
            got, want = f"{pictures} pictures at once", "one: of several a dense net is faster"
            fix = "Give one at a time, or compress with Chw(force=True), which does so for you."
            raise ShapeError("pictures", got=got, want=want, fix=fix)
        per_picture = [self._compute_picture([x[i] for x in inputs]) for i in range(pictures)]
        outputs = (
            [torch.stack(values) for values in zip(*per_picture, strict=True)]
            if pictures
            else self._empty_outputs(inputs)
        )
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def _compute_picture(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Compute the outputs of one picture; inputs: (channels, height, width) or (channels,)."""
        program = self.program([tuple(x.shape) for x in inputs])
        values = program([x.to(torch.float32) for x in inputs], tuple(self.outputs))
        outputs = zip(values, self.outputs.values(), strict=True)
        # a pooled vector is (C,) in a program, and may be (1, C, 1, 1) in the net
        return [y[:, None, None] if y.dim() == 1 and axes == 4 else y for y, axes in outputs]

    def _empty_outputs(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Return empty outputs of the right shapes, for a batch without pictures."""
        return [
            y[None][:0] for y in self._compute_picture([x.new_zeros(x.shape[1:]) for x in inputs])
        ]

    def program(self, shapes: Sequence[tuple[int, ...]]) -> Any:
        """Return the kernel calls for pictures of a size, built at the first call.

        shapes: of each input, (channels, height, width) or (channels,). Without native kernels the
        program computes the same in torch.
        """
        # a program depends on the threads that share its rows, and on the build of the kernels
        key = (tuple(shapes), torch.get_num_threads(), native.kind())
        program = self._programs.get(key)
        if program is None:
            # the oldest size goes; dicts keep the order of insertion
            while len(self._programs) >= SIZES:
                self._programs.pop(next(iter(self._programs)), None)
            inputs = dict(zip(self.inputs, shapes, strict=True))
            steps = self.packed_steps()
            program = (
                NativeProgram(steps, inputs, tuple(self.outputs))
                if available()
                else NaiveProgram(steps, inputs)
            )
            self._programs[key] = program
        return program

    def packed_steps(self) -> list[ProgramStep]:
        """Return the steps with the weights that the buffers hold now, as after loading."""
        return [
            replace(step, weights={n: getattr(self, f"{i}_{n}") for n in step.weights})
            for i, step in enumerate(self.steps)
        ]

    def _apply(self, fn: Any, recurse: bool = True) -> ChwCluster:
        moved = super()._apply(fn, recurse)
        moved._programs = {}  # programs hold pointers to the old buffers
        return moved

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_programs": {}}


def _forget(module: nn.Module, _: Any) -> None:
    """Drop the programs after new weights were loaded."""
    module._programs = {}  # pyright: ignore[reportArgumentType]
