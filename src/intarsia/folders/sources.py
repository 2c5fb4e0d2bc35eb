"""Several sources in one training: each row of a batch with the delta of its own source."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..core.errors import ConfigError
from ..core.foreign import logits_in
from ..hosts.anatomy.own_weights import own_parameters
from ..hosts.delta.sparse_delta import SparseDelta
from ..train.order import Inputs
from ..train.outcome import LossOf, Outcome


def from_sources(
    model: nn.Module, x: Inputs, loss_of: LossOf, *, deltas: Sequence[SparseDelta]
) -> Outcome:
    """Compute the loss of a batch with rows that each have the delta of their own source added.

    The rows of source s see theta + phi_s, and theta, the model's weights, gets the gradient. x:
    the model's arguments by name, and "task_ids" (B,), the index of each row's source in `deltas`.
    The model's weights are not changed: the sums are computed in each step. One forward for each
    source in the batch.

    Raises: ConfigError for a batch without "task_ids", or with an index that is not there.
    Source: LT-SFT (arXiv:2110.07560), multi-source training, where each batch is of one source.
    """
    if isinstance(x, Tensor) or "task_ids" not in x:
        want, fix = "the number of each row's source", "Add task_ids to the data set's mappings."
        raise ConfigError("batch of several sources", got="no 'task_ids' in it", want=want, fix=fix)
    ids = x["task_ids"]
    sources = ids.unique().tolist()
    if not 0 <= sources[0] <= sources[-1] < len(deltas):
        got, fix = f"{sources[0]} ... {sources[-1]}", "Number the sources as their deltas are."
        raise ConfigError("task_ids", got=got, want=f"0 ... {len(deltas) - 1}", fix=fix)
    rows = [(ids == source).nonzero().flatten() for source in sources]
    parts = [
        _logits_with_delta(model, {n: t[r] for n, t in x.items() if n != "task_ids"}, deltas[s])
        for s, r in zip(sources, rows, strict=True)
    ]
    # back from the order of sources to the order of the batch
    logits = torch.cat(parts)[torch.cat(rows).argsort()]
    return Outcome(loss_of(logits), logits)


def _logits_with_delta(model: nn.Module, x: dict[str, Tensor], delta: SparseDelta) -> Tensor:
    weights = own_parameters(model)
    moved: dict[str, Tensor] = {}
    for name, (index, values) in delta.entries.items():
        # index_add keeps the gradient of theta; the delta itself is constant
        flat, device = weights[name].flatten(), weights[name].device
        moved[name] = flat.index_add(0, index.to(device), values.to(flat)).view_as(weights[name])
    out = torch.func.functional_call(model, moved, (), x)
    logits = logits_in(out)
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
