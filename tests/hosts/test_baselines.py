"""Every baseline of the list is built by its name, learns, and comes back from its files."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.testing import assert_close

import intarsia
from intarsia.adapters import Lora
from intarsia.core.change import steps_of
from intarsia.core.errors import CheckpointError, ConfigError, TargetError, UnknownName
from intarsia.core.registry import card, keys, settings_from_dict, settings_to_dict
from intarsia.core.sealing import seal_folder
from intarsia.folders.verbs import adapt
from intarsia.hosts.attach.prompts import Prompts
from intarsia.train.record import parameter_counts

from ..refusals import refused

Make = Callable[[str], nn.Module]
Images = Callable[[str], Tensor]
BASELINES = keys("baseline")
PEFT = [name for name in BASELINES if card(name).family == "peft"]
# where the defaults are meant for wider layers than those of a toy
TOY: dict[str, dict[str, Any]] = {"peft-miss": {"r": 8}}
# starts at random: PEFT's default for it
NO_ZERO_START = {"peft-fourierft", "vpt-shallow", "vpt-deep"}


def build(
    name: str, model: nn.Module, settings: dict[str, Any] | None = None, *, seed: int = 0
) -> Any:
    """The model with a baseline, by the key of its card."""
    return intarsia.apply(model, settings_from_dict(card(name), settings or {}), seed=seed)


@pytest.mark.parametrize("name", BASELINES)
def test_the_list_says_what_each_is(name: str) -> None:
    method_card = card(name)
    assert re.fullmatch(r"[a-z][a-z0-9-]*", name) and name not in keys()
    assert method_card.summary.endswith(".") and method_card.family in (
        "part of the model",
        "prompts",
        "peft",
    )
    assert re.fullmatch(r"\d{4}\.\d{4,5}", method_card.paper.arxiv) and method_card.paper.title
    assert method_card.paper.year >= 2000 + int(method_card.paper.arxiv[:2])
    settings = settings_to_dict(method_card.config())
    assert settings_from_dict(method_card, json.loads(json.dumps(settings))) == method_card.config()


@pytest.mark.parametrize("name", BASELINES)
def test_it_starts_where_the_model_is_and_learns(
    make: Make, images: Images, train: Callable[..., None], name: str
) -> None:
    x, stock = images("vit"), make("vit")
    model = build(name, make("vit"), TOY.get(name)).eval()
    if name not in NO_ZERO_START:
        assert_close(model(x), stock(x))
    counts = parameter_counts(model)
    assert (counts["trained_without_head"] == 0) == (name == "linear")
    assert (counts["trained"] == counts["all"]) == (name == "full")
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    train(model, x)
    assert not torch.allclose(model(x), stock(x))
    assert all(torch.equal(model.get_parameter(n), p) for n, p in frozen.items())


@pytest.mark.parametrize("name", BASELINES)
def test_what_was_saved_is_read_back(
    make: Make, images: Images, train: Callable[..., None], name: str, tmp_path: Path
) -> None:
    model = build(name, make("vit"), TOY.get(name), seed=3)
    train(model, images("vit"))
    intarsia.save(model, tmp_path)
    again = intarsia.load(make("vit"), tmp_path).eval()
    assert torch.equal(again(images("vit")), model(images("vit")))


def test_peft_lora_is_the_lora_of_peft(make: Make) -> None:
    model = build("peft-lora", make("vit"), {"r": 4, "roles": ("qkv", "projection")})
    assert isinstance(model, PeftModel)
    config = model.peft_config["default"]
    assert config.target_modules == {
        f"blocks.{i}.attn.{layer}" for i in (0, 1) for layer in ("qkv", "proj")
    }
    assert config.modules_to_save == ["head"] and config.r == 4
    assert build("peft-dora", make("vit")).peft_config["default"].use_dora


def test_ia3_scales_what_the_mlps_last_layer_reads(make: Make) -> None:
    config = build("peft-ia3", make("vit")).peft_config["default"]
    assert config.feedforward_modules == {"blocks.0.mlp.fc2", "blocks.1.mlp.fc2"}
    assert config.target_modules == config.feedforward_modules | {
        "blocks.0.attn.qkv", "blocks.1.attn.qkv",
    }  # fmt: skip


def test_norms_by_peft_are_the_norms(make: Make) -> None:
    ours, theirs = build("norms", make("vit")), build("peft-lntuning", make("vit"))
    counts = [parameter_counts(model)["trained_without_head"] for model in (ours, theirs)]
    assert counts[0] == counts[1]
    # swin has a final norm whose name ends those of others
    swin = [build(name, make("swin")) for name in ("norms", "peft-lntuning")]
    assert len({parameter_counts(model)["trained_without_head"] for model in swin}) == 1


def test_the_last_blocks_only(make: Make) -> None:
    model = build("peft-lora", make("vit"), {"last_blocks": 1})
    assert model.peft_config["default"].target_modules == {"blocks.1.attn.qkv"}
    with refused(ConfigError, what="last_blocks", got=3):
        build("peft-lora", make("vit"), {"last_blocks": 3})


def test_the_seed_decides_the_start_and_nothing_else_moves(make: Make) -> None:
    before = torch.get_rng_state()
    starts = []
    for seed in (0, 0, 1):
        model = make("vit")
        torch.manual_seed(7)
        state = build("peft-lora", model, seed=seed).state_dict()
        starts.append(next(t for n, t in state.items() if "lora_A" in n))
        assert torch.equal(torch.rand(2), torch.rand(2, generator=torch.Generator().manual_seed(7)))
    assert torch.equal(starts[0], starts[1]) and not torch.equal(starts[0], starts[2])
    torch.set_rng_state(before)


def test_settings_of_prompts_and_blocks(make: Make) -> None:
    model = build("vpt-deep", make("vit"), {"prompts": 3, "dropout": 0.1})
    assert isinstance(model.prompts, Prompts) and model.prompts.tokens.shape == (2, 3, 32)
    assert build("vpt-shallow", make("vit")).prompts.tokens.shape == (1, 10, 32)
    model = build("last-k", make("vit"), {"blocks": 2})
    assert model.get_parameter("blocks.0.norm1.weight").requires_grad


@pytest.mark.parametrize(
    ("name", "settings", "got"),
    [
        ("bitfti", {}, "'bitfti'"),
        ("peft-dora", {"rank": 4}, "'rank'"),
        ("peft-dora", {"lora_alhpa": 4}, "'lora_alhpa'"),
        ("last-k", {"block": 2}, "'block'"),
        ("linear", {"blocks": 2}, "'blocks'"),
        ("peft-lora", {"target_modules": ["fc1"]}, "'target_modules'"),
    ],
)
def test_unknown_names(make: Make, name: str, settings: dict[str, Any], got: str) -> None:
    with refused(UnknownName, got=got):
        build(name, make("vit"), settings)


def test_what_peft_refuses_is_said_as_ours(make: Make) -> None:
    with refused(ConfigError, what="settings of PEFT's LORA"):
        build("peft-lora", make("vit"), {"r": 0})
    with refused(TargetError, what="role 'attention'"):
        build("peft-lora", make("convnext"), {"roles": ("attention",)})
    with refused(ConfigError, what="adapter name", got="'default'"):
        build("peft-lora", adapt(make("vit"), Lora(2)))


def resealed(folder: Path) -> None:
    """Seal a folder as it is now, so that the checks behind the seal are met."""
    seal_folder(folder, "intarsia.json", json.loads((folder / "intarsia.json").read_text()))


def test_damaged_and_foreign_files_are_refused(make: Make, tmp_path: Path) -> None:
    for name, settings in (("peft-lora", {}), ("peft-loha", {}), ("smaller", {"r": 4})):
        key = "peft-lora" if name == "smaller" else name
        intarsia.save(build(key, make("vit"), settings), tmp_path / name)
    folder, weights = tmp_path / "peft-lora", "adapter_model.safetensors"
    content = (folder / weights).read_bytes()
    (folder / weights).write_bytes(content[:-1] + b"\0")
    with refused(
        CheckpointError, got="bytes that changed after they were written", want="what was written"
    ):
        intarsia.load(make("vit"), folder)
    (folder / weights).write_bytes(content)
    for donor, says in (("smaller", r"want \(8, 32\)"), ("peft-loha", "that do not belong")):
        (folder / weights).write_bytes((tmp_path / donor / weights).read_bytes())
        resealed(folder)
        model = make("vit")
        with pytest.raises(CheckpointError, match=says):
            intarsia.load(model, folder)
        assert not hasattr(model, "peft_config") and not steps_of(model)
        (folder / weights).write_bytes(content)
    (folder / weights).write_bytes(content[:99])
    resealed(folder)
    with refused(
        CheckpointError,
        want="a file as model.save_pretrained wrote it",
    ):
        intarsia.load(make("vit"), folder)
    (folder / weights).unlink()
    with pytest.raises(CheckpointError):
        intarsia.load(make("vit"), folder)
