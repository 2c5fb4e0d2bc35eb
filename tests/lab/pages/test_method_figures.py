"""The drawings and the when-to-use lines of the methods' pages come from the cards."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import pytest

from intarsia.catalog import cards, describe
from intarsia_lab.pages.method_figures import WIDTH, figure, when

DESCRIBED = {card["name"]: card for card in map(describe, cards()) if "doc" in card}


def drawn(name: str) -> str:
    return " ".join(ElementTree.fromstring(figure(DESCRIBED[name])).itertext())


@pytest.mark.parametrize("name", [n for n, c in DESCRIBED.items() if figure(c)])
def test_a_drawing_is_well_formed_and_inside_its_frame(name: str) -> None:
    svg = ElementTree.fromstring(figure(DESCRIBED[name]))[0]
    height = float(svg.attrib["viewBox"].split()[-1])
    assert name in svg.attrib["aria-label"]
    for box in svg.iter("rect"):
        x, y, w, h = (float(box.attrib[key]) for key in ("x", "y", "width", "height"))
        assert x >= 0 and x + w <= WIDTH and y >= 0 and y + h <= height
    assert all(float(t.attrib["y"]) < height for t in svg.iter("text"))


def test_a_drawing_says_what_the_tags_say() -> None:
    assert "parts of the cell" in drawn("mosa") and "folded: no extra layer" in drawn("mosa")
    assert "a change of weights" in drawn("lora") and "parts" not in drawn("lora")
    assert "stays next to the layer" in drawn("mixlora")
    assert "nothing learned" in drawn("hash") and "learned gate" in drawn("topk")
    assert "all tokens of the batch" in drawn("expert_choice")


def test_a_router_is_drawn_only_where_there_is_one() -> None:
    with_router = {name for name, card in DESCRIBED.items() if "router" in figure(card)}
    assert with_router == {"upcycle", "mixlora", "llava_mole"}
    # a gate is drawn for routers that have one of their own
    assert not {n for n in ("moe_x", "residual", "zcode_m3", "comet") if figure(DESCRIBED[n])}


@pytest.mark.parametrize("name", [n for n, c in DESCRIBED.items() if c["kind"] == "router"])
def test_no_drawing_of_a_router_stands_on_two_pages(name: str) -> None:
    others = [
        figure(card).replace(other, name) for other, card in DESCRIBED.items() if other != name
    ]
    text = figure(DESCRIBED[name])
    assert not text or text not in others


def test_when_to_use_it_and_when_not() -> None:
    card: dict[str, Any] = {"kind": "router", "name": "r", "tags": ["non_causal"]}
    text = when(
        card | {"doc": "A router.\n\nRaises: x.\nNot for decoders: they\n  look back\n\nMore."}
    )
    assert "**Use it for** mixtures in encoders" in text and "a baseline for routers" in text
    assert text.endswith("**Not for** decoders: they look back.")
    assert when({"kind": "format", "name": "f", "tags": [], "doc": "Nothing said."}) == ""
