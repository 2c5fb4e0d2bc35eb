"""Convert an adapter of low-rank changes to the plain LoRA that PEFT and servers know."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from ...adapters.lora import Lora, LoraCell
from ...core import Cell
from ...core.errors import ConfigError
from ...core.registry import KEY, method_to_dict
from ..changing import undone_on_error
from .adapt import attach, check_model
from .config import IntarsiaConfig
from .peft import IntarsiaLayer, ModulesToSaveWrapper, PeftModel, is_adapted


def as_lora(model: nn.Module, name: str = "lora", *, of: str | None = None) -> PeftModel:
    """Add a second adapter, plain LoRA, that computes what a trained adapter computes; activate it.

    For MoS, MoSA over LoRA and all methods with modules that merge into B A. `save` writes the new
    adapter as PEFT's own type, in the folder of its name, which PEFT, transformers and servers
    read. Layers of smaller rank are padded with zeros. A trained head is copied. The first adapter
    stays in the model; `model.delete_adapter` removes it.

    name: of the new adapter; of: name of the trained one, None = the active one.
    Raises: ConfigError for no such adapter, modules that are no low-rank change of a linear
    layer, or a name in use; FoldError for Poly with several tasks, see `methods.mhr.to_lora`.
    """
    adapted, of, _, cells = lora_cells(model, of)
    return put_beside(adapted, of, name, *_one_rank(cells))


def lora_cells(
    model: nn.Module, of: str | None = None
) -> tuple[PeftModel, str, list[IntarsiaLayer], list[LoraCell]]:
    """Return an adapter's layers, and each layer's change of weights as a LoRA module.

    of: name of the adapter, None = the active one.
    Returns the model, the adapter's name, its layers, and the LoRA modules in their order.
    Raises: as `as_lora`.
    """
    adapted, of = _model_and_name(model, of)
    layers, cells = layers_of(adapted, of), list[LoraCell]()
    for layer in layers:
        # a trained mixture of low-rank modules merges into one
        cell = cast(Cell, layer.intarsia_cells[of]).merged()
        if type(cell) is not LoraCell or layer.intarsia_sites[of][0] != "parallel":
            got = f"{type(cell).__name__} at {layer.path!r}"
            fix = "Fold it into the model: intarsia.fold(model)."
            want = "modules that merge into plain LoRA beside their layers"
            raise ConfigError(f"adapter {of!r} as LoRA", got=got, want=want, fix=fix)
        cells.append(cell)
    return adapted, of, layers, cells


@torch.no_grad()
def low_rank_changes(
    model: nn.Module, of: str | None = None
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Return path of a weight -> its change as two factors with a product of the weight's shape.

    of: name of the adapter, None = the active one. Raises: as `as_lora`.
    """
    _, _, layers, cells = lora_cells(model, of)
    changes = dict[str, tuple[torch.Tensor, torch.Tensor]]()
    for layer, cell in zip(layers, cells, strict=True):
        pair = (cell.scale * cell.up.weight, cell.down.weight.clone())  # (out, r), (r, in)
        # Conv1D of transformers has its weight as (in, out)
        transposed = isinstance(layer.base_layer, Conv1D)
        pair = (pair[1].T.contiguous(), pair[0].T.contiguous()) if transposed else pair
        changes[f"{layer.path}.weight"] = pair
    return changes


def put_beside(
    model: PeftModel, of: str, name: str, settings: Lora, cells: Sequence[LoraCell]
) -> PeftModel:
    """Add a LoRA to the layers that another adapter changes, and make it the active adapter.

    Modules that PEFT saves with an adapter (`modules_to_save`), such as a classification head, are
    copied from the other adapter. model: the model with that adapter, changed in place and
    returned; cells: a LoRA module for each layer, in the order of `layers_of`; its weights are
    copied.
    """
    check_model(model, name)
    # the same places and heads, another method
    config = copy.deepcopy(cast(IntarsiaConfig, model.peft_config[of]))
    config.options = method_to_dict(settings)
    config.method = config.options.pop(KEY)
    places = layers_of(model, of)
    with undone_on_error(model):
        attach(model, config, name)
    for layer, cell in zip(places, cells, strict=True):
        layer.intarsia_cells[name].load_state_dict(cell.state_dict())
    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper) and of in module.modules_to_save:
            heads = module.modules_to_save
            heads[name].load_state_dict(heads[of].state_dict())
    model.set_adapter(name)
    return model


def layers_of(model: nn.Module, name: str) -> list[IntarsiaLayer]:
    """List the layers that an adapter changes, in the model's order."""
    layers = (m for m in model.modules() if isinstance(m, IntarsiaLayer))
    return [layer for layer in layers if name in layer.intarsia_cells]


@torch.no_grad()
def _one_rank(cells: Sequence[LoraCell]) -> tuple[Lora, Sequence[LoraCell]]:
    """Bring LoRA modules to one rank and one scale; return common settings, and new modules."""
    rank = max(cell.down.out_features for cell in cells)
    scale = cells[0].scale
    settings = Lora(rank, scale * rank, cells[0].dropout.p)
    padded: list[LoraCell] = []
    for cell in cells:
        # all get the first one's scale; the ratio to a module's own scale goes into B
        a, b = cell.down.weight, cell.up.weight * (cell.scale / scale)  # (r, d_in), (d_out, r)
        # rows of zeros in A and columns of zeros in B change nothing
        missing = rank - len(a)
        filled: Mapping[str, torch.Tensor] = {
            "down.weight": nn.functional.pad(a, (0, 0, 0, missing)),
            "up.weight": nn.functional.pad(b, (0, missing)),
        }
        plain = copy.deepcopy(cell)
        plain.down.weight = nn.Parameter(filled["down.weight"])
        plain.up.weight = nn.Parameter(filled["up.weight"])
        padded.append(plain)
    return settings, padded


def _model_and_name(model: nn.Module, of: str | None) -> tuple[PeftModel, str]:
    """Return the adapted model and the adapter's name; of: None = the only active one."""
    active = list(model.active_adapters) if is_adapted(model) else []
    names = list(model.peft_config) if is_adapted(model) else []
    if of is None and len(active) == 1:
        of = active[0]
    if is_adapted(model) and of in names and layers_of(model, of):
        return model, of
    got = f"{len(active)} active ones" if of is None else repr(of)
    fix = "Name one of them with of=, or call intarsia.adapt(model, ...) first."
    raise ConfigError("adapter", got=got, want=f"one of {names}", fix=fix)
