"""Changes of a model: planned, applied, and folded to plain modules where that can be."""

from __future__ import annotations

import abc
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self, cast

from torch import nn

from .foreign import config_of
from .method_settings import MethodSettings
from .registry import method_key, settings_to_dict

LAWS = ("outputs", "shape", "routing")
RECORD = "intarsia"  # transformers' name for the kind of a config's record of steps
STEPS = "intarsia_steps"  # the attribute in which a model keeps the changes made to it


class Change(MethodSettings, abc.ABC):
    """Settings that alter a model: an adapter, experts, a baseline, a recipe.

    A subclass has `apply`; the other members hold for a change that decides nothing for a host and
    leaves plain modules behind.
    laws: which of LAWS hold right after `apply`, before any training: "outputs", the model gives
      the same in evaluation; "shape", the state dict keeps its names and shapes; "routing", each
      token keeps its experts. Conformance tests those named.
    stores: which of the host's weights a saved folder needs: "all", the "trained" ones, the weights
      of modules that were "added", or "nothing".
    added: paths of the modules that the change puts in, for "added".
    rewires: True if a stock model with the config and the weights that the change leaves behind
      would compute something else.
    recorded: False if the record of the change is kept elsewhere, or rewritten by its `apply`.
    walks: True if `plan` goes block by block, and takes `keeping`, where finished blocks are kept.
    """

    laws: ClassVar[frozenset[str]] = frozenset(LAWS)
    stores: ClassVar[str] = "trained"
    added: ClassVar[tuple[str, ...]] = ()
    rewires: ClassVar[bool] = False
    recorded: ClassVar[bool] = True
    walks: ClassVar[bool] = False

    @property
    def preserves(self) -> frozenset[str]:
        """The laws that hold with these settings: the class's laws."""
        return self.laws

    @property
    def needs(self) -> frozenset[str]:
        """The statistics, or "labels", that `plan` reads of calibration batches; none here."""
        return frozenset()

    def plan(self, host: nn.Module, batches: Iterable[Any] = (), *, seed: int = 0) -> Plan:
        """Decide everything that the settings leave open for this model; change nothing.

        host: the model. batches: calibration inputs, for changes that need statistics. seed: of
        weights and random draws.
        """
        return Plan(self, seed)

    @abc.abstractmethod
    def apply(self, host: nn.Module, plan: Plan, *, name: str = "default") -> nn.Module:
        """Return the changed model, in place where the host can stay; the caller undoes errors."""

    def fold(self, host: nn.Module) -> nn.Module:
        """Return the model with what this change added turned into plain modules; here, as it is.

        host: the changed model.
        Raises: FoldError where no plain modules compute the same.
        """
        return host

    def scheduled(self, plan: Plan, schedule: Any) -> Any:
        """Return the training schedule for a model with this change: by default the given one.

        plan: what `plan` decided for the model; unused here, but changes with a schedule of their
        own read it. schedule: what the user asked for, None for nothing.
        Raises: ConfigError for a schedule that this change does not allow.
        """
        return schedule

    def forced(self) -> Self:
        """Return the change with its check that it makes the model faster left out."""
        return self


@dataclass(frozen=True)
class Plan:
    """A change with all that it decides for one host; equal hosts and plans give equal models.

    seed: of new weights and draws.  decided: what the settings leave open, ready for JSON.
    """

    change: Change
    seed: int = 0
    decided: Mapping[str, Any] = field(default_factory=lambda: dict[str, Any]())

    @property
    def undoes_itself(self) -> bool:
        """True if a plan that fails puts the weights back from a folder of its own."""
        return False


@dataclass(frozen=True)
class Step:
    """A plan that was applied, under a name, to a host of this fingerprint."""

    plan: Plan
    name: str
    on: Mapping[str, Any]

    @property
    def plain(self) -> bool:
        """True if a stock model with the weights that it leaves behind gives the same outputs."""
        return not self.plan.change.rewires

    def entry(self) -> dict[str, Any]:
        """Return the change and its decisions as a JSON object, for `intarsia.json`."""
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
    """Return the steps that turn the plain model into this one; PEFT lists adapters itself."""
    return getattr(model, STEPS, ())


def set_steps(host: nn.Module, steps: Iterable[Step]) -> None:
    """Replace a model's record of the changes that were made to it.

    A transformers model also gets those in its config that leave modules behind which transformers
    does not know: `from_pretrained` then rebuilds the model that `save_pretrained` wrote, or
    refuses it.
    """
    setattr(host, STEPS, tuple(steps))
    # transformers writes its config with the model: the record has to be in it
    config: Any = config_of(host)
    if not hasattr(config, "to_json_string"):  # of another library
        return
    attributes = cast("dict[str, Any]", vars(config))
    # transformers rebuilds a model by the class that this entry names
    existing: Any = attributes.get("quantization_config")
    # a quantised model: its own record of quantization is not ours to replace
    if existing and not is_record(existing):
        return
    # steps that leave plain modules behind need no rebuilding
    entries = [step.entry() for step in steps_of(host) if not step.plain]
    if entries:
        config.quantization_config = {"quant_method": RECORD, "steps": entries}
    elif existing:
        del config.quantization_config


def is_record(config: Any) -> bool:
    """Return True for the record of steps in a config of transformers."""
    return isinstance(config, dict) and cast(dict[str, Any], config).get("quant_method") == RECORD
