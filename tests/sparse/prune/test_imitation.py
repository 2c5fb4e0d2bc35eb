"""A pruned net that learns its dense net's answers without labels: statistics, loss, refusals."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import intarsia
from intarsia.core.errors import ConfigError, TargetError
from intarsia.schedules import FixedMask
from intarsia.sparse.prune.imitation import (
    BATCH,
    answered,
    correct_batch_norms,
    imitation,
    reconstruct,
)
from intarsia.sparse.prune.pruners import Magnitude, SparseGPT
from intarsia.train.squarehead import block_outputs

from ...refusals import refused


def net(seed: int = 0) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = timm.create_model("test_efficientnet", num_classes=5).eval()
        # statistics of a training: those of a fresh net say nothing
        model.train()(torch.randn(16, 3, 32, 32))
    return model.eval()


def pictures(count: int = 24, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def normed(model: nn.Module, x: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and variance of each batch norm's output before its activation, over pictures."""
    moments: dict[str, tuple[Tensor, Tensor]] = {}

    def keep(path: str, norm: Any, inputs: tuple[Tensor, ...]) -> None:
        normal = (inputs[0].movedim(1, -1) - norm.running_mean) / (
            norm.running_var + norm.eps
        ).sqrt()
        rows = normal.reshape(-1, normal.shape[-1])
        moments[path] = rows.mean(0), rows.var(0, correction=0)

    norms = [(p, m) for p, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)]
    hooks = [norm.register_forward_pre_hook(partial(keep, path)) for path, norm in norms]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return moments


def test_channels_of_the_pruned_net_have_the_moments_that_they_had() -> None:
    dense, x = net(), pictures()
    pruned = copy.deepcopy(dense)
    for conv in (m for m in pruned.modules() if isinstance(m, nn.Conv2d) and m.groups == 1):
        conv.weight.data *= conv.weight.abs() > conv.weight.abs().median()
    before = {name: tensor.clone() for name, tensor in pruned.named_parameters()}
    correct_batch_norms(pruned, dense, x)
    want, got = normed(dense, x), normed(pruned, x)
    for path, (mean, variance) in want.items():
        torch.testing.assert_close(got[path][0], mean, atol=2e-3, rtol=1e-2)
        torch.testing.assert_close(got[path][1], variance, atol=2e-2, rtol=2e-2)
    assert all(torch.equal(before[name], p) for name, p in pruned.named_parameters())
    assert not pruned.training and not dense.training


def pruned_half(dense: Any) -> Any:
    pruned = copy.deepcopy(dense)
    intarsia.sparsify(pruned, Magnitude(density=0.5))
    return pruned


def test_a_layer_is_the_least_squares_of_the_weights_that_are_left() -> None:
    dense, x = net(), pictures(48)
    pruned = pruned_half(dense)
    reconstruct(pruned, dense, x, damp=1e-9)
    path, conv = next(
        (path, layer)
        for path, layer in pruned.named_modules()
        if isinstance(layer, nn.Conv2d)
        and layer.kernel_size == (1, 1)
        and (layer.weight == 0).any()
    )
    records: list[tuple[Tensor, Tensor]] = []
    for model in (pruned, dense):
        handle = model.get_submodule(path).register_forward_hook(
            lambda _, inputs, output: records.append((inputs[0], output))
        )
        with torch.no_grad():
            model(x)
        handle.remove()
    # inputs of the pruned net, outputs of the dense one
    pair = records[0][0], records[1][1]
    rows, targets = (t.movedim(1, -1).flatten(0, -2).double() for t in pair)
    rows, targets = rows - rows.mean(0), targets - targets.mean(0)
    weight = conv.weight.detach().flatten(1).double()
    for row in range(3):
        index = weight[row].nonzero()[:, 0]
        want = torch.linalg.lstsq(rows[:, index], targets[:, row : row + 1]).solution[:, 0]
        torch.testing.assert_close(weight[row, index], want, atol=1e-3, rtol=1e-2)


def test_blocks_come_nearer_to_the_dense_ones_and_zeros_stay() -> None:
    dense, x = net(), pictures(64)
    pruned = pruned_half(dense)
    zeros = {n: p == 0 for n, p in pruned.named_parameters() if p.ndim == 4}

    def errors(model: Any) -> list[float]:
        with torch.no_grad(), block_outputs(model) as got, block_outputs(dense) as want:
            model(x), dense(x)
        return [float((a - b).norm() / b.norm()) for a, b in zip(got, want, strict=True)]

    corrected = copy.deepcopy(pruned)
    correct_batch_norms(corrected, dense, x)
    reconstruct(pruned, dense, x)
    assert errors(pruned)[-1] < 0.8 * errors(corrected)[-1]
    assert all(torch.equal(p == 0, zeros[n]) for n, p in pruned.named_parameters() if n in zeros)


def pointwise(model: nn.Module) -> dict[str, Any]:
    return {
        path: layer
        for path, layer in model.named_modules()
        if isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1)
    }


def error(model: Any, dense: Any, x: Tensor) -> float:
    """Relative error of what stands behind the last 1x1 convolution."""
    with torch.no_grad():
        got, want = model.forward_features(x), dense.forward_features(x)
    return float((got - want).norm() / want.norm())


def test_zeros_are_chosen_layer_by_layer_also_behind_the_blocks() -> None:
    dense, x = net(), pictures(64)
    pruned, afterwards = copy.deepcopy(dense), copy.deepcopy(dense)
    shares = dict(zip(pointwise(dense), [0.25, 0.5, 0.75] * 9, strict=False))
    assert "conv_head" in shares
    left_out = next(iter(shares))
    prune = {path: SparseGPT(density=d) for path, d in shares.items() if path != left_out}
    reconstruct(pruned, dense, x, prune=prune)
    for path, layer in pointwise(pruned).items():
        want = 1.0 if path == left_out else shares[path]
        got = float((layer.weight != 0).float().mean())
        assert got == pytest.approx(want, abs=0.51 / layer.weight.shape[1] + 0.01), path
    # better than zeros that were chosen without regard to what is pruned before
    for path in prune:
        weight = afterwards.get_parameter(f"{path}.weight")
        bound = weight.abs().flatten().kthvalue(round((1 - shares[path]) * weight.numel())).values
        weight.data *= weight.abs() > bound
    reconstruct(afterwards, dense, x)
    unseen = pictures(32, seed=1)
    assert error(pruned, dense, unseen) < error(afterwards, dense, unseen)


def test_blocks_of_rows_keep_the_same_inputs() -> None:
    dense, x = net(), pictures(32)
    pruned = copy.deepcopy(dense)
    reconstruct(pruned, dense, x, prune={"conv_head": SparseGPT(density=0.5, rows=4)})
    mask = pointwise(pruned)["conv_head"].weight.flatten(1) != 0
    assert bool((mask.view(-1, 4, mask.shape[1]) == mask[::4, None]).all())
    assert float(mask.float().mean()) == pytest.approx(0.5, abs=0.01)
    with refused(ConfigError, what="rows"):
        SparseGPT(density=0.5, pattern="2:4", rows=4)


def test_a_dense_net_has_nothing_to_reconstruct() -> None:
    dense, unpruned = net(), net()
    reconstruct(unpruned, dense, pictures())
    for name, tensor in dense.state_dict().items():
        torch.testing.assert_close(unpruned.state_dict()[name], tensor, atol=1e-4, rtol=1e-3)


def test_a_net_that_was_not_pruned_keeps_its_statistics() -> None:
    dense, unpruned = net(), net()
    correct_batch_norms(unpruned, dense, pictures())
    for name, tensor in dense.state_dict().items():
        torch.testing.assert_close(unpruned.state_dict()[name], tensor, atol=1e-5, rtol=1e-4)


def test_a_dead_channel_stays_finite() -> None:
    dense = net()
    pruned = copy.deepcopy(dense)
    pruned.conv_stem.weight.data[0] = 0
    correct_batch_norms(pruned, dense, pictures())
    assert all(bool(t.isfinite().all()) for t in pruned.state_dict().values())
    assert float(pruned.bn1.running_var.min()) >= 0


def test_the_loss_needs_no_labels_and_leaves_the_statistics() -> None:
    dense, student = net(), net(1)
    objective = imitation(dense, temperature=2.0)
    before = {n: b.clone() for n, b in student.named_buffers()}
    student.train()
    x = pictures(4)
    outcome = objective(student, x, lambda logits: logits.sum())
    assert student.training and all(torch.equal(before[n], b) for n, b in student.named_buffers())
    with torch.no_grad():
        t, s = dense(x), student.eval()(x)
    kl = 4 * nn.functional.kl_div((s / 2).log_softmax(1), (t / 2).softmax(1), reduction="batchmean")
    parts = {name: float(part.detach()) for name, part in outcome.parts.items()}
    assert parts["divergence"] == pytest.approx(float(kl), rel=1e-2)
    # the task's loss does not count
    want = parts["divergence"] + parts["feature"]
    assert float(outcome.loss.detach()) == pytest.approx(want)
    outcome.loss.backward()
    assert student.conv_stem.weight.grad is not None
    assert dense.conv_stem.weight.grad is None


def test_the_route_lowers_the_loss_and_keeps_zeros_and_statistics() -> None:
    dense, x = net(), pictures(128)
    pruned = copy.deepcopy(dense)
    intarsia.sparsify(pruned, Magnitude(density=0.3))
    zeros = {n: p == 0 for n, p in pruned.named_parameters() if p.ndim == 4}
    correct_batch_norms(pruned, dense, x)
    statistics = {n: b.clone() for n, b in pruned.named_buffers()}

    @torch.no_grad()
    def loss() -> float:
        return float(imitation(dense)(pruned, x, lambda logits: logits.sum()).loss)

    first = loss()
    options: Any = {"epochs": 6, "batch_size": 16, "lr": 1e-3, "trackers": ()}
    rows = answered(dense, x)
    intarsia.fit(pruned, rows, objective=imitation(dense), schedule=FixedMask(), **options)
    assert loss() < 0.8 * first
    assert all(bool((p[zeros[n]] == 0).all()) for n, p in pruned.named_parameters() if n in zeros)
    assert all(torch.equal(statistics[n], b) for n, b in pruned.named_buffers())


def test_the_answers_are_those_of_the_dense_net_in_evaluation_mode() -> None:
    dense, x = net(), pictures(2 * BATCH + 1)
    with torch.no_grad():
        want = dense(x).argmax(1)
    rows = answered(dense.train(), x)
    assert torch.equal(rows.tensors[1], want) and torch.equal(rows.tensors[0], x)
    assert dense.training


def test_nets_that_do_not_belong_together_are_refused() -> None:
    dense = net()
    with refused(TargetError, what="batch norms"):
        correct_batch_norms(timm.create_model("test_resnet"), dense, pictures(2))
    five_classes = timm.create_model("test_resnet", num_classes=5)
    with refused(ConfigError, what="teacher"):
        imitation(five_classes)(dense, pictures(2), lambda logits: logits.sum())
    with refused(ConfigError, what="damp", got=0):
        reconstruct(dense, net(), pictures(2), damp=0)
    with refused(TargetError, what="layers to prune", got=["conv_stem"]):
        reconstruct(dense, net(), pictures(2), prune={"conv_stem": SparseGPT()})
    with refused(TargetError, what="blocks"):
        reconstruct(timm.create_model("test_resnet"), dense, pictures(2))
    with refused(ConfigError, what="temperature", got=0):
        imitation(dense, temperature=0)
