"""One choice for each item, by a mixed-integer programme: what MoETuner and MoA have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Rule:
    """low <= A x + B u <= high, row by row.

    of: A, (rows, items * options), of scipy.sparse or numpy, over x laid out item by item.
    more: B, (rows, others); None = 0.
    """

    of: Any
    low: Any = -np.inf
    high: Any = np.inf
    more: Any = None


@dataclass(frozen=True)
class OneHot:
    """min c x + d u, where every item has exactly one option: x binary, sum over options = 1.

    cost: c (items, options), infinity for an option that an item cannot have.
    others: d, of further variables u >= 0; whole: they are 0 or 1.
    rules: further constraints.  fixed: (item, option) pairs that are set.
    """

    cost: Tensor
    others: Tensor = field(default_factory=lambda: torch.zeros(0))
    whole: bool = False
    rules: Sequence[Rule] = ()
    fixed: Sequence[tuple[int, int]] = ()

    def solve(
        self, *, gap: float = 0.01, nodes: int | None = None, seconds: float | None = None
    ) -> Tensor | None:
        """The option of each item, (items,) int64, by HiGHS; None where nothing is found.

        gap: relative, at which it stops.  nodes: of its search at most, so that the end does not
        depend on the machine; seconds: at most, where that is the lesser evil.
        """
        from scipy import sparse
        from scipy.optimize import Bounds, LinearConstraint, milp  # a third of a second

        items, options = self.cost.shape
        count, more = items * options, len(self.others)
        c = self.cost.double().flatten().numpy()
        barred = ~np.isfinite(c)
        one_each = Rule(sparse.kron(sparse.identity(items), np.ones((1, options))), 1, 1)
        constraints: Any = [
            LinearConstraint(
                sparse.hstack(
                    [
                        sparse.csr_matrix(r.of),
                        sparse.csr_matrix((r.of.shape[0], more) if r.more is None else r.more),
                    ]
                ),
                r.low,
                r.high,
            )
            for r in (one_each, *self.rules)
        ]
        low: Any = np.zeros(count + more)
        high: Any = np.r_[np.where(barred, 0.0, 1.0), np.full(more, 1.0 if self.whole else np.inf)]
        for item, option in self.fixed:
            low[item * options + option] = 1
        limits: dict[str, Any] = {"mip_rel_gap": gap}
        limits |= {} if nodes is None else {"node_limit": nodes}
        limits |= {} if seconds is None else {"time_limit": seconds}
        found = milp(
            np.r_[np.where(barred, 0.0, c), self.others.double().numpy()],
            constraints=constraints,
            bounds=Bounds(low, high),
            integrality=np.r_[np.ones(count), np.full(more, float(self.whole))],
            options=limits,
        )
        if found.x is None:
            return None
        return torch.from_numpy(found.x[:count].reshape(items, options).argmax(1))
