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

SIZES = 8  # of pictures that programs are kept for


class ChwCluster(nn.Module):
    """Steps on one picture, whose weights are buffers; a program for each size of it is kept.

    (1, channels, height, width) or (1, channels) of float32 -> the same; of several outputs a
    tuple. batches: several pictures, one after the other.
    Raises: ShapeError for more than one picture without `batches`, and inputs of other channels;
    ConfigError for inputs that ask for a gradient.
    """

    def __init__(
        self,
        steps: Sequence[ProgramStep],
        names: Sequence[str],
        inputs: Sequence[int],
        outputs: Mapping[int, int],
        batches: bool = False,
    ) -> None:
        """names: of the layers of the steps.  outputs: value -> its number of axes in the net."""
        super().__init__()
        self.steps, self.names, self.batches = tuple(steps), tuple(names), batches
        self.inputs, self.outputs = tuple(inputs), dict(outputs)
        for i, step in enumerate(self.steps):
            for name, tensor in step.weights.items():
                self.register_buffer(f"{i}_{name}", tensor)
        self._programs: dict[Any, Any] = {}
        self.register_load_state_dict_post_hook(_forget)

    def forward(self, *given: Tensor) -> Any:
        for x in given:
            if x.requires_grad and torch.is_grad_enabled():
                got, fix = "an input that asks for a gradient", "Train the net, then compress it."
                raise ConfigError("compressed net", got=got, want="a forward alone", fix=fix)
        many = len(given[0])
        if many != 1 and not self.batches:
            got, want = f"{many} pictures at once", "one: of several a dense net is faster"
            fix = "Give one at a time, or compress with Chw(force=True), which does so for you."
            raise ShapeError("pictures", got=got, want=want, fix=fix)
        made = [self._one([x[i] for x in given]) for i in range(many)]
        whole = (
            [torch.stack(some) for some in zip(*made, strict=True)] if many else self._none(given)
        )
        return whole[0] if len(whole) == 1 else tuple(whole)

    def _one(self, given: Sequence[Tensor]) -> list[Tensor]:
        """What one picture becomes."""
        program = self.program([tuple(x.shape) for x in given])
        values = program([x.to(torch.float32) for x in given], tuple(self.outputs))
        wide = zip(values, self.outputs.values(), strict=True)
        return [y[:, None, None] if y.dim() == 1 and axes == 4 else y for y, axes in wide]

    def _none(self, given: Sequence[Tensor]) -> list[Tensor]:
        """Of no picture, none of each output."""
        return [y[None][:0] for y in self._one([x.new_zeros(x.shape[1:]) for x in given])]

    def program(self, shapes: Sequence[tuple[int, ...]]) -> Any:
        """The program for a size, made once; by kernels where there are any, else in torch."""
        key = (tuple(shapes), torch.get_num_threads(), native.kind())
        program = self._programs.get(key)
        if program is None:
            while len(self._programs) >= SIZES:
                self._programs.pop(next(iter(self._programs)), None)
            inputs = dict(zip(self.inputs, shapes, strict=True))
            steps = self.packed_steps()
            fast = available()
            program = (
                NativeProgram(steps, inputs, tuple(self.outputs))
                if fast
                else NaiveProgram(steps, inputs)
            )
            self._programs[key] = program
        return program

    def packed_steps(self) -> list[ProgramStep]:
        """The steps, with the weights that the buffers hold now."""
        return [
            replace(step, weights={n: getattr(self, f"{i}_{n}") for n in step.weights})
            for i, step in enumerate(self.steps)
        ]

    def _apply(self, fn: Any, recurse: bool = True) -> ChwCluster:
        moved = super()._apply(fn, recurse)
        moved._programs = {}  # they point into the buffers
        return moved

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_programs": {}}


def _forget(module: nn.Module, _: Any) -> None:
    module._programs = {}  # pyright: ignore[reportArgumentType]
