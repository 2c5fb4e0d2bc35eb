"""The experiments on models that see, in their smallest form: every arm is run once and kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from intarsia.conformance.senses import Letters, decoder, questions
from intarsia.senses.data.questions import Processor, Question
from intarsia.senses.slime import Slime
from intarsia_lab.experiments import slime, study, uni_moe
from intarsia_lab.materials import canvases, small_reader, small_trunk


@pytest.fixture(autouse=True)
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTARSIA_HOME", str(tmp_path))
    monkeypatch.setattr(uni_moe, "trunk", lambda texts, layers: (decoder(), Letters()))
    for module in (uni_moe, slime, small_reader):
        monkeypatch.setattr(module, "EPOCHS", 1)
    for name, value in (("STEPS", 2), ("BATCH", 2), ("LAYOUTS", 4), ("PICTURES", 4)):
        monkeypatch.setattr(small_reader, name, value)


def test_uni_moe_in_its_smallest_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uni_moe, "questions", lambda: (questions(4), questions(2)))
    for name, value in (("SEES", "pixels"), ("HEARS", "log-mel"), ("VECTORS", (4, 2))):
        monkeypatch.setattr(uni_moe, name, value)
    messages: list[str] = []
    result = study("uni-moe").measure((0,), messages.append)
    assert len(result.table) == len(messages) == 2
    assert {"audio", "image", "text"} <= result.table[0].keys()


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
@pytest.mark.parametrize(
    ("count", "by_tile"),
    [
        (canvases.CANVAS, [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]),
        (canvases.STRIP, [0, 1, 4, 5, 2, 3, 6, 7]),
    ],
)
def test_a_list_names_all_items_tile_by_tile(count: int, by_tile: list[int]) -> None:
    questions = canvases.canvas_questions(3, 0, items=count, listed=True)
    assert len(questions) == 3 * 5
    for question in questions[4::5]:
        kinds, colours = _middles(question)
        names = {label: name for name, label in canvases.KINDS.items()}
        named = [f"{names[kinds[i]]} {colours[i]}" for i in by_tile]
        assert question.question == canvases.LIST and question.answer == f" {' '.join(named)}"


def test_a_reader_has_a_token_for_each_word() -> None:
    words = small_reader.tokenizer()
    ids = words("Colour of the bag\n red", add_special_tokens=False)["input_ids"]
    tokens = words.convert_ids_to_tokens(ids)
    assert tokens == ["Colour", "of", "the", "bag", "\n", "red"] and words.eos_token_id not in ids


def test_questions_on_a_picture_are_joined_behind_its_marks() -> None:
    words = small_reader.tokenizer()
    make = Processor(words, {}, {"image": lambda views: 3})
    of_picture = {"image": [torch.zeros(1, 3, 2)]}
    pairs = {"Colour of the bag": " red", "Colour of the boot": " blue"}
    rows = [
        make.row(Question(*pair, image=(Image.new("L", (1, 1)),)), of_picture)
        for pair in pairs.items()
    ]
    row = small_reader.joined(rows)
    assert (row["input_ids"] < 0).tolist() == [True] * 3 + [False] * 14
    labelled = words.convert_ids_to_tokens(row["labels"][row["labels"] != -100].tolist())
    assert labelled == ["red", small_reader.END, "blue", small_reader.END]
    assert len(row["labels"]) == len(row["asked"]) == 17 and row["image"] is rows[0]["image"]


def test_an_item_is_the_mean_of_its_two_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small_reader, "NOISE", 0.0)
    words = small_reader.tokenizer()
    model = small_reader.decoder(0, len(words))
    layout = canvases.ItemLayout.drawn(np.random.default_rng(0), canvases.STRIP)
    vectors = small_reader.item_vectors(model, words, [layout], torch.Generator())
    embed = model.get_input_embeddings()
    # the third vector is of the fifth item: the first tile's second row
    pair = words([f"{canvases.NAMES[layout.kinds[4]]} {layout.colours[4]}"])["input_ids"]
    assert torch.equal(vectors[0, 2], embed(torch.tensor(pair[0])).mean(0))


@pytest.mark.thorough
@pytest.mark.usefixtures("items")
def test_slime_in_its_smallest_form(monkeypatch: pytest.MonkeyPatch) -> None:
    arms = {
        slime.EVERY: Slime("pixels", 4, 4, 4, None, 1.0, over=None),
        slime.OURS: Slime("pixels", 4, 4, 4, 9, over=None),
    }
    small = (("ARMS", arms), ("TRAIN", 2), ("TEST", 1))
    for name, value in small:
        monkeypatch.setattr(slime, name, value)
    slime.questions.cache_clear()
    messages: list[str] = []
    result = study("slime").measure((0,), messages.append)
    local = {row["arm"]: row["local vectors"] for row in result.table}
    assert local == {slime.EVERY: "16", slime.OURS: "4", slime.RANDOM: "4"}
    assert len(result.table) == 3 and len(messages) == len(arms)
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
