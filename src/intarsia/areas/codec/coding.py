"""Coding of signals as indices of candidates: fit, code group by group, decode."""

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
from .prior import FIXED, RHO, Prior, Tell, divergence, join_levels, sigma
from .recombiner import SPARE
from .relative_entropy import candidate, candidates, choose, gumbels
from .siren import FLOAT

Array = np.ndarray[Any, Any]
LR = 4e-3
SAMPLES = 5  # of a patch's posterior at each step; fewer where a signal has many patches
ADJUST, FASTER = 10, 1.2  # steps between two changes of beta, and its largest factor
NEAR = 0.4  # bits below a group's budget within which beta stays
BETAS = 1e-12, 1e4  # least and largest beta: it could not soon come back from beyond them
LEAST_STEPS = 4  # of fitting between two rounds


@dataclass(frozen=True)
class LevelGroups:
    """Groups of a level's latents, each of which is coded as one index.

    first: number of the level's first group among the signal's groups;  rows: the level's;
    groups_per_row: number of groups over number of rows;  places: flat indices into (rows,
    columns) of the latents of each group, which may lie in several rows, see `number_groups`.
    """

    first: int
    rows: int
    groups_per_row: int
    places: list[Array]

    @classmethod
    def of(cls, numbers: Array, level: LatentLevel) -> LevelGroups:
        """List the latents of each group of a level, for coding group by group.

        numbers: (rows, columns), the number of the group of each latent; level: the level of these
          latents: patches, blocks of patches or the whole signal.
        """
        flat = numbers.ravel()
        order = np.argsort(flat, kind="stable")
        first, last = int(flat.min()), int(flat.max())
        # latents sorted by group: slices between consecutive edges
        edges = np.searchsorted(flat[order], np.arange(first, last + 2))
        places = [order[a:b] for a, b in zip(edges, edges[1:], strict=False)]
        return cls(first, level.rows, len(places) // level.rows, places)


class GroupPosteriors:
    """Posteriors q of a batch of signals of one size, with groups that are coded one by one.

    values: (signals, patches, points, channels) in [0, 1]; tiles: patches along each axis; weight:
    (patches, points) with mean 1 a patch, 0 at points outside the signal: a patch has its bits
    however much of it is filled.
    mu, rho: of q by level;  is_fixed: which latents are coded, and fixed: their values;  beta:
    weight of a nat of a group's divergence in the loss, (signals, groups);  quality: PSNR of the
    last step in dB.
    """

    def __init__(
        self, prior: Prior, values: Tensor, tiles: Sequence[int], weight: Tensor, seed: int
    ) -> None:
        # values: (signals, patches, points, channels) in [0, 1]
        self.prior, self.values, self.tiles, self.weight = prior, values, tuple(tiles), weight
        self.levels = levels_of(prior.settings, tiles)
        # for each level: the group of each latent, (rows, columns), and the latents of each group
        numbers = prior.numbers(self.levels)
        self.columns = [LevelGroups.of(n, x) for n, x in zip(numbers, self.levels, strict=True)]
        self.group = [torch.from_numpy(n - n.min()).flatten() for n in numbers]
        self.mean = [x.double().div(FIXED).float() for x in prior.mean]
        self.scale = [x.double().div(FIXED).float() for x in prior.scale]
        shape = [(len(values), x.rows, 1) for x in self.levels]
        self.mu = [m.repeat(s).requires_grad_() for m, s in zip(self.mean, shape, strict=True)]
        self.rho = [r.repeat(s).requires_grad_() for r, s in zip(prior.rho, shape, strict=True)]
        self.is_fixed = [torch.zeros(n.shape, dtype=torch.bool) for n in numbers]
        self.fixed = [torch.zeros_like(mu) for mu in self.mu]
        counts = [(len(values), c.rows * c.groups_per_row) for c in self.columns]
        self.beta = [torch.full(n, prior.beta, dtype=FLOAT) for n in counts]
        # the decoder is fixed: only the posteriors are fitted
        self.decoder = copy.deepcopy(prior.decoder).requires_grad_(False)
        rates = {"params": self.mu}, {"params": self.rho, "lr": RHO * LR}
        self.optimiser = torch.optim.Adam(rates, lr=LR)
        self.generator = torch.Generator().manual_seed(mix(seed, 3))
        self.samples = max(1, SAMPLES // self.levels[0].rows)
        self.step, self.quality = 0, 0.0

    def bits(self, level: int) -> Tensor:
        """Compute how many bits each group of latents costs: KL(q || p), (signals, groups)."""
        cost = divergence(
            self.mu[level], sigma(self.rho[level]), self.mean[level], self.scale[level]
        )
        total = torch.zeros_like(self.beta[level])
        return total.index_add(1, self.group[level], cost.flatten(1)) / math.log(2)

    def run(self, steps: int) -> None:
        """Fit the posteriors of the latents that are not coded yet, by Adam.

        The loss is the squared error of the decoded signals, plus for each group of latents beta
        times the KL divergence of its posterior from the prior, in nats. Every ADJUST steps beta
        is moved so that the divergence comes to the group's budget, which is in bits.
        """
        budget = float(self.prior.settings.kl_bits)
        for _ in range(steps):
            self.step += 1
            drawn, cost = [], torch.zeros((), dtype=FLOAT)
            for i, (mu, rho) in enumerate(zip(self.mu, self.rho, strict=True)):
                # samples h = mu + sigma z of latents that are free; coded ones keep their values
                shape = (self.samples, *mu.shape)
                noise = torch.randn(shape, generator=self.generator, dtype=FLOAT)
                h = torch.where(self.is_fixed[i], self.fixed[i], mu + sigma(rho) * noise)
                drawn.append(h.flatten(0, 1))
                nats = divergence(mu, sigma(rho), self.mean[i], self.scale[i]) * ~self.is_fixed[i]
                cost = cost + (self.beta[i][:, self.group[i]] * nats.flatten(1)).sum()
            output = self.decoder(join_levels(drawn, self.levels), self.tiles)
            output = output.view(self.samples, *self.values.shape)
            error = (output - self.values).square().mean(-1) * self.weight
            patch_error = error.mean((0, 3))  # signals, patches
            self.optimiser.zero_grad()
            (patch_error.sum() + cost).backward()
            self.optimiser.step()
            # PSNR of values in [0, 1], in dB, at most 120
            self.quality = -10 * math.log10(max(float(patch_error.detach().mean()), 1e-12))
            if self.step % ADJUST == 0:
                with torch.no_grad():
                    # steer each group's divergence to its budget: beta rises above it, falls below
                    # it
                    for i in range(len(self.mu)):
                        bits = self.bits(i)
                        factor = (bits / budget).clamp(1 / FASTER, FASTER)
                        near = (bits <= budget) & (bits > budget - NEAR)
                        self.beta[i] *= torch.where(near, 1.0, factor)
                        self.beta[i].clamp_(*BETAS)

    @torch.no_grad()
    def code(self, level: int, numbers: Sequence[int]) -> Array:
        """Code some groups of latents: choose a candidate for each, and fix its latents to that.

        A group's candidates are samples of the prior, which the decoder can draw, too. Returns the
        indices of the chosen candidates, (signals, len(numbers)).
        """
        prior, columns = self.prior, self.columns[level]
        bits, key = prior.settings.bits, prior.key
        indices = np.zeros((len(self.values), len(numbers)), np.int64)
        mean, scale = self.mean[level], self.scale[level]
        mu, deviation = self.mu[level].flatten(1), sigma(self.rho[level]).flatten(1)
        for position, number in enumerate(numbers):
            places = torch.from_numpy(columns.places[number])
            column = places % len(mean)
            # with h = mean + scale z, q(h) / p(h) depends on these two alone, see `log_ratio`
            t = (scale[column] / deviation[:, places]).T
            d = ((mean[column] - mu[:, places]) / deviation[:, places]).T
            deviates = candidates(key, columns.first + number, len(places), bits)
            z = torch.from_numpy(deviates).float() / UNIT
            ratio = log_ratio(z, t, d).double().numpy()
            # A*: the candidate of largest log q / p plus its Gumbel is a sample of q
            order = gumbels(key, 1 << bits, columns.first + number)
            picked = [choose(ratio[:, i], order) for i in range(ratio.shape[1])]
            indices[:, position] = picked
            values = mean[column] + scale[column] * z[picked]
            self.fixed[level].flatten(1)[:, places] = values
            self.is_fixed[level].view(-1)[places] = True
        return indices


def log_ratio(z: Tensor, t: Tensor, d: Tensor) -> Tensor:
    """Compute log q(h) / p(h) of candidates h = mean + scale z, up to a constant of each signal.

    q = N(mu, deviation^2): the posterior; p = N(mean, scale^2): the prior. z: (candidates,
    columns), normal deviates; t: scale / deviation, and d: (mean - mu) / deviation, (columns,
    signals) both.  -> (candidates, signals).
    """
    return (z * z) @ ((1 - t * t) / 2) - z @ (t * d)


def _round_count(prior: Prior) -> int:
    """Return the number of coding rounds: groups of a row, summed over levels."""
    return sum(int(group.max()) + 1 for group in prior.groups)


def _steps_between(prior: Prior, steps: int) -> int:
    """Return the steps of fitting after each round."""
    return max(LEAST_STEPS, steps // _round_count(prior))


def total_steps(prior: Prior, steps: int) -> int:
    """Return the number of all steps of `encode`.  steps: the first fit's steps."""
    return steps + _round_count(prior) * _steps_between(prior, steps)


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
    """Encode a batch of signals of one size as indices of candidates (3.3).

    The posteriors of all latents are fitted first. Then groups of latents are coded round by round,
    the levels of the widest parts first, in a row the group of largest divergence first; after each
    round the latents that are left are fitted again.
    values: (signals, patches, points, channels) in [0, 1]; tiles: patches along each axis; weight:
      (patches, points), of a point in the loss; tell: called with the number of steps so far and
      the PSNR.
    -> (signals, groups) int64, and the share of groups that needed far more bits than they have.
    """
    fit = GroupPosteriors(prior, values, tiles, weight, seed)
    counts = prior.counts(fit.levels)
    between, total = _steps_between(prior, steps), total_steps(prior, steps)
    done = 0
    # step 1: fit all latents
    for start in range(0, steps, ADJUST):
        fit.run(min(ADJUST, steps - start))
        done = min(start + ADJUST, steps)
        tell(done, fit.quality)
    indices = [np.zeros((len(values), count), np.int64) for count in counts]
    over = 0.0
    # step 2: code the groups, wide levels first, since all patches below depend on them
    for level in reversed(range(len(counts))):
        columns = fit.columns[level]
        pending = torch.ones(columns.rows, columns.groups_per_row, dtype=torch.bool)
        for _ in range(columns.groups_per_row):
            with torch.no_grad():
                divergences = fit.bits(level)
                bits = divergences.mean(0).view(columns.rows, columns.groups_per_row)
            # in each row the pending group of largest divergence
            best = torch.where(pending, bits, -torch.inf).argmax(1)
            pending[torch.arange(columns.rows), best] = False
            numbers = (torch.arange(columns.rows) * columns.groups_per_row + best).tolist()
            # a group far over its budget is coded with an error, and the caller warns of it
            over += float((divergences[:, numbers] > prior.settings.bits + SPARE).sum())
            indices[level][:, numbers] = fit.code(level, numbers)
            done += between
            if done < total:
                fit.run(between)
            tell(done, fit.quality)
    return np.concatenate(indices, 1), over / (len(values) * sum(counts))


def latents(prior: Prior, indices: Array, tiles: Sequence[int]) -> Array:
    """Compute the latents h of a signal's patches from its indices, as whole numbers.

    indices: (groups,), chosen candidates. Integers throughout: the same on every machine.
    -> (patches, columns) int64 in units of 1 / (FIXED * UNIT).
    """
    levels = levels_of(prior.settings, tiles)
    total: Array | None = None
    for index, (level, numbers) in enumerate(zip(levels, prior.numbers(levels), strict=True)):
        columns = LevelGroups.of(numbers, level)
        deviates = np.zeros(numbers.size, np.int64)
        for number, places in enumerate(columns.places):
            group = columns.first + number
            # draw the one candidate that the index names
            deviates[places] = candidate(prior.key, group, len(places), int(indices[group]))
        part = prior.latents(index, deviates.reshape(numbers.shape))[level.row_of_patch]
        # h_patch, plus what blocks and the whole signal add to the weights
        if total is None:
            total = part
        else:
            total[:, : part.shape[1]] += part
    assert total is not None
    return total


@torch.no_grad()
def decode(prior: Prior, indices: Array, tiles: Sequence[int]) -> Array:
    """Decode a signal's patches, in float64 on the CPU.

    indices: (groups,), chosen candidates.  -> (patches, points, channels).
    """
    h = torch.from_numpy(latents(prior, indices, tiles)).double() / (FIXED * UNIT)
    # in float64 machines differ by rounding errors alone
    decoder = copy.deepcopy(prior.decoder).double()
    return decoder(h, tiles).numpy()
