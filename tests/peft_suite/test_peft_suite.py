"""PEFT's own tests of custom models, run on every adapter of the catalogue.

Its parametrize marks hold the lists of cases themselves, so new contents are enough.
"""

from __future__ import annotations

import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import tests.test_custom_models as theirs
import tests.testing_common as shared
import timm
import torch
from torch import Tensor, nn

from intarsia.core.registry import card, keys
from intarsia.hosts.peft import IntarsiaConfig

# method -> settings for PEFT's multilayer perceptron, which has no LayerNorm
SETTINGS: dict[str, dict[str, Any]] = {
    "bottleneck": {"bottleneck": 4, "norm": "none"},
    "lora": {"rank": 4},
    # a part that no sample drew does not move, and the suite wants all to move in three steps
    "adamix": {
        "over": {"method": "bottleneck", "bottleneck": 4, "norm": "none"},
        "experts": 2, "draw": "sample",
    },
    "mosa": {"over": {"method": "bottleneck", "bottleneck": 4, "norm": "none"}},
}  # fmt: skip
MERGES = frozenset({"lora"})


def _case(method: str, where: str, targets: list[str], saved: list[str] | None) -> Any:
    name = f"intarsia {method} {where} {'+'.join(targets)}{' head' if saved else ''}"
    name += "" if method in MERGES else " (cannot merge)"
    kwargs: dict[str, Any] = {
        "method": method, "options": SETTINGS[method], "target_modules": targets,
    }  # fmt: skip
    return name, where, IntarsiaConfig, kwargs | ({"modules_to_save": saved} if saved else {})


def _pair(method: str, other: str) -> Any:
    kwargs = {"method": method, "options": SETTINGS[method], "init_weights": False}
    name = f"intarsia {method} {'same' if other == 'lin0' else 'different'}"
    name += "" if method in MERGES else " (cannot merge)"
    first, second = kwargs | {"target_modules": ["lin0"]}, kwargs | {"target_modules": [other]}
    # the suite adds up adapters by their ranks where the second entry says "lora"
    return name, "intarsia", IntarsiaConfig, first, second | {"seed": 1}


theirs.TEST_CASES[:] = [
    _case(method, *place)
    for method in SETTINGS
    for place in (
        ("MLP", ["lin0"], None),
        ("MLP", ["lin0", "lin1"], None),
        ("MLP", ["lin0"], ["lin1"]),
        ("timm", ["qkv", "fc1"] if method in MERGES else ["mlp"], None),
        ("timm", ["qkv"] if method in MERGES else ["mlp"], ["head"]),
    )
]
theirs.MULTIPLE_ACTIVE_ADAPTERS_TEST_CASES[:] = [
    _pair(method, other) for method in SETTINGS for other in ("lin0", "lin1")
]


def _skip_unless_it_merges(model_id: str, config_cls: type, config_kwargs: dict[str, Any]) -> None:
    if config_kwargs["method"] not in MERGES:
        pytest.skip("a bottleneck is not linear in its input, so it does not merge")


theirs._skip_if_merging_not_supported = _skip_unless_it_merges
shared._skip_if_merging_not_supported = _skip_unless_it_merges


def test_the_suite_is_that_of_the_installed_peft() -> None:
    assert Path(os.environ["PEFT_TESTS"]).name == f"peft-{version('peft')}"


def test_every_adapter_has_its_cases() -> None:
    assert set(SETTINGS) == {key for key in keys() if card(key).kind == "adapter"}


class TestMlp(theirs.TestPeftCustomModel):
    model = "MLP"


def _cast(module: nn.Module, args: Any, kwargs: dict[str, Tensor]) -> Any:
    # the suite feeds float32 to models in half precision; its own toys cast inside
    dtype = module.get_parameter("patch_embed.proj.weight").dtype
    return args, {name: value.to(dtype) for name, value in kwargs.items()}


class TinyVit:
    """A timm ViT of two blocks, as PEFT's tests obtain a model."""

    @classmethod
    def from_pretrained(cls, model_id: str, dtype: torch.dtype | None = None) -> nn.Module:
        torch.manual_seed(0)
        model = timm.create_model(
            "vit_tiny_patch16_224", img_size=32, num_classes=5, depth=2, embed_dim=32, num_heads=2
        )
        model.register_forward_pre_hook(_cast, with_kwargs=True)
        return model.to(dtype or torch.float32)


class TestTimm(theirs.TestPeftCustomModel):
    model = "timm"
    transformers_class = TinyVit

    def prepare_inputs_for_testing(self) -> dict[str, Tensor]:
        return {"x": torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))}


class TestSeveralActive(theirs.TestMultipleActiveAdapters):
    pass
