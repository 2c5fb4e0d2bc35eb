"""What S2FT forgets of texts that nobody trains on, in its smallest form."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from intarsia.folders.verbs import apply
from intarsia_lab.claims import s2ft_text
from intarsia_lab.materials import last_blocks
from intarsia_lab.materials.low_rank import trained
from intarsia_lab.materials.short_texts import QuestionAnswer

from ...toys import quiet

SIZES = {"POOL": 8, "TRAIN": 6, "VAL": 4, "TEST": 4, "EPOCHS": 1}
QUESTIONS = [
    QuestionAnswer(f"a {word}", "thing" if word < "m" else "act") for word in "abcdwxyz" * 2
]


def tokens(text: str, **_: Any) -> dict[str, list[int]]:
    return {"input_ids": [zlib.crc32(w.encode()) % 39 + 1 for w in text.split()]}


def decoder(width: int, hidden: int, layers: int) -> LlamaForCausalLM:
    heads: dict[str, Any] = {"num_attention_heads": 1, "num_key_value_heads": 1, "vocab_size": 40}
    return LlamaForCausalLM(
        LlamaConfig(hidden_size=width, intermediate_size=hidden, num_hidden_layers=layers, **heads)
    )


@pytest.fixture
def smallest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    model = decoder(16, 96, 3).eval()
    monkeypatch.setenv("INTARSIA_HOME", str(tmp_path))
    monkeypatch.setattr(last_blocks, "decoder", lambda: (model, tokens))
    monkeypatch.setattr(s2ft_text, "kinds", lambda: QUESTIONS)
    texts = {name: [QuestionAnswer("", "it was to be so")] * 2 for name in s2ft_text.HELD}
    monkeypatch.setattr(s2ft_text, "texts", lambda: texts)
    for name, value in SIZES.items():
        monkeypatch.setattr(s2ft_text, name, value)
    for cached in (s2ft_text.glosses, s2ft_text.rates):
        cached.cache_clear()
    yield
    for cached in (s2ft_text.glosses, s2ft_text.rates):
        cached.cache_clear()


def test_both_arms_have_as_many_parameters() -> None:
    counts = {trained(apply(decoder(576, 1536, 2), m)) for m in s2ft_text.METHODS.values()}
    assert counts == {2 * 25_344}


def test_forgetting_is_read_where_both_know_as_much(smallest: None) -> None:
    result = s2ft_text.forgetting((0,), quiet)
    assert abs(result.got) < 5 and [rate.arm for rate in result.rates] == list(s2ft_text.METHODS)
    assert [row["text"] for row in result.table] == list(s2ft_text.HELD)
    scores = s2ft_text.train(s2ft_text.LORA, 0)
    first, second = (scores[name] for name in s2ft_text.HELD)
    assert first.target == second.target and first.source == pytest.approx(
        second.source
    )  # the same text
    parts = s2ft_text.glosses()
    assert [len(p) for p in (parts.pool, parts.val, parts.test)] == [8, 4, 4]
