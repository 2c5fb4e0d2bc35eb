"""Mixtures of LoRA experts against plain LoRA on tasks that conflict, and what sharing saves."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaMLP

from ..adapters import Lora
from ..core import Claim, Method, Result, Routing, Site
from ..core.claim import Report
from ..experiments.pool import Arm
from ..fitting import fit
from ..gating import learned_routers
from ..hosts import adapt
from ..kernels.experts import add_mix
from ..methods import LlavaMole, MixLora
from ..mixtures.lora_experts import OutputExperts, dealt
from ..results.sheet import Sheet, deviation
from ..routers import TopK
from . import mix6
from .study import each, result_of, shown, threads

RANK, EXPERTS, STEPS, LR, MARKS = 4, 4, 1500, 5e-3, 8  # as in the feasibility study
SHAPE = {"tokens": 2048, "width": 576, "hidden": 1536}  # SmolLM2-135M's MLP


class Trained(NamedTuple):
    """A method on the MLPs of MIX6, and for how many times the steps."""

    method: Method
    times: int = 1


def mole(scale: str) -> Arm[Trained]:
    method = LlavaMole(EXPERTS, Lora(RANK), scale, attention=None)
    return Arm(f"MoLE, E = {EXPERTS}, r = {RANK}, scale {scale!r}", Trained(method))


def mix(experts: int) -> Arm[Trained]:
    method = MixLora(TopK(experts, 2), Lora(RANK), attention=None)
    return Arm(f"MixLoRA, E = {experts}, k = 2, r = {RANK}", Trained(method))


LORA = Arm(f"LoRA, r = {RANK}", Trained(Lora(RANK)))
LONG = Arm(f"LoRA, r = {RANK}, twice the steps", Trained(Lora(RANK), times=2))
ACTIVE = Arm(f"LoRA, r = {2 * RANK}, as many as a token's", Trained(Lora(2 * RANK)))
EQUAL = Arm(f"LoRA, r = {8 * RANK}, as many as all experts'", Trained(Lora(8 * RANK)))
MOLE, MIX = mole("prob"), mix(8)


class MixtureRun(NamedTuple):
    """Error on the test digits, CPU seconds, and the largest share of an expert's tokens."""

    error: float
    cpu: float
    share: float


def train(arm: Trained, marks: int, seed: int) -> MixtureRun:
    """One arm on all tasks."""
    targets = ["fc1", "fc2"] if isinstance(arm.method, Lora) else ["mlp"]
    start = time.process_time()
    model = adapt(mix6.backbone(marks), arm.method, targets=targets, head=None, seed=seed)
    rows, epochs = mix6.data("train", marks=marks), mix6.epochs(STEPS * arm.times)
    fit(model, rows, epochs=epochs, batch_size=mix6.BATCH, lr=LR, seed=seed)
    spent = time.process_time() - start
    return MixtureRun(mix6.error(model, marks=marks), spent, largest_share(model, marks))


@torch.no_grad()
def largest_share(model: nn.Module, marks: int) -> float:
    """The largest share of an expert in a block's pairs, on the training digits; 0 for LoRA."""
    model.train()(mix6.data("train", marks=marks).tensors[0])
    routings = [r.last for r in learned_routers(model).values() if r.last is not None]
    return max((float(r.load().max() / r.load().sum()) for r in routings), default=0.0)


def ratio(
    seeds: Sequence[int],
    report: Report,
    *,
    ours: Arm[Trained],
    base: Arm[Trained],
    beside: Sequence[Arm[Trained]] = (),
    marks: int = 0,
) -> Result:
    """The mean error of one arm over that of another; one value for each seed."""
    arms = base, ours, *beside
    found = each(arms, seeds, lambda arm, _, seed: train(arm, marks, seed), report)
    errors = {name: found.of(name, "error")[0] for name in found.arms}  # (seeds,) each
    mine, theirs = errors[ours.name], errors[base.name]
    values = tuple((mine / theirs).tolist())
    where = f"each task told by {marks} marks in the input" if marks else "no mark of the task"
    note = (
        f"Six tasks mixed, {where}; {STEPS} steps of {mix6.BATCH}, lr {LR}, adapters on both "
        "linear layers of six blocks, no head trained. The last column is the largest share that "
        "one expert has in a block's pairs of a token and an expert, after training."
    )
    rows = tuple(row(found, name, base.name) for name in found.arms)
    return Result(float(mine.mean() / theirs.mean()), deviation(values), values, rows, note)


def row(found: Sheet[str, Any, MixtureRun], name: str, base: str) -> Mapping[str, Any]:
    """One line of the table."""
    errors, share = found.of(name, "error"), float(found.of(name, "share").max())
    return {
        "arm": name,
        "error, %": shown((100 * errors[0]).tolist(), ".2f"),
        "over the baseline": f"{errors.mean() / found.of(base, 'error').mean():.3f}",
        "CPU, s": f"{np.median(found.of(name, 'cpu')):.0f}",
        "largest share": f"{share:.2f}" if share else "",
    }


def shared_mlp(seed: int) -> tuple[OutputExperts, nn.Module, Tensor, Routing]:
    """MixLoRA's published cell on an MLP of SmolLM2-135M's shape with random weights."""
    width, hidden = SHAPE["width"], SHAPE["hidden"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mlp = LlamaMLP(LlamaConfig(hidden_size=width, intermediate_size=hidden)).eval()
        x = torch.randn(SHAPE["tokens"], width)
    layers = tuple(
        (n, m.in_features, m.out_features)
        for n, m in mlp.named_children()
        if isinstance(m, nn.Linear)
    )
    generator = torch.Generator().manual_seed(seed)
    method = MixLora(attention=None)
    cell = method.build(Site("mlp", width, width, layers=layers), generator=generator)
    assert isinstance(cell, OutputExperts)
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.02)
    cell.eval()
    return cell, mlp, x, cell.router(x)


def naive(cell: OutputExperts, mlp: nn.Module, x: Tensor, routing: Routing) -> Tensor:
    """Every active expert's whole MLP on its rows."""

    def weighted(e: int, rows: Tensor, weight: Tensor) -> Tensor:
        return cell.alone(mlp, e, rows) * weight[:, None]

    y = torch.zeros_like(x)
    add_mix(dealt(routing), x, (y, [partial(weighted, e) for e in range(routing.experts)]))
    return y


@torch.no_grad()
def time_shared(seeds: Sequence[int], report: Report, reps: int = 15) -> Result:
    """Wall time of the shared forward over the naive one, medians of interleaved calls."""
    values: list[float] = []
    table: list[Mapping[str, Any]] = []
    with threads(1):
        for seed in seeds:
            cell, mlp, x, routing = shared_mlp(seed)
            jobs = {
                "naive": partial(naive, cell, mlp, x, routing),
                "shared": partial(cell.mixed, mlp, x, routing),
                "bare MLP": partial(mlp, x),
            }
            off = float((jobs["naive"]() - jobs["shared"]()).abs().max())
            times: dict[str, list[float]] = {name: [] for name in jobs}
            for _ in range(reps):
                for name, job in jobs.items():
                    start = time.perf_counter()
                    job()
                    times[name].append(time.perf_counter() - start)
            ms = {name: 1e3 * statistics.median(t) for name, t in times.items()}
            # outputs that differ are no speed-up
            values.append(ms["shared"] / ms["naive"] if off <= 1e-5 else float("inf"))
            table.append(
                {"seed": seed}
                | {f"{n}, ms": f"{t:.0f}" for n, t in ms.items()}
                | {"shared / naive": f"{values[-1]:.3f}", "largest difference": f"{off:.1e}"}
            )
            report(f"seed {seed}: {values[-1]:.3f}, outputs differ by {off:.1e}")
    note = (
        f"Forward of an MLP of SmolLM2-135M's shape, {SHAPE['tokens']} tokens of width "
        f"{SHAPE['width']}, {SHAPE['hidden']} hidden units, E = 8, k = 2, r = 16, float32, one "
        "thread; the router's own work is on neither side. By products of the frozen matrices "
        "alone the ratio is 3 / 6: gate, up and down once for a token instead of once for each of "
        "its experts; the paper, which repeats down, has 4 / 6."
    )
    return result_of(values, table, note)


CONFLICT = "a plain LoRA of an expert's rank on the same layers, as many steps"

claim = partial(Claim, sense="<=", minutes=5)

CLAIMS = (
    claim(
        "llava-mole",
        system="LLaVA-MoLE",
        sentence="One LoRA expert a token resolves the conflict of domains that a plain LoRA of "
        "the same active rank suffers (arXiv:2401.16160, abstract).",
        baseline=CONFLICT,
        bar=0.85,
        run=partial(ratio, ours=MOLE, base=LORA, beside=(mole("ste"), mole("none")), marks=MARKS),
    ),
    claim(
        "llava-mole-twice",
        sentence="A mixture of LoRA experts is better than a plain LoRA that sees twice the "
        "samples (arXiv:2401.16160, abstract).",
        baseline="a plain LoRA of an expert's rank, twice the steps",
        bar=1.0,
        run=partial(ratio, ours=MOLE, base=LONG, marks=MARKS),
        minutes=3,
    ),
    claim(
        "llava-mole-unmarked",
        sentence="Where no input says which domain it is from, one LoRA expert a token is no worse "
        "than a plain LoRA of the same active rank.",
        baseline=CONFLICT,
        bar=1.0,
        run=partial(ratio, ours=MOLE, base=LORA, beside=(mole("ste"), mole("none"))),
    ),
    claim(
        "mixlora",
        system="MixLoRA",
        sentence="A mixture of LoRA experts is more accurate than one LoRA of as many parameters "
        "(arXiv:2404.15159, section 4).",
        baseline="a plain LoRA with the rank of all experts together, as many steps",
        bar=0.90,
        run=partial(ratio, ours=MIX, base=EQUAL, beside=(LORA, ACTIVE)),
        minutes=7,
    ),
    claim(
        "mixlora-time",
        sentence="Experts that share the products of their frozen MLP are faster than whole MLPs, "
        "with the same outputs (arXiv:2404.15159, section 3.3).",
        baseline="the MLP of every active expert by itself, rows sorted by expert",
        bar=0.85,
        run=time_shared,
        minutes=0.5,
    ),
)
