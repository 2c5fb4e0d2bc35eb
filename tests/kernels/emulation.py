"""Kernels built for another processor, and run by an emulator on this process's tensors."""

from __future__ import annotations

import ctypes
import gc
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from intarsia.kernels.native import building, loading

COMPILER, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64-static"
NAMES = "gcc-aarch64-linux-gnu and qemu-user-static"  # Debian's


def missing() -> str:
    """Return the programs that this machine lacks; an empty text if it has all."""
    gone = [program for program in (COMPILER, EMULATOR) if shutil.which(program) is None]
    return f"no {' and '.join(gone)} here (Debian: {NAMES})" if gone else ""


def built(folder: Path) -> Path:
    """Compile one program with all kernels, for the emulated processor."""
    program, source = folder / "kernels", Path(__file__).with_name("emulated_call.c")
    sources = [str(path) for path in building.sources() if path.suffix == ".c"]
    flags = ("-O2", *building.FLAGS[2:], "-std=gnu11", "-static", "-pthread", "-Wno-psabi")
    line = [COMPILER, *flags, *sources, str(source), "-o", str(program), "-lm"]
    subprocess.run(line, check=True, capture_output=True)
    return program


def regions(words: list[int]) -> list[tuple[int, int]]:
    """Address and bytes of each tensor into which one of some numbers points."""
    sizes: dict[int, int] = {}
    for tensor in gc.get_objects():
        if type(tensor) is torch.Tensor and tensor.device.type == "cpu" and tensor.numel():
            storage = tensor.untyped_storage()
            first, size = storage.data_ptr(), storage.nbytes()
            if any(first <= word < first + size for word in words):
                sizes[first] = size
    return sorted(sizes.items())


def call(program: Path, name: str, arguments: tuple[Any, ...]) -> int:
    """Call a kernel; return its result, and write its outputs into the tensors."""
    numbers = [int(a or 0) for a in arguments]
    words = [n for n in numbers if n > 2**32]
    places = regions(words)
    if name == "intarsia_chw_run":  # the table has addresses in it
        table = ctypes.string_at(numbers[0], dict(places)[numbers[0]])
        words += [n for (n,) in struct.iter_unpack("<q", table) if n > 2**32]
        places = regions(words)
    memory = [
        name.encode().ljust(64, b"\0"),
        struct.pack(f"<{len(numbers) + 1}q", len(numbers), *numbers),
    ]
    memory.append(struct.pack("<q", len(places)))
    for address, size in places:
        memory += [struct.pack("<2q", address, size), ctypes.string_at(address, size)]
    run = subprocess.run([EMULATOR, str(program)], input=b"".join(memory), capture_output=True)
    assert run.returncode == 0, (name, run.returncode, run.stderr)
    rest = run.stdout[8:]
    for address, size in places:
        ctypes.memmove(address, rest[:size], size)
        rest = rest[size:]
    return int(struct.unpack("<q", run.stdout[:8])[0])


@contextmanager
def emulated(program: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Replace every kernel by the emulated one inside the block; yields the names that ran."""
    ran: list[str] = []

    def function(_: str, name: str, __: tuple[Any, ...]) -> Callable[..., int]:
        def run(*arguments: Any) -> int:
            ran.append(name)
            return call(program, name, arguments)

        return run

    with monkeypatch.context() as patched:
        patched.setattr(loading, "_function", function)
        yield ran
