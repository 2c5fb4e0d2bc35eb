"""Visual prompts: the same as concatenating them by hand, and gone before the pooling."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from intarsia.core.errors import ConfigError, TargetError
from intarsia.hosts.attach.prompts import add_prompts
from intarsia.train.precision import cast_frozen, learned_state
from intarsia.train.resume import put_back

from ..refusals import refused

SIZES: dict[str, Any] = {"depth": 3, "embed_dim": 32, "num_heads": 2, "num_classes": 5}
VITS: dict[str, tuple[str, dict[str, Any]]] = {
    "class token": ("vit_tiny_patch16_224", {"img_size": 32}),
    "mean of the patches": ("vit_tiny_patch16_224", {"img_size": 32, "global_pool": "avg"}),
    "no class token": (
        "vit_tiny_patch16_224", {"img_size": 32, "class_token": False, "global_pool": "avg"},
    ),
    "distilled": ("deit_tiny_distilled_patch16_224", {"img_size": 32}),
    "layer scale": ("vit_small_patch14_dinov2", {"img_size": 28, "init_values": 0.5}),
    "registers": ("vit_small_patch14_reg4_dinov2", {"img_size": 28, "init_values": 0.5}),
    "any size": ("vit_tiny_patch16_224", {"img_size": 64, "dynamic_img_size": True}),
}  # fmt: skip


def host(name: str = "class token") -> nn.Module:
    torch.manual_seed(0)
    model, settings = VITS[name]
    return timm.create_model(model, **SIZES, **settings).eval().double()


def images(name: str = "class token") -> Tensor:
    side = 28 if name in ("layer scale", "registers") else 32
    generator = torch.Generator().manual_seed(1)
    return torch.randn(3, 3, side, side, generator=generator, dtype=torch.float64)


def by_hand(model: Any, tokens: Tensor, x: Tensor, before: int = 0) -> Tensor:
    """The naive twin: [prefix; prompts; patches] concatenated, block by block.

    before: the first blocks, without prompts.
    """
    x = model.norm_pre(model._pos_embed(model.patch_embed(x)))
    x = model.blocks[:before](x)
    prefix, patches = x[:, : model.num_prefix_tokens], x[:, model.num_prefix_tokens :]
    count, first = tokens.shape[1], prefix.shape[1]
    prompts = tokens[0].expand(len(x), -1, -1)
    for number, block in enumerate(model.blocks[before:]):
        if len(tokens) > 1:
            prompts = tokens[number].expand(len(x), -1, -1)
        x = block(torch.cat([prefix, prompts, patches], 1))
        prefix, prompts, patches = x.split([first, count, patches.shape[1]], 1)
    return model.forward_head(model.norm(torch.cat([prefix, patches], 1)))


@pytest.mark.parametrize("deep", [False, True], ids=["shallow", "deep"])
@pytest.mark.parametrize("name", VITS)
def test_the_same_as_by_hand(name: str, deep: bool) -> None:
    stock, x = host(name), images(name)
    model = add_prompts(copy.deepcopy(stock), prompts=4, deep=deep).double()
    with torch.no_grad():
        model.prompts.tokens.mul_(5)
    want = by_hand(stock, model.prompts.tokens, x)
    assert_close(model(x), want)
    assert not torch.allclose(want, stock(x))
    # gradients, too
    model(x).square().sum().backward()
    tokens = model.prompts.tokens.detach().clone().requires_grad_()
    by_hand(stock, tokens, x).square().sum().backward()
    assert_close(model.prompts.tokens.grad, tokens.grad)


@pytest.mark.parametrize("name", VITS)
def test_deep_prompts_of_the_last_blocks_are_the_tail_by_hand(name: str) -> None:
    stock, x = host(name), images(name)
    model = add_prompts(copy.deepcopy(stock), prompts=4, deep=True, last_blocks=2).double()
    assert model.prompts.tokens.shape == (2, 4, 32)
    with torch.no_grad():
        model.prompts.tokens.mul_(5)
    want = by_hand(stock, model.prompts.tokens, x, before=1)
    assert_close(model(x), want)
    assert not torch.allclose(want, stock(x))


def test_shallow_prompts_stand_before_the_first_block() -> None:
    with refused(ConfigError, what="last_blocks", got=1):
        add_prompts(host(), last_blocks=1)


@pytest.mark.parametrize("deep", [False, True], ids=["shallow", "deep"])
def test_no_prompts_are_the_stock_model(deep: bool) -> None:
    stock = host()
    model = add_prompts(copy.deepcopy(stock), prompts=0, deep=deep)
    assert torch.equal(model(images()), stock(images()))
    assert model.state_dict().keys() == stock.state_dict().keys()


def test_prompts_and_head_are_trained_and_nothing_else() -> None:
    model = add_prompts(host(), prompts=2, deep=True)
    names = {n for n, p in model.named_parameters() if p.requires_grad}
    assert names == {"prompts.tokens", "head.weight", "head.bias"}
    assert model.prompts.tokens.shape == (3, 2, 32)
    assert add_prompts(host(), prompts=2).prompts.tokens.shape == (1, 2, 32)


def test_the_start_is_uniform_as_in_the_released_code() -> None:
    tokens = add_prompts(host(), prompts=500, deep=True).prompts.tokens.detach()
    bound = (6 / (3 * 16 * 16 + 32)) ** 0.5
    assert tokens.abs().max() <= bound and tokens.abs().max() > 0.99 * bound
    assert abs(float(tokens.std()) - bound / 3**0.5) < 1e-3
    equal, reseeded = (add_prompts(host(), prompts=500, deep=True, seed=s) for s in (0, 1))
    assert torch.equal(equal.prompts.tokens, tokens)
    assert not torch.equal(reseeded.prompts.tokens, tokens)


def test_dropout_is_on_the_prompts_and_only_while_training() -> None:
    model = add_prompts(host(), prompts=8, dropout=0.5)
    x = images()
    assert torch.equal(model(x), model(x))
    model.train()
    assert not torch.equal(model(x), model(x))


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    grads = []
    for on in (False, True):
        model = add_prompts(host(), prompts=3, deep=True, dropout=0.5).train()
        model.set_grad_checkpointing(on)
        torch.manual_seed(3)
        model(images()).square().sum().backward()
        grads.append(model.prompts.tokens.grad)
    assert_close(grads[0], grads[1])


def test_a_trunk_in_half_precision() -> None:
    model = add_prompts(host().float(), prompts=3, deep=True)
    cast_frozen(model, "bf16")
    assert model.prompts.tokens.dtype == torch.float32
    x, full = images().float(), add_prompts(host().float(), prompts=3, deep=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = model(x)
    assert_close(y.float(), full(x), atol=0.05, rtol=0.05)
    y.float().square().sum().backward()
    assert model.prompts.tokens.grad.dtype == torch.float32


def test_what_was_learned_is_put_back() -> None:
    model, again = (add_prompts(host(), prompts=3, deep=True, seed=seed) for seed in (0, 1))
    with torch.no_grad():
        model.prompts.tokens.add_(1)
        model.head.bias.add_(1)
    state = learned_state(model)
    assert set(state) == {"prompts.tokens", "head.weight", "head.bias"}
    put_back(again, state)
    assert torch.equal(again(images()), model(images()))


def test_a_deep_copy_has_prompts_of_its_own() -> None:
    model = add_prompts(host(), prompts=3, deep=True)
    twin, before = copy.deepcopy(model), model(images())
    with torch.no_grad():
        twin.prompts.tokens.mul_(9)
    assert torch.equal(model(images()), before)
    assert not torch.allclose(twin(images()), before)


@pytest.mark.parametrize("name", ["swin", "convnext", "efficientnet", "hf_vit", "eva"])
def test_other_models_are_refused(make: Callable[[str], nn.Module], name: str) -> None:
    with refused(TargetError, what="model for prompts"):
        add_prompts(make(name))


def test_bad_settings_are_refused_and_leave_no_trace() -> None:
    for settings, says in (({"prompts": -1}, "prompts: got -1"), ({"dropout": 1.0}, "dropout")):
        model = host()
        with pytest.raises(ConfigError, match=says):
            add_prompts(model, **settings)
        assert all(p.requires_grad for p in model.parameters()) and not hasattr(model, "prompts")
    with refused(TargetError, what="model for prompts"):
        add_prompts(add_prompts(host()))
