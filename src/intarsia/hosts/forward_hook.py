"""What happens before every forward of a host with routers."""

from __future__ import annotations

import contextlib
import inspect
from typing import Any

import torch
from torch import Tensor, nn

from ..gating import check_task_ids, learned_routers, set_valid, start
from ..routers import leave_ids


def before_forward(host: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
    """Draw anew, forget states and losses, and tell routers of tasks, padding and ids."""
    start(host)
    for router in learned_routers(host).values():
        router.last = None  # a router that this forward does not reach has no losses
    given = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)]
    check_task_ids(host, given[0] if given else None)
    if len(args) > 1:  # a mask may be among them
        with contextlib.suppress(TypeError):  # the forward itself will say what is wrong
            bound = inspect.signature(host.forward).bind_partial(*args, **kwargs).arguments
            kwargs = {**bound, **kwargs}  # what **kwargs takes is bound under that one name
    mask = kwargs.get("attention_mask")
    set_valid(host, mask if isinstance(mask, Tensor) and mask.dim() == 2 else None)
    ids = kwargs.get("input_ids", args[0] if args else None)
    if not isinstance(ids, Tensor) or ids.dtype != torch.int64 or ids.dim() != 2:
        ids = None
    leave_ids(host, ids)
