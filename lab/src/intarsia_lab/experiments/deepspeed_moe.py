"""An MLP next to the experts, more experts in later layers, and students (DeepSpeed-MoE)."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from intarsia.routers import TopK

from ..kit import Effect, Report, Result, Study
from ..kit.arms import judge, shown
from ..routing import Variant
from ..routing.contenders import BENCH, Bench, Cell, arm, loss

# the paper doubles the experts of the last layers: 32 and 64, where its baseline has 128
MANY, PYRAMID = 16, (4, 4, 16, 16)
EVEN = Variant("even", TopK(MANY, 1, "prob"))
PR = Variant("deepspeed_moe", TopK(MANY, 1, "prob"), residual=True, experts=PYRAMID)


def ratio(
    seeds: Sequence[int],
    report: Report,
    *,
    ours: Variant,
    base: Variant,
    figure: Callable[[Cell], float] = loss,
    rivals: Sequence[Variant] = (),
    bench: Bench = BENCH,
    remark: str = "",
) -> Result:
    """Train mixtures on a text; return a figure of contender `ours` over the figure of `base`.

    Each is a small decoder with mixtures of experts as its MLPs, trained from scratch from every
    seed. figure: a run's result -> the number compared, by default the test loss in nats; rivals:
    more contenders for the table; bench: text, width and steps of the runs; remark: a sentence for
    the note. One ratio for each seed; their mean is judged.
    """
    # the base first: the table lists the base of the comparison before the new variants
    arms = [arm(variant.name, variant) for variant in (base, ours, *rivals)]
    results, text = bench.cells(arms, seeds, report), bench.scale
    note = (
        f"Cells of `{bench.corpus}`: a decoder of {text.shape.layers} layers, "
        f"{text.shape.width} wide, experts of {text.shape.hidden} units, "
        f"{text.steps} steps. Names: `even`, {MANY} experts "
        f"in each layer, top-1; `pr-moe`, {PYRAMID} and an MLP beside them; `top-1`, `residual` "
        "(an MLP beside) and `top-k` (two a token), eight experts. `all parameters` is what the "
        f"paper calls the size of a model; `of experts` leaves out the MLPs beside them.{remark}"
    )
    return judge(
        results, lambda cells: figure(cells[ours.name]) / figure(cells[base.name]), _row, note
    )


def _row(name: str, cells: Sequence[Cell]) -> dict[str, Any]:
    """Return a model's row of the table: test loss, parameters and operations of training."""
    parameters = cells[0]["parameters"]
    return {
        "model": name,
        "test loss": shown([c["loss"] for c in cells], ".4f"),
        "all parameters": f"{parameters['total']:,}",
        "of experts": f"{parameters['experts']:,}",
        "operations": f"{statistics.mean(c['flops']['total'] for c in cells):.2e}",
    }


STUDIES = (
    Study(
        "deepspeed-moe",
        system="DeepSpeed-MoE",
        arxiv="2201.05596",
        question="Does a pyramid of experts beside an MLP lose to many experts everywhere?",
        effect=Effect(
            "as good: 48.37 and 48.01 with .60 of the parameters",
            "mean of six tasks, 31 and 52 billion parameters",
            "abstract; table of tasks",
            sign=0,
            null=1.0,
        ),
        work="a decoder of width 64 from scratch on Austen",
        baseline="16 experts in each layer, top-1; ratio of test losses",
        unit="times the test loss",
        differs="The pyramid has .72 of the parameters here, where most are no experts'.",
        measure=partial(ratio, ours=PR, base=EVEN),
        seeds=tuple(range(9)),
        minutes=17,
    ),
)
