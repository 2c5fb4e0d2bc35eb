"""A dense model cut into experts: the dense one with all of them, itself again when folded."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

import intarsia
from intarsia.core.errors import CheckpointError, ConfigError, FoldError, TargetError
from intarsia.experts import UnionOfExperts
from intarsia.hosts.anatomy.heads import attention_from
from intarsia.mixtures.union import UnionMlp
from intarsia.routers.union import UnionGate

from ..refusals import refused

TEXT: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 24, "intermediate_size": 36, "num_hidden_layers": 2,
    "num_attention_heads": 6, "num_key_value_heads": 3, "pad_token_id": 0, "initializer_range": 0.3,
}  # fmt: skip


def drawn(model: nn.Module) -> Any:
    """Weights so large that every part is seen in the outputs."""
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.1 * torch.randn(p.shape, generator=draws)
    return model.eval()


@pytest.fixture(scope="module")
def vit() -> Any:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"img_size": 48, "embed_dim": 24, "depth": 2, "num_heads": 6}
    return drawn(timm.create_model("vit_tiny_patch16_224", num_classes=3, **sizes))


@pytest.fixture(scope="module")
def decoder() -> Any:
    torch.manual_seed(0)
    return drawn(LlamaForCausalLM(LlamaConfig(**TEXT)))


@pytest.fixture(scope="module")
def x() -> Tensor:
    return torch.randn(3, 3, 48, 48, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def ids() -> Tensor:
    return torch.randint(1, 64, (3, 11), generator=torch.Generator().manual_seed(1))


def cut(model: Any, *args: Any, **settings: Any) -> Any:
    return intarsia.apply(copy.deepcopy(model), UnionOfExperts(*args, **settings)).eval()


@torch.no_grad()
@pytest.mark.parametrize("select", ["data", "tokens", "experts"])
@pytest.mark.parametrize("heads", [None, 3, 1])
def test_with_all_experts_it_is_the_dense_vit(
    vit: Any, x: Tensor, select: str, heads: int | None
) -> None:
    assert_close(cut(vit, 4, 4, heads=heads, select=select)(x), vit(x), rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_with_all_experts_it_is_the_dense_decoder(
    decoder: Any, ids: Tensor, attention: str
) -> None:
    torch.manual_seed(0)
    qwen = drawn(Qwen3ForCausalLM(Qwen3Config(**TEXT, head_dim=8)))
    for model in (qwen, copy.deepcopy(decoder)):
        model.set_attn_implementation(attention)
        for heads in (None, 2):
            logits = cut(model, 3, 3, heads=heads)(ids).logits
            assert_close(logits, model(ids).logits, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("select", ["data", "tokens", "experts"])
def test_other_samples_have_no_say_and_the_class_token_is_with_every_expert(
    vit: Any, x: Tensor, select: str
) -> None:
    model = cut(vit, 4, 2, select=select)
    assert_close(model(x)[:1], model(x[:1]), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(model(x), vit(x), atol=1e-3)
    if select != "experts":
        block = model.blocks[0]
        weights = block.attn.router(block.norm1(model.patch_embed(x))).dense().view(3, 9, 6)
        assert bool((weights[:, 0] > 0).all())


def test_each_expert_has_its_share_of_each_sequence(vit: Any, x: Tensor) -> None:
    router = cut(vit, 4, 1).blocks[0].mlp.router
    weights = router(torch.randn(2, 9, 24)).dense().view(2, 9, 4)
    assert weights.sum(1).eq(3).all()  # ceil(9 / 4)
    router.context.valid = torch.arange(9) < torch.tensor([[5], [9]])
    weights = router(torch.randn(2, 9, 24)).dense().view(2, 9, 4)
    assert weights.sum(1).tolist() == [[2.0] * 4, [3.0] * 4] and not weights[0, 5:].any()


@torch.no_grad()
def test_a_decoder_looks_back_only_with_a_cache_and_beside_padding(
    decoder: Any, ids: Tensor
) -> None:
    model = cut(decoder, 4, 2)
    logits = model(ids).logits
    assert_close(model(ids[:, :6]).logits, logits[:, :6], rtol=1e-4, atol=1e-4)
    settings: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    cached, anew = (model.generate(ids, use_cache=use, **settings) for use in (True, False))
    assert torch.equal(cached, anew)
    padded = torch.cat([torch.zeros(3, 4, dtype=torch.long), ids], 1)
    mask = (padded > 0).long()
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    got = model(padded, attention_mask=mask, position_ids=positions).logits
    assert_close(got[:, 4:], logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("select", ["data", "tokens", "experts"])
@pytest.mark.parametrize("gate", ["frozen", "score", "straight-through"])
def test_the_way_through_pairs_is_the_naive_attention(vit: Any, select: str, gate: str) -> None:
    attention = cut(vit, 4, 2, select=select, gate=gate, heads=3).blocks[0].attn
    x = torch.randn(2, 7, 24, generator=torch.Generator().manual_seed(2), requires_grad=True)
    parts = [x, *(p for p in attention.parameters() if p.requires_grad)]
    routing = attention.router(x)
    got = attention(x)
    want = attention.naive(x, routing)
    assert_close(got, want, rtol=1e-4, atol=1e-5)
    seed = torch.randn(got.shape, generator=torch.Generator().manual_seed(3))
    ours = torch.autograd.grad(got, parts, seed, retain_graph=True)
    theirs = torch.autograd.grad(want, parts, seed)
    assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_a_score_is_one_where_all_experts_are_alike() -> None:
    """gate="score" weighs by E p, so that a gate of zeros leaves the dense model as it is."""
    gate = UnionGate(experts=4, share=0.5, select="tokens", gate="score")
    router = gate.build(6, generator=torch.Generator().manual_seed(0))
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))
    p = router.weight.detach() @ x.T
    routing = router(x)
    want = 4 * p.T.softmax(-1)[routing.token, routing.expert]
    assert_close(routing.weight, want)
    torch.nn.init.zeros_(router.weight)
    assert router(x).weight.tolist() == [1.0] * 10


def test_a_head_that_nobody_takes_gives_nothing(vit: Any) -> None:
    attention = cut(vit, 4, 1, select="tokens").blocks[0].attn
    attention.router.config = type(attention.router.config)(6, 1 / 6, "tokens")
    with torch.no_grad():
        attention.router.weight.zero_()
        attention.router.bias.copy_(torch.tensor([9.0, 0, 0, 0, 0, 0]))
    x = torch.randn(2, 5, 24)
    routing = attention.router(x)
    assert set(routing.expert.tolist()) == {0}
    assert_close(attention(x), attention.naive(x, routing), rtol=1e-5, atol=1e-6)


def test_queries_by_pairs_are_the_naive_ones(decoder: Any) -> None:
    attention = cut(decoder, 4, 2, gate="score").model.layers[0].self_attn
    x = torch.randn(2, 7, 24, generator=torch.Generator().manual_seed(2), requires_grad=True)
    angles = torch.linspace(0, 3, 7 * 2).view(1, 7, 2).repeat(1, 1, 2)
    rotary = angles.cos(), angles.sin()
    got, want = attention(x, rotary)[0], attention.naive(x, attention.router(x), rotary)
    assert_close(got, want, rtol=1e-4, atol=1e-5)
    parts = [x, *attention.parameters()]
    seed = torch.randn(got.shape, generator=torch.Generator().manual_seed(3))
    ours = torch.autograd.grad(got, parts, seed)
    theirs = torch.autograd.grad(want, parts, seed)
    assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_put_together_again_it_is_the_stock_model_bit_for_bit(
    vit: Any, decoder: Any, x: Tensor
) -> None:
    for model in (vit, decoder):
        folded = intarsia.experts.recompose(cut(model, 4, 2))
        ours, theirs = folded.state_dict(), model.state_dict()
        assert list(ours) == list(theirs)
        assert all(torch.equal(ours[n], t) for n, t in theirs.items())
        kinds = [(n, type(m)) for n, m in folded.named_modules()]
        assert kinds == [(n, type(m)) for n, m in model.named_modules()]
        assert not folded._forward_pre_hooks
    assert torch.equal(intarsia.fold(cut(vit, 4, 4))(x), vit(x))
    with refused(FoldError, what="fold", got="a union of which 2 of 4 experts are active"):
        intarsia.fold(cut(vit, 4, 2))
    with refused(TargetError, what="model", got="one without unions"):
        intarsia.experts.recompose(vit)


@torch.no_grad()
def test_permuted_experts_with_their_gates_change_nothing(vit: Any, x: Tensor) -> None:
    model = cut(vit, 4, 2)
    before, order = model(x), torch.tensor([2, 0, 3, 1])
    for block in model.blocks:
        block.mlp.experts.keep(order)
        for name in ("weight", "bias"):
            getattr(block.mlp.router, name).copy_(getattr(block.mlp.router, name)[order])
    assert_close(model(x), before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("settings", [{}, {"gate": "sizes"}])
def test_it_trains_from_the_dense_model_on_and_comes_back_from_its_folder(
    vit: Any, x: Tensor, tmp_path: Path, settings: dict[str, Any]
) -> None:
    model = cut(vit, 4, 2, warmup=0.5, **settings)
    router = model.blocks[0].mlp.router
    data = torch.utils.data.TensorDataset(x.repeat(4, 1, 1, 1), torch.arange(12) % 3)
    shares, before = list[float](), router.weight.clone()

    def note(module: Any, *_: Any) -> None:
        if module.training:
            shares.append(module.share)

    hook = router.register_forward_hook(note)
    intarsia.fit(model, data, epochs=2, batch_size=3, lr=1e-3, trackers=())
    hook.remove()
    assert shares == [1, 0.875, 0.75, 0.625, 0.5, 0.5, 0.5, 0.5]
    # choices have no gradient: the released gate stays as it was drawn
    assert torch.equal(router.weight, before) == (settings == {})
    intarsia.save(model, tmp_path / "saved")
    again = intarsia.load(copy.deepcopy(vit), tmp_path / "saved").eval()
    assert torch.equal(again(x), model.eval()(x))
    with refused(CheckpointError, what="trunk", got="LlamaForCausalLM with other layers"):
        intarsia.load(drawn(LlamaForCausalLM(LlamaConfig(**TEXT))), tmp_path / "saved")


def test_the_gate_learns_the_sizes_of_outputs(vit: Any) -> None:
    mlp: UnionMlp = cut(vit, 4, 4, gate="sizes").blocks[0].mlp.train()
    rows = torch.randn(20, 9, 24, generator=torch.Generator().manual_seed(0))
    optimiser = torch.optim.Adam(mlp.router.parameters(), 0.03)
    losses = list[float]()
    for _ in range(60):
        mlp(rows)
        losses.append((loss := intarsia.gating.aux_loss(mlp)).item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize("part", ["mlp", "attn"])
def test_the_loss_of_the_sizes_teaches_the_gate_alone(vit: Any, part: str) -> None:
    """Neither the hidden states nor the experts learn from it: it predicts from one the other."""
    union = getattr(cut(vit, 4, 2, gate="sizes").blocks[0], part).train()
    x = torch.randn(2, 9, 24, generator=torch.Generator().manual_seed(0), requires_grad=True)
    union(x)
    intarsia.gating.aux_loss(union).backward()
    taught = {name for name, p in union.named_parameters() if p.grad is not None}
    assert x.grad is None and taught == {"router.weight", "router.bias"}


def test_the_loss_of_the_sizes_by_hand() -> None:
    """0.01 mean (x_t W_e + b_e - log |o_te| + m)^2, m the mean of log |o|."""
    gate = UnionGate(experts=4, share=0.5, select="tokens", gate="sizes")
    router = gate.build(6, generator=torch.Generator().manual_seed(0)).train()
    draw = torch.Generator().manual_seed(1)
    x, outputs = torch.randn(5, 6, generator=draw), 3 * torch.randn(10, 7, generator=draw)
    routing = router(x)
    router.teach(x, routing.token, routing.expert, outputs)
    size = outputs.norm(dim=1).log()
    off = (x[routing.token] * router.weight[routing.expert]).sum(1) - size + size.mean()
    assert_close(intarsia.gating.aux_loss(router), 0.01 * off.square().mean())


@torch.no_grad()
def test_a_gate_that_learns_from_sizes_computes_the_same_outputs(vit: Any) -> None:
    """Also with the bias of the last layer, which no expert has."""
    mlp: Any = cut(vit, 4, 2, gate="sizes").blocks[0].mlp.train()
    x = torch.randn(2, 10, 24, generator=torch.Generator().manual_seed(1))
    want = mlp(x)
    with torch.enable_grad():
        assert mlp.router.teaches
        assert_close(mlp(x).detach(), want)
    assert float(mlp.shared.bias.abs().min()) > 0


def test_half_of_the_experts_is_about_half_of_the_operations(vit: Any) -> None:
    x = torch.randn(2, 40, 24)

    def flops(model: Any) -> int:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model.blocks(x)
        return counter.get_total_flops()

    dense = flops(vit)
    gates = 2 * 2 * 2 * 40 * 24 * (6 + 4)  # two blocks, two samples
    assert flops(cut(vit, 4, 4)) == dense + gates
    assert 0.45 < (flops(cut(vit, 4, 2)) - gates) / dense <= 0.5  # scores are a quarter


def test_what_cannot_be_is_refused(vit: Any, decoder: Any) -> None:
    plan = UnionOfExperts(3, 1).plan
    for settings, model, error, words in (
        ({"experts": 5}, vit, ConfigError, "divisor of the 96 hidden units"),
        ({"heads": 4}, vit, ConfigError, "divisor of the 6 heads"),
        ({"select": "data"}, decoder, ConfigError, "later tokens"),
        ({"layers": (7,)}, vit, TargetError, "2 blocks"),
    ):
        arguments: Any = {"experts": 3, "active": 1} | settings
        with pytest.raises(error, match=words):
            UnionOfExperts(**arguments).plan(model)
    with refused(ConfigError, what="active", got=5):
        UnionOfExperts(4, 5)
    with refused(ConfigError, what="parts", got="'norm'"):
        UnionOfExperts(parts=("norm",))
    with refused(TargetError, what="model Sequential", got="no block of attention and MLP"):
        plan(nn.Sequential(nn.Linear(4, 4)))
    swin: Any = timm.create_model("swin_tiny_patch4_window7_224", depths=(1,), embed_dim=24)
    with refused(TargetError, what="attention 'layers.0.blocks.0.attn'"):
        plan(swin)
    once = cut(vit, 4, 2)
    with refused(TargetError, what="model", got="one that was cut into experts before"):
        plan(once)
    with pytest.raises((TargetError, ConfigError, FoldError)):
        intarsia.upcycle(once)
    with refused(ConfigError, what="attention of a union"):
        once.blocks[0].attn(torch.randn(1, 5, 24), is_causal=True)


def test_an_attention_with_a_forward_of_its_own_is_refused(decoder: Any) -> None:
    scaled = copy.deepcopy(decoder)
    scaled.model.layers[1].self_attn.scaling *= 2
    cut(scaled, 4, 2)  # a setting that is read
    part = scaled.model.layers[1].self_attn
    part.forward = lambda **_: (torch.zeros(1, 3, 24), None)
    with refused(TargetError, what="attention 'model.layers.1.self_attn'"):
        cut(scaled, 4, 2)
    assert type(attention_from(cut(decoder, 4, 2).model.layers[0].self_attn)) is type(part)


def test_scores_that_a_tanh_cuts_are_refused() -> None:
    settings: dict[str, Any] = TEXT | {"head_dim": 4, "initializer_range": 0.02}
    gemma = Gemma2ForCausalLM(Gemma2Config(**settings, attn_logit_softcapping=5.0))
    with refused(TargetError, what="attention 'model.layers.1.self_attn'"):
        UnionOfExperts(3, 1, layers=(1,)).plan(gemma)


def test_what_each_expert_takes_is_shown(vit: Any, x: Tensor, tmp_path: Path) -> None:
    model = cut(vit, 4, 2, heads=3)
    patches = intarsia.experts.taken_patches(model, x)
    assert list(patches) == [f"blocks.{i}.{part}" for i in range(2) for part in ("attn", "mlp")]
    for path, part in patches.items():
        assert part.shape == (3, 4 if path.endswith("mlp") else 3, 3, 3)
        assert (part.sum((2, 3)) == 4).all()  # five of ten positions, the class token among them
    alone = intarsia.experts.taken_patches(model, x[1:2])
    assert all(torch.equal(part[1:2], alone[path]) for path, part in patches.items())
    for stranger in (vit, nn.Sequential(model.blocks)):
        with pytest.raises(TargetError):
            intarsia.experts.taken_patches(stranger, x)
    pictures = [Image.new("RGB", (70, 50), "red"), np.zeros((48, 48, 3), np.uint8)]
    page = intarsia.experts.patches_page(model, pictures, tmp_path / "a.html", answers=["<b>", ""])
    text = page.read_text()
    assert text.count("bright is what it takes") == 2 * 2 * (3 + 4)
    assert "&lt;b&gt;" in text and re.search(r"takes 44.?% of the patches", text)
