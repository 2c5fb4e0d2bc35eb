"""Semantic ids: an item as a few codes, by balanced residual k-means (OneRec, arXiv:2502.18965)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from ...core.checks import at_least
from ...core.errors import DataError
from ...data.interactions import Interactions

EXACT = 4_000  # items up to which balance is exact: the costs are a square of this side
ROUNDS = 20
Array = np.ndarray[Any, Any]


@dataclass
class SemanticIds:
    """Codes (c_1, ..., c_L) of vectors: at each level the nearest centre c, then the rest, r - c.

    codes: centres of each level.  balanced: each centre has floor or ceil of N / K items, by an
    assignment of least cost up to 4,000 items, above that greedily by distance, which is not the
    least; False = plain k-means.  A last code numbers items that still share all the others.

    ids = SemanticIds((16, 16, 16)).fit(vectors);  ids.codes_, ids.trie_
    Raises: DataError for vectors that are no matrix of finite numbers, or fewer than centres.
    Source: paper, section 3.1, algorithm 1. The company's later open model has plain k-means.
    """

    codes: tuple[int, ...] = (16, 16, 16)
    balanced: bool = True
    seed: int = 0
    codes_: Array = field(init=False, repr=False)
    errors_: tuple[float, ...] = field(init=False, repr=False)
    trie_: Trie = field(init=False, repr=False)

    def fit(self, vectors: Array) -> SemanticIds:
        """codes_: (N, L + 1) int64, errors_: mean square of what is left after each level."""
        for count in self.codes:
            at_least("codes", count, 1)
        rest = np.asarray(vectors, dtype=np.float64)
        if rest.ndim != 2 or not np.isfinite(rest).all():
            got = f"shape {rest.shape}" if rest.ndim != 2 else "NaN or infinity"
            fix = "Leave out items without events, or give them a vector."
            raise DataError("item vectors", got=got, want="(items, d), finite", fix=fix)
        if len(rest) < max(self.codes):
            got, want = f"{len(rest)} items", f"at least {max(self.codes)}, as there are codes"
            raise DataError("item vectors", got=got, want=want, fix="Use fewer codes.")
        random = np.random.default_rng(self.seed)
        found: list[Array] = []
        errors: list[float] = []
        for count in self.codes:
            label, centres = kmeans(rest, count, balanced=self.balanced, random=random)
            rest = rest - centres[label]
            found.append(label)
            errors.append(float(np.square(rest).sum(1).mean()))
        self.codes_ = numbered(np.stack(found, 1))
        self.errors_ = tuple(errors)
        self.trie_ = Trie.of(self.codes_)
        return self

    def entropies(self) -> list[float]:
        """Of each level, the entropy of its codes over log K: 1 = all are used alike."""
        rows = zip(self.codes_.T, self.codes, strict=False)
        return [entropy(np.bincount(codes, minlength=k)) for codes, k in rows]


def kmeans(
    x: Array, count: int, *, balanced: bool, random: np.random.Generator
) -> tuple[Array, Array]:
    """Labels (N,) and centres (count, d) of Lloyd's rounds, from points drawn at random."""
    centres = x[random.permutation(len(x))[:count]].copy()
    label = np.full(len(x), -1)
    for _ in range(ROUNDS):
        cost = cdist(x, centres, "sqeuclidean")
        now = assign(cost) if balanced else cost.argmin(1)
        if (now == label).all():
            break
        label = now
        for c in range(count):
            if (label == c).any():
                centres[c] = x[label == c].mean(0)
    return label, centres


def assign(cost: Array) -> Array:
    """Labels of least total cost, each given to floor or ceil of N / K rows.  (N, K) -> (N,)."""
    rows, count = cost.shape
    least, more = divmod(rows, count)
    if rows > EXACT:
        return _greedy(cost, least, more)
    # each centre stands `least` times, and once more for the rows that are left over
    places = np.repeat(np.arange(count), least)
    label = np.empty(rows, dtype=np.int64)
    if not more:
        at, of = linear_sum_assignment(cost[:, places])
        label[at] = places[of]
        return label
    # columns of slack: a centre's extra place, of which only `more` are for rows
    extra = np.arange(count)
    wide = np.concatenate([cost[:, places], cost[:, extra]], 1)
    dummies = np.zeros((count - more, wide.shape[1]))
    dummies[:, : len(places)] = cost.max() * rows + 1  # they take extra places, at no cost
    at, of = linear_sum_assignment(np.concatenate([wide, dummies]))
    both = np.concatenate([places, extra])
    real = at < rows
    label[at[real]] = both[of[real]]
    return label


def _greedy(cost: Array, least: int, more: int) -> Array:
    label = np.full(len(cost), -1)
    free = np.full(cost.shape[1], least)
    for place in np.argsort(cost, axis=None).tolist():
        row, c = divmod(place, cost.shape[1])
        if label[row] >= 0 or free[c] < 0 or (free[c] == 0 and not more):
            continue
        more -= free[c] == 0
        free[c] -= 1
        label[row] = c
    return label


def numbered(codes: Array) -> Array:
    """Codes with a last one, the number of items before with the same.  (N, L) -> (N, L + 1)."""
    seen: dict[tuple[int, ...], int] = {}
    last = []
    for row in map(tuple, codes.tolist()):
        last.append(seen.get(row, 0))
        seen[row] = last[-1] + 1
    return np.concatenate([codes, np.array(last)[:, None]], 1)


def entropy(counts: Array) -> float:
    """Of shares, over the log of how many there could be."""
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log(p)).sum() / np.log(max(2, len(counts))))


def item_vectors(train: Interactions, width: int = 32) -> Array:
    """Vectors of length 1 of items: singular vectors of the training events, (items, width).

    Of users and items both scaled by the root of their events; items without events have 0.
    """
    size = (len(train.user_ids), len(train.item_ids))
    taken = np.zeros(size)
    taken[train.users, train.items] = 1
    taken /= np.sqrt(taken.sum(1, keepdims=True) + 1) * np.sqrt(taken.sum(0, keepdims=True) + 1)
    _, s, v = np.linalg.svd(taken, full_matrices=False)
    found = v[:width].T * s[:width]
    found = np.pad(found, ((0, 0), (0, width - found.shape[1])))
    return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-9)


@dataclass(frozen=True, eq=False)
class Trie:
    """The codes that items have, level by level: node -> its children, in flat arrays.

    Nodes count from 0, the root, breadth first, so that children of a node follow each other.
    starts: (nodes + 1,), the children of node n are nodes starts[n] ... starts[n + 1] - 1.
    token: of each node, the code that leads to it.  item: of each leaf its item, inside -1.
    path: (items, L), the node of an item at each level.
    """

    starts: Array
    token: Array
    item: Array
    path: Array

    @classmethod
    def of(cls, codes: Array) -> Trie:
        """Raises: DataError for two items with the same codes."""
        if len(np.unique(codes, axis=0)) < len(codes):
            fix = "Number those that share the others: `numbered`."
            raise DataError("codes", got="two items with the same", want="one each", fix=fix)
        levels = [np.unique(codes[:, : l + 1], axis=0) for l in range(codes.shape[1])]  # noqa: E741
        token, starts = [np.zeros(1, dtype=np.int64)], [1]
        path = np.empty(codes.shape, dtype=np.int64)
        base, above = 1, np.zeros((1, 0), dtype=np.int64)
        for depth, own in enumerate(levels):
            token.append(own[:, -1])
            # rows of `own` are sorted, so children of a parent are together
            ends = np.searchsorted(_keys(own[:, :-1]), _keys(above), side="right")
            starts += (base + ends).tolist()
            path[:, depth] = base + np.searchsorted(_keys(own), _keys(codes[:, : depth + 1]))
            base, above = base + len(own), own
        starts += [base] * len(above)  # leaves have no children
        item = np.full(base, -1, dtype=np.int64)
        item[path[:, -1]] = np.arange(len(codes))
        return cls(np.array(starts, dtype=np.int64), np.concatenate(token), item, path)

    def children(self, node: int) -> range:
        return range(int(self.starts[node]), int(self.starts[node + 1]))


def _keys(rows: Array) -> Array:
    """Rows of codes as bytes that sort as the rows do.  (n, L) -> (n,)."""
    if not rows.shape[1]:
        return np.zeros(len(rows), dtype=np.int64)
    big = np.ascontiguousarray(rows.astype(">u4"))
    return big.view([("", f"V{4 * rows.shape[1]}")]).ravel().view(f"S{4 * rows.shape[1]}")
