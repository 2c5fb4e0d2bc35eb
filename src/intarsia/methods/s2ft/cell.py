"""The cell of S2FT: dense slices S of a weight, on selected channels (arXiv:2412.06289)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from ...core import Cell, Site
from ...core.errors import CheckpointError

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

        ctx: autograd's context; x: (..., d_in); weight: W (d_out, d_in); bias: b (d_out,) or None;
          s: S (d_out, c); channels: the numbers c, or a range.
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
        """Compute the gradients of x and S from dy (..., d_out); W and b are frozen.

        ctx: what the forward saved: x[c], W, S and c. None for arguments without a gradient.
        """
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

        ctx: autograd's context; x: (..., d_in); weight: W (d_out, d_in); bias: b (d_out,) or None;
          s: S (c, d_in); channels: the numbers c, or a range.
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
        """Compute the gradients of x and S from dy (..., d_out); W and b are frozen.

        ctx: what the forward saved: x, W, S and c. None for arguments without a gradient.
        """
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
        """Build the slice S, which starts at 0.

        side: "inputs", where S is (d_out, c), or "outputs", where it is (c, d_in); site: the host
          module, with its widths d_in and d_out; ids: the c selected channels.
        """
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
        """Compute module(x) plus this cell's addition, in one function where that is possible.

        module: the host module; x: (..., d_in), its input.
        """
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
