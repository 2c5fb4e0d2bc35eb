"""`spans`, its report, and `generate` from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .conftest import Intarsia
from .test_sparse import text  # noqa: F401 - a fixture

SMALL = (
    *("--lengths", "32", "--check", "48", "--sink", "4", "--block", "4"),
    *("--answer", "8", "--rows", "3"),
)


def test_spans_are_chosen_drawn_and_decoded_with(
    intarsia: Intarsia,
    llama: Path,
    text: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    file, page = tmp_path / "spans.json", tmp_path / "page.html"
    result = intarsia("spans", llama, "--calib", text, *SMALL, "--out", file, "--json")
    assert result.code == 0, result.err
    assert result.json["density"] == pytest.approx(0.5, abs=0.05)
    assert len(result.json["spans"]) == 2
    assert set(result.json["loss"]) == {"dense", "uniform", "spans"}
    drawn = intarsia("report", file, "--out", page)
    assert drawn.code == 0, drawn.err
    assert "Spans of 2 layers of 2 heads" in page.read_text()
    arguments = ("generate", llama, "Line 1 of a plain text", "--tokens", "8")
    plain = intarsia(*arguments, "--beside", "--json")
    assert plain.code == 0, plain.err
    assert plain.json["transformers"]["same"]
    ringed = intarsia(*arguments, "--spans", file)
    assert ringed.code == 0, ringed.err
    assert "8 tokens" in ringed.out
    file.write_text(json.dumps({"format": "other"}))
    assert intarsia(*arguments, "--spans", file).code != 0
    assert intarsia("report", file, "--out", page).code != 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("spans", "smollm2"), "--out spans.json"),
        (("spans", "smollm2", "--out", "out"), ".json file"),
        (("spans", "smollm2", "--out", "a.json", "--lengths", "1k"), "whole number"),
        (("spans", "smollm2", "--out", "a.json", "--density", "2"), "0 < density <= 1"),
        (("spans", "smollm2", "--out", "a.json", "--rows", "4"), "at least 5"),
        (("spans", "smollm2", "--out", "a.json", "--calib", "elpv"), "corpus"),
        (("generate", "smollm2", " "), "Once upon"),
        (("generate", "smollm2", "a", "--tokens", "1"), "at least 2"),
        (("generate", "smollm2", "a", "--dtype", "fp8"), "one of auto, float32"),
        (("generate", "smollm2", "a", "--spans", "none.json"), "nothing there"),
    ],
)
def test_what_cannot_be_is_refused_at_once(
    intarsia: Intarsia, words: tuple[str, ...], message: str
) -> None:
    result = intarsia(*words)
    assert result.code != 0
    assert message in result.words
