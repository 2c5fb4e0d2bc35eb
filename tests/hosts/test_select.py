"""What a baseline trains is what its name says, and nothing else moves."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from intarsia.core.errors import ConfigError, UnknownName
from intarsia.hosts.attach.select import PARTS, train_part

from ..refusals import refused

Make = Callable[[str], nn.Module]


def trained(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    ("host", "part", "count", "inside", "outside"),
    [
        ("vit", "linear", 2, "head.weight", "norm.weight"),
        ("vit", "full", 32, "pos_embed", None),
        ("vit", "bitfit", 16, "patch_embed.proj.bias", "norm.weight"),
        ("vit", "norms", 12, "blocks.0.norm1.weight", "blocks.0.attn.qkv.bias"),
        ("vit", "last-k", 16, "blocks.1.mlp.fc1.weight", "blocks.0.norm1.weight"),
        ("deit", "linear", 4, "head_dist.bias", "dist_token"),
        ("swin", "bitfit", None, "layers.1.blocks.0.attn.qkv.bias",
         "layers.0.blocks.0.attn.relative_position_bias_table"),
        ("swin", "norms", 20, "layers.1.downsample.norm.bias",
         "layers.1.downsample.reduction.weight"),
        ("swinv2", "bitfit", None, "layers.0.blocks.0.attn.q_bias",
         "layers.0.blocks.0.attn.qkv.weight"),
        ("convnext", "last-k", None, "head.norm.weight", "stages.3.downsample.1.weight"),
        ("efficientnet", "norms", None, "bn1.weight", "conv_stem.weight"),
        ("hf_vit", "linear", 2, "classifier.bias", "vit.layernorm.weight"),
        ("hf_vit", "last-k", None, "vit.layernorm.bias", "vit.layers.0.mlp.fc1.weight"),
    ],
)  # fmt: skip
def test_the_part_and_the_head_are_trained(
    make: Make, host: str, part: str, count: int | None, inside: str, outside: str | None
) -> None:
    model = make(host)
    names = [name for name, _ in model.named_parameters()]
    assert train_part(model, part) is model
    learned = trained(model)
    assert inside in learned and outside not in learned
    assert count in (None, len(learned))
    assert outside is None or outside in names
    assert [name for name, _ in model.named_parameters()] == names


def test_parts_of_the_vit_by_their_definition(make: Make) -> None:
    names = {name for name, _ in make("vit").named_parameters()}
    head = {"head.weight", "head.bias"}
    want = {
        "linear": head,
        "full": names,
        "bitfit": {n for n in names if n.endswith(".bias")} | head,
        "norms": {n for n in names if "norm" in n} | head,
        "last-k": {n for n in names if n.startswith(("blocks.1.", "norm."))} | head,
    }
    assert set(want) == set(PARTS)
    for part, learned in want.items():
        assert trained(train_part(make("vit"), part)) == learned


@pytest.mark.parametrize("part", ["bitfit", "norms"])
def test_in_the_last_blocks_it_is_what_it_shares_with_them(make: Make, part: str) -> None:
    for count in (1, 2):
        last = trained(train_part(make("vit"), "last-k", blocks=count))
        learned = trained(train_part(make("vit"), part))
        assert trained(train_part(make("vit"), part, last_blocks=count)) == learned & last
    with refused(ConfigError, what="last_blocks", got=3):
        train_part(make("vit"), part, last_blocks=3)


def test_more_blocks_take_in_what_lies_between_them(make: Make) -> None:
    learned = trained(train_part(make("swin"), "last-k", blocks=3))
    assert "layers.1.downsample.reduction.weight" in learned
    assert (
        "layers.0.blocks.0.attn.qkv.weight" in learned and "patch_embed.proj.weight" not in learned
    )
    of_vit = trained(train_part(make("vit"), "last-k", blocks=2))
    assert {n for n, _ in make("vit").named_parameters()} - of_vit == {
        "cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias",
    }  # fmt: skip


@pytest.mark.parametrize("part", PARTS)
def test_a_step_moves_the_part_and_nothing_else(
    make: Make, images: Callable[[str], Tensor], train: Callable[..., None], part: str
) -> None:
    model = train_part(make("vit"), part)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train(model, images("vit"))
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == trained(model)


def test_a_second_choice_replaces_the_first(make: Make) -> None:
    model = train_part(train_part(make("vit"), "full"), "linear")
    assert trained(model) == {"head.weight", "head.bias"}


@pytest.mark.parametrize("blocks", [0, -1, 3])
def test_a_wrong_number_of_blocks_leaves_the_model_alone(make: Make, blocks: int) -> None:
    model = make("vit")
    before = trained(model)
    with refused(ConfigError, what="blocks", want="1 ... 2"):
        train_part(model, "last-k", blocks=blocks)
    assert trained(model) == before


def test_what_is_not_there_is_refused(make: Make) -> None:
    with refused(UnknownName, what="unknown part of a model", got="'norm'", near=("norms",)):
        train_part(make("vit"), "norm")
    with refused(ConfigError, what="head of Sequential", got="none"):
        train_part(nn.Sequential(nn.Linear(2, 2)), "linear")
    plain = nn.Module()
    plain.head = nn.Linear(2, 2)
    with refused(ConfigError, what="method 'norms'"):
        train_part(plain, "norms")
