"""How the weights of a part lie, where a kernel may rely on it: N of M, or whole blocks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .checks import at_least, between, n_of_m
from .errors import ConfigError, ShapeError


@dataclass(frozen=True)
class NofM:
    """The pattern N:M: a part has exactly n of each m consecutive weights along `axis`.

    n, m: 2 and 4 are what GPUs multiply; axis: of the weight (out, in, ...); -1, the last, and 1
    is the inputs of a linear map.

    Raises: ConfigError unless 1 <= n <= m.
    """

    n: int = 2
    m: int = 4
    axis: int = -1

    def __post_init__(self) -> None:
        at_least("m", self.m, 1)
        between("n", self.n, 1, self.m)

    @classmethod
    def read(cls, text: str, axis: int = -1) -> NofM:
        """Parse a pattern written as "n:m", such as "2:4".

        axis: of the weight along which n of each m entries are in a part; -1 = the last.
        Raises: ConfigError for another text.
        """
        return cls(*n_of_m(text), axis)

    def groups(self, weight: Tensor) -> Tensor:
        """Group a weight's entries by m along the pattern's axis.

        weight: (out, in, ...). Returns (..., length / m, m), with that axis moved to the end.
        Raises: ShapeError for an axis that m does not divide.
        """
        length = weight.shape[self.axis]
        if length % self.m:
            subject = f"axis {self.axis} of a weight of {tuple(weight.shape)}"
            want = f"a multiple of m = {self.m}"
            raise ShapeError(subject, got=length, want=want, fix="Leave this weight out.")
        # groups run along the last axis, whichever axis they are of
        lines = weight.movedim(self.axis, -1)
        return lines.reshape(*lines.shape[:-1], length // self.m, self.m)

    def restored(self, groups: Tensor) -> Tensor:
        """Put groups back into a weight's shape: the inverse of `groups`."""
        return groups.flatten(-2).movedim(-1, self.axis)

    def holds(self, mask: Tensor) -> Tensor:
        """Return for each entry whether its group of m follows the pattern, as bool."""
        groups = self.groups(mask)
        # a group is right or wrong as a whole
        right = groups.sum(-1, keepdim=True) == self.n
        return self.restored(right.expand_as(groups))


@dataclass(frozen=True)
class Blocks:
    """Blocks of rows x columns belong to one part as a whole; None = all there are.

    Blocks(1, None): whole rows (output channels); Blocks(None, 1): whole columns; Blocks(4, 1):
    four rows that share their columns, as kernels of sparse convolutions want it. A weight of more
    than two axes is (out, the rest), a vector is one row.

    Raises: ConfigError for sides below 1.
    """

    rows: int | None = 1
    columns: int | None = None

    def __post_init__(self) -> None:
        at_least("rows", 1 if self.rows is None else self.rows, 1)
        at_least("columns", 1 if self.columns is None else self.columns, 1)

    def groups(self, weight: Tensor) -> Tensor:
        """Return the weights block by block.  (out, in, ...) -> (R, C, rows * columns).

        There are R x C blocks of rows x columns entries.
        Raises: ShapeError for a weight that blocks do not tile.
        """
        # a convolution's kernel positions count as columns
        matrix = weight.flatten(1) if weight.dim() > 1 else weight.reshape(1, -1)
        rows, columns = self._sides(*matrix.shape)
        out, rest = matrix.shape
        if out % rows or rest % columns:
            subject, want = "weight", f"a multiple of blocks of {rows} x {columns}"
            raise ShapeError(
                subject, got=tuple(weight.shape), want=want, fix="Leave this weight out."
            )
        # (R, rows, C, columns) -> (R, C, rows * columns)
        tiled = matrix.reshape(out // rows, rows, rest // columns, columns)
        return tiled.transpose(1, 2).flatten(2)

    def restored(self, groups: Tensor, shape: torch.Size) -> Tensor:
        """Put blocks back into a weight of that shape: the inverse of `groups`."""
        out, rest = (shape[0], shape[1:].numel()) if len(shape) > 1 else (1, shape.numel())
        rows, columns = self._sides(out, rest)
        return groups.reshape(*groups.shape[:2], rows, columns).transpose(1, 2).reshape(shape)

    def holds(self, mask: Tensor) -> Tensor:
        """Return for each entry whether its block is wholly in the part or wholly out of it."""
        groups = self.groups(mask)
        # a block is all in the part or all out of it
        right = groups.all(-1, keepdim=True) | ~groups.any(-1, keepdim=True)
        return self.restored(right.expand_as(groups), mask.shape)

    def _sides(self, out: int, rest: int) -> tuple[int, int]:
        return self.rows or max(1, out), self.columns or max(1, rest)


Pattern = NofM | Blocks
ROWS, COLUMNS = Blocks(1, None), Blocks(None, 1)


def check_pattern(pattern: Pattern, name: str, part: int, mask: Tensor) -> None:
    """Raise ConfigError, with the first place, if the mask of a part breaks its pattern."""
    if mask.numel() and not bool((right := pattern.holds(mask)).all()):
        # the first entry of a group that breaks it
        place = tuple(int(i) for i in (~right).nonzero()[0])
        got = f"part {part}, which breaks it at {place}"
        fix = "Choose the weights by that pattern, or leave pattern=None."
        raise ConfigError(f"pattern of {name!r}", got=got, want=repr(pattern), fix=fix)
