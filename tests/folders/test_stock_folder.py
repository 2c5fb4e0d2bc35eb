"""What `save_pretrained` writes of a changed model opens by `from_pretrained`, or is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import nn

import intarsia
from intarsia.core.change import is_record
from intarsia.core.errors import CheckpointError
from intarsia.formats import Bitmask, Ternary
from intarsia.hosts.spans.head_spans import HeadSpans
from intarsia.sparse.prune.pruners import Magnitude
from intarsia_lab.pages.host_models import HOSTS, host
from intarsia_lab.pages.hosts import said

Change = Callable[[nn.Module], nn.Module]
BATCH = HOSTS["Llama"].batch()
CHANGES: dict[str, Change] = {
    "upcycled": intarsia.upcycle,
    "recurrent router": lambda model: intarsia.upcycle(model, "rmoe"),
    "bitmask": lambda model: intarsia.apply(
        model, intarsia.sparse.Compress(Bitmask(values="int8"))
    ),
    "ternary": lambda model: intarsia.apply(model, intarsia.sparse.Compress(Ternary())),
    "spans": lambda model: intarsia.apply(model, HeadSpans(0.5, sink=1, block=1, length=6)),
    "momentum": lambda model: intarsia.apply(model, intarsia.methods.Momentum()),
    "union of experts": lambda model: intarsia.apply(model, intarsia.experts.UnionOfExperts()),
    "upcycled, compressed": lambda model: intarsia.apply(
        intarsia.upcycle(model), intarsia.sparse.Compress(Bitmask())
    ),
}


def opened(folder: Path) -> Any:
    return hf.AutoModelForSequenceClassification.from_pretrained(folder)


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_model_comes_back_as_it_was(name: str, tmp_path: Path) -> None:
    model: Any = CHANGES[name](host("Llama")).eval()
    want, tensors = said(model, BATCH), model.state_dict()

    def same(back: Any) -> bool:
        """Compare tensors by their bits, outputs to rounding.

        A file's tensors begin elsewhere in memory, and by that a product may add in another order.
        """
        assert torch.allclose(said(back, BATCH), want, atol=1e-6, rtol=1e-5)
        state = back.state_dict()
        return state.keys() == tensors.keys() and all(
            torch.equal(t, state[n]) for n, t in tensors.items()
        )

    model.save_pretrained(tmp_path / "first")
    again = opened(tmp_path / "first")
    assert same(again)
    again.save_pretrained(tmp_path / "second")
    assert same(opened(tmp_path / "second"))
    intarsia.save(again, tmp_path / "ours")
    assert same(intarsia.load(host("Llama"), tmp_path / "ours"))
    assert again.to(torch.float64).train().dtype == torch.float64  # no quantizer holds it


def test_a_mixture_that_came_back_trains_and_takes_an_adapter(tmp_path: Path) -> None:
    model: Any = intarsia.upcycle(host("Llama"))
    model.save_pretrained(tmp_path)
    again = opened(tmp_path).train()
    again(**BATCH).logits.square().sum().backward()
    assert all(p.grad is not None for n, p in again.named_parameters() if "router" in n)
    assert isinstance(intarsia.adapt(again, "lora"), nn.Module)


def test_a_model_of_stock_modules_has_no_record() -> None:
    model: Any = intarsia.apply(host("Llama"), Magnitude(0.5))
    assert not hasattr(model.config, "quantization_config")
    stock: Any = intarsia.fold(intarsia.apply(host("Llama"), intarsia.sparse.Compress(Bitmask())))
    assert not hasattr(stock.config, "quantization_config")


def test_a_quantizer_of_another_kind_stays() -> None:
    model: Any = host("Llama")
    model.config.quantization_config = {"quant_method": "other"}
    assert intarsia.upcycle(model).config.quantization_config == {"quant_method": "other"}  # pyright: ignore
    assert is_record({"quant_method": "intarsia"}) and not is_record(None)


@pytest.mark.parametrize(
    "edit",
    [
        lambda step: step.update(key="nothing"),
        lambda step: step.update(decided={}),
        lambda step: step.pop("settings"),
        lambda step: step["decided"].update(paths=["model.layers.9.mlp"] * 2),
    ],
)
def test_damaged_steps_are_refused(edit: Callable[[Any], Any], tmp_path: Path) -> None:
    model: Any = intarsia.upcycle(host("Llama"))
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    edit(config["quantization_config"]["steps"][0])
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError):
        opened(tmp_path)


@pytest.mark.thorough
def test_transformers_may_be_imported_first(tmp_path: Path) -> None:
    model: Any = intarsia.upcycle(host("Llama")).eval()
    model.save_pretrained(tmp_path)
    code = f"""
import transformers.quantizers.auto
import transformers, intarsia, torch
model = transformers.AutoModelForSequenceClassification.from_pretrained({str(tmp_path)!r})
print(sum("router" in name for name, _ in model.named_modules()) > 0)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "True"
