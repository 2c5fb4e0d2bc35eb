"""Which method goes where, in the form in which PEFT stores it."""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftConfig
from torch import nn

from ...core import Cell, Method, Site
from ...core.errors import ConfigError
from ...core.reading import read_text
from ...core.registry import method_from_dict
from ..anatomy import origin
from . import lora_form
from .shared import Shared

KINDS: dict[str, tuple[type, ...]] = {
    "options": (dict,),
    "seed": (int,),
    "target_modules": (set, str),
    "exclude_modules": (set, str),
    "layers_to_transform": (list, int),
    "layers_pattern": (list, str),
    "modules_to_save": (list, set, str),
    "origin": (dict,),
}

# what PEFT's card says of an adapter that PEFT alone does not read
NEEDS = "\n\n`import intarsia` before PEFT loads this adapter: PEFT alone does not have its type.\n"


class Family(str, enum.Enum):  # noqa: UP042  PEFT's mappings want a str enum named as its value
    """Type under which PEFT knows every method."""

    INTARSIA = "INTARSIA"


def peft_kind(config: PeftConfig) -> str:
    """Return PEFT's name for the kind of an adapter, such as "LORA"."""
    kind = config.peft_type
    return str(kind.value if isinstance(kind, enum.Enum) else kind)


@dataclass
class IntarsiaConfig(PeftConfig):
    """Configuration of an adapter, as PEFT stores it in `adapter_config.json`.

    method, options: key of the method in the catalogue, and its settings.
    seed: fixes, with a layer's path, the first weights of the module that is added there: two
      methods with one seed start from the same projections.
    target_modules: paths or ends of paths; None = the modules that the method chooses.
    init_weights: False = random weights that do not add zero (PEFT's test-suite asks for it).
    origin: what the weights belong to (trunk, heads, class names), checked at load.
    """

    method: str = field(default="bottleneck")
    options: dict[str, Any] = field(default_factory=dict)
    seed: int = field(default=0)
    target_modules: list[str] | set[str] | str | None = field(default=None)
    exclude_modules: list[str] | set[str] | str | None = field(default=None)
    layers_to_transform: list[int] | int | None = field(default=None)
    layers_pattern: list[str] | str | None = field(default=None)
    modules_to_save: list[str] | None = field(default=None)
    init_weights: bool = field(default=True)
    origin: dict[str, Any] | None = field(default=None)

    def __post_init__(self) -> None:
        """Convert lists of JSON to sets, and check the types of all settings."""
        super().__post_init__()
        # JSON has lists where PEFT wants sets
        self.peft_type = Family.INTARSIA
        for name in ("target_modules", "exclude_modules"):
            if isinstance(value := getattr(self, name), (list, tuple)):
                setattr(self, name, set(value))
        for name, kinds in KINDS.items():
            value = getattr(self, name)
            if value is not None and not isinstance(value, kinds):
                want = " or ".join(k.__name__ for k in kinds)
                fix = "Give a value of that type, or none."
                raise ConfigError(name, got=repr(value), want=want, fix=fix)
        self.settings()

    def settings(self) -> Method:
        """Return the method's own frozen settings."""
        return method_from_dict({"method": self.method} | (self.options or {}))

    def to_dict(self) -> dict[str, Any]:
        # sorted, so that equal adapters give equal files
        return {k: sorted(v) if isinstance(v, set) else v for k, v in super().to_dict().items()}

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Write adapter_config.json, with a digest of the weights and of these settings.

        Plain LoRA with weights that have PEFT's names gets the config of PEFT's LoRA; for other
        methods PEFT's card, README.md, says that `import intarsia` comes first.
        save_directory: the folder, which has the weights already; kwargs: passed on to PEFT.
        """
        if self.method == "lora" and lora_form.is_written(Path(save_directory)):
            lora_form.write_config(self, Path(save_directory), **kwargs)
            return
        self.origin = origin.with_digest(self.origin, save_directory, self._identity())
        super().save_pretrained(save_directory, **kwargs)
        card = Path(save_directory, "README.md")
        if card.is_file() and (text := read_text(card)) and NEEDS not in text:
            card.write_text(text.rstrip() + NEEDS, "utf-8")

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str, subfolder: str | None = None, **kwargs: Any
    ) -> IntarsiaConfig:
        """Read adapter_config.json of a folder, and check the digest of the weights next to it.

        pretrained_model_name_or_path, subfolder, kwargs: as in PEFT.
        Raises: CheckpointError if the weights are not those that were saved with it.
        """
        config = cast(
            IntarsiaConfig,
            super().from_pretrained(pretrained_model_name_or_path, subfolder, **kwargs),
        )
        origin.check_digest(
            config.origin, pretrained_model_name_or_path, subfolder, config._identity()
        )
        return config

    def _identity(self) -> dict[str, Any]:
        """Return the settings on which the meaning of the weights depends, for the digest."""
        stored = self.to_dict()
        names = (
            "method",
            "options",
            "seed",
            "target_modules",
            "exclude_modules",
            "layers_to_transform",
            "layers_pattern",
            "modules_to_save",
        )
        # the only part of `origin` that the weights depend on: the classes name the head's rows
        classes = (self.origin or {}).get("classes")
        return {name: stored[name] for name in names} | {"classes": classes}

    def _generator(self, path: str, salt: str) -> torch.Generator:
        # seeded by the path alone, so that the order of building does not matter
        digest = hashlib.sha256(f"{self.seed}:{path}:{salt}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)

    def share(self, sites: Iterable[Site]) -> Shared:
        """Return the state that an adapter's modules share, built when it is first needed."""
        method = self.settings()
        if not method.shares_state:
            return Shared()
        generator = self._generator("", "shared")
        return Shared(lambda: method.shared_state(list(sites), generator=generator))

    def build(self, site: Site, name: str, shared: Shared) -> Cell:
        """Build the trainable module that this adapter adds to one layer."""
        generator = self._generator(site.path, "" if self.init_weights else name)
        cell = shared.build(self.settings(), site, generator=generator)
        if not self.init_weights:
            # PEFT's own tests need adapters that do not add zero at first
            for parameter in cell.parameters():
                nn.init.normal_(parameter, std=0.2, generator=generator)
        return cell
