"""What S2FT forgets of texts, in its smallest form, and the last blocks of a decoder alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from intarsia.claims import s2ft_text, small_trunk
from intarsia.claims.low_rank import trained
from intarsia.data.small_models import Small, small_decoder
from intarsia.hosts import apply

PAIRS = [(f"What is {word}?\n", "thing" if len(word) % 2 else "act") for word in ("a", "bb") * 12]
SIZES = {"POOL": 8, "TRAIN": 6, "VAL": 4, "TEST": 4, "ROWS": 2, "LENGTH": 20, "EPOCHS": 1}


def quiet(_: str) -> None: ...


class Letters:
    """A token for each letter."""

    eos_token_id = 0

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [1 + ord(letter) % 120 for letter in text]}


@pytest.fixture
def whole(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """A decoder of five layers with gated MLPs, in place of SmolLM2."""
    from transformers import LlamaForCausalLM

    config: Any = small_decoder(Small(16, 5, 2, 8), tokens=121, length=32).config
    config.intermediate_size = 48
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(config).eval()
    monkeypatch.setenv("INTARSIA_HOME", str(tmp_path))
    monkeypatch.setattr(small_trunk, "_whole", lambda: (model, Letters()))
    for name, value in SIZES.items():
        monkeypatch.setattr(s2ft_text, name, value)
    monkeypatch.setattr(s2ft_text, "asked", lambda: PAIRS)
    monkeypatch.setattr(s2ft_text, "texts", lambda: {"a": "It was. " * 9, "b": "To be so " * 9})
    monkeypatch.setattr(s2ft_text, "HELD", {"a": "", "b": ""})
    for cached in (s2ft_text.glosses, s2ft_text.rate):
        cached.cache_clear()
    yield model
    for cached in (s2ft_text.glosses, s2ft_text.rate):
        cached.cache_clear()


def test_the_last_blocks_say_what_the_whole_says(whole: Any) -> None:
    tail, words = small_trunk.last_blocks(["some words"], 3)
    assert len(tail.model.layers) == 3
    ids = torch.tensor(words.kept)[torch.tensor([words("some words")["input_ids"]])]
    with torch.no_grad():
        said = tail(inputs_embeds=small_trunk.below(ids, 3).float()).logits
        expected = whole(ids).logits[..., words.kept]
    assert (said - expected).abs().max() < 0.05 * expected.abs().max()


def test_both_arms_have_as_many_parameters() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes: dict[str, Any] = {"hidden_size": 576, "intermediate_size": 1536, "vocab_size": 4}
    config = LlamaConfig(num_hidden_layers=2, num_attention_heads=9, **sizes)
    counts = {trained(apply(LlamaForCausalLM(config), m)) for m in s2ft_text.METHODS.values()}
    assert counts == {2 * 25_344}


def test_forgetting_is_read_where_both_know_as_much(whole: Any) -> None:
    result = s2ft_text.forgetting((0,), quiet)
    assert result.got in (0, 0.5, 1)
    assert [row["text"] for row in result.table] == ["a", "b"]
    found = s2ft_text.glosses()
    assert len(found.pool) == 8 and len(found.held["b"]) == 2
    row = found.pool[0]
    assert row["inputs_embeds"].shape == (20, 16)
    assert int((row["labels"] >= 0).sum()) in (len("thing"), len("act"))
