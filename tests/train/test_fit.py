"""The loop: what it learns, what it leaves alone, what it refuses."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import sys
import threading
import traceback
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from tiny import CLASSES, WIDTH, host, pictures, stir
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import intarsia
from intarsia.adapters import Bottleneck
from intarsia.core.errors import ConfigError, DataError, TrainingError, UnknownName
from intarsia.fitting import fit
from intarsia.methods import Mosa
from intarsia.mixtures.split_optimizer import split_adamw
from intarsia.routers import random_routers
from intarsia.train import (
    Interrupted,
    Outcome,
    Training,
    checkpoint,
    evaluate,
    one_backward,
    plain,
    two_pass,
)  # fmt: skip
from intarsia.train.precision import learned_state

from ..refusals import refused

QUICK: dict[str, Any] = {"epochs": 2, "batch_size": 8, "lr": 1e-2, "trackers": ()}


def learned(model: nn.Module) -> dict[str, Tensor]:
    return {n: t.detach().clone() for n, t in learned_state(model).items()}


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor], **tolerance: float) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        if tolerance:
            torch.testing.assert_close(value, second[name], msg=name, **tolerance)
        else:
            assert torch.equal(value, second[name]), name


def test_it_learns_and_leaves_the_trunk_alone() -> None:
    model = host()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    run = fit(model, pictures(240), pictures(120, seed=1), epochs=4, batch_size=12, lr=1e-2)
    assert run.val is not None and run.val.accuracy > 0.8
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name
        assert parameter.requires_grad or parameter.grad is None
    # batches of 64 here, of 32 in the loop: equal to rounding, not to the bit
    assert evaluate(model, pictures(120, seed=1)).scores() == pytest.approx(run.val.scores())


def test_a_traceback_from_a_cell_is_at_most_fifteen_calls_of_ours_deep() -> None:
    """The traceback goes from `fit` to the innermost forward of MoSA on a timm model."""
    model = intarsia.adapt(timm.create_model("test_vit", num_classes=CLASSES, img_size=32), "mosa")
    depths: list[int] = []

    def watch(frame: Any, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_name == "forward" and model.training:
            files = (f.f_code.co_filename for f, _ in traceback.walk_stack(frame))
            depths.append(sum(Path(intarsia.__file__).parent in Path(f).parents for f in files))

    images = TensorDataset(torch.randn(4, 3, 32, 32), torch.arange(4) % CLASSES)
    sys.setprofile(watch)
    try:
        fit(model, images, epochs=1, batch_size=4, trackers=())
    finally:
        sys.setprofile(None)
    assert 10 < max(depths) <= 15


def test_every_trained_parameter_can_be_trained_not_only_adapters() -> None:
    model = host()
    model.requires_grad_(True)
    before = learned(model)
    fit(model, pictures(40), **QUICK)
    moved = [n for n, p in model.named_parameters() if not torch.equal(p, before[n])]
    assert len(moved) == len(list(model.parameters()))


def test_frozen_weights_are_held_once_in_the_compute_type() -> None:
    model = host()
    fit(model, pictures(60), precision="bf16", **QUICK)
    for name, parameter in model.named_parameters():
        half = not parameter.requires_grad and "norm" not in name
        assert parameter.dtype == (torch.bfloat16 if half else torch.float32), name
    for buffer in model.buffers():
        assert buffer.dtype != torch.bfloat16


def test_attention_is_written_out_for_a_half_type_on_a_cpu_and_only_in_a_step() -> None:
    x, y = pictures(16).tensors
    data = TensorDataset(x.repeat(1, 1, 4, 4), y)
    for precision in ("bf16", "fp32"):
        torch.manual_seed(0)
        vit = timm.create_model(
            "vit_tiny_patch16_224", img_size=16, patch_size=8, depth=1, embed_dim=16,
            num_heads=2, num_classes=CLASSES,
        )  # fmt: skip
        model = intarsia.adapt(vit, Bottleneck(2))
        attention, modes = vit.blocks[0].attn, []
        attention.register_forward_hook(
            lambda m, *_, modes=modes: modes.append((m.training, m.fused_attn))
        )
        fit(model, data, data, precision=precision, **QUICK)
        fused = next(model.parameters()).device.type != "cpu" or precision == "fp32"
        assert set(modes) == {(True, fused), (False, True)} and attention.fused_attn


def test_an_adapter_that_rests_keeps_its_precision() -> None:
    torch.manual_seed(0)
    vit = timm.create_model(
        "vit_tiny_patch16_224", img_size=16, patch_size=8, depth=1, embed_dim=16, num_heads=2,
        num_classes=CLASSES,
    )  # fmt: skip
    model = intarsia.adapt(vit, Bottleneck(2))
    intarsia.adapt(model, Bottleneck(2), name="second")
    model.set_adapter("second")
    x, y = pictures(16).tensors
    fit(model, TensorDataset(x.repeat(1, 1, 4, 4), y), precision="bf16", **QUICK)
    dtypes = {n: p.dtype for n, p in model.named_parameters()}
    rests = {n: t for n, t in dtypes.items() if ".default." in n}
    assert rests and set(rests.values()) == {torch.float32}
    assert dtypes["base_model.model.blocks.0.attn.qkv.weight"] == torch.bfloat16


def test_the_same_seed_gives_the_same_bits_whatever_the_global_generators() -> None:
    states = []
    for seed in (0, 1):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        model = host(dropout=0.2)
        fit(model, pictures(40), objective=two_pass, mixup=0.2, **QUICK)
        assert torch.equal(torch.get_rng_state(), before)
        states.append(learned(model))
    assert_same(*states)
    reseeded = host(dropout=0.2)
    fit(reseeded, pictures(40), objective=two_pass, mixup=0.2, seed=1, **QUICK)
    assert not torch.equal(learned(reseeded)["head.weight"], states[0]["head.weight"])


@pytest.mark.parametrize(
    "method", [Bottleneck(4, norm="none"), Mosa(over=Bottleneck(4, norm="none"))],
    ids=["plain", "mosa"],
)  # fmt: skip
def test_accumulation_equals_the_large_batch(method: Any) -> None:
    runs = []
    for parts in (1, 2, 4):
        model = host(method=method)
        stir(model)
        run = fit(model, pictures(44), accumulate=parts, clip=0.5, **QUICK)
        runs.append((learned(model), [line["loss"] for line in run.history]))
    for weights, losses in runs[1:]:
        assert losses == pytest.approx(runs[0][1], rel=1e-4)
        assert_same(runs[0][0], weights, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("objective", [plain, two_pass, one_backward])
def test_recomputation_changes_nothing(objective: Any) -> None:
    states = []
    x, y = pictures(24).tensors
    data = TensorDataset(x.repeat(1, 1, 4, 4), y)
    for recompute in (False, True):
        torch.manual_seed(0)
        vit = timm.create_model(
            "vit_tiny_patch16_224", img_size=16, patch_size=8, depth=2, embed_dim=16,
            num_heads=2, num_classes=CLASSES, proj_drop_rate=0.1,
        )  # fmt: skip
        model = intarsia.adapt(vit, Mosa(over=Bottleneck(4, activation="gelu")))
        fit(model, data, objective=objective, recompute=recompute, **QUICK)
        assert not vit.grad_checkpointing
        states.append(learned(model))
    assert_same(*states, rtol=1e-4, atol=1e-6)


def test_recomputation_needs_a_model_that_offers_it() -> None:
    with refused(ConfigError, what="recompute of Host"):
        fit(host(), pictures(16), recompute=True, **QUICK)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_compiled_is_the_same() -> None:
    states = []
    for compile_ in (False, True):
        model = host(method=Bottleneck(4, norm="none"))
        fit(model, pictures(16), compile=compile_, **QUICK)
        states.append(learned(model))
    assert_same(*states, rtol=1e-4, atol=1e-6)


def test_frozen_batch_norms_keep_their_statistics() -> None:
    def model() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 6),
            nn.BatchNorm1d(6), nn.Linear(6, CLASSES),
        )  # fmt: skip

    net = model()
    net[:4].requires_grad_(False)
    net.train()
    fit(net, pictures(16), **QUICK)
    frozen, free = net[1], net[4]
    assert torch.equal(frozen.running_mean, torch.zeros(4))  # pyright: ignore
    assert not torch.equal(free.running_mean, torch.zeros(6))  # pyright: ignore
    assert frozen.training  # as it was before


def test_a_schedule_sees_every_step_and_sets_k() -> None:
    steps_seen: list[tuple[int, int]] = []

    def grow(model: nn.Module, step: int, steps: int) -> None:
        steps_seen.append((step, steps))
        for router in random_routers(model).values():
            router.active = 1 + (step >= 3)

    model = host()
    fit(model, pictures(40), schedule=grow, **QUICK)
    assert steps_seen == [(s, 10) for s in range(10)]
    assert all(r.active == 2 for r in random_routers(model).values())


def test_an_optimizer_and_a_rate_of_ones_own() -> None:
    model, rates = host(), []

    def sgd(model: nn.Module, lr: float, weight_decay: float) -> torch.optim.Optimizer:
        return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr)

    run = fit(model, pictures(40), optimizer=sgd, lr_factor=lambda s, n: s / n, **QUICK)
    rates = [line["lr"] for line in run.history]
    assert rates == pytest.approx([0.01 * s / 10 for s in range(10)])
    fit(host(), pictures(40), optimizer=partial(split_adamw, update="lazy"), **QUICK)


def test_mixing_and_smoothing_reach_the_loss() -> None:
    losses = {}
    for name, options in {
        "none": {}, "mixup": {"mixup": 0.4}, "cutmix": {"cutmix": 1.0},
        "smoothing": {"smoothing": 0.3},
    }.items():  # fmt: skip
        run = fit(host(), pictures(44), **QUICK, **options)
        losses[name] = [line["loss"] for line in run.history]
        assert all(math.isfinite(v) for v in losses[name])
        assert ("accuracy" in run.history[0]) == (name in ("none", "smoothing"))
    assert len({tuple(v) for v in losses.values()}) == 4


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("place", ["loss", "gradient"])
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path, bad: float, place: str) -> None:
    model, states = host(), []

    def objective(model: nn.Module, x: Tensor, loss_of: Any) -> Outcome:
        loss = plain(model, x, loss_of)
        states.append(learned(model))
        if len(states) < 5:
            return loss
        if place == "loss":
            return Outcome(loss.loss * bad, loss.logits)
        loss.logits.register_hook(lambda grad: grad * bad)
        return loss

    with pytest.raises(TrainingError, match=f"{place}.* at step 5: got .*want a finite") as caught:
        fit(model, pictures(40), objective=objective, out=tmp_path, checkpoint_steps=2, **QUICK)
    assert "last checkpoint" in str(caught.value)
    assert_same(learned(model), states[-1])
    assert all(p.grad is None for p in model.parameters())
    path = checkpoint.latest(tmp_path / "state")
    assert path is not None and checkpoint.load(path)["step"] == 4


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_stops_cleanly_and_can_be_resumed(tmp_path: Path, number: int) -> None:
    def press(_model: nn.Module, step: int, _steps: int) -> None:
        if step == 3 and not pressed:
            pressed.append(step)
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    options = QUICK | {"schedule": press}
    pressed: list[int] = [0]
    unstopped = host()
    fit(unstopped, pictures(40), **options)
    pressed.clear()
    with pytest.raises(Interrupted, match="after step 4 of 10; go on with fit.*resume=True"):
        fit(host(), pictures(40), out=tmp_path, **options)
    assert signal.getsignal(number) is before
    model = host()
    fit(model, pictures(40), out=tmp_path, resume=True, **options)
    assert_same(learned(model), learned(unstopped))
    assert issubclass(Interrupted, KeyboardInterrupt)


def test_without_a_folder_ctrl_c_says_that_nothing_was_saved() -> None:
    def press(_model: nn.Module, _step: int, _steps: int) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted, match="nothing was saved"):
        fit(host(), pictures(40), schedule=press, **QUICK)


def test_it_runs_outside_the_main_thread() -> None:
    runs: list[Any] = []
    thread = threading.Thread(target=lambda: runs.append(fit(host(), pictures(16), **QUICK)))
    thread.start()
    thread.join()
    assert len(runs) == 1


class Dicts(torch.utils.data.Dataset[dict[str, Any]]):
    """Rows as Hugging Face datasets give them."""

    def __init__(self, label: str = "labels") -> None:
        self.inner, self.label = pictures(40), label

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> dict[str, Any]:
        x, y = self.inner[index]
        return {"pixel_values": x, self.label: int(y)}


@pytest.mark.parametrize("label", ["labels", "label"])
def test_sets_of_mappings_train_like_sets_of_pairs(label: str) -> None:
    states = []
    for data in (pictures(40), Dicts(label)):
        model = host()
        fit(model, data, **QUICK)
        states.append(learned(model))
    assert_same(*states)


def broken(**change: Any) -> TensorDataset:
    x, y = pictures(16).tensors
    return TensorDataset(change.get("x", x), change.get("y", y))


@pytest.mark.parametrize(
    ("data", "error", "field"),
    [
        (broken(y=torch.full((16,), CLASSES)), DataError, "labels"),
        (broken(y=torch.full((16,), -1)), DataError, "labels"),
        (broken(y=torch.zeros(16)), DataError, "the model's output"),
        (broken(y=torch.zeros(16, 2).long()), DataError, "the model's output"),
        (torch.utils.data.Subset(broken(), []), DataError, "training images"),
        ([(torch.zeros(3, 4, 4), 0, 1)] * 4, DataError, "an item of the dataset"),
        ([{"image": 0}] * 4, DataError, "an item of the dataset"),
        ([(object(), 0)] * 4, DataError, "a batch of images"),
        (iter([1]), DataError, "dataset list_iterator"),
        (torch.utils.data.DataLoader(broken()), DataError, "dataset DataLoader"),
    ],
    ids=[
        "high", "negative", "float", "matrix", "empty", "triples", "mapping", "objects", "stream",
        "loader",
    ],
)  # fmt: skip
def test_data_that_cannot_be_used_is_an_error(data: Any, error: type, field: str) -> None:
    with refused(error, what=field):
        fit(host(), data, **QUICK)


def test_labels_of_every_set_are_checked_before_training() -> None:
    bad = broken(y=torch.full((16,), CLASSES))
    for sets in ({"val": bad}, {"test": bad}):
        with refused(DataError, what="labels", got="3 ... 3"):
            fit(host(), pictures(16), objective=_never, **sets, **QUICK)


def _never(model: nn.Module, x: Tensor, loss_of: Any) -> Outcome:
    raise AssertionError("a step was taken")


@pytest.mark.parametrize(
    ("options", "error", "field"),
    [
        ({"epoch": 3}, UnknownName, "unknown setting of fit"),
        ({"epochs": 0}, ConfigError, "epochs"),
        ({"epochs": 2.5}, ConfigError, "epochs"),
        ({"batch_size": 2.0}, ConfigError, "batch_size"),
        ({"lr": math.nan}, ConfigError, "lr"),
        ({"lr": "1e-3"}, ConfigError, "lr"),
        ({"batch_size": 8, "accumulate": 3}, ConfigError, "accumulate"),
        ({"warmup": 1.0}, ConfigError, "warmup"),
        ({"precision": "fp8"}, UnknownName, "precision"),
        ({"clip": 0.0}, ConfigError, "clip"),
        ({"smoothing": 1.0}, ConfigError, "smoothing"),
        ({"mixup": -1.0}, ConfigError, "mixup"),
        ({"select": "test"}, UnknownName, "select"),
        ({"select": "val"}, ConfigError, "select='val'"),
        ({"workers": -1}, ConfigError, "workers"),
        ({"evaluate_every": -1}, ConfigError, "evaluate_every"),
        ({"trackers": ["tensorbord"]}, UnknownName, "trackers"),
        ({"trackers": "tensorboard"}, ConfigError, "tracker 'tensorboard'"),
        ({"checkpoint_steps": 0}, ConfigError, "checkpoint_steps"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_errors(options: Any, error: type, field: str) -> None:
    with refused(error, what=field):
        fit(host(), pictures(16), objective=_never, **options)


@pytest.mark.skipif(torch.accelerator.is_available(), reason="only a CPU cannot do it")
def test_half_precision_on_a_cpu_is_an_error() -> None:
    with refused(ConfigError, what="precision", got="'fp16' on a CPU"):
        fit(host(), pictures(16), precision="fp16", **QUICK)


def test_a_model_with_nothing_to_train_is_an_error() -> None:
    model = host()
    model.requires_grad_(False)
    with refused(ConfigError, what="trained parameters of Host", got="none"):
        fit(model, pictures(16), **QUICK)
    model = host()
    model.head = nn.Unflatten(1, (WIDTH, 1))  # pyright: ignore
    with refused(DataError, what="the model's output", got="shape (1, 12, 1) for labels (1,)"):
        fit(model, pictures(16), **QUICK)


def test_the_last_epoch_is_the_result_unless_val_chooses() -> None:
    val = pictures(40, seed=1)
    curves = {}
    for select in ("last", "val"):
        model = host()
        run = fit(model, pictures(40), val, epochs=6, batch_size=8, lr=0.3, select=select)
        curve = [line["accuracy"] for line in run.history if line["split"] == "val"]
        assert run.val is not None and len(curve) == 6
        best = run.record["results"]["selection"]["epoch"]
        assert run.val.accuracy == curve[best - 1] == evaluate(model, val).accuracy
        assert best == (6 if select == "last" else 1 + curve.index(max(curve)))
        curves[select] = curve
    assert curves["last"] == curves["val"]


def test_val_cannot_choose_what_it_was_trained_on() -> None:
    data = pictures(40)
    for train, val in (
        (data, data),
        (data, torch.utils.data.Subset(data, [3])),
        (torch.utils.data.Subset(Dicts(), [0, 1]), torch.utils.data.Subset(Dicts(), [1, 2])),
    ):
        if isinstance(val, torch.utils.data.Subset) and isinstance(val.dataset, Dicts):
            val.dataset = train.dataset  # pyright: ignore
        with refused(DataError, what="select='val'"):
            fit(host(), train, val, select="val", **QUICK)
    run = fit(host(), data, pictures(20, seed=1), select="val", **QUICK)
    assert run.record["results"]["selection"]["disjoint_from_train"] is True
    run = fit(host(), Dicts(), pictures(20, seed=1), select="val", **QUICK)
    assert run.record["results"]["selection"]["disjoint_from_train"] is None


def test_scores_on_val_every_few_epochs() -> None:
    run = fit(
        host(), pictures(16), pictures(8, seed=1), evaluate_every=2, **(QUICK | {"epochs": 5})
    )
    assert [line["epoch"] for line in run.history if line["split"] == "val"] == [2, 4]
    assert run.val is not None
    run = fit(host(), pictures(16), pictures(8, seed=1), evaluate_every=0, **QUICK)
    assert run.val is not None and all(line["split"] == "train" for line in run.history)


def test_settings_come_together() -> None:
    run = fit(host(), pictures(16), training=Training(epochs=1, batch_size=8, seed=3), lr=0.5)
    assert run.record["training"] == {
        "epochs": 1, "batch_size": 8, "lr": 0.5, "weight_decay": 1e-4, "warmup": 0.1,
        "precision": "fp32", "accumulate": 1, "seed": 3,
    }  # fmt: skip
    json.dumps(dict(run.record))
