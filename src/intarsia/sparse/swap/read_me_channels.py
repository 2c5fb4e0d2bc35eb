"""Which hidden units of a dense model's MLPs each kind of text uses (Read-ME, arXiv:2410.19123)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ...core.checks import above, at_least, between
from ...core.errors import DataError, TargetError
from ...core.modes import evaluating
from ...hosts.anatomy.blocks import blocks
from ...hosts.anatomy.dense_mlp import DenseMlp, dense_mlp, mlp_place
from .upcycle import check_unadapted

Batch = Mapping[str, Tensor]
Masks = Mapping[str, Tensor]  # path of the MLP -> (E, h) bool


def mlps(model: nn.Module) -> dict[str, DenseMlp]:
    """Return the MLPs of a dense language model, by path.

    Raises: TargetError for a model without MLPs that are modules of their own.
    """
    check_unadapted(model)
    dense_mlps: dict[str, DenseMlp] = {}
    for path, block in blocks(model):
        place = mlp_place(block)
        if place is None or place.emptied:
            got, fix = f"a {type(block).__name__} at {path!r}", "Use Llama, Qwen or the like."
            raise TargetError("model to extract from", got=got, want="an MLP of its own", fix=fix)
        dense_mlps[f"{path}.{place.path}"] = dense_mlp(path, place.mlp)
    if not dense_mlps:
        got, fix = f"a {type(model).__name__} without blocks", "Use Llama, Qwen or the like."
        raise TargetError("model to extract from", got=got, want="a language model", fix=fix)
    return dense_mlps


@torch.no_grad()
def channel_use(model: nn.Module, batches: Sequence[Batch]) -> dict[str, Tensor]:
    """Compute the mean magnitude of every MLP's hidden units over texts; path -> (h,) float64.

    The hidden units are the input of the MLP's last layer. Padding does not count.
    Raises: DataError for no tokens.
    """
    total: dict[str, Tensor] = {}
    count = 0
    for batch in batches:
        mask = batch.get("attention_mask")
        with evaluating(model), hidden_units(model) as hidden:
            model(**batch)
        # padded tokens would lower the mean
        keep = None if mask is None else mask.flatten().bool()
        for path, h in hidden.items():
            rows = h.flatten(0, -2) if keep is None else h.flatten(0, -2)[keep]
            total[path] = total.get(path, 0) + rows.double().abs().sum(0)
        count += batch["input_ids"].numel() if keep is None else int(keep.sum())
    if not count:
        raise DataError("text of a domain", got="no tokens", want="some", fix="Give a few rows.")
    return {path: use / count for path, use in total.items()}


@contextmanager
def hidden_units(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Record the newest hidden units of each MLP, in every forward inside the `with`.

    Yields a dictionary that forwards update: path -> (B, T, h), the input of the MLP's last layer.
    """
    hidden: dict[str, Tensor] = {}

    def keep(path: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            hidden[path] = inputs[0].detach()

        return hook

    hooks = [
        # what the last layer of an MLP reads are its hidden units
        dense.down.register_forward_pre_hook(keep(path))
        for path, dense in mlps(model).items()
    ]
    try:
        yield hidden
    finally:
        for hook in hooks:
            hook.remove()


def channel_masks(
    model: nn.Module, domains: Mapping[str, Sequence[Batch]], density: float = 0.5
) -> dict[str, Tensor]:
    """Choose, in every MLP, the hidden units that each kind of text uses most.

    domains: name -> batches of text; density: share of the h units that are chosen for each,
    rounded.
    Returns path -> (E, h) bool, a row for each domain, in their order.
    Raises: ConfigError for no domain, or a density outside 0 ... 1; DataError for an empty one.
    Source: arXiv:2410.19123, section 3.1.
    """
    at_least("domains", len(domains), 1)
    above("density", density, 0, "Try 0.5.")
    between("density", density, 0, 1, "Try 0.5.")
    # one pass over the data of each domain
    use = [channel_use(model, batches) for batches in domains.values()]
    return {
        path: torch.stack(
            [
                _select_largest(path_use[path], max(1, round(density * path_use[path].numel())))
                for path_use in use
            ]
        )
        for path in use[0]
    }


def _select_largest(values: Tensor, count: int) -> Tensor:
    """Return a mask of the `count` largest values along the last axis."""
    index = values.topk(count, -1).indices
    return torch.zeros_like(values, dtype=torch.bool).scatter(-1, index, True)


@contextmanager
def masked(model: nn.Module, masks: Masks, expert: int | Tensor) -> Iterator[None]:
    """Run the dense model with the hidden units of each token's expert alone, inside the `with`.

    A slow form of the mixture. masks: path of an MLP -> (experts, hidden units) bool.
    expert: of all tokens, or of each one, (B, T) int64.
    """

    # the mask is applied to the input of the last layer, that is to the hidden units
    def hook(keep: Tensor) -> Any:
        return lambda _, inputs: (inputs[0] * keep.to(inputs[0]),)

    dense_mlps = mlps(model)
    hooks = [
        dense_mlps[p].down.register_forward_pre_hook(hook(m[expert])) for p, m in masks.items()
    ]
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()
