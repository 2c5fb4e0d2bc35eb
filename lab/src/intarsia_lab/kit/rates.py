"""Learning rates of a study's arms: each arm's own, from one grid that all arms try.

An arm that has the rate of another is not the arm of its paper: S2FT and LoRA change their order
between 3e-4 and 3e-3. Where the best rate is the first or the last of the grid, a better one may
lie beyond it, so that the grid grows for all arms until no edge wins.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from intarsia.core.checks import RATE_REACH, rate_grid
from intarsia.core.errors import ConfigError
from intarsia.runs.searching import best_of, extended, winning_edge


@dataclass(frozen=True)
class ArmRate:
    """The learning rate of one arm, its optimiser steps, and the grid that it was chosen from.

    grid: ascending.
    """

    arm: str
    rate: float
    steps: int
    grid: tuple[float, ...]


@dataclass(frozen=True)
class Rates:
    """The grid of learning rates that every arm of a study tries on validation data.

    grid: three or more, since an edge is no choice.  steps: arm -> its optimiser steps.  scale: arm
    -> what its rates are multiplied by, for an optimiser with rates elsewhere.  Raises:
    ConfigError for fewer than three rates, rates that are no rates, and arms without steps.
    """

    grid: tuple[float, ...]
    steps: Mapping[str, int]
    scale: Mapping[str, float] = field(default_factory=dict[str, float])

    def __post_init__(self) -> None:
        """Check the grid and the steps, and sort the grid.  Raises: ConfigError."""
        grid = rate_grid("grid of a study", self.grid)
        if len(grid) < 3:
            want = "three or more, so that a rate can be chosen that is no edge"
            fix = "Add the next rates on both sides: 3e-4,1e-3,3e-3."
            raise ConfigError("grid of a study", got=grid, want=want, fix=fix)
        # ascending, so that its ends are its edges
        object.__setattr__(self, "grid", grid)
        _check_steps(self.steps)

    def choose(self, score: Callable[[str, float], float]) -> tuple[ArmRate, ...]:
        """Return each arm's best rate; all arms try the same grid, which grows while an edge wins.

        score: (arm, rate) -> a score on validation data, the higher the better. Rates are the arm's
        own optimiser's.
        """
        # scores are kept: a grid that grows tries nothing twice
        grid, scores = self.grid, {arm: dict[float, tuple[float, float]]() for arm in self.steps}
        while True:
            for arm, tried in scores.items():
                for rate in grid:
                    if rate not in tried:
                        # the second number breaks ties elsewhere; here there is none
                        tried[rate] = score(arm, self.scaled(arm, rate)), 0.0
            # a grid that grew for one arm grew for all: equal trials
            wider = extended(grid, map(winning_edge, scores.values()), RATE_REACH)
            if wider == grid:
                break
            grid = wider
        return tuple(self._chosen(arm, grid, scores[arm]) for arm in self.steps)

    def scaled(self, arm: str, rate: float) -> float:
        """Return a rate of the common grid as an arm's optimiser takes it."""
        return rate * self.scale.get(arm, 1.0)

    def _chosen(
        self, arm: str, grid: Sequence[float], scores: Mapping[float, tuple[float, float]]
    ) -> ArmRate:
        """Return the best learning rate of a grid for an arm; of equal rates, an inner one."""
        # among equals an inner rate is the choice
        edges_last = sorted(grid, key=lambda rate: (rate in (grid[0], grid[-1]), rate))
        best = best_of({rate: scores[rate] for rate in edges_last})
        scaled = tuple(self.scaled(arm, rate) for rate in grid)
        return ArmRate(arm, self.scaled(arm, best), self.steps[arm], scaled)


def _check_steps(steps: Mapping[str, int]) -> None:
    """Check that every arm has at least one optimiser step."""
    if not steps or min(steps.values()) < 1:
        fix = "Name every arm with the optimiser steps of its training."
        raise ConfigError(
            "steps of a study's arms", got=dict(steps), want="1 or more each", fix=fix
        )
