"""A method has one name: the key of its card, in every option that takes methods, and in Python."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from intarsia.cli import (
    components,
    early,
    placing,
    simulating,
    sparsifying,
)
from intarsia.core.errors import UnknownName
from intarsia.core.registry import find, index, unpredicted_policies
from intarsia.runs.choosing.arms import ARMS, EXTRA
from intarsia.runs.experiment import objectives, schedules
from intarsia_lab.cli.words import ROUTERS, router_names
from intarsia_lab.routing.table import VARIANTS

OPTIONS = {
    "compare-routers --routers": ROUTERS,
    "fit --schedule": schedules(),
    "fit --objective": objectives(),
    "fit --task": [name for names in early.RECOMMENDERS.values() for name in names],
    "sparsify --method": sparsifying.METHODS,
    "compress --format": early.FORMATS,
    "place --by": placing.SEARCHES,
    "simulate --plan": simulating.PLANS,
    "simulate --policy": simulating.POLICIES,
    "serve --policy": unpredicted_policies(),
    "components --fit": components.MODELS,
}
LAYOUTS = ("chw",)  # how weights are stored: the method that makes one has a name of its own


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_names_methods_by_their_keys(option: str) -> None:
    assert [w for w in OPTIONS[option] if w not in LAYOUTS and _other_name(w)] == []


def _other_name(word: str) -> str | None:
    """Return the key for which a word is another name, None where it is the key or no method."""
    try:
        key = find(word)
    except UnknownName:
        return None
    return None if key == word.rstrip("+") else key  # KEY+ is a variant of the method


def test_a_contender_without_the_key_of_its_router_is_a_variant_of_one() -> None:
    def stems(names: Iterable[str]) -> set[str]:
        return {name.rstrip("+").partition("-")[0] for name in names}

    routed = [name for name, variant in VARIANTS.items() if variant.router is not None]
    assert stems(routed) <= index().keys()
    plain = {
        name: v for name, v in VARIANTS.items() if index().get(name, {}).get("kind") == "router"
    }
    for name, variant in plain.items():
        config = f"{type(variant.router).__module__}.{type(variant.router).__qualname__}"
        assert config == f"intarsia.{index()[name]['config']}"


def test_an_arm_that_has_a_method_s_name_is_that_method() -> None:
    named = {arm.name: arm.settings.method for arm in (*ARMS, *EXTRA)}
    assert {"dora", "ia3", "loha", "adaptformer", "lora"} <= {n for n in named if _is_method(n)}
    assert all(find(name) == key for name, key in named.items() if _is_method(name))


def _is_method(name: str) -> bool:
    return name in index() or _other_name(name) is not None


def test_a_paper_s_name_of_a_router_is_read_as_its_key() -> None:
    lines: list[str] = []
    assert router_names("RMoE, topk,moe-x", lines.append) == "recurrent,topk,moe_x"
    assert lines == ["Router 'RMoE' is recurrent.", "Router 'moe-x' is moe_x."]
