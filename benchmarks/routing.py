"""A mixture layer next to transformers' Mixtral block, dense MLPs and its own routers.

    python benchmarks/routing.py                 # the tables on the terminal
    python benchmarks/routing.py --write         # and into docs/benchmarks/routing.md
    python benchmarks/routing.py --reps 1 --small       # a smoke test

Width 576, 2 of E experts a token, gated SiLU; experts are cut from SmolLM2's MLPs, routers are
random. Mixtral's block is timed in each of its implementations for the CPU, with its weights in
large pages, as ours are, and the fastest is the baseline. A backward has fresh gradients, as after
`zero_grad()`. Every row is a ratio of two cases of one interleaved run in an order that rotates; a
second copy of the layer shows the noise. Wall time counts, so the machine should be idle.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from frame import (
    Job,
    Row,
    Spent,
    interleaved,
    markdown,
    operations,
    parser,
    peak_over,
    publish,
    ratio,
    read,
)  # fmt: skip
from torch import Tensor, nn
from transformers import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

from intarsia import TopK
from intarsia.data.language_models import language_model
from intarsia.kernels.native.pages import use_large_pages
from intarsia.mixtures import Mixture, StackedExperts
from intarsia.routers import (
    Comet,
    DSelectK,
    EvoMoe,
    ExpertChoice,
    Hash,
    NoisyTopK,
    PermutationSearch,
    Recurrent,
    Switch,
    TopP,
    Transport,
)

WIDTH, ACTIVE = 576, 2
IMPLEMENTATIONS = ("grouped_mm", "batched_mm", "eager")
SLOW = 1  # runs of what takes ten seconds


@dataclass(frozen=True)
class Shape:
    """A layer and its input."""

    experts: int
    hidden: int
    tokens: int

    def __str__(self) -> str:
        return f"E = {self.experts}, h = {self.hidden}, T = {self.tokens:,}"


SHAPES = (
    Shape(8, 1536, 2048),
    Shape(64, 384, 2048),
    Shape(64, 384, 64),
)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
PEAKS = (1024, 2048, 4096, 8192)


class Dense(nn.Module):
    """A gated MLP of an expert's size."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.up, self.gate = (
            nn.Linear(WIDTH, hidden, bias=False),
            nn.Linear(WIDTH, hidden, bias=False),
        )
        self.down = nn.Linear(hidden, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(nn.functional.silu(self.gate(x)) * self.up(x))


@cache
def mlps() -> tuple[Tensor, Tensor, Tensor]:
    """SmolLM2's MLPs, one below the other: gate and up (30 * 1536, 576), down (30 * 1536, 576)."""
    whole: Any = language_model("smollm2", progress=lambda _: None)[0]
    each = [block.mlp for block in whole.model.layers]
    gate, up, down = (
        torch.cat([side(mlp).detach().float() for mlp in each])
        for side in (
            lambda mlp: mlp.gate_proj.weight,
            lambda mlp: mlp.up_proj.weight,
            lambda mlp: mlp.down_proj.weight.T,
        )
    )
    return gate, up, down


def pretrained(shape: Shape) -> tuple[Tensor, Tensor, Tensor]:
    """Cut SmolLM2's MLPs into experts: gate, up (E, h, d) and down (E, d, h)."""
    size = shape.experts, shape.hidden, WIDTH
    gate, up, down = (side[: shape.experts * shape.hidden].view(size) for side in mlps())
    return gate, up, down.transpose(1, 2)


def layer(shape: Shape, router: Any = None) -> Mixture:
    """Our mixture."""
    generator = torch.Generator().manual_seed(0)
    experts = StackedExperts(
        shape.experts, WIDTH, shape.hidden, act="silu", gated=True, generator=generator
    )
    with torch.no_grad():
        for name, weight in zip(("gate", "up", "down"), pretrained(shape), strict=True):
            getattr(experts, name).copy_(weight)
    router = router or TopK(shape.experts, ACTIVE)
    return Mixture(experts, router.build(WIDTH, generator=generator))


def mixtral(shape: Shape, implementation: str) -> nn.Module:
    """Mixtral's block."""
    config = MixtralConfig(
        hidden_size=WIDTH, intermediate_size=shape.hidden, num_local_experts=shape.experts,
        num_experts_per_tok=ACTIVE,
    )  # fmt: skip
    config._experts_implementation = implementation
    block: Any = MixtralSparseMoeBlock(config)
    nn.init.normal_(block.gate.weight, std=0.02)
    gate, up, down = pretrained(shape)
    with torch.no_grad():
        block.experts.gate_up_proj.copy_(torch.cat([gate, up], 1))
        block.experts.down_proj.copy_(down)
    return block


def forward(model: Callable[[Tensor], Tensor], x: Tensor) -> None:
    with torch.no_grad():
        model(x)


def both(model: nn.Module, x: Tensor) -> None:
    """Forward and backward, to the input and to fresh gradients."""
    x.grad = None
    model.zero_grad()
    y = model(x)
    y.backward(torch.ones_like(y))


def tokens(shape: Shape, dtype: torch.dtype = torch.float32) -> Tensor:
    x = torch.randn(1, shape.tokens, WIDTH, generator=torch.Generator().manual_seed(1))
    return x.to(dtype).requires_grad_()


def product(shape: Shape, dtype: torch.dtype) -> Job:
    """The products of a forward as if all rows were of one expert."""
    rows = ACTIVE * shape.tokens
    x, hidden = (torch.randn(rows, n).to(dtype) for n in (WIDTH, shape.hidden))
    up = torch.randn(2 * shape.hidden, WIDTH).to(dtype)
    down = torch.randn(WIDTH, shape.hidden).to(dtype)
    return lambda: (torch.mm(x, up.t()), torch.mm(hidden, down.t()))


def beside_mixtral(shape: Shape, dtype: torch.dtype, reps: int) -> tuple[list, list]:
    """(rows of ratios, rows of cases) of a shape and a type."""
    x, named = tokens(shape, dtype), dict[str, nn.Module]()
    for name in IMPLEMENTATIONS:
        # a copy of an expert's weights for each pair: out of reach for many
        if name != "batched_mm" or shape.tokens * shape.hidden < 10**5:
            named[f"Mixtral, {name}"] = model = mixtral(shape, name).to(dtype)
            use_large_pages(p.data for p in model.parameters())
    named["ours"] = named["ours again"] = layer(shape).to(dtype)
    ways = {"forward": forward, "forward + backward": both}
    jobs: dict[str, Job] = {
        f"{name}, {way}": partial(run, model, x)
        for name, model in named.items() for way, run in ways.items()
    }  # fmt: skip
    dense = f"{name_of(dtype)}, one product"
    jobs[dense] = product(shape, dtype)
    slow = {n: jobs.pop(n) for n in list(jobs) if "eager" in n and shape.experts > 8}
    times = interleaved(jobs, reps) | interleaved(slow, min(reps, SLOW))
    ratios = list[list[str]]()
    for way in reversed(ways):
        rivals = [n for n in times if n.startswith("Mixtral") and n.endswith(f", {way}")]
        best = min(rivals, key=lambda n: times[n].wall)
        what = f"{name_of(dtype)}, {shape}, {way} / {best.split(', ')[1]}"
        passes = 1 if way == "forward" else 3
        floor = passes * times[dense].wall / times[best].wall
        row = Row(what, f"ours, {way}", best)
        ratios.append([*ratio(row, times), f"{floor:.3f}"])
        noise = Row(f"noise of {way}: ours again / ours", f"ours again, {way}", f"ours, {way}")
        ratios.append([*ratio(noise, times), ""])
    return ratios, cases(f"{name_of(dtype)}, {shape}", times)


def name_of(dtype: torch.dtype) -> str:
    return next(name for name, value in DTYPES.items() if value == dtype)


def cases(where: str, times: dict[str, Spent]) -> list[list[str]]:
    return [
        [where, name, f"{1e3 * spent.wall:.1f}", f"{1e3 * spent.cpu:.1f}"]
        for name, spent in times.items()
    ]


def beside_dense(shape: Shape, reps: int) -> list[list[str]]:
    """Two of eight experts against two dense MLPs with as many products."""
    x = tokens(shape)

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = Dense(shape.hidden), Dense(shape.hidden)

        def forward(self, x: Tensor) -> Tensor:
            return self.one(x) + self.other(x)

    models = {"2 of 8 experts": layer(shape), "two dense MLPs": Two()}
    with torch.no_grad():
        for weight in models["2 of 8 experts"].experts.parameters():  # pyright: ignore
            weight.copy_(weight[:1].expand_as(weight))
    ways = {"forward": forward, "forward + backward": both}
    jobs = {f"{n}, {w}": partial(f, m, x) for n, m in models.items() for w, f in ways.items()}
    counted = {n: operations(job) for n, job in jobs.items() if "dense" in n}
    times = interleaved(jobs, reps)
    lines = list[list[str]]()
    for way in ways:
        over, under = (f"{name}, {way}" for name in models)
        row = Row(f"fp32, {shape}, equal experts / two dense MLPs, {way}", over, under)
        lines.append([*ratio(row, times), f"1.000 ({counted[under] / 1e9:.0f} GFLOP)"])
    return lines


def searched(found: bool, experts: int) -> Any:
    """COMET with its permutation search, in it or after."""

    @dataclass(frozen=True)
    class Built:
        def build(self, width: int, *, generator: torch.Generator) -> nn.Module:
            router: Any = PermutationSearch(Comet(experts, ACTIVE)).build(
                width, generator=generator
            )
            router.before_step(router.config.steps if found else router.config.steps // 2, 0)
            return router

    return Built()


def routers(experts: int) -> dict[str, Any]:
    """The settings of each router, two experts a token where it has a choice."""
    return {
        "TopK": TopK(experts, ACTIVE), "NoisyTopK": NoisyTopK(experts, ACTIVE),
        "Switch": Switch(experts), "TopP": TopP(experts), "ExpertChoice": ExpertChoice(experts),
        "Hash": Hash(experts, ACTIVE, by="row"), "DSelectK": DSelectK(experts, ACTIVE),
        "Comet": Comet(experts, ACTIVE), "PermutationSearch, in search": searched(False, experts),
        "PermutationSearch, after": searched(True, experts), "Transport": Transport(experts),
        "Recurrent": Recurrent(experts, ACTIVE), "EvoMoe": EvoMoe(experts),
    }  # fmt: skip


def route(router: nn.Module, x: Tensor, *, back: bool) -> None:
    """A router alone; its backward from every weight and loss."""
    if not back:
        with torch.no_grad():
            router(x)
        return
    x.grad = None
    router.zero_grad()
    routing = router(x)
    total = routing.weight.sum() + sum(routing.losses.values())
    if total.requires_grad:
        total.backward()


def shares(shape: Shape, reps: int) -> tuple[list[list[str]], list[list[str]]]:
    """What each router takes on its own, over the layer with TopK."""
    x = tokens(shape)
    whole = layer(shape)
    jobs: dict[str, Job] = {"layer, forward": partial(forward, whole, x),
                            "layer, forward + backward": partial(both, whole, x)}  # fmt: skip
    names = list[str]()
    for name, config in routers(shape.experts).items():
        router = config.build(WIDTH, generator=torch.Generator().manual_seed(0)).train()
        names.append(name)
        jobs[f"{name}, forward"] = partial(route, router, x, back=False)
        jobs[f"{name}, forward + backward"] = partial(route, router, x, back=True)
    times = interleaved(jobs, reps)
    lines = list[list[str]]()
    for name in names:
        line = [name]
        for way in ("forward", "forward + backward"):
            spent, of = times[f"{name}, {way}"], times[f"layer, {way}"]
            line += [f"{1e3 * spent.wall:.1f}", f"{spent.wall / of.wall:.3f}"]
        lines.append(line)
    return lines, cases(f"fp32, {shape}", {n: times[n] for n in list(jobs)[:2]})


def dispatches(reps: int) -> list[list[str]]:
    """Rows to experts and back by a sorted table, and by products with a one-hot tensor."""
    count, width, experts = 2048, 64, 16
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, width, generator=generator)
    routing = TopK(experts, 1, scale="prob").build(width, generator=generator)(x)
    room = int(routing.load().max())
    order = routing.expert.argsort(stable=True)
    begin = routing.load().cumsum(0) - routing.load()
    slot = torch.empty_like(order)
    slot[order] = torch.arange(count) - begin[routing.expert[order]]

    def one_hot() -> Tensor:
        # (T, E, C), as GShard and DeepSpeed-MoE's first release have it
        to = nn.functional.one_hot(routing.expert, experts).float()[:, :, None]
        to = to * nn.functional.one_hot(slot, room).float()[:, None]
        rows = torch.einsum("tec,td->ecd", to, x)
        return torch.einsum("tec,ecd->td", to * routing.weight.detach()[:, None, None], rows)

    def table() -> Tensor:
        order = routing.expert.argsort(stable=True)
        rows = x.index_select(0, routing.token[order])
        rows = rows * routing.weight.detach()[order, None]
        return torch.zeros_like(x).index_add_(0, routing.token[order], rows)

    assert torch.allclose(one_hot(), table(), atol=1e-6)
    times = interleaved({"table": table, "one-hot": one_hot}, reps)
    what = "dispatch and return, table / one-hot products, T = 2,048, E = 16, d = 64"
    return [[*ratio(Row(what, "table", "one-hot"), times), ""]]


def peaks(args: argparse.Namespace) -> list[list[str]]:
    """The peak of forward and backward against T, each in a process of its own."""
    found = dict[int, int]()
    for count in PEAKS:
        command = [
            sys.executable,
            __file__,
            "--peak-of",
            str(count),
            "--threads",
            str(args.threads),
        ]
        run = subprocess.run(command, capture_output=True, text=True, check=True)
        found[count] = int(run.stdout.splitlines()[-1])
    first, *_, last = PEAKS
    slope = (found[last] - found[first]) / (last - first)  # bytes a token
    return [
        [f"{count:,}", f"{size / 2**20:.0f}",
         f"{(found[first] + slope * (count - first)) / 2**20:.0f}"]
        for count, size in found.items()
    ]  # fmt: skip


def main() -> None:
    made = parser(__doc__, threads=2, reps=5)
    made.add_argument("--small", action="store_true", help="small layers, for a smoke test")
    made.add_argument("--peak-of", type=int, help=argparse.SUPPRESS)
    args = read(made)
    if args.peak_of:
        model = layer(Shape(8, 384, args.peak_of))
        x = tokens(Shape(8, 384, args.peak_of))
        print(peak_over(partial(both, model, x)))
        return
    shapes = [Shape(4, 64, 64)] if args.small else SHAPES
    ratios, all_cases = list[list[str]](), list[list[str]]()
    for shape in shapes:
        for dtype in DTYPES.values():
            found, timed = beside_mixtral(shape, dtype, args.reps)
            ratios += found
            all_cases += timed
    ratios += beside_dense(shapes[0], args.reps) + dispatches(args.reps)
    of_routers, timed = shares(shapes[0], args.reps)
    way = ["ms", "share"]
    body = [
        *markdown(["", "got", "by CPU time", "lower bound"], ratios),
        "",
        "The lower bound is the products alone as if all rows were of one expert, measured in "
        "the same run, three times as much with a backward, over the baseline. At T = 64 the rows "
        "are few and the weights, 170 MB in fp32, are read, and their gradients written: about "
        "10 ms for each pass at 17 GB/s.",
        "",
        f"A router alone, forward and forward + backward, over the layer with TopK, {shapes[0]}, "
        "fp32. Transport solves for a plan of the whole batch, and a search makes every gate "
        "dense.",
        "",
        *markdown(["router", *way, *way], of_routers),
        "",
        "Peak memory of forward + backward, E = 8, h = 384, fp32, next to the straight line from "
        "the first to the last.",
        "",
        *markdown(["T", "MiB", "line"], peaks(args)),
        "",
        *markdown(["layer", "case", "wall, ms", "CPU, ms"], [*all_cases, *timed]),
    ]
    about = (
        f"Width {WIDTH}, {ACTIVE} experts a token, gated SiLU, {args.threads} threads; experts "
        "are cut from SmolLM2's MLPs, routers are random, and weights are in large pages, "
        f"Mixtral's too; interleaved runs, medians of {args.reps} ({SLOW} of its loop at E = 64). "
        "Ratios of wall time, and next to them of CPU time. The rival is transformers' Mixtral "
        "block, in each of its implementations for CPUs, with the fastest named; llama.cpp, "
        "OpenVINO and onnxruntime train no mixture: [a whole one](offloaded.md) is compared with "
        "llama.cpp's."
    )
    publish("A mixture layer and its routers", about, body, args)


if __name__ == "__main__":
    main()
