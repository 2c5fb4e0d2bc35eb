"""A setting is declared once: what its field says is what is checked, read and written."""

# types of settings are read as they are: no `from __future__ import annotations`

import dataclasses
import math
from dataclasses import MISSING, dataclass
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from intarsia.cli.options import PANELS
from intarsia.core import schema
from intarsia.core.errors import ConfigError, IntarsiaError, UnknownChoice, UnknownName
from intarsia.core.registry import card, index
from intarsia.core.schema import Setting, check, fits, from_json, in_words, read, setting, to_json
from intarsia.runs.experiment import GROUPS, Experiment
from intarsia.train.settings import Running

from ..refusals import refused

FIELDS = [
    pytest.param(item, declared, id=f"{kind.__name__}.{item.name}")
    for kind in PANELS
    for item, declared in schema.settings_of(kind)
]
PLAIN = (int, float, bool, str, int | None, float | None, str | None)


@pytest.mark.parametrize(("item", "declared"), FIELDS)
def test_every_setting_has_help_and_refuses_something(item: Any, declared: Setting) -> None:
    assert declared.help and declared.help.endswith(".")
    if isinstance(item.type, str):  # of torch: Python alone sets it, its dataclass checks it
        assert declared.python
        return
    declared.check(item.name, item.default if item.default is not MISSING else "elpv", item.type)
    if fits(object(), item.type):  # such as a mapping
        assert declared.test is not None
        return
    with pytest.raises(IntarsiaError) as refusal:
        declared.check(item.name, object(), item.type)
    assert item.name in refusal.value.what
    numbers = [kind for kind in get_args(item.type) or (item.type,) if kind in (int, float)]
    if numbers:
        with pytest.raises(ConfigError):  # every number has a range
            declared.check(item.name, -1 if int in numbers else math.nan, item.type)
    if declared.choices:
        word = "nosuch" if fits("nosuch", item.type) else ("nosuch",)
        with pytest.raises(UnknownName):
            declared.check(item.name, word, item.type)


@pytest.mark.parametrize("kind", [*PANELS])
def test_every_field_of_a_class_of_settings_is_a_declared_setting(kind: Any) -> None:
    inside = {item.name for item in dataclasses.fields(kind) if dataclasses.is_dataclass(item.type)}
    declared = {item.name for item, _ in schema.settings_of(kind)}
    assert declared | inside == {item.name for item in dataclasses.fields(kind)}


def test_a_name_means_one_setting() -> None:
    names = [item.name for item, _ in schema.options_of(*GROUPS, Running)]
    assert len(names) == len(set(names))


@given(st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.booleans())
def test_a_value_becomes_text_and_is_read_again(value: Any) -> None:
    assert read("x", schema.written(value), type(value)) == value
    assert read("x", schema.written(value), type(value) | None) == value
    assert read("x", "", type(value) | None) is None


@given(st.lists(st.integers(), min_size=1))
def test_several_values_become_text_and_are_read_again(values: list[int]) -> None:
    assert read("x", schema.written(values), tuple[int, ...]) == tuple(values)


@pytest.mark.parametrize("kind", PLAIN)
def test_what_is_read_fits(kind: Any) -> None:
    for text in ("1", "0.5", "true", "a", ""):
        try:
            value = read("x", text, kind)
        except ConfigError as error:
            assert error.want == in_words(kind)
        else:
            assert fits(value, kind)


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        (1, float, True),
        (True, int, False),
        (1, bool, False),
        (0.5, int, False),
        (None, int | None, True),
        (None, int, False),
        ([1, 2], tuple[int, ...], True),
        (["a"], tuple[int, ...], False),
        (np.array([1.0, 2.0]), tuple[float, ...], True),
        (np.array(["a"]), tuple[float, ...], False),
        (np.float64(1), tuple[float, ...], False),
        ("a", tuple[str, ...] | None, False),
        (object(), Setting | None, True),
    ],
)
def test_types(value: object, kind: Any, expected: bool) -> None:
    assert fits(value, kind) is expected


@dataclass(frozen=True)
class Inner:
    least: int = setting(1, "At least 1.", least=1)
    share: float = setting(0.5, "A share.", least=0, below=1)
    word: str = setting("a", "A word.", choices=lambda: ("alpha", "a"), suffix=True)
    hidden: int = setting(3, "In Python only.", python=True)
    shares: tuple[float, ...] = setting((0.5,), "Some shares.", least=0, most=1)
    size: float | str = setting(2, "A number, or a word.", choices=("wide",))
    rows: int = setting(1, "Rows of a block.", choices=(1, 2, 4))
    fresh: dict[str, int] = setting(help="A fresh one.", factory=dict, hash=False, python=True)

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class Outer:
    inner: Inner = Inner()
    names: tuple[str, ...] = setting((), "Names.")


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"least": 0}, ConfigError),
        ({"least": 1.5}, ConfigError),
        ({"least": True}, ConfigError),
        ({"share": 1.0}, ConfigError),
        ({"share": math.nan}, ConfigError),
        ({"share": math.inf}, ConfigError),
        ({"word": "alhpa"}, UnknownName),
        ({"word": "b:x=1"}, UnknownName),
        ({"word": "b"}, ConfigError),
        ({"shares": (0.5, 1.5)}, ConfigError),
        ({"shares": [math.nan]}, ConfigError),
        ({"size": "wied"}, UnknownName),
        ({"rows": 3}, ConfigError),
    ],
)
def test_a_value_out_of_range_is_refused(values: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        Inner(**values)


def test_a_refusal_of_a_word_names_the_setting_and_what_was_meant() -> None:
    with refused(UnknownChoice, what="size", got="'wied'", want="one of wide", near=("wide",)):
        Inner(size="wied")
    with refused(ConfigError, what="rows", got=3, want="one of 1, 2, 4"):
        Inner(rows=3)
    assert hash(Inner(size=7.5, shares=(0, 1))) and Inner().fresh is not Inner().fresh


def test_help_lists_the_words_that_it_does_not_explain() -> None:
    helps = {item.name: schema.help_of(item) for item in dataclasses.fields(Explained)}
    assert helps == {
        "side": 'The side that is shared, "down" or "up"',
        "kind": "The kind of cell; one of a, b",
        "rank": "The rank; at least 1",
        "plain": "",
    }


@dataclass(frozen=True)
class Explained:
    side: str = setting("up", 'The side that is shared, "down" or "up".', choices=("down", "up"))
    kind: str = setting("a", "The kind of cell.", choices=("a", "b"))
    rank: int = setting(1, "The rank.", least=1)
    plain: int = 1


def test_json_is_flat_and_has_no_settings_of_python_alone() -> None:
    outer = Outer(Inner(least=2, word="a:x=1"), names=("x", "y"))
    flat = to_json(outer)
    plain = {"shares": [0.5], "size": 2, "rows": 1}
    assert flat == plain | {"least": 2, "share": 0.5, "word": "a:x=1", "names": ["x", "y"]}
    assert from_json(Outer, flat | {"nosuch": 1}) == outer
    with pytest.raises(ConfigError):
        from_json(Experiment, {})  # without data


@pytest.mark.parametrize("key", [*index()])
def test_the_types_of_every_method_can_be_read(key: str) -> None:
    if index()[key]["family"] != "peft":
        from intarsia.core.registry import check_types

        check_types(card(key).config())


def postponed(**types: str) -> type:
    """Make a dataclass as the module of a method has it: its annotations are text."""
    names = {name: setting(default, "The number.", **ranges) for name, default, ranges in NUMBERS}
    return dataclass(frozen=True)(
        type("Postponed", (), {"__annotations__": types, "__post_init__": check, **names})
    )


NUMBERS: tuple[tuple[str, Any, dict[str, Any]], ...] = (
    ("rank", 4, {"least": 1}),
    ("share", 0.5, {"above": 0, "most": 1}),
)


@pytest.mark.parametrize(
    ("values", "want"),
    [
        ({"rank": 0}, "at least 1"),
        ({"rank": 1.5}, "a whole number"),
        ({"rank": "four"}, "a whole number"),
        ({"share": 0}, "0 < share <= 1"),
        ({"share": 1.5}, "0 < share <= 1"),
    ],
)
def test_types_that_are_text_are_checked_like_others(values: dict[str, Any], want: str) -> None:
    kind = postponed(rank="int", share="float")
    kind(rank=1, share=1)
    with refused(ConfigError, what=next(iter(values)), want=want):
        kind(**values)


def test_a_type_that_only_type_checkers_import_leaves_the_range() -> None:
    kind = postponed(rank="Nowhere", share="float")
    kind(rank="four")
    with refused(ConfigError, what="rank", got=0):
        kind(rank=0)


def test_help_says_the_limits() -> None:
    helps = {
        item.name: schema.help_of(item)
        for item in dataclasses.fields(postponed(rank="int", share="float"))
    }
    assert helps == {"rank": "The number; at least 1", "share": "The number; 0 < share <= 1"}
    assert (
        setting("a", "A word.", choices=("a", "b")).metadata["setting"].limits("x") == "one of a, b"
    )
