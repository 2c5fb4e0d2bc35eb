"""The small ONNX reader agrees with the onnx package, and damage is an error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from intarsia.core.errors import CheckpointError
from intarsia.data.conversions import read_onnx

from ..refusals import refused

onnx = pytest.importorskip("onnx")


def _save(path: Path, weights: dict[str, np.ndarray]) -> None:
    from onnx import helper, numpy_helper

    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"], name="named", alpha=0.5),
        helper.make_node("Split", ["y"], ["a", "b"]),
    ]
    tensors = [numpy_helper.from_array(v, k) for k, v in weights.items()]
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 3])
    a = helper.make_tensor_value_info("a", onnx.TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", [x], [a], initializer=tensors)
    path.write_bytes(helper.make_model(graph).SerializeToString())


@pytest.fixture(scope="session")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("onnx") / "model.onnx"


@given(
    arrays.arrays(
        st.sampled_from([np.float32, np.float64, np.int64, np.int32, np.uint8, np.bool_]),
        arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=6),
        fill=st.just(1),
    )
)
def test_weights_round_trip(file: Path, weight: np.ndarray) -> None:
    _save(file, {"w": weight, "ümlaut": np.ones(2, np.float32)})
    weights, _ = read_onnx(file)
    assert list(weights) == ["w", "ümlaut"]
    assert weights["w"].shape == weight.shape and weights["w"].dtype == weight.dtype
    np.testing.assert_array_equal(weights["w"], weight)


def test_long_axes_round_trip(file: Path) -> None:
    _save(file, {"w": np.zeros((300, 129), np.float32)})
    assert read_onnx(file)[0]["w"].shape == (300, 129)


def test_nodes_round_trip(file: Path) -> None:
    _save(file, {})
    _, nodes = read_onnx(file)
    assert [(n.kind, n.inputs, n.outputs) for n in nodes] == [
        ("MatMul", ("x", "w"), ("y",)),
        ("Split", ("y",), ("a", "b")),
    ]


@pytest.mark.parametrize("content", [b"", b"junk", b"\xff" * 40], ids=["empty", "text", "ones"])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    with refused(CheckpointError, what="reading m.onnx"):
        read_onnx(tmp_path / "m.onnx")


def test_every_truncation_is_an_error(tmp_path: Path) -> None:
    _save(tmp_path / "m.onnx", {"w": np.ones((3, 4), np.float32)})
    content = (tmp_path / "m.onnx").read_bytes()
    graph_ends = len(content) - len(
        onnx.load(tmp_path / "m.onnx").opset_import[0].SerializeToString()
    )
    for size in range(graph_ends - 2):
        (tmp_path / "m.onnx").write_bytes(content[:size])
        with pytest.raises(CheckpointError):
            read_onnx(tmp_path / "m.onnx")


def test_weights_in_another_form_are_refused(tmp_path: Path) -> None:
    _save(tmp_path / "m.onnx", {})
    model = onnx.load(tmp_path / "m.onnx")
    tensor = onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT, [2], [1.0, 2.0])  # not raw
    model.graph.initializer.append(tensor)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(CheckpointError):
        read_onnx(tmp_path / "m.onnx")
