"""Sparse models of transformers: which gates are replaced, and that `TopK` follows them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor
from torch.testing import assert_close

import intarsia
from intarsia import TopK
from intarsia.core.errors import ConfigError, TargetError
from intarsia.hosts.anatomy.gates import OwnGate, followed
from intarsia.methods import Momentum
from intarsia.sparse.swap.upcycle import upcycle_step
from intarsia_lab.pages.hosts import host

from ..refusals import refused

IDS = torch.randint(64, (2, 7), generator=torch.Generator().manual_seed(0))
SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "num_experts": 4, "n_routed_experts": 4,
    "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16, "head_dim": 8, "pad_token_id": 0,
}  # fmt: skip
MLA = {
    "q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8,
    "v_head_dim": 8, "num_key_value_heads": 4, "first_k_dense_replace": 1, "n_group": 1,
    "topk_group": 1, "n_shared_experts": 1, "topk_method": "greedy",
}  # fmt: skip
# name -> what differs, and what its gate is
SPARSE: dict[str, tuple[dict[str, Any], TopK]] = {
    "Mixtral": ({}, TopK(4, 2, "renormalised")),
    "Olmoe": ({"norm_topk_prob": False}, TopK(4, 2, "prob")),
    "Qwen2Moe": ({"norm_topk_prob": False, "decoder_sparse_step": 1}, TopK(4, 2, "prob")),
    "Qwen3Moe": ({"norm_topk_prob": True, "decoder_sparse_step": 1}, TopK(4, 2, "renormalised")),
    "DeepseekV2": (MLA | {"routed_scaling_factor": 2.5}, TopK(4, 2, "prob")),
    "GptOss": ({}, TopK(4, 2, "renormalised", bias=True)),
}


def sparse(name: str, **settings: Any) -> Any:
    torch.manual_seed(0)
    differs = SPARSE[name][0] if name in SPARSE else {}
    config = getattr(hf, f"{name}Config")(**SIZES | differs | settings)
    model = getattr(hf, f"{name}ForCausalLM")(config).eval()
    for parameter in model.parameters():  # gates start at zero, and biases
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.mark.parametrize("name", SPARSE)
def test_top_k_without_more_is_the_hosts_own_gate(name: str) -> None:
    want = logits(sparse(name))
    model = intarsia.upcycle(sparse(name))
    assert_close(logits(model), want, atol=1e-4, rtol=1e-4)
    step = upcycle_step(model)
    assert step is not None
    change: Any = step.plan.change
    assert change.router == SPARSE[name][1]
    model.train()(input_ids=IDS, labels=IDS).loss.backward()
    assert all(m.weight.grad is not None for m in intarsia.gating.learned_routers(model).values())


def test_a_scale_that_is_left_open_follows_and_one_that_is_said_does_not() -> None:
    want = logits(sparse("Olmoe"))
    open_ = intarsia.upcycle(sparse("Olmoe"), TopK(4, 2, balance=0.1))
    assert_close(logits(open_), want, atol=1e-4, rtol=1e-4)
    upcycled = intarsia.upcycle(sparse("Olmoe"), TopK(4, 2, "renormalised"))
    assert not torch.allclose(logits(upcycled), want, atol=1e-3)


def test_an_open_scale_is_renormalised_elsewhere() -> None:
    draws = torch.Generator().manual_seed(0)
    router = TopK(4, 2).build(8, generator=draws)
    x = torch.randn(5, 8, generator=draws)
    assert_close(router(x).dense().sum(1), torch.ones(5))
    with refused(
        ConfigError, what="scale", got="'renormalised' with one active expert, a weight of 1 always"
    ):
        TopK(4, 1)


def test_a_gate_with_weights_of_its_own_kind_wants_a_scale_that_is_said() -> None:
    """DeepSeek-V3 chooses by sigmoids with a correction, which no scale of `TopK` is."""
    with refused(
        ConfigError, what="scale of the gates, as at 'model.layers.1.mlp'", got="{(None, False)}"
    ):
        intarsia.upcycle(sparse("DeepseekV3", **MLA))
    model = intarsia.upcycle(sparse("DeepseekV3", **MLA), TopK(4, 2, "renormalised"))
    assert bool(torch.isfinite(logits(model)).all())


def test_a_gate_that_gives_something_else_is_refused() -> None:
    model = sparse("Mixtral")
    model.model.layers[1].mlp.gate = torch.nn.Linear(32, 4)
    with refused(TargetError, what="gate 'model.layers.1.mlp'", got="Linear"):
        intarsia.upcycle(model)


def test_gates_that_differ_are_not_followed() -> None:
    gate, two = OwnGate(4, 2, "prob", 1.0, False), OwnGate(4, 2, None, 1.0, False)
    for gates in ([gate, two], [two]):
        with refused(ConfigError, what="scale of the gates, as at 'mlp.gate'"):
            followed(TopK(4, 2), gates, "mlp.gate")
    assert followed(TopK(4, 2, "prob"), [two], "mlp.gate") == TopK(4, 2, "prob")


def test_a_router_with_a_state_wants_one_row_of_blocks() -> None:
    with refused(TargetError, what="blocks for Recurrent"):
        intarsia.upcycle(host("timm Swin"), intarsia.routers.Recurrent(4, 2))
    intarsia.upcycle(host("timm Swin"), intarsia.routers.Recurrent(4, 2), layers=[1, 2])
    intarsia.upcycle(host("timm ViT"), intarsia.routers.Recurrent(4, 2))


@pytest.mark.parametrize("paths", [(), ("layers.0.blocks.0.mlp", "layers.1.blocks.0.mlp")])
def test_momentum_wants_one_row_of_blocks(paths: tuple[str, ...]) -> None:
    with refused(TargetError, what="blocks for momentum"):
        intarsia.apply(host("timm Swin"), Momentum(paths=paths))
    momentum = Momentum(paths=("layers.1.blocks.0.mlp", "layers.1.blocks.1.mlp"))
    intarsia.apply(host("timm Swin"), momentum)
    with refused(TargetError, what="model ResNet"):
        intarsia.apply(host("timm ResNet"), Momentum())
