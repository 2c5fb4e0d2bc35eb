"""Times of sparse and dense convolutional nets in several runtimes."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from intarsia.core.errors import MissingExtra
from intarsia.hosts import export_onnx
from intarsia.hosts.swap.compress import compress
from intarsia.kernels import native
from intarsia.methods.fast_convnets import Chw
from intarsia.partitions import keep_row_blocks

from ..kit import Report, Result
from ..kit.arms import result_of, threads

REPEATS, SIDE = 15, 224
SHAPES = (
    *((24, 144, 56), (144, 40, 28), (240, 40, 28), (40, 240, 28), (80, 480, 14), (480, 112, 14)),
    *((672, 112, 14), (672, 192, 7), (192, 1152, 7), (1152, 320, 7)),  # EfficientNet-Lite0
    *((256, 256, 28), (512, 512, 14), (1024, 1024, 7)),  # MobileNet
)


def interleaved(runs: Mapping[str, Callable[[], Any]], repeats: int = REPEATS) -> dict[str, float]:
    """Return the least CPU seconds of each function over several repeats.

    In every repeat all functions are called once, so that a busy machine slows all of them alike.
    runs: name -> function.
    """
    least: dict[str, float] = dict.fromkeys(runs, math.inf)
    # once without measuring: caches and lazy set-up
    for run in runs.values():
        run()
    for _ in range(repeats):
        for name, run in runs.items():
            started = time.process_time()
            run()
            least[name] = min(least[name], time.process_time() - started)
    return least


def blocks_of(weight: Tensor, rows: int, density: float) -> Tensor:
    """Set all but the largest blocks of a weight to 0.

    weight: (out, in, ...); rows: outputs of a block; density: share of blocks that stay.
    """
    partition = keep_row_blocks({"w": weight.abs()}, {"w": density}, rows)
    return weight * partition.mask("w", 0)


def lite0(density: float, rows: int, seed: int) -> nn.Module:
    """Build EfficientNet-Lite0 with random weights, and prune its 1x1 convolutions by blocks.

    density: share of the weights that stay; rows: outputs of a block, whose norm decides; seed: of
      the weights.
    """
    import timm

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = timm.create_model("tf_efficientnet_lite0").eval()
    for module in net.modules():
        # pointwise convolutions have nearly all of the weights
        if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1):
            module.weight.data = blocks_of(module.weight.data, rows, density)
    return net


def dense_runtimes(net: nn.Module, picture: Tensor) -> dict[str, Callable[[], Any]]:
    """Prepare a net in onnxruntime (float32) and OpenVINO (float32, bfloat16), on one thread.

    net: the model; picture: (1, C, H, W), an example. Returns name -> function that computes the
      picture.
    Raises: MissingExtra without one of them.
    """
    try:
        import onnxruntime
        import openvino  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingExtra(str(error.name), "bench") from error
    array = picture.numpy()
    runs: dict[str, Callable[[], Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = str(
            export_onnx(net, Path(folder) / "net.onnx", images=picture, report=lambda _: None)
        )
        options = onnxruntime.SessionOptions()
        # one thread, as for the others
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        runs["onnxruntime fp32"] = lambda: session.run(None, {name: array})
        model = openvino.Core().read_model(path)
        model.reshape(list(picture.shape))
        for precision in ("f32", "bf16"):
            # OpenVINO computes in the type of the hint where the processor has it
            properties = {
                "INFERENCE_NUM_THREADS": 1,
                "NUM_STREAMS": 1,
                "INFERENCE_PRECISION_HINT": precision,
            }
            request = openvino.Core().compile_model(model, "CPU", properties).create_infer_request()
            label = {"f32": "fp32", "bf16": "bf16"}[precision]
            runs[f"OpenVINO {label}"] = partial(request.infer, [array])
    return runs


@threads(1)
def whole(seeds: Sequence[int], report: Report, *, forms: Sequence[tuple[int, float]]) -> Result:
    """Measure how many times as fast sparse nets of ours are as the fastest dense runtime.

    seeds: one number each; forms: (rows of a block, density) of the sparse nets, of which the
      slowest counts.
    """
    native.require()
    values: list[float] = []
    rows: list[dict[str, str]] = []
    for seed in seeds:
        picture = torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
        # the same picture for all
        runs = dense_runtimes(lite0(1.0, 1, seed), picture)
        dense = [name for name in runs if "fp32" in name]
        for block, density in forms:
            net = compress(lite0(density, block, seed), Chw(), picture, force=True)
            runs[f"ours, {block} row{'s' * (block > 1)}, {density}"] = partial(net, picture)
        with torch.no_grad():
            spent = interleaved(runs)
        best = min(spent[name] for name in dense)
        # the slowest of our forms is the result
        ours = [name for name in runs if name.startswith("ours")]
        values.append(min(best / spent[name] for name in ours))
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
