"""A finished run on pictures with its net packed, as one more run folder."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..core.errors import ConfigError
from ..core.files import writing
from ..fitting import write_trained
from ..folders.out.int8 import accuracy_of
from ..hosts.changing import apply_plan
from ..methods.fast_convnets import Chw, chw_report
from ..train.folder import write_results
from . import experiment as experiments
from .opening import open_single
from .release import CALIBRATION, VALIDATION, spread_pictures
from .runs import PictureRun

Report = Callable[[str], None]


def compress_run(
    folder: str | Path, out: str | Path, change: Chw, *, report: Report = lambda _: None
) -> dict[str, Any]:
    """Pack the network of a run on pictures into the sparse format CHW, and write it as a run.

    change: settings of the format; its speed is measured on one picture of the training's size, and
    refused if it is no gain. Scores in run.json are the training's: outputs agree to 1e-4. In codes
    of 8 bits they do not: training pictures choose the ranges, and others are classified before and
    after. Returns "layers" {path: {density, rows}}, "left" (paths that stay in torch),
    "milliseconds", and in 8 bits "accuracy" (before and after, of "pictures").
    Raises: as `open_run` and `Chw`; ConfigError for a run on texts, or a folder with a run in it.
    """
    run = open_single(folder, as_trained=False, report=report)
    if not isinstance(run, PictureRun):
        want, fix = "a run on pictures", "Pack a language model as bitmask, columns or gqsa."
        raise ConfigError(f"run {str(folder)!r}", got="a run on texts", want=want, fix=fix)
    example = torch.zeros(1, 3, *run.inputs.size)
    if change.values == "int8":
        example, _ = spread_pictures(run, "train", CALIBRATION, report)
    # refused here, before anything is written, where the net cannot be packed or is no faster
    plan = change.plan(run.model, [example])
    # `plan` timed one picture; with `force` the written net takes several, one by one
    fast = apply_plan(run.model, replace(plan, change=replace(change, force=True)))
    packed = chw_report(fast)
    summary: dict[str, Any] = {
        "layers": {
            layer.path: {"density": layer.density, "rows": layer.rows} for layer in packed.layers
        },
        "left": list(packed.left),
        "milliseconds": dict(packed.milliseconds),
    }
    if change.values == "int8":
        summary["accuracy"] = _accuracies(run, fast, report)
    record: dict[str, Any] = copy.deepcopy(dict(run.record))
    record["record"]["label"] = f"{record['record']['label']}, in CHW"
    record["record"]["chw"] = summary
    # written next to its place first: a stop leaves no half folder
    with writing(out) as scratch:
        scratch.mkdir()
        experiments.save(run.experiment, scratch)
        write_results(scratch, fast, record, "test", None, write_trained)
    return summary


@torch.inference_mode()
def _accuracies(run: PictureRun, fast: nn.Module, report: Report) -> dict[str, Any]:
    """Return the accuracies of a run's net and of the packed one on the same pictures."""
    part = "val" if "val" in run.record["record"]["data"]["parts"] else "test"
    images, labels = spread_pictures(run, part, VALIDATION, report)
    answers = (torch.cat([net(x) for x in images.split(1)]) for net in (run.model, fast))
    before, after = (accuracy_of(logits, labels) for logits in answers)
    return {"before": before, "after": after, "pictures": len(images), "part": part}
