"""A signal as indices of candidates, and back: fitting, coding group by group, decoding."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...core.seeds import mix
from .levels import LatentLevel, levels_of
from .philox import UNIT
from .prior import FIXED, RHO, Prior, Tell, divergence, joined, sigma
from .recombiner import SPARE
from .relative_entropy import candidates, choose, chosen, gumbels
from .siren import FLOAT

Array = np.ndarray[Any, Any]
LR = 4e-3
SAMPLES = 5  # of a patch at each step; fewer where a signal has many patches
ADJUST, FASTER, NEAR = (
    10,
    1.2,
    0.4,
)  # steps, largest factor of beta, and how far below the budget is near
LEAST_STEPS = 4  # between two rounds


@dataclass(frozen=True)
class SharedColumns:
    """Latents of a level that share a group: flat places in (rows, columns), by the number."""

    first: int
    rows: int
    each: int  # groups of a row
    places: list[Array]

    @classmethod
    def of(cls, numbers: Array, level: LatentLevel) -> SharedColumns:
        flat = numbers.ravel()
        order = np.argsort(flat, kind="stable")
        first, last = int(flat.min()), int(flat.max())
        edges = np.searchsorted(flat[order], np.arange(first, last + 2))
        places = [order[a:b] for a, b in zip(edges, edges[1:], strict=False)]
        return cls(first, level.rows, len(places) // level.rows, places)


class GroupPosteriors:
    """Posteriors of a batch of signals of one size, whose groups are fixed one by one.

    values: (signals, patches, points, channels) in [0, 1]; weight: (patches, points) with mean 1, 0
    at points that are no part of the signal: a patch pays its bits however much of it is.
    """

    def __init__(
        self, prior: Prior, values: Tensor, tiles: Sequence[int], weight: Tensor, seed: int
    ) -> None:
        self.prior, self.values, self.tiles, self.weight = prior, values, tuple(tiles), weight
        self.levels = levels_of(prior.settings, tiles)
        numbers = prior.numbers(self.levels)
        self.columns = [SharedColumns.of(n, x) for n, x in zip(numbers, self.levels, strict=True)]
        self.group = [torch.from_numpy(n - n.min()).flatten() for n in numbers]
        self.mean = [x.double().div(FIXED).float() for x in prior.mean]
        self.scale = [x.double().div(FIXED).float() for x in prior.scale]
        shape = [(len(values), x.rows, 1) for x in self.levels]
        self.mu = [m.repeat(s).requires_grad_() for m, s in zip(self.mean, shape, strict=True)]
        self.rho = [r.repeat(s).requires_grad_() for r, s in zip(prior.rho, shape, strict=True)]
        self.known = [torch.zeros(n.shape, dtype=torch.bool) for n in numbers]
        self.fixed = [torch.zeros_like(mu) for mu in self.mu]
        counts = [(len(values), c.rows * c.each) for c in self.columns]
        self.beta = [torch.full(n, prior.beta, dtype=FLOAT) for n in counts]
        self.decoder = copy.deepcopy(prior.decoder).requires_grad_(False)
        rates = {"params": self.mu}, {"params": self.rho, "lr": RHO * LR}
        self.optimiser = torch.optim.Adam(rates, lr=LR)
        self.generator = torch.Generator().manual_seed(mix(seed, 3))
        self.samples = max(1, SAMPLES // self.levels[0].rows)
        self.step, self.quality = 0, 0.0

    def bits(self, level: int) -> Tensor:
        """Divergence of each group.  -> (signals, groups of the level)."""
        cost = divergence(
            self.mu[level], sigma(self.rho[level]), self.mean[level], self.scale[level]
        )
        total = torch.zeros_like(self.beta[level])
        return total.index_add(1, self.group[level], cost.flatten(1)) / math.log(2)

    def run(self, steps: int) -> None:
        """Fit what is not yet fixed."""
        most = float(self.prior.settings.kl_bits)
        for _ in range(steps):
            self.step += 1
            drawn, cost = [], torch.zeros((), dtype=FLOAT)
            for i, (mu, rho) in enumerate(zip(self.mu, self.rho, strict=True)):
                shape = (self.samples, *mu.shape)
                noise = torch.randn(shape, generator=self.generator, dtype=FLOAT)
                h = torch.where(self.known[i], self.fixed[i], mu + sigma(rho) * noise)
                drawn.append(h.flatten(0, 1))
                nats = divergence(mu, sigma(rho), self.mean[i], self.scale[i]) * ~self.known[i]
                cost = cost + (self.beta[i][:, self.group[i]] * nats.flatten(1)).sum()
            found = self.decoder(joined(drawn, self.levels), self.tiles)
            found = found.view(self.samples, *self.values.shape)
            error = (found - self.values).square().mean(-1) * self.weight
            each = error.mean((0, 3))  # signals, patches
            self.optimiser.zero_grad()
            (each.sum() + cost).backward()
            self.optimiser.step()
            self.quality = -10 * math.log10(max(float(each.detach().mean()), 1e-12))
            if self.step % ADJUST == 0:
                with torch.no_grad():
                    for i in range(len(self.mu)):
                        bits = self.bits(i)
                        factor = (bits / most).clamp(1 / FASTER, FASTER)
                        near = (bits <= most) & (bits > most - NEAR)
                        self.beta[i] *= torch.where(near, 1.0, factor)
                        self.beta[i].clamp_(1e-12, 1e4)

    @torch.no_grad()
    def code(self, level: int, numbers: Sequence[int]) -> Array:
        """Fix some groups of a level, by their numbers there.  -> (signals, len(numbers))."""
        prior, columns = self.prior, self.columns[level]
        bits, key = prior.settings.bits, prior.key
        found = np.zeros((len(self.values), len(numbers)), np.int64)
        mean, scale = self.mean[level], self.scale[level]
        mu, deviation = self.mu[level].flatten(1), sigma(self.rho[level]).flatten(1)
        for at, number in enumerate(numbers):
            places = torch.from_numpy(columns.places[number])
            column = places % len(mean)
            t = (scale[column] / deviation[:, places]).T
            d = ((mean[column] - mu[:, places]) / deviation[:, places]).T
            whole = candidates(key, columns.first + number, len(places), bits)
            z = torch.from_numpy(whole).float() / UNIT
            ratio = log_ratio(z, t, d).double().numpy()
            order = gumbels(key, 1 << bits, columns.first + number)
            picked = [choose(ratio[:, i], order) for i in range(ratio.shape[1])]
            found[:, at] = picked
            values = mean[column] + scale[column] * z[picked]
            self.fixed[level].flatten(1)[:, places] = values
            self.known[level].view(-1)[places] = True
        return found


def log_ratio(z: Tensor, t: Tensor, d: Tensor) -> Tensor:
    """log q(h) / p(h) of candidates h = mean + scale z, up to a constant of each signal.

    z: (candidates, columns); t = scale / deviation and d = (mean - mu) / deviation, (columns,
    signals).  -> (candidates, signals).
    """
    return (z * z) @ ((1 - t * t) / 2) - z @ (t * d)


def _rounds(prior: Prior) -> int:
    """Groups of a row, of all levels."""
    return sum(int(group.max()) + 1 for group in prior.groups)


def _between(prior: Prior, steps: int) -> int:
    """Steps of fitting after a round."""
    return max(LEAST_STEPS, steps // _rounds(prior))


def total_steps(prior: Prior, steps: int) -> int:
    """Steps of `encode` in all."""
    return steps + _rounds(prior) * _between(prior, steps)


def encode(
    prior: Prior,
    values: Tensor,
    tiles: Sequence[int],
    *,
    weight: Tensor,
    steps: int,
    seed: int,
    tell: Tell,
) -> tuple[Array, float]:
    """Indices of a batch of signals of one size (3.3).

    Fit, then code level by level from the widest; in each round the group of largest divergence
    of every row, and go on fitting the rest.
    -> (signals, groups) int64, and the share of groups that needed far more bits than theirs.
    """
    fit = GroupPosteriors(prior, values, tiles, weight, seed)
    counts = prior.counts(fit.levels)
    between, total = _between(prior, steps), total_steps(prior, steps)
    done = 0
    for start in range(0, steps, ADJUST):
        fit.run(min(ADJUST, steps - start))
        done = min(start + ADJUST, steps)
        tell(done, fit.quality)
    found = [np.zeros((len(values), count), np.int64) for count in counts]
    over = 0.0
    for level in reversed(range(len(counts))):
        columns = fit.columns[level]
        left = torch.ones(columns.rows, columns.each, dtype=torch.bool)
        for _ in range(columns.each):
            with torch.no_grad():
                every = fit.bits(level)
                bits = every.mean(0).view(columns.rows, columns.each)
            best = torch.where(left, bits, -torch.inf).argmax(1)
            left[torch.arange(columns.rows), best] = False
            numbers = (torch.arange(columns.rows) * columns.each + best).tolist()
            over += float((every[:, numbers] > prior.settings.bits + SPARE).sum())
            found[level][:, numbers] = fit.code(level, numbers)
            done += between
            if done < total:
                fit.run(between)
            tell(done, fit.quality)
    return np.concatenate(found, 1), over / (len(values) * sum(counts))


def latents(prior: Prior, indices: Array, tiles: Sequence[int]) -> Array:
    """The latents h of a signal's patches, from its indices alone, as whole numbers.

    Integers throughout: the same on every machine.  indices: (groups,).
    -> (patches, columns) int64 in units of 1 / (FIXED * UNIT).
    """
    levels = levels_of(prior.settings, tiles)
    whole: Array | None = None
    for index, (level, numbers) in enumerate(zip(levels, prior.numbers(levels), strict=True)):
        columns = SharedColumns.of(numbers, level)
        deviates = np.zeros(numbers.size, np.int64)
        for number, places in enumerate(columns.places):
            group = columns.first + number
            deviates[places] = chosen(prior.key, group, len(places), int(indices[group]))
        part = prior.latents(index, deviates.reshape(numbers.shape))[level.of]
        if whole is None:
            whole = part
        else:
            whole[:, : part.shape[1]] += part
    assert whole is not None
    return whole


@torch.no_grad()
def decode(prior: Prior, indices: Array, tiles: Sequence[int]) -> Array:
    """Values of a signal's patches, in float64 on the CPU.  -> (patches, points, channels)."""
    h = torch.from_numpy(latents(prior, indices, tiles)).double() / (FIXED * UNIT)
    decoder = copy.deepcopy(prior.decoder).double()
    return decoder(h, tiles).numpy()
