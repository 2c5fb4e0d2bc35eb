"""Claims on DeepSpeed-MoE in their smallest form."""

import pytest

from intarsia_lab.claims import deepspeed_moe


def quiet(_):
    pass


def test_the_pyramid_is_smaller_and_all_of_it_counts(bench):
    loss, size = (
        deepspeed_moe.ratio(
            (0,), quiet, ours=deepspeed_moe.PR, base=deepspeed_moe.EVEN, figure=figure, bench=bench,
        )
        for figure in (deepspeed_moe.loss, deepspeed_moe.total)
    )  # fmt: skip
    assert loss.table == size.table
    assert 0.5 < loss.got < 2
    assert size.got < 1
    even, pr = (int(row["of experts"].replace(",", "")) for row in size.table)
    assert pr / even == pytest.approx(sum(deepspeed_moe.PYRAMID) / (4 * deepspeed_moe.MANY))


def test_a_third_contender_may_stand_beside(bench):
    result = deepspeed_moe.ratio(
        (0,), quiet, ours=deepspeed_moe.BESIDE, base=deepspeed_moe.ONE,
        rivals=(deepspeed_moe.TWO,), bench=bench,
    )  # fmt: skip
    assert [row["model"] for row in result.table] == ["topk-1", "deepspeed_moe-residual", "topk"]


def test_students_are_taught_three_ways(bench):
    result = deepspeed_moe.students((0,), quiet, bench=bench, steps=(2, 3))
    assert [row["model"] for row in result.table][0] == "teacher"
    assert len(result.table) == 4
    assert 0.5 < result.got < 2
