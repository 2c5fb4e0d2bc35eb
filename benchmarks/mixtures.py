"""What LoRA experts cost compared with one LoRA, and many adapters in a batch compared with one.

    python benchmarks/mixtures.py                  # the table on the terminal
    python benchmarks/mixtures.py --write          # and into docs/benchmarks/mixtures.md
    python benchmarks/mixtures.py --reps 1 --layers 1     # a smoke test

Llama blocks of SmolLM2-135M's shape (width 576, hidden 1536) with random weights and a small
vocabulary, 2,048 tokens. Every row is a ratio of two cases, timed in one interleaved run in an
order that rotates; a second copy of the baseline shows the noise. One thread; the ratios are of
wall time, so the machine should be idle: CPU time, next to it, says how far it was not.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from typing import Any

import torch
from frame import Job, Row, interleaved, markdown, operations, parser, publish, ratio, read
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import intarsia
from intarsia import Lora, TopK
from intarsia.kernels.experts import Slices, add_mix
from intarsia.methods import MixLora
from intarsia.mixtures.lora_experts import grouped_pairs
from intarsia.senses import LlavaMole
from intarsia_lab.experiments.mixtures import naive, shared_mlp

TOKENS, WIDTH, HIDDEN, RANK, EXPERTS, ADAPTERS = 2048, 576, 1536, 16, 8, 16
ATTENTION = Lora(RANK, roles=("qkv", "projection"))
EVERYWHERE = Lora(RANK, roles=("qkv", "projection", "mlp_linear"))
METHODS = {
    "one LoRA": EVERYWHERE,
    "one LoRA again": EVERYWHERE,
    "top 1 of 8": LlavaMole(EXPERTS, Lora(RANK), attention=ATTENTION),
    "top 2 of 8": MixLora(TopK(EXPERTS, 2), Lora(RANK), ATTENTION),
}

ROWS = (
    Row("train step, top 1 of 8 experts / one LoRA", "top 1 of 8", "one LoRA"),
    Row("train step, top 2 of 8 experts / one LoRA", "top 2 of 8", "one LoRA"),
    Row("noise: one LoRA / the same", "one LoRA again", "one LoRA"),
    Row("routing and dispatch / train step, top 1 of 8", "dispatch", "top 1 of 8"),
    Row("MLP forward, shared products / k whole MLPs", "shared MLP", "naive MLP"),
    Row("forward, 16 adapters / one, 16 samples", "16 adapters", "one adapter"),
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
        loss = model(input_ids=ids, labels=ids).loss + intarsia.gating.aux_loss(model)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


class HandOut:
    """An expert without products."""

    def __init__(self, made: Tensor, narrow: Tensor) -> None:
        self.made, self.narrow = made, narrow

    def __call__(self, x: Tensor, weight: Tensor) -> Tensor:
        self.taken, self.weighed = x, self.narrow * weight[:, None]
        return self.made


def dispatch(args: argparse.Namespace) -> Job:
    """What one step of "top 1 of 8" does but products: routers, rows out and back, gradients.

    Forward and backward of the router and of the three dispatches of each block. Experts take rows,
    weight what stands for A x, and hand out rows; those and all gradients are there already.
    """
    router = METHODS["top 1 of 8"].routing().build(WIDTH, generator=torch.Generator())
    read = {w: torch.randn(TOKENS, w, requires_grad=True) for w in (WIDTH, HIDDEN)}
    first = grouped_pairs(router(read[WIDTH]))
    assert isinstance(first, Slices)
    sizes = [len(tokens) for tokens in first.tokens]
    made = {w: [torch.randn(n, w, requires_grad=True) for n in sizes] for w in read}
    back = {w: [torch.randn(n, w) for n in sizes] for w in read}
    sums = {w: torch.zeros(TOKENS, w) for w in read}
    inputs = (*read.values(), *made[WIDTH], *made[HIDDEN], *router.parameters())

    narrow = [torch.randn(n, RANK, requires_grad=True) for n in sizes]
    back[RANK] = [torch.randn(n, RANK) for n in sizes]

    def block() -> None:
        pairs = grouped_pairs(router(read[WIDTH]))
        assert router.last is not None
        outputs = list(router.last.losses.values())
        grads = [torch.ones(())] * len(outputs)
        for inside, outside in ((WIDTH, (HIDDEN, HIDDEN)), (HIDDEN, (WIDTH,))):
            into = [
                (sums[w].detach(), [HandOut(made[w][e], narrow[e]) for e in range(EXPERTS)])
                for w in outside
            ]
            add_mix(pairs, read[inside], *into)
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
    """The forward of a batch with an adapter for each sample, and of one with one adapter."""
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


def dispatch_bytes(layers: int) -> int:
    """Bytes that one step's dispatches must move: rows read, written and added, and back."""
    out = TOKENS * 4 * (WIDTH + HIDDEN)  # what gate and up, and down, read
    back = TOKENS * 4 * (2 * HIDDEN + WIDTH)  # their outputs
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
    table = []
    for row in ROWS:
        floor = floors[row.over] / floors[row.under]
        if row.over == "dispatch":
            floor = dispatch_bytes(args.layers) / copy_speed() / times[row.under].wall
        table.append([*ratio(row, times), f"{floor:.3f}"])
    cases = [
        [name, f"{1e3 * spent.cpu:.0f}", f"{1e3 * spent.wall:.0f}", f"{floors[name] / 1e9:.1f}"]
        for name, spent in times.items()
    ]
    return table, cases


def main() -> None:
    made = parser(__doc__, threads=1, reps=11)
    made.add_argument("--layers", type=int, default=2)
    args = read(made)
    table, cases = measure(args)
    body = [
        *markdown(["", "got", "by CPU time", "lower bound"], table),
        "",
        "The lower bound counts the operations of matrix products; for routing and dispatch it is "
        "the time in which the rows could be copied in parts that fit the cache.",
        "",
        *markdown(["case", "CPU, ms", "wall, ms", "GFLOP"], cases),
    ]
    about = (
        f"{args.layers} Llama blocks of SmolLM2-135M's shape, {TOKENS} tokens, rank {RANK}, "
        f"float32, {args.threads} threads, random weights; one interleaved run, medians of "
        f"{args.reps}. Ratios of wall time, and next to them of CPU time, which other processes "
        "of the machine lengthen less."
    )
    publish("Mixtures of LoRA experts: time", about, body, args)


if __name__ == "__main__":
    main()
