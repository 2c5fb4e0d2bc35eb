"""Use PEFT's own methods, by name or config: PEFT's code, our places, a trained head."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields
from typing import Any, ClassVar

import torch
from peft import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
    PeftConfig,
    PeftModel,
    PeftType,
    get_peft_model,
)
from torch import nn

from ...core.change import Change, Plan
from ...core.errors import ConfigError
from ...core.foreign import model_type_of
from ..anatomy.blocks import base_of, blocks
from ..anatomy.sites import call_layer, find_sites
from .adapt import check_model, check_name, exact_targets, named_heads, quiet_peft, task_type_of
from .config import peft_kind
from .peft import IA3_PLACES

# settings that this library decides, or that do not belong to the method
DECIDED = {field.name for field in fields(PeftConfig)} | {
    "target_modules",
    "modules_to_save",
    "exclude_modules",
    "feedforward_modules",
    "bias",
    "fan_in_fan_out",
    "layers_pattern",
    "layers_to_transform",
    "save_projection",
    "megatron_core",
    "ensure_weight_tying",
}


@dataclass(frozen=True)
class _Places:
    """Roles, as a method of our own would name them; the cells are PEFT's."""

    roles: tuple[str, ...]
    position: str = "parallel"


def plain_settings(kind: str) -> dict[str, Any]:
    """Return the settings of a PEFT method that are numbers, words or switches: name -> default.

    kind: PEFT's name for the method's type, as "LORA". Settings that this library decides are left
    out.
    """
    config = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType[kind]]
    return {
        f.name: f.default
        for f in fields(config)
        if f.name not in DECIDED
        and f.default is not MISSING
        and isinstance(f.default, (bool, int, float, str))
    }


def through_peft(
    model: nn.Module,
    kind: str,
    settings: Mapping[str, Any],
    *,
    roles: Sequence[str] = ("qkv",),
    last_blocks: int = 0,
    seed: int = 0,
) -> PeftModel:
    """Attach one of PEFT's methods to a model, in place; the head is trained and saved whole.

    kind: PEFT's name for the method's type, as "LORA"; settings: of its config, see
    `plain_settings`; roles: which layers it adapts, as in `adapt`; last_blocks: only in so many
    last blocks, 0 = all.
    Do not use a method for keys and values alone in a fused qkv layer: IA3 scales queries too.

    Raises: ConfigError for settings that PEFT refuses; TargetError for layers that are not there.
    """
    check_model(model, "default")
    paths = _paths(model, roles, last_blocks)
    options = dict(settings) | _targets(model, kind, paths)
    options |= {"modules_to_save": named_heads(model, "auto") or None}
    with _refused_by_peft(kind, settings), torch.random.fork_rng(devices=[]), quiet_peft():
        # PEFT draws from torch's global generator
        torch.manual_seed(seed)
        config = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType[kind]](**options)
        adapted = get_peft_model(model, config)
    assert isinstance(adapted, PeftModel)
    return adapted


@dataclass(frozen=True)
class AdaptByPeft(Change):
    """Change that adds the adapter which a PEFT config describes, as `LoraConfig(r=8)`.

    config: left as it is. Settings that it leaves open are chosen as PEFT does, and where PEFT does
    not
      know the model, as for a method of this library: attention's layers, the head, the task's
      type.
    targets, layers, head: as in `Adapt`, where the config does not say.

    Raises: TargetError if a target matches nothing; ConfigError for a name in use, targets that
    are given twice, and what PEFT refuses.
    """

    config: PeftConfig
    targets: Sequence[str] | str | None = None
    layers: Sequence[int] | None = None
    head: Sequence[str] | str | None = "auto"

    recorded: ClassVar[bool] = False  # PEFT keeps the list of adapters
    # some of PEFT's methods change outputs before any training
    laws: ClassVar[frozenset[str]] = frozenset()

    def apply(self, host: nn.Module, plan: Plan, *, name: str = "default") -> PeftModel:
        """Add the adapter to a plain model, which becomes a PEFT model, or to an adapted one."""
        check_name(host, name)
        config, kind = copy.deepcopy(self.config), self._kind
        for setting, value in self._open(base_of(host)).items():
            setattr(config, setting, value)
        got = type(config).__name__
        with _refused_by_peft(kind, got), torch.random.fork_rng(devices=[]), quiet_peft():
            # PEFT draws from torch's global generator
            torch.manual_seed(plan.seed)
            if isinstance(host, PeftModel):
                host.add_adapter(name, config)
                return host
            adapted = get_peft_model(host, config, adapter_name=name)
        assert isinstance(adapted, PeftModel)
        return adapted

    def fold(self, host: nn.Module) -> nn.Module:
        """Merge the adapters into the weights by PEFT.  Raises: PEFT's own errors."""
        model: Any = host
        return model.merge_and_unload()

    @property
    def _kind(self) -> str:
        """PEFT's name for the adapter's type."""
        return peft_kind(self.config)

    def _open(self, host: nn.Module) -> dict[str, Any]:
        """Return values for the settings that the config leaves open."""
        decided: dict[str, Any] = {}
        if self.config.task_type is None:
            decided["task_type"] = task_type_of(host)
        if vars(self.config).get("modules_to_save", ...) is None:
            decided["modules_to_save"] = named_heads(host, self.head) or None
        # `...` stands for a config without that setting, None for one that leaves it open
        places = vars(self.config).get("target_modules", ...)
        names_places = self.targets is not None or self.layers is not None
        if names_places and places is not None:
            has = "has no places" if places is ... else "says where"
            got = f"with a {type(self.config).__name__} that {has}"
            fix = "Leave targets and layers out, or the config's target_modules."
            raise ConfigError("targets", got=got, want="places that are given once", fix=fix)
        if places is None and (names_places or not _has_places(self._kind, host)):
            # LNTuning trains norms, all others sit at layers of the attention
            roles = ("norm",) if self._kind == "LN_TUNING" else ("qkv",)
            method: Any = _Places(roles)
            sites = find_sites(host, method, self.targets, self.layers)
            decided |= _targets(host, self._kind, [site.path for site in sites])
        return decided


@contextmanager
def _refused_by_peft(kind: str, settings: object) -> Iterator[None]:
    """Turn PEFT's own errors into ConfigError, inside the `with`."""
    try:
        yield
    except (ValueError, TypeError, ZeroDivisionError, AssertionError, KeyError) as error:
        subject, fix = f"settings of PEFT's {kind}", f"It says: {str(error).rstrip('.')}."
        got = dict(settings) if isinstance(settings, Mapping) else settings
        raise ConfigError(subject, got=got, want="what PEFT can build", fix=fix) from error


def _targets(model: nn.Module, kind: str, paths: list[str]) -> dict[str, Any]:
    """Return the settings of a PEFT config that name the modules to adapt."""
    if kind != "IA3":
        return {"target_modules": exact_targets(model, paths)}
    # IA3 scales the inputs of an MLP's last layer, and the outputs of other layers
    last = list({p.rpartition(".")[0]: p for p in paths if ".mlp." in p}.values())
    rest = [p for p in paths if ".mlp." not in p or p in last]
    return {
        "target_modules": exact_targets(model, rest),
        "feedforward_modules": exact_targets(model, last),
    }


def _paths(model: nn.Module, roles: Sequence[str], last_blocks: int) -> list[str]:
    """Return the paths of the layers to adapt; from then on the model calls each of them."""
    count = len(blocks(model))
    if not 0 <= last_blocks <= count:
        raise ConfigError(
            "last_blocks", got=last_blocks, want=f"0 ... {count}", fix="0 stands for all of them."
        )
    # counted from the last block: -1 is the last
    layers = range(-last_blocks, 0) if last_blocks else None
    places: Any = _Places(tuple(roles))
    paths = [site.path for site in find_sites(model, places, layers=layers)]
    for path in paths:
        # Swin v2 reads the weight of its qkv layer, where an adapter would not be run: from now on
        # it calls the layer
        parent, _, name = path.rpartition(".")
        call_layer(model.get_submodule(parent), name)
    return paths


def _has_places(method: str, host: nn.Module) -> bool:
    """Return True if PEFT knows which modules of this kind of model a method ("LORA") adapts."""
    tuners: Any = PEFT_TYPE_TO_TUNER_MAPPING
    mapping = getattr(tuners[method], "target_module_mapping", None)
    if method == "IA3":  # PEFT has this method's table elsewhere
        mapping = IA3_PLACES
    return mapping is None or model_type_of(host) in mapping
