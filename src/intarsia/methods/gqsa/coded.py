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
    """Of a weight (out, in) in C groups a row: what is stored, and the numbers before rounding.

    raw: (out, C, G), latent: compensated, not rounded; scale, zero: (out, C) float; kept: (out, C)
    bool. form: the format.  width: in.
    """

    form: GroupSparse
    width: int
    raw: Tensor
    scale: Tensor
    zero: Tensor
    kept: Tensor

    @property
    def codes(self) -> Tensor:
        """(out, C, G)."""
        return codes_of(self.raw, self.scale[..., None], self.zero[..., None], self.form.bits)

    @property
    def steps(self) -> Tensor:
        """q - z, 0 where pruned: what the scale multiplies.  (out, C, G)."""
        return (self.codes - self.zero[..., None]) * self.kept[..., None]

    def weight(self) -> Tensor:
        """What the format decodes, (out, in) float32."""
        return (self.steps * self.scale[..., None]).flatten(1)[:, : self.width]

    def stored(self) -> dict[str, Tensor]:
        """As it is written."""
        some = self.kept
        return self.form.stored(self.codes[some], self.scale[some], self.zero[some], some)

    def rounded(self, raw: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        """`weight` of other numbers, with gradients: rounding passes them on, the clamp where it
        does not bite.  (out, in)."""
        most = 2**self.form.bits - 1
        s = passing(scale, scale.bfloat16().float()).clamp(min=LEAST)[..., None]
        z = passing(zero, zero.round().clamp(0, most))[..., None]
        steps = raw / s
        q = (passing(steps, steps.round()) + z).clamp(0, most)
        return (s * (q - z) * self.kept[..., None]).flatten(1)[:, : self.width]


def passing(exact: Tensor, rounded: Tensor) -> Tensor:
    """The rounded numbers, with the gradient of the exact ones."""
    return exact + (rounded - exact).detach()


class CodeRecorder:
    """A `GroupCode` that keeps what it chose: scales and zeros when a group begins, then codes.

    out, width: of the weight; symmetric: see `affine`.
    """

    def __init__(self, form: GroupSparse, out: int, width: int, symmetric: bool) -> None:
        self.form, self.width, self.group, self.symmetric = form, width, form.group, symmetric
        across = form.across(width)
        self.raw = torch.zeros(out, across * form.group)
        self.scale, self.zero = torch.zeros(out, across), torch.zeros(out, across)

    def begin(self, columns: Tensor, start: int) -> None:
        """Scale and zero of the group that begins at `start`.  columns: (out, at most G)."""
        place = start // self.group
        found = affine(columns, self.form.bits, self.symmetric)
        self.scale[:, place], self.zero[:, place] = found

    def __call__(self, column: Tensor, index: int) -> Tensor:
        place = index // self.group
        self.raw[:, index] = column
        scale, zero = self.scale[:, place], self.zero[:, place]
        return (codes_of(column, scale, zero, self.form.bits) - zero) * scale

    def coded(self, kept: Tensor) -> CodedGroups:
        """kept: (out, C) bool."""
        raw = self.raw.view(*kept.shape, self.group)
        return CodedGroups(self.form, self.width, raw, self.scale, self.zero, kept)


def kept_groups(score: Tensor, form: GroupSparse, density: float) -> Tensor:
    """The groups with the largest sums, of the whole layer; of equal ones the first.

    score: (out, in) -> (out, C) bool; rows may keep different numbers (section 3.1).
    """
    sums = form.groups(score).sum(-1)
    return largest(sums.flatten(), round(density * sums.numel())).view(sums.shape)


def by_rounding(
    weight: Tensor, seen: Statistics, form: GroupSparse, density: float, symmetric: bool
) -> CodedGroups:
    """Groups of the largest sums of W^2 mean x^2, each weight to its nearest code."""
    w = weight.detach().float()
    kept = kept_groups(wanda(w, seen).square(), form, density)
    found = CodeRecorder(form, w.shape[0], w.shape[1], symmetric)
    for start in range(0, w.shape[1], form.group):
        found.begin(w[:, start : start + form.group], start)
    found.raw[:, : w.shape[1]] = w
    return found.coded(kept)


def by_compensation(
    weight: Tensor, seen: Statistics, form: GroupSparse, density: float, symmetric: bool
) -> CodedGroups:
    """Groups of the largest sums of W^2 / U_jj^2; later columns make up for what is pruned and
    rounded, column by column: SparseGPT and GPTQ at once."""
    w = weight.detach().float()
    kept = kept_groups(obs(w, seen, DAMP), form, density)
    keep = kept.repeat_interleave(form.group, 1)[:, : w.shape[1]]
    found = CodeRecorder(form, w.shape[0], w.shape[1], symmetric)
    choose_and_compensate(w, seen, code=found, damp=DAMP, keep=keep)
    return found.coded(kept)
