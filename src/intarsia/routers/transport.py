"""Routing by sparsity-constrained optimal transport (arXiv:2209.15466)."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core import Card, Paper
from ..core.checks import at_least
from ..core.errors import ShapeError
from ..core.schema import check, setting
from ..gating.gate import GateRouter, room_for
from ..gating.settings import EXPERTS, STD, Z

SIDES = ("expert", "token")
COSTS = ("logits", "p")
UNCOVERED, FEW = 0.05, 64  # share of a batch's tokens above which to warn; tokens of such a batch
START, RATE = 0.2, 0.05  # in standard deviations of the cost: temperature and step of the solver


@dataclass(frozen=True)
class Transport:
    """Pairs of a transport plan with at most k tokens per expert; weights are p = softmax(x W^T).

    The plan is `k_sparse_ot` between T tokens of mass 1 and E experts of mass T / E. It decides
    only which pairs there are; the gradient reaches W through the weights.

    At c = 1 about one token of a hundred ends without an expert at the default cost. A batch in
    which more than 5 % of 64 or more tokens do raises a UserWarning.

    Raises: ConfigError for a setting out of range: c < 1 leaves tokens without a place.
    Source: arXiv:2209.15466.
    A graph of `torch.compile` breaks at each such router: how many pairs it has depends on data.
    Not for decoders: a token's experts depend on later tokens, and on the other samples of its
    batch, in evaluation as well.
    """

    experts: int = setting(8, EXPERTS)
    capacity: float = setting(
        1.0,
        "The capacity factor c, experts per token on average.",
        least=1,
        fix="1 is one expert per token on average; 1.25 drops fewer tokens.",
    )
    per: str = setting(
        "expert",
        'The side with a bound: "expert", each takes at most k = ceil(c T / E) tokens; "token", '
        "each goes to at most k = ceil(c) experts, with loads that are about equal.",
        choices=SIDES,
    )
    gamma: float = setting(
        0.1,
        "The coefficient of the plan's quadratic term; a larger one gives more pairs, up to k.",
        above=0,
    )
    iterations: int = setting(50, "The iterations of the solver.", least=1, fix="Try 50.")
    std: float = setting(0.02, STD)
    z: float = setting(0.0, Z)
    cost: str = setting(
        "logits",
        'The cost of a pair: "logits", -x W^T less each token\'s mean, in standard deviations of '
        'the batch, so that gamma means the same for every gate; "p", -p as in the paper, where '
        "costs become equal for many tokens once the gate is sure of itself, and a fifth to "
        "three fifths of them end without an expert.",
        choices=COSTS,
    )

    def __post_init__(self) -> None:
        check(self)

    def build(self, width: int, *, generator: torch.Generator | None = None) -> TransportRouter:
        return TransportRouter(self, width, generator=generator)


class TransportRouter(GateRouter[Transport]):
    """The router of `Transport`.  x: (..., width) -> Routing of shape (rows, E)."""

    by_row = False

    def plan(self, score: Tensor) -> Tensor:
        """Match tokens with experts: a large sum of scores, and even loads.

        score: value of each pair (N, E). Returns the transport plan of cost -score, (N, E), 0 or
          more: each of N tokens has mass 1, each of E experts receives N / E. A pair with mass
          above 0 is chosen.
        """
        config, tokens = self.config, len(score)
        if not tokens:
            return torch.zeros_like(score)
        token_mass = score.new_ones(tokens)
        expert_mass = score.new_full((self.experts,), tokens / self.experts)
        solver = {"gamma": config.gamma, "iterations": config.iterations}
        if config.per == "token":
            room = math.ceil(config.capacity)
            # transposed, the limit of entries per column is one per token
            return k_sparse_ot(-score.T, expert_mass, token_mass, room, **solver).T
        room = room_for(config.capacity, tokens, self.experts)
        plan = k_sparse_ot(-score, token_mass, expert_mass, room, **solver)
        if tokens >= FEW:
            warn_of_uncovered(float((plan.amax(1) <= 0).float().mean()))
        return plan

    def score(self, logits: Tensor, p: Tensor) -> Tensor:
        """Return the value of each pair of a token and an expert, (N, E): the negative cost.

        logits, p = softmax(logits): (N, E) both. The setting `cost` says which of the two is used.
        """
        # a token of NaN gets equal scores here, or the whole plan would be NaN
        if self.config.cost == "p":
            return p.detach().nan_to_num(1 / self.experts)
        centred = logits.detach() - logits.detach().mean(-1, keepdim=True)
        centred = torch.where(centred.isfinite(), centred, 0.0)
        return centred / centred.std(correction=0).clamp_min(1e-6) if len(logits) else centred

    def choose(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return all experts, p = softmax(logits), and a mask of the transport plan's pairs."""
        p = logits.softmax(-1)
        index = torch.arange(self.experts, device=p.device).expand_as(p)
        return index, p, self.plan(self.score(logits, p)) > 0


def warn_of_uncovered(share: float) -> None:
    """Warn if more than 5 % of a batch's tokens have no expert.  share: of tokens without one."""
    if share > UNCOVERED:
        message = f"transport: {share:.0%} of the tokens of a batch have no expert. "
        fix = "Raise capacity, to 1.25 for example, or leave cost='logits'."
        warnings.warn(message + fix, UserWarning, stacklevel=2)


@torch.no_grad()
def k_sparse_ot(
    cost: Tensor, a: Tensor, b: Tensor, k: int, *, gamma: float = 1.0, iterations: int = 200
) -> Tensor:
    """Return the transport plan T (..., n, m) of least cost with at most k entries per column.

    T minimises <T, C> + gamma/2 |T|^2 over T >= 0 with row sums a and column sums b.
    cost: C (..., n, m); a: (..., n), b: (..., m), masses of rows and columns, above 0 and of equal
      sums; gamma: larger = more entries, up to k; iterations: steps of the solver.
    The solver maximises the semi-dual a'alpha - sum_j b_j M_j(alpha - C_j), which is concave in the
    rows' potentials alpha (n,); C_j is column j. M_j(s) is the maximum of <s, p> -
    gamma b_j / 2 |p|^2 over p >= 0 (n,) of sum 1 with at most k entries. It runs Adam with a step
    size that falls to 0, and starts from the alpha that Sinkhorn's iterations give.
    Columns always sum to b and have at most k entries. Rows sum to a only at the maximum, and not
    always there: where k m < n, the entries cannot cover all rows.
    Raises: ConfigError for k < 1; ShapeError for marginals that do not fit the cost.
    """
    at_least("k", k, 1, "k = n / m is the least that covers every row.")
    n, m = cost.shape[-2:]
    if a.shape[-1] != n or b.shape[-1] != m:
        name, fix = "marginals", "One number for each row, and one for each column, of the cost."
        raise ShapeError(name, got=f"{a.shape[-1]} and {b.shape[-1]}", want=f"{n} and {m}", fix=fix)
    cost = cost - cost.mean((-2, -1), keepdim=True)
    return _columns(_ascent(cost, a, b, k, gamma, iterations), cost, b, k, gamma)


def _ascent(cost: Tensor, a: Tensor, b: Tensor, k: int, gamma: float, iterations: int) -> Tensor:
    """Return alpha (..., n), a potential of each row, near the maximum of the semi-dual."""
    # cost: (..., n, m); a: (..., n), b: (..., m), masses of rows and columns
    spread = cost.std((-2, -1), correction=0).clamp_min(1e-6)[..., None]  # (..., 1)
    alpha = _sinkhorn(cost, a, b, START * spread[..., None], iterations)
    first, second = torch.zeros_like(alpha), torch.zeros_like(alpha)
    # Adam, with a step that falls to 0 on a line
    for t in range(1, iterations + 1):
        # the gradient of the semi-dual: the mass that a row still misses
        slope = a - _columns(alpha, cost, b, k, gamma).sum(-1)  # (..., n)
        first = 0.9 * first + 0.1 * slope
        second = 0.99 * second + 0.01 * slope.square()
        step = RATE * spread * (1 - (t - 1) / iterations)
        ahead = first / (1 - 0.9**t)
        alpha = alpha + step * ahead / ((second / (1 - 0.99**t)).sqrt() + 1e-12)
    return alpha


def semi_dual(alpha: Tensor, cost: Tensor, a: Tensor, b: Tensor, k: int, gamma: float) -> Tensor:
    """Return the semi-dual at alpha, a lower bound of the cost of every transport plan.  (...).

    alpha: (..., n), a potential of each row; cost: (..., n, m); a: (..., n), b: (..., m), masses of
      rows and columns; k: most entries of a column; gamma: weight of the quadratic term. See
      `k_sparse_ot`.
    """
    plan = _columns(alpha, cost, b, k, gamma)
    gain = (plan * (alpha[..., None] - cost)).sum((-2, -1))
    return (a * alpha).sum(-1) - gain + gamma / 2 * plan.square().sum((-2, -1))


def _columns(alpha: Tensor, cost: Tensor, b: Tensor, k: int, gamma: float) -> Tensor:
    """Return the best plan (..., n, m) for given potentials of the rows, column by column."""
    # alpha: (..., n), cost: (..., n, m); b: (..., m), masses of the columns
    b = b[..., None, :]
    return b * sparse_simplex((alpha[..., None] - cost) / (gamma * b), k)


def sparse_simplex(x: Tensor, k: int) -> Tensor:
    """Return for each column the nearest vector that is >= 0, sums to 1 and has at most k entries.

    x: (..., n, m), columns along n; the result has the same shape.
    """
    top, index = x.topk(min(k, x.shape[-2]), dim=-2)  # sorted, (..., k, m)
    above = top.cumsum(-2) - 1
    # the threshold that leaves a sum of 1, from the largest prefix that stays above it
    count = torch.arange(1, top.shape[-2] + 1, device=x.device)[:, None]
    support = (top * count > above).sum(-2, keepdim=True).clamp_min(1)  # entries above 0
    level = above.gather(-2, support - 1) / support
    return torch.zeros_like(x).scatter(-2, index, (top - level).clamp_min(0))


def _sinkhorn(cost: Tensor, a: Tensor, b: Tensor, eps: Tensor, iterations: int) -> Tensor:
    """Solve the transport with an entropy term for the rows' potentials alpha (..., n)."""
    # `k_sparse_ot` starts from them; eps: temperature, (..., 1, 1).
    # u and v scale rows and columns in turn, until their sums are a and b
    scores = -cost / eps
    u, v = torch.zeros_like(a), torch.zeros_like(b)
    for _ in range(iterations):
        v = b.log() - (scores + u[..., None]).logsumexp(-2)
        u = a.log() - (scores + v[..., None, :]).logsumexp(-1)
    return u * eps[..., 0]


CARD = Card(
    "transport",
    kind="router",
    config=Transport,
    paper=Paper("2209.15466", 2022, "Sparsity-Constrained Optimal Transport"),
    tags=frozenset({"sparse", "learned", "non_causal"}),
    tiny={"experts": 4},
    summary="Pairs of an optimal transport plan with at most k tokens per expert.",
    family="optimal transport",
    names=("Sparsity-constrained optimal transport", "Optimal transport"),
)
