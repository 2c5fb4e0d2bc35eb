"""Which patches of a picture each expert of a union takes (2503.02495)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...core import Routing
from ...core.errors import TargetError
from ...core.modes import evaluating
from ...routers.union import UnionRouter


def has_unions(model: nn.Module) -> bool:
    """Say if `UnionOfExperts` has cut a part of the model."""
    return any(isinstance(module, UnionRouter) for module in model.modules())


@torch.no_grad()
def taken_patches(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Record which patches of pictures the experts of each attention and MLP take.

    model: one that `UnionOfExperts` cut; x: (B, 3, H, W), as the model takes it.
    Returns path -> (B, experts, rows, columns) bool; the class token, which every expert takes, is
    left out.
    Raises: TargetError for a model without unions, or without a grid of patches.
    """
    routers = {p: m for p, m in model.named_modules() if isinstance(m, UnionRouter)}
    grid = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    if not routers or grid is None:
        got = "no union of experts" if not routers else "no grid of patches"
        fix = "Call it on a ViT of timm that UnionOfExperts has changed."
        raise TargetError("model", got=got, want="a ViT that was cut", fix=fix)
    rows, columns = grid
    patches: dict[str, Tensor] = {}

    def keep(path: str) -> Any:
        """Return a hook that records which patches the experts of a router take."""

        def hook(router: UnionRouter, _inputs: Any, routing: Routing) -> None:
            """Record which patches each expert has selected, (B, experts, rows, columns) bool."""
            selected = torch.zeros(routing.tokens, router.experts, dtype=torch.bool)
            selected[routing.token.cpu(), routing.expert.cpu()] = True
            # the last rows x columns tokens are the patches, behind class and register tokens
            selected = selected.view(len(x), -1, router.experts)[:, -rows * columns :]
            patches[path] = selected.transpose(1, 2).unflatten(2, (rows, columns))

        return hook

    hooks = [router.register_forward_hook(keep(path)) for path, router in routers.items()]
    try:
        with evaluating(model):
            model(x)
    finally:
        for hook in hooks:
            hook.remove()
    # named after the attention or MLP, not after its router
    return {path.removesuffix(".router"): patches[path] for path in routers}
