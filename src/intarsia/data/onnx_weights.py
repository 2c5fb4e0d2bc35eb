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
