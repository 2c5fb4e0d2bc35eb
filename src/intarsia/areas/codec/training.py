"""Training of a prior, in turns with the posteriors of many signals and the shared decoder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...core.errors import ConfigError, TrainingError
from ...core.seeds import mix
from ...train import checkpoint
from .levels import LatentLevel, groups_by_mean, levels_of
from .prior import RHO, Prior, Tell, divergence, join_levels, sigma, to_fixed_point
from .recombiner import RecombinerSettings
from .siren import FLOAT, SignalDecoder

REFRESH = 25  # steps between two updates of the prior and of beta
FASTER = 2.0  # largest factor of beta at each of them
LEAST_SCALE = 1e-4  # least deviation of a prior: at 0 a divergence would be infinite
FIRST_RHO, FIRST_BETA = -4.0, 2e-2  # beta for each latent of a patch
LR, LATE, LATE_LR = 2e-3, 0.6, 0.3  # from the share LATE of the steps on, LATE_LR times LR
MAPS_LR = 2e-4  # of the maps A, as released: at LR their noise costs more than they gain


class Posteriors(nn.Module):
    """Posteriors of all signals at one level: mu and rho of every latent, in sparse embeddings."""

    def __init__(self, signals: int, level: LatentLevel, start: Tensor) -> None:
        """Start every row of every signal at the same posterior; start: (latents,), the mu."""
        super().__init__()
        self.rows, count = level.rows, signals * level.rows
        self.mu = nn.Embedding(count, len(start), sparse=True, _weight=start.repeat(count, 1))
        first = torch.full((count, len(start)), FIRST_RHO, dtype=FLOAT)
        self.rho = nn.Embedding(count, len(start), sparse=True, _weight=first)

    def of(self, signals: Tensor) -> tuple[Tensor, Tensor]:
        """Return mu and sigma of some signals, (signals, rows, columns) each."""
        rows = signals[:, None] * self.rows + torch.arange(self.rows)
        return self.mu(rows), sigma(self.rho(rows))


class PriorTraining:
    """Training of a prior, with its state; `run` continues from there.

    values: (signals, patches, points, channels) in [0, 1]; tiles: patches along each axis; payload:
    bits of a patch in the file; steps: of the whole training; batch: signals of a step; seed: of
    all draws; start: see `Recombiner.train`.
    """

    def __init__(
        self,
        values: Tensor,
        tiles: Sequence[int],
        settings: RecombinerSettings,
        *,
        payload: float,
        steps: int,
        batch: int,
        seed: int,
        start: str = "shared",
    ) -> None:
        """Start the shared decoder and the posteriors of all signals; nothing is trained yet."""
        generator = torch.Generator().manual_seed(mix(seed, 0))
        self.values, self.tiles, self.settings = values, tuple(tiles), settings
        self.payload, self.steps, self.batch, self.seed = payload, steps, batch, seed
        # bits of divergence: of the bits of a group in the file, kl_bits are divergence
        self.budget = payload * settings.kl_bits / settings.bits
        self.levels = levels_of(settings, tiles)
        self.start = start
        self.decoder = SignalDecoder(settings, generator=generator)
        starts = [self.decoder.start(generator)]
        starts += [torch.zeros(self.decoder.weights, dtype=FLOAT) for _ in self.levels[1:]]
        pairs = zip(self.levels, starts, strict=True)
        self.posteriors = nn.ModuleList(Posteriors(len(values), *pair) for pair in pairs)
        self.mean = [first.clone() for first in starts]
        if start == "own":
            self._start_apart(generator)
        self.scale = [
            torch.full_like(x, float(sigma(torch.tensor(-2.0, dtype=FLOAT)))) for x in starts
        ]
        self.beta, self.step, self.bits = FIRST_BETA / self.decoder.columns, 0, math.inf
        parameters_of = [(p.mu.weight, p.rho.weight) for p in self.posteriors]  # pyright: ignore
        # a step touches only the signals of its batch, so mu and rho have sparse gradients
        self.optimisers: list[torch.optim.Optimizer] = [
            torch.optim.SparseAdam(list(parameters), lr=rate)
            for parameters, rate in zip(
                zip(*parameters_of, strict=True), (LR, RHO * LR), strict=True
            )
        ]
        shared = ((self.decoder.maps, MAPS_LR), (self.decoder.convolutions, LR))
        groups = [{"params": list(part.parameters()), "lr": rate} for part, rate in shared]
        if groups := [group for group in groups if group["params"]]:
            self.optimisers.append(torch.optim.Adam(groups))

    @torch.no_grad()
    def _start_apart(self, generator: torch.Generator) -> None:
        """Let each signal start with latents of its own, and draw the layers' maps A again."""
        for posterior, mean in zip(self.posteriors, self.mean, strict=True):
            assert isinstance(posterior, Posteriors)
            for row in posterior.mu.weight:
                row.copy_(self.decoder.start(generator)[: len(row)])
            mean.zero_()
        # the entries of A become U(-1, 1) / p, p the number of weights of a layer
        for matrix in self.decoder.maps:
            matrix -= torch.eye(len(matrix), dtype=FLOAT)

    def run(self, folder: Path | None, tell: Tell, every: int = 100) -> Prior:
        """Train to the end, and return the prior.

        folder: the state is saved there after each `every` steps, None = never; a state that the
          folder has already is resumed; tell: called after each step with the number of steps and
          the PSNR.
        Raises: TrainingError when the loss is not finite; ConfigError if the folder's state is of
          other settings or signals.
        """
        if folder is not None and (latest := checkpoint.latest(folder)):
            self._load(checkpoint.load(latest), folder)
        while self.step < self.steps:
            psnr = self._step()
            self.step += 1
            if self.step % REFRESH == 0 or self.step == self.steps:
                self._refresh()
            if folder is not None and (self.step % every == 0 or self.step == self.steps):
                checkpoint.save(folder, self._state())
            tell(self.step, psnr)
        return self.prior()

    def _step(self) -> float:
        """Do a step on mean square error + beta KL of a batch of signals; return the PSNR in dB."""
        generator = torch.Generator().manual_seed(mix(self.seed, 1, self.step))
        count = len(self.values)
        batch = torch.arange(count)
        # the generator depends on seed and step alone, so that a resumed training repeats the draws
        if self.batch < count:
            batch = torch.randperm(count, generator=generator)[: self.batch]
        drawn, cost = [], torch.zeros((), dtype=FLOAT)
        for posterior, mean, scale in zip(self.posteriors, self.mean, self.scale, strict=True):
            assert isinstance(posterior, Posteriors)
            mu, deviation = posterior.of(batch)
            noise = torch.randn(mu.shape, generator=generator, dtype=FLOAT)
            drawn.append(mu + deviation * noise)
            cost = cost + divergence(mu, deviation, mean, scale).sum()
        output = self.decoder(join_levels(drawn, self.levels), self.tiles)
        target = self.values[batch].flatten(0, 1)
        error = (output - target).square().mean((1, 2))
        loss = error.sum() + self.beta * cost
        if not torch.isfinite(loss):
            fix = "Check the signals for NaN, or train with fewer bits."
            raise TrainingError("prior", got=f"loss {loss}", want="a finite one", fix=fix)
        if self.step == round(LATE * self.steps):
            for group in (g for optimiser in self.optimisers for g in optimiser.param_groups):
                # the one drop of the learning rates
                group["lr"] *= LATE_LR
        for optimiser in self.optimisers:
            optimiser.zero_grad()
        loss.backward()
        for optimiser in self.optimisers:
            optimiser.step()
        return -10 * math.log10(max(float(error.detach().mean()), 1e-12))

    @torch.no_grad()
    def _all_posteriors(self) -> list[tuple[Tensor, Tensor]]:
        """Return mu and sigma of all signals, (signals * rows, columns), by level."""
        return [(p.mu.weight, sigma(p.rho.weight)) for p in self.posteriors]  # pyright: ignore

    @torch.no_grad()
    def _refresh(self) -> None:
        """Update the prior, and beta, the weight of the KL divergence in the loss."""
        posteriors = self._all_posteriors()
        self.mean = [mu.mean(0) for mu, _ in posteriors]
        self.scale = [
            (s.square() + (mu - m).square()).mean(0).sqrt().clamp_min(LEAST_SCALE)
            for (mu, s), m in zip(posteriors, self.mean, strict=True)
        ]
        patches = len(self.values) * self.levels[0].rows
        # steer beta so that the mean divergence of a patch meets the budget
        self.bits = sum(float(x.sum()) for x in self._divergences()) / patches
        self.beta *= min(max(self.bits / self.budget, 1 / FASTER), FASTER)
        # from beyond these limits beta could not soon come back
        self.beta = min(max(self.beta, 1e-9), 1e-2)

    @torch.no_grad()
    def _divergences(self) -> list[Tensor]:
        """Return the divergence of each latent of each signal in bits, by level."""
        fours = zip(self._all_posteriors(), self.mean, self.scale, strict=True)
        return [divergence(mu, s, m, scale) / math.log(2) for (mu, s), m, scale in fours]

    @torch.no_grad()
    def prior(self) -> Prior:
        """Return the present prior, with columns grouped by mean divergence."""
        random = np.random.default_rng(mix(self.seed, 2))
        mean_bits = [x.mean(0).numpy().clip(1e-9) for x in self._divergences()]
        pairs = zip(mean_bits, self.levels, strict=True)
        # share the payload's groups among levels by their divergence
        total = sum(bits.sum() * level.rows for bits, level in pairs)
        group_count = self.payload * self.levels[0].rows / self.settings.bits  # groups of a signal
        groups = [
            groups_by_mean(bits, max(1, round(group_count * bits.sum() / total)), random)
            for bits in mean_bits
        ]
        return Prior(
            self.settings,
            self.decoder.eval(),
            tuple(to_fixed_point(x) for x in self.mean),
            tuple(to_fixed_point(x) for x in self.scale),
            tuple(torch.from_numpy(group) for group in groups),
            tuple(p.rho.weight.mean(0) for p in self.posteriors),  # pyright: ignore
            self.beta,
        )

    def _identity(self) -> dict[str, Any]:
        """Return the settings that must be equal for a saved state to be resumed."""
        return {"steps": self.steps, "seed": self.seed, "batch": self.batch} | {
            "payload": self.payload,
            "start": self.start,
            "signals": float(self.values.double().sum()),
            "settings": repr(self.settings),
        }

    def _state(self) -> dict[str, Any]:
        return {
            "identity": self._identity(),
            "step": self.step,
            "beta": self.beta,
            "bits": self.bits,
            "mean": list(self.mean),
            "scale": list(self.scale),
            "decoder": dict(self.decoder.state_dict()),
            "posteriors": dict(self.posteriors.state_dict()),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
        }

    def _load(self, state: dict[str, Any], folder: Path) -> None:
        if state["identity"] != self._identity():
            got, want = f"a training with {state['identity']}", "the same settings and signals"
            fix = "Choose another folder, or train as before."
            raise ConfigError(f"folder {folder}", got=got, want=want, fix=fix)
        self.step, self.beta, self.bits = state["step"], state["beta"], state["bits"]
        self.mean, self.scale = state["mean"], state["scale"]
        self.decoder.load_state_dict(state["decoder"])
        self.posteriors.load_state_dict(state["posteriors"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
