"""The pages on real models: their code as it stands, offline on small stand-ins."""

from __future__ import annotations

import re
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import intarsia
from intarsia.data import ImageSet, Splits

from .language_models import byte_tokenizer

HOW_TO = Path(__file__).parents[1] / "docs" / "how-to"
PAGES = ("upcycle-smollm2.md", "vit-mixture.md")


def language_model(name: str) -> tuple[LlamaForCausalLM, Any]:
    """A Llama of four small layers whose tokens are bytes."""
    assert name == "smollm2"
    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=4,
        num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=True,
        eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval(), tokenizer


def load_data(name: str, *, seed: int, **_: Any) -> Splits:
    """Noise in ten classes."""
    assert name == "fashion-mnist"
    draw, classes = np.random.default_rng(seed), tuple("abcdefghij")

    def part(name: str) -> ImageSet:
        pictures = draw.integers(0, 255, (20, 28, 28)).astype(np.uint8)
        return ImageSet(name, pictures, np.arange(20) % 10, classes)

    return Splits(part("train"), None, part("test"), classes, {})


def fewer(load: Callable[..., Any], train: int, test: int) -> Callable[..., Any]:
    def loaded(*args: Any, **kwargs: Any) -> Any:
        return load(*args, **{**kwargs, "train": train, "test": test})

    return loaded


def run(page: str, folder: Path) -> str:
    """Run the blocks of a page, one after the other; returns the page."""
    text = (HOW_TO / page).read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S)
    assert blocks
    for number, block in enumerate(blocks):
        file = folder / f"block_{number}.py"
        file.write_text(block)
        runpy.run_path(str(file))
    return text


@pytest.mark.thorough
@pytest.mark.parametrize("page", PAGES)
def test_a_page_runs_on_stand_ins(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    backbone = intarsia.backbone
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(intarsia, "language_model", language_model)
    monkeypatch.setattr(intarsia, "load_texts", fewer(intarsia.load_texts, 16, 4))
    monkeypatch.setattr(intarsia, "load_data", load_data)
    monkeypatch.setattr(
        intarsia, "backbone",
        lambda name, **opts: backbone("test_vit", **{**opts, "size": 32, "pretrained": False}),
    )  # fmt: skip
    text = run(page, tmp_path)
    check(text, capsys.readouterr().out)


@pytest.mark.network
@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_a_page_runs_on_the_real_weights(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The page runs on fewer rows than it shows, whose figures take some minutes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(intarsia, "load_texts", fewer(intarsia.load_texts, 16, 8))
    monkeypatch.setattr(intarsia, "load_data", fewer(intarsia.load_data, 50, 50))
    text = run(page, tmp_path)
    check(text, capsys.readouterr().out)


def check(text: str, printed: str) -> None:
    """Compare the output with the page's lines; copied mixtures begin with the dense score.

    All active slices stay the dense model while they train: each weight has the same gradient.
    """
    lines = {
        match[1]: match.groups()[1:]
        for match in re.finditer(
            r"^(\w.*?) +(?:perplexity|accuracy) (\S+) -> (\S+),", printed, re.M
        )
    }
    assert list(lines) == ["the MLPs", "copies, 2 of 4", "slices, 4 of 4", "slices, 2 of 4"]
    assert all(name in text for name in lines)
    numbers = {n: [float(v.rstrip("%")) for v in values] for n, values in lines.items()}
    dense = numbers["the MLPs"]
    for name in ("copies, 2 of 4", "slices, 4 of 4"):
        assert numbers[name][0] == pytest.approx(dense[0], rel=1e-3, abs=0.02)
    assert numbers["slices, 4 of 4"][1] == pytest.approx(dense[1], rel=5e-3, abs=2)
