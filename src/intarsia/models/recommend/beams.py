"""Items token by token, along the trie of semantic ids: beams, or draws; no item twice."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ...core.errors import DataError
from .semantic_ids import Trie


class Written(NamedTuple):
    """items: (B, W, n) places from 1; logp: (B, W, n) of each item, given those before.

    Of beams, best first; where there are fewer than W the rest has items 0 and -inf.
    """

    items: Tensor
    logp: Tensor


class Decoder(Protocol):
    """What writes: `start` reads histories, `step` gives log-probabilities of the next token."""

    def start(self, x: Tensor, copies: int) -> Any: ...

    def step(self, state: Any, token: Tensor | None) -> Tensor: ...

    def reorder(self, state: Any, rows: Tensor) -> None: ...


class Paths(nn.Module):
    """The trie of a model as tensors.  offsets: (L,) of a level's first token.

    leaves: (nodes,), how many items are below each node.
    """

    starts: Tensor
    token: Tensor
    item: Tensor
    path: Tensor
    offsets: Tensor
    leaves: Tensor

    def __init__(self, trie: Trie, offsets: Tensor) -> None:
        super().__init__()
        parts = {n: torch.from_numpy(getattr(trie, n)) for n in ("starts", "token", "item", "path")}
        leaves = torch.bincount(parts["path"].flatten(), minlength=len(parts["token"]))
        leaves[0] = len(parts["path"])
        for name, part in (parts | {"offsets": offsets, "leaves": leaves}).items():
            self.register_buffer(name, part, persistent=False)
        self.levels = self.path.shape[1]

    def below(self, node: Tensor) -> tuple[Tensor, Tensor]:
        """Rows (N,) and children (N,) of nodes (R,)."""
        first, counts = self.starts[node], self.starts[node + 1] - self.starts[node]
        device = node.device
        rows = torch.arange(len(node), device=device).repeat_interleave(counts)
        inside = torch.arange(len(rows), device=device) - (counts.cumsum(0) - counts)[rows]
        return rows, first[rows] + inside


def write(
    model: Decoder,
    paths: Paths,
    x: Tensor,
    items: int,
    *,
    width: int,
    taken: Tensor | None = None,
    draws: torch.Generator | None = None,
) -> Written:
    """Write `items` items after each history x (B, n): the `width` best ways, or as many draws.

    taken: (B, U) places of items that may not come, 0 = none.  draws: the source of draws, None =
    beams.  A token is allowed where an item that has not come is below it, so that each way ends.
    Raises: DataError where fewer items are left.
    """
    batch, rows = len(x), len(x) * width
    own = x.new_zeros(batch, 0) if taken is None else taken
    used = torch.cat([own, own.new_zeros(batch, items)], 1).repeat_interleave(width, 0)  # (R, U)
    left = len(paths.path) - max((len(set(r) - {0}) for r in own.tolist()), default=0)
    if left < items:
        fix = "Ask for fewer, or let items come again that were taken."
        raise DataError("items to write", got=f"{left} left", want=f"{items}", fix=fix)
    state = model.start(x, width)
    score = x.new_zeros(rows, dtype=torch.float32).view(batch, width)
    if draws is None:
        score[:, 1:] = -torch.inf  # all rows of a history are alike at first
    score = score.flatten()
    found = x.new_zeros(rows, items)
    logp = score.new_zeros(rows, items)
    token: Tensor | None = None
    for place in range(items):
        node = x.new_zeros(rows)
        before = score
        for level in range(paths.levels):
            row, child = paths.below(node)
            # a way that has ended (-inf) stands at the root, whose children are of another level
            allowed = (score[row] > -torch.inf) & (_left(paths, used, row, child, level) > 0)
            row, child = row[allowed], child[allowed]
            raw = model.step(state, token)  # (R, V)
            scores = torch.full_like(raw, -torch.inf)
            which = paths.offsets[level] + paths.token[child]
            scores[row, which] = raw[row, which]
            table = torch.zeros_like(raw, dtype=torch.int64)
            table[row, which] = child
            parent, token, score = _choose(scores, score, batch, width, draws)
            model.reorder(state, parent)
            node = table[parent, token]
            used, found, logp = used[parent], found[parent], logp[parent]
            before = before[parent]
        item = paths.item[node].clamp_min(-1) + 1
        item = torch.where(score > -torch.inf, item, 0)
        found[:, place], used[:, own.shape[1] + place] = item, item
        logp[:, place] = score - torch.where(before > -torch.inf, before, 0)
    return Written(found.view(batch, width, items), logp.view(batch, width, items))


def _left(paths: Paths, used: Tensor, row: Tensor, child: Tensor, level: int) -> Tensor:
    """How many items that have not come are below each child.  (N,)"""
    nodes = torch.where(used > 0, paths.path[(used - 1).clamp_min(0), level], -1)  # (R, U)
    once = _first(used)  # an item that stands twice counts once
    return paths.leaves[child] - ((nodes[row] == child[:, None]) & once[row]).sum(1)


def _first(used: Tensor) -> Tensor:
    """Whether a place of a row holds what no earlier place holds.  (R, U) -> (R, U)"""
    same = used[:, :, None] == used[:, None, :]
    return ~(same & torch.ones_like(same[0]).tril(-1)).any(2)


def _choose(
    scores: Tensor, score: Tensor, batch: int, width: int, draws: torch.Generator | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows that go on, their tokens and their scores.  scores: (R, V), score: (R,)."""
    size = scores.shape[1]
    if draws is not None:
        rows = torch.arange(len(scores), device=scores.device)
        chance = scores.softmax(1).to(draws.device)  # a generator draws where it is
        token = torch.multinomial(chance, 1, generator=draws)[:, 0].to(scores.device)
        return rows, token, score + scores[rows, token]
    whole = (score[:, None] + scores).view(batch, width * size)
    best = whole.topk(width, 1)
    first = torch.arange(batch, device=score.device)[:, None] * width
    return (
        (first + best.indices // size).flatten(),
        (best.indices % size).flatten(),
        (best.values.flatten()),
    )
