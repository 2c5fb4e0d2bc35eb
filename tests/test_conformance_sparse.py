"""Laws of schedules of masks and of pruners; each is seen to fail."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from intarsia.conformance import check
from intarsia.conformance.cards import CARD_LAWS
from intarsia.conformance.sparsifiers import SPARSIFIER_LAWS
from intarsia.core import Card, Paper, Partition
from intarsia.core.errors import ConfigError, ConformanceError
from intarsia.core.schema import setting
from intarsia.partitions import keep_rows, keep_shares
from intarsia.schedules import SparseSchedule
from intarsia.schedules.masked import Masked, Masks, Weights
from intarsia.scores import Statistics
from intarsia.sparse.prune.pruner import LayerPruner

OF_ANY_CARD = {"names_its_exceptions", *(law.__name__ for law in CARD_LAWS)}
PAPER = Paper("1911.11134", 2019, "A paper")


@dataclass(frozen=True)
class Half(SparseSchedule):
    """Half of the weights, exchanged at random at every second step; or else, by its `fault`."""

    density: float = setting(0.5, "The share that is kept.")
    layers: Sequence[str] | None = setting(None, "The layers with masks.")
    store: str = setting("dense", "The optimiser's memory.")
    fault: str = setting("", "The fault that is planted.")

    reads_gradients = False

    def _masks(self, weights: Weights, generator: torch.Generator | None) -> Partition:
        scores = {n: torch.rand(w.shape, generator=generator) for n, w in weights.items()}
        share = self.density / 2 if self.fault == "half" else self.density
        return keep_shares(scores, dict.fromkeys(scores, share))

    def begin(self, weights: Weights, generator: torch.Generator) -> Partition:
        return self._masks(weights, None if self.fault == "global" else generator)

    def due(self, step: int, steps: int) -> bool:
        return step % 2 == 1

    def update(
        self,
        weights: Weights,
        masks: Masks,
        gradients: Mapping[str, Tensor],
        progress: tuple[int, int],
        generator: torch.Generator,
    ) -> Masks:
        if self.fault == "dense run" and self.density == 1:
            next(iter(weights.values())).data.mul_(0.5)
        if self.fault == "forgets":
            generator = torch.Generator().manual_seed(len(SEEN))
            SEEN.append(progress[0])
        drawn = self._masks(weights, generator)
        return {n: drawn.mask(n, 0) for n in masks}


SEEN: list[int] = []
GOOD = Card("toy", kind="schedule", config=Half, paper=PAPER, summary="A toy.", family="toys")


def faulty(fault: str) -> Card:
    return dataclasses.replace(GOOD, tiny={"fault": fault})


FAULTS = [
    ("is_as_dense_as_it_says", "half"),
    ("resumes_from_its_state", "forgets"),
    ("leaves_a_dense_run_alone", "dense run"),
    ("draws_of_its_own_generator", "global"),
]


def red(law: str, card: Card) -> None:
    (law_check,) = [c for c in check(card) if c.name == law]
    # a fault may also break the code that is called
    with pytest.raises((ConformanceError, ConfigError)):
        law_check()


def test_a_schedule_from_outside_passes() -> None:
    for law in check(GOOD):
        law()


@pytest.mark.parametrize(("law", "fault"), FAULTS)
def test_a_planted_fault_is_found(law: str, fault: str) -> None:
    red(law, faulty(fault))


def test_moments_that_are_not_masked_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Masked, "_mask_states", lambda *_: None)
    red("keeps_zeros_everywhere", GOOD)


def test_states_that_do_not_move_along_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from intarsia.schedules.entries import Entries

    move = Entries.move
    monkeypatch.setattr(Entries, "move", lambda self, index, _: move(self, index, None))
    red("stores_vectors_alike", GOOD)


@dataclass(frozen=True)
class Halved:
    """Layers compute with half of each weight, or else, by its `fault`."""

    layers: Sequence[str] | None = setting(None, "The layers with masks.")
    fault: str = setting("", "The fault that is planted.")

    @contextmanager
    def training(self, model: nn.Module) -> Generator[Callable[[], None]]:
        layers = [m for m in model.modules() if isinstance(m, nn.Linear)]
        factor = 1.0 if self.fault == "nothing" else 0.5
        done: list[int] = []

        def end() -> None:
            if self.fault == "again" or not done:
                for layer in layers:
                    layer.weight.data.mul_(0.25 if self.fault == "other" else factor)
                    vars(layer).pop("forward", None)
            done.append(1)

        def halved(layer: nn.Linear, x: Tensor) -> Tensor:
            weight = layer.weight.detach() if self.fault == "frozen" else layer.weight
            return nn.functional.linear(x, weight * factor, layer.bias)

        for layer in layers:
            vars(layer)["forward"] = partial(halved, layer)
        try:
            yield end
        except BaseException:
            if self.fault != "stays":
                end()
                for layer in layers if self.fault != "moved" else ():
                    layer.weight.data.div_(factor)
            raise


HALVED = dataclasses.replace(GOOD, config=Halved)
LAYER_FAULTS = [
    ("ends_with_what_it_computed", "other"),
    ("ends_with_what_it_computed", "again"),
    ("computes_something_else", "nothing"),
    ("trains_all_weights_of_a_plain_model", "frozen"),
    ("trains_all_weights_of_a_plain_model", "stays"),
    ("trains_all_weights_of_a_plain_model", "moved"),
]


def test_a_schedule_of_layers_from_outside_passes() -> None:
    for law in check(HALVED):
        law()


@pytest.mark.parametrize(("law", "fault"), LAYER_FAULTS)
def test_a_fault_in_layers_is_found(law: str, fault: str) -> None:
    red(law, dataclasses.replace(HALVED, tiny={"fault": fault}))


@dataclass(frozen=True)
class Largest(LayerPruner):
    """The largest weights of each row, or something else by its `fault`.

    density, pattern, layers: see `LayerPruner`.
    """

    fault: str = setting("", "The fault that is planted.")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"square"} if self.fault != "needs" else ())

    def edit(
        self, name: str, weight: Tensor, seen: Statistics, generator: torch.Generator
    ) -> tuple[Partition, Tensor]:
        score = weight.abs() * seen.mean_square.to(weight).sqrt()
        if self.fault == "chance":
            score = torch.rand(weight.shape)
        share = self.density / 2 if self.fault == "half" else self.density
        part = keep_rows({name: score}, share)
        new = weight if self.fault == "mask" else weight * part.mask(name, 0)
        return part, new * 2 if self.fault == "moves" else new


PRUNER = Card("toy", kind="change", config=Largest, paper=PAPER, summary="A toy.", family="toys")
PRUNER_FAULTS = [
    ("prunes_to_its_density", "half"),
    ("prunes_to_its_density", "mask"),
    ("compensates_exactly_when_tagged", "moves"),
    ("prunes_by_what_it_needs", "needs"),
    ("prunes_alike_in_two_processes", "chance"),
    ("prunes_by_its_generator", "chance"),
]


def test_a_pruner_from_outside_passes() -> None:
    for law in check(PRUNER):
        if law.name in {f.__name__ for f in SPARSIFIER_LAWS}:
            law()


@pytest.mark.parametrize(("law", "fault"), PRUNER_FAULTS)
def test_a_planted_fault_of_a_pruner_is_found(law: str, fault: str) -> None:
    red(law, dataclasses.replace(PRUNER, tiny={"fault": fault}))


def test_every_law_of_pruners_is_seen_to_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    edit = Largest.edit
    monkeypatch.setattr(
        Largest, "edit", lambda self, n, w, s, g: (edit(self, n, w, s, g)[0], w * 0)
    )
    red("leaves_a_dense_layer_dense", PRUNER)
    laws = {law.__name__ for law in SPARSIFIER_LAWS}
    assert laws == {law for law, _ in PRUNER_FAULTS} | {"leaves_a_dense_layer_dense"}


def test_every_law_is_seen_to_fail() -> None:
    laws: Any = {c.name for c in check(GOOD)} - OF_ANY_CARD
    further = {"keeps_zeros_everywhere", "stores_vectors_alike"}
    assert laws == {law for law, _ in FAULTS} | further
    of_layers = {c.name for c in check(HALVED)} - OF_ANY_CARD
    assert of_layers == {law for law, _ in LAYER_FAULTS}
