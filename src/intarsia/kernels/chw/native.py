"""A program as a table for native/chw.c: one call carries out all steps up to a dense product."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...core.errors import ShapeError
from .. import native
from .coded import TILE, codings_of, tensors_in_codes
from .steps import ACTS, ProgramStep, Shape, checked_blocks, shapes_of

# of chw.h
KINDS = (
    "spmm",
    "depthwise",
    "conv",
    "linear",
    "add",
    "scale",
    "pool",
    "act",
    "bias",
    "encode",
    "max",
)
FIELDS = (
    *("kind", "act", "act2", "src", "dst", "other", "ptr", "off", "val", "bias"),
    *("ci", "co", "h", "w", "ho", "wo", "pitch_in", "pitch_out"),
    *("k", "stride", "top", "left", "rows", "scratch"),
    *("codes", "mul", "rule"),
)
SRC = FIELDS.index("src")
LINE, SLACK = 16, 64  # floats of a padded row, and behind a map
SIDE, STRIDES = 11, 4  # the largest kernel, and the largest stride, for which chw.c has room
I64, POINTER = ctypes.c_int64, ctypes.c_void_p


def available() -> bool:
    """Return True if the kernels can be used; compiles them at first use."""
    return native.load() is not None


class NativeProgram:
    """Steps on maps and vectors in one piece of memory, carried out by the kernels.

    The values of `naive.Program` to rounding, the same bits for any number of threads. A dense 1x1
    step is torch's product. Of one size of input; needs `available()`. Threads that call it take
    turns.
    Raises: ShapeError for weights that do not fit together, or a map of more than 2 GiB.
    """

    def __init__(
        self, steps: Sequence[ProgramStep], inputs: Mapping[int, Shape], keep: Sequence[int]
    ) -> None:
        """Give each value a place in one memory, and write the steps as the C code's table."""
        self.steps, self.shapes = tuple(steps), shapes_of(steps, inputs)
        self.codings = codings_of(self.steps)
        self.inputs, self.keep, self.threads = tuple(inputs), tuple(keep), torch.get_num_threads()
        run = native.function("intarsia_chw_run", POINTER, I64, I64, I64)
        scratch = native.function("intarsia_chw_scratch", I64, I64, I64, I64, I64, I64)
        assert run is not None and scratch is not None  # the caller has asked `available()`
        self._run: Callable[..., int] = run
        floats_of = {n: floats_of_value(s, n in self.codings) for n, s in self.shapes.items()}
        self.offsets, floats = _lay_out(self.steps, floats_of, self.inputs, self.keep)
        # one piece of working memory behind the values, as large as the largest step needs
        sizes = [self._scratch(step, scratch) for step in self.steps]
        self.memory = torch.zeros(floats + max(sizes, default=0))
        self.end = floats
        self._held: list[Tensor] = []  # the tensors with addresses in the table
        self.rows: list[list[int]] = []
        self.work: list[tuple[Any, ...]] = []  # (first, last) of the table, or a product's tensors
        for step in self.steps:
            self._add(step)
        self.table = torch.tensor(self.rows, dtype=torch.int64).view(-1, len(FIELDS))
        self.direct = self._uncopied_inputs()
        self.views = {n: self._view(n) for n in {*self.inputs, *self.keep}}
        self._turn = threading.Lock()  # there is one memory, and a call lets other threads run

    def __call__(self, inputs: Sequence[Tensor], outputs: Sequence[int]) -> list[Tensor]:
        """Carry out the program, and return copies of some of its values, those of `keep`."""
        # only one thread at a time: the values share one memory
        with self._turn:
            self._set_inputs(inputs)
            self.carry_out()
            return [self.views[number].clone() for number in outputs]

    def _set_inputs(self, inputs: Sequence[Tensor]) -> None:
        """Copy each input into the program's memory, or let the kernels read it where it is."""
        for number, x in zip(self.inputs, inputs, strict=True):
            if number in self.direct and x.is_contiguous():
                for row in self.direct[number]:
                    self.table[row, SRC] = x.data_ptr()
            else:
                for row in self.direct.get(number, ()):
                    self.table[row, SRC] = self._address(number)
                self.views[number].copy_(x)

    def carry_out(self) -> None:
        """Carry out all steps on the values in memory, which `views` shows as tensors."""
        table = self.table.data_ptr()
        # dense products are torch's, everything between them is one call
        for job in self.work:
            if len(job) == 2:
                self._run(table, *job, self.threads)
            else:
                torch.mm(job[0], job[1], out=job[2])

    def _address(self, number: int) -> int:
        return self.memory.data_ptr() + 4 * self.offsets[number]

    def _view(self, number: int, padded: bool = False) -> Tensor:
        """Return a view of a value in the memory; padded: (channels, floats of a channel)."""
        shape = self.shapes[number]
        flat, pitch = self.memory[self.offsets[number] :], pitch_of(shape)
        # A channel begins at a multiple of LINE floats, so that its rows are aligned.
        rows = flat[: shape[0] * pitch].view(shape[0], pitch)
        if padded or len(shape) == 1:
            return rows if padded else rows[:, 0]
        return rows.as_strided(shape, (pitch, shape[2], 1), rows.storage_offset())

    def _scratch(self, step: ProgramStep, floats: Callable[..., int]) -> int:
        """Return how many floats of working memory a step needs, for all threads together."""
        if step.kind == "spmm" and step.coded:
            of_codes = native.function("intarsia_chw_codes_scratch", I64, I64, I64, I64)
            assert of_codes is not None
            # in bytes, four to a float
            return of_codes(*self.shapes[step.src], self.threads) // 4
        if step.kind == "max":  # a line of the map, with its margins
            width = self.shapes[step.src][2] + 2 * (step.window.left + step.window.right)
            return self.threads * (width + SLACK)
        if step.kind not in ("conv", "depthwise"):
            return 0
        if step.window.size > SIDE:
            fix = "Leave this layer out."
            raise ShapeError("kernel", got=step.window.size, want=f"at most {SIDE}", fix=fix)
        if step.window.stride > STRIDES:
            fix = "Leave this layer out."
            raise ShapeError("stride", got=step.window.stride, want=f"at most {STRIDES}", fix=fix)
        # channels in, then the sides of the map out
        sizes = (self.shapes[step.src][0], *self.shapes[step.dst][1:])
        window = (step.window.size, step.window.stride)
        if step.kind == "conv" and step.coded:
            of_conv = native.function("intarsia_chw_conv_scratch", I64, I64, I64, I64, I64)
            assert of_conv is not None
            return -(-of_conv(*sizes, *window) // 4)
        return self.threads * floats(KINDS.index(step.kind), *sizes, *window)

    def _add(self, step: ProgramStep) -> None:
        """Append a step to the kernels' table, or to the products that torch computes."""
        if step.kind == "spmm" and step.dense:
            # a dense 1x1 convolution is torch's matrix product, followed by bias and activation
            weight = _floats(step.weights["weight"])
            product = (weight, self._view(step.src, True), self._view(step.dst, True))
            self.work.append(product)
            self._row(step, kind="bias", src=self._address(step.dst))
        else:
            self._row(step, kind=step.kind)

    def _row(self, step: ProgramStep, kind: str, src: int = 0) -> None:
        """Append a step to the kernels' table: a row of addresses and sizes, ordered as FIELDS."""
        source, result = self.shapes[step.src], self.shapes[step.dst]
        window = step.window.at(*source[1:]) if len(source) == 3 else step.window
        # Fields that a kind does not have stay 0.
        row = dict.fromkeys(FIELDS, 0)
        row |= {"kind": KINDS.index(kind), "src": src or self._address(step.src)}
        row |= {"dst": self._address(step.dst), "rows": step.rows}
        row |= dict(zip(("act", "act2"), map(ACTS.index, step.acts), strict=True))
        row |= {"ci": source[0], "co": result[0], "k": window.size, "stride": window.stride}
        row |= {"top": window.top, "left": window.left}
        flags, tensors = tensors_in_codes(step, self.codings)
        row |= {"codes": flags}
        row |= {"pitch_in": pitch_of(source, step.src in self.codings)}
        row |= {"pitch_out": pitch_of(result, step.result_coding is not None)}
        if len(source) == 3:
            row |= {"h": source[1], "w": source[2]}
        if len(result) == 3:
            row |= {"ho": result[1], "wo": result[2]}
        if step.other is not None:
            row["other"] = self._address(step.other)
        if kind in ("conv", "depthwise", "max") or step.coded:
            row["scratch"] = self.memory.data_ptr() + 4 * self.end
        tensors = _tensors(step, source) | tensors
        row |= {name: self._hold(tensor) for name, tensor in tensors.items()}
        self.rows.append([int(row[name]) for name in FIELDS])
        first = len(self.rows) - 1
        # `work` has (first, last) rows of the table, for one call, or (a, b, out) of a product:
        # extend the last entry if it is one of rows
        if self.work and len(self.work[-1]) == 2:
            first = self.work.pop()[0]
        self.work.append((first, len(self.rows)))

    def _hold(self, tensor: Tensor) -> int:
        """Keep a tensor from being freed while the table has its address, and return that."""
        self._held.append(tensor)
        return tensor.data_ptr()

    def _uncopied_inputs(self) -> dict[int, list[int]]:
        """Return the inputs that need no copy: number of the input -> indices of its readers."""
        rows: dict[int, list[int]] = {}
        for number in self.inputs:
            readers = [s for s in self.steps if number in (s.src, s.other)]
            kinds = ("conv", "depthwise", "encode")
            fits = all(s.kind in kinds and s.src == number for s in readers)
            shape = self.shapes[number]
            # an input with channels padded in memory must be copied
            if fits and number not in self.keep and pitch_of(shape) == shape[-1] * shape[-2]:
                rows[number] = [i for i, s in enumerate(self.steps) if s.src == number]
        return rows


def pitch_of(shape: Shape, coded: bool = False) -> int:
    """Return how many numbers apart two channels are: a map's pixels, rounded up to 16; else 1.

    shape: of a map (channels, height, width), or of a vector (channels,); coded: stored in codes of
      a byte (64 of them fill a line).
    """
    line = TILE if coded else LINE
    return 1 if len(shape) == 1 else -(-shape[1] * shape[2] // line) * line


def floats_of_value(shape: Shape, coded: bool) -> int:
    """Return how many floats of memory a value takes, SLACK behind it included: whole lines."""
    numbers = shape[0] * pitch_of(shape, coded)
    floats = -(-numbers // 4) if coded else numbers
    return -(-(floats + SLACK) // LINE) * LINE


def _floats(tensor: Tensor) -> Tensor:
    """Return a tensor in float32, in one piece."""
    return tensor.detach().to(torch.float32).contiguous()


def _tensors(step: ProgramStep, source: Shape) -> dict[str, Tensor]:
    """Return a step's weights as the kernels read them: field of the table -> tensor."""
    tensors: dict[str, Tensor] = {}
    weights = step.weights
    # the kernels add in blocks of up to eight rows
    if "bias" in weights:  # padded to whole blocks
        tensors["bias"] = torch.nn.functional.pad(_floats(weights["bias"]), (0, -step.outputs % 8))
    if step.kind in ("spmm", "conv") and step.coded:
        checked_blocks(step, source[0])
        tensors["ptr"] = weights["ptr"].to(torch.int32).contiguous()
        tensors["off"] = weights["channels"].to(torch.int32).contiguous()
    elif "values" in weights:
        checked_blocks(step, source[0])
        # Channel numbers become distances in memory: bytes for 1x1 steps, channels for k x k.
        gap = 1 if step.kind == "conv" else 4 * pitch_of(source)
        # a map of 2 GiB would overflow the 32-bit offsets of chw.c
        if source[0] * 4 * pitch_of(source) >= 2**31:
            fix = "Use smaller pictures."
            raise ShapeError("map", got=f"{source}", want="less than 2 GiB", fix=fix)
        tensors["ptr"] = weights["ptr"].to(torch.int32).contiguous()
        tensors["off"] = (weights["channels"].to(torch.int64) * gap).to(torch.int32)
        tensors["val"] = _floats(weights["values"])
    elif step.kind in ("depthwise", "linear") and not step.coded:
        tensors["val"] = _floats(weights["weight"])
    return tensors


def _lay_out(
    steps: Sequence[ProgramStep],
    size: Mapping[int, int],
    inputs: Sequence[int],
    keep: Sequence[int],
) -> tuple[dict[int, int], int]:
    """Choose where each value begins in one piece of memory; those of `keep` stay to the end."""
    # the last step that reads each value
    last = {n: len(steps) for n in keep}
    for i, step in enumerate(steps):
        for number in (step.src, step.dst, step.other):
            if number is not None and number not in keep:
                last[number] = i
    offsets: dict[int, int] = {}
    end = LINE

    def place(number: int, step_number: int) -> None:
        """Put value `number` into the first gap that is large enough at step `step_number`."""
        nonlocal end
        occupied = sorted((offsets[n], size[n]) for n in offsets if last.get(n, -1) >= step_number)
        offset = LINE  # vectors of codes may begin a little before a map
        for start, length in occupied:
            if start - offset >= size[number]:
                break
            offset = max(offset, start + length)
        offsets[number] = offset
        end = max(end, offset + size[number])

    for number in inputs:
        place(number, 0)
    for i, step in enumerate(steps):
        if step.dst not in offsets:
            place(step.dst, i)
    return offsets, end
