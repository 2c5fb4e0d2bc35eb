"""Claims on MoE-X in their smallest form."""

import numpy as np
import pytest
import torch

from intarsia.claims import mix6, moe_x


def quiet(_):
    pass


def test_on_text_each_figure_is_of_the_same_cells(bench):
    results = [
        moe_x.on_text((0,), quiet, of=of, bench=bench)
        for of in (moe_x.units_ratio, moe_x.loss_ratio)
    ]
    assert results[0].table == results[1].table and "rank" in results[0].table[0]
    assert results[0].table[1]["router's parameters"] == 0
    assert all(r.got > 0 for r in results)


def test_units_are_those_of_the_wide_mlp():
    net = mix6.of_experts(moe_x.TopK(2, 2), seed=0, act="relu").eval()
    x = torch.rand(5, 64)
    units = moe_x.wide_units(net, x)
    assert units.shape == (5, 2 * mix6.HIDDEN)
    for i in range(moe_x.BLOCK):
        assert net.blocks[i].mlp is not None
    stream = net.stem(x)
    for block in list(net.blocks)[: moe_x.BLOCK]:
        stream = block(stream)
    block = net.blocks[moe_x.BLOCK]
    experts, rows = block.mlp.experts, block.norm(stream)
    gates = block.mlp.router(rows).dense()
    slow = [
        gates[:, e, None] * torch.relu(rows @ experts.up[e].T + experts.up_bias[e])
        for e in range(2)
    ]
    assert np.allclose(units, torch.cat(slow, 1).detach().numpy(), atol=1e-6)


def test_factors_say_what_a_row_shows():
    x, _ = mix6.data("test").tensors
    digit, task = moe_x.factors("test")
    each = len(x) // len(mix6.TASKS)
    assert (digit[:each] == digit[each : 2 * each]).all()
    assert task.tolist() == mix6.task_ids("test").tolist()


@pytest.mark.parametrize(("known", "least", "most"), [(True, 0.99, 1.0), (False, 0.2, 0.8)])
def test_a_probe_finds_what_is_there(known, least, most):
    draws = np.random.default_rng(0)
    labels = draws.integers(3, size=(2, 60))
    units = [draws.normal(size=(60, 5)) + (3 * np.eye(3, 5)[y] if known else 0) for y in labels]
    assert least <= moe_x.auc(tuple(units), tuple(labels)) <= most


def test_the_probe_compares_both_nets(digits):
    result = moe_x.probe((0,), quiet, steps=1)
    assert -1 <= result.got <= 1
    assert [row["router"] for row in result.table] == ["linear gate", "score of the weights"]
