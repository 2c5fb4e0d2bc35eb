"""DeepSpeed-MoE in their smallest form."""

import pytest

from intarsia_lab.experiments import deepspeed_moe


def quiet(_):
    pass


def test_the_pyramid_is_smaller_and_all_of_it_counts(bench):
    loss = deepspeed_moe.ratio(
        (0,), quiet, ours=deepspeed_moe.PR, base=deepspeed_moe.EVEN, bench=bench
    )
    assert 0.5 < loss.value < 2
    even, pr = (int(row["of experts"].replace(",", "")) for row in loss.table)
    assert pr / even == pytest.approx(sum(deepspeed_moe.PYRAMID) / (4 * deepspeed_moe.MANY))
