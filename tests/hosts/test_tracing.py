"""Recording listens and changes nothing; a relabelled model routes each token as before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

import intarsia
from intarsia.core.errors import ConfigError, DataError, TargetError
from intarsia.hosts.tracing import recording
from intarsia.placement import ExpertSize, Placement

from ..refusals import refused

SIZES: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_experts_per_tok": 2,
}
IDS = torch.randint(61, (3, 9), generator=torch.Generator().manual_seed(0))


def mixtral(experts: int = 8, **settings: Any) -> nn.Module:
    torch.manual_seed(0)
    config = MixtralConfig(**SIZES, intermediate_size=16, num_local_experts=experts, **settings)
    return MixtralForCausalLM(config).eval()


def qwen() -> nn.Module:
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        **SIZES, intermediate_size=16, moe_intermediate_size=16, num_experts=8, mlp_only_layers=[]
    )
    return Qwen3MoeForCausalLM(config).eval()


def gpt_oss() -> nn.Module:
    torch.manual_seed(0)
    config = GptOssConfig(**SIZES, intermediate_size=16, num_local_experts=8)
    model = GptOssForCausalLM(config).eval()
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(weight)
    return model


def deepseek(groups: int = 1) -> nn.Module:
    torch.manual_seed(0)
    config = DeepseekV3Config(
        **{**SIZES, "head_dim": 4},
        intermediate_size=16,
        moe_intermediate_size=16,
        n_routed_experts=8,
        n_group=groups,
        topk_group=1,
        first_k_dense_replace=0,
        q_lora_rank=None,
        kv_lora_rank=8,
        qk_rope_head_dim=4,
        qk_nope_head_dim=4,
        v_head_dim=8,
    )
    model = DeepseekV3ForCausalLM(config).eval()
    for layer in model.model.layers:
        nn.init.normal_(layer.mlp.gate.e_score_correction_bias, std=0.1)
    return model


def ours() -> nn.Module:
    dense = MixtralForCausalLM(MixtralConfig(**SIZES, intermediate_size=16, num_local_experts=8))
    for layer in dense.model.layers:
        experts = intarsia.mixtures.StackedExperts(
            8, 16, 16, gated=True, act="silu", generator=torch.Generator().manual_seed(1)
        )
        router = intarsia.TopK(8, 2).build(16, generator=torch.Generator().manual_seed(2))
        layer.mlp = intarsia.mixtures.Mixture(experts, router)
    return dense.eval()


MODELS = {"mixtral": mixtral, "qwen": qwen, "gpt-oss": gpt_oss, "deepseek": deepseek, "ours": ours}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_a_relabelled_model_is_the_same_and_comes_back(make: Any) -> None:
    model = make()
    with torch.no_grad():
        want = model(IDS).logits
        before = intarsia.trace(model, [IDS])
        assert torch.equal(model(IDS).logits, want), "recording left something behind"
        state = {name: t.clone() for name, t in model.state_dict().items()}
        placed = intarsia.place(before, 4)
        order = placed.relabelling()
        assert bool((order != torch.arange(8)).any())
        intarsia.experts.relabel(model, placed)
        assert_close(model(IDS).logits, want, atol=1e-5, rtol=1e-4)
        after = intarsia.trace(model, [IDS])
        old = torch.stack([order[index][after.expert[:, index].long()] for index in range(2)], 1)
        assert torch.equal(old.sort(2).values, before.expert.long().sort(2).values)
        owner = Placement.contiguous(2, 8, 4).owner
        assert torch.equal(owner.gather(1, order.argsort(1)), placed.owner)
        intarsia.experts.relabel(model, order.argsort(1))
    again = model.state_dict()
    assert all(torch.equal(again[name], t) for name, t in state.items())


OWN_BIAS: dict[str, Any] = {  # of the choice: beside the gate, or a row of its own
    "Afmoe": {"num_experts": 8, "num_dense_layers": 0, "global_attn_every_n_layers": 1},
    "Ernie4_5_Moe": {"moe_num_experts": 8, "moe_k": 2, "moe_layer_start_index": 0},
    "Lfm2Moe": {"num_experts": 8, "num_dense_layers": 0, "layer_types": ["full_attention"] * 2},
}


@torch.no_grad()
@pytest.mark.parametrize("name", OWN_BIAS)
def test_a_bias_of_the_choice_moves_with_its_expert(name: str) -> None:
    import transformers

    torch.manual_seed(0)
    sizes = SIZES | OWN_BIAS[name] | {"intermediate_size": 16, "moe_intermediate_size": 16}
    config = getattr(transformers, f"{name}Config")(**sizes)
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    biases = [t for n, t in model.state_dict().items() if n.endswith(("expert_bias", "n_bias"))]
    for bias in biases:
        bias.normal_()
    want = model(IDS).logits
    order = torch.stack([torch.arange(8).roll(index + 1) for index in range(2)])
    intarsia.experts.relabel(model, order)
    assert len(biases) == 2
    assert_close(model(IDS).logits, want, atol=1e-5, rtol=1e-4)


def test_a_trace_is_what_the_gate_says() -> None:
    model: Any = mixtral()
    gates: dict[int, Any] = {}
    for number, layer in enumerate(model.model.layers):
        layer.mlp.gate.register_forward_hook(
            lambda _, __, out, number=number: gates.update({number: out})
        )
    trace = intarsia.trace(model, [IDS])
    for layer, (_, weights, index) in gates.items():
        assert torch.equal(trace.expert[:, layer].long(), index)
        assert trace.weight is not None and torch.equal(trace.weight[:, layer], weights)
    assert trace.names == tuple(f"model.layers.{n}.mlp.experts" for n in range(2))
    assert trace.token is not None and torch.equal(trace.token, IDS.flatten())
    assert trace.sequence.tolist() == [n for n in range(3) for _ in range(9)]
    assert ExpertSize.of(trace) == ExpertSize(16, 16)


def test_padding_is_left_out_and_rows_may_come_one_by_one() -> None:
    model = mixtral()
    mask = torch.ones_like(IDS)
    mask[1, 6:] = 0
    full = intarsia.trace(model, [{"input_ids": IDS, "attention_mask": mask}])
    assert full.sequence.bincount().tolist() == [9, 6, 9]
    rows = [{"input_ids": IDS[0], "labels": IDS[0]}, {"input_ids": IDS[1, :6]}, (IDS[2:], None)]
    assert torch.equal(intarsia.trace(model, rows).expert, full.expert)


def test_a_router_that_gives_tokens_different_numbers_is_traced() -> None:
    model: Any = ours()
    for layer in model.model.layers:
        build = intarsia.routers.TopP(8, 0.4).build
        layer.mlp.router = build(16, generator=torch.Generator().manual_seed(2)).eval()
    trace = intarsia.trace(model, [IDS])
    counts = (trace.expert >= 0).sum(2)
    assert counts.unique().numel() > 1 and int(counts.min()) >= 1
    assert torch.equal(trace.load(), torch.stack([trace.routing(n).load() for n in range(2)]))


def test_a_file_written_with_a_placement_is_a_stock_model(tmp_path: Path) -> None:
    from intarsia.sparse.swap.relabel import write_relabelled

    model: Any = mixtral()
    model.to(torch.bfloat16).save_pretrained(tmp_path / "old")
    tokens(tmp_path / "old")
    placed = intarsia.place(intarsia.trace(model, [IDS]), 4)
    write_relabelled(str(tmp_path / "old"), tmp_path / "new", placed)
    back = Placement.of(placed.owner.gather(1, placed.relabelling()), 4)
    assert torch.equal(back.owner, Placement.contiguous(2, 8, 4).owner)
    again: Any = MixtralForCausalLM.from_pretrained(tmp_path / "new", dtype="auto").eval()
    assert again.dtype == torch.bfloat16 and again.config.use_cache
    with torch.no_grad():
        assert torch.equal(again(IDS).logits.argmax(-1), model(IDS).logits.argmax(-1))
    intarsia.experts.relabel(again, placed.relabelling().argsort(1))
    state = model.state_dict()
    assert all(torch.equal(t, state[name]) for name, t in again.state_dict().items())


def tokens(folder: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers import models as of
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(of.WordLevel({"a": 0, "b": 1}, unk_token="a"))  # noqa: S106
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="a").save_pretrained(folder)  # noqa: S106


def test_what_cannot_be_traced_or_relabelled_is_refused() -> None:
    plain = nn.Linear(2, 2)
    with refused(TargetError, what="model to trace"), recording(plain):
        pass
    with refused(TargetError, what="model to relabel"):
        intarsia.experts.relabel(plain, Placement.contiguous(1, 4, 2))
    with refused(DataError, what="texts", got="no tokens"):
        intarsia.trace(mixtral(), [])
    model = mixtral()
    with refused(ConfigError, what="placement", got="2 layers of 4 experts"):
        intarsia.experts.relabel(model, Placement.contiguous(2, 4, 2))
    with refused(ConfigError, what="placement", got="8 experts"):
        intarsia.experts.relabel(model, torch.arange(8))
    with refused(ConfigError, what="placement", got="an order that leaves experts out"):
        intarsia.experts.relabel(model, torch.zeros(2, 8))
    grouped, order = deepseek(groups=2), torch.arange(8).repeat(2, 1)
    with refused(
        ConfigError, what="placement", got="an order that mixes the router's 2 groups of experts"
    ):
        intarsia.experts.relabel(grouped, order.roll(1, 1))
    want = grouped(IDS).logits
    intarsia.experts.relabel(grouped, order.view(2, 2, 4).flip(1).flatten(1))
    assert_close(grouped(IDS).logits, want, atol=1e-5, rtol=1e-4)
    with refused(TargetError, what="model", got="one with adapters"):
        intarsia.experts.relabel(intarsia.adapt(mixtral(), intarsia.Lora()), order)
    routed = intarsia.upcycle(mixtral(), intarsia.TopK())
    with refused(TargetError, what="gate beside 'model.layers.0.mlp.experts'"):
        intarsia.experts.relabel(routed, order)
