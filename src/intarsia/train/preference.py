"""Iterative preference alignment: a generator learns from its own best and worst samples."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.checks import above, at_least
from ..core.errors import DataError
from ..core.modes import evaluating
from ..core.seeds import mix
from ..schedules.phases import Phase
from .order import Inputs
from .outcome import LossOf, Outcome
from .tasks.held_out import own_losses

Reward = Callable[[Tensor, Tensor], Tensor]  # histories (B, n), sessions (B, W, S) -> (B, W)
BATCH = 64  # histories that are sampled for at a time


def preference_loss(
    chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta: float
) -> Tensor:
    """Compute mean -log sigma(beta [(c - c_ref) - (r - r_ref)]), the loss of DPO.

    c, r: `chosen` and `rejected` (B,), log-probabilities of whole samples under the model; c_ref,
    r_ref: `ref_chosen` and `ref_rejected` (B,), the same under the reference model.
    Source: arXiv:2305.18290, equation 7.
    """
    margin = (chosen - ref_chosen) - (rejected - ref_rejected)
    return -F.logsigmoid(beta * margin).mean()


@dataclass
class PreferenceRounds:
    """Rounds of: sample from the model, score, and learn to prefer the best sample to the worst.

    L = L_next + weight x L_preference, against the model as it was before the round: its best
    samples are chosen, and its worst, self-hard negatives, are rejected.  It is the method and the
    objective of `fit_in_phases`, one phase a round, each from a fresh optimiser:

    rounds = PreferenceRounds(reward.reward, histories, rounds=2)
    fit_in_phases(model, rounds, model.samples(train), task=model.task, objective=rounds)

    reward: histories (B, n), sessions (B, W, S) -> (B, W).  histories: (U, n) of users, places from
    1, 0 on the left.  samples: W.  users: drawn again in each round.  pairs: in each step.
    beta, weight: as above.  In a single process.
    Without L_next both samples would become less likely. Each round costs coverage: judge it by a
    reward that had other data, another seed and size, and stop where that one does not rise.
    Raises: ConfigError on a setting that cannot be; DataError where all samples have one reward.
    Source: OneRec, arXiv:2502.18965, section 3.4 and algorithm 2.
    """

    reward: Reward
    histories: Tensor
    rounds: int = 1
    samples: int = 24
    users: int = 120
    pairs: int = 16
    beta: float = 0.1
    weight: float = 1.0

    def __post_init__(self) -> None:
        """Check each setting and begin without samples.  Raises: ConfigError."""
        for name in ("rounds", "users", "pairs"):
            at_least(name, getattr(self, name), 1)
        at_least("samples", self.samples, 2)
        at_least("beta", self.beta, 0)
        above("weight", self.weight, 0)
        self.found: tuple[Tensor, ...] = ()  # histories, chosen, rejected, and their log-prob.
        self.rewards: list[tuple[float, float]] = []  # of each round, of the chosen and rejected

    def phases(self, model: nn.Module, *, seed: int = 0) -> Generator[Phase, None, Any]:
        """Yield a training phase for each round, after the samples of the round were drawn.

        model: generates samples; seed: of the draws. Returns the mean reward of chosen and of
          rejected samples, for each round.
        """
        for number in range(self.rounds):
            self.collect(model, torch.Generator().manual_seed(mix(seed, number)))
            yield Phase(f"round-{number + 1}", last=number == self.rounds - 1)
        return tuple(self.rewards)

    @torch.no_grad()
    def collect(self, model: Any, generator: torch.Generator) -> None:
        """Sample sessions for random users; keep each user's best and worst by reward.

        model: generates the sessions, and gives their log-probability before this round, which is
          kept as the reference; generator: source of the draws.
        Raises: DataError where no user has two samples of different reward.
        """
        # 1. users of this round
        some = torch.randperm(len(self.histories), generator=generator)[: self.users]
        device = next(model.parameters()).device
        histories = self.histories[some].to(device)
        # 2. W sessions for each, and the reward of each session
        drawn, rewards = [], []
        for part in histories.split(BATCH):
            drawn.append(model.draw(part, self.samples, generator))  # (B, W, S)
            rewards.append(self.reward(part, drawn[-1]).to(device))
        sessions, score = torch.cat(drawn), torch.cat(rewards)
        # 3. users with samples that differ in reward: the others have no preference
        differ = score.amax(1) > score.amin(1)
        if not bool(differ.any()):
            fix = "Draw more samples, or use a reward that tells sessions apart."
            raise DataError("samples", got="one reward for all", want="several", fix=fix)
        histories, sessions, score = histories[differ], sessions[differ], score[differ]
        # 4. the best and the worst session, and their log-probability before the round
        row = torch.arange(len(score), device=device)
        best, worst = (sessions[row, index] for index in (score.argmax(1), score.argmin(1)))
        with evaluating(model):
            reference = [model(histories, session, per_session=True) for session in (best, worst)]
        self.found = histories, best, worst, *reference
        self.rewards.append((float(score.amax(1).mean()), float(score.amin(1).mean())))

    def __call__(self, model: nn.Module, x: Inputs, loss_of: LossOf) -> Outcome:
        """Compute L = L_next + weight * L_preference; in evaluation L_next alone."""
        # self.found: the histories, sessions and log-probabilities of this round
        next_ = own_losses(model, x, loss_of)
        if not model.training:
            return next_
        place = torch.randint(len(self.found[0]), (self.pairs,))
        history, best, worst, ref_best, ref_worst = (part[place] for part in self.found)
        # without dropout, as the reference had none; gradients do flow
        with evaluating(model):
            # DPO of `pairs` random pairs: the session of largest reward before the one of smallest
            logp = [model(history, session, per_session=True) for session in (best, worst)]
        prefer = preference_loss(logp[0], logp[1], ref_best, ref_worst, self.beta)
        loss = next_.loss + self.weight * prefer
        return Outcome(loss, loss.detach(), {"next": next_.loss, "preference": prefer})
