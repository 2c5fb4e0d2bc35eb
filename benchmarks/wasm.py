"""Sparse 1x1 convolutions in WebAssembly, by the same C: docs/benchmarks/wasm.md.

python benchmarks/wasm.py --write      # wants clang, lld and wasi-libc (Debian), and wasmtime (pip)
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import tempfile
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
import wasmtime  # pyright: ignore[reportMissingImports]
from frame import interleaved, markdown, parser, publish, read
from torch import Tensor

from intarsia.formats import RowBlocks
from intarsia.kernels.chw.native import FIELDS, KINDS, pitch_of
from intarsia.kernels.native.building import SOURCES
from intarsia_lab.materials.convnet_times import SHAPES
from intarsia_lab.materials.lite0 import blocks_of

FLAGS = ("--target=wasm32-wasi", "-msimd128", "-O3", "-std=gnu11", "-fno-math-errno", "-w")
LINKED = ("-mexec-model=reactor", "-nostartfiles", "-nodefaultlibs", "-Wl,--no-entry")
DENSITIES, ROWS = (0.7, 0.5, 0.3, 0.2, 0.1), (1, 4)
PAGE = 65536
HEAD = ("rows of a block", *map(str, DENSITIES))
ABOUT = """\
The C of `kernels/native`, compiled by clang for 128-bit vectors of WebAssembly and run by wasmtime,
on one thread: 1x1 convolutions of EfficientNet-Lite0 and MobileNet with so many of their weights
left, times as fast as the same kernel with all weights, in blocks of four rows: geometric mean,
least and largest over the shapes. These vectors have no fused multiplication and addition, so that
a dense product is slower than on the processor itself, and zeros pay at any density. Outputs are
compared with torch's. All runs take turns; medians of CPU time."""


class Machine:
    """One instance of the kernels, and its memory."""

    def __init__(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder) / "chw.wasm"
            sources = [str(SOURCES / name) for name in ("chw.c", "threads.c")]
            export = "-Wl,--export=intarsia_chw_run"
            line = ["clang", *FLAGS, *LINKED, export, *sources, "-lc", "-o", str(made)]
            subprocess.run(line, check=True)
            how = wasmtime.Config()
            how.cranelift_opt_level = "speed"
            self.store: Any = wasmtime.Store(wasmtime.Engine(how))
            module = wasmtime.Module.from_file(self.store.engine, str(made))
        linker: Any = wasmtime.Linker(self.store.engine)
        linker.define_wasi()
        self.store.set_wasi(wasmtime.WasiConfig())
        found: Any = linker.instantiate(self.store, module).exports(self.store)
        self.memory, self.chw_run = found["memory"], found["intarsia_chw_run"]
        self.end = self.memory.data_len(self.store)

    def put(self, array: Any) -> int:
        """The address of a copy of an array, with zeros behind for whole vectors."""
        data = np.ascontiguousarray(array).tobytes() + bytes(256)
        at = -(-self.end // 64) * 64
        missing = at + len(data) - self.memory.data_len(self.store)
        if missing > 0:
            self.memory.grow(self.store, -(-missing // PAGE))
        self.memory.write(self.store, data, at)
        self.end = at + len(data)
        return at

    def product(
        self, weight: Tensor, rows: int, x: int, y: int, shape: tuple[int, int, int]
    ) -> Callable[[], Any]:
        """What computes y = W x for the inputs at an address."""
        ins, outs, side = shape
        stored = RowBlocks(rows).encode(weight)
        pitch = pitch_of((ins, side, side))
        places = {
            "ptr": self.put(stored["ptr"].int().numpy()),
            "off": self.put((stored["channels"].int() * 4 * pitch).numpy()),
            "val": self.put(stored["values"].float().numpy()),
            "bias": self.put(np.zeros(outs + 8, np.float32)),
        }
        row = dict.fromkeys(FIELDS, 0) | places | {"kind": KINDS.index("spmm"), "rows": rows}
        row |= {"src": x, "dst": y, "ci": ins, "co": outs, "h": side, "w": side}
        row |= {"ho": side, "wo": side, "pitch_in": pitch, "pitch_out": pitch, "k": 1, "stride": 1}
        table = self.put(np.array([row[name] for name in FIELDS], np.int64))
        return partial(self.chw_run, self.store, table, 0, 1, 1)


def ratios(
    machine: Machine, shape: tuple[int, int, int], reps: int
) -> dict[tuple[int, float], float]:
    """Times as fast as with all weights, by rows of a block and density; outputs are checked."""
    ins, outs, side = shape
    draw, start = torch.Generator().manual_seed(sum(shape)), machine.end
    weight = torch.randn(outs, ins, generator=draw) / ins**0.5
    pitch, pixels = pitch_of((ins, side, side)), side * side
    maps = torch.zeros(ins, pitch)
    maps[:, :pixels] = torch.randn(ins, pixels, generator=draw)
    x, y = machine.put(maps.numpy()), machine.put(np.zeros((outs, pitch), np.float32))
    jobs: dict[str, Callable[[], Any]] = {}
    for rows, density in ((4, 1.0), *((r, d) for r in ROWS for d in DENSITIES)):
        some = blocks_of(weight, rows, density)
        run = machine.product(some, rows, x, y, shape)
        assert run() == 0
        data = machine.memory.read(machine.store, y, y + 4 * outs * pitch)
        got = torch.from_numpy(np.frombuffer(data, np.float32).copy()).view(outs, pitch)
        torch.testing.assert_close(got, some @ maps, atol=1e-3, rtol=1e-3)
        inner = max(1, int(2e7 / (ins * outs * pixels)))
        jobs[f"{rows} {density}"] = lambda run=run, n=inner: [run() for _ in range(n)]
    spent = interleaved(jobs, reps)
    machine.end = start  # the next shape writes over these
    whole = spent["4 1.0"].cpu
    return {(r, d): whole / spent[f"{r} {d}"].cpu for r in ROWS for d in DENSITIES}


def main() -> None:
    args: argparse.Namespace = read(parser(__doc__, threads=1, reps=5))
    machine = Machine()
    found = [ratios(machine, shape, args.reps) for shape in SHAPES]

    def cell(rows: int, density: float) -> str:
        every = [one[rows, density] for one in found]
        mean = statistics.geometric_mean(every)
        return f"{mean:.2f} ({min(every):.2f}-{max(every):.2f})"

    table = [(str(rows), *(cell(rows, density) for density in DENSITIES)) for rows in ROWS]
    version = metadata.version("wasmtime")
    body = [f"wasmtime {version}, {len(SHAPES)} shapes.", "", *markdown(HEAD, table)]
    publish("Sparse convolutions in WebAssembly", ABOUT, body, args)


if __name__ == "__main__":
    main()
