"""Laws of a model that stands alone: scikit-learn's own contract of an estimator."""

from __future__ import annotations

import warnings
from functools import partial

from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning, SkipTestWarning
from sklearn.utils.estimator_checks import check_estimator

from ..core import Card
from .cards import check_card, is_frozen, tiny
from .verdict import Check, Checks, require


def check_model(card: Card) -> Checks:
    """Checks of a model's card.

    Its config is a scikit-learn estimator that is also a dataclass: `set_params` changes it, so
    that it is the one config that is not frozen.
    """
    yield from (check for check in check_card(card) if check.name != is_frozen.__name__)
    yield Check(is_an_estimator.__name__, partial(is_an_estimator, card))


def is_an_estimator(card: Card) -> None:
    """It passes scikit-learn's `check_estimator`."""
    model = tiny(card)
    require(
        isinstance(model, BaseEstimator), card, got=type(model).__name__, want="an estimator",
        fix="Inherit from sklearn.base.BaseEstimator.",
    )  # fmt: skip
    with warnings.catch_warnings():
        for kind in (ConvergenceWarning, SkipTestWarning):
            warnings.simplefilter("ignore", kind)
        found = check_estimator(model, on_fail=None, on_skip=None)
    failed = [f"{c['check_name']}: {c['exception']}" for c in found if c["status"] == "failed"]
    require(
        not failed, card, got=failed, want="every check of scikit-learn passed",
        fix="See sklearn.utils.estimator_checks.",
    )  # fmt: skip
