"""Routing to the experts that will have the fewest units on, against a linear gate (MoE-X)."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from ..core import Claim, Result
from ..core.claim import Report
from ..experiments.routing import VARIANTS, Expert, Variant
from ..fitting import fit
from ..gating import RouterConfig
from ..mixtures import Mixture, as_wide_mlp
from ..routers import MoeX, TopK
from ..train import evaluate
from . import mix6
from .routed import BENCH, Bench, Cell, arm
from .study import by_arm, judge, row_of, shown

EXPERTS, ACTIVE = 8, 2
GATE, WEIGHTS = "linear gate", "score of the weights"
LINEAR, OURS = VARIANTS["top-k-relu"], Variant("moe-x", MoeX(EXPERTS, ACTIVE), Expert("relu"))
STEPS, LR, PROBED, BLOCK = 600, 1e-3, 1800, 3  # of the probe on MIX6


def mean_of(cell: Cell, name: str) -> float:
    """A figure of a cell's layers, their mean."""
    return statistics.mean(layer[name] for layer in cell["layers"])


def on_text(
    seeds: Sequence[int], report: Report, *, of: Callable[[Cell, Cell], float], bench: Bench = BENCH
) -> Result:
    """A figure of our cell and the linear gate's, the mean of the seeds."""
    arms = [arm(GATE, LINEAR), arm(WEIGHTS, OURS)]
    found, text = bench.cells(arms, seeds, report), bench.scale
    note = (
        f"Cells of `{bench.corpus}`: a decoder of {text.shape.layers} layers, "
        f"{text.shape.width} wide, {EXPERTS} experts of {text.shape.hidden} units "
        f"with ReLU, {ACTIVE} a token, both drawn "
        f"anew and trained for {text.steps} steps with the same balance loss; the score has no "
        "temperature to learn. Units: those that are on of an expert that a token has, mean of the "
        "layers. Rank: Spearman's, of the router's logits and the units on over all experts of a "
        "token. Both moe-x claims on text judge the same cells. A temperature that is learned "
        "from 0.1 costs no loss on the validation part, with 0.91 of the units (LOG, 2026-11-25)."
    )
    return judge(found, lambda cells: of(cells[WEIGHTS], cells[GATE]), _row, note)


def _row(name: str, found: Sequence[Cell]) -> dict[str, Any]:
    return {
        "router": name,
        "units on": shown([mean_of(c, "hidden_units") for c in found], ".1f"),
        "test loss": shown([c["loss"] for c in found], ".4f"),
        "rank": shown([mean_of(c, "score_to_units") for c in found], ".2f"),
        "variation of the loads": shown([mean_of(c, "load_cv") for c in found], ".2f"),
        "router's parameters": found[0]["parameters"]["routers"],
    }


def units_ratio(ours: Cell, linear: Cell) -> float:
    return mean_of(ours, "hidden_units") / mean_of(linear, "hidden_units")


def loss_ratio(ours: Cell, linear: Cell) -> float:
    return ours["loss"] / linear["loss"]


class Probed(NamedTuple):
    """Of a net on MIX6: test loss, units on, and AUC of the digit and of the task."""

    loss: float
    units: float
    digit: float
    task: float

    @property
    def both(self) -> float:
        return (self.digit + self.task) / 2


def wide_units(net: mix6.Net, x: torch.Tensor) -> np.ndarray:
    """The wide hidden layer of the middle block, (n, E h)."""
    found: list[torch.Tensor] = []

    def see(mixture: Any, args: Any, _: Any) -> None:
        gates = mixture.routing(args[0]).dense()
        found.append(as_wide_mlp(mixture).hidden(args[0], gates))

    mixture: Any = net.blocks[BLOCK].mlp
    assert isinstance(mixture, Mixture)
    hook = mixture.register_forward_hook(see)
    with torch.no_grad():
        net.eval()(x)
    hook.remove()
    return found[0].numpy()


def auc(units: tuple[np.ndarray, np.ndarray], factor: tuple[np.ndarray, np.ndarray]) -> float:
    """Of a linear probe, one class against the rest, mean of the classes; (train, test) both."""
    scale = StandardScaler().fit(units[0])
    probe: Any = LogisticRegression(C=0.01, max_iter=300).fit(scale.transform(units[0]), factor[0])
    scores = probe.predict_proba(scale.transform(units[1]))
    return float(roc_auc_score(factor[1], scores, multi_class="ovr"))


def factors(part: str) -> tuple[np.ndarray, np.ndarray]:
    """What a picture shows, and the task it stands in: of each row of `mix6.data`."""
    tasks = mix6.task_ids(part)
    digit = mix6.data(part, ["identity"]).tensors[1].repeat(len(mix6.TASKS))
    return digit.numpy(), tasks.numpy()


ROUTERS: dict[str, RouterConfig] = {GATE: TopK(EXPERTS, ACTIVE), WEIGHTS: MoeX(EXPERTS, ACTIVE)}


def probed(router: RouterConfig, seed: int, steps: int) -> Probed:
    """A net on MIX6, and what a line reads off its units."""
    train, test = mix6.data("train"), mix6.data("test")
    rows = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:PROBED]
    net = mix6.of_experts(router, seed=seed, act="relu")
    fit(net, train, epochs=mix6.epochs(steps), batch_size=mix6.BATCH, lr=LR, seed=seed)
    units = wide_units(net, train.tensors[0][rows]), wide_units(net, test.tensors[0])
    known = zip(factors("train"), factors("test"), strict=True)
    digit, task = (auc(units, (a[rows.numpy()], b)) for a, b in known)
    on = float((units[1] != 0).sum(1).mean()) / ACTIVE
    return Probed(evaluate(net, test, batch_size=1024).loss, on, digit, task)


def probe(seeds: Sequence[int], report: Report, *, steps: int = STEPS) -> Result:
    """AUC of our net less the linear gate's, mean of digit and task, mean of the seeds."""
    found = by_arm(ROUTERS, seeds, lambda router, seed: probed(router, seed, steps), report)
    note = (
        f"MIX6 without marks, an MLP of six blocks with mixtures of ReLU experts, from scratch; "
        f"{steps} steps. The probe is a logistic regression (C = 0.01) on the standardised units "
        f"of block {BLOCK}, {EXPERTS} x {mix6.HIDDEN} with 0 where expert or unit is off, of "
        f"{PROBED} training rows; its AUC is of the test rows, one class against the rest. "
        "The router has its default temperature, 1. On held-out digits one that is learned from "
        "0.1 is read as well as the linear gate, with a quarter fewer units on (LOG, 2026-11-25)."
    )
    return judge(found, lambda nets: nets[WEIGHTS].both - nets[GATE].both, PROBE_ROW, note)


PROBE_ROW = row_of(
    "router",
    {
        "AUC of the digit": ("digit", ".4f"),
        "of the task": ("task", ".4f"),
        "units on": ("units", ".1f"),
        "test loss": ("loss", ".3f"),
    },
)

PAPER = "(arXiv:2503.07639). "
BASELINE = "a linear gate over the same ReLU experts, top-2 of 8"

claim = partial(Claim, sense="<=", minutes=14)

CLAIMS = (
    claim(
        "moe-x",
        system="MoE-X",
        sentence="Routing by the experts' own weights leaves fewer units on "
        + PAPER
        + "Units on of an expert that a token has.",
        baseline=BASELINE,
        bar=0.92,
        run=partial(on_text, of=units_ratio),
        needs="long",
    ),
    claim(
        "moe-x-loss",
        sentence="Routing by the experts' own weights costs no loss " + PAPER + "Test loss.",
        baseline=BASELINE,
        bar=1.01,
        run=partial(on_text, of=loss_ratio),
        needs="long",
    ),
    claim(
        "moe-x-probe",
        sentence="Its units say what the input is no worse " + PAPER + "AUC of linear probes for "
        "digit and task on MIX6, the difference of their means.",
        baseline=BASELINE,
        bar=0.0,
        sense=">=",
        run=probe,
        minutes=3,
    ),
)
