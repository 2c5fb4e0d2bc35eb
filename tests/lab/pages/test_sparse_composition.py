"""The page of what goes together with sparse weights says what it tried, and notices a fault."""

from __future__ import annotations

import pytest
import torch

from intarsia.core.registry import card
from intarsia.schedules.rigl import RigL
from intarsia_lab.pages import sparse_composition as tried


def test_an_adapter_leaves_the_zeros_of_its_trunk_and_fills_none_when_folded() -> None:
    assert tried.on_sparse_trunk(card("lora")) == ["yes", "refused", "yes", "of tensors"]
    assert tried.on_sparse_trunk(card("lt_sft"))[-1] == "of changes"


def test_rigl_keeps_each_experts_density(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tried.trained_sparse(card("rigl"), "Mixtral") == "yes"
    update = RigL.update

    def fewer(*args: object) -> dict[str, torch.Tensor]:
        masks = update(*args)  # type: ignore[arg-type]
        for mask in masks.values():
            mask.view(-1)[mask.view(-1).nonzero()[0]] = False
        return masks

    monkeypatch.setattr(RigL, "update", fewer)
    assert tried.trained_sparse(card("rigl"), "Mixtral") == "no"


def test_experts_are_pruned_by_their_own_tokens() -> None:
    assert tried.pruned(card("wanda"), "Mixtral") == "yes"
    assert {c.key for c in tried.schedules()} >= {"fixed_mask", "gradual", "rigl", "set"}
