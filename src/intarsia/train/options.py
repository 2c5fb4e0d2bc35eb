"""The keywords of `fit` for type checkers: every field of Training, Recipe and Running.

Written by `python -m intarsia_lab.pages.settings` from train/settings.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from ..processes.parallelism import Parallelism
from ..schedules import ByFit, LayerSchedule, SparseSchedule
from .settings import ClassWeights, LrFactor, OptimizerFactory, Schedule
from .stack import Seat


class Options(TypedDict, total=False):
    """Keywords of `fit`."""

    epochs: int
    batch_size: int
    lr: float | None
    weight_decay: float
    warmup: float
    precision: str
    accumulate: int
    seed: int
    optimizer: OptimizerFactory | None
    lr_factor: LrFactor | None
    schedule: Schedule | ByFit | SparseSchedule | LayerSchedule | None
    mixup: float
    cutmix: float
    smoothing: float
    ema: float | None
    class_weights: ClassWeights | None
    clip: float | None
    select: str
    patience: int | None
    out: str | Path | None
    resume: bool
    checkpoint_steps: int | None
    checkpoint_seconds: float | None
    most_seconds: float | None
    device: str | None
    workers: int
    recompute: bool
    compile: bool
    trackers: str | Sequence[str] | None
    parallel: Parallelism | None
    gather: bool
    seat: Seat | None
