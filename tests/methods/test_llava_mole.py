"""LLaVA-MoLE in Llama and in a timm trunk: experts in the MLPs, LoRA in the attention."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.testing import assert_close

import intarsia
from intarsia import Lora
from intarsia.adapters import LoraCell
from intarsia.core import Cell, Site
from intarsia.core.errors import ConfigError, FoldError, TargetError
from intarsia.gating import Router, learned_routers
from intarsia.mixtures.lora_experts import DeltaExperts
from intarsia.senses import LlavaMole

from ..refusals import refused
from ..toys import tied_llama as llama

SMALL = LlavaMole(over=Lora(4), attention=Lora(2, roles=("qkv", "projection")))


def moved(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(noise, alpha=0.1)
    return model


def cells(model: nn.Module) -> dict[str, Cell]:
    return {
        name.partition(".intarsia_cells")[0].rpartition("layers.")[2]: module
        for name, module in model.named_modules()
        if isinstance(module, Cell) and name.endswith(".default")
    }


def test_the_mlps_have_experts_and_the_attention_has_lora() -> None:
    adapter_cells = cells(intarsia.adapt(llama(), SMALL, head=None))
    kinds = {name: type(cell) for name, cell in adapter_cells.items()}
    attention = {f"{i}.self_attn.{n}_proj": LoraCell for i in (0, 1) for n in "qkvo"}
    assert kinds == attention | {f"{i}.mlp": DeltaExperts for i in (0, 1)}
    mlp: Any = adapter_cells["0.mlp"]
    # each has its own settings: a released implementation gave experts those of the attention
    assert mlp.experts["up_proj"][2].config.rank == 4
    assert getattr(adapter_cells["0.self_attn.q_proj"], "config").rank == 2  # noqa: B009
    assert mlp.router.bias is not None and mlp.router.experts == 3


def test_alpha_is_twice_the_rank_as_released() -> None:
    settings = LlavaMole()
    for lora in (settings.over, settings.attention):
        assert lora is not None and lora.alpha == 2 * lora.rank


def test_it_starts_as_its_host_and_trains() -> None:
    plain, ids = llama(), torch.randint(0, 64, (3, 7))
    with torch.no_grad():
        want = plain(ids).logits
    model = intarsia.adapt(llama(), SMALL, head=None)
    assert torch.equal(model.eval()(input_ids=ids).logits, want)
    loss = moved(model).train()(input_ids=ids).logits.square().mean()
    (
        loss + intarsia.gating.aux_loss(model)
    ).backward()  # the task's loss does not reach the routers
    routers = learned_routers(model).values()
    assert len(routers) == 2
    assert all(p.grad is not None and p.grad.any() for r in routers for p in r.parameters())


@pytest.mark.parametrize("scale", ["prob", "ste", "none"])
def test_without_a_scale_the_task_does_not_teach_the_router(scale: str) -> None:
    method = LlavaMole(over=Lora(4), attention=None, scale=scale)
    model = moved(intarsia.adapt(llama(), method, head=None)).train()
    loss = model(input_ids=torch.randint(0, 64, (3, 7))).logits.square().mean()
    loss.backward(retain_graph=True)
    weights = [r.get_parameter("weight") for r in learned_routers(model).values()]
    assert all((w.grad is not None) == (scale != "none") for w in weights[-1:])
    for weight in weights:
        weight.grad = None
    intarsia.gating.aux_loss(model).backward()  # the balance loss always does
    assert all(w.grad is not None and w.grad.any() for w in weights)


def balance_of(model: nn.Module, **inputs: Tensor) -> Tensor:
    model(**inputs)
    return intarsia.gating.aux_loss(model)


def test_padding_changes_neither_outputs_nor_losses() -> None:
    model = moved(intarsia.adapt(llama(), LlavaMole(over=Lora(4), attention=None), head=None))
    for part in model.modules():
        if isinstance(part, Router):
            part.train()
    ids = torch.randint(1, 64, (2, 5))
    alone = model(input_ids=ids).logits
    loss = intarsia.gating.aux_loss(model)
    for filler in (0, 7):
        padded = torch.cat([ids, torch.full((2, 3), filler)], 1)
        mask = (torch.arange(8) < 5).long().expand(2, 8)
        got = model(input_ids=padded, attention_mask=mask).logits
        assert_close(got[:, :5], alone)
        assert_close(intarsia.gating.aux_loss(model), loss)
    # the next forward without a mask forgets it
    assert_close(model(input_ids=ids).logits, alone)


def test_it_generates_with_a_cache_and_padding() -> None:
    model = moved(intarsia.adapt(llama(), SMALL, head=None)).eval()
    ids = torch.randint(1, 64, (2, 5))
    settings: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    want = model.generate(input_ids=ids, use_cache=False, **settings)  # pyright: ignore
    assert torch.equal(model.generate(input_ids=ids, **settings), want)  # pyright: ignore
    left_padded = torch.cat([torch.zeros(2, 2, dtype=torch.long), ids], 1)
    mask = (left_padded > 0).long()
    got = model.generate(input_ids=left_padded, attention_mask=mask, **settings)  # pyright: ignore
    assert torch.equal(got[:, 2:], want)


def test_it_saves_and_loads(tmp_path: Path) -> None:
    model, ids = moved(intarsia.adapt(llama(), SMALL, head=None)).eval(), torch.arange(6)[None]
    model.save_pretrained(str(tmp_path))  # pyright: ignore
    again = PeftModel.from_pretrained(llama(), str(tmp_path)).eval()
    assert torch.equal(again(input_ids=ids).logits, model(input_ids=ids).logits)
    names = {n for n, p in model.named_parameters() if p.requires_grad}
    assert any("router.bias" in n for n in names)


def test_adapters_share_a_batch_of_unequal_lengths() -> None:
    model: Any = intarsia.adapt(llama(), SMALL, head=None, name="a")
    model = intarsia.adapt(model, SMALL, head=None, name="b", seed=1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "intarsia_cells" in name:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model.eval()
    ids = torch.randint(1, 64, (3, 5))
    mask = torch.tensor([[1] * 5, [1] * 3 + [0] * 2, [1] * 4 + [0]])
    names = ["a", "b", "a"]
    mixed = model(input_ids=ids, attention_mask=mask, adapter_names=names).logits
    for i, name in enumerate(names):
        model.set_adapter(name)
        alone = model(input_ids=ids[i : i + 1], attention_mask=mask[i : i + 1]).logits
        real = mask[i].bool()
        assert_close(mixed[i][real], alone[0][real], rtol=1e-4, atol=1e-5)


def test_it_lives_in_a_timm_trunk_and_cannot_fold() -> None:
    torch.manual_seed(0)
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=3, depth=2)
    x = torch.randn(2, 3, 32, 32)
    want = vit.eval()(x)
    model = intarsia.adapt(vit, SMALL, head=None).eval()
    assert_close(model(x), want)
    with pytest.raises(FoldError):
        intarsia.fold(model)


def test_the_experts_widths_are_checked_where_they_go() -> None:
    with refused(ConfigError, what="rank", got=33):
        intarsia.adapt(llama(), LlavaMole(over=Lora(33), attention=None), head=None)
    eva = timm.create_model("eva02_tiny_patch14_224", img_size=28, num_classes=2, depth=1)
    with refused(
        TargetError, what="target 'blocks.0.mlp'", got="fc1 (192 -> 1024), fc2 (512 -> 192)"
    ):
        intarsia.adapt(eva, LlavaMole(over=Lora(2), attention=None), head=None)


@pytest.mark.parametrize(
    ("settings", "got"),
    [
        ({"experts": 0}, "0"),
        ({"scale": "renormalised"}, "'renormalised'"),
        ({"scale": "soft"}, "'soft'"),
        ({"balance": -1}, "-1"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], got: str) -> None:
    with refused(ConfigError, got=got):
        LlavaMole(**settings)


def test_roles_follow_the_attention() -> None:
    assert LlavaMole().roles == ("mlp", "qkv", "projection")
    assert LlavaMole(attention=None).roles == ("mlp",)
    with refused(TargetError, what="target 'q_proj'"):
        LlavaMole(attention=None).build(Site("q_proj", 4, 4), generator=torch.Generator())
