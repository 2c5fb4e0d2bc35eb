"""Fast Sparse ConvNets: a dense net's answers, and nets of equal time (arXiv:1911.09723)."""

from __future__ import annotations

import copy
import statistics
from functools import lru_cache, partial
from typing import Any

import torch
from torch import nn
from torch.utils.data import TensorDataset

from intarsia.fitting import fit
from intarsia.kernels import native
from intarsia.methods.fast_convnets import Chw
from intarsia.runs.pool import Arm
from intarsia.schedules import Gradual
from intarsia.schedules.masked_layers import masked_weights
from intarsia.sparse.swap.compress import compress
from intarsia.train.distillation import distill

from ..kit import NoControl, Report, Result, Study, above
from ..kit.arms import each, result_of, shown, threads
from ..kit.stored import StoredResults
from ..materials import thin_resnets
from ..materials.convnet_times import dense_runtimes, interleaved
from ..materials.lite0 import (
    BATCH,
    PHOTOGRAPHS,
    POINTWISE,
    blocks_of,
    lite0,
    logits,
    photograph_crops,
)
from ..materials.momentum_sgd import momentum

stored = StoredResults(__file__)

DENSITY, CROPS, HELD_OUT, EPOCHS = 0.3, 800, 400, 4

WIDE, SPARSE = 1.6, 0.1
# widths of the dense net: the one of equal time is the rival
WIDTHS = tuple(round(0.1 * n, 1) for n in range(4, 17))
PLAN = ((24, 2), (48, 1), (96, 2), (96, 1), (192, 1))  # channels and stride of each block
NET_EPOCHS = 8


def agreement(seed: int) -> dict[str, list[float]]:
    """Prune EfficientNet-Lite0; return how often its first class is the dense network's.

    In percent of held-out crops: the dense network's first class is the pruned one's first, or
    among its first five. The keys are the two ways: pruned without training, and pruned while it
    learns from the dense network's answers; three tenths of the 1x1 weights stay.
    """
    draw = torch.Generator().manual_seed(seed)
    # crops of some photographs train, crops of the others judge
    train, test = photograph_crops(CROPS, HELD_OUT, draw)
    teacher = lite0()
    targets = logits(teacher, test).argmax(1)
    rows = TensorDataset(train, logits(teacher, train).argmax(1))

    def score(net: nn.Module) -> list[float]:
        """Return both percentages of a network."""
        top = logits(net, test).topk(5).indices == targets[:, None]
        return [100 * float(top[:, :k].any(1).float().mean()) for k in (1, 5)]

    shares = {"pruned, not trained": score(lite0(DENSITY))}
    student = copy.deepcopy(teacher)
    options: Any = {"epochs": EPOCHS, "batch_size": BATCH, "lr": 0.01, "weight_decay": 0.0}
    fit(
        student,
        rows,
        objective=partial(distill, teacher=teacher),
        schedule=Gradual(DENSITY, every=5, layers=POINTWISE),
        optimizer=momentum,
        seed=seed,
        trackers=(),
        **options,
    )
    return shares | {"pruned while trained": score(student)}


def of_agreement(seeds: tuple[int, ...], report: Report) -> Result:
    """Return how often a pruned network names the dense one's first class, in percent, by seed.

    EfficientNet-Lite0 with three tenths of its 1x1 weights, trained on the dense network's answers
    to crops of photographs.
    """

    def cell(_: str, __: str, seed: int) -> dict[str, list[float]]:
        """Return a seed's percentages, stored or computed now."""
        inputs = {"claim": "agreement", "seed": seed, "density": DENSITY}
        return stored("wide_sparse", inputs, lambda: agreement(seed))

    sheet = each([Arm("", "")], seeds, cell, report, describe=str)
    results = [sheet.results["", "", seed] for seed in seeds]
    # of 1,000 classes: among five, a near miss counts as well
    table = [
        {"net": name, "first": shown([result[name][0] for result in results], ".1f")}
        | {"among five": shown([result[name][1] for result in results], ".1f")}
        for name in results[0]
    ]
    note = (
        f"Agreement in percent on {HELD_OUT} crops of photographs that training did not see; "
        f"{CROPS} crops of {PHOTOGRAPHS} others, drawn by the seed, {EPOCHS} epochs on the dense "
        "net's answers; no picture has a label."
    )
    return result_of([result["pruned while trained"][0] for result in results], table, note)


def mobilenet(width: float, seed: int) -> nn.Module:
    """Build a network of depthwise and 1x1 layers for grey pictures of 28 x 28.

    width: factor on the numbers of channels; seed: of the weights.
    """

    def layer(ins: int, outs: int, size: int, stride: int, groups: int = 1) -> list[nn.Module]:
        """Return a convolution, its batch norm and its ReLU6.  size: of the kernel."""
        conv = nn.Conv2d(ins, outs, size, stride, size // 2, groups=groups, bias=False)
        return [conv, nn.BatchNorm2d(outs), nn.ReLU6()]

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        ins = round(16 * width)
        layers = layer(1, ins, 3, 1)
        for channels, stride in PLAN:
            outs = round(channels * width)
            # a depthwise 3x3 layer, then a 1x1 layer, which is pruned
            layers += layer(ins, ins, 3, stride, ins) + layer(ins, outs, 1, 1)
            ins = outs
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(ins, 10))


@threads(1)
def milliseconds() -> dict[str, float]:
    """Time a wide sparse network and dense ones of several widths; return CPU ms per picture.

    The keys are "sparse" and the widths; a dense network has the time of its fastest runtime of
    onnxruntime, OpenVINO and our own kernels, all in float32 and in turns.
    """
    picture = torch.randn(1, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    # random weights: time depends on their number and places alone
    wide = mobilenet(WIDE, 0).eval()
    for weight in masked_weights(wide, POINTWISE).values():
        weight.data = blocks_of(weight.data, 1, SPARSE)
    runs: dict[str, Any] = {"sparse": partial(compress(wide, Chw(force=True), picture), picture)}
    for width in WIDTHS:
        net = mobilenet(width, 0).eval()
        for name, run in dense_runtimes(net, picture).items():
            if "fp32" in name:
                runs[f"{width} {name}"] = partial(run, picture)
        runs[f"{width} ours"] = partial(compress(net, Chw(force=True), picture), picture)
    with torch.no_grad():
        spent = interleaved({name: partial(_often, run) for name, run in runs.items()})
    # the rival may choose its runtime at each width
    fastest = {
        str(w): min(t for name, t in spent.items() if name.split()[0] == str(w)) for w in WIDTHS
    }
    return {name: 1e3 * t / OFTEN for name, t in ({"sparse": spent["sparse"]} | fastest).items()}


OFTEN = 50


def _often(run: Any) -> None:
    """Call a function 50 times, as one measured repeat."""
    for _ in range(OFTEN):
        run()


@lru_cache
def chosen() -> tuple[float, dict[str, float]]:
    """Return the width of the dense network that takes as long as the sparse one, and all times.

    It is the narrowest that takes no less time; times are in CPU milliseconds, stored or measured
    now.
    """
    spent = stored("wide_sparse", {"claim": "times"}, milliseconds)
    longer = [w for w in WIDTHS if spent[str(w)] >= spent["sparse"]]
    return (min(longer) if longer else max(WIDTHS)), spent


def trained(arm: str, _: str, seed: int) -> float:
    """Train a network on Fashion-MNIST; return its test accuracy in points, stored or computed now.

    arm: "sparse", the wide network with a tenth of its 1x1 weights kept, or "dense", the one of
    equal time; the second parameter is unused, since there is one task.
    """
    width = WIDE if arm == "sparse" else chosen()[0]
    inputs = {"arm": arm, "width": width, "seed": seed, "epochs": NET_EPOCHS}

    def run() -> float:
        """Train the network on Fashion-MNIST; return its test accuracy in points."""
        net = mobilenet(width, seed)
        # pruned by degrees while it trains; the dense network has no schedule
        schedule = Gradual(SPARSE, layers=POINTWISE) if arm == "sparse" else None
        options: Any = thin_resnets.OPTIONS | {
            "epochs": NET_EPOCHS,
            "seed": seed,
            "optimizer": thin_resnets.nesterov,
        }
        fit(net, thin_resnets.rows("train"), schedule=schedule, **options)
        return thin_resnets.accuracy(net.eval())

    return stored("wide_sparse", inputs, run)


def of_equal_time(seeds: tuple[int, ...], report: Report) -> Result:
    """Return the accuracy of a wide sparse network minus a dense one's of equal time.

    In points of Fashion-MNIST's test part, by seed. The dense network is the narrowest that takes
    no less time in its fastest runtime.
    """
    native.require()
    width, spent = chosen()
    sheet = each([Arm("sparse", "sparse"), Arm("dense", "dense")], seeds, trained, report)
    by_arm = {arm: sheet.by_seed(arm, "") for arm in ("sparse", "dense")}
    # pairs by seed: the same pictures in the same order
    gains = [a - b for a, b in zip(by_arm["sparse"], by_arm["dense"], strict=True)]
    ms = {"sparse": spent["sparse"], "dense": spent[str(width)]}
    table = [
        {"net": arm, "width": f"{WIDE if arm == 'sparse' else width}", "ms": f"{ms[arm]:.3f}"}
        | {"accuracy": shown(by_arm[arm], ".2f")}
        for arm in by_arm
    ]
    note = (
        f"Mean difference {statistics.mean(gains):+.2f} points; times are CPU milliseconds of a "
        "picture on one thread, the dense net's in the fastest of onnxruntime, OpenVINO and our "
        f"kernels. Built for {native.instructions()}."
    )
    return result_of(gains, table, note)


study = partial(Study, sense=">=", needs="long")

CLAIMS = (
    study(
        "fast-convnets-agreement",
        sentence="EfficientNet-Lite0 with three tenths of its 1x1 weights, trained on the dense "
        "net's answers to crops of 20 photographs, gives the same first of 1,000 classes on crops "
        "of 9 others (Fast Sparse ConvNets, arXiv:1911.09723; without labels, since ImageNet's "
        "pictures are not to be had).",
        baseline="the dense net's first class, percent of crops",
        target=85.0,
        control=NoControl("Agreement with the dense net is the figure itself; chance is 0.1 %."),
        measure=of_agreement,
        minutes=45,
    ),
    study(
        "fast-convnets-equal-time",
        sentence="A MobileNet 1.6 times as wide, with a tenth of its 1x1 weights, is at least as "
        "accurate as a dense one that takes as many milliseconds (scaled down: five blocks on "
        "10,000 pictures of Fashion-MNIST).",
        baseline="the narrowest dense net that takes no less time in the fastest dense runtime, in "
        "points; the mean difference",
        target=0.0,
        control=above(
            "The dense net is above chance, 10 %, by 40 points.", "accuracy", 50, {"net": "dense"}
        ),
        measure=of_equal_time,
        seeds=(0, 1, 2, 3, 4),
        minutes=30,
    ),
)
