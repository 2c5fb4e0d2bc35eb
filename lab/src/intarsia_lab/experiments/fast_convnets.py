"""Fast Sparse ConvNets: a sparse Lite0 against the fastest dense runtime (arXiv:1911.09723)."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any

import torch

from intarsia.formats import RowBlocks
from intarsia.kernels import native
from intarsia.kernels.chw import NativeProgram, ProgramStep

from ..kit import Effect, Report, Result, Study
from ..kit.arms import result_of, threads
from ..materials import convnet_times
from ..materials.lite0 import blocks_of

WIDE = "AVX-512 with VNNI"
# (rows of a block, density) -> times the best dense path, with AVX-512 and with AVX2
BARS: Mapping[tuple[int, float], tuple[float, float]] = {
    (4, 0.7): (1.45, 1.15),
    (4, 0.5): (1.9, 1.5),
    (4, 0.2): (4.0, 2.8),
    (1, 0.2): (2.3, 1.9),
    (1, 0.1): (3.7, 3.3),
}


@lru_cache
def layer(shape: tuple[int, int, int], seed: int) -> dict[str, float]:
    """Return how many times as fast sparse 1x1 convolutions are as torch's best dense one.

    shape: input channels, output channels, and the side of the square picture; seed: of the random
    weights. Keys are "rows density": the rows of a pruned block and the share of weights that is
    left, for each of BARS. Times are CPU seconds of one thread, the best of interleaved repeats.
    """
    # random weights and masks: time does not depend on their values
    ins, outs, side = shape
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randn(outs, ins, generator=draw) / ins**0.5
    x = torch.randn(ins, side, side, generator=draw)
    # the same input in three layouts: (channels, pixels), NCHW, and NHWC below
    flat, x4, w4 = x.flatten(1).contiguous(), x[None], weight[:, :, None, None]
    x_last, w_last = (t.contiguous(memory_format=torch.channels_last) for t in (x4, w4))
    # the dense rivals: torch's fastest of three ways to write a 1x1 convolution
    runs: dict[str, Callable[[], Any]] = {
        "mm": lambda: torch.mm(weight, flat),
        "nchw": lambda: torch.conv2d(x4, w4),
        "nhwc": lambda: torch.conv2d(x_last, w_last),
    }
    dense = tuple(runs)
    for rows, density in BARS:
        stored = RowBlocks(rows).encode(blocks_of(weight, rows, density))
        step = ProgramStep("spmm", 0, 1, weights={**stored, "bias": torch.zeros(outs)}, rows=rows)
        program = NativeProgram([step], {0: (ins, side, side)}, [1])
        program.views[0].copy_(x)
        runs[f"{rows} {density}"] = program.carry_out
    # about as much work in each repeat, or small layers would be timed by the clock's grain
    inner = max(1, int(2e7 / (ins * outs * side * side)))
    repeated = {name: partial(_often, run, inner) for name, run in runs.items()}
    with torch.no_grad():
        spent = convnet_times.interleaved(repeated)
    best = min(spent[name] for name in dense)
    return {name: best / spent[name] for name in runs if name not in dense}


def _often(run: Callable[[], Any], times: int) -> None:
    """Call a function so many times, as one measured repeat."""
    for _ in range(times):
        run()


@threads(1)
def layers(seeds: tuple[int, ...], report: Report) -> Result:
    """Return the speedup of sparse 1x1 convolutions over dense ones, divided by its target.

    The speedup over torch's best dense path is a geometric mean over the shapes of
    EfficientNet-Lite0 and MobileNet, for each block size and density of BARS; BARS has the target
    of each, which depends on the machine's instructions. The least quotient of each seed is judged;
    1 or more holds.
    """
    native.require()
    # the target depends on the instructions: AVX2 does half of the work at a time
    wide = native.instructions() == WIDE
    values: list[float] = []
    rows: list[dict[str, str]] = []
    for seed in seeds:
        speeds = [layer(shape, seed) for shape in convnet_times.SHAPES]
        means: dict[str, float] = {}
        for (block, density), bars in BARS.items():
            ratios = [by_form[f"{block} {density}"] for by_form in speeds]
            name = f"{block} row{'s' * (block > 1)}, {density}"
            # a kernel must be fast on every shape, so that no layer makes up for another
            means[name] = statistics.geometric_mean(ratios) / bars[0 if wide else 1]
            ratio_text = (
                f"{statistics.geometric_mean(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
            )
            rows.append({"seed": str(seed), "form": name, "times as fast": ratio_text,
                         "bar": str(bars[0 if wide else 1])})  # fmt: skip
        values.append(min(means.values()))
        report(f"seed {seed}: {rows[-len(BARS) :]}")
    note = (
        f"{len(convnet_times.SHAPES)} shapes of EfficientNet-Lite0 and MobileNet against the best "
        "of torch's mm, NCHW and NHWC in float32; one thread, CPU time, best of "
        f"{convnet_times.REPEATS} interleaved repeats. "
        f"Built for {native.instructions()}."
    )
    return result_of(values, rows, note)


STUDIES = (
    Study(
        "fast-convnets",
        system="Fast Sparse ConvNets",
        arxiv="1911.09723",
        question="Is a net with sparse 1x1 convolutions faster than its dense one?",
        effect=Effect(
            "1.3 to 2.4 times as fast at equal accuracy",
            "MobileNets and EfficientNet, Snapdragon 835",
            "abstract",
            sign=1,
            values=(1.3, 2.4),
            null=1.0,
        ),
        work="EfficientNet-Lite0 at batch 1 on one thread, float32",
        baseline="the fastest of OpenVINO and onnxruntime in float32, dense; the lesser of a "
        "density of 0.2 and of 0.1",
        unit="times as fast",
        differs="No accuracy is held: nothing is trained after the pruning.",
        # a stored weight takes about 1.6 times as long as a dense one: 90 % of them cannot pay
        measure=partial(convnet_times.whole, forms=[(1, 0.2), (1, 0.1)], losing=(1, 0.9)),
        seeds=tuple(range(9, 15)),
        minutes=2,
    ),
)
