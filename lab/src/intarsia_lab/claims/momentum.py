"""Momentum along the depth of a mixture: whether it predicts better, and stands noise as well."""

from __future__ import annotations

from functools import partial

from intarsia.mixtures import AdamOnce

from ..kit import Study, UnknownEffect, better_than_a_guess
from ..routing import VARIANTS, Variant
from ..routing.contenders import WIDE, WIDE_WORK, arm, hurt, one_rate, perplexity, ratio

TOPK = VARIANTS["topk"]
RELEASED = AdamOnce(gamma1=1.0, start="zero")
"""The published first step; the host adds x itself, so that there is no kappa to take it away."""

# the same router, experts and rows; momentum alone differs
SMOE = arm("SMoE, top-2 of 8", TOPK)
MOMENTUM = arm("MomentumSMoE", VARIANTS["residual"])
ADAM = arm("AdamSMoE, first step from tokens", VARIANTS["residual-adam"])
ADAM_RELEASED = arm(
    "AdamSMoE, first step as released", Variant("adam-released", TOPK.router, update=RELEASED)
)

NOTE = "Heavy ball with mu = 0.7 and gamma = 1."
STEP = (
    "AdamSMoE as released: v starts at 0, so that the first step is 3.16 sign(f) whatever f says, "
    "and little is learned before it; the release has a further layer norm around it, which is not "
    "here, so that this row says nothing about the paper's model. From tokens: v starts at the "
    "mean of f^2 of the token, and the step is 0.3 long."
)
EQUAL = (
    "One seed of three is below 1, and the seeds differ three times as much as the mean differs "
    "from 1: neither a gain in robustness shows nor a loss. Swapped perplexities themselves are "
    "lower with momentum in all seeds, as clean ones are."
)

study = partial(
    Study,
    baseline="the same mixture without momentum; ratio of perplexities",
    sense="<=",
    control=better_than_a_guess(1024),
    # mu and gamma are the published ones: nothing is tuned for either
    rates=one_rate(SMOE, MOMENTUM),
    needs="long",
)

CLAIMS = (
    study(
        "momentum",
        system="MomentumSMoE",
        unit="times the perplexity",
        scale="A decoder of width 256 on 4.1 million tokens, which is momentum-wide.",
        effect=UnknownEffect(
            "The perplexities on WikiText-103 stand in a table that was not reachable."
        ),
        work="a decoder of width 64 from scratch on Austen",
        sentence="Momentum along the depth lowers the perplexity of a sparse mixture of experts "
        "(arXiv:2410.14574, abstract).",
        target=1.0,
        measure=partial(ratio, ours=MOMENTUM, base=SMOE, figure=perplexity, note=NOTE),
        # the pilot of three seeds: .985 with a spread of .009, which six see with 80 % power
        seeds=tuple(range(6)),
        minutes=30,
    ),
    study(
        "momentum-wide",
        work=WIDE_WORK,
        sentence="Momentum along the depth lowers the perplexity of a wider and deeper mixture, "
        "too (arXiv:2410.14574, abstract).",
        target=0.995,
        measure=partial(ratio, ours=MOMENTUM, base=SMOE, figure=perplexity, note=NOTE, bench=WIDE),
        rates=one_rate(SMOE, MOMENTUM, bench=WIDE),
        minutes=240,
    ),
    study(
        "momentum-swapped",
        sentence="A mixture with momentum stands swapped tokens at least as well "
        "(arXiv:2410.14574, abstract): the share by which they raise its perplexity.",
        baseline="the same mixture without momentum; ratio of the rises",
        target=1.0,
        measure=partial(ratio, ours=MOMENTUM, base=SMOE, figure=hurt, note=f"{NOTE}\n{EQUAL}"),
        minutes=15,
    ),
    study(
        "momentum-adam",
        sentence="Our own Adam step at the first layer, which is not the paper's, and momentum "
        "from there on lower the perplexity of a sparse mixture of experts (after "
        "arXiv:2410.14574, section 3).",
        target=0.995,
        measure=partial(
            ratio,
            ours=ADAM,
            base=SMOE,
            figure=perplexity,
            rivals=(ADAM_RELEASED, MOMENTUM),
            note=f"{NOTE} {STEP}",
        ),
        rates=one_rate(SMOE, ADAM, ADAM_RELEASED, MOMENTUM),
        minutes=30,
    ),
)
