"""The survey's harness: pairs run or are refused, lossless ones are, bytes are the formula's."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers
from transformers import MixtralConfig, MixtralForCausalLM

from intarsia.core.errors import ConfigError, TargetError, UnknownName
from intarsia.runs.stack import broken, conflict, parsed, stack_of, stack_pairs, stacked
from intarsia.runs.stack_entries import ENTRIES, Stacked, trace_of
from intarsia.runs.stack_measures import _operations, expected_bytes, stored_bytes
from intarsia.sparse.swap.stock import (
    expert_inputs,
    factors,
    gated_experts,
    keep_stock_experts,
    merge_stock_experts,
    skipping,
)

from ..refusals import refused

WORDS = 32


@pytest.fixture(scope="module")
def model() -> Any:
    config = MixtralConfig(
        vocab_size=WORDS,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=8,
        tie_word_embeddings=True,
        initializer_range=0.2,
        max_position_embeddings=32,
    )
    torch.manual_seed(0)
    mixtral: Any = MixtralForCausalLM(config).eval()
    mixtral.set_experts_implementation("eager")
    return mixtral


def batches(seed: int) -> list[dict[str, torch.Tensor]]:
    draws = torch.Generator().manual_seed(seed)
    return [{"input_ids": torch.randint(WORDS, (4, 12), generator=draws)} for _ in range(2)]


CALIBRATION, ROWS = batches(0), batches(1)
DEFAULTS = {name: entry.default for name, entry in ENTRIES.items()}
DEFAULTS |= {"prune": "0.5", "merge": "0.5"}  # four devices divide what is left


def test_all_pairs_run_or_are_refused_for_a_reason(model: Any) -> None:
    before = {n: t.clone() for n, t in model.state_dict().items()}
    table = stack_pairs(model, DEFAULTS, CALIBRATION, ROWS[:1])
    assert len(table.found) + len(table.refused) == 1 + 8 + 28
    assert set(table.refused) == {
        ("prune", "student"),
        ("merge", "student"),
        ("student", "skip"),
        ("student", "place"),
    }
    assert broken(table) == []
    none, quant = table.found[()], table.found["quant",]
    assert quant.bytes < none.bytes and table.found["skip",].operations < none.operations
    assert table.found["prune", "quant"].bytes < min(quant.bytes, table.found["prune",].bytes)
    mean, low, high = table.interaction("prune", "quant")
    assert low <= mean <= high
    assert abs(table.interaction("place", "offload")[0]) < 1e-5
    front = table.front()
    assert front and all(table.found[k].bytes <= none.bytes for k in front)
    rows = table.rows()
    assert len(rows) == len(table.found) and sum(r["front"] for r in rows) == len(front)
    again = stack_of(model, {"quant": "w4"}, CALIBRATION, ROWS[:1])
    assert torch.equal(again.found["quant",].each, quant.each)
    for name, old in before.items():
        assert torch.equal(model.state_dict()[name], old)


@pytest.mark.parametrize("names", [(), ("quant",), ("lowrank",), ("lowrank", "quant"), ("prune",)])
def test_bytes_are_those_of_the_formula(model: Any, names: tuple[str, ...]) -> None:
    on = Stacked(copy.deepcopy(model), CALIBRATION)
    for name in names:
        ENTRIES[name].carry(on, "0.5" if name == "lowrank" else DEFAULTS[name])
    assert stored_bytes(on) == expected_bytes(on)
    if "lowrank" in names:
        assert on.stored


def test_entries_that_do_nothing_do_nothing(model: Any) -> None:
    table = stack_of(model, {"prune": "0", "skip": "0"}, CALIBRATION, ROWS)
    assert torch.equal(table.found["prune", "skip"].each, table.found[()].each)


def test_skipped_tokens_have_the_first_expert_alone(model: Any) -> None:
    always = dict.fromkeys(gated_experts(model), 2.0)
    alone = copy.deepcopy(model)
    for layer in alone.model.layers:
        layer.mlp.gate.top_k = 1
    with torch.no_grad(), skipping(model, always):
        torch.testing.assert_close(model(**ROWS[0]).logits, alone(**ROWS[0]).logits)


def test_copies_merge_into_what_they_were(model: Any) -> None:
    doubled = copy.deepcopy(model)
    for layer in doubled.model.layers:
        experts = layer.mlp.experts
        order = torch.randperm(16, generator=torch.Generator().manual_seed(3))
        with torch.no_grad():  # the second half: the first half's experts, units in another order
            gate, up = experts.gate_up_proj[:4].chunk(2, 1)
            experts.gate_up_proj[4:] = torch.cat([gate[:, order], up[:, order]], 1)
            experts.down_proj[4:] = experts.down_proj[:4][:, :, order]
    first = [layer.mlp.experts.down_proj[:4].clone() for layer in doubled.model.layers]
    merge_stock_experts(doubled, expert_inputs(doubled, CALIBRATION), 4)
    for layer, down in zip(doubled.model.layers, first, strict=True):
        got = layer.mlp.experts.down_proj
        for rows in got:  # each is one of them, its units in some order
            assert any(
                torch.allclose(rows.sort(1).values, units.sort(1).values, atol=1e-5)
                for units in down
            )


def test_factors_keep_the_energy_they_are_told() -> None:
    draws = torch.Generator().manual_seed(0)
    low = torch.randn(24, 3, generator=draws) @ torch.randn(3, 20, generator=draws)
    x = torch.randn(64, 20, generator=draws)
    u, v = factors(low, x, 0.999999) or (torch.empty(0), torch.empty(0))
    assert u.shape == (24, 3)
    torch.testing.assert_close(u @ v, low, rtol=1e-3, atol=1e-3)
    assert factors(torch.randn(24, 20, generator=draws), x, 1.0) is None
    wide = torch.randn(24, 20, generator=draws)
    x[:, 3:] = 0  # only three inputs are ever used
    u, v = factors(wide, x, 0.99) or (torch.empty(0), torch.empty(0))
    torch.testing.assert_close(x @ (u @ v).T, x @ wide.T, rtol=0.1, atol=0.8)


def test_what_cannot_be_is_refused(model: Any) -> None:
    assert parsed("prune:0.5, quant") == {"prune": "0.5", "quant": "w4"}
    assert conflict(("student", "prune")) == "prune and student: both decide which experts are left"
    for error, words, spec in (
        (UnknownName, "Did you mean quant", "qant"),
        (ConfigError, "twice", "quant,quant"),
        (ConfigError, "prune:0.25,place:home", "place,prune"),
        (ConfigError, "both decide", "prune,student"),
        (ConfigError, "none", ""),
    ):
        with pytest.raises(error, match=words):
            parsed(spec)
    assert parsed("prune,student", alone=True)
    for name, value in (
        ("prune", "x"),
        ("student", "9"),
        ("skip", "2"),
        ("place", "near"),
        ("lowrank", "0"),
        ("quant", "w5"),
        ("offload", "fifo"),
    ):
        with pytest.raises(ConfigError):
            stacked(model, {name: value}, CALIBRATION, ROWS)
    with refused(TargetError, what="model", got="a Linear without stock experts"):
        gated_experts(torch.nn.Linear(2, 2))
    with refused(TargetError, what="experts to keep", got="[1] experts in 1 layers"):
        keep_stock_experts(model, {"model.layers.0.mlp.experts": [0]})


def test_an_untied_embedding_is_looked_up(model: Any) -> None:
    config = copy.deepcopy(model.config)
    config.tie_word_embeddings = False
    stacks = (Stacked(m, CALIBRATION) for m in (model, MixtralForCausalLM(config).eval()))
    tied, untied = (_operations(on, trace_of(on, ROWS)) for on in stacks)
    assert tied == untied


@torch.no_grad()
@pytest.mark.parametrize("name", ["Glm4Moe", "Ernie4_5_Moe"])
def test_a_bias_of_the_choice_stays_with_its_expert(name: str) -> None:
    sizes: dict[str, Any] = {"vocab_size": WORDS, "hidden_size": 16, "num_hidden_layers": 2}
    sizes |= {"intermediate_size": 16, "moe_intermediate_size": 16, "num_attention_heads": 2}
    sizes |= {"num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0}
    sizes_of_kind = {"n_routed_experts": 8, "num_experts_per_tok": 2, "first_k_dense_replace": 0}
    if name != "Glm4Moe":
        sizes_of_kind = {"moe_num_experts": 8, "moe_k": 2, "moe_layer_start_index": 0}
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**sizes, **sizes_of_kind)
    full = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    small, keep = copy.deepcopy(full), [1, 2, 5, 7]
    for bias, cut_bias in zip(biases(full), biases(small), strict=True):
        cut_bias.copy_(bias.normal_())
        bias[..., [0, 3, 4, 6]] = -1e4  # chosen by no token
    keep_stock_experts(small, dict.fromkeys(gated_experts(small), keep))
    got = small(**ROWS[0]).logits
    for bias, cut_bias in zip(biases(full), biases(small), strict=True):
        assert torch.equal(bias[..., keep], cut_bias)
    if name == "Glm4Moe":  # by sigmoids, which do not depend on the others
        torch.testing.assert_close(got, full(**ROWS[0]).logits)
    small.config.n_group = 2
    with refused(TargetError, what="experts to keep", got="a router of 2 groups of experts"):
        keep_stock_experts(small, dict.fromkeys(gated_experts(small), [0, 1]))


def biases(model: Any) -> list[torch.Tensor]:
    tensors = [t for n, t in model.state_dict().items() if n.endswith("e_score_correction_bias")]
    assert len(tensors) == 2
    return tensors


@pytest.mark.parametrize(
    "spec", ["prune:2", "merge:x", "student:0", "skip:-1", "place:here", "lowrank:0", "quant:w5",
             "offload:best"],
)  # fmt: skip
def test_a_value_that_an_entry_does_not_take_is_refused_without_a_model(spec: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parsed(spec)
    assert spec.partition(":")[2] in str(caught.value.got) or caught.value.got == -1.0
