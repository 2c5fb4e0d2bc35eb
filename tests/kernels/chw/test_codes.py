"""Steps on codes of 8 bits, by the kernels and in torch, at sizes that do not fit vectors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from intarsia.core.errors import ShapeError
from intarsia.formats import RowBlocks
from intarsia.kernels import native
from intarsia.kernels.chw import (
    ACTS,
    Coding,
    NaiveProgram,
    NativeProgram,
    ProgramStep,
    Window,
    available,
)

from ...refusals import refused
from ..counts import on_threads
from .coding import POSITIVE, SIGNED, agree, fours, reading, rounded
from .drawing import drawn

SIDES = ((1, 1), (7, 7), (4, 4), (9, 5), (14, 14), (17, 19), (8, 10))
needs_codes = pytest.mark.skipif(not available(), reason=native.why())


@needs_codes
@pytest.mark.usefixtures("build")
@pytest.mark.parametrize("source", [SIGNED, POSITIVE])
def test_sparse_products_are_those_of_the_decoded_weight(source: Coding) -> None:
    for number, (high, wide) in enumerate(SIDES):
        for rows in (1, 2, 4):
            for coding in (None, SIGNED, POSITIVE):
                act = ACTS[(number + rows) % len(ACTS)]
                weights = fours(13, 10, rows, 0.5)
                step = ProgramStep(
                    "spmm",
                    1,
                    2,
                    None,
                    (act, "none"),
                    weights,
                    rows=rows,
                    reads=10,
                    result_coding=coding,
                )
                agree(step, (10, high, wide), source)


@needs_codes
@pytest.mark.usefixtures("build")
@pytest.mark.parametrize("acts", [("none", "none"), ("relu6", "none"), ("none", "hardswish")])
@pytest.mark.parametrize("coding", [None, SIGNED])
def test_a_map_is_added_behind_a_product(acts: tuple[str, str], coding: Coding | None) -> None:
    for high, wide in SIDES:
        step = ProgramStep(
            "spmm", 1, 2, 5, acts, fours(9, 12, 4, 0.7), rows=4, reads=12, result_coding=coding
        )
        agree(step, (12, high, wide), POSITIVE, of_operand=SIGNED)


@needs_codes
@pytest.mark.usefixtures("build")
@pytest.mark.parametrize("density", [0.0, 1.0])
def test_no_weight_and_all_weights(density: float) -> None:
    for rows in (1, 4):
        weights = fours(6, 5, rows, density)
        agree(ProgramStep("spmm", 1, 2, weights=weights, rows=rows, reads=5), (5, 7, 7), SIGNED)


@needs_codes
@pytest.mark.usefixtures("build")
@pytest.mark.parametrize("source", [SIGNED, POSITIVE])
def test_windows_of_any_size_and_stride(source: Coding) -> None:
    windows = (
        Window(3, 1, 1, 1, 1, 1),
        Window(3, 2, 0, 0, 1, 1),  # TensorFlow's padding of an even side
        Window(5, 1, 2, 2, 2, 2),
        Window(5, 2, 2, 2, 2, 2),
        Window(5, 2, 1, 1, 2, 2),
        Window(2, 2),
        Window(7, 3, 1, 0, 2, 3),
        Window(8, 1, 7, 7, 7, 7),
    )
    for number, window in enumerate(windows):
        for high, wide in ((8, 8), (7, 11), (23, 40), (14, 14), (7, 7), (9, 23), (13, 6)):
            if min(high, wide) < window.size and not window.top:
                continue
            codes, scales = rounded(drawn(6, window.size, window.size))
            weights = {"codes": codes.to(torch.int8), "scales": scales, "bias": drawn(6)}
            for coding in (None, SIGNED, POSITIVE):
                act = ACTS[number % 4]
                step = ProgramStep(
                    "depthwise", 1, 2, None, (act, "none"), weights, window, result_coding=coding
                )
                agree(step, (6, high, wide), source)


@needs_codes
@pytest.mark.usefixtures("build")
def test_vectors_of_codes() -> None:
    for width, out in ((3, 2), (64, 5), (70, 9), (200, 17)):
        codes, scales = rounded(drawn(out, width))
        weights = {"codes": codes.to(torch.int8), "scales": scales, "bias": drawn(out)}
        for coding in (None, SIGNED):
            step = ProgramStep(
                "linear", 1, 2, None, ("relu", "none"), weights, result_coding=coding
            )
            agree(step, (width,), SIGNED)


@needs_codes
@pytest.mark.usefixtures("build")
def test_a_convolution_of_numbers_can_make_codes() -> None:
    weight = drawn(10, 3, 3, 3)
    weights = {**RowBlocks(4).encode(weight), "bias": drawn(10)}
    window = Window(3, 2, same=True)
    for high, wide in ((8, 8), (23, 40), (7, 11)):
        step = ProgramStep("conv", 0, 1, None, ("relu6", "none"), weights, window, 4, 3, POSITIVE)
        program = [step, *reading(10, 1, True)]
        x = drawn(3, high, wide)
        (want,) = NaiveProgram(program, {0: (3, high, wide)})([x], [3])
        (got,) = NativeProgram(program, {0: (3, high, wide)}, [3])([x], [3])
        assert_close(got, want, atol=1.01 * POSITIVE.scale, rtol=0)
        assert ((got - want).abs() > 0.01).float().mean() < 0.02


@needs_codes
@pytest.mark.usefixtures("build")
def test_threads_change_no_bit() -> None:
    step = ProgramStep("spmm", 1, 2, weights=fours(30, 40, 4, 0.6), rows=4, reads=40)
    window = Window(5, 1, 2, 2, 2, 2)
    codes, scales = rounded(drawn(40, 5, 5))
    weights = {"codes": codes.to(torch.int8), "scales": scales, "bias": drawn(40)}
    depth = ProgramStep(
        "depthwise", 0, 1, None, weights=weights, window=window, result_coding=SIGNED
    )
    outputs: list[Tensor] = []
    program = [ProgramStep("encode", 9, 0, result_coding=SIGNED), depth, step]
    for _ in on_threads(1, 2, 5):
        native = NativeProgram(program, {9: (40, 14, 14)}, [2])
        outputs += native([drawn(40, 14, 14)], [2])
    assert all(torch.equal(output, outputs[0]) for output in outputs)


def test_codes_and_numbers_do_not_mix() -> None:
    step = ProgramStep("spmm", 0, 1, weights=fours(4, 8, 4, 1.0), rows=4, reads=8)
    with refused(ShapeError, what="step 0, 'spmm'"):
        NaiveProgram([step], {0: (8, 3, 3)})
