"""A training step of S2FT next to LoRA's and full fine-tuning's: time, memory and lower bounds.

    python benchmarks/s2ft.py                       # the tables on the terminal
    python benchmarks/s2ft.py --write               # and into docs/benchmarks/s2ft.md
    python benchmarks/s2ft.py --layers 1 --reps 1   # a smoke test

Llama layers in the shapes of SmolLM2-135M (width 576, MLP 1536, 9 heads on 3 keys) with random
weights. A step is forward, backward and AdamW. Every row is a ratio of two cases, timed in one
interleaved run in an order that rotates; a second copy of LoRA shows the noise. Peak memory is
measured in a fresh process for each case.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from frame import Row, interleaved, markdown, operations, parser, peak_over, publish, ratio, read
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from transformers import LlamaConfig, LlamaForCausalLM

import intarsia

SMOL: dict[str, int] = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "num_hidden_layers": 4,
    "vocab_size": 512,
}
EVERYWHERE = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]  # the release's LoRA baseline
SLICES = intarsia.methods.S2ft(down=0.03)
FULL, LORA, PLAIN, NUMBERS, RUNS, HEADS = (
    "full fine-tuning", "LoRA 32", "LoRA 16, down only", "S2FT, by number", "S2FT, runs",
    "S2FT, down and output",
)  # fmt: skip


ROWS = (
    Row("S2FT / full fine-tuning", RUNS, FULL, 0.60),
    Row("S2FT / LoRA 32 on q, k, v, up, down", RUNS, LORA, 1.0),
    Row("S2FT / LoRA 16 on down", RUNS, PLAIN, 1.0),
    Row("S2FT by number / LoRA 16 on down", NUMBERS, PLAIN, 1.0),
    Row("S2FT, runs / by number", RUNS, NUMBERS),
    Row("S2FT, down=0.02 and output=0.052 / LoRA 32", HEADS, LORA, 1.0),
    Row("LoRA 32 / full fine-tuning", LORA, FULL),
    Row("noise: LoRA 32 / the same", "LoRA 32 again", LORA),
)
CASES = (FULL, LORA, "LoRA 32 again", PLAIN, NUMBERS, RUNS, HEADS)


def kept_bytes(call: Callable[[], object], own: Sequence[Tensor]) -> int:
    """Bytes of the storages that a call keeps for its backward, the given tensors left out."""
    left_out = {t.untyped_storage().data_ptr() for t in own}
    kept: dict[int, Tensor] = {}

    def pack(t: Tensor) -> Tensor:
        kept[t.untyped_storage().data_ptr()] = t  # held, so that no address comes twice
        return t

    with saved_tensors_hooks(pack, lambda t: t):
        call()
    return sum(t.untyped_storage().nbytes() for at, t in kept.items() if at not in left_out)


def activations(model: nn.Module, tokens: Tensor) -> tuple[int, int]:
    """Bytes kept by the down projections, and by the whole forward."""
    layers = {n: m for n, m in model.named_modules() if n.endswith("down_proj")}
    seen: dict[str, Tensor] = {}

    def see(name: str, _: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen[name] = args[0]

    hooks = [m.register_forward_pre_hook(partial(see, n)) for n, m in layers.items()]
    own = [*model.parameters(), *model.buffers(), tokens]
    whole = kept_bytes(lambda: model(input_ids=tokens, labels=tokens), own)
    for hook in hooks:
        hook.remove()
    inputs = {n: x.detach().clone().requires_grad_() for n, x in seen.items()}
    return sum(kept_bytes(partial(layers[n], x), own) for n, x in inputs.items()), whole


def model_of(case: str, args: argparse.Namespace) -> nn.Module:
    """The layers of a case, adapted; random weights, since neither time nor memory goes by them."""
    torch.manual_seed(0)
    settings: dict[str, Any] = SMOL | {"num_hidden_layers": args.layers}
    config = LlamaConfig(**settings, tie_word_embeddings=True)
    model = LlamaForCausalLM(config)
    if case == FULL:
        return model
    if case.startswith(LORA):
        return intarsia.adapt(model, intarsia.Lora(32, 64.0), targets=EVERYWHERE, head=None)
    if case == PLAIN:
        return intarsia.adapt(model, intarsia.Lora(16), targets=["down_proj"], head=None)
    # 5.2 % of the KV groups of few layers may be less than one
    heads = intarsia.methods.S2ft(down=0.02, output=max(0.052, 1 / (3 * args.layers)))
    method = heads if case == HEADS else SLICES
    method = intarsia.methods.choose_channels(model, method)
    if case != NUMBERS:
        method, _ = intarsia.methods.co_permute(model, method)
    return intarsia.adapt(model, method, head=None)


def tokens_of(args: argparse.Namespace) -> torch.Tensor:
    return torch.randint(0, SMOL["vocab_size"], (args.batch, args.length))


def stepper(case: str, args: argparse.Namespace) -> Callable[[], None]:
    """One training step of a case."""
    model, tokens = model_of(case, args).train(), tokens_of(args)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-4)

    def step() -> None:
        optimizer.zero_grad()
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()

    return step


def floors(case: str, args: argparse.Namespace) -> tuple[float, float, float]:
    """(10^9 operations of matrix products, MB AdamW moves at least, MB kept by the forward)."""
    model, tokens = model_of(case, args), tokens_of(args)
    counted = operations(lambda: model(input_ids=tokens, labels=tokens).loss.backward())
    learned = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    # weight, gradient and two moments are read, all but the gradient written
    kept = activations(model, tokens)[1]
    return counted / 1e9, 7 * learned / 1e6, kept / 1e6


def peaks(args: argparse.Namespace) -> dict[str, int]:
    """`peak_in_steps` of every case, each in a process of its own."""
    settings = [
        word
        for name in ("layers", "batch", "length", "threads")
        for word in (f"--{name}", str(getattr(args, name)))
    ]
    found = {}
    for name in CASES:
        run = subprocess.run(
            [sys.executable, __file__, "--peak-of", name, *settings],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        found[name] = int(run.stdout.splitlines()[-1])
    return found


def measure(args: argparse.Namespace) -> tuple[list[list[str]], list[list[str]]]:
    """(rows of the table of ratios, rows of the table of cases)."""
    counted = {name: floors(name, args) for name in CASES}
    times = interleaved({name: stepper(name, args) for name in CASES}, args.reps)
    memory = peaks(args)
    table = []
    for row in ROWS:
        floor = counted[row.over][0] / counted[row.under][0]
        table.append([*ratio(row, times), f"{floor:.3f}"])
    for under in (FULL, LORA, PLAIN):
        got = memory[RUNS] / memory[under]
        table.append([f"peak memory, S2FT / {under}", f"{got:.3f}", "", "", "", ""])
    cases = [
        [name, f"{1e3 * spent.wall:.0f}", f"{1e3 * spent.cpu:.0f}", f"{memory[name] / 1e6:.0f}",
         *(f"{value:.1f}" for value in counted[name])]
        for name, spent in times.items()
    ]  # fmt: skip
    return table, cases


def floor_at(layers: int) -> float:
    """Operations of S2FT's step over full fine-tuning's, by blocks, attention left out."""
    return (2 - 1 / layers) / 3


def main() -> None:
    made = parser(__doc__, threads=1, reps=9)
    made.add_argument("--layers", type=int, default=6)
    made.add_argument("--batch", type=int, default=2)
    made.add_argument("--length", type=int, default=256)
    made.add_argument("--peak-of", choices=CASES, help=argparse.SUPPRESS)
    args = read(made)
    # PEFT asks a transformers 5 model by the old name
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
    if args.peak_of:
        print(peak_over(stepper(args.peak_of, args)))
        return
    table, cases = measure(args)
    body = [
        *markdown(["", "got", "target", "", "by CPU time", "lower bound"], table),
        "",
        "The lower bound counts the matrix products of forward and backward; AdamW and "
        "element-wise operations are not in it. A frozen linear layer costs two products "
        "instead of three, and the lowest block, with nothing that learns below its down "
        "projection, one: (2 - 1 / L) / 3 of full fine-tuning's for L blocks, "
        f"{floor_at(args.layers):.3f} for {args.layers} and {floor_at(30):.3f} for the 30 of "
        "SmolLM2-135M. A ratio below it there would have to come from AdamW alone.",
        "",
        *markdown(
            ["case", "wall, ms", "CPU, ms", "peak, MB", "10^9 operations",
             "AdamW moves, MB", "kept by the forward, MB"], cases,
        ),
        "",
        "Peak is what three steps add to the built model, at the peak of a fresh process.",
    ]  # fmt: skip
    about = (
        f"{args.layers} Llama layers in SmolLM2-135M's shapes, {args.batch} x {args.length} "
        f"tokens, {args.threads} threads, float32, random weights; down=0.03; one interleaved "
        f"run, medians of {args.reps}. Ratios of wall time, and next to them of CPU time."
    )
    publish("A training step of S2FT", about, body, args)


if __name__ == "__main__":
    main()
