"""DARTS's cells: the supernet of all operations, the genotype it finds, and the genotype's net.

DASS (arXiv:2207.06968) has the search space of DARTS (arXiv:1806.09055).
"""

from __future__ import annotations

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
from .dass_gradient import Batch, architecture_gradient
from .dass_picture import Cell, Node, cell_svg

OPERATIONS = ("none", "skip", "max3", "avg3", "sep3", "sep5", "dil3", "dil5")
CHOSEN = 2  # edges of a node in a genotype
STEM = 3  # channels of the stem, as a multiple of the first cell's


@dataclass(frozen=True)
class Genotype:
    """Genotype: for each node of the normal and of the reduction cell its edges.

    An edge is (input, operation); inputs 0 and 1 are the two cells before, 2 is the first node, and
    so on.
    Raises: ConfigError for an unknown operation or input.
    """

    normal: Cell
    reduce: Cell

    def __post_init__(self) -> None:
        """Check every edge, and make tuples of lists, as JSON has them."""
        for name in ("normal", "reduce"):
            cell = tuple(tuple((int(i), str(o)) for i, o in node) for node in getattr(self, name))
            object.__setattr__(self, name, cell)
            for number, node in enumerate(cell):
                for i, operation in node:
                    # node n can read the two inputs of the cell and the n nodes before it
                    if operation not in OPERATIONS or not 0 <= i < number + 2:
                        got, want = (
                            f"({i}, {operation!r})",
                            f"an earlier input, one of {OPERATIONS}",
                        )
                        fix = "Take it from `Supernet.genotype()`."
                        raise ConfigError(f"edge of node {number}", got=got, want=want, fix=fix)

    def to_dict(self) -> dict[str, Any]:
        """Return a dict for JSON, which `Genotype(**d)` reads."""
        return asdict(self)

    def draw(self, path: str | Path | None = None) -> str:
        """Draw both cells as SVG text, and write it to `path` if given."""
        return cell_svg(self.normal, self.reduce, path)

    @classmethod
    def drawn(cls, nodes: int, generator: torch.Generator) -> Genotype:
        """Draw a random genotype: two inputs of each node, and any operation but "none".

        nodes: of each cell; generator: of the draw.
        """

        def cell() -> Cell:
            """Draw the inputs and operations of a cell's nodes."""
            node_list: list[Node] = []
            for number in range(nodes):
                inputs = torch.randperm(number + 2, generator=generator)[:CHOSEN].sort().values
                # operation 0 is "none"
                operation_numbers = torch.randint(
                    1, len(OPERATIONS), (CHOSEN,), generator=generator
                )
                pairs = zip(inputs.tolist(), operation_numbers.tolist(), strict=True)
                node_list.append(tuple((i, OPERATIONS[o]) for i, o in pairs))
            return tuple(node_list)

        return cls(cell(), cell())


class Zero(nn.Module):
    """Operation "none": zeros of the output's size."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return x[..., :: self.stride, :: self.stride] * 0


class Halving(nn.Module):
    """DARTS's factorized reduction: two pointwise convolutions of stride 2, one place apart.

    ReLU before them, batch norm behind them; (B, C, H, W) -> (B, C', H / 2, W / 2), rounded up.
    """

    def __init__(self, inputs: int, outputs: int, affine: bool) -> None:
        super().__init__()
        halves = (nn.Conv2d(inputs, outputs // 2, 1, 2, bias=False) for _ in range(2))
        self.halves = nn.ModuleList(halves)
        self.norm = nn.BatchNorm2d(outputs, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the even places by the first convolution, the odd ones by the second.

        x: (B, C, H, W); an odd side gets a 0 more, where DARTS takes even ones only.
        """
        x = x.relu()
        shifted = F.pad(x, (-1, x.shape[-1] % 2, -1, x.shape[-2] % 2))
        parts = [half(y) for half, y in zip(self.halves, (x, shifted), strict=True)]
        return self.norm(torch.cat(parts, 1))


def operation(name: str, width: int, stride: int, affine: bool) -> nn.Module:
    """Build an operation by name, a module (B, C, H, W) -> (B, C, H / stride, W / stride).

    name: one of OPERATIONS; width: C; stride: 1 or 2; affine: True = the batch norms have weights,
    and pools, which then are chosen ones, have no batch norm.
    """
    norm = partial(nn.BatchNorm2d, width, affine=affine)
    if name == "none":
        return Zero(stride)
    if name == "skip":
        return nn.Identity() if stride == 1 else Halving(width, width, affine)
    if name in ("max3", "avg3"):
        # the padding counts in no mean
        average = nn.AvgPool2d(3, stride, 1, count_include_pad=False)
        pool = nn.MaxPool2d(3, stride, 1) if name == "max3" else average
        # a search compares operations of one size; DARTS leaves the norm out of a chosen pool
        return pool if affine else nn.Sequential(pool, norm())
    kernel, dilation = int(name[3]), 2 if name.startswith("dil") else 1

    # sep: a depthwise and a pointwise convolution, twice; dil: dilated ones, once
    def separable(stride: int) -> list[nn.Module]:
        pad = dilation * (kernel // 2)
        deep = nn.Conv2d(width, width, kernel, stride, pad, dilation, width, bias=False)
        return [nn.ReLU(), deep, nn.Conv2d(width, width, 1, bias=False), norm()]

    return nn.Sequential(*separable(stride), *(separable(1) if dilation == 1 else []))


def projection(inputs: int, outputs: int, affine: bool) -> nn.Module:
    """Build a pointwise convolution between ReLU and batch norm."""
    layer = nn.Conv2d(inputs, outputs, 1, bias=False)
    return nn.Sequential(nn.ReLU(), layer, nn.BatchNorm2d(outputs, affine=affine))


class Mixed(nn.Module):
    """Mixture sum_o softmax(alpha)_o o(x) over all operations."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        operations = (operation(name, width, stride, False) for name in OPERATIONS)
        self.operations = nn.ModuleList(operations)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """Compute the weighted sum of all operations."""
        weighted = (w * o(x) for w, o in zip(weights, self.operations, strict=True))
        return torch.stack(list(weighted)).sum(0)


class SearchedCell(nn.Module):
    """Cell of nodes that sum their edges; the output concatenates all nodes' channels.

    before: channels of the two cells before; width: channels of a node; plan: the edges of each
    node, or the number of nodes, with every edge `Mixed`; place: see `CellPlace`.
    """

    def __init__(
        self, before: tuple[int, int], width: int, plan: Sequence[Node] | int, *, place: CellPlace
    ) -> None:
        super().__init__()
        mixed = isinstance(plan, int)
        nodes = (
            [tuple((i, "") for i in range(n + 2)) for n in range(plan)]
            if isinstance(plan, int)
            else plan
        )
        self.inputs = [[i for i, _ in node] for node in nodes]
        # the cell before the last is twice as large if the last one was a reduction cell
        first = Halving if place.after_reduction else projection
        projections = (
            build(c, width, not mixed) for c, build in zip(before, (first, projection), strict=True)
        )
        self.project = nn.ModuleList(projections)
        self.edges = nn.ModuleList()
        for node in nodes:
            for i, name in node:
                # in a reduction cell the edges from its inputs have stride 2
                stride = 2 if place.reduces and i < 2 else 1
                edge = Mixed(width, stride) if mixed else operation(name, width, stride, True)
                self.edges.append(edge)

    def forward(self, before_last: Tensor, last: Tensor, weights: Tensor | None = None) -> Tensor:
        """Compute the concatenated nodes, (B, nodes * width, H', W').

        before_last, last: outputs of the two cells before, (B, C, H, W) each; weights: (edges,
          operations), of a supernet's operations, None = one operation for each edge.
        """
        states = [p(x) for p, x in zip(self.project, (before_last, last), strict=True)]
        row = 0
        # A node sums its edges, each an operation on an earlier state.
        for inputs in self.inputs:
            results: list[Tensor] = []
            for i in inputs:
                edge = self.edges[row]
                results.append(
                    edge(states[i]) if weights is None else edge(states[i], weights[row])
                )
                row += 1
            states.append(torch.stack(results).sum(0))
        # every node is part of the output
        return torch.cat(states[2:], 1)


@dataclass(frozen=True)
class CellPlace:
    """Place of a cell in the net: whether it, and the cell before it, halve the picture."""

    reduces: bool
    after_reduction: bool


@dataclass(frozen=True)
class CellSizes:
    """Sizes of a net of cells in a row; two of them, at 1/3 and 2/3, are reduction cells.

    Of two cells only the second is one.  classes: outputs; inputs: channels of a picture; channels:
    of the first cell's nodes, doubled by each reduction; nodes: of each cell.
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
    """Net of a stem, cells and a classifier.  (B, inputs, H, W) -> (B, classes)."""

    def __init__(self, sizes: CellSizes, plan_of: Callable[[bool], Any]) -> None:
        """Build stem, cells and classifier; plan_of: takes True for a reduction cell."""
        super().__init__()
        width, reduced = sizes.channels, False
        self.sizes = sizes
        stem = nn.Conv2d(sizes.inputs, STEM * width, 3, padding=1, bias=False)
        self.stem = nn.Sequential(stem, nn.BatchNorm2d(STEM * width))
        self.cells, before = nn.ModuleList(), (STEM * width, STEM * width)
        for number in range(sizes.cells):
            reduces = number in sizes.reductions
            # half the height and width, twice the channels
            width *= 2 if reduces else 1
            place = CellPlace(reduces, reduced)
            self.cells.append(SearchedCell(before, width, plan_of(reduces), place=place))
            before, reduced = (before[1], sizes.nodes * width), reduces
        self.head = nn.Linear(before[1], sizes.classes)

    def weights(self, reduces: bool) -> Tensor | None:
        """Return softmax(alpha) of a kind of cell; None where the operations are chosen."""
        return None

    def forward(self, x: Tensor) -> Tensor:
        """Compute the logits.  x: (B, inputs, H, W) -> (B, classes)."""
        before_last = last = self.stem(x)
        for number, cell in enumerate(self.cells):
            weights = self.weights(number in self.sizes.reductions)
            before_last, last = last, cell(before_last, last, weights)
        return self.head(last.mean((2, 3)))


class ChosenNet(Cells):
    """Net of a genotype, to be trained from scratch.

    Raises: ConfigError if the genotype has another number of nodes than `sizes`.
    """

    def __init__(self, genotype: Genotype, sizes: CellSizes) -> None:
        nodes = {len(genotype.normal), len(genotype.reduce)}
        if nodes != {sizes.nodes}:
            fix = f"Use CellSizes(nodes={len(genotype.normal)})."
            raise ConfigError("nodes", got=sizes.nodes, want=f"{nodes}, as chosen", fix=fix)
        super().__init__(sizes, lambda reduces: genotype.reduce if reduces else genotype.normal)


class Supernet(Cells):
    """Supernet of all operations, weighted by softmax(alpha), which learns on a validation set.

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
        """Build the net of all operations, and draw their weights' logits alpha near 0."""
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
        # alpha of normal and reduction cells: node n has n + 2 edges
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
        """Update the architecture, the logits alpha of the operations, by a step of Adam.

        step: number of the training step, which selects the batches; steps: unused, other modules
          need it.
        """
        if not self.searching or not self.training:
            return
        batches = [self._rows(rows, step) for rows in (self.train_rows, self.val)]
        # alpha has no gradient but here: the optimiser of the weights must not move it
        self.alpha.requires_grad_(True)
        try:
            # `or self.val` is for the type checker alone: val has always a batch
            (gradient,) = architecture_gradient(
                self, [self.alpha], batches[0], batches[1] or self.val, self.xi
            )
        finally:
            self.alpha.requires_grad_(False)
        self._adam(gradient)

    def _rows(self, rows: Batch | None, step: int) -> Batch | None:
        """Draw a batch of (pictures, labels) that depends on the seed and the step only."""
        if rows is None:
            return None
        draw = torch.Generator().manual_seed(mix(self.seed, step))
        index = torch.randperm(len(rows[0]), generator=draw)[: self.batch_size]
        return rows[0][index].to(self.alpha.device), rows[1][index].to(self.alpha.device)

    @torch.no_grad()
    def _adam(self, gradient: Tensor, betas: tuple[float, float] = (0.5, 0.999)) -> None:
        """Do a step of Adam on alpha; its state is in buffers, to be saved with the run."""
        state: Any = self
        gradient = gradient + 1e-3 * self.alpha
        state.steps += 1
        # first and second moments, then the step with bias correction
        state.first.lerp_(gradient, 1 - betas[0])
        state.second.lerp_(gradient.square(), 1 - betas[1])
        first_correction, second_correction = (1 - b ** int(state.steps) for b in betas)
        size = (state.second / second_correction).sqrt_().add_(1e-8)
        self.alpha.sub_(self.lr * state.first / first_correction / size)

    def genotype(self) -> Genotype:
        """Return the genotype of the largest weights: two edges a node, one operation an edge.

        "none" is never chosen.
        """
        cells: list[tuple[Node, ...]] = []
        # cells that keep the size of the picture, then cells that reduce it
        for kind in (False, True):
            best = self.weights(kind).detach()[:, 1:].max(-1)
            # alpha's rows: the edges of all nodes one after another
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
    """Raise DataError for a data set that is not two tensors of equal length."""
    parts: Any = pair if isinstance(pair, tuple | list) and len(pair) == 2 else (None, None)
    x, y = (part if isinstance(part, Tensor) else torch.zeros(0) for part in parts)
    if not len(x) == len(y) > 0:
        got, want = type(pair).__name__, "(pictures, labels), tensors of one length"
        fix = "Stack the samples of a data set: default_collate([*dataset])."
        raise DataError(f"{name} of a supernet", got=got, want=want, fix=fix)


def summary(genotype: Genotype | Mapping[str, Any]) -> str:
    """Describe the cells of a genotype in words, a line for each node.

    genotype: the operations and inputs of all nodes; also as a dict, as JSON has it.
    """
    parsed = genotype if isinstance(genotype, Genotype) else Genotype(**genotype)
    # nodes 0 and 1 are the cell's two inputs
    lines = [
        f"{name} {n + 2}: " + ", ".join(f"{o} of {i}" for i, o in node)
        for name, cell in (("normal", parsed.normal), ("reduce", parsed.reduce))
        for n, node in enumerate(cell)
    ]
    return "\n".join(lines)
