"""A whole CNN at batch 1: time and agreement, dense elsewhere and sparse here.

    python benchmarks/lite0.py --write         # the page docs/benchmarks/lite0.md, and rivals.json

Pruned nets are fitted first, without labels, as docs/how-to/prune-a-cnn-without-labels.md has it,
and with `--steps` above 0 trained as well. They are kept in the cache: a second run only measures.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from frame import interleaved, markdown, parser, publish, read, timed_run
from torch import Tensor, nn

from intarsia.data.packages import cache_dir
from intarsia.formats.rivals import RuntimeFigures, record
from intarsia.hosts.swap.compress import compress
from intarsia.kernels import native
from intarsia.methods.fast_convnets import Chw, chw_report
from intarsia_lab.materials.convnet_times import dense_runtimes, int8_runtimes
from intarsia_lab.materials.lite0 import SIDE, lite0, logits, photograph_crops, stamp_squares
from intarsia_lab.materials.unlabelled import imitated

TRAIN, TEST, CALIBRATION = 400, 150, 100  # crops of photographs; of others; pictures for int8
SURE = 0.5  # probability of the dense net's first class
PRUNED = ((1, 0.5), (4, 0.5), (1, 0.3), (4, 0.3))  # rows of a block, density
BY_SIZE = ((1, 0.5), (1, 0.2))
HEAD = ("net", "runs in", "ms", "x fastest dense fp32", "agrees", "where sure", "layers by rows")
ABOUT = f"""\
EfficientNet-Lite0 with its pretrained weights, on one picture of {SIDE} x {SIDE} pixels. Of 1x1
convolutions so many weights are left, alone or in blocks of four rows, and each layer is stored as
`Chw()` finds it fastest. *Agrees*: percent of pictures that nothing was trained or calibrated on,
{TEST} crops of photographs and the Tux Paint stamps of a quarter of all names, whose first of 1,000
classes is the dense float32 net's; *where sure*: of those for which it has a probability above
{SURE}. *Reconstructed* and *trained*: [without
labels](../how-to/prune-a-cnn-without-labels.md), on the other stamps and {TRAIN} crops of other
photographs; of 1x1 convolutions those in blocks are pruned. *By size*: the largest weights of all
1x1 convolutions, nothing fitted. int8 is onnxruntime's static quantisation with {CALIBRATION} of
those pictures, in onnxruntime and OpenVINO. All runs take turns, and the median counts, in CPU time
of the threads that are given. torchao is left out: it has no int8 convolutions for CPUs."""


@dataclass(frozen=True)
class NetArm:
    """A net in a runtime: what computes one picture, as logits (1, classes), and how it is stored.

    form: ours on the command line, None = another runtime's.
    """

    net: str
    runtime: str
    run: Callable[[Tensor], Any]
    form: str | None = None
    density: float = 1.0
    bits: int | None = None
    layers: str = ""


def forms(net: nn.Module) -> str:
    """How many layers are stored in each form."""
    counts: dict[int, int] = {}
    for layer in chw_report(net).layers:
        counts[layer.rows] = counts.get(layer.rows, 0) + 1
    return ", ".join(f"{rows}: {count}" for rows, count in sorted(counts.items()))


def arms_of(dense: nn.Module, train: Tensor, picture: Tensor, steps: int) -> list[NetArm]:
    """Every net of the page in its runtime."""
    arms = [NetArm("dense", name, run) for name, run in dense_runtimes(dense, picture).items()]
    arms += [
        NetArm("dense", name, run, bits=8)
        for name, run in int8_runtimes(dense, train[:CALIBRATION], picture).items()
    ]
    arms.append(NetArm("dense", "torch fp32", dense))
    nets: list[tuple[str, float, nn.Module]] = [("dense", 1.0, dense)]
    nets += [
        (f"{density:g}, {rows} row{'s' * (rows > 1)}, by size", density, lite0(density, rows))
        for rows, density in BY_SIZE
    ]
    for rows, density in PRUNED:
        # without training, and with
        for count in sorted({0, steps}):
            file = cache_dir() / "benchmarks" / f"lite0-{density:g}-{rows}-{count}.safetensors"
            net = imitated(dense, train, (density, rows), count, file)
            how = f"trained {count} steps" if count else "reconstructed"
            nets.append((f"{density:g}, {rows} row{'s' * (rows > 1)}, {how}", density, net))
    for name, density, net in nets:
        packed = compress(copy.deepcopy(net), Chw(), picture, force=True)
        form = "chw" if density < 1 else "dense"
        arms.append(NetArm(name, "intarsia", packed, form, density, None, forms(packed)))
    return arms


@torch.no_grad()
def agreement(run: Callable[[Tensor], Any], test: Tensor, targets: Tensor) -> tuple[float, float]:
    """Percent of pictures whose first class is the dense net's: of all, and where it is sure.

    run: one picture -> its logits; test: (n, 3, side, side); targets: the dense net's logits.
    """
    classes = torch.tensor([int(np.asarray(run(x)).argmax()) for x in test.split(1)])
    right = (classes == targets.argmax(1)).float()
    sure = targets.softmax(1).amax(1) > SURE
    return 100 * float(right.mean()), 100 * float(right[sure].mean())


def main() -> None:
    made = parser(__doc__, threads=1, reps=21)
    made.add_argument("--steps", type=int, default=0, help="of training a pruned net; 0 = none")
    args: argparse.Namespace = read(made)
    native.require()
    draw = torch.Generator().manual_seed(0)
    train, test = (
        torch.cat(pair)
        for pair in zip(photograph_crops(TRAIN, TEST, draw), stamp_squares(), strict=True)
    )
    # crops and stamps in every batch
    train = train[torch.randperm(len(train), generator=draw)]
    dense, picture = lite0(), test[:1]
    targets = logits(dense, test)
    arms = arms_of(dense, train, picture, args.steps)
    with torch.no_grad():
        spent = interleaved(
            {f"{a.net}\t{a.runtime}": partial(a.run, picture) for a in arms}, args.reps
        )
    ms = [1e3 * t.cpu for t in spent.values()]
    quality = [agreement(arm.run, test, targets) for arm in arms]
    best = min(t for arm, t in zip(arms, ms, strict=True) if arm.runtime.endswith("fp32"))
    table = [
        (a.net, a.runtime, f"{t:.2f}", f"{best / t:.2f}", f"{q[0]:.1f}", f"{q[1]:.1f}", a.layers)
        for a, t, q in zip(arms, ms, quality, strict=True)
    ]
    if args.write:
        choices = [
            RuntimeFigures(
                f"{a.runtime}, {a.net}",
                a.form,
                round(t, 2),
                None,
                round(q[1], 1),
                a.bits,
                a.density,
            )
            for a, t, q in zip(arms, ms, quality, strict=True)
        ]
        record(
            "picture",
            timed_run("agreement with dense float32 where it is sure, %", choices, args.threads),
        )
    sure = int((targets.softmax(1).amax(1) > SURE).sum())
    text = f"Kernels built for {native.instructions()}; {args.threads} thread"
    text += f"{'s' * (args.threads > 1)}. The dense net is sure of {sure} of {len(test)} pictures."
    body = [text, "", *markdown(HEAD, table)]
    publish("A sparse CNN beside dense runtimes", ABOUT, body, args)


if __name__ == "__main__":
    main()
