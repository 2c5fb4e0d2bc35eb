"""The rule that chooses k for a budget."""

import pytest

from intarsia import Bottleneck, Mosa
from intarsia.core.errors import ConfigError


def test_few_epochs_leave_the_adapter_whole_and_many_split_it():
    few, many = (Mosa.for_budget(200, e) for e in (Mosa.MANY_EPOCHS - 1, Mosa.MANY_EPOCHS))
    assert few.active == few.experts == 4
    assert many.active == 1


def test_settings_pass_through_and_k_can_be_said():
    found = Mosa.for_budget(200, 5, experts=2, over=Bottleneck(8), draw="batch")
    assert (found.active, found.experts, found.over.bottleneck, found.draw) == (2, 2, 8, "batch")
    assert Mosa.for_budget(200, 50, active=3).active == 3


def test_no_budget_is_none():
    with pytest.raises(ConfigError, match="epochs: got 0"):
        Mosa.for_budget(10, 0)
