"""Laws of formats, partitions, scores, schedules and changes; each is seen to fail."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from intarsia.conformance import check
from intarsia.conformance.cards import CARD_LAWS
from intarsia.core import Card, Format, NofM, Paper, Partition
from intarsia.core.change import Change, Plan
from intarsia.core.errors import ConfigError, ConformanceError
from intarsia.core.schema import setting
from intarsia.formats import Bitmask
from intarsia.partitions import keep_n_of_m, keep_top, random_disjoint
from intarsia.placement import Placement, Topology, Trace
from intarsia.placement.cache import Policy
from intarsia.routers import random_routers
from intarsia.schedules import active_at
from intarsia.scores.statistics import Statistics

OF_ANY_CARD = {"names_its_exceptions", *(law.__name__ for law in CARD_LAWS)}
PAPER = Paper("2106.09685", 2021, "A paper")


def toy(kind: str, config: Any, *tags: str, **tiny: Any) -> Card:
    return Card(
        "toy",
        kind=kind,
        config=config,
        paper=PAPER,
        tags=frozenset(tags),
        tiny=tiny,
        summary="A toy.",
        family="toys",
    )


@dataclass(frozen=True)
class Rows(Format):
    """A weight as float32 rows and its type, or something else by its `fault`."""

    fault: str = setting("", "The fault that is planted.")

    def encode(
        self, weight: Tensor, keep: Tensor | None = None, moments: Tensor | None = None
    ) -> dict[str, Tensor]:
        if self.fault == "in place":
            weight.mul_(2)
        if keep is not None and self.fault != "mask":
            weight = weight * keep
        if self.fault == "zeros only" and keep is not None:
            weight = weight * 0
        if self.fault == "far off":
            weight = weight + 5
        if self.fault == "wanders" and bool((weight == weight.round()).all()):
            weight = weight + 2
        if self.fault == "wanders":
            weight = weight.round()
        values = weight.detach() if self.fault == "view" else weight.detach().clone()
        return {"values": values.to_sparse() if self.fault == "no file" else values}

    def decode(self, stored: Mapping[str, Tensor], shape: Sequence[int]) -> Tensor:
        values = stored["values"]
        if values.numel() != torch.Size(shape).numel():
            if self.fault == "any shape":
                return torch.zeros(tuple(shape))
            raise ConfigError("shape", got=shape, want="its own", fix="Pass it.")
        decoded = values.reshape(tuple(shape))
        return decoded.float() if self.fault == "dtype" else decoded

    def matmul(self, x: Tensor, stored: Mapping[str, Tensor], shape: Sequence[int]) -> Tensor:
        if self.fault == "detached":
            x = x.detach().requires_grad_()
        return super().matmul(x, stored, shape) * (2 if self.fault == "twice" else 1)


@dataclass(frozen=True)
class Chosen:
    """keep_top, keep_n_of_m or random_disjoint by `how`; density or parts by `how`; `fault`."""

    how: str = setting("top", "The weights that are chosen.")
    fault: str = setting("", "The fault that is planted.")

    @property
    def density(self) -> float:
        return {"top": 0.3, "n of m": 0.5, "deal": 1.0}[self.how]

    def build(self, scores: Mapping[str, Tensor], *, generator: torch.Generator) -> Partition:
        if self.fault == "shape":
            return Partition({n: s.flatten().to(torch.int8) * 0 for n, s in scores.items()}, 1)
        if self.fault == "uneven":
            return Partition({n: (s > 9).to(torch.int8) for n, s in scores.items()}, 2)
        if self.fault == "global":
            scores = {name: torch.rand(score.shape) for name, score in scores.items()}
        if self.fault == "place":
            scores = {n: s + torch.arange(s.numel()).view(s.shape) / 9 for n, s in scores.items()}
        if self.how == "n of m":
            return keep_n_of_m(scores, 2, 4)
        if self.how == "deal":
            shapes = {name: tuple(score.shape) for name, score in scores.items()}
            return random_disjoint(shapes, 3, generator=generator)
        total = sum(score.numel() for score in scores.values())
        share = 2 * self.density if self.fault == "twice" else self.density
        partition = keep_top(scores, round(share * total))
        if self.fault == "pattern":  # said, not kept: a frozen record can be changed by force
            object.__setattr__(partition, "pattern", NofM(2, 4))
        return partition


@dataclass(frozen=True)
class Scored:
    """|w| times the size of its input, or something else by its `fault`."""

    fault: str = setting("", "The fault that is planted.")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"mean" if self.fault == "needs" else "square"})

    def score(self, weight: Tensor, seen: Statistics) -> Tensor:
        if self.fault == "shape":
            return weight.abs().sum(0)
        if self.fault == "division":
            return weight.abs() / seen.squares.float()
        if self.fault == "batches":
            return weight.abs() * (1 + seen.count * (id(seen) % 7))
        if self.fault == "chance":
            return torch.rand(weight.shape)
        if self.fault == "place":
            return weight.abs() * torch.arange(1, weight.shape[1] + 1)
        if self.fault == "small first":
            return -weight.abs()
        return weight.abs() * seen.mean_square.sqrt().float()


@dataclass(frozen=True)
class Moved:
    """`active_at`, or something else by its `fault`."""

    fault: str = setting("", "The fault that is planted.")

    def __call__(self, model: nn.Module, step: int, steps: int) -> None:
        if self.fault == "nothing":
            return
        if self.fault == "anywhere" and not 0 <= step < steps:
            return
        (router,) = random_routers(model).values()
        if self.fault == "remembers":
            router.active = min(4, router.active + 1)
            return
        if self.fault == "half way":
            router.active = 4 if step < 30 else 1
            return
        if self.fault == "draws":
            torch.rand(())
        if self.fault == "hidden" and step:
            vars(model).setdefault("seen", step)
        router.active = active_at(step, steps, first=4, last=1)


@dataclass(frozen=True)
class HeadAlone(Change):
    """The head alone is trained, or something else by its `fault`."""

    fault: str = setting("", "The fault that is planted.")

    @property
    def preserves(self) -> frozenset[str]:
        return frozenset(() if self.fault == "says too little" else ("outputs", "shape"))

    def plan(self, host: nn.Module, batches: Iterable[Any] = (), *, seed: int = 0) -> Plan:
        if self.fault == "plans":
            next(host.parameters()).data.add_(1)
        return super().plan(host, batches, seed=seed)

    def apply(self, host: nn.Module, plan: Plan, *, name: str = "default") -> nn.Module:
        if self.fault == "refuses":
            raise ConfigError("host", got="a ViT", want="none", fix="None.")
        weight: Any = host.get_parameter("head.weight")
        if self.fault in ("other outputs", "writes"):
            weight.data.mul_(0.5)
        if self.fault == "draws":
            weight.data.add_(torch.rand(()))
        return host.requires_grad_(False)

    def fold(self, host: nn.Module) -> nn.Module:
        if self.fault == "folds wrongly":
            host.get_parameter("head.weight").data.mul_(2)
        return host


@dataclass(frozen=True)
class Dealt:
    """Experts to devices in turn, or something else by its `fault`."""

    fault: str = setting("", "The fault that is planted.")

    def place(self, trace: Trace, topology: Topology) -> Placement:
        layers, experts, devices = trace.layers, trace.experts, topology.devices
        turn = torch.randperm(experts) if self.fault == "draws" else torch.arange(experts)
        owner = (turn % devices).repeat(layers, 1)
        if self.fault == "one device":
            owner = owner * 0
        if self.fault == "writes":
            trace.expert[0] = trace.expert[1]
        if self.fault == "divides" and int(trace.load().min()) == 0:
            raise ValueError("no tokens")
        placement = Placement.of(owner, devices)
        if self.fault == "says otherwise" and devices > 1:  # its plans are then of other places
            placement.holds[0] = placement.holds[0].roll(1, 0)
        return placement


@dataclass(frozen=True)
class First:
    """The first expert goes, or something else by its `fault`."""

    fault: str = setting("", "The fault that is planted.")

    def build(self, layers: int, experts: int) -> Policy:
        if self.fault == "one layer" and layers == 1:
            raise ValueError("no next layer")
        return FirstOut(layers, experts, self.fault)


class FirstOut(Policy):
    def __init__(self, layers: int, experts: int, fault: str) -> None:
        super().__init__(layers, experts)
        self.fault = fault

    def asked(self, layer: int, experts: Sequence[int]) -> None:
        super().asked(layer, experts)
        if self.fault == "empty" and len(experts) == self.experts:
            raise ValueError("too many at once")

    def used(self, key: tuple[int, int], hit: bool) -> None:
        super().used(key, hit)
        if self.fault == "again" and self.takes % 9 == 0:
            raise RuntimeError("lost count")

    def victim(self, resident: Iterable[tuple[int, int]]) -> tuple[int, int]:
        if self.fault == "not there":
            return (9, 9)
        among = list(resident)
        return among[int(torch.randint(len(among), ()))] if self.fault == "draws" else among[0]


FORMAT, PARTITION = toy("format", Rows, "exact"), toy("partition", Chosen)
SCORE, SCHEDULE = toy("score", Scored, "monotone"), toy("schedule", Moved)
LISTED = {"comes_back_from_its_folder": "a saved folder names a change of the list"}
CHANGE = dataclasses.replace(toy("change", HeadAlone), exceptions=LISTED)


def faulty(card: Card, fault: str, **settings: Any) -> Card:
    return dataclasses.replace(card, tiny={"fault": fault} | settings)


@dataclass(frozen=True)
class Flattened:
    """The head forgets every word a little, or something else by its `fault`."""

    fault: str = setting("", "The fault that is planted.")

    def unlearn(
        self,
        model: Any,
        forget: Any,
        retain: Any,
        *,
        steps: int,
        seed: int,
        progress: Any,
        **_: Any,
    ) -> Any:
        weight = model.lm_head.weight
        before = weight.detach().clone()
        try:
            for _step in range(steps):
                if self.fault != "nothing":
                    weight.data.mul_(-1 if self.fault != "chance" else -torch.rand(()) - 1)
                if self.fault == "elsewhere":
                    model.model.norm.weight.data.add_(0.1)
                progress("a step")
        except RuntimeError:
            if self.fault != "stays":
                weight.data.copy_(before)
            raise
        return SimpleNamespace(trained=weight.numel())


PLACEMENT = toy("placement", Dealt)
UNLEARNING = toy("unlearning", Flattened)
CACHE = toy("cache", First)
KINDS = (FORMAT, PARTITION, SCORE, SCHEDULE, CHANGE, PLACEMENT, CACHE, UNLEARNING)


FAULTS: list[tuple[str, Card]] = [
    ("is_a_format", dataclasses.replace(FORMAT, config=Chosen)),
    ("keeps_shape_and_dtype", faulty(FORMAT, "dtype")),
    ("leaves_the_weight_alone", faulty(FORMAT, "in place")),
    ("leaves_the_weight_alone", faulty(FORMAT, "view")),
    ("exact_exactly_when_tagged", faulty(FORMAT, "far off")),
    ("exact_exactly_when_tagged", dataclasses.replace(FORMAT, tags=frozenset())),
    ("errs_less_than_a_constant", faulty(FORMAT, "far off")),
    ("moves_less_the_second_time", faulty(FORMAT, "wanders")),
    ("survives_safetensors", faulty(FORMAT, "no file")),
    ("counts_the_bytes_of_its_file", faulty(FORMAT, "no file")),
    ("multiplies_as_it_decodes", faulty(FORMAT, "twice")),
    ("multiplies_as_it_decodes", faulty(FORMAT, "detached")),
    ("keeps_what_it_is_told_or_refuses", faulty(FORMAT, "mask")),
    ("keeps_what_it_is_told_or_refuses", faulty(FORMAT, "zeros only")),
    ("refuses_another_shape", faulty(FORMAT, "any shape")),
    ("gives_each_weight_a_label", faulty(PARTITION, "shape")),
    ("chooses_as_many_as_asked", faulty(PARTITION, "twice")),
    ("keeps_its_pattern", faulty(PARTITION, "pattern")),
    ("depends_on_its_generator_only", faulty(PARTITION, "global")),
    ("balances_its_parts", faulty(PARTITION, "uneven")),
    ("follows_the_scores_or_ignores_them", faulty(PARTITION, "place")),
    ("scores_each_weight", faulty(SCORE, "shape")),
    ("scores_each_weight", faulty(SCORE, "division")),
    ("splits_batches_as_it_likes", faulty(SCORE, "chance")),
    ("is_the_same_each_time", faulty(SCORE, "chance")),
    ("permutes_with_its_columns", faulty(SCORE, "place")),
    ("reads_what_it_needs", faulty(SCORE, "needs")),
    ("monotone_exactly_when_tagged", faulty(SCORE, "small first")),
    ("monotone_exactly_when_tagged", dataclasses.replace(SCORE, tags=frozenset())),
    ("sets_something", faulty(SCHEDULE, "nothing")),
    ("depends_on_the_step_alone", faulty(SCHEDULE, "remembers")),
    ("resumes_from_a_state_dict", faulty(SCHEDULE, "hidden")),
    ("ends_alike", faulty(SCHEDULE, "half way")),
    ("refuses_a_step_outside", faulty(SCHEDULE, "anywhere")),
    ("draws_nothing_of_torch_s", faulty(SCHEDULE, "draws")),
    ("takes_a_host", faulty(CHANGE, "refuses")),
    ("plans_without_a_trace", faulty(CHANGE, "plans")),
    ("plans_without_a_trace", faulty(CHANGE, "draws")),
    ("leaves_no_trace_of_an_error", faulty(CHANGE, "writes")),
    ("preserves_what_it_says", faulty(CHANGE, "other outputs")),
    ("preserves_what_it_says", faulty(CHANGE, "says too little")),
    ("comes_back_from_its_folder", dataclasses.replace(CHANGE, exceptions={})),
    ("folds_or_refuses", faulty(CHANGE, "folds wrongly")),
    ("places_every_expert", faulty(PLACEMENT, "one device")),
    ("places_the_same_each_time", faulty(PLACEMENT, "draws")),
    ("leaves_the_trace_alone", faulty(PLACEMENT, "writes")),
    ("takes_layers_without_tokens", faulty(PLACEMENT, "divides")),
    ("serves_every_ask", faulty(CACHE, "empty")),
    ("loads_each_once_where_all_fit", faulty(CACHE, "again")),
    ("chooses_what_it_is_offered", faulty(CACHE, "not there")),
    ("decides_alike", faulty(CACHE, "draws")),
    ("survives_steps_of_one_layer", faulty(CACHE, "one layer")),
    ("forgets_what_it_is_told", faulty(UNLEARNING, "nothing")),
    ("changes_what_it_trains_alone", faulty(UNLEARNING, "elsewhere")),
    ("undoes_what_an_error_stops", faulty(UNLEARNING, "stays")),
    ("is_one_unlearning_for_one_seed", faulty(UNLEARNING, "chance")),
    ("gives_each_expert_one_home", faulty(PLACEMENT, "says otherwise")),
]
HEALTHY = {
    "rows": FORMAT,
    "bitmask": toy("format", Bitmask, "exact"),
    "top": PARTITION,
    "n of m": toy("partition", Chosen, how="n of m"),
    "deal": toy("partition", Chosen, how="deal"),
    "wanda": SCORE,
    "active": SCHEDULE,
    "head": CHANGE,
    "dealt": PLACEMENT,
    "first out": CACHE,
    "flattened": UNLEARNING,
}


@pytest.mark.parametrize("name", HEALTHY)
def test_one_from_outside_passes(name: str) -> None:
    for law in check(HEALTHY[name]):
        law()


@pytest.mark.parametrize(
    ("law", "card"), FAULTS, ids=[f"{law}-{i}" for i, (law, _) in enumerate(FAULTS)]
)
def test_a_planted_fault_is_found(law: str, card: Card) -> None:
    (law_check,) = [c for c in check(card) if c.name == law]
    # a fault may also break the code that is called: any exception is a red check
    with pytest.raises((ConformanceError, AttributeError, TypeError, RuntimeError, ValueError)):
        law_check()


def test_every_law_of_these_kinds_is_seen_to_fail() -> None:
    laws = {c.name for card in KINDS for c in check(card)}
    assert laws - OF_ANY_CARD == {law for law, _ in FAULTS}
