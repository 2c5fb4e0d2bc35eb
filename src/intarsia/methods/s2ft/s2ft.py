"""Structured sparse fine-tuning: train dense slices of weights (S2FT, arXiv:2412.06289)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from ...core import Card, Cell, Method, Paper, Site
from ...core.errors import CheckpointError, ConfigError, ShapeError, TargetError
from ...core.schema import check, setting
from .channels import choose_channels, read, side_of, span

SELECTIONS = ("random", "weight", "activation", "weight_activation", "gradient")
ORDERS = ("largest", "smallest")
ROLES = {"down": "mlp_linear", "up": "mlp_linear", "output": "projection", "value": "qkv"}
# family -> ends of paths; the longest match counts; None = S2FT does not train the layer
_ENDS = {
    "down": ("down_proj", "fc2", "output.dense"),
    "up": ("up_proj", "fc1", "intermediate.dense"),
    "output": ("o_proj", "out_proj", "proj", "attention.output.dense"),
    "value": ("v_proj", "value", "qkv"),
    None: ("gate_proj", "q_proj", "k_proj", "query", "key"),
}
FAMILIES = {end: family for family, ends in _ENDS.items() for end in ends}


@dataclass(frozen=True)
class S2ft(Method):
    """Structured sparse fine-tuning: y = W x + S x[c], or y[c] = (W x)[c] + S x (Yang et al. 2024).

    S is dense and starts at 0; c are the selected channels of a layer. Down and output projections
    train columns: S (d_out, c) acts on the inputs x[c]. Up and value projections train rows:
    S (c, d_in) adds to the outputs c. Only S has gradients and optimiser state. Columns keep only
    x[c] for the backward; rows keep x. Because a fraction counts over all layers, layers get
    different numbers of channels, or none. A layer with an unknown name gets the first fraction
    above 0.

    Raises: ConfigError for fractions outside 0 ... 1, or none above 0; UnknownName for a selection.
    Source: arXiv:2412.06289 and its release, with scripts that train down=0.03, or down=0.02 and
    output=0.052, without weight decay (it would act on S, not on W + S), by AdamW with betas (.9,
    .95) and a rate that falls linearly to 0 after 100 steps of warm-up. `fit` has betas (.9, .999)
    and a cosine, as for every method here; its `optimizer` and `lr_factor` take the published ones.
    Not when accuracy on the new task matters more than keeping the old one: LoRA of the same size
    fits the new task better.
    """

    down: float = setting(
        0.03,
        "The fraction of all MLPs' inner channels that the down-projections train.",
        least=0,
        most=1,
        fix="Try 0.03.",
    )
    output: float = setting(
        0.0,
        "The fraction of all attention heads that the output projections train.",
        least=0,
        most=1,
        fix="Try 0.03.",
    )
    up: float = setting(
        0.0,
        "The fraction of all MLPs' inner channels that the up-projections train.",
        least=0,
        most=1,
        fix="Try 0.03.",
    )
    value: float = setting(
        0.0,
        "The fraction of all attention heads, or of KV groups where queries share keys, that "
        "the value projections train.",
        least=0,
        most=1,
        fix="Try 0.03.",
    )
    selection: str = setting(
        "random",
        'The choice of the channels: "random", by a seed; or by a score of the slice: "weight", '
        'its norm; "activation", the root mean square of its channel; "weight_activation", '
        'their product; "gradient", the norm of its gradient. The last three need data: '
        "`intarsia.methods.choose_channels`.",
        choices=SELECTIONS,
    )
    order: str = setting(
        "largest",
        'The slices that are trained: those with the "largest" or the "smallest" scores.',
        choices=ORDERS,
    )
    channels: tuple[tuple[str, str], ...] = setting(
        (),
        'The selected channels, as (path, "3,7,9-12") pairs, filled in by '
        "`intarsia.methods.choose_channels` and `adapt`; a layer without a pair (an "
        "`IntarsiaConfig` given to PEFT directly) draws single channels.",
    )

    position = "parallel"

    def __post_init__(self) -> None:
        """Refuse settings that cannot be; `channels` are (layer's path, "3,7,9-12") pairs."""
        check(self)
        if not self.shares:
            got = "0 for each of down, output, up and value"
            raise ConfigError("shares", got=got, want="one above 0", fix="Try down=0.03.")
        pairs = tuple((str(path), str(text)) for path, text in self.channels)
        for _, text in pairs:
            read(text)  # refuses a text that is no list of channels
        object.__setattr__(self, "channels", pairs)

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles of layers that have a share."""
        return tuple(dict.fromkeys(ROLES[name] for name in self.shares))

    @property
    def shares(self) -> tuple[str, ...]:
        """The families with a share above 0."""
        return tuple(name for name in ROLES if getattr(self, name))

    def family(self, path: str) -> str | None:
        """Return a layer's family, "down", "up", "output" or "value"; None if it is not trained.

        path: of the layer; its end decides. An unknown name gets the first family with a share.
        """
        # The longest match decides: "attention.output.dense" is no "output.dense".
        ends = [end for end in FAMILIES if f".{path}".endswith(f".{end}")]
        name = FAMILIES[max(ends, key=len)] if ends else self.shares[0]
        return name if name is None or getattr(self, name) else None

    @property
    def paths(self) -> tuple[str, ...]:
        """The layers in which channels are chosen."""
        return tuple(path for path, _ in self.channels)

    def for_host(
        self,
        host: nn.Module,
        batches: Iterable[Any] = (),
        *,
        targets: Sequence[str] | str | None = None,
        layers: Sequence[int] | None = None,
        seed: int = 0,
    ) -> S2ft:
        """Return these settings with the channels to train chosen; unchanged if they have some.

        batches: data for scores by activations or gradients. See `choose_channels`.
        """
        if self.channels:
            return self
        return choose_channels(host, self, batches, targets=targets, layers=layers, seed=seed)

    def build(self, site: Site, *, generator: torch.Generator) -> S2ftCell:
        """Build the cell of a layer: the trained slice S on its selected or drawn channels.

        Raises: TargetError for a layer without a share.
        """
        family = self.family(site.path)
        if family is None:
            got = "a layer with no share of channels in these settings"
            want = "a down, up, output or value projection whose share is above 0"
            fix = "Target other layers, or set its share: S2ft(up=0.03)."
            raise TargetError(f"target {site.path!r}", got=got, want=want, fix=fix)
        return S2ftCell(side_of(family), site, self._channel_numbers(site, family, generator))

    def _channel_numbers(self, site: Site, family: str, generator: torch.Generator) -> list[int]:
        """Return a layer's channel numbers, drawn at random if none were chosen."""
        first, width = span(site, family)
        if (text := dict(self.channels).get(site.path)) is not None:
            ids = read(text)
            if not first <= ids[0] <= ids[-1] < first + width:
                got, want = f"{ids[0]} ... {ids[-1]}", f"{first} ... {first + width - 1}"
                fix = "Choose them on this model: intarsia.methods.choose_channels."
                raise ShapeError(f"channels of {site.path!r}", got=got, want=want, fix=fix)
            return ids
        # without chosen channels: a random share of them, rounded
        if not (count := int(getattr(self, family) * width + 0.5)):
            got = f"{getattr(self, family)} of {width} channels, which selects nothing"
            want = f"at least {0.5 / width:.2g}, one of them"
            raise ConfigError(family, got=got, want=want, fix="Raise the share.")
        return (first + torch.randperm(width, generator=generator)[:count].sort().values).tolist()


ChannelIndex = Tensor | slice  # channel numbers, or a range


def _select_columns(x: Tensor, channels: ChannelIndex) -> Tensor:
    """Return x[..., channels], a view for a range.  (..., n) -> (..., c)."""
    return x[..., channels] if isinstance(channels, slice) else x.index_select(-1, channels)


def _add_product(x: Tensor, channels: ChannelIndex, rows: Tensor, part: Tensor) -> None:
    """Add rows @ part to x[:, channels] in place.  x: (T, n), rows: (T, k), part: (k, c)."""
    if isinstance(channels, slice):
        x[:, channels].addmm_(rows, part)
    else:
        x.index_add_(1, channels, rows @ part)


class LinearWithColumns(torch.autograd.Function):
    """The function y = W x + b + S x[c]; only x[c] is kept for the backward, not all of x.

    S: (d_out, c), c: the selected inputs.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, s: Tensor, channels: ChannelIndex
    ):
        """Compute y = W x + b + S x[c], where c are the selected input channels.

        x: (..., d_in); weight: W (d_out, d_in); bias: b (d_out,) or None; s: S (d_out, c);
          channels: the numbers c, or a range.
        """
        rows = x.reshape(-1, x.shape[-1])  # (T, d_in)
        y = linear(x, weight, bias)  # a new tensor and no view: hosts change it in place (Llama 4)
        # a copy, because a view would keep all of x alive
        inputs_read = _select_columns(rows, channels).contiguous()  # (T, c)
        # y += S x[c]: one product of all rows with a narrow matrix.
        y.view(-1, weight.shape[0]).addmm_(inputs_read, s.T)
        # Autograd may hold tensors alone; a range goes into the context itself.
        ctx.save_for_backward(
            inputs_read, weight, s, *((channels,) if isinstance(channels, Tensor) else ())
        )
        ctx.selected = channels if isinstance(channels, slice) else None
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        """Compute the gradients of x and S from dy (..., d_out); W and b are frozen."""
        inputs_read, weight, s, *index = ctx.saved_tensors
        rows, dx = dy.reshape(-1, dy.shape[-1]), None
        if ctx.needs_input_grad[0]:
            dx = rows @ weight
            _add_product(dx, ctx.selected or index[0], rows, s)
            dx = dx.view(*dy.shape[:-1], weight.shape[1])
        ds = rows.T @ inputs_read if ctx.needs_input_grad[3] else None
        return dx, None, None, ds, None


class LinearWithRows(torch.autograd.Function):
    """The function y = W x + b, then y[c] += S x; the backward of S reads dy[c] and x.

    S: (c, d_in), c: the selected outputs.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, s: Tensor, channels: ChannelIndex
    ):
        """Compute y = W x + b, then y[c] += S x, where c are the selected output channels.

        x: (..., d_in); weight: W (d_out, d_in); bias: b (d_out,) or None; s: S (c, d_in); channels:
          the numbers c, or a range.
        """
        rows = x.reshape(-1, x.shape[-1])
        y = linear(x, weight, bias)
        # y is a new tensor, so that c of its columns can be changed in place.
        _add_product(y.view(-1, weight.shape[0]), channels, rows, s.T)
        ctx.save_for_backward(x, weight, s, *((channels,) if isinstance(channels, Tensor) else ()))
        ctx.selected = channels if isinstance(channels, slice) else None
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        """Compute the gradients of x and S from dy (..., d_out); W and b are frozen."""
        x, weight, s, *index = ctx.saved_tensors
        rows, dx = dy.reshape(-1, dy.shape[-1]), None
        dy_selected = _select_columns(rows, ctx.selected or index[0])  # (T, c)
        if ctx.needs_input_grad[0]:
            # dL/dx = W^T dy + S^T dy[c].
            dx = (rows @ weight).addmm_(dy_selected, s).view_as(x)
        ds = dy_selected.T @ x.reshape(-1, x.shape[-1]) if ctx.needs_input_grad[3] else None
        return dx, None, None, ds, None


class S2ftCell(Cell):
    """The cell of S2FT: S x[c], or S x at the outputs c.  x: (..., d_in) -> (..., d_out).

    `channels` (c,) are a saved buffer. Contiguous channels are sliced instead of indexed. With a
    plain frozen Linear both are computed together, see `LinearWithColumns` and `LinearWithRows`.

    Raises: CheckpointError when loaded `channels` are outside the layer.
    """

    fused: ClassVar[bool] = True

    def __init__(self, side: str, site: Site, ids: list[int]) -> None:
        """Build the slice S, zero at first: (d_out, c) for "inputs", (c, d_in) for "outputs"."""
        super().__init__()
        self.side, self.inputs, self.outputs = side, site.reads, site.outputs
        shape = (site.outputs, len(ids)) if side == "inputs" else (len(ids), site.reads)
        self.weight = nn.Parameter(torch.zeros(shape))
        self.channels: Tensor
        self.register_buffer("channels", torch.tensor(ids, dtype=torch.int64))
        # Contiguous channels are sliced, which is faster than indexing.
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
    def selected(self) -> ChannelIndex:
        """The selected channels: a slice if they are contiguous, else their numbers."""
        return self.channels if self.run is None else self.run

    @torch.no_grad()
    def renumber(self, new: Tensor) -> None:
        """Follow a permutation of the host's channels, in place: channel i is now channel new[i].

        new: (width,). The cell's channels stay sorted, and S follows.
        """
        # Renumbered channels are sorted again, and S follows in the same order.
        ids, order = new.to(self.channels.device)[self.channels].sort()
        axis = 1 if self.side == "inputs" else 0
        self.weight.copy_(self.weight.index_select(axis, order))
        self.channels.copy_(ids)
        self.read_buffers()

    def forward(self, x: Tensor) -> Tensor:
        """Compute the addition to the host module's output.  x: (..., d_in) -> (..., d_out)."""
        x = self.cast(x)
        if self.side == "inputs":
            return linear(_select_columns(x, self.selected), self.weight)
        part = linear(x, self.weight)  # (..., c)
        # Without the fused path the addition is spread over all outputs.
        zeros = part.new_zeros(*part.shape[:-1], self.outputs)
        return zeros.index_add(-1, self.channels, part)

    def around(self, module: nn.Module, x: Tensor) -> Tensor:
        """Compute module(x) plus this cell's addition, in one function where that is possible."""
        tensors = self._fused_tensors(module, x)
        if tensors is None:
            y = module(x)
            return y + self(x).to(y.dtype)
        function = LinearWithColumns if self.side == "inputs" else LinearWithRows
        return function.apply(*tensors, self.selected)

    def _fused_tensors(
        self, module: nn.Module, x: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor] | None:
        """Return x, W, b, S in one dtype, or None where the fused function cannot be used."""
        if type(module) is not nn.Linear or module._forward_hooks or module._forward_pre_hooks:
            return None
        # A trained weight needs the gradient that the fused backward leaves out.
        frozen = not any(p.requires_grad for p in module.parameters())
        learns = torch.is_grad_enabled() and self.weight.requires_grad
        if not (frozen and learns) or torch.compiler.is_compiling() or torch.jit.is_tracing():
            return None
        weight, bias, s = module.weight, module.bias, self.weight
        device = x.device.type
        # Custom functions are not cast by autocast.
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
