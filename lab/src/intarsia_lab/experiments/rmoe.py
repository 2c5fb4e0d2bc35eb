"""RMoE: whether a router that knows a token's way so far predicts better, or follows it closer."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from ..kit import Effect, Study
from ..routing import TEXT, VARIANTS
from ..routing.contenders import Bench, arm, ratio

TOPK = arm("linear router, top-2 of 8", VARIANTS["topk"])
RMOE = arm("RMoE, p = 32", VARIANTS["recurrent"])

# a state is learned late: after 1,500 steps RMoE's loss still falls faster than the linear router's
LONG = Bench(scale=replace(TEXT, steps=3000))

BALANCES = (
    "p: width of the state. Recurrent routers have the balance loss of their paper, 0.001, the "
    "linear one 0.01. After 1500 steps three seeds were at 1.005, with a spread of 0.002."
)


STUDIES = (
    Study(
        "rmoe",
        system="RMoE",
        arxiv="2408.06793",
        question="Do routers that pass a state along lower the test loss?",
        effect=Effect(
            "bits 1.184 to 1.183 at 6 layers, 1.132 to 1.125 at 12, 1.108 to 1.089 at 24",
            "enwik8, 36 million parameters",
            "official repository, notebook of depths",
            sign=-1,
            values=(0.9992,),
            null=1.0,
        ),
        work="a decoder of width 64 and 4 layers from scratch on Austen",
        baseline="linear top-2 router",
        unit="times the test loss",
        differs="Four layers: at six the paper's own gain is a thousandth.",
        measure=partial(ratio, ours=RMOE, base=TOPK, note=BALANCES, bench=LONG),
        minutes=33,
    ),
)
