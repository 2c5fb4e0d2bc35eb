"""A student is the teacher without some blocks, and a model like any other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    ViTConfig,
    ViTForImageClassification,
)

import intarsia
from intarsia import TopK
from intarsia.core.change import steps_of
from intarsia.core.errors import TargetError
from intarsia.gating import PassesState
from intarsia.methods import add_momentum
from intarsia.mixtures import HeavyBall
from intarsia.routers import Recurrent, Switch
from intarsia.sparse.swap.upcycle import places_in as places

SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8,
}  # fmt: skip
WINDOW = {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 2}
HF_VIT = {
    "hidden_size": 32, "num_attention_heads": 2, "image_size": 32, "patch_size": 16,
    "intermediate_size": 64,
}  # fmt: skip


def vit(depth: int = 4) -> nn.Module:
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=32, depth=depth, embed_dim=32, num_heads=2, num_classes=5
    )


def llama(depth: int = 4) -> nn.Module:
    return LlamaForCausalLM(LlamaConfig(**SIZES, num_hidden_layers=depth))


def qwen(depth: int = 4) -> nn.Module:
    """The last two of four layers look back three tokens only."""
    return Qwen3ForCausalLM(Qwen3Config(**SIZES, **WINDOW, num_hidden_layers=depth))


def hf_vit(depth: int = 4) -> nn.Module:
    return ViTForImageClassification(ViTConfig(**HF_VIT, num_hidden_layers=depth))


HOSTS: dict[str, Callable[..., nn.Module]] = {
    "vit": vit, "llama": llama, "qwen": qwen, "hf_vit": hf_vit,
}  # fmt: skip
ROWS = {"vit": "blocks", "llama": "model.layers", "qwen": "model.layers"}


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    return HOSTS[name]().eval()


def out(model: nn.Module) -> Tensor:
    draw = torch.Generator().manual_seed(1)
    if "CausalLM" in type(model).__name__:
        return model(input_ids=torch.randint(1, 64, (2, 8), generator=draw)).logits
    y = model(torch.randn(2, 3, 32, 32, generator=draw))
    return getattr(y, "logits", y)


def moved(model: nn.Module) -> nn.Module:
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw))
    return model


@pytest.mark.parametrize("host", HOSTS)
def test_all_layers_are_the_teacher(host: str) -> None:
    model = made(host)
    logits, names = out(model), list(model.state_dict())
    student = intarsia.experts.student_of(model, range(4))
    assert torch.equal(out(student), logits) and list(student.state_dict()) == names
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.zero_()
    assert torch.equal(out(model), logits), "the teacher's weights are its own"


class Passed(nn.Module):
    """A block that does nothing."""

    def forward(self, x: Any, *_: Any, **__: Any) -> Any:
        return x


@pytest.mark.parametrize("host", ["vit", "llama", "qwen"])
@pytest.mark.parametrize("layers", [[0, 2, 3], [-1, 1], [3]])
def test_it_is_the_teacher_without_those_blocks(host: str, layers: list[int]) -> None:
    model = moved(made(host))
    student = intarsia.experts.student_of(model, layers)
    row = model.get_submodule(ROWS[host])
    for i in range(4):
        if i not in {n % 4 for n in layers}:
            row[i] = Passed()
    assert_close(out(student), out(model))
    assert len(student.get_submodule(ROWS[host])) == len(layers)


@pytest.mark.parametrize("host", ["llama", "qwen", "hf_vit"])
def test_its_config_makes_a_model_that_takes_its_weights(host: str) -> None:
    student = intarsia.experts.student_of(moved(made(host)), [1, 2, 3])
    fresh = type(student)(student.config).eval()
    fresh.load_state_dict(student.state_dict())
    assert_close(out(fresh), out(student))
    assert made(host).config.num_hidden_layers == 4


def test_caches_have_a_place_for_each_of_its_layers() -> None:
    for host in ("llama", "qwen"):
        student = intarsia.experts.student_of(moved(made(host)), [0, 3])
        ids = torch.randint(1, 64, (2, 5), generator=torch.Generator().manual_seed(1))
        settings = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
        cached, plain = (student.generate(ids, use_cache=c, **settings) for c in (True, False))
        assert cached.tolist() == plain.tolist()


def test_features_of_a_timm_student() -> None:
    student = intarsia.experts.student_of(made("vit"), [0, 3])
    assert [info["module"] for info in student.feature_info] == ["blocks.0", "blocks.1"]
    images = torch.randn(1, 3, 32, 32)
    assert len(student.forward_intermediates(images, intermediates_only=True)) == 2


@pytest.mark.parametrize("host", ["vit", "llama"])
@pytest.mark.parametrize("residual", [None, "learned"])
def test_the_student_of_a_mixture_is_saved_as_one(
    host: str, residual: str | None, tmp_path: Path
) -> None:
    model = intarsia.upcycle(
        made(host), Switch(), experts=[2, 3, 4], layers=[0, 2, 3], residual=residual
    )
    student = intarsia.experts.student_of(moved(model), [0, 1, 3])
    row = ROWS[host]
    assert places(student).paths == (f"{row}.0.mlp", f"{row}.2.mlp")
    assert places(student).experts == (2, 4) and places(model).experts == (2, 3, 4)
    folder = intarsia.experts.save_mixture(student, tmp_path / "student")
    again = intarsia.experts.load_mixture(HOSTS[host](3).eval(), folder)
    assert_close(out(again), out(student))
    intarsia.experts.prune_experts(student, 2, "random")
    assert out(student).isfinite().all()


def test_a_student_without_mixtures_is_a_dense_model() -> None:
    model = intarsia.upcycle(made("vit"), TopK(experts=2), layers=[0])
    student = intarsia.experts.student_of(model, [1, 2])
    assert not steps_of(student) and not student._forward_pre_hooks
    intarsia.upcycle(student, TopK(experts=2))
    assert out(student).isfinite().all() and len(model._forward_pre_hooks) == 1


@pytest.mark.parametrize("layers", [[0, 1, 3], [1, 3], [2]])
def test_states_still_go_along_the_depth(layers: list[int], tmp_path: Path) -> None:
    """The GRU of a recurrent gate is in the first layer, which may be one that went."""
    model = moved(intarsia.upcycle(made("vit"), Recurrent(experts=4, hidden=4)))
    model.train()
    out(model)  # states of the teacher's newest forward are none of the student's
    student = intarsia.experts.student_of(model.eval(), layers)
    routers = [m for m in student.modules() if isinstance(m, PassesState)]
    assert len({id(r.thread) for r in routers}) == 1
    assert len([n for n, _ in student.named_parameters() if n.endswith("weight_hh")]) == 1
    assert [r.layer for r in routers] == list(range(len(layers)))
    assert_close(out(student), out(student))
    folder = intarsia.experts.save_mixture(student, tmp_path / "student")
    again = intarsia.experts.load_mixture(vit(len(layers)).eval(), folder)
    assert_close(out(again), out(student))
    student.train()
    (out(student).square().sum() + intarsia.gating.aux_loss(student)).backward()
    assert all(p.grad is not None for n, p in student.named_parameters() if "router" in n)


def test_momentum_of_the_residual_stream_goes_on() -> None:
    model = add_momentum(made("vit"), HeavyBall(0.5), [f"blocks.{i}.mlp" for i in range(4)])
    student = intarsia.experts.student_of(model, [1, 3])
    assert_close(out(student), out(student))
    assert len({id(m.thread) for m in student.modules() if isinstance(m, PassesState)}) == 1


REFUSED: dict[str, tuple[Callable[[], nn.Module], list[int], str]] = {
    "no such layer": (vit, [4], "layers: got 4"),
    "none": (vit, [], "layers: got none"),
    "stages": (
        lambda: timm.create_model(
            "swin_tiny_patch4_window7_224", img_size=32, window_size=4, embed_dim=16,
            depths=(1, 2), num_heads=(1, 2),
        ),
        [0], "3 blocks in 2 places",
    ),
    "no block": (lambda: nn.Linear(3, 3), [0], "0 blocks in 0 places"),
    "adapted": (lambda: intarsia.adapt(vit(), intarsia.Lora(2)), [0], "one with adapters"),
    "sparse and dense": (
        lambda: Qwen2MoeForCausalLM(
            Qwen2MoeConfig(
                **SIZES, num_hidden_layers=2, num_experts=4, moe_intermediate_size=16,
                shared_expert_intermediate_size=16, mlp_only_layers=[0],
            )
        ),
        [1], "sparse and dense ones",
    ),
    "positions by depth": (
        lambda: timm.create_model(
            "vit_small_patch16_rope_mixed_224", img_size=32, depth=2, embed_dim=32, num_heads=2
        ),
        [1], "do not depend on their number",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_student_is_refused(case: str) -> None:
    make, layers, message = REFUSED[case]
    with pytest.raises(TargetError, match=message):
        intarsia.experts.student_of(make(), layers)


def test_threads_of_one_kin_stay_apart() -> None:
    torch.manual_seed(0)
    teacher = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, depth=3, embed_dim=32, num_heads=2, num_classes=5
    ).eval()
    add_momentum(teacher, HeavyBall(0.7), ["blocks.0.mlp"])
    add_momentum(teacher, HeavyBall(0.7), ["blocks.1.mlp", "blocks.2.mlp"])
    x = torch.randn(2, 3, 32, 32)
    assert_close(intarsia.experts.student_of(teacher, [0, 1, 2])(x), teacher(x))
