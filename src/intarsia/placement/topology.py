"""Devices and the links between them: speeds, bandwidths, latencies, memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.checks import at_least, between
from ..core.errors import ConfigError
from .measuring import Group, measure
from .topology_file import OF_DEVICES, arguments_of, read_topology

MATRICES, VECTORS = ("bandwidth", "latency"), OF_DEVICES
MOST = 4096  # devices: every pair of them has a link


@dataclass(frozen=True)
class Topology:
    """Topology of D devices, all tensors float64.

    bandwidth: (D, D) in B/s and latency: (D, D) in s, from row to column, the diagonal unused;
    flops: (D,) in FLOP/s;  load: (D,), host to device, in B/s;  memory: (D,) in bytes.

    Raises: ConfigError, with the pair, for a bandwidth that is not positive, a negative latency,
    or sizes that differ.
    """

    bandwidth: Tensor
    latency: Tensor
    flops: Tensor
    load: Tensor
    memory: Tensor

    def __post_init__(self) -> None:
        """Convert the tensors to float64 and check their sizes and values.  Raises: ConfigError."""
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
                # negated comparisons catch NaN as well
                bad = ~(value > 0) if name != "latency" else ~(value >= 0) | value.isinf()
                if name in MATRICES:
                    bad = bad & ~torch.eye(count, dtype=torch.bool)
                if bool(bad.any()):
                    position = bad.nonzero()[0].tolist()
                    pair = " to ".join(map(str, position))
                    got = f"{name} {float(value[tuple(position)]):g} of {pair}"
                    want = "a time of 0 or more" if name == "latency" else "a number above 0"
                    fix = "A pair without a link has the bandwidth of its way through others."
                    raise ConfigError("topology", got=got, want=want, fix=fix)

    @property
    def devices(self) -> int:
        return len(self.flops)

    def nodes(self) -> Tensor:
        """Return the node of each device, (D,) int64: groups joined by fast links.

        A link is fast if it is faster than the slowest one. All are one node where all links are
        alike.
        """
        count = self.devices
        apart = ~torch.eye(count, dtype=torch.bool)
        slowest = self.bandwidth[apart].min() if count > 1 else torch.tensor(0.0)
        if count == 1 or bool((self.bandwidth[apart] == slowest).all()):
            return torch.zeros(count, dtype=torch.int64)
        joined = (self.bandwidth > slowest) & apart
        label = torch.arange(count)
        for _ in range(count):
            # spread the smallest device number over fast links: a label for each component
            reach = torch.where(joined, label[None, :], count).min(1).values
            label = torch.minimum(label, reach)
        return label.unique(return_inverse=True)[1]

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
        """Build `nodes` nodes of `each` devices, with fast links inside a node.

        intra, inter: (bandwidth in B/s, latency in s) of links inside a node and between nodes;
          flops, load, memory: speed in FLOP/s, host-to-device bandwidth in B/s and bytes of every
          device. The defaults are round numbers; measure your own.
        """
        at_least("nodes", nodes, 1)
        at_least("each", each, 1)
        between("devices", nodes * each, 1, MOST, "Describe one of several equal parts.")
        node = torch.arange(nodes).repeat_interleave(each)
        same_node = node[:, None] == node[None, :]
        bandwidth, latency = (
            torch.where(same_node, *torch.tensor(pair, dtype=torch.float64))
            for pair in zip(intra, inter, strict=True)
        )
        count = nodes * each
        diagonal = torch.eye(count, dtype=torch.bool)
        return cls(
            bandwidth.masked_fill(diagonal, torch.inf),
            latency.masked_fill(diagonal, 0.0),
            *(torch.full((count,), v, dtype=torch.float64) for v in (flops, load, memory)),
        )

    @classmethod
    def uniform(cls, devices: int) -> Topology:
        """Build one node of identical devices, with the defaults of `two_level`."""
        return cls.two_level(1, devices)

    @classmethod
    def measured(cls, group: Group = None) -> Topology:
        """Measure the devices of the processes of torch.distributed, see `measuring.measure`.

        group: None = all processes. It takes some milliseconds for each pair; the result is the
          same in all processes.
        Raises: ConfigError without processes.
        """
        return cls(**measure(group))

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Topology:
        """Build nodes of equal devices from {"nodes": 2, "each": 4, "intra": {"gbps": 300}}.

        record: "nodes", "each" devices of a node, "intra" and "inter", links inside and between
          nodes, with gbps: gigabytes (1e9 bytes) a second, and us: microseconds of latency, 0 by
          default; also "flops", "load" and "memory" of a device.
        Raises: UnknownName for another entry; ConfigError for missing or wrong values.
        """
        return cls.two_level(**arguments_of(record))

    @classmethod
    def load_file(cls, path: str | Path) -> Topology:
        """Read a topology from a JSON file with the entries of `from_dict`.

        Raises: DataError if it is none.
        """
        return cls.two_level(**read_topology(path))
