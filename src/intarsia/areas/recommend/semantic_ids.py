"""Semantic ids: items as a few codes by balanced residual k-means (OneRec, arXiv:2502.18965)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from ...core.checks import at_least
from ...core.errors import DataError
from ...data.interactions import Interactions

EXACT = 4_000  # items up to which the balanced assignment is exact, on (items, items) costs
ROUNDS = 20  # of Lloyd's algorithm at most
Array = np.ndarray[Any, Any]


@dataclass
class SemanticIds:
    """Codes (c_1, ..., c_L) of vectors: at each level the nearest centre c, then r - c.

    codes: K, number of centres of each level.  balanced: each centre has floor or ceil of N / K
    items, by an assignment of least cost up to 4,000 items, above that greedily by distance; False
    = plain k-means.  A last code numbers items that share all the others.

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
        """Fit centres to item vectors, and set `codes_`, `errors_` and `trie_`.

        vectors: (N, d). codes_: (N, L + 1) int64; errors_: mean square norm of the residual after
          each level. Raises: DataError for vectors that are no matrix of finite numbers, or fewer
          than centres.
        """
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
        labels: list[Array] = []
        errors: list[float] = []
        for count in self.codes:
            # algorithm 1: cluster the residuals, then subtract each one's centre
            label, centres = kmeans(rest, count, balanced=self.balanced, random=random)
            rest = rest - centres[label]
            labels.append(label)
            errors.append(float(np.square(rest).sum(1).mean()))
        self.codes_ = number_duplicates(np.stack(labels, 1))
        self.errors_ = tuple(errors)
        self.trie_ = Trie.of(self.codes_)
        return self

    def entropies(self) -> list[float]:
        """Return for each level the entropy of its codes over log K: 1 = all used equally often."""
        rows = zip(self.codes_.T, self.codes, strict=False)
        return [entropy(np.bincount(codes, minlength=k)) for codes, k in rows]


def kmeans(
    x: Array, count: int, *, balanced: bool, random: np.random.Generator
) -> tuple[Array, Array]:
    """Cluster vectors by Lloyd's algorithm from random points.

    x: (N, d); balanced: each cluster gets as many vectors.  -> labels (N,), centres (count, d).
    """
    centres = x[random.permutation(len(x))[:count]].copy()
    label = np.full(len(x), -1)
    for _ in range(ROUNDS):
        cost = cdist(x, centres, "sqeuclidean")
        now = assign_balanced(cost) if balanced else cost.argmin(1)
        if (now == label).all():
            break
        label = now
        for c in range(count):
            # A centre without points stays where it is.
            if (label == c).any():
                centres[c] = x[label == c].mean(0)
    return label, centres


def assign_balanced(cost: Array) -> Array:
    """Assign N rows to K centres by least total cost, equally many to each, up to one.

    cost: (N, K), of each row with each centre.  -> (N,), the centre of each row.
    """
    rows, count = cost.shape
    least, leftover = divmod(rows, count)
    if rows > EXACT:
        return _assign_greedily(cost, least, leftover)
    # each centre has `least` places, and one more for some of the rows that are left over
    places = np.repeat(np.arange(count), least)
    label = np.empty(rows, dtype=np.int64)
    if not leftover:
        row, column = linear_sum_assignment(cost[:, places])
        label[row] = places[column]
        return label
    # an extra column for each centre; only `leftover` of them are for rows
    extra = np.arange(count)
    wide = np.concatenate([cost[:, places], cost[:, extra]], 1)
    dummies = np.zeros((count - leftover, wide.shape[1]))
    # dummy rows fill the other extra columns at no cost; ordinary places cost them too much
    dummies[:, : len(places)] = cost.max() * rows + 1
    row, column = linear_sum_assignment(np.concatenate([wide, dummies]))
    both = np.concatenate([places, extra])
    real = row < rows
    label[row[real]] = both[column[real]]
    return label


def _assign_greedily(cost: Array, least: int, extra: int) -> Array:
    """Assign N rows to K centres greedily, pairs of lowest cost first, with balanced sizes."""
    # cost: (N, K); each centre gets `least` rows, and `extra` of them one more
    label = np.full(len(cost), -1)
    free = np.full(cost.shape[1], least)
    # the cheapest pairs of row and centre first; a full centre takes one more while `extra` lasts
    for place in np.argsort(cost, axis=None).tolist():
        row, c = divmod(place, cost.shape[1])
        if label[row] >= 0 or free[c] < 0 or (free[c] == 0 and not extra):
            continue
        extra -= free[c] == 0
        free[c] -= 1
        label[row] = c
    return label


def number_duplicates(codes: Array) -> Array:
    """Make the items' codes unique: append the number of earlier items with the same codes.

    codes: (N, L), L codes of each item.  -> (N, L + 1).
    """
    counts: dict[tuple[int, ...], int] = {}
    last = []
    for row in map(tuple, codes.tolist()):
        last.append(counts.get(row, 0))
        counts[row] = last[-1] + 1
    return np.concatenate([codes, np.array(last)[:, None]], 1)


def entropy(counts: Array) -> float:
    """Return the entropy of counts (K,) over log K: 1 = all equal."""
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log(p)).sum() / np.log(max(2, len(counts))))


def item_vectors(train: Interactions, width: int = 32) -> Array:
    """Compute unit vectors of items, (items, width): right singular vectors of the training events.

    width: number of singular vectors. The matrix of users by items is divided by the roots of both
      counts of events; items without events have 0.
    """
    size = (len(train.user_ids), len(train.item_ids))
    matrix = np.zeros(size)
    matrix[train.users, train.items] = 1
    matrix /= np.sqrt(matrix.sum(1, keepdims=True) + 1) * np.sqrt(matrix.sum(0, keepdims=True) + 1)
    # scaled so that active users and popular items do not dominate
    _, s, v = np.linalg.svd(matrix, full_matrices=False)
    vectors = v[:width].T * s[:width]
    vectors = np.pad(vectors, ((0, 0), (0, width - vectors.shape[1])))
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)


@dataclass(frozen=True, eq=False)
class Trie:
    """Trie of the items' codes, level by level, in flat arrays.

    Nodes are numbered breadth first from 0, the root, so that children of a node are consecutive.
    starts: (nodes + 1,), the children of node n are nodes starts[n] ... starts[n + 1] - 1.
    token: (nodes,), the code that leads to a node.  item: (nodes,), of a leaf its item, else -1.
    path: (items, L), the node of an item at each level.
    """

    starts: Array
    token: Array
    item: Array
    path: Array

    @classmethod
    def of(cls, codes: Array) -> Trie:
        """Build the trie of the items' codes.

        codes: (items, L). Raises: DataError for two items with equal codes.
        """
        if len(np.unique(codes, axis=0)) < len(codes):
            fix = "Number those that share the others: `number_duplicates`."
            raise DataError("codes", got="two items with the same", want="one each", fix=fix)
        levels = [np.unique(codes[:, : l + 1], axis=0) for l in range(codes.shape[1])]  # noqa: E741
        token, starts = [np.zeros(1, dtype=np.int64)], [1]
        path = np.empty(codes.shape, dtype=np.int64)
        base, above = 1, np.zeros((1, 0), dtype=np.int64)
        for depth, prefixes in enumerate(levels):
            token.append(prefixes[:, -1])
            # prefixes are sorted, so that children of a parent are consecutive; here they end
            ends = np.searchsorted(_keys(prefixes[:, :-1]), _keys(above), side="right")
            starts += (base + ends).tolist()
            path[:, depth] = base + np.searchsorted(_keys(prefixes), _keys(codes[:, : depth + 1]))
            base, above = base + len(prefixes), prefixes
        starts += [base] * len(above)  # leaves have no children
        item = np.full(base, -1, dtype=np.int64)
        # every code is distinct, so a leaf has exactly one item
        item[path[:, -1]] = np.arange(len(codes))
        return cls(np.array(starts, dtype=np.int64), np.concatenate(token), item, path)

    def children(self, node: int) -> range:
        return range(int(self.starts[node]), int(self.starts[node + 1]))


def _keys(rows: Array) -> Array:
    """Convert rows of codes to bytes that sort as the rows do.  rows: (n, L).  -> (n,)."""
    if not rows.shape[1]:
        return np.zeros(len(rows), dtype=np.int64)
    # big-endian codes sort as their bytes do; V makes one value of a row, and S has an order
    big = np.ascontiguousarray(rows.astype(">u4"))
    return big.view([("", f"V{4 * rows.shape[1]}")]).ravel().view(f"S{4 * rows.shape[1]}")
