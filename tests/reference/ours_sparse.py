"""Ours on the references of pruning, sparse training, few bits and attention spans."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import intarsia
from intarsia.core import NofM
from intarsia.formats import Ternary
from intarsia.methods.qmoe import Qmoe
from intarsia.mixtures.sparse_soup import mixed
from intarsia.partitions import choose_and_compensate, keep_n_of_m, keep_rows
from intarsia.partitions.swaps import swap
from intarsia.schedules import Dsl, RigL
from intarsia.schedules.drop_and_grow import DropAndGrow
from intarsia.schedules.retrain import Retrain
from intarsia.schedules.scored import Scored
from intarsia.scores import Statistics, magnitude, wanda
from intarsia.scores.influence import influence
from intarsia.train.outcome import kl
from intarsia.train.squarehead import relative_error

Tensors = dict[str, Tensor]


def _seen(x: Tensor) -> Statistics:
    return Statistics.of(x.flatten(0, -2), hessian=True)


def wanda_score(tensors: Tensors, density: float) -> Tensors:
    """The released score is larger by the root of a row's tokens."""
    weight, x = tensors["weight"], tensors["x"]
    score = wanda(weight, _seen(x))
    rows, pairs = keep_rows({"": score}, density), keep_n_of_m({"": score}, 2, 4)
    masks = {"mask": rows.mask("", 0), "mask_2_4": pairs.mask("", 0)}
    return {"score": score * x.shape[1] ** 0.5, **masks}


def sparsegpt_prune(tensors: Tensors, block: int, damp: float) -> Tensors:
    weight, statistics = tensors["weight"], _seen(tensors["x"])
    half = choose_and_compensate(weight, statistics, 0.5, block=block, damp=damp)[1]
    pattern = NofM(2, 4)
    pairs = choose_and_compensate(weight, statistics, pattern=pattern, block=block, damp=damp)[1]
    return {"half": half, "2_4": pairs}


def dsnot_swaps(tensors: Tensors, density: float) -> Tensors:
    """Swaps from two masks, with the sign rule of the paper and six without it."""
    weight, statistics = tensors["weight"], _seen(tensors["x"])
    masks: Tensors = {}
    for base in (wanda, magnitude):
        mask = keep_rows({"": base(weight, statistics)}, density).mask("", 0)
        for name, cycles in (("", 50), ("_free", 6)):
            swapped = swap(
                weight,
                mask,
                statistics,
                wanda(weight, statistics),
                cycles=cycles,
                tolerance=0,
                guard=not name,
            )
            masks[base.__name__ + name] = swapped.kept
    return masks


def qmoe_ternary(tensors: Tensors, damp: float) -> Tensors:
    """Levels are given as they are, in float32."""
    weight = tensors["weight"]
    ends = torch.stack([weight.amin(2).clamp(max=0), weight.amax(2).clamp(min=0)], 2)
    statistics = [_seen(x) for x in tensors["x"]]
    outputs = {
        name: Qmoe(start=start, damp=damp).rounded(weight, statistics, ends.flatten(0, 1))[0]
        for name, start in (("nearest", "rtn"), ("compensated", "gptq"))
    }
    return outputs


def qmoe_dictionary(tensors: Tensors, zeros: float, first: int) -> Tensors:
    """The first words in alphabetical order, pairs of digits as a + 3 b, -1 behind the end."""
    ternary = Ternary(zeros).dictionary
    pairs = ternary.digits[:first].view(first, -1, 2).to(torch.int8)
    words = pairs[..., 0] + 3 * pairs[..., 1]
    words[torch.arange(words.shape[1]) >= ternary.lengths[:first, None] // 2] = -1
    words = torch.tensor(sorted(words.tolist()), dtype=torch.int8)
    return {"words": words, "words_by_length": torch.bincount(ternary.lengths // 2, minlength=15)}


def squarehead_loss(tensors: Tensors, eps: float, temperature: float) -> Tensors:
    """Both losses of a student and a teacher whose blocks give what is given."""
    keep = tensors["mask"].bool()
    pairs = zip(tensors["student"], tensors["teacher"], strict=True)
    feature = torch.stack([relative_error(s, t, keep, eps) for s, t in pairs]).sum()
    counts = tensors["labels"] != -100
    soft, student = (tensors[f"{role}_logits"][counts] for role in ("teacher", "student"))
    return {
        "feature": feature,
        "divergence": temperature**2 * kl(soft / temperature, student / temperature),
    }


def moa_influence(tensors: Tensors, block: int) -> Tensors:
    effects = influence(tensors["attention"], tensors["gradient"])
    blocks = effects.abs().tril().unfold(2, block, block).unfold(3, block, block).sum((-1, -2))
    return {"influence": effects, "blocks": blocks}


def _grown(
    method: DropAndGrow, tensors: Tensors, steps: int, steps_done: tuple[int, ...]
) -> Tensors:
    """Masks and weights after a change at each of some steps."""
    weight, mask_before, grad = tensors["weight"], tensors["mask"].bool(), tensors["gradient"]
    outputs: Tensors = {}
    for step in steps_done:
        draw = torch.Generator()
        mask = method.update({"": weight}, {"": mask_before}, {"": grad}, (step, steps), draw)[""]
        outputs |= {f"mask_{step}": mask, f"weight_{step}": weight * (mask & mask_before)}
    return outputs


def rigl_update(tensors: Tensors, drop: float, steps: int) -> Tensors:
    return _grown(RigL(drop=drop, stop=1), tensors, steps, (100, 400))


def dsl_update(tensors: Tensors, drop: float, steps: int) -> Tensors:
    method = Dsl(drop=drop, memory=0)
    rates = torch.tensor([method.share(step, steps) for step in (100, 500)])
    return _grown(method, tensors, steps, (100, 500)) | {"rates": rates}


def sms_average(tensors: Tensors) -> Tensors:
    return {"soup": mixed([{"": tensors[str(i)]} for i in range(3)])[""]}


def sms_retrain(tensors: Tensors, moved: float, steps: int) -> Tensors:
    """Rates of a third of the steps of the first training."""
    outputs: Tensors = {}
    for kind in ("llr", "allr", "slr", "lrw", "ft"):
        factor = Retrain(kind, share=1 / 3).factor(moved)
        assert factor is not None
        outputs[kind] = torch.tensor([factor(step, steps) for step in range(steps)])
    return outputs


def sparse_ift_ranks(tensors: Tensors, sparsities: list[float]) -> Tensors:
    """Inner channels of 3 x 3 convolutions of both kinds."""
    outputs: Tensors = {}
    for kind in ("doped", "factorised"):
        ranks = [
            [_inner(kind, ins, outs, 1 - sparsity) for sparsity in sparsities]
            for ins, outs in tensors["sizes"].tolist()
        ]
        outputs[kind] = torch.tensor(ranks)
    return outputs


def _inner(kind: str, ins: int, outs: int, density: float) -> int:
    layers = [nn.Conv2d(ins, outs, 3, bias=False), nn.BatchNorm2d(outs)]
    net = nn.Sequential(nn.Conv2d(3, ins, 1), *layers, nn.Conv2d(outs, 2, 1))
    changed = intarsia.apply(net, intarsia.sparse.SparseIft(kind, density))
    inner: Any = changed.get_submodule("1.u")
    return inner.out_channels


def dass_scores(tensors: Tensors, density: float) -> Tensors:
    """Scores as they start, and a linear map and a convolution with scores that have moved."""
    outputs: Tensors = {}
    for name, layer in (("linear", F.linear), ("conv", F.conv2d)):
        weight = tensors[f"{name}_weight"].requires_grad_()
        scored = Scored(weight, density)
        outputs[f"{name}_start"] = scored.scores.clone()
        with torch.no_grad():
            scored.scores.copy_(tensors[f"{name}_scores"])
        used = scored(weight)
        y = layer(tensors[f"{name}_x"], used, tensors.get(f"{name}_bias"))
        inputs = (scored.scores, weight)
        score_grad, weight_grad = torch.autograd.grad(y, inputs, tensors[f"{name}_gradient"])
        outputs |= {f"grad_{name}_scores": score_grad, f"grad_{name}_weight": weight_grad}
        outputs |= {f"{name}_y": y, f"{name}_mask": used != 0}
    return outputs
