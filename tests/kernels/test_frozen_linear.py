"""The packed product is that of the definition, to the rounding of bfloat16."""

from __future__ import annotations

from functools import partial

import pytest
import timm
import torch
from torch.testing import assert_close

from intarsia import Bottleneck, adapt
from intarsia.core.modes import evaluating
from intarsia.hosts.anatomy import packing as home
from intarsia.hosts.anatomy.class_token import reading_class_token
from intarsia.kernels.frozen_linear import Packed, naive_frozen_linear, packs
from intarsia.train.precision import cast_frozen

BF16 = torch.bfloat16
near = partial(assert_close, rtol=0.03, atol=0.03)
needs = pytest.mark.skipif(not packs(torch.zeros(2, 2, dtype=BF16)), reason="no such kernel here")


@needs
@pytest.mark.parametrize("shape", [(5,), (1, 3), (4, 17), (2, 3, 7), (0, 4)])
@pytest.mark.parametrize(("inputs", "outputs"), [(8, 8), (7, 13), (64, 33), (1, 1)])
@pytest.mark.parametrize("biased", [True, False])
def test_values_and_gradients(shape: tuple[int, ...], inputs: int, outputs: int, biased: bool):
    noise = torch.Generator().manual_seed(0)
    weight = (torch.randn(outputs, inputs, generator=noise) / inputs**0.5).to(BF16)
    bias = torch.randn(outputs, generator=noise).to(BF16) if biased else None
    x = torch.randn(*shape, inputs, generator=noise).to(BF16).float().requires_grad_()
    upstream = torch.randn(*shape, outputs, generator=noise).to(BF16).float()
    want = naive_frozen_linear(x, weight.float(), None if bias is None else bias.float())
    (want_dx,) = torch.autograd.grad(want, x, upstream)
    layer = Packed(weight, bias, 64)
    got = layer(x)
    (gotten,) = torch.autograd.grad(got, x, upstream.to(BF16))
    assert got.dtype == BF16 and got.shape == want.shape
    near(got.float(), want)
    near(gotten, want_dx)
    with torch.no_grad():
        near(layer(x).float(), want)


def test_what_cannot_be_packed() -> None:
    assert not packs(torch.zeros(2, 2)) and not packs(torch.zeros(2, 2, 2, dtype=BF16))
    assert not packs(torch.zeros(2, 2, dtype=BF16, device="meta"))


@needs
def test_a_model_is_packed_where_it_is_frozen_and_is_itself_again(monkeypatch) -> None:
    monkeypatch.setattr(home, "SMALLEST", 1)
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_small_patch14_dinov2", img_size=42, embed_dim=24, num_heads=2, depth=3, num_classes=3
    )
    model = adapt(model, Bottleneck(4, placement="adaptformer", activation="gelu"), layers=[1, 2])
    x = torch.randn(4, 3, 42, 42)

    def step() -> tuple[torch.Tensor, list[torch.Tensor]]:
        model.zero_grad()
        with torch.autocast("cpu", BF16):
            logits = model(x)
            logits.float().square().sum().backward()
        grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        return logits.detach().float(), grads

    cast_frozen(model, "bf16")
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p += 0.1
    want = step()
    with home.packing(model) as count:
        assert count == 7  # of two blocks, but for the last qkv
        near(step(), want, rtol=0.1, atol=0.1)
        with evaluating(model), torch.no_grad(), torch.autocast("cpu", BF16):
            near(model(x).float(), want[0])
    assert not any("forward" in vars(m) for m in model.modules())
    assert_close(step(), want, rtol=0, atol=0)
    with reading_class_token(model.float(), x[:1]) as short, home.packing(model) as count:
        assert short and not count  # in float32 there is nothing to pack
