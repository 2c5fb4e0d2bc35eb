"""Which experts the tokens of each modality have: a table of each router."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ...core.errors import ConfigError
from ...core.modes import evaluating
from ...gating import Router, learned_routers
from ...gating.context import MODALITIES
from ...hosts.anatomy.compare import call


@torch.no_grad()
def modality_loads(model: nn.Module, batches: Iterable[Any]) -> dict[str, Tensor]:
    """Count the tokens of each modality that each expert gets in evaluation, see `expert_loads`.

    Returns path of each router -> (modalities, experts) int64, in the order of `MODALITIES`.
    Raises: ConfigError for no batch, a model without routers, or one that does not say which
    modality a token is of.
    """
    routers, passes = learned_routers(model), 0
    # routers inside another router route nothing themselves
    routers = {p: r for p, r in routers.items() if not any(p.startswith(f"{q}.") for q in routers)}
    loads = {
        p: torch.zeros(len(MODALITIES), r.experts, dtype=torch.int64) for p, r in routers.items()
    }

    def count(path: str) -> Any:
        """Return a hook that counts the tokens of the router at a path."""

        def hook(router: Router, _inputs: Any, routing: Any) -> None:
            """Count the tokens of each modality that a router has sent to each expert."""
            modality = router.context.modality
            if modality is None:
                fix = "Apply Modalities to the model, and give it rows of its processor."
                want = "the modality of each token"
                raise ConfigError("loads by modality", got="none", want=want, fix=fix)
            # one number for each (modality, expert), so that bincount counts both at once
            row = modality.flatten().to(routing.token.device)[routing.token] * router.experts
            counts = (row + routing.expert).bincount(minlength=loads[path].numel())
            loads[path] += counts.view(loads[path].shape).cpu()

        return hook

    hooks = [router.register_forward_hook(count(path)) for path, router in routers.items()]
    try:
        with evaluating(model):
            for batch in batches:
                call(model, batch[0] if isinstance(batch, (tuple, list)) else batch)
                passes += 1
    finally:
        for hook in hooks:
            hook.remove()
    if not (loads and passes):
        got, fix = f"{passes} batches for {len(loads)} routers", "Give a few batches, and routers."
        raise ConfigError("loads", got=got, want="at least one of each", fix=fix)
    return loads
