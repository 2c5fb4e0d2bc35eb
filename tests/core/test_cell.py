"""Sites and the dtype in which a cell computes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from intarsia.core import Cell, Site


class Half(Cell):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.cast(x))


class Nothing(Cell):
    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(self.cast(x))


def test_a_cell_reads_the_input_or_the_output() -> None:
    site = Site("blocks.0.mlp", 3, 5)
    assert site.reads == 3
    assert site.at("sequential").reads == 5
    assert site.position == "parallel"


def test_a_cell_computes_in_its_own_dtype() -> None:
    x = torch.ones(2, 3, dtype=torch.bfloat16)
    assert Half()(x).dtype == torch.float32
    assert Half().double()(x).dtype == torch.float64


def test_autocast_decides_where_it_is_on() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert Half()(torch.ones(2, 3)).dtype == torch.bfloat16


def test_a_cell_without_parameters_leaves_the_dtype() -> None:
    assert Nothing()(torch.ones(2, dtype=torch.float64)).dtype == torch.float64


def test_a_cell_is_not_linear_and_stands_for_itself_unless_it_says_so() -> None:
    cell = Half()
    assert cell.delta() is None
    assert cell.merged() is cell
