"""Sums, means and differences of adapters, whatever methods they are of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import intarsia
from intarsia.catalog import cards
from intarsia.core.errors import ConfigError, FoldError
from intarsia.core.registry import card
from intarsia.hosts.delta.cells import layers_of
from intarsia_lab.pages.composition import after, beside, by_trait, over, sums, vit

from ..refusals import refused


def adapted(*methods: Any, layers: tuple[int, ...] | None = None) -> Any:
    model: Any = vit()
    for number, method in enumerate(methods):
        model = intarsia.adapt(model, method, name=f"n{number}", head=None, layers=layers)
    model.base_model.set_adapter([f"n{i}" for i in range(len(methods))])  # the inactive are frozen
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model.eval()


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return model(x)


def test_the_sum_is_both_at_once_and_the_difference_none() -> None:
    model = adapted(intarsia.Lora(2), intarsia.adapters.Sparse(0.1))
    model = intarsia.sparse.combine(model, {"n0": 1.0, "n1": 1.0}, "sum")
    model = intarsia.sparse.combine(model, {"n0": 1.0, "n1": -1.0}, "difference")
    model.base_model.set_adapter(["n0", "n1"])
    both = logits(model)
    model.set_adapter("sum")
    torch.testing.assert_close(logits(model), both, rtol=1e-4, atol=1e-5)
    model.base_model.set_adapter(["difference", "n1"])
    summed = logits(model)
    model.set_adapter("n0")
    torch.testing.assert_close(summed, logits(model), rtol=1e-4, atol=1e-5)


def test_a_mean_is_saved_and_loaded(tmp_path: Path) -> None:
    model = adapted(intarsia.Lora(2), intarsia.Lora(3, roles=("mlp_linear",)))
    model = intarsia.sparse.combine(model, {"n0": 0.5, "n1": 0.5}, "mean")
    model.set_adapter("mean")
    want = logits(model)
    model.save_pretrained(tmp_path)
    again = intarsia.load(vit(), tmp_path / "mean", name="mean")
    torch.testing.assert_close(logits(again), want)
    mean, single = layers_of(model, "mean"), layers_of(model, "n0")
    for path, layer in single.items():
        torch.testing.assert_close(mean[path].delta("mean"), layer.delta("n0") / 2)


def test_what_cannot_be_combined_says_why() -> None:
    model = adapted(intarsia.Lora(2), intarsia.Bottleneck(4))
    with refused(FoldError, what="merging adapter 'n1' at 'blocks.0.mlp'"):
        intarsia.sparse.combine(model, {"n0": 1.0, "n1": 1.0}, "sum")
    with refused(ConfigError, what="weights", got="none"):
        intarsia.sparse.combine(model, {}, "sum")
    with refused(ConfigError, what="adapter", got="'n7'"):
        intarsia.sparse.combine(model, {"n7": 1.0}, "sum")
    assert list(model.peft_config) == ["n0", "n1"]


@pytest.mark.parametrize("name", ["down", "weight", "blocks", "qkv", "0"])
def test_an_adapter_is_not_called_as_a_part_of_the_model_is(name: str) -> None:
    # PEFT would leave out of every other adapter's file what has that word in its path
    model = vit()
    with refused(ConfigError, what="adapter name", want="no word in the path of a weight"):
        intarsia.adapt(model, intarsia.Lora(2), name=name, head=None)
    assert type(model) is type(vit()) and not hasattr(model, "peft_config")
    second = adapted(intarsia.Lora(2))
    with refused(ConfigError, what="adapter name", want="no word in the path of a weight"):
        intarsia.adapt(second, intarsia.Lora(2), name=name, head=None)
    assert list(second.peft_config) == ["n0"]


def test_pairs_that_the_page_of_compositions_names() -> None:
    assert over(card("bi"), card("mosa")) and over(card("mixlora"), card("mos"))
    assert not over(card("mosa"), card("bi")) and not over(card("adamix"), card("mosa"))
    assert beside(card("lt_sft"), card("lora")) == "yes"
    assert beside(card("mosa"), card("lt_sft")) == "blocks"
    assert sums(card("lora"), card("s2ft")) and not sums(card("lora"), card("ssf"))


def test_changes_stack_or_say_why_not() -> None:
    assert after(card("upcycle"), card("lora")) == "yes"
    assert after(card("upcycle"), card("mosa")) == "refused"  # it has no place but the MLP
    assert after(card("vpt-deep"), card("mosa")) == "yes"


def test_the_page_of_compositions_names_every_adapter_under_its_trait() -> None:
    page = (Path(__file__).parents[2] / "docs" / "composition.md").read_text()
    for trait, group in by_trait(cards("adapter")).items():
        assert f"| {trait} | {', '.join(f'`{member.key}`' for member in group)} |" in page


@pytest.mark.parametrize(
    ("one_trait", "other_trait"), [("bi", "s2ft"), ("mixlora", "mos"), ("poly", "ssf")]
)
def test_what_was_not_tried_follows_from_the_traits(one_trait: str, other_trait: str) -> None:
    first = {c.key: group[0] for group in by_trait(cards("adapter")).values() for c in group}
    assert first[one_trait].key != one_trait or first[other_trait].key != other_trait
    assert beside(card(one_trait), card(other_trait)) == beside(
        first[one_trait], first[other_trait]
    )
