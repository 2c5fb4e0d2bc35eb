"""The interface by which transformers hands tokens to the experts of its sparse models.

The experts of some 75 architectures are modules with the forward f(self, hidden (T, d),
index (T, k), weights (T, k)), looked up by name (`model.set_experts_implementation`). Recording
listens there, offloading is such a function, and no model is patched.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..core.errors import TargetError
from ..core.foreign import config_of

FLAGS = ("is_concatenated", "is_transposed", "has_bias", "has_gate")


@dataclass(frozen=True)
class StockExperts:
    """The experts of one layer: E of width d and h hidden units, with or without a gate."""

    path: str
    module: nn.Module
    experts: int
    width: int
    hidden: int
    gated: bool


def stock_experts(model: nn.Module) -> dict[str, StockExperts]:
    """Return a model's layers of experts that transformers calls through its interface, by path.

    Raises: TargetError for experts that are not fused into one tensor for each matrix.
    """
    stock: dict[str, StockExperts] = {}
    for path, module in model.named_modules():
        if all(hasattr(module, flag) for flag in FLAGS) and config_of(module) is not None:
            stock[path] = _read(path, module)
    return stock


def _read(path: str, module: Any) -> StockExperts:
    """Read the sizes of a transformers module of experts."""
    # down_proj of E experts: (E, d, h) or, transposed, (E, h, d)
    down = getattr(module, "down_proj", None)
    if not isinstance(down, Tensor) or down.dim() != 3:
        got, want = f"{type(module).__name__} without a 3-D down_proj", "experts in one tensor"
        fix = "Use a transformers version and model whose experts are fused."
        if down is not None and not isinstance(down, Tensor):  # read from disk
            got, want = "experts on disk", "experts in memory"
            fix = "Do this with the whole model, before intarsia.offload."
        raise TargetError(f"experts at {path!r}", got=got, want=want, fix=fix)
    experts, a, b = down.shape
    width, hidden = (b, a) if module.is_transposed else (a, b)
    return StockExperts(path, module, experts, width, hidden, bool(module.has_gate))


def arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the three arguments of a call of experts: hidden (T, d), index and weights (T, k).

    args, kwargs: the arguments as they were passed, by position or by name; index: the k experts of
      each token.
    """
    values: Iterable[Any] = (*args, *kwargs.values())
    hidden, index, weights = list(values)[:3]
    return hidden, index, weights
