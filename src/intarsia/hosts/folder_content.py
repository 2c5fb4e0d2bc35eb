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
        """Put the adapter into a model.  classes: names its head must have been trained for."""
        if self.place.is_file():
            return attach_delta(model, SparseDelta.load(self.place), name)
        if (self.place / PACKED).is_file():
            return unpack(model, self.place, name=name)
        return read_adapter(
            model, self.place, name, trainable=trainable, classes=classes, left_out=self.left_out
        )


@dataclass(frozen=True)
class FolderContent:
    """Content of a saved folder: steps, adapters, and which of the host's weights it has."""

    folder: Path
    # what is done to the host before its adapters are attached, in order
    steps: tuple[Step, ...] = ()
    adapters: tuple[Adapter, ...] = ()
    weights: Path | None = None
    stores: str = "nothing"  # or "all", "trained", "added": which of the host's weights
    extra: Mapping[str, Any] = field(default_factory=lambda: dict[str, Any]())
