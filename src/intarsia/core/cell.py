"""The addition to a module, and its place."""

from __future__ import annotations

import abc
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .errors import ConfigError
from .method_settings import MethodSettings


@dataclass(frozen=True)
class Site:
    """A place in a host model with a declared input and output width.

    `module` is the host's module at `path` (a Linear, an MLP, a whole block). With `position`
    "parallel" the cell reads the module's input, y = f(x) + cell(x); with "sequential" its output,
    y = f(x) + cell(f(x)). `channels` says which axis carries the width ("last" or "first").
    `norm` holds weight and bias of the host's LayerNorm that feeds the module, if there is one.
    `layers` are the linear maps inside a composite module, (path in it, inputs, outputs) each.
    `norms`: what the host's norms around the module are, "layer", "rms" or "none" of the two.
    """

    path: str
    inputs: int
    outputs: int
    position: str = "parallel"
    channels: str = "last"
    norm: tuple[Tensor, Tensor] | None = None
    layers: tuple[tuple[str, int, int], ...] = ()
    norms: str = "layer"

    @property
    def reads(self) -> int:
        """The width of what the cell reads."""
        return self.inputs if self.position == "parallel" else self.outputs

    def at(self, position: str) -> Site:
        return replace(self, position=position)


@dataclass(frozen=True)
class Units:
    """Hidden units next to an MLP, y = columns act(rows x + bias) + shift.

    rows: (r, inputs), bias: (r,), columns: (outputs, r), shift: (outputs,).
    """

    rows: Tensor
    bias: Tensor
    act: nn.Module
    columns: Tensor
    shift: Tensor


class Cell(nn.Module, abc.ABC):
    """The addition at a site of a host: y = site(x) + cell(x).

    A cell never merges itself into a host; `delta` is its addition. A `whole` cell computes the
    output of the site with its addition (experts of an MLP share its products), by `around`.
    A `fused` cell has an addition of its own, but `around` is the cheaper way next to a Linear.
    """

    whole: ClassVar[bool] = False
    fused: ClassVar[bool] = False

    @abc.abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Compute the addition.  x: (..., inputs) -> (..., outputs)."""

    def around(self, module: nn.Module, x: Tensor) -> Tensor:
        """Compute module(x) + cell(x).  x: (..., inputs) -> (..., outputs)."""
        return module(x) + self(x)

    def weighted(self, x: Tensor, weight: Tensor) -> Tensor:
        """Compute weight_n cell(x_n).  x: (N, reads), weight: (N,) -> (N, outputs)."""
        # linear cells override it: weighting their few inner values is cheaper
        return self(x) * weight[:, None]

    def check(self, module: nn.Module) -> None:
        """Raise TargetError if the cell cannot sit on this module of the host."""

    def delta(self) -> Tensor | None:
        """Return the weight change (outputs, inputs) if the cell is linear in x, else None."""
        return None

    def affine(self) -> tuple[Tensor, Tensor] | None:
        """Return (s, t), both (outputs,), if the cell adds s * y + t to its input y, else None."""
        return None

    def units(self) -> Units | None:
        """Return the hidden units of an MLP that compute the same as this module, None if none do.

        Raises: FoldError where a part of it alone is in the way.
        """
        return None

    def merged(self) -> Cell:
        """Return the deterministic cell that replaces this one after training; mostly itself."""
        return self

    def cast(self, x: Tensor, like: Tensor | None = None) -> Tensor:
        """Return x in the dtype of `like`, or of the parameters; under autocast as it is."""
        device = x.device.type  # the meta device knows no autocast
        # autocast chooses the type of each product itself
        if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
            return x
        like = next(self.parameters(), x) if like is None else like
        return x.to(like.dtype)


class Method(MethodSettings, abc.ABC):
    """Settings of an adapter: where its cells go, and how one is built.

    A subclass has these, and a default for what else a host asks:
    roles: which of the host's modules ("mlp", "attention", "block", "qkv", "qv", "projection",
    "mlp_linear"; "linear", every linear map or convolution in a block, "norm", every norm, and
    "embedding", the layers before and between the blocks); position: "parallel" or "sequential".
    """

    roles: tuple[str, ...]
    position: str

    @abc.abstractmethod
    def build(self, site: Site, *, generator: torch.Generator) -> Cell:
        """Return the trained module that is added at one site, a module of the host model.

        site: that module's path and widths. generator: for all random numbers. A method with
        modules that share state takes it, too, as `shared`.
        """

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths of the sites, in the place of the roles; none leaves it to the roles."""
        return ()

    @property
    def elsewhere(self) -> Method | None:
        """The settings for a host that has no place for these; None if there are none."""
        return None

    @property
    def shares_state(self) -> bool:
        """True if the cells of a model share state, which `shared_state` makes."""
        return False

    def shared_state(self, sites: Sequence[Site], *, generator: torch.Generator) -> nn.Module:
        """Return the state that the adapters of one model share, as a module; here, none do.

        sites: all host modules that get an adapter; generator: for random numbers.
        Raises: ConfigError for a method with adapters that share nothing.
        """
        want, fix = "a method whose cells share state", "Ask `shares_state` first."
        raise ConfigError("shared state", got=type(self).__name__, want=want, fix=fix)

    def for_host(
        self,
        host: nn.Module,
        batches: Iterable[Any] = (),
        *,
        targets: Sequence[str] | str | None = None,
        layers: Sequence[int] | None = None,
        seed: int = 0,
    ) -> Method:
        """Return settings completed with what the method decides from a whole model; here, self.

        A method overrides it that, for example, spreads a budget over the layers of a model. host:
        the model. batches: inputs to calibrate on. targets: names of the modules to adapt, None =
        the method's own. layers: numbers of the blocks, None = all. seed: of random draws. Most
        methods use none.
        """
        return self

    def check_sites(self, paths: Sequence[str]) -> None:
        """Raise UnknownName if the settings name a site that gets no cell."""
