"""What a check says when a method fails it, and the tags that are checked in both directions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..core import Card
from ..core.errors import ConformanceError

Run = Callable[[], None]
# of the largest value: one rounding of each term of a short sum
CLOSE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 6e-2}


class Check(NamedTuple):
    """A law by name, and a call that raises ConformanceError where a method breaks it."""

    name: str
    run: Run

    def __call__(self) -> None:
        self.run()


Checks = Iterator[Check]


def require(holds: bool, card: Card, *, got: object, want: object, fix: str) -> None:
    """Raise ConformanceError unless `holds`."""
    if not holds:
        raise ConformanceError(f"{card.kind} {card.key!r}", got=got, want=want, fix=fix)


def require_tag(card: Card, tag: str, shown: bool, what: str) -> None:
    """The card has `tag` exactly when the method shows what the tag says."""
    require(
        shown or tag not in card.tags, card, got=f"tag {tag!r}, but not {what}", want=what,
        fix=f"Take {tag!r} off the card's tags, or mend the method.",
    )  # fmt: skip
    require(
        not shown or tag in card.tags, card, got=f"{what}, but no tag {tag!r}",
        want=f"the tag {tag!r}", fix=f"Add {tag!r} to the card's tags.",
    )  # fmt: skip


def require_close(got: Tensor, want: Tensor, card: Card, *, what: str, fix: str) -> None:
    """Two tensors of one shape and type that differ by no more than rounding."""
    for name in ("shape", "dtype", "device"):
        ours, theirs = getattr(got, name), getattr(want, name)
        same = ours == theirs
        require(same, card, got=f"{what}: {name} {ours}", want=f"{name} {theirs}", fix=fix)
    if not want.numel():
        return
    limit = CLOSE[want.dtype] * max(1.0, float(want.abs().max()))
    off = float((got - want).abs().max())
    require(off <= limit, card, got=f"{what} that differ by {off:.1e}", want="equal", fix=fix)
