"""Weights and values in codes that tests of steps share."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.testing import assert_close

from intarsia.formats import RowBlocks
from intarsia.kernels.chw import Coding, NaiveProgram, NativeProgram, ProgramStep

from .drawing import drawn

SIGNED, POSITIVE = Coding(0.031, 117), Coding(0.02, 0)


def rounded(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Codes of a weight, and the scale of each output."""
    scales = weight.flatten(1).abs().amax(1).clamp_min(1e-6) / 127
    return torch.round(weight / scales.view(-1, *[1] * (weight.dim() - 1))), scales


def fours(out: int, ins: int, rows: int, density: float, k: int = 1) -> dict[str, Tensor]:
    """A weight of which blocks of `rows` outputs keep some fours of inputs."""
    kept = drawn(-(-out // rows), -(-ins // 4), seed=9).sigmoid() < density
    mask = kept.repeat_interleave(rows, 0)[:out].repeat_interleave(4, 1)[:, :ins]
    mask = mask[:, :, None, None].expand(-1, -1, k, k)
    codes, scales = rounded(drawn(out, ins, k, k) * mask)
    return {**stored(codes, mask, rows), "scales": scales, "bias": drawn(out, seed=5)}


def stored(codes: Tensor, mask: Tensor, rows: int) -> dict[str, Tensor]:
    """Codes (out, in, k, k) in blocks as "spmm" (k = 1) and "conv" steps have them."""
    blocks = RowBlocks(rows, inputs=4).encode(codes, mask)
    values = blocks.pop("values").unflatten(1, (4, -1)).permute(0, 2, 3, 1).to(torch.int8)
    return {**blocks, "codes": values.flatten(0, 1) if codes.shape[-1] == 1 else values}


def agree(
    step: ProgramStep, shape: tuple[int, ...], source: Coding, *, of_operand: Coding | None = None
) -> None:
    """Encode inputs, carry out the step, and compare: at most a code off where one lies between."""
    encode = (
        [ProgramStep("encode", 0, 1, result_coding=source)]
        if len(shape) == 3
        else [ProgramStep("pool", 0, 1, result_coding=source)]
    )
    inputs = {0: shape if len(shape) == 3 else (*shape, 3, 5)}
    if step.other is not None:
        high, wide = step.window.outputs(*shape[1:])
        inputs[4] = (step.outputs, high, wide)
        encode.append(ProgramStep("encode", 4, 5, result_coding=of_operand or POSITIVE))
    program = [*encode, step]
    result = step.dst
    if step.result_coding is not None:  # read again as numbers, by sums of one code each
        program += reading(step.outputs, result, len(shape) == 3)
        result = 3
    tensors = [drawn(*s, seed=number) for number, s in inputs.items()]
    (want,) = NaiveProgram(program, inputs)(tensors, [result])
    native = NativeProgram(program, inputs, [result])
    for _ in range(2):  # what the first run left behind does not matter
        (got,) = native(tensors, [result])
        if step.result_coding is None:
            assert_close(got, want, atol=2e-4, rtol=2e-5)
            continue
        assert (got - want).abs().max() <= 1.01 * step.result_coding.scale
        assert ((got - want).abs() > 0.5 * step.result_coding.scale).float().mean() < 0.02


def reading(channels: int, value: int, is_map: bool) -> list[ProgramStep]:
    """A step that returns a value in codes as numbers."""
    if is_map:
        ones = {"codes": torch.ones(channels, 1, 1, dtype=torch.int8)}
        kind = "depthwise"
    else:
        ones, kind = {"codes": torch.eye(channels).to(torch.int8)}, "linear"
    weights = {**ones, "scales": torch.ones(channels), "bias": torch.zeros(channels)}
    return [ProgramStep(kind, value, 3, weights=weights)]
