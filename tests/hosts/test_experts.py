"""Whole models with more or fewer experts: what they compute, and that the record stays true."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

import intarsia
from intarsia import TopK
from intarsia.core.errors import ConfigError, ShapeError, TargetError
from intarsia.gating import learned_routers
from intarsia.mixtures import Capacity, Mixture
from intarsia.routers import Comet, Hash, NoisyTopK, PermutationSearch, Recurrent, Switch
from intarsia.sparse.swap.upcycle import places_in as places

from ..refusals import refused

SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip


def vit(seed: int = 0, width: int = 32) -> nn.Module:
    torch.manual_seed(seed)
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=32, depth=2, embed_dim=width, num_heads=2, num_classes=5
    ).eval()


def llama(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True)).eval()


def mixtral() -> nn.Module:
    return MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=4)).eval()


HOSTS: dict[str, Callable[..., nn.Module]] = {"vit": vit, "llama": llama}
SETTINGS: dict[str, dict[str, Any]] = {
    "copies": {"router": TopK(experts=4)},
    "pyramid": {"router": Switch(), "experts": [3, 6]},
    "residual": {"router": TopK(experts=4), "residual": "learned"},
    "slices": {"router": TopK(experts=4, active=2, scale="none"), "how": "slices"},
    "noisy": {"router": NoisyTopK(experts=4, std=1.0), "how": "diversified"},
    "depth": {"router": Recurrent(experts=4, hidden=4)},
    "capacity": {"router": TopK(experts=4), "capacity": Capacity(2.0)},
}


def trained(host: str, case: str, seed: int = 0) -> nn.Module:
    """An upcycled model, moved away from where it began."""
    model = intarsia.upcycle(HOSTS[host](), **SETTINGS[case])
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw))
    return model


def inputs(host: str, seed: int = 1) -> Any:
    draw = torch.Generator().manual_seed(seed)
    if host == "vit":
        return torch.randn(3, 3, 32, 32, generator=draw)
    return {"input_ids": torch.randint(1, 64, (3, 7), generator=draw)}


def out(model: nn.Module, seed: int = 1) -> Tensor:
    if hasattr(model, "config"):
        return model(**inputs("llama", seed)).logits
    return model(inputs("vit", seed))


def mixtures(model: nn.Module) -> list[Mixture]:
    return [m for m in model.modules() if isinstance(m, Mixture)]


CASES = [(host, case) for host in HOSTS for case in SETTINGS]


@pytest.mark.parametrize(("host", "case"), CASES)
def test_merged_and_pruned_models_are_saved_as_they_are(
    host: str, case: str, tmp_path: Path
) -> None:
    first, second = (trained(host, case, seed) for seed in (1, 2))
    counts = places(first).experts
    both = intarsia.experts.merge_mixtures(first, second)
    assert places(both).experts == tuple(2 * e for e in counts)
    assert places(first).experts == counts, "parents stay as they are"
    with torch.no_grad():
        norm = (
            first.get_parameter("norm.weight") if host == "vit" else first.lm_head.weight
        ).clone()
        second_norm = (
            second.get_parameter("norm.weight") if host == "vit" else second.lm_head.weight
        )
        got = both.get_parameter("norm.weight") if host == "vit" else both.lm_head.weight
    assert_close(got, (norm + second_norm) / 2)
    # as uneven as can be: another number for each layer
    keep = [2 * counts[0], 3]
    intarsia.experts.prune_experts(both, keep, by="random")
    assert places(both).experts == tuple(keep)
    assert [m.router.experts for m in mixtures(both)] == keep
    folder = intarsia.experts.save_mixture(both, tmp_path / "mixture")
    again = intarsia.experts.load_mixture(HOSTS[host](9), folder)
    assert_close(out(again), out(both))
    assert places(again) == places(both)
    both.train()
    (out(both).square().sum() + intarsia.gating.aux_loss(both)).backward()
    gates = [n for n, p in both.named_parameters() if "router" in n and p.grad is None]
    assert not gates or case == "slices"  # weights of 1 say nothing to the gate


@pytest.mark.parametrize("host", HOSTS)
def test_pruning_to_all_is_the_identity(host: str) -> None:
    model = trained(host, "pyramid")
    logits, names = out(model), list(model.state_dict())
    loads = intarsia.experts.expert_loads(model, [inputs(host)])
    assert intarsia.experts.prune_experts(model, [3, 6], loads) is model
    assert torch.equal(out(model), logits) and list(model.state_dict()) == names


def test_a_merge_with_itself_halves_what_experts_say() -> None:
    """Switch weighs by p, a softmax over twice as many."""
    model = trained("vit", "pyramid")
    both = intarsia.experts.merge_mixtures(model, model)
    x = torch.randn(2, 5, 32)
    for mixture, two in zip(mixtures(model), mixtures(both), strict=True):
        assert_close(two(x), mixture(x) / 2)
    for name, value in model.named_parameters():
        if ".router." not in name and ".experts." not in name:
            assert torch.equal(value, both.get_parameter(name)), name


def test_states_still_go_along_the_depth_of_a_merged_model() -> None:
    both = intarsia.experts.merge_mixtures(
        trained("vit", "depth", 1), trained("vit", "depth", 2)
    ).train()
    out(both)
    first, last = (m.router for m in mixtures(both))
    assert first.thread is last.thread
    assert bool(torch.autograd.grad(last.last.state.sum(), first.down)[0].any())


def test_the_most_used_experts_stay() -> None:
    model = trained("llama", "copies")
    batches = [inputs("llama", seed) for seed in range(3)]
    loads = intarsia.experts.expert_loads(model, batches)
    assert {path: int(n.sum()) for path, n in loads.items()} == {
        f"model.layers.{i}.mlp.router": 3 * 21 * 2 for i in range(2)
    }
    ups = [m.experts.up.detach().clone() for m in mixtures(model)]
    intarsia.experts.prune_experts(model, 2, loads)
    for layer, up, load in zip(mixtures(model), ups, loads.values(), strict=True):
        best = sorted(sorted(range(4), key=lambda e: (-int(load[e]), e))[:2])
        assert torch.equal(layer.experts.up, up[best])


def test_loads_are_of_evaluation_and_leave_no_trace() -> None:
    model = trained("llama", "copies").train()
    out(model)
    before = {n: r.received.clone() for n, r in learned_routers(model).items()}
    ids = inputs("llama")["input_ids"]
    mask = torch.ones_like(ids)
    mask[0, 4:] = 0
    loads = intarsia.experts.expert_loads(model, [(inputs("llama"), None)])
    padded = intarsia.experts.expert_loads(model, [{"input_ids": ids, "attention_mask": mask}])
    assert all(int(n.sum()) == 42 for n in loads.values())
    assert all(int(n.sum()) == 36 for n in padded.values())
    assert all(m.training for m in model.modules())
    for name, router in learned_routers(model).items():
        assert torch.equal(router.received, before[name])
    both = {path: loads[path] + padded[path] for path in loads}
    again = intarsia.experts.expert_loads(
        model, [inputs("llama"), {"input_ids": ids, "attention_mask": mask}]
    )
    assert all(torch.equal(again[path], both[path]) for path in both)


def test_random_goes_by_seed_and_path_and_given_ones_by_path() -> None:
    def left(**settings: Any) -> list[Tensor]:
        model = trained("vit", "copies")
        intarsia.experts.prune_experts(model, 2, "random", **settings)
        return [m.experts.up for m in mixtures(model)]

    assert all(torch.equal(a, b) for a, b in zip(left(), left(seed=0), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(left(), left(seed=1), strict=True))
    model = trained("vit", "copies")
    up = mixtures(model)[1].experts.up
    intarsia.experts.prune_experts(model, {"blocks.1.mlp": [3, 0]})
    assert places(model).experts == (4, 2)
    assert torch.equal(mixtures(model)[1].experts.up, up[[3, 0]])


def test_adapters_come_afterwards() -> None:
    model = trained("llama", "residual")
    intarsia.experts.prune_experts(model, 3, "random")
    logits = out(model)
    adapted = intarsia.adapt(model, intarsia.Lora(rank=2), head=None)
    assert_close(out(adapted), logits, rtol=1e-5, atol=1e-5)
    with refused(TargetError, what="model", got="one with adapters"):
        intarsia.experts.prune_experts(adapted, 2, "random")
    with refused(TargetError, what="model", got="one with adapters"):
        intarsia.experts.merge_mixtures(adapted, adapted)


PRUNED: dict[str, tuple[Any, Any, str]] = {
    "no loads": (2, None, "loads of 'blocks.0.mlp': got none for this layer"),
    "other loads": (2, {"a.router": torch.ones(4)}, "got none for this layer"),
    "short loads": (2, {"blocks.0.mlp.router": torch.ones(3)}, "got 3 numbers, want a number for"),
    "none": (0, "random", "keep: got 0"),
    "more": (5, "random", "keep: got 5, want 1 ... \\[4, 4\\]"),
    "too few numbers": ([2], "random", "one for each layer"),
    "fewer than k": (1, "random", "active: got 2, want 1 ... 1"),
    "no such layer": ({"blocks.2.mlp": [0, 1]}, None, "got a layer 'blocks.2.mlp'"),
    "no such expert": ({"blocks.0.mlp": [0, 4]}, None, "experts to keep of 'blocks.0.mlp': got"),
}


@pytest.mark.parametrize("case", PRUNED)
def test_what_cannot_be_pruned_is_refused_and_leaves_the_model(case: str) -> None:
    keep, rule, message = PRUNED[case]
    model = trained("vit", "copies")
    logits, done = out(model), places(model)
    with pytest.raises(ConfigError, match=message):
        intarsia.experts.prune_experts(model, keep, rule)
    assert torch.equal(out(model), logits) and places(model) == done


def test_models_that_have_no_mixtures_of_ours() -> None:
    with refused(TargetError, what="model", got="one that was not upcycled"):
        intarsia.experts.prune_experts(vit(), 2, "random")
    with refused(TargetError, what="model", got="one that was not upcycled"):
        intarsia.experts.merge_mixtures(trained("vit", "copies"), vit())
    host = intarsia.upcycle(mixtral(), TopK(experts=4))
    with refused(TargetError, what="'model.layers.0.mlp'"):
        intarsia.experts.prune_experts(host, 2, "random")
    with refused(TargetError, what="'model.layers.0.mlp'"):
        intarsia.experts.merge_mixtures(host, copy.deepcopy(host))
    with refused(ConfigError, what="loads"):
        intarsia.experts.expert_loads(host, [])
    with refused(ConfigError, what="loads"):
        intarsia.experts.expert_loads(vit(), [inputs("vit")])


def test_models_that_do_not_fit_are_refused() -> None:
    mixture = trained("vit", "copies")
    for settings, message in (
        ({"layers": [0]}, "layers of the models to merge"),
        ({"how": "slices"}, "how of the models to merge: got slices after copies"),
        ({"residual": "sum"}, "residual of the models"),
        ({"capacity": Capacity()}, "capacity of the models"),
        ({"router": NoisyTopK(experts=4)}, "routers of 'blocks.0.mlp'"),
    ):
        unlike = intarsia.upcycle(vit(), **({"router": TopK(experts=4)} | settings))
        with pytest.raises(ConfigError, match=message):
            intarsia.experts.merge_mixtures(mixture, unlike)
    with refused(ShapeError, what="experts of 'blocks.0.mlp'"):
        intarsia.experts.merge_mixtures(mixture, intarsia.upcycle(vit(width=48), TopK(experts=4)))
    with refused(ConfigError, what="kind of the models to merge"):
        intarsia.experts.merge_mixtures(mixture, trained("llama", "copies"))
    trees = intarsia.upcycle(vit(), Comet(experts=4))
    with refused(ConfigError, what="router", got="a CometRouter, built for its number of experts"):
        intarsia.experts.merge_mixtures(trees, trees)
    with refused(ConfigError, what="router", got="a CometRouter, built for its number of experts"):
        intarsia.experts.prune_experts(trees, 2, "random")


def test_experts_of_another_activation_do_not_merge() -> None:
    plain, relu = (intarsia.upcycle(vit(), TopK(experts=4), act=act) for act in (None, "relu"))
    with refused(ConfigError, what="act of the models to merge"):
        intarsia.experts.merge_mixtures(plain, relu)
    with refused(ShapeError, what="experts of ''"):  # layers, without the record of a model
        intarsia.mixtures.merged(mixtures(plain)[0], mixtures(relu)[0])


def test_pruning_forgets_all_that_was_counted() -> None:
    model = trained("vit", "copies").train()
    model(inputs("vit"))
    assert all(r.served for r in learned_routers(model).values())
    intarsia.experts.prune_experts(model, 2, "random")
    for router in learned_routers(model).values():
        assert router.received.shape == (2, 2) and not router.received.any() and not router.served


def test_a_hash_by_token_merges_and_shrinks() -> None:
    model = intarsia.upcycle(llama(), Hash(experts=4))
    both = intarsia.experts.merge_mixtures(
        model, intarsia.upcycle(llama(), Hash(experts=4), seed=1)
    )
    intarsia.experts.prune_experts(both, 5, intarsia.experts.expert_loads(both, [inputs("llama")]))
    assert out(both).isfinite().all() and places(both).experts == (5, 5)


def test_experts_of_equal_hashes_do_not_hide_each_other() -> None:
    first, second = (intarsia.upcycle(vit(), Hash(3, by="row")) for _ in range(2))
    both = intarsia.experts.merge_mixtures(first, second)
    loads = intarsia.experts.expert_loads(both, [torch.randn(40, 3, 32, 32)])
    assert all((load > 0).all() for load in loads.values())


def test_loads_that_were_not_counted_are_refused() -> None:
    model, x = intarsia.upcycle(vit(), TopK(3, 2)), torch.randn(2, 3, 32, 32)
    loads = intarsia.experts.expert_loads(model, [x])
    model.blocks[0].mlp.compile(backend="eager")
    with refused(ConfigError, what="loads of 'blocks.0.mlp.router'"):
        intarsia.experts.expert_loads(model, [x])
    assert len(loads) == 2
    searched = intarsia.upcycle(vit(), PermutationSearch(TopK(4, 2)))
    assert len(intarsia.experts.expert_loads(searched, [x])) == 2
