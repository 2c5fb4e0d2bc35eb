"""Time and memory of a training step, beside the floor that counting operations sets.

    python benchmarks/train_step.py                 # the table on the terminal
    python benchmarks/train_step.py --write         # and into docs/benchmarks/train_step.md
    python benchmarks/train_step.py --model vit_tiny_patch16_224 --reps 1    # a smoke test

Every row is a ratio of two cases. Cases are timed in one interleaved run, in an order that rotates,
so that a machine whose load changes slows all of them down; a second copy of the baseline shows the
noise. Steps are those of `intarsia.fit`. Peak memory is that of a fresh process for each case.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import psutil
import timm
import torch
from timm.layers import set_fused_attn
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import intarsia
from intarsia.train import Recipe, Training, one_backward, plain, two_pass
from intarsia.train.learner import Learner
from intarsia.train.objectives import Objective
from intarsia.train.precision import cast_frozen, training_mode
from intarsia.train.processes import accelerator
from intarsia.train.record import machine, versions

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks" / "train_step.md"
CLASSES, STEPS = 100, 10_000
OVER = intarsia.Bottleneck(64, activation="gelu")
METHODS = {"adapter": OVER, "mosa": intarsia.Mosa(over=OVER, experts=4)}


@dataclass(frozen=True)
class Case:
    """A training step: what is trained, how, and in which type the trunk is held."""

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


@dataclass(frozen=True)
class Row:
    """A ratio and its bar (None = for information)."""

    what: str
    over: str
    under: str
    bar: float | None
    note: str = ""


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
    learner = Learner(model, model, case.objective, training, Recipe(), accelerator((), None))
    learner.classes = CLASSES
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


Times = dict[str, list[tuple[float, float]]]


def interleaved(jobs: Mapping[str, Callable[[], object]], reps: int) -> Times:
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


def operations(job: Callable[[], object]) -> int:
    """Floating-point operations of matrix products and convolutions, attention written out."""
    with FlopCounterMode(display=False) as counter:
        job()
    return counter.get_total_flops()


def gemm_ratio(reps: int) -> float:
    """Time of a bf16 matrix product over an fp32 one, of the shape of a ViT-S MLP."""
    jobs = {}
    for dtype in (torch.float32, torch.bfloat16):
        x, w = torch.randn(1576, 384).to(dtype), torch.randn(1536, 384).to(dtype)
        jobs[str(dtype)] = partial(_products, x, w)
    times = interleaved(jobs, reps)
    fp32, bf16 = (statistics.median(wall for _, wall in times[name]) for name in jobs)
    return bf16 / fp32


def _products(x: Tensor, w: Tensor) -> None:
    for _ in range(50):
        nn.functional.linear(x, w)


def peak_in_steps(case: Case, args: argparse.Namespace) -> int:
    """Bytes by which three steps raise the process's peak above the built model."""
    step = stepper(case, args)
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far, of building, is forgotten
    before = psutil.Process().memory_info().rss
    for _ in range(3):
        step()
    status = Path("/proc/self/status").read_text()
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(peak.split()[1]) * 1024 - before


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
    optimizer = Recipe().optimizer(adapted, 1e-3, 1e-2)
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
    middle = {n: tuple(map(statistics.median, zip(*t, strict=True))) for n, t in times.items()}
    table = []
    for row in ROWS:
        cpu, wall = (a / b for a, b in zip(middle[row.over], middle[row.under], strict=True))
        floor = floors[row.over] / floors[row.under]
        floor = gemm if "bf16" in row.over else floor
        table.append([row.what, *_judged(wall, row.bar), f"{cpu:.3f}", f"{floor:.3f}"])
    ratio = memory["adapter"] / memory["full fine-tuning"]
    table.append(["peak memory, adapter / full, fp32", *_judged(ratio, 0.58), "", ""])
    ours, copies = adapter_bytes()
    what = f"adapter state, ViT-B, r=64, N=4: {ours / 1e6:.1f} MB / {copies / 1e6:.1f} MB"
    table.append([what, *_judged(ours / copies, 1 / 3), "", ""])
    cases = [
        [name, f"{1e3 * middle[name][1]:.0f}", f"{1e3 * middle[name][0]:.0f}",
         f"{memory[name] / 2**20:.0f}" if name in memory else ""]
        for name in times
    ]  # fmt: skip
    return table, cases


def _judged(got: float, bar: float | None) -> tuple[str, str, str]:
    if bar is None:
        return f"{got:.3f}", "", ""
    return f"{got:.3f}", f"{bar:.2f}", "met" if got <= bar else "not met"


def page(args: argparse.Namespace) -> str:
    """The whole report, in Markdown."""
    table, cases = measure(args)
    about, found = machine(), versions()
    command = " ".join(["python", "benchmarks/train_step.py", *sys.argv[1:]])
    return "\n".join(
        [
            "# A training step: time and memory",
            "",
            f"{args.model} at {args.size} px, batch {args.batch}, {args.threads} threads, random "
            f"weights, {CLASSES} classes; one interleaved run, medians of {args.reps}. Ratios of "
            "wall time, and of CPU time beside them.",
            "",
            f"{datetime.now(UTC):%Y-%m-%d}, {about['processor']}, torch {found['torch']}, "
            f"Python {found['python']}, load before the run {args.load:.1f}: `{command}`",
            "",
            *_markdown(["", "got", "bar", "", "by CPU time", "floor"], table),
            "",
            "The floor counts the operations of matrix products; for bf16 it is the ratio of "
            "measured matrix-product times. Memory is what three steps add to the built model, at "
            "the peak of a fresh process.",
            "",
            *_markdown(["case", "wall, ms", "CPU, ms", "peak, MiB"], cases),
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
    parser.add_argument("--model", default="vit_small_patch16_224", help="a timm ViT")
    parser.add_argument("--size", type=int, default=224, help="side of the pictures, px")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--reps", type=int, default=11)
    parser.add_argument("--write", action="store_true", help=f"also write docs/{PAGE.name}")
    parser.add_argument("--peak-of", choices=CASES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.load = psutil.getloadavg()[0]
    torch.set_num_threads(args.threads)
    if args.peak_of:
        print(peak_in_steps(CASES[args.peak_of], args))
        return
    text = page(args)
    print(text)
    if args.write:
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(text)


if __name__ == "__main__":
    main()
