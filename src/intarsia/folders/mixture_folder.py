"""A stock folder of a mixture, packed an expert at a time: its experts are never all in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..core.errors import CheckpointError, TargetError
from ..core.sealing import check_if_sealed
from ..hosts.changing import apply_plan
from ..kernels.experts import stacked_matrices
from ..offloading.resident import model_without_experts
from ..offloading.store import Checkpoint, count_of, experts_of, renamed
from ..sparse.swap.compress import Compress, check_layers, targets

BIAS = "_proj_bias"  # the end of a name, for all experts of a layer
ReadExpert = Callable[[int], dict[str, Tensor]]


def packed_mixture(
    folder: str | Path, change: Compress, *, force: bool | None = None
) -> nn.Module | None:
    """Open a folder of save_pretrained and pack it; None for a model that has to be opened whole.

    That is one without stacks of experts, with experts that the format cannot store or the change
    leaves out, or with more of each than matrices and biases: scales of a quantised folder.
    Otherwise the memory of the packed model is needed, and of all that is not packed; numbers are
    those that `intarsia.compress` packs, with its `force`.

    Raises: ConfigError where dense layers are faster and force is False; CheckpointError for a
    folder that is not as it was sealed; DataError for weights that are not finite.
    """
    if not Path(folder).is_dir() or change.format.needs:
        return None
    check_if_sealed(Path(folder))
    try:
        source = Checkpoint(Path(folder))
        readers = experts_of(source)
    except (CheckpointError, TargetError):
        return None
    if not all(_is_plain(source, path) for path in readers):
        return None
    # biases of experts stay as they are
    packed = tuple(f"{path}." for path in readers)
    rest = [k for k in source.where if not k.startswith(packed) or k.endswith(BIAS)]
    experts = {renamed(path): count_of(source, path) for path in readers}
    try:
        weights = {renamed(key): source.tensor(key) for key in rest}
        model = model_without_experts(Path(folder), weights, experts)
    except CheckpointError:
        return None  # another layout, which transformers may know
    by_path = {renamed(path): read for path, read in readers.items()}
    names = {path: [n for n in read(0) if not n.endswith(BIAS)] for path, read in by_path.items()}
    stacks = {f"{path}.{name}" for path, some in names.items() for name in some}
    if stacks != targets(model, change)[1].keys():
        return None
    plan = change.plan_of(model, (), 0, partial(_matrices, by_path, dict(model.named_modules())))
    if not force:
        check_layers(model, plan, refuse=force is False)
    return apply_plan(model, plan)


def _is_plain(source: Checkpoint, path: str) -> bool:
    """Return True if experts are matrices of floating-point numbers, perhaps with biases."""
    keys = [key for key in source.where if key.startswith(f"{path}.") and not key.endswith(BIAS)]
    # gate, up and down of each expert, or two stacks for all of them
    count = 2 if f"{path}.down_proj" in source.where else 3 * count_of(source, path)
    return len(keys) == count and "quantization_config" not in source.config


def _matrices(
    readers: dict[str, ReadExpert], modules: dict[str, Any], path: str, stack: Tensor
) -> Iterator[Tensor]:
    """Yield the matrices (out, in) of a stack, each read from its file."""
    owner, _, name = path.rpartition(".")
    is_turned = stacked_matrices(modules[owner])[name]
    for expert in range(len(stack)):
        weight = readers[owner](expert)[name]
        yield weight.T if is_turned else weight
