"""Techniques that make a sparse model cheaper, each as an entry that can be put on another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..core.checks import at_least, between, one_of
from ..core.modes import evaluating
from ..core.registry import unpredicted_policies
from ..formats.absmax import Absmax
from ..hosts.tracing import recording
from ..placement.balance import JointSwaps
from ..placement.searching import place
from ..placement.trace import NONE, Trace
from ..sparse.swap.relabel import relabel
from ..sparse.swap.stock import (
    dense_from_most_used,
    expert_inputs,
    factors,
    gated_experts,
    hidden_of,
    keep_stock_experts,
    merge_stock_experts,
    skipping,
)

DEVICES = 4
NAMES = ("gate_up_proj", "down_proj")
Batch = dict[str, Tensor]


@dataclass
class Stacked:
    """A copy of a model with the techniques that were put on it so far.

    stored: (layer's path, name, expert) -> the tensors that are stored in place of that matrix, one
    or two factors; format: in which they are stored, None = two bytes a number; below: router's
    path -> ratio of gates below which a token's second expert is skipped; policy: the name of the
    policy by which experts are loaded into memory, None = all are there.
    """

    model: Any
    calibration: Sequence[Batch]
    stored: dict[tuple[str, str, int], tuple[Tensor, ...]] = field(default_factory=dict)
    format: Absmax | None = None
    below: dict[str, float] = field(default_factory=dict)
    policy: str | None = None

    def matrices(self) -> Iterator[tuple[str, str, int, Tensor]]:
        """Yield every expert's weight matrices: (layer's path, name, expert's number, weight)."""
        for path, layer in gated_experts(self.model).items():
            for name in NAMES:
                for expert, weight in enumerate(getattr(layer.module, name).detach()):
                    yield path, name, expert, weight


@dataclass(frozen=True)
class StackEntry:
    """A technique.  read: refuses a value that it does not take, before there is a model;
    stage: when it is carried out; preserves: "outputs", "routing", which become
    tests; conflicts: another entry -> why the two cannot be together."""

    name: str
    level: str
    stage: int
    default: str
    read: Callable[[str], object]
    carry: Callable[[Stacked, str], None]
    preserves: frozenset[str] = frozenset()
    conflicts: Mapping[str, str] = field(default_factory=dict)


def _share(text: str) -> float:
    """Parse the share of experts to remove, a number from 0 to 0.9 as a text."""
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    between("a share of the experts", share, 0, 0.9, "For example: prune:0.25.")
    return share


def _experts_left(stacked: Stacked, text: str) -> int:
    """Return how many of a layer's experts stay; text: the share to remove."""
    first = next(iter(gated_experts(stacked.model).values()))
    return max(1, round(first.experts * (1 - _share(text))))


def _loads_by_path(stacked: Stacked) -> dict[str, Tensor]:
    """Count the calibration tokens of each expert, (E,) for each layer."""
    inputs = expert_inputs(stacked.model, stacked.calibration)
    return {p: inputs[p].load(layer.experts) for p, layer in gated_experts(stacked.model).items()}


def _prune(stacked: Stacked, text: str) -> None:
    """Remove the least used experts of every layer."""
    count = _experts_left(stacked, text)
    # the most used experts stay, in their old order
    order = {
        p: load.argsort(descending=True, stable=True) for p, load in _loads_by_path(stacked).items()
    }
    keep_stock_experts(stacked.model, {p: sorted(o[:count].tolist()) for p, o in order.items()})


def _merge(stacked: Stacked, text: str) -> None:
    """Merge the experts of every layer, so that a share of them fewer is left."""
    inputs = expert_inputs(stacked.model, stacked.calibration)
    merge_stock_experts(stacked.model, inputs, _experts_left(stacked, text))


def _count(text: str) -> int:
    """Parse a number of experts, 1 or more, such as "2".  Raises: ConfigError."""
    count = int(text) if text.isdecimal() else 0
    at_least("experts of a student", count, 1, "For example: student:2.")
    return count


def _student(stacked: Stacked, text: str) -> None:
    """Replace each layer of experts by one dense MLP, made of its most used experts."""
    count = _count(text)
    first = next(iter(gated_experts(stacked.model).values()))
    between("experts of a student", count, 1, first.experts, "For example: student:2.")
    dense_from_most_used(stacked.model, _loads_by_path(stacked), count)


def _quantile(text: str) -> float:
    """Parse a quantile from 0 to 1, such as "0.5".  Raises: ConfigError."""
    share = float(text) if text.replace(".", "", 1).isdecimal() else -1.0
    between("quantile of g2 / g1", share, 0, 1, "For example: skip:0.5.")
    return share


def _skip(stacked: Stacked, text: str) -> None:
    """Let tokens skip their second expert where its gate is small compared with the first."""
    share = _quantile(text)
    for path, inputs in expert_inputs(stacked.model, stacked.calibration).items():
        # g2 / g1: a token with a second gate far below its first skips the second expert
        if share and inputs.weight.shape[1] > 1:
            ratio = inputs.weight[:, 1:].sum(1) / inputs.weight[:, 0].clamp(min=1e-9)
            stacked.below[path] = float(ratio.quantile(share))


def _placement(text: str) -> str:
    one_of("placement", text, ("home", "stay"))
    return text


def _place(stacked: Stacked, text: str) -> None:
    """Place the experts on devices by a calibration trace; text: `by` of `JointSwaps`."""
    # renaming experts moves them between devices and leaves every output as it is
    trace, search = trace_of(stacked, stacked.calibration), JointSwaps(_placement(text))
    relabel(stacked.model, place(trace, DEVICES, search))


def _energy(text: str) -> float:
    """Parse a share of energy from 0.01 to 1, such as "0.9".  Raises: ConfigError."""
    energy = float(text) if text.replace(".", "", 1).isdecimal() else -1.0
    between("energy", energy, 0.01, 1, "For example: lowrank:0.9.")
    return energy


def _low_rank(stacked: Stacked, text: str) -> None:
    """Replace each expert's matrix by a product U V of low rank that is smaller."""
    energy = _energy(text)
    inputs, stock = expert_inputs(stacked.model, stacked.calibration), gated_experts(stacked.model)
    # all inputs are taken from the model as it was, so that no factor depends on another
    factored: dict[tuple[str, str, int], tuple[Tensor, ...]] = {}
    for path, name, expert, weight in stacked.matrices():
        x = inputs[path].of(expert)
        if name == "down_proj":
            x = hidden_of(stock[path].module, expert, x)
        if (pair := factors(weight, x, energy)) is not None:
            factored[path, name, expert] = pair
    for (path, name, expert), (u, v) in factored.items():
        getattr(stock[path].module, name).data[expert].copy_(u @ v)
    stacked.stored |= factored


def _bits(text: str) -> int:
    one_of("quant", text, ("w2", "w3", "w4", "w8"), "For example: quant:w4.")
    return int(text[1:])


def _quantise(stacked: Stacked, text: str) -> None:
    """Quantise all matrices of the experts: the model computes with the decoded weights."""
    # the model computes with decoded weights, as a device that loads the format would
    stacked.format = form = Absmax(_bits(text))
    stock = gated_experts(stacked.model)
    for path, name, expert, weight in stacked.matrices():
        # a factored matrix is quantised factor by factor, as it is stored
        parts = stacked.stored.get((path, name, expert), (weight,))
        decoded = tuple(form.decode(form.encode(w), w.shape).to(w.dtype) for w in parts)
        weight_out = decoded[0] if len(decoded) == 1 else decoded[0] @ decoded[1]
        stacked.stored[path, name, expert] = tuple(w.clone() for w in parts)
        getattr(stock[path].module, name).data[expert].copy_(weight_out)


def _policy(text: str) -> str:
    one_of("policy", text, unpredicted_policies())
    return text


def _set_policy(stacked: Stacked, text: str) -> None:
    stacked.policy = _policy(text)


SAME = "both decide which experts are left"
ENTRIES: dict[str, StackEntry] = {
    entry.name: entry
    for entry in (
        StackEntry("prune", "model", 1, "0.25", _share, _prune, conflicts={"student": SAME}),
        StackEntry("merge", "model", 2, "0.25", _share, _merge, conflicts={"student": SAME}),
        StackEntry(
            "student",
            "model",
            2,
            "2",
            _count,
            _student,
            conflicts={"skip": "a student has no router"},
        ),
        StackEntry("skip", "model", 3, "0.5", _quantile, _skip),
        StackEntry(
            "place",
            "system",
            4,
            "home",
            _placement,
            _place,
            frozenset({"outputs", "routing"}),
            {"student": f"its experts are fewer than {DEVICES} devices"},
        ),
        StackEntry("lowrank", "model", 5, "0.9", _energy, _low_rank),
        StackEntry("quant", "model", 6, "w4", _bits, _quantise),
        StackEntry(
            "offload",
            "system",
            7,
            "expected",
            _policy,
            _set_policy,
            frozenset({"outputs", "routing"}),
        ),
    )
}


@torch.no_grad()
def trace_of(stacked: Stacked, rows: Sequence[Batch]) -> Trace:
    """Record which experts each token is routed to, without the experts that are skipped."""
    experts: list[Tensor] = []
    stock = gated_experts(stacked.model)
    count = next(iter(stock.values())).experts
    with evaluating(stacked.model), ExitStack() as inside:
        inside.enter_context(skipping(stacked.model, stacked.below))
        routes = inside.enter_context(recording(stacked.model)).routes
        for batch in rows:
            stacked.model(**batch)
            # an index beyond the last expert marks one that was skipped
            index = torch.stack([routes[path][0] for path in stock], 1)  # (T, L, k)
            experts.append(torch.where(index >= count, NONE, index))
    length = rows[0]["input_ids"].shape[1]
    # token number -> its sequence and its position in it; all rows have one length
    row = torch.arange(sum(len(e) for e in experts))
    layer = next(iter(stock.values()))
    sizes = {"width": str(layer.width), "hidden": str(layer.hidden), "gated": "true"}
    return Trace(torch.cat(experts), count, row // length, row % length, about=sizes)
