"""Who holds what, what moves, and the order in which an engine has a placement."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from intarsia.core.errors import ConfigError, DataError
from intarsia.core.files import write_json
from intarsia.core.sealing import sealed
from intarsia.placement import Placement
from intarsia.placement.placement import FORMAT

from ..refusals import refused


def drawn(seed: int = 0, layers: int = 3, experts: int = 8, devices: int = 4) -> Placement:
    draws = torch.Generator().manual_seed(seed)
    order = [torch.randperm(experts, generator=draws) for _ in range(layers)]
    return Placement.of(torch.stack(order) % devices, devices)


def test_a_placement_comes_back_from_its_file(tmp_path: Path) -> None:
    placed = drawn()
    placed.holds[1, 2, 3] = True
    again = Placement.load_file(placed.save(tmp_path / "p.json", by="toy"))
    assert torch.equal(again.owner, placed.owner) and torch.equal(again.holds, placed.holds)


def test_what_moves_is_what_is_not_there() -> None:
    old, new = drawn(0), drawn(1)
    want = torch.zeros(4, 4, dtype=torch.int64)
    for layer in range(3):
        for expert in range(8):
            a, b = int(old.owner[layer, expert]), int(new.owner[layer, expert])
            want[a, b] += 10 * (a != b)
    assert torch.equal(old.moved(new, 10), want)
    assert not old.moved(old, 10).any()
    with refused(ConfigError, what="layers, devices and experts", got=(3, 2, 8)):
        old.moved(drawn(devices=2), 10)


def test_a_relabelling_lays_the_experts_out() -> None:
    placed = drawn()
    order = placed.relabelling()
    new = placed.owner.gather(1, order)  # the device of each new expert
    assert torch.equal(new, Placement.contiguous(3, 8, 4).owner)
    assert placed.places() == [row.tolist() for row in order]
    copied = Placement(placed.owner, placed.holds.clone().index_fill_(1, torch.tensor([0]), True))
    with refused(ConfigError, what="relabelling of a placement"):
        copied.relabelling()
    with refused(ConfigError, what="places", got="2 ... 8 experts on a device"):
        copied.places()


def test_devices_that_do_not_divide_are_refused() -> None:
    with refused(ConfigError, what="devices", got="5 for 8 experts"):
        Placement.contiguous(1, 8, 5)


def test_what_is_no_placement_is_refused(tmp_path: Path) -> None:
    placed = drawn()
    with refused(ConfigError, what="placement", got="an owner without its expert"):
        Placement(placed.owner, torch.zeros_like(placed.holds))
    with refused(ConfigError, what="placement", got="owners 4 ... 7"):
        Placement(placed.owner + 4, placed.holds)
    with refused(ConfigError, what="placement", got="owner (8,), holds (3, 4, 8)"):
        Placement(placed.owner[0], placed.holds)
    file = tmp_path / "p.json"
    for text in (
        "{",
        "[]",
        '{"owner": [[0]]}',
        '{"owner": [[3]], "devices": 2, "copies": []}',
        '{"owner": [["a"]], "devices": 2, "copies": []}',
        '{"owner": [[0]], "devices": 2, "copies": [[0, 5, 0]]}',
        '{"owner": [[0]], "devices": 2, "copies": [[0, -1, 0]]}',
    ):
        file.write_text(text)
        with pytest.raises((DataError, ConfigError)):
            Placement.load_file(file)
        if text[:2] == '{"':  # as if `save` had written it
            write_json(file, sealed({"format": FORMAT} | json.loads(text)))
            with pytest.raises((DataError, ConfigError)):
                Placement.load_file(file)
