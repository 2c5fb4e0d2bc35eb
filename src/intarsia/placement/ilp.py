"""One choice for each item, by a mixed-integer programme: what MoETuner and MoA have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class LinearRule:
    """Linear constraint low <= A x + B u <= high, row by row.

    matrix: A, (rows, items * options), of scipy.sparse or numpy, over x laid out item by item.
    low, high: numbers or (rows,); infinite by default.
    extra: B, (rows, number of further variables u); None = 0.
    """

    matrix: Any
    low: Any = -np.inf
    high: Any = np.inf
    extra: Any = None


@dataclass(frozen=True)
class OneHot:
    """Programme min c x + d u in which every item has exactly one option: x binary, sums of 1.

    cost: c (items, options), infinity for an option that an item cannot have.
    extra_cost: d, of further variables u >= 0; extra_binary: they are 0 or 1.
    rules: further constraints.  fixed: (item, option) pairs that are set in advance.
    """

    cost: Tensor
    extra_cost: Tensor = field(default_factory=lambda: torch.zeros(0))
    extra_binary: bool = False
    rules: Sequence[LinearRule] = ()
    fixed: Sequence[tuple[int, int]] = ()

    def solve(
        self, *, gap: float = 0.01, nodes: int | None = None, seconds: float | None = None
    ) -> Tensor | None:
        """Solve the programme by HiGHS and return each item's option, (items,) int64, or None.

        None: the search ended without a solution. gap: relative distance to the bound at which the
          search stops. nodes: limit of the search's nodes, so that the result does not depend on
          the machine; seconds: limit in time, where that matters more.
        """
        from scipy import sparse
        from scipy.optimize import Bounds, LinearConstraint, milp  # a third of a second to import

        items, options = self.cost.shape
        count, extras = items * options, len(self.extra_cost)
        c = self.cost.double().flatten().numpy()
        # HiGHS takes no infinite cost: such an option has cost 0 and an upper bound of 0
        barred = ~np.isfinite(c)
        exactly_one = LinearRule(sparse.kron(sparse.identity(items), np.ones((1, options))), 1, 1)
        # each rule over x and u side by side: [A B] (x, u)
        constraints: Any = [
            LinearConstraint(
                sparse.hstack(
                    [
                        sparse.csr_matrix(r.matrix),
                        sparse.csr_matrix(
                            (r.matrix.shape[0], extras) if r.extra is None else r.extra
                        ),
                    ]
                ),
                r.low,
                r.high,
            )
            for r in (exactly_one, *self.rules)
        ]
        # bounds: x in {0, 1}, or exactly 1 where fixed; u >= 0, or in {0, 1}
        low: Any = np.zeros(count + extras)
        highest = 1.0 if self.extra_binary else np.inf
        high: Any = np.r_[np.where(barred, 0.0, 1.0), np.full(extras, highest)]
        for item, option in self.fixed:
            low[item * options + option] = 1
        limits: dict[str, Any] = {"mip_rel_gap": gap}
        limits |= {} if nodes is None else {"node_limit": nodes}
        limits |= {} if seconds is None else {"time_limit": seconds}
        solution = milp(
            np.r_[np.where(barred, 0.0, c), self.extra_cost.double().numpy()],
            constraints=constraints,
            bounds=Bounds(low, high),
            integrality=np.r_[np.ones(count), np.full(extras, float(self.extra_binary))],
            options=limits,
        )
        if solution.x is None:
            return None
        return torch.from_numpy(solution.x[:count].reshape(items, options).argmax(1))
