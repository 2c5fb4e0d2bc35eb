"""The catalogue is exactly the files with a card, read when it is asked for."""

from __future__ import annotations

import importlib
import inspect
import json
import subprocess
import sys
from dataclasses import fields
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest

import intarsia
from intarsia.catalog import TAGS, card, cards, describe, find
from intarsia.core import Card, registry
from intarsia.core.errors import ConfigError, UnknownName
from intarsia.core.exports import homes, namespaces, public_path
from intarsia.core.registry import INDEX, index
from intarsia.core.schema import fits, help_of, types_of
from intarsia_lab.pages.index import (
    entries,
    index_text,
    modules_with_cards,
    package_of,
    stub_text,
    stubs,
)

from .refusals import refused

STALE = "run: python -m intarsia_lab.pages.methods"
METHODS = [key for key, entry in index().items() if entry["config"]]


def test_the_index_is_what_the_methods_say_now() -> None:
    assert index_text(entries()) == INDEX.read_text(), STALE


@pytest.mark.parametrize("stub", stubs(), ids=lambda p: p.parent.name)
def test_a_stub_has_every_name(stub: Path) -> None:
    assert stub_text(index(), stub, package_of(stub)) == stub.read_text(), STALE
    # a module of a name's own name would hide it once it is imported
    names = {name for name, module in homes(stub).items() if module}
    assert not names & {p.stem for p in stub.parent.iterdir()}


def test_every_card_has_a_public_name() -> None:
    for key in METHODS:
        path = public_path(index()[key]["config"].rpartition(".")[2])
        assert attrgetter(path.removeprefix("intarsia."))(intarsia) is card(key).config


def test_every_public_name_is_where_it_is_said_to_be() -> None:
    for name in namespaces():
        assert attrgetter(public_path(name).removeprefix("intarsia."))(intarsia) is not None


def test_a_name_asked_for_at_the_top_is_told_where_it_is() -> None:
    with pytest.raises(AttributeError, match=r"intarsia\.routers\.Transport"):
        getattr(intarsia, "Transport")  # noqa: B009


def test_the_stub_gains_a_new_card_and_loses_what_is_gone(tmp_path: Path) -> None:
    stub = tmp_path / "__init__.pyi"
    stub.write_text(
        "from .core import Site as Site\n"
        "from .routers.topk import TopK as TopK\n"
        "from .routers.vanished import Vanished as Vanished\n"
    )
    entries = {"topp": index()["topp"], "peft-lora": index()["peft-lora"]}
    assert stub_text(entries, stub) == (
        "from .core import Site as Site\nfrom .routers.topk import TopK as TopK\n"
    )
    stub.write_text("from .topk import TopKRouter as TopKRouter\n")
    assert stub_text(entries, stub, "routers.") == (
        "from .topk import TopKRouter as TopKRouter\nfrom .topp import TopP as TopP\n"
    )


def test_modules_with_cards_are_found(tmp_path: Path) -> None:
    (tmp_path / "routers").mkdir()
    (tmp_path / "routers" / "topk.py").write_text("x = 1\nCARD = Card()\n")
    (tmp_path / "routers" / "many.py").write_text("CARDS = (Card(), Card())\n")
    (tmp_path / "routers" / "several").mkdir()
    (tmp_path / "routers" / "several" / "__init__.py").write_text("CARD = Card()\n")
    (tmp_path / "routers" / "none.py").write_text("# CARD = \nNO_CARD = 1\n")
    assert modules_with_cards(tmp_path) == ["routers.many", "routers.several", "routers.topk"]


def test_a_card_has_the_name_of_its_file() -> None:
    for key in METHODS:
        module = index()[key]["module"]
        if not hasattr(importlib.import_module(f"intarsia.{module}"), "CARDS"):
            assert module.rpartition(".")[2] == key
        assert card(key).config.__module__.startswith(f"intarsia.{module}"), key


def test_a_listed_card_is_that_of_its_file() -> None:
    for key, entry in index().items():
        module = importlib.import_module(f"intarsia.{entry['module']}")
        written = next(c for c in registry.cards_in(module) if c.key == key)
        for field in fields(Card):
            ours, theirs = getattr(card(key), field.name), getattr(written, field.name)
            assert ours == theirs, (key, field.name)


def test_a_name_belongs_to_one_card() -> None:
    spelled = [
        name for c in cards() for name in {registry.spelled(c.key), *map(registry.spelled, c.names)}
    ]
    assert len(spelled) == len(set(spelled))


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("AdaptFormer", "bottleneck"),
        ("Split & Merge", "mosa"),
        ("MoSA", "mosa"),
        ("LT-SFT", "lt_sft"),
        ("LLaVA-MoLE", "llava_mole"),
        ("MixLoRA", "mixlora"),
        ("MoS", "mos"),
        ("Mixture of Shards", "mos"),
        ("S2FT", "s2ft"),
        ("S²FT", "s2ft"),
        ("Polytropon", "poly"),
        ("MHR", "poly"),
        ("Bi-Adapter", "bi"),
        ("1-bit", "bi"),
        ("COMET", "comet"),
        ("DSelect-k", "dselect"),
        ("EvoMoE", "evomoe"),
        ("DTS gate", "evomoe"),
        ("MomentumSMoE", "residual"),
        ("RMoE", "recurrent"),
        ("MoE-X", "moe_x"),
        ("Z-code M3", "zcode_m3"),
        ("Z-code", "zcode_m3"),
        ("DeepSpeed-MoE", "deepspeed_moe"),
        ("Sparsity-constrained optimal transport", "transport"),
        ("Softmax Gaussian MoE", "gaussian_moe"),
        ("expert choice", "expert_choice"),
        ("Switch Transformer", "switch"),
        ("BitFit", "bitfit"),
        ("linear probe", "linear"),
    ],
)
def test_a_method_is_found_by_the_name_of_its_paper(name: str, key: str) -> None:
    assert find(name) == key
    assert key in [c.key for c in cards(text=name)]


def test_cards_are_searched_by_title_summary_and_number() -> None:
    assert [c.key for c in cards(text="2408.06793")] == ["recurrent"]
    assert {c.key for c in cards(text="cardinality-constrained")} == {"comet", "permutation"}
    assert "mosa" in {c.key for c in cards(text="disjoint parts")}
    assert cards(text="no such thing") == ()


def test_a_name_that_is_near_is_proposed() -> None:
    with refused(
        UnknownName,
        what="unknown method",
        got="'Polytropen'",
        near=("Polytropon", "Polytropon router"),
    ):
        find("Polytropen")


def test_cards_are_chosen_by_kind_tag_and_family() -> None:
    everything = cards()
    assert [c.key for c in everything] == sorted(c.key for c in everything)
    assert {c.key for c in cards(tag="linear")} == {c.key for c in everything if "linear" in c.tags}
    mixtures = cards("adapter", family="adapter mixtures")
    assert {"adamix", "mosa"} <= {c.key for c in mixtures}
    assert all(c.kind == "adapter" for c in mixtures)
    assert cards("router", tag="linear") == ()


@pytest.mark.parametrize(
    ("arguments", "near"),
    [
        ({"kind": "adaptor"}, "adapter"),
        ({"tag": "stochastik"}, "stochastic"),
        ({"family": "adapter mixture"}, "adapter mixtures"),
    ],
    ids=["kind", "tag", "family"],
)
def test_an_unknown_choice_says_what_is_near(arguments: dict[str, str], near: str) -> None:
    with pytest.raises(UnknownName, match=f"Did you mean {near}"):
        cards(**arguments)


def test_an_unknown_key_says_what_is_near() -> None:
    with refused(UnknownName, what="unknown method", got="'moza'", near=("moa", "mosa")):
        card("moza")


@pytest.mark.parametrize(
    "code",
    [
        "from intarsia.core import Card, errors, registry; registry.keys()",
        "from intarsia.catalog import cards, describe; [describe(c) for c in cards()]",
        "import intarsia; dir(intarsia)",
    ],
)
def test_reading_the_index_imports_no_method_and_no_torch(code: str) -> None:
    heavy = ("torch", "peft", "intarsia.adapters", "intarsia.methods", "intarsia.routers")
    code = f"import sys; {code}; sys.exit(any(m.startswith({heavy}) for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_router_is_no_method_of_a_saved_model() -> None:
    with refused(UnknownName, what="unknown method", got="'random'"):
        registry.method_from_dict({"method": "random"})
    with refused(ConfigError, what="method settings", got="['experts']"):
        registry.method_from_dict({"experts": 4})


def test_every_tag_has_a_meaning() -> None:
    assert {tag for c in cards() for tag in c.tags} <= TAGS.keys()


@pytest.mark.parametrize("entry", [card(key) for key in METHODS], ids=lambda c: c.key)
def test_a_number_that_is_a_text_is_refused_by_its_name(entry: Card) -> None:
    kind: Any = entry.config
    # an estimator checks its settings in `fit`
    if not kind.__dataclass_params__.frozen:
        return
    for item in fields(kind):
        if is_number(getattr(kind(), item.name)) and not fits("many", types_of(kind)[item.name]):
            with refused(ConfigError, what=item.name, got="'many'"):
                kind(**{item.name: "many"})


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@pytest.mark.parametrize("entry", [card(key) for key in METHODS], ids=lambda c: c.key)
def test_a_description_is_json_and_says_every_setting(entry: Card) -> None:
    record = json.loads(json.dumps(describe(entry)))
    assert [s["name"] for s in record["settings"]] == [f.name for f in fields(entry.config)]
    defaults = {s["name"]: s["default"] for s in record["settings"]}
    assert registry.settings_from_dict(entry, defaults) == entry.config()
    assert record["paper"]["url"].endswith(record["paper"]["arxiv"]) and record["summary"]
    doc = inspect.getdoc(entry.config) or ""
    helps = [help_of(field) for field in fields(entry.config)]
    assert record["doc"] == doc
    assert [setting["help"] for setting in record["settings"]] == helps and all(helps)
