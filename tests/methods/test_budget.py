"""The rule that chooses k for a budget."""

import pytest

from intarsia import Bottleneck, Mosa
from intarsia.core.errors import ConfigError

from ..refusals import refused


def test_the_adapter_is_split_where_it_was_measured_to_pay():
    first, last = Mosa.EPOCHS
    assert [Mosa.for_budget(200, e).active for e in (first, last)] == [1, 1]
    assert [Mosa.for_budget(800, e).active for e in (first, last)] == [2, 2]
    for epochs in (1, first - 1, last + 1, 1000):
        whole = Mosa.for_budget(200, epochs)
        assert whole.active == whole.experts == 4


@pytest.mark.parametrize("experts, half", [(2, 1), (3, 1), (8, 4)])
def test_many_images_get_half_of_the_parts(experts, half):
    found = [Mosa.for_budget(n, 20, experts=experts).active for n in (Mosa.FEW, Mosa.FEW + 1)]
    assert found == [1, half]


def test_settings_pass_through_and_k_can_be_said():
    found = Mosa.for_budget(200, 5, experts=2, over=Bottleneck(8), draw="batch")
    assert (found.active, found.experts, found.over.bottleneck, found.draw) == (2, 2, 8, "batch")
    assert Mosa.for_budget(200, 50, active=3).active == 3


def test_no_budget_is_none():
    with refused(ConfigError, what="epochs", got=0):
        Mosa.for_budget(10, 0)
