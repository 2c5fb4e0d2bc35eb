"""The page of questions: what is lit, and that nothing of a question becomes code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from intarsia.reports.pictures import embedded_pictures
from intarsia.senses.report.page import LEFT, VEIL, Shown, lit, seen_report, write_seen


def test_cells_that_were_read_are_bright() -> None:
    white = Image.new("RGB", (336, 224), "white")  # brighter than any veil
    mask = np.zeros((6, 4), dtype=bool)
    mask[4, 1] = True  # second row, second tile, its upper right query
    picture = np.asarray(lit(white, mask, (2, 3)))
    side = picture.shape[1] // 3
    assert picture.shape[0] == 2 * side
    bright = picture[..., 0] > 250
    rows, columns = np.nonzero(bright)
    assert (rows.min(), rows.max() + 1) == (side, side + side // 2)
    assert (columns.min(), columns.max() + 1) == (side + side // 2, 2 * side)
    assert np.abs(picture[0, 0] - (255 * LEFT + (1 - LEFT) * np.array(VEIL))).max() <= 1
    assert lit(white).size == (336, 224) and lit(white, mask[:, :3], (2, 3)).width > 300


def test_a_page_has_question_answer_and_experts(tmp_path: Path) -> None:
    examples = [
        Shown("<script>alert(1)</script>?", "a & b", Image.new("RGB", (30, 40)), told="1 view"),
        Shown("what?", "", Image.new("RGB", (224, 112)), np.eye(2, 4) > 0, (1, 2), right="b"),
        Shown("say it", "it"),
    ]
    loads = {"a.router": torch.tensor([[1, 3], [0, 0], [2, 0]]), "b.router": torch.ones(3, 2)}
    report = seen_report(examples, loads)
    assert report.sentences == (
        "3 questions.",
        "2 of 8 vectors of tiles were read, the closest to the text.",
    )
    (table,) = report.tables()
    assert table.rows[0][1].text == "0.25 0.75" and table.rows[0][2].text == "none none"
    assert set(report.figures()) == {"question-0", "question-1", "loads"}
    page = write_seen(tmp_path / "a.html", examples, loads).read_text()
    assert "<script>alert" not in page and "&lt;script&gt;" in page and "a &amp; b" in page
    assert page.count('<img src="data:image/webp;base64,') == 2
    plain = seen_report(examples[2:])
    assert [section.title for section in plain.sections] == ["Questions"]


def test_pictures_of_a_page_are_together_no_larger_than_a_page_may_be() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (300, 300, 3), dtype=np.uint8)
    pictures = [Image.fromarray(noise)] * 4
    assert sum(map(len, embedded_pictures(pictures))) > 120_000
    assert sum(map(len, embedded_pictures(pictures, 60_000))) < 60_200
