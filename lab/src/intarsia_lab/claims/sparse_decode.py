"""Tokens a second of SmolLM2, pruned and packed in int8, against dense bfloat16 in one loop."""

from __future__ import annotations

import copy
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from intarsia.data.language_models import language_model
from intarsia.decode.decoding import generate, stock_generate
from intarsia.formats import Bitmask, Dense
from intarsia.sparse.prune.pruner import sparsify
from intarsia.sparse.prune.pruners import Magnitude
from intarsia.sparse.swap.compress import compress

from ..kit import TIMED, Report, Result, Study
from ..kit.arms import result_of, threads

DENSITY = 0.5
TOKENS = 16  # of a turn, after one that does not count
TURNS = 3
PROMPTS = (
    "The ship left the harbour before dawn, and",
    "A list of the tools that a carpenter needs:",
    "It is a truth universally acknowledged, that",
)
TORCH, DENSE = "dense, bf16, torch's product", "dense, bf16, our kernel"
PACKED = "bitmask int8: blocks at .5, head whole"
HEAD = ("lm_head",)
Times = Callable[[nn.Module, Tensor], list[float]]


def arms() -> Iterator[tuple[str, nn.Module, Any]]:
    """Yield SmolLM2 in several forms of its weights: name, model, tokenizer."""
    model, tokenizer = language_model("smollm2", progress=lambda _: None)
    yield "dense, fp32, torch's product", model, tokenizer
    # the dense rival in the width that its product is fastest in
    half = copy.deepcopy(model).bfloat16()
    yield TORCH, half, tokenizer
    # our own kernel, dense: what sparsity adds, and not the kernel
    yield DENSE, packed(packed(copy.deepcopy(half), Dense()), Dense(), HEAD), tokenizer
    sparsify(half, Magnitude(DENSITY))  # which weights are kept does not matter to the time
    blocks_packed = packed(copy.deepcopy(half), Bitmask(values="int8"))
    yield "bitmask int8: blocks at .5; head bf16", packed(blocks_packed, Dense(), HEAD), tokenizer
    all_packed = packed(half, Bitmask(values="int8"))
    yield PACKED, packed(all_packed, Bitmask(values="int8"), HEAD), tokenizer


def packed(model: nn.Module, form: Any, layers: Sequence[str] | None = None) -> nn.Module:
    """Return a model with its layers in a storage format, even where that is slower.

    form: the format; layers: their names, None = all linear layers but the head.
    """
    return compress(model, form, layers=layers, force=True)


def ours(model: nn.Module, ids: Tensor) -> list[float]:
    """Return CPU seconds of each token after the first, by this library's `generate`.

    model: SmolLM2 in some form; ids: (1, T), the prompt.
    """
    clock: list[float] = []
    generate(model, ids, TOKENS + 1, on_token=lambda _: clock.append(time.process_time()))
    return [b - a for a, b in itertools.pairwise(clock)]


def transformers_own(model: nn.Module, ids: Tensor) -> list[float]:
    """Return CPU seconds of a token by transformers' own `generate`, one mean of 16 tokens.

    model: SmolLM2 in some form; ids: (1, T), the prompt.
    """
    clock = time.process_time()
    # two lengths: their difference has no prompt in it
    stock_generate(model, ids, 2)
    middle = time.process_time()
    stock_generate(model, ids, TOKENS + 2)
    ended = time.process_time()
    return [((ended - middle) - (middle - clock)) / TOKENS]


def times_of(prompt: str, report: Report, stock: bool = True) -> Mapping[str, float]:
    """Return the median CPU seconds of a generated token, by form of the weights.

    prompt: text to continue; stock: time transformers' own `generate`, too.
    """
    with threads(1):
        loaded = list(arms())
        times_by_job: dict[str, list[float]] = {}
        # arms take turns, so that the load of the machine meets all of them
        for turn in range(TURNS + 1):
            for name, model, tokenizer in loaded:
                ids = tokenizer(prompt, return_tensors="pt").input_ids
                jobs: dict[str, Times] = {name: ours}
                if stock and name in (TORCH, PACKED):
                    jobs[f"{name}, transformers' generate"] = transformers_own
                for job, times in jobs.items():
                    durations = times(model, ids)
                    if turn:  # the first warms up
                        times_by_job.setdefault(job, []).extend(durations)
            report(f"turn {turn} of {TURNS}")
    return {name: statistics.median(values) for name, values in times_by_job.items()}


def run(seeds: tuple[int, ...], report: Report) -> Result:
    """Return tokens per second of SmolLM2 pruned and packed in int8, over dense bfloat16, by seed.

    A seed is a prompt. Half of the weights of the blocks are kept, behind a bitmask; one thread,
    CPU time. The least ratio is judged.
    """
    # three prompts in turn: more seeds repeat them
    cells = [times_of(PROMPTS[seed % len(PROMPTS)], report) for seed in seeds]
    rows = [
        {
            "weights": name,
            "tokens / CPU s": f"{statistics.mean(1 / c[name] for c in cells):.1f}",
            "over dense bf16": f"{statistics.mean(c[DENSE] / c[name] for c in cells):.2f}",
        }
        for name in cells[0]
    ]
    note = (
        f"One thread, CPU time, median of {TURNS * TOKENS} tokens after a short prompt; arms take "
        "turns. The head is never pruned."
    )
    return result_of([c[DENSE] / c[PACKED] for c in cells], rows, note, min)


CLAIMS = (
    Study(
        "sparse-decode",
        sentence="A language model with half of its weights, kept in int8 behind a bitmask, "
        "decodes twice "
        "as fast as dense in bfloat16, token by token on a CPU.",
        baseline="SmolLM2 in bfloat16 by our own dense kernel in the same loop; the least over "
        "prompts",
        target=2.0,
        sense=">=",
        control=TIMED,
        measure=run,
        minutes=6,
    ),
)
