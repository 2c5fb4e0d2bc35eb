"""`intarsia combine`: a stack and pairs are measured, and what cannot be is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from ..language_models import plain_text
from .conftest import Intarsia


def test_a_stack_and_pairs_are_measured(intarsia: Intarsia, mixture: Path, tmp_path: Path) -> None:
    text, out = tmp_path / "a.txt", tmp_path / "combined.json"
    text.write_text(plain_text(40))
    arguments = (mixture, text, "prune:0.5,quant:w4")
    sizes = ("--rows", 2, "--calibration", 4, "--length", 16)
    result = intarsia("combine", *arguments, *sizes, "--json")
    assert result.code == 0, result.err
    names = [row["entries"] for row in result.json["rows"]]
    assert names == ["none", "prune", "prune + quant"] and result.json["broken"] == []
    result = intarsia("combine", *arguments, *sizes, "--pairs", "--out", out)
    assert result.code == 0 and "prune + quant" in result.out and out.exists(), result.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("austen", "qant"), "Did you mean quant"),
        (("austen", "quant,prune"), "prune:0.25,quant:w4"),
        (("austen", "student,prune"), "both decide"),
        (("elpv",), "a corpus"),
        (("austen", "--rows", "0"), "at least 1"),
    ],
)
def test_what_cannot_be_is_refused(
    intarsia: Intarsia,
    words: tuple[str, ...],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    result = intarsia("combine", "nothing", *words)
    assert result.code == 2 and message in result.words
