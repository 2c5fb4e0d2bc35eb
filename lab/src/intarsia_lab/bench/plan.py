"""The matrix of a benchmark: tasks x methods x seeds under one protocol, as experiments."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from intarsia.core.errors import ConfigError
from intarsia.core.store import key_of
from intarsia.runs.choosing.arms import BenchArm
from intarsia.runs.experiment import LENGTH, Experiment

from ..materials.suites import Suite, SuiteTask
from .protocols import Protocol

# settings that came after results were published: at these values a run has the key it had before
LATER = {"class_weights": None, "ema": None, "patience": None, "schedule": None, "length": LENGTH}


@dataclass(frozen=True, eq=False)  # one object for each place
class Slot:
    """A place of the matrix: a task, a method and a seed."""

    task: SuiteTask
    arm: BenchArm
    seed: int

    def __str__(self) -> str:
        """Return the slot in words, for messages."""
        return f"{self.task.name}, {self.arm.name}, seed {self.seed}"


@dataclass(frozen=True)
class BenchPlan:
    """The runs of a benchmark: every method on every task from every seed.

    start: everything the places share, as the model, its size and the epochs.
    cut: what a budget left out, and departures from the protocol, in sentences.
    """

    suite: Suite
    tasks: tuple[SuiteTask, ...]
    arms: tuple[BenchArm, ...]
    seeds: tuple[int, ...]
    protocol: Protocol
    start: Experiment
    cut: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check that tasks, methods and seeds are named, each once.  Raises: ConfigError."""
        for field_name in ("tasks", "arms", "seeds"):
            entries: tuple[Any, ...] = getattr(self, field_name)
            names = [getattr(g, "name", g) for g in entries]
            if not entries or len(set(names)) < len(names):
                got = ", ".join(map(str, names)) or "none"
                fix = "`intarsia bench --list` names tasks and methods."
                raise ConfigError(field_name, got=got, want="each once, at least one", fix=fix)
        for arm in self.arms:
            self.protocol.check(arm)

    def places(self) -> Iterator[Slot]:
        """Yield all slots: (task, method, seed).

        Seeds are outermost, so that a plan that is stopped leaves whole seeds; the slots of a task
        come in a row, so that its pictures stay in memory.
        """
        for seed in self.seeds:
            for task in self.tasks:
                for arm in self.arms:
                    yield Slot(task, arm, seed)

    def final(self, place: Slot) -> Experiment:
        """Return the run that counts, before a search chooses some of its settings.

        place: task, method and seed.
        """
        return self.protocol.final(place.arm, self._at(place), self._spec(place.task))

    def search(self, place: Slot) -> list[Experiment]:
        """Return the runs that choose the settings of a slot.

        place: task, method and seed.
        """
        return self.protocol.search(place.arm, self._at(place), self._spec(place.task))

    def searches(self) -> list[tuple[Slot, Experiment]]:
        """Return every run of all searches once, each with the first slot that it chooses for.

        A slot is (task, method, seed).
        """
        runs: dict[str, tuple[Slot, Experiment]] = {}
        for place in self.places():
            for run in self.search(place):
                # slots may share a search: its runs are the same by their keys
                runs.setdefault(key_for(run), (place, run))
        return list(runs.values())

    def _at(self, place: Slot) -> Experiment:
        """Return the settings of a slot's runs.

        Methods that look at every image twice in a step have half of the epochs: the same time.
        """
        epochs = self.start.training.epochs
        return self.start.changed(
            seed=place.seed, epochs=max(1, epochs // 2) if place.arm.settings.half else epochs
        )

    def _spec(self, task: SuiteTask) -> str:
        """Return a task's name with its suite, as "mini/elpv"."""
        return f"{self.suite.name}/{task.name}"

    def smaller(self, cut: str, **changes: Any) -> BenchPlan:
        """Return the plan with some of it left out.

        cut: the sentence that says so; changes: fields of the plan.
        """
        return replace(self, cut=(*self.cut, cut), **changes)

    @cached_property
    def model(self) -> str:
        """The model in a table, with what else the places share: others are in another table."""
        adapted, pictures = self.start.adapted, self.start.pictures
        blocks = adapted.last_blocks
        parts = [
            adapted.model if adapted.size is None else f"{adapted.model} at {adapted.size} px",
            f"last {blocks} block{'s' if blocks > 1 else ''}" if blocks else "",
            self.start.training.precision,
            _share(pictures.images),
            f"{pictures.shots} images a class" if pictures.shots is not None else "",
        ]
        return ", ".join(filter(None, parts))

    @property
    def asked(self) -> dict[str, Any]:
        """The plan, ready for JSON."""
        return {
            "suite": self.suite.name,
            "protocol": self.protocol.name,
            "model": self.model,
            "tasks": [task.name for task in self.tasks],
            "methods": [arm.name for arm in self.arms],
            "seeds": list(self.seeds),
            "epochs": self.start.training.epochs,
            "start": self.start.flat(),
            "cut": list(self.cut),
        }


def _share(images: float | None) -> str:
    """Return the limit of training images in words, "" without one."""
    if images is None:
        return ""
    return f"{100 * images:g} % of the images" if images < 1 else f"{images:,} images"


def key_for(experiment: Experiment) -> str:
    """Return the key of a run: all that its result depends on but code and the suite's files.

    experiment: the settings of the run.
    """
    # a setting at the value it had before there was one is left out, so that older results still
    # count
    settings = {k: v for k, v in experiment.flat().items() if k not in LATER or v != LATER[k]}
    return key_of({"format": 1, "experiment": settings})
