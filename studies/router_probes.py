"""Why a claim on a router came out as it did: size, schedule or the method; one seed, validation.

    python studies/router_probes.py evomoe     # the table on the terminal
    python studies/router_probes.py rmoe
    python studies/router_probes.py comet
    python studies/router_probes.py search

search: whether the permutation that is found is the one it began with. comet: an entropy loss that
grows from nothing, and a narrower band of the splits. evomoe: the gate made hard once it has
cooled, a stronger balance loss, experts that start further apart, or later. rmoe: twice the steps,
and the linear router's balance loss. Losses are those of the validation part: what explains a claim
must not see what judges it. Cells of texts are kept.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from intarsia.claims import comet
from intarsia.claims.ledger import machine, markdown
from intarsia.claims.routed import CORPUS, Cell, information
from intarsia.claims.study import threads
from intarsia.experiments.routing import TEXT, VARIANTS, RouterTrial, Start, Variant, cells
from intarsia.routers import Comet, EvoMoe, PermutationSearch, Recurrent
from intarsia.routers.comet import CometRouter
from intarsia.routers.permutation import hungarian

SEED = 0
Report = Callable[[str], None]


def evomoe(name: str, fraction: float = 0.1, first: float = 0.1, **gate: Any) -> Variant:
    return Variant(name, EvoMoe(8, **gate), start=Start("diversified", first, fraction))


EVOMOE = (
    VARIANTS["switch"],
    VARIANTS["evomoe"],
    evomoe("one expert after cooling", hard_after=0.3),
    evomoe("balance 0.1", balance=0.1),
    evomoe("half the weights set to 0", fraction=0.5),
    evomoe("one expert for 30 % of the steps", first=0.3),
)
RMOE = (
    VARIANTS["top-k"],
    VARIANTS["rmoe"],
    Variant("rmoe, balance 0.01", Recurrent(8, 2, hidden=32, balance=0.01)),
)


def ran(variants: Sequence[Variant], factor: int, report: Report) -> list[dict[str, Any]]:
    """A line for each contender at so many times the usual steps."""
    scale = replace(TEXT, steps=factor * TEXT.steps)
    asked = [RouterTrial(variant, CORPUS, SEED) for variant in variants]
    return [row(cell) for cell in cells(asked, text=scale, report=report)]


def row(cell: Cell) -> dict[str, Any]:
    """The last point of the curve, whose loss is of the validation part."""
    last = cell["curve"][-1]

    def mean(what: str) -> float:
        return statistics.mean(layer[what] for layer in last["layers"])

    return {
        "contender": cell["name"],
        "steps": cell["steps"],
        "validation loss": f"{last['loss']:.4f}",
        "active": f"{mean('active'):.2f}",
        "load CV": f"{mean('load_cv'):.2f}",
        "gate entropy": f"{mean('gate_entropy'):.3f}",
        "information": f"{information(cell):.3f}",
        "operations": f"{cell['flops']['total']:.2e}",
    }


def growing(most: float) -> Callable[[nn.Module, int, int], None]:
    """The entropy loss of COMET from 0 to `most`, in proportion to the steps."""

    def schedule(model: nn.Module, step: int, steps: int) -> None:
        for router in model.modules():
            if isinstance(router, CometRouter):
                router.config = replace(router.config, entropy=most * step / steps)

    return schedule


def of_comet(report: Report) -> list[dict[str, Any]]:
    """Six draws of a seed: an entropy loss that stands, one that grows, and top-k."""
    found: dict[str, list[Mapping[str, float]]] = {}
    for drawn in comet.draws(SEED, 6):
        steps = comet.LENGTH.steps
        stands = comet.GATES["COMET"](drawn, steps)
        assert isinstance(stands, Comet)
        grows = {"schedule": growing(2 * stands.entropy)}  # as much in the mean over the steps
        steep = Comet(stands.experts, stands.active, gamma=1.0, entropy=stands.entropy)
        for name, router, options in (
            ("top-k", comet.top_k(drawn, steps), {}),
            ("COMET", stands, {}),
            ("COMET, growing entropy loss", stands, grows),
            ("COMET, gamma = 1", steep, {}),
        ):
            model = comet.trained(router, drawn, SEED, comet.LENGTH.epochs, **options)
            found.setdefault(name, []).append(comet.scored(model, SEED))
            report(f"{name}: {found[name][-1]['val']:.3f}")
    return [
        {
            "gate": name,
            "validation loss, best of 6": f"{min(t['val'] for t in tries):.3f}",
            "median": f"{statistics.median(t['val'] for t in tries):.3f}",
            "experts of a picture, of the best": f"{comet.picked(tries)['active']:.2f}",
            "all draws": ", ".join(f"{t['active']:.2f}" for t in tries),
        }
        for name, tries in found.items()
    ]


def of_search(report: Report) -> list[dict[str, Any]]:
    """Top-k with a search, in six draws of a seed, at two temperatures it starts from."""
    rows: list[dict[str, Any]] = []
    for start in (1e-3, 0.1):
        same, largest = list[float](), list[float]()
        losses = list[float]()
        for drawn in comet.draws(SEED, 6):
            usual = comet.searched(drawn, comet.LENGTH.steps)
            assert isinstance(usual, PermutationSearch)
            config = replace(usual, start=start)
            model: Any = comet.trained(config, drawn, SEED, 0)
            plan = model[0].router.soft().detach()[0]
            largest.append(float(plan.max(1).values.mean()))
            model = comet.trained(config, drawn, SEED, comet.LENGTH.epochs)
            same.append(float((hungarian(plan) == model[0].router.order[0]).double().mean()))
            losses.append(comet.scored(model, SEED)["val"])
            report(f"start {start}: {largest[-1]:.3f} {same[-1]:.2f} {losses[-1]:.3f}")
        rows.append(
            {
                "tau at first": f"{start:g}",
                "largest entry of a row of P at first": f"{statistics.mean(largest):.3f}",
                "experts that keep their first place": f"{100 * statistics.mean(same):.0f} %",
                "validation loss, best of 6": f"{min(losses):.3f}",
                "median": f"{statistics.median(losses):.3f}",
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("which", choices=("evomoe", "rmoe", "comet", "search"))
    which = parser.parse_args().which
    with threads(1):
        if which in ("comet", "search"):
            rows = (of_comet if which == "comet" else of_search)(print)
        elif which == "evomoe":
            rows = ran(EVOMOE, 1, print)
        else:
            rows = ran(RMOE, 1, print) + ran(RMOE[:2], 2, print)
    print(machine(), "", *markdown(rows), sep="\n")


if __name__ == "__main__":
    main()
