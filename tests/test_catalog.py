"""The catalogue is exactly the files with a card, read when it is asked for."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from intarsia.catalog import METHODS, TAGS, card, cards, describe
from intarsia.core import Card, registry
from intarsia.core.errors import ConfigError, UnknownName

SRC = Path(__file__).parents[1] / "src" / "intarsia"


def modules_with_a_card(root: Path) -> set[str]:
    """Modules below `root` with a line that begins with `CARD = `."""
    files = (p for p in root.rglob("*.py") if "\nCARD = " in f"\n{p.read_text()}")
    return {".".join(p.relative_to(root).with_suffix("").parts) for p in files}


def test_catalogue_is_exactly_the_files_with_a_card() -> None:
    assert modules_with_a_card(SRC) == set(METHODS)


def test_a_card_that_is_not_listed_is_found(tmp_path: Path) -> None:
    (tmp_path / "routers").mkdir()
    (tmp_path / "routers" / "topk.py").write_text("x = 1\nCARD = Card()\n")
    (tmp_path / "routers" / "none.py").write_text("# CARD = \nNO_CARD = 1\n")
    assert modules_with_a_card(tmp_path) == {"routers.topk"}


def test_list_is_sorted_and_names_each_once() -> None:
    assert list(METHODS) == sorted(set(METHODS))


@pytest.mark.parametrize("module", METHODS)
def test_a_card_has_the_name_of_its_file(module: str) -> None:
    key = module.rpartition(".")[2]
    assert card(key).key == key
    assert card(key).config.__module__ == f"intarsia.{module}"


def test_keys_of_the_registry_are_the_adapters() -> None:
    # by folder, so that a message can list them without importing one; the cards must agree
    assert {c.key for c in cards("adapter")} == set(registry.keys())


def test_cards_are_chosen_by_kind_tag_and_family() -> None:
    everything = cards()
    assert [c.key for c in everything] == sorted(c.key for c in everything)
    assert {c.key for c in cards(tag="linear")} == {c.key for c in everything if "linear" in c.tags}
    mixtures = cards("adapter", family="adapter mixtures")
    assert {"adamix", "mosa"} <= {c.key for c in mixtures}
    assert all(c.kind == "adapter" for c in mixtures)
    assert cards("router", tag="linear") == ()


@pytest.mark.parametrize(
    ("asked", "near"),
    [
        ({"kind": "adaptor"}, "adapter"),
        ({"tag": "stochastik"}, "stochastic"),
        ({"family": "adapter mixture"}, "adapter mixtures"),
    ],
    ids=["kind", "tag", "family"],
)
def test_an_unknown_choice_says_what_is_near(asked: dict[str, str], near: str) -> None:
    with pytest.raises(UnknownName, match=f"Did you mean {near}"):
        cards(**asked)


def test_an_unknown_key_says_what_is_near() -> None:
    with pytest.raises(UnknownName, match="Did you mean mosa"):
        card("moza")


def test_reading_the_list_imports_no_method() -> None:
    code = (
        "import sys; from intarsia.core import registry; registry.keys(); "
        "ours = ('intarsia.adapters', 'intarsia.methods', 'intarsia.routers'); "
        "sys.exit(any(m.startswith(ours) for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_router_is_no_method_of_a_saved_model() -> None:
    with pytest.raises(UnknownName, match="'random'"):
        registry.method_from_dict({"method": "random"})
    with pytest.raises(ConfigError, match="'method' among them"):
        registry.method_from_dict({"experts": 4})


def test_every_tag_has_a_meaning() -> None:
    assert {tag for c in cards() for tag in c.tags} <= TAGS.keys()


@pytest.mark.parametrize("found", cards(), ids=lambda c: c.key)
def test_a_description_is_json_and_says_every_setting(found: Card) -> None:
    said = json.loads(json.dumps(describe(found)))
    assert [s["name"] for s in said["settings"]] == [f.name for f in fields(found.config)]
    defaults = {s["name"]: s["default"] for s in said["settings"]}
    assert registry.settings_from_dict(found, defaults) == found.config()
    assert said["paper"]["url"].endswith(said["paper"]["arxiv"]) and said["summary"]
