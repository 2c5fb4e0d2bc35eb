"""Which weights? One integer label per weight; disjoint by construction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from .checks import at_least, between
from .errors import ConfigError, ShapeError
from .pattern import Pattern, check_pattern

NOBODY = -1


def label_dtype(parts: int) -> torch.dtype:
    """Return the smallest signed integer type that can hold the labels -1 ... parts - 1."""
    for dtype in (torch.int8, torch.int16):
        # labels are as many as weights: a byte each is enough for most
        if parts - 1 <= torch.iinfo(dtype).max:
            return dtype
    return torch.int32


@dataclass(frozen=True)
class Partition:
    """K disjoint sets of weights.

    `label[name]` has the shape of the parameter `name`; entry p in 0 ... parts - 1 is the part that
    owns the weight, -1 means nobody's. Parts cannot overlap, since a weight has one label.
    Overlapping sets are several one-part partitions, combined by `union` and `intersect`.
    pattern: how the weights of each part lie in each parameter, for kernels that rely on it; None =
    anyhow.

    Raises: ConfigError if a label is outside -1 ... parts - 1, parts < 1, or the pattern is broken.
    """

    label: Mapping[str, Tensor]
    parts: int
    pattern: Pattern | None = None

    @classmethod
    def from_masks(cls, *masks: Mapping[str, Tensor], pattern: Pattern | None = None) -> Partition:
        """Build a partition in which part i has the weights that mask i selects.

        masks: each maps a parameter's name to a bool tensor of its shape, True = selected. pattern:
        how weights of a part lie, which is checked; None = anyhow.
        Raises: ConfigError for none, for a mask that is not bool, and for masks that overlap;
        ShapeError for masks of other parameters or shapes.
        """
        if not masks:
            raise ConfigError("masks", got="none", want="at least one", fix="Pass a mask a part.")
        _same_shapes(masks)
        label: dict[str, Tensor] = {}
        for name, first in masks[0].items():
            dtype, device = label_dtype(len(masks)), first.device
            # mask by mask, so that the first overlap is found with its two parts
            owner = torch.full(first.shape, NOBODY, dtype=dtype, device=device)
            for part, mask in enumerate(m[name] for m in masks):
                _check_mask(name, part, mask, owner)
                owner.masked_fill_(mask, part)
            label[name] = owner
        return cls(label, len(masks), pattern)

    def __post_init__(self) -> None:
        """Check that labels are integers from -1 to parts - 1, and that parts have the pattern."""
        # types and ranges first; the pattern is then checked on valid labels
        at_least("parts", self.parts, 1)
        for name, label in self.label.items():
            if label.is_floating_point() or label.is_complex() or label.dtype == torch.bool:
                got, fix = label.dtype, "A mask m becomes a one-part label by m.to(torch.int8) - 1."
                raise ConfigError(f"labels of {name!r}", got=got, want="an integer type", fix=fix)
            if label.numel() and not (int(label.min()) >= -1 and int(label.max()) < self.parts):
                subject, got = f"labels of {name!r}", f"{int(label.min())} ... {int(label.max())}"
                fix = "Number the parts from 0; use -1 for weights that belong to nobody."
                raise ConfigError(subject, got=got, want=f"-1 ... {self.parts - 1}", fix=fix)
        self.check()

    def check(self) -> None:
        """Check each part's pattern.  Raises: ConfigError with the first place that breaks it."""
        for name in self.label if self.pattern is not None else ():
            for part in range(self.parts):
                check_pattern(cast(Pattern, self.pattern), name, part, self.mask(name, part))

    def __getitem__(self, name: str) -> Tensor:
        return self.label[name]

    def mask(self, name: str, part: int) -> Tensor:
        """Return the bool mask of the parameter's shape; True = selected by `part`."""
        between("part", part, 0, self.parts - 1, fix="Parts count from 0.")
        return self.label[name] == part

    def sizes(self) -> Tensor:
        """Count the weights that each part owns, over all parameters.  Returns (parts,) int64."""
        counts = torch.zeros(self.parts, dtype=torch.int64)
        for label in self.label.values():
            owned = label.flatten().long().cpu()
            # nobody's weights are -1, which bincount refuses
            counts += torch.bincount(owned[owned >= 0], minlength=self.parts)
        return counts

    def density(self) -> float:
        """Return the share of weights that belong to some part."""
        total = sum(label.numel() for label in self.label.values())
        owned = sum(int((label >= 0).sum()) for label in self.label.values())
        return owned / total if total else 0.0


def _check_mask(name: str, part: int, mask: Tensor, owner: Tensor) -> None:
    """Check that the mask of a new part is boolean and selects no weight of an earlier part."""
    if mask.dtype != torch.bool:
        raise ConfigError(f"mask of {name!r}", got=mask.dtype, want="bool", fix="Use mask.bool().")
    if bool((overlap := mask & (owner >= 0)).any()):
        # the first weight of two parts, for the error
        place = tuple(int(i) for i in overlap.nonzero()[0])
        got = f"parts {int(owner[place])} and {part} at {place}"
        fix = "Give each weight to one part, or build one partition for each mask."
        raise ConfigError(f"masks of {name!r}", got=got, want="masks that do not overlap", fix=fix)


def _same_shapes(mappings: Sequence[Mapping[str, Tensor]]) -> None:
    """Check that all mappings have equal parameters of equal shapes.  Raises: ShapeError."""
    first = mappings[0]
    for mapping in mappings:
        for name in mapping.keys() | first.keys():
            shapes = [tuple(m[name].shape) if name in m else None for m in (mapping, first)]
            if None in shapes or shapes[0] != shapes[1]:
                subject, fix = f"sets of {name!r}", "Combine sets of the same parameters."
                got = f"shapes {shapes[0]} and {shapes[1]}"
                raise ShapeError(subject, got=got, want="the same shape in all", fix=fix)


def _one_part(partitions: tuple[Partition, ...]) -> None:
    """Check that partitions can be combined as sets: one part each, of the same parameters."""
    if not partitions:
        raise ConfigError("set algebra", got="none", want="partitions", fix="Pass at least one.")
    for p in partitions:
        if p.parts != 1:
            subject, fix = "set algebra", "Build each set as a Partition with parts=1."
            raise ConfigError(subject, got=f"{p.parts} parts", want="one-part partitions", fix=fix)
    _same_shapes([p.label for p in partitions])


def union(*partitions: Partition) -> Partition:
    """Select the weights that are in any of several one-part partitions."""
    _one_part(partitions)
    names = partitions[0].label
    # labels are 0 or -1: the maximum is "in any", the minimum "in all"
    return Partition({n: torch.stack([p[n] for p in partitions]).amax(0) for n in names}, 1)


def intersect(*partitions: Partition) -> Partition:
    """Select the weights that are in all of several one-part partitions."""
    _one_part(partitions)
    names = partitions[0].label
    return Partition({n: torch.stack([p[n] for p in partitions]).amin(0) for n in names}, 1)
