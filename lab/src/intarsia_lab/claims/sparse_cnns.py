"""CNNs that were trained sparse: SparseByteNN (2310.19509), Fast Sparse ConvNets (1911.09723)."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from intarsia.data import sets
from intarsia.data.backbones import backbone
from intarsia.data.decode import to_rgb
from intarsia.fitting import fit
from intarsia.folders.verbs import apply
from intarsia.hosts.anatomy.channel_groups import channels_of
from intarsia.methods.sparse_bytenn import SparseByteNn
from intarsia.reports.sheet import Sheet
from intarsia.runs.pool import Arm
from intarsia.schedules import Gradual
from intarsia.schedules.masked import Masks, Weights
from intarsia.train.distillation import distill

from ..kit import ArmRate, Rates, Report, Result, Study, above
from ..kit.arms import class_scores, each, result_of, shown
from ..kit.stored import StoredResults
from ..materials import momentum_sgd

stored = StoredResults(__file__)

SETS = ("tuxpaint", "textile", "elpv")
# half of Lite0's 224 px: a quarter of the work
SIDE, TRAIN, TEST, ROWS = 112, 320, 400, 4
EPOCHS, EVERY = 10, 5  # of each of two trainings; steps between two prunings
OPTIONS: dict[str, Any] = {"batch_size": 32, "weight_decay": 1e-4, "trackers": ()}
DENSE_RATE, GRID = 0.01, (3e-3, 1e-2, 3e-2)  # of the net that all arms begin with; of the arms
TUNED = 100  # the seed of the trainings by which rates are chosen
# the rival is trained as long as the sparse nets, with the same teacher
DENSE, AGAIN = "dense", "dense, trained again"
PLAIN, MOVED, FREE, FILTERS = "blocks", "blocks, rearranged", "unstructured", "whole filters"
DENSITIES = (0.7, 0.5)
POINTWISE = "1x1 layers at 0.2"


@dataclass(frozen=True)
class Filters(Gradual):
    """`Gradual` by whole outputs: the ones with the least sum |w| go."""

    card_key = "gradual"

    def update(
        self,
        weights: Weights,
        masks: Masks,
        gradients: Mapping[str, Tensor],
        progress: tuple[int, int],
        generator: torch.Generator,
    ) -> Masks:
        """Return masks that keep the outputs of the largest L1 norm.

        weights, masks: by layer; progress: step and number of steps, which give the density;
        gradients, generator: unused, other schedules need them.
        """
        largest: dict[str, Tensor] = {}
        for name, weight in weights.items():
            # the strong simple way to be fast: whole outputs go
            norms = (weight.detach().abs() * masks[name]).flatten(1).sum(1)
            count = max(1, round(self.density_at(*progress) * len(norms)))
            rows = torch.zeros(len(norms), dtype=torch.bool)
            rows[norms.topk(count).indices.cpu()] = True
            largest[name] = masks[name] & rows.view(-1, 1, 1, 1).to(masks[name].device)
        return largest


@lru_cache
def pictures(name: str) -> tuple[Tensor, Tensor, Any, Any, int]:
    """Return a picture set: pixels, labels, indices for training, indices for test, classes.

    name: of the set. Pixels are (n, 3, 112, 112), -1 to 1, as EfficientNet-Lite0 reads them;
    training pictures are drawn from the first indices; the last number counts the classes. The
    parts are the same for all seeds.
    """
    data_set = sets.load(name)
    labels: Any = np.asarray(data_set.labels)
    split: Any = train_test_split(
        np.arange(len(labels)), test_size=0.4, stratify=labels, random_state=99
    )
    pool, test = split[0], split[1][:TEST]
    used = np.concatenate([pool, test])
    images: Any = data_set.images
    # 3 = bicubic
    small = [np.asarray(to_rgb(images[i]).resize((SIDE, SIDE), 3)) for i in used]
    pixels = torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2).float() / 127.5 - 1
    positions, y = np.arange(len(used)), torch.from_numpy(labels[used].astype(np.int64))
    return pixels, y, positions[: len(pool)], positions[len(pool) :], len(data_set.classes)


def parts(name: str, seed: int, part: str = "test") -> tuple[TensorDataset, TensorDataset]:
    """Return a set's training pictures, drawn by the seed, and the pictures of a part.

    name: of the set; part: "test", or "val" for those that were not drawn, which choose rates.
    """
    pixels, labels, pool, test, _ = pictures(name)
    split: Any = train_test_split(
        pool, train_size=TRAIN, stratify=labels[pool].numpy(), random_state=seed
    )
    scored = test if part == "test" else split[1][:TEST]
    return (
        TensorDataset(pixels[split[0]], labels[split[0]]),
        TensorDataset(pixels[scored], labels[scored]),
    )


@lru_cache(maxsize=1)
def tuned(name: str, seed: int) -> nn.Module:
    """Fine-tune a dense EfficientNet-Lite0 on a picture set; all arms of a seed begin with it.

    name: of the set.
    """
    net = backbone("efficientnet-lite0", classes=pictures(name)[4], size=SIDE, seed=seed)
    fit(net, parts(name, seed)[0], **options(seed, DENSE_RATE))
    return net.eval()


def options(seed: int, lr: float) -> dict[str, Any]:
    """Return the options of `fit`.  lr: learning rate."""
    return OPTIONS | {
        "epochs": EPOCHS,
        "seed": seed,
        "lr": lr,
        "optimizer": momentum_sgd.momentum,
    }


def schedule_of(arm: str, density: float, net: nn.Module) -> Gradual | None:
    """Return the pruning schedule of an arm, None for one that is not pruned.

    arm: DENSE, AGAIN (dense, trained once more), PLAIN (blocks of rows), MOVED (blocks of
    rearranged channels), FREE (single weights), FILTERS or POINTWISE. density: the share of
    weights that stay; POINTWISE prunes 1x1 layers alone and has its published 0.2.
    """
    if arm in (DENSE, AGAIN):
        return None
    # Fast Sparse ConvNets: 1x1 layers alone, unstructured
    if arm == POINTWISE:
        return Gradual(0.2, every=EVERY, layers=("1x1",))
    layers = tuple(channels_of(net).layers)
    kind = Filters if arm == FILTERS else Gradual
    return kind(density, every=EVERY, rows=ROWS if arm in (PLAIN, MOVED) else 1, layers=layers)


@stored.cell
def cell(of: tuple[str, float], name: str, seed: int, lr: float, part: str = "test") -> float:
    """Train an arm from the dense net on, with that as its teacher; return its accuracy in points.

    of: the arm and its density, see `schedule_of`; name: of the picture set; lr: learning rate;
    part: "test", or "val" to choose a rate. Stored and read if it was computed before.
    """
    arm, density = of
    teacher = tuned(name, seed)
    net = copy.deepcopy(teacher)
    if arm != DENSE:
        # channels are rearranged before anything is pruned; outputs do not change
        if arm == MOVED:
            net = apply(net, SparseByteNn(density, ROWS))
        pruning: Any = {"schedule": schedule_of(arm, density, net)}
        fit(
            net,
            parts(name, seed)[0],
            objective=partial(distill, teacher=teacher),
            **options(seed, lr),
            **pruning,
        )
    return 100 * class_scores(net.eval(), parts(name, seed, part)[1]).accuracy


BLOCKS = [(arm, d) for d in DENSITIES for arm in (FREE, MOVED, PLAIN, FILTERS)]
ARMS = [(DENSE, 1.0), (AGAIN, 1.0), *BLOCKS]
POINTWISE_ARMS = [(DENSE, 1.0), (AGAIN, 1.0), (POINTWISE, 0.2)]


def _named(arm: tuple[str, float]) -> str:
    """Return an arm's name in the table, with its density if several have one."""
    return arm[0] if arm[0] in (DENSE, AGAIN, POINTWISE) else f"{arm[0]}, {arm[1]:g}"


def rates(arms: Sequence[tuple[str, float]]) -> Rates:
    """Return the grid of learning rates that the arms choose from; the dense start has its own."""
    steps = EPOCHS * TRAIN // OPTIONS["batch_size"]
    return Rates(GRID, {_named(arm): steps for arm in arms if arm[0] != DENSE})


def _scored(
    arms: Sequence[tuple[str, float]], seeds: tuple[int, ...], report: Report
) -> tuple[Sheet[str, str, float], list[dict[str, Any]], tuple[ArmRate, ...]]:
    """Train every arm on every picture set at its own learning rate; return scores and table."""
    named = {_named(arm): arm for arm in arms}
    arm_rates = rates(arms).choose(
        lambda arm, lr: statistics.mean(cell(named[arm], s, TUNED, lr, "val") for s in SETS)
    )
    lr = {DENSE: DENSE_RATE} | {rate.arm: rate.rate for rate in arm_rates}
    results: dict[tuple[str, str, int], float] = {}
    sheet: Any = None
    for name in SETS:  # runs from one dense net follow each other
        for seed in seeds:
            net_arms = [Arm(_named(arm), arm) for arm in arms]
            sheet = each(
                net_arms,
                (seed,),
                lambda arm, task, seed: cell(arm, task, seed, lr[_named(arm)]),
                report,
                tasks=(name,),
            )
            results |= sheet.results
    names = tuple(_named(arm) for arm in arms)
    combined: Sheet[str, str, float] = Sheet(names, SETS, seeds, results, sheet.read)
    table = [
        {"net": arm, **{s: shown([results[arm, s, seed] for seed in seeds], ".2f") for s in SETS}}
        for arm in names
    ]
    return combined, table, arm_rates


def _mean(sheet: Sheet[str, str, float], arm: str, seed: int) -> float:
    """Return an arm's accuracy in points, the mean over the picture sets."""
    return statistics.mean(sheet.results[arm, name, seed] for name in SETS)


def of_blocks(seeds: tuple[int, ...], report: Report) -> Result:
    """Return the accuracy of rearranged blocks at density 0.7 minus dense training's.

    EfficientNet-Lite0 on three small picture sets; both are trained for as long, with the same
    teacher. In points, one value for each seed.
    """
    sheet, table, arm_rates = _scored(ARMS, seeds, report)
    gains = [_mean(sheet, f"{MOVED}, 0.7", s) - _mean(sheet, AGAIN, s) for s in seeds]
    return result_of(gains, table, NOTE, rates=arm_rates)


def of_order(seeds: tuple[int, ...], report: Report) -> Result:
    """Return the least gap between four ways to prune that should come in this order, in points.

    The order is single weights, rearranged blocks, blocks, whole filters, at densities 0.7 and 0.5;
    a gap is the accuracy of a way minus the next one's. One value for each seed.
    """
    sheet, table, arm_rates = _scored(ARMS, seeds, report)
    order = (FREE, MOVED, PLAIN, FILTERS)
    steps = {
        f"{better} over {worse}, {d:g}": [
            _mean(sheet, f"{better}, {d:g}", s) - _mean(sheet, f"{worse}, {d:g}", s) for s in seeds
        ]
        for d in DENSITIES
        for better, worse in zip(order, order[1:], strict=False)
    }
    listing = "; ".join(f"{step} {shown(values, '+.2f')}" for step, values in steps.items())
    # the order is as good as its weakest step
    least = min(steps, key=lambda step: statistics.mean(steps[step]))
    return result_of(steps[least], table, f"{NOTE} Points: {listing}.", rates=arm_rates)


def of_pointwise(seeds: tuple[int, ...], report: Report) -> Result:
    """Return the accuracy with a fifth of the 1x1 weights minus dense training's.

    EfficientNet-Lite0 on three small picture sets; both are trained for as long. In points, one
    value for each seed.
    """
    sheet, table, arm_rates = _scored(POINTWISE_ARMS, seeds, report)
    gains = [_mean(sheet, POINTWISE, s) - _mean(sheet, AGAIN, s) for s in seeds]
    return result_of(gains, table, NOTE, rates=arm_rates)


NOTE = (
    f"Test accuracy in points: pretrained EfficientNet-Lite0 at {SIDE} px, {TRAIN} pictures of "
    f"each set drawn by the seed, {EPOCHS} epochs dense, then {EPOCHS} with that net as teacher "
    "and the cubic schedule over 60 %. Layers are 1x1 and k x k; whole filters keep their inputs, "
    "although those of removed ones could go too."
)
SCALE = (
    "scaled down: three sets of a few hundred pictures, Tux Paint, textile and solar cells, at "
    f"{SIDE} px"
)
study = partial(
    Study,
    baseline="the dense net, fine-tuned as long, in points; the mean over sets and seeds",
    sense=">=",
    control=above("The dense net is above chance by 20 points.", "tuxpaint", 40, {"net": "dense"}),
    rates=rates(ARMS),
    needs="long",
    minutes=340,
)

CLAIMS = (
    study(
        "sparse-bytenn-tuned",
        sentence="EfficientNet-Lite0 with blocks of four rows at a density of .7, its channels "
        "rearranged, loses at most a point to the dense net once it is fine-tuned (SparseByteNN, "
        f"arXiv:2310.19509; {SCALE}).",
        target=-1.0,
        measure=of_blocks,
    ),
    study(
        "sparse-bytenn-order",
        sentence="Fine-tuned, unstructured weights are no worse than rearranged blocks, these no "
        f"worse than blocks as they are, and these no worse than whole filters ({SCALE}).",
        baseline="each one's follower, at .7 and .5, in points; the least mean difference",
        target=0.0,
        measure=of_order,
    ),
    study(
        "fast-convnets-tuned",
        sentence="EfficientNet-Lite0 with a fifth of its 1x1 weights loses at most a point to the "
        f"dense net once it is fine-tuned (Fast Sparse ConvNets, arXiv:1911.09723; {SCALE}).",
        target=-1.0,
        measure=of_pointwise,
        rates=rates(POINTWISE_ARMS),
        minutes=70,
    ),
)
