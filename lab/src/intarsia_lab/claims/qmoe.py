"""QMoE: size and time of ternary words, and what GPTQ by routed rows is worth (2310.16795)."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from intarsia.core import nbytes
from intarsia.data.language_models import language_model
from intarsia.data.texts import load_texts
from intarsia.folders.verbs import upcycle
from intarsia.formats import GroupSparse, Ternary
from intarsia.formats.ternary import entropy, levels_of, nearest
from intarsia.kernels.native import instructions
from intarsia.methods.qmoe import Qmoe, expert_stops
from intarsia.routers import TopK
from intarsia.sparse.prune.matrices import of_experts
from intarsia.sparse.prune.progress import Kept
from intarsia.sparse.prune.rows import batched
from intarsia.sparse.prune.walk import walk_blocks

from ..bench.sparse import (
    COPIES,
    MOST_COPIES,
    OURS,
    REPEATS,
    SIDE,
    interleaved,
    of_format,
    of_torch,
)
from ..kit import COUNTED, TIMED, Effect, Report, Result, Study, below
from ..kit.arms import result_of, threads
from ..kit.stored import StoredResults
from ..materials.token_loss import nll

stored = StoredResults(__file__)

ZEROS = 0.885  # of the paper's models
CALIBRATION, HELD_OUT, LENGTH = 16, 24, 256  # rows, rows, tokens
EXPERTS, EVERY = 8, 5  # of each mixture; blocks from one mixture to the next


def drawn(seed: int, side: int = SIDE) -> tuple[Tensor, Tensor]:
    """Draw ternary weights with 88.5 % zeros; return their digits and their levels.

    Digits 0, 1 and 2 (side, side) stand for zero and the two levels of a row, (side, 2), one below
    and one above 0. seed: of the draws; side: of the square matrix.
    """
    draw = torch.Generator().manual_seed(seed)
    # ternary digits as in the paper's models: most of them 0, the others even
    odds = torch.tensor([ZEROS, (1 - ZEROS) / 2, (1 - ZEROS) / 2])
    digits = torch.multinomial(odds, side * side, True, generator=draw).view(side, side)
    levels = torch.rand(side, 2, generator=draw) * torch.tensor([-1.0, 1.0])
    return digits.to(torch.uint8), levels


def of_size(seeds: tuple[int, ...], report: Report) -> Result:
    """Return how many times smaller coded ternary weights are than bfloat16, by seed.

    All that is stored counts: code words, offsets of rows, levels. The matrices are random, 4,096
    wide, with 88.5 % zeros; the least ratio is judged. The table also has rounded weights of
    SmolLM2.
    """
    form, smaller, table = Ternary(), list[float](), list[dict[str, Any]]()
    for seed in seeds:
        digits, levels = drawn(seed)
        stored = form.stored(digits, levels)
        # two bytes a weight, over all bytes that are kept: codes, offsets, levels
        smaller.append(2 * digits.numel() / nbytes(stored))
        table.append(_sized(f"{SIDE} x {SIDE}, 88.5 % zeros, seed {seed}", digits, stored))
        report(f"seed {seed}: {smaller[-1]:.2f} times")
    model: Any = language_model("smollm2", progress=lambda _: None)[0]
    for name in ("gate_proj", "down_proj"):
        weight = getattr(model.model.layers[15].mlp, name).weight.detach().float()
        levels = levels_of(weight)
        digits = nearest(weight, levels)
        table.append(
            _sized(f"SmolLM2, {name} of block 15, rounded", digits, form.stored(digits, levels))
        )
    # how far the code is from what no coder of digits can pass
    worst = max(float(row["codes over entropy"]) for row in table[: len(seeds)])
    note = (
        f"Codes take {worst:.3f} times the entropy of the digits at most, which no coder of single "
        "digits can pass (wanted: 1.2). Rows of 576 pay 12 bytes each for offsets and levels."
    )
    return result_of(smaller, table, note, min)


def _sized(title: str, digits: Tensor, stored: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return a row on the size of coded ternary weights.

    digits: (out, in), 0 to 2; stored: the tensors that a file would hold.
    """
    share = float((digits == 0).float().mean())
    # a code word has 16 bits
    codes = 16 * len(stored["codes"]) / digits.numel()
    return {
        "weights": title,
        "zeros": f"{share:.3f}",
        "bits of codes": f"{codes:.3f}",
        "codes over entropy": f"{codes / entropy(share):.3f}",
        "bits in all": f"{8 * nbytes(stored) / digits.numel():.3f}",
        "times smaller than bf16": f"{2 * digits.numel() / nbytes(stored):.2f}",
    }


@threads(1)
def of_time(seeds: tuple[int, ...], report: Report) -> Result:
    """Return the time of a product with coded ternary weights over that with bfloat16, by seed.

    One row of inputs times a 4,096-wide matrix; the code words are decoded on the way. CPU seconds
    of one thread; below 1 the coded product is faster.
    """
    form, ratios, table = Ternary(), list[float](), list[dict[str, Any]]()
    for seed in seeds:
        # the same numbers on both sides: only their storage differs
        weight = form.decode(form.stored(*drawn(seed)), (SIDE, SIDE))
        x = torch.randn(1, SIDE, generator=torch.Generator().manual_seed(seed))
        entries = [
            of_torch("torch bf16", torch.bfloat16, weight, x, COPIES),
            # more of them, since each is a twentieth as large: none may stay in a cache
            of_format("ternary", OURS, form, weight, x, MOST_COPIES),
        ]
        dense, coded = interleaved(entries, REPEATS)
        ratios.append(coded / dense)
        times = {"torch bf16": f"{dense:.2f} ms", "ternary": f"{coded:.2f} ms"}
        table.append({"seed": seed, **times, "ratio": f"{ratios[-1]:.3f}"})
        report(f"seed {seed}: {ratios[-1]:.3f}")
    note = (
        f"One row of inputs, {SIDE} x {SIDE}, matrices in no cache, CPU time on one thread, "
        f"best of interleaved repeats; {instructions()}."
    )
    return result_of(ratios, table, note)


def of_experts_of(seeds: tuple[int, ...], report: Report) -> Result:
    """Return the output error of ternary rounding over GPTQ's, mean over layers, by seed.

    Both turn the experts of a mixture upcycled from SmolLM2 into ternary weights; GPTQ corrects
    errors on the calibration rows that are routed to each expert. The least draw is judged; above 1
    GPTQ is better. The table has losses on held-out text, in nats per token.
    """
    draws: list[dict[str, Any]] = []
    for seed in seeds:
        inputs = {"seed": seed}
        draws.append(stored("qmoe", inputs, partial(_mixture, seed)))
        report(f"seed {seed}: {draws[-1]['ratio']:.2f}")
    ratios = tuple(f["ratio"] for f in draws)
    table = [
        {"seed": seed, **{name: f"{value:.3f}" for name, value in f["loss"].items()}}
        for seed, f in zip(seeds, draws, strict=True)
    ]
    # an output error could be small and the loss no better: both are told
    better = sum(f["loss"]["ternary, GPTQ"] < f["loss"]["ternary, rounded"] for f in draws)
    note = (
        f"SmolLM2-135M upcycled to {EXPERTS} experts in every {EVERY}th block; {CALIBRATION} rows "
        f"of {LENGTH} tokens of Austen, loss on {HELD_OUT} others. GPTQ has the lower loss in "
        f"{better} of {len(seeds)} draws (wanted: all). "
        f"{statistics.mean(f['zeros'] for f in draws):.2f} of the weights are 0."
    )
    return result_of(ratios, table, note, min)


def _mixture(seed: int) -> dict[str, Any]:
    """Quantise the experts of a mixture in several ways, for one draw of calibration rows."""
    model, tokenizer = language_model("smollm2", progress=lambda _: None)
    # step 1: copies of the MLP of every fifth block become eight experts
    blocks = range(EVERY - 1, len(model.model.layers), EVERY)  # pyright: ignore
    mixed: Any = upcycle(model, TopK(EXPERTS), layers=list(blocks), seed=seed)
    mixed.requires_grad_(False).eval()
    texts = load_texts("austen", tokenizer, length=LENGTH, progress=lambda _: None)
    order = torch.randperm(len(texts.train), generator=torch.Generator().manual_seed(seed))
    rows = batched([texts.train[int(i)] for i in order[:CALIBRATION]], 4)
    test = [texts.test[i] for i in range(HELD_OUT)]
    state = {n: t.clone() for n, t in mixed.state_dict().items()}
    loss = {"dense experts": nll(mixed, test)}
    # step 2: a dense code of 4 bits, as a rival of the losses
    form = GroupSparse(group=64)
    for matrix in dict(of_experts(mixed)).values():
        weight = matrix.read()
        matrix.write(form.decode(form.encode(weight), weight.shape))
    loss["int4, groups of 64"] = nll(mixed, test)
    # step 3: ternary experts, by rounding and by GPTQ, from the same weights
    layer_rows: list[dict[str, Any]] = []
    for start in ("rtn", "gptq"):
        mixed.load_state_dict(state)
        method = Qmoe(start=start)
        calibration_rows = rows if method.needs else []
        edit = partial(method._edit, {})  # in place, nothing is packed
        stops = expert_stops(mixed, ())
        layer_rows = walk_blocks(
            mixed, stops, calibration_rows, edit, needs=method.needs, kept=Kept(None, {})
        )
        loss[f"ternary, {'GPTQ' if start == 'gptq' else 'rounded'}"] = nll(mixed, test)
    ratio = statistics.mean(row["error_rounded"] / row["error"] for row in layer_rows)
    zeros = statistics.mean(1 - row["density"] for row in layer_rows)
    return {"ratio": ratio, "loss": loss, "zeros": zeros}


study = partial(Study, sense=">=", control=COUNTED)

CLAIMS = (
    study(
        "qmoe-size",
        system="QMoE",
        unit="times smaller",
        work="4096 x 4096 matrices of experts",
        sentence="Words of ternary digits (QMoE, arXiv:2310.16795) are twenty times smaller than "
        "bfloat16 where 88.5 % of the weights are 0, offsets and levels counted: drawn matrices; "
        "two of SmolLM2's own, rounded to as many zeros and more, are 17 and 24 times smaller.",
        baseline="the same 4096 x 4096 matrices in bfloat16; the least of the seeds",
        target=20.0,
        effect=Effect(20.0, "arXiv:2310.16795, abstract: 20x compression", null=1.0),
        measure=of_size,
    ),
    study(
        "qmoe-time",
        sentence="A product that decodes ternary words on the way takes half the time of a dense "
        "one in bfloat16 (QMoE, arXiv:2310.16795).",
        baseline="torch in bfloat16, one row, matrices in no cache",
        target=0.5,
        sense="<=",
        measure=of_time,
        control=TIMED,
        # a ratio of times differs by a tenth from run to run
        seeds=tuple(range(8)),
        minutes=2,
    ),
    study(
        "qmoe-gptq",
        sentence="Ternary experts that make up for their errors on routed rows (QMoE, "
        "arXiv:2310.16795, section 3.2) err less than those rounded by themselves (scaled down: "
        "SmolLM2-135M with 8 experts in every fifth block).",
        baseline="output error of rounding over that of GPTQ, mean over stacks; the least draw",
        target=1.5,
        control=below(
            "The dense experts are better than a uniform guess among 49,152 tokens by 5 nats.",
            "dense experts",
            5.8,
        ),
        measure=of_experts_of,
        needs="long",
        minutes=25,
    ),
)
