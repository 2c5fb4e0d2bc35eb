"""The model as the loop calls it: recomputing, compiled, shared among processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import nn

from ..core.errors import ConfigError
from ..gating import finding_once, having, redraw
from .record import bare
from .settings import Running
from .stack import Seated


@contextmanager
def wrapped(model: nn.Module, running: Running, accelerator: Accelerator) -> Iterator[nn.Module]:
    """The model for training; its settings are restored afterwards.

    Each process draws its own rows of the joined batch's draws. Under `recompute` draws are held
    until the next `redraw`, so that the second computation meets the same experts.
    Raises: ConfigError for recompute on a model that does not offer it.
    """
    shared: dict[str, Any] = {"shard": (accelerator.process_index, accelerator.num_processes)}
    if running.compute.recompute:
        _set_recompute(model, True)
        shared["hold"] = True
    try:
        with having(model, **shared):
            forward = model
            if running.compute.seat is not None:
                forward = Seated(model, running.compute.seat)
            if running.compute.compile:
                forward = cast(nn.Module, torch.compile(model))
            if accelerator.num_processes > 1:
                forward = accelerator.prepare_model(forward)
            with finding_once(model, forward):
                yield forward
    finally:
        redraw(model)
        if running.compute.recompute:
            _set_recompute(model, False)


def _set_recompute(model: nn.Module, on: bool) -> None:
    host = bare(model)
    if hasattr(host, "set_grad_checkpointing"):  # timm
        host.set_grad_checkpointing(on)  # pyright: ignore
    elif hasattr(host, "gradient_checkpointing_enable"):  # transformers
        if on:
            host.gradient_checkpointing_enable({"use_reentrant": False})  # pyright: ignore
        else:
            host.gradient_checkpointing_disable()  # pyright: ignore
    else:
        what, got = f"recompute of {type(host).__name__}", "a model without gradient checkpointing"
        fix = "Leave recompute off, or use a smaller batch."
        raise ConfigError(what, got=got, want="a timm or transformers model", fix=fix)
