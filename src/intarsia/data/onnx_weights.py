"""Read weights and graph nodes of an ONNX file without the onnx package.

An ONNX file is one protobuf message. Only the fields with names and values of weights are decoded.
Field numbers are from `onnx.proto` (ModelProto.graph = 7; GraphProto.node = 1, initializer = 5;
NodeProto.input = 1, output = 2, op_type = 4; TensorProto.dims = 1, data_type = 2, name = 8,
raw_data = 9).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from intarsia.core.errors import CheckpointError
from intarsia.core.reading import read_bytes

# TensorProto.DataType -> numpy
_DTYPES = {1: "<f4", 2: "u1", 3: "i1", 6: "<i4", 7: "<i8", 9: "?", 10: "<f2", 11: "<f8"}


@dataclass(frozen=True, slots=True)
class OnnxNode:
    """One operation: its type and the names of its inputs and outputs."""

    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def read_onnx(path: Path) -> tuple[dict[str, np.ndarray], list[OnnxNode]]:
    """Return (initializers by name, nodes in file order) of an ONNX file with raw inline weights.

    Raises: CheckpointError when the file is damaged, not ONNX, or stores weights in another form.
    Not for models over 2 GB, whose weights are in separate files.
    """
    try:
        (graph,) = [v for f, v in _fields(memoryview(read_bytes(path))) if f == 7]
        weights: dict[str, np.ndarray] = {}
        nodes: list[OnnxNode] = []
        for field, value in _fields(_message(graph)):
            if field == 1:
                nodes.append(_node(_message(value)))
            elif field == 5:
                name, array = _tensor(_message(value))
                weights[name] = array
    except (OSError, ValueError, IndexError, KeyError) as error:
        want = "an undamaged ONNX file that contains its weights"
        fix = "Delete it and obtain it again."
        raise CheckpointError(f"reading {path.name}", got=error, want=want, fix=fix) from error
    return weights, nodes


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(field number, value) pairs of one protobuf message; numbers as int, others as bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        wire = key & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        size = {1: 8, 5: 4}.get(wire)
        if size is None:
            if wire != 2:
                raise ValueError(f"wire type {wire}")
            size, at = _varint(data, at)
        if at + size > len(data):
            raise ValueError("the file ends early")
        yield key >> 3, data[at : at + size]
        at += size


def _message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number in place of a message")
    return value


def _text(value: int | memoryview) -> str:
    return bytes(_message(value)).decode()


def _node(data: memoryview) -> OnnxNode:
    fields = list(_fields(data))
    return OnnxNode(
        kind="".join(_text(v) for f, v in fields if f == 4),
        inputs=tuple(_text(v) for f, v in fields if f == 1),
        outputs=tuple(_text(v) for f, v in fields if f == 2),
    )


def _tensor(data: memoryview) -> tuple[str, np.ndarray]:
    dims: list[int] = []
    name, kind, raw = "", 0, memoryview(b"")
    for field, value in _fields(data):
        if field == 1 and isinstance(value, int):
            dims.append(value)
        elif field == 1:  # the same list, packed
            at = 0
            while at < len(_message(value)):
                size, at = _varint(_message(value), at)
                dims.append(size)
        elif field == 2 and isinstance(value, int):
            kind = value
        elif field == 8:
            name = _text(value)
        elif field == 9:
            raw = _message(value)
    return name, np.frombuffer(raw, dtype=_DTYPES[kind]).reshape(dims)
