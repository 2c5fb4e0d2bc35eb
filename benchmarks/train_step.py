"""Time and memory of a training step, next to the lower bound that counting operations sets.

    python benchmarks/train_step.py                 # the table on the terminal
    python benchmarks/train_step.py --write         # and into docs/benchmarks/train_step.md
    python benchmarks/train_step.py --model vit_tiny_patch16_224 --reps 1    # a smoke test

Every row is a ratio of two cases. Cases are timed in one interleaved run, in an order that rotates,
so that a machine with a load that changes slows all of them down; a second copy of the baseline
shows the noise. Steps come from `intarsia.fit`. Peak memory is measured in a fresh process for each
case.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import timm
import torch
from frame import (
    Row,
    interleaved,
    judged,
    markdown,
    operations,
    parser,
    peak_over,
    publish,
    ratio,
    read,
)  # fmt: skip
from timm.layers import set_fused_attn
from torch import Tensor, nn

import intarsia
from intarsia.train import Classes, Recipe, Training, one_backward, plain, two_pass
from intarsia.train.learner import Learner
from intarsia.train.objectives import Objective
from intarsia.train.optimisers import adamw
from intarsia.train.precision import cast_frozen, training_mode
from intarsia.train.processes import accelerator

CLASSES, STEPS = 100, 10_000
OVER = intarsia.Bottleneck(64, activation="gelu")
METHODS = {"adapter": OVER, "mosa": intarsia.Mosa(over=OVER, experts=4)}


@dataclass(frozen=True)
class Case:
    """A training step: which weights are trained, how, and in which type the trunk is held."""

    method: str = "adapter"
    objective: Objective = plain
    precision: str = "fp32"


CASES = {
    "full fine-tuning": Case("full"),
    "adapter": Case(),
    "adapter again": Case(),
    "MoSA": Case("mosa"),
    "MoSA, two passes, one backward": Case("mosa", one_backward),
    "MoSA, two passes": Case("mosa", two_pass),
    "adapter, bf16 trunk": Case(precision="bf16"),
}
FORWARDS = ("stock forward", "folded forward")


ROWS = (
    Row("train step, adapter 64 / full fine-tuning", "adapter", "full fine-tuning", 0.72),
    Row("MoSA without a second pass / plain adapter", "MoSA", "adapter", 1.03),
    Row(
        "MoSA, two passes, one backward / plain adapter",
        "MoSA, two passes, one backward", "adapter", 1.50,
    ),
    Row("MoSA, two passes as published / plain adapter", "MoSA, two passes", "adapter", None),
    Row("bf16 frozen trunk / fp32, train step", "adapter, bf16 trunk", "adapter", 0.60),
    Row("folded forward / stock forward", "folded forward", "stock forward", 1.03),
    Row("noise: adapter / the same adapter", "adapter again", "adapter", None),
)  # fmt: skip


def backbone(args: argparse.Namespace) -> nn.Module:
    """Random weights: neither time nor memory depends on their values."""
    torch.manual_seed(0)
    return timm.create_model(args.model, img_size=args.size, num_classes=CLASSES)


def stepper(case: Case, args: argparse.Namespace) -> Callable[[], object]:
    """One training step of a case, as `fit` takes it."""
    model = backbone(args)
    if case.method == "full":
        model.requires_grad_(True)
    else:
        model = intarsia.adapt(model, METHODS[case.method])
    training = Training(lr=1e-3, precision=case.precision)
    cast_frozen(model, case.precision)
    training_mode(model)
    ranks, task = accelerator((), None, None), Classes(CLASSES)
    learner = Learner(model, model, case.objective, training, Recipe(), ranks, task)
    batch = images(args), torch.arange(args.batch) % CLASSES
    return lambda: learner.step([batch], 0, STEPS)


def forwards(args: argparse.Namespace) -> dict[str, Callable[[], object]]:
    """The forward of a stock model, and of a stock model with an adapter folded into it."""
    folded = intarsia.fold(intarsia.adapt(backbone(args), OVER), report=lambda _line: None)
    x = images(args)
    return {
        name: partial(torch.no_grad()(model.eval()), x)
        for name, model in zip(FORWARDS, (backbone(args), folded), strict=True)
    }


def images(args: argparse.Namespace) -> Tensor:
    return torch.randn(args.batch, 3, args.size, args.size)


def gemm_ratio(reps: int) -> float:
    """Time of a bf16 matrix product over an fp32 one, of the shape of a ViT-S MLP."""
    jobs = {}
    for dtype in (torch.float32, torch.bfloat16):
        x, w = torch.randn(1576, 384).to(dtype), torch.randn(1536, 384).to(dtype)
        jobs[str(dtype)] = partial(_products, x, w)
    times = interleaved(jobs, reps)
    fp32, bf16 = (times[name].wall for name in jobs)
    return bf16 / fp32


def _products(x: Tensor, w: Tensor) -> None:
    for _ in range(50):
        nn.functional.linear(x, w)


def peaks(args: argparse.Namespace) -> dict[str, int]:
    """`peak_in_steps` of every case, each in a process of its own."""
    found = {}
    for name in CASES:
        run = subprocess.run(
            [sys.executable, __file__, "--peak-of", name, *_settings(args)],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        found[name] = int(run.stdout.splitlines()[-1])
    return found


def _settings(args: argparse.Namespace) -> list[str]:
    names = ("model", "size", "batch", "threads")
    return [word for name in names for word in (f"--{name}", str(getattr(args, name)))]


def adapter_bytes(experts: int = 4) -> tuple[int, int]:
    """Parameters, gradients, AdamW state and masks of MoSA (r = 64) in a ViT-B: ours, N copies.

    N copies: a dense down-projection, N up-projections with a bias each, and an int64 mask for each
    of their weights, as the released code keeps them; its frozen merged copy is not counted.
    """
    model = timm.create_model("vit_base_patch16_224", num_classes=0)
    method = intarsia.Mosa(over=OVER, experts=experts)
    adapted = intarsia.adapt(model, method, head=None)
    learned = [p for p in adapted.parameters() if p.requires_grad]
    cells = [m for m in adapted.modules() if isinstance(m, intarsia.Cell)]
    buffers = {b.data_ptr(): b for cell in cells for b in cell.buffers()}
    for parameter in learned:
        parameter.grad = torch.zeros_like(parameter)
    optimizer = adamw(adapted, 1e-3, 1e-2)
    optimizer.step()
    state = [t for s in optimizer.state.values() for t in s.values() if isinstance(t, Tensor)]
    ours = sum(t.nbytes for t in (*learned, *learned, *state, *buffers.values()))
    width, rank, blocks = 768, 64, 12
    norm, down, up = 2 * width, width * rank + rank, width * rank
    trained = blocks * (norm + down + experts * (up + width))
    return ours, trained * 4 * 4 + blocks * experts * up * 8


def measure(args: argparse.Namespace) -> tuple[list[list[str]], list[list[str]]]:
    """(rows of the table of ratios, rows of the table of cases)."""
    jobs = {name: stepper(case, args) for name, case in CASES.items()} | forwards(args)
    set_fused_attn(False)
    few = argparse.Namespace(**(vars(args) | {"batch": 2}))
    counted = {n: stepper(case, few) for n, case in CASES.items()} | forwards(few)
    floors = {name: operations(job) for name, job in counted.items()}
    set_fused_attn(True)
    del counted
    times = interleaved(jobs, args.reps)
    del jobs
    memory = peaks(args)
    gemm = gemm_ratio(args.reps)
    table = []
    for row in ROWS:
        floor = floors[row.over] / floors[row.under]
        floor = gemm if "bf16" in row.over else floor
        table.append([*ratio(row, times), f"{floor:.3f}"])
    got = memory["adapter"] / memory["full fine-tuning"]
    table.append(["peak memory, adapter / full, fp32", *judged(got, 0.58), "", ""])
    ours, copies = adapter_bytes()
    what = f"adapter state, ViT-B, r=64, N=4: {ours / 1e6:.1f} MB / {copies / 1e6:.1f} MB"
    table.append([what, *judged(ours / copies, 1 / 3), "", ""])
    cases = [
        [name, f"{1e3 * spent.wall:.0f}", f"{1e3 * spent.cpu:.0f}",
         f"{memory[name] / 2**20:.0f}" if name in memory else ""]
        for name, spent in times.items()
    ]  # fmt: skip
    return table, cases


def main() -> None:
    made = parser(__doc__, threads=2, reps=11)
    made.add_argument("--model", default="vit_small_patch16_224", help="a timm ViT")
    made.add_argument("--size", type=int, default=224, help="side of the pictures, px")
    made.add_argument("--batch", type=int, default=8)
    made.add_argument("--peak-of", choices=CASES, help=argparse.SUPPRESS)
    args = read(made)
    if args.peak_of:
        print(peak_over(stepper(CASES[args.peak_of], args)))
        return
    table, cases = measure(args)
    body = [
        *markdown(["", "got", "target", "", "by CPU time", "lower bound"], table),
        "",
        "The lower bound counts the operations of matrix products; for bf16 it is the ratio of "
        "measured matrix-product times. Memory is what three steps add to the built model, at "
        "the peak of a fresh process.",
        "",
        *markdown(["case", "wall, ms", "CPU, ms", "peak, MiB"], cases),
    ]
    about = (
        f"{args.model} at {args.size} px, batch {args.batch}, {args.threads} threads, random "
        f"weights, {CLASSES} classes; one interleaved run, medians of {args.reps}. Ratios of "
        "wall time, and next to them of CPU time."
    )
    publish("A training step: time and memory", about, body, args)


if __name__ == "__main__":
    main()
