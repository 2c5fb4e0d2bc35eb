"""Which weights? One integer label per weight; disjoint by construction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import ConfigError, ShapeError

NOBODY = -1


def label_dtype(parts: int) -> torch.dtype:
    """The smallest signed integer type that holds the labels -1 ... parts - 1."""
    for dtype in (torch.int8, torch.int16):
        if parts - 1 <= torch.iinfo(dtype).max:
            return dtype
    return torch.int32


@dataclass(frozen=True)
class Partition:
    """K disjoint sets of weights.

    `label[name]` has the shape of the parameter `name`; entry p in 0 ... parts - 1 is the part that
    owns the weight, -1 means nobody's. Parts cannot overlap, since a weight has one label.
    Overlapping sets are several one-part partitions, combined by `union` and `intersect`.

    Raises: ConfigError if a label is outside -1 ... parts - 1 or parts < 1.
    """

    label: Mapping[str, Tensor]
    parts: int

    def __post_init__(self) -> None:
        if self.parts < 1:
            raise ConfigError("parts", got=self.parts, want="at least 1", fix="Ask for 1 or more.")
        for name, label in self.label.items():
            if label.is_floating_point() or label.is_complex() or label.dtype == torch.bool:
                raise ConfigError(
                    f"labels of {name!r}",
                    got=label.dtype,
                    want="an integer type",
                    fix="A mask m becomes a one-part label by m.to(torch.int8) - 1.",
                )
            if label.numel() and not (int(label.min()) >= -1 and int(label.max()) < self.parts):
                raise ConfigError(
                    f"labels of {name!r}",
                    got=f"{int(label.min())} ... {int(label.max())}",
                    want=f"-1 ... {self.parts - 1}",
                    fix="Number the parts from 0; use -1 for weights that belong to nobody.",
                )

    def __getitem__(self, name: str) -> Tensor:
        return self.label[name]

    def mask(self, name: str, part: int) -> Tensor:
        """Bool mask of the parameter's shape; True = selected by `part`."""
        if not 0 <= part < self.parts:
            raise ConfigError(
                "part", got=part, want=f"0 ... {self.parts - 1}", fix="Parts count from 0."
            )
        return self.label[name] == part

    def sizes(self) -> Tensor:
        """How many weights each part owns, over all parameters.  Returns (parts,) int64."""
        counts = torch.zeros(self.parts, dtype=torch.int64)
        for label in self.label.values():
            owned = label.flatten().long().cpu()
            counts += torch.bincount(owned[owned >= 0], minlength=self.parts)
        return counts

    def density(self) -> float:
        """The share of weights that belong to some part."""
        total = sum(label.numel() for label in self.label.values())
        return float(self.sizes().sum()) / total if total else 0.0


def _one_part(partitions: tuple[Partition, ...]) -> None:
    if not partitions:
        raise ConfigError("set algebra", got="none", want="partitions", fix="Pass at least one.")
    for p in partitions:
        if p.parts != 1:
            raise ConfigError(
                "set algebra", got=f"{p.parts} parts", want="one-part partitions",
                fix="Build each set as a Partition with parts=1.",
            )  # fmt: skip
        first = partitions[0].label
        for name in p.label.keys() | first.keys():
            shapes = [tuple(m[name].shape) if name in m else None for m in (p.label, first)]
            if None in shapes or shapes[0] != shapes[1]:
                raise ShapeError(
                    f"set algebra on {name!r}", got=f"shapes {shapes[0]} and {shapes[1]}",
                    want="the same shape in all", fix="Combine partitions of the same parameters.",
                )  # fmt: skip


def union(*partitions: Partition) -> Partition:
    """The weights selected by any of several one-part partitions."""
    _one_part(partitions)
    names = partitions[0].label
    return Partition({n: torch.stack([p[n] for p in partitions]).amax(0) for n in names}, 1)


def intersect(*partitions: Partition) -> Partition:
    """The weights selected by all of several one-part partitions."""
    _one_part(partitions)
    names = partitions[0].label
    return Partition({n: torch.stack([p[n] for p in partitions]).amin(0) for n in names}, 1)
