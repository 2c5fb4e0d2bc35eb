"""EvoMoE against Switch: whether growing experts out of one, and cooling the gate, pays."""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise

from ..core import Claim
from ..experiments.routing import VARIANTS
from .routed import Cell, active, arm, measured, ratio

SMOOTHED = 3  # points of the curve in one mean; a point is the gate of one batch

SWITCH = arm("Switch", VARIANTS["switch"])
EVOMOE = arm("EvoMoE", VARIANTS["evomoe"])
EQUAL = arm("EvoMoE, equal operations", VARIANTS["evomoe"], "flops")

PAPER = "(arXiv:2112.14397, abstract)"
SETUP = (
    "One expert for all in the first tenth of the steps, then eight copies of it, a tenth of each "
    "one's weights set to 0; tau falls from 2 to 0.3 in three tenths of the steps that are left."
)


BOUGHT = (
    "It holds at twice the operations of Switch: 3.7 experts of a token while training, and 6.7 of "
    "the eight in test. The ratio is of a baseline whose seeds differ by 0.16."
)
HALVED = (
    "Likely cause: with four experts a token EvoMoE has half the steps, and at this length of "
    "training steps are worth more than experts. With a gate made hard once it has cooled, the "
    "same steps cost 1.5 times what Switch's do, since cooling is dear (docs/log, 2026-11-25)."
)
NOISE = (
    "Likely cause: cooling alone does not make this gate sparse. At tau = 0.3 and a threshold of "
    "0.001, noise leaves 4.1 of eight experts to equal logits, and the gate's logits are hardly "
    "apart: without noise, in test, a token has 6.7. With a hard gate after the cooling it is 1 "
    "(docs/log, 2026-11-25)."
)


def entropy_rise(cell: Cell) -> float:
    """The largest rise of the gate's entropy above what it was before, as a share of log E.

    Of the points since there is a gate: means over the layers, and over three points on end.
    """
    points = [p["layers"] for p in cell["curve"] if p["layers"]]
    experts = len(cell["layers"][0]["load"])
    raw = [sum(layer["gate_entropy"] for layer in p) / len(p) for p in points]
    smooth = [sum(raw[i : i + SMOOTHED]) / SMOOTHED for i in range(len(raw) - SMOOTHED + 1)]
    least, rise = math.inf, 0.0
    for before, now in pairwise(smooth):
        least = min(least, before)
        rise = max(rise, now - least)
    return rise / math.log(experts)


claim = partial(Claim, sense="<=", needs="long", minutes=20)

CLAIMS = (
    claim(
        "evomoe",
        sentence=f"A mixture grown out of one expert, whose gate goes from dense to sparse, is no "
        f"worse than Switch at equal steps {PAPER}.",
        baseline="Switch, as many steps; ratio of test losses",
        bar=1.0,
        run=partial(ratio, ours=EVOMOE, base=SWITCH, note=f"{SETUP}\n{BOUGHT}"),
    ),
    claim(
        "evomoe-operations",
        sentence=f"A mixture grown out of one expert, whose gate goes from dense to sparse, is no "
        f"worse than Switch at equal operations {PAPER}.",
        baseline="Switch, as many operations; ratio of test losses",
        bar=1.0,
        run=partial(ratio, ours=EQUAL, base=SWITCH, beside=(EVOMOE,), note=f"{SETUP}\n{HALVED}"),
        minutes=30,
    ),
    claim(
        "evomoe-active",
        sentence="In the end the gate has become one for a single expert (arXiv:2112.14397, "
        "section 3): experts of a token in the last step of training.",
        baseline="Switch's one expert",
        bar=1.05,
        run=partial(measured, ours=EVOMOE, base=SWITCH, of=active, note=f"{SETUP}\n{NOISE}"),
    ),
    claim(
        "evomoe-entropy",
        sentence="The gate only ever becomes more decided (arXiv:2112.14397, section 3): the "
        "largest rise of its smoothed entropy, as a share of log E.",
        baseline="no rise; a hundredth is noise",
        bar=0.01,
        run=partial(measured, ours=EVOMOE, base=SWITCH, of=entropy_rise, note=SETUP),
    ),
)
