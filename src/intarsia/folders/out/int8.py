"""A net on pictures as ONNX with weights and activations of 8 bits, by onnxruntime's quantiser."""

from __future__ import annotations

import importlib
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...core.errors import ConfigError, ExportError
from ...core.files import writing
from ...data.transforms import InputConfig
from ...hosts.anatomy.blocks import base_of
from .graphs import INPUT, ONE_FILE, OUTPUT, Report, export_onnx, needs, size_of, target_of
from .preprocessing import inputs_of, write_script

BATCH = 16
REPEATS = 15


class CalibrationPictures:
    """Iterator over pictures one by one, as onnxruntime's quantiser asks for them."""

    def __init__(self, pictures: Tensor) -> None:
        self._arrays = iter(pictures.split(1))

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Return the next picture, or None after the last."""
        picture = next(self._arrays, None)
        return None if picture is None else {INPUT: picture.numpy()}


def export_onnx_int8(
    model: nn.Module,
    path: str | Path,
    calibration: Tensor,
    images: Tensor,
    labels: Tensor | None = None,
    *,
    most_lost: float = 0.05,
    classes: Sequence[str] | None = None,
    preprocessing: InputConfig | None = None,
    several_labels: bool = False,
    report: Report = print,
) -> Path:
    """Write `images` -> `logits` as ONNX with int8 codes, and compare it with the float32 graph.

    Static quantisation of onnxruntime: a scale for each output channel of a weight, ranges of
    activations from the calibration pictures, QuantizeLinear and DequantizeLinear around each
    operator. The line that is reported has the accuracy of both graphs and the time of one picture
    in both, on this machine. Names of classes and predict.py are as in `export_onnx`.

    path: *.onnx; calibration: (N, C, H, W), prepared pictures of the training set; 100 are enough.
    images, labels: (M, C, H, W) and (M,), or (M, K) with several labels, not among those; labels
      None = the float32 graph's own classes count as right.
    most_lost: largest loss of accuracy, as a share of all pictures.
    classes, preprocessing, several_labels, report: see `export_onnx`.
    Raises: ExportError for more lost accuracy; ConfigError for no calibration pictures, or weights
    of more than 2 GB; as `export_onnx`.
    """
    target = target_of(path, ".onnx")
    quantization = needs("onnxruntime.quantization")
    if not len(calibration) or not len(images):
        got = f"{len(calibration)} to calibrate, {len(images)} to compare on"
        raise ConfigError("pictures", got=got, want="some", fix="Pass 100 of each, if there are.")
    if (size := size_of(model)) > ONE_FILE:
        fix = "Export it in float32."
        raise ConfigError("model", got=f"{size / 1e9:.1f} GB", want="at most 2 GB", fix=fix)
    options: Any = {"classes": classes, "preprocessing": preprocessing}
    with tempfile.TemporaryDirectory() as folder, writing(target) as scratch:
        plain, prepared = Path(folder, "plain.onnx"), Path(folder, "prepared.onnx")
        export_onnx(
            model,
            plain,
            images=images[:BATCH],
            several_labels=several_labels,
            report=lambda _: None,
            **options,
        )
        # shapes and folded constants, without which the quantiser finds fewer operators
        prepare = importlib.import_module("onnxruntime.quantization.shape_inference")
        prepare.quant_pre_process(str(plain), str(prepared), skip_symbolic_shape=True)
        # QDQ: float operators between quantise and dequantise nodes, which runtimes fuse to int8
        quantization.quantize_static(
            str(prepared),
            str(scratch),
            CalibrationPictures(calibration.float().cpu()),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )
        _copy_metadata(plain, scratch)
        line = _comparison_line(plain, scratch, images.float().cpu(), labels, most_lost)
    script = write_script("onnxruntime", target, inputs_of(base_of(model), preprocessing, images))
    report(f"export_onnx_int8: {target}; {line}{script}")
    return target


def _copy_metadata(source: Path, target: Path) -> None:
    """Copy class names and preprocessing from an ONNX file to its quantised form."""
    onnx = needs("onnx")
    entries = {entry.key: entry.value for entry in onnx.load(str(source)).metadata_props}
    graph = onnx.load(str(target))
    onnx.helper.set_model_props(graph, entries)
    onnx.save(graph, str(target))


def _session(path: Path) -> Any:
    """Open an ONNX file with as many threads as torch has."""
    runtime = needs("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _comparison_line(
    plain: Path, small: Path, images: Tensor, labels: Tensor | None, most_lost: float
) -> str:
    """Compare accuracy and time of a graph and its quantised form; return a line of the report."""
    sessions = _session(plain), _session(small)
    # both graphs on the same pictures, in the same batches
    first, second = (
        torch.cat([_run_session(session, part) for part in images.split(BATCH)])
        for session in sessions
    )
    truth = first.argmax(1) if labels is None else labels
    before, after = (accuracy_of(logits, truth) for logits in (first, second))
    if not after >= before - most_lost:
        got = f"accuracy {after:.1%} in int8, {before:.1%} in float32, on {len(images)} pictures"
        fix = "Give more calibration pictures, or export it in float32."
        want = f"at most {100 * most_lost:g} points less"
        raise ExportError("export_onnx_int8", got=got, want=want, fix=fix)
    # one picture, as a program that waits for it would send
    slow, fast = _milliseconds(sessions, images[:1])
    agreement = accuracy_of(second, first.argmax(1) if truth.dim() == 1 else (first > 0).to(truth))
    note = "" if fast < slow else " The float32 file is faster here."
    return (
        f"accuracy {before:.1%} in float32, {after:.1%} in int8 on {len(images)} pictures, "
        f"{agreement:.1%} as in float32; a picture takes {fast / slow:.2f} of the time on this "
        f"machine ({fast:.2f} of {slow:.2f} ms, threads: {torch.get_num_threads()}).{note}"
    )


def _run_session(session: Any, images: Tensor) -> Tensor:
    return torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])


def accuracy_of(logits: Tensor, truth: Tensor) -> float:
    """Return the share of pictures with the right class, or of right labels.

    logits: (M, K); truth: (M,) classes, or (M, K) labels.
    """
    # several labels: each counts, at the threshold 0
    right = logits.argmax(1) == truth if truth.dim() == 1 else (logits > 0) == (truth > 0)
    return float(right.double().mean())


def _milliseconds(sessions: Sequence[Any], image: Tensor) -> list[float]:
    """Return the median time of each onnxruntime session on one picture (1, C, H, W)."""
    spent: list[list[float]] = [[] for _ in sessions]
    for repeat in range(REPEATS + 1):
        # by turns, so that other work on the machine hits both alike
        for session, times in zip(sessions, spent, strict=True):
            started = time.perf_counter()
            _run_session(session, image)
            # the first run plans its memory, and does not count
            if repeat:
                times.append(1e3 * (time.perf_counter() - started))
    return [statistics.median(times) for times in spent]
