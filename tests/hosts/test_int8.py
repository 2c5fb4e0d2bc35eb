"""Nets on pictures as ONNX in 8 bits, beside their float32 graphs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from intarsia.core.errors import ConfigError, ExportError
from intarsia.folders.out.int8 import export_onnx_int8

runtime = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")


def net() -> nn.Module:
    """A small CNN whose classes are far apart on `pictures`."""
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU6(), nn.Conv2d(8, 16, 3, 2))
    return nn.Sequential(
        *layers, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)
    ).eval()


def pictures(count: int, seed: int) -> torch.Tensor:
    draws = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, 16, 16, generator=draws) + torch.randn(
        count, 3, 1, 1, generator=draws
    )


def written(path: Path, **settings: Any) -> list[str]:
    lines: list[str] = []
    arguments = {"calibration": pictures(40, 0), "images": pictures(60, 1), "report": lines.append}
    export_onnx_int8(net(), path, **arguments | settings)
    return lines


def test_weights_and_activations_have_eight_bits(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    lines = written(path, classes=["a", "b", "c", "d"], most_lost=0.2)
    graph = onnx.load(str(path)).graph
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("QuantizeLinear") >= 3 and "BatchNormalization" not in kinds
    # a scale for each output channel of the first convolution
    sizes = [list(t.dims) for t in graph.initializer if t.data_type == onnx.TensorProto.INT8]
    assert [8, 3, 3, 3] in sizes
    scales = [t for t in graph.initializer if t.name.endswith("_scale") and list(t.dims) == [8]]
    assert scales
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for count in (1, 5):
        images = pictures(count, 2)
        got = torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])
        with torch.no_grad():
            want = net()(images)
        assert 0 < (got - want).norm() <= 0.1 * want.norm()
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == [
        "a",
        "b",
        "c",
        "d",
    ]
    assert "100.0% in float32" in lines[0] and "of the time on this machine" in lines[0]


@pytest.mark.thorough
def test_accuracy_is_that_of_the_labels(tmp_path: Path) -> None:
    images = pictures(60, 1)
    with torch.no_grad():
        labels = net()(images).argmax(1)
    labels[:30] = (labels[:30] + 1) % 4
    assert (
        "accuracy 50.0% in float32" in written(tmp_path / "m.onnx", images=images, labels=labels)[0]
    )
    several = torch.zeros(60, 4)
    assert (
        "in int8 on 60"
        in written(tmp_path / "m.onnx", images=images, labels=several, several_labels=True)[0]
    )


def test_a_loss_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_text("earlier")
    # ranges of pictures that are nearly black cut all others
    with pytest.raises(ExportError) as caught:
        written(path, calibration=1e-3 * pictures(4, 0))
    assert "in int8" in str(caught.value.got) and "5 points" in str(caught.value.want)
    assert path.read_text() == "earlier" and [p.name for p in tmp_path.iterdir()] == ["m.onnx"]
    with pytest.raises(ConfigError) as refused:
        written(path, calibration=pictures(0, 0))
    assert "0 to calibrate" in str(refused.value.got)
    with pytest.raises(ConfigError):
        written(tmp_path / "m.bin")
