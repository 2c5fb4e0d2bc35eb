"""A linear layer with a weight as a format stores it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..core import Format
from ..core.errors import ConfigError
from ..kernels import native

UNBOUND = ("", (), None)  # build of the kernels, stored tensors, and the kernel call bound to both
UNDECODED = (None, [])  # the dense weight, and the stored tensors it came from with their versions


class PackedLinear(nn.Linear):
    """Linear layer y = x W^T + b, W = decode(stored), multiplied by the format's kernel.

    x: (..., in) -> (..., out). Stored tensors and b are buffers: nothing here is trained, x has a
    gradient. Where there are no kernels the weight is decoded once, and kept until it changes.
    `weight` decodes it again.

    Raises: ConfigError for a stored tensor of the name of something else here.
    """

    def __init__(
        self,
        form: Format,
        stored: Mapping[str, Tensor],
        shape: tuple[int, int],
        bias: Tensor | None = None,
    ) -> None:
        nn.Module.__init__(self)
        self.out_features, self.in_features = shape
        self.form, self.names = form, tuple(stored)
        for name, tensor in stored.items():
            if hasattr(self, name):
                fix = "Give it another name in the format."
                raise ConfigError(
                    f"stored {name!r}", got="a name in use", want="a new one", fix=fix
                )
            self.register_buffer(name, tensor)
        self.register_buffer("bias", None if bias is None else bias.detach().clone())
        self._dense: tuple[Any, list[tuple[Tensor, int]]] = UNDECODED
        self._bound: tuple[str, Any, Any] = UNBOUND

    @property
    def stored(self) -> dict[str, Tensor]:
        """Tensors that the format reads, by name."""
        return {name: self._buffers[name] for name in self.names}  # pyright: ignore

    @property
    def shape(self) -> tuple[int, int]:
        """Shape (out, in) of the weight."""
        return self.out_features, self.in_features

    @property
    def weight(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Decoded weight, (out, in), computed again at each access."""
        return self.form.decode(self.stored, self.shape)

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Compute x W^T + b by the fastest available way; x: (..., in) -> (..., out).

        The ways are a kernel bound to the stored tensors, a product with the decoded weight, and
        the format's own product.
        """
        # fastest first: a kernel bound to the buffers, a dense product, the format's own matmul
        bound = self.product
        if bound is not None and bound.takes(x):
            y = bound(x)
        # without a kernel `matmul` would decode in every call
        elif type(self.form).matmul is Format.matmul or native.load() is None:
            y = x @ self._decoded_once(x).T
        else:
            y = self.form.matmul(x, self.stored, self.shape)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    @property
    def product(self) -> Any:
        """Kernel call bound to the stored tensors, None if there are no kernels.

        Bound again after the buffers or the build of the kernels have changed.
        """
        kind, bound_tensors, bound = self._bound
        buffers = self._buffers
        # buffers are compared by identity: loading or moving a model replaces them
        if kind != native.kind() or any(buffers[n] is not t for n, t in bound_tensors):
            stored = self.stored
            bound = self.form.bound(stored, self.shape)
            self._bound = (native.kind(), tuple(stored.items()), bound)
        return bound

    def _decoded_once(self, x: Tensor) -> Tensor:
        """Return the decoded weight (out, in), with the type and device of x."""
        # torch counts writes to a tensor in _version; tensors of inference mode have none
        sources = [(t, 0 if t.is_inference() else t._version) for t in self.stored.values()]
        dense, cached_sources = self._dense
        unchanged = len(cached_sources) == len(sources) and all(
            t is cached and version == cached_version
            for (t, version), (cached, cached_version) in zip(sources, cached_sources, strict=True)
        )
        if not unchanged or dense.dtype != x.dtype or dense.device != x.device:
            dense = self.weight.to(x)
            self._dense = dense, sources
        return dense

    def _apply(self, fn: Callable[[Any], Any], recurse: bool = True) -> Any:
        """Move the stored tensors to another device, without changing their type."""
        before = self.stored
        super()._apply(fn, recurse)
        for name, tensor in before.items():
            now = self._buffers[name]
            if now is not None and now.dtype != tensor.dtype:
                self._buffers[name] = tensor.to(now.device)
        self._dense, self._bound = UNDECODED, UNBOUND
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._dense, self._bound = UNDECODED, UNBOUND

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_dense": UNDECODED, "_bound": UNBOUND}

    def reset_parameters(self) -> None:
        """Do nothing: the stored tensors are the weight."""

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, {self.form}"


def unpacked(layer: PackedLinear) -> nn.Linear:
    """Decode a packed layer into a plain linear layer with the same weight and bias."""
    weight = layer.weight
    bias = layer.bias
    sizes = layer.in_features, layer.out_features
    # on "meta", so that no weights are drawn that nobody reads
    plain: Any = nn.Linear(*sizes, bias is not None, device="meta")
    plain.weight = nn.Parameter(weight)
    plain.bias = None if bias is None else nn.Parameter(torch.clone(bias).to(weight))
    return plain.train(layer.training)
