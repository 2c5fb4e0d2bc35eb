"""The page of a token's time: which rows are on the front, and what dominates the others."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from intarsia.formats import Bitmask, BlockInt
from intarsia.formats.packed_linear import PackedLinear


@pytest.fixture
def decode(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3] / "benchmarks"))
    return pytest.importorskip("decode")


def test_a_row_is_dominated_by_the_fastest_that_is_no_slower_and_no_worse(
    decode: ModuleType,
) -> None:
    spent = {"fast": 1.0, "good": 2.0, "slow": 2.0, "worst": 3.0, "tied": 2.001, "wild": 0.5}
    loss = {"fast": 5.0, "good": 4.0, "slow": 4.5, "worst": 9.0, "tied": 4.001, "wild": 50.0}
    better = decode.dominated(spent, loss)
    # as printed, "tied" is where "good" is: neither is better
    front = dict.fromkeys(("fast", "good", "tied", "wild"), "")
    assert better == front | {"slow": "good", "worst": "fast"}
    arms = [SimpleNamespace(name=name, form="blockint", bits=4) for name in spent]
    line = decode.front(arms, loss, better)
    assert "perplexity: fast; good; tied. With more than 2 times" in line
    assert line.endswith("of our dense 4 bits: wild.")


def test_the_density_of_packed_layers_is_that_of_what_they_store(decode: ModuleType) -> None:
    weight = torch.ones(8, 16)
    weight[:, ::2] = 1e-9  # kept, and rounded to 0
    weight[:4] = 0
    for form, density in ((Bitmask("int8"), 0.5), (BlockInt(4), 1.0)):
        layer = PackedLinear(form, form.encode(weight), (8, 16))
        assert decode.density_of(torch.nn.Sequential(layer)) == density
