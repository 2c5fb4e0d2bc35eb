"""What the claims on Union of Experts compare with: noise in place of a gate, patches that go."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor
from torch.testing import assert_close

import intarsia
from intarsia.experts import UnionOfExperts
from intarsia_lab.claims import union_gates
from intarsia_lab.claims.ledger import claim
from intarsia_lab.claims.union_gates import choose_at_random, drop_patches
from intarsia_lab.kit import Report
from intarsia_lab.routing.union_arms import Cell


@pytest.fixture(scope="module")
def vit() -> Any:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"img_size": 48, "embed_dim": 24, "depth": 3, "num_heads": 6}
    return timm.create_model("vit_tiny_patch16_224", num_classes=3, **sizes).eval()


@pytest.fixture(scope="module")
def x() -> Tensor:
    return torch.randn(3, 3, 48, 48, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_a_random_choice_is_another_one_each_time(vit: Any, x: Tensor) -> None:
    def cut(active: int, seed: int) -> Any:
        change = UnionOfExperts(4, active, heads=3, gate="frozen")
        return choose_at_random(intarsia.apply(copy.deepcopy(vit), change), seed).eval()

    assert_close(cut(4, 0)(x), vit(x), rtol=1e-5, atol=1e-5)
    model = cut(2, 0)
    first, second = model(x), model(x)
    assert not torch.allclose(first, second)
    assert torch.equal(cut(2, 0)(x), first) and not torch.allclose(cut(2, 1)(x), first)


@torch.no_grad()
def test_dropped_patches_are_those_attended_to_least(vit: Any, x: Tensor) -> None:
    assert_close(drop_patches(copy.deepcopy(vit), 1, 9)(x), vit(x), rtol=1e-5, atol=1e-5)
    model = drop_patches(copy.deepcopy(vit), 1, 4)
    before: list[Tensor] = []
    after: list[Tensor] = []
    model.blocks[0].register_forward_hook(lambda _m, _a, out: before.append(out))
    model.blocks[1].register_forward_pre_hook(lambda _m, args: after.append(args[0]))
    model(x)
    (dense,), (patches,) = before, after
    assert patches.shape == (3, 5, 24) and torch.equal(patches[:, 0], dense[:, 0])
    attn, normed = model.blocks[1].attn, model.blocks[1].norm1(dense)
    q, k = attn.qkv(normed).view(3, 10, 3, 6, 4).permute(2, 0, 3, 1, 4)[:2]
    shares = (q[:, :, :1] @ k[:, :, 1:].mT * 4**-0.5).softmax(-1).mean(1)[:, 0]  # (3, 9)
    for row in range(3):
        best = shares[row].topk(4).indices.sort().values + 1
        assert torch.equal(patches[row, 1:], dense[row, best])


def test_each_arm_is_run_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTARSIA_HOME", str(tmp_path))
    ran: list[str] = []

    def cells(seed: int, report: Report) -> dict[str, Cell]:
        def cell(arm: str, score: float) -> Cell:
            def run() -> Cell:
                ran.append(arm)
                return {"score": score, "macs": 2.0, "seconds": 1.0, "training": 1.0}

            return union_gates.arm_cell(arm, seed, [], run, report)

        arms = (("dense", 80.0), ("sizes", 70.0), ("frozen", 69.0), ("random", 60.0 + seed))
        return {arm: cell(arm, score) for arm, score in arms}

    monkeypatch.setitem(claim("uoe-choice").measure.keywords, "on", cells)  # type: ignore[attr-defined]
    result = claim("uoe-choice").measure((0, 1), lambda _: None)
    assert (
        result.values == (9, 8) and [row["of the dense"] for row in result.table] == ["1.000"] * 4
    )
    assert (
        claim("uoe-choice").measure((0, 1), lambda _: None).table == result.table and len(ran) == 8
    )
