"""Sparse Model Soups: pruned models are averaged, and keep their zeros (arXiv:2306.16788)."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from ..core import Card, Paper, Partition
from ..core.checks import above, at_least, one_of
from ..core.errors import ConfigError
from ..core.schema import check, setting
from ..mixtures.sparse_soup import distance, greedy, mixed
from ..schedules import FixedMask, masked_weights, prune
from ..schedules.phases import EndedTraining, Phase, Settle
from ..schedules.retrain import RETRAIN, Retrain

VARIED = ("seed", "weight_decay", "length", "retrain")
PICKS = ("uniform", "greedy")
BN_SHARE = 0.2  # of the training data, for statistics of batch norms

State = dict[str, Tensor]


@dataclass(frozen=True)
class Soup:
    """Result of `SparseModelSoup`: the final masks, and each round's averaged candidates.

    partition: the masks of the last round.  members: for each round, the numbers of the candidates
    in the mean.  distance: for each round, the mean L2 distance of the candidates from their mean.
    """

    partition: Partition
    members: tuple[tuple[int, ...], ...]
    distance: tuple[float, ...]


@dataclass(frozen=True)
class SparseModelSoup:
    """`rounds` times: prune, train `candidates` from the pruned model, continue with their mean.

    theta = 1/m sum_i theta_i over candidates with one mask; the smallest of all weights left are
    pruned, so that each round keeps density^(1/rounds) of them. Statistics of batch norms are
    counted again on a fifth of the data. With candidates=1 it is `Imp`. Candidates of a round are
    trained one after the other.

    fit_in_phases(model, SparseModelSoup(density=0.1), train, val, epochs=10)
    The published recipe has SGD with momentum .9, and Nesterov's exactly with weight decay.
    Not where time is short: each round trains every candidate.
    Raises: ConfigError on settings that cannot be; greedy without val, or with one inside train.
    Source: arXiv:2306.16788, section 3 and algorithm 1.
    """

    density: float = setting(
        0.1, "The share of the weights that is kept at the end.", above=0, most=1, fix="Try 0.1."
    )
    rounds: int = setting(3, "The number of rounds of pruning and training.", least=1)
    candidates: int = setting(3, "The number m of models that a round trains.", least=1)
    vary: str = setting(
        "seed",
        'The difference of the candidates: "seed" (order and draws), "weight_decay", "length" '
        '(a multiple of the epochs) or "retrain" (the rate, a word of `Retrain`).',
        choices=VARIED,
    )
    values: tuple[Any, ...] = setting((), "The value of each candidate, needed but for seeds.")
    pick: str = setting(
        "uniform",
        'The candidates in the mean: "uniform", all; or "greedy", the best on val, and each '
        "further one that does not lower its score.",
        choices=PICKS,
    )
    retrain: Retrain = setting(Retrain(), "The learning rate after pruning, a `Retrain`.")
    layers: tuple[str, ...] | None = setting(
        None,
        "The layers that are pruned, as globs of paths, see `MaskSettings`; None = all linear "
        "maps and convolutions that are not grouped.",
    )

    def __post_init__(self) -> None:
        """Check the settings; turn a mapping for `retrain`, as files have it, into a `Retrain`."""
        check(self)
        if isinstance(self.retrain, Mapping):  # out of a file
            object.__setattr__(self, "retrain", Retrain(**self.retrain))
        if not isinstance(self.retrain, Retrain):
            fix = "Use Retrain('clr'), or {'kind': 'clr'} in a file."
            raise ConfigError("retrain", got=repr(self.retrain), want="a Retrain", fix=fix)
        if len(self.values) != self.candidates and (self.values or self.vary != "seed"):
            want, fix = f"{self.candidates}, one for each candidate", "Pass values=(...)."
            raise ConfigError("values", got=f"{len(self.values)}", want=want, fix=fix)
        object.__setattr__(self, "values", tuple(_checked_value(self.vary, v) for v in self.values))

    def phases(self, model: nn.Module, *, seed: int = 0) -> Generator[Phase, None, Soup]:
        """Yield one training phase for each candidate of each round; return the `Soup`.

        model: pruned in place; the caller trains it in each yielded phase; seed: of the first
          candidate, where candidates differ in their seeds.
        """
        partition: Partition | None = None
        members_of_rounds: list[tuple[int, ...]] = []
        distances: list[float] = []
        # Densities fall geometrically, so that after the last round d of the weights are left.
        for number in range(1, self.rounds + 1):
            before = _masked_weights(model, self.layers)
            density_before = partition.density() if partition is not None else 1.0
            partition = prune(model, self.density ** (number / self.rounds), self.layers, partition)
            distance_pruned = _relative_distance(
                before, model, self.layers, 1 - partition.density() / density_before
            )
            # Steps 1 and 2: all candidates start from the one pruned model.
            start, states = _copy(model), list[State]()
            for i in range(self.candidates):
                model.load_state_dict(start)
                last = i == self.candidates - 1
                # runs when the caller has trained this candidate, and adds to the lists
                average = partial(
                    self._average_candidates,
                    states=states,
                    members_of_rounds=members_of_rounds,
                    distances=distances,
                    last=last,
                )
                yield Phase(
                    f"round-{number}-candidate-{i + 1}",
                    length=self.values[i] if self.vary == "length" else 1.0,
                    last=last and number == self.rounds,
                    # A pruned weight stays 0; in the first rounds of density 1 nothing is masked.
                    schedule=FixedMask(layers=self.layers) if partition.density() < 1 else None,
                    options=self._candidate_options(i, seed, distance_pruned),
                    # A single candidate is its own mean, which makes the method `Imp`.
                    settle=Settle(average, self.pick == "greedy") if self.candidates > 1 else None,
                )
        assert partition is not None
        return Soup(partition, tuple(members_of_rounds), tuple(distances))

    def _candidate_options(self, i: int, seed: int, distance_pruned: float) -> dict[str, Any]:
        """Return the training settings in which a candidate differs from the run."""
        retrain = self.retrain
        options: dict[str, Any] = {}
        if self.vary == "retrain":
            retrain = replace(retrain, kind=self.values[i])
        elif self.vary == "weight_decay":
            options["weight_decay"] = self.values[i]
        elif self.vary == "seed":
            options["seed"] = self.values[i] if self.values else seed + i
        factor = retrain.factor(distance_pruned)
        return options if factor is None else options | {"lr_factor": factor}

    def _average_candidates(
        self,
        run: EndedTraining,
        *,
        states: list[State],
        members_of_rounds: list[tuple[int, ...]],
        distances: list[float],
        last: bool,
    ) -> None:
        """Store a trained candidate's weights; after the last one load the mean into the model."""
        states.append(_copy(run.model))
        if not last:
            return

        def put(state: Any) -> None:
            """Load weights, and count the statistics of batch norms again."""
            run.model.load_state_dict(state)
            run.recalibrate(BN_SHARE)  # step 4

        def score(state: Any) -> float:
            """Score weights on the validation part."""
            put(state)
            return run.score()

        if self.pick == "greedy":
            # The greedy soup adds a candidate only if the score on val does not fall.
            soup = greedy(states, score)
            state, members = soup.state, soup.indices
        else:
            state, members = mixed(states), tuple(range(len(states)))  # step 3
        members_of_rounds.append(tuple(sorted(members)))
        distances.append(distance(states, state))
        put(state)


def _checked_value(vary: str, value: Any) -> Any:
    """Return an entry of `values` as a number or a word of `Retrain`."""
    if vary == "retrain":
        one_of("values", value, RETRAIN)
        return value
    try:
        # A seed is a whole number, the other kinds are real ones.
        number = int(value) if vary == "seed" else float(value)
    except (TypeError, ValueError, OverflowError) as error:
        fix = "For example: values=(1, 2, 3)"
        raise ConfigError("values", got=repr(value), want=f"a number, a {vary}", fix=fix) from error
    if vary == "length":
        above("values", number, 0, "Try 1.0, the epochs of the run.")
    at_least("values", number, 0)
    return number


def _copy(model: nn.Module) -> State:
    """Return a copy of the model's state dict, cut off from training."""
    return {name: t.detach().clone() for name, t in model.state_dict().items()}


def _masked_weights(model: nn.Module, layers: tuple[str, ...] | None) -> list[Tensor]:
    """Return copies of the weights that masks apply to, in the model's order."""
    return [w.detach().clone() for w in masked_weights(model, layers).values()]


def _relative_distance(
    before: list[Tensor], model: nn.Module, layers: tuple[str, ...] | None, pruned: float
) -> float:
    """Return d1 = |W - W_pruned| / (|W| sqrt s), which sets the retraining rate; 0 if s = 0."""
    after = masked_weights(model, layers).values()
    removed = sum(
        float((a - b.detach()).square().sum()) for a, b in zip(before, after, strict=True)
    )
    norm_before = sum(float(a.square().sum()) for a in before)
    return math.sqrt(removed / norm_before / pruned) if norm_before and pruned > 0 else 0.0


CARD = Card(
    "sms",
    kind="training",
    config=SparseModelSoup,
    paper=Paper(
        "2306.16788", 2023, "Sparse Model Soups: A Recipe for Improved Pruning via Model Averaging"
    ),
    summary="Prune, train several models with one mask, average them, and so on.",
    family="sparse training",
    names=("Sparse Model Soups", "SMS"),
    tiny={"density": 0.4, "rounds": 2, "candidates": 2},
)
