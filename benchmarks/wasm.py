"""Sparse 1x1 convolutions in WebAssembly, by the same C: docs/benchmarks/wasm.md.

python benchmarks/wasm.py --write      # wants clang, lld and wasi-libc (Debian), and wasmtime (pip)
python benchmarks/wasm.py --web FOLDER --write   # and node; `npm install onnxruntime-web` there
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
import wasmtime  # pyright: ignore[reportMissingImports]
from frame import interleaved, markdown, parser, publish, read
from torch import Tensor

from intarsia.folders.out.graphs import export_onnx
from intarsia.formats import RowBlocks
from intarsia.kernels.chw.native import FIELDS, KINDS, pitch_of
from intarsia.kernels.native.building import SOURCES
from intarsia_lab.materials.convnet_times import SHAPES
from intarsia_lab.materials.lite0 import blocks_of

FLAGS = ("--target=wasm32-wasi", "-msimd128", "-O3", "-std=gnu11", "-fno-math-errno", "-w")
LINKED = ("-mexec-model=reactor", "-nostartfiles", "-nodefaultlibs", "-Wl,--no-entry")
DENSITIES, ROWS = (0.7, 0.5, 0.3, 0.2, 0.1), (1, 4)
PAGE = 65536
SOURCES_OF_CHW = ("chw.c", "chw_codes.c", "chw_conv.c", "chw_max.c", "chw_plain.c", "threads.c")
DENSE = "4 1.0"  # the step with all weights, in blocks of four rows
HEAD = ("rows of a block", *map(str, DENSITIES))
ABOUT = """\
The C of `kernels/native`, compiled by clang for 128-bit vectors of WebAssembly and run by wasmtime,
on one thread: 1x1 convolutions of EfficientNet-Lite0 and MobileNet with so many of their weights
left, times as fast as the same kernel with all weights, in blocks of four rows: geometric mean,
least and largest over the shapes. These vectors have no fused multiplication and addition, so that
a dense product is slower than on the processor itself, and zeros pay at any density. Outputs are
compared with torch's. All runs take turns; medians of CPU time. In V8 the same kernels, in the
memory as it was filled here, take turns with onnxruntime-web's convolution of all weights on one
thread: what a page would run instead. Its time has a call's copies of inputs and outputs in it,
which a whole net has only at its ends: the ratios flatter ours by that."""
WEB = "onnxruntime-web"
SCRIPT = Path(__file__).with_name("wasm_in_v8.mjs")


class Machine:
    """One instance of the kernels, and its memory."""

    def __init__(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder) / "chw.wasm"
            sources = [str(SOURCES / name) for name in SOURCES_OF_CHW]
            export = "-Wl,--export=intarsia_chw_run"
            line = ["clang", *FLAGS, *LINKED, export, *sources, "-lc", "-o", str(made)]
            subprocess.run(line, check=True)
            self.code = made.read_bytes()
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
    ) -> int:
        """The address of a step that computes y = W x for the inputs at an address."""
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
        return self.put(np.array([row[name] for name in FIELDS], np.int64))

    def run(self, step: int, count: int = 1) -> None:
        """Carry out a step so many times."""
        for _ in range(count):
            assert self.chw_run(self.store, step, 0, 1, 1) == 0


@dataclass(frozen=True)
class Layer:
    """A convolution in a machine's memory: steps by rows of a block and density, inner calls.

    weight: (outs, ins); maps: (ins, pixels); y: the address of the outputs.
    """

    shape: tuple[int, int, int]
    weight: Tensor
    maps: Tensor
    y: int
    steps: Mapping[str, int]

    @property
    def inner(self) -> int:
        """The calls of a turn: a small layer is called more often."""
        return max(1, int(2e7 / (self.weight.numel() * self.maps.shape[1])))


def layer_of(machine: Machine, shape: tuple[int, int, int]) -> Layer:
    """A layer of this shape at all densities; outputs are checked."""
    ins, outs, side = shape
    draw = torch.Generator().manual_seed(sum(shape))
    weight = torch.randn(outs, ins, generator=draw) / ins**0.5
    pitch, pixels = pitch_of((ins, side, side)), side * side
    maps = torch.zeros(ins, pitch)
    maps[:, :pixels] = torch.randn(ins, pixels, generator=draw)
    x, y = machine.put(maps.numpy()), machine.put(np.zeros((outs, pitch), np.float32))
    steps: dict[str, int] = {}
    for rows, density in ((4, 1.0), *((r, d) for r in ROWS for d in DENSITIES)):
        some = blocks_of(weight, rows, density)
        step = machine.product(some, rows, x, y, shape)
        machine.run(step)
        data = machine.memory.read(machine.store, y, y + 4 * outs * pitch)
        got = torch.from_numpy(np.frombuffer(data, np.float32).copy()).view(outs, pitch)
        torch.testing.assert_close(got, some @ maps, atol=1e-3, rtol=1e-3)
        steps[f"{rows} {density}"] = step
    return Layer(shape, weight, maps[:, :pixels].contiguous(), y, steps)


def in_wasmtime(machine: Machine, layer: Layer, reps: int) -> dict[str, float]:
    """Times as fast as with all weights, by rows of a block and density."""
    jobs = {n: partial(machine.run, step, layer.inner) for n, step in layer.steps.items()}
    spent = interleaved(jobs, reps)
    return {name: spent[DENSE].cpu / times.cpu for name, times in spent.items()}


def in_v8(machine: Machine, layer: Layer, reps: int, modules: Path) -> dict[str, float]:
    """Times as fast as onnxruntime-web, by rows of a block and density."""
    ins, outs, side = layer.shape
    net = torch.nn.Conv2d(ins, outs, 1, bias=False)
    net.weight.data = layer.weight.view(outs, ins, 1, 1)
    x = layer.maps.view(1, ins, side, side)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        export_onnx(net, folder / "net.onnx", images=x, report=lambda _: None)
        end = machine.memory.data_len(machine.store)
        (folder / "memory").write_bytes(machine.memory.read(machine.store, 0, end))
        (folder / "chw.wasm").write_bytes(machine.code)
        (folder / "x").write_bytes(x.numpy().tobytes())
        request = {
            "modules": str(modules.resolve()),
            "wasm": str(folder / "chw.wasm"),
            "memory": str(folder / "memory"),
            "model": str(folder / "net.onnx"),
            "x": str(folder / "x"),
            "dims": list(x.shape),
            "tables": layer.steps,
            "y": layer.y,
            "outs": outs,
            "pitch": pitch_of((ins, side, side)),
            "pixels": side * side,
            "inner": layer.inner,
            "reps": reps,
        }
        (folder / "request.json").write_text(json.dumps(request))
        command = ["node", str(SCRIPT), str(folder / "request.json")]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    spent = json.loads(text.splitlines()[-1])
    return {name: spent[WEB] / ms for name, ms in spent.items()}


def table_of(found: Sequence[Mapping[str, float]]) -> list[str]:
    """A table of geometric means, least and largest, by rows of a block and density."""

    def cell(rows: int, density: float) -> str:
        every = [layer[f"{rows} {density}"] for layer in found]
        mean = statistics.geometric_mean(every)
        return f"{mean:.2f} ({min(every):.2f}-{max(every):.2f})"

    rows = [(str(rows), *(cell(rows, density) for density in DENSITIES)) for rows in ROWS]
    return markdown(HEAD, rows)


def main() -> None:
    made = parser(__doc__, threads=1, reps=5)
    made.add_argument("--web", type=Path, help="a folder with node_modules/onnxruntime-web")
    args: argparse.Namespace = read(made)
    machine, own, beside = Machine(), list[dict[str, float]](), list[dict[str, float]]()
    for shape in SHAPES:
        start = machine.end
        layer = layer_of(machine, shape)
        own.append(in_wasmtime(machine, layer, args.reps))
        if args.web:
            beside.append(in_v8(machine, layer, args.reps, args.web))
        machine.end = start  # the next shape writes over these
    version = metadata.version("wasmtime")
    body = [f"wasmtime {version}, {len(SHAPES)} shapes.", "", *table_of(own), ""]
    if args.web:
        package = json.loads((args.web / "node_modules" / WEB / "package.json").read_text())
        node = subprocess.check_output(["node", "--version"], text=True).strip()
        dense = statistics.geometric_mean(layer[DENSE] for layer in beside)
        text = f"Times as fast as {WEB} {package['version']} with all weights, both in Node {node}"
        body += [f"{text}; our kernel with all weights: {dense:.2f}.", "", *table_of(beside)]
    else:
        body += [f"{WEB} is left out: no --web."]
    publish("Sparse convolutions in WebAssembly", ABOUT, body, args)


if __name__ == "__main__":
    main()
