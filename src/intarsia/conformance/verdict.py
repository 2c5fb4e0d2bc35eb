"""Laws as checks: the error of a broken law, tags, and declared exceptions."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from types import FunctionType
from typing import NamedTuple

import torch
from torch import Tensor

from ..core import Card
from ..core.errors import ConformanceError, IntarsiaError

Law = Callable[[Card], None]
# of the largest value: one rounding of each term of a short sum
CLOSE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 6e-2}


class Check(NamedTuple):
    """A law by name, and a call that raises ConformanceError where a method breaks it.

    The call returns None where the law holds, and the reason where the card declares that it does
    not. A declared exception to a law that holds raises, too.
    """

    name: str
    run: Callable[[], str | None]

    def __call__(self) -> str | None:
        return self.run()


Checks = Iterator[Check]


class Broken(Exception):
    """The error of a law that a method breaks: the value, the wanted one, and how to mend it."""

    def __init__(self, got: object, want: object, fix: str) -> None:
        super().__init__(got, want, fix)
        self.got, self.want, self.fix = got, want, fix


def laws_of(module: str) -> tuple[Law, ...]:
    """Return the laws of a module: its public functions `(card: Card) -> None`, in order.

    A law tests the method of a card, an entry of the catalogue, and raises Broken if the method
    breaks it.
    """
    law = {"card": "Card", "return": "None"}
    functions = [f for f in vars(sys.modules[module]).values() if isinstance(f, FunctionType)]
    functions = [f for f in functions if f.__module__ == module and f.__annotations__ == law]
    return tuple(f for f in functions if not f.__name__.startswith("_"))


def checks(card: Card, laws: Iterable[Law]) -> Checks:
    """Yield a named check of the declared exceptions, then one for each law of a method."""
    by_name = {law.__name__: law for law in laws}
    yield Check("names_its_exceptions", partial(_names_its_exceptions, card, by_name))
    for name, law in by_name.items():
        yield Check(
            name, partial(_run_excepted_law if name in card.exceptions else _run_law, card, law)
        )


def _run_law(card: Card, law: Law) -> None:
    try:
        law(card)
    except Broken as broken:
        # the error names the method and the law
        raise _error(card, law.__name__, broken) from broken


def _run_excepted_law(card: Card, law: Law) -> str:
    """Test that a method breaks a law that its card excepts; return the card's reason."""
    reason = card.exceptions[law.__name__]
    try:
        law(card)
    except Exception:  # a fault may also break the code that is called
        return reason
    holds = Broken(
        f"the exception {reason!r} to a law that holds now",
        "an exception to a broken law",
        "Take it off the card's exceptions.",
    )
    raise _error(card, law.__name__, holds)


def _names_its_exceptions(card: Card, laws: Iterable[str]) -> None:
    wrong = [name for name, reason in card.exceptions.items() if name not in laws or not reason]
    if wrong:
        want, fix = f"laws of a {card.kind}, each with a reason", f"They are {', '.join(laws)}."
        raise _error(card, "names_its_exceptions", Broken(f"exceptions to {wrong}", want, fix))


def _error(card: Card, law: str, broken: Broken) -> ConformanceError:
    name = f"{card.kind} {card.key!r}: {law}"
    return ConformanceError(name, got=broken.got, want=broken.want, fix=broken.fix)


def require(holds: bool, got: object, want: object, fix: str) -> None:
    """Raise Broken unless a condition holds.  got, want, fix: text of the error."""
    if not holds:
        raise Broken(got, want, fix)


def require_equal(got: object, want: object, fix: str) -> None:
    """Raise Broken unless two values, such as shapes, dtypes or names, are equal."""
    require(got == want, got, want, fix)


def require_finite(values: Tensor, name: str, fix: str) -> None:
    """Require that no value is infinite or NaN.  name, fix: text of an error."""
    require(bool(values.isfinite().all()), f"{name} that are not finite", "numbers", fix)


def require_refused(call: Callable[[], object], got: str, want: str, fix: str) -> None:
    """Raise Broken unless a call without arguments raises an error of this library."""
    try:
        call()
    except IntarsiaError:
        return
    raise Broken(got, want, fix)


def require_tag(card: Card, tag: str, observed: bool, behaviour: str) -> None:
    """Raise Broken where a card has a tag and the method behaves otherwise, or has it not."""
    if tag in card.tags:
        fix = f"Take {tag!r} off the card's tags, or mend the method."
        require(observed, f"tag {tag!r}, but not {behaviour}", behaviour, fix)
    else:
        fix = f"Add {tag!r} to the card's tags."
        require(not observed, f"{behaviour}, but no tag {tag!r}", f"the tag {tag!r}", fix)


def require_close(got: Tensor, want: Tensor, quantity: str, fix: str) -> None:
    """Raise Broken unless two tensors have one shape, dtype and device, and nearly equal values."""
    for name in ("shape", "dtype", "device"):
        ours, theirs = getattr(got, name), getattr(want, name)
        require(ours == theirs, f"{quantity}: {name} {ours}", f"{name} {theirs}", fix)
    if not want.numel():
        return
    # rounding grows with the largest value
    limit = CLOSE[want.dtype] * max(1.0, float(want.abs().max()))
    off = float((got - want).abs().max())
    require(off <= limit, f"{quantity} that differ by {off:.1e}", "equal", fix)
