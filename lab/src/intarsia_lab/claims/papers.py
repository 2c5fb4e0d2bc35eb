"""The own effect of each headline's paper, in the paper's unit: figure, conditions and source.

A headline without a row is refused, see `ledger.claims`. What these are in the claim's unit, where
that can be said, is the `effect` of its study.
"""

from __future__ import annotations

from typing import NamedTuple


class PaperFigure(NamedTuple):
    """A paper's own effect, its conditions, and where it says so."""

    figure: str
    conditions: str
    source: str


ABSTRACT = "abstract"
REPOSITORY = "official repository"
NOT_FOUND = "abstract; no table was found"
NONE = "none"

_P = PaperFigure
PAPERS: dict[str, PaperFigure] = {
    "bdwp": _P("-0.56 points of accuracy", "2:8 both ways, mean of several nets", ABSTRACT),
    "bi": _P(
        "77.0 at 212.9 KB, 73.8 at 6.8 KB; prompts 72.0, full training 68.9",
        "mean of VTAB-1k, ViT-B/16",
        REPOSITORY,
    ),
    "comet": _P(
        "up to +13 % of AUC over hash and top-k, +9 % over DSelect-k",
        "COMET+, with the local search",
        ABSTRACT,
    ),
    "dass-by-hand": _P(
        "+7.91 points (81.35 and 73.44), 3.87 times as fast", "sparse MobileNet-v2", ABSTRACT
    ),
    "deepspeed-moe": _P(
        "48.37 and 48.01 at .60 of the parameters",
        "mean of six tasks without training on them, 31 and 52 billion parameters",
        "abstract; table of tasks",
    ),
    "dsl": _P("comparable at lower cost, without a figure", "three models, six sets", NOT_FOUND),
    "dsnot": _P(
        "perplexity 10.69 to 10.22; nine models all better",
        "masks of Wanda, 60 % zeros, LLaMA-7B, WikiText-2",
        "abstract; official repository, a table as a picture",
    ),
    "evomoe": _P("better than Switch, without a figure", "RoBERTa, GPT, translation", NOT_FOUND),
    "expertflow-step": _P(
        "up to 93.72 % of memory saved, 2 to 10 times as fast", "one GPU, offloading", ABSTRACT
    ),
    "fast-convnets": _P(
        "1.3 to 2.4 times as fast at equal accuracy",
        "MobileNets and EfficientNet, Snapdragon 835",
        ABSTRACT,
    ),
    "gaussian-moe": _P(
        "errors fall as a power of the samples with the activation gate; as slowly as 1 / log n "
        "with the linear one",
        "theory",
        ABSTRACT,
    ),
    "gqsa": _P(
        "1.26 times as fast as 2 bits, 2.35 as 2:4; accuracy above both",
        "4 bits and 50 % zeros, LLaMA, Qwen, OPT",
        ABSTRACT,
    ),
    "hecate": _P(
        "1.26 to 1.78 times as fast as plain expert parallelism",
        "time of a step, 64 experts, 16 and 32 GPUs",
        "sections 5.2 and 5.3",
    ),
    "lsr-idf": _P(
        "+3.3 points of nDCG@10, 1.1 times BM25's time",
        "BEIR, against SPLADE-v3-Doc; idf, ensemble and pre-training together",
        ABSTRACT,
    ),
    "llava-mole": _P(
        "mixing costs 306.3 to 295.8, MoLE above plain LoRA with twice the samples",
        "LLaVA-1.5, three domains",
        "notes of third parties",
    ),
    "lt-sft": _P(
        "a large margin over adapters, up to 3.7 % at second hand",
        "transfer between languages, multilingual BERT",
        "abstract; notes of third parties",
    ),
    "m2trec": _P("significant gains, without a figure", "two shops", NOT_FOUND),
    "mixlora": _P(
        "77.6 against 71.8 of LoRA and 75.3 of DoRA",
        "mean of eight tasks, LLaMA2-7B, 2.9 % of parameters",
        REPOSITORY,
    ),
    "moa": _P(
        "perplexity 4.48 to 3.75, 4.10 to 3.62, 4.79 to 4.49, 4.26 to 3.75",
        "density .5, 8,000 to 12,000 tokens, against one window; four models",
        "table 4",
    ),
    "moe-x": _P(
        "coverage .428 against .356 of a dense net, reconstruction .840 against .608",
        "chess; the router alone moves them by .010 and .011",
        "tables 2 to 4",
    ),
    "moetuner": _P(
        "9.3 % and 17.5 % less time", "Mixtral-8x7B, 8 and 16 GPUs, experts in order", ABSTRACT
    ),
    "momentum": _P("lower perplexity, without a figure", "WikiText-103, ImageNet", NOT_FOUND),
    "mos-saving": _P(
        "about 8 times fewer parameters at equal quality", "LLaMA2-7B, five tests", ABSTRACT
    ),
    "mosa": _P(
        "89.9 against 88.6 of AdaptFormer; VTAB 71.4",
        "ViT-B/16, mean of the five sets of FGVC",
        "tables of DA-VPT and SNELL",
    ),
    "onerec-preference": _P(
        "mean watch time .0991 to .1025, online +1.68 %",
        "a model of a billion weights, by its own reward",
        "tables 1 and 2",
    ),
    "poly-heads": _P(
        "up to 3 % above its baselines", "MHR-mu, T0 and SuperNI, new tasks", ABSTRACT
    ),
    "prosper-bars": _P(NONE, "a library", NONE),
    "qmoe-size": _P(
        "20 times smaller, .8 bits a weight", "Switch Transformer of 2,048 experts", ABSTRACT
    ),
    "random-search": _P("no more accurate, no faster", "networks of dense layers", ABSTRACT),
    "read-me-gate": _P(
        "+10.1 % on MMLU, 6.1 % less time; experts of a batch 5.08 to 3.51",
        "LLaMA2-7B, 4.7 billion weights active",
        "abstract; tables 3 and 4",
    ),
    "recombiner": _P(
        "above COMBINER and codecs of autoencoders at low rates",
        "CIFAR-10, curves without a number",
        "figure 3",
    ),
    "rmoe": _P(
        "bits 1.184 to 1.183 at 6 layers, 1.132 to 1.125 at 12, 1.108 to 1.089 at 24",
        "enwik8",
        "official repository, notebook of depths",
    ),
    "s2ft": _P(
        "+4.6 % and +1.3 % over LoRA, +11.5 % over full training out of domain",
        "LLaMA of 7 billion weights, common sense and arithmetic",
        ABSTRACT,
    ),
    "sat": _P("1.75 times as fast on average", "2:8 against dense, VCU1525", ABSTRACT),
    "semoe-bucket": _P(
        "+33 % of training, +13 % of inference over DeepSpeed", "12 billion, 48 A100", ABSTRACT
    ),
    "seuf-expert": _P(
        "utility .5485 by the first expert, .544 by the 13th, .4262 by the 23rd, of .5548",
        "DeepSeek-V2-Lite, equal forgetting of RWKU",
        "tables 2 to 5",
    ),
    "slime": _P(
        "choice by the question +.0004 and +.0025 over as many vectors without it",
        "mean of five tests, Llama3-8B",
        "table 3",
    ),
    "sms": _P("significant gains, without a figure", "ImageNet, WMT, CityScapes", NOT_FOUND),
    "sparse-ift": _P("+3.5 points; -0.4 perplexity", "ResNet-18, ImageNet; GPT-3 Small", ABSTRACT),
    "sparse-bytenn": _P(
        "1.27 times as fast as dense, -.224 % of accuracy",
        "MobileNet-v1, 30 % zeros, Snapdragon 855",
        ABSTRACT,
    ),
    "sparsey-memory": _P(
        "91 % of MNIST, 220 s on one thread", "200 pictures of each class", "author's page"
    ),
    "squarehead": _P(
        "75 % sparse without a drop; GSM8K 28.2 dense, 28.8 at 60 %",
        "MPT-7B",
        "abstract; model cards",
    ),
    "stack-pairs": _P(NONE, "a survey", NONE),
    "transport-loss": _P("direct control of the zeros", "V-MoE, without a figure", NOT_FOUND),
    "tutel": _P(
        "4.96 and 5.75 times as fast a layer; switching alone is not printed",
        "16 and 2,048 A100, against Fairseq",
        "abstract; section 5",
    ),
    "uni-moe": _P(
        "VQAv2 67.35 to 68.42, RACE-Audio 30.78 to 47.08",
        "7 billion weights, dense and with experts",
        "official repository, table 9",
    ),
    "union-of-experts": _P(
        "-2.38 perplexity at 76 % of the operations; pictures +1.75 % at equal ones",
        "against the best other mixture",
        REPOSITORY,
    ),
    "zcode-m3-merge": _P(
        "models 8 times larger on the same hardware", "10 billion weights, 64 experts", ABSTRACT
    ),
}
