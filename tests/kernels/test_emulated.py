"""The kernels on an emulated ARM processor, whose vectors are NEON's, give what their twins give.

It is run by qemu: results are those of the processor, times are not.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import Tensor
from torch.testing import assert_close

from intarsia.formats import Bitmask, BlockInt, Dense, GroupSparse, RowBlocks, Ternary
from intarsia.kernels import native
from intarsia.kernels.bitmask import naive_bitmask_linear
from intarsia.kernels.blockint import naive_blockint
from intarsia.kernels.chw import NaiveProgram, NativeProgram, ProgramStep, Window

from ..toys import drawn
from . import emulation
from .chw.coding import SIGNED, fours

pytestmark = pytest.mark.skipif(
    bool(emulation.missing()) or native.load() is None, reason=emulation.missing() or native.why()
)
FORMATS = (
    *(Bitmask(values) for values in ("fp32", "bf16", "int8")),
    Dense(),
    *(GroupSparse(), GroupSparse(activations="int8"), Ternary(), BlockInt(4), BlockInt(8)),
    *(GroupSparse(activations=kind, rows=8) for kind in ("float", "int8")),
)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return emulation.built(tmp_path_factory.mktemp("emulated"))


@pytest.fixture
def ran(program: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    with emulation.emulated(program, monkeypatch) as names:
        yield names


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_products_are_those_of_what_is_decoded(form: Bitmask, ran: list[str]) -> None:
    weight = drawn(9, 150)
    weight[drawn(9, 150, seed=1) < 0] = 0
    weight[2] = 0
    x = drawn(3, 150, seed=2)
    with native.using("off"):
        stored = form.encode(weight)
        if form == Bitmask("int8"):  # the kernel rounds x, too
            parts = ("bitmask", "compressed", "scales")
            want = naive_bitmask_linear(x, *(stored[part] for part in parts))
        elif isinstance(form, BlockInt):
            want = naive_blockint(x, stored["codes"], stored["scales"], 9, form.bits)
        else:
            want = form.matmul(x, stored, weight.shape)
    with native.using("portable"):
        got = form.matmul(x, stored, weight.shape)
    assert_close(got, want, rtol=1e-4, atol=2e-4)
    assert len(ran) == 1, ran


def test_the_steps_of_a_convolutional_net_are_those_of_torch(ran: list[str]) -> None:
    def sparse(out: int, ins: int, k: int, rows: int) -> dict[str, Tensor]:
        weight = drawn(out, ins, k, k) * (drawn(out, ins, 1, 1, seed=9) < 0.5)
        return {**RowBlocks(rows).encode(weight), "bias": drawn(out, seed=5)}

    def dense(*shape: int) -> dict[str, Tensor]:
        return {"weight": drawn(*shape), "bias": drawn(shape[0], seed=5)}

    pointwise = [
        ProgramStep(
            "spmm", i, i + 1, None, (act, "none"), sparse(9, 8 if i == 1 else 9, 1, rows), rows=rows
        )
        for i, (rows, act) in enumerate(
            ((1, "silu"), (2, "hardswish"), (4, "relu6"), (8, "none")), 1
        )
    ]
    steps = [
        ProgramStep(
            "conv", 0, 1, weights=sparse(8, 3, 3, 4), rows=4, window=Window(3, 2, same=True)
        ),
        *pointwise,
        ProgramStep("depthwise", 5, 6, weights=dense(9, 5, 5), window=Window(5, 1, 2, 2, 2, 2)),
        ProgramStep("depthwise", 6, 7, weights=dense(9, 3, 3), window=Window(3, 2, same=True)),
        ProgramStep("pool", 7, 8),
        ProgramStep("linear", 8, 9, acts=("sigmoid", "none"), weights=dense(9, 9)),
        ProgramStep("scale", 7, 10, 9),
        ProgramStep("add", 10, 11, 7, ("hardsigmoid", "none")),
    ]
    x = drawn(3, 23, 30)
    numbers = (6, 9, 11)
    want = NaiveProgram(steps, {0: (3, 23, 30)})([x], numbers)
    with native.using("portable"):
        got = NativeProgram(steps, {0: (3, 23, 30)}, numbers)([x], numbers)
    for ours, theirs in zip(got, want, strict=True):
        assert_close(ours, theirs, atol=3e-4, rtol=1e-4)
    assert "intarsia_chw_run" in ran


def test_steps_on_codes_are_those_of_torch(ran: list[str]) -> None:
    window = Window(3, 2, 1, 1, 1, 1)
    steps = [
        ProgramStep("encode", 0, 1, result_coding=SIGNED),
        ProgramStep("max", 1, 2, window=window, result_coding=SIGNED),
        ProgramStep(
            "conv", 2, 4, None, ("relu", "none"), fours(9, 6, 4, 0.8, 3), window, 4, 6, SIGNED
        ),
        ProgramStep("spmm", 4, 5, 4, ("none", "relu"), fours(9, 9, 2, 0.8), rows=2, reads=9),
    ]
    x = drawn(6, 23, 30)
    (want,) = NaiveProgram(steps, {0: (6, 23, 30)})([x], [5])
    with native.using("portable"):
        (got,) = NativeProgram(steps, {0: (6, 23, 30)}, [5])([x], [5])
    assert float((got - want).norm() / want.norm()) < 0.02
    assert "intarsia_chw_conv_scratch" in ran
