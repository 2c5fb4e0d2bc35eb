"""Fast Sparse ConvNets: a sparse Lite0 against the fastest dense runtime (arXiv:1911.09723)."""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from intarsia.core.errors import MissingExtra
from intarsia.formats import RowBlocks
from intarsia.hosts import export_onnx
from intarsia.hosts.swap.compress import compress
from intarsia.kernels import native
from intarsia.kernels.chw import NativeProgram, ProgramStep
from intarsia.methods.fast_convnets import Chw
from intarsia.partitions import keep_row_blocks

from ..kit import TIMED, Report, Result, Study
from ..kit.arms import result_of, threads

REPEATS, SIDE = 15, 224
SHAPES = (
    *((24, 144, 56), (144, 40, 28), (240, 40, 28), (40, 240, 28), (80, 480, 14), (480, 112, 14)),
    *((672, 112, 14), (672, 192, 7), (192, 1152, 7), (1152, 320, 7)),  # EfficientNet-Lite0
    *((256, 256, 28), (512, 512, 14), (1024, 1024, 7)),  # MobileNet
)
WIDE = "AVX-512 with VNNI"
# (rows of a block, density) -> times the best dense path, with AVX-512 and with AVX2
BARS: Mapping[tuple[int, float], tuple[float, float]] = {
    (4, 0.7): (1.45, 1.15),
    (4, 0.5): (1.9, 1.5),
    (4, 0.2): (4.0, 2.8),
    (1, 0.2): (2.3, 1.9),
    (1, 0.1): (3.7, 3.3),
}


def interleaved(runs: Mapping[str, Callable[[], Any]], repeats: int = REPEATS) -> dict[str, float]:
    """The least CPU seconds of each, all of them one after the other in every repeat."""
    found: dict[str, float] = dict.fromkeys(runs, math.inf)
    for run in runs.values():
        run()
    for _ in range(repeats):
        for name, run in runs.items():
            started = time.process_time()
            run()
            found[name] = min(found[name], time.process_time() - started)
    return found


def blocks_of(weight: Tensor, rows: int, density: float) -> Tensor:
    """A weight of which blocks with the largest norms are left."""
    kept = keep_row_blocks({"w": weight.abs()}, {"w": density}, rows)
    return weight * kept.mask("w", 0)


@lru_cache
def layer(shape: tuple[int, int, int], seed: int) -> dict[str, float]:
    """Times as fast as the best dense float32 path of torch, "rows density" -> ratio."""
    ins, outs, side = shape
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randn(outs, ins, generator=draw) / ins**0.5
    x = torch.randn(ins, side, side, generator=draw)
    flat, x4, w4 = x.flatten(1).contiguous(), x[None], weight[:, :, None, None]
    x_last, w_last = (t.contiguous(memory_format=torch.channels_last) for t in (x4, w4))
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
    inner = max(1, int(2e7 / (ins * outs * side * side)))
    many = {name: partial(_often, run, inner) for name, run in runs.items()}
    with torch.no_grad():
        spent = interleaved(many)
    best = min(spent[name] for name in dense)
    return {name: best / spent[name] for name in runs if name not in dense}


def _often(run: Callable[[], Any], times: int) -> None:
    for _ in range(times):
        run()


@threads(1)
def layers(seeds: tuple[int, ...], report: Report) -> Result:
    """The least of the geometric means over all shapes, each over its bar."""
    native.require()
    wide = native.instructions() == WIDE
    values: list[float] = []
    rows: list[dict[str, str]] = []
    for seed in seeds:
        each = [layer(shape, seed) for shape in SHAPES]
        means: dict[str, float] = {}
        for (block, density), bars in BARS.items():
            ratios = [one[f"{block} {density}"] for one in each]
            name = f"{block} row{'s' * (block > 1)}, {density}"
            means[name] = statistics.geometric_mean(ratios) / bars[0 if wide else 1]
            shown = f"{statistics.geometric_mean(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
            rows.append({"seed": str(seed), "form": name, "times as fast": shown,
                         "bar": str(bars[0 if wide else 1])})  # fmt: skip
        values.append(min(means.values()))
        report(f"seed {seed}: {rows[-len(BARS) :]}")
    note = (
        f"{len(SHAPES)} shapes of EfficientNet-Lite0 and MobileNet against the best of torch's mm, "
        f"NCHW and NHWC in float32; one thread, CPU time, best of {REPEATS} interleaved repeats. "
        f"Built for {native.instructions()}."
    )
    return result_of(values, rows, note)


def lite0(density: float, rows: int, seed: int) -> nn.Module:
    """EfficientNet-Lite0 with random weights, its 1x1 convolutions pruned by norms of blocks."""
    import timm

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = timm.create_model("tf_efficientnet_lite0").eval()
    for module in net.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1):
            module.weight.data = blocks_of(module.weight.data, rows, density)
    return net


def dense_runtimes(net: nn.Module, picture: Tensor) -> dict[str, Callable[[], Any]]:
    """onnxruntime in float32 and OpenVINO in float32 and bfloat16, on one thread.

    Raises: MissingExtra without one of them.
    """
    try:
        import onnxruntime
        import openvino  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingExtra(str(error.name), "bench") from error
    array = picture.numpy()
    found: dict[str, Callable[[], Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = str(
            export_onnx(net, Path(folder) / "net.onnx", images=picture, report=lambda _: None)
        )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        found["onnxruntime fp32"] = lambda: session.run(None, {name: array})
        model = openvino.Core().read_model(path)
        model.reshape(list(picture.shape))
        for precision in ("f32", "bf16"):
            how = {
                "INFERENCE_NUM_THREADS": 1,
                "NUM_STREAMS": 1,
                "INFERENCE_PRECISION_HINT": precision,
            }
            request = openvino.Core().compile_model(model, "CPU", how).create_infer_request()
            label = {"f32": "fp32", "bf16": "bf16"}[precision]
            found[f"OpenVINO {label}"] = partial(request.infer, [array])
    return found


@threads(1)
def whole(
    seeds: Sequence[int], report: Report, *, bars: Mapping[tuple[int, float], float]
) -> Result:
    """The least ratio of the fastest dense float32 runtime to ours, each over its bar."""
    native.require()
    values: list[float] = []
    rows: list[dict[str, str]] = []
    for seed in seeds:
        picture = torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
        runs = dense_runtimes(lite0(1.0, 1, seed), picture)
        dense = [name for name in runs if "fp32" in name]
        for block, density in bars:
            net = compress(lite0(density, block, seed), Chw(), picture, force=True)
            runs[f"ours, {block} row{'s' * (block > 1)}, {density}"] = partial(net, picture)
        with torch.no_grad():
            spent = interleaved(runs)
        best = min(spent[name] for name in dense)
        ours = [name for name in runs if name.startswith("ours")]
        ratios = [best / spent[name] for name in ours]
        values.append(min(r / bar for r, bar in zip(ratios, bars.values(), strict=True)))
        rows += [
            {
                "seed": str(seed),
                "net": name,
                "ms": f"{1e3 * t:.2f}",
                "times as fast": f"{best / t:.2f}",
            }
            for name, t in spent.items()
        ]
        report(f"seed {seed}: {rows[-len(runs) :]}")
    note = (
        f"EfficientNet-Lite0 at {SIDE} px, one picture, one thread; random weights and masks, for "
        f"time only; CPU time, best of {REPEATS} interleaved repeats. Built for "
        f"{native.instructions()}."
    )
    return result_of(values, rows, note)


study = partial(Study, sense=">=", control=TIMED, minutes=3)

CLAIMS = (
    study(
        "fast-convnets",
        system="Fast Sparse ConvNets",
        work="EfficientNet-Lite0, one thread",
        sentence="EfficientNet-Lite0 with 1x1 convolutions of which a fifth, or a tenth, is left "
        "runs faster at batch 1 than its dense net in the fastest dense runtime "
        "(Fast Sparse ConvNets, arXiv:1911.09723).",
        baseline="the fastest of OpenVINO and onnxruntime in float32: 1.6 times as fast at a "
        "density of 0.2, 2.0 at 0.1; the lesser of both, over that",
        target=1.0,
        measure=partial(whole, bars={(1, 0.2): 1.6, (1, 0.1): 2.0}),
    ),
    study(
        "fast-convnets-layers",
        sentence="Sparse 1x1 convolutions in CHW are faster than the best dense path of torch, in "
        "blocks of four rows at a density of 0.7, unstructured at 0.2.",
        baseline="geometric means over 13 shapes: 4 rows 1.45, 1.9 and 4 times as fast at 0.7, 0.5 "
        "and 0.2, one row 2.3 and 3.7 at 0.2 and 0.1 (AVX2: 1.15, 1.5, 2.8, 1.9, 3.3); the least, "
        "over its bar",
        target=1.0,
        measure=layers,
    ),
)
