"""The steps of a decoder's program, with their inputs and outputs; nothing is computed here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor

from ..native import Bound

ACTS = ("silu", "gelu", "gelu_pytorch_tanh", "relu")
SHARES = ("softmax", "softmax_of_chosen", "sigmoid")  # weights of chosen experts


class Value(NamedTuple):
    """Columns `first` ... `first + width - 1` of the rows with a name; a name has one memory."""

    name: str
    width: int
    first: int = 0


class LayerCache(NamedTuple):
    """The keys and values of a layer: (slots, groups, length, size) each, float32 or bfloat16.

    Behind the first `sink` places it is a ring: a text's place p >= sink is kept at
    sink + (p - sink) mod (length - sink).
    """

    keys: Tensor
    values: Tensor
    sink: int = 0


@dataclass(frozen=True)
class EmbedStep:
    """dst = scale table[token].  table: (tokens, width) float32 or bfloat16."""

    dst: Value
    table: Tensor
    scale: float = 1.0


@dataclass(frozen=True)
class NormStep:
    """dst = w (src - m) / sqrt(mean (src - m)^2 + eps), of each `size` numbers of a row.

    weight: (size,), None = 1.  centred: m is their mean, else 0.
    """

    dst: Value
    src: Value
    weight: Tensor | None
    eps: float
    size: int
    centred: bool = False


@dataclass(frozen=True)
class ProductStep:
    """dst = src W^T + bias.

    bound: the weight as its format stores it.  matmul: x (N, in) -> x W^T by torch.
    """

    dst: Value
    src: Value
    bound: Bound
    matmul: Callable[[Tensor], Tensor]
    bias: Tensor | None = None


@dataclass(frozen=True)
class ClipStep:
    """dst = dst, between -limit and limit."""

    dst: Value
    limit: float


@dataclass(frozen=True)
class SquashStep:
    """dst = limit tanh(dst / limit)."""

    dst: Value
    limit: float


@dataclass(frozen=True)
class RotateStep:
    """Rotate the first numbers of each head of dst by the token's place, half against half.

    (a, b) -> (a cos - b sin, b cos + a sin).  cos, sin: (length, numbers that are rotated).
    """

    dst: Value
    heads: int
    cos: Tensor
    sin: Tensor


@dataclass(frozen=True)
class AttendStep:
    """Write key and value into the cache, then dst_h = sum_p softmax_p(scale q_h k_p) v_p.

    p: the token's own place and those before it, or of them the cache's sink and the last `window`;
    window 0 = all.  The heads share the keys of the cache's groups, as many in order.
    limit: of the scores s = scale q_h k_p, which become limit tanh(s / limit); 0 = none.
    idle: (heads,), a further score of each head, of a key with the value 0; None = none.
    """

    dst: Value
    query: Value
    key: Value
    value: Value
    cache: LayerCache
    heads: int
    scale: float
    window: int = 0
    limit: float = 0.0
    idle: Tensor | None = None

    def most_places(self, rows: int) -> int:
        """Return the number of positions that a text can have; 2^62 = no limit.

        rows: the most tokens of a text in one call. Without a limit the cache is a ring, and has to
          keep the keys that the first of these tokens sees until the last one is written.
        """
        length = self.cache.keys.shape[2]
        endless = self.window > 0 and length >= self.cache.sink + self.window + rows - 1
        return 2**62 if endless else length


@dataclass(frozen=True)
class GateStep:
    """dst = act(src) other.  act: of ACTS."""

    dst: Value
    src: Value
    other: Value
    act: str


@dataclass(frozen=True)
class ClampStep:
    """dst_i = g sigmoid(alpha g) (u + 1), g = src_2i up to limit, u = src_2i+1 in -limit ... limit.

    src is twice as wide as dst.
    """

    dst: Value
    src: Value
    alpha: float
    limit: float


@dataclass(frozen=True)
class AddStep:
    """dst = src + other."""

    dst: Value
    src: Value
    other: Value


@dataclass(frozen=True)
class RouteStep:
    """dst_e = the weight of expert e, if its score src_e is one of the `active` best, else 0.

    share: of SHARES, the softmax of all scores or of the chosen experts' scores, or the sigmoid.
    """

    dst: Value
    src: Value
    active: int
    share: str


# steps that an expert may have
ExpertStep = ProductStep | NormStep | ClipStep | GateStep | ClampStep | AddStep


class ExpertReader(Protocol):
    """Protocol of an object that brings the experts of a layer into memory, one after another."""

    def begin(self, experts: list[int]) -> None:
        """Announce the next experts to compute; where it raises, `end` is not called."""

    def bring(self, expert: int) -> None:
        """Put the weights of an expert where the mixture's one program reads them."""

    def end(self) -> None:
        """Let go of all experts; called after an error of `bring` or of a product, too."""


@dataclass(frozen=True)
class MixStep:
    """dst = sum_e gates_e expert_e(src).  Experts with a gate of 0 are not computed.

    rows: the value that a program of an expert reads and overwrites, row by row; dst, src and rows
    have one width. experts: the programs, E of as many steps, products, norms, gates and sums.
    reader: None = all experts are in memory; else it brings each before its products. With one
    program alone for all experts, that has the weights of the expert that was brought last.
    """

    dst: Value
    src: Value
    gates: Value
    rows: Value
    experts: Sequence[Sequence[ExpertStep]]
    reader: ExpertReader | None = None


DecoderStep = ExpertStep | EmbedStep | SquashStep | RotateStep | AttendStep | RouteStep | MixStep
