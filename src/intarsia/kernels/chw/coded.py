"""Data that chw_codes.c and chw_plain.c read of a step with values or weights in codes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ...core.errors import ShapeError
from .steps import CODED_BLOCKS, DEEP, LARGEST_CODE, Coding, ProgramStep

SRC, DST, OTHER, FOLDED, LIMITED = (1 << i for i in range(5))  # enum codes of chw.h
# enum rule of chw.h
RULE = ("per_unit", "zero", "other_scale", "other_zero", "low", "high", "in_scale", "in_zero")
TILE = 64  # codes of a line
LIMITS: Mapping[str, tuple[float, float]] = {
    "none": (float("-inf"), float("inf")),
    "relu": (0.0, float("inf")),
    "relu6": (0.0, 6.0),
}
Codings = Mapping[int, Coding]  # number of a value that is stored in codes -> how


def codings_of(steps: Sequence[ProgramStep]) -> dict[int, Coding]:
    """Return how the values of a program are coded that are: number -> coding.

    Raises: ShapeError for a step with weights and input that are not both codes, or both numbers,
      a largest number that is not coded as what it is taken from, or codes that a step of numbers
      would add or could not make.
    """
    codings: dict[int, Coding] = {}
    for number, step in enumerate(steps):
        reads_codes = step.src in codings
        either = step.kind in ("pool", "max") and reads_codes
        if step.coded != reads_codes and not either:
            name, got = f"step {number}, {step.kind!r}", "numbers and codes together"
            fix = "Compress the net again."
            raise ShapeError(name, got=got, want="one of both", fix=fix)
        if not step.coded and (step.other in codings or not _can_make(step)):
            name, got = f"step {number}, {step.kind!r}", "codes around a step of numbers"
            want, fix = "weights in codes, or numbers alone", "Compress the net again."
            raise ShapeError(name, got=got, want=want, fix=fix)
        if step.kind == "max" and codings.get(step.src) != step.result_coding:
            name, got = f"result of step {number}, 'max'", f"{step.result_coding}"
            fix = "Compress the net again."
            raise ShapeError(name, got=got, want=f"{codings.get(step.src)}, as it reads", fix=fix)
        if step.result_coding is not None:
            codings[step.dst] = step.result_coding
    return codings


def _can_make(step: ProgramStep) -> bool:
    """Return True if a step without weights in codes can store its result as it says."""
    added = step.kind == "conv" and step.other is not None
    makes = step.kind in ("encode", "pool", "linear", "max", "conv") and not added
    return step.result_coding is None or makes


def tensors_in_codes(step: ProgramStep, codings: Codings) -> tuple[int, dict[str, Tensor]]:
    """Return flags, and the tensors that a step with codes needs in addition.

    Returns 0 and nothing for a step without codes; else fields of the table -> tensor: "rule", and
    for a step with weights in codes "val" (the codes), "mul" and "bias": sum * mul + bias is the
    result as a number, or its code where FOLDED is set, see `_folds`.
    Raises: ShapeError for blocks of eight rows, by `_codes`.
    """
    source, result = codings.get(step.src), step.result_coding
    operand = None if step.other is None else codings.get(step.other)
    present = ((SRC, source), (DST, result), (OTHER, operand))
    flags = sum(flag for flag, coding in present if coding is not None)
    if not flags:
        return 0, {}
    rule = _rule(source, result, operand)
    if source is None or not step.coded:
        return flags, {"rule": _in_order(rule)}
    scales = step.weights["scales"].double() * source.scale
    # what the zero of the inputs adds to each sum
    bias = step.weights["bias"].double() - scales * source.zero * _sums(step)
    # the last activation may be a limit: that is one of codes, too
    limits = LIMITS.get(step.acts[0 if step.other is None else 1])
    if result is not None and limits is not None and _folds(step, operand):
        flags |= FOLDED
        scales, bias = scales / result.scale, bias / result.scale + result.zero
        low, high = (limit / result.scale + result.zero for limit in limits)
        if low > 0 or high < LARGEST_CODE:
            flags |= LIMITED
        rule |= {"low": low, "high": high}
        if operand is not None:
            ratio = operand.scale / result.scale
            rule["other_scale"], bias = ratio, bias - ratio * operand.zero
    # kernels read whole blocks of rows
    padding = (0, -len(scales) % max(CODED_BLOCKS))
    mul, bias = (F.pad(t.float(), padding).contiguous() for t in (scales, bias))
    return flags, {"rule": _in_order(rule), "val": _codes(step), "mul": mul, "bias": bias}


def _folds(step: ProgramStep, operand: Coding | None) -> bool:
    """Return True if a step's result can be rounded at once.  operand: coding of its addend."""
    # a linear layer has few outputs: each is made a number first, then a code
    if step.kind == "linear":
        return False
    # an addend joins the sum in codes, which it cannot behind an activation
    return step.other is None or (step.acts[0] == "none" and operand is not None)


def _rule(source: Coding | None, result: Coding | None, operand: Coding | None) -> dict[str, float]:
    """Return the numbers of a step by their names in RULE; those that it lacks are left out."""
    rule: dict[str, float] = {}
    if source is not None:
        rule |= {"in_scale": source.scale, "in_zero": source.zero}
    if result is not None:
        rule |= {"per_unit": 1 / result.scale, "zero": result.zero}
    if operand is not None:
        rule |= {"other_scale": operand.scale, "other_zero": operand.zero}
    return rule


def _in_order(rule: Mapping[str, float]) -> Tensor:
    """Return the numbers of a step as the kernels read them, 0 where it has none."""
    return torch.tensor([float(rule.get(name, 0.0)) for name in RULE])


def _sums(step: ProgramStep) -> Tensor:
    """Return the sum of each output's weight codes, (out,) float64."""
    codes = step.weights["codes"].double()
    if step.kind not in ("spmm", "conv"):
        return codes.flatten(1).sum(1)
    # codes of a block are (kept, taps, rows, 4): kept columns are added up by block
    codes = codes.view(-1, step.window.size**2, step.rows, DEEP).sum(1)
    counts = step.weights["ptr"].long().diff()
    block = torch.arange(len(counts)).repeat_interleave(counts)
    rows = codes.new_zeros(len(counts), step.rows).index_add_(0, block, codes.sum(-1))
    return rows.flatten()[: step.outputs]


def _codes(step: ProgramStep) -> Tensor:
    """Return a weight's codes as the kernels read them, int8."""
    codes = step.weights["codes"]
    if step.kind in ("spmm", "conv"):
        if step.rows not in CODED_BLOCKS:
            fix = "Compress the net again."
            raise ShapeError("rows of a block", got=step.rows, want=str(CODED_BLOCKS), fix=fix)
        return codes.contiguous()
    size = DEEP if step.kind == "depthwise" else TILE
    return F.pad(codes, (0, -codes.shape[-1] % size)).contiguous()
