"""Every card keeps the laws of its kind; each law is seen to fail on a planted fault."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn

from intarsia.catalog import card, cards
from intarsia.conformance import check
from intarsia.conformance.cards import CARD_LAWS
from intarsia.conformance.kinds import SUITES
from intarsia.core import Card, Cell, Method, Paper, Routing, Site
from intarsia.core.card import KINDS
from intarsia.core.errors import ConformanceError
from intarsia.core.schema import setting
from intarsia.gating import Router
from intarsia.gating.gate import wide_linear
from intarsia.mixtures.residual import Update

from .refusals import refused

CARDS = [card for card in cards() if card.kind in SUITES]
OF_ANY_CARD = {"names_its_exceptions", *(law.__name__ for law in CARD_LAWS)}


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.key)
def test_a_card_keeps_its_laws(card: Card) -> None:
    """Every law is tried; what is broken is told together."""
    broken: list[Exception] = []
    for law in check(card):
        try:
            law()  # gives the reason of a declared exception, which must still be one
        except Exception as error:
            error.add_note(f"law {law.name}")
            broken.append(error)
    if broken:
        raise ExceptionGroup(f"{card.kind} {card.key!r}", broken)


@dataclass(frozen=True)
class Scaled(Method):
    """x W * s, an adapter from outside; `fault` is what is wrong with it."""

    fault: str = setting("", "The fault that is planted.")

    @property
    def roles(self) -> tuple[str, ...]:
        return () if self.fault == "no role" else ("qkv",)

    @property
    def position(self) -> str:
        return "parallel"

    def build(self, site: Site, *, generator: torch.Generator) -> Cell:
        return ScaledCell(self.fault, site, generator)


class ScaledCell(Cell):
    def __init__(self, fault: str, site: Site, generator: torch.Generator) -> None:
        super().__init__()
        self.fault = fault
        self.weight = nn.Parameter(torch.zeros(site.outputs, site.reads))
        if fault == "random start":
            nn.init.normal_(self.weight, generator=generator)
        if fault == "global start":
            nn.init.normal_(self.weight)
        if fault == "unused parameter":
            self.idle = nn.Parameter(torch.ones(2))
        self.hidden = 1.0 + float(torch.rand((), generator=generator))
        self.kept = torch.ones(site.outputs)
        self.calls = 0

    def matrix(self) -> Tensor:
        if self.fault == "frozen entry":
            return torch.cat([self.weight[:1].detach(), self.weight[1:]])
        return self.weight

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.fault == "in place":
            x = x.detach().mul_(1.0) if not x.requires_grad else x
            x.data.mul_(2)
        if self.fault == "detached":
            x = x.detach()
        if self.fault == "batch statistics":
            x = x - x.mean(0, keepdim=True)
        if self.fault == "one batch only" and x.shape[0] < 2:
            raise IndexError("a batch of one")
        if self.fault == "no autocast":
            y = (x.double() @ self.matrix().double().T).to(x.dtype) * (
                2 if torch.is_autocast_enabled("cpu") else 1
            )
        else:
            y = self.cast(x) @ self.matrix().T
        return self._after(y)

    def _after(self, y: Tensor) -> Tensor:
        if self.fault == "hidden state":
            y = y * self.hidden
        if self.fault == "widths":
            y = y.unsqueeze(0)
        if self.fault == "dtype":
            y = y.float()
        if self.fault == "device" and not bool(torch.isfinite(y.sum()).item()):
            y = y * 0
        if self.fault == "chance" and self.training:
            y = y * torch.rand(())
        if self.fault == "chance in evaluation" and not self.training:
            y = y * torch.rand(())
        if self.fault == "not finite":
            y = y + (y - y).sqrt()
        if self.fault == "counts calls":
            y = y + self.calls
        return y

    def delta(self) -> Tensor | None:
        if self.fault == "no delta":
            return None
        return self.weight * (2 if self.fault == "wrong delta" else 1)

    def merged(self) -> Cell:
        if self.fault == "wrong merge":
            cell = ScaledCell("", Site("m", self.weight.shape[1], self.weight.shape[0]),
                               torch.Generator())  # fmt: skip
            return cell.double()
        if self.fault == "merge is a view":
            cell = ScaledCell("", Site("m", self.weight.shape[1], self.weight.shape[0]),
                               torch.Generator())  # fmt: skip
            cell.weight = self.weight
            return cell
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> ScaledCell:
        twin = ScaledCell.__new__(ScaledCell)
        nn.Module.__init__(twin)
        vars(twin).update({k: v for k, v in vars(self).items() if not k.startswith("_")})
        shared = self.fault == "shared copy"
        twin.weight = self.weight if shared else nn.Parameter(self.weight.detach().clone())
        twin.train(self.training)
        return twin


HEALTHY = Card(
    "scaled", kind="adapter", config=Scaled, paper=Paper("2106.09685", 2021, "A paper"),
    tags=frozenset({"linear", "folds", "zero_start"}), summary="A full weight change.",
    family="toys",
)  # fmt: skip


def faulty(fault: str) -> Card:
    return dataclasses.replace(HEALTHY, tiny={"fault": fault})


def but(**changes: Any) -> Card:
    return dataclasses.replace(HEALTHY, **changes)


class Loose:
    """A config that is no dataclass."""


@dataclass
class Thawed:
    """A config that can be changed: its fault."""

    fault: str = setting("", "The fault that is planted.")
    build, roles, position = Scaled.build, Scaled.roles, Scaled.position


@dataclass(frozen=True)
class Silent(Scaled):
    """Says nothing."""

    fault: str = ""


@dataclass(frozen=True)
class Terse(Scaled):
    """Says a letter."""

    fault: str = setting("", "f.")


@dataclass(frozen=True)
class Twice(Scaled):
    """Says the same of two settings."""

    more: str = setting("", "The fault that is planted.")


@dataclass(frozen=True)
class Demanding(Scaled):
    """Its fault has no default."""

    fault: str = dataclasses.field(kw_only=True)  # pyright: ignore[reportGeneralTypeIssues]


@dataclass(frozen=True)
class Listed(Scaled):
    """A fault that JSON changes."""

    fault: Any = setting(None, "A fault that JSON changes.")

    def __post_init__(self) -> None:
        object.__setattr__(self, "fault", frozenset({"a"}) if self.fault is None else self.fault)


TAGGED = HEALTHY.tags
LAW = "treats_samples_apart"
FAULTS: list[tuple[str, Card]] = [
    ("names_its_exceptions", but(exceptions={"maps_the_width": "a misspelt law"})),
    ("names_its_exceptions", but(exceptions={"maps_the_widths": ""})),
    ("says_what_it_is", but(summary="")),
    ("says_what_it_is", but(paper=Paper("ask the author", 2021, "A paper"))),
    ("says_what_it_is", but(paper=Paper("2106.09685", 2020, "A paper"))),
    ("says_what_it_is", but(family="")),
    ("says_what_it_is", but(key="Scaled Adapter")),
    ("documents_its_settings", but(config=Silent)),
    ("documents_its_settings", but(config=Terse)),
    ("documents_its_settings", but(config=Twice)),
    ("documents_its_settings", but(config=Loose)),
    ("has_defaults", but(config=Demanding, tiny={"fault": ""})),
    ("is_frozen", but(config=Thawed)),
    ("survives_json", but(config=Listed)),
    ("survives_json", but(tiny={"falt": ""})),
    ("builds_a_cell", faulty("no role")),
    ("maps_the_widths", faulty("widths")),
    ("leaves_its_input_alone", faulty("in place")),
    ("leaves_its_input_alone", faulty("detached")),
    ("depends_on_its_seed_only", faulty("global start")),
    ("depends_on_its_seed_only", faulty("chance")),
    ("trains_every_parameter", faulty("unused parameter")),
    ("trains_every_parameter", faulty("frozen entry")),
    ("trains_every_parameter", faulty("not finite")),
    ("survives_safetensors", faulty("hidden state")),
    ("copies_deeply", faulty("shared copy")),
    ("follows_dtype_and_device", faulty("dtype")),
    ("follows_dtype_and_device", faulty("device")),
    ("takes_one_sample", faulty("one batch only")),
    ("treats_samples_apart", faulty("batch statistics")),
    ("works_under_autocast", faulty("no autocast")),
    ("works_under_autocast", faulty("not finite")),
    ("merges_into_one_cell", faulty("wrong merge")),
    ("merges_into_one_cell", faulty("merge is a view")),
    ("evaluates_without_chance", faulty("chance in evaluation")),
    ("evaluates_without_chance", faulty("counts calls")),
    ("zero_start_exactly_when_tagged", faulty("random start")),
    ("zero_start_exactly_when_tagged", but(tags=TAGGED - {"zero_start"})),
    ("linear_exactly_when_tagged", faulty("no delta")),
    ("linear_exactly_when_tagged", faulty("wrong delta")),
    ("linear_exactly_when_tagged", but(tags=TAGGED - {"linear"})),
    ("stochastic_exactly_when_tagged", faulty("chance")),
    ("stochastic_exactly_when_tagged", but(tags=TAGGED | {"stochastic"})),
    ("folds_exactly_when_tagged", faulty("no delta")),
    ("folds_exactly_when_tagged", but(tags=TAGGED - {"folds"})),
]  # fmt: skip


def run(card: Card, law: str) -> None:
    (law_check,) = [c for c in check(card) if c.name == law]
    law_check()


def test_an_adapter_from_outside_passes() -> None:
    for law in check(HEALTHY):
        law()


@pytest.mark.parametrize(
    ("law", "card"), FAULTS, ids=[f"{law}-{i}" for i, (law, _) in enumerate(FAULTS)]
)
def test_a_planted_fault_is_found(law: str, card: Card) -> None:
    # a fault may also break the code that is called: any exception is a red check
    with pytest.raises((ConformanceError, IndexError)) as caught:
        run(card, law)
    if isinstance(caught.value, ConformanceError):
        assert caught.value.fix and "scaled" in str(caught.value).lower()


def test_a_declared_exception_gives_its_reason() -> None:
    declared = dataclasses.replace(faulty("batch statistics"), exceptions={LAW: "it centres"})
    (law_check,) = [c for c in check(declared) if c.name == LAW]
    assert law_check() == "it centres"


def test_a_declared_exception_to_a_law_that_holds_is_an_error() -> None:
    with refused(
        ConformanceError,
        what="adapter 'scaled': treats_samples_apart",
        got="the exception 'it centres' to a law that holds now",
    ):
        run(but(exceptions={LAW: "it centres"}), LAW)


def test_every_law_of_adapters_is_seen_to_fail() -> None:
    assert {c.name for c in check(HEALTHY)} == {law for law, _ in FAULTS}


@dataclass(frozen=True)
class Gate:
    """A learned gate."""

    fault: str = setting("", "The fault that is planted.")
    experts: int = setting(3, "The number E of experts.", least=1)
    active: int = setting(1, "The number k of experts for a token.", least=1)

    def build(self, width: int, *, generator: torch.Generator) -> nn.Module:
        return GateRouter(self, width, generator)


class GateRouter(Router):
    def __init__(self, config: Gate, width: int, generator: torch.Generator) -> None:
        super().__init__(config.experts)
        self.fault, self.active = config.fault, config.active
        self.gate = nn.Parameter(torch.randn(width, config.experts, generator=generator))
        if self.fault == "idle parameter":
            self.idle = nn.Parameter(torch.ones(1))
        self.before: Tensor | None = None
        self.equal_counts = self.fault != "dense"
        self.step = 0
        self.shift = torch.randn(config.experts, generator=generator)  # in no state dict

    def before_step(self, step: int, steps: int) -> None:
        self.step += 1

    def forward(self, x: Tensor) -> Any:
        return x if self.fault == "no routing" else super().forward(x)

    def route(self, rows: Tensor, valid: Tensor | None) -> Routing:
        x = rows
        if self.fault == "in place":
            x.mul_(2)
        if self.fault == "one token" and len(x) < 2:
            return Routing.from_dense(x.new_ones(2, 3))
        plain = self.fault == "plain matmul"
        logits = x @ self.gate if plain else wide_linear(x, self.gate.T).to(x.dtype)
        logits = self.broken_logits(logits)
        if self.fault == "non causal":
            logits = logits - logits[-1] * 5
        if self.fault == "chance" or (self.fault == "eval chance" and not self.training):
            logits = logits + torch.randn(logits.shape)
        if self.fault == "place":
            logits = logits * torch.arange(len(x), device=x.device)[:, None]
        probs = logits.softmax(-1)
        if self.fault == "overflow":
            probs = logits.exp() / logits.exp().sum(-1, keepdim=True)
        if self.fault == "square":
            probs = torch.einsum("te,se->tes", probs, probs).amax(2) * 0 + probs
        count = min(self.active, 1) if self.fault == "k" else self.active
        weight, index = probs.topk(3 if self.fault == "dense" else count)
        if self.fault == "half":
            weight = weight / 2
        if self.fault == "dtype":
            weight = weight.float()
        if self.fault == "not finite":
            weight = weight / 0
        real = logits if valid is None or self.fault == "padding loss" else logits[valid]
        mean = real.mean() if self.fault == "mean of none" else real.sum() / max(1, real.numel())
        losses = {"balance": logits if self.fault == "losses" else mean}
        if self.fault in ("zero", "uneven"):
            logits = logits.relu() if self.fault == "uneven" else logits
            return Routing.from_dense(torch.where(logits == 0, 0.0, probs), losses)
        if valid is None or self.fault == "padding":
            return Routing.from_topk(index, weight, self.experts, losses)
        token = torch.arange(len(x)).repeat_interleave(count)
        keep = valid[token]
        return Routing(
            token[keep], index.flatten()[keep], weight.flatten()[keep], len(x), self.experts, losses
        )

    def broken_logits(self, logits: Tensor) -> Tensor:
        """Return the logits with the faults that begin there."""
        if self.fault == "empty":
            logits.max()
        if self.fault == "poison":
            logits = logits + 0 * logits.sum()
        if self.fault == "mode" and not self.training:
            logits = logits * 10
        if self.fault == "memory":
            logits = logits if self.before is None else logits + self.before
            self.before = 10 * logits.detach().flip(1).mean(0)
        if self.fault == "no clock":
            logits = logits * (1 + self.step)
        if self.fault == "no buffer":
            logits = logits + self.shift.to(logits)
        return logits


GATE = Card(
    "gate", kind="router", config=Gate, paper=Paper("1701.06538", 2017, "A paper"),
    tags=frozenset({"sparse", "learned"}), summary="A learned gate.", family="toys",
)  # fmt: skip


def gate(fault: str) -> Card:
    return dataclasses.replace(GATE, tiny={"fault": fault})


ROUTER_FAULTS: list[tuple[str, Card]] = [
    ("returns_a_routing", gate("no routing")),
    ("returns_a_routing", gate("not finite")),
    ("returns_a_routing", gate("losses")),
    ("returns_a_routing", gate("in place")),
    ("routes_one_token", gate("one token")),
    ("follows_device_and_dtype", gate("dtype")),
    ("draws_from_its_generator", gate("chance")),
    ("gives_one_expert_all", gate("half")),
    ("leaves_nobody_out_at_k_of_k", gate("k")),
    ("stands_extreme_inputs", gate("overflow")),
    ("leaves_padding_out", gate("padding")),
    ("leaves_padding_out", gate("padding loss")),
    ("evaluates_without_chance", gate("eval chance")),
    ("capacity_exactly_when_tagged", gate("place")),
    ("capacity_exactly_when_tagged", dataclasses.replace(GATE, tags=GATE.tags | {"capacity"})),
    ("sparse_exactly_when_tagged", gate("dense")),
    ("sparse_exactly_when_tagged", dataclasses.replace(GATE, tags=frozenset({"learned"}))),
    ("stochastic_exactly_when_tagged", gate("chance")),
    ("stochastic_exactly_when_tagged", dataclasses.replace(GATE, tags=GATE.tags | {"stochastic"})),
    ("learned_exactly_when_tagged", gate("idle parameter")),
    ("learned_exactly_when_tagged", dataclasses.replace(GATE, tags=frozenset({"sparse"}))),
    ("non_causal_exactly_when_tagged", gate("non causal")),
    ("non_causal_exactly_when_tagged", dataclasses.replace(GATE, tags=GATE.tags | {"non_causal"})),
    ("stateful_exactly_when_tagged", dataclasses.replace(GATE, tags=GATE.tags | {"stateful"})),
    ("stateful_exactly_when_tagged", dataclasses.replace(card("recurrent"), tags=GATE.tags)),
    ("routes_an_empty_batch", gate("empty")),
    ("routes_an_empty_batch", gate("mean of none")),
    ("routes_padding_alone", gate("padding")),
    ("routes_padding_alone", gate("mean of none")),
    ("keeps_a_nan_in_its_row", gate("poison")),
    ("keeps_a_nan_in_its_row", dataclasses.replace(gate("poison"), tags=frozenset({"non_causal"}))),
    ("counts_a_logit_of_zero", gate("zero")),
    ("evaluates_as_it_trains", gate("mode")),
    ("heeds_no_autocast", gate("plain matmul")),
    ("grows_with_tokens_alone", gate("square")),
    ("forgets_the_batch_before", gate("memory")),
    ("gives_as_many_if_it_says_so", gate("uneven")),
    ("comes_back_from_its_state", gate("no buffer")),
    ("remembers_its_steps", gate("no clock")),
    ("says_what_width_it_takes", gate("plain matmul")),
]


def test_a_router_from_outside_passes() -> None:
    for law in check(GATE):
        law()


@pytest.mark.parametrize(
    ("law", "card"), ROUTER_FAULTS, ids=[f"{law}-{i}" for i, (law, _) in enumerate(ROUTER_FAULTS)]
)
def test_a_planted_fault_of_a_router_is_found(law: str, card: Card) -> None:
    with pytest.raises(ConformanceError):
        run(card, law)


def test_every_law_of_routers_is_seen_to_fail() -> None:
    laws = {c.name for c in check(GATE)}
    assert laws - OF_ANY_CARD == {law for law, _ in ROUTER_FAULTS}


@dataclass
class Mean(RegressorMixin, BaseEstimator):
    """The mean of y."""

    shift: float = setting(0.0, "A number that is added to the mean.")
    careless: bool = setting(False, "Whether nothing is validated.")

    def fit(self, X: Any, y: Any) -> Mean:
        if not self.careless:
            validate_data(self, X, y, y_numeric=True)
        self.mean_ = np.mean(np.asarray(y)) + self.shift
        return self

    def predict(self, X: Any) -> Any:
        check_is_fitted(self)
        return np.full(len(X if self.careless else validate_data(self, X, reset=False)), self.mean_)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.regressor_tags.poor_score = True
        return tags


MEAN = Card(
    "mean", kind="model", config=Mean, paper=Paper("1701.06538", 2017, "A paper"),
    summary="The mean.", family="toys",
)  # fmt: skip


def test_a_model_from_outside_passes() -> None:
    for law in check(MEAN):
        law()


@pytest.mark.parametrize(
    "planted",
    [
        dataclasses.replace(MEAN, tiny={"careless": True}),
        dataclasses.replace(HEALTHY, kind="model"),
    ],
    ids=["careless", "no estimator"],
)
def test_a_planted_fault_of_a_model_is_found(planted: Card) -> None:
    with pytest.raises(ConformanceError, match="check_|an estimator"):
        run(planted, "is_an_estimator")


@dataclass(frozen=True)
class Jump(Update):
    """f(x), or something else by its `fault`."""

    fault: str = setting("", "The fault that is planted.")

    def step(self, f: Callable[[Tensor], Tensor], x: Tensor, m: Tensor | None) -> Any:
        outputs = f(x)
        if self.fault == "keeps_shape_and_dtype":
            return outputs, outputs.float()
        if self.fault == "keeps_rows_apart":
            outputs = outputs - outputs.mean(0)
        if self.fault == "teaches_the_block":
            outputs = outputs.sign()
        return outputs, None if self.fault == "none" else outputs


JUMP = Card(
    "jump", kind="mixture", config=Jump, paper=Paper("1701.06538", 2017, "A paper"),
    summary="A step.", family="toys",
)  # fmt: skip


@pytest.mark.parametrize("fault", ["", "none"])
def test_a_mixture_from_outside_passes(fault: str) -> None:
    for law in check(dataclasses.replace(JUMP, tiny={"fault": fault})):
        law()


class Leaky(nn.Module):
    """x W for experts that are all one, or something else by its `fault`."""

    def __init__(self, width: int, fault: str, generator: torch.Generator) -> None:
        super().__init__()
        self.fault, self.weight = fault, nn.Parameter(torch.empty(width, width))
        nn.init.normal_(self.weight, generator=generator)
        if fault == "layer_learns":
            self.idle = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        y = x @ self.weight
        if self.fault == "keeps_rows_apart":
            y = y - y.mean(0)
        return y.float() if self.fault == "keeps_shape_and_dtype" else y


@dataclass(frozen=True)
class Layer:
    """A layer by its `fault`."""

    fault: str = setting("", "The fault that is planted.")

    def build(self, width: int, hidden: int, *, generator: torch.Generator) -> nn.Module:
        return Leaky(width, self.fault, generator)


LAYER = dataclasses.replace(JUMP, key="layer", config=Layer)


def test_a_layer_from_outside_passes() -> None:
    for law in check(LAYER):
        law()


@pytest.mark.parametrize("law", sorted({c.name for c in check(LAYER)} - OF_ANY_CARD))
def test_every_law_of_layers_is_seen_to_fail(law: str) -> None:
    with pytest.raises(ConformanceError):
        run(dataclasses.replace(LAYER, tiny={"fault": law}), law)


@pytest.mark.parametrize("law", sorted({c.name for c in check(JUMP)} - OF_ANY_CARD))
def test_every_law_of_mixtures_is_seen_to_fail(law: str) -> None:
    with pytest.raises(ConformanceError):
        run(dataclasses.replace(JUMP, tiny={"fault": law}), law)


def test_every_kind_has_a_suite() -> None:
    assert set(SUITES) == set(KINDS)
