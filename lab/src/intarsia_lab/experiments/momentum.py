"""Momentum along the depth of a mixture: whether it predicts better, and stands noise as well."""

from __future__ import annotations

from functools import partial

from ..kit import Effect, Study
from ..routing import VARIANTS
from ..routing.contenders import arm, perplexity, ratio

TOPK = VARIANTS["topk"]

# the same router, experts and rows; momentum alone differs
SMOE = arm("SMoE, top-2 of 8", TOPK)
MOMENTUM = arm("MomentumSMoE", VARIANTS["residual"])

NOTE = "Heavy ball with mu = 0.7 and gamma = 1."


STUDIES = (
    Study(
        "momentum",
        system="MomentumSMoE",
        arxiv="2410.14574",
        question="Does momentum along the depth lower a mixture's perplexity?",
        effect=Effect(
            "lower perplexity, without a figure",
            "WikiText-103, ImageNet",
            "abstract; no table was found",
            sign=-1,
            null=1.0,
        ),
        work="a decoder of width 64 from scratch on Austen",
        baseline="the same mixture without momentum",
        unit="times the perplexity",
        differs="Four layers, where momentum has little depth to act along.",
        measure=partial(ratio, ours=MOMENTUM, base=SMOE, figure=perplexity, note=NOTE),
        seeds=tuple(range(6)),
        minutes=41,
    ),
)
