"""A module in another mode or with another forward for a while, and back."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Generator[None]:
    """Set evaluation mode inside; afterwards every module is in its former mode."""
    with modes_kept(model):
        model.eval()
        yield


@contextmanager
def modes_kept(model: nn.Module) -> Generator[None]:
    """Put every module of a model back into its mode (train or eval) at the end of the block."""
    # each module's own: batch norms of a frozen trunk differ from the rest
    before = {m: m.training for m in model.modules()}
    try:
        yield
    finally:
        for module, mode in before.items():
            module.training = mode


@contextmanager
def without_caches(model: nn.Module) -> Generator[None]:
    """Keep no keys, values or states of a forward for the next one inside the context.

    model: of transformers, with configs that say `use_cache`; others are as they were.
    """
    # each module's own: a decoder may have a copy of the model's
    configs: list[Any] = [getattr(module, "config", None) for module in model.modules()]
    before = [(c, c.use_cache) for c in configs if hasattr(c, "use_cache")]
    try:
        for config, _ in before:
            config.use_cache = False
        yield
    finally:
        for config, use_cache in before:
            config.use_cache = use_cache


@contextmanager
def forward_as(module: nn.Module, forward: Callable[..., Any]) -> Generator[None]:
    """Replace a module's forward inside the context; the module and its hooks stay as they are."""
    attributes = vars(module)
    # a forward of the instance, as accelerate sets one, comes back afterwards
    before = attributes.get("forward")
    attributes["forward"] = forward
    try:
        yield
    finally:
        del attributes["forward"]
        if before is not None:
            attributes["forward"] = before
