"""Residual updates with momentum along the depth of a model (MomentumSMoE, arXiv:2410.14574)."""

from __future__ import annotations

import abc
import inspect
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from ..core import Card, Paper
from ..core.checks import below_one, one_of
from ..core.errors import ConfigError, TargetError
from ..core.schema import check, setting
from ..gating import PassesState, number_layers, watch

F = Callable[[Tensor], Tensor]
STARTS = ("tokens", "zero")


class Update(abc.ABC):
    """The rule by which a block's f(x) changes the residual stream x, with momentum m."""

    @abc.abstractmethod
    def step(self, f: F, x: Tensor, m: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the block's change of the residual stream x, and the momentum for the next block.

        f: the block; x: (..., d), the stream; m: the momentum so far, None at the first block.
        """

    @property
    def reads_stream(self) -> bool:
        """True if the rule needs x itself, and not only f(x)."""
        return False


@dataclass(frozen=True)
class Plain(Update):
    """x + f(x), the usual residual block without momentum."""

    def step(self, f: F, x: Tensor, m: Tensor | None) -> tuple[Tensor, None]:
        """Return f(x), and no momentum.  m: unused, this rule has none."""
        return f(x), None


@dataclass(frozen=True)
class HeavyBall(Update):
    """m_l = mu m_{l-1} + gamma f(x_l), x_{l+1} = x_l + m_l, m = 0 before the first block.

    mu = 0, gamma = 1 is `Plain`. For f(x) = -lambda x it is stable where |mu| < 1 and
    0 < gamma lambda < 2 (1 + mu), `Plain` where 0 < gamma lambda < 2 (section 3).

    Not for blocks of too strong an answer: where gamma lambda > 2 (1 + mu) the stream diverges.
    Raises: ConfigError unless |mu| < 1.
    Source: arXiv:2410.14574, section 3. `AdamOnce` and `Robust` are its other two updates.
    """

    mu: float = setting(0.7, "The share mu of the momentum that a block keeps.", above=-1, below=1)
    gamma: float = setting(1.0, "The weight gamma of a block's output, the size of a step.")

    def __post_init__(self) -> None:
        check(self)

    def step(self, f: F, x: Tensor, m: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return (m_l, m_l), m_l = mu m + gamma f(x), which is added to x and passed on.

        mu: the share of m that stays; gamma: the weight of the block's output.
        """
        m = self.gamma * f(x) if m is None else self.mu * m + self.gamma * f(x)
        return m, m


@dataclass(frozen=True)
class AdamOnce(Update):
    """An Adam step at the first block, `HeavyBall` with gamma at all others.

    First: p = (1 - beta1) f, v = beta2 v_0 + (1 - beta2) f^2, and
    x_1 = x_0 + gamma1 p / ((1 - beta1) sqrt(v + 1e-8)) - kappa x_0, m = gamma f.
    start: "tokens", v_0 is the mean of f^2 over the width of each token, so that the step is as
      long as gamma1 says and every entry of f has a gradient;
      "zero", as published, where p is not divided by 1 - beta1 either: the step is then nearly
      gamma1 (1 - beta1) / sqrt(1 - beta2) sign(f), 3.16 sign(f) by default, whatever f says, and
      nothing before it learns. See `published`.
    kappa: 1 takes x_0 away, as the released code does inside another residual.

    Raises: ConfigError on a setting that cannot be.
    """

    mu: float = 0.7
    gamma: float = 1.0
    gamma1: float = 0.3
    beta1: float = 0.9
    beta2: float = 0.999
    kappa: float = 0.0
    start: str = "tokens"

    def __post_init__(self) -> None:
        """Check mu, the betas and the start.  Raises: ConfigError."""
        _momentum(self.mu)
        for name in ("beta1", "beta2"):
            below_one(name, getattr(self, name), fix="Try 0.9.")
        one_of("start", self.start, STARTS)

    @classmethod
    def published(cls) -> AdamOnce:
        """Return the settings of the released code: v_0 = 0, gamma1 = 1, kappa = 1."""
        return cls(gamma1=1.0, kappa=1.0, start="zero")

    @property
    def reads_stream(self) -> bool:
        return self.kappa != 0

    def step(self, f: F, x: Tensor, m: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the change of x, an Adam step at the first block, and the momentum.

        Later blocks take a step of `HeavyBall`, mu m + gamma f(x).
        """
        output = f(x)
        if m is not None:
            # every later block is a step of heavy ball
            m = self.mu * m + self.gamma * output
            return m, m
        # p and the second moment after one step, from v_0
        p, v = output, (1 - self.beta2) * output.square()
        if self.start == "tokens":
            v = v + self.beta2 * output.square().mean(-1, keepdim=True)
        else:
            p = (1 - self.beta1) * output
        # The step of Adam at x_0, with 1e-8 inside the root.
        change = self.gamma1 * p / (v + 1e-8).sqrt()
        if self.kappa:
            change = change - self.kappa * x
        return change, self.gamma * output


@dataclass(frozen=True)
class Robust(Update):
    """m_l = mu m_{l-1} + gamma f(x_l + alpha m_{l-1}), x_{l+1} = x_l + m_l.

    k: condition number; p: the rate at which an error is to shrink by block; L: the largest
    curvature. gamma = k (1 - p)^2 (1 + p) / L, mu = k p^3 / (k - 1),
    alpha = p^3 / ((k - 1) (1 - p)^2 (1 + p)): for f(x) = -lambda x with L / k <= lambda <= L the
    error shrinks by p at least (robust momentum, Cyrus et al. 2018).

    Raises: ConfigError unless k > 1, L > 0 and 1 - 1 / sqrt(k) <= p <= 1 - 1 / k.
    """

    k: float = 4.0
    p: float = 0.6
    L: float = 1.0

    def __post_init__(self) -> None:
        """Raise ConfigError unless k > 1, L > 0 and 1 - 1 / sqrt(k) <= p <= 1 - 1 / k."""
        if not (self.k > 1 and self.L > 0):
            name, got = "k, L", f"{self.k}, {self.L}"
            raise ConfigError(name, got=got, want="k above 1, L above 0", fix="Try 4 and 1.")
        low, high = 1 - self.k**-0.5, 1 - 1 / self.k
        if not low <= self.p <= high:
            want = f"{low:.3f} ... {high:.3f} for k = {self.k}"
            fix = "The smallest is the fastest, the largest stands the most noise."
            raise ConfigError("p", got=self.p, want=want, fix=fix)

    @property
    def constants(self) -> tuple[float, float, float]:
        """The constants gamma, mu and alpha of the class's equations, from k, p and L."""
        k, p = self.k, self.p
        slow = (1 - p) ** 2 * (1 + p)
        return k * slow / self.L, k * p**3 / (k - 1), p**3 / ((k - 1) * slow)

    @property
    def reads_stream(self) -> bool:
        return True

    def step(self, f: F, x: Tensor, m: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return (m_l, m_l), m_l = mu m + gamma f(x + alpha m), which is added to x and passed on.

        mu: the share of m that stays; gamma: the block's weight; alpha: a step ahead.
        """
        gamma, mu, alpha = self.constants
        m = gamma * f(x) if m is None else mu * m + gamma * f(x + alpha * m)
        return m, m


class Residual(PassesState):
    """x + the update's change, around any block.  x: (..., d) -> (..., d).

    block: f, (..., d) -> (..., d), with its norm, without its residual. The momentum goes from one
    `Residual` to the next of equal update, token by token; call `gating.join(model)` once they are
    in place, and `gating.start(model)` before every forward unless a host does.
    added: the host adds x on its own, as around a transformer's MLP; only the change is returned,
    and the block may read a norm of x. Parameters: the block's, none more.

    Raises: ConfigError for `added` with an update that needs x itself.
    Source: arXiv:2410.14574, section 3, where experts are gradients and are subtracted; here their
    sign is theirs.
    """

    def __init__(self, block: nn.Module, update: Update, *, added: bool = False) -> None:
        super().__init__()
        if added and update.reads_stream:
            got, want = f"True with {update}", "an update of f(x) alone"
            fix = "Use HeavyBall, or wrap the block together with its norm."
            raise ConfigError("added", got=got, want=want, fix=fix)
        self.block, self.update, self.added = block, update, added

    @property
    def kin(self) -> Hashable:
        """The key of blocks that pass momentum on to each other: of one update."""
        return Residual, self.update

    def forward(self, x: Tensor) -> Tensor:
        """Compute x + change, or the change alone if the host adds x.  x: (..., d) -> (..., d)."""
        # the previous layer's `Residual` has handed its momentum on; None at the first
        change, m = self.update.step(self.block, x, self.carried(len(x)))
        if m is not None:
            self.carry(m)
        return change if self.added else x + change

    def extra_repr(self) -> str:
        return f"{self.update}, added={self.added}"


def wrap_residuals(model: nn.Module, update: Update, paths: Sequence[str]) -> nn.Module:
    """Wrap some modules of a model in residual updates with momentum (`Residual`), in place.

    model: adds x itself around each of these modules; update: the rule, such as `HeavyBall`; paths:
      of the modules, in the order of the depth; the momentum goes from one to the next, and starts
      again at every forward of the model. Returns the model. `intarsia.methods.add_momentum` finds
      the paths in a transformer, and refuses modules that it does not fit.
    Raises: TargetError for a path that is not there, or reads two inputs; ConfigError as `Residual`
    does.
    """
    modules = dict(model.named_modules())
    if missing := [path for path in paths if not path or path not in modules]:
        subject, fix = f"path {missing[0]!r}", "Name them as model.named_modules() does."
        raise TargetError(subject, got="no such module", want="modules of the model", fix=fix)
    for path in paths:
        _check_one_input(path, modules[path])
    residuals = [Residual(modules[path], update, added=True) for path in paths]
    # Their numbers tell each which one hands it the momentum.
    number_layers(residuals)
    for path, wrapped in zip(paths, residuals, strict=True):
        parent, _, name = path.rpartition(".")
        setattr(modules[parent], name, wrapped)
    watch(model, stays=True)
    return model


def _check_one_input(path: str, module: nn.Module) -> None:
    """Refuse a module that adds another input itself, as BERT's `output`.  Raises: TargetError."""
    kinds = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
    words = inspect.signature(module.forward).parameters.values()
    if len(needed := [w.name for w in words if w.kind in kinds and w.default is w.empty]) > 1:
        got = f"a {type(module).__name__} that reads {', '.join(needed)}"
        want, fix = "modules of one input, to which the model adds it", "Name others, or none."
        raise TargetError(f"path {path!r}", got=got, want=want, fix=fix)


def _momentum(mu: float) -> None:
    """Raise ConfigError unless |mu| < 1."""
    if not abs(mu) < 1:
        raise ConfigError("mu", got=mu, want="-1 < mu < 1", fix="The paper's is 0.7.")


CARD = Card(
    "residual",
    kind="mixture",
    config=HeavyBall,
    paper=Paper(
        "2410.14574", 2024, "MomentumSMoE: Integrating Momentum into Sparse Mixture of Experts"
    ),
    tags=frozenset({"stateful"}),
    tiny={"mu": 0.5},
    summary="Momentum in the residual stream, carried along the depth of the model.",
    family="residual updates",
    names=("MomentumSMoE", "AdamSMoE", "Robust MomentumSMoE", "Momentum"),
)
