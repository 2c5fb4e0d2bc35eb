"""A mixture of MLPs in one native call is the loop over experts, on every build."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from intarsia.core.errors import ShapeError
from intarsia.kernels.experts import mix_mlps, mlps_naive, native

# rows: none, row by row, a group that is not full, 2 + 2 vectors, several panels
LOADS = [(0, 0), (0, 7, 1), (13, 40, 2), (64, 33, 0), (5, 450)]
SIDES = [(5, 7, 3), (64, 48, 40), (70, 33, 9)]  # width, hidden units, outputs


def case(load: tuple[int, ...], sides: tuple[int, int, int], gated: bool) -> list[Tensor | None]:
    generator = torch.Generator().manual_seed(0)
    width, hidden, outputs = sides
    expert = torch.arange(len(load)).repeat_interleave(torch.tensor(load))
    expert = expert[torch.randperm(len(expert), generator=generator)]
    tokens = 1 + len(expert) // 2
    token = torch.randint(tokens, expert.shape, generator=generator)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    weight = torch.rand(expert.shape, generator=generator)
    up, gate = (drawn(len(load), hidden, width) for _ in range(2))
    x, down = drawn(tokens, width), drawn(len(load), outputs, hidden)
    return [x, token, expert, weight, up, gate if gated else None, down]


def cast(tensors: list[Tensor | None], dtype: torch.dtype) -> list[Tensor | None]:
    return [t.to(dtype) if t is not None and t.is_floating_point() else t for t in tensors]


@pytest.mark.usefixtures("build")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("sides", SIDES, ids=str)
@pytest.mark.parametrize("load", LOADS, ids=str)
def test_it_is_the_loop(
    load: tuple[int, ...], sides: tuple[int, int, int], gated: bool, dtype: torch.dtype
) -> None:
    inputs = cast(case(load, sides, gated), dtype)
    x, token, expert, weight, up, gate, down = inputs
    if not native.mixes(x, up, gate, down):  # pyright: ignore
        pytest.skip("no kernels here")
    weight = weight.float()  # pyright: ignore
    for act in native.ACTS:
        ours: Tensor = native.mix(x, token, expert, weight, up, gate, down, act)  # pyright: ignore
        theirs = mlps_naive(*cast([*inputs[:3], weight, *inputs[4:]], torch.float64), act)  # pyright: ignore
        assert ours.dtype == torch.float32
        assert (ours - theirs).norm() <= 1e-5 * theirs.norm()


def test_the_bits_do_not_depend_on_the_threads() -> None:
    inputs, before = case((64, 3, 450, 20), (64, 48, 40), True), torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(mix_mlps(*inputs, "silu", learned=False))  # pyright: ignore
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_a_pair_out_of_range_is_refused() -> None:
    x, token, expert, weight, *weights = case((3, 2), (5, 7, 3), True)
    assert isinstance(x, Tensor) and isinstance(expert, Tensor)
    if not native.mixes(x, *weights):  # pyright: ignore
        pytest.skip("no kernels here")
    for wrong in (-1, 2):
        with pytest.raises(ShapeError, match="token and expert of a pair"):
            native.mix(x, token, expert.clone().fill_(wrong), weight, *weights, "silu")  # pyright: ignore


def test_numbers_of_tokens_and_experts_may_be_short() -> None:
    x, token, expert, *rest = case((13, 40, 2), (5, 7, 3), True)
    assert isinstance(x, Tensor) and isinstance(token, Tensor) and isinstance(expert, Tensor)
    short = mix_mlps(x, token.int(), expert.int(), *rest, "silu", learned=False)  # pyright: ignore
    long = mix_mlps(x, token, expert, *rest, "silu", learned=False)  # pyright: ignore
    assert torch.equal(short, long)
