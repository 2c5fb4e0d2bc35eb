"""Materials for experiments in their smallest form: a corpus of one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from intarsia.data import corpora
from intarsia.data.small_models import SmallModel
from intarsia_lab.kit import rates
from intarsia_lab.materials import routing_traces
from intarsia_lab.routing import Scale, materials
from intarsia_lab.routing import contenders as routed

WORDS = "The cat sat on 12 mats, and Tom ran.\n"


@pytest.fixture(autouse=True)
def grid(monkeypatch: pytest.MonkeyPatch) -> None:
    """Grids of rates do not grow: in a toy an edge wins by chance."""
    monkeypatch.setattr(rates, "RATE_REACH", (1.0, 0.0))


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> routed.Bench:
    """The smallest scale; the corpus is called "toy", and cells are kept in a folder of its own."""
    monkeypatch.setenv("INTARSIA_HOME", str(tmp_path))
    monkeypatch.setattr(materials, "SEGMENT", 256)
    monkeypatch.setitem(corpora.CORPORA, "toy", corpora.Corpus(lambda _: WORDS * 1000, "a toy"))
    scale = Scale(SmallModel(8, 4, 2, 8), batch=4, steps=4, length=8, vocabulary=260, test=16)
    return routed.Bench("toy", scale, "here")


@pytest.fixture
def mixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The mixture whose routing experiments look at: two layers, three steps on these two texts."""
    monkeypatch.setenv("INTARSIA_HOME", str(tmp_path))
    for name, value in (("FIRST", 2), ("THEN", 1), ("BATCH", 2), ("LAYERS", 2)):
        monkeypatch.setattr(routing_traces, name, value)
    monkeypatch.setitem(routing_traces.SETTINGS, "num_hidden_layers", 2)
    both = {"a": WORDS * 2000, "b": WORDS.upper() * 2000}
    monkeypatch.setattr(routing_traces, "texts", lambda: both)
    return both
