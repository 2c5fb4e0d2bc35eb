"""BDWP: N:M weights in the forward and the backward of a training (arXiv:2309.13015)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, cast, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import Card, NofM, Paper
from ..core.errors import ConfigError, ShapeError
from ..core.modes import forward_as
from ..core.schema import check, setting
from ..partitions.patterns import largest
from .masked_layers import masked_weights

DIRECTIONS = ("both", "forward", "backward")
INPUTS, OUTPUTS = 1, 0  # axes of a weight (out, in, ...); of a transposed convolution's the other


@runtime_checkable
class LayerSchedule(Protocol):
    """A schedule in which layers compute with other weights than the trained ones.

    layers: see `SparseSchedule`.  training: a context in which layers compute so; it gives a
    function to call after the last step, which sets the trained weights to the forward's.
    """

    @property
    def layers(self) -> Sequence[str] | None: ...

    def training(self, model: nn.Module) -> AbstractContextManager[Callable[[], None]]:
        """Let layers compute with other weights inside the `with` block.

        The context gives a function to call after the last step, which sets the trained weights to
        those that the forward uses.
        """
        ...


def n_of_m_mask(weight: Tensor, pattern: NofM) -> Tensor:
    """Return the mask of the n largest |w| of each m along the pattern's axis, bool.

    weight: w, of any shape. Of equal ones the first is kept. A last group of fewer than m weights
      keeps n of them, or all it has.
    """
    size = weight.detach().abs().movedim(pattern.axis, -1)
    # padding of -1 loses against every |w|, so that a short last group keeps its own weights
    padded = F.pad(size, (0, -size.shape[-1] % pattern.m), value=-1.0)
    mask = largest(padded.unflatten(-1, (-1, pattern.m)), pattern.n).flatten(-2)
    return mask[..., : size.shape[-1]].movedim(-1, pattern.axis)


class _StraightThrough(torch.autograd.Function):
    """A tensor with the values of `second`; its gradient goes to `first`."""

    @staticmethod
    def forward(ctx: Any, first: Tensor, second: Tensor) -> Tensor:
        # the value of the second, with the gradient to the first
        return second.view_as(second)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


straight_through: Callable[[Tensor, Tensor], Tensor] = _StraightThrough.apply  # pyright: ignore


@dataclass(frozen=True)
class Bdwp:
    """Layers compute with n of each m weights; all weights are trained, and masks chosen again.

    y = x W_f^T with n of m along the inputs, dx = dy W_b with n of m along the outputs of the same
    dense W, dW = dy^T x for all of W. The largest |w| of a group are kept, at each step. When the
    training is over, W is W_f, with exact zeros.

    fit(model, train, schedule=Bdwp("2:8"))
    Products are 1/3 (n/m + n/m + 1) of a dense training's, on hardware that skips zeros: here a
    step takes longer than a dense one, see `models.sat` for an accelerator's cycles.
    Raises: ConfigError on a pattern or directions that cannot be, at the start for layers that are
    no linear maps or convolutions; ShapeError for axes that m does not divide with pad=False.
    Source: paper, section III. Not for a pretrained model that is to be pruned once: `sparsify`.
    """

    pattern: str = setting("2:8", 'The pattern "n:m", n weights of each m.')
    directions: str = setting(
        "both",
        'The passes that skip weights: "both"; "forward", dx = dy W_f, as SR-STE without its '
        'decay; "backward", where the forward stays dense and so does the model (SDWP).',
        choices=DIRECTIONS,
    )
    pad: bool = setting(True, "Whether a last group may have fewer than m weights.")
    layers: tuple[str, ...] | None = setting(
        None,
        'The layers, as globs of paths, "1x1" for pointwise convolutions; None = all linear '
        "maps and convolutions inside the model's blocks.",
    )

    def __post_init__(self) -> None:
        check(self)
        NofM.read(self.pattern)

    def along(self, axis: int, layer: nn.Module | None = None) -> NofM:
        """Return the setting `pattern`, n of each m, for one axis of a layer's weight.

        axis: INPUTS or OUTPUTS of a weight (out, in, ...); layer: a transposed convolution has its
          weight as (in, out, ...), None = no such layer.
        """
        # a transposed convolution stores (in, out, ...)
        turned = bool(getattr(layer, "transposed", False))
        return NofM.read(self.pattern, 1 - axis if turned else axis)

    def seen(self, layer: Any, axis: int) -> Tensor:
        """Return a layer's weight with only n of each m entries along an axis, the others 0.

        axis: INPUTS gives W_f, which the forward uses; OUTPUTS gives W_b, which the gradient of the
          input uses.
        """
        weight: Tensor = layer.weight
        return weight.detach() * n_of_m_mask(weight, self.along(axis, layer))

    @contextmanager
    def training(self, model: nn.Module) -> Generator[Callable[[], None]]:
        """Let layers compute with n:m sparse weights inside the context.

        model: in training. Yields a function to call after the last step: it sets each weight to
          the sparse one that the forward uses.
        """
        called: set[str] = set()
        layers = {name: self._layer(model, name) for name in masked_weights(model, self.layers)}
        # each layer's forward is replaced, and restored at the end
        with ExitStack() as stack:
            for name, layer in layers.items():
                forward = partial(self._forward, layer, layer.forward, partial(called.add, name))
                stack.enter_context(forward_as(layer, forward))
            yield partial(self._keep_masked, layers, called)

    def _layer(self, model: nn.Module, name: str) -> Any:
        """Return the layer with the weight of this name; check that it can be n:m sparse."""
        path, _, weight = name.rpartition(".")
        layer = model.get_submodule(path)
        if weight != "weight" or not isinstance(layer, nn.Linear | nn.modules.conv._ConvNd):
            want, fix = "linear maps and convolutions", "Name layers=... without it."
            raise ConfigError("layers of bdwp", got=repr(name), want=want, fix=fix)
        # with pad=False every group must be whole
        axes = {"both": (INPUTS, OUTPUTS), "forward": (INPUTS,), "backward": (OUTPUTS,)}
        for axis in axes[self.directions] if not self.pad else ():
            try:
                self.along(axis, layer).groups(layer.weight)
            except ShapeError as error:
                fix = "Use pad=True, or name layers=... without it."
                want = f"multiples of m in {self.pattern}"
                raise ShapeError(f"weight of {path!r}", got=error.got, want=want, fix=fix) from None
        return layer

    def _forward(
        self,
        layer: Any,
        forward: Callable[..., Tensor],
        call: Callable[[], None],
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        """Compute a layer with sparse weights: W_f for its output, W_b for its input's gradient."""
        call()
        weight, forward = cast(Tensor, layer.weight), partial(forward, *args, **kwargs)
        # W_f, or all of W where the forward stays dense
        forward_weight = weight if self.directions == "backward" else self.seen(layer, INPUTS)
        # the forward alone, as in validation: no gradient, so no W_b
        if not torch.is_grad_enabled():
            return _call_with_weight(layer, forward, forward_weight)
        if self.directions == "forward":
            return _call_with_weight(layer, forward, straight_through(weight, forward_weight))
        # two products: the output is W_f's without a graph, the graph is W_b's
        with torch.no_grad():
            y = _call_with_weight(layer, forward, forward_weight)
        # W_b gives dx, and dW goes to all of W
        backward_weight = straight_through(weight, self.seen(layer, OUTPUTS))
        return straight_through(_call_with_weight(layer, forward, backward_weight), y)

    @torch.no_grad()
    def _keep_masked(self, layers: dict[str, Any], called: set[str]) -> None:
        """Set the weights of the layers that were used to W_f, with n of each m weights."""
        # the backward-only variant trains and keeps dense weights
        if self.directions == "backward":
            return
        if uncalled := sorted(layers.keys() - called):
            message = (
                f"Weights that the model reads without calling their layer stay dense: {uncalled}."
            )
            warnings.warn(message, stacklevel=2)
        for name in called:
            layers[name].weight.copy_(self.seen(layers[name], INPUTS))


def _call_with_weight(layer: nn.Module, forward: Callable[[], Tensor], weight: Tensor) -> Tensor:
    """Call a layer's forward with another weight in the place of its own."""
    # past nn.Module's checks: the weight may be a plain tensor here
    parameters: dict[str, Any] = layer._parameters
    before = parameters["weight"]
    parameters["weight"] = weight
    try:
        return forward()
    finally:
        parameters["weight"] = before


CARD = Card(
    "bdwp",
    kind="schedule",
    config=Bdwp,
    paper=Paper(
        "2309.13015",
        2023,
        "Efficient N:M Sparse DNN Training Using Algorithm, Architecture, and Dataflow Co-Design",
    ),
    tiny={"pattern": "1:2"},
    summary="Forward and backward compute with N:M weights; all weights are trained.",
    family="sparse training",
    names=("Bidirectional weight pruning", "N:M sparse training"),
)
