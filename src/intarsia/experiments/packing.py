"""A finished run on pictures whose net is packed, as one more run folder."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..core.errors import ConfigError
from ..core.files import writing
from ..fitting import write_trained
from ..hosts.changing import apply_plan
from ..methods.fast_convnets import Chw, chw_report
from ..train.folder import write_results
from . import experiment as experiments
from .opening import open_run
from .runs import PictureRun

Report = Callable[[str], None]


def compress_run(
    folder: str | Path, out: str | Path, change: Chw, *, report: Report = lambda _: None
) -> dict[str, Any]:
    """Pack the network of a run on pictures into the sparse format CHW, and write it as a run.

    folder: of the run. out: folder of the new one, to evaluate and predict with. change: settings
    of the format; its speed is measured on one picture of the training's size, and refused if it is
    no gain. report: gets lines of progress. Scores in run.json are those of the training: outputs
    agree to 1e-4. Returns "layers" {path: {density, rows}}, "left" (paths that stay in torch),
    "milliseconds".
    Raises: as `open_run` and `Chw`; ConfigError for a run on texts, or a folder with a run in it.
    """
    run = open_run(folder, as_trained=False, report=report)
    if not isinstance(run, PictureRun):
        want, fix = "a run on pictures", "Pack a language model as bitmask, columns or gqsa."
        raise ConfigError(f"run {str(folder)!r}", got="a run on texts", want=want, fix=fix)
    # refused here, before anything is written, where the net cannot be packed or is no faster
    plan = change.plan(run.model, [torch.zeros(1, 3, *run.inputs.size)])
    # `plan` timed one picture; with `force` the written net takes several, one by one
    fast = apply_plan(run.model, replace(plan, change=replace(change, force=True)))
    packed = chw_report(fast)
    summary = {
        "layers": {
            layer.path: {"density": layer.density, "rows": layer.rows} for layer in packed.layers
        },
        "left": list(packed.left),
        "milliseconds": dict(packed.milliseconds),
    }
    record: dict[str, Any] = copy.deepcopy(dict(run.record))
    record["record"]["label"] = f"{record['record']['label']}, in CHW"
    record["record"]["chw"] = summary
    # written beside its place first: a stop leaves no half folder
    with writing(out) as scratch:
        scratch.mkdir()
        experiments.save(run.experiment, scratch)
        write_results(scratch, fast, record, "test", None, write_trained)
    return summary
