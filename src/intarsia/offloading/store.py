"""Experts in files, one record each, written and read an expert at a time.

A store is a folder: `experts.json` (sizes, SHA-256 of each record and of the other files), one
safetensors file for each layer with the experts one after another, `rest.safetensors` with every
other weight, and the model's configuration and tokenizer. Packing needs the memory of one expert,
and of the rest.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..core.errors import CheckpointError, ConfigError, TargetError
from ..core.files import check_target, read_json, repaired, write_json, writing
from ..core.folders import check_kind
from ..core.reading import copy_file, open_handle, open_tensors, read_tensors
from ..core.sealing import (
    STOCK,
    check_same_result,
    check_sealed,
    check_settings,
    digests,
    is_format,
    sealed,
)

INDEX, REST, CONFIG = "experts.json", "rest.safetensors", "config.json"
CHANGED = "intarsia.json"  # of a folder with layers that a format packs
FORMAT = 1  # of a store; one that was written before there were numbers has none
PAGE = 4096
TEXTS = (".json", ".txt", ".jinja", ".model")
NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64"}
# names of gate, up and down in checkpoints with separate tensors for each expert
SINGLE = (("w1", "w3", "w2"), ("gate_proj", "up_proj", "down_proj"))
RENAMED = ((".block_sparse_moe.", ".mlp."),)
Report = Callable[[str], None]


class Checkpoint:
    """Weights of a folder of save_pretrained, read one tensor or slice at a time."""

    def __init__(self, folder: Path) -> None:
        """Open the files of a saved model, without reading weights."""
        self.folder = folder
        want = "a model's folder, of save_pretrained"
        fix = "Give the folder that holds config.json and *.safetensors."
        check_kind(folder, "config.json", what=f"model {folder}", want=want, fix=fix)
        files = sorted(folder.glob("*.safetensors"))
        try:
            self.files = {name: open_tensors(name) for name in files}
            self.where = {key: f for f in self.files.values() for key in f.keys()}  # noqa: SIM118
            self.config = read_json(folder / CONFIG)
        except (OSError, ValueError, SafetensorError) as error:
            raise _unreadable(folder, error) from error
        if not self.where:
            raise _unreadable(folder, "no *.safetensors")

    def tensor(self, key: str) -> Tensor:
        """Read a tensor by its name."""
        return self._file(key).get_tensor(key)

    def row(self, key: str, index: int) -> Tensor:
        """Read one row of a tensor's first axis, alone."""
        return self._file(key).get_slice(key)[index]

    def rows(self, key: str) -> int:
        """Return the size of a tensor's first axis."""
        return self._file(key).get_slice(key).get_shape()[0]

    def _file(self, key: str) -> Any:
        if key not in self.where:
            raise _unreadable(self.folder, f"no {key}")
        return self.where[key]


def _unreadable(folder: Path, got: object) -> CheckpointError:
    want, fix = "config.json and safetensors of save_pretrained", "Copy the folder again."
    return CheckpointError(f"model {folder}", got=got, want=want, fix=fix)


def experts_of(source: Checkpoint) -> dict[str, Callable[[int], dict[str, Tensor]]]:
    """Return, for each layer with experts, a function that reads one expert's tensors.

    Returns path of the layer's experts -> function of the expert's number; its tensors have the
    names and order of transformers' stacked experts.
    Raises: TargetError for a model without experts.
    """
    readers: dict[str, Callable[[int], dict[str, Tensor]]] = {}
    for key in source.where:
        if (single := re.fullmatch(r"(.+\.experts)\.0\.(w1|gate_proj)\.weight", key)) is not None:
            # as in Mixtral: a tensor for each expert and matrix
            names = next(names for names in SINGLE if names[0] == single[2])
            readers[single[1]] = _reader_of_separate(source, single[1], names)
        elif (fused := re.fullmatch(r"(.+\.experts)\.down_proj", key)) is not None:
            # as in GPT-OSS: one tensor for all experts of a layer
            readers[fused[1]] = _reader_of_stacked(source, fused[1])
    if not readers:
        fix = "Give a sparse model of transformers, such as a Mixtral."
        got = f"{source.config.get('model_type')} without experts"
        raise TargetError(f"model {source.folder}", got=got, want="mixtures", fix=fix)
    # files list names alphabetically, layer 10 before layer 2
    order = sorted(readers, key=lambda path: [int(n) for n in re.findall(r"\d+", path)])
    return {path: readers[path] for path in order}


def _reader_of_separate(
    source: Checkpoint, path: str, names: tuple[str, str, str]
) -> Callable[[int], dict[str, Tensor]]:
    def read(expert: int) -> dict[str, Tensor]:
        """Read one expert's matrices, and join gate and up to "gate_up_proj", (2 inner, width)."""
        gate, up, down = (source.tensor(f"{path}.{expert}.{name}.weight") for name in names)
        if gate.shape != up.shape or gate.dim() != 2:
            got = f"expert {expert} of {path} with {tuple(gate.shape)} and {tuple(up.shape)}"
            raise _unreadable(source.folder, got)
        return {"gate_up_proj": torch.cat([gate, up]), "down_proj": down}

    return read


def _reader_of_stacked(source: Checkpoint, path: str) -> Callable[[int], dict[str, Tensor]]:
    # sorted, so that every expert's record has the same order
    keys = sorted(key for key in source.where if re.fullmatch(re.escape(path) + r"\.\w+", key))

    def read(expert: int) -> dict[str, Tensor]:
        return {key.rpartition(".")[2]: source.row(key, expert) for key in keys}

    return read


def renamed(key: str) -> str:
    """Convert the name of a tensor in a checkpoint to its name in the model."""
    for old, new in RENAMED:
        key = key.replace(old, new)
    return key


def pack_experts(
    source: str | Path, store: str | Path, *, progress: Report = lambda _: None
) -> Path:
    """Copy a saved model into a store, from which `intarsia.offload` reads single experts.

    source: a folder of save_pretrained; store: a new folder, written whole or not at all; progress:
    gets a line of text for each layer. Numbers keep their type and bits.

    Raises: CheckpointError for a folder that cannot be read; TargetError for a model without
    experts; ConfigError where something else than the same store is at `store`.
    """
    source, store = Path(source), Path(store)
    check_unpacked(source)
    check_target(store, own=store_names(store))
    checkpoint = Checkpoint(source)
    layers = experts_of(checkpoint)
    with writing(store) as scratch:
        scratch.mkdir()
        records: list[dict[str, Any]] = []
        for number, (path, read) in enumerate(layers.items()):
            file = scratch / f"layer-{number:04d}.safetensors"
            records.append(
                {"path": renamed(path), "file": file.name} | _write(file, checkpoint, path, read)
            )
            progress(f"layer {number + 1} of {len(layers)}")
        # all other weights in one file, which is read as a whole
        rest = [k for k in checkpoint.where if not any(k.startswith(f"{p}.") for p in layers)]
        save_file({renamed(k): checkpoint.tensor(k).contiguous() for k in rest}, scratch / REST)
        # configuration and tokenizer are copied, so that the store opens on its own
        for file in source.iterdir():
            is_text = file.suffix in TEXTS and not file.name.endswith(".index.json")
            if is_text and file.name != STOCK:
                copy_file(file, scratch / file.name)
        files = digests(scratch, besides=[str(row["file"]) for row in records])
        record = {"format": FORMAT, "layers": records}
        write_json(scratch / INDEX, sealed(record, files), None)
        check_same_result(scratch / INDEX, store / INDEX)
    return store


def check_unpacked(folder: Path) -> None:
    """Raise ConfigError for a folder that `compress` wrote: its experts are read where they are."""
    if (folder / CHANGED).is_file():
        fix = (
            "Open it, and call intarsia.offload(model, slots=...), or intarsia serve with --slots."
        )
        got, want = "a folder of packed layers", "one of save_pretrained"
        raise ConfigError(f"model {folder}", got=got, want=want, fix=fix)


def store_names(store: Path) -> list[str]:
    """Return the files of a store of packed experts; none for any other folder."""
    try:
        content = read_json(store / INDEX)
        rest, files = check_settings(store / INDEX, content)
        return [INDEX, *files, *(str(layer["file"]) for layer in rest["layers"])]
    except (OSError, ValueError, KeyError, TypeError, CheckpointError):
        return []


def count_of(source: Checkpoint, path: str) -> int:
    """Count the experts of a layer of a saved model; path: of the layer's experts."""
    if f"{path}.down_proj" in source.where:
        return source.rows(f"{path}.down_proj")
    numbers = (re.match(re.escape(path) + r"\.(\d+)\.", key) for key in source.where)
    return 1 + max(int(match[1]) for match in numbers if match)


def _write(
    file: Path, source: Checkpoint, path: str, read: Callable[[int], dict[str, Tensor]]
) -> dict[str, Any]:
    """Write one layer's experts to a file, one after another; return its entry in the index."""
    count = count_of(source, path)
    first = {name: t.contiguous() for name, t in read(0).items()}
    if unsupported := {t.dtype for t in first.values()} - NAMES.keys():
        fix = "Open it with its numbers decoded, save it in bfloat16, and pack that."
        raise TargetError(f"experts {path}", got=unsupported, want=f"one of {set(NAMES)}", fix=fix)
    parts = [
        {"name": name, "shape": list(t.shape), "dtype": NAMES[t.dtype]} for name, t in first.items()
    ]
    size = sum(t.nbytes for t in first.values())
    # records of one size, so that the place of an expert follows from its number
    header = _header(first, count)
    hashes: list[str] = []
    with file.open("wb") as out:
        out.write(header)
        for expert in range(count):
            tensors = first if expert == 0 else read(expert)
            raw = b"".join(_raw_bytes(tensors[part["name"]]) for part in parts)
            if len(raw) != size:
                got, want = f"expert {expert} of {len(raw)} bytes", f"{size}, as the first has"
                raise CheckpointError(f"experts {path}", got=got, want=want, fix="Copy it again.")
            hashes.append(hashlib.sha256(raw).hexdigest())
            out.write(raw)
    return {"parts": parts, "start": len(header), "bytes": size, "sha256": hashes}


def _raw_bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def _header(first: Mapping[str, Tensor], count: int) -> bytes:
    """Build the header of a safetensors file, padded to a page of 4096 bytes."""
    entries: dict[str, Any] = {}
    offset = 0
    for expert in range(count):
        for name, t in first.items():
            end = offset + t.nbytes
            entries[f"{expert}.{name}"] = {
                "dtype": NAMES[t.dtype],
                "shape": list(t.shape),
                "data_offsets": [offset, end],
            }
            offset = end
    text = json.dumps(entries).encode()
    # the header's length takes 8 bytes in front of it
    text += b" " * (-(len(text) + 8) % PAGE)
    return struct.pack("<Q", len(text)) + text


def _bytes_of(layer: Mapping[str, Any]) -> int:
    widths = {name: dtype.itemsize for dtype, name in NAMES.items()}
    sizes = [widths[p["dtype"]] * math.prod(map(int, p["shape"])) for p in layer["parts"]]
    size, start = int(layer["bytes"]), int(layer["start"])
    if sum(sizes) != size or min(sizes) < 1 or start < 0:
        raise ValueError(f"records of {size} bytes from {start} on, with parts of {sizes}")
    # an index that was tampered with must not open files outside the store
    if Path(layer["file"]).name != layer["file"]:
        raise ValueError(f"a file elsewhere, {layer['file']!r}")
    return size


class ExpertStore:
    """Folder of packed experts, from which one expert at a time is read into given memory.

    check: compare the SHA-256 of each expert when it is "first" read, "always" or "never".
    Raises: CheckpointError for a folder that is no store; in `read`, for an expert that is cut
    short, missing or changed.
    """

    def __init__(self, folder: str | Path, check: str = "first") -> None:
        self.folder, self.check = repaired(folder), check
        try:
            path = self.folder / INDEX
            content = check_sealed(path, read_json(path), needs=(REST, CONFIG))
            if not is_format(number := content.get("format", FORMAT), FORMAT):
                raise ValueError(f"format {number!r}, not {FORMAT}")
            self.layers: list[dict[str, Any]] = content["layers"]
            self.paths = [str(layer["path"]) for layer in self.layers]
            self.experts = max(len(layer["sha256"]) for layer in self.layers)
            self.total = sum(len(layer["sha256"]) for layer in self.layers)
            self.bytes = max(_bytes_of(layer) for layer in self.layers)
            self.files = [open_handle(self.folder / layer["file"]) for layer in self.layers]
        except (OSError, ValueError, KeyError, TypeError) as error:
            want, fix = "a folder that `intarsia offload` wrote", "Pack the model again."
            raise CheckpointError(f"store {folder}", got=error, want=want, fix=fix) from error
        self.verified: set[tuple[int, int]] = set()  # (layer, expert) with a matching SHA-256

    def read(self, layer: int, expert: int, into: memoryview) -> int:
        """Read an expert into given memory, check its SHA-256, and return the number of bytes.

        into: memory of at least the expert's size.
        Raises: CheckpointError for an expert that is cut short or changed.
        """
        entry = self.layers[layer]
        size, offset = int(entry["bytes"]), int(entry["start"]) + expert * int(entry["bytes"])
        done = 0
        # a read may return less than was asked for
        while done < size:
            got = os.preadv(self.files[layer], [into[done:size]], offset + done)
            if not got:
                raise self._wrong_record(layer, expert, f"{done} bytes", f"{size}")
            done += got
        # a hash takes longer than the read itself, hence once by default
        if self.check == "always" or (
            self.check == "first" and (layer, expert) not in self.verified
        ):
            if hashlib.sha256(into[:size]).hexdigest() != entry["sha256"][expert]:
                raise self._wrong_record(
                    layer, expert, "bytes that changed", "those that were packed"
                )
            self.verified.add((layer, expert))
        return size

    def _wrong_record(self, layer: int, expert: int, got: str, want: str) -> CheckpointError:
        subject = f"expert {expert} of {self.paths[layer]} in {self.folder}"
        return CheckpointError(subject, got=got, want=want, fix="Pack the model again.")

    def rest(self) -> dict[str, Tensor]:
        """Return every weight of no expert, by the model's names.  Raises: CheckpointError."""
        try:
            return read_tensors(self.folder / REST)
        except (OSError, SafetensorError) as error:
            want, fix = "what was packed", "Pack the model again."
            subject = f"{self.folder / REST}"
            raise CheckpointError(subject, got=error, want=want, fix=fix) from error

    def views(self, layer: int, record: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors of an expert that was read, by name, as views."""
        types = {name: dtype for dtype, name in NAMES.items()}
        offset = 0
        for part in self.layers[layer]["parts"]:
            dtype, shape = types[part["dtype"]], tuple(part["shape"])
            end = offset + dtype.itemsize * torch.Size(shape).numel()
            yield part["name"], record[offset:end].view(dtype).view(shape)
            offset = end

    def close(self) -> None:
        """Let go of the files."""
        for file in self.files:
            os.close(file)
        self.files = []
