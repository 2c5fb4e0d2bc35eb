"""DARTS's cells: a net of all operations, what it chooses, and the net of the choice.

The search space of DASS (arXiv:2207.06968) is that of DARTS (arXiv:1806.09055).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.checks import at_least
from ..core.errors import ConfigError, DataError
from ..core.seeds import mix
from .dass_picture import Cell, Node, cell_svg

OPERATIONS = ("none", "skip", "max3", "avg3", "sep3", "sep5", "dil3", "dil5")
CHOSEN = 2  # edges of a node
Batch = tuple[Tensor, Tensor]  # pictures, labels


@dataclass(frozen=True)
class Genotype:
    """A choice: of each node of the normal and of the reduction cell its edges.

    Inputs 0 and 1 are the two cells before, 2 is the first node, and so on.
    Raises: ConfigError for an operation or an input that is not there.
    """

    normal: Cell
    reduce: Cell

    def __post_init__(self) -> None:
        for name in ("normal", "reduce"):
            cell = tuple(tuple((int(i), str(o)) for i, o in node) for node in getattr(self, name))
            object.__setattr__(self, name, cell)
            for number, node in enumerate(cell):
                for i, operation in node:
                    if operation not in OPERATIONS or not 0 <= i < number + 2:
                        got, want = (
                            f"({i}, {operation!r})",
                            f"an earlier input, one of {OPERATIONS}",
                        )
                        fix = "Take it from `Supernet.genotype()`."
                        raise ConfigError(f"edge of node {number}", got=got, want=want, fix=fix)

    def to_dict(self) -> dict[str, Any]:
        """For JSON; `Genotype(**d)` is the way back."""
        return asdict(self)

    def draw(self, path: str | Path | None = None) -> str:
        """Both cells as an SVG picture, written to `path` if there is one; the text."""
        return cell_svg(self.normal, self.reduce, path)

    @classmethod
    def drawn(cls, nodes: int, generator: torch.Generator) -> Genotype:
        """A random one: two inputs of each node, and any operation but "none"."""

        def cell() -> Cell:
            found: list[Node] = []
            for number in range(nodes):
                inputs = torch.randperm(number + 2, generator=generator)[:CHOSEN].sort().values
                which = torch.randint(1, len(OPERATIONS), (CHOSEN,), generator=generator)
                pairs = zip(inputs.tolist(), which.tolist(), strict=True)
                found.append(tuple((i, OPERATIONS[o]) for i, o in pairs))
            return tuple(found)

        return cls(cell(), cell())


class Zero(nn.Module):
    """Nothing, at the size of the output."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return x[..., :: self.stride, :: self.stride] * 0


def operation(name: str, width: int, stride: int, affine: bool) -> nn.Module:
    """An operation by name.  (B, C, H, W) -> (B, C, H / stride, W / stride)."""
    norm = partial(nn.BatchNorm2d, width, affine=affine)
    if name == "none":
        return Zero(stride)
    if name == "skip":
        return nn.Identity() if stride == 1 else projection(width, width, 2, affine)
    if name in ("max3", "avg3"):
        pool = nn.MaxPool2d if name == "max3" else nn.AvgPool2d
        return nn.Sequential(pool(3, stride, 1), norm())
    kernel, dilation = int(name[3]), 2 if name.startswith("dil") else 1

    def separable(stride: int) -> list[nn.Module]:
        pad = dilation * (kernel // 2)
        deep = nn.Conv2d(width, width, kernel, stride, pad, dilation, width, bias=False)
        return [nn.ReLU(), deep, nn.Conv2d(width, width, 1, bias=False), norm()]

    return nn.Sequential(*separable(stride), *(separable(1) if dilation == 1 else []))


def projection(inputs: int, outputs: int, stride: int, affine: bool) -> nn.Module:
    """A pointwise convolution between ReLU and batch norm."""
    layer = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
    return nn.Sequential(nn.ReLU(), layer, nn.BatchNorm2d(outputs, affine=affine))


class Mixed(nn.Module):
    """sum_o softmax(alpha)_o o(x) over all operations."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        made = (operation(name, width, stride, False) for name in OPERATIONS)
        self.operations = nn.ModuleList(made)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        each = (w * o(x) for w, o in zip(weights, self.operations, strict=True))
        return torch.stack(list(each)).sum(0)


class SearchedCell(nn.Module):
    """Nodes that sum their edges; its output are all nodes, side by side.

    plan: the edges of each node; None = every one, as `Mixed`.
    """

    def __init__(
        self, before: tuple[int, int], width: int, plan: Sequence[Node] | int, *, at: CellPlace
    ) -> None:
        super().__init__()
        mixed = isinstance(plan, int)
        nodes = (
            [tuple((i, "") for i in range(n + 2)) for n in range(plan)]
            if isinstance(plan, int)
            else plan
        )
        self.inputs = [[i for i, _ in node] for node in nodes]
        first = 2 if at.after_reduction else 1
        strides = zip(before, (first, 1), strict=True)
        self.project = nn.ModuleList(projection(c, width, s, not mixed) for c, s in strides)
        self.edges = nn.ModuleList()
        for node in nodes:
            for i, name in node:
                stride = 2 if at.reduces and i < 2 else 1
                one = Mixed(width, stride) if mixed else operation(name, width, stride, True)
                self.edges.append(one)

    def forward(self, one: Tensor, two: Tensor, weights: Tensor | None = None) -> Tensor:
        states = [p(x) for p, x in zip(self.project, (one, two), strict=True)]
        row = 0
        for inputs in self.inputs:
            made: list[Tensor] = []
            for i in inputs:
                edge = self.edges[row]
                made.append(edge(states[i]) if weights is None else edge(states[i], weights[row]))
                row += 1
            states.append(torch.stack(made).sum(0))
        return torch.cat(states[2:], 1)


@dataclass(frozen=True)
class CellPlace:
    """Where a cell stands: does it halve the picture, and did the one before it?"""

    reduces: bool
    after_reduction: bool


@dataclass(frozen=True)
class CellSizes:
    """Cells in a row, two of them reduction cells, at 1/3 and 2/3 (of two, the second alone).

    channels: of the first cell's nodes, doubled by each reduction; nodes: of each cell.
    """

    classes: int = 10
    inputs: int = 3
    channels: int = 16
    cells: int = 8
    nodes: int = 4

    def __post_init__(self) -> None:
        for name in ("classes", "inputs", "channels", "cells", "nodes"):
            at_least(name, getattr(self, name), 1)

    @property
    def reductions(self) -> frozenset[int]:
        return frozenset({self.cells // 3, 2 * self.cells // 3} if self.cells > 2 else {1})


class Cells(nn.Module):
    """Stem, cells and a classifier.  (B, inputs, H, W) -> (B, classes)."""

    def __init__(self, sizes: CellSizes, plan_of: Callable[[bool], Any]) -> None:
        super().__init__()
        width, reduced = sizes.channels, False
        self.sizes = sizes
        stem = nn.Conv2d(sizes.inputs, width, 3, padding=1, bias=False)
        self.stem = nn.Sequential(stem, nn.BatchNorm2d(width))
        self.cells, before = nn.ModuleList(), (width, width)
        for number in range(sizes.cells):
            reduces = number in sizes.reductions
            width *= 2 if reduces else 1
            place = CellPlace(reduces, reduced)
            self.cells.append(SearchedCell(before, width, plan_of(reduces), at=place))
            before, reduced = (before[1], sizes.nodes * width), reduces
        self.head = nn.Linear(before[1], sizes.classes)

    def weights(self, reduces: bool) -> Tensor | None:
        """softmax(alpha) of a kind of cell; none where the operations are chosen."""
        return None

    def forward(self, x: Tensor) -> Tensor:
        one = two = self.stem(x)
        for number, cell in enumerate(self.cells):
            weights = self.weights(number in self.sizes.reductions)
            one, two = two, cell(one, two, weights)
        return self.head(two.mean((2, 3)))


class ChosenNet(Cells):
    """The net of a genotype, to be trained from scratch."""

    def __init__(self, genotype: Genotype, sizes: CellSizes) -> None:
        nodes = {len(genotype.normal), len(genotype.reduce)}
        if nodes != {sizes.nodes}:
            fix = f"Use CellSizes(nodes={len(genotype.normal)})."
            raise ConfigError("nodes", got=sizes.nodes, want=f"{nodes}, as chosen", fix=fix)
        super().__init__(sizes, lambda reduces: genotype.reduce if reduces else genotype.normal)


class Supernet(Cells):
    """All operations at once, weighed by softmax(alpha), which learns on a validation set.

    While `searching`, each step of a training is preceded by a step of Adam (.5, .999; 1e-3 decay)
    on alpha, by the gradient of the loss on a batch of `val`; see `architecture_gradient`.
    val: pictures and labels.  train, xi: for the unrolled gradient; xi = 0 is the first order.
    Raises: ConfigError for xi without train; DataError for other data than two tensors.
    """

    def __init__(
        self,
        sizes: CellSizes,
        val: Batch,
        *,
        train: Batch | None = None,
        xi: float = 0.0,
        lr: float = 3e-4,
        batch_size: int = 64,
        seed: int = 0,
    ) -> None:
        super().__init__(sizes, lambda _: sizes.nodes)
        if xi and train is None:
            fix = "Pass train=(pictures, labels), or leave xi at 0."
            raise ConfigError("xi", got=f"{xi} without train", want="training pictures", fix=fix)
        _check_pair("val", val)
        if train is not None:
            _check_pair("train", train)
        self.val, self.train_rows, self.xi = val, train, xi
        self.lr, self.batch_size, self.seed = lr, batch_size, seed
        self.searching = False
        shape = (2, sum(n + 2 for n in range(sizes.nodes)), len(OPERATIONS))
        draw = torch.Generator().manual_seed(mix(seed, 7))
        # buffers: saved with a run, and no other optimiser moves them
        self.alpha: Tensor
        self.register_buffer("alpha", 1e-3 * torch.randn(shape, generator=draw))
        for name in ("first", "second"):  # Adam's moments
            self.register_buffer(name, torch.zeros(shape))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def weights(self, reduces: bool) -> Tensor:
        return self.alpha[int(reduces)].softmax(-1)

    def before_step(self, step: int, steps: int) -> None:
        """A step on alpha, while searching."""
        if not self.searching or not self.training:
            return
        batches = [self._rows(rows, step) for rows in (self.train_rows, self.val)]
        self.alpha.requires_grad_(True)
        try:
            (found,) = architecture_gradient(
                self, [self.alpha], batches[0], batches[1] or self.val, self.xi
            )
        finally:
            self.alpha.requires_grad_(False)
        self._adam(found)

    def _rows(self, rows: Batch | None, step: int) -> Batch | None:
        """A batch that depends on the seed and the step only."""
        if rows is None:
            return None
        draw = torch.Generator().manual_seed(mix(self.seed, step))
        index = torch.randperm(len(rows[0]), generator=draw)[: self.batch_size]
        return rows[0][index].to(self.alpha.device), rows[1][index].to(self.alpha.device)

    @torch.no_grad()
    def _adam(self, gradient: Tensor, betas: tuple[float, float] = (0.5, 0.999)) -> None:
        state: Any = self
        gradient = gradient + 1e-3 * self.alpha
        state.steps += 1
        state.first.lerp_(gradient, 1 - betas[0])
        state.second.lerp_(gradient.square(), 1 - betas[1])
        one, two = (1 - b ** int(state.steps) for b in betas)
        size = (state.second / two).sqrt_().add_(1e-8)
        self.alpha.sub_(self.lr * state.first / one / size)

    def genotype(self) -> Genotype:
        """Of each node the two edges, and of each edge the operation, of the largest weights.

        "none" is never chosen.
        """
        cells: list[tuple[Node, ...]] = []
        for kind in (False, True):
            best = self.weights(kind).detach()[:, 1:].max(-1)
            nodes, row = list[Node](), 0
            for number in range(self.sizes.nodes):
                edges = range(number + 2)
                order = sorted(edges, key=lambda i, row=row: -float(best.values[row + i]))
                which = sorted(order[:CHOSEN])
                nodes.append(tuple((i, OPERATIONS[1 + int(best.indices[row + i])]) for i in which))
                row += number + 2
            cells.append(tuple(nodes))
        return Genotype(*cells)


def _check_pair(name: str, pair: Any) -> None:
    """Raises: DataError for a set that is not two tensors of equal length."""
    found: Any = pair if isinstance(pair, tuple | list) and len(pair) == 2 else (None, None)
    x, y = (part if isinstance(part, Tensor) else torch.zeros(0) for part in found)
    if not len(x) == len(y) > 0:
        got, want = type(pair).__name__, "(pictures, labels), tensors of one length"
        fix = "Stack the samples of a data set: default_collate([*dataset])."
        raise DataError(f"{name} of a supernet", got=got, want=want, fix=fix)


def architecture_gradient(
    model: nn.Module,
    alphas: Sequence[Tensor],
    train: Batch | None,
    val: Batch,
    xi: float = 0.0,
    eps: float = 0.01,
    loss: Callable[[nn.Module, Batch], Tensor] | None = None,
) -> list[Tensor]:
    """dL_val(w - xi dL_train/dw)/dalpha, the Hessian's term by finite differences (DARTS, eq. 8).

    w: the parameters that are trained, without alphas; they are as before afterwards.
    xi: 0 = the first order, dL_val/dalpha.
    """
    loss = loss or _cross_entropy
    own = {id(a) for a in alphas}
    w = [p for p in model.parameters() if p.requires_grad and id(p) not in own]
    if not xi or train is None:
        return list(torch.autograd.grad(loss(model, val), list(alphas)))
    before = [p.detach().clone() for p in w]
    step = _gradient(loss(model, train), w)
    _set(w, before, step, -xi)  # w' = w - xi dL_train/dw
    both = _gradient(loss(model, val), [*alphas, *w])
    direct, dw = both[: len(alphas)], both[len(alphas) :]
    small = eps / max(1e-12, math.sqrt(sum(float(g.square().sum()) for g in dw)))
    sides: list[list[Tensor]] = []
    for sign in (small, -small):  # w +- eps dL_val/dw'
        _set(w, before, dw, sign)
        sides.append(_gradient(loss(model, train), list(alphas)))
    _set(w, before, dw, 0.0)
    pairs = zip(direct, *sides, strict=True)
    return [d - xi * (up - down) / (2 * small) for d, up, down in pairs]


def _cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def _gradient(value: Tensor, of: Sequence[Tensor]) -> list[Tensor]:
    found = torch.autograd.grad(value, list(of), allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(of, found, strict=True)]


@torch.no_grad()
def _set(w: Sequence[Tensor], base: Sequence[Tensor], along: Sequence[Tensor], by: float) -> None:
    for p, b, d in zip(w, base, along, strict=True):
        p.copy_(b + by * d)


def summary(genotype: Genotype | Mapping[str, Any]) -> str:
    """The cells in words, a line for each node."""
    found = genotype if isinstance(genotype, Genotype) else Genotype(**genotype)
    lines = [
        f"{name} {n + 2}: " + ", ".join(f"{o} of {i}" for i, o in node)
        for name, cell in (("normal", found.normal), ("reduce", found.reduce))
        for n, node in enumerate(cell)
    ]
    return "\n".join(lines)
