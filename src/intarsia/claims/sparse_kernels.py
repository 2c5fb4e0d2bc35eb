"""Sparse kernels against the roofline: bytes read a second, our own dense product, and tokens."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import torch

from ..bench.sparse import BASELINE, OURS, Contender, interleaved, of_format
from ..core import Claim, Format, Result
from ..core.claim import Report
from ..core.errors import ConfigError
from ..data.language_models import language_model
from ..formats import Bitmask, Dense
from ..hosts.decoding import generate
from ..hosts.prune.pruner import sparsify
from ..hosts.prune.pruners import Magnitude
from ..hosts.swap.compress import compress
from ..kernels import native
from ..kernels.native.floor import read_bandwidth
from .study import result_of

SIDE, COPIES, REPEATS, DENSITY = 4096, 8, 15, 0.5
WIDE = "AVX-512 with VNNI"
FORMS: Mapping[str, Format] = {"bitmask bf16": Bitmask("bf16"), "bitmask int8": Bitmask("int8")}
TOKENS, TURNS = 32, 3
PROMPT = "It is a truth universally acknowledged, that"


def _alone() -> None:
    """One thread, and kernels.  Raises: ConfigError without."""
    torch.set_num_threads(1)
    if native.load() is None:
        fix = "Install gcc or clang, or pip install 'intarsia[compiler]'."
        raise ConfigError("kernels", got=native.why(), want="compiled ones", fix=fix)


def bar(wide: float, narrow: float) -> float:
    """The bar of this machine's instruction set."""
    return wide if native.instructions() == WIDE else narrow


@lru_cache
def timed(seed: int) -> tuple[dict[str, tuple[float, int]], float]:
    """Milliseconds and bytes of each product, and the bytes/s of reads before and after them."""
    _alone()
    made = torch.Generator().manual_seed(seed)
    weight = torch.randn(SIDE, SIDE, generator=made) / SIDE**0.5
    kept = torch.rand(SIDE, SIDE, generator=made) < DENSITY
    x = torch.randn(1, SIDE, generator=made)
    entries: list[Contender] = [of_format("dense bf16", BASELINE, Dense(), weight, x, COPIES)]
    entries += [of_format(n, OURS, f, weight * kept, x, COPIES) for n, f in FORMS.items()]
    before = read_bandwidth()
    spent = interleaved(entries, REPEATS)
    floor = max(before, read_bandwidth())
    return {e.name: (ms, e.bytes) for e, ms in zip(entries, spent, strict=True)}, floor


def _row(seed: int) -> dict[str, str]:
    found, floor = timed(seed)
    row = {"seed": str(seed), "read GB/s": f"{floor / 1e9:.1f}"}
    for name, (ms, size) in found.items():
        rate = size / ms * 1e3
        row[name] = f"{ms:.2f} ms, {rate / 1e9:.1f} GB/s, {rate / floor:.2f} of the floor"
    return row


def of_bandwidth(seeds: tuple[int, ...], report: Report) -> Result:
    """The lesser share of the read bandwidth of the two bitmasks, over its bar."""
    values: list[float] = []
    for seed in seeds:
        found, floor = timed(seed)
        shares = [found[n][1] / found[n][0] * 1e3 / floor for n in FORMS]
        values.append(min(shares) / bar(0.70, 0.60))
        report(f"seed {seed}: {_row(seed)}")
    return result_of(values, [_row(seed) for seed in seeds], _note())


def over_dense(seeds: tuple[int, ...], report: Report) -> Result:
    """Times as fast as our own dense bfloat16, over its bar."""
    values: list[float] = []
    for seed in seeds:
        found, _ = timed(seed)
        values.append(found["dense bf16"][0] / found["bitmask bf16"][0] / bar(1.7, 1.5))
        report(f"seed {seed}: {_row(seed)}")
    return result_of(values, [_row(seed) for seed in seeds], _note())


def _note() -> str:
    return (
        f"Built for {native.instructions()}; one thread, CPU time, best of {REPEATS} interleaved "
        f"repeats over {COPIES} copies of {SIDE}x{SIDE}, {COPIES * SIDE * SIDE * 4 >> 20} MiB as "
        "float32; random masks and weights. The floor is read in the same process."
    )


@lru_cache
def _models() -> tuple[dict[str, Any], Any]:
    """SmolLM2 pruned to half by magnitude, its layers and its head in either format."""
    _alone()
    made: dict[str, Any] = {}
    ids: Any = None
    for name, form in (("dense bf16", Dense()), ("bitmask int8", Bitmask("int8"))):
        model, tokenizer = language_model("smollm2")
        sparsify(model, Magnitude(density=DENSITY))
        made[name] = compress(model, form, layers=["*", "lm_head"], force=True)
        ids = tokenizer(PROMPT, return_tensors="pt").input_ids
    return made, ids


def tokens(seeds: tuple[int, ...], report: Report) -> Result:
    """CPU seconds of a token with our own dense bfloat16 over those with int8 bitmasks."""
    models, ids = _models()
    values: list[float] = []
    rows: list[dict[str, str]] = []
    for seed in seeds:
        best = {name: _seconds(lambda m=m: generate(m, ids, TOKENS)) for name, m in models.items()}
        values.append(best["dense bf16"] / best["bitmask int8"])
        row = {n: f"{TOKENS / s:.1f} tokens/s" for n, s in best.items()}
        rows.append({"seed": str(seed), **row})
        report(str(rows[-1]))
    note = (
        f"SmolLM2-135M, {TOKENS} tokens behind a prompt of {ids.shape[1]}, the same loop; layers "
        "and head in the format; CPU time on one thread, best of "
        f"{TURNS}. Seeds repeat the measurement: nothing is drawn. Built for "
        f"{native.instructions()}."
    )
    return result_of(values, rows, note)


def _seconds(run: Callable[[], object]) -> float:
    found: list[float] = []
    for _ in range(TURNS):
        started = time.thread_time()
        run()
        found.append(time.thread_time() - started)
    return min(found)


CLAIMS = (
    Claim(
        "sparse-kernels",
        sentence="Products of a row with half of the weights, in bfloat16 and in int8, read their "
        "bytes nearly as fast as memory gives them.",
        baseline="0.70 of the measured read bandwidth (0.60 with AVX2), 4096x4096 not in cache; "
        "the lesser of both, over that",
        bar=1.0,
        sense=">=",
        minutes=1,
        run=of_bandwidth,
    ),
    Claim(
        "sparse-kernels-dense",
        sentence="Half of the weights in bfloat16 are multiplied faster than all of them, by "
        "kernels of the same make.",
        baseline="1.7 times as fast as our own dense bfloat16 (1.5 with AVX2), over that",
        bar=1.0,
        sense=">=",
        minutes=1,
        run=over_dense,
    ),
    Claim(
        "sparse-kernels-tokens",
        sentence="A small language model with half of its weights in int8 decodes at twice the "
        "rate that it has with all of them in bfloat16.",
        baseline="our own dense bfloat16 in the same loop; times as many tokens a second",
        bar=2.0,
        sense=">=",
        minutes=3,
        run=tokens,
    ),
)
