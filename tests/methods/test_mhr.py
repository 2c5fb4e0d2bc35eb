"""What follows a trained Poly: a LoRA of a task, MHR-mu, MHR-z, a new task, two learning rates."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.testing import assert_close

import intarsia
from intarsia.core.errors import ConfigError, FoldError
from intarsia.methods import Poly, mhr
from intarsia.routers import TaskRouter

from ..refusals import refused

IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
IDS = torch.tensor([0, 2, 1, 2])


def host() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=32, depth=2, embed_dim=32, num_heads=2, num_classes=5
    )


def trained(**settings: object) -> PeftModel:
    config = Poly(**({"tasks": 3, "skills": 3, "heads": 2, "rank": 2} | settings))  # pyright: ignore
    model = intarsia.adapt(host(), config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    return model.eval()


@torch.no_grad()
def logits(model: nn.Module, ids: Tensor | None = None) -> Tensor:
    if ids is None:
        return model.eval()(IMAGES)
    with intarsia.gating.task_ids(model, ids):
        return model.eval()(IMAGES)


def rows(model: nn.Module) -> list[Tensor]:
    return [m.logits for m in model.modules() if isinstance(m, TaskRouter)]


def test_a_task_becomes_a_lora_that_folds(capsys: pytest.CaptureFixture[str]) -> None:
    model = trained()
    want = [logits(model, torch.full((4,), task)) for task in range(3)]
    with refused(FoldError, what="merging Poly at 'blocks.0.attn.qkv'"):
        intarsia.fold(model)
    with refused(FoldError, what="merging Poly at 'blocks.0.attn.qkv'"):
        model.merge_adapter()
    for task in range(3):
        assert mhr.to_lora(model, task) is model
        assert model.active_adapters == [f"task{task}"]
        assert model.peft_config[f"task{task}"].method == "lora"  # pyright: ignore
        assert_close(logits(model), want[task], rtol=1e-4, atol=1e-5)
        stock = intarsia.fold(model, name=f"task{task}")
        assert_close(logits(stock), want[task], rtol=1e-4, atol=1e-4)
    model.set_adapter("default")
    assert_close(logits(model, IDS), torch.stack([want[t][i] for i, t in enumerate(IDS)]))


def test_one_task_merges_and_folds_as_it_is() -> None:
    model = trained(tasks=1)
    want = logits(model)
    assert_close(logits(intarsia.fold(model)), want, rtol=1e-4, atol=1e-4)
    assert_close(logits(model.merge_and_unload()), want, rtol=1e-4, atol=1e-4)  # pyright: ignore


def test_mhr_mu_is_the_function_of_equal_shares() -> None:
    model = trained()
    with torch.no_grad():
        for z in rows(model):
            z[1] = 0.7  # equal, whatever the value
    want = logits(model, torch.full((4,), 1))
    mhr.to_mhr_mu(model)
    assert_close(logits(model), want, rtol=1e-4, atol=1e-5)
    # a mean of the weights, not of the products
    cell = mhr.cells(model, "default")[0]
    layer = next(m for m in model.modules() if hasattr(m, "intarsia_cells"))
    mu = layer.intarsia_cells["mu"]  # pyright: ignore
    assert_close(mu.down.weight, cell.down.mean(1).permute(1, 0, 2).flatten(1))
    assert_close(mu.up.weight, cell.up.mean(1).flatten(0, 1))
    # it is trained as one LoRA, and Z has no part in it
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    assert names and all(".mu." in n for n in names)


def test_mhr_mu_survives_saving(tmp_path: Path) -> None:
    model = mhr.to_mhr_mu(trained())
    want = logits(model)
    model.save_pretrained(str(tmp_path), selected_adapters=["mu"])
    assert_close(logits(intarsia.load(host(), tmp_path / "mu")), want)


def test_mhr_z_trains_z_only_and_no_other_task() -> None:
    model = trained()
    before = logits(model, IDS)
    new = mhr.add_task(model)
    assert mhr.freeze_to_z(model) is model
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    assert names and all(n.endswith("router.logits") for n in names)
    data = [{"x": x, "labels": i, "task_ids": new} for i, x in enumerate(IMAGES)]
    old = [z[:new].clone() for z in rows(model)]
    moved = [z[new].clone() for z in rows(model)]
    intarsia.fit(model, data, epochs=2, optimizer=mhr.poly_adamw)
    assert all(torch.equal(z[:new], o) for z, o in zip(rows(model), old, strict=True))
    assert not any(torch.equal(z[new], m) for z, m in zip(rows(model), moved, strict=True))
    assert torch.equal(logits(model, IDS), before)


def test_a_new_task_is_near_equal_shares_and_survives_saving(tmp_path: Path) -> None:
    model = trained()
    before = logits(model, IDS)
    assert mhr.add_task(model, seed=1) == 3
    assert mhr.add_task(model, seed=2) == 4
    assert torch.equal(logits(model, IDS), before)
    fresh = logits(model, torch.full((4,), 4))
    assert all(float(z[3:].detach().abs().max()) <= 1e-3 and z.requires_grad for z in rows(model))
    model.save_pretrained(str(tmp_path))
    again = intarsia.load(host(), tmp_path)
    assert_close(logits(again, torch.full((4,), 4)), fresh)
    assert_close(logits(mhr.to_mhr_mu(model)), fresh, rtol=1e-2, atol=1e-2)


def test_z_has_a_learning_rate_of_its_own() -> None:
    model = trained()
    groups = mhr.param_groups(model, 1e-3, 0.1, weight_decay=0.01)
    z = {id(p) for p in rows(model)}
    of_z = [g for g in groups if any(id(p) in z for p in g["params"])]
    assert len(of_z) == 1 and {id(p) for p in of_z[0]["params"]} == z
    assert (of_z[0]["lr"], of_z[0]["weight_decay"]) == (0.1, 0.0)
    assert {g["lr"] for g in groups if g is not of_z[0]} == {1e-3}
    everything = [id(p) for g in groups for p in g["params"]]
    assert sorted(everything) == sorted(id(p) for p in model.parameters() if p.requires_grad)


class Tasks(torch.utils.data.Dataset):
    """Images whose class is asked for in another way by each task."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, i: int) -> dict[str, object]:
        x = torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(i))
        return {"x": x, "labels": i % 5, "task_ids": i % 3}


def test_fit_takes_a_dataset_with_task_ids_and_goes_on_bit_for_bit(tmp_path: Path) -> None:
    stops: list[int] = []

    def schedule(model: nn.Module, step: int, steps: int) -> None:
        if step in stops:
            raise KeyboardInterrupt

    def run(name: str, **more: bool) -> list[Tensor]:
        model = trained().train()
        before = [z.clone() for z in rows(model)]
        optimizer = partial(mhr.poly_adamw, lr_z=0.05)
        intarsia.fit(
            model, Tasks(), out=tmp_path / name, checkpoint_steps=1, epochs=2, batch_size=4,
            lr=1e-2, optimizer=optimizer, schedule=schedule, **more,
        )  # fmt: skip
        moved = zip(rows(model), before, strict=True)
        assert all(bool((z != old).flatten(1).any(1).all()) for z, old in moved)
        return [p.detach().clone() for p in model.parameters() if p.requires_grad]

    whole = run("whole")
    stops.append(4)
    with pytest.raises(KeyboardInterrupt):
        run("parts")
    stops.clear()
    parts = run("parts", resume=True)
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))


def test_what_is_no_poly_is_refused() -> None:
    plain = intarsia.adapt(host(), intarsia.Lora(2))
    for call in (mhr.add_task, mhr.freeze_to_z, mhr.to_mhr_mu, partial(mhr.to_lora, task=0)):
        for model in (plain, host()):
            with refused(ConfigError, what="poly", got="None"):
                call(model)
    model = intarsia.adapt(trained(), Poly(tasks=2, rank=2), name="second")
    with refused(ConfigError, what="poly", got="several"):
        mhr.add_task(model)
    assert mhr.add_task(model, poly="second") == 2
    with refused(ConfigError, what="adapter name", got="'second'"):
        mhr.to_lora(model, 0, name="second", poly="default")
    with refused(ConfigError, what="task_ids", got="7 ... 7"):
        mhr.to_lora(model, 7, poly="default")
    assert list(model.peft_config) == ["default", "second"]
