"""The README of a saved adapter is a model card: the Hub's library parses it, its code runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import ModelCard
from torch import Tensor, nn
from torch.testing import assert_close

import intarsia
from intarsia.adapters import Bottleneck, Lora
from intarsia.core import Method
from intarsia.methods import Mosa, PeftMethod

IMAGES = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
SETS = [(x, i % 3) for i, x in enumerate(IMAGES)]
SIZES: dict[str, Any] = {"img_size": 32, "depth": 1, "embed_dim": 24, "num_heads": 2}


def vit() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", num_classes=3, **SIZES).eval()


def said(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model.eval()(IMAGES)


def code_in(card: ModelCard) -> list[str]:
    return re.findall(r"```python\n(.*?)```", card.text, re.S)


@pytest.mark.parametrize(
    "method",
    [Mosa(Bottleneck(4, activation="gelu")), Lora(2), PeftMethod("dora")],
    ids=["mosa", "lora", "dora"],
)
def test_a_run_writes_it_and_its_code_runs(method: Method, tmp_path: Path) -> None:
    model = intarsia.apply(vit(), method)
    record = {"data": {"spec": str(tmp_path / "photos"), "classes": ["a", "b", "c"]}}
    run = intarsia.fit(
        model, SETS, test=SETS[:4], record=record, out=tmp_path / "run",  # pyright: ignore
        epochs=1, batch_size=8, lr=0.1, trackers=(),
    )  # fmt: skip
    folder = tmp_path / "run" / "adapter"
    card: Any = ModelCard.load(folder / "README.md")
    assert card.data.base_model == "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    assert card.data.library_name == "peft" and card.data.pipeline_tag == "image-classification"
    results = card.data.eval_results
    scores = {(e.dataset_split, e.metric_type): e.metric_value for e in results}
    for metric, value in run.record["results"]["test"].items():
        assert scores["test", metric] == value
    assert {e.dataset_name for e in results} == {"photos"}
    assert run.record["data"]["train"]["sha256"] in card.text
    assert "lr 0.1" in card.text and "a, b, c" in card.text and str(tmp_path) not in card.text
    logits, names = said(model), {"base": vit()}
    shapes = {n: t.shape for n, t in vit().state_dict().items()}
    for text in code_in(card):
        text, (line,) = text.replace("FOLDER", str(folder)), re.findall("base = .*", text) or ("",)
        if line:
            built: dict[str, Any] = {"timm": timm}
            exec(line.replace("pretrained=True", "pretrained=False"), built)  # noqa: S102
            assert {n: t.shape for n, t in built["base"].state_dict().items()} == shapes
            names["base"] = vit()  # the weights of the training run
        exec(text.replace(line, ""), names)  # noqa: S102
        if "model" in names and "stock" not in names:
            assert_close(said(names["model"]), logits)
    assert_close(said(names["stock"]), logits, atol=1e-4, rtol=1e-4)


def test_without_a_training_it_says_what_is_known(tmp_path: Path) -> None:
    intarsia.save(intarsia.adapt(vit(), Bottleneck(4, placement="pfeiffer")), tmp_path / "a")
    card: Any = ModelCard.load(tmp_path / "a" / "README.md")
    assert card.data.eval_results is None and "Scores" not in card.text
    assert len(code_in(card)) == 3 and "placement=pfeiffer" in card.text
