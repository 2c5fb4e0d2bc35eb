"""The rivals, the sample and the sensitive arm of each headline that counts as evidence.

A headline that is no check and has no design is refused, see `ledger.claims`. What a design says is
missing leaves its headline *not decided*, whatever its interval is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..kit import Control, Design, Missing, TableArm, below, numbers

# claims that are judged by the worst of so many comparisons, see `kit.worst_of`
COMPARISONS = {
    "dsl": 2, "gqsa": 2, "gqsa-stages": 3, "lt-sft": 2, "lt-sft-lora": 2, "lt-sft-twice": 2,
    "moa": 2, "moa-gap": 2, "recombiner": 6, "recombiner-full": 6, "sparsify": 2,
    "transport-loss": 9,
}  # fmt: skip

SHARED = Missing("the test items, which all seeds share")
OWN_DATA = "seeds, each with data of its own"
OWN_TRACES = "seeds, each with mixtures and traces of its own"
UNTRAINED = "No arm is trained."
PLACED = "The arms place the same trained experts."
DENSE = Missing("a dense net of equal operations")
HEAD = Missing("the head alone, without an adapter")


def arm(name: str, columns: str, **rows: str) -> TableArm:
    """Return an arm of a table.

    columns: of its figures, with a bar between them; rows: column -> text, `_` for a blank.
    """
    return TableArm(name, tuple(columns.split("|")), {k.replace("_", " "): rows[k] for k in rows})


def first_is_less(sentence: str, first: TableArm, second: TableArm, times: float = 1.0) -> Control:
    """Return the control that one arm's figure is less than `times` times another's."""
    return Control(sentence, lambda rows: first.figure(rows) < times * second.figure(rows))


def at_most(column: str, bound: float, sentence: str, texts: Mapping[str, str]) -> Control:
    """Return the control that the mean of a column in some rows is at most a bound."""
    return Control(sentence, lambda rows: max(numbers(rows, column, texts)) <= bound)


def lower(*parts: Any, alike: str = "") -> Design:
    """Return a design in whose table the lower figure is the better one."""
    return Design(*parts, alike=alike, higher=False)


# pictures, adapters and sparse training: points of accuracy
PICTURES = {
    # as good as dense: a mask that is chosen once would be cheaper
    "bdwp": Design(
        arm("BDWP", "test accuracy", training="BDWP"),
        Missing("half of the net"),
        Missing("a fixed 2:8 mask, which is within a point, too"),
        Missing("none loses a point"),
        SHARED,
    ),
    # both have as many bytes; width 1 of one bit has a 32nd of them
    "bi": Design(
        arm("1 bit", "elpv, %|photo-rotation, %", adapter="1 bit, width 32"),
        HEAD,
        arm("float", "elpv, %|photo-rotation, %", adapter="float, width 1"),
        Missing("one bit at width 1"),
        SHARED,
    ),
    # a search has to beat cells that nobody searched
    "dass-by-hand": Design(
        arm("DASS", "accuracy", cells="DASS"),
        Missing("cells drawn at random"),
        arm("MobileNet-v2", "accuracy", cells="inverted residuals"),
        Missing("cells drawn at random"),
        SHARED,
    ),
    # within a point: rank 2 is as small as MoS, and must lose it
    "mos-saving": Design(
        arm("MoS", "photo-rotation, %", adapter="MoS, e 2, rank 8"),
        arm("LoRA of rank 2", "photo-rotation, %", adapter="LoRA, rank 2"),
        arm("LoRA", "photo-rotation, %", adapter="LoRA, rank 16"),
        Control(
            "LoRA of as few parameters loses more than a point.",
            lambda rows: (
                numbers(rows, "photo-rotation, %", {"adapter": "LoRA, rank 2"})[0] + 1
                < numbers(rows, "photo-rotation, %", {"adapter": "LoRA, rank 16"})[0]
            ),
        ),
        SHARED,
    ),
    # the same adapter is the strongest of its size in the paper
    "mosa": Design(
        arm("MoSA", "fashion-mnist|elpv|tuxpaint", method="MoSA, released recipe"),
        HEAD,
        arm("the same adapter", "fashion-mnist|elpv|tuxpaint", method="adapter, released recipe"),
        Missing("no means here reaches 1.3 points"),
        Missing("the spread of sets, whose pairs it pools"),
    ),
    # a tie: it needs a mask that is worse by the margin
    "random-search": Design(
        arm("selected", "selected"),
        arm("random", "random"),
        Missing("pruning by size"),
        Missing("no mask loses half a point"),
        SHARED,
    ),
    # accuracy of the source task where both reach the same target
    "s2ft": Design(
        arm("S2FT", "source kept, S2FT"),
        HEAD,
        arm("LoRA", "source kept, LoRA"),
        Missing("none keeps all"),
        SHARED,
    ),
    # its parts are trained before it, by all arms alike
    "sms": Design(
        arm("soup", "accuracy"),
        arm("the mean of its parts", "mean of its parts"),
        Missing("the best candidate by validation"),
        Missing("a soup of nets with masks of their own"),
        SHARED,
        alike="The soup and its parts are the same trained nets.",
    ),
    # the wide net without zeros is the means that should reach the bar
    "sparse-ift": Design(
        arm("wide", "accuracy", model="wide, RigL"),
        Missing("a random mask"),
        arm("dense net", "accuracy", model="dense"),
        Missing("the wide net without zeros gains nothing here"),
        SHARED,
    ),
    # always one answer has no spread at all
    "uni-moe": lower(
        arm("Uni-MoE", "spread", arm="uni-moe"),
        Missing("the commonest topic alone"),
        arm("dense LoRA", "spread", arm="dense"),
        Missing("none raises the spread"),
        SHARED,
    ),
    # one block is as good as four: the set is too easy
    "union-of-experts": Design(
        arm("union", "accuracy, %", model="union of experts"),
        Missing("one dense block of four, which has 74.0 %"),
        arm("Switch", "accuracy, %", model="Switch"),
        Missing("half of the net loses nothing here"),
        SHARED,
    ),
    # as good as the best of three routers, at three numbers of experts
    "transport-loss": lower(
        arm("plan", "test loss", router="sparse transport, k = T / E"),
        arm("Switch", "test loss", router="Switch"),
        arm("expert choice", "test loss", router="expert choice"),
        first_is_less(
            "Switch loses more than 2 % to expert choice.",
            arm("", "test loss", router="expert choice"),
            arm("", "test loss", router="Switch"),
            1 / 1.02,
        ),
        SHARED,
    ),
}
# mixtures and language models: losses, of which the lower one is better
TEXTS = {
    # the mean of the best of three draws; the search is not in it
    "comet": lower(
        arm("COMET", "best of 3", gate="COMET"),
        Missing("a rating's mean"),
        arm("top-k", "best of 3", gate="top-k"),
        Missing("no gate must lose"),
        SHARED,
        alike="Each gate has the best of as many drawn rates.",
    ),
    # as good within 1 %: a smaller mixture would have to lose it
    "deepspeed-moe": lower(
        arm("fewer experts", "test loss", model="deepspeed_moe"),
        DENSE,
        arm("many experts", "test loss", model="even"),
        Missing("a mixture that is too small"),
        SHARED,
    ),
    # perplexities of two texts at two densities
    "dsnot": lower(
        arm("DSnoT", "0.6|0.5", method="wanda + dsnot"),
        Missing("swaps at random"),
        arm("Wanda", "0.6|0.5", method="wanda"),
        Missing("swaps at random"),
        Missing("the held-out rows, which all draws share"),
        alike=UNTRAINED,
    ),
    # half as many operations again as Switch: a dense net could have them, too
    "evomoe": lower(
        arm("EvoMoE", "ratio", contender="EvoMoE"),
        arm("Switch", "ratio", contender="Switch"),
        Missing("a dense net of equal operations, which is level with EvoMoE"),
        Missing("one expert alone"),
        SHARED,
    ),
    # perplexities of two texts; rounding alone must lose
    "gqsa": lower(
        arm("GQSA", "austen|python-docs", weights="W4 S50, OBS + BQPO + E2E"),
        arm("rounding", "austen|python-docs", weights="W4 S50, rounded"),
        arm("2:4", "austen|python-docs", weights="2:4 SparseGPT, 16 bits"),
        first_is_less(
            "Rounding loses to 2:4.",
            arm("", "austen|python-docs", weights="2:4 SparseGPT, 16 bits"),
            arm("", "austen|python-docs", weights="W4 S50, rounded"),
        ),
        Missing("draws: two texts of one draw are no sample"),
    ),
    # a LoRA of each domain is what closes the whole gap
    "llava-mole": lower(
        arm("MoLE", "over the first arm", arm="MoLE, E = 4, r = 4, scale 'prob'"),
        HEAD,
        arm("plain LoRA", "over the first arm", arm="LoRA, r = 4"),
        first_is_less(
            "A LoRA of each domain is better than the mixed one by 2 %.",
            arm("", "over the first arm", arm="LoRA, r = 4, one for each domain"),
            arm("", "over the first arm", arm="LoRA, r = 4"),
            1 / 1.02,
        ),
        SHARED,
    ),
    # full training is the means that reaches the bar
    "lt-sft": lower(
        arm("LT-SFT", "error, kinds|error, emoji", arm="drift, 2 %"),
        arm("random places", "error, kinds|error, emoji", arm="random, 2 %"),
        Missing("a LoRA of as many weights at a rate of its own"),
        first_is_less(
            "Full training errs less than random places.",
            arm("", "error, kinds|error, emoji", arm="full fine-tuning"),
            arm("", "error, kinds|error, emoji", arm="random, 2 %"),
        ),
        SHARED,
    ),
    # as many parameters in one LoRA; a fourth of them should lose
    "mixlora": lower(
        arm("MixLoRA", "over the first arm", arm="MixLoRA, E = 8, k = 2, r = 4"),
        HEAD,
        arm("LoRA", "over the first arm", arm="LoRA, r = 32"),
        Missing("a LoRA of one expert's rank"),
        SHARED,
    ),
    # as many keys and values in all arms
    "moa": lower(
        arm("MoA", "loss", spans="moa"),
        arm("random spans", "loss", spans="random"),
        arm("one window for all heads", "loss", spans="uniform"),
        first_is_less(
            "Random spans lose to one window for all heads.",
            arm("", "loss", spans="uniform"),
            arm("", "loss", spans="random"),
        ),
        Missing("the test tokens, which all draws share"),
        alike=UNTRAINED,
    ),
    # units on, not interpretability
    "moe-x": lower(
        arm("their own weights", "units on", router="score of the weights"),
        Missing("a gate at random"),
        arm("linear gate", "units on", router="linear gate"),
        Missing("none leaves more units on"),
        SHARED,
    ),
    # the paper's contrast, at a loss that hardly moves here
    "momentum": lower(
        arm("momentum", "ratio", contender="MomentumSMoE"),
        DENSE,
        arm("the same mixture", "ratio", contender="SMoE, top-2 of 8"),
        Missing("no means lowers the perplexity here"),
        SHARED,
    ),
    # as many parameters; one LoRA for all tasks should lose
    "poly-heads": lower(
        arm("MHR", "error %", arm="MHR, S = 4, Q = 8, r = 1"),
        arm("no adapter", "error %", arm="no adapter"),
        arm("Poly", "error %", arm="Poly, S = 5, r = 1"),
        Missing("one LoRA for all tasks"),
        SHARED,
    ),
    # as deep as the paper's shallowest, where it has .9992
    "rmoe": lower(
        arm("RMoE", "ratio", contender="RMoE, p = 32"),
        DENSE,
        arm("linear", "ratio", contender="linear router, top-2 of 8"),
        Missing("12 layers, where the paper has .994"),
        SHARED,
    ),
    # damage to other texts at equal forgetting
    "seuf-expert": lower(
        arm("attributed expert", "at +1.0", arm="top affinity"),
        arm("random expert", "at +1.0", arm="4 random of the layer of top affinity"),
        Missing("the most frequent expert"),
        Missing("none does more damage by design"),
        SHARED,
    ),
    # shares of the gap between pruned and dense
    "squarehead": Design(
        arm("SquareHead", "share closed", loss="SquareHead"),
        arm("labels", "share closed", loss="labels"),
        arm("logits", "share closed", loss="labels + logits"),
        Missing("a training long enough to reach the bar"),
        SHARED,
    ),
    # within half a percent, which nothing here loses
    "zcode-m3-merge": lower(
        arm("merged", "after the further steps", model="merged"),
        arm("first parent", "after the further steps", model="first parent"),
        arm("second parent", "after the further steps", model="second parent"),
        Missing("no arm here loses half a percent"),
        SHARED,
    ),
}
# simulators, statistics, times and recommenders
OTHERS = {
    # the recommender with the lower ratio
    "dsl": Design(
        arm("DSL", "NDCG@20, %", tables="LightGCN, DSL, density .5"),
        Missing("popularity"),
        arm("dense tables", "NDCG@20, %", tables="LightGCN, dense"),
        Missing("tables of half the width"),
        SHARED,
    ),
    # bfloat16 is the cheapest way to a faster net
    "fast-convnets": Design(
        arm("a fifth", "times as fast", net="ours, 1 row, 0.2"),
        arm("float32", "times as fast", net="OpenVINO fp32"),
        arm("bfloat16", "times as fast", net="OpenVINO bf16"),
        below(
            "With nine tenths of the weights left the net is slower than the dense one.",
            "times as fast",
            1,
            {"net": "ours, 1 row, 0.9"},
        ),
        "interleaved runs on one machine",
        alike=UNTRAINED,
    ),
    # slopes of errors over the size of samples
    "gaussian-moe": lower(
        arm("sigmoid gate", "slope", gate="sigmoid", what="beta_1 and tau"),
        arm("the start", "slope", gate="sigmoid, start", what="beta_1 and tau"),
        arm("linear gate", "slope", gate="linear", what="beta_1 and tau"),
        Control(
            "The linear gate, which data tell least, stays above a slope of -.4.",
            lambda rows: (
                numbers(rows, "slope", {"gate": "linear", "what": "beta_1 and tau"})[0] > -0.4
            ),
        ),
        OWN_DATA,
        alike="All are fitted by the same search, without a rate.",
    ),
    # lasting copies even better than Hecate's
    "hecate": lower(
        arm("Hecate", "excess", copies="Hecate"),
        arm("no copies", "excess", copies="plain"),
        arm("EPLB", "excess", copies="EPLB of the first batches"),
        first_is_less(
            "Lasting copies even the loads.",
            arm("", "excess", copies="EPLB of the first batches"),
            arm("", "excess", copies="plain"),
        ),
        OWN_TRACES,
        alike=PLACED,
    ),
    # as many terms in both; BM25 needs no training at all
    "lsr-idf": Design(
        arm("idf", "idf"),
        arm("flat", "flat"),
        Missing("BM25"),
        Missing("queries with terms drawn at random"),
        "topics and seeds",
    ),
    # films that no training saw, so that ids can only guess
    "m2trec": Design(
        arm("metadata", "cold among cold, HR@10 %", items_by="metadata"),
        arm("popularity", "cold among cold, HR@10 %", items_by="popularity"),
        arm("TF-IDF", "cold among cold, HR@10 %", items_by="nearest by TF-IDF of metadata"),
        Missing("metadata of other films"),
        SHARED,
    ),
    # the best of four placements of the same experts
    "moetuner": lower(
        arm("MoETuner", "imbalance", placement="MoETuner's programmes"),
        arm("experts in order", "imbalance", placement="experts in order"),
        arm("EPLB", "imbalance", placement="EPLB, no copies"),
        first_is_less(
            "ExFlow, which looks at transitions alone, does not even the loads.",
            arm("", "imbalance", placement="experts in order"),
            arm("", "imbalance", placement="ExFlow"),
        ),
        OWN_TRACES,
        alike=PLACED,
    ),
    # the judge is another model than the reward
    "onerec-preference": Design(
        arm("one round", "judge", model="after one round"),
        Missing("films drawn at random"),
        arm("supervised model", "judge", model="supervised"),
        Missing("a round with pairs at random"),
        SHARED,
    ),
    # of six models TSC finds the fewest bars
    "prosper-bars": Design(
        arm("TSC", "seeds with 9 or 10", bars_of="TSC", model="TSC"),
        arm("DictionaryLearning", "seeds with 9 or 10", bars_of="TSC", model="DictionaryLearning"),
        Missing("NMF, which finds all bars"),
        at_most(
            "seeds with 9 or 10",
            0,
            "DictionaryLearning misses the bars.",
            {"bars of": "TSC", "model": "DictionaryLearning"},
        ),
        OWN_DATA,
        alike="All are fitted by expectation and maximisation, without a rate.",
    ),
    # codecs at three rates; JPEG and its like are drawn alone
    "recombiner": Design(
        arm("RECOMBINER", "PSNR", codec="RECOMBINER"),
        arm("COIN", "PSNR", codec="COIN"),
        arm("COMBINER", "PSNR", codec="COMBINER"),
        Missing("no codec must win"),
        Missing("priors: twelve crops with one prior are its sample"),
    ),
    # within a point of all vectors, where a random choice loses half
    "slime": Design(
        arm("chosen by the question", "right", arm="chosen"),
        arm("chosen at random", "right", arm="chosen at random"),
        arm("all local vectors", "right", arm="all local"),
        first_is_less(
            "As many vectors at random lose more than the margin.",
            arm("", "right", arm="chosen at random"),
            arm("", "right", arm="all local"),
            0.98,
        ),
        SHARED,
    ),
    # the dense net in bfloat16 is faster than ours
    "sparse-bytenn": Design(
        arm("blocks of four rows", "times as fast", net="ours, 4 rows, 0.7"),
        arm("float32", "times as fast", net="OpenVINO fp32"),
        arm("bfloat16", "times as fast", net="OpenVINO bf16"),
        below(
            "As many weights in no blocks are slower than the dense net.",
            "times as fast",
            1,
            {"net": "ours, 1 row, 0.7"},
        ),
        "interleaved runs on one machine",
        alike=UNTRAINED,
    ),
    # items seen once, up to its capacity and beyond
    "sparsey-memory": Design(
        arm("Sparsey", "modules recalled", items="25"),
        arm("random codes", "by random codes", items="25"),
        arm("a list of all items", "by a list of all items", items="25"),
        at_most("modules recalled", 0.95, "Of 200 items it forgets some.", {"items": "200"}),
        OWN_DATA,
        alike=UNTRAINED,
    ),
    # a minimum over degrees stands against each of them
    "tutel": Design(
        arm("a degree for each batch", "times as fast"),
        Missing("a degree drawn at random"),
        Missing("the best single degree, which is 1 by definition"),
        Missing("a minimum cannot lose"),
        Missing("other simulators"),
        alike=UNTRAINED,
    ),
}
DESIGNS: Mapping[str, Design] = {**PICTURES, **TEXTS, **OTHERS}
