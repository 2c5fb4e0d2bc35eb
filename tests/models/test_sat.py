"""The closed form is the simulation, to the cycle; and what follows from it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from intarsia.core import NofM
from intarsia.core.errors import ConfigError, ShapeError
from intarsia.models.sat import LayerShape, Sat, layer_shapes, simulate, total
from intarsia.schedules import Bdwp
from intarsia.schedules.bdwp import n_of_m_mask

from ..refusals import refused

sizes = st.integers(1, 6)


@settings(max_examples=40)
@given(sizes, st.integers(1, 9), sizes, st.integers(1, 3), st.integers(1, 4), st.data())
def test_the_closed_form_is_the_simulation_to_the_cycle(
    rows: int, inner: int, columns: int, side: int, latency: int, data: Any
) -> None:
    m = data.draw(st.integers(1, 4))
    n = data.draw(st.integers(1, m))
    flow = data.draw(st.sampled_from(("os", "ws")))
    draw = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, inner, generator=draw)
    weight = torch.randn(columns, inner, generator=draw)
    sat = Sat(side, latency=latency, interleave=2)
    y, cycles = simulate(x, weight, sat, flow, NofM(n, m))
    pruned = weight * n_of_m_mask(weight, NofM(n, m, 1))
    torch.testing.assert_close(y, x.double() @ pruned.double().T)
    assert cycles == sat.gemm(rows, -(-inner // m) * n, columns, flow)
    assert cycles >= rows * inner * columns * n / m / side**2


def test_by_hand() -> None:
    sat = Sat(2, latency=1, interleave=1)
    assert sat.gemm(4, 4, 4, "os") == 24  # dense
    assert sat.gemm(4, 2, 4, "os") == 16  # 2:4: the fill keeps it from half
    x = torch.ones(4, 4)
    assert simulate(x, x, sat)[1] == 24 and simulate(x, x, sat, pattern=NofM(2, 4))[1] == 16
    # a tile takes as long where it is not full
    for rows, slots, columns in ((3, 4, 4), (4, 3, 4), (4, 4, 3)):
        assert sat.gemm(rows, slots, columns, "ws") == sat.gemm(rows, 4, 4, "ws")
    assert sat.gemm(3, 4, 4, "os") == sat.gemm(4, 4, 3, "os") == 24 == simulate(x[:3], x, sat)[1]


LAYER = LayerShape("a", 64, 64, kernel=9, places=500)


def test_products_set_the_ratios_where_the_fill_and_the_memory_do_not() -> None:
    """2:8 saves half of all products in both directions, a quarter in one."""
    sat = Sat(2, bandwidth=1e9)
    big = replace(LAYER, places=50_000)
    dense = sat.cycles(big).total
    assert dense / sat.cycles(big, Bdwp("2:8")).total == pytest.approx(2, rel=0.02)
    assert sat.cycles(big, Bdwp("2:8", "forward")).total / dense == pytest.approx(0.75, rel=0.02)
    assert sat.cycles(big, Bdwp("2:4")).total / dense == pytest.approx(2 / 3, rel=0.02)


def test_a_last_group_that_is_not_full_takes_as_long_as_a_full_one() -> None:
    sat, forward = Sat(2, bandwidth=1e9), Bdwp("2:8", "forward")
    part, full = (replace(LAYER, inputs=inputs, places=500) for inputs in (20, 24))
    assert sat.cycles(part, forward).forward == sat.cycles(full, forward).forward


@given(st.integers(1, 70), st.integers(1, 70), st.sampled_from((1, 9)), st.floats(0.5, 1e3))
def test_more_of_anything_is_never_slower(
    outputs: int, inputs: int, kernel: int, bandwidth: float
) -> None:
    layer = LayerShape("a", outputs, inputs, kernel, places=30)
    sat = Sat(8, latency=4, interleave=2, bandwidth=bandwidth)
    for training in (None, Bdwp("2:4"), Bdwp("2:4", "backward")):
        cycles = sat.cycles(layer, training).total
        better = ({"bandwidth": 2 * bandwidth}, {"interleave": 4}, {"lanes": 64})
        assert all(
            replace(sat, **change).cycles(layer, training).total <= cycles for change in better
        )
        worse = ({"dataflow": "os"}, {"dataflow": "ws"})
        assert all(
            replace(sat, **change).cycles(layer, training).total >= cycles for change in worse
        )


def test_an_update_takes_as_long_as_the_slowest_of_its_parts_by_hand() -> None:
    """Weights, sorters and memory work at once: 8, 2 times 8, and a byte a cycle."""
    layer = LayerShape("a", 16, 16)  # of 256 weights
    slow, fast = (Sat(4, lanes=32, bandwidth=bytes_) for bytes_ in (1.0, 1e9))
    assert slow.pregenerate and slow.cycles(layer).update == 256 * 10
    # of each direction 64 weights of 16 bits with an index of 3
    assert slow.cycles(layer, Bdwp("2:8", "forward")).update == 256 * 10 + 64 * 19 // 8
    assert slow.cycles(layer, Bdwp("2:8")).update == 256 * 10 + 2 * 64 * 19 // 8
    assert fast.cycles(layer).update == 8 and fast.cycles(layer, Bdwp("2:8")).update == 16


def test_all_of_each_group_is_dense_work() -> None:
    sat = Sat(4, bandwidth=1e9)
    assert sat.cycles(LAYER, Bdwp("1:1")).forward == sat.cycles(LAYER).forward
    assert sat.cycles(replace(LAYER, prunes=False), Bdwp("2:8")) == sat.cycles(LAYER)


def test_a_layer_that_reads_data_has_no_backward_to_it() -> None:
    inner, stem = (Sat(4).cycles(replace(LAYER, reads_data=data)) for data in (False, True))
    assert stem == replace(inner, backward=0) and inner.backward > 0


def test_layers_are_found_by_a_forward() -> None:
    model: Any = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.Conv2d(8, 8, 3, groups=8, padding=1),
        nn.Conv2d(8, 16, 1),
        nn.Flatten(),
        nn.Linear(16 * 16, 4),
    )
    stem, depthwise, pointwise, head = layer_shapes(model, torch.zeros(1, 3, 8, 8), batch=5)
    assert stem == LayerShape("0", 8, 3, 9, 5 * 16, prunes=False, reads_data=True)
    assert depthwise == LayerShape("1", 1, 1, 9, 5 * 16, groups=8, prunes=False)
    assert pointwise == LayerShape("2", 16, 8, 1, 5 * 16)
    assert head == LayerShape("4", 4, 256, 1, 5, prunes=False)
    layers = (stem, depthwise, pointwise, head)
    assert sum(layer.weights for layer in layers) == sum(
        p.numel() for n, p in model.named_parameters() if "weight" in n
    )
    assert total(Sat(4), layers, Bdwp("2:8")) < total(Sat(4), layers)
    assert not any(m._forward_hooks for m in model.modules())
    up: Any = nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2)  # 2 to 3 channels, twice
    shapes = layer_shapes(nn.Sequential(up), torch.zeros(1, 4, 5, 5), batch=3)[0]
    assert shapes == LayerShape("0", 12, 2, 1, 3 * 25, groups=2, prunes=False, reads_data=True)
    vit = timm.create_model("test_vit", img_size=32)
    assert layer_shapes(vit, torch.zeros(1, 3, 32, 32))[1].places == 5  # tokens


def test_what_cannot_be_is_refused() -> None:
    bad: Any = ({"side": 0}, {"dataflow": "is"}, {"bandwidth": 0})
    for wrong in bad:
        with pytest.raises(ConfigError):
            Sat(**wrong)
    with refused(ShapeError, what="product"):
        simulate(torch.ones(2, 3), torch.ones(3, 2), Sat(2))
    with refused(ConfigError, what="flow", got="'is'"):
        simulate(torch.ones(2, 3), torch.ones(2, 3), Sat(2), "is")


def test_memory_takes_whole_cycles() -> None:
    """Half-precision ends of 3 inputs and outputs, and of one weight, at 7 bytes a cycle."""
    layer = LayerShape("a", 1, 1, places=3)
    slow = Sat(1, latency=1, interleave=1, bandwidth=0.7)
    assert slow.cycles(layer).forward == math.ceil((3 * 2 + 1) * 2 / 0.7) == 20
    assert Sat(1, latency=1, interleave=1, bandwidth=0.75).cycles(layer).forward == 19


@pytest.mark.parametrize("name", ["resnet18", "vit_small_patch16_224"])
def test_training_with_2_of_8_is_near_the_paper_s_1_75_times_as_fast(name: str) -> None:
    """In batches of 64 pictures of 224 px; the paper's is the mean of its nets (abstract)."""
    with torch.device("meta"):
        layers = layer_shapes(timm.create_model(name), torch.empty(1, 3, 224, 224), batch=64)
    training, full = Bdwp("2:8"), Sat()
    cycles = total(full, layers, training)
    assert 1.6 < total(full, layers) / cycles < 2.0
    # each part of the accelerator saves some
    parts = (Sat(interleave=1), Sat(pregenerate=False), Sat(dataflow="os"), Sat(dataflow="ws"))
    assert all(total(part, layers, training) > cycles for part in parts)
    assert total(full, layers, Bdwp("2:8", "forward")) > cycles
