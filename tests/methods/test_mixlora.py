"""MixLoRA: top-k, top-p and Switch over LoRA experts; its settings, and what released code does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import intarsia
from intarsia import Lora, TopK
from intarsia.adapters.mos import Pool
from intarsia.core.errors import ConfigError, UnknownName
from intarsia.core.registry import method_from_dict, method_to_dict
from intarsia.gating import learned_routers
from intarsia.methods import MixLora, Mosa
from intarsia.mixtures.lora_experts import OutputExperts
from intarsia.routers import RandomRouter, Switch, TopP

from ..refusals import refused
from ..toys import tied_llama as llama

ROUTERS = [TopK(4, 2, balance=0.1), TopP(4, 0.6), Switch(4)]


@pytest.mark.parametrize("router", ROUTERS, ids=lambda r: type(r).__name__)
def test_every_router_starts_as_the_host_and_learns(router: Any) -> None:
    ids = torch.randint(0, 64, (3, 7))
    with torch.no_grad():
        want = llama()(ids).logits
    model = intarsia.adapt(llama(), MixLora(router, Lora(4), attention=None), head=None).eval()
    assert_close(model(input_ids=ids).logits, want, rtol=1e-5, atol=1e-6)
    model.train()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    loss = model(input_ids=ids).logits.square().mean()
    loss.backward(retain_graph=True)
    for learned in learned_routers(model).values():
        gradient = learned.get_parameter("weight").grad
        assert gradient is not None and gradient.any()
    assert float(intarsia.gating.aux_loss(model).detach()) > 0


def test_the_balance_loss_is_k_for_each_layer_at_uniform_logits() -> None:
    model = intarsia.adapt(llama(), MixLora(ROUTERS[0], Lora(4), attention=None), head=None)
    for router in learned_routers(model).values():
        nn.init.zeros_(router.get_parameter("weight"))
    model.train()(input_ids=torch.randint(0, 64, (3, 7)))
    # P is 1 / E exactly, so that E sum f P = sum f = k, however ties are broken
    assert_close(intarsia.gating.aux_loss(model).detach(), torch.tensor(2 * 2 * 0.1))


def test_dropout_may_be_zero_and_experts_have_their_own_settings() -> None:
    method = MixLora(TopK(2), Lora(4, 8.0, 0.0), attention=Lora(2, roles=("qkv",)))
    model = intarsia.adapt(llama(), method, head=None)
    (first, *_) = [m for m in model.modules() if isinstance(m, OutputExperts)]
    expert: Any = first.of("down_proj")[0]
    assert (expert.config.rank, expert.scale, expert.dropout.p) == (4, 2.0, 0.0)


def test_jitter_rests_in_evaluation_and_leaves_the_residual_stream_alone() -> None:
    method = MixLora(TopK(4, 2, jitter=0.9), Lora(4), attention=None)
    model = intarsia.adapt(llama(), method, head=None)
    ids = torch.randint(0, 64, (2, 5))
    with torch.no_grad():
        want = llama()(ids).logits
        # B = 0: whatever is drawn, the output is the host's, so jitter touched the router only
        assert_close(model.train()(input_ids=ids).logits, want, rtol=1e-5, atol=1e-6)
        first, second = (model.eval()(input_ids=ids).logits for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("router", ROUTERS, ids=lambda r: type(r).__name__)
def test_settings_survive_json(router: Any) -> None:
    method = MixLora(router, over=Mosa(over=Lora(4), split="both"), attention=None)
    assert method_from_dict(method_to_dict(method)) == method
    assert method_from_dict({"method": "mixlora"}) == MixLora()


def test_a_router_is_no_method() -> None:
    with refused(UnknownName, what="unknown method", got="'topk'"):
        method_from_dict({"method": "topk"})


def test_any_cell_beside_a_linear_layer_may_be_the_expert() -> None:
    over = Mosa(over=Lora(4), split="both", experts=2)
    model = intarsia.adapt(llama(), MixLora(TopK(2), over, attention=None), head=None)
    assert any(isinstance(m, RandomRouter) for m in model.modules())
    assert model.train()(input_ids=torch.randint(0, 64, (2, 5))).logits.isfinite().all()


def test_gradient_checkpointing_meets_the_same_routing() -> None:
    grads: list[torch.Tensor] = []
    for recompute in (False, True):
        method = MixLora(TopK(4, 2, jitter=0.3), Lora(4), attention=None)
        model: Any = intarsia.adapt(llama(), method, head=None)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "up" in name and parameter.requires_grad:
                    parameter.fill_(0.1)
        if recompute:
            model.get_base_model().activation_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(3)
        ids = torch.arange(10).view(2, 5)
        (
            model.train()(input_ids=ids).logits.square().mean() + intarsia.gating.aux_loss(model)
        ).backward()
        grads.append(
            torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        )
    assert_close(*grads)


def test_another_router_is_refused() -> None:
    with refused(ConfigError, what="router", got="'topk'"):
        MixLora("topk")  # pyright: ignore
    with refused(ConfigError, what="active", got=9):
        MixLora(TopK(8, 9))


def test_experts_of_shards_have_one_pool_for_the_model(tmp_path: Path) -> None:
    over = intarsia.adapters.Mos(rank=4, equivalent_rank=2, shards_per_vector=2)
    mixture = MixLora(TopK(3, 2), over, attention=None)
    model = intarsia.adapt(llama(), mixture, head=None)
    pools = [m for m in model.modules() if isinstance(m, Pool)]
    # two blocks of three experts: six layers of each of the MLP's three maps
    assert [len(pool.layers) for pool in pools] == [6, 6, 6]
    pooled = sum(p.numel() for pool in pools for p in pool.parameters())
    assert pooled == 2 * 6 * 3 * (32 + 48)  # e L (d_in + d_out) of each map
    with torch.no_grad():
        for pool in pools:
            pool.b.normal_(generator=torch.Generator().manual_seed(0))
    ids = torch.randint(0, 64, (2, 5))
    want = model.eval()(input_ids=ids).logits
    model.save_pretrained(str(tmp_path))
    assert_close(intarsia.load(llama(), tmp_path)(input_ids=ids).logits, want)
