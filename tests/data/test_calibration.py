"""Calibration rows are a share of every text, spread over it, and none that judges."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import intarsia
from intarsia.core.errors import ConfigError, DataError
from intarsia.data import corpora
from intarsia.data.calibration import names_of
from intarsia.data.corpora import MIXED

from .test_texts import Bytes


@pytest.fixture
def texts(tmp_path: Path) -> list[str]:
    """Two texts whose characters say where they stand, and a file of samples."""
    files = [tmp_path / "a.txt", tmp_path / "b.md", tmp_path / "c.jsonl"]
    files[0].write_text(" ".join(f"a{i:04}" for i in range(400)))
    files[1].write_text(" ".join(f"b{i:04}" for i in range(300)))
    files[2].write_text("".join(json.dumps({"text": f"c{i:04}"}) + "\n" for i in range(200)))
    return [str(file) for file in files]


def words(rows: object) -> list[str]:
    long_words: list[str] = []
    for row in rows:  # pyright: ignore[reportUnknownVariableType, reportGeneralTypeIssues]
        text = "".join(map(chr, row["input_ids"].tolist()))  # pyright: ignore
        long_words += [w for w in text.replace("\x00", " ").split() if len(w) == 5]
    return long_words


def test_every_text_gives_its_share_from_all_over_it(texts: list[str]) -> None:
    data = intarsia.load_calibration(",".join(texts), Bytes(), rows=8, length=48, test=3)
    assert data.record["rows"] == dict(zip(texts, (3, 3, 2), strict=True))
    assert {tuple(row["input_ids"].shape) for row in data.train} == {(48,)}
    assert [words([row])[0][0] for row in data.train] == list("abcabcab")  # in turns
    places = [int(w[1:]) for w in words(data.train) if w[0] == "a"]
    assert min(places) < 5 and 180 < max(places) < 300  # three of four rows are for training
    assert not {*words(data.train)} & {*words(data.test)}
    assert all(int(w[1:]) >= 300 for w in words(data.test) if w[0] == "a")
    alone = intarsia.load_calibration(texts[0], Bytes(), rows=8, length=48)
    assert max(int(w[1:]) for w in words(alone.train)) < 360 and len(alone.test) == 0
    again = intarsia.load_calibration(",".join(texts), Bytes(), rows=8, length=48, test=3)
    assert again.record == data.record
    assert all(
        torch.equal(r["input_ids"], s["input_ids"])
        for r, s in zip(data.train, again.train, strict=True)
    )


def test_mixed_is_every_corpus() -> None:
    assert names_of(MIXED) == corpora.names() and len(corpora.names()) == 5
    assert names_of("austen, gcide") == ("austen", "gcide")
    assert names_of("mixed,a.txt") == (*corpora.names(), "a.txt")


def test_what_cannot_be_is_refused(texts: list[str]) -> None:
    for wrong in ("", "austen,,gcide", "mixed,austen"):
        with pytest.raises(ConfigError) as caught:
            intarsia.load_calibration(wrong, Bytes())
        assert caught.value.got == repr(wrong)
    with pytest.raises(ConfigError) as caught:
        intarsia.load_calibration(",".join(texts), Bytes(), rows=2)
    assert caught.value.got == 2
    for name in (texts[0], texts[2]):
        with pytest.raises(DataError) as short:
            intarsia.load_calibration(name, Bytes(), rows=4, length=900)
        assert short.value.want == "4" and "900 tokens" in str(short.value.got)
