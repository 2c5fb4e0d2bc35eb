"""What a saved folder holds: steps, adapters, and weights of the host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from ..core.change import Step
from .attach.adapter_files import CONFIG, WEIGHTS, read_adapter
from .delta.cells import attach_delta
from .delta.sparse_delta import SparseDelta
from .out.pack import PACKED, unpack

SETTINGS, HOST, FORMAT = "intarsia.json", "host.safetensors", 1
RUN, ADAPTER = "run.json", "adapter"  # of a run, and the folder in it
OURS = frozenset({SETTINGS, HOST, CONFIG, WEIGHTS, PACKED, "README.md"})


@dataclass(frozen=True)
class Adapter:
    """A saved adapter: its name, and the folder with PEFT's files, or a delta's file.

    left_out: of plain LoRA in PEFT's own form, what its file has no place for; None of any other.
    """

    name: str
    place: Path
    left_out: Mapping[str, Any] | None = None

    def read(
        self, model: nn.Module, name: str, trainable: bool, classes: Sequence[str] | None
    ) -> nn.Module:
        """Put it into a model."""
        if self.place.is_file():
            return attach_delta(model, SparseDelta.load(self.place), name)
        if (self.place / PACKED).is_file():
            return unpack(model, self.place, name=name)
        return read_adapter(
            model, self.place, name, trainable=trainable, classes=classes, left_out=self.left_out
        )


@dataclass(frozen=True)
class FolderContent:
    """What a folder says: steps, adapters, and which weights of the host are in which file."""

    folder: Path
    steps: tuple[Step, ...] = ()
    adapters: tuple[Adapter, ...] = ()
    weights: Path | None = None
    stores: str = "nothing"
    extra: Mapping[str, Any] = field(default_factory=lambda: dict[str, Any]())
