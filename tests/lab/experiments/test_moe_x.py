"""MoE-X in their smallest form."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from intarsia.data.small_models import SmallModel
from intarsia.mixtures.zcode_m3 import mixtures_in
from intarsia_lab.experiments import moe_x
from intarsia_lab.materials.code_states import STATES, states_of
from intarsia_lab.routing import kinds_of_text

from ...toys import quiet

MODULE = '''def f(a, b=[1, (2)]):
    """Doc."""
    x = {"k": a}  # why
    if x:
        return x
'''


@pytest.mark.parametrize(
    ("state", "language"),
    [
        ("comment", "# why"),
        ("docstring", '"""Doc."""'),
        ("string", '"""Doc.""""k"'),
        ("keyword", "defifreturn"),
        ("in ( )", "(a, b=[1, (2)])"),
        ("in [ ]", "[1, (2)]"),
        ("in { }", '{"k": a}'),
        ("two brackets deep", "[1, (2)]"),
        ("head of def or class", "def f(a, b=[1, (2)]):"),
        ("indented twice", "return x"),
        ("indented three times", ""),
    ],
)
def test_states_are_those_of_the_language(state: str, language: str) -> None:
    on = states_of(MODULE)[:, STATES.index(state)]
    letters = "".join(c for c, yes in zip(MODULE, on, strict=True) if yes)
    assert letters.strip() == language


def test_units_are_those_of_the_wide_mlp_weighed_by_their_gate() -> None:
    shape = SmallModel(8, 3, 2, 6, "relu")
    net = kinds_of_text.decoder_of_experts(moe_x.TopK(2, 2), 0, shape=shape).eval()
    rows, inputs = torch.randint(90, (3, 5)), list[torch.Tensor]()
    mixture: Any = list(mixtures_in(net).values())[1]
    mixture.register_forward_hook(lambda _, args, __: inputs.append(args[0].detach()))
    units = moe_x.wide_units(net, rows, 1)
    x = inputs[0].reshape(15, 8)
    gates, up = mixture.router(x).dense(), mixture.experts.up
    slow = [gates[:, e, None] * torch.relu(x @ up[e].T) for e in range(2)]
    assert np.allclose(units, torch.cat(slow, 1).detach().numpy(), atol=1e-6)


def test_the_largest_units_of_a_token_stay() -> None:
    units = np.array([[3.0, 0, 2, 1], [0, 0, 5, 0]], dtype=np.float32)
    assert moe_x.thinned(units, 2).tolist() == [[3, 0, 2, 0], [0, 0, 5, 0]]
    assert moe_x.thinned(units, 4) is units


def test_a_detector_is_found_and_noise_is_none() -> None:
    draws = np.random.default_rng(0)
    states = draws.random((400, 2)) < 0.3
    noise = draws.random((400, 6)).astype(np.float32)
    sure = np.where(states[:, :1], 1 + noise[:, :1], 0.2 * noise[:, :1])  # low where it is not
    detectors = moe_x.coverage(np.concatenate([noise, sure], 1), states)
    assert (
        detectors.best > 0.7 and 0.45 < detectors.together < 0.6
    )  # one state of two is told surely
    assert moe_x.coverage(noise, states).together < 0.1
    never = np.concatenate([states, np.zeros((400, 1), dtype=bool)], 1)
    assert moe_x.coverage(noise, never) == moe_x.coverage(noise, states)


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("INTARSIA_HOME", str(tmp_path))
    monkeypatch.setattr(moe_x, "library", lambda _: [MODULE * 20] * 9 + ["def (", MODULE * 20])
    monkeypatch.setattr(moe_x, "RELU", SmallModel(8, 3, 2, 8, "relu"))
    moe_x.code.cache_clear()
    yield
    moe_x.code.cache_clear()


def test_models_are_trained_once(modules: None, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = moe_x.code()
    assert figures.states.shape == (figures.test.numel(), len(STATES)) and figures.states.any(0)[0]
    first = moe_x.probe((0,), quiet, steps=1)
    monkeypatch.setattr(moe_x, "learn", None)
    assert moe_x.probe((0,), quiet, steps=1) == first and -1 <= first.value <= 1
    assert [row["router"] for row in first.table] == list(moe_x.ROUTERS)
