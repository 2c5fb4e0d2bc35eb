"""Folds of labelled items, for cross-validation."""

from __future__ import annotations

import numpy as np


def deal(labels: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """Deal items at random into folds, each class evenly; return the fold of each, (n,).

    labels: (n,) class numbers, or (n, classes) of 0 and 1; then each set of labels is dealt evenly.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    # Equal rows of labels are one kind, also with several labels a picture.
    kinds = np.unique(labels, axis=0, return_inverse=True)[1].reshape(-1)
    # Shuffled within each class; consecutive ones then go to different folds.
    order = order[np.argsort(kinds[order], kind="stable")]
    fold = np.empty(len(labels), dtype=np.int64)
    fold[order] = np.arange(len(labels)) % folds
    return fold
