"""Folders of other forms than `intarsia.save` writes, read as what it would have written.

PEFT's adapter folder, a packed adapter, a sparse delta's file, a run of `intarsia fit`, and the
mixture.json of one release ago.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from ..core.change import Plan, Step
from ..core.errors import IntarsiaError
from ..core.files import check_digest, read_json
from ..core.registry import KEY, card, settings_from_dict
from .anatomy.origin import damaged
from .attach.adapter_files import CONFIG, WEIGHTS, read_adapter
from .delta.cells import attach_delta
from .delta.sparse_delta import SparseDelta
from .out.pack import PACKED, unpack
from .swap.upcycle import MixturePlaces, Upcycle

SETTINGS, HOST, FORMAT = "intarsia.json", "host.safetensors", 1
MIXTURE, MIXTURE_WEIGHTS = "mixture.json", "mixture.safetensors"
RUN, TRAINED, ADAPTER = "run.json", "trained.safetensors", "adapter"
OURS = frozenset(
    {SETTINGS, HOST, MIXTURE, MIXTURE_WEIGHTS, TRAINED, CONFIG, WEIGHTS, PACKED, "README.md"}
)


@dataclass(frozen=True)
class Adapter:
    """A saved adapter: its name, and the folder with PEFT's files, or a delta's file.

    told: what intarsia.json says of one in PEFT's own form.
    """

    name: str
    place: Path
    told: Mapping[str, Any] | None = None

    def read(
        self, model: nn.Module, name: str, trainable: bool, classes: Sequence[str] | None
    ) -> nn.Module:
        """Put it into a model."""
        if self.place.is_file():
            return attach_delta(model, SparseDelta.load(self.place), name)
        if (self.place / PACKED).is_file():
            return unpack(model, self.place, name=name)
        return read_adapter(
            model, self.place, name, trainable=trainable, classes=classes, told=self.told
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


def read(folder: Path) -> FolderContent:
    """A folder without intarsia.json.

    Raises: CheckpointError for one that is damaged or of no known form.
    """
    if (folder / MIXTURE).is_file():
        return _mixture(folder)
    if (folder / RUN).is_file():
        return _run(folder)
    return FolderContent(folder, adapters=(Adapter("default", folder),))


def _run(folder: Path) -> FolderContent:
    """A run's adapter, or the baseline that run.json names."""
    inside = folder / ADAPTER
    if (inside / WEIGHTS).is_file() and _alone(inside, folder / RUN):
        return read(inside)
    try:
        stored = read_json(folder / RUN)
        name = f"{ADAPTER}/{TRAINED}"
        check_digest(folder / name, stored.get("sha256", {}), name)
        told, seed = stored["record"]["method"], int(stored["training"]["seed"])
        settings = {KEY: told} if isinstance(told, str) else dict(told)
        found = card(str(settings.pop(KEY)))
        change = settings_from_dict(found, settings)
    except (OSError, ValueError, KeyError, TypeError, LookupError) as error:
        raise damaged(folder / RUN, f"no method that can be applied again ({error})") from error
    weights = None if change.stores == "nothing" else inside / TRAINED
    return FolderContent(
        inside, (Step(Plan(change, seed), "default", {}),), (), weights, change.stores
    )


def _alone(inside: Path, run: Path) -> bool:
    """Is it an adapter by its own files, and no baseline of PEFT's, which run.json names?"""
    try:
        if read_json(inside / CONFIG).get("peft_type") == "INTARSIA":
            return True
        told = read_json(run)["record"].get("method")
        key = told if isinstance(told, str) or told is None else told[KEY]
        return key is None or card(str(key)).kind == "adapter"
    except (OSError, ValueError, AttributeError, KeyError, TypeError, LookupError):
        return True  # its reader tells what is wrong


def _mixture(folder: Path) -> FolderContent:
    """mixture.json: one step, `upcycle`, and every weight."""
    path = folder / MIXTURE
    try:
        stored = read_json(path)
    except ValueError as error:
        raise damaged(path, f"text that is not JSON ({error})") from error
    if not isinstance(stored, dict) or stored.get("format") != FORMAT:
        got = stored.get("format") if isinstance(stored, dict) else "no object"
        raise damaged(path, f"format {got!r}, not {FORMAT}")
    try:
        plan, extra = _upcycled(stored), dict(stored["extra"])
    except (IntarsiaError, TypeError, ValueError, KeyError, AttributeError) as error:
        raise damaged(path, f"settings that no mixture takes ({error})") from error
    step = Step(plan, "default", {})
    return FolderContent(folder, (step,), (), folder / MIXTURE_WEIGHTS, "all", extra)


def _upcycled(stored: Mapping[str, Any]) -> Plan:
    router = dict(stored["router"])
    found = card(str(router.pop(KEY)))
    if found.kind != "router":
        raise ValueError(f"{found.key!r} is no router")
    # the first files have neither residual nor parts
    whole = stored["experts"] if stored["how"] == "slices" else [1] * len(stored["experts"])
    change = Upcycle(
        router=settings_from_dict(found, router),
        how=str(stored["how"]),
        capacity=stored["capacity"],
        residual=stored.get("residual"),
        fraction=float(stored["fraction"]),
        act=stored.get("act"),
    )
    parts = stored.get("parts", whole)
    places = MixturePlaces(tuple(stored["paths"]), tuple(stored["experts"]), tuple(parts))
    return Plan(change, int(stored["seed"]), vars(places))
