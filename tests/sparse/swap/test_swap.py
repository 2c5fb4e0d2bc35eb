"""An upcycled model starts as the dense one; what cannot be turned into a mixture is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
)

import intarsia
from intarsia import TopK
from intarsia.core.errors import ConfigError, TargetError
from intarsia.gating import learned_routers
from intarsia.hosts.anatomy.gates import HostedRouter
from intarsia.mixtures import Capacity, Mixture, ResidualMixture, StackedExperts
from intarsia.routers import (
    Comet,
    DSelectK,
    ExpertChoice,
    Hash,
    MoeX,
    PermutationSearch,
    Recurrent,
    Switch,
    TopP,
    Transport,
)
from intarsia.sparse.swap.upcycle import places_in as places
from intarsia.train.precision import cast_frozen

from ...refusals import refused

SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip
SPARSE = {"num_experts_per_tok": 2, "output_router_logits": True}


def vit(**settings: Any) -> nn.Module:
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=32, depth=3, embed_dim=32, num_heads=2, num_classes=5,
        **settings,
    )  # fmt: skip


def llama(**settings: Any) -> nn.Module:
    return LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True, **settings))


def mixtral() -> nn.Module:
    return MixtralForCausalLM(MixtralConfig(**SIZES, **SPARSE, num_local_experts=4))


def qwen() -> nn.Module:
    config = Qwen2MoeConfig(
        **SIZES, **SPARSE, num_experts=4, norm_topk_prob=True, moe_intermediate_size=16,
        shared_expert_intermediate_size=16, mlp_only_layers=[0],
    )  # fmt: skip
    return Qwen2MoeForCausalLM(config)


HOSTS: dict[str, Callable[[], nn.Module]] = {"vit": vit, "llama": llama}


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    return {**HOSTS, "mixtral": mixtral, "qwen": qwen}[name]().eval()


def out(model: nn.Module, **kwargs: Any) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    if hasattr(model, "config"):
        ids = torch.randint(1, 64, (3, 7), generator=generator)
        return model(input_ids=ids, **kwargs).logits
    return model(torch.randn(3, 3, 32, 32, generator=generator))


def mixtures(model: nn.Module) -> list[Mixture]:
    return [m for m in model.modules() if isinstance(m, Mixture)]


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("router", [TopK(experts=4), TopK(experts=1, active=1)])
def test_copies_with_weights_that_sum_to_one_give_the_dense_output(host: str, router: TopK) -> None:
    model = made(host)
    logits = out(model)
    assert intarsia.upcycle(model, router) is model
    assert len(mixtures(model)) == (3 if host == "vit" else 2)
    assert_close(out(model), logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("experts", [1, 4, 16])
def test_slices_that_are_all_active_give_the_dense_output(host: str, experts: int) -> None:
    model = made(host)
    logits = out(model)
    router = TopK(experts=experts, active=experts, scale="none")
    intarsia.upcycle(model, router, how="slices")
    hidden = 128 if host == "vit" else 48
    assert {m.experts.up.shape[1] for m in mixtures(model)} == {hidden // experts}
    assert_close(out(model), logits, rtol=1e-5, atol=1e-5)


def test_slices_carry_the_biases_of_a_decoder_that_has_them() -> None:
    torch.manual_seed(0)
    model = llama(mlp_bias=True).eval()
    for name, parameter in model.named_parameters():
        if "mlp" in name and name.endswith("bias"):
            nn.init.normal_(parameter)
    logits = out(model)
    intarsia.upcycle(model, TopK(experts=3, active=3, scale="none"), how="slices")
    assert_close(out(model), logits, rtol=1e-5, atol=1e-5)


def test_diversified_copies_differ_and_none_does_at_fraction_0() -> None:
    model = intarsia.upcycle(made("vit"), TopK(experts=3), how="diversified", fraction=0.2)
    up = mixtures(model)[0].experts.up
    assert not torch.equal(up[0], up[1])
    assert 0.1 < float((up == 0).double().mean()) < 0.3
    model = intarsia.upcycle(made("vit"), TopK(experts=3), how="diversified", fraction=0)
    assert_close(out(model), out(made("vit")), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("host", HOSTS)
def test_fresh_experts_are_drawn_each_for_itself_and_all_else_stays(host: str) -> None:
    dense, model, again = made(host), made(host), made(host)
    for name, parameter in again.named_parameters():
        if ".mlp." in name:
            torch.nn.init.zeros_(parameter)
    for target in (model, again):
        intarsia.upcycle(target, TopK(experts=4), how="fresh", seed=3)
    state, before = model.state_dict(), dense.state_dict()
    rest = [name for name in before if ".mlp." not in name]
    assert rest and all(torch.equal(state[name], before[name]) for name in rest)
    # nothing of the MLP is in them, and neither experts nor layers are alike
    assert all(torch.equal(state[name], value) for name, value in again.state_dict().items()
               if ".mlp." in name)  # fmt: skip
    drawn = [expert for mixture in mixtures(model) for expert in mixture.experts.up]
    assert all(not torch.equal(a, b) for i, a in enumerate(drawn) for b in drawn[:i])


@pytest.mark.parametrize("host", HOSTS)
def test_experts_may_have_another_activation(host: str) -> None:
    dense = made(host)
    model = intarsia.upcycle(copy.deepcopy(dense), TopK(experts=2), act="relu")
    assert {type(m.experts.act) for m in mixtures(model)} == {nn.ReLU}
    assert not torch.allclose(out(model), out(dense), rtol=1e-5, atol=1e-5)
    for module in dense.modules():  # and nothing else has changed
        for name in ("act", "act_fn"):
            if hasattr(module, name):
                setattr(module, name, nn.ReLU())
    assert_close(out(model), out(dense), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("host", HOSTS)
def test_a_router_reads_the_experts_of_its_own_layer(host: str) -> None:
    model = intarsia.upcycle(made(host), MoeX(experts=4), how="diversified", act="relu")
    of_gate = host == "llama"  # whose gate decides which units are on
    for mixture in mixtures(model):
        read, _ = mixture.router.encoder()
        assert read is (mixture.experts.gate if of_gate else mixture.experts.up)
    model.train()
    before = [m.router.columns().mean for m in mixtures(model)]
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    (out(model).square().sum() + intarsia.gating.aux_loss(model)).backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None]
    optimiser.step()
    for mixture, old in zip(mixtures(model), before, strict=True):
        assert not torch.equal(mixture.router.columns().mean, old)


def test_a_seed_decides_and_layers_differ() -> None:
    def gates(seed: int) -> list[Tensor]:
        model = intarsia.upcycle(made("vit"), TopK(experts=3), how="diversified", seed=seed)
        return [m.router.weight for m in mixtures(model)]

    for a, b in zip(gates(0), gates(0), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(gates(0)[0], gates(1)[0])
    assert not torch.equal(gates(0)[0], gates(0)[1])


def test_layers_and_a_pyramid_of_experts() -> None:
    model = intarsia.upcycle(made("vit"), experts=[2, 6], layers=[0, -1])
    kinds = [type(block.mlp).__name__ for block in model.blocks]
    assert kinds == ["Mixture", "Mlp", "Mixture"]
    assert [m.router.experts for m in mixtures(model)] == [2, 6]
    model = intarsia.upcycle(made("vit"), TopK(experts=2), experts=5)
    assert {m.router.experts for m in mixtures(model)} == {5}


@pytest.mark.parametrize("host", HOSTS)
def test_everything_gets_a_gradient(host: str) -> None:
    model = intarsia.upcycle(made(host), TopK(experts=2, active=2)).train()
    (out(model).square().sum() + intarsia.gating.aux_loss(model)).backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None]
    assert intarsia.gating.aux_loss(model) > 0


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize(("residual", "times"), [("learned", 1), ("sum", 2)])
def test_the_mlp_may_stay_beside_its_copies(host: str, residual: str, times: int) -> None:
    """c_1 + c_2 = 1, so that copies beside the MLP say what it said; the plain sum twice that."""
    dense, model = made(host), made(host)
    intarsia.upcycle(model, TopK(experts=4), residual=residual)
    pairs: list[tuple[Tensor, Tensor]] = []
    for path in places(model).paths:
        old, new = dense.get_submodule(path), model.get_submodule(path)
        assert isinstance(new, ResidualMixture)
        x = torch.randn(2, 5, 32)
        pairs.append((new(x), times * old(x)))
    for ours, theirs in pairs:
        assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    model.train()
    (out(model).square().sum() + intarsia.gating.aux_loss(model)).backward()
    # copies of one MLP beside it: which of the two branches is right is all the same
    names = [n for n, p in model.named_parameters() if p.grad is None]
    assert not names


@pytest.mark.parametrize(
    ("method", "targets"),
    [
        (intarsia.Lora(rank=2), ["coefficient"]), (intarsia.adapters.Ssf(roles=("linear",)), None),
        (intarsia.adapters.Sparse(density=0.5, roles=("mlp_linear",)), None),
    ],
    ids=["lora", "ssf", "sparse"],
)  # fmt: skip
def test_an_adapter_on_the_coefficient_counts(method: Any, targets: list[str] | None) -> None:
    model = intarsia.upcycle(made("vit"), TopK(experts=2), residual="learned")
    with torch.no_grad():  # so that the two branches differ
        for layer in mixtures(model):
            layer.experts.down.mul_(3)
    before = out(model)
    adapted = intarsia.adapt(model, method, targets=targets, head=None).eval()
    assert_close(out(adapted), before)
    coefficients = {n: p for n, p in adapted.named_parameters() if "coefficient.intarsia" in n}
    with torch.no_grad():
        for number, parameter in enumerate(coefficients.values()):
            parameter.normal_(generator=torch.Generator().manual_seed(number))
    logits = out(adapted)
    assert not torch.allclose(logits, before, atol=1e-3)
    logits.square().sum().backward()
    assert coefficients and all(
        p.grad is not None and bool(p.grad.any()) for p in coefficients.values()
    )
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(out(adapted).float(), logits, rtol=0.1, atol=0.1)
    half = copy.deepcopy(adapted)
    cast_frozen(half, "bf16")
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(out(half).float(), logits, rtol=0.1, atol=0.1)
    if not isinstance(method, intarsia.adapters.Ssf):
        assert_close(out(adapted.merge_and_unload()), logits, rtol=1e-4, atol=1e-5)


def test_a_pyramid_beside_its_mlps_has_fewer_parameters() -> None:
    """PR-MoE against as many experts everywhere."""
    count = lambda m: sum(p.numel() for p in m.parameters())  # noqa: E731
    uniform = intarsia.upcycle(made("vit"), Switch(experts=16))
    host = made("vit")
    pyramid = intarsia.upcycle(host, Switch(), experts=[4, 4, 16], residual="learned")
    assert out(pyramid).isfinite().all() and count(pyramid) < 0.65 * count(uniform)


def test_what_was_frozen_stays_frozen() -> None:
    model = made("llama").requires_grad_(False)
    layer = mixtures(intarsia.upcycle(model, TopK(experts=2)))[0]
    assert not any(p.requires_grad for p in layer.experts.parameters())
    assert all(p.requires_grad for p in layer.router.parameters())


def test_dtype_and_mode_are_the_hosts() -> None:
    model = intarsia.upcycle(made("llama").bfloat16(), TopK(experts=2))
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert not any(m.training for m in model.modules())
    assert out(model).isfinite().all()


def test_padding_of_a_decoder_changes_nothing() -> None:
    model = intarsia.upcycle(made("llama"), TopK(experts=4), capacity=Capacity(2.0)).train()
    mask = torch.ones(3, 7, dtype=torch.long)
    mask[1, 4:] = 0
    a = out(model, attention_mask=mask)
    with torch.no_grad():
        ids = torch.randint(1, 64, (3, 7), generator=torch.Generator().manual_seed(1))
        ids[mask == 0] = 0
        b = model(input_ids=ids, attention_mask=mask).logits
    assert_close(a[mask == 1], b[mask == 1])
    assert {int(m.router.last.tokens) for m in mixtures(model)} == {21}
    assert all(len(m.router.last.token) == 2 * 18 for m in mixtures(model))
    out(model)
    valid = [m.router.context.valid for m in mixtures(model)]
    assert valid == [None] * len(valid), "the next batch has no mask"


@pytest.mark.parametrize("host", ["llama", "mixtral"])
def test_it_generates_as_it_reads(host: str) -> None:
    model = intarsia.upcycle(made(host), TopK(experts=4))
    with torch.no_grad():
        for m in mixtures(model):
            m.experts.up.add_(torch.randn_like(m.experts.up) * 0.1)  # so that experts differ
    ids = torch.randint(1, 64, (2, 5), generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    settings = {"attention_mask": mask, "max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    cached, plain = (model.generate(ids, use_cache=c, **settings) for c in (True, False))
    assert cached.tolist() == plain.tolist()


def test_lots_are_held_for_a_recomputation_and_drawn_anew_by_a_forward() -> None:
    capacity = Capacity(0.5, "random", least=1)
    model = intarsia.upcycle(made("vit"), TopK(experts=4), capacity=capacity).train()
    layer, x = mixtures(model)[0], torch.randn(2, 9, 32)
    first = layer.routing(x).token.tolist()
    assert first == layer.routing(x).token.tolist()
    out(model)
    layer.draws.context.redraw()
    assert first != layer.routing(x).token.tolist()


@pytest.mark.parametrize("router", [TopK(experts=4), Recurrent(experts=4, hidden=8)])
def test_recomputing_gives_the_same_gradients(router: Any) -> None:
    grads = []
    for recompute in (False, True):
        model = intarsia.upcycle(made("vit"), router, capacity=Capacity(0.5, "random", least=1))
        model.train().set_grad_checkpointing(recompute)
        out(model).square().sum().backward()
        grads.append([p.grad for p in model.parameters()])
    for ours, theirs in zip(*grads, strict=True):
        assert_close(ours, theirs)


def test_states_go_along_the_depth_and_begin_anew_with_every_forward() -> None:
    model = intarsia.upcycle(made("vit"), Recurrent(experts=4, hidden=8)).train()
    with torch.no_grad():
        for m in mixtures(model):
            m.experts.up.add_(torch.randn_like(m.experts.up) * 0.1)
    first = out(model)
    routers = [m.router for m in mixtures(model)]
    assert len({id(r.thread) for r in routers}) == 1
    assert len([n for n, _ in model.named_parameters() if n.endswith("weight_hh")]) == 1
    assert_close(out(model), first)  # a stale state would show
    gradient = torch.autograd.grad(routers[-1].last.state.sum(), routers[0].down)[0]
    assert bool(gradient.any()), "through the layers between"
    fresh = intarsia.upcycle(made("vit"), Recurrent(experts=4, hidden=8))
    assert list(fresh.state_dict()) == list(model.state_dict())


def test_routers_by_token_id_and_around_other_routers() -> None:
    model = intarsia.upcycle(made("llama"), Hash(experts=4))
    assert out(model).isfinite().all()
    model = intarsia.upcycle(made("vit"), PermutationSearch(TopK(experts=2)), experts=4)
    assert {m.router.experts for m in mixtures(model)} == {4} and out(model).isfinite().all()


def test_adapters_go_into_a_mixture_and_come_off_again() -> None:
    model = intarsia.upcycle(made("llama"), TopK(experts=2))
    logits = out(model)
    adapted = intarsia.adapt(model, intarsia.Lora(rank=2), targets=["q_proj"], head=None)
    assert_close(out(adapted), logits, rtol=1e-5, atol=1e-5)
    plain = adapted.unload()
    mask = torch.ones(3, 7, dtype=torch.long)
    mask[0, 3:] = 0
    plain.train()
    out(plain, attention_mask=mask)
    assert all(len(m.router.last.token) == 2 * 17 for m in mixtures(plain))


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
@pytest.mark.parametrize("host", ["mixtral", "qwen"])
@pytest.mark.parametrize("implementation", ["eager", "grouped_mm"])
def test_a_sparse_model_keeps_its_experts_and_gets_a_router(host: str, implementation: str) -> None:
    model = made(host)
    model.config.output_router_logits = False
    model.set_experts_implementation(implementation)
    logits = out(model)
    model.config.output_router_logits = True
    intarsia.upcycle(model, TopK(experts=4, active=2), experts=4)
    gates = [m for m in model.modules() if isinstance(m, HostedRouter)]
    assert len(gates) == (2 if host == "mixtral" else 1) and not mixtures(model)
    assert not model.config.output_router_logits
    # TopK has a matrix of the gate's shape and begins with it
    assert_close(out(model), logits, rtol=1e-5, atol=1e-5)
    mask = torch.ones(3, 7, dtype=torch.long)
    mask[0, 3:] = 0
    model.train()
    (out(model, attention_mask=mask).square().mean() + intarsia.gating.aux_loss(model)).backward()
    for router in learned_routers(model).values():
        assert len(router.last.token) == 2 * 17 and bool(router.weight.grad.any())


def test_a_router_of_as_many_experts_as_needed_in_a_sparse_model() -> None:
    model = intarsia.upcycle(made("mixtral"), TopP(experts=4, p=0.6))
    ids = torch.randint(1, 64, (1, 4))
    assert model(input_ids=ids).logits.isfinite().all()
    assert model.generate(ids, max_new_tokens=3, do_sample=False, pad_token_id=0).shape == (1, 7)


class Twisted(nn.Module):
    """Has the parts of an MLP and computes something else."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(32, 8), nn.GELU(), nn.Linear(8, 32)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(self.act(self.fc1(x)))


def twisted() -> nn.Module:
    model = vit()
    model.blocks[1].mlp = Twisted()
    return model


REFUSED: dict[str, tuple[Callable[[], nn.Module], dict[str, Any], type[Exception], str]] = {
    "another how": (vit, {"how": "moefy"}, ConfigError, "how: got 'moefy'"),
    "uneven slices": (
        vit, {"how": "slices", "experts": 5}, ConfigError, "a divisor of the 128 hidden units",
    ),
    "k above E": (vit, {"router": TopK(experts=4), "experts": 1}, ConfigError, "active: got 2"),
    "too few numbers": (vit, {"experts": [2, 2]}, ConfigError, "experts: got 2 numbers, want 3"),
    "no such layer": (vit, {"layers": [3]}, TargetError, "layers: got 3"),
    "gated timm": (
        lambda: timm.create_model(
            "eva02_tiny_patch14_224", img_size=28, depth=1, embed_dim=32, num_heads=2
        ),
        {}, TargetError, "got GluMlp of",
    ),
    "dropout": (lambda: vit(proj_drop_rate=0.1), {}, TargetError, "with dropout 0.1"),
    "a forward of its own": (twisted, {}, TargetError, "a Twisted with a forward of its own"),
    "no block": (lambda: nn.Linear(3, 3), {}, TargetError, "no block with an MLP"),
    "adapted": (
        lambda: intarsia.adapt(vit(), intarsia.Lora(2)), {}, TargetError, "one with adapters",
    ),
    "twice": (lambda: intarsia.upcycle(vit()), {}, TargetError, "upcycled before"),
    "leak": (
        llama, {"capacity": Capacity(policy="score")}, ConfigError, "which depends on later tokens",
    ),
    "a leak by lot": (
        llama, {"capacity": Capacity(policy="random")}, ConfigError, "'random'\\), which depends",
    ),
    "a leak through the room": (
        llama, {"router": TopP(experts=4), "capacity": Capacity()}, ConfigError,
        "Capacity with TopP, whose pairs set its room",
    ),
    "a router that looks ahead": (
        llama, {"router": ExpertChoice(experts=4)}, ConfigError, "got ExpertChoice, which depends",
    ),
    "another branch": (vit, {"residual": "learnt"}, ConfigError, "residual: got 'learnt'"),
    "a branch of sparse": (
        mixtral, {"experts": 4, "residual": "sum"}, ConfigError, "residual or act for a block with",
    ),
    "another E": (mixtral, {"experts": 8}, ConfigError, "experts: got 8, want 4"),
    "an activation for sparse": (
        mixtral, {"experts": 4, "act": "relu"}, ConfigError, "got how, capacity, residual or act",
    ),
    "another activation": (vit, {"act": "swish"}, ConfigError, "act: got 'swish', want one of"),
    "gelu for a router that reads": (
        vit, {"router": MoeX(4), "how": "diversified"}, ConfigError, "got GELU, want ReLU",
    ),
    "silu for a router that reads": (
        llama, {"router": MoeX(4), "how": "slices"}, ConfigError, "want ReLU",
    ),
    "equal copies for a router that reads": (
        vit, {"router": MoeX(4), "act": "relu"}, ConfigError, "got 4 equal ones",
    ),
    "a router that reads in a sparse model": (
        mixtral, {"router": MoeX(4)}, ConfigError, "got one that reads its experts",
    ),
    "slices of sparse": (
        mixtral, {"experts": 4, "how": "slices"}, ConfigError, "experts of its own",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_and_leaves_the_model(case: str) -> None:
    make, settings, error, message = REFUSED[case]
    model = make()
    before = list(model.state_dict())
    kinds = [type(m) for m in model.modules()]
    with pytest.raises(error, match=message):
        intarsia.upcycle(model, **settings)
    assert list(model.state_dict()) == before and [type(m) for m in model.modules()] == kinds


def test_a_leak_may_be_acknowledged_and_is_none_in_an_image_model() -> None:
    for capacity in (Capacity(policy="score"), Capacity(policy="random")):
        intarsia.upcycle(made("llama"), TopK(experts=2), capacity=capacity, sees_later=True)
        intarsia.upcycle(made("vit"), TopK(experts=2), capacity=capacity)


def test_a_token_of_a_decoder_does_not_see_later_ones() -> None:
    model = intarsia.upcycle(made("llama"), Switch(experts=4, capacity=0.5)).eval()
    ids = torch.randint(1, 64, (1, 8), generator=torch.Generator().manual_seed(1))
    changed = ids.clone()
    changed[0, 5:] = 3
    a, b = (model(input_ids=x).logits[:, :5] for x in (ids, changed))
    assert_close(a, b)


def peaked(layer: Mixture) -> Mixture:
    """The layer, its router sure of itself, so that another token means other experts."""
    with torch.no_grad():
        for parameter in layer.router.parameters():
            parameter.mul_(20)
    return layer.train()


LOOKS_BACK = [TopK(4), Recurrent(4, hidden=4), Hash(4, by="row"), Switch(4, capacity=0.5)]


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("router", "capacity", "leaks"),
    [
        *((router, None, False) for router in [*LOOKS_BACK, TopP(4), Comet(4), DSelectK(4)]),
        *((router, Capacity(0.5, least=1), False) for router in LOOKS_BACK[:3]),
        (TopK(4), Capacity(0.5, "random", least=1), True),
        (TopK(4), Capacity(0.5, "score", least=1), True),
        (TopP(4, p=0.5), Capacity(0.5, least=1), True),
        (ExpertChoice(4), None, True),
        (Transport(4), None, True),
    ],
    ids=repr,
)  # fmt: skip
def test_what_is_refused_in_a_decoder_leaks_and_what_is_not_does_not(
    router: Any, capacity: Capacity | None, leaks: bool
) -> None:
    """The layer alone, in training: other later tokens, the same draws, equal earlier outputs?"""
    differs = False
    for seed in range(20):
        outputs = []
        for later in (seed, 100 + seed):
            draws = torch.Generator().manual_seed(3)
            layer = Mixture(
                StackedExperts(4, 8, 4, generator=draws), router.build(8, generator=draws),
                capacity=capacity, generator=draws,
            )  # fmt: skip
            x = torch.cat([
                torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(s))
                for s in (seed, 1000 + later)
            ], dim=1)  # fmt: skip
            outputs.append(peaked(layer)(x)[:, :6])
        differs = differs or not torch.allclose(*outputs, atol=1e-6)
    assert differs is leaks
    model = made("llama")
    if leaks:
        with refused(ConfigError, what="routing of a decoder"):
            intarsia.upcycle(model, router, capacity=capacity)
    else:
        intarsia.upcycle(model, router, capacity=capacity)


def test_an_upcycled_model_can_be_copied() -> None:
    for settings in ({}, {"router": MoeX(4), "how": "slices", "act": "relu"}):
        model = intarsia.upcycle(made("vit"), **settings).train()
        out(model)
        copied = copy.deepcopy(model)
        assert_close(out(copied), out(model))
    before = out(model)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    assert_close(out(model), before)
