"""Each step of a program on maps, by the kernels and in torch, at sizes that do not fit vectors."""

from __future__ import annotations

from threading import Thread

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from intarsia.core.errors import ShapeError
from intarsia.formats import RowBlocks
from intarsia.kernels import native
from intarsia.kernels.chw import ACTS, NaiveProgram, NativeProgram, ProgramStep, Window, available
from intarsia.kernels.chw.native import FIELDS

from ...refusals import refused
from ..counts import on_threads
from .drawing import drawn

SIDES = ((1, 1), (7, 7), (4, 4), (9, 5), (14, 14), (17, 19))
needs_kernels = pytest.mark.skipif(not available(), reason=native.why())


def sparse(out: int, ins: int, k: int, rows: int, density: float) -> dict[str, Tensor]:
    weight = drawn(out, ins, k, k) * (drawn(out, ins, 1, 1, seed=9).sigmoid() < density)
    if out > 2 * rows:
        weight[:rows] = 0  # a block without any
    return {**RowBlocks(rows).encode(weight), "bias": drawn(out, seed=5)}


def agree(steps: list[ProgramStep], shapes: dict[int, tuple[int, ...]], last: int) -> Tensor:
    """The last value by the kernels, after it was compared with torch's."""
    inputs = [drawn(*shape, seed=number) for number, shape in shapes.items()]
    (want,) = NaiveProgram(steps, shapes)(inputs, [last])
    program = NativeProgram(steps, shapes, [last])
    for _ in range(2):  # what the first run left behind does not matter
        (got,) = program(inputs, [last])
        assert_close(got, want, atol=2e-5, rtol=2e-5)
    return got


@needs_kernels
@pytest.mark.usefixtures("build")
def test_sparse_products_are_those_of_the_dense_weight() -> None:
    for number, (high, wide) in enumerate(SIDES):
        for rows in (1, 2, 4, 8):
            act = ACTS[(number + rows) % len(ACTS)]
            weights = sparse(13, 10, 1, rows, 0.4)
            step = ProgramStep("spmm", 0, 1, acts=(act, "none"), weights=weights, rows=rows)
            agree([step], {0: (10, high, wide)}, 1)


@needs_kernels
@pytest.mark.parametrize("density", [0.0, 1.0])
def test_no_weight_and_all_weights(density: float) -> None:
    for rows in (1, 4):
        weights = sparse(6, 5, 1, rows, density)
        step = ProgramStep("spmm", 0, 1, weights=weights, rows=rows)
        got = agree([step], {0: (5, 7, 7)}, 1)
        if not density:
            assert torch.equal(got, weights["bias"][:, None, None].expand(6, 7, 7))


@needs_kernels
@pytest.mark.usefixtures("build")
def test_windows_of_any_size_and_stride() -> None:
    windows = (
        Window(3, 1, 1, 1, 1, 1),
        Window(3, 2, 0, 0, 1, 1),  # TensorFlow's padding of an even side
        Window(5, 1, 2, 2, 2, 2),
        Window(5, 2, 2, 2, 2, 2),
        Window(5, 2, 1, 1, 2, 2),
        Window(3, 1, 4, 5, 3, 20),  # rows and columns that see zeros alone
        Window(3, 2, 4, 20, 3, 5),
        Window(2, 2),
        Window(7, 3, 1, 0, 2, 3),
    )
    for number, window in enumerate(windows):
        for high, wide in ((8, 8), (7, 11), (23, 40), (14, 14), (7, 7), (9, 23)):
            weights = {"weight": drawn(6, window.size, window.size), "bias": drawn(6)}
            act = ACTS[number % 4]
            depth = ProgramStep(
                "depthwise", 0, 1, acts=(act, "none"), weights=weights, window=window
            )
            agree([depth], {0: (6, high, wide)}, 1)
            rows = (1, 2, 4, 8)[number % 4]
            weights = sparse(10, 3, window.size, rows, 0.5)
            conv = ProgramStep("conv", 0, 1, acts=(act, "none"), weights=weights, window=window)
            agree([ProgramStep(**{**vars(conv), "rows": rows})], {0: (3, high, wide)}, 1)


def squeezed() -> list[ProgramStep]:
    """A stem, a block with squeeze and excitation and a residual addition, and a head."""
    dense = {"weight": drawn(8, 8), "bias": drawn(8)}
    stem = sparse(8, 3, 3, 4, 1.0)
    return [
        ProgramStep("conv", 12, 0, weights=stem, rows=4, window=Window(3, 2, same=True)),
        ProgramStep("spmm", 0, 1, acts=("silu", "none"), weights=sparse(12, 8, 1, 4, 0.5), rows=4),
        ProgramStep("pool", 1, 2),
        ProgramStep("linear", 2, 3, acts=("relu", "none"), weights=_linear(5, 12)),
        ProgramStep("linear", 3, 4, acts=("sigmoid", "none"), weights=_linear(12, 5)),
        ProgramStep("scale", 1, 5, 4),
        ProgramStep("spmm", 5, 6, 0, ("relu6", "hardswish"), sparse(8, 12, 1, 2, 0.5), rows=2),
        ProgramStep("add", 6, 7, 0),
        ProgramStep("act", 7, 8, acts=("hardswish", "none")),
        ProgramStep("spmm", 8, 9, 0, ("none", "relu"), dense),
        ProgramStep("pool", 9, 10),
        ProgramStep("linear", 10, 11, weights=_linear(3, 8)),
    ]


@needs_kernels
@pytest.mark.usefixtures("build")
def test_depthwise_steps_have_the_same_bits_on_any_number_of_threads() -> None:
    weights = {"weight": drawn(11, 5, 5), "bias": drawn(11)}
    window = Window(5, 2, same=True)
    step = ProgramStep("depthwise", 0, 1, acts=("relu6", "none"), weights=weights, window=window)
    outputs: list[Tensor] = []
    for _ in on_threads(1, 2, 5):
        outputs.append(agree([step], {0: (11, 13, 30)}, 1))
    assert all(torch.equal(output, outputs[0]) for output in outputs)


@needs_kernels
def test_zeros_around_a_picture_are_no_neighbours() -> None:
    """Put NaN before and behind a channel in memory: none may enter a window."""
    x = torch.full((3, 7, 7), torch.nan)
    x[1] = drawn(7, 7)
    for k, stride in ((3, 1), (5, 1), (3, 2), (5, 2)):
        weights = {"weight": drawn(3, k, k), "bias": drawn(3)}
        step = ProgramStep("depthwise", 0, 1, weights=weights, window=Window(k, stride, same=True))
        (want,) = NaiveProgram([step], {0: (3, 7, 7)})([x], [1])
        (got,) = NativeProgram([step], {0: (3, 7, 7)}, [1])([x], [1])
        assert not got[1].isnan().any() and got[0].isnan().all()
        assert_close(got[1], want[1], atol=2e-5, rtol=2e-5)


def _linear(out: int, ins: int) -> dict[str, Tensor]:
    return {"weight": drawn(out, ins), "bias": drawn(out)}


@needs_kernels
def test_whole_blocks_and_the_same_bits_on_any_number_of_threads() -> None:
    outputs: list[Tensor] = []
    for _ in on_threads(1, 2, 5):
        outputs += [agree(squeezed(), {12: (3, 24, 26)}, last) for last in (9, 11)]
    for i in (2, 4):
        assert torch.equal(outputs[i], outputs[0])
        assert torch.equal(outputs[i + 1], outputs[1])


@needs_kernels
def test_numbers_that_are_none_stay_so() -> None:
    x = drawn(5, 4, 4)
    x[2, 1, 1] = torch.nan
    weights = {**RowBlocks(2).encode(torch.ones(4, 5)), "bias": torch.zeros(4)}
    step = ProgramStep("spmm", 0, 1, acts=("relu6", "none"), weights=weights, rows=2)
    program = NativeProgram([step], {0: (5, 4, 4)}, [1])
    (y,) = program([x], [1])
    assert torch.equal(y.isnan(), x.isnan().any(0).expand(4, 4, 4))


@needs_kernels
@pytest.mark.usefixtures("build")
def test_a_low_and_wide_map_stays_inside_its_scratch() -> None:
    weights = {"weight": drawn(2, 7, 7), "bias": drawn(2)}
    step = ProgramStep("depthwise", 0, 1, weights=weights, window=Window(7, 1, 3, 3, 3, 3))
    agree([step], {0: (2, 1, 700)}, 1)
    program = NativeProgram([step], {0: (2, 1, 700)}, [1])
    room = len(program.memory) - program.end
    beyond = torch.ones(room + 10_000)
    program.table[0, FIELDS.index("scratch")] = beyond.data_ptr()
    program.carry_out()
    assert bool((beyond[room:] == 1).all())


@needs_kernels
def test_threads_that_share_a_program_get_what_is_theirs() -> None:
    weights = {**RowBlocks(1).encode(drawn(48, 48)), "bias": drawn(48)}
    steps = [ProgramStep("spmm", i, i + 1, weights=weights) for i in range(3)]
    program = NativeProgram(steps, {0: (48, 24, 24)}, [3])
    inputs = [drawn(48, 24, 24, seed=i) for i in range(3)]
    want = [program([x], [3])[0] for x in inputs]
    wrong: list[int] = []

    def ask(i: int) -> None:
        wrong.extend(i for _ in range(60) if not torch.equal(program([inputs[i]], [3])[0], want[i]))

    threads = [Thread(target=ask, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@needs_kernels
def test_a_stride_that_kernels_have_no_room_for_is_refused() -> None:
    step = ProgramStep("conv", 0, 1, weights=sparse(4, 5, 7, 2, 0.8), rows=2, window=Window(7, 7))
    with refused(ShapeError, what="stride", got=7):
        _made("native", [step], (5, 14, 14))


@pytest.mark.parametrize("program", ["naive", "native"])
def test_what_does_not_fit_is_refused(program: str) -> None:
    if program == "native" and not available():
        pytest.skip(native.why())
    weights = sparse(4, 5, 1, 2, 0.8)
    broken = {
        "channels": weights["channels"] + 5,
        "ptr": weights["ptr"].flip(0),
        "values": weights["values"][1:],
    }
    for name, tensor in broken.items():
        step = ProgramStep("spmm", 0, 1, weights=weights | {name: tensor}, rows=2)
        with refused(ShapeError, what="row blocks", want="2 blocks of 2 rows on 5 channels"):
            _made(program, [step], (5, 4, 4))
    with refused(
        ShapeError, what="row blocks", got="2 blocks, 9 channels, 18 values"
    ):  # channels that the input has not
        _made(program, [ProgramStep("spmm", 0, 1, weights=weights, rows=2)], (3, 4, 4))
    with refused(
        ShapeError, what="input of step 0, 'spmm'", got=(6, 4, 4)
    ):  # more channels than it was cut from
        _made(program, [ProgramStep("spmm", 0, 1, weights=weights, rows=2, reads=5)], (6, 4, 4))
    with refused(ShapeError, what="input of step 0, 'linear'", got=(5, 4, 4)):
        _made(program, [ProgramStep("linear", 0, 1, weights=_linear(3, 5))], (5, 4, 4))
    with refused(ShapeError, what="input of step 1, 'add'", got=(5,)):
        _made(program, [ProgramStep("pool", 0, 1), ProgramStep("add", 0, 2, 1)], (5, 4, 4))
    with refused(ShapeError, what="input of step 0, 'conv'", got=(5, 4, 4)):
        conv = ProgramStep("conv", 0, 1, weights=sparse(4, 5, 7, 2, 0.8), rows=2, window=Window(7))
        _made(program, [conv], (5, 4, 4))


def _made(program: str, steps: list[ProgramStep], shape: tuple[int, ...]) -> object:
    return (
        NaiveProgram(steps, {0: shape})
        if program == "naive"
        else NativeProgram(steps, {0: shape}, [1])
    )
