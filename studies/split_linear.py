"""What splitting costs: SplitLinear beside nn.Linear, and MoSA's train step beside the adapter's.

Forward and backward on one thread, 11 interleaved repetitions, medians of CPU time (which other
work on the machine disturbs less than wall time). The floor is nn.Linear, and the adapter itself.
The layers are so small that page faults decide, unless malloc keeps what is freed:

MALLOC_TRIM_THRESHOLD_=8589934592 MALLOC_MMAP_THRESHOLD_=1073741824 \\
    python studies/split_linear.py [--step]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping

import timm
import torch
import torch.nn.functional as F
from torch import nn

from intarsia.adapters import Bottleneck
from intarsia.folders.verbs import adapt
from intarsia.methods import Mosa
from intarsia.mixtures import SplitLinear, split_adamw
from intarsia.partitions import random_disjoint
from intarsia.routers import RandomRouter

REPEATS = 11
# batch, tokens, width, bottleneck, image size
SHAPES = ((8, 257, 384, 64, 224), (32, 26, 384, 16, 70))

Timed = Mapping[str, Callable[[], object]]


def medians(timed: Timed, calls: int) -> dict[str, tuple[float, float]]:
    """CPU milliseconds per call, and the ratio to the first in the same repetition."""
    taken: dict[str, list[float]] = {name: [] for name in timed}
    for repeat in range(REPEATS + 1):
        for name, call in timed.items():
            start = time.process_time()
            for _ in range(calls):
                call()
            if repeat:  # the first warms up
                taken[name].append((time.process_time() - start) / calls * 1e3)
    floor = next(iter(taken.values()))
    return {
        name: (
            statistics.median(values),
            statistics.median(v / f for v, f in zip(values, floor, strict=True)),
        )
        for name, values in taken.items()
    }


def layer_calls(batch: int, tokens: int, width: int, rank: int) -> Timed:
    """An up-projection, whole and split in four."""
    generator = torch.Generator().manual_seed(0)
    base = nn.Linear(rank, width)
    nn.init.zeros_(base.weight)
    partition = random_disjoint({"weight": (width, rank)}, 4, generator=generator)
    split = SplitLinear(base, partition, zero_start=True)
    pairs = SplitLinear(base, partition, active=2, zero_start=True)
    x = torch.randn(batch, tokens, rank, requires_grad=True)
    dy = torch.randn(batch, tokens, width)

    def drawn(layer: SplitLinear, per: str) -> Callable[[], object]:
        router = RandomRouter(4, layer.active, per, generator=generator)

        def call() -> None:
            gates = router(x).dense()
            layer(x, gates if per == "sample" else gates[:1]).backward(dy)

        return call

    return {
        "nn.Linear": lambda: base(x).backward(dy),
        "split, per batch": drawn(split, "batch"),
        "split, per sample": drawn(split, "sample"),
        "split, 2 of 4 per sample": drawn(pairs, "sample"),
    }


def step_calls(batch: int, size: int, rank: int) -> Timed:
    """A whole train step of ViT-S/14 with cells in all twelve blocks."""
    over = Bottleneck(rank, activation="gelu")
    methods = {
        "adapter": over,
        "adapter again (noise)": over,
        "MoSA, per batch": Mosa(over, draw="batch"),
        "MoSA, per sample": Mosa(over),
        "MoSA, 2 of 4 per sample": Mosa(over, active=2),
    }
    x, y = torch.randn(batch, 3, size, size), torch.randint(10, (batch,))

    def step(method: Bottleneck | Mosa) -> Callable[[], object]:
        torch.manual_seed(0)
        trunk = timm.create_model("vit_small_patch14_dinov2", img_size=size, num_classes=10)
        model = adapt(trunk, method).train()
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, fused=True)

        def call() -> None:
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()

        return call

    timed = {name: step(method) for name, method in methods.items()}
    return timed | {"MoSA, per sample, SplitAdamW": split_step(over, batch, size)}


def split_step(over: Bottleneck, batch: int, size: int) -> Callable[[], object]:
    x, y = torch.randn(batch, 3, size, size), torch.randint(10, (batch,))
    trunk = timm.create_model("vit_small_patch14_dinov2", img_size=size, num_classes=10)
    model = adapt(trunk, Mosa(over)).train()
    optimizer = split_adamw(model, 1e-3, 0.01)

    def call() -> None:
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()

    return call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--step", action="store_true", help="whole train steps as well")
    with_steps = parser.parse_args().step
    torch.set_num_threads(1)
    for batch, tokens, width, rank, _ in SHAPES:
        print(f"up-projection {rank} -> {width}, {batch} x {tokens} tokens")
        show(medians(layer_calls(batch, tokens, width, rank), calls=20))
    if not with_steps:
        return
    for batch, _, _, rank, size in SHAPES:
        print(f"train step, ViT-S/14 at {size} px, batch {batch}, bottleneck {rank}")
        show(medians(step_calls(batch, size, rank), calls=1))


def show(rows: Mapping[str, tuple[float, float]]) -> None:
    for name, (milliseconds, ratio) in rows.items():
        print(f"  {name:32s} {milliseconds:9.2f} ms  {ratio:6.3f}")


if __name__ == "__main__":
    main()
