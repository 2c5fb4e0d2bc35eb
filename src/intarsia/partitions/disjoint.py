"""Random disjoint partitions that cover every weight (MoSA, arXiv:2312.02923)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..core import Partition
from ..core.checks import at_least, one_of
from ..core.errors import ShapeError
from ..core.partition import label_dtype
from ..core.pattern import COLUMNS, ROWS

UNITS = ("element", "row", "column", "whole_row", "whole_column")
PATTERNS = {"whole_row": ROWS, "whole_column": COLUMNS}


def random_disjoint(
    shapes: Mapping[str, Sequence[int]],
    parts: int,
    *,
    generator: torch.Generator,
    unit: str = "element",
) -> Partition:
    """Divide the weights of each parameter into `parts` disjoint parts, at random and evenly.

    Units (single weights, or whole rows or columns) are dealt out like cards, in random order, so
    that the parts of a parameter differ by at most one unit. With more parts than units some parts
    are empty. Returns for each parameter the part, 0 ... parts - 1, of each of its weights.

    unit: the things dealt out.
      "element"                    single weights, over the whole parameter
      "row", "column"              single weights, evenly also within every row (column)
      "whole_row", "whole_column"  whole output (input) channels; the result has them as `pattern`
    shapes: parameter name -> shape; a vector counts as one row. generator: source of the draw.
    Raises: ConfigError for parts < 1 or an unknown unit; ShapeError for more than two axes with any
    unit but "element".  Source: MoSA, section on splitting; here with sizes as equal as can be.
    """
    at_least("parts", parts, 1, "One part is no split.")
    one_of("unit", unit, UNITS)
    label = {
        name: _random_labels(tuple(shape), parts, unit, generator).to(label_dtype(parts))
        for name, shape in shapes.items()
    }
    return Partition(label, parts, PATTERNS.get(unit))


def _random_labels(
    shape: tuple[int, ...], parts: int, unit: str, generator: torch.Generator
) -> Tensor:
    """Give each weight of a parameter a random label, each label to equally many weights."""
    # the parts that get one weight more are random
    names = torch.randperm(parts, generator=generator)
    if unit == "element":
        count = torch.Size(shape).numel()
        order = torch.randperm(count, generator=generator)
        dealt = torch.empty(count, dtype=torch.int64)
        dealt[order] = names[torch.arange(count) % parts]
        return dealt.reshape(shape)
    if len(shape) not in (1, 2):
        raise ShapeError(
            f"unit {unit!r}", got=shape, want="a vector or a matrix", fix="Use unit='element'."
        )
    rows, columns = shape if len(shape) == 2 else (1, shape[0])
    if unit.endswith("column"):
        dealt = _labels_of_rows(columns, rows, parts, unit.startswith("whole"), generator).T
    else:
        dealt = _labels_of_rows(rows, columns, parts, unit.startswith("whole"), generator)
    return names[dealt].reshape(shape).contiguous()


def _labels_of_rows(
    rows: int, columns: int, parts: int, whole_rows: bool, generator: torch.Generator
) -> Tensor:
    """Give random labels (rows, columns) int64, each as often as others in every row."""
    if whole_rows:
        order = torch.randperm(rows, generator=generator)
        dealt = torch.empty(rows, dtype=torch.int64)
        dealt[order] = torch.arange(rows) % parts
        return dealt[:, None].expand(rows, columns)
    # each row continues where the previous one stopped, so rows and the total are both even;
    # rows are in random order, because the labels repeat with a period of `parts` rows
    dealt = (torch.arange(rows * columns) % parts).reshape(rows, columns)
    dealt = dealt[torch.randperm(rows, generator=generator)]
    shuffle = torch.rand(rows, columns, generator=generator).argsort(1)
    return dealt.gather(1, shuffle)
