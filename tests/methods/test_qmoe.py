"""QMoE: experts on three levels, by the rows they see; packed, mapped from a file, and folded."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

import intarsia
from intarsia.core.change import steps_of
from intarsia.core.errors import CheckpointError, ConfigError, DataError, TargetError
from intarsia.formats import Ternary
from intarsia.formats.ternary import levels_of
from intarsia.methods.qmoe import Qmoe
from intarsia.mixtures.experts import StackedExperts
from intarsia.mixtures.packed_experts import PackedExperts, packed_experts
from intarsia.scores import Statistics
from intarsia.sparse.prune.rows import batched

from ..refusals import refused

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
}
Row = dict[str, Tensor]


def plain() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(LlamaConfig(**SIZES)).eval()


def ours() -> nn.Module:
    return intarsia.upcycle(plain(), intarsia.TopK(4)).eval()


def stock() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MixtralForCausalLM(MixtralConfig(num_local_experts=4, **SIZES)).eval()


HOSTS = {"ours": (ours, plain), "stock": (stock, stock)}


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    draw = torch.Generator().manual_seed(1)
    return [{"input_ids": torch.randint(0, 64, (40,), generator=draw)} for _ in range(12)]


@torch.no_grad()
def logits(model: nn.Module, rows: list[Row]) -> Tensor:
    return model(input_ids=torch.stack([row["input_ids"] for row in rows])).logits


def mapped_from(tensor: Tensor) -> str:
    """The file whose pages a tensor's numbers are."""
    place = tensor.data_ptr()
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, last = (int(end, 16) for end in line.split()[0].split("-"))
        if first <= place < last:
            return line
    return ""


@pytest.mark.parametrize("host", HOSTS)
def test_a_mixture_is_packed_saved_mapped_and_folded(
    host: str, rows: list[Row], tmp_path: Path
) -> None:
    make, start = HOSTS[host]
    small = intarsia.apply(make(), Qmoe(), batched(rows))
    packed_logits = logits(small, rows)
    folded = Qmoe().fold(small)
    assert not packed_experts(folded) and steps_of(folded) == steps_of(make())
    torch.testing.assert_close(logits(folded, rows), packed_logits)
    for experts in packed_experts(small).values():
        for stack in experts.stacks.values():  # at most three levels a row
            mapped_stack: Any = stack
            assert all(len(row.unique()) <= 3 for row in mapped_stack.decoded().flatten(0, 1))
    intarsia.save(small, tmp_path / "small")
    again = intarsia.load(start(), tmp_path / "small")
    assert torch.equal(logits(again, rows), packed_logits)
    stack: Any = next(iter(next(iter(packed_experts(again).values())).stacks.values()))
    assert mapped_from(stack.codes).endswith("host.safetensors")


def test_by_routed_rows_it_errs_less_than_by_rounding(rows: list[Row]) -> None:
    batches = batched(rows)
    dense = logits(ours(), rows)
    off = {}
    for start in ("rtn", "gptq"):
        small = intarsia.apply(ours(), Qmoe(start=start), batches)
        off[start] = float((logits(small, rows) - dense).norm())
    assert off["gptq"] < off["rtn"]
    layer_rows = steps_of(small)[-1].plan.decided["told"]
    assert len(layer_rows) == 6 and all(row["bits"] > row["entropy"] for row in layer_rows)
    assert all("try zeros=" in row["told"] for row in layer_rows)  # far fewer than 88.5 % are 0


def test_its_damp_and_its_zeros_are_used() -> None:
    """Damped without end, moments say nothing: each weight is rounded to its nearest level."""
    draw = torch.Generator().manual_seed(2)
    weights, mixing = torch.randn(2, 4, 24, generator=draw), torch.randn(24, 24, generator=draw)
    seen = [Statistics.of(torch.randn(60, 24, generator=draw) @ mixing, hessian=True)] * 2
    levels = levels_of(weights.flatten(0, 1))
    near = Qmoe(start="rtn").rounded(weights, seen, levels)[0]
    assert torch.equal(Qmoe(damp=1e9).rounded(weights, seen, levels)[0], near)
    assert not torch.equal(Qmoe(damp=0.01).rounded(weights, seen, levels)[0], near)
    assert Qmoe(zeros=0.6).form == Ternary(0.6)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_packed_experts_compute_what_stacked_ones_of_the_same_numbers_do(
    gated: bool, bias: bool
) -> None:
    model = nn.Sequential()
    draw = torch.Generator().manual_seed(0)
    model.add_module("experts", StackedExperts(3, 6, 7, 5, gated=gated, bias=bias, generator=draw))
    experts: Any = model.get_submodule("experts")
    for name in ("up", "gate", "down"):
        if (w := getattr(experts, name)) is not None:
            flat = levels_of(w.detach().flatten(0, 1))  # any two levels and 0
            signs = torch.randint(0, 3, w.shape, generator=draw)
            level = torch.cat([torch.zeros(len(flat), 1), flat], 1).view(*w.shape[:2], 3)
            w.data = level.gather(2, signs)
        if bias and (b := getattr(experts, f"{name}_bias")) is not None:
            b.data.normal_(generator=draw)
    want = copy.deepcopy(experts)
    packed_module = packed_of(experts)
    x = torch.randn(9, 6, generator=draw)
    expert_of_row = torch.tensor([0, 0, 0, 0, 0, 0, 2, 2, 2])
    torch.testing.assert_close(packed_module(x, expert_of_row), want(x, expert_of_row))
    torch.testing.assert_close(packed_module.every(x), want.every(x))
    torch.testing.assert_close(
        packed_module.hidden(x, expert_of_row), want.hidden(x, expert_of_row)
    )
    assert packed_module(x[:0], expert_of_row[:0]).shape == (0, 5)
    with refused(ConfigError, what="experts", got="packed ones"):
        packed_module.keep(torch.tensor([0]))


@pytest.mark.parametrize(
    ("host", "layers"),
    [("ours", "*.experts.up.*"), ("ours", "*.experts.down.*"), ("stock", "*.gate_up_proj.*")],
)
def test_some_stacks_are_packed_and_the_others_stay(
    host: str, layers: str, rows: list[Row], tmp_path: Path
) -> None:
    make, start = HOSTS[host]
    small = intarsia.apply(make(), Qmoe(start="rtn", layers=(layers,)))
    assert all(len(experts.stacks) == 1 for experts in packed_experts(small).values())
    packed_logits = logits(small, rows)
    torch.testing.assert_close(logits(Qmoe().fold(small), rows), packed_logits)
    intarsia.save(small, tmp_path / "small")
    again = intarsia.load(start(), tmp_path / "small")
    assert torch.equal(logits(again, rows), packed_logits)


def packed_of(experts: StackedExperts) -> PackedExperts:
    from intarsia.kernels.experts import stacked_matrices
    from intarsia.mixtures.packed_experts import PackedStack, packed

    stacks = {}
    for name in stacked_matrices(experts):
        weight = getattr(experts, name).detach()
        stored = Ternary().encode(weight.flatten(0, 1))
        stacks[name] = PackedStack(Ternary(), stored, tuple(weight.shape))
    packed_module = packed(experts, stacks)
    assert isinstance(packed_module, PackedExperts)
    return packed_module


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: d["settings"].update(zeros=0.9),
        lambda d: d["decided"].update(layout=2),
        lambda d: next(iter(d["decided"]["stacks"].values())).update(codes=10**12),
    ],
)
def test_a_folder_that_was_changed_is_refused(
    damage: Callable[[Any], Any], rows: list[Row], tmp_path: Path
) -> None:
    small = intarsia.apply(ours(), Qmoe(start="rtn"))
    intarsia.save(small, tmp_path / "small")
    path = tmp_path / "small" / "intarsia.json"
    content = json.loads(path.read_text())
    damage(content["steps"][-1])
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError):
        intarsia.load(plain(), tmp_path / "small")


def test_what_cannot_be_is_refused(rows: list[Row]) -> None:
    with refused(TargetError, what="stacks of experts"):
        Qmoe(start="rtn").plan(plain())
    with refused(DataError, what="calibration", got="0 rows of 0 tokens and more"):
        Qmoe().plan(ours())
    for settings in ({"start": "best"}, {"damp": 0}, {"zeros": 0.2}):
        with pytest.raises(ConfigError):
            Qmoe(**settings)
