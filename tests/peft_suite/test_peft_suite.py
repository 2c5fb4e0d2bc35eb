"""PEFT's own tests of custom models, run on every adapter of the catalogue.

Its parametrize marks hold the lists of cases themselves, so new contents are enough.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import tests.test_custom_models as theirs
import tests.testing_common as shared
import timm
import torch
from torch import Tensor, nn

from intarsia.adapters.bottleneck import PLACEMENTS
from intarsia.catalog import cards
from intarsia.core.registry import keys, settings_to_dict
from intarsia.hosts.attach.config import IntarsiaConfig

WHY_NOT = "a bottleneck is not linear in its input, so it does not merge"


@dataclass(frozen=True)
class Variant:
    """A method's settings for PEFT's own toys, which have no LayerNorm, and its places in a ViT."""

    method: str
    options: dict[str, Any]
    places: tuple[str, ...]
    merges: bool = False
    vit: dict[str, Any] | None = None  # settings in the ViT, where they differ


SMALL = {"bottleneck": 4, "norm": "none", "activation": "gelu"}
OVER = {"over": {"method": "bottleneck"} | SMALL}
VARIANTS: dict[str, Variant] = {
    "adaptformer": Variant(
        "bottleneck", SMALL, ("mlp",), vit={"bottleneck": 4, "activation": "gelu"}
    ),
    # ReLU units that are dead from the start do not move, and the suite wants all to move
    "pfeiffer": Variant("bottleneck", SMALL | {"placement": "pfeiffer"}, ("mlp",)),
    # started from zero, since the suite wants a start that changes nothing
    "houlsby": Variant(
        "bottleneck", SMALL | {"placement": "houlsby", "init": "zero"}, ("attn", "mlp")
    ),
    "adapter+": Variant(
        "bottleneck",
        SMALL | {"placement": "adapter+", "init": "zero"},
        ("blocks.0", "blocks.1"),
    ),
    "lora": Variant("lora", {"rank": 4}, ("qkv", "fc1"), merges=True),
    "lora on queries and values": Variant(
        "lora", {"rank": 4, "roles": ["qv"]}, ("qkv",), merges=True
    ),
    "s2ft": Variant("s2ft", {"down": 0.5, "output": 0.5}, ("attn.proj", "fc2"), merges=True),
    "s2ft on rows": Variant(
        "s2ft", {"down": 0, "up": 0.3, "value": 0.5}, ("qkv", "fc1"), merges=True
    ),
    "lt_sft": Variant("lt_sft", {}, ("qkv", "fc1"), merges=True),
    "sparse": Variant("sparse", {"density": 0.3}, ("qkv", "fc1"), merges=True),
    # inside a module, a norm and a strided convolution; it folds, but PEFT's merging wants a delta
    "ssf": Variant("ssf", {}, ("qkv", "fc1", "norm1", "patch_embed.proj")),
    "mosa": Variant("mosa", OVER, ("mlp",)),
    "mosa both sides": Variant("mosa", OVER | {"split": "both", "active": 2}, ("mlp",)),
    "mosa over lora": Variant(
        "mosa",
        {"over": {"method": "lora", "rank": 4}, "split": "both"},
        ("qkv", "fc1"),
        merges=True,
    ),
    "poly": Variant("poly", {"rank": 1, "noise": True}, ("qkv", "fc1"), merges=True),
    "poly with heads": Variant("poly", {"rank": 2, "heads": 2}, ("qkv", "fc1"), merges=True),
    # by probability, so that PEFT's tests, which know no balance loss, train the router, too
    "llava_mole": Variant("llava_mole", {"experts": 2, "scale": "prob"}, ("qkv", "mlp")),
    # both experts have every token: the suite wants all to move in three steps
    "mixlora": Variant(
        "mixlora", {"router": {"method": "topk", "experts": 2, "active": 2}}, ("qkv", "mlp")
    ),
    "mixlora by top-p": Variant(
        "mixlora", {"router": {"method": "topp", "experts": 2, "p": 1.0}}, ("qkv", "mlp")
    ),
    # a part that no sample drew does not move, and the suite wants all to move in three steps
    "adamix": Variant("adamix", OVER | {"experts": 2, "draw": "sample"}, ("mlp",)),
    # one layer of a kind has a pool of its own, which holds no more than its equivalent rank
    "mos": Variant(
        "mos",
        {"rank": 3, "equivalent_rank": 3, "shards_per_vector": 1},  # a toy has one channel
        ("qkv", "fc1"),
        merges=True,
        vit={"rank": 5, "equivalent_rank": 3, "shards_per_vector": 4},
    ),
    # so small a start that it changes nothing, as the suite wants
    "bi": Variant(
        "bi",
        {"over": {"method": "bottleneck"} | SMALL | {"scale": 1.0}, "bits": 2, "start": 1e-8},
        ("mlp",),
    ),
    "bi over lora": Variant(
        "bi", {"over": {"method": "lora", "rank": 4}, "start": 1e-8}, ("qkv", "fc1"), merges=True
    ),
}
# started from zero, since the suite wants a start that changes nothing; of a toy's one channel one
# entry, by this seed not the same for all outputs, which softmax would not show
ONE = {"entries": 1, "std": 0.0, "seed": 3}
VARIANTS["fourier"] = Variant("fourier", ONE, ("qkv", "fc1"), merges=True)
# the others as they are in the tests of this library, where they change nothing at first
PLACES = {"mlp": "mlp", "attention": "attn", "mlp_linear": "fc1", "projection": "attn.proj"}
for found in cards("adapter", tag="zero_start"):
    if found.key not in {variant.method for variant in VARIANTS.values()}:
        roles = found.config(**found.tiny).roles
        places = tuple(PLACES.get(role, role) for role in roles)
        written = settings_to_dict(found.config(**found.tiny))
        options = {name: written[name] for name in found.tiny}
        VARIANTS[found.key] = Variant(found.key, options, places, "linear" in found.tags)


# make conformance METHODS=lora,mosa: those alone
CHOSEN = os.environ.get("PEFT_METHODS") or ",".join(VARIANTS)


def _name(key: str, rest: str) -> str:
    return f"intarsia {key} {rest}{'' if VARIANTS[key].merges else ' (cannot merge)'}"


def _case(key: str, library: str, targets: list[str], saved: str | None) -> Any:
    variant = VARIANTS[key]
    options = variant.vit if library == "timm" and variant.vit else variant.options
    kwargs = {"method": variant.method, "options": options, "target_modules": targets}
    name = _name(key, f"{library} {'+'.join(targets)}{' head' if saved else ''}")
    return name, library, IntarsiaConfig, kwargs | ({"modules_to_save": [saved]} if saved else {})


def _cases(key: str) -> Iterator[Any]:
    yield _case(key, "MLP", ["lin0"], None)
    yield _case(key, "MLP", ["lin0", "lin1"], None)
    yield _case(key, "MLP", ["lin0"], "lin1")
    if VARIANTS[key].options.get("heads", 1) == 1:  # the toy has one channel, which nothing divides
        yield _case(key, "Conv2d1x1", ["conv2d"], None)  # channels first
    for saved in (None, "head"):
        yield _case(key, "timm", list(VARIANTS[key].places), saved)


def _pair(key: str, variant: str) -> Any:
    kwargs = {
        "method": VARIANTS[key].method, "options": VARIANTS[key].options, "init_weights": False,
    }  # fmt: skip
    name = _name(key, "same" if variant == "lin0" else "different")
    first, second = kwargs | {"target_modules": ["lin0"]}, kwargs | {"target_modules": [variant]}
    # the suite adds up adapters by their ranks where the second entry says "lora"
    return name, "intarsia", IntarsiaConfig, first, second | {"seed": 1}


theirs.TEST_CASES[:] = [case for key in CHOSEN.split(",") for case in _cases(key)]
theirs.MULTIPLE_ACTIVE_ADAPTERS_TEST_CASES[:] = [
    _pair(key, other) for key in CHOSEN.split(",") for other in ("lin0", "lin1")
]


def _skip_unless_it_merges(model_id: str, config_cls: type, config_kwargs: dict[str, Any]) -> None:
    over = config_kwargs["options"].get("over", {}).get("method")
    mixture = config_kwargs["method"] in ("llava_mole", "mixlora", "uni_moe")
    if mixture or not {config_kwargs["method"], over} & {c.key for c in cards(tag="linear")}:
        pytest.skip(WHY_NOT)


theirs._skip_if_merging_not_supported = _skip_unless_it_merges
shared._skip_if_merging_not_supported = _skip_unless_it_merges


def test_the_suite_is_that_of_the_installed_peft() -> None:
    assert Path(os.environ["PEFT_TESTS"]).name == f"peft-{version('peft')}"


def test_every_adapter_has_its_cases() -> None:
    assert {v.method for v in VARIANTS.values()} == set(keys())
    placements = {v.options.get("placement", "adaptformer") for v in VARIANTS.values()}
    assert placements == set(PLACEMENTS)


class TestToys(theirs.TestPeftCustomModel):
    models = ("MLP", "Conv2d1x1")


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
        with torch.no_grad():
            for parameter in model.blocks.parameters():
                if parameter.dim() > 1:
                    # as large as if trained: what a cell reads behind a module moves its weights
                    parameter.mul_(5)
        model.register_forward_pre_hook(_cast, with_kwargs=True)
        return model.to(dtype or torch.float32)


class TestTimm(theirs.TestPeftCustomModel):
    models = ("timm",)
    transformers_class = TinyVit

    def prepare_inputs_for_testing(self) -> dict[str, Tensor]:
        return {"x": torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))}


class TestSeveralActive(theirs.TestMultipleActiveAdapters):
    pass
