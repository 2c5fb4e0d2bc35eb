"""Laws of a model that stands alone: scikit-learn's own contract of an estimator."""

from __future__ import annotations

import warnings

from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning, SkipTestWarning
from sklearn.utils.estimator_checks import check_estimator

from ..core import Card
from .cards import CARD_LAWS, is_frozen, tiny
from .verdict import Law, require


def is_an_estimator(card: Card) -> None:
    """Check that the model passes scikit-learn's `check_estimator`."""
    model = tiny(card)
    fix = "Inherit from sklearn.base.BaseEstimator."
    require(isinstance(model, BaseEstimator), type(model).__name__, "an estimator", fix)
    with warnings.catch_warnings():
        # tiny settings do not converge, and need not
        for kind in (ConvergenceWarning, SkipTestWarning):
            warnings.simplefilter("ignore", kind)
        results = check_estimator(model, on_fail=None, on_skip=None)
    failed = [f"{c['check_name']}: {c['exception']}" for c in results if c["status"] == "failed"]
    fix = "See sklearn.utils.estimator_checks."
    require(not failed, failed, "every check of scikit-learn passed", fix)


# `set_params` of scikit-learn changes an estimator, so that it cannot be frozen
LAWS: tuple[Law, ...] = (*(law for law in CARD_LAWS if law is not is_frozen), is_an_estimator)
