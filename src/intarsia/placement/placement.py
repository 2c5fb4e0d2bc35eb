"""Where each expert of each layer lives, with as many copies as one likes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.checks import at_least
from ..core.errors import ConfigError, DataError
from ..core.files import read_json, write_json
from ..core.sealing import check_settings, sealed

FORMAT = "intarsia placement"


@dataclass(frozen=True)
class Placement:
    """Placement of the experts of all layers on devices, with any number of copies.

    owner: (L, E) int64, the device that owns each expert;  holds: (L, D, E) bool, the devices that
    have a copy, among them always the owner. Devices are to it what parts are to a `Partition`.

    Raises: ConfigError for owners that are no devices, or do not hold the experts they own.
    """

    owner: Tensor
    holds: Tensor

    def __post_init__(self) -> None:
        """Convert the tensors' types, and check that owners hold their experts."""
        owner, holds = self.owner.long(), self.holds.bool()
        object.__setattr__(self, "owner", owner)
        object.__setattr__(self, "holds", holds)
        fits = holds.dim() == 3 and owner.shape == (holds.shape[0], holds.shape[2])
        if not fits or not owner.numel():
            got = f"owner {tuple(owner.shape)}, holds {tuple(holds.shape)}"
            raise ConfigError("placement", got=got, want="(L, E) and (L, D, E)", fix="Give both.")
        if bool(((owner < 0) | (owner >= holds.shape[1])).any()):
            got = f"owners {int(owner.min())} ... {int(owner.max())}"
            want = f"devices 0 ... {holds.shape[1] - 1}"
            raise ConfigError("placement", got=got, want=want, fix="Number devices from 0.")
        if not bool(holds.gather(1, owner[:, None]).all()):
            got, want = "an owner without its expert", "holds[l, owner[l, e], e]"
            raise ConfigError("placement", got=got, want=want, fix="Build it with Placement.of.")

    @classmethod
    def of(cls, owner: Tensor, devices: int) -> Placement:
        """Build a placement with one copy of each expert.

        owner: (L, E), the device of each expert; devices: D.
        """
        owner = owner.long()
        return cls(owner, owner[:, None, :] == torch.arange(devices)[None, :, None])

    @classmethod
    def contiguous(cls, layers: int, experts: int, devices: int) -> Placement:
        """Place experts in order, E / D on each device, as inference engines do.

        layers, experts, devices: L, E, D. Raises: ConfigError unless D divides E.
        """
        check_divides(experts, devices)
        # experts 0 ... E / D - 1 on device 0, and so on
        owner = torch.arange(experts) // (experts // devices)
        return cls.of(owner.repeat(layers, 1), devices)

    @property
    def layers(self) -> int:
        return self.owner.shape[0]

    @property
    def experts(self) -> int:
        return self.owner.shape[1]

    @property
    def devices(self) -> int:
        return self.holds.shape[1]

    def sizes(self) -> Tensor:
        """Return the number of experts on each device, copies included, (L, D) int64."""
        return self.holds.sum(2)

    def moved(self, target: Placement, expert_bytes: int) -> Tensor:
        """Return the bytes that devices send each other to reach another placement, (D, D) int64.

        target: the other placement; expert_bytes: size of an expert. A copy is sent by its present
          owner; an expert that is there already does not move.
        Raises: ConfigError for a placement of other layers, experts or devices.
        """
        if self.holds.shape != target.holds.shape:
            got, want = tuple(target.holds.shape), f"{tuple(self.holds.shape)}, as this one"
            fix = "Place one trace on as many devices."
            raise ConfigError("layers, devices and experts", got=got, want=want, fix=fix)
        # copies that are not there yet
        new = target.holds & ~self.holds
        layer, device, expert = new.nonzero(as_tuple=True)
        sent = torch.zeros(self.devices * self.devices, dtype=torch.int64)
        link = self.owner[layer, expert] * self.devices + device
        return sent.index_add(0, link, torch.full_like(link, expert_bytes)).view(
            self.devices, self.devices
        )

    def relabelling(self) -> Tensor:
        """Return new numbers of the experts, for engines that can only place them in order.

        Such an engine gives device d the experts d E / D ... (d + 1) E / D - 1; after the
        renumbering these are the experts that this placement gives to d. Returns (L, E) int64:
        entry [l, i] is the present number of the expert that becomes number i of layer l.
        Raises: ConfigError for copies, or devices that have different numbers of experts.
        """
        sizes = self.sizes()
        if bool((sizes != self.experts // self.devices).any()) or self.experts % self.devices:
            got = f"{int(sizes.min())} ... {int(sizes.max())} experts on a device"
            want = f"{self.experts / self.devices:g} on each of {self.devices}, and no copies"
            fix = "Place with equal counts and redundant=0; an engine must know copies."
            raise ConfigError("relabelling of a placement", got=got, want=want, fix=fix)
        return self.owner.argsort(dim=1, stable=True)

    def places(self) -> list[list[int]]:
        """Return for each layer the expert in each place, device after device, copies included.

        A place is room for one expert on a device. SGLang's `--init-expert-location` reads the list
        as `physical_to_logical_map`.
        Raises: ConfigError where devices have different numbers of places.
        """
        sizes = self.sizes()
        if bool((sizes != sizes[0, 0]).any()):
            got = f"{int(sizes.min())} ... {int(sizes.max())} experts on a device"
            fix = "Fewer copies of one expert: no device can hold two."
            raise ConfigError("places", got=got, want="as many on each", fix=fix)
        return [layer.nonzero()[:, 1].tolist() for layer in self.holds]

    def to_dict(self) -> dict[str, Any]:
        """Return a dict for JSON: devices, owner, and copies as [layer, device, expert]."""
        # owners hold their experts anyway: only further copies are listed
        copies = self.holds.clone()
        copies.scatter_(1, self.owner[:, None], False)
        return {
            "devices": self.devices,
            "owner": self.owner.tolist(),
            "copies": copies.nonzero().tolist(),  # [layer, device, expert]
        }

    def save(self, path: str | Path, **extra: Any) -> Path:
        """Write a JSON file.  extra: further entries of it, that `load_file` ignores."""
        return write_json(path, sealed({"format": FORMAT} | self.to_dict() | extra), indent=None)

    @classmethod
    def load_file(cls, path: str | Path) -> Placement:
        """Read the placement that `save` wrote to a JSON file.

        Raises: DataError for anything else; CheckpointError for a file that was changed.
        """
        try:
            record = read_json(path)
            if record["format"] != FORMAT:
                raise ValueError(f"format {record['format']!r}")
            record, _ = check_settings(Path(path), record)
            placed = cls.of(torch.tensor(record["owner"]), int(record["devices"]))
            holds = placed.holds.clone()
            for layer, device, expert in record["copies"]:
                if min(layer, device, expert) < 0:
                    raise ValueError(f"a copy at {[layer, device, expert]}")
                holds[layer, device, expert] = True
            return cls(placed.owner, holds)
        except (OSError, ValueError, KeyError, TypeError, IndexError, RuntimeError) as error:
            want, fix = "a file that `intarsia place` wrote", "Write it again: intarsia place"
            raise DataError(f"placement {path}", got=error, want=want, fix=fix) from error


def check_divides(experts: int, devices: int) -> None:
    """Raise ConfigError, with the nearest numbers that work, unless devices divide experts."""
    at_least("devices", devices, 1)
    if experts % devices:
        works = [d for d in range(1, experts + 1) if experts % d == 0]
        near = sorted(sorted(works, key=lambda d: abs(d - devices))[:2])
        got, want = f"{devices} for {experts} experts", "a number that divides the experts"
        raise ConfigError("devices", got=got, want=want, fix=f"Try {_joined_by_or(near)}.")


def _joined_by_or(numbers: Sequence[int]) -> str:
    return " or ".join(map(str, numbers))
