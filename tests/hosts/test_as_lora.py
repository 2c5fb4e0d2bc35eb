"""Adapters that are low-rank changes in the end, written as PEFT's own LoRA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.testing import assert_close

import intarsia
from intarsia import Bottleneck, Lora, Mosa
from intarsia.adapters import Mos
from intarsia.core.errors import ConfigError, FoldError
from intarsia.hosts.attach.as_lora import layers_of
from intarsia.methods import Poly

from ..refusals import refused
from ..toys import llama

IDS = torch.arange(12).view(2, 6) * 5


def adapted(method: Any, **options: Any) -> Any:
    """A model with numbers in all that is trained."""
    model = intarsia.adapt(llama(), method, **options)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.3 * torch.randn(p.shape, generator=draw))
    return model.eval()


def said(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.mark.parametrize(
    "method",
    [
        Mos(3, 2, 4, 1, alpha=5.0, roles=("qkv", "mlp_linear")),
        Mos(None, 1, 2, 0, roles=("qkv", "mlp_linear")),
        Mosa(Lora(2), experts=2),
    ],
    ids=["MoS", "MoS of the most vectors", "MoSA over LoRA"],
)
def test_the_lora_says_what_the_adapter_said_in_peft_alone(method: Any, tmp_path: Path) -> None:
    model = adapted(method)
    want = said(model)
    both = intarsia.as_lora(model, "plain")
    assert both.active_adapters == ["plain"]
    assert_close(said(both), want)
    both.set_adapter("default")
    assert_close(said(both), want)
    both.set_adapter("plain")
    both.delete_adapter("default")
    intarsia.save(both, tmp_path)
    theirs = PeftModel.from_pretrained(llama(), str(tmp_path / "plain"))
    assert theirs.peft_config["default"].peft_type.value == "LORA"
    assert_close(said(theirs.eval()), want)
    assert_close(said(theirs.merge_and_unload()), want, rtol=1e-4, atol=1e-5)


def test_layers_of_fewer_vectors_are_filled_up() -> None:
    model = adapted(Mos(None, 2, 4, 1, alpha=4.0), targets=["q_proj", "layers.0.mlp.down_proj"])
    mine: list[Any] = [layer.intarsia_cells["default"] for layer in layers_of(model, "default")]
    ranks = {cell.rank for cell in mine}
    assert len(ranks) == 2
    want = said(model)
    both = intarsia.as_lora(model)
    assert_close(said(both), want)
    cells: list[Any] = [layer.intarsia_cells["lora"] for layer in layers_of(both, "lora")]
    assert {cell.down.out_features for cell in cells} == {max(ranks)}


def test_what_is_no_lora_is_refused_and_nothing_is_added() -> None:
    model = adapted(Bottleneck(4))
    with refused(ConfigError, what="adapter 'default' as LoRA"):
        intarsia.as_lora(model)
    with refused(FoldError, what="merging Poly at 'model.layers.0.self_attn.q_proj'"):
        intarsia.as_lora(adapted(Poly(2, skills=2, rank=1)))
    assert list(model.peft_config) == ["default"]
    with refused(ConfigError, what="adapter", got="0 active ones"):
        intarsia.as_lora(llama())
    with refused(ConfigError, what="adapter", got="'other'"):
        intarsia.as_lora(model, of="other")
    with refused(ConfigError, what="adapter name", got="'default'"):
        intarsia.as_lora(adapted(Lora(2)), "default")
