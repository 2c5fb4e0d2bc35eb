"""Options that are made of declared settings."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

import intarsia
from intarsia.cli.declared import of_method, option, with_options
from intarsia.core.errors import ConfigError, UnknownName
from intarsia.core.registry import declaration, index
from intarsia.core.schema import LIMITS, setting, settings_of

MOST = 10
"""Options that are written by hand: --json, --out, those of the program, and the machinery."""


@dataclass(frozen=True)
class Painting:
    """Settings of a made-up verb."""

    coats: int = setting(2, "Coats of paint.", least=1, most=9, fix="Try 3.")
    colour: str = setting("red", "Colour of the paint.", choices=("red", "blue"))
    walls: tuple[str, ...] = setting((), "Wall to paint; may be repeated.")
    hours: tuple[int, ...] = setting((1, 2), "Hours between two coats, with commas.")
    folder: Path | None = setting(None, "Folder of stencils.", flag="--stencils", short="-s")
    wait: float | None = setting(None, "Time to dry.", above=0, unit="minutes")


@dataclass(frozen=True)
class Wall:
    """A setting that a verb has with another default."""

    rows: int = setting(2, "Rows of stones.", least=1, most=9)


painted: list[Any] = []


@with_options(of_method("moa", "sink"))
def paint(
    house: Annotated[str, typer.Argument(help="House.")],
    painting: Painting,
    rows: Annotated[int, option(Wall, "rows", least=4, help="Rows of bricks.")] = 5,
    **settings: Any,
) -> None:
    """Paint a house."""
    painted.append((house, painting, rows, settings))


def said(*words: str) -> Any:
    app = typer.Typer(add_completion=False)
    app.command()(paint)
    painted.clear()
    return CliRunner().invoke(app, [*words], env={"COLUMNS": "200"})


def test_a_verb_gets_the_settings_as_declared() -> None:
    assert said("mine").exit_code == 0
    assert painted == [("mine", Painting(), 5, {"sink": 64})]


def test_each_kind_of_value_is_read() -> None:
    words = "mine --coats 3 --walls a --walls b --hours 4,5,6 -s x --wait 1.5 --sink 32 --rows 7"
    assert said(*words.split()).exit_code == 0
    painting = Painting(3, "red", ("a", "b"), (4, 5, 6), Path("x"), 1.5)
    assert painted == [("mine", painting, 7, {"sink": 32})]


@pytest.mark.parametrize(
    ("words", "kind", "subject", "got", "want"),
    [
        ("--coats 10", ConfigError, "--coats", "10", "1 ... 9"),
        ("--colour green", UnknownName, "--colour", "'green'", "red"),
        ("--wait 0", ConfigError, "--wait", "0.0", "above 0"),
        ("--rows 3", ConfigError, "--rows", "3", "4 ... 9"),
        ("--sink -1", ConfigError, "--sink", "-1", "at least 0"),
        ("--hours x", ConfigError, "--hours", "'x'", "whole number"),
    ],
)
def test_a_value_out_of_its_range_is_refused_by_its_option(
    words: str, kind: type, subject: str, got: str, want: str
) -> None:
    error: Any = said("mine", *words.split()).exception
    assert isinstance(error, kind) and not painted
    assert subject in str(error) and str(error.got) == got
    assert want in str(error.want)


def test_help_says_words_and_range_once() -> None:
    text = " ".join(said("--help").output.replace("│", " ").split())
    assert "Coats of paint (1 ... 9)." in text and "Colour of the paint (red, blue)." in text
    assert "Rows of bricks (4 ... 9)." in text and "MINUTES" in text
    assert "--stencils" in text and "-s" in text and "[default: 1,2]" in text


def test_a_card_declares_the_same_limits_in_the_index() -> None:
    """The option of a method's setting has the range that its constructor checks."""
    config: Any = intarsia.methods.MoA
    declared = {item.name: setting for item, setting in settings_of(config)}
    for entry in index()["moa"]["settings"]:
        _, default, read = declaration("moa", entry["name"])
        assert default == getattr(config(), entry["name"])
        for limit in LIMITS:
            assert getattr(read, limit) == getattr(declared[entry["name"]], limit)


def test_few_options_are_written_by_hand() -> None:
    root = Path(__file__).parents[2]
    files = [*root.glob("src/intarsia/**/*.py"), *root.glob("lab/src/**/*.py")]
    by_hand = [file for file in files for _ in re.findall(r"typer\.Option\(", file.read_text())]
    assert files and len(by_hand) <= MOST, by_hand
