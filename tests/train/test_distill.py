"""A student learns from its teacher for a part of the steps, and exactly so after a resume."""

from __future__ import annotations

import copy
import math
from functools import partial
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

import intarsia
from intarsia.adapters import Bottleneck
from intarsia.core.errors import CheckpointError, ConfigError
from intarsia.fitting import fit
from intarsia.mixtures import Capacity
from intarsia.routers import Switch
from intarsia.train import Staged, TargetLoss, Tokens, distill, plain, staged_distillation

from ..refusals import refused


def pair(blocks: int = 2) -> tuple[nn.Module, nn.Module]:
    """A student and another model of its kind."""
    built = []
    for seed in (0, 5):
        model = host(method=Bottleneck(4, norm="none"), blocks=blocks, seed=seed)
        stir(model, seed + 1)
        built.append(model)
    return built[0], built[1]


def batch(count: int = 6) -> tuple[Tensor, TargetLoss]:
    x, y = pictures(count).tensors
    return x, TargetLoss(F.cross_entropy, y)


@given(st.sampled_from([0.5, 1.0, 3.0]), st.sampled_from([0.0, 0.3, 2.0]), st.integers(0, 99))
def test_the_loss_and_its_gradient_are_the_formula(t: float, beta: float, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    student, teacher = nn.Linear(4, 3).double(), nn.Linear(4, 3).double()
    x = torch.randn(5, 4, generator=draw, dtype=torch.float64)
    y = torch.randint(3, (5,), generator=draw)
    objective = distill(
        student, x, TargetLoss(F.cross_entropy, y), teacher=teacher, beta=beta, temperature=t
    )
    p, s = (teacher(x) / t).softmax(-1).detach(), student(x)
    q = (s / t).softmax(-1)
    naive = F.cross_entropy(s, y) + beta * t**2 * (p * (p / q).log()).sum(-1).mean()
    torch.testing.assert_close(objective.loss, naive)
    # of KL alone: T (q - p), of each row
    alone = torch.autograd.grad(objective.parts["divergence"], student.bias, retain_graph=True)[0]
    torch.testing.assert_close(alone, t * (q - p).mean(0).detach(), rtol=1e-9, atol=1e-12)
    for a, b in zip(
        torch.autograd.grad(objective.loss, list(student.parameters())),
        torch.autograd.grad(naive, list(student.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(a, b)
    assert teacher.weight.grad is None and objective.logits.shape == (5, 3)


def test_a_student_that_is_its_teacher_has_nothing_to_learn_from_it() -> None:
    student, _ = pair()
    x, loss_of = batch()
    objective = distill(student, x, loss_of, teacher=copy.deepcopy(student), temperature=2.0)
    assert abs(float(objective.parts["divergence"].detach())) < 1e-6
    torch.testing.assert_close(objective.loss, objective.parts["task"])
    learns = [p for p in student.parameters() if p.requires_grad]
    for g in torch.autograd.grad(objective.parts["divergence"], learns):
        assert float(g.abs().max()) < 1e-6


def llama(layers: int = 1) -> nn.Module:
    config = LlamaConfig(
        vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=layers,
        num_attention_heads=2, num_key_value_heads=2,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def test_of_texts_the_tokens_with_a_label_count_and_no_other() -> None:
    torch.manual_seed(0)
    student, teacher = llama().train(), llama(2).train()
    with torch.no_grad():  # outputs of fresh models are nearly alike
        for p in (*student.parameters(), *teacher.parameters()):
            p.add_(0.3 * torch.randn_like(p))
    ids = torch.randint(16, (3, 7))
    labels = ids.clone()
    labels[0, :5] = -100
    labels[2] = -100
    objective = distill(
        student, {"input_ids": ids}, Tokens().loss_of(({}, labels)), teacher=teacher
    )
    s, t = student(input_ids=ids).logits, teacher.eval()(input_ids=ids).logits
    total, count = torch.zeros(()), 0
    for i in range(3):
        for j in range(6):
            if labels[i, j + 1] != -100:
                p, q = t[i, j].softmax(-1), s[i, j].softmax(-1)
                total, count = total + (p * (p / q).log()).sum(), count + 1
    assert count == 8 and bool(objective.parts["divergence"] > 0.01)
    torch.testing.assert_close(objective.parts["divergence"], total / count)
    none = torch.full_like(labels, -100)
    objective = distill(student, {"input_ids": ids}, Tokens().loss_of(({}, none)), teacher=teacher)
    assert float(objective.loss.detach()) == 0.0


def vit() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=32, depth=2, embed_dim=16, num_heads=2, num_classes=3,
        drop_rate=0.5,
    )  # fmt: skip


def test_the_teacher_is_in_evaluation_drops_nothing_and_is_left_as_it_was() -> None:
    tight = Capacity(0.1, "random", least=1, evaluation=0.1)
    teacher = intarsia.upcycle(vit(), Switch(experts=4), capacity=tight).train()
    with torch.no_grad():
        for p in teacher.parameters():
            p.add_(0.2 * torch.randn_like(p))
    student, x = intarsia.experts.student_of(teacher, [0]), torch.randn(4, 3, 32, 32)
    loss_of = TargetLoss(F.cross_entropy, torch.tensor([0, 1, 2, 0]))
    losses = [
        distill(student.eval(), x, loss_of, teacher=teacher).parts["divergence"].detach()
        for _ in range(2)
    ]
    assert losses[0] == losses[1]
    free = copy.deepcopy(teacher).eval()
    for module in free.modules():
        if isinstance(module, intarsia.mixtures.Mixture):
            module.capacity = None
    with torch.no_grad():
        logits = (free(x).log_softmax(-1), student.eval()(x).log_softmax(-1))
    by_hand = (logits[0].exp() * (logits[0] - logits[1])).sum(-1).mean()
    torch.testing.assert_close(losses[0], by_hand)
    assert all(m.training for m in teacher.modules())
    layers = [m for m in teacher.modules() if isinstance(m, intarsia.mixtures.Mixture)]
    assert all(m.capacity == tight and m.router.last is None for m in layers)
    assert not any(p.grad is not None for p in teacher.parameters())


def trained(objective: Any, **options: Any) -> dict[str, Tensor]:
    student, _ = pair()
    fit(student, pictures(40), objective=objective, epochs=2, batch_size=8, lr=1e-2, **options)
    return student.state_dict()


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(first[n], second[n]) for n in first)


def test_it_stops_at_a_share_of_the_steps() -> None:
    _, teacher = pair()
    full = partial(distill, teacher=teacher, beta=2.0)
    never, always, half = (staged_distillation(teacher, until=u, beta=2.0) for u in (0.0, 1.0, 0.5))
    assert same(trained(never), trained(plain))
    assert same(trained(always), trained(full))
    assert not same(trained(full), trained(plain))
    assert not same(trained(half), trained(full)) and not same(trained(half), trained(plain))


@given(st.integers(1, 50), st.floats(0, 1))
def test_the_share_is_of_the_steps(steps: int, until: float) -> None:
    def first(*_: Any) -> Any: ...

    staged = Staged(first, until, plain)
    count = sum(staged.at(step, steps) is first for step in range(steps))
    assert count == math.ceil(until * steps)


def test_a_resumed_run_stops_at_the_same_step(tmp_path: Path) -> None:
    """Interrupted before and after the change, it is bit for bit the run that was not."""
    _, teacher = pair()
    unstopped = trained(staged_distillation(teacher, until=0.5))
    for dies in (3, 7):
        out = tmp_path / str(dies)

        def stop(model: nn.Module, step: int, steps: int, dies: int = dies) -> None:
            if step == dies:
                raise KeyboardInterrupt

        student, _ = pair()
        options: dict[str, Any] = {
            "objective": staged_distillation(teacher, until=0.5), "epochs": 2, "batch_size": 8,
            "lr": 1e-2, "out": out, "checkpoint_steps": 1,
        }  # fmt: skip

        def quiet(model: nn.Module, step: int, steps: int) -> None: ...

        stop.__qualname__ = quiet.__qualname__  # the same recipe to the record
        with pytest.raises(KeyboardInterrupt):
            fit(student, pictures(40), schedule=stop, **options)
        student, _ = pair()
        fit(student, pictures(40), schedule=quiet, resume=True, **options)
        assert same(student.state_dict(), unstopped)


def test_a_run_goes_on_with_its_own_teacher_only(tmp_path: Path) -> None:
    student, teacher = pair()
    run = fit(student, pictures(40), objective=staged_distillation(teacher), epochs=1, out=tmp_path)
    record = run.record["objective"]
    assert (record["name"], record["until"], record["then"]) == ("Staged", 0.6, "plain")
    assert record["first"]["name"] == "distill" and record["first"]["teacher"]["name"] == "Host"
    assert "divergence" in run.history[0]
    student, _ = pair()
    with refused(CheckpointError, what="checkpoint of another run, objective.first.teacher.sha256"):
        fit(
            student, pictures(40), objective=staged_distillation(student), epochs=1,
            out=tmp_path, resume=True,
        )  # fmt: skip


def test_bad_settings_are_refused() -> None:
    student, teacher = pair()
    x, loss_of = batch()
    for settings in ({"beta": -1.0}, {"temperature": 0.0}, {"temperature": float("nan")}):
        with pytest.raises(ConfigError, match=f"{next(iter(settings))}: got"):
            distill(student, x, loss_of, teacher=teacher, **settings)
    with refused(ConfigError, what="until", got=1.5):
        staged_distillation(teacher, until=1.5)
    teacher.head = nn.Linear(12, 4)
    with refused(ConfigError, what="teacher", got="logits (6, 4)"):
        distill(student, x, loss_of, teacher=teacher)


@pytest.mark.parametrize("wrong", [{"beta": -1.0}, {"temperature": 0.0}])
def test_what_cannot_be_is_said_at_once(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(wrong))}: got"):
        staged_distillation(nn.Linear(2, 2), until=0.0, **wrong)
