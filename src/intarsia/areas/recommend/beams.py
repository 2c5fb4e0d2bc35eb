"""Generation of items token by token along the trie of semantic ids, by beam search or sampling."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ...core.errors import DataError
from .semantic_ids import Trie


class GeneratedItems(NamedTuple):
    """GeneratedItems sequences of items, W for each history.

    items: (B, W, n), places from 1; logp: (B, W, n), log-probability of each item given those
    before it. Beams are sorted, best first; where there are fewer than W, the rest has items 0 and
    log-probability -inf.
    """

    items: Tensor
    logp: Tensor


class Decoder(Protocol):
    """Protocol of a model that generates tokens.

    start: read histories x (B, n), each with `copies` rows, into a state;  step: log-probabilities
    (R, V) of the next token after `token` (R,), None at the start;  reorder: make row i of the
    state continue row rows[i].
    """

    def start(self, x: Tensor, copies: int) -> Any: ...

    def step(self, state: Any, token: Tensor | None) -> Tensor: ...

    def reorder(self, state: Any, rows: Tensor) -> None: ...


class TrieTensors(nn.Module):
    """Trie of semantic ids as tensors of a model, see `Trie`.

    offsets: (L,), the vocabulary's first token of each level.  leaves: (nodes,), number of items
    below each node.
    """

    starts: Tensor
    token: Tensor
    item: Tensor
    path: Tensor
    offsets: Tensor
    leaves: Tensor

    def __init__(self, trie: Trie, offsets: Tensor) -> None:
        """Copy the arrays of a trie to unsaved buffers, and count the items below each node."""
        super().__init__()
        parts = {n: torch.from_numpy(getattr(trie, n)) for n in ("starts", "token", "item", "path")}
        leaves = torch.bincount(parts["path"].flatten(), minlength=len(parts["token"]))
        # every item is below the root, which is on no path
        leaves[0] = len(parts["path"])
        for name, part in (parts | {"offsets": offsets, "leaves": leaves}).items():
            self.register_buffer(name, part, persistent=False)
        self.levels = self.path.shape[1]

    def below(self, node: Tensor) -> tuple[Tensor, Tensor]:
        """List the children of R nodes of the trie, N in all.

        node: (R,), numbers of the nodes. Returns for each child the position of its parent in
          `node`, (N,), and the child's number, (N,).
        """
        first, counts = self.starts[node], self.starts[node + 1] - self.starts[node]
        device = node.device
        rows = torch.arange(len(node), device=device).repeat_interleave(counts)
        # number of each child among its parent's children
        inside = torch.arange(len(rows), device=device) - (counts.cumsum(0) - counts)[rows]
        return rows, first[rows] + inside


def generate_items(
    model: Decoder,
    paths: TrieTensors,
    x: Tensor,
    items: int,
    *,
    width: int,
    excluded: Tensor | None = None,
    draws: torch.Generator | None = None,
) -> GeneratedItems:
    """Generate items after each history: the `width` best sequences, or as many draws.

    model: computes log-probabilities of tokens; x: (B, n), histories, as numbers of items from 1;
      excluded: (B, U), numbers of items that may not be generated, 0 = none; draws: the generator
      to sample with, None = beam search. A token is allowed where an item that was not generated
      yet is below it in the trie, so that every sequence can be finished.
    Raises: DataError where fewer items are left.
    """
    batch, rows = len(x), len(x) * width
    barred = x.new_zeros(batch, 0) if excluded is None else excluded
    used = torch.cat([barred, barred.new_zeros(batch, items)], 1).repeat_interleave(
        width, 0
    )  # (R, U)
    available = len(paths.path) - max((len(set(r) - {0}) for r in barred.tolist()), default=0)
    if available < items:
        fix = "Ask for fewer, or let items come again that were taken."
        raise DataError("items to write", got=f"{available} left", want=f"{items}", fix=fix)
    state = model.start(x, width)
    score = x.new_zeros(rows, dtype=torch.float32).view(batch, width)
    if draws is None:
        score[:, 1:] = -torch.inf  # all rows of a history are alike at first
    score = score.flatten()
    generated = x.new_zeros(rows, items)
    logp = score.new_zeros(rows, items)
    token: Tensor | None = None
    for place in range(items):
        node = x.new_zeros(rows)
        before = score
        for level in range(paths.levels):
            row, child = paths.below(node)
            # 1. the allowed tokens: a row of score -inf is at the root, of another level: none
            allowed = (score[row] > -torch.inf) & (_items_left(paths, used, row, child, level) > 0)
            row, child = row[allowed], child[allowed]
            logp_next = model.step(state, token)  # (R, V)
            scores = torch.full_like(logp_next, -torch.inf)
            # 2. scores of allowed tokens, and for each token the trie's node
            column = paths.offsets[level] + paths.token[child]
            scores[row, column] = logp_next[row, column]
            table = torch.zeros_like(logp_next, dtype=torch.int64)
            table[row, column] = child
            # 3. the rows that continue, each with its next token; everything follows its parent row
            parent, token, score = _choose(scores, score, batch, width, draws)
            model.reorder(state, parent)
            node = table[parent, token]
            used, generated, logp = used[parent], generated[parent], logp[parent]
            before = before[parent]
        item = paths.item[node].clamp_min(-1) + 1
        item = torch.where(score > -torch.inf, item, 0)
        generated[:, place], used[:, barred.shape[1] + place] = item, item
        logp[:, place] = score - torch.where(before > -torch.inf, before, 0)
    return GeneratedItems(generated.view(batch, width, items), logp.view(batch, width, items))


def _items_left(paths: TrieTensors, used: Tensor, row: Tensor, child: Tensor, level: int) -> Tensor:
    """Count the items below each child node that were not generated or excluded, (N,)."""
    # used: (R, U), numbers of items from 1, 0 = none; row: (N,), the row of each child
    nodes = torch.where(used > 0, paths.path[(used - 1).clamp_min(0), level], -1)  # (R, U)
    once = _first_occurrence(used)  # an item that stands twice counts once
    return paths.leaves[child] - ((nodes[row] == child[:, None]) & once[row]).sum(1)


def _first_occurrence(used: Tensor) -> Tensor:
    """Mark the first occurrence of each value of a row.  (R, U) -> (R, U) bool."""
    equal = used[:, :, None] == used[:, None, :]
    return ~(equal & torch.ones_like(equal[0]).tril(-1)).any(2)


def _choose(
    scores: Tensor, score: Tensor, batch: int, width: int, draws: torch.Generator | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Choose which sequences continue, and with which token: the best ones, or at random."""
    # scores: (R, V), log-probabilities of the next token; score: (R,), of each sequence so far
    size = scores.shape[1]
    if draws is not None:
        rows = torch.arange(len(scores), device=scores.device)
        chance = scores.softmax(1).to(draws.device)  # a generator draws where it is
        token = torch.multinomial(chance, 1, generator=draws)[:, 0].to(scores.device)
        return rows, token, score + scores[rows, token]
    totals = (score[:, None] + scores).view(batch, width * size)
    best = totals.topk(width, 1)
    first = torch.arange(batch, device=score.device)[:, None] * width
    return (
        (first + best.indices // size).flatten(),
        (best.indices % size).flatten(),
        (best.values.flatten()),
    )
