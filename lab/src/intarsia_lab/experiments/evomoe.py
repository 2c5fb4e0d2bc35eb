"""EvoMoE against Switch: whether growing experts out of one, and cooling the gate, pays."""

from __future__ import annotations

from functools import partial

from ..kit import Effect, Study
from ..routing import VARIANTS
from ..routing.contenders import arm, ratio

SWITCH = arm("Switch", VARIANTS["switch"])
EVOMOE = arm("EvoMoE", VARIANTS["evomoe"])

SETUP = (
    "One expert for all in the first tenth of the steps, then eight copies of it, a tenth of each "
    "one's weights set to 0; tau falls from 2 to 0.3 in three tenths of the steps that are left, "
    "then a token has one expert, as in test."
)


STUDIES = (
    Study(
        "evomoe",
        system="EvoMoE",
        arxiv="2112.14397",
        question="Is a mixture grown out of one expert better than Switch?",
        effect=Effect(
            "better than Switch, without a figure",
            "RoBERTa, GPT, translation",
            "abstract; no table was found",
            sign=-1,
            null=1.0,
        ),
        work="a decoder of width 64 from scratch on Austen",
        baseline="Switch, as many steps; ratio of test losses",
        unit="times the test loss of Switch",
        differs="Equal steps are half as many operations again as Switch's.",
        measure=partial(ratio, ours=EVOMOE, base=SWITCH, note=SETUP),
        seeds=tuple(range(10)),
        minutes=43,
    ),
)
