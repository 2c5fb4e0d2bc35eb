"""Laws of a format: its stored data stand for the weight, are counted whole, and multiply."""

from __future__ import annotations

import json

import safetensors.torch
import torch
from torch import Tensor

from ..core import Card, Format
from ..core.errors import IntarsiaError
from ..core.format import Stored, nbytes
from .cards import CARD_LAWS, tiny
from .made import normal, read_again, seeded
from .verdict import (
    Law,
    laws_of,
    require,
    require_close,
    require_equal,
    require_finite,
    require_refused,
    require_tag,
)

# odd sizes break packing by two or eight, empty ones every maximum
SHAPES = ((5, 7), (1, 7), (3, 1), (4, 2, 3, 3), (7,), (0, 4), (4, 0))
DTYPES = (torch.float32, torch.float64, torch.bfloat16)


def weight(shape: tuple[int, ...] = (5, 7), dtype: torch.dtype = torch.float32) -> Tensor:
    """Return normal numbers of this shape, every third of them 0."""
    drawn = normal(*shape)
    return drawn.flatten().where(torch.arange(drawn.numel()) % 3 > 0, 0.0).view(shape).to(dtype)


def is_a_format(card: Card) -> None:
    """Check that the config is a `Format`."""
    got = type(tiny(card)).__name__
    require(isinstance(tiny(card), Format), got, "a Format", "Derive it from Format.")


def keeps_shape_and_dtype(card: Card) -> None:
    """Check that a decoded weight has the original's shape and dtype, also if it is empty."""
    for shape in SHAPES:
        for dtype in DTYPES:
            w = weight(shape, dtype)
            decoded = _round(tiny(card), w)
            # also of weights in another type than the format computes in
            got = tuple(decoded.shape), decoded.dtype
            require_equal(got, (shape, dtype), "Store what the type was, or is.")
            require_finite(decoded, f"weights {shape}", "Guard the division.")


def leaves_the_weight_alone(card: Card) -> None:
    """Check that the format's encode does not write to the weight, and keeps no view of it."""
    w = weight()
    stored = tiny(card).encode(w)
    require(torch.equal(w, weight()), "a weight written to", "it as given", "Copy it.")
    before = tiny(card).decode(stored, w.shape).clone()
    # a view of the weight would change with it
    w.zero_()
    require_close(tiny(card).decode(stored, w.shape), before, "what is stored", "Copy it.")


def exact_exactly_when_tagged(card: Card) -> None:
    """Check that the card has the tag "exact" exactly if the format gives every weight back."""
    # also empty weights, and weights of one row
    exact = all(torch.equal(_round(tiny(card), w).to(w), w) for w in _weights())
    require_tag(card, "exact", exact, "every weight given back")


def errs_less_than_a_constant(card: Card) -> None:
    """Check that a decoded weight is at least as close to the original as its mean would be."""
    for w in _weights():
        off = float((_round(tiny(card), w).to(w) - w).square().sum())
        # a format that stores nothing but the mean errs as much as this
        limit = float((w - w.mean()).square().sum()) if w.numel() else 0.0
        got, want = f"a squared error of {off:.3g} at {tuple(w.shape)}", f"at most {limit:.3g}"
        require(off <= limit * (1 + 1e-4) + 1e-9, got, want, "Store the mean at least.")


def moves_less_the_second_time(card: Card) -> None:
    """Check that storing a decoded weight again changes it no more than the first time."""
    for w in _weights():
        # a projection on the format's numbers does not move weights that are among them
        once = _round(tiny(card), w).to(w)
        first, second = (once - w).norm(), (_round(tiny(card), once).to(w) - once).norm()
        require(
            bool(second <= first * (1 + 1e-4) + 1e-6),
            f"{float(second):.3g} the second time",
            f"at most the {float(first):.3g} of the first",
            "Choose the codes nearest to the weight.",
        )


def survives_safetensors(card: Card) -> None:
    """Check that the format's tensors decode to the same bits after a safetensors file."""
    for shape in SHAPES:
        stored = tiny(card).encode(weight(shape))
        again = tiny(card).decode(read_again(stored), shape)
        # bits, not values: a rounding on the way would show
        equal = torch.equal(again, tiny(card).decode(stored, shape))
        require(equal, f"other bits of {shape}", "the same", "Store all that decides.")


def counts_the_bytes_of_its_file(card: Card) -> None:
    """Check that `nbytes` is the size in bytes of a safetensors file, without the file's header."""
    stored: Stored = tiny(card).encode(weight())
    file = safetensors.torch.save(dict(stored))
    # the file's header is no part of the weight
    header = 8 + int.from_bytes(file[:8], "little")
    names = json.loads(file[8:header]).keys() - {"__metadata__"}
    got, want = nbytes(stored), len(file) - header
    holds = got == want and names == stored.keys()
    require(holds, f"{got} bytes counted", f"the {want} of the file", "Store plain tensors.")


def multiplies_as_it_decodes(card: Card) -> None:
    """Check that matmul gives x W^T, and its gradient in x, with W the decoded weight."""
    w = weight()
    stored, plain = tiny(card).encode(w), _round(tiny(card), w)
    for rows in ((3,), (2, 0), (2, 4)):
        x = normal(*rows, 7, seed=2)
        ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
        y, want = tiny(card).matmul(ours, stored, w.shape), theirs @ plain.to(x).T
        require_close(y.detach(), want.detach(), "products", "Compare with decode.")
        y.square().sum().backward()
        want.square().sum().backward()
        assert theirs.grad is not None
        got = torch.zeros_like(x) if ours.grad is None else ours.grad
        require_close(got, theirs.grad, "gradients in x", "Do not detach x.")


def keeps_what_it_is_told_or_refuses(card: Card) -> None:
    """Check that the format decodes weights outside `keep` to 0, or refuses a mask."""
    w = weight()
    keep = torch.rand(w.shape, generator=seeded(3)) < 0.5
    try:
        decoded = tiny(card).decode(tiny(card).encode(w, keep=keep), w.shape)
    # a format without zeros refuses a mask
    except IntarsiaError:
        return
    zero = not bool(decoded[~keep].any())
    require(zero, "weights that are not kept", "0 there", "Heed `keep`, or refuse it.")
    some = bool(decoded[keep].any())
    require(some, "nothing of what is kept", "it", "`keep` is True where kept.")


def refuses_another_shape(card: Card) -> None:
    """Check that the format does not decode a stored weight to another size."""
    stored = tiny(card).encode(weight())
    # ten times as many rows, so that every stored tensor is too short
    call, fix = lambda: tiny(card).decode(stored, (50, 7)), "Compare the sizes in decode."
    require_refused(call, "a weight ten times as large", "a ShapeError", fix)


def _weights() -> list[Tensor]:
    return [weight(shape) for shape in SHAPES]


def _round(stores: Format, w: Tensor) -> Tensor:
    """Encode a weight with a format, and return it decoded.  stores: the format; w: the weight."""
    return stores.decode(stores.encode(w), w.shape)


LAWS: tuple[Law, ...] = (*CARD_LAWS, *laws_of(__name__))
