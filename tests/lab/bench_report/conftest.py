"""Results as the runner leaves them, without running anything."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from intarsia_lab.bench.report.records import Done, Failed, MethodName, RunResult, Setup, TaskName

HOSTILE = '<script>alert("x")</script> & 5_% | $x$'
TASKS = (
    ("natural", "fashion-mnist"), ("natural", "mnist"), ("natural", "open-clip-art"),
    ("natural", "tux-paint"), ("natural", "emoji-category"), ("specialised", "elpv-defect"),
    ("specialised", "elpv-type"), ("specialised", "textile"), ("structured", "dsprites-location"),
    ("structured", "dsprites-orientation"), ("structured", "object-count"),
    ("structured", "nearest-distance"), ("structured", "azimuth"), ("structured", "elevation"),
)  # fmt: skip
METHODS = (
    # name, label, gain, trained without head, seconds
    ("linear", "linear probe", 0.0, 0, 6.0),
    ("bitfit", "BitFit", 0.06, 37_000, 30.0),
    ("full", "full fine-tuning", 0.1, 21_600_000, 90.0),
    ("lora", "LoRA", 0.12, 147_456, 41.0),
    ("adaptformer", "AdaptFormer", 0.125, 152_832, 38.0),
    ("vpt-deep", "VPT deep", 0.09, 92_160, 44.0),
    ("ssf", "SSF", 0.12, 105_000, 36.0),
    ("mosa", "MoSA", 0.14, 153_216, 39.5),
)


def result(
    method: str = "mosa",
    task: str = "mnist",
    seed: int = 0,
    accuracy: float | None = 0.8,
    **fields: Any,
) -> RunResult:
    """Make a result; accuracy None = failed.  fields: label, group, protocol, model, suite,
    error, own.
    """
    protocol, model = fields.get("protocol", "honest"), fields.get("model", "vit-s")
    suite, trained = fields.get("suite", "mini"), fields.get("trained", 100)
    outcome = (
        Failed(fields.get("error", "MemoryError: killed"))
        if accuracy is None
        else Done(
            accuracy=accuracy, balanced_accuracy=accuracy, loss=0.5, trained=trained + 10,
            trained_without_head=trained, seconds=fields.get("seconds", 2.0), cpu_seconds=4.0,
            peak_bytes=10**9, own_task_accuracy=fields.get("own"),
        )
    )  # fmt: skip
    group = fields.get("group", "natural")
    return RunResult(
        key=f"{suite}-{protocol}-{model}-{method}-{task}-{seed}",
        task=TaskName(suite, group, task, group == "structured"),
        method=MethodName(method, fields.get("label", method.upper())),
        seed=seed,
        setup=Setup(protocol, model, fields.get("epochs", 20), {}, fields.get("tried", 0)),
        folder=f"runs/{method}-{task}-{seed}",
        outcome=outcome,
    )


def suite(
    tasks: Sequence[tuple[str, str]] = TASKS, seeds: int = 3, gaps: bool = False, **fields: Any
) -> list[RunResult]:
    """Every method on every task; gaps: one cell failed, and one was not run."""
    generator = np.random.default_rng(0)
    results: list[RunResult] = []
    for number, (group, task) in enumerate(tasks):
        start, luck = generator.uniform(0.35, 0.8), generator.normal(0, 0.02, len(METHODS))
        for i, (name, label, gain, trained, seconds) in enumerate(METHODS):
            for seed in range(seeds):
                mean = start + gain * (1.5 - start) + luck[i] + generator.normal(0, 0.008)
                accuracy: float | None = float(np.clip(mean, 0, 1))
                if gaps and (name, task, seed) == ("full", "azimuth", 1):
                    accuracy = None
                if gaps and (name, task) == ("vpt-deep", "textile"):
                    continue
                costs = {"label": label, "group": group, "trained": trained}
                costs |= {"seconds": seconds + number + seed} | fields
                results.append(result(name, task, seed, accuracy, **costs))
    return results


@pytest.fixture(scope="session")
def make_result() -> Callable[..., RunResult]:
    """Return `result`, which makes a result."""
    return result


@pytest.fixture(scope="session")
def make_suite() -> Callable[..., list[RunResult]]:
    """14 tasks, 8 methods, 3 seeds; see `suite`."""
    return suite


@pytest.fixture(scope="session")
def hostile() -> str:
    """Text that means something to HTML, Markdown and LaTeX."""
    return HOSTILE
