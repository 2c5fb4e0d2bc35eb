"""The experiments on routers in their smallest form: every cell runs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import pytest

from intarsia.data import corpora
from intarsia.data.small_models import SmallModel
from intarsia.runs.pool import Arm
from intarsia_lab.experiments import evomoe, momentum, rmoe
from intarsia_lab.kit import Study
from intarsia_lab.routing import Scale, materials
from intarsia_lab.routing import contenders as routed

SCALE = Scale(SmallModel(8, 2, 2, 8), batch=4, steps=10, length=8, vocabulary=260, test=16)
BENCH = routed.Bench("toy", SCALE, "here")
STUDIES = {s.key: s for module in (evomoe, momentum, rmoe) for s in module.STUDIES}


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A corpus "toy" of one sentence; experiments find the cells of those before them."""
    text = "The cat sat on 12 mats, and Tom ran.\n" * 1000
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("INTARSIA_HOME", str(tmp_path_factory.mktemp("home")))
        patched.setattr(materials, "SEGMENT", 256)
        patched.setitem(corpora.CORPORA, "toy", corpora.Corpus(lambda _: text, "a toy"))
        yield


def arms_of(study: Study) -> tuple[Arm[routed.AtBudget], ...]:
    assert isinstance(study.measure, partial)
    keywords = study.measure.keywords
    return keywords["base"], keywords["ours"], *keywords.get("rivals", ())


@pytest.mark.thorough
@pytest.mark.usefixtures("toy")
@pytest.mark.parametrize("key", STUDIES)
def test_an_experiment_runs_all_its_contenders(key: str) -> None:
    study: Any = STUDIES[key]
    result = study.measure((0,), lambda _: None, bench=BENCH)
    assert len(result.values) == 1 and result.value == result.values[0] >= 0
    assert [row["contender"] for row in result.table] == [arm.name for arm in arms_of(study)]
    assert result.table[0]["ratio"] == "1.0000"


def cell(loss: float, **fields: Any) -> dict[str, Any]:
    layer = {"load": [1] * 8, "load_cv": 0.0, "active": 1.0}
    return {
        "loss": loss, "swapped_loss": loss + 0.1, "steps": 5, "flops": {"total": 1.0},
        "cpu_seconds": 1.0, "layers": [layer], "data": "toy", "scale": SCALE.to_dict(),
        "agreement": [{"information": 0.2}, {"information": 0.4}],
        "curve": [{"layers": [{"active": 1.0}, {"active": 2.0}]}],
    } | fields  # fmt: skip


def test_a_ratio_is_the_mean_of_the_seeds() -> None:
    ours, base = evomoe.EVOMOE, evomoe.SWITCH
    results = {base.name: [cell(2.0), cell(4.0)], ours.name: [cell(1.0), cell(4.0)]}

    def of(cells: Mapping[str, routed.Cell]) -> float:
        return routed.loss(cells[ours.name]) / routed.loss(cells[base.name])

    result = routed.judged(results, base, of, "So.")
    assert result.values == (0.5, 1.0) and result.value == 0.75
    assert result.note.endswith("So.")
    assert result.table[1]["ratio"] == "0.7500"


def test_figures_of_a_cell() -> None:
    figures = cell(2.0)
    assert routed.perplexity(figures) == pytest.approx(math.exp(2))
    assert routed.hurt(figures) == pytest.approx(math.exp(0.1) - 1)
    assert routed.information(figures) == pytest.approx(0.3)
    assert routed.active(figures) == 1.5


def test_the_control_without_recurrence_has_as_many_live_parameters() -> None:
    def live(hidden: int, recurrence: bool) -> int:
        state = 3 * hidden * hidden if recurrence else 0
        return 4 * (64 + 8) * hidden + 3 * hidden * hidden + 6 * hidden + state

    assert abs(live(38, False) / live(32, True) - 1) < 0.005
