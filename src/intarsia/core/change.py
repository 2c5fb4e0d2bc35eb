"""What is done to a model: planned, applied, and folded to plain modules where that can be."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, cast

from torch import nn

from .registry import method_key, settings_to_dict

LAWS = ("outputs", "shape", "routing")
RECORD = "intarsia"  # transformers' name for the kind of a config's record of steps
STEPS = "intarsia_steps"  # the attribute in which a model keeps what was done to it


class Change(Protocol):
    """Settings that alter a model: an adapter, experts, a baseline, a recipe.

    plan: what the change decides for a host; may look at calibration batches, changes nothing.
    apply: the changed model, in place where the host can stay; the caller undoes it on an error.
    fold: the model with this change as plain modules.  Raises: FoldError where none are the same.
    preserves: which of LAWS hold right after `apply`, before any training: "outputs", the model
      gives the same in evaluation; "shape", the state dict keeps its names and shapes; "routing",
      each token keeps its experts. Conformance tests those named.
    """

    @property
    def preserves(self) -> frozenset[str]: ...

    def plan(self, host: nn.Module, batches: Iterable[Any] = (), *, seed: int = 0) -> Plan: ...

    def apply(self, host: nn.Module, plan: Plan, *, name: str = "default") -> nn.Module: ...

    def fold(self, host: nn.Module) -> nn.Module: ...


class PlainChange:
    """What a change has that decides nothing for a host and leaves plain modules behind.

    stores: which of the host's weights a saved folder needs: "all", those that are "trained", or
    "nothing".  laws: those that it preserves.  rewires: whether a stock model with the config and
    the weights that it leaves behind would compute something else.
    """

    stores: ClassVar[str] = "trained"
    rewires: ClassVar[bool] = False
    laws: ClassVar[frozenset[str]] = frozenset(LAWS)

    @property
    def preserves(self) -> frozenset[str]:
        """The laws of the class."""
        return self.laws

    def plan(self, host: nn.Module, batches: Iterable[Any] = (), *, seed: int = 0) -> Plan:
        """The settings as they are."""
        return Plan(cast(Change, self), seed)

    def fold(self, host: nn.Module) -> nn.Module:
        """The model itself."""
        return host


@dataclass(frozen=True)
class Plan:
    """A change with all that it decides for one host; equal hosts and plans give equal models.

    seed: of new weights and draws.  decided: what the settings leave open, ready for JSON.
    """

    change: Change
    seed: int = 0
    decided: Mapping[str, Any] = field(default_factory=lambda: dict[str, Any]())


@dataclass(frozen=True)
class Step:
    """A plan that was applied, under a name, to a host of this fingerprint."""

    plan: Plan
    name: str
    on: Mapping[str, Any]

    @property
    def plain(self) -> bool:
        """True if a stock model with the weights that it leaves behind gives the same outputs."""
        change = self.plan.change
        return isinstance(change, PlainChange) and not change.rewires

    def entry(self) -> dict[str, Any]:
        """Return it as `intarsia.json` has it."""
        change: Any = self.plan.change
        return {
            "key": method_key(change),
            "settings": settings_to_dict(change),
            "decided": dict(self.plan.decided),
            "seed": self.plan.seed,
            "name": self.name,
            "on": dict(self.on),
        }


def steps_of(model: nn.Module) -> tuple[Step, ...]:
    """What turns the plain model into this one, adapters apart: PEFT keeps a list of those."""
    return getattr(model, STEPS, ())


def set_steps(host: nn.Module, steps: Iterable[Step]) -> None:
    """Replace a host's record of what was done to it.

    A model of transformers has those steps in its config, too, that leave other modules than its
    own behind: `from_pretrained` then rebuilds what `save_pretrained` wrote, or refuses it.
    """
    setattr(host, STEPS, tuple(steps))
    config: Any = getattr(host, "config", None)
    other = getattr(config, "quantization_config", None)
    if not hasattr(config, "to_json_string") or (other and not is_record(other)):
        return
    entries = [step.entry() for step in steps_of(host) if not step.plain]
    if entries:
        config.quantization_config = {"quant_method": RECORD, "steps": entries}
    elif other:
        del config.quantization_config


def is_record(config: Any) -> bool:
    """Return True for the record of steps in a config of transformers."""
    return isinstance(config, dict) and cast(dict[str, Any], config).get("quant_method") == RECORD
