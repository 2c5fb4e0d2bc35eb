"""A program as a table for native/decoder.c: one call carries out all steps."""

from __future__ import annotations

import ctypes
import struct
import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...core.errors import ConfigError, ShapeError
from .. import native
from .steps import (
    ACTS,
    SHARES,
    AddStep,
    AttendStep,
    ClampStep,
    ClipStep,
    DecoderStep,
    EmbedStep,
    ExpertReader,
    ExpertStep,
    GateStep,
    MixStep,
    NormStep,
    ProductStep,
    RotateStep,
    RouteStep,
    SquashStep,
    Value,
)

KINDS = (
    *(EmbedStep, NormStep, ProductStep, ClipStep, RotateStep, AttendStep, GateStep, AddStep),
    *(RouteStep, MixStep, SquashStep, ClampStep),
)
FIELDS = (  # of a row, as in decoder.h
    *("kind", "dst", "dst_pitch", "src", "src_pitch", "other", "other_pitch", "third"),
    *("third_pitch", "width", "size", "weight", "bias", "type", "keys", "values", "length"),
    *("sink", "window", "heads", "groups", "act", "number", "experts", "steps", "stride", "read"),
    "limit",
)
TYPES = {torch.float32: 0, torch.bfloat16: 1}  # of dense.c
I64, POINTER = ctypes.c_int64, ctypes.c_void_p
READER = ctypes.CFUNCTYPE(I64, I64, I64)
BEFORE, FAILED = -1, 1  # before the first expert, of decoder.c; any number but 0


class NativeDecoder:
    """Steps on rows of float32 in memory that is taken once, carried out by the kernels.

    The values of `NaiveDecoder` to rounding, the same bits for any number of threads. Threads that
    call it take turns, and the cache is the caller's.
    steps: the program; max_rows: the most rows of a call.
    Raises: ShapeError for steps that do not fit together, ConfigError where there are no kernels.
    """

    def __init__(self, steps: Sequence[DecoderStep], max_rows: int) -> None:
        """Allocate the memory of all values, and write the steps as a table for the kernels."""
        native.require()
        self.steps, self.max_rows = tuple(steps), max_rows
        run = native.function(
            "intarsia_decoder_run", POINTER, I64, POINTER, I64, POINTER, ctypes.c_int
        )
        assert run is not None
        self._run = run
        # the tensors and functions with addresses in the table
        self._held: list[Tensor] = []
        self._readers: list[Any] = []
        self._errors: list[BaseException] = []  # of a reader, raised behind the kernels' call
        widths: dict[str, int] = {}
        for value in (v for step in self.steps for v in _values(step)):
            # a name has one memory, as wide as the widest value of it
            widths[value.name] = max(widths.get(value.name, 0), value.first + value.width)
        self.memory = {name: torch.zeros(max_rows, width) for name, width in widths.items()}
        self.table = torch.tensor([self._row(step) for step in self.steps])
        self.rows, self._at = (
            torch.zeros(max_rows, 3, dtype=torch.int64),
            torch.zeros(1, dtype=torch.int64),
        )
        tables = [len(s.table) for s in self.steps if isinstance(s, EmbedStep)]
        attends = [s for s in self.steps if isinstance(s, AttendStep)]
        turned = [len(s.cos) for s in self.steps if isinstance(s, RotateStep)]
        # The largest token, text and position for which tables and caches have room.
        self.limits = (
            min(tables, default=2**62),
            min((len(s.cache.keys) for s in attends), default=2**62),
            min((*(s.most_places(max_rows) for s in attends), *turned), default=2**62),
        )
        self._turn = threading.Lock()  # there is one memory, and a call lets other threads run

    def __call__(
        self, tokens: Sequence[int], slots: Sequence[int], places: Sequence[int], *, tail: int = 0
    ) -> Tensor:
        """Carry out the program for N tokens; return the result of the last step, (N, width)."""
        rows = list(zip(tokens, slots, places, strict=True))
        count = len(rows)
        self._check(rows)
        with self._turn:
            self.rows[:count] = torch.tensor(rows)
            self._carry_out(0, len(self.steps) - tail, count)
            # the last steps, such as the head, are needed for the last row alone: (1, width)
            if tail:
                src = self.steps[-tail]
                for value in _values(src):
                    self.memory[value.name][0] = self.memory[value.name][count - 1]
                self.rows[0] = self.rows[count - 1]
                self._carry_out(len(self.steps) - tail, tail, 1)
            dst = self.steps[-1].dst
            return _columns(self.memory[dst.name][: 1 if tail else count], dst).clone()

    def _carry_out(self, first: int, steps: int, count: int) -> None:
        """Call the kernels for some consecutive steps of the program."""
        # Fields are 8 bytes each.
        row = self.table.data_ptr() + 8 * len(FIELDS) * first
        threads = torch.get_num_threads()
        arguments = self.rows.data_ptr(), count, self._at.data_ptr(), threads
        fault = self._run(row, steps, *arguments)
        if self._errors:
            error = self._errors[0]
            self._errors.clear()
            raise error
        native.refuse(fault)

    def _check(self, rows: Sequence[tuple[int, int, int]]) -> None:
        """Raise ConfigError for too many rows, or for numbers beyond the tables and the cache."""
        if not 0 < len(rows) <= self.max_rows:
            fix = "Make calls of fewer rows."
            raise ConfigError("rows", got=len(rows), want=f"1 to {self.max_rows}", fix=fix)
        for name, numbers, limit in zip(
            ("token", "slot", "place"), zip(*rows, strict=True), self.limits, strict=True
        ):
            # C trusts these numbers: one out of range would read foreign memory.
            if min(numbers) < 0 or max(numbers) >= limit:
                got = min(numbers) if min(numbers) < 0 else max(numbers)
                want = f"0 to {limit - 1}"
                raise ConfigError(name, got=got, want=want, fix="Make room for prompt and answer.")

    def _row(self, step: DecoderStep) -> list[int]:
        """Return a step's row of the table that the C code reads: an integer for each of FIELDS."""
        row = dict.fromkeys(FIELDS, 0)
        # addresses, sizes and settings are checked here, since the C code trusts them
        row |= {"kind": KINDS.index(type(step)), "width": step.dst.width}
        row |= self._place("dst", step.dst)
        if isinstance(step, EmbedStep):
            _check(step, step.table.shape[1:] == (step.dst.width,) and step.table.dtype in TYPES)
            row |= {"weight": self._hold(step.table), "type": TYPES[step.table.dtype]}
            row |= {"number": _bits(step.scale)}
        elif isinstance(step, ClipStep | SquashStep):
            row |= {"number": _bits(step.limit)}
        elif isinstance(step, RotateStep):
            row |= self._rotation(step)
        elif isinstance(step, AttendStep):
            row |= self._attention(step)
        elif isinstance(step, MixStep):
            row |= self._mixture(step)
        else:
            # norms, products, gates, sums and routers read another value
            row |= self._place("src", step.src)
            row |= self._row_with_source(step)
        return [int(row[name]) for name in FIELDS]

    def _row_with_source(
        self, step: NormStep | ProductStep | GateStep | ClampStep | AddStep | RouteStep
    ) -> dict[str, int]:
        """Return fields of the kernels' table for a step that reads a value: field -> number."""
        if isinstance(step, NormStep):
            size, weight = step.size, step.weight
            fits = step.dst.width == step.src.width and size > 0 and step.dst.width % size == 0
            _check(step, fits and (weight is None or weight.shape == (size,)))
            place = 0 if weight is None else self._hold(weight.float())
            act = {"act": step.centred, "number": _bits(step.eps)}
            return {"size": size, "weight": place, **act}
        if isinstance(step, ProductStep):
            # a product writes a whole row, so that its values may not be slices
            unsliced = all(self.memory[v.name].shape[1] == v.width for v in (step.dst, step.src))
            fits = step.bound.sides == (step.dst.width, step.src.width) and step.dst != step.src
            _check(step, unsliced and fits)
            bias = 0 if step.bias is None else self._hold(step.bias.float())
            _check(step, step.bias is None or step.bias.shape == (step.dst.width,))
            self._held += step.bound.tensors
            return {"weight": self._hold(step.bound.numbers), "bias": bias}
        if isinstance(step, RouteStep):
            fits = step.dst.width == step.src.width and step.dst.name != step.src.name
            _check(step, fits and 0 < step.active <= step.src.width)
            return {"size": step.active, "act": SHARES.index(step.share)}
        if isinstance(step, ClampStep):
            # pairs are read when their place is written, so that it needs other memory
            apart = step.dst.name != step.src.name
            _check(step, apart and step.src.width == 2 * step.dst.width and step.limit > 0)
            return {"number": _bits(step.alpha), "limit": _bits(step.limit)}
        _check(step, step.dst.width == step.src.width == step.other.width)
        act = ACTS.index(step.act) if isinstance(step, GateStep) else 0
        return {**self._place("other", step.other), "act": act}

    def _rotation(self, step: RotateStep) -> dict[str, int]:
        """Return fields of the kernels' table for a step of rotary positions: field -> number."""
        head, turned = step.dst.width // step.heads, step.cos.shape[1]
        # Numbers are rotated in pairs, and at most all of a head.
        fits = step.dst.width % step.heads == 0 and turned <= head and turned % 2 == 0
        _check(step, fits and step.cos.shape == step.sin.shape)
        tables = {"weight": self._hold(step.cos.float()), "bias": self._hold(step.sin.float())}
        return {"heads": step.heads, "size": turned, **tables}

    def _attention(self, step: AttendStep) -> dict[str, int]:
        """Return fields of the kernels' table for a step of attention: field -> number."""
        keys, values, sink = step.cache
        _, groups, length, size = keys.shape
        fits = keys.shape == values.shape and keys.dtype == values.dtype and keys.dtype in TYPES
        # Query heads share the keys of a group, as many for each.
        fits = fits and step.heads % groups == 0 and keys.is_contiguous() and values.is_contiguous()
        fits = fits and step.query.width == step.dst.width == step.heads * size
        fits = fits and 0 <= sink <= length and step.window >= 0 and step.limit >= 0
        _check(step, fits and step.key.width == step.value.width == groups * size)
        places = self._place("src", step.query) | self._place("other", step.key)
        cache = {"keys": self._hold(keys), "values": self._hold(values), "length": length}
        sizes = {"heads": step.heads, "groups": groups, "size": size}
        sizes |= {"sink": sink, "window": step.window}
        kind = {"type": TYPES[keys.dtype], "number": _bits(step.scale)}
        kind |= {"limit": _bits(step.limit)}
        if step.idle is not None:
            _check(step, step.idle.shape == (step.heads,))
            kind |= {"weight": self._hold(step.idle.float())}
        return {**places, **self._place("third", step.value), **cache, **sizes, **kind}

    def _mixture(self, step: MixStep) -> dict[str, int]:
        """Return fields of the kernels' table for a mixture of experts: field -> number."""
        count, programs = step.gates.width, step.experts
        fits = step.dst.width == step.src.width == step.rows.width
        # one memory each: the kernel clears dst, and experts overwrite rows
        names = {step.dst.name, step.src.name, step.gates.name, step.rows.name}
        fits = (
            fits and len(names) == 4 and len(programs) in ((1, count) if step.reader else (count,))
        )
        _check(step, fits and len({len(program) for program in programs}) == 1)
        _check(step, all(isinstance(s, ExpertStep) for program in programs for s in program))
        # an expert leaves its result where it found its inputs
        _check(step, all(program[-1].dst == step.rows for program in programs))
        table = torch.tensor([self._row(s) for program in programs for s in program])
        sizes = {"experts": count, "steps": len(programs[0])}
        # that of expert e begins at row e * stride of the table; a reader may change the weights
        # of one program for all
        sizes["stride"] = len(programs[0]) if len(programs) == count else 0
        if step.reader is not None:
            sizes["read"] = self._reading(step, step.reader)
        places = self._place("src", step.src) | self._place("other", step.gates)
        return {**places, **self._place("third", step.rows), "weight": self._hold(table), **sizes}

    def _reading(self, step: MixStep, reader: ExpertReader) -> int:
        """Return the address of a function by which kernels ask for the experts of a mixture."""
        rows = self.memory[step.gates.name]
        gates, errors = _columns(rows, step.gates), self._errors

        def read(count: int, expert: int) -> int:
            """Begin with the experts of `count` rows, bring one of them, or end."""
            try:
                if expert == BEFORE:
                    used = (gates[:count] != 0).any(0)
                    reader.begin(used.nonzero().flatten().tolist())
                elif expert == step.gates.width:
                    reader.end()
                else:
                    reader.bring(expert)
            except BaseException as error:
                errors.append(error)
                return FAILED
            return 0

        self._readers.append(READER(read))
        return ctypes.cast(self._readers[-1], POINTER).value or 0

    def _place(self, field: str, value: Value) -> dict[str, int]:
        """Return a value's address, as `field`, and the width of its rows, as `field`_pitch."""
        rows = self.memory[value.name]
        return {field: rows.data_ptr() + 4 * value.first, f"{field}_pitch": rows.shape[1]}

    def _hold(self, tensor: Tensor) -> int:
        """Keep a tensor, or a contiguous copy of it, from being freed, and return its address."""
        # The table has addresses alone, which would dangle.
        self._held.append(tensor.detach().contiguous())
        return self._held[-1].data_ptr()


def _values(step: DecoderStep) -> list[Value]:
    """Return the values that a step reads and writes, its experts' included."""
    programs = step.experts if isinstance(step, MixStep) else ()
    inner = [value for program in programs for s in program for value in _values(s)]
    return [v for v in vars(step).values() if isinstance(v, Value)] + inner


def _columns(rows: Tensor, value: Value) -> Tensor:
    """Return the columns of a value as a view; rows: (rows, width), the memory of its name."""
    return rows[:, value.first : value.first + value.width]


def _bits(number: float) -> int:
    """Return the bits of a number in float32 as an integer."""
    return int(struct.unpack("<i", struct.pack("<f", number))[0])


def _check(step: DecoderStep, fits: bool) -> None:
    """Raise ShapeError for a step with tensors and values that do not fit together."""
    if not fits:
        got = ", ".join(f"{v.name} {v.width}" for v in _values(step))
        want, fix = "widths, tensors and types that fit together", "Build it from the model anew."
        raise ShapeError(type(step).__name__, got=got, want=want, fix=fix)
