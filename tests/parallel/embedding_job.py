"""A table of embeddings, cut by columns, beside the whole one."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn

from intarsia.core.errors import ConfigError
from intarsia.parallel import ColumnEmbedding
from intarsia.processes import Meter, Wire


def by_columns() -> bool:
    rank, world = dist.get_rank(), dist.get_world_size()
    draws = torch.Generator().manual_seed(0)
    table = torch.randint(-3, 4, (7, 8), generator=draws).double()
    ids = [torch.randint(7, (n, 2), generator=draws) for n in (3, 0, 1, 4)]
    meter = Meter()
    part = ColumnEmbedding(table, Wire(0, None, meter))
    out = part(ids[rank])
    equal = torch.equal(out, table[ids[rank]])
    out.square().sum().backward()
    full = table.clone().requires_grad_()
    sum(nn.functional.embedding(i, full).square().sum() for i in ids).backward()  # pyright: ignore
    columns = slice(2 * rank, 2 * rank + 2)
    assert full.grad is not None and part.weight.grad is not None
    equal = equal and torch.equal(part.weight.grad, full.grad[:, columns])
    assert part.weight.numel() * world == table.numel()
    sent = meter.gathered()
    counts = [i.numel() for i in ids]
    for receiver in range(world):  # two columns of 8 bytes for each id, to where it came from
        assert (
            int(sent["0.columns"][rank, receiver]) == (receiver != rank) * counts[receiver] * 2 * 8
        )
    try:
        ColumnEmbedding(torch.zeros(3, 6), Wire())
    except ConfigError as error:
        return equal and "Try 3 processes" in str(error)
    return False
