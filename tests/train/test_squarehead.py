"""A student's blocks follow its teacher's: the formula, padding, recomputed blocks, refusals."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from tiny import host, pictures, stir
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from intarsia.adapters import Bottleneck
from intarsia.core.errors import CheckpointError, ConfigError
from intarsia.fitting import fit
from intarsia.schedules import FixedMask, masked_weights
from intarsia.train import SquareHead, TargetLoss, Tokens, plain
from intarsia.train.squarehead import block_outputs, relative_error

from ..refusals import refused


def llama(seed: int, layers: int = 2) -> nn.Module:
    config = LlamaConfig(
        vocab_size=16, hidden_size=8, intermediate_size=12, num_hidden_layers=layers,
        num_attention_heads=2, num_key_value_heads=2,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def rows() -> tuple[dict[str, Tensor], Tensor]:
    ids = torch.randint(16, (3, 6), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 4:] = mask[2, 2:] = 0
    return {"input_ids": ids, "attention_mask": mask}, torch.where(mask.bool(), ids, -100)


def loss(objective: Any, model: nn.Module) -> Any:
    return Tokens().loss(model, rows(), objective)


def test_the_loss_is_the_papers() -> None:
    """Sum over blocks of mean (h_s - h_t)^2 / (mean h_t^2 + eps), and T^2 KL of labelled rows."""
    student, teacher = llama(0), llama(1)
    result = loss(SquareHead(teacher, ce=0.5, kl=0.3, feature=2.0, temperature=2.0), student)
    x, labels = rows()
    keep = x["attention_mask"].bool()
    with torch.no_grad():
        outputs = [m(**x, output_hidden_states=True) for m in (student, teacher)]
        # the last one is after the final norm, so only the first block can be read off
        first = [w.hidden_states[1][keep] for w in outputs]
        with block_outputs(student) as s, block_outputs(teacher) as t:
            student(**x)
            teacher(**x)
        torch.testing.assert_close(s[0][keep], first[0])
        far = sum(
            float((a[keep] - b[keep]).square().mean() / (b[keep].square().mean() + 1e-6))
            for a, b in zip(s, t, strict=True)
        )
        places = (labels[:, 1:] != -100).nonzero(as_tuple=True)
        p, q = (w.logits[:, :-1][places] / 2 for w in reversed(outputs))
        kl = 4 * (p.softmax(-1) * (p.log_softmax(-1) - q.log_softmax(-1))).sum(-1).mean()
        task = loss(plain, student).loss
    assert float(result.loss.detach()) == pytest.approx(
        0.5 * float(task) + 2 * far + 0.3 * float(kl)
    )
    assert set(result.parts) == {"task", "feature", "divergence"}
    assert not any(p.grad is not None for p in teacher.parameters())


@given(st.integers(0, 99), st.sampled_from([1e-3, 1.0, 1e3]))
def test_a_block_counts_the_same_whatever_its_size(seed: int, scale: float) -> None:
    draw = torch.Generator().manual_seed(seed)
    s, t = (torch.randn(2, 3, 4, generator=draw, dtype=torch.float64) for _ in range(2))
    error = relative_error(s, t, None, 1e-30)
    torch.testing.assert_close(relative_error(scale * s, scale * t, None, 1e-30), error)
    # nothing against something is 1
    assert float(relative_error(t * 0, t, None, 1e-30)) == pytest.approx(1)


def test_half_types_are_compared_in_float32() -> None:
    big = torch.full((2, 3, 4), 300.0, dtype=torch.float16)  # whose square is no float16
    assert float(relative_error(big * 0, big, None, 1e-6)) == pytest.approx(1)


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputed_blocks_give_the_same_gradients(reentrant: bool) -> None:
    teacher = llama(9)
    grads: list[dict[str, Any]] = []
    for recompute in (False, True):
        student: Any = llama(0).train()
        if recompute:
            student.activation_checkpointing_enable({"use_reentrant": reentrant})
            student.enable_input_require_grads()
        loss(SquareHead(teacher), student).loss.backward()
        grads.append({n: p.grad for n, p in student.named_parameters()})
    for name, value in grads[0].items():
        torch.testing.assert_close(grads[1][name], value, msg=name)


def test_it_trains_a_vit_of_timm_and_keeps_its_zeros() -> None:
    def vit() -> nn.Module:
        return timm.create_model(
            "vit_tiny_patch16_224", img_size=16, patch_size=8, embed_dim=12, depth=2,
            num_heads=2, num_classes=3,
        )  # fmt: skip

    torch.manual_seed(0)
    teacher = vit()
    stir(teacher)
    student = copy.deepcopy(teacher)
    layers = {n: w for n, w in masked_weights(student).items() if n.startswith("blocks")}
    with torch.no_grad():
        for weight in layers.values():
            weight.view(-1)[::2] = 0
    draw = torch.Generator().manual_seed(0)
    sets = torch.utils.data.TensorDataset(
        torch.randn(128, 3, 16, 16, generator=draw), torch.randint(3, (128,), generator=draw)
    )
    run = fit(
        student, sets, objective=SquareHead(teacher, ce=0), schedule=FixedMask(), recompute=True,
        epochs=6, batch_size=32, lr=3e-3, trackers=(),
    )  # fmt: skip
    features = [line["feature"] for line in run.history if "feature" in line]
    assert features[-1] < features[0]
    for weight in layers.values():
        assert not weight.view(-1)[::2].any() and weight.view(-1)[1::2].all()


def test_settings_and_teachers_that_cannot_be_are_refused() -> None:
    for wrong in ({"ce": -1.0}, {"feature": 0.0}, {"temperature": 0.0}, {"eps": 0.0}):
        with pytest.raises(ConfigError, match=f"{next(iter(wrong))}: got"):
            SquareHead(nn.Linear(2, 2), **wrong)
    plain_net = nn.Sequential(nn.Linear(4, 2))
    with refused(ConfigError, what="blocks of Sequential"):
        SquareHead(plain_net)(plain_net, torch.ones(1, 4), lambda logits: logits.sum())
    student = llama(0)
    with refused(ConfigError, what="teacher of SquareHead", got="none"):
        loss(SquareHead(), student)
    with refused(ConfigError, what="teacher", got="3 blocks with outputs (3, 6, 8)"):
        loss(SquareHead(llama(1, layers=3)), student)
    for name, p in student.named_parameters():
        p.requires_grad_(name.startswith("lm_head"))
    with refused(ConfigError, what="SquareHead"):
        loss(SquareHead(llama(1)), student)


def test_of_other_classes_only_the_blocks_are_compared() -> None:
    student, teacher = (host(method=Bottleneck(4, norm="none"), seed=s) for s in (0, 5))
    stir(student)
    stir(teacher)
    teacher.head = nn.Linear(12, 7)
    x, y = pictures(4).tensors
    loss_of = TargetLoss(F.cross_entropy, y)
    assert SquareHead(teacher)(student, x, loss_of).parts["feature"] > 0
    with refused(ConfigError, what="teacher", got="logits (4, 7)"):
        SquareHead(teacher, kl=1.0)(student, x, loss_of)


def test_a_run_goes_on_with_its_own_teacher_only(tmp_path: Path) -> None:
    student, teacher = (host(method=Bottleneck(4, norm="none"), seed=s) for s in (0, 5))
    stir(student)
    stir(teacher)
    options: dict[str, Any] = {"epochs": 1, "out": tmp_path, "trackers": ()}
    run = fit(student, pictures(20), objective=SquareHead(teacher), **options)
    assert run.record["objective"]["teacher"]["name"] == "Host"
    with refused(CheckpointError, what="checkpoint of another run, objective.teacher.sha256"):
        fit(student, pictures(20), objective=SquareHead(student), resume=True, **options)
