"""What LoRA experts cost beside one LoRA, and many adapters in a batch beside one.

    python benchmarks/mixtures.py                  # the table on the terminal
    python benchmarks/mixtures.py --write          # and into docs/benchmarks/mixtures.md
    python benchmarks/mixtures.py --reps 1 --layers 1     # a smoke test

Llama blocks of SmolLM2-135M's shape (width 576, hidden 1536) with random weights and a small
vocabulary, 2,048 tokens. Every row is a ratio of two cases, timed in one interleaved run whose
order rotates; a second copy of the baseline shows the noise. One thread; bars are for wall time,
so the machine should be idle: CPU time, beside it, says how far it was not.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

import intarsia
from intarsia import LlavaMole, Lora, MixLora, TopK
from intarsia.claims.mixtures import naive, shared_mlp
from intarsia.mixtures.dispatch import Slices
from intarsia.train.record import machine, versions

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks" / "mixtures.md"
TOKENS, WIDTH, HIDDEN, RANK, EXPERTS, ADAPTERS = 2048, 576, 1536, 16, 8, 16
ATTENTION = Lora(RANK, roles=("qkv", "projection"))
EVERYWHERE = Lora(RANK, roles=("qkv", "projection", "mlp_linear"))
METHODS = {
    "one LoRA": EVERYWHERE,
    "one LoRA again": EVERYWHERE,
    "top 1 of 8": LlavaMole(EXPERTS, Lora(RANK), attention=ATTENTION),
    "top 2 of 8": MixLora(TopK(EXPERTS, 2), Lora(RANK), ATTENTION),
}
Job = Callable[[], object]


@dataclass(frozen=True)
class Row:
    """A ratio and its bar (None = for information)."""

    what: str
    over: str
    under: str
    bar: float | None


ROWS = (
    Row("train step, top 1 of 8 experts / one LoRA", "top 1 of 8", "one LoRA", 1.15),
    Row("train step, top 2 of 8 experts / one LoRA", "top 2 of 8", "one LoRA", None),
    Row("noise: one LoRA / the same", "one LoRA again", "one LoRA", None),
    Row("routing and dispatch / train step, top 1 of 8", "dispatch", "top 1 of 8", 0.05),
    Row("MLP forward, shared products / k whole MLPs", "shared MLP", "naive MLP", 0.85),
    Row("forward, 16 adapters / one, 16 samples", "16 adapters", "one adapter", 1.30),
)


def trunk(args: argparse.Namespace) -> nn.Module:
    """Random weights: time does not depend on their values."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512, hidden_size=WIDTH, intermediate_size=HIDDEN, num_attention_heads=9,
        num_key_value_heads=3, num_hidden_layers=args.layers, tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def stepper(method: Any, args: argparse.Namespace) -> Job:
    """A training step: forward, loss with the routers' losses, backward, AdamW."""
    model = intarsia.adapt(trunk(args), method, head=None).train()
    learned = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=1e-4)
    ids = torch.randint(0, 512, (4, TOKENS // 4), generator=torch.Generator().manual_seed(0))

    def step() -> None:
        loss = model(input_ids=ids, labels=ids).loss + intarsia.aux_loss(model)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


class HandOut(intarsia.Cell):
    """An expert without products."""

    def __init__(self, made: Tensor, narrow: Tensor) -> None:
        super().__init__()
        self.made, self.narrow = made, narrow

    def forward(self, x: Tensor) -> Tensor:
        return self.weighted(x, x.new_ones(len(x)))

    def weighted(self, x: Tensor, weight: Tensor) -> Tensor:
        self.taken, self.weighed = x, self.narrow * weight[:, None]
        return self.made


def dispatch(args: argparse.Namespace) -> Job:
    """What one step of "top 1 of 8" does beside products: routers, rows out and back, gradients.

    Forward and backward of the router and of the three dispatches of each block. Experts take rows,
    weight what stands for A x, and hand out rows; those and all gradients are there already.
    """
    router = METHODS["top 1 of 8"].routing().build(WIDTH, generator=torch.Generator())
    read = {w: torch.randn(TOKENS, w, requires_grad=True) for w in (WIDTH, HIDDEN)}
    sizes = [len(tokens) for tokens in Slices.of(router(read[WIDTH])).tokens]
    made = {w: [torch.randn(n, w, requires_grad=True) for n in sizes] for w in read}
    back = {w: [torch.randn(n, w) for n in sizes] for w in read}
    sums = {w: torch.zeros(TOKENS, w) for w in read}
    inputs = (*read.values(), *made[WIDTH], *made[HIDDEN], *router.parameters())

    narrow = [torch.randn(n, RANK, requires_grad=True) for n in sizes]
    back[RANK] = [torch.randn(n, RANK) for n in sizes]

    def block() -> None:
        slices = Slices.of(router(read[WIDTH]))
        assert router.last is not None
        outputs = list(router.last.losses.values())
        grads = [torch.ones(())] * len(outputs)
        for inside, outside in ((WIDTH, (HIDDEN, HIDDEN)), (HIDDEN, (WIDTH,))):
            into = [
                (sums[w].detach(), [HandOut(made[w][e], narrow[e]) for e in range(EXPERTS)])
                for w in outside
            ]
            slices.add_mix(read[inside], *into)
            for (y, experts), w in zip(into, outside, strict=True):
                outputs += [y, *(e.weighed for e in experts)]
                grads += [sums[w], *back[RANK]]
            outputs += [e.taken for e in into[0][1]]
            grads += back[inside]
        torch.autograd.grad(outputs, inputs, grads)

    def step() -> None:
        for _ in range(args.layers):
            block()

    return step


def mixed_batches(args: argparse.Namespace) -> dict[str, Job]:
    """The forward of a batch whose samples have an adapter each, and of one with one adapter."""
    model: Any = intarsia.adapt(trunk(args), EVERYWHERE, head=None, name="a0")
    for i in range(1, ADAPTERS):
        model = intarsia.adapt(model, EVERYWHERE, head=None, name=f"a{i}", seed=i)
    model.set_adapter("a0")
    model.eval()
    ids = torch.randint(0, 512, (ADAPTERS, TOKENS // ADAPTERS))
    names = [f"a{i}" for i in range(ADAPTERS)]
    forward = torch.no_grad()(model)
    return {
        "one adapter": partial(forward, input_ids=ids),
        "16 adapters": partial(forward, input_ids=ids, adapter_names=names),
    }


Times = dict[str, list[tuple[float, float]]]


def interleaved(jobs: Mapping[str, Job], reps: int) -> Times:
    """(CPU seconds, wall seconds) of each job, `reps` times after one run that does not count."""
    times: Times = {name: [] for name in jobs}
    names = list(jobs)
    for rep in range(-1, reps):
        shift = rep % len(names)
        for name in names[shift:] + names[:shift]:
            cpu, wall = time.process_time(), time.perf_counter()
            jobs[name]()
            spent = time.process_time() - cpu, time.perf_counter() - wall
            if rep >= 0:
                times[name].append(spent)
    return times


def operations(job: Job) -> int:
    """Floating-point operations of matrix products."""
    with FlopCounterMode(display=False) as counter:
        job()
    return counter.get_total_flops()


def dispatch_bytes(layers: int) -> int:
    """Bytes that one step's dispatches must move: rows read, written and added, and back."""
    out = TOKENS * 4 * (WIDTH + HIDDEN)  # what gate and up, and down, read
    back = TOKENS * 4 * (2 * HIDDEN + WIDTH)  # what they give
    return layers * 2 * (2 * out + 3 * back)


def copy_speed() -> float:
    """Bytes a second that copying rows in cache-sized parts moves, both ways counted."""
    rows = torch.randn(TOKENS // EXPERTS, HIDDEN)
    start = time.perf_counter()
    for _ in range(200):
        rows.clone()
    return 200 * 2 * rows.nbytes / (time.perf_counter() - start)


def measure(args: argparse.Namespace) -> tuple[list[list[str]], list[list[str]]]:
    """(rows of the table of ratios, rows of the table of cases)."""
    jobs: dict[str, Job] = {name: stepper(m, args) for name, m in METHODS.items()}
    jobs["dispatch"] = dispatch(args)
    cell, mlp, x, routing = shared_mlp(0)
    jobs["naive MLP"] = partial(torch.no_grad()(naive), cell, mlp, x, routing)
    jobs["shared MLP"] = partial(torch.no_grad()(cell.mixed), mlp, x, routing)
    jobs |= mixed_batches(args)
    # dispatch moves rows, and multiplies next to nothing
    floors = {n: operations(job) if n != "dispatch" else 0 for n, job in jobs.items()}
    times = interleaved(jobs, args.reps)
    middle = {n: tuple(map(statistics.median, zip(*t, strict=True))) for n, t in times.items()}
    table = []
    for row in ROWS:
        cpu, wall = (a / b for a, b in zip(middle[row.over], middle[row.under], strict=True))
        floor = floors[row.over] / floors[row.under]
        if row.over == "dispatch":
            floor = dispatch_bytes(args.layers) / copy_speed() / middle[row.under][1]
        table.append([row.what, *_judged(wall, row.bar), f"{cpu:.3f}", f"{floor:.3f}"])
    cases = [
        [name, f"{1e3 * cpu:.0f}", f"{1e3 * wall:.0f}", f"{floors[name] / 1e9:.1f}"]
        for name, (cpu, wall) in middle.items()
    ]
    return table, cases


def _judged(got: float, bar: float | None) -> tuple[str, str, str]:
    if bar is None:
        return f"{got:.3f}", "", ""
    return f"{got:.3f}", f"{bar:.2f}", "met" if got <= bar else "not met"


def page(args: argparse.Namespace) -> str:
    """The whole report, in Markdown."""
    table, cases = measure(args)
    about, found = machine(), versions()
    command = " ".join(["python", "benchmarks/mixtures.py", *sys.argv[1:]])
    return "\n".join(
        [
            "# Mixtures of LoRA experts: time",
            "",
            f"{args.layers} Llama blocks of SmolLM2-135M's shape, {TOKENS} tokens, rank {RANK}, "
            f"float32, one thread, random weights; one interleaved run, medians of "
            f"{args.reps}. Ratios of wall time, and of CPU time beside them, which other processes "
            "of the machine lengthen less.",
            "",
            f"{datetime.now(UTC):%Y-%m-%d}, {about['processor']}, torch {found['torch']}, "
            f"Python {found['python']}, load before the run {args.load:.1f}: `{command}`",
            "",
            *_markdown(["", "got", "bar", "", "by CPU time", "floor"], table),
            "",
            "The floor counts the operations of matrix products; for routing and dispatch it is "
            "the time in which the rows could be copied in parts that fit the cache.",
            "",
            *_markdown(["case", "CPU, ms", "wall, ms", "GFLOP"], cases),
            "",
        ]
    )


def _markdown(head: list[str], rows: list[list[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--reps", type=int, default=11)
    parser.add_argument("--write", action="store_true", help=f"also write docs/{PAGE.name}")
    args = parser.parse_args()
    args.load = psutil.getloadavg()[0]
    torch.set_num_threads(1)
    text = page(args)
    print(text)
    if args.write:
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(text)


if __name__ == "__main__":
    main()
