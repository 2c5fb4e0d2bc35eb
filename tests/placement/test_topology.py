"""Devices and their links: read from JSON, grouped to nodes, refused with the pair."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from intarsia.core.errors import ConfigError, DataError, UnknownName
from intarsia.placement import Topology

from ..refusals import refused

TWO = {"nodes": 2, "each": 3, "intra": {"gbps": 300, "us": 2}, "inter": {"gbps": 25, "us": 10}}


def test_two_levels_from_json(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text(json.dumps(TWO | {"flops": 1e12}))
    topology = Topology.load_file(file)
    assert topology.devices == 6 and float(topology.flops[0]) == 1e12
    assert float(topology.bandwidth[0, 2]) == 300e9 and float(topology.bandwidth[2, 3]) == 25e9
    assert float(topology.latency[0, 5]) == pytest.approx(10e-6)
    assert topology.nodes().tolist() == [0, 0, 0, 1, 1, 1]


def test_alike_links_are_one_node() -> None:
    assert Topology.uniform(5).nodes().tolist() == [0] * 5
    assert Topology.uniform(1).nodes().tolist() == [0]


def test_more_devices_than_fit_into_memory_are_refused_at_once() -> None:
    with refused(ConfigError, what="devices"):
        Topology.uniform(200_000)
    with refused(ConfigError, what="devices"):
        Topology.from_dict({"nodes": 2000, "each": 100})


def test_a_bad_pair_is_named() -> None:
    topology = Topology.uniform(3)
    for name, value in (("bandwidth", 0.0), ("bandwidth", -1.0), ("latency", -1.0)):
        matrix = getattr(topology, name).clone()
        matrix[1, 2] = value
        with refused(ConfigError, what="topology"):
            replace(topology, **{name: matrix})
    with refused(ConfigError, what="topology", got="flops of shape (2,)"):
        replace(topology, flops=torch.ones(2))
    with refused(ConfigError, what="topology", got="bandwidth of shape (3, 2)"):
        replace(topology, bandwidth=torch.ones(3, 2))


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("{", DataError),
        ("[1]", DataError),
        ('{"nodes": 2}', ConfigError),
        ('{"nodes": 2, "each": 1, "intra": 3}', ConfigError),
        ('{"nodes": 0, "each": 1}', ConfigError),
        ('{"nodes": "two", "each": 1}', ConfigError),
        ('{"nodes": Infinity, "each": 1}', ConfigError),
        ('{"nodes": 2, "each": 1, "flops": "fast"}', ConfigError),
        ('{"nodes": 2, "each": 1, "intra": {"gbps": "fast"}}', ConfigError),
        ('{"nodes": 2, "each": 1, "intra": {"gbps": 0}}', ConfigError),
        ('{"nodes": 2, "each": 1, "speed": 3}', UnknownName),
    ],
)
def test_another_file_is_refused(text: str, error: type[Exception], tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text(text)
    with pytest.raises(error):
        Topology.load_file(file)
