"""Our routers, mixtures and placements on the inputs of official functions."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import intarsia.gating as gating
from intarsia.core import Routing
from intarsia.gating import RandomSource
from intarsia.mixtures import AdamOnce, Capacity, HeavyBall, Residual
from intarsia.mixtures.residual import Update
from intarsia.placement import Topology, Trace
from intarsia.placement.eplb import Eplb
from intarsia.routers import (
    Comet,
    Cosine,
    DSelectK,
    EvoMoe,
    PermutationSearch,
    Recurrent,
    TopK,
    k_sparse_ot,
)
from intarsia.routers.permutation import hungarian
from intarsia.routers.transport import sparse_simplex
from intarsia.routers.union import UnionGate
from intarsia.senses import Slime, UniMoe
from intarsia.senses.connectors import Resampler
from intarsia.senses.slime import TiledView, select_largest
from intarsia.senses.uni_moe import ModalityRouter
from intarsia.sparse.swap import read_me

from .gradients import Tensors, give


def draws() -> torch.Generator:
    return torch.Generator().manual_seed(0)


class Recorded(RandomSource):
    """A source that hands out the numbers that the official function drew."""

    def __init__(self, numbers: Tensor) -> None:
        super().__init__(draws())
        self.numbers = numbers

    def uniform(self, *shape: int) -> Tensor:
        return self.numbers.view(shape)

    normal = gumbel = uniform


def slime_resampler(tensors: Tensors) -> Tensors:
    resampler = Resampler(16, 16, generator=draws())
    give(resampler, queries=tensors["query"])
    for number, name in enumerate("qkv"):
        part = slice(16 * number, 16 * number + 16)
        give(resampler.get_submodule(name), weight=tensors["in_weight"][part])
        give(resampler.get_submodule(name), bias=tensors["in_bias"][part])
    give(resampler.o, weight=tensors["out_weight"], bias=tensors["out_bias"])
    for ours, theirs in (("norm_q", "q"), ("norm_kv", "kv"), ("norm_o", "post")):
        values = {n: tensors[f"ln_{theirs}_{n}"] for n in ("weight", "bias")}
        give(resampler.get_submodule(ours), values)
    return {"y": resampler(tensors["x"])}


def slime_selection(tensors: Tensors, top_p: float) -> Tensors:
    settings = Slime(whole=4, queries=4, budget=None, top_p=top_p, over=None)
    view = TiledView(settings, 8, 8, draws()).train()
    view.noise = Recorded(tensors["noise"])
    scores = view.scores(tensors["local"], tensors["text"], tensors["asked"])
    return {"scores": scores, "kept": select_largest(scores, top_p, None)}


def rmoe(tensors: Tensors) -> Tensors:
    routers = [Recurrent(4, 2, 5).build(6, generator=draws()) for _ in range(2)]
    gates = [tensors[f"gru.{w}_{s}{g}"] for w in ("weight", "bias") for s in "ih" for g in "rzn"]
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    cell = {
        name: torch.cat(gates[3 * number : 3 * number + 3]) for number, name in enumerate(names)
    }
    model = nn.ModuleList(routers)
    gating.join(model)
    gating.start(model)
    give(routers[0].cell, cell)
    outputs: Tensors = {}
    for number, router in enumerate(routers):
        give(router, down=tensors[f"down{number}"], weight=tensors[f"up{number}"])
        routing = router.eval()(tensors[f"x{number}"])
        assert routing.state is not None
        outputs |= {f"weights{number}": routing.dense(), f"state{number}": routing.state}
    return outputs


class Descent(nn.Module):
    """Minus a linear map behind a norm: the released code subtracts what experts say."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, x: Tensor) -> Tensor:
        return -F.layer_norm(x, x.shape[-1:]) @ self.weight.T


def stream(tensors: Tensors, update: Update) -> Tensors:
    """The residual stream after each of three blocks."""
    model = nn.Sequential(*(Residual(Descent(tensors[f"weight{n}"]), update) for n in range(3)))
    gating.join(model)
    gating.start(model)
    x, outputs = tensors["x"], dict[str, Tensor]()
    for number, block in enumerate(model):
        x = outputs[f"y{number}"] = block(x)
    return outputs


def momentum_smoe(tensors: Tensors, mu: float, gamma: float) -> Tensors:
    return stream(tensors, HeavyBall(mu, gamma))


def adam_smoe(tensors: Tensors, **settings: float) -> Tensors:
    return stream(tensors, replace(AdamOnce.published(), **settings))  # pyright: ignore


def evomoe(tensors: Tensors, tau: float) -> Tensors:
    outputs: Tensors = {}
    for kind in ("plain", "gumbel"):
        settings = EvoMoe(4, (tau, tau), hard_after=None, weights=kind, balance=1.0)
        router = settings.build(5, generator=draws())
        give(router, weight=tensors["weight"])
        router.noise = Recorded(tensors["noise"])
        routing = router(tensors["x"])
        outputs |= {f"{kind}_weights": routing.dense()}
        outputs |= {f"{kind}_loss": routing.losses["balance"].reshape(1)}
    return outputs


def read_me_gate(tensors: Tensors) -> Tensors:
    layers = {str(number): hidden for number, hidden in enumerate(tensors["hidden"])}
    masks, model = dict.fromkeys(layers, tensors["masks"].bool()), nn.Module()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "forward", lambda **_: None)
        patch.setattr(read_me, "hidden_units", lambda _: contextlib.nullcontext(layers))
        targets = read_me.pregate_targets(model, masks, {})
    loss = read_me.gate_loss(tensors["logits"].flatten(0, 1), targets.flatten(1, 2))
    return {"targets": targets, "loss": loss.reshape(1)}


def union_of_experts(tensors: Tensors, share: float) -> Tensors:
    router = UnionGate(6, share, "tokens").build(5, generator=draws()).eval()
    give(router, weight=tensors["weight"], bias=tensors["bias"])
    return {"taken": router(tensors["x"]).dense().view(3, 8, 6) > 0}


def eplb(tensors: Tensors, redundant: int) -> Tensors:
    outputs: Tensors = {}
    for kind, groups in (("groups", 4), ("global", 1)):
        expert = tensors[f"{kind}_expert"]
        row = torch.arange(len(expert))
        trace = Trace(expert, 12, row, torch.zeros_like(row))
        holds = Eplb(redundant, groups).place(trace, Topology.two_level(2, 2)).holds
        outputs |= {f"{kind}_holds": holds, f"{kind}_copies": holds.sum(1)}
    return outputs


def linear_top(tensors: Tensors, active: int, **settings: Any) -> Routing:
    router = TopK(len(tensors["weight"]), active, balance=1.0, **settings)
    built = router.build(tensors["x"].shape[1], generator=draws())
    give(built, weight=tensors["weight"])
    return built(tensors["x"])


def deepspeed_top1(tensors: Tensors, factor: float, least: int) -> Tensors:
    routing = linear_top(tensors, 1, scale="prob")
    limit = Capacity(factor, "random", least).limit
    kept_pairs = limit(routing, training=True, draws=Recorded(tensors["uniform"]))
    loss = routing.losses["balance"].reshape(1)
    return {"weights": kept_pairs.dense(), "counts": routing.load(), "loss": loss}


def deepspeed_top2(tensors: Tensors) -> Tensors:
    routing = linear_top(tensors, 2)
    return {"weights": routing.dense(), "counts": routing.load()}


def tutel_gate(tensors: Tensors) -> Tensors:
    routing, first = linear_top(tensors, 2), linear_top(tensors, 1, scale="prob")
    return {
        "linear_weights": routing.dense(),
        "linear_largest": routing.load().max().reshape(1),
        "linear_loss": first.losses["balance"].reshape(1),
    }


def tutel_cosine(tensors: Tensors) -> Tensors:
    routings: dict[int, Routing] = {}
    for active in (1, 2):
        router = Cosine(5, active, 4, balance=1.0).build(6, generator=draws())
        give(router.project, weight=tensors["project_weight"], bias=tensors["project_bias"])
        give(router, directions=tensors["directions"].T, log_scale=tensors["log_scale"])
        routings[active] = router(tensors["x"])
    return {
        "weights": routings[2].dense(),
        "largest": routings[2].load().max().reshape(1),
        "loss": routings[1].losses["balance"].reshape(1),
    }


def uni_moe(tensors: Tensors) -> Tensors:
    router = ModalityRouter(UniMoe(active=2).routing(), 6, generator=draws())
    give(router, weight=tensors["weight"])
    return {"weights": router(tensors["x"]).dense()}


def sparse_transport(tensors: Tensors, gamma: float, iterations: int) -> Tensors:
    problem = tensors["cost"], tensors["a"], tensors["b"]
    plans = {
        f"plan_{k}": k_sparse_ot(*problem, k, gamma=gamma, iterations=iterations) for k in (9, 24)
    }
    return plans | {"projected": sparse_simplex(tensors["values"], 3)}


def comet(tensors: Tensors, gamma: float, active: int) -> Tensors:
    router = Comet(4, active, gamma, entropy=1.0).build(5, generator=draws())
    names = ("splits", "offsets", "leaves", "leaf_offsets")
    give(router, **{n: tensors[n].view_as(router.get_parameter(n)) for n in names})
    routing = router(tensors["x"])
    return {"weights": routing.dense(), "entropy": routing.losses["entropy"].reshape(1)}


def comet_permutation(tensors: Tensors, steps: int, step: int) -> Tensors:
    search = PermutationSearch(Comet(5), steps=steps, per_part=True).build(1, generator=draws())
    give(search, scores=tensors["scores"].mT)
    search.before_step(step, steps)
    soft = search.soft().mT
    order = torch.stack([hungarian(plan.detach()) for plan in soft])
    return {"soft": soft.float(), "hard": F.one_hot(order, 5).float()}


def dselect_k(tensors: Tensors, gamma: float, active: int) -> Tensors:
    router = DSelectK(6, active, gamma).build(5, generator=draws())
    bits = tensors["bits"].view(active, 3, 5).flip(1)  # ours writes the last bit first
    give(router, bits=bits.flatten(0, 1), mix=tensors["mix"])
    return {"weights": router(tensors["x"]).dense()}
