"""S2FT's cells: slices of a weight, their gradients, and tensors kept for the backward."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.testing import assert_close

from intarsia.core import Site
from intarsia.core.errors import (
    CheckpointError,
    ConfigError,
    ShapeError,
    TargetError,
    UnknownName,
)
from intarsia.methods import S2ft, S2ftCell
from intarsia.methods.s2ft.channels import read, spell

from ..refusals import refused

SIDES = {"down": "b.mlp.down_proj", "up": "b.mlp.up_proj"}


def build(family: str, ids: str, inputs: int = 6, outputs: int = 5) -> S2ftCell:
    """A cell in float64 on chosen channels whose slice is not zero."""
    path = SIDES[family]
    config = S2ft(**{"down": 0.0, family: 0.5}, channels=((path, ids),))
    cell = config.build(Site(path, inputs, outputs), generator=torch.Generator()).double()
    nn.init.normal_(cell.weight, generator=torch.Generator().manual_seed(1))
    return cell


def frozen(inputs: int = 6, outputs: int = 5, bias: bool = True) -> nn.Linear:
    torch.manual_seed(2)
    return nn.Linear(inputs, outputs, bias=bias).double().requires_grad_(False)


def slice_of(weight: Tensor, cell: S2ftCell) -> Tensor:
    """The cell's part of a matrix (out, in)."""
    return weight[:, cell.channels] if cell.side == "inputs" else weight[cell.channels]


@given(st.sets(st.integers(0, 40), min_size=1))
def test_channel_texts_round_trip(ids: set[int]) -> None:
    assert read(spell(ids)) == sorted(ids)
    assert spell([3, 7, 9, 10, 11, 12]) == "3,7,9-12"


@pytest.mark.parametrize("text", ["", "a", "3-", "-3", "5,3", "3,3", "1-4,2", "4-2", "1,,2"])
def test_other_text_is_refused(text: str) -> None:
    with refused(ConfigError, what="channels"):
        read(text)


@pytest.mark.parametrize("family", SIDES)
@pytest.mark.parametrize("ids", ["0,3-4", "1-3", "4"])
@pytest.mark.parametrize("lead", [(), (3,), (2, 3), (2, 1, 3), (0, 2)])
@pytest.mark.parametrize("bias", [True, False])
def test_the_fast_path_equals_the_naive_sum(
    family: str, ids: str, lead: tuple[int, ...], bias: bool
) -> None:
    cell, layer = build(family, ids), frozen(bias=bias)
    x = torch.randn(*lead, 6, dtype=torch.float64)
    given_to = [x.clone().requires_grad_() for _ in range(3)]
    w = layer.weight + cell.delta()
    want = nn.functional.linear(given_to[0], w, layer.bias)
    naive = layer(given_to[1]) + cell(given_to[1])
    fast = cell.around(layer, given_to[2])
    assert_close(naive, want)
    assert_close(fast, want)
    dy = torch.randn(want.shape, dtype=torch.float64)
    grads = []
    for y, x_ in zip((want, naive, fast), given_to, strict=True):
        cell.zero_grad()
        y.backward(dy)
        grads.append((x_.grad, cell.weight.grad))
    assert_close(grads[1], grads[0])
    assert_close(grads[2], grads[0])
    assert torch.equal(given_to[2].detach(), x)


@pytest.mark.parametrize("family", SIDES)
@pytest.mark.parametrize("ids", ["0,3-4", "1-3"])
def test_the_gradient_is_the_slice_of_the_full_gradient(family: str, ids: str) -> None:
    cell, layer, x = build(family, ids), frozen(), torch.randn(4, 3, 6, dtype=torch.float64)
    full = copy.deepcopy(layer).requires_grad_(True)
    with torch.no_grad():
        full.weight.add_(cell.delta())
    full(x).square().sum().backward()
    cell.around(layer, x).square().sum().backward()
    assert full.weight.grad is not None
    assert_close(cell.weight.grad, slice_of(full.weight.grad, cell))


@pytest.mark.parametrize("family", SIDES)
def test_share_one_is_full_fine_tuning_of_the_matrix(family: str) -> None:
    path = SIDES[family]
    config = S2ft(**{"down": 0.0, family: 1.0})
    cell = config.build(Site(path, 6, 5), generator=torch.Generator()).double()
    layer = frozen()
    full = copy.deepcopy(layer)
    full.weight.requires_grad_(True)
    ours, theirs = torch.optim.Adam([cell.weight], 0.1), torch.optim.Adam([full.weight], 0.1)
    x, want = torch.randn(7, 6).double(), torch.randn(7, 5).double()
    for _ in range(5):
        for optimizer, y in ((ours, cell.around(layer, x)), (theirs, full(x))):
            optimizer.zero_grad()
            (y - want).square().sum().backward()
            optimizer.step()
    assert_close(layer.weight + cell.delta(), full.weight)


def kept_bytes(y: Any, weights: list[Tensor]) -> int:
    """Bytes of the storages kept for the backward by a call, but for weights and numbers."""
    storages: dict[int, Tensor] = {}

    def pack(t: Tensor) -> Tensor:
        storages[t.untyped_storage().data_ptr()] = t
        return t

    with saved_tensors_hooks(pack, lambda t: t):
        y()
    parameter_storages = {w.untyped_storage().data_ptr() for w in weights}
    saved = [
        t for p, t in storages.items() if p not in parameter_storages and t.is_floating_point()
    ]
    return sum(t.untyped_storage().nbytes() for t in saved)


@pytest.mark.parametrize("ids", ["0,3-4", "1-3"])
def test_columns_keep_only_their_channels(ids: str) -> None:
    cell, layer = build("down", ids, inputs=40), frozen(inputs=40)
    x = torch.randn(8, 16, 40, dtype=torch.float64, requires_grad=True)
    # storages, not views: a view of three channels would keep all of x
    got = kept_bytes(lambda: cell.around(layer, x), [layer.weight, cell.weight])
    assert got == 8 * 16 * 3 * 8
    full = copy.deepcopy(layer).requires_grad_(True)
    assert kept_bytes(lambda: full(x), [full.weight]) == x.nbytes


def test_the_naive_path_indexed_keeps_only_its_channels() -> None:
    cell, x = build("down", "0,3-4", inputs=40), torch.randn(8, 40, dtype=torch.float64)
    assert kept_bytes(lambda: cell(x), [cell.weight]) == 8 * 3 * 8


def test_rows_keep_their_input() -> None:
    cell, layer = build("up", "0,3-4"), frozen()
    x = torch.randn(8, 6, dtype=torch.float64)
    assert kept_bytes(lambda: cell.around(layer, x), [layer.weight, cell.weight]) == x.nbytes


def test_the_first_layer_computes_no_gradient_of_its_input() -> None:
    cell, layer = build("down", "1-3"), frozen()
    x = torch.randn(4, 6, dtype=torch.float64)
    cell.around(layer, x).sum().backward()
    assert x.grad is None and cell.weight.grad is not None


@pytest.mark.parametrize("family", SIDES)
def test_layers_that_cannot_be_fused_use_the_sum(family: str) -> None:
    cell, x = build(family, "1,3"), torch.randn(3, 6, dtype=torch.float64)

    class Other(nn.Linear):
        pass

    layer = frozen()
    want = layer(x) + cell(x)
    subclass = Other(6, 5).double()
    subclass.load_state_dict(layer.state_dict())
    assert_close(cell.around(subclass, x), want)
    # a layer that learns itself, or is watched by a hook, is called as it is
    open_ = copy.deepcopy(layer).requires_grad_(True)
    cell.around(open_, x).sum().backward()
    assert open_.weight.grad is not None
    calls = []
    layer.register_forward_hook(lambda *_: calls.append(1))
    assert_close(cell.around(layer, x), want)
    assert calls


@pytest.mark.parametrize("family", SIDES)
def test_autocast_computes_in_half_and_trains_in_single_precision(family: str) -> None:
    cell, layer = build(family, "1,3").float(), frozen().float()
    x = torch.randn(4, 6, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = cell.around(layer, x)
        want = layer(x) + cell(x)
    assert y.dtype == torch.bfloat16
    assert_close(y, want, rtol=3e-2, atol=3e-2)
    y.float().square().sum().backward()
    assert cell.weight.grad is not None and cell.weight.grad.dtype == torch.float32


def test_a_half_precision_trunk_keeps_its_dtype_and_the_cell_its_precision() -> None:
    cell, layer = build("down", "1,3").float(), frozen().bfloat16()
    y = cell.around(layer, torch.randn(4, 6).bfloat16())
    assert y.dtype == torch.bfloat16


def test_disjoint_cells_add_without_touching_each_other() -> None:
    a, b = build("down", "0-1"), build("down", "3,5")
    x = torch.randn(4, 6, dtype=torch.float64)
    assert not (a.delta().bool() & b.delta().bool()).any()
    assert_close(a(x) + b(x), x @ (a.delta() + b.delta()).T)


def test_fuse_and_unfuse_return_the_weight() -> None:
    for family in SIDES:
        cell, layer = build(family, "1,3"), frozen()
        w = layer.weight.clone()
        with torch.no_grad():
            layer.weight.add_(cell.delta())
            layer.weight.sub_(cell.delta())
        rest = torch.ones_like(w, dtype=torch.bool)
        rest[(slice(None), cell.channels) if cell.side == "inputs" else cell.channels] = False
        assert torch.equal(layer.weight[rest], w[rest])  # untouched, to the bit
        assert_close(layer.weight, w, rtol=0, atol=1e-15)


def test_a_loaded_cell_has_its_saved_channels() -> None:
    cell = build("down", "0,3-4")
    again = build("down", "1-3")
    assert again.run == slice(1, 4) and cell.run is None
    again.load_state_dict(cell.state_dict())
    assert again.run is None and again.channels.tolist() == [0, 3, 4]
    x = torch.randn(2, 6, dtype=torch.float64)
    assert torch.equal(again(x), cell(x))
    state = cell.state_dict() | {"channels": torch.tensor([0, 3, 6])}
    with refused(CheckpointError, what="channels"):
        again.load_state_dict(state)


@pytest.mark.parametrize("family", SIDES)
def test_a_cell_follows_a_permutation(family: str) -> None:
    cell, layer = build(family, "0,3-4"), frozen()
    width = 6 if family == "down" else 5
    order = torch.randperm(width, generator=torch.Generator().manual_seed(3))
    before = layer.weight + cell.delta()
    cell.renumber(order.argsort())
    index = (slice(None), order) if family == "down" else (order,)
    assert_close(layer.weight[index] + cell.delta(), before[index])
    assert cell.channels.tolist() == sorted(cell.channels.tolist())


def test_without_channels_each_layer_draws_its_own() -> None:
    cells = [
        S2ft(down=0.5).build(Site("a.fc2", 9, 4), generator=torch.Generator().manual_seed(seed))
        for seed in range(20)
    ]
    assert {len(c.channels) for c in cells} == {5}
    assert {i for c in cells for i in c.channels.tolist()} == set(range(9))


def test_values_of_a_fused_layer_are_its_last_third() -> None:
    config = S2ft(down=0, value=1.0)
    cell = config.build(Site("a.qkv", 4, 12), generator=torch.Generator())
    assert cell.channels.tolist() == [8, 9, 10, 11]
    with refused(TargetError, what="values in the fused layer 'a.qkv'"):
        config.build(Site("a.qkv", 4, 8), generator=torch.Generator())


def test_families_depend_on_the_end_of_the_path() -> None:
    config = S2ft(down=0.1, output=0.1, up=0.1, value=0.1)
    families = {
        path: config.family(path)
        for path in (
            "l.0.mlp.down_proj", "blocks.0.mlp.fc2", "l.0.output.dense", "l.attention.output.dense",
            "l.intermediate.dense", "b.attn.proj", "a.qkv", "a.v_proj", "a.q_proj", "m.gate_proj",
            "lin0",
        )
    }  # fmt: skip
    want = ["down", "down", "down", "output", "up", "output", "value", "value", None, None, "down"]
    assert list(families.values()) == want
    assert S2ft(down=0, up=0.1).family("lin0") == "up"
    assert S2ft(down=0, up=0.1).family("m.fc2") is None


@pytest.mark.parametrize("name", ["down", "output", "up", "value"])
@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_shares_outside_zero_to_one_are_refused(name: str, share: float) -> None:
    with pytest.raises(ConfigError, match=f"{name}: got {share}, want 0 ... 1"):
        S2ft(**{name: share})


def test_bad_settings_are_refused() -> None:
    with refused(ConfigError, what="shares", got="0 for each of down, output, up and value"):
        S2ft(down=0)
    with refused(UnknownName, what="selection", got="'randon'", near=("random",)):
        S2ft(selection="randon")
    with refused(UnknownName, what="order", got="'biggest'"):
        S2ft(order="biggest")
    site, generator = Site("a.fc2", 9, 4), torch.Generator()
    with refused(ConfigError, what="down", got="0.01 of 9 channels, which selects nothing"):
        S2ft(down=0.01).build(site, generator=generator)
    with refused(ShapeError, what="channels of 'a.fc2'"):
        S2ft(channels=(("a.fc2", "8-9"),)).build(site, generator=generator)
    with refused(TargetError, what="target 'a.gate_proj'"):
        S2ft().build(Site("a.gate_proj", 9, 4), generator=generator)


def test_compiled_outputs_are_the_same() -> None:
    for family, ids in itertools.product(SIDES, ["1-3", "0,4"]):
        cell, layer = build(family, ids), frozen()
        x = torch.randn(3, 6, dtype=torch.float64)
        compiled = torch.compile(lambda x, c=cell, f=layer: c.around(f, x), backend="eager")
        assert_close(compiled(x), layer(x) + cell(x))
