"""The adapters' side of the comparisons: the same inputs, given to ours."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import intarsia
from intarsia import Bottleneck, Lora, Mosa, TopK
from intarsia.adapters import Fourier, Mos
from intarsia.core import Partition, Site
from intarsia.formats import Gaussian
from intarsia.gating import aux_loss
from intarsia.methods import Adamix, MixLora, Pace, Poly, S2ft
from intarsia.mixtures import SplitLinear
from intarsia.senses import LlavaMole
from intarsia.sparse import LtSft
from intarsia.train import OnePass, TargetLoss, pace, two_pass
from intarsia.train.one_pass import Memory

from .gradients import Tensors, give


def drawing() -> torch.Generator:
    return torch.Generator().manual_seed(0)


# MoSA


def mosa_cell(tensors: Tensors, split: str) -> Any:
    """Build the cell whose sides are those of the official block."""
    width = tensors["x"].shape[-1]
    rank = len(tensors.get("down_weight", tensors.get("down_value")))
    over = Bottleneck(rank, "adaptformer", "gelu", "residual", 0.1)
    method = Mosa(over, 4, split=split, draw="batch", scaling="paper", decay="official")
    # the host's own norm before the site has no gain and no shift here
    site = Site("b", width, width, method.position, norm=(torch.ones(width), torch.zeros(width)))
    cell: Any = method.build(site, generator=drawing())
    give(cell.body.norm, {n: tensors[f"norm_{n}"] for n in ("weight", "bias")})
    for side in ("down", "up"):
        layer = getattr(cell.body, side)
        if isinstance(layer, SplitLinear):
            give(layer, {"weight": tensors[f"{side}_value"], "biases": tensors[f"{side}_biases"]})
            layer.owner.copy_(tensors[f"{side}_owner"])
            if layer.start is not None:
                layer.start.copy_(tensors[f"{side}_start"])
        else:
            give(layer, {n: tensors[f"{side}_{n}"] for n in ("weight", "bias")})
    return cell


def mosa_outputs(tensors: Tensors, split: str) -> Tensors:
    """Compute the addition of each expert, on both sides where both are split, and of the merge."""
    cell, x = mosa_cell(tensors, split), F.layer_norm(tensors["x"], (12,), eps=1e-6)
    outputs = {"merged": cell.eval()(x)}
    for expert, gate in enumerate(torch.eye(4)):
        sides = [getattr(cell.body, side) for side in ("down", "up")]
        parts = [partial(s, gates=gate[None]) if isinstance(s, SplitLinear) else s for s in sides]
        outputs[f"expert_{expert}"] = cell.body.compute(x, *parts)
    return outputs


mosa_experts = mosa_both_sides = mosa_outputs


def adamix(tensors: Tensors) -> Tensors:
    x, (_, rank, width) = tensors["x"], tensors["down_weights"].shape
    over = Bottleneck(rank, "adaptformer", "gelu", "none", 1.0)
    cell: Any = Adamix(over, 4).build(Site("b", width, width, "parallel"), generator=drawing())
    down = {n: tensors[f"down_{n}"][0] for n in ("weights", "biases")}
    give(cell.body.down, {"weight": down["weights"], "bias": down["biases"]})
    give(cell.body.up, {n: tensors[f"up_{n}"] for n in ("weights", "biases")})
    outputs = {"merged": cell.eval()(x)}
    for expert, gate in enumerate(torch.eye(4)):
        up = partial(cell.body.up, gates=gate[None])
        outputs[f"expert_{expert}"] = cell.body.compute(x, cell.body.down, up)
    return outputs


def mosa_two_passes(tensors: Tensors) -> Tensors:
    class Passes(nn.Module):
        def forward(self, _x: Tensor) -> Tensor:
            return torch.cat([tensors["first"], tensors["second"]])

    loss_of = TargetLoss(F.cross_entropy, tensors["labels"])
    return {"loss": two_pass(Passes(), tensors["first"], loss_of).loss}


# mixtures of LoRA experts


class GatedMlp(nn.Module):
    """The MLP of a Llama."""

    def __init__(self, tensors: Tensors) -> None:
        super().__init__()
        hidden, width = tensors["mlp_gate_proj"].shape
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)
        self.act_fn = nn.SiLU()
        for name in ("gate_proj", "up_proj", "down_proj"):
            give(self, {f"{name}.weight": tensors[f"mlp_{name}"]})

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


def mlp_experts(method: Any, tensors: Tensors) -> tuple[Any, GatedMlp]:
    """Build the experts of a method beside that MLP, with the official weights."""
    mlp = GatedMlp(tensors)
    layers = tuple(
        (n, m.in_features, m.out_features)
        for n, m in mlp.named_children()
        if isinstance(m, nn.Linear)
    )
    width = tensors["x"].shape[-1]
    site = Site("mlp", width, width, "parallel", layers=layers)
    cell: Any = method.build(site, generator=drawing())
    router = {n: tensors[f"router_{n}"] for n in ("weight", "bias") if f"router_{n}" in tensors}
    give(cell.router, router)
    for name, *_ in layers:
        for expert, lora in enumerate(cell.experts[name]):
            a, b = (tensors[f"{name}_{side}"][expert] for side in "ab")
            give(lora, {"down.weight": a, "up.weight": b})
    return cell, mlp


def llava_mole(tensors: Tensors) -> Tensors:
    method = LlavaMole(3, Lora(2, 4.0), attention=None)
    cell, mlp = mlp_experts(method, tensors)
    y = cell.around(mlp, tensors["x"])
    # the released loss is the mean over experts, of which ours is the sum times their number
    return {"y": y, "balance": aux_loss(cell) / (method.balance * method.experts)}


def mixlora(tensors: Tensors) -> Tensors:
    cell, mlp = mlp_experts(MixLora(TopK(4, 2), Lora(2, 4.0), attention=None), tensors)
    return {"y": cell.around(mlp, tensors["x"])}


# low rank, few bits, slices


def bi_bits(tensors: Tensors, bits: int) -> Tensors:
    form, weight = Gaussian(bits), tensors["weight"].clone().requires_grad_()
    y = F.linear(tensors["x"], form.quantise(weight))
    (gradient,) = torch.autograd.grad((y * tensors["grad_of_output"]).sum(), weight)
    stored = form.encode(weight)
    decoded = form.decode(stored, weight.shape)
    return {"y": y, "gradient": gradient, "decoded": decoded, "bytes": stored["codes"]}


bi_1_bit = bi_2_bit = bi_4_bit = bi_bits


def s2ft_slices(tensors: Tensors, side: str, first: int, last: int) -> Tensors:
    outputs, inputs = tensors["weight"].shape
    path, share = (
        ("b.fc2", {"down": 0.3}) if side == "inputs" else ("b.fc1", {"down": 0, "up": 0.3})
    )
    method = S2ft(**share, channels=((path, f"{first}-{last - 1}"),))
    cell: Any = method.build(Site(path, inputs, outputs), generator=drawing())
    give(cell, {"weight": tensors["s"]})
    x = tensors["x"].clone().requires_grad_()
    y = F.linear(x, tensors["weight"], tensors["bias"]) + cell(x)
    grad_x, grad_s = torch.autograd.grad((y * tensors["grad_of_output"]).sum(), (x, cell.weight))
    fused = tensors["weight"] + cell.delta()
    return {"y": y, "grad_x": grad_x, "grad_s": grad_s, "fused": fused}


s2ft_row = s2ft_column = s2ft_slices


def mos(tensors: Tensors, rank: int, shards_per_vector: int, alpha: float) -> Tensors:
    method = Mos(rank, 4, shards_per_vector, 0, alpha=alpha)
    (rows, inputs), (_, outputs) = tensors["pool_a"].shape, tensors["pool_b"].shape
    site = Site("b", inputs * shards_per_vector, outputs * shards_per_vector)
    cell: Any = method.build(site, generator=drawing())
    (pool,) = cell.shared.pools.values()
    assert len(pool.a) == rows
    give(pool, {"a": tensors["pool_a"], "b": tensors["pool_b"]})
    cell.a, cell.b = tensors["rows_a"], tensors["rows_b"]
    a, b = cell.sides()
    return {"y": cell(tensors["x"]), "a": a, "b": b}


def peft_lora(tensors: Tensors, rank: int, alpha: float) -> Tensors:
    site = Site("b", tensors["down"].shape[1], len(tensors["up"]))
    cell: Any = Lora(rank, alpha).build(site, generator=drawing())
    give(cell, {"down.weight": tensors["down"], "up.weight": tensors["up"]})
    return {"y": cell(tensors["x"]), "delta": cell.delta()}


def peft_fourierft(tensors: Tensors, entries: int, alpha: float) -> Tensors:
    x = tensors["x"]
    cell: Any = Fourier(entries, alpha).build(Site("b", x.shape[1], 8), generator=drawing())
    give(cell, {"coefficients": tensors["coefficients"]})
    places = torch.stack([cell.place // x.shape[1], cell.place % x.shape[1]])
    return {"y": cell(x), "delta": cell.delta(), "places": places}


# skills by task


def skills_cell(tensors: Tensors, heads: int, alpha: float, down: Tensor, up: Tensor) -> Any:
    """Build Poly's cell.  down: (Q, S, r, d_in / Q); up: (Q, S, d_out / Q, r)."""
    tasks, inputs = len(tensors["logits"]), tensors["x"].shape[-1]
    skills, rank = down.shape[1:3]
    method = Poly(tasks, skills, heads, rank, alpha)
    outputs = up.shape[2] * heads
    cell: Any = method.build(Site("b", inputs, outputs), generator=drawing())
    logits = tensors["logits"].view(tasks, heads, skills)
    give(cell, {"down": down, "up": up, "router.logits": logits})
    return cell.train()


def mttl_skills(tensors: Tensors, heads: int) -> Tensors:
    # theirs: (S, Q, d, r) and (S, r, Q, d)
    down, up = tensors["a"].permute(1, 0, 3, 2), tensors["b"].permute(2, 0, 3, 1)
    cell = skills_cell(tensors, heads, 1.5 * down.shape[2], down, up)
    with intarsia.gating.task_ids(cell, tensors["tasks"]):
        routing = cell.router(tensors["x"])
        y = cell(tensors["x"])
    return {"y": y, "weights": routing.dense().view(-1, heads, down.shape[1])}


poly = mhr = mttl_skills


def mhr_start(_: Tensors, inputs: int, outputs: int, heads: int) -> Tensors:
    method = Poly(skills=500, heads=heads, rank=4)
    cell: Any = method.build(Site("b", inputs, outputs), generator=drawing())
    return {"largest": cell.down.detach().abs().max()[None]}


def peft_poly(tensors: Tensors, heads: int) -> Tensors:
    # theirs: (Q, S, d, r) and (Q, S, r, d), and a scale of 1 / r
    cell = skills_cell(tensors, heads, 1.0, tensors["a"].mT, tensors["b"].mT)
    with intarsia.gating.task_ids(cell, tensors["tasks"]):
        return {"y": cell.eval()(tensors["x"])}


# PACE


def pace_noise(tensors: Tensors, sigma: float) -> Tensors:
    rank, width = tensors["down"].shape
    cell: Any = Pace(Lora(rank), sigma=sigma).build(Site("b", width, width), generator=drawing())
    give(cell.body, {"down.weight": tensors["down"], "up.weight": tensors["up"]})
    cell.noise.normal = lambda *_: tensors["noise"]
    x = tensors["x"]
    return {"y": cell.train()(x), "evaluation": cell.eval()(x)}


def linear_of(tensors: Tensors) -> nn.Linear:
    head = nn.Linear(*reversed(tensors["weight"].shape))
    give(head, {"weight": tensors["weight"], "bias": tensors["bias"]})
    return head


def pace_loss(tensors: Tensors, weight: float) -> Tensors:
    head = linear_of(tensors)

    class Disturbed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return head(x * (1 + tensors["noise"]))

    loss_of = TargetLoss(F.cross_entropy, tensors["labels"])
    outcome = pace(Disturbed(), tensors["x"], loss_of, weight=weight)
    grad_weight, grad_bias = torch.autograd.grad(outcome.loss, (head.weight, head.bias))
    parts = {"loss": outcome.loss, "distance": outcome.parts["distance"]}
    return parts | {"grad_weight": grad_weight, "grad_bias": grad_bias}


def pace_fast(tensors: Tensors, weight: float) -> Tensors:
    head, memory = linear_of(tensors), Memory(OnePass(weight), 9)
    outputs: Tensors = {}
    for step in range(2):
        index, labels = tensors[f"index_{step}"], tensors[f"labels_{step}"]
        objective = memory.of(index.tolist())
        outcome = objective(head, tensors[f"x_{step}"], TargetLoss(F.cross_entropy, labels))
        (outputs[f"grad_{step}"],) = torch.autograd.grad(outcome.loss, head.weight)
        outputs[f"loss_{step}"] = outcome.loss
        head.weight.data += 0.1
    return outputs | {"history": memory.logits}


def pace_fast_later(tensors: Tensors, weight: float) -> Tensors:
    head, memory = linear_of(tensors), Memory(OnePass(weight), 9)
    memory.load_state({"logits": tensors["history"], "known": torch.ones(9, dtype=torch.bool)})
    objective = memory.of(tensors["index"].tolist())
    outcome = objective(head, tensors["x"], TargetLoss(F.cross_entropy, tensors["labels"]))
    (grad,) = torch.autograd.grad(outcome.loss, head.weight)
    return {"loss": outcome.loss, "grad": grad, "history": memory.logits}


# LT-SFT


def lt_sft_mask(tensors: Tensors, count: int, iterations: int) -> Tensors:
    method: Any = LtSft(count=count, iterations=iterations)
    names = [name.removeprefix("start_") for name in tensors if name.startswith("start_")]
    drift = {name: tensors[f"moved_{name}"] - tensors[f"start_{name}"] for name in names}
    partition = Partition({n: torch.full(drift[n].shape, -1) for n in names}, 1)
    total = sum(value.numel() for value in drift.values())
    outputs: Tensors = {}
    for name_of_step, share in zip(("first", "second"), method.shares(total), strict=True):
        partition = method._select_more(partition, share, drift, drawing())
        outputs |= {f"{name_of_step}_{name}": partition.mask(name, 0) for name in names}
    return outputs
