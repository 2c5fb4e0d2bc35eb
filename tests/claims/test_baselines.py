"""Claims on adapters in their smallest form, and how strong what they are held against is."""

from __future__ import annotations

from typing import Any

import pytest

from intarsia.claims import lt_sft, mix6, mixtures, poly


def quiet(_: str) -> None: ...


@pytest.fixture(autouse=True)
def short(digits: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (lt_sft, mixtures, poly):
        monkeypatch.setattr(module, "STEPS", 1)
    nets = {marks: mix6.Net(64 + marks) for marks in (0, 8)}  # one base, so that deltas add up
    monkeypatch.setattr(mix6, "_pretrained", nets.__getitem__)
    monkeypatch.setattr(poly, "EPOCHS", 1)


def trained(model: Any) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_a_shared_lora_is_told_the_task_and_is_as_large_as_mhr() -> None:
    arms = poly.methods(len(mix6.TASKS))
    logits = {poly.POLY: 6 * 4 * 12, poly.MHR: 6 * 8 * 4 * 12}  # tasks, heads, skills, layers
    sizes = {
        name: trained(poly.adapted(arm.method, 0, arm.marks)) - logits.get(name, 0)
        for name, arm in arms.items()
    }
    assert len(set(sizes.values())) == 1
    told, blind = (poly.data("train", list(mix6.TASKS), marks=m).tensors[0] for m in (8, 0))
    assert told.shape[1] == blind.shape[1] + 8
    result = poly.on_known_tasks((0,), quiet, over=poly.TOLD)
    assert result.got > 0 and [row["arm"] for row in result.table] == list(arms)


def test_mhr_z_is_held_against_poly_z() -> None:
    result = poly.on_a_later_task((0,), quiet, ours="MHR-z", over="Poly-z")
    assert [row["way"] for row in result.table] == list(poly.LATER)


def test_mixlora_and_its_baseline_have_as_many_adapter_parameters() -> None:
    ours, base = (arm.settings.method for arm in (mixtures.MIX, mixtures.EQUAL))
    assert isinstance(ours, mixtures.MixLora) and isinstance(base, mixtures.Lora)
    assert base.rank == ours.router.experts * mixtures.RANK  # pyright: ignore
    result = mixtures.ratio((0,), quiet, ours=mixtures.MIX, base=mixtures.EQUAL)
    assert result.table[0]["arm"] == mixtures.EQUAL.name and result.got > 0


def test_random_places_are_trained_for_as_many_steps() -> None:
    result = lt_sft.of_places((0,), quiet)
    assert result.table[-1]["places"] == lt_sft.TWICE and result.got > 0
    sums = lt_sft.compose((0,), quiet)
    assert [row["places"] for row in sums.table] == list(lt_sft.SUMS)
    two = list(lt_sft.SUMS.values())[:2]
    assert {m.density for m in two} == {0.02} and two[1].support == "random"
