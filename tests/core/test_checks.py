"""Settings are checked in the same words everywhere."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest

from intarsia.core.checks import above, at_least, below_one, between, one_of, whole
from intarsia.core.errors import ConfigError

TEXT: Any = "1e-3"


def test_what_is_allowed_passes() -> None:
    one_of("act", "relu", ("relu", "gelu"))
    at_least("experts", 1, 1)
    above("scale", 0.1, 0)
    between("share", 0, 0, 1)
    between("share", 1, 0, 1)
    whole("experts", np.int64(1), 1)


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (lambda: one_of("act", "silu", ("relu",)), "act: got 'silu', want one of ('relu',). Pick"),
        (lambda: at_least("experts", 0, 1), "experts: got 0, want at least 1. Try 1."),
        (lambda: at_least("experts", math.nan, 1), "experts: got nan, want at least 1"),
        (lambda: above("scale", 0, 0), "scale: got 0, want above 0. Try 0.1."),
        (lambda: above("scale", math.inf, 0), "scale: got inf, want above 0. Try 0.1."),
        (lambda: between("share", 1.5, 0, 1), "share: got 1.5, want 0 ... 1. Try 0."),
        (lambda: between("share", math.nan, 0, 1), "share: got nan, want 0 ... 1"),
        (lambda: whole("epochs", 2.5, 1), "epochs: got 2.5, want a whole number. Try 1."),
        (lambda: whole("epochs", 0, 1), "epochs: got 0, want at least 1. Try 1."),
        (lambda: whole("seed", "1"), "seed: got '1', want a whole number. Try 1."),
        (lambda: at_least("lr", TEXT, 0), "lr: got '1e-3', want at least 0"),
        (lambda: above("clip", TEXT, 0), "clip: got '1e-3', want above 0"),
        (lambda: between("share", TEXT, 0, 1), "share: got '1e-3', want 0 ... 1"),
        (lambda: below_one("warmup", TEXT), "warmup: got '1e-3', want 0 <= warmup < 1"),
    ],
)
def test_what_is_not_is_told_in_got_want_fix(check: object, message: str) -> None:
    assert callable(check)
    with pytest.raises(ConfigError, match=re.escape(message)):
        check()
