"""A shallower student out of a trained model (Mixture-of-Students, arXiv:2201.05596)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

from torch import nn

from ...core import Card, Paper
from ...core.change import Change, Plan
from ...core.errors import TargetError
from ...core.foreign import config_of
from ...core.schema import setting
from ...gating import rejoin, unwatch
from ...hosts.anatomy.blocks import blocks, inside, mlp_of
from ...hosts.anatomy.gates import own_gate
from ...hosts.anatomy.sites import select_blocks
from .upcycle import MixturePlaces, check_unadapted, move_places, places_in

# lists in a transformers config with one entry for each layer
PER_LAYER = ("layer_types", "mlp_layer_types", "no_rope_layers")


@dataclass(frozen=True)
class Student(Change):
    """Change to a copy of the model with some of its blocks, see `student_of`.

    Not for models with stages or with blocks of two kinds in turn.
    """

    layers: tuple[int, ...] = setting((0,), "The numbers of the blocks that stay, from 0 on.")

    recorded: ClassVar[bool] = False  # the student is a model of fewer blocks, not a changed one
    laws: ClassVar[frozenset[str]] = frozenset()

    def apply(self, host: nn.Module, plan: Plan, *, name: str = "default") -> nn.Module:
        return student_of(host, self.layers)


def student_of(model: nn.Module, layers: Sequence[int]) -> nn.Module:
    """Copy a model with some of its blocks, in their order: a shallower student to distil.

    For timm ViTs, transformers' ViTs and Llama-shaped decoders, upcycled or not. Blocks are
    renumbered, in the config and in caches, too, so that `save_mixture` saves the student and
    `load_mixture` puts it into a dense model of its depth. Weights are copies of the teacher's,
    which stays as it is. Train the student with `intarsia.train.distill`.

    layers: numbers of the blocks that stay, negative ones count from the last. The paper removes an
      eighth to a fourth of the blocks (21 of 24 stay), and spares the widest layers.
    Raises: TargetError for layers that are not there, adapted models, and models with blocks that
    do not stand in one row or depend on their number.
    Source: arXiv:2201.05596, section 4.2.
    """
    check_unadapted(model)
    container, all_blocks = _block_container(model)
    kept_paths = select_blocks(all_blocks, layers)
    dropped = [block for path, block in all_blocks if path not in kept_paths]
    # the copy has an Identity for each dropped block, so that its weights are not copied
    student = copy.deepcopy(model, {id(block): nn.Identity() for block in dropped})
    row = student.get_submodule(container)
    numbers = [int(path.rpartition(".")[2]) for path in kept_paths]
    kept_blocks = [block for i, block in enumerate(row.children()) if i in numbers]
    row._modules.clear()
    # the container is emptied and filled in order: its children are called by number
    for number, block in enumerate(kept_blocks):
        row.add_module(str(number), block)
    _renumber(student, row, numbers, len(all_blocks))
    _record_mixtures(student, {path: f"{container}.{i}" for i, path in enumerate(kept_paths)})
    # routers of the copy share the copy's context, not the teacher's
    rejoin(student)
    return student


def _block_container(model: nn.Module) -> tuple[str, list[tuple[str, nn.Module]]]:
    """Return the path of the list of all blocks and nothing else, and the blocks by path."""
    all_blocks = blocks(model)
    containers = {path.rpartition(".")[0] for path, _ in all_blocks}
    container = next(iter(containers)) if len(containers) == 1 else None
    row = None if container is None else model.get_submodule(container)
    is_complete = isinstance(row, nn.ModuleList | nn.Sequential) and len(row) == len(all_blocks)
    # models with sparse and dense blocks, or with `rope_mixed`, depend on the blocks' numbers
    mlps = (b.get_submodule(mlp_of(b) or "") for _, b in all_blocks)
    mixed = len({own_gate(mlp) is None for mlp in mlps}) > 1
    if container is None or not is_complete or mixed or getattr(model, "rope_mixed", False):
        raise TargetError(
            f"model {type(model).__name__}",
            got=f"{len(all_blocks)} blocks in {len(containers)} places"
            + (", sparse and dense ones" if mixed else ""),
            want="one row of blocks that do not depend on their number",
            fix="Use a ViT or a Llama-shaped decoder; stages and alternating blocks cannot go.",
        )
    return container, all_blocks


def _renumber(student: nn.Module, row: nn.Module, numbers: Sequence[int], count: int) -> None:
    """Write the new numbers of the blocks, and their new count, wherever the model stores them."""
    for number, block in enumerate(row.children()):
        for module in block.modules():
            if isinstance(getattr(module, "layer_idx", None), int):
                cast(Any, module).layer_idx = number  # index of the layer in a cache
    config: Any = config_of(student)
    if config is not None:
        config.num_hidden_layers = len(numbers)
        for name in PER_LAYER:
            per_layer = getattr(config, name, None)
            if isinstance(per_layer, (list, tuple)) and len(per_layer) == count:
                setattr(config, name, [per_layer[i] for i in numbers])
    info: Any = getattr(student, "feature_info", None)
    # timm's list of the modules that output features
    if isinstance(info, list) and len(info) == count:
        cast(Any, student).feature_info = info[: len(numbers)]


def _record_mixtures(student: nn.Module, new_block_paths: dict[str, str]) -> None:
    """Record where a student's mixtures are now; new_block_paths: old path of a block -> new."""
    if (places := places_in(student)) is None:
        return
    # block of the student around each mixture; None for those that were dropped
    owners = [next((b for b in new_block_paths if inside(path, b)), None) for path in places.paths]
    kept_mixtures = [i for i, block in enumerate(owners) if block is not None]
    paths = tuple(
        f"{new_block_paths[block]}{path.removeprefix(block)}"
        for path, block in zip(places.paths, owners, strict=True)
        if block is not None
    )
    experts, parts = (
        tuple(numbers[i] for i in kept_mixtures) for numbers in (places.experts, places.parts)
    )
    # elsewhere=True: blocks are missing, so that this is no longer the dense model of the upcycling
    move_places(student, MixturePlaces(paths, experts, parts), elsewhere=True)
    if not kept_mixtures:
        unwatch(student, all=True)


CARDS = (
    Card(
        "student_of",
        kind="change",
        config=Student,
        paper=Paper(
            "2201.05596",
            2022,
            "DeepSpeed-MoE: Advancing Mixture-of-Experts Inference and Training to Power "
            "Next-Generation AI Scale",
        ),
        summary="A shallower student out of a trained model.",
        family="experts",
        exceptions={
            "comes_back_from_its_folder": "a student is a model of its own: save it as such",
        },
    ),
)
