"""Experts in another order, so that a stock engine has a placement of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...core.errors import ConfigError, TargetError
from ...core.files import read_json, write_json, writing
from ...core.foreign import config_of
from ...core.sealing import seal_stock, sha256
from ...data.language_models import language_model
from ...hosts.tracing import own_mixtures, stock_gate
from ...mixtures.experts_function import StockExperts, stock_experts
from ...mixtures.zcode_m3 import check_prune, prune
from ...placement.placement import Placement
from .upcycle import check_unadapted

RECORD = "placement.json"


@torch.no_grad()
def relabel(model: nn.Module, placement: Placement | Tensor) -> nn.Module:
    """Permute gate rows and experts of every layer, in place, into the order of a placement.

    Engines assign experts to devices in order, E / D each. Expert i of a layer becomes the old
    expert `placement.relabelling()[layer, i]`, or `placement[layer, i]` for a tensor (L, E); its
    `argsort(1)` undoes it. Shared experts stay. Each token has the same experts as before;
    logits differ in the last bits (1e-5 of float32), since softmax adds in another order.
    `model.save_pretrained` then writes a stock checkpoint.

    Raises: ConfigError for copies or uneven counts, another number of layers or experts, and an
    order that crosses the groups of a router that chooses groups first; TargetError for models
    without experts, with adapters, or with a router put in the gate's place.
    """
    check_unadapted(model)
    order = placement.relabelling() if isinstance(placement, Placement) else placement.long()
    stock, mixtures = stock_experts(model), own_mixtures(model)
    sizes = [experts.experts for experts in stock.values()] + [
        m.experts.experts for _, m in mixtures
    ]
    if not sizes:
        got, fix = f"a {type(model).__name__} without experts", "Use a sparse model."
        raise TargetError("model to relabel", got=got, want="mixtures of experts", fix=fix)
    if stock and mixtures:
        got, fix = "stock experts and mixtures of ours", "Relabel a model of one kind."
        raise TargetError("model to relabel", got=got, want="one of them", fix=fix)
    if order.dim() != 2 or set(sizes) != {order.shape[1]} or len(sizes) != len(order):
        got = f"{' layers of '.join(map(str, order.shape))} experts"
        want = f"{len(sizes)} layers of {sizes[0]}, as the model has"
        raise ConfigError("placement", got=got, want=want, fix="Trace and place this model.")
    if bool((order.sort(1).values != torch.arange(order.shape[1])).any()):
        got, fix = "an order that leaves experts out", "Take placement.relabelling()."
        raise ConfigError("placement", got=got, want="each expert once", fix=fix)
    # every check comes before the first weight is moved
    gates = [
        _block_and_gate(model, experts) for experts in stock.values()
    ]  # all are there, before any is changed
    for row, (_, gate) in zip(order, gates, strict=False):
        _check_groups(model, gate, row)
    for row, (_, mixture) in zip(order, mixtures, strict=False):
        check_prune(mixture, row.tolist())
    for row, experts, (block, gate) in zip(order, stock.values(), gates, strict=False):
        _reorder_experts(experts.module, row, recurse=False)
        _reorder_experts(gate, row, recurse=True)
        # some models have the bias of the router in the block
        _reorder_experts(block, row, recurse=False)
    for row, (_, mixture) in zip(order, mixtures, strict=False):
        prune(mixture, row.tolist())  # all experts, in this order
    return model


def _block_and_gate(model: nn.Module, experts: StockExperts) -> tuple[nn.Module, nn.Module]:
    return model.get_submodule(experts.path.rpartition(".")[0]), stock_gate(model, experts.path)


def _reorder_experts(module: nn.Module, order: Tensor, *, recurse: bool) -> None:
    """Reorder a module's tensors that have an entry for each expert, in place."""
    tensors = [*module.parameters(recurse), *module.buffers(recurse)]
    # gates and biases have a row for each expert, too
    for tensor in tensors:
        if tensor.dim() and len(tensor) == len(order):
            tensor.copy_(tensor[order.to(tensor.device)])
        elif tensor.shape == (1, len(order)):  # ERNIE's bias
            tensor.copy_(tensor[:, order.to(tensor.device)])


def _check_groups(model: nn.Module, gate: nn.Module, order: Tensor) -> None:
    """Check that an order keeps experts together that the router has in one group."""
    config: Any = config_of(model)
    groups = getattr(gate, "n_group", None) or getattr(config, "n_group", None) or 1
    if groups > 1:
        group = order // (len(order) // groups)
        # each run of E / groups new places must take its experts from a single old group
        if bool((group.view(groups, -1) != group.view(groups, -1)[:, :1]).any()):
            got = f"an order that mixes the router's {groups} groups of experts"
            want, fix = "whole groups, and orders inside a group", f"Eplb(groups={groups})."
            raise ConfigError("placement", got=got, want=want, fix=fix)


def write_relabelled(source: str, target: str | Path, placement: Placement) -> Path:
    """Write a stock checkpoint of transformers with the experts in a placement's order.

    The type of the weights stays, tokenizer and configuration are copied, and `placement.json` has
    the order and the SHA-256 of the source's files: `relabel(model, order.argsort(1))` gives their
    very bits back.

    Raises: AssetError for a folder that cannot be opened; as `relabel`.
    """
    model, tokenizer = language_model(source, dtype="auto")
    relabel(model, placement)
    host: Any = model
    # our loader switches the cache off; the new configuration says what the old one said
    host.config.use_cache = read_json(Path(source, "config.json")).get("use_cache", True)
    order = placement.relabelling().tolist()
    files = {path.name: sha256(path) for path in sorted(Path(source).glob("*.safetensors"))}
    content = {"devices": placement.devices, "order": order, "of": files}
    with writing(target, refuse_loss=True) as scratch:
        scratch.mkdir()
        host.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        write_json(scratch / RECORD, content, indent=None)
        seal_stock(scratch)
    return Path(target)
