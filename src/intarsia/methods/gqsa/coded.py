"""A weight in groups of a few bits, while its codes are chosen (GQSA, section 3.1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...formats import GroupSparse
from ...kernels.gqsa import affine, codes_of
from ...kernels.gqsa.naive import LEAST
from ...partitions import choose_and_compensate
from ...partitions.patterns import largest
from ...scores import Statistics, obs, wanda

DAMP = 0.01


@dataclass
class CodedGroups:
    """Groups of a weight (out, in), C a row: scales, zeros, and the numbers before rounding.

    form: the format.  width: in.  raw: (out, C, G), latent: compensated, not rounded; scale, zero:
    (out, C) float; mask: (out, C) bool, True = kept.
    """

    form: GroupSparse
    width: int
    raw: Tensor
    scale: Tensor
    zero: Tensor
    mask: Tensor

    @property
    def codes(self) -> Tensor:
        """The integer codes q, (out, C, G)."""
        return codes_of(self.raw, self.scale[..., None], self.zero[..., None], self.form.bits)

    @property
    def steps(self) -> Tensor:
        """The steps q - z that the scale multiplies, 0 where pruned.  (out, C, G)."""
        return (self.codes - self.zero[..., None]) * self.mask[..., None]

    def weight(self) -> Tensor:
        """Decode the weight, (out, in) float32."""
        return (self.steps * self.scale[..., None]).flatten(1)[:, : self.width]

    def stored(self) -> dict[str, Tensor]:
        """Return the tensors that the format writes."""
        # rows of a block have the same mask
        mask = self.form.blocks(self.mask)[..., 0]
        codes, scale, zero = (
            self.form.blocks(numbers)[mask] for numbers in (self.codes, self.scale, self.zero)
        )
        return self.form.stored(codes, scale, zero, mask)

    def rounded(self, raw: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        """Round weights as these groups store them, and decode them again, with gradients.

        raw: (out, C, G), weights before rounding; scale, zero: (out, C), before rounding to the
          stored values. Returns the weight (out, in). Rounding passes gradients on unchanged
          (straight-through); the clamp passes them except where it cuts a code off.
        """
        largest_code = 2**self.form.bits - 1
        # Scales are stored as bfloat16 and zeros as codes: training sees the same rounding.
        s = passing(scale, scale.bfloat16().float()).clamp(min=LEAST)[..., None]
        z = passing(zero, zero.round().clamp(0, largest_code))[..., None]
        steps = raw / s
        # Codes are clamped to their bits after the zero point is added.
        q = (passing(steps, steps.round()) + z).clamp(0, largest_code)
        return (s * (q - z) * self.mask[..., None]).flatten(1)[:, : self.width]


def passing(exact: Tensor, rounded: Tensor) -> Tensor:
    """Return the rounded numbers, with the gradient of the exact ones."""
    return exact + (rounded - exact).detach()


class CodeRecorder:
    """A `GroupCode` that records scales and zeros when a group begins, then its codes.

    out, width: of the weight; symmetric: see `affine`.
    """

    def __init__(self, form: GroupSparse, out: int, width: int, symmetric: bool) -> None:
        self.form, self.width, self.group, self.symmetric = form, width, form.group, symmetric
        across = form.across(width)
        # The last group of a row may be padded with zeros.
        self.raw = torch.zeros(out, across * form.group)
        self.scale, self.zero = torch.zeros(out, across), torch.zeros(out, across)

    def begin(self, columns: Tensor, start: int) -> None:
        """Choose scale and zero point of a group, before its columns are rounded one by one."""
        place = start // self.group
        scale_and_zero = affine(columns, self.form.bits, self.symmetric)
        self.scale[:, place], self.zero[:, place] = scale_and_zero

    def __call__(self, column: Tensor, index: int) -> Tensor:
        """Record a column (out,) before rounding, and return it rounded to its group's codes."""
        place = index // self.group
        self.raw[:, index] = column
        scale, zero = self.scale[:, place], self.zero[:, place]
        return (codes_of(column, scale, zero, self.form.bits) - zero) * scale

    def coded(self, mask: Tensor) -> CodedGroups:
        """Return the recorded groups.  mask: (out, C) bool, True = kept."""
        raw = self.raw.view(*mask.shape, self.group)
        return CodedGroups(self.form, self.width, raw, self.scale, self.zero, mask)


def kept_groups(score: Tensor, form: GroupSparse, density: float) -> Tensor:
    """Choose the groups of weights to keep: the largest sums of scores in the whole layer.

    score: (out, in), of each weight; form: the sizes: C groups of consecutive inputs in a row, and
    blocks of `form.rows` rows, which keep the same groups, by the sum over their rows. Of equal
    sums the first are kept.
    -> (out, C) bool; blocks may keep different numbers (section 3.1).
    """
    # (blocks, C): a group is kept or pruned as a whole.
    sums = form.blocks(form.groups(score)).sum((-2, -1))
    mask = largest(sums.flatten(), round(density * sums.numel())).view(sums.shape)
    return mask.repeat_interleave(form.rows, 0)[: len(score)]


def by_rounding(
    weight: Tensor, statistics: Statistics, form: GroupSparse, density: float, symmetric: bool
) -> CodedGroups:
    """Keep groups of the largest sums of W^2 mean x^2; round each weight to its nearest code.

    weight: (out, in); statistics: the statistics of the layer's inputs; density: share of groups
    that is kept; symmetric: codes without a zero point.
    """
    w = weight.detach().float()
    mask = kept_groups(wanda(w, statistics).square(), form, density)
    recorder = CodeRecorder(form, w.shape[0], w.shape[1], symmetric)
    for start in range(0, w.shape[1], form.group):
        recorder.begin(w[:, start : start + form.group], start)
    # Nothing is compensated: the latent numbers are the weights themselves.
    recorder.raw[:, : w.shape[1]] = w
    return recorder.coded(mask)


def by_compensation(
    weight: Tensor, statistics: Statistics, form: GroupSparse, density: float, symmetric: bool
) -> CodedGroups:
    """Keep groups of the largest sums of W^2 / U_jj^2, and compensate for pruning and rounding.

    U: the Cholesky factor of the inverse of the inputs' damped second moments. Column by column,
    later columns make up for the error so far: SparseGPT and GPTQ at once.
    """
    w = weight.detach().float()
    mask = kept_groups(obs(w, statistics, DAMP), form, density)
    # (out, C) -> (out, in), the last group cut to the width.
    column_mask = mask.repeat_interleave(form.group, 1)[:, : w.shape[1]]
    recorder = CodeRecorder(form, w.shape[0], w.shape[1], symmetric)
    choose_and_compensate(w, statistics, code=recorder, damp=DAMP, keep=column_mask)
    return recorder.coded(mask)
