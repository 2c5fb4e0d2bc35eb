"""Uses of a trained Poly (arXiv:2211.03831, section 3): a LoRA of one task, MHR-mu, MHR-z, new
tasks, and two learning rates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..core.errors import ConfigError
from ..hosts.attach.as_lora import layers_of, put_beside
from ..hosts.attach.config import IntarsiaConfig
from ..hosts.attach.peft import PeftModel, is_adapted
from ..mixtures import SkillsCell, decay_groups
from ..routers import TaskRouter


def to_lora(
    model: nn.Module, task: int, *, name: str | None = None, poly: str | None = None
) -> PeftModel:
    """Add the LoRA that evaluation uses for one task as an adapter of its own, and activate it.

    It merges, folds and saves as any LoRA; a trained head goes along. name: the new adapter's, None
    = "task" and the number; poly: name of the Poly adapter, None = the only one.
    Raises: ConfigError for no such task or adapter, or a name in use.
    """
    adapted, poly = _poly_adapter(model, poly)
    return _add_lora(adapted, poly, name or f"task{task}", lambda cell: cell.router.of_task(task))


def to_mhr_mu(model: nn.Module, *, name: str = "mu", poly: str | None = None) -> PeftModel:
    """Add MHR-mu, the LoRA of the skills' plain means, as an adapter of its own, and activate it.

    A = mean_s A[s], B = mean_s B[s], head by head, over the skills s: not the mean of the products
    B[s] A[s]. A new task starts from it and trains it as one LoRA; the routing logits Z have no
    part in it.
    model: adapted with Poly or MHR; poly: name of the Poly adapter, None = the only one.
    Raises: ConfigError for no such adapter, or a name in use.
    """
    adapted, poly = _poly_adapter(model, poly)
    # (heads, skills): each head takes equal shares of all skills
    return _add_lora(
        adapted, poly, name, lambda cell: torch.full(cell.down.shape[:2], 1 / cell.down.shape[1])
    )


def freeze_to_z(model: nn.Module, *, poly: str | None = None) -> PeftModel:
    """Freeze everything but the routing logits Z: MHR-z, for a new task on a few numbers.

    poly: name of the Poly adapter, None = the only one. The head is frozen, too. Other tasks do not
      change: Z of a task has a gradient from its own samples only. `model.set_adapter` lets
      everything of an adapter be trained again.
    Raises: ConfigError for no such adapter.
    """
    adapted, poly = _poly_adapter(model, poly)
    adapted.requires_grad_(False)
    for cell in poly_cells(adapted, poly):
        # Z alone: the skills A and B stay what all tasks have learned.
        cell.router.logits.requires_grad_(True)
    return adapted


def add_task(model: nn.Module, *, poly: str | None = None, seed: int = 0) -> int:
    """Add a row of routing logits Z in every layer for a new task; return the task's number.

    model: adapted with Poly or MHR; poly: name of the Poly adapter, None = the only one; seed: of
      the new rows, drawn from U(-1e-3, 1e-3) as the first ones were: the new task has all skills in
      equal shares, near MHR-mu's first weights, and no other task changes. Make the optimiser
      afterwards.
    Raises: ConfigError for no such adapter.
    """
    adapted, poly = _poly_adapter(model, poly)
    generator = torch.Generator().manual_seed(seed)
    skill_cells = poly_cells(adapted, poly)
    for cell in skill_cells:
        cell.router.add_task(generator)
    stored, tasks = cast(IntarsiaConfig, adapted.peft_config[poly]), skill_cells[0].router.tasks
    # The saved settings must name as many tasks as Z has rows.
    stored.options = stored.options | {"tasks": tasks}
    return tasks - 1


def param_groups(
    model: nn.Module, lr: float, lr_z: float = 0.1, weight_decay: float = 0.0
) -> list[dict[str, Any]]:
    """Group trained parameters for an optimiser: routing logits Z at the rate lr_z, others at lr.

    model: adapted with Poly or MHR; weight_decay: of all weights but Z, biases and norms. Z moves
      by steps of its own size (0.1 in the released code, compared with 1e-3 to 5e-3).
    """
    logits = {id(m.logits) for m in model.modules() if isinstance(m, TaskRouter)}
    groups: list[dict[str, Any]] = []
    for group in decay_groups(model, weight_decay):
        # Z is taken out of the group it would otherwise be in.
        rest = [p for p in group["params"] if id(p) not in logits]
        groups += [group | {"params": rest, "lr": lr}] if rest else []
    # Z keeps no weight decay: it would pull all tasks towards equal shares.
    z = [p for p in model.parameters() if id(p) in logits and p.requires_grad]
    return groups + ([{"params": z, "lr": lr_z, "weight_decay": 0.0}] if z else [])


def poly_adamw(
    model: nn.Module, lr: float, weight_decay: float, *, lr_z: float = 0.1
) -> torch.optim.AdamW:
    """Make an AdamW with a rate of its own for the routing logits Z.

    `fit` takes it as optimizer=poly_adamw, or functools.partial(poly_adamw, lr_z=0.05). lr,
    weight_decay: of all weights but Z; lr_z: rate of Z, which is not decayed.
    """
    groups = param_groups(model, lr, lr_z, weight_decay)
    devices = {p.device.type for group in groups for p in group["params"]}
    # torch has fused steps for these devices alone.
    return torch.optim.AdamW(groups, fused=devices <= {"cpu", "cuda"})


def poly_cells(model: nn.Module, name: str) -> list[SkillsCell]:
    """Return the modules of a Poly adapter, one for each adapted layer, in the model's order."""
    all_cells = (layer.intarsia_cells[name] for layer in layers_of(model, name))
    return [cell for cell in all_cells if isinstance(cell, SkillsCell)]


def _poly_adapter(model: nn.Module, poly: str | None) -> tuple[PeftModel, str]:
    """Return the model and the name of its Poly adapter: `poly`, or the only one if it is None."""
    adapters = list(model.peft_config) if is_adapted(model) else []
    names = [n for n in adapters if poly_cells(model, n)]
    if (poly is None and len(names) == 1) or poly in names:
        return cast(PeftModel, model), poly or names[0]
    got = "several" if poly is None and names else repr(poly)
    want = f"an adapter of the method Poly, here one of {names}"
    fix = "Name one with poly=, or call intarsia.adapt(model, intarsia.methods.Poly(...)) first."
    raise ConfigError("poly", got=got, want=want, fix=fix)


def _add_lora(
    model: PeftModel, poly: str, name: str, shares: Callable[[SkillsCell], Tensor]
) -> PeftModel:
    """Add a LoRA next to each module of a Poly adapter, its skills mixed by fixed shares (Q, S)."""
    skill_cells = poly_cells(model, poly)
    # Fixed shares turn the weighted mean of the skills' factors into plain LoRA factors.
    loras = [cell.lora(shares(cell)) for cell in skill_cells]
    return put_beside(model, poly, name, skill_cells[0].settings, loras)
