"""A failed adaptation leaves no trace."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from peft import PeftModel
from torch import nn

from ..gating import unwatch
from .blocks import unwrapped, walk
from .peft import IntarsiaLayer, ModulesToSaveWrapper


@contextlib.contextmanager
def undone_on_error(model: nn.Module, name: str) -> Iterator[None]:
    """Inside, an adapter is put into a model; if that fails, the model is as it was before."""
    host = model.get_base_model() if isinstance(model, PeftModel) else model
    trained = [(p, p.requires_grad) for p in model.parameters()]
    modes = [(m, m.training) for m in model.modules()]
    try:
        yield
    except BaseException:
        _strip(host, name)
        for parameter, flag in trained:
            parameter.requires_grad_(flag)
        for module, mode in modes:
            module.training = mode
        raise


def _strip(host: nn.Module, name: str) -> None:
    """Take every trace of an adapter out of a model, and wrappers that carry no other."""
    for path, module in list(walk(host)):
        if isinstance(module, IntarsiaLayer):
            if name in module.intarsia_cells:
                del module.intarsia_cells[name], module.intarsia_sites[name]
            left, inner = len(module.intarsia_cells), module.base_layer
        elif isinstance(module, ModulesToSaveWrapper):
            module.delete_adapter(name, [n for n in module.active_adapters if n != name])
            left, inner = len(module.modules_to_save), module.original_module
        else:
            continue
        if not left:
            parent, _, child = path.rpartition(".")
            setattr(unwrapped(dict(walk(host))[parent]), child, inner)
    configs = getattr(host, "peft_config", {})
    configs.pop(name, None)
    if not configs:
        if hasattr(host, "peft_config"):
            del host.peft_config
        unwatch(host)
