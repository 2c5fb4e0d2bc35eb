"""The steps of the demo."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..data import backbones, sets
from ..data.sets import located
from ..folders.out.export import export_timm
from ..reports.runs import Comparison, choice_sentence, difference_sentence
from ..runs import experiment as experiments
from ..runs.experiment import Adapted, Experiment, Pictures
from ..runs.matrix import PlannedRun, on_one_adapter, planned, run_all
from ..runs.rates import RateSearch
from ..runs.release import some_pictures, stock_of
from ..runs.runs import open_pictures
from ..runs.workers import FreshProcess
from ..train import Training
from ..train.processes import device_named

Report = Callable[[str], None]
VAL, TEST = 150, 1000  # pictures; validation is drawn in addition to the training pictures
BLOCKS = 3  # of twelve; the others stay as they are and are computed once
REPEATS = 20  # of a multiplication that is timed
COMPARED = 200  # test pictures


@dataclass(frozen=True)
class Demo:
    """Settings of the demo that the command line may change."""

    data: str
    model: str
    size: int
    images: int
    epochs: int
    seeds: tuple[int, ...]
    out: Path
    pretrained: bool = True


def obtain(request: Demo) -> None:
    """Download weights and pictures, in a process of its own: its memory counts for no run."""
    model = request.model if request.pretrained else None
    # Decoding and unpacking take much memory once; in a process of their own they do not count as
    # the runs' peak.
    FreshProcess(threads=1).run(_obtain, {"model": model, "data": request.data})


def _obtain(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Load a model and a data set once, so that they are downloaded before the runs begin."""
    if inputs["model"] is not None:
        backbones.backbone(inputs["model"], classes=2)
    # a folder of pictures needs no download
    if inputs["data"] in sets.names():
        sets.load(inputs["data"])
    return {}


def faster_precision(device: torch.device) -> str:
    """Return "bf16" or "fp32", whichever a device multiplies faster in a layer of a ViT-S."""
    seconds: dict[str, float] = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        x, w = (torch.randn(size).to(device, dtype) for size in ((544, 384), (384, 1536)))
        times: list[float] = []
        for _ in range(REPEATS):
            start = time.perf_counter()
            float(torch.mm(x, w)[0, 0])  # waits for the device
            times.append(time.perf_counter() - start)
        # The least of the times: the others include the work of other processes.
        seconds[name] = min(times)
    return min(seconds, key=seconds.__getitem__)


def train_all(
    request: Demo, methods: Sequence[str], jobs: int, device: str | None, report: Report
) -> list[PlannedRun]:
    """Train the methods of the demo at every seed; return the runs.

    request: the demo's settings. methods: names. jobs: runs at a time, each with one thread: two
    small runs side by side take less time than one after the other with two threads. device: its
    name, None = the best. report: gets lines of progress.
    Raises: as `run_all` does; ConfigError for a device that is not there.
    """
    target_device = device_named(device)
    torch.set_num_threads(1)
    pictures = Pictures(located(request.data), images=request.images, val=VAL, test=TEST)
    adapted = Adapted(request.model, request.size, pretrained=request.pretrained)
    training = Training(epochs=request.epochs, batch_size=32, weight_decay=0.01)
    start = Experiment(pictures, adapted, training).changed(
        last_blocks=BLOCKS, frozen_once=True, precision=_precision(request, target_device, report)
    )
    settings = on_one_adapter(start, methods, {}, report)
    # one experiment for each method and seed
    runs = planned(start, methods, request.seeds, settings, request.out)
    running: dict[str, Any] = {"jobs": jobs, "threads": 1, "running": {"device": device}}
    runs = RateSearch(**running).find(runs, request.out, report)
    # MoSA, the last, takes the longest: it begins, and the others share the other processes
    run_all(runs[::-1], report=report, **running)
    return runs


def _precision(request: Demo, device: torch.device, report: Report) -> str:
    """Return the precision of the demo's runs: as in earlier ones, or else the faster one here."""
    records = sorted(request.out.glob(f"*/{experiments.FILE}"))
    if records:
        # All runs of a comparison share one precision, even if the machine has changed since.
        return experiments.read(records[0].parent).training.precision
    precision = faster_precision(device)
    report(f"Precision {precision}: the faster one here.")
    return precision


def fold_chosen(comparison: Comparison, target: Path, report: Report) -> Path:
    """Fold the run that validation chose into a stock timm model and write it; return its path.

    comparison: of the demo's runs; target: the folder to write; report: gets lines of progress.
    Raises: FoldError or ExportError where the outputs differ.
    """
    choice = comparison.chosen
    assert choice is not None  # every run has the same validation pictures, so that one is chosen
    report(choice_sentence(comparison))
    opened = open_pictures(choice.run.folder, as_trained=False)
    # The stock model is exported and compared on real pictures, not on noise.
    images = some_pictures(opened, report, COMPARED)
    stock = stock_of(opened, images, report)
    path = export_timm(stock, target, classes=opened.classes, inputs=images, report=report)
    if images is not None:
        with torch.no_grad():
            agreeing = opened.model(images).argmax(1) == stock(images).argmax(1)
        report(
            f"Adapted and stock model agree on {int(agreeing.sum())} of {len(agreeing)} "
            "test pictures."
        )
    return path


def gains(comparison: Comparison) -> list[str]:
    """Return sentences: what the chosen method gains over the linear probe, MoSA over its adapter.

    comparison: of the demo's runs.
    """
    choice, probe = comparison.chosen, comparison.baseline
    assert choice is not None and probe is not None
    if choice.group is probe:
        first = "What adapting gained: nothing that validation saw; the linear probe was chosen."
    else:
        first = f"What adapting gained: {difference_sentence(choice.group, probe)}"
    # MoSA trains parts of the very same bottleneck adapter
    groups = {group.label: group for group in comparison.groups}
    return [first, f"What MoSA gained: {difference_sentence(groups['mosa'], groups['bottleneck'])}"]
