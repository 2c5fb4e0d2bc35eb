"""Methods of a benchmark, each in the last blocks alone where it can be."""

from __future__ import annotations

import pytest

from intarsia.bench.contenders import CONTENDERS, contender
from intarsia.bench.protocols import protocol
from intarsia.core.errors import UnknownName
from intarsia.experiments.execute import method_of, recipe_of
from intarsia.experiments.experiment import Experiment, Pictures
from intarsia.methods import Official

START = Experiment(Pictures("mini/elpv")).changed(last_blocks=6, frozen_once=True)
WHOLE = {"full", "vpt-shallow"}  # by their definition
TOP = {"linear", "last-1"}


@pytest.mark.parametrize("name", [c.name for c in CONTENDERS])
def test_all_that_can_are_kept_to_the_same_blocks(name: str) -> None:
    found = contender(name).into(START).adapted
    assert found.last_blocks == (None if name in WHOLE | TOP else 6)
    assert found.frozen_once == (name not in WHOLE)


@pytest.mark.parametrize("name", [c.name for c in CONTENDERS])
def test_in_all_blocks_only_the_probe_has_something_to_compute_once(name: str) -> None:
    found = contender(name).into(START.changed(last_blocks=None, frozen_once=False)).adapted
    assert found.last_blocks is None and found.frozen_once == (name == "linear")


def test_a_contender_that_is_not_there() -> None:
    with pytest.raises(UnknownName, match="Did you mean mosa"):
        contender("moza")


def test_the_official_protocol_is_the_published_recipe() -> None:
    start = Experiment(Pictures("")).changed(last_blocks=6, frozen_once=True, epochs=20)
    found = protocol("official").final(contender("mosa"), start, "mini/elpv")
    method = method_of(found)
    assert isinstance(method, Official) and method.lr == 1e-3 and method.batch_size == 128
    assert recipe_of(method, found)["weight_decay"] == method.settings["weight_decay"]
    assert found.adapted.last_blocks == 6 and not found.adapted.frozen_once
