"""adapt and load on a tiny timm ViT."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from peft import PeftModel
from torch import nn

from intarsia.adapters import Bottleneck, Lora
from intarsia.core import Method
from intarsia.hosts import adapt, load
from intarsia.methods import Mosa, Mosl

METHODS = {
    "adaptformer": Bottleneck(4),
    "pfeiffer": Bottleneck(4, "pfeiffer"),
    "houlsby": Bottleneck(4, "houlsby"),
    "adapter+": Bottleneck(4, "adapter+"),
    "lora": Lora(2, roles=("qkv", "projection", "mlp_linear")),
    "mosa": Mosa(Bottleneck(4)),
    "mosl": Mosl(2),
}
X = torch.linspace(-1, 1, 3 * 3 * 32 * 32).sin().view(3, 3, 32, 32)


def vit() -> nn.Module:
    torch.manual_seed(0)
    settings = {"img_size": 32, "depth": 2, "embed_dim": 32, "num_heads": 2, "num_classes": 5}
    return timm.create_model("vit_tiny_patch16_224", **settings)


def train(model: nn.Module, steps: int = 3) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2)
    model.train()
    for _ in range(steps):
        model(X).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
def test_trained_and_saved_is_the_same_when_loaded(method: Method, tmp_path: Path) -> None:
    model = adapt(vit(), method)
    before = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    train(model)
    y = model(X)
    assert all(torch.equal(p, model.get_parameter(n)) for n, p in before.items())
    model.save_pretrained(tmp_path)
    assert torch.equal(load(vit(), tmp_path).eval()(X), y)
    for low in (False, True):
        loaded = PeftModel.from_pretrained(
            vit(), tmp_path, adapter_name="other", low_cpu_mem_usage=low
        )
        assert torch.equal(loaded.eval()(X), y)
