"""Structured sparse fine-tuning: train dense slices of weights (S2FT, arXiv:2412.06289)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from ..core import Card, Cell, Paper, Site
from ..core.errors import CheckpointError, ConfigError, ShapeError, TargetError, UnknownName

SELECTIONS = ("random", "weight", "activation", "weight_activation", "gradient")
ORDERS = ("largest", "smallest")
ROLES = {"down": "mlp_linear", "up": "mlp_linear", "output": "projection", "value": "qkv"}
# family -> ends of paths, of which the longest match counts; None = S2FT does not train the layer
_ENDS = {
    "down": ("down_proj", "fc2", "output.dense"),
    "up": ("up_proj", "fc1", "intermediate.dense"),
    "output": ("o_proj", "out_proj", "proj", "attention.output.dense"),
    "value": ("v_proj", "value", "qkv"),
    None: ("gate_proj", "q_proj", "k_proj", "query", "key"),
}
FAMILIES = {end: family for family, ends in _ENDS.items() for end in ends}


def spell(ids: Iterable[int]) -> str:
    """Channel numbers as text, with ranges as "first-last": "3,7,9-12"."""
    runs: list[list[int]] = []
    for i in sorted(ids):
        if runs and runs[-1][1] == i - 1:
            runs[-1][1] = i
        else:
            runs.append([i, i])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def read(text: str) -> list[int]:
    """Parse the text of `spell`.  Raises: ConfigError for other text."""
    ids, fix = list[int](), "Take them from intarsia.choose_channels."
    for run in text.split(","):
        first, _, last = run.partition("-")
        if not (first.isdecimal() and (last or first).isdecimal()) or run.endswith("-"):
            want = "numbers and ranges, such as '3,7,9-12'"
            raise ConfigError("channels", got=repr(text), want=want, fix=fix)
        ids += range(int(first), int(last or first) + 1)
    if not ids or sorted(set(ids)) != ids:
        want = "each channel once, in increasing order"
        raise ConfigError("channels", got=repr(text), want=want, fix=fix)
    return ids


@dataclass(frozen=True)
class S2ft:
    """Structured sparse fine-tuning: y = W x + S x[c], or y[c] = (W x)[c] + S x (Yang et al. 2024).

    S is dense and starts at 0; c are the selected channels of a layer. Down and output projections
    train columns: S (d_out, c) acts on the inputs x[c]. Up and value projections train rows:
    S (c, d_in) adds to the outputs c. Only S has gradients and optimiser state. Columns keep only
    x[c] for the backward; rows keep x.

    down, up: fraction of the inner channels of all MLPs; output, value: fraction of all attention
      heads, or of KV groups where queries share keys. Because a fraction counts over all layers,
      layers get different numbers of channels, or none. A layer with an unknown name gets the first
      fraction above 0.
    selection: "random", by a seed; or by a score of the slice: "weight", its norm; "activation",
      the root mean square of its channel; "weight_activation", their product; "gradient", the norm
      of its gradient. The last three need data: `intarsia.choose_channels`.
    order: train the slices with the "largest" or the "smallest" scores.
    channels: (path, "3,7,9-12") pairs, filled in by `intarsia.choose_channels` and `adapt`. A layer
      without a pair (an `IntarsiaConfig` given to PEFT directly) draws single channels.

    Raises: ConfigError for fractions outside 0 ... 1, or none above 0; UnknownName for a selection.
    Source: arXiv:2412.06289 and its release, whose scripts train down=0.03, or down=0.02 and
    output=0.052, without weight decay (it would act on S, not on W + S).
    Not when accuracy on the new task matters more than keeping the old one: LoRA of the same size
    fits the new task better.
    """

    down: float = 0.03
    output: float = 0.0
    up: float = 0.0
    value: float = 0.0
    selection: str = "random"
    order: str = "largest"
    channels: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        for name in ROLES:
            if not 0 <= (share := getattr(self, name)) <= 1:
                raise ConfigError(name, got=share, want="a share, 0 ... 1", fix="Try 0.03.")
        if not any(getattr(self, name) for name in ROLES):
            got = "0 for each of down, output, up and value"
            raise ConfigError("shares", got=got, want="one above 0", fix="Try down=0.03.")
        if self.selection not in SELECTIONS:
            raise UnknownName("selection", self.selection, SELECTIONS)
        if self.order not in ORDERS:
            raise UnknownName("order", self.order, ORDERS)
        pairs = tuple((str(path), str(text)) for path, text in self.channels)
        for _, text in pairs:
            read(text)
        object.__setattr__(self, "channels", pairs)

    @property
    def roles(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(role for name, role in ROLES.items() if getattr(self, name)))

    @property
    def position(self) -> str:
        return "parallel"

    def family(self, path: str) -> str | None:
        """The family of a layer, "down", "up", "output" or "value"; None if it is not trained."""
        ends = [end for end in FAMILIES if f".{path}".endswith(f".{end}")]
        name = FAMILIES[max(ends, key=len)] if ends else next(n for n in ROLES if getattr(self, n))
        return name if name is None or getattr(self, name) else None

    def build(self, site: Site, *, generator: torch.Generator) -> S2ftCell:
        family = self.family(site.path)
        if family is None:
            got = "a layer with no share of channels in these settings"
            want = "a down, up, output or value projection whose share is above 0"
            fix = "Target other layers, or set its share: S2ft(up=0.03)."
            raise TargetError(f"target {site.path!r}", got=got, want=want, fix=fix)
        return S2ftCell(side_of(family), site, self._ids(site, family, generator))

    def _ids(self, site: Site, family: str, generator: torch.Generator) -> list[int]:
        first, width = span(site, family)
        if (text := dict(self.channels).get(site.path)) is not None:
            ids = read(text)
            if not first <= ids[0] <= ids[-1] < first + width:
                got, want = f"{ids[0]} ... {ids[-1]}", f"{first} ... {first + width - 1}"
                fix = "Choose them on this model: intarsia.choose_channels."
                raise ShapeError(f"channels of {site.path!r}", got=got, want=want, fix=fix)
            return ids
        if not (count := int(getattr(self, family) * width + 0.5)):
            got = f"{getattr(self, family)} of {width} channels, which selects nothing"
            want = f"at least {0.5 / width:.2g}, one of them"
            raise ConfigError(family, got=got, want=want, fix="Raise the share.")
        return (first + torch.randperm(width, generator=generator)[:count].sort().values).tolist()


def side_of(family: str) -> str:
    """Whether a family selects the layer's "inputs" (columns) or "outputs" (rows)."""
    return "inputs" if family in ("down", "output") else "outputs"


def span(site: Site, family: str) -> tuple[int, int]:
    """(first, number) of the selectable channels; a fused layer's values are its last third.

    Raises: TargetError for a fused layer whose outputs are not three equal parts.
    """
    if side_of(family) == "inputs":
        return 0, site.inputs
    if family != "value" or site.path.rpartition(".")[2] != "qkv":
        return 0, site.outputs
    if site.outputs % 3:
        what, got = f"values in the fused layer {site.path!r}", f"{site.outputs} outputs"
        want = "equally many queries, keys and values"
        raise TargetError(what, got=got, want=want, fix="Set value=0.")
    return 2 * site.outputs // 3, site.outputs // 3


At = Tensor | slice  # channel numbers, or a range


def _take(x: Tensor, at: At) -> Tensor:
    """x[..., at]; a view for a range.  (..., n) -> (..., c)."""
    return x[..., at] if isinstance(at, slice) else x.index_select(-1, at)


def _add(x: Tensor, at: At, a: Tensor, b: Tensor) -> None:
    """x[:, at] += a @ b, in place.  x: (T, n), a: (T, k), b: (k, c)."""
    if isinstance(at, slice):
        x[:, at].addmm_(a, b)
    else:
        x.index_add_(1, at, a @ b)


class LinearWithColumns(torch.autograd.Function):
    """y = W x + b + S x[at]; of x, only x[at] is kept for the backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, s: Tensor, at: At):
        rows = x.reshape(-1, x.shape[-1])  # (T, d_in)
        y = linear(rows, weight, bias)  # a new tensor, which may be changed in place
        kept = _take(rows, at).contiguous()  # a view would keep all of x alive
        y.addmm_(kept, s.T)
        ctx.save_for_backward(kept, weight, s, *((at,) if isinstance(at, Tensor) else ()))
        ctx.at = at if isinstance(at, slice) else None
        return y.view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        kept, weight, s, *at = ctx.saved_tensors
        rows, dx = dy.reshape(-1, dy.shape[-1]), None
        if ctx.needs_input_grad[0]:
            dx = rows @ weight
            _add(dx, ctx.at or at[0], rows, s)
            dx = dx.view(*dy.shape[:-1], weight.shape[1])
        ds = rows.T @ kept if ctx.needs_input_grad[3] else None
        return dx, None, None, ds, None


class LinearWithRows(torch.autograd.Function):
    """y = W x + b, then y[at] += S x; the backward of S reads dy[at] and x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, s: Tensor, at: At):
        rows = x.reshape(-1, x.shape[-1])
        y = linear(rows, weight, bias)
        _add(y, at, rows, s.T)
        ctx.save_for_backward(x, weight, s, *((at,) if isinstance(at, Tensor) else ()))
        ctx.at = at if isinstance(at, slice) else None
        return y.view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight, s, *at = ctx.saved_tensors
        rows, dx = dy.reshape(-1, dy.shape[-1]), None
        part = _take(rows, ctx.at or at[0])  # (T, c)
        if ctx.needs_input_grad[0]:
            dx = (rows @ weight).addmm_(part, s).view_as(x)
        ds = part.T @ x.reshape(-1, x.shape[-1]) if ctx.needs_input_grad[3] else None
        return dx, None, None, ds, None


class S2ftCell(Cell):
    """S x[c], or S x at the outputs c and 0 elsewhere.  x: (..., d_in) -> (..., d_out).

    `channels` (c,) are a saved buffer. Contiguous channels are sliced instead of indexed. With a
    plain frozen Linear both are computed together, see `LinearWithColumns` and `LinearWithRows`.

    Raises: CheckpointError when loaded `channels` are outside the layer.
    """

    fused: ClassVar[bool] = True

    def __init__(self, side: str, site: Site, ids: list[int]) -> None:
        super().__init__()
        self.side, self.inputs, self.outputs = side, site.reads, site.outputs
        shape = (site.outputs, len(ids)) if side == "inputs" else (len(ids), site.reads)
        self.weight = nn.Parameter(torch.zeros(shape))
        self.channels: Tensor
        self.register_buffer("channels", torch.tensor(ids, dtype=torch.int64))
        self.run: slice | None = None
        self.read_buffers()

    def read_buffers(self) -> None:
        """Check the channels, and note on the CPU whether they are contiguous."""
        # not in the forward, because reading them from an accelerator waits for its queue
        ids = self.channels
        if ids.is_meta:
            return
        first, last = int(ids[0]), int(ids[-1])
        if int(ids.min()) < 0 or int(ids.max()) >= getattr(self, self.side):
            got, want = (
                f"{int(ids.min())} ... {int(ids.max())}",
                f"0 ... {getattr(self, self.side) - 1}",
            )
            fix = "The file is of another model; copy the folder again."
            raise CheckpointError("channels", got=got, want=want, fix=fix)
        contiguous = bool((ids.diff() == 1).all())
        self.run = slice(first, last + 1) if contiguous else None

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.read_buffers()

    @property
    def at(self) -> At:
        return self.channels if self.run is None else self.run

    @torch.no_grad()
    def renumber(self, new: Tensor) -> None:
        """Follow a permutation of the host's channels, i -> new[i], in place; they stay sorted."""
        ids, order = new.to(self.channels.device)[self.channels].sort()
        axis = 1 if self.side == "inputs" else 0
        self.weight.copy_(self.weight.index_select(axis, order))
        self.channels.copy_(ids)
        self.read_buffers()

    def forward(self, x: Tensor) -> Tensor:
        x = self.cast(x)
        if self.side == "inputs":
            return linear(_take(x, self.at), self.weight)
        part = linear(x, self.weight)  # (..., c)
        zeros = part.new_zeros(*part.shape[:-1], self.outputs)
        return zeros.index_add(-1, self.channels, part)

    def around(self, module: nn.Module, x: Tensor) -> Tensor:
        tensors = self._together(module, x)
        if tensors is None:
            y = module(x)
            return y + self(x).to(y.dtype)
        function = LinearWithColumns if self.side == "inputs" else LinearWithRows
        return function.apply(*tensors, self.at)

    def _together(
        self, module: nn.Module, x: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor] | None:
        """x, W, b, S in one dtype, if the module is a frozen Linear without hooks; else None."""
        if type(module) is not nn.Linear or module._forward_hooks or module._forward_pre_hooks:
            return None
        frozen = not any(p.requires_grad for p in module.parameters())
        learns = torch.is_grad_enabled() and self.weight.requires_grad
        if not (frozen and learns) or torch.compiler.is_compiling() or torch.jit.is_tracing():
            return None
        weight, bias, s = module.weight, module.bias, self.weight
        device = x.device.type
        if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
            x, weight, s = x.to(dtype), weight.to(dtype), s.to(dtype)
            bias = None if bias is None else bias.to(dtype)
        return (x, weight, bias, s) if x.dtype == weight.dtype == s.dtype else None

    def delta(self) -> Tensor:
        zeros = self.weight.new_zeros(self.outputs, self.inputs)
        return zeros.index_add(1 if self.side == "inputs" else 0, self.channels, self.weight)


CARD = Card(
    "s2ft",
    kind="adapter",
    config=S2ft,
    paper=Paper(
        "2412.06289",
        2024,
        "S2FT: Efficient, Scalable and Generalizable LLM Fine-tuning by Structured Sparsity",
    ),
    tags=frozenset({"linear", "folds", "zero_start"}),
    tiny={"down": 0.5},
    summary="Dense slices of the weights: a few channels and heads.",
    family="sparse deltas",
    names=("Structured sparse fine-tuning",),
)
