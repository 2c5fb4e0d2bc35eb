"""Experiments on adapters of a pretrained ViT's last blocks, in their smallest form."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

from intarsia_lab.experiments import bi, mos, s2ft
from intarsia_lab.materials import low_rank, picture_cells, tails, task_tracks

from ...toys import quiet

CLASSES = 2


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Twelve narrow blocks on random tokens; cells are kept in a folder of their own."""

    def trunk(classes: int) -> torch.nn.Module:
        torch.manual_seed(0)
        sizes = {"img_size": 28, "embed_dim": 24, "num_heads": 2, "depth": 12}
        return timm.create_model("vit_small_patch14_dinov2", num_classes=classes, **sizes)

    def prepare(name: str, count: int, first: int) -> tuple[Any, ...]:
        draws = torch.Generator().manual_seed(len(name))
        order = np.arange(40)
        labels = torch.arange(40) % CLASSES
        return torch.randn(40, 5, 24, generator=draws), labels, order[:24], order[24:], CLASSES

    monkeypatch.setenv("INTARSIA_HOME", str(tmp_path))
    monkeypatch.setattr(picture_cells, "_trunk", trunk)
    monkeypatch.setattr(picture_cells, "prepare", prepare)
    monkeypatch.setattr(s2ft, "IMAGES", 12)
    changes = {"budget": picture_cells.Budget("few", 12, 1), "sets": ("a", "bb")}
    for module, study in ((mos, "STUDY"), (mos, "EIGHT"), (bi, "STUDY")):
        monkeypatch.setattr(module, study, replace(getattr(module, study), **changes))
    for cached in (tails.pictures, s2ft.probe, s2ft.rates):
        cached.cache_clear()
    yield
    for cached in (tails.pictures, s2ft.probe, s2ft.rates):
        cached.cache_clear()


def test_mos_and_what_it_is_held_against_have_as_many_parameters() -> None:
    sizes = {low_rank.parameters(mos.METHODS[name], mos.FIRST) for name in (mos.MOS, mos.LORA)}
    assert len(sizes) == 1
    large, small, published = (low_rank.parameters(m, 4) for m in mos.SAVING.values())
    assert large == mos.TIMES * published and small == published


@pytest.mark.thorough
@pytest.mark.parametrize("way", ["with_as_many", "with_an_eighth"])
def test_mos_and_lora_are_paired_by_seed(
    small: None, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mos, "parameters", lambda *_: 7)
    result = getattr(mos, way)((0,), quiet)
    lora, *_, ours = (float(row["a, %"]) + float(row["bb, %"]) for row in result.table)
    assert result.value == pytest.approx((ours - lora) / 2, abs=0.11)
    arms = [mos.LORA, mos.MOS] if way == "with_as_many" else list(mos.SAVING)
    assert [rate.arm for rate in result.rates] == arms


@pytest.mark.thorough
def test_one_bit_has_as_many_bytes_as_what_it_is_held_against() -> None:
    size, formula = bi.sizes(bi.CODED[bi.ONE])
    assert abs(size / formula - 1) < 0.02
    ours, floats = map(bi.weight_bytes, bi.PAIR)
    assert ours / floats == pytest.approx(1, abs=0.01) or floats / ours == pytest.approx(
        1, abs=0.01
    )


@pytest.mark.thorough
def test_one_bit_is_compared_by_bytes(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bi, "sizes", lambda *_: (103, 100))
    monkeypatch.setattr(bi, "weight_bytes", lambda _: 7)
    result = bi.one_bit((0,), quiet)
    assert result.value > 0 and "3.0 %" in result.note
    # the headline trains the two adapters that it compares, and no others
    assert [row["adapter"] for row in result.table] == list(bi.PAIR)
    assert [rate.arm for rate in result.rates] == list(bi.PAIR)


def test_arms_of_s2ft_have_as_many_parameters() -> None:
    ours, lora, pissa, dora = (low_rank.parameters(m, s2ft.FIRST) for m in s2ft.METHODS.values())
    assert ours == lora == pissa < dora


def test_each_arm_of_s2ft_has_its_own_rate(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[tuple[str, float]] = []

    def accuracy(arm: str, task: str, rate: float) -> float:
        tried.append((arm, rate))
        return rate if arm == task_tracks.OURS else -rate

    monkeypatch.setattr(s2ft, "tried", accuracy)
    monkeypatch.setattr(s2ft, "TARGETS", s2ft.TARGETS[:1])
    result = s2ft.retention((0,), quiet)
    # the headline trains the two methods that it compares, and no others
    assert {arm for arm, _ in tried} == set(s2ft.PAIR) and len(tried) == 8
    rates = {rate.arm: rate.rate for rate in result.rates}
    assert rates[task_tracks.OURS] == max(task_tracks.GRID)
    assert rates[task_tracks.LORA] == min(task_tracks.GRID)
    assert -1 <= result.value <= 1 and len(result.table) == 1
    tracks = s2ft.tracks(s2ft.PAIR, (0,), quiet)  # which are kept
    starts = {(t.source[0], len(t.source)) for t in tracks.values()}
    assert len(starts) == 1  # both start as the pretrained blocks


def test_both_are_read_where_they_reach_the_same_accuracy() -> None:
    ours, lora = (
        task_tracks.Track([0.2, 0.6, 0.7], [0.9, 0.8, 0.5]),
        task_tracks.Track([0.2, 0.5, 0.6], [0.9] * 3),
    )
    assert task_tracks.matched(ours, lora) == (0.6, 0.8, 0.9)
