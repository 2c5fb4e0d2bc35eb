"""What a saved folder holds: steps, adapters, and weights of the host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from ..core.change import Step
from ..hosts.attach.adapter_files import CONFIG, WEIGHTS, read_adapter
from ..hosts.delta.cells import attach_delta
from ..hosts.delta.sparse_delta import SparseDelta
from .out.pack import PACKED, unpack

SETTINGS, HOST, FORMAT = "intarsia.json", "host.safetensors", 1
RUN, ADAPTER = "run.json", "adapter"  # a run's record, and the folder of its adapter
OURS = frozenset({SETTINGS, HOST, CONFIG, WEIGHTS, PACKED, "README.md"})


@dataclass(frozen=True)
class Adapter:
    """Saved adapter: its name, and the folder with PEFT's files, or the file of a delta.

    left_out: for plain LoRA in PEFT's form, the settings for which that form has no room; else
    None.
    """

    name: str
    place: Path
    left_out: Mapping[str, Any] | None = None

    def read(
        self, model: nn.Module, name: str, trainable: bool, classes: Sequence[str] | None
    ) -> nn.Module:
        """Add the adapter to a model under a name, and return the model.

        trainable: False freezes it; classes: names that its head must have been trained for, None =
        any.
        """
        if self.place.is_file():
            return attach_delta(model, SparseDelta.load(self.place), name)
        if (self.place / PACKED).is_file():
            return unpack(model, self.place, name=name)
        return read_adapter(
            model, self.place, name, trainable=trainable, classes=classes, left_out=self.left_out
        )


@dataclass(frozen=True)
class FolderContent:
    """Content of a saved folder: changes of the model, adapters, and weights.

    steps: changes to repeat, in order, before adapters are added; weights: file with weights of the
    model itself, None = it has none; stores: which of them: "nothing", "all", "trained" or "added";
    extra: entries of the state dict that are no tensors.
    """

    folder: Path
    # changes of the model before its adapters are added, in order
    steps: tuple[Step, ...] = ()
    adapters: tuple[Adapter, ...] = ()
    weights: Path | None = None
    stores: str = "nothing"  # or "all", "trained", "added": which of the host's weights
    extra: Mapping[str, Any] = field(default_factory=lambda: dict[str, Any]())
