"""Convert deltas to adapters of sparse cells, and adapters to deltas."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from peft import PeftModel
from torch import Tensor, nn

from ...adapters.sparse import Sparse, SparseCell
from ...core.errors import ConfigError, FoldError, TargetError
from ...core.registry import KEY, method_to_dict
from ..anatomy.blocks import base_of, unwrapped, walk
from ..anatomy.own_weights import own_parameters
from ..anatomy.sites import site_at
from ..attach.adapt import Adapt, check_model
from ..attach.config import IntarsiaConfig
from ..attach.peft import IntarsiaLayer, ModulesToSaveWrapper, is_adapted
from ..changing import apply_change
from .sparse_delta import Entry, SparseDelta

LAYERS = (nn.Linear, nn.Conv2d)


def attach_delta(model: nn.Module, delta: SparseDelta, name: str = "default") -> PeftModel:
    """Attach a sparse delta to a model as an adapter, in place; the weights stay as they are.

    The adapter can be switched, mixed and saved as any other; the delta's heads become its trained
    heads. model: the pretrained base of the delta, to which the delta was not added; delta: changes
    of single weights; name: of the new adapter.

    Raises: TargetError if the delta changes anything but weights of linear layers, as biases or
    tables of embeddings; CheckpointError for another base; ConfigError for a name in use. The model
    is then as it was.
    """
    check_model(model, name)
    host = base_of(model)
    delta.check(host)
    # parameters without a change are not checked
    modules = {path: unwrapped(module) for path, module in walk(host)}
    changed = {n: entry for n, entry in delta.entries.items() if len(entry[0])}
    for parameter in changed:
        # biases and tables of embeddings take no parallel module
        path, _, leaf = parameter.rpartition(".")
        if leaf != "weight" or not isinstance(modules[path], LAYERS):
            got = f"a {leaf} of {type(modules[path]).__name__}"
            want = "weights of linear layers, beside which an adapter can stand"
            fix = "Use delta.apply(model), or adapt(model, LtSft()), which stays within those."
            raise TargetError(f"delta of {parameter!r}", got=got, want=want, fix=fix)
    entries = {n.rpartition(".")[0]: entry for n, entry in changed.items()}
    if not entries:
        raise ConfigError(
            "delta", got="no entries", want="at least one", fix="Use the model as it is."
        )
    # modules of the heads' parameters
    heads = sorted({n.rpartition(".")[0] for n in delta.heads})
    change = Adapt(sparse_of(entries), list(entries), head=heads or None)
    adapted = cast(PeftModel, apply_change(model, change, name=name))
    put_entries(adapted, name, entries)
    saved = _heads(adapted, name)
    with torch.no_grad():
        # heads are absolute weights: they replace the base's heads
        for parameter, head in delta.heads.items():
            saved[parameter].copy_(head)
    return adapted


def sparse_of(entries: Mapping[str, Entry]) -> Sparse:
    """Return settings of a sparse adapter with as many entries at each path as there are here."""
    return Sparse(entries=tuple(f"{path}={len(i)}" for path, (i, _) in entries.items()))


def put_entries(model: PeftModel, name: str, entries: Mapping[str, Entry]) -> None:
    """Replace an adapter's modules by sparse ones that hold the given changes.

    model: with the adapter, changed in place; entries: path of a layer -> (flat indices into its
    weight, values).
    """
    config = model.peft_config[name]
    assert isinstance(config, IntarsiaConfig)
    # the config records the numbers of entries, so that saving and loading find the same sizes
    options = method_to_dict(sparse_of(entries))
    config.method, config.options = options.pop(KEY), options
    host = model.get_base_model()
    for path, layer in layers_of(model, name).items():
        # device and trained flag come from the replaced module
        old = next(layer.intarsia_cells[name].parameters())
        index, values = entries[path]
        site = site_at(host, path, "parallel")
        # for all entries no indices are stored: the module is then dense
        if len(index) == site.outputs * site.reads:
            index = index[:0]
        cell = SparseCell(site, index, values.to(old.device, torch.float32).clone())
        cell.values.requires_grad_(old.requires_grad)
        layer.intarsia_cells[name] = cell.train(layer.training)


def layers_of(model: PeftModel, name: str) -> dict[str, IntarsiaLayer]:
    """Return the layers that an adapter changes, in their wrappers, by path."""
    return {
        path: module
        for path, module in walk(model.get_base_model())
        if isinstance(module, IntarsiaLayer) and name in module.intarsia_cells
    }


def cells_of(model: PeftModel, name: str) -> dict[str, SparseCell]:
    """Return the sparse modules of an adapter, by path of the layer."""
    cells = {p: layer.intarsia_cells[name] for p, layer in layers_of(model, name).items()}
    return {p: cell for p, cell in cells.items() if isinstance(cell, SparseCell)}


def delta_of(model: nn.Module, name: str | None = None) -> SparseDelta:
    """Return an adapter's change of the weights as a sparse delta, with its trained heads.

    name: the adapter's, None = the only one. The modules that it adds must be linear in their
    input.
    Raises: ConfigError for a model without that adapter; FoldError for a module that is not linear,
    and for an adapter that is merged into the weights.
    """
    names = list(model.peft_config) if is_adapted(model) else []
    adapter = name or (names[0] if len(names) == 1 else None)
    if not is_adapted(model) or adapter not in names:
        raise ConfigError(
            "adapter", got=repr(name), want=f"one of {names}", fix="Pass the name of one of them."
        )
    # samples of the base would be taken from merged weights
    if merged := sorted({n for m in layers_of(model, adapter).values() for n in m.merged_adapters}):
        got, want = f"a model with {merged} merged into its weights", "the weights it started from"
        raise FoldError("delta", got=got, want=want, fix="Call model.unmerge_adapter() first.")
    weights, entries = own_parameters(model), dict[str, Entry]()
    with torch.no_grad():
        for path, layer in layers_of(model, adapter).items():
            # computed from the adapter: rounding of merged weights would look like further changes
            change = layer.delta(adapter).reshape(-1)
            index = change.nonzero().flatten()
            entries[f"{path}.weight"] = index.cpu(), change[index].cpu()
    start = {n: weights[n] for n in entries}
    heads = {n: p.detach().cpu().clone() for n, p in _heads(model, adapter).items()}
    return SparseDelta.of(entries, start, heads)


def _heads(model: PeftModel, name: str) -> dict[str, Tensor]:
    """Return the parameters of an adapter's own heads, by their names in the plain model."""
    return {
        f"{path}.{leaf}": parameter
        for path, module in walk(model.get_base_model())
        if isinstance(module, ModulesToSaveWrapper) and name in module.modules_to_save
        for leaf, parameter in module.modules_to_save[name].named_parameters()
    }
