"""EvoMoE against Switch: whether growing experts out of one, and cooling the gate, pays."""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise

from ..kit import Study, UnknownEffect, better_than_a_guess
from ..routing import VARIANTS
from ..routing.contenders import WIDE, WIDE_WORK, Cell, active, arm, measured, one_rate, ratio

SMOOTHED = 3  # points of the curve in one mean; a point is the gate of one batch

SWITCH = arm("Switch", VARIANTS["switch"])
EVOMOE = arm("EvoMoE", VARIANTS["evomoe"])
# dense steps cost more: at equal operations EvoMoE has fewer steps
EQUAL = arm("EvoMoE, equal operations", VARIANTS["evomoe"], "flops")

PAPER = "(arXiv:2112.14397, abstract)"
SETUP = (
    "One expert for all in the first tenth of the steps, then eight copies of it, a tenth of each "
    "one's weights set to 0; tau falls from 2 to 0.3 in three tenths of the steps that are left, "
    "then a token has one expert, as in test."
)


def entropy_rise(cell: Cell) -> float:
    """Return the largest rise of a router's entropy during training, as a share of log(experts).

    A rise is the distance from the lowest entropy so far to a later one; 0 if the gate only becomes
    more decided. cell: result of one training; its "curve" records the entropy of each layer's
    gate at points of the training. Entropies are means over the layers, smoothed over three points,
    and count from when there is a gate.
    """
    # before the gate exists there is nothing to decide
    points = [p["layers"] for p in cell["curve"] if p["layers"]]
    experts = len(cell["layers"][0]["load"])
    raw = [sum(layer["gate_entropy"] for layer in p) / len(p) for p in points]
    # a point is one batch: three in one mean, or noise would be a rise
    smooth = [sum(raw[i : i + SMOOTHED]) / SMOOTHED for i in range(len(raw) - SMOOTHED + 1)]
    least, rise = math.inf, 0.0
    for before, now in pairwise(smooth):
        least = min(least, before)
        rise = max(rise, now - least)
    return rise / math.log(experts)


study = partial(
    Study,
    sense="<=",
    control=better_than_a_guess(1024),
    rates=one_rate(EVOMOE, SWITCH),
    needs="long",
    minutes=20,
)

CLAIMS = (
    study(
        "evomoe",
        system="EvoMoE",
        unit="times the test loss of Switch",
        scale="A decoder of width 256 on 4.1 million tokens, which is evomoe-wide.",
        effect=UnknownEffect("The paper's tables were not reachable."),
        work="a decoder of width 64 from scratch on Austen",
        sentence=f"A mixture grown out of one expert, whose gate goes from dense to sparse, is no "
        f"worse than Switch at equal steps, which are half as many operations again as Switch's "
        f"{PAPER}.",
        baseline="Switch, as many steps; ratio of test losses",
        target=1.0,
        measure=partial(ratio, ours=EVOMOE, base=SWITCH, note=SETUP),
        # the pilot of three seeds: .994 with a spread of .006, which ten see with 80 % power
        seeds=tuple(range(10)),
        minutes=40,
    ),
    study(
        "evomoe-operations",
        sentence=f"A mixture grown out of one expert, whose gate goes from dense to sparse, is no "
        f"worse than Switch at equal operations {PAPER}.",
        baseline="Switch, as many operations; ratio of test losses",
        target=1.0,
        measure=partial(ratio, ours=EQUAL, base=SWITCH, rivals=(EVOMOE,), note=SETUP),
        rates=None,  # as many operations are other steps for each arm
        minutes=30,
    ),
    study(
        "evomoe-wide",
        work=WIDE_WORK,
        sentence="A wider and deeper mixture grown out of one expert is no worse than Switch at "
        f"equal steps {PAPER}.",
        baseline="Switch, as many steps; ratio of test losses",
        target=1.0,
        measure=partial(ratio, ours=EVOMOE, base=SWITCH, note=SETUP, bench=WIDE),
        rates=one_rate(EVOMOE, SWITCH, bench=WIDE),
        minutes=280,
    ),
    study(
        "evomoe-active",
        sentence="In the end the gate has become one for a single expert (arXiv:2112.14397, "
        "section 3): experts of a token in the last step of training.",
        baseline="Switch's one expert",
        target=1.05,
        measure=partial(measured, ours=EVOMOE, base=SWITCH, figure=active, note=SETUP),
    ),
    study(
        "evomoe-entropy",
        sentence="The gate only ever becomes more decided (arXiv:2112.14397, section 3): the "
        "largest rise of its smoothed entropy, as a share of log E.",
        baseline="no rise; a hundredth is noise",
        target=0.01,
        measure=partial(measured, ours=EVOMOE, base=SWITCH, figure=entropy_rise, note=SETUP),
    ),
)
