"""Why a claim on a router came out as it did: size, schedule or the method; one seed, validation.

    python studies/router_probes.py evomoe     # the table on the terminal
    python studies/router_probes.py rmoe

evomoe: the gate made hard once it has cooled, a stronger balance loss, experts that start further
apart, or later. rmoe: twice the steps, and the linear router's balance loss. Losses are those of
the validation part: what explains a claim must not see what judges it. Cells are kept.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from intarsia.routers import EvoMoe, Recurrent
from intarsia_lab.experiments.records import machine
from intarsia_lab.kit.arms import threads
from intarsia_lab.pages.results import markdown
from intarsia_lab.routing import TEXT, VARIANTS, RouterTrial, Start, Variant, cells
from intarsia_lab.routing.contenders import CORPUS, Cell, information

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
    VARIANTS["topk"],
    VARIANTS["recurrent"],
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


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("which", choices=("evomoe", "rmoe"))
    which = parser.parse_args().which
    with threads(1):
        if which == "evomoe":
            rows = ran(EVOMOE, 1, print)
        else:
            rows = ran(RMOE, 1, print) + ran(RMOE[:2], 2, print)
    print(machine(), "", *markdown(rows), sep="\n")


if __name__ == "__main__":
    main()
