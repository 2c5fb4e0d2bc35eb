"""What the claims of Tutel, DeepSpeed-MoE and Hecate measure."""

from __future__ import annotations

import pytest
import torch

from intarsia.core import Routing
from intarsia.parallel import Fssdp
from intarsia.placement import Trace
from intarsia_lab.claims import hecate, tutel


def test_tables_are_the_one_hot_products() -> None:
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(12, 5, generator=draws)
    experts = torch.rand(12, 4, generator=draws).topk(2).indices.flatten()
    token = torch.arange(12).repeat_interleave(2)
    routing = Routing(token, experts, torch.rand(24, generator=draws), 12, 4)
    places = int(experts.bincount().max())
    products = tutel.one_hot(x, routing, places), tutel.tables(x, routing, places)
    torch.testing.assert_close(*products)


def test_even_loads_have_no_excess_and_copies_take_some_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    row = torch.arange(8 * hecate.TOKENS)
    expert = torch.stack([row % 16, (row + 8) % 16], 1)[:, None]
    even = Trace(expert, 16, row // 16, row % 16)
    hot = Trace(expert % 8 * torch.tensor([1, 0]) + torch.tensor([0, 9]), 16, row // 16, row % 16)

    def made(kind: str) -> Trace:
        return even if kind == "even" else hot

    monkeypatch.setattr(
        hecate, "traces", lambda seed, report: {k: made(k) for k in ("even", "hot")}
    )
    hecate.excess.cache_clear()
    assert hecate.excess("even", 0, print)[hecate.EP] < 1e-9
    ratios = hecate.excess("hot", 0, print)
    assert ratios[hecate.TOLD] <= ratios[hecate.HECATE] + 1e-9 < ratios[hecate.EP]
    hecate.excess.cache_clear()


def test_a_repeated_batch_has_as_many_rows_on_every_device() -> None:
    """Loads are multiples at the paper's sizes, and choosing again pays there."""
    draws = torch.Generator().manual_seed(0)
    row = torch.arange(4 * 8)
    expert = torch.rand(32, 2, 16, generator=draws).topk(2).indices
    batch = Trace(expert, 16, 40 + row // 4, row % 4)
    repeated = hecate.repeated(batch, 3)
    assert len(repeated) == 96 and torch.equal(repeated.load(), 3 * batch.load())
    for layer in range(2):
        once, thrice = (hecate._loads(trace, layer) for trace in (batch, repeated))
        assert torch.equal(thrice, 3 * once)
    load = torch.ones(8, 16)
    load[:, 0] = 1000
    strategy = Fssdp(2, 8, calibrate=True)
    owner = torch.arange(16) // 2
    for size, times, changes in ((hecate.SIZE, 1, False), (hecate.PAPER_SIZE, hecate.TIMES, True)):
        places = strategy.holds([], times * load, owner, size, hecate.LINKS)
        assert (int(places.sum(0)[0]) > 1) is changes
