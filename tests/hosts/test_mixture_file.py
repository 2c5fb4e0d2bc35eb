"""An upcycled model comes back from its folder; what does not fit leaves no trace."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

import intarsia
from intarsia import Capacity, MoeX, Switch, TopK
from intarsia.core.errors import CheckpointError, ConfigError, TargetError
from intarsia.routers import PermutationSearch, Recurrent

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


def mixtral(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=4)).eval()


def out(model: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    if hasattr(model, "config"):
        return model(input_ids=torch.randint(1, 64, (2, 6), generator=generator)).logits
    return model(torch.randn(2, 3, 32, 32, generator=generator))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return intarsia.save_mixture(intarsia.upcycle(vit(), TopK(experts=2)), tmp_path / "mixture")


CASES: dict[str, tuple[Callable[[int], nn.Module], dict[str, object]]] = {
    "vit": (vit, {"router": TopK(experts=4), "how": "diversified", "layers": [1]}),
    "pyramid": (vit, {"router": Switch(), "experts": [2, 4], "capacity": Capacity(0.5, "random")}),
    "llama": (llama, {"router": TopK(experts=4, scale="none"), "how": "slices"}),
    "pyramid beside MLPs": (
        llama,
        {"router": Switch(), "experts": [2, 4], "residual": "learned"},
    ),
    "sum": (vit, {"router": TopK(experts=4), "how": "slices", "residual": "sum"}),
    "depth": (llama, {"router": Recurrent(experts=4, hidden=4)}),
    "search": (vit, {"router": PermutationSearch(TopK(experts=2))}),
    "read": (vit, {"router": MoeX(4, tau=0.1), "how": "diversified", "act": "relu"}),
    "read slices": (llama, {"router": MoeX(4, learn=True), "how": "slices", "act": "relu"}),
    "mixtral": (mixtral, {"router": TopK(experts=4)}),
}


@pytest.mark.parametrize("case", CASES)
def test_it_comes_back(case: str, tmp_path: Path) -> None:
    make, settings = CASES[case]
    model = intarsia.upcycle(make(0), **settings)  # pyright: ignore
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    folder = intarsia.save_mixture(model, tmp_path / "mixture")
    fresh = make(1)
    assert intarsia.load_mixture(fresh, folder) is fresh
    assert_close(out(fresh), out(model))
    assert fresh.upcycled == model.upcycled
    assert sorted(p.name for p in folder.iterdir()) == ["mixture.json", "mixture.safetensors"]


def test_a_mixture_into_the_dense_model_and_the_other_way_round(saved: Path) -> None:
    dense, mixture = vit(), intarsia.upcycle(vit(), TopK(experts=2))
    with pytest.raises(RuntimeError, match=r"Unexpected key.*mlp\.experts\.up"):
        dense.load_state_dict(mixture.state_dict())
    with pytest.raises(CheckpointError, match=r"'blocks\.0\.mlp': got those of a dense MLP"):
        mixture.load_state_dict(dense.state_dict())
    with pytest.raises(TargetError, match="got one that was upcycled before"):
        intarsia.load_mixture(mixture, saved)
    with pytest.raises(ConfigError, match="got one that was not upcycled"):
        intarsia.save_mixture(dense, saved)
    with pytest.raises(CheckpointError):
        intarsia.load(dense, saved)


def test_files_of_the_dense_model_and_of_the_mixture_are_told_apart(tmp_path: Path) -> None:
    """As `save_pretrained` writes them, and safetensors reads them: nothing is lost in silence."""
    dense = llama()
    mixture: Any = intarsia.upcycle(llama(), TopK(experts=2))
    with torch.no_grad():
        for parameter in mixture.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    wanted = out(mixture)
    for name, model in (("dense", dense), ("mixture", mixture)):
        cast(Any, model).save_pretrained(tmp_path / name)
    files = {n: load_file(tmp_path / n / "model.safetensors") for n in ("dense", "mixture")}
    for strict in (True, False):
        with pytest.raises(CheckpointError, match="got those of a dense MLP"):
            mixture.load_state_dict(files["dense"], strict=strict)
    assert_close(out(mixture), wanted), "refused before anything was overwritten"
    with pytest.raises(RuntimeError, match=r"Missing key.*mlp\.gate_proj(.|\n)*Unexpected key"):
        dense.load_state_dict(files["mixture"])
    again = intarsia.upcycle(llama(1), TopK(experts=2))
    left = again.load_state_dict(files["mixture"], strict=False)
    assert left.missing_keys == ["lm_head.weight"] and not left.unexpected_keys  # tied, there once
    assert_close(out(again), wanted)


def test_the_own_gate_of_a_sparse_model_is_told_from_a_router() -> None:
    plain, routed = mixtral(), intarsia.upcycle(mixtral(), TopK(experts=4), experts=4)
    for strict in (True, False):
        with pytest.raises(CheckpointError, match=r"mlp\.gate': got those of the host's own gate"):
            routed.load_state_dict(plain.state_dict(), strict=strict)
    with pytest.raises(RuntimeError, match=r"Missing key.*gate\.weight"):
        plain.load_state_dict(routed.state_dict())


def swap(name: str, value: object) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "mixture.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))

    return damage


def half(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: len(whole) // 2])

    return damage


FEWER = {"paths": ["blocks.0.mlp"], "experts": [2], "parts": [1]}
DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no settings": (lambda f: (f / "mixture.json").unlink(), "got no mixture.json"),
    "no weights": (lambda f: (f / "mixture.safetensors").unlink(), "no readable safetensors"),
    "half of the settings": (half("mixture.json"), "not JSON"),
    "half of the weights": (half("mixture.safetensors"), "no readable safetensors"),
    "a list": (lambda f: (f / "mixture.json").write_text("[]"), "no object"),
    "another format": (swap("format", 2), "format 2, not 1"),
    "an unknown router": (swap("router", {"method": "nobody"}), "no mixture takes"),
    "no router": (swap("router", {"method": "lora"}), "'lora' is no router"),
    "an unknown activation": (swap("act", "swish"), "act: got 'swish'"),
    "another E": (swap("experts", [2, 3]), "want \\(3, "),
    "other places": (swap("paths", ["layers.0.mlp"] * 2), "without 'layers.0.mlp'"),
    "another branch": (swap("residual", "half"), "settings that do not suit"),
    "parts of nothing": (swap("parts", [1]), "a number of experts and of parts"),
    "fewer places": (
        lambda f: [swap(n, v)(f) for n, v in FEWER.items()],
        "do not belong",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_folder_is_refused_and_leaves_the_model(case: str, saved: Path) -> None:
    damage, message = DAMAGE[case]
    damage(saved)
    model = vit(1)
    wanted, kinds = out(model), [type(m) for m in model.modules()]
    with pytest.raises(CheckpointError, match=message):
        intarsia.load_mixture(model, saved)
    assert [type(m) for m in model.modules()] == kinds and not hasattr(model, "upcycled")
    assert not model._forward_pre_hooks
    assert_close(out(model), wanted)


@pytest.mark.parametrize("how", ["copies", "slices"])
def test_a_file_from_before_mlps_could_stay_is_read(how: str, tmp_path: Path) -> None:
    model = intarsia.upcycle(vit(), TopK(experts=2), how=how)
    folder = intarsia.save_mixture(model, tmp_path / "mixture")
    stored = json.loads((folder / "mixture.json").read_text())
    del stored["parts"], stored["residual"]
    (folder / "mixture.json").write_text(json.dumps(stored))
    again = intarsia.load_mixture(vit(1), folder)
    assert again.upcycled == model.upcycled
    assert_close(out(again), out(model))


def test_another_architecture_is_refused(saved: Path) -> None:
    with pytest.raises(CheckpointError, match="without 'blocks.0.mlp'"):
        intarsia.load_mixture(llama(), saved)
    slices = intarsia.upcycle(llama(), TopK(experts=3), how="slices")
    folder = intarsia.save_mixture(slices, saved.parent / "slices")
    with pytest.raises(CheckpointError, match="settings that do not suit this model"):
        intarsia.load_mixture(mixtral(), folder)
    with pytest.raises(CheckpointError, match="sizes and classes"):
        intarsia.load_mixture(vit(width=48), saved)


def test_what_could_not_be_loaded_is_not_saved(tmp_path: Path) -> None:
    adapted = intarsia.adapt(intarsia.upcycle(vit(), TopK(3, 2)), intarsia.Lora(2))
    with pytest.raises(TargetError, match="adapters"):
        intarsia.save_mixture(adapted, tmp_path / "a")
    model = intarsia.upcycle(vit(), TopK(3, 2))
    intarsia.add_momentum(model, intarsia.HeavyBall(), ["blocks.0.mlp"])
    with pytest.raises(ConfigError, match="around it"):
        intarsia.save_mixture(model, tmp_path / "b")
    assert not list(tmp_path.iterdir())
