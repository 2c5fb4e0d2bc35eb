"""Ready-made sizes of a benchmark: which part of the matrix, on what model, for how long."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from intarsia.runs.choosing.arms import ARMS, EXTRA, RECIPES, named


@dataclass(frozen=True)
class Profile:
    """Defaults of `intarsia bench`; options given in words win.

    tasks, methods: empty = all.  values: of an Experiment, by their names.
    minutes: a budget, None = as long as it takes.
    """

    name: str
    about: str
    tasks: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    values: Mapping[str, Any] = field(default_factory=lambda: dict[str, Any]())
    minutes: float | None = None


_SMALL = MappingProxyType(
    {"size": 56, "last_blocks": 3, "frozen_once": True, "precision": "bf16", "epochs": 20}
)
FULL = Profile("full", "Every task and method, three seeds.", values=_SMALL)
QUICK = Profile(
    "quick",
    "Four tasks, six methods, one seed; epochs are cut to fit 15 minutes.",
    tasks=("elpv", "fashion-mnist", "synthetic-orientation", "synthetic-count"),
    methods=("linear", "bitfit", "lora", "adaptformer", "r-drop adaptformer", "mosa"),
    seeds=(0,),
    values=_SMALL,
    minutes=15,
)
FEW = Profile(
    "few",
    "Every task and method, the peers too, on 100 images for 40 epochs, five seeds.",
    methods=(*(a.name for a in (*ARMS, *EXTRA)), *(f"adaptformer {name}" for name in RECIPES)),
    seeds=(0, 1, 2, 3, 4),
    values={**_SMALL, "epochs": 40, "images": 100},
)
PROFILES = (FULL, QUICK, FEW)


def profile(name: str) -> Profile:
    """Return the profile of that name.  Raises: UnknownName."""
    return named("profile", name, PROFILES)
