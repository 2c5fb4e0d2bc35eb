"""An error says got, want and fix, and survives the way between processes."""

from __future__ import annotations

import pickle
import re

import pytest

from intarsia.core import errors
from intarsia.core.errors import (
    ConfigError,
    IntarsiaError,
    MissingExtra,
    UnknownName,
    printable,
    some_of,
)

PLAIN = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type)
    and issubclass(kind, IntarsiaError)
    and not (kind is not UnknownName and issubclass(kind, UnknownName))
    and kind not in (MissingExtra, UnknownName)
]


@pytest.mark.parametrize("kind", PLAIN, ids=lambda kind: kind.__name__)
def test_an_error_is_a_small_conversation(kind: type[IntarsiaError]) -> None:
    error = kind("rank", got=0, want="at least 1", fix="Try 8.")
    assert str(error) == "rank: got 0, want at least 1. Try 8."
    assert (error.what, error.got, error.want, error.fix) == ("rank", 0, "at least 1", "Try 8.")


@pytest.mark.parametrize(
    "error",
    [
        ConfigError("rank", got=0, want="at least 1", fix="Try 8."),
        UnknownName("method", "mosaa", ["mosa", "lora"]),
        MissingExtra("onnx", "export"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_survives_another_process(error: IntarsiaError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)


def test_a_name_that_is_nearly_right_is_suggested() -> None:
    assert "Did you mean mosa?" in str(UnknownName("method", "mosaa", ["mosa", "bottleneck"]))
    assert "Choose one of them." in str(UnknownName("method", "xyz", ["mosa", "lora"]))
    assert UnknownName("method", "xyz", ["mosa", "lora"]).want == "one of lora, mosa"


def test_the_nearest_names_come_first_and_a_long_list_is_cut() -> None:
    names = [f"name-{number:02}" for number in range(30)]
    error = UnknownName("claim", "name-2", names, "intarsia reproduce")
    near = re.match("Did you mean (.*)[?]", error.fix)
    assert near is not None
    suggested = near[1].split(" or ")
    nearest = error.want.removeprefix("one of ").removesuffix(" and 20 more").split(", ")
    assert nearest[: len(suggested)] == suggested
    assert len(nearest) == len(set(nearest)) == 10
    assert error.fix.endswith("All 30: intarsia reproduce")


def test_a_missing_extra_says_what_to_install() -> None:
    error = MissingExtra("onnxruntime", "export")
    assert isinstance(error, ImportError)
    assert "pip install 'intarsia[export]'" in str(error)
    assert "'onnxruntime'" in str(error)


def test_control_characters_of_a_name_do_not_reach_the_terminal() -> None:
    name = "a\x1b[31mb\x07\x9b\u202e\udcff.png"
    assert printable(name) == r"a\x1b[31mb\x07\x9b\u202e\udcff.png"
    error = ConfigError(name, got=name, want="\x1b", fix="two\nlines\tremain")
    assert printable(str(error)) == str(error) and "two\nlines\tremain" in str(error)


def test_a_name_that_is_like_none_gets_no_advice() -> None:
    assert "Choose one of them." in str(UnknownName("kind", "nonsense", ["baseline", "router"]))


def test_a_long_list_of_a_file_is_cut() -> None:
    assert some_of(["a", "b"]) == "['a', 'b']"
    text = some_of(["x" * 1000] * 500_000)
    assert len(text) < 1200 and text.endswith("and 499,990 more")
