"""Damage that is done to a file: to its bytes, to what its format says, or to what it is.

Each takes the bytes and a source of randomness, and returns other bytes.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import random
import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from intarsia.core.reading import LARGEST

from .bombs import bomb_of
from .gguf_damage import gguf

Mutate = Callable[[bytes, random.Random], bytes]
MANY = (0, 1, -1, 2**31, 2**63, 10**12, -(10**12), 10**400)
VALUES: tuple[Any, ...] = (
    None, True, "", "x", "../../../etc/passwd", "/dev/zero", "a" * 100_000, "\ud800", "\0", "1e999",
    [], {}, [[]], [None], {"": None}, 0.5, -0.0, math.nan, math.inf, 1e308, *MANY,
)  # fmt: skip


def _flipped(raw: bytes, draw: random.Random) -> bytes:
    data = bytearray(raw or b"\0")
    for _ in range(draw.choice((1, 1, 2, 8))):
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    return bytes(data)


def _cut(raw: bytes, draw: random.Random) -> bytes:
    return raw[: draw.randrange(len(raw) + 1)]


def _longer(raw: bytes, draw: random.Random) -> bytes:
    return raw + draw.choice((b"\0" * 64, b"\n", raw[:512], draw.randbytes(64), b"\xff" * 9))


def _swapped(raw: bytes, draw: random.Random) -> bytes:
    a, b, c = sorted(draw.randrange(len(raw) + 1) for _ in range(3))
    return raw[:a] + raw[b:c] + raw[a:b] + raw[c:]


def _overwritten(raw: bytes, draw: random.Random) -> bytes:
    """Sizes and counts stand as 1 to 8 bytes somewhere, most of them at the start."""
    start = draw.randrange(min(len(raw), draw.choice((16, 64, 10**9))) + 1)
    width = draw.choice((1, 2, 4, 8))
    filler = draw.choice((b"\xff", b"\0", b"\x7f", b"\x80", draw.randbytes(1))) * width
    return raw[:start] + filler + raw[start + width :]


def _inserted(raw: bytes, draw: random.Random) -> bytes:
    start = draw.randrange(len(raw) + 1)
    filler = draw.choice(
        (b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\n\n", b'"', b",", b"\t", b"A" * 200_000)
    )
    return raw[:start] + filler + raw[start:]


def _empty(raw: bytes, draw: random.Random) -> bytes:
    return b""


def _noise(raw: bytes, draw: random.Random) -> bytes:
    return draw.randbytes(draw.randrange(1, 300))


BYTES: tuple[Mutate, ...] = (
    _flipped, _flipped, _cut, _cut, _longer, _swapped, _overwritten, _overwritten, _inserted,
    _empty, _noise,
)  # fmt: skip


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    inner = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, value_inside in list(inner):
        yield from _places(value_inside, (*path, key))


def changed(content: Any, draw: random.Random) -> Any:
    """Return JSON with one value changed, removed, renamed, nested or doubled."""
    places = list(_places(content))
    path = draw.choice(places)
    if not path:
        return draw.choice((*VALUES, {"wrapped": content}, [content]))
    owner = content
    for key in path[:-1]:
        owner = owner[key]
    key, old = path[-1], owner[path[-1]]
    way = draw.randrange(9)
    if way < 4:
        owner[key] = draw.choice(VALUES)
    elif way == 4:
        del owner[key]
    elif way == 5 and isinstance(old, int | float) and not isinstance(old, bool):
        owner[key] = draw.choice((old + 1, -old, old * 10**6, float(old), str(old)))
    elif way == 6:
        deep: Any = old
        for _ in range(draw.choice((3, 150, 900))):
            deep = draw.choice(([deep], {"a": deep}))
        owner[key] = deep
    elif way == 7 and isinstance(old, list):
        owner[key] = draw.choice((old * 2, old[:-1], [old], old[::-1]))
    elif isinstance(owner, dict):
        owner[draw.choice(("name", f"{key}x", "", "auto_map", "__class__"))] = owner.pop(key)
    else:
        node = content
        for step in draw.choice(places):
            node = node[step]
        owner[key] = json.loads(json.dumps(node))
    return content


def _json(raw: bytes, draw: random.Random) -> bytes:
    way = draw.randrange(12)
    if way == 0:
        depth = draw.choice((200, 2_000, 100_000))
        return draw.choice((b"[" * depth + b"]" * depth, b'{"a":' * depth + b"1" + b"}" * depth))
    content = changed(json.loads(raw), draw)
    if way == 1 and isinstance(content, dict):
        twice = json.dumps({name: "twice" for name in list(content)[:1]})[1:]
        return (json.dumps(content)[:-1] + ", " + twice).encode("utf-8", "surrogatepass")
    return json.dumps(content).encode("utf-8", "surrogatepass")


def _lines(raw: bytes, draw: random.Random) -> bytes:
    lines = raw.split(b"\n")
    line = draw.randrange(len(lines))
    way = draw.randrange(5)
    if way == 0:
        lines.insert(line, lines[draw.randrange(len(lines))])
    elif way == 1:
        lines[line] = draw.choice((b"", b"null", b"[]", b"\xff", b"0", b'"x"', b"\t", b"\0"))
    elif way == 2:
        del lines[line]
    elif way == 3:
        lines[line] = _flipped(lines[line], draw)
    elif lines[line].strip():
        lines[line] = _json(lines[line], draw) if _is_json(lines[line]) else lines[line] * 2
    return b"\n".join(lines)


CELLS = (
    "", "x", "-1", "nan", "inf", "1e999", '"', '"a', "a\tb", "a,b", "../../etc/passwd", "\0",
    "é" * 9, "9" * 400, "a" * 200_000, "0x10", " ", "[", '["a", "b"]', "1_000", "٣",
)  # fmt: skip


def _table(raw: bytes, draw: random.Random) -> bytes:
    """Delete, repeat or replace the text between two commas, tabs or blanks."""
    parts = re.split(rb"([,\t\n ])", raw)
    part = draw.randrange(len(parts))
    way = draw.randrange(4)
    if way == 0:
        del parts[part]
    elif way == 1:
        parts[part:part] = parts[draw.randrange(len(parts)) :][:2]
    else:
        parts[part] = draw.choice(CELLS).encode()
    return b"".join(parts)


ODD = {2: b"\x00\x7e", 4: struct.pack("<f", math.nan), 8: struct.pack("<q", -(2**62))}
AS_WIDE = {"F32": "I32", "I32": "F32", "I64": "F64", "F64": "I64", "F16": "BF16", "BF16": "F16"}


def _safetensors(raw: bytes, draw: random.Random) -> bytes:
    """The header's length, the header, or numbers behind it."""
    (length,) = struct.unpack("<Q", raw[:8])
    header, data = raw[8 : 8 + length], raw[8 + length :]
    way = draw.randrange(10)
    if way == 0:
        length = draw.choice((0, 1, length - 1, length + 1, len(raw), 2**31, 2**63, 2**64 - 1))
        return struct.pack("<Q", length) + header + data
    if way < 4 and data:
        width = draw.choice((2, 4, 8))
        start = draw.randrange(len(data)) // width * width
        odd = {2: b"\x00\x7e", 4: struct.pack("<f", math.nan), 8: struct.pack("<q", -(2**62))}[
            width
        ]
        data = (
            data[:start]
            + draw.choice((odd, b"\xff" * width, b"\0" * width))
            + data[start + width :]
        )
        return raw[: 8 + length] + data[: len(raw) - 8 - length]
    content = json.loads(header)
    names = [name for name in content if name != "__metadata__"]
    if way < 6 and len(names) > 1:  # two tensors take each other's names
        first, second = draw.sample(names, 2)
        content[first], content[second] = content[second], content[first]
    elif way == 6 and names:
        tensor = content[draw.choice(names)]
        tensor["shape"] = draw.choice(
            (tensor["shape"][::-1], [math.prod(tensor["shape"])], [1, *tensor["shape"]])
        )
    elif way == 7 and names:
        tensor = content[draw.choice(names)]
        widths = {
            "F32": "I32",
            "I32": "F32",
            "I64": "F64",
            "F64": "I64",
            "F16": "BF16",
            "BF16": "F16",
            "U8": "I8",
        }
        tensor["dtype"] = widths.get(tensor["dtype"], "F32")
    elif way == 8 and content.get("__metadata__"):
        metadata = content["__metadata__"]
        name = draw.choice(sorted(metadata))
        metadata[name] = (
            _json(metadata[name].encode(), draw).decode("utf-8", "replace")
            if metadata[name][:1] in "{["
            else "x"
        )
    else:
        content = changed(content, draw)
    header = json.dumps(content).encode("utf-8", "surrogatepass")
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + data


def _is_json(raw: bytes) -> bool:
    try:
        return isinstance(json.loads(raw), dict | list)
    except ValueError:
        return False


def of_format(path: Path, raw: bytes) -> tuple[Mutate, ...]:
    """Return the damage that knows a file's format; none for bytes of an unknown one."""
    if path.suffix == ".safetensors" and len(raw) > 8:
        return (_safetensors,)
    if raw.startswith(b"GGUF"):
        return (gguf,)
    if (bomb := bomb_of(raw)) is not None:
        return (bomb,)
    if _is_json(raw):
        return (_json,)
    try:
        raw.decode()
    except ValueError:
        return ()
    return (_lines, _table) if raw.strip() else ()


CANARY = "canary"  # a file that nothing but code out of a damaged file writes


class _Payload:
    def __reduce__(self) -> Any:
        return os.system, (f"touch {CANARY}",)


IRREGULAR = ("pipe", "device", "folder")
LINKS = {"device": "/dev/zero", "secret": "/etc/passwd", "pipes": "/proc/self/fd/0"}
INSTEAD = ("nothing", *IRREGULAR, "loop", "sparse", "pickle", *list(LINKS)[1:])


def replace(path: Path, name: str) -> None:
    """Put something that is no such file in a file's place.  name: one of INSTEAD."""
    path.unlink()
    if name == "pipe":
        os.mkfifo(path)
    elif name == "folder":
        path.mkdir()
    elif name in ("loop", *LINKS):
        path.symlink_to(LINKS.get(name, path.name))
    elif name == "sparse":
        with path.open("wb") as file:
            file.truncate(LARGEST + 1)
    elif name == "pickle":
        path.write_bytes(pickle.dumps(_Payload()))
