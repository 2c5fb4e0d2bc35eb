"""The claims on models that see, in their smallest form: every arm is run once and kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from intarsia.conformance.senses import Letters, decoder, questions
from intarsia.data.senses.questions import Question
from intarsia.methods.slime import Slime
from intarsia_lab.claims import slime, uni_moe
from intarsia_lab.claims.ledger import claim
from intarsia_lab.materials import canvases, small_trunk


@pytest.fixture(autouse=True)
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTARSIA_HOME", str(tmp_path))
    for module in (uni_moe, slime):
        monkeypatch.setattr(module, "trunk", lambda texts, layers: (decoder(), Letters()))
        monkeypatch.setattr(module, "EPOCHS", 1)


def test_uni_moe_in_its_smallest_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uni_moe, "questions", lambda: (questions(4), questions(2)))
    for name, value in (("SEES", "pixels"), ("HEARS", "log-mel"), ("VECTORS", (4, 2))):
        monkeypatch.setattr(uni_moe, name, value)
    arms = {name: uni_moe.ARMS[name] for name in (uni_moe.DENSE, uni_moe.BALANCED, uni_moe.OURS)}
    monkeypatch.setattr(uni_moe, "ARMS", arms | {uni_moe.COPIES: arms[uni_moe.OURS]})
    messages: list[str] = []
    first = claim("uni-moe-mean").measure((0,), messages.append)
    ran = len(messages)
    assert len(first.table) == ran == 4 and {"audio", "image", "text"} <= first.table[0].keys()
    again = claim("uni-moe-stages").measure((0,), messages.append)
    assert len(messages) == ran and again.got == 0 and again.table == first.table
    headline = claim("uni-moe").measure((0,), messages.append)
    assert len(messages) == ran and headline.table == (first.table[0], first.table[2])


def test_modalities_have_their_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uni_moe, "questions", lambda: (questions(16), questions(1)))
    rows = uni_moe.chosen(0, uni_moe.OURS)
    counts = [sum(q.modality == m for q in rows) for m in uni_moe.SHARES]
    assert counts == [16, 4, 1]
    even = uni_moe.chosen(0, uni_moe.BALANCED)
    assert len(even) == 21 and {q.modality for q in even} == set(uni_moe.SHARES)
    assert uni_moe.chosen(1, uni_moe.OURS) != rows
    scores = {"right": {"a": 0.2, "b": 0.4}}
    assert uni_moe.spread(scores) == pytest.approx(0.1) and uni_moe.mean(scores) == pytest.approx(
        0.3
    )


@pytest.fixture
def items(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shop pictures whose shade is their kind, three to train on and one to test on of each."""
    labels = np.arange(40) % 10
    images = np.stack([np.full((28, 28), 25 * (k + 1), np.uint8) for k in labels])
    monkeypatch.setattr(canvases, "_items", lambda: (images, labels))
    monkeypatch.setattr(canvases, "TRAINING", 30)


def _middles(question: Question) -> tuple[np.ndarray, list[str]]:
    """The kind and the colour of each item, read off the middle of its picture."""
    pixels = np.asarray(question.image[0])[28::56, 28::56].reshape(-1, 3).astype(float)
    light = pixels.max(1)  # every colour has a channel of 220 or more
    middles: list[int] = []
    named: list[str] = []
    for pixel, peak in zip(pixels, light, strict=True):
        ends = {n: np.array(c) * peak / max(c) for n, c in canvases.COLOURS.items()}
        name = min(ends, key=lambda n: float(np.abs(ends[n] - pixel).sum()))
        middles.append(round(peak / max(canvases.COLOURS[name]) * 255 / 25) - 1)
        named.append(name)
    return np.array(middles), named


@pytest.mark.usefixtures("items")
def test_a_canvas_has_what_its_questions_say() -> None:
    questions = canvases.canvas_questions(5, 0)
    assert len(questions) == 20
    for question in questions:
        kinds, colours = _middles(question)
        places = np.flatnonzero(kinds == canvases.KINDS[question.question.split()[-1]])
        assert len(places) == 1 and question.answer == f" {colours[places[0]]}"
    assert [q.question for q in questions] != [q.question for q in canvases.canvas_questions(5, 1)]


@pytest.mark.usefixtures("items")
def test_a_tile_has_one_kind_in_one_colour() -> None:
    for kind, question in enumerate(canvases.tile_questions(20, 0)):
        kinds, colours = _middles(question)
        name = canvases.NAMES[kind % 6]
        assert kinds.tolist() == [canvases.KINDS[name]] * 4
        assert [f" {colour} {name}" for colour in colours] == [question.answer] * 4


@pytest.mark.thorough
@pytest.mark.usefixtures("items")
def test_slime_in_its_smallest_form(monkeypatch: pytest.MonkeyPatch) -> None:
    method = Slime("pixels", 4, 4, 4, 9, over=None)
    arms = {
        slime.EVERY: Slime("pixels", 4, 4, 4, None, 1.0, over=None),
        slime.OURS: method,
        slime.DOWN: Slime("pixels", 4, 4, 1, None, 1.0, over=None),
        slime.JOINT: method,
    }
    small = (("ARMS", arms), ("TRAIN", 2), ("TEST", 1), ("TILES", 4))
    for name, value in small:
        monkeypatch.setattr(slime, name, value)
    slime.questions.cache_clear()
    messages: list[str] = []
    first = claim("slime").measure((0,), messages.append)
    local = {row["arm"]: row["local vectors"] for row in first.table}
    quarter = (slime.OURS, slime.DOWN, slime.JOINT, slime.RANDOM)
    assert local == {slime.EVERY: "16"} | dict.fromkeys(quarter, "4")
    assert claim("slime-stages").measure((0,), messages.append).table == first.table
    assert len(messages) == len(arms)
    slime.questions.cache_clear()


def test_words_are_those_that_occur() -> None:
    class Whole:
        eos_token_id = 9

        def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
            return {"input_ids": [ord(c) for c in text]}

        def decode(self, ids: list[int], **_: Any) -> str:
            return "".join(map(chr, ids))

    words = small_trunk.Words(Whole(), ["ab", "bc"])
    assert words("cab")["input_ids"] == [3, 1, 2] and words.decode([3, 1, 2]) == "cab"
    assert words.eos_token_id == 0
    with pytest.raises(KeyError):
        words("d")
