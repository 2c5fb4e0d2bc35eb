"""One loop is SparseGPT without a code, GPTQ with every weight kept, and both at once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from intarsia.core import Blocks, NofM
from intarsia.core.errors import ConfigError, DataError, ShapeError
from intarsia.partitions import choose_and_compensate, compensate
from intarsia.partitions.compensate import Code, Pattern
from intarsia.scores import Statistics

from ..toys import doubles as drawn


def inputs(width: int, seed: int = 0, rows: int = 40) -> Tensor:
    return drawn(rows, width, seed=seed) @ drawn(width, width, seed=seed + 1)  # correlated


def seen(x: Tensor) -> Statistics:
    return Statistics.of(x, needs={"hessian"})


def halves(column: Tensor, _: int) -> Tensor:
    return (2 * column).round() / 2


def naive(
    w: Tensor, x: Tensor, step: int, choose: Callable[[Tensor], Tensor], code: Code, damp: float
) -> tuple[Tensor, Tensor]:
    """Optimal brain surgery, one column after the other, with an inverse from scratch for each."""
    h = x.T @ x / len(x)
    dead = h.diagonal() == 0
    h[dead, dead] = 1
    h = h + damp * h.diagonal().mean() * torch.eye(len(h), dtype=h.dtype)
    w, mask = w.clone(), torch.ones_like(w, dtype=torch.bool)
    w[:, dead] = 0
    for j in range(w.shape[1]):
        if j % step == 0:
            group = range(j, min(j + step, w.shape[1]))
            errors = [w[:, k] ** 2 / torch.linalg.inv(h[k:, k:])[0, 0] for k in group]
            mask[:, group.start : group.stop] = choose(torch.stack(errors, 1))
        inverse = torch.linalg.inv(h[j:, j:])
        stored = torch.where(mask[:, j], code(w[:, j], j), 0.0)
        w[:, j + 1 :] -= ((w[:, j] - stored) / inverse[0, 0])[:, None] * inverse[0, 1:]
        w[:, j] = stored
    return mask, w


def best(count: int) -> Callable[[Tensor], Tensor]:
    def choose(scores: Tensor) -> Tensor:
        order = sorted(range(scores.numel()), key=lambda i: (-float(scores.flatten()[i]), i))
        mask = torch.zeros(scores.numel(), dtype=torch.bool)
        mask[order[:count]] = True
        return mask.view(scores.shape)

    return choose


def by_rows(count: int) -> Callable[[Tensor], Tensor]:
    return lambda scores: torch.stack([best(count)(row) for row in scores])


@given(
    st.integers(1, 4),
    st.integers(1, 9),
    st.integers(1, 5),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.booleans(),
    st.integers(0, 9),
)
def test_it_is_optimal_brain_surgery_column_by_column(
    rows: int, columns: int, block: int, density: float, rounded: bool, seed: int
) -> None:
    w, x = drawn(rows, columns, seed=seed), inputs(columns, seed)
    if columns > 2:
        x[:, 1] = 0  # an input that is always 0
    code = halves if rounded else None
    part, new = choose_and_compensate(w, seen(x), density, code=code, block=block)

    def choose(scores: Tensor) -> Tensor:
        return best(round(density * scores.numel()))(scores)

    mask, want = naive(w, x, block, choose, code or (lambda c, _: c), 0.01)
    assert torch.equal(part.mask("weight", 0), mask)
    assert_close(new, want, rtol=1e-7, atol=1e-7)
    assert not new[~mask].any()


@pytest.mark.parametrize("block", [1, 4, 6, 128])
def test_two_of_four_is_chosen_group_by_group(block: int) -> None:
    w, x = drawn(3, 8), inputs(8)
    part, new = choose_and_compensate(w, seen(x), pattern=NofM(2, 4), block=block)
    mask, want = naive(w, x, 4, by_rows(2), lambda c, _: c, 0.01)
    assert torch.equal(part.mask("weight", 0), mask) and part.pattern == NofM(2, 4)
    assert_close(new, want)


def test_columns_in_strips_are_those_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    w, x = drawn(7, 150), inputs(150, rows=400)
    results = [choose_and_compensate(w, seen(x), 0.5, block=96, code=halves)]
    monkeypatch.setattr(compensate, "STRIP", 1)
    results.append(choose_and_compensate(w, seen(x), 0.5, block=96, code=halves))
    (first, new), (second, want) = results
    assert torch.equal(first.mask("weight", 0), second.mask("weight", 0))
    assert_close(new, want)


def test_whole_groups_of_inputs_go_or_stay() -> None:
    w, x = drawn(4, 8), inputs(8)
    part, _ = choose_and_compensate(w, seen(x), 0.5, pattern=Blocks(1, 2), code=halves)
    part.check()
    assert part.density() == 0.5


def test_the_output_is_nearer_than_without_the_compensation() -> None:
    w, x = drawn(6, 16), inputs(16, rows=200)
    part, new = choose_and_compensate(w, seen(x), 0.5)
    plain = w * part.mask("weight", 0)
    assert ((new - w) @ x.T).square().sum() < 0.7 * ((plain - w) @ x.T).square().sum()


def test_with_all_kept_and_no_code_nothing_changes() -> None:
    w, x = drawn(3, 7), inputs(7)
    _, new = choose_and_compensate(w, seen(x))
    assert torch.equal(new, w)


def test_a_mask_is_only_extended() -> None:
    w, x = drawn(5, 12), inputs(12)
    keep = drawn(5, 12, seed=4) > -0.3
    part, _ = choose_and_compensate(w, seen(x), 0.4, keep=keep)
    assert not (part.mask("weight", 0) & ~keep).any()
    assert int(part.sizes()) == round(0.4 * 60)


def refused(error: type[Exception], match: str, w: Tensor, x: Tensor, **settings: object) -> None:
    with pytest.raises(error, match=match):
        choose_and_compensate(w, seen(x), **settings)  # type: ignore[arg-type]


def test_what_cannot_be_is_refused() -> None:
    w, x = drawn(2, 6), inputs(6)
    refused(ConfigError, "density: got 1.5", w, x, density=1.5)
    refused(ShapeError, "multiple of m = 4", w, x, pattern=NofM(2, 4))
    across: Pattern = NofM(1, 2, axis=0)
    refused(ConfigError, "only the inputs", w, x, pattern=across)
    refused(ShapeError, r"want \(out, in\)", drawn(2, 3, 1), inputs(3))
    x[0, :3] = torch.nan
    refused(DataError, "got 6 columns not finite", w, x)
    constant = inputs(1).expand(40, 6)
    refused(DataError, "no positive definite matrix after dampings", w, constant, damp=-1e-9)
