"""Random search: a lower loss before training, and nothing after it (arXiv:2403.08265)."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state

from intarsia.core.seeds import mix
from intarsia.methods.random_search import RandomSearch, cut, search
from intarsia.runs.pool import Arm

from ..kit import Effect, Report, Result, Study
from ..kit.arms import each, result_of, shown
from ..kit.stored import StoredResults
from ..materials import thin_resnets

stored = StoredResults(__file__)

UNITS, EPOCHS, BATCH, LOOK, BEST, SCORED = 256, 5, 128, 20, 5, 512
DENSITIES = (0.1, 0.5, 0.2, 0.05)  # the first is judged
DRAWS, MARGIN, SLOWER, REACHED = 100, 0.5, 0.1, 0.95


class Nets(NamedTuple):
    """Scores of several nets: loss on the scored pictures before training and after an epoch, test
    accuracy in points, and steps to 95 % of the parent's accuracy (all steps, if never)."""

    first: list[float]
    epoch: list[float]
    accuracy: list[float]
    steps: list[float]


class SearchedNet(NamedTuple):
    """The nets of a seed: its parent, the selected nets and as many random ones."""

    parent: Nets
    selected: Nets
    random: Nets


def mlp(seed: int) -> nn.Module:
    """Return an MLP with layers of 784, 256, 256 and 10 units."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [nn.Linear(784, UNITS), nn.Linear(UNITS, UNITS), nn.Linear(UNITS, 10)]
    return nn.Sequential(nn.Flatten(), layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])


def together(nets: Sequence[nn.Module], goal: float | None, seed: int) -> Nets:
    """Train several networks of one shape side by side on Fashion-MNIST; return their scores.

    All have the same batches, by Adam. nets: of equal layers; goal: test accuracy in points, 95 %
    of it counts as reached, None = each network's own at the end; seed: of the order of batches.
    See Nets for the scores.
    """
    # all nets of a density have one shape, so that they train as one batched net
    weights, _ = stack_module_state(list(nets))  # pyright: ignore
    weights = {n: w.detach().requires_grad_() for n, w in weights.items()}
    bare = copy.deepcopy(nets[0]).to("meta")

    def forward_one(w: dict[str, Tensor], x: Tensor) -> Tensor:
        """Return one network's logits.  w: its weights by name; x: (rows, 1, 28, 28)."""
        return functional_call(bare, w, (x,))

    forward_all: Callable[..., Tensor] = torch.vmap(forward_one, in_dims=(0, None))
    (x, y), (test_x, test_y) = (thin_resnets.rows(part).tensors for part in ("train", "test"))

    def losses(px: Tensor, py: Tensor) -> Tensor:
        """Return the mean loss of each network, (nets,).  px, py: pictures and labels."""
        logits = forward_all(weights, px)  # (nets, rows, 10)
        each_row = F.cross_entropy(logits.flatten(0, 1), py.repeat(len(nets)), reduction="none")
        return each_row.view(len(nets), -1).mean(1)

    @torch.no_grad()
    def looked() -> list[float]:
        """Return the test accuracy of each network, in points."""
        # one forward for all networks: (nets, rows, 10)
        return [
            100 * float(a)
            for a in (forward_all(weights, test_x).argmax(-1) == test_y).float().mean(1)
        ]

    # Adam is elementwise: side by side is the same as one after the other
    optimizer = torch.optim.Adam(weights.values(), lr=1e-3)
    draw, curve = torch.Generator().manual_seed(mix(seed, 5)), list[list[float]]()
    with torch.no_grad():
        first = epoch = losses(x[:SCORED], y[:SCORED]).tolist()
    step = 0
    for number in range(EPOCHS):
        for rows in torch.randperm(len(x), generator=draw).split(BATCH):
            optimizer.zero_grad()
            losses(x[rows], y[rows]).sum().backward()
            optimizer.step()
            step += 1
            # looked at every 20 steps: the speed claim is on steps to an accuracy
            if step % LOOK == 0:
                curve.append(looked())
        if not number:
            with torch.no_grad():
                epoch = losses(x[:SCORED], y[:SCORED]).tolist()
    accuracy = looked()
    steps: list[float] = []
    for i, end in enumerate(accuracy):
        enough = REACHED * (end if goal is None else goal)
        reached = (
            LOOK * (index + 1) for index, accuracies in enumerate(curve) if accuracies[i] >= enough
        )
        steps.append(float(next(reached, step)))
    return Nets(first, epoch, accuracy, steps)


def run(density: float, seed: int) -> SearchedNet:
    """Select five subnetworks of an MLP by their loss before training; train and score them.

    Five random subnetworks and the parent are trained, too. density: the share of hidden units of a
    subnetwork; seed: of the parent and all draws. The best five are of 100 random subnetworks.
    """
    parent = mlp(seed)
    x, y = thin_resnets.rows("train").tensors
    # step 1: the draws of least loss before training, the paper's selection
    candidates = search(
        parent, RandomSearch(density, DRAWS), [(x[:SCORED], y[:SCORED])], seed=mix(seed, 1)
    )
    units_of_nets = [candidate.units for candidate in candidates[:BEST]]
    for i in range(BEST):
        # step 2: as many random draws, which nothing has selected
        units_of_nets += [search(parent, RandomSearch(density, 1), seed=mix(seed, 2, i))[0].units]
    nets = [copy.deepcopy(parent) for _ in units_of_nets]
    for net, units in zip(nets, units_of_nets, strict=True):
        cut(net, units)
    # step 3: the parent sets the accuracy that counts as reached
    dense = together([parent], None, seed)
    trained = together(nets, dense.accuracy[0], seed)
    halves = (Nets(*(v[a : a + BEST] for v in trained)) for a in (0, BEST))
    return SearchedNet(dense, *halves)


def cell(_: None, density: float, seed: int) -> SearchedNet:
    """Return the trained networks' scores of a seed, stored or computed now.

    density: share of hidden units that stay. The first parameter is unused: there is a single arm.
    """
    inputs = {"density": density, "seed": seed, "draws": DRAWS, "epochs": EPOCHS}
    nets_of_seed = stored("random-search", inputs, lambda: run(density, seed))
    return SearchedNet(*(Nets(*nets) for nets in nets_of_seed))


Ends = tuple[float, float] | None  # of an interval over nets; None = over seeds


def _gap(searches: Sequence[SearchedNet], name: str) -> list[float]:
    """Return the mean of the selected networks minus the random ones' mean, by seed."""
    halves = ((getattr(s.selected, name), getattr(s.random, name)) for s in searches)
    return [statistics.mean(a) - statistics.mean(b) for a, b in halves]


def of_accuracy(searches: Sequence[SearchedNet]) -> tuple[Ends, list[float], str]:
    """Return the difference of test accuracy, selected minus random networks, by seed.

    searches: the trained networks of each seed. Returns None (the interval is over seeds), a
    difference in points for each seed, and a sentence.
    """
    gaps = _gap(searches, "accuracy")
    return None, gaps, f"Mean difference {statistics.mean(gaps):+.2f} points."


def judged(
    seeds: tuple[int, ...],
    report: Report,
    *,
    figure: Callable[[Sequence[SearchedNet]], tuple[Ends, list[float], str]],
) -> Result:
    """Return a figure of selected and random subnetworks at the first density, and a table of all.

    Subnetworks of an MLP are selected by their loss before training, then trained on Fashion-MNIST.
    figure: the networks of all seeds -> ends of an interval over networks (None: over seeds), the
    values, and a sentence. Densities are shares of the hidden units that stay.
    """
    arms, first, other_densities = [Arm("", None)], DENSITIES[:1], DENSITIES[1:]
    first_sheet = each(arms, seeds, cell, report, tasks=first, describe=_said)
    other_sheet = each(arms, seeds[:3], cell, report, tasks=other_densities, describe=_said)
    table: list[dict[str, Any]] = []
    for density in DENSITIES:
        searches = (first_sheet if density in first else other_sheet).by_seed("", density)
        row: dict[str, Any] = {"units kept": f"{density:.0%}"}
        for name in SearchedNet._fields:
            scores = [statistics.mean(getattr(s, name).accuracy) for s in searches]
            row[name] = shown(scores, ".2f")
        row["loss before"] = f"{statistics.mean(_gap(searches, 'first')):+.4f}"
        table.append(row)
    # only the first density is judged, the others stand in the table
    items, values, note = figure(first_sheet.by_seed("", DENSITIES[0]))
    return replace(result_of(values, table, note), items=items)


def _said(net_search: SearchedNet) -> str:
    """Return the mean accuracy of each group of a seed's networks in words."""
    means = (
        f"{n} {statistics.mean(getattr(net_search, n).accuracy):.2f}" for n in net_search._fields
    )
    return ", ".join(means)


STUDIES = (
    Study(
        "random-search",
        system="Random search of sparse nets",
        arxiv="2403.08265",
        question="Are selected sparse nets more accurate than random ones?",
        effect=Effect("no more accurate, no faster", "dense nets", "abstract", sign=0),
        work="a 784-256-256-10 MLP with a tenth of its hidden units, Fashion-MNIST",
        baseline="five random nets of 100, next to the five with the least loss",
        unit="points of accuracy",
        differs="10,000 pictures, and one rate for all nets.",
        measure=partial(judged, figure=of_accuracy),
        seeds=tuple(range(10)),
        minutes=23,
    ),
)
