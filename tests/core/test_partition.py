"""Laws of the noun: disjoint by construction, and set algebra on one-part partitions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from intarsia.core import Partition, intersect, union
from intarsia.core.errors import ConfigError, ShapeError
from intarsia.core.partition import label_dtype

from ..refusals import refused

Shapes = st.lists(st.integers(0, 5), min_size=1, max_size=2).map(tuple)


@st.composite
def label_maps(draw: st.DrawFn, low: int = -1, high: int = 3) -> Tensor:
    shape = draw(Shapes)
    count = torch.Size(shape).numel()
    flat = draw(st.lists(st.integers(low, high), min_size=count, max_size=count))
    return torch.tensor(flat, dtype=torch.int8).reshape(shape)


@st.composite
def masks(draw: st.DrawFn, count: int) -> list[Tensor]:
    shape = draw(Shapes)
    size = torch.Size(shape).numel()
    bits = st.lists(st.booleans(), min_size=size, max_size=size)
    return [torch.tensor(draw(bits), dtype=torch.bool).reshape(shape) for _ in range(count)]


def one_part(mask: Tensor) -> Partition:
    return Partition({"w": mask.to(torch.int8) - 1}, 1)


def selected(partition: Partition) -> Tensor:
    return partition.mask("w", 0)


@given(label_maps())
def test_parts_are_disjoint_and_cover_what_is_owned(label: Tensor) -> None:
    partition = Partition({"w": label}, 4)
    stacked = torch.stack([partition.mask("w", part) for part in range(4)])
    torch.testing.assert_close(stacked.sum(0), (label >= 0).long())


@given(label_maps(), label_maps())
def test_sizes_and_density_count_every_parameter(a: Tensor, b: Tensor) -> None:
    partition = Partition({"a": a, "b": b}, 4)
    sizes = partition.sizes()
    for part in range(4):
        both = partition.mask("a", part).sum() + partition.mask("b", part).sum()
        assert int(sizes[part]) == int(both)
    total = a.numel() + b.numel()
    assert partition.density() == (int(sizes.sum()) / total if total else 0.0)


@given(masks(3))
def test_union_and_intersection_are_those_of_sets(sets: list[Tensor]) -> None:
    a, b, c = sets
    p, q, r = map(one_part, sets)
    assert torch.equal(selected(union(p, q, r)), a | b | c)
    assert torch.equal(selected(intersect(p, q, r)), a & b & c)
    assert torch.equal(selected(union(p, p)), a)
    assert torch.equal(selected(intersect(p, union(p, q))), a)
    first, right = intersect(p, union(q, r)), union(intersect(p, q), intersect(p, r))
    assert torch.equal(selected(first), selected(right))


@given(masks(2))
def test_sizes_of_a_union_and_an_intersection_add_up(sets: list[Tensor]) -> None:
    p, q = map(one_part, sets)
    assert union(p, q).sizes() + intersect(p, q).sizes() == p.sizes() + q.sizes()


def test_the_algebra_covers_every_parameter() -> None:
    p = Partition({"a": torch.tensor([0, -1]), "b": torch.tensor([[-1]])}, 1)
    q = Partition({"a": torch.tensor([-1, 0]), "b": torch.tensor([[0]])}, 1)
    assert union(p, q).sizes().item() == 3
    assert intersect(p, q).sizes().item() == 0


def test_the_algebra_mixes_integer_types() -> None:
    p = Partition({"a": torch.tensor([0, -1], dtype=torch.int8)}, 1)
    q = Partition({"a": torch.tensor([-1, -1], dtype=torch.int64)}, 1)
    assert union(p, q)["a"].tolist() == [0, -1]


@pytest.mark.parametrize("operation", [union, intersect])
def test_the_algebra_refuses_what_does_not_match(operation: object) -> None:
    assert callable(operation)
    p = Partition({"a": torch.tensor([0])}, 1)
    with refused(ConfigError, what="set algebra", got="2 parts"):
        operation(p, Partition({"a": torch.tensor([0])}, 2))
    with refused(ShapeError, what="sets of 'a'"):
        operation(p, Partition({"a": torch.tensor([0, 0])}, 1))
    with refused(ShapeError, what="sets of 'b'"):
        operation(p, Partition({"a": torch.tensor([0]), "b": torch.tensor([0])}, 1))
    with refused(ShapeError, what="sets of 'b'"):
        operation(Partition({"a": torch.tensor([0]), "b": torch.tensor([0])}, 1), p)
    with refused(ConfigError, what="set algebra", got="none"):
        operation()


@pytest.mark.parametrize("label", [[-2, 0], [0, 3], [-1, 100]])
def test_labels_outside_the_parts_are_refused(label: list[int]) -> None:
    with refused(ConfigError, what="labels of 'w'", want="-1 ... 2"):
        Partition({"w": torch.tensor(label)}, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.complex64])
def test_labels_are_whole_numbers(dtype: torch.dtype) -> None:
    with refused(ConfigError, what="labels of 'w'", want="an integer type"):
        Partition({"w": torch.zeros(2).to(dtype)}, 1)


@pytest.mark.parametrize("parts", [0, -1])
def test_a_partition_has_a_part(parts: int) -> None:
    with refused(ConfigError, what="parts", want="at least 1"):
        Partition({}, parts)


@pytest.mark.parametrize("part", [-1, 2])
def test_nobody_is_no_part(part: int) -> None:
    with refused(ConfigError, what="part"):
        Partition({"w": torch.tensor([0, -1])}, 2).mask("w", part)


@given(st.integers(1, 100_000))
def test_the_label_type_holds_every_label(parts: int) -> None:
    info = torch.iinfo(label_dtype(parts))
    assert info.min <= -1
    assert parts - 1 <= info.max


def test_small_label_types_are_used_up_to_their_limit() -> None:
    assert label_dtype(128) == torch.int8
    assert label_dtype(129) == torch.int16
    assert label_dtype(2**15 + 1) == torch.int32


@given(masks(2))
def test_a_partition_from_masks_has_those_masks(sets: list[Tensor]) -> None:
    a, b = sets
    partition = Partition.from_masks({"w": a}, {"w": b & ~a})
    assert partition.parts == 2
    assert torch.equal(partition.mask("w", 0), a)
    assert torch.equal(partition.mask("w", 1), b & ~a)


def test_masks_that_overlap_are_refused_with_the_place() -> None:
    first, second = torch.tensor([[True, False]]), torch.tensor([[True, True]])
    with refused(ConfigError, what="masks of 'w'"):
        Partition.from_masks({"w": first}, {"w": second})
    with refused(ShapeError, what="sets of 'w'"):
        Partition.from_masks({"w": first}, {"w": second[0]})
    with refused(ConfigError, what="mask of 'w'", got="torch.int64"):
        Partition.from_masks({"w": first.long()})
    with refused(ConfigError, what="masks", got="none"):
        Partition.from_masks()
