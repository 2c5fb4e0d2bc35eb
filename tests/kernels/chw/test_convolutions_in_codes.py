"""Convolutions of k x k and maxima in codes of 8 bits, by each build and in torch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from intarsia.core.errors import ShapeError
from intarsia.formats import RowBlocks
from intarsia.kernels import native
from intarsia.kernels.chw import Coding, NaiveProgram, NativeProgram, ProgramStep, Window, available
from intarsia.sparse.swap.lowering import ungrouped

from ...refusals import refused
from ..counts import on_threads
from .coding import POSITIVE, SIGNED, agree, fours, reading, rounded, stored
from .drawing import drawn

SIDES = ((7, 7), (9, 23), (23, 40), (5, 1), (3, 70))
WINDOWS = (
    Window(3, 1, 1, 1, 1, 1),
    Window(3, 2, 0, 0, 1, 1),  # TensorFlow's padding of an even side
    Window(3, 2, 1, 1, 1, 1),
    Window(7, 2, 3, 3, 3, 3),
    Window(5, 1, 2, 2, 2, 2),
    Window(1, 2),
    Window(2, 2),
    Window(3, 3, 1, 0, 2, 1),
    Window(4, 4, 0, 3, 1, 2),
    Window(11, 4, 2, 5, 5, 9),
)
pytestmark = pytest.mark.skipif(not available(), reason=native.why())


def fits(window: Window, high: int, wide: int) -> bool:
    return min(window.outputs(high, wide)) > 0


@pytest.mark.usefixtures("build")
@pytest.mark.parametrize("source", [SIGNED, POSITIVE])
def test_windows_of_any_size_and_stride(source: Coding) -> None:
    for number, window in enumerate(WINDOWS):
        rows = (1, 2, 4)[number % 3]
        for high, wide in SIDES:
            if not fits(window, high, wide):
                continue
            coding = (None, SIGNED, POSITIVE)[(number + high) % 3]
            act = ("relu6", "silu", "none")[(number + wide) % 3]
            weights = fours(13, 10, rows, 0.7, window.size)
            step = ProgramStep("conv", 1, 2, None, (act, "none"), weights, window, rows, 10, coding)
            agree(step, (10, high, wide), source)


@pytest.mark.usefixtures("build")
@pytest.mark.parametrize("acts", [("none", "none"), ("none", "relu"), ("relu", "hardswish")])
@pytest.mark.parametrize("coding", [None, SIGNED, POSITIVE])
def test_a_map_is_added_behind_a_convolution(acts: tuple[str, str], coding: Coding | None) -> None:
    for window in (WINDOWS[0], WINDOWS[2], WINDOWS[5]):
        weights = fours(9, 12, 4, 0.7, window.size)
        step = ProgramStep("conv", 1, 2, 5, acts, weights, window, 4, 12, coding)
        for number, (high, wide) in enumerate(SIDES):
            operand = (SIGNED, POSITIVE)[number % 2]
            agree(step, (12, high, wide), POSITIVE, of_operand=operand)


@pytest.mark.usefixtures("build")
@pytest.mark.parametrize("groups", [2, 3, 5])
def test_groups_are_what_blocks_keep(groups: int) -> None:
    """A group's width may be no multiple of four, nor of a block's rows."""
    out, ins = 4 * groups, 6 * groups
    codes, scales = rounded(drawn(out, ins // groups, 3, 3))
    whole = ungrouped(codes, groups)
    x = (8 * drawn(1, ins, 8, 9)).round()  # whole numbers: a sum is exact in any order
    grouped = torch.nn.functional.conv2d(x, codes, groups=groups)
    assert torch.equal(torch.nn.functional.conv2d(x, whole), grouped)
    for rows in (1, 4):
        weights = stored(whole, whole != 0, rows) | {"scales": scales, "bias": drawn(out)}
        step = ProgramStep("conv", 1, 2, None, weights=weights, window=WINDOWS[0], rows=rows)
        agree(step, (ins, 8, 9), SIGNED)


@pytest.mark.usefixtures("build")
def test_no_weight_and_inputs_of_one_channel() -> None:
    for density in (0.0, 1.0):
        for ins in (1, 3):
            weights = fours(5, ins, 2, density, 3)
            step = ProgramStep("conv", 1, 2, weights=weights, window=WINDOWS[0], rows=2, reads=ins)
            agree(step, (ins, 7, 18), SIGNED)


def maximum(coding: Coding | None, window: Window) -> list[ProgramStep]:
    """The largest of each window, of codes read again as numbers, or of numbers."""
    if coding is None:
        return [ProgramStep("max", 0, 3, window=window)]
    largest = ProgramStep("max", 1, 2, window=window, result_coding=coding)
    return [ProgramStep("encode", 0, 1, result_coding=coding), largest, *reading(6, 2, True)]


@pytest.mark.usefixtures("build")
@pytest.mark.parametrize("coding", [None, SIGNED, POSITIVE])
def test_the_largest_of_each_window(coding: Coding | None) -> None:
    for window in (*WINDOWS[:3], WINDOWS[6], Window(2, 1), Window(5, 3, 2, 2, 2, 2)):
        for high, wide in ((7, 7), (9, 23), (23, 140), (5, 2)):
            if not fits(window, high, wide):
                continue
            steps = maximum(coding, window)
            x = drawn(6, high, wide)
            (want,) = NaiveProgram(steps, {0: x.shape})([x], [3])
            for _ in on_threads(1, 3):
                program = NativeProgram(steps, {0: x.shape}, [3])
                for _ in range(2):
                    # a code between two may go either way
                    assert_close(
                        program([x], [3])[0], want, atol=0 if coding is None else 0.032, rtol=0
                    )


@pytest.mark.usefixtures("build")
def test_what_is_no_number_is_the_largest() -> None:
    x = drawn(2, 6, 6)
    x[1, 2, 3] = torch.nan
    steps = maximum(None, Window(3, 1, 1, 1, 1, 1))
    (y,) = NativeProgram(steps, {0: (2, 6, 6)}, [3])([x], [3])
    assert int(y.isnan().sum()) == 9 and not y[0].isnan().any()


@pytest.mark.usefixtures("build")
def test_a_convolution_of_numbers_adds() -> None:
    weights = {**RowBlocks(4).encode(drawn(8, 6, 3, 3)), "bias": drawn(8)}
    for acts in (("none", "relu"), ("relu6", "silu")):
        step = ProgramStep("conv", 0, 1, 2, acts, weights, WINDOWS[2], 4, 6)
        shapes = {0: (6, 9, 11), 2: (8, 5, 6)}
        inputs = [drawn(*shape, seed=number) for number, shape in shapes.items()]
        (want,) = NaiveProgram([step], shapes)(inputs, [1])
        (got,) = NativeProgram([step], shapes, [1])(inputs, [1])
        assert_close(got, want, atol=2e-5, rtol=2e-5)


@pytest.mark.usefixtures("build")
def test_threads_change_no_bit() -> None:
    first = ProgramStep("encode", 9, 0, result_coding=SIGNED)
    largest = ProgramStep("max", 0, 1, window=WINDOWS[2], result_coding=SIGNED)
    wide = fours(30, 20, 4, 0.8, 3)
    conv = ProgramStep(
        "conv", 1, 2, None, ("relu", "none"), wide, WINDOWS[0], 4, 20, result_coding=POSITIVE
    )
    again = ProgramStep(
        "conv", 2, 3, 2, ("none", "relu"), fours(30, 30, 2, 1.0, 3), WINDOWS[0], 2, 30
    )
    outputs: list[Tensor] = []
    for _ in on_threads(1, 2, 5):
        program = NativeProgram([first, largest, conv, again], {9: (20, 28, 30)}, [3])
        outputs += program([drawn(20, 28, 30)], [3])
    assert all(torch.equal(output, outputs[0]) for output in outputs)


@pytest.mark.parametrize("program", [NaiveProgram, NativeProgram])
def test_steps_of_numbers_do_not_add_or_make_codes(program: type) -> None:
    more = ([3],) if program is NativeProgram else ()
    weights = {**RowBlocks(4).encode(drawn(8, 8, 3, 3)), "bias": drawn(8)}
    encode = ProgramStep("encode", 0, 1, result_coding=SIGNED)
    adding = ProgramStep("conv", 0, 3, 1, ("none", "relu"), weights, WINDOWS[0], 4)
    with refused(ShapeError, what="step 1, 'conv'", got="codes around a step of numbers"):
        program([encode, adding], {0: (8, 4, 4)}, *more)
    for bad in (
        ProgramStep(
            "conv", 0, 3, 0, ("none", "relu"), weights, WINDOWS[0], 4, result_coding=SIGNED
        ),
        ProgramStep("act", 0, 3, result_coding=SIGNED),
    ):
        with refused(
            ShapeError, what=f"step 0, {bad.kind!r}", got="codes around a step of numbers"
        ):
            program([bad], {0: (8, 4, 4)}, *more)


@pytest.mark.parametrize("coding", [None, POSITIVE])
def test_a_maximum_is_coded_as_what_it_is_taken_from(coding: Coding | None) -> None:
    first = ProgramStep("encode", 0, 1, result_coding=SIGNED)
    largest = ProgramStep("max", 1, 2, window=Window(2, 2), result_coding=coding)
    with refused(ShapeError, what="result of step 1, 'max'"):
        NaiveProgram([first, largest], {0: (2, 4, 4)})
