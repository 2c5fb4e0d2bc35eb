"""Arms of the experiment on unions of experts: their training and their costs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from intarsia.core.modes import evaluating
from intarsia.fitting import evaluate, fit
from intarsia.folders.verbs import apply

from ..kit import Report, Result
from ..kit.arms import result_of, shown, threads
from ..kit.stored import StoredResults
from .cost import operations

stored = StoredResults(__file__)

SET, SIZE, IMAGES, TEST, EPOCHS, BATCH, LR = "fashion-mnist", 56, 600, 1000, 3, 32, 1e-4
FORWARDS = 5  # forwards; the fastest counts
DENSE, UNION, SWITCH = "dense", "union of experts", "Switch"
Cell = Mapping[str, float]
Found = Mapping[str, Cell]


def seconds(model: nn.Module, x: Tensor) -> float:
    """Return the CPU seconds of a model's forward, the fastest of five.

    x: the inputs.
    """
    best = float("inf")
    with torch.no_grad(), evaluating(model):
        # once more than counts, to fill caches
        for _ in range(FORWARDS + 1):
            start = time.process_time()
            model(x)
            best = min(best, time.process_time() - start)
    return best


def trained(
    model: Any, change: Any, train: Any, test: Any, x: Tensor, seed: int, **options: Any
) -> tuple[Any, dict[str, float]]:
    """Train a model and return its scores and its costs.

    change: applied to the model first, None = the model as it is; train, test: data; x: inputs on
      which a forward is counted and timed; seed: of the training; options: of `fit`. Costs: "macs"
      (multiply-adds) and "seconds" of a forward of x, and "training", CPU seconds.
    """
    if change is not None:
        model = apply(model, change, seed=seed)
    start = time.process_time()
    fit(model, train, seed=seed, clip=1.0, trackers=(), **options)
    # CPU time, which other processes of the machine change little
    spent = time.process_time() - start
    scores = evaluate(model, test, batch_size=32)
    # a multiply-add is two operations
    macs = operations(model, x) / 2
    return scores, {"macs": macs, "seconds": seconds(model, x), "training": spent}


def noise(seed: int, count: int = 64) -> Tensor:
    """Return random pictures on which a forward is counted and timed, (count, 3, SIZE, SIZE)."""
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def arm_cell(
    name: str, seed: int, settings: list[Any], run: Callable[[], Cell], report: Report
) -> Cell:
    """Return the result of one method and seed, from the cache or by a run on one thread.

    name: of the method; settings: what the result depends on besides; run: computes it; report:
      prints progress.
    """

    def told() -> Cell:
        """Run the method on one thread, and report its result."""
        with threads(1):
            result = run()
        report(f"  {name}, seed {seed}: {result}")
        return result

    inputs = {"arm": name, "seed": seed, "settings": settings}
    return stored("union_of_experts", inputs, told)


def judge(
    seeds: tuple[int, ...],
    report: Report,
    *,
    on: Callable[[int, Report], Found],
    figure: Callable[[Found], float],
    score: str,
    note: str,
) -> Result:
    """Return one number for each seed, with a table of all models over the seeds.

    on: (seed, report) -> the results of all models; figure: these results -> the number; score:
      title of the score's column; note: below the table.
    """
    # all models of a seed, seed by seed
    results = [on(seed, report) for seed in seeds]
    table = [
        {
            "model": name,
            score: shown([by_arm[name]["score"] for by_arm in results], ".3f"),
            "MACs": f"{results[0][name]['macs']:.3e}",
            # costs do not depend on the seed
            "of the dense": f"{results[0][name]['macs'] / results[0][DENSE]['macs']:.3f}",
            "CPU s a forward": shown([by_arm[name]["seconds"] for by_arm in results], ".3f"),
            "CPU s of training": shown([by_arm[name]["training"] for by_arm in results], ".0f"),
        }
        for name in results[0]
    ]
    return result_of([figure(by_arm) for by_arm in results], table, note)
