"""A mixture layer at few tokens next to transformers' Mixtral block: docs/benchmarks/few_tokens.md.

    python benchmarks/few_tokens.py               # the table on the terminal
    python benchmarks/few_tokens.py --write       # and the page
    python benchmarks/few_tokens.py --reps 1 --small       # a smoke test

The layers and passes come from `benchmarks/routing.py`, in float32. Mixtral's block is timed in
each of its implementations, and the fastest is the baseline. The least CPU time counts, all in
turns: an expert's product of a few rows is short, and other work on the machine only adds to it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from functools import partial

import torch
from frame import Job, judged, markdown, parser, publish, read
from routing import IMPLEMENTATIONS, Shape, both, forward, layer, mixtral, tokens
from torch import Tensor, nn

from intarsia.kernels.native.floor import Floor, measure
from intarsia.kernels.native.pages import use_large_pages
from intarsia.mixtures import Mixture

# targets: forward + backward, forward
SHAPES = (
    *(Shape(8, 1536, count, (0.95, 0.85)) for count in (16, 64, 512)),
    *(Shape(64, 384, count, (0.95, 0.85)) for count in (16, 64, 512)),
    *(Shape(512, 64, count, (1.0, 1.0)) for count in (16, 512)),
)
MOST = 10**4  # tokens times hidden units up to which a copy of the weights for each pair is tried
LOOPED = 8  # experts up to which Mixtral's loop is tried


def least(jobs: Mapping[str, Job], reps: int) -> dict[str, float]:
    """The least CPU milliseconds of each job, in turns after one that does not count."""
    best, names = dict.fromkeys(jobs, math.inf), list(jobs)
    for rep in range(-1, reps):
        shift = rep % len(names)
        for name in names[shift:] + names[:shift]:
            started = time.process_time()
            jobs[name]()
            spent = 1e3 * (time.process_time() - started)
            if rep >= 0:
                best[name] = min(best[name], spent)
    return best


def limit(model: Mixture, x: Tensor, backward: bool, floor: Floor) -> float:
    """The milliseconds that memory and processor need at least.

    Weights of experts with rows are read once, by a backward once more, and the gradients of all
    experts are written; each product of the forward is two of the backward.
    """
    with torch.no_grad():
        expert = model.routing(x).expert
    of_expert = sum(p.nbytes for p in model.experts.parameters()) / model.experts.experts
    busy, experts = len(expert.unique()), model.experts.experts
    moved = of_expert * (2 * busy + experts if backward else busy)
    operations = 2 * len(expert) * of_expert / 4 * (3 if backward else 1)
    return 1e3 * max(moved / floor.read, operations / floor.matmul["fp32"])


def rows_of(shape: Shape, reps: int, floor: Floor) -> list[list[str]]:
    """A row for the forward, and one for forward and backward."""
    x, models = tokens(shape), dict[str, nn.Module]()
    for name in IMPLEMENTATIONS:
        slow = {
            "batched_mm": shape.tokens * shape.hidden >= MOST,
            "eager": shape.experts > LOOPED,
        }
        if not slow.get(name):
            models[name] = mixtral(shape, name)
            use_large_pages(p.data for p in models[name].parameters())
    models["ours"] = mixture = layer(shape)
    table: list[list[str]] = []
    for way, run, target in zip(
        ("forward + backward", "forward"), (both, forward), shape.targets, strict=True
    ):
        spent = least({name: partial(run, model, x) for name, model in models.items()}, reps)
        best = min((name for name in spent if name != "ours"), key=lambda name: spent[name])
        least_ms = limit(mixture, x, run is both, floor)
        cells = [str(shape), way, f"{least_ms:.1f}", f"{spent['ours']:.1f}"]
        cells.append(f"{spent[best]:.1f} ({best})")
        table.append([*cells, *judged(spent["ours"] / spent[best], target)])
    return table


def main() -> None:
    made = parser(__doc__, threads=1, reps=7)
    made.add_argument("--small", action="store_true", help="a small layer, for a smoke test")
    args = read(made)
    shapes = [Shape(4, 64, 16, (None, None))] if args.small else SHAPES
    floor = measure()
    rows = [row for shape in shapes for row in rows_of(shape, args.reps, floor)]
    head = ["layer", "", "limit, ms", "ours, CPU ms", "transformers' best, CPU ms", "ratio"]
    head += ["target", ""]
    about = (
        "Width 576, 2 of E experts a token, gated SiLU, float32, one thread; experts are cut from "
        "SmolLM2's MLPs, routers are random. "
        "Experts with up to 32 rows are computed in one native call that reads each expert's "
        "weights once. Weights are in large pages, the rival's too. *limit* is what this machine "
        f"needs to read the weights ({floor.read / 1e9:.1f} GB/s) or to multiply "
        f"({floor.matmul['fp32'] / 1e9:.0f} GFLOP/s), whichever is longer. The rival is "
        "transformers' Mixtral block, in each of its implementations for CPUs, with the "
        "fastest named. llama.cpp, OpenVINO and onnxruntime train no "
        "mixture and have no such layer in float32 alone: [a whole mixture](offloaded.md) is "
        "compared with llama.cpp's."
    )
    publish("A mixture layer at few tokens", about, markdown(head, rows), args)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
