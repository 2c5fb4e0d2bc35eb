"""What each claim is evidence of, and which verdicts were taken back: all of it declared here.

A claim that is no headline and stands in no list is a part of its paper's method.
"""

from __future__ import annotations

CONTRAST = "the paper's contrast"
VARIANT = "a variant, a simulation or a part of it"
CHECK = "a check of code or arithmetic"
CLASSES = (CONTRAST, VARIANT, CHECK)


def _keys(text: str) -> frozenset[str]:
    """Return the keys of claims in a text."""
    return frozenset(text.split())


# the paper's own question, against the paper's own rival, however small
CONTRASTS = _keys("""
bdwp bi dass-by-hand dsl dsnot gaussian-moe lsr-idf mixlora moa momentum mos-saving mosa
onerec-preference poly-heads random-search recombiner rmoe sms sparse-ift squarehead transport-loss
uni-moe
""")
# another question, a simulator, or one part of what the paper has
VARIANTS = _keys("""
comet deepspeed-moe evomoe fast-convnets gqsa hecate llava-mole lt-sft m2trec moe-x moetuner
prosper-bars s2ft seuf-expert slime sparse-bytenn sparsey-memory tutel union-of-experts
zcode-m3-merge
""")
# true by construction, by counting, or of this code alone: never counted as evidence
CHECKS = _keys("""
comet-active deepspeed-moe-size deepspeed-tables evomoe-active evomoe-entropy expertflow-step
mixlora-time moa-bytes moetuner-uniform qmoe-size random-search-control read-me-ahead read-me-gate
recombiner-coding sat sat-orders semoe-bucket seuf-size sparse-kernels sparse-kernels-dense
sparsey-time stack-bytes stack-pairs transport-unbalanced tutel-tables union-of-experts-macs
union-of-experts-text-macs
""")
# claims proved or published for data of this very size and kind: a failure there is the paper's
OWN_REGIME = _keys("""
gaussian-moe gaussian-moe-experts gaussian-moe-linear gaussian-moe-ratio sparsey-digits
""")

LOWERED = "Its bar was lowered after the figure was known; fresh seeds decide."
POOLED = "Its interval pools pairs of sets that differ; over sets nothing is decided."
# claim -> why its verdict was taken back
WITHDRAWN = {
    "gqsa": "One draw: it is worse on both texts, and two texts of one draw have no interval.",
    "mosa": POOLED + " Its bar was raised after the first figure.",
    "mosa-budget": POOLED,
    "mosa-long": POOLED,
    "onerec-preference": LOWERED,
    "seuf-expert": LOWERED,
    "sparse-ift": "It cannot hold: the wide net without zeros gains nothing on this set. Its bar "
    "was raised after the first figure.",
    "tutel": "It cannot fail: a minimum over degrees stands against each of them in one "
    "simulator. " + LOWERED,
    "union-of-experts": "It cannot fail: one dense block of four is as accurate as all of them.",
}


def class_of(key: str) -> str:
    """Return what a claim is evidence of, one of CLASSES."""
    if key in CHECKS:
        return CHECK
    return CONTRAST if key in CONTRASTS else VARIANT
