"""A whole CNN at batch 1, dense in the fastest runtimes and sparse here: docs/benchmarks/lite0.md.

python benchmarks/lite0.py                 # on the terminal, two minutes
python benchmarks/lite0.py --write         # and the page
"""

from __future__ import annotations

import argparse
from functools import partial

import torch
from frame import interleaved, markdown, parser, publish, read

from intarsia.hosts.swap.compress import compress
from intarsia.kernels import native
from intarsia.methods.fast_convnets import Chw, chw_report
from intarsia_lab.materials.convnet_times import SIDE, dense_runtimes, lite0

NETS = ((1, 1.0), (4, 0.7), (4, 0.5), (1, 0.5), (4, 0.2), (1, 0.2), (1, 0.1))  # rows, density
HEAD = ("net", "runs in", "ms", "x fastest dense fp32", "layers by rows of a block (0 = dense)")
ABOUT = f"""\
EfficientNet-Lite0 on one picture of {SIDE} x {SIDE} pixels. Weights are random, since they do not
change the time; of 1x1 convolutions so many are left, those of the largest norm, alone or in
blocks of four rows. Each layer is stored as `Chw()` finds it fastest. All runs take turns, and the
median counts, in CPU time of the threads that are given, since others used the machine. [A sparse
CNN on a CPU](../how-to/sparse-cnn-on-a-cpu.md) says how to make such a net, and [the
claims](../claims.md) what they hold it to."""


def forms(net: torch.nn.Module) -> str:
    """How many layers are stored in each form."""
    counts: dict[int, int] = {}
    for layer in chw_report(net).layers:
        counts[layer.rows] = counts.get(layer.rows, 0) + 1
    return ", ".join(f"{rows}: {count}" for rows, count in sorted(counts.items()))


def main() -> None:
    args: argparse.Namespace = read(parser(__doc__, threads=1, reps=21))
    native.require()
    picture = torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    dense = lite0(1.0, 1, 0)
    jobs = {("dense", name): run for name, run in dense_runtimes(dense, picture).items()}
    jobs["dense", "torch"] = partial(dense, picture)
    told: dict[tuple[str, str], str] = {}
    for rows, density in NETS:
        net = compress(lite0(density, rows, 0), Chw(), picture, force=True)
        kind = "dense" if density == 1 else f"{density:g}, {rows} row{'s' * (rows > 1)}"
        jobs[kind, "intarsia"] = partial(net, picture)
        told[kind, "intarsia"] = forms(net)
    with torch.no_grad():
        spent = interleaved({"\t".join(key): run for key, run in jobs.items()}, args.reps)
    best = min(t.cpu for name, t in spent.items() if name.startswith("dense") and "fp32" in name)
    rows_of = [
        (net, where, f"{1e3 * t.cpu:.2f}", f"{best / t.cpu:.2f}", told.get((net, where), ""))
        for (net, where), t in zip(jobs, spent.values(), strict=True)
    ]
    text = f"Kernels built for {native.instructions()}; {args.threads} thread"
    body = [f"{text}{'s' * (args.threads > 1)}.", "", *markdown(HEAD, rows_of)]
    publish("A sparse CNN beside dense runtimes", ABOUT, body, args)


if __name__ == "__main__":
    main()
