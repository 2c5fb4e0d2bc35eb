"""Row blocks give back the weight to the bit, and store what they say."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from intarsia.core.errors import ConfigError, ShapeError
from intarsia.core.format import nbytes
from intarsia.formats import RowBlocks
from intarsia.formats.row_blocks import filled

from ..refusals import refused

shapes = st.sampled_from([(5, 7), (1, 7), (3, 1), (4, 2, 3, 3), (7,), (0, 4), (4, 0), (9, 3, 1, 1)])
dtypes = st.sampled_from([torch.float16, torch.float32, torch.bfloat16, torch.float64])


@given(shapes, dtypes, st.floats(0, 1), st.sampled_from([1, 2, 4, 8]), st.integers(0, 99))
def test_a_weight_comes_back_to_the_bit(
    shape: tuple[int, ...], dtype: torch.dtype, density: float, rows: int, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=draw).to(dtype)
    keep = torch.rand(shape, generator=draw) < density
    stored = RowBlocks(rows).encode(weight, keep)
    assert torch.equal(RowBlocks(rows).decode(stored, shape), weight * keep)
    kept, blocks = len(stored["channels"]), len(stored["ptr"]) - 1
    taps = torch.Size(shape[2:]).numel()
    assert nbytes(stored) == kept * (taps * rows * weight.element_size() + 4) + 4 * (blocks + 1)


def test_blocks_of_one_row_are_the_unstructured_weight() -> None:
    weight = torch.tensor([[0.0, 1, 0, 2], [3, 0, 0, 0], [0, 0, 0, 0]])
    stored = RowBlocks(1).encode(weight)
    assert stored["channels"].tolist() == [1, 3, 0]
    assert stored["ptr"].tolist() == [0, 2, 3, 3]
    assert stored["values"].flatten().tolist() == [1, 2, 3]
    two = RowBlocks(2).encode(weight)
    assert two["channels"].tolist() == [0, 1, 3]
    assert two["values"][:, 0].tolist() == [[0, 3], [1, 0], [2, 0]]
    assert filled(weight, 1) == 1
    assert filled(weight, 2) == 0.5


def test_what_does_not_fit_is_refused() -> None:
    weight = torch.eye(4)
    stored = RowBlocks(2).encode(weight)
    for part, value in (
        ("values", stored["values"][:2]),
        ("channels", stored["channels"] + 1),
        ("channels", stored["channels"] - 1),
        ("ptr", torch.tensor([0, 3, 2], dtype=torch.int32)),
    ):
        with refused(ShapeError, what="row blocks", want="what a weight of (4, 4) becomes"):
            RowBlocks(2).decode({**stored, part: value}, (4, 4))
    with refused(ShapeError, what="row blocks", got="2 blocks, 4 channels, (4, 1, 2) values"):
        RowBlocks(2).decode(stored, (5, 4))
    with refused(ConfigError, what="rows", got="3"):
        RowBlocks(3)
