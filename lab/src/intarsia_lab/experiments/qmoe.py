"""QMoE: size and time of ternary words, and what GPTQ by routed rows is worth (2310.16795)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from intarsia.core import nbytes
from intarsia.data.language_models import language_model
from intarsia.formats import Ternary
from intarsia.formats.ternary import entropy, levels_of, nearest
from intarsia.kernels.native import instructions

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
from ..kit import Effect, Report, Result, Study
from ..kit.arms import result_of, threads
from ..kit.stored import StoredResults

stored = StoredResults(__file__)

ZEROS = 0.885  # of the paper's models


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


study = partial(Study, system="QMoE", arxiv="2310.16795")

STUDIES = (
    study(
        "qmoe-size",
        question="How much smaller are words of ternary digits than bfloat16?",
        effect=Effect(
            "20 times smaller, .8 bits a weight",
            "Switch Transformer of 2,048 experts",
            "abstract",
            sign=1,
            values=(20.0,),
            null=1.0,
        ),
        work="drawn 4096 x 4096 matrices of which 88.5 % are 0",
        baseline="the same matrices in bfloat16, offsets and levels counted",
        unit="times smaller",
        differs="Sizes alone: no loss is held. Two of SmolLM2's matrices are 17 and 24 times "
        "smaller.",
        measure=of_size,
    ),
    study(
        "qmoe-time",
        question="Is a product that decodes ternary words faster than a dense one?",
        effect=Effect(
            "less than 5 % slower from end to end", "one GPU", "abstract", sign=0, null=1.0
        ),
        work="4096 x 4096 matrices in no cache, one row",
        baseline="torch in bfloat16",
        unit="times the time",
        differs="A CPU, where a product waits for its bytes.",
        measure=of_time,
        seeds=tuple(range(8)),
    ),
)
