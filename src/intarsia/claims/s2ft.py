"""S2FT against LoRA of its size, each at its own best rate: what it forgets, what it learns."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

from torch import nn
from torch.utils.data import TensorDataset

import intarsia

from ..adapters import Lora
from ..core import Claim, Method, Result
from ..core.claim import Report
from ..experiments.pool import Arm
from ..methods import S2ft
from . import mix6
from .study import class_scores, each, result_of

SOURCE = "identity"
TARGETS = tuple(task for task in mix6.TASKS if task != SOURCE)
STEPS, EVERY = 400, 20
RATES = (1e-3, 2e-3, 5e-3)
TUNED, KEPT_BACK = 100, 200  # the seed and the training digits by which a rate is chosen
CHANNELS, RANK = 12, 5  # for each block: 6,912 weights, and 6,720 of LoRA
ARMS: tuple[Arm[Method], ...] = (
    Arm("S2FT", S2ft(down=CHANNELS / mix6.HIDDEN)),
    Arm("LoRA", Lora(RANK)),
)
NAMES = tuple(arm.name for arm in ARMS)


@dataclass
class Track:
    """Accuracy on the new task and on the old one, while the new one is trained."""

    target: list[float] = field(default_factory=list)
    source: list[float] = field(default_factory=list)

    def kept(self, level: float) -> float:
        """Source accuracy when the target's first was at least `level`."""
        return next(s for t, s in zip(self.target, self.source, strict=True) if t >= level)


def fitted(method: Method, rows: TensorDataset, lr: float, seed: int, **options: Any) -> nn.Module:
    """The backbone with one arm's cells, trained at a constant rate."""
    model = intarsia.adapt(mix6.backbone(), method, targets=["fc2"], head=None, seed=seed)
    intarsia.fit(
        model,
        rows,
        epochs=mix6.epochs(STEPS, 1),
        lr=lr,
        seed=seed,
        batch_size=mix6.BATCH,
        trackers=(),
        lr_factor=lambda *_: 1.0,
        **options,
    )
    return model


@lru_cache
def rate(method: Method) -> float:
    """The rate at which an arm is best on digits kept from training, the mean over the tasks."""

    def accuracy(task: str, lr: float) -> float:
        x, y = mix6.data("train", [task]).tensors
        rows = TensorDataset(x[KEPT_BACK:], y[KEPT_BACK:])
        model = fitted(method, rows, lr, TUNED)
        return class_scores(model, TensorDataset(x[:KEPT_BACK], y[:KEPT_BACK]), 512).accuracy

    return max(RATES, key=lambda lr: statistics.mean(accuracy(task, lr) for task in TARGETS))


def train(method: Method, task: str, seed: int) -> Track:
    """One arm trained on one task, looked at every few steps."""
    track = Track()

    def look(model: nn.Module, step: int, steps: int) -> None:
        if step % EVERY == 0 or step == steps:
            model.eval()
            track.target.append(1 - mix6.error(model, [task]))
            track.source.append(1 - mix6.error(model, [SOURCE]))
            model.train()

    model = fitted(method, mix6.data("train", [task]), rate(method), seed, schedule=look)
    look(model, STEPS, STEPS)
    return track


def tracks(seeds: Sequence[int], report: Report) -> Mapping[tuple[str, str, int], Track]:
    """Every arm on every task and seed."""
    return each(
        ARMS,
        seeds,
        train,
        report,
        tasks=TARGETS,
        said=lambda track: f"target {track.target[-1]:.3f}, source {track.source[-1]:.3f}",
    ).results


def matched(found: Mapping[tuple[str, str, int], Track], task: str, seed: int) -> Mapping[str, Any]:
    """The highest target accuracy that both arms reach, and what each kept of the source there."""
    level = min(max(found[arm, task, seed].target) for arm in NAMES)
    return {"level": level} | {arm: found[arm, task, seed].kept(level) for arm in NAMES}


def retention(seeds: Sequence[int], report: Report) -> Result:
    """Share of tasks in which S2FT keeps at least LoRA's source accuracy, one value per seed."""
    found = tracks(seeds, report)
    at = {(task, seed): matched(found, task, seed) for task in TARGETS for seed in seeds}
    values = tuple(
        statistics.mean(at[task, seed]["S2FT"] >= at[task, seed]["LoRA"] for task in TARGETS)
        for seed in seeds
    )
    rows = [
        {"task": task, "matched target accuracy": _mean(at[task, s]["level"] for s in seeds)}
        | {f"source kept, {arm}": _mean(at[task, s][arm] for s in seeds) for arm in NAMES}
        | {
            f"final target, {arm}": _mean(found[arm, task, s].target[-1] for s in seeds)
            for arm in NAMES
        }
        for task in TARGETS
    ]
    note = (
        f"One value per seed: the share of {len(TARGETS)} tasks. The source is {SOURCE}; each arm "
        f"has the rate of {RATES} at which it is best on {KEPT_BACK} digits kept from a training "
        f"of its own: {', '.join(f'{a.name} {rate(a.settings):g}' for a in ARMS)}; the rate is "
        f"constant, {STEPS} steps looked at every {EVERY}; both arms are read where "
        "they first reach the highest target accuracy that both reach. Second linear of each MLP."
    )
    return result_of(values, rows, note)


def in_domain(seeds: Sequence[int], report: Report) -> Result:
    """Final target accuracy of S2FT minus LoRA's, the mean over the tasks, one value per seed."""
    found = tracks(seeds, report)
    end = {key: track.target[-1] for key, track in found.items()}
    values = tuple(
        statistics.mean(end["S2FT", t, s] - end["LoRA", t, s] for t in TARGETS) for s in seeds
    )
    rows = [
        {"task": t} | {arm: _mean(end[arm, t, s] for s in seeds) for arm in NAMES} for t in TARGETS
    ]
    return result_of(values, rows)


def _mean(values: Any) -> str:
    return f"{statistics.mean(values):.3f}"


PAPER = "(arXiv:2412.06289, abstract)"

claim = partial(Claim, sense=">=", minutes=7)

CLAIMS = (
    claim(
        "s2ft",
        system="S2FT",
        sentence="S2FT forgets less than LoRA, each at its own best rate: at the same accuracy on "
        "a new task it keeps at least LoRA's accuracy on the old one, in two thirds of the tasks "
        f"{PAPER}.",
        baseline="LoRA of the same size, where both first reach the same target accuracy",
        bar=2 / 3,
        run=retention,
    ),
    claim(
        "s2ft-in-domain",
        sentence="S2FT learns a new task about as well as LoRA of its size: at most 4 points worse "
        f"{PAPER}.",
        baseline="LoRA of the same size; final target accuracy, S2FT minus LoRA",
        bar=-0.04,
        run=in_domain,
    ),
)
