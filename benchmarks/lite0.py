"""A whole CNN at batch 1: time, accuracy and agreement, dense elsewhere and sparse here.

    python benchmarks/lite0.py --write         # the page docs/benchmarks/lite0.md, and rivals.json

Pruned nets are fitted first, without labels, as docs/how-to/prune-a-cnn-without-labels.md has it.
That takes five minutes for each on one core, and with `--trained` a quarter of an hour more for two
of them; they are kept in the cache, and a second run only measures. `--dense` leaves them out. The
1,000 photographs of the folder `imagenet-sample-images` below `$INTARSIA_DATA` are used if they are
there; without them stamps and crops alone fit and judge.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from frame import interleaved, markdown, parser, publish, read, timed_run
from torch import Tensor, nn

from intarsia.data.packages import cache_dir
from intarsia.formats.rivals import RuntimeFigures, record
from intarsia.kernels import native
from intarsia.methods.fast_convnets import Chw, chw_report
from intarsia.reports.statistics import paired_interval
from intarsia.sparse.swap.compress import compress
from intarsia_lab.materials.convnet_times import dense_runtimes, int8_runtimes
from intarsia_lab.materials.lite0 import SIDE, lite0, logits
from intarsia_lab.materials.lite0_pictures import UNKNOWN, Judged, pictures
from intarsia_lab.materials.unlabelled import STEPS, KeptBlocks, imitated, whole

CALIBRATION = 100  # pictures for int8
COMMAND = "intarsia compress RUN --format chw --values int8 --out fast"
FLOAT, CODES = 32, 8  # bits of our nets' weights and maps
SURE = 0.5  # probability of the dense net's first class
PRUNED = (KeptBlocks(0.5), KeptBlocks(0.3))
BY_SIZE = (KeptBlocks(0.5), KeptBlocks(0.2, 4))
IN_CODES = (KeptBlocks(0.75, 1, 4), KeptBlocks(0.5, 1, 4))  # computed in int8
RIVAL, REFERENCE = "OpenVINO int8", "torch fp32"
HEAD = ("net", "runs in", "ms", f"of {RIVAL}", "M products", "products a ns")
ABOUT = f"""\
EfficientNet-Lite0 with its pretrained weights, on one picture of {SIDE} x {SIDE} pixels. Of 1x1
convolutions so many weights are left, alone, in blocks of four rows, or in fours of neighbouring
inputs, and each layer is stored as `Chw()` finds it fastest. *intarsia int8* is
`Chw(values="int8")`: maps and weights are codes of 8 bits. *Reconstructed*: [without
labels](../how-to/prune-a-cnn-without-labels.md), where nets that were trained after it are no
better. *By size*: the largest weights, nothing fitted. int8 elsewhere is onnxruntime's static
quantisation, in onnxruntime and OpenVINO, and all of int8 is calibrated on the same {CALIBRATION}
of the pictures that fit. All runs take turns, and the median counts, in CPU time of the threads
that are given. torchao is left out: it has no int8 convolutions for CPUs.

Nothing was fitted on, calibrated on, or chosen by the pictures that judge, and they were looked at
once for each net. *Top-1*: percent with the right class first of 1,000; *less*: so many points
less than dense float32 on the same pictures, with a 95 % interval. *Agrees*: percent of all
pictures with the same first class as dense float32; *where sure*: of those for which it has a
probability above {SURE}. *M products*: million multiplications of a weight that is not 0 by an
input.

Why a pruned float32 net is slower: an instruction of AVX-512 has 16 products of float32
numbers, one of VNNI 64 of int8. A float32 net has to leave out three quarters of all products to be
level with a dense int8 one that is computed as well. In int8, zeros save time only in fours, for
VNNI adds up four neighbouring inputs, and cost more accuracy there than alone: a dense net in int8
is the better choice until one keeps its accuracy with half of its fours.

Why pruning costs so much accuracy: there are too few pictures that fit. Training lowers the
divergence from the dense net more on them than on others ([how to prune without
labels](../how-to/prune-a-cnn-without-labels.md) has both), and leaves top-1 where it was. Ten times
as many pictures without labels, trained for hours on an accelerator, would decide it."""


@dataclass(frozen=True)
class NetArm:
    """A net in a runtime: what computes one picture, as logits (1, classes), and how it is stored.

    form: ours on the command line, None = another runtime's.
    """

    net: str
    runtime: str
    run: Callable[[Tensor], Any]
    products: int
    form: str | None = None
    density: float = 1.0
    bits: int | None = None
    layers: str = ""
    command: str = ""


class NetAnswers(NamedTuple):
    """How a net answers: right of the pictures with a class, by judge, and agreement in percent."""

    right: Mapping[str, np.ndarray]
    agrees: float
    sure: float


def named(form: KeptBlocks, how: str) -> str:
    """The name of a pruned net."""
    block = (
        f"{form.inputs} inputs" if form.inputs > 1 else f"{form.rows} row{'s' * (form.rows > 1)}"
    )
    return f"{form.density:g}, {block}, {how}"


def forms(net: nn.Module) -> str:
    """How many layers are stored in each form."""
    counts: dict[int, int] = {}
    for layer in chw_report(net).layers:
        counts[layer.rows] = counts.get(layer.rows, 0) + 1
    return ", ".join(f"{rows}: {count}" for rows, count in sorted(counts.items()))


@torch.no_grad()
def products(net: nn.Module, picture: Tensor) -> int:
    """Multiplications of a weight that is not 0 by an input, for one picture."""
    counts: list[int] = []

    def count(layer: Any, _inputs: object, output: Tensor) -> None:
        # a convolution's weight is used at each position of its output, a linear map's once
        positions = output[0, 0].numel() if output.dim() == 4 else 1
        counts.append(positions * int(layer.weight.count_nonzero()))

    layers = [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    handles = [layer.register_forward_hook(count) for layer in layers]
    net(picture)
    for handle in handles:
        handle.remove()
    return sum(counts)


class Net(NamedTuple):
    """A net of ours before it is packed.  density: of its 1x1 weights; bits: FLOAT or CODES."""

    name: str
    density: float
    bits: int
    module: nn.Module


def pruned_nets(fit: Tensor, trained: bool) -> list[Net]:
    """Prune the net in every way of the page.  fit, trained: as of `arms_of`."""
    folder, dense = cache_dir() / "benchmarks", lite0()
    nets = [
        Net(named(form, "by size"), form.density, FLOAT, lite0(form.density, form.rows))
        for form in BY_SIZE
    ]
    for form in PRUNED:
        for number in (0, STEPS[form.density]) if trained else (0,):
            net = imitated(dense, fit, form, number, folder)
            how = f"trained {number} steps" if number else "reconstructed"
            nets.append(Net(named(form, how), form.density, FLOAT, net))
    for form in IN_CODES:
        net = imitated(dense, fit, form, 0, folder)
        nets.append(Net(named(form, "reconstructed"), form.density, CODES, net))
    return nets


def arms_of(dense: nn.Module, fit: Tensor, picture: Tensor, pruned: Sequence[Net]) -> list[NetArm]:
    """Every net of the page in its runtime.

    fit: pictures without labels; pruned: our nets that have not all weights.
    """
    count = products(dense, picture)
    runs = dense_runtimes(dense, picture)
    arms = [NetArm("dense", name, run, count) for name, run in runs.items()]
    calibration = whole(fit[:CALIBRATION])
    runs = int8_runtimes(dense, calibration, picture)
    arms += [NetArm("dense", name, run, count, bits=8) for name, run in runs.items()]
    arms.append(NetArm("dense", "torch fp32", dense, count))
    nets = [Net("dense", 1.0, bits, dense) for bits in (FLOAT, CODES)]
    for net in sorted((*nets, *pruned), key=lambda net: -net.bits):
        values, example = ("int8", calibration) if net.bits == CODES else ("fp32", picture)
        packed = compress(copy.deepcopy(net.module), Chw(values=values), example, force=True)
        form = "chw" if net.density < 1 or net.bits == CODES else "dense"
        command = COMMAND if net.bits == CODES else ""
        runtime = "intarsia int8" if net.bits == CODES else "intarsia"
        arms.append(
            NetArm(
                net.name, runtime, packed, products(net.module, picture), form, net.density,
                net.bits, forms(packed), command,
            )
        )  # fmt: skip
    return arms


@torch.no_grad()
def quality(
    run: Callable[[Tensor], Any], judges: Mapping[str, Judged], targets: Mapping[str, Tensor]
) -> NetAnswers:
    """How a net answers the pictures that judge.

    run: one picture -> its logits; targets: the dense net's logits, by judge.
    """
    right: dict[str, np.ndarray] = {}
    agrees: list[Tensor] = []
    for name, judge in judges.items():
        answers = [int(np.asarray(run(x)).argmax()) for x in judge.pixels.split(1)]
        classes = torch.tensor(answers)
        known = judge.classes != UNKNOWN
        if bool(known.any()):
            right[name] = (classes == judge.classes)[known].numpy()
        agrees.append(classes == targets[name].argmax(1))
    same = torch.cat(agrees).float()
    sure = torch.cat([targets[name].softmax(1).amax(1) > SURE for name in judges])
    return NetAnswers(right, 100 * float(same.mean()), 100 * float(same[sure].mean()))


def less(dense: np.ndarray, ours: np.ndarray) -> str:
    """How many points of top-1 a net has less than dense, with a 95 % interval."""
    points = 100 * (dense.mean() - ours.mean())
    between = paired_interval([np.arange(len(dense))], [dense], [ours])
    if between is None:
        return f"{points:.1f}"
    return f"{points:.1f} ({100 * between.low:.1f} to {100 * between.high:.1f})"


def table_of(
    arms: Sequence[NetArm], ms: Sequence[float], qualities: Sequence[NetAnswers]
) -> list[str]:
    """The page's table."""
    runtimes = [arm.runtime for arm in arms]
    rival, reference = ms[runtimes.index(RIVAL)], qualities[runtimes.index(REFERENCE)].right
    head = [*HEAD]
    for name, right in reference.items():
        head += [f"top-1, {len(right)} {name}", "less"]
    rows: list[list[str]] = []
    for arm, t, q in zip(arms, ms, qualities, strict=True):
        row = [arm.net, arm.runtime, f"{t:.2f}", f"{t / rival:.2f}"]
        row += [f"{arm.products / 1e6:.0f}", f"{arm.products / t / 1e6:.0f}"]
        for name, right in q.right.items():
            row += [f"{100 * right.mean():.1f}", less(reference[name], right)]
        rows.append([*row, f"{q.agrees:.1f}", f"{q.sure:.1f}", arm.layers])
    return markdown([*head, "agrees", "where sure", "layers by rows"], rows)


def figures(
    arms: Sequence[NetArm], ms: Sequence[float], qualities: Sequence[NetAnswers], judge: str
) -> list[RuntimeFigures]:
    """The rows of rivals.json.  judge: name of the pictures on which top-1 counts."""
    return [
        RuntimeFigures(
            f"{a.runtime}, {a.net}",
            a.form,
            round(t, 2),
            None,
            round(100 * float(q.right[judge].mean()), 1),
            a.bits,
            a.density,
            a.command,
        )
        for a, t, q in zip(arms, ms, qualities, strict=True)
    ]


def main() -> None:
    options = parser(__doc__, threads=1, reps=21)
    options.add_argument("--dense", action="store_true", help="nets with all weights alone")
    options.add_argument("--trained", action="store_true", help="nets that were trained, too")
    args = read(options)
    native.require()
    fit, _, judges = pictures()
    dense, picture = lite0(), judges["stamps"].pixels[:1]
    targets = {name: logits(dense, judge.pixels) for name, judge in judges.items()}
    pruned = [] if args.dense else pruned_nets(fit, args.trained)
    arms = arms_of(dense, fit, picture, pruned)
    jobs = {f"{a.net}\t{a.runtime}": partial(a.run, picture) for a in arms}
    with torch.no_grad():
        ms = [1e3 * t.cpu for t in interleaved(jobs, args.reps).values()]
    qualities = [quality(arm.run, judges, targets) for arm in arms]
    # photographs, where they are there, are what the net is for
    judge, right = [*qualities[0].right.items()][-1]
    if args.write:
        measure = f"top-1 of 1,000 classes on {len(right)} unseen {judge}, %"
        choices = figures(arms, ms, qualities, judge)
        record("picture", timed_run(measure, choices, args.threads))
    sure = sum(int((t.softmax(1).amax(1) > SURE).sum()) for t in targets.values())
    counts = ", ".join(f"{len(judge.pixels)} {name}" for name, judge in judges.items())
    text = (
        f"Kernels built for {native.instructions()}; {args.threads} thread"
        f"{'s' * (args.threads > 1)}. Fitted on {len(fit)} pictures without labels. Pictures that "
        f"judge: {counts}; the dense net is sure of {sure} of them."
    )
    body = [text, "", *table_of(arms, ms, qualities)]
    publish("A CNN next to other runtimes, dense and sparse", ABOUT, body, args)


if __name__ == "__main__":
    main()
