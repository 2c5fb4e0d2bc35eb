"""Sparse products of a row against dense ones, other libraries' few bits, the machine's floor.

Every contender multiplies the same shapes by one row of inputs. Each has copies of its weight, as
many as make 128 MiB of float32 (at most 64), and takes them in turns; contenders are interleaved,
and the best of the repeats counts: CPU time on one thread, since others may use the machine.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from intarsia.core import Format, nbytes
from intarsia.core.errors import ConfigError
from intarsia.formats import Bitmask, BlockInt, Dense, GroupSparse
from intarsia.kernels import native
from intarsia.kernels.gqsa import BLOCKS
from intarsia.kernels.native.floor import Floor, measure

from .rival_products import Call, rival_products

REPEATS, MEBIBYTES = 15, 128  # of float32 weights to go through
MOST_COPIES = 64
SIDE, COPIES = 4096, 16  # 128 MiB at 4 bits a weight, more than any cache
TORCH, PEER, OURS, BASELINE = "torch", "peer", "ours", "ours, dense"
DENSE = (TORCH, PEER, BASELINE)  # of any library, of any bits
WHOLE = {"dense bf16": Dense(), "dense int8": BlockInt(8), "dense int4": BlockInt(4)}  # ours


@dataclass(frozen=True)
class Contender:
    """Product to be timed, with copies of its weight.

    calls: which compute one product with each copy; copies: their number; bytes: of one copy;
    error: the largest, relative to the largest value.
    """

    name: str
    kind: str
    calls: Sequence[Call]
    copies: int
    bytes: int
    error: float


@dataclass(frozen=True)
class Timed:
    """A contender's figures at one shape; density: of ours, 1 of dense ones."""

    shape: tuple[int, int]
    density: float
    name: str
    kind: str
    ms: float
    bytes: int
    error: float

    @property
    def rate(self) -> float:
        """Bytes of the weight a second."""
        return self.bytes / (self.ms * 1e-3)


@dataclass(frozen=True)
class ShapeTable:
    """Timings of all products at all shapes.

    rows: of all shapes; floor: limits of the machine; left_out: other libraries' products that are
    not here, and why.
    """

    rows: tuple[Timed, ...]
    floor: Floor
    instructions: str
    left_out: Mapping[str, str] = field(default_factory=dict)

    def best(self, shape: tuple[int, int], *kinds: str) -> Timed:
        """Return the fastest product of some kinds at a shape.

        shape: (out, in) of the weight; kinds: of contenders, such as OURS.
        """
        return min((r for r in self.rows if r.shape == shape and r.kind in kinds), key=_ms)

    def share(self, row: Timed) -> float:
        """Return a product's share of the read bandwidth that was measured."""
        return row.rate / self.floor.read

    def record(self) -> dict[str, Any]:
        """Return the table, ready for JSON: rows, limits of the machine, and verdicts by shape."""
        rows = [asdict(r) | {"GB/s": r.rate / 1e9, "share": self.share(r)} for r in self.rows]
        floor = {"read GB/s": self.floor.read / 1e9, "threads": self.floor.threads}
        floor["GFLOP/s"] = {n: f / 1e9 for n, f in self.floor.matmul.items()}  # pyright: ignore
        verdicts = {f"{r}x{c}": verdict(self, (r, c)) for r, c in dict.fromkeys(_shapes(self))}
        return {
            "instructions": self.instructions,
            "floor": floor,
            "rows": rows,
            "verdicts": verdicts,
            "left out": dict(self.left_out),
        }


def _ms(row: Timed) -> float:
    """Return a product's milliseconds."""
    return row.ms


def _shapes(table: ShapeTable) -> list[tuple[int, int]]:
    return [row.shape for row in table.rows]


def verdict(table: ShapeTable, shape: tuple[int, int]) -> str:
    """Return a sentence on which is faster at a shape: a dense product or our best sparse format.

    table: times of all products; shape: (out, in).
    """
    dense, ours = table.best(shape, *DENSE), table.best(shape, OURS)
    # the slower time over the faster: never below 1
    ratio = max(dense.ms, ours.ms) / min(dense.ms, ours.ms)
    contender = f"{ours.name} at density {ours.density:g}"
    if ours.ms < dense.ms:
        return f"{contender} is {ratio:.2f}x as fast as the best dense product ({dense.name})"
    return f"dense is faster: {dense.name}, {ratio:.2f}x as fast as {contender}"


def read_shapes(text: str) -> tuple[tuple[int, int], ...]:
    """Return the (out, in) pairs of a text such as "4096x4096,576x1536".

    Raises: ConfigError for anything else, and for sides over 65,536.
    """
    shapes: list[tuple[int, int]] = []
    for part in text.split(","):
        sides = part.strip().lower().split("x")
        if len(sides) != 2 or not all(s.isdigit() and 0 < int(s) <= 2**16 for s in sides):
            want, fix = "OUTxIN, each up to 65,536", "For example: --shapes 4096x4096,576x1536"
            raise ConfigError("--shapes", got=part, want=want, fix=fix)
        shapes.append((int(sides[0]), int(sides[1])))
    return tuple(dict.fromkeys(shapes))


def forms_of(density: float) -> dict[str, Format]:
    """Return our storage formats that are worth trying at a density, by their names in tables."""
    forms: dict[str, Format] = {
        f"bitmask {values}": Bitmask(values) for values in ("fp32", "bf16", "int8")
    }
    for rows in BLOCKS:
        name = "group-sparse int4" + f", {rows} rows" * (rows > 1)
        forms[name] = GroupSparse(activations="int8", rows=rows)
    return forms


def time_shapes(
    shapes: Iterable[tuple[int, int]],
    densities: Sequence[float] = (0.5, 0.3),
    *,
    repeats: int = REPEATS,
    mebibytes: int = MEBIBYTES,
    seed: int = 0,
    peers: bool = True,
    report: Callable[[str], None] = lambda _: None,
) -> ShapeTable:
    """Time products of one row of inputs with dense and sparse weights, and the memory bandwidth.

    shapes: (out, in) of weights; densities: of random unstructured masks, group-sparse int4 keeps
    as many groups of 16; repeats: the best of so many counts; mebibytes: of float32 weights that
    copies go through; seed: of weights and masks; peers: also the 8 and 4 bits of torch, torchao,
    onnxruntime, OpenVINO and llama.cpp, where they are installed; report: gets a line for each
    shape.
    """
    rows: list[Timed] = []
    left_out: dict[str, str] = {}
    for shape in shapes:
        # copies in turn, more than a cache holds: weights come from memory, as in a model
        copies = min(MOST_COPIES, max(1, math.ceil(mebibytes * 2**18 / math.prod(shape))))
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(shape, generator=generator) / math.sqrt(shape[1])
        x = torch.randn(1, shape[1], generator=generator)
        entries = [(1.0, c) for c in _dense(weight, x, copies)]
        # other libraries, where they are installed
        if peers:
            entries += [(1.0, c) for c in _peers(weight, x, copies, left_out)]
        for density in densities:
            mask = torch.rand(shape, generator=generator) < density
            entries += [(density, c) for c in ours(weight, mask, x, copies, density)]
        spent = interleaved([c for _, c in entries], repeats)
        for (density, contender), ms in zip(entries, spent, strict=True):
            rows.append(
                Timed(
                    shape,
                    density,
                    contender.name,
                    contender.kind,
                    ms,
                    contender.bytes,
                    contender.error,
                )
            )
        report(f"{shape[0]}x{shape[1]}: {copies} copies, {len(entries)} contenders")
    return ShapeTable(tuple(rows), measure(), native.instructions(), left_out)


@torch.inference_mode()
def interleaved(contenders: Sequence[Contender], repeats: int) -> list[float]:
    """Return the least milliseconds of one product of each contender.

    contenders: each with a call for every copy of its weight; repeats: of all in turn. In each
    repeat all contenders take a turn, so that a disturbance meets all of them.
    """
    # on one thread, what other processes do does not count; a library may use a thread of its own
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    best = [math.inf] * len(contenders)
    for repeat in range(repeats + 1):
        for index, contender in enumerate(contenders):
            started = clock()
            for call in contender.calls:
                call()
            if repeat:  # the first brings caches and pages to where they stay
                best[index] = min(best[index], (clock() - started) / contender.copies)
    return [1e3 * seconds for seconds in best]


def ours(
    weight: Tensor, keep: Tensor, x: Tensor, copies: int, density: float
) -> Iterable[Contender]:
    """Yield the products of our formats with a masked weight, as `PackedLinear` calls them.

    weight: (out, in); keep: its mask, True = stored; x: (1, in); copies: of the stored weight, used
    by turns, so that caches hold none; density: share of True.
    """
    for name, form in forms_of(density).items():
        mask = keep
        if isinstance(form, GroupSparse):
            # a format of whole groups cannot store a row that ends inside of one
            if weight.shape[1] % form.group:
                continue
            # as many groups, the same ones in neighbouring rows
            groups = keep[:: form.rows, :: form.group].repeat_interleave(form.rows, 0)
            mask = groups[: len(weight)].repeat_interleave(form.group, 1)
        yield of_format(name, OURS, form, weight * mask, x, copies)


def of_format(
    name: str, kind: str, form: Format, weight: Tensor, x: Tensor, copies: int
) -> Contender:
    """Prepare the product of a storage format: a call for each copy, bytes, and error.

    name, kind: of the table's row; form: the format; weight: (out, in); x: (1, in); copies: number
    of copies of the stored weight, used by turns, so that caches hold none. The error is the
    largest difference over the largest value of the float32 product.
    """
    shape, stored = tuple(weight.shape), form.encode(weight)
    error = _error(form.matmul(x, stored, shape), x @ weight.T)
    calls: list[Call] = []
    for _ in range(copies):
        copied = {n: t.clone() for n, t in stored.items()}
        # a format may prepare a call once, as a layer does
        bound = form.bound(copied, shape)
        calls.append(_call(bound, x) if bound is not None else _matmul(form, x, copied, shape))
    return Contender(name, kind, calls, copies, nbytes(stored), error)


def of_torch(name: str, dtype: torch.dtype, weight: Tensor, x: Tensor, copies: int) -> Contender:
    """Prepare torch's own product of a row with a dense weight.

    name: of the table's row; dtype: weight and inputs are converted to it; weight: (out, in); x:
    (1, in); copies: of the weight, used by turns.
    """
    dense, inputs = weight.to(dtype), x.to(dtype)
    calls = [_call(linear, inputs, dense.clone()) for _ in range(copies)]
    error = _error(linear(inputs, dense), x @ weight.T)
    return Contender(name, TORCH, calls, copies, dense.nbytes, error)


def _call(product: Callable[..., object], *inputs: Any) -> Call:
    """Return a call without arguments."""
    return lambda: product(*inputs)


def _matmul(form: Format, x: Tensor, stored: Mapping[str, Tensor], shape: Any) -> Call:
    """Return a call of a format's product without arguments."""
    return lambda: form.matmul(x, stored, shape)


def _error(output: Tensor, want: Tensor) -> float:
    """Return the largest difference of two results, over the largest wanted value."""
    scale = float(want.abs().max()) or 1.0
    return float((output.float() - want).abs().max()) / scale


def _dense(weight: Tensor, x: Tensor, copies: int) -> Iterable[Contender]:
    """Yield the products with a dense weight: torch in float32 and bfloat16, and our dense formats.

    weight: (out, in); x: (1, in); copies: how many copies of the weight take turns, so that none is
    still in a cache.
    """
    for name, dtype in (("torch fp32", torch.float32), ("torch bf16", torch.bfloat16)):
        yield of_torch(name, dtype, weight, x, copies)
    for name, form in WHOLE.items():
        yield of_format(name, BASELINE, form, weight, x, copies)


def _peers(weight: Tensor, x: Tensor, copies: int, left_out: dict[str, str]) -> Iterable[Contender]:
    """Yield the products of other libraries in 8 and 4 bits.

    weight: (out, in); x: (1, in).
    """
    want = x @ weight.T
    for name, products in rival_products(weight, x, copies, left_out):
        error = _error(products.output, want)
        yield Contender(name, PEER, products.calls, copies, products.bytes, error)
