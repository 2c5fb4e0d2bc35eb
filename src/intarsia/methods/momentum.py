"""Momentum in the residual stream of a whole model (MomentumSMoE, arXiv:2410.14574)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, cast

from torch import nn

from ..core import Card, Paper
from ..core.change import Change, Plan
from ..core.checks import one_of
from ..core.errors import FoldError, TargetError
from ..core.schema import check, setting
from ..hosts.anatomy.blocks import blocks, inside, mlp_of
from ..hosts.anatomy.sites import check_one_row
from ..hosts.changing import apply_change
from ..mixtures import residual
from ..mixtures.residual import AdamOnce, HeavyBall, Robust, Update

RULES = {kind.__name__: kind for kind in (HeavyBall, AdamOnce, Robust)}


@dataclass(frozen=True)
class Momentum(Change):
    """Momentum in the residual stream, to which MLPs or other modules write.

    Not for blocks with unlike tokens (Swin's stages), nor where the model must fold.
    Raises: TargetError in `apply` for a path that is not there; ConfigError as `Residual` does.
    """

    update: Update = setting(
        help="The rule of the momentum: `HeavyBall`, `AdamOnce` or `Robust`.", factory=HeavyBall
    )
    paths: tuple[str, ...] = setting(
        (),
        "The paths of the modules that write, in the order of the depth; none = the MLP of "
        "every block.",
    )

    rewires: ClassVar[bool] = True
    laws: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        """Make `paths` a tuple, and build the update rule if it is a mapping, as files have it."""
        check(self)
        object.__setattr__(self, "paths", tuple(self.paths))
        if isinstance(self.update, Mapping):
            # Read from a file, the update is a mapping with the rule's name.
            settings = dict(cast("Mapping[str, Any]", self.update))
            one_of("update", rule := settings.pop("rule", None), RULES)
            object.__setattr__(self, "update", RULES[str(rule)](**settings))

    def settings_to_dict(self) -> dict[str, Any]:
        """Return the settings for JSON, with the update rule as its name and its own settings."""
        update: Any = self.update
        rule = {"rule": type(update).__name__, **asdict(update)}
        return {"update": rule, "paths": list(self.paths)}

    def plan(self, host: nn.Module, batches: Iterable[Any] = (), *, seed: int = 0) -> Plan:
        """Find the modules that get momentum on their outputs.

        Raises: TargetError for blocks with unlike tokens (Swin's stages), or without MLPs.
        """
        model_blocks = blocks(host)
        mlps = {path: f"{path}.{mlp}" for path, block in model_blocks if (mlp := mlp_of(block))}
        paths = self.paths or tuple(mlps.values())
        if not paths:
            subject, got = f"model {type(host).__name__}", "no block with an MLP of its own"
            raise TargetError(
                subject, got=got, want="a transformer", fix="Name modules with paths=."
            )
        # Momentum adds outputs of different depths, which must be of the same tokens.
        check_one_row((b for b, _ in model_blocks if any(inside(p, b) for p in paths)), "momentum")
        return Plan(Momentum(self.update, paths), seed)

    def apply(self, host: nn.Module, plan: Plan, *, name: str = "default") -> nn.Module:
        """Wrap the planned modules in residual updates with momentum, in place."""
        # Each module passes its momentum to the next one along the depth.
        return residual.wrap_residuals(host, self.update, self.paths)

    def fold(self, host: nn.Module) -> nn.Module:
        """Raise FoldError, always: momentum adds outputs of earlier layers, as no weight does."""
        subject = f"fold {type(host).__name__}"
        got, want = "momentum along the depth", "layers that do not read one another's"
        raise FoldError(
            subject, got=got, want=want, fix="Keep it: save the model with intarsia.save."
        )


def add_momentum(model: nn.Module, update: Update, paths: Sequence[str]) -> nn.Module:
    """Apply `Momentum`: add_momentum(vit, HeavyBall(0.7), ["blocks.0.mlp", "blocks.1.mlp"])."""
    return apply_change(model, Momentum(update, tuple(paths)))


CARDS = (
    Card(
        "add_momentum",
        kind="change",
        config=Momentum,
        paper=Paper(
            "2410.14574", 2024, "MomentumSMoE: Integrating Momentum into Sparse Mixture of Experts"
        ),
        summary="Momentum in the residual stream, put into a whole model.",
        family="residual updates",
    ),
)
