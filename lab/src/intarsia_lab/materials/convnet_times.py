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
from intarsia.folders.out.graphs import export_onnx
from intarsia.folders.out.int8 import export_onnx_int8
from intarsia.kernels import native
from intarsia.methods.fast_convnets import Chw
from intarsia.sparse.swap.compress import compress

from ..kit import Report, Result
from ..kit.arms import result_of, threads
from ..kit.openvino_core import openvino_core
from .lite0 import SIDE, lite0

REPEATS = 15
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


Run = Callable[[Tensor], Any]  # a picture (1, C, H, W) -> logits (1, classes)


def dense_runtimes(net: nn.Module, picture: Tensor) -> dict[str, Run]:
    """Prepare a net in onnxruntime (float32) and OpenVINO (float32, bfloat16), on one thread.

    net: the model; picture: (1, C, H, W), an example. Returns name -> function of a picture.
    Raises: MissingExtra without one of them.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = export_onnx(net, Path(folder) / "net.onnx", images=picture, report=lambda _: None)
        runs = {"onnxruntime fp32": _in_onnxruntime(file)}
        # OpenVINO computes in the type of the hint where the processor has it
        for hint, name in (("f32", "fp32"), ("bf16", "bf16")):
            runs[f"OpenVINO {name}"] = _in_openvino(file, picture, hint)
    return runs


def int8_runtimes(net: nn.Module, calibration: Tensor, picture: Tensor) -> dict[str, Run]:
    """Prepare a net in int8 in onnxruntime and OpenVINO, on one thread; see `export_onnx_int8`.

    net: the model; calibration: (n, C, H, W), pictures for the ranges of activations; picture:
      (1, C, H, W), an example. Returns name -> function of a picture.
    Raises: MissingExtra without one of them.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "net.onnx"
        # any loss is accepted: the table that this is for shows it
        export_onnx_int8(net, file, calibration, picture, most_lost=1.0, report=lambda _: None)
        return {
            "onnxruntime int8": _in_onnxruntime(file),
            "OpenVINO int8": _in_openvino(file, picture, "f32"),
        }


def _in_onnxruntime(file: Path) -> Run:
    """Open an ONNX file in onnxruntime, on one thread."""
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtra(str(error.name), "bench") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda picture: session.run(None, {name: picture.numpy()})[0]


def _in_openvino(file: Path, picture: Tensor, precision: str) -> Run:
    """Open an ONNX file in OpenVINO for one size of pictures, on one thread."""
    try:
        core = openvino_core()
    except ImportError as error:
        raise MissingExtra(str(error.name), "bench") from error
    model = core.read_model(str(file))
    model.reshape(list(picture.shape))
    properties = {
        "INFERENCE_NUM_THREADS": 1,
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": precision,
    }
    request = core.compile_model(model, "CPU", properties).create_infer_request()
    return lambda picture: request.infer([picture.numpy()])[0]


def _named(form: tuple[int, float]) -> str:
    """Return the name of a form in the table.  form: rows of a block, density."""
    block, density = form
    return f"ours, {block} row{'s' * (block > 1)}, {density}"


@threads(1)
def whole(
    seeds: Sequence[int],
    report: Report,
    *,
    forms: Sequence[tuple[int, float]],
    losing: tuple[int, float],
) -> Result:
    """Measure how many times as fast sparse nets of ours are as the fastest dense runtime.

    seeds: one picture each; forms: (rows of a block, density) of the sparse nets, the slowest
      counts; losing: the form that must be slower than dense, every layer in its blocks; it
      stands in the table alone.
    """
    native.require()
    values: list[float] = []
    rows: list[dict[str, str]] = []
    for seed in seeds:
        picture = torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
        # the same picture for all
        runs: dict[str, Callable[[], Any]] = {
            name: partial(run, picture) for name, run in dense_runtimes(lite0(), picture).items()
        }
        dense = [name for name in runs if "fp32" in name]
        for form in (*forms, losing):
            block, density = form
            # each layer would be stored dense where zeros do not pay: what must lose may not
            storage = Chw(rows=block) if form == losing else Chw()
            net = compress(lite0(density, block), storage, picture, force=True)
            runs[_named(form)] = partial(net, picture)
        with torch.no_grad():
            spent = interleaved(runs)
        best = min(spent[name] for name in dense)
        # the slowest of our forms is the result
        values.append(min(best / spent[_named(form)] for form in forms))
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
        f"EfficientNet-Lite0 at {SIDE} px, one picture, one thread; the largest weights stay and "
        "nothing is trained after, for time only; CPU time, best of "
        f"{REPEATS} interleaved repeats. Built for {native.instructions()}."
    )
    return result_of(values, rows, note)
