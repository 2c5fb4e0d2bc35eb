"""What the devices can do, and what lies between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from ..core.checks import above, at_least
from ..core.errors import ConfigError, DataError, UnknownName
from ..core.files import read_json
from .measuring import Group, measure

MATRICES, VECTORS = ("bandwidth", "latency"), ("flops", "load", "memory")
KEYS = ("nodes", "each", "intra", "inter", *VECTORS)
GIGABYTE = 1e9


@dataclass(frozen=True)
class Topology:
    """D devices.  bandwidth (D, D) in B/s and latency (D, D) in s, from row to column, of no
    meaning on the diagonal; flops (D,) in FLOP/s; load (D,), host to device, in B/s; memory (D,) in
    bytes. All float64.

    Raises: ConfigError, with the pair, for a bandwidth that is not positive, a negative latency,
    or sizes that differ.
    """

    bandwidth: Tensor
    latency: Tensor
    flops: Tensor
    load: Tensor
    memory: Tensor

    def __post_init__(self) -> None:
        count = len(self.bandwidth)
        for names, shape in ((MATRICES, (count, count)), (VECTORS, (count,))):
            for name in names:
                value = getattr(self, name).double()
                object.__setattr__(self, name, value)
                if tuple(value.shape) != shape or not count:
                    got, want = (
                        f"{name} of shape {tuple(value.shape)}",
                        f"{shape}, one device or more",
                    )
                    raise ConfigError("topology", got=got, want=want, fix="Give all one size.")
                bad = ~(value > 0) if name != "latency" else ~(value >= 0) | value.isinf()
                if name in MATRICES:
                    bad = bad & ~torch.eye(count, dtype=torch.bool)
                if bool(bad.any()):
                    where = bad.nonzero()[0].tolist()
                    got = f"{name} {float(value[tuple(where)]):g} of {' to '.join(map(str, where))}"
                    want = "a time of 0 or more" if name == "latency" else "a number above 0"
                    fix = "A pair without a link has the bandwidth of its way through others."
                    raise ConfigError("topology", got=got, want=want, fix=fix)

    @property
    def devices(self) -> int:
        return len(self.flops)

    def nodes(self) -> Tensor:
        """The node of each device: those that are joined by links faster than the slowest.

        (D,) int64; one node where all links are alike.
        """
        count = self.devices
        apart = ~torch.eye(count, dtype=torch.bool)
        slowest = self.bandwidth[apart].min() if count > 1 else torch.tensor(0.0)
        if count == 1 or bool((self.bandwidth[apart] == slowest).all()):
            return torch.zeros(count, dtype=torch.int64)
        joined = (self.bandwidth > slowest) & apart
        found = torch.arange(count)
        for _ in range(count):
            reach = torch.where(joined, found[None, :], count).min(1).values
            found = torch.minimum(found, reach)
        return found.unique(return_inverse=True)[1]

    @classmethod
    def two_level(
        cls,
        nodes: int,
        each: int,
        intra: tuple[float, float] = (300e9, 2e-6),
        inter: tuple[float, float] = (25e9, 10e-6),
        *,
        flops: float = 300e12,
        load: float = 25e9,
        memory: float = 80e9,
    ) -> Topology:
        """`nodes` nodes of `each` devices.  intra, inter: (bandwidth, latency) in B/s and s.

        The defaults are round numbers of one machine with fast links; measure your own.
        """
        at_least("nodes", nodes, 1)
        at_least("each", each, 1)
        node = torch.arange(nodes).repeat_interleave(each)
        same = node[:, None] == node[None, :]
        bandwidth, latency = (
            torch.where(same, *torch.tensor(pair, dtype=torch.float64))
            for pair in zip(intra, inter, strict=True)
        )
        count = nodes * each
        own = torch.eye(count, dtype=torch.bool)
        return cls(
            bandwidth.masked_fill(own, torch.inf),
            latency.masked_fill(own, 0.0),
            *(torch.full((count,), v, dtype=torch.float64) for v in (flops, load, memory)),
        )

    @classmethod
    def uniform(cls, devices: int) -> Topology:
        """One node of alike devices."""
        return cls.two_level(1, devices)

    @classmethod
    def measured(cls, group: Group = None) -> Topology:
        """That of the processes of torch.distributed, see `measuring.measure`.

        Takes some milliseconds a pair; what is measured is alike in all processes.
        Raises: ConfigError without processes.
        """
        return cls(**measure(group))

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Topology:
        """{"nodes": 2, "each": 4, "intra": {"gbps": 300, "us": 2}, "inter": ..., "flops": ...}.

        gbps: gigabytes (1e9 bytes) a second.
        """
        for name in found:
            if name not in KEYS:
                raise UnknownName("entry of a topology", str(name), KEYS)
        given: dict[str, Any] = {}
        try:
            for name in ("intra", "inter"):
                if name in found:
                    level = found[name]
                    pair = float(level["gbps"]) * GIGABYTE, float(level.get("us", 0)) * 1e-6
                    above(f"gbps of {name}", pair[0], 0, "Try 25.")
                    given[name] = pair
            given |= {name: float(found[name]) for name in VECTORS if name in found}
            return cls.two_level(int(found["nodes"]), int(found["each"]), **given)
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
            if isinstance(error, ConfigError):
                raise
            want = 'as {"nodes": 2, "each": 4, "intra": {"gbps": 300, "us": 2}, "inter": {...}}'
            fix = "Write nodes and each, and gbps of each level."
            raise ConfigError("topology", got=error, want=want, fix=fix) from error

    @classmethod
    def load_file(cls, path: str | Path) -> Topology:
        """Read a JSON file as `from_dict` has it.  Raises: DataError for what is none."""
        try:
            found = read_json(path)
        except (OSError, ValueError) as error:
            fix = 'For example: {"nodes": 2, "each": 4, "intra": {"gbps": 300}}'
            raise DataError(f"topology {path}", got=error, want="a JSON file", fix=fix) from error
        if not isinstance(found, dict):
            got = type(found).__name__
            raise DataError(f"topology {path}", got=got, want="a JSON object", fix="Write one.")
        return cls.from_dict(cast("dict[str, Any]", found))
