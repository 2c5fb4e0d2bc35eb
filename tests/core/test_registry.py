"""Methods as JSON: a key and plain settings from a closed list, and back."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from intarsia.adapters import Bottleneck, Lora
from intarsia.core import Method
from intarsia.core.errors import ConfigError, UnknownName
from intarsia.core.registry import (
    KEY,
    card,
    keys,
    method_from_dict,
    method_key,
    method_to_dict,
    settings_from_dict,
)
from intarsia.methods import Adamix, Mosa, Mosl

from ..refusals import refused

bottlenecks = st.builds(
    Bottleneck,
    bottleneck=st.integers(1, 64),
    placement=st.sampled_from(["adaptformer", "pfeiffer", "houlsby", "adapter+"]),
    scale=st.none() | st.floats(0, 4) | st.sampled_from(["layer", "channel"]),
    dropout=st.floats(0, 0.9),
)
loras = st.builds(
    Lora,
    rank=st.integers(1, 64),
    alpha=st.none() | st.floats(0.5, 64),
    roles=st.sampled_from([("qkv",), ("qkv", "projection"), ("mlp_linear",)]),
)
mosas = st.builds(
    Mosa, over=bottlenecks | loras, experts=st.integers(2, 8), split=st.sampled_from(["up", "both"])
)


@given(bottlenecks | loras | mosas)
def test_a_method_survives_json(method: Method) -> None:
    stored = json.loads(json.dumps(method_to_dict(method)))
    assert method_from_dict(stored) == method


def test_a_method_inside_a_method_names_its_own_key() -> None:
    stored = method_to_dict(Mosl(4))
    assert stored[KEY] == "mosa"
    assert stored["over"][KEY] == "lora"
    assert method_to_dict(Adamix())["over"][KEY] == "bottleneck"


@pytest.mark.parametrize("key", keys())
def test_settings_left_out_take_their_defaults(key: str) -> None:
    assert method_from_dict({KEY: key}) == card(key).config()
    assert method_key(card(key).config()) == key


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({KEY: "loar"}, "unknown method"),
        ({KEY: "os.system"}, "unknown method"),
        ({KEY: "adapters.lora"}, "unknown method"),
        ({KEY: "lora", "rnak": 4}, "unknown setting of 'lora'"),
        ({KEY: "mosa", "over": {KEY: "lora", "__class__": 1}}, "unknown setting of 'lora'"),
    ],
)
def test_only_listed_names_are_read(settings: dict[str, object], field: str) -> None:
    with refused(UnknownName, what=field):
        method_from_dict(settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"rank": 4},
        {KEY: "lora", "rank": 0},
        {KEY: "lora", "rank": "four"},
        {KEY: "lora", "roles": 3},
        {KEY: "mosa", "over": {"rank": 4}},
    ],
)
def test_values_that_a_method_refuses(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        method_from_dict(settings)


def test_a_class_of_ones_own_is_not_in_the_list() -> None:
    @dataclass(frozen=True)
    class Mine(Lora):
        pass

    with refused(
        ConfigError,
        what="method",
        got="tests.core.test_registry.test_a_class_of_ones_own_is_not_in_the_list.<locals>.Mine",
    ):
        method_to_dict(Mine())


@pytest.mark.parametrize(
    ("key", "settings", "field"),
    [
        ("topk", {"active": 2.0}, "active"),
        ("topk", {"active": "two"}, "active"),
        ("topk", {"bias": 1}, "bias"),
        ("topk", {"z": True}, "z"),
        ("topk", {"std": "small"}, "std"),
        ("topk", {"scale": 3}, "scale"),
        ("mosa", {"experts": 2.0}, "experts"),
        ("upcycle", {"router": {"method": "topk", "jitter": [1]}}, "jitter"),
    ],
)
def test_settings_of_another_type_are_refused_by_field(
    key: str, settings: dict[str, Any], field: str
) -> None:
    with pytest.raises(ConfigError) as error:
        settings_from_dict(card(key), settings)
    assert error.value.what == field
    assert settings_from_dict(card("topk"), {"std": 1, "active": 1, "scale": "prob"}).std == 1
