"""A pruned net that learns its dense net's answers: pictures are needed, labels are not.

Three steps; the first and the second are here:

1. `reconstruct(net, dense, pictures, prune=...)` chooses the weights that go (by SparseGPT,
   arXiv:2301.00774) and fits the remaining ones, layer by layer, in closed form; each channel gets
   the mean and the variance that it had (arXiv:1906.04721 corrects means so).
2. `fit(net, answered(dense, pictures), objective=imitation(dense), schedule=FixedMask())` trains
   the remaining ones for the dense net's answers and block outputs (SquareHead, arXiv:2310.06927).
3. `compress(net, Chw(), picture)` stores it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from ...core.checks import above
from ...core.errors import TargetError
from ...core.modes import evaluating
from ...hosts.anatomy.blocks import BATCH_NORM, blocks, inside, layers_of
from ...scores import Statistics
from ...train.objectives import Objective, logits_of
from ...train.order import Inputs
from ...train.outcome import LossOf, Outcome
from ...train.squarehead import SquareHead
from .pruner import LayerPruner

BATCH = 64  # pictures of a forward without a gradient
BATCHES, POSITIONS = 4, 500  # that suffice for a layer: batches, and positions for each input
MOST = 20.0  # factor on a variance
Moments = tuple[Tensor, Tensor]  # variance and mean of each channel
Read = Callable[[str, Tensor], object]  # (path of a batch norm, its input)
Hidden = list[tuple[Tensor, Tensor]]  # what a block reads in the pruned and the dense net, by batch


def imitation(dense: nn.Module, *, feature: float = 1.0, temperature: float = 1.0) -> Objective:
    """Return an objective that needs no labels: L = T^2 KL(t / T || s / T) + feature sum_l e_l.

    t, s: logits of the dense net and of the pruned one; e_l: the relative error of block l's
    output, see `SquareHead`; T: the temperature.
    dense: the net before pruning; feature, temperature: above 0.
    The pruned net's forward is in evaluation mode: batch norms keep their statistics, which a few
    hundred pictures cannot replace, and their weights and biases are trained.
    Raises: ConfigError for a weight that cannot be, and at the first step for a net of another
    architecture. Not for a net that has no pretrained dense one: there is nothing to imitate.
    """
    loss = SquareHead(dense, ce=0.0, kl=1.0, feature=feature, temperature=temperature)

    def objective(model: nn.Module, x: Inputs, loss_of: LossOf) -> Outcome:
        with evaluating(model):
            return loss(model, x, loss_of)

    return objective


@torch.no_grad()
def answered(dense: nn.Module, pictures: Tensor) -> TensorDataset:
    """Pair pictures with the first class of the dense net, for `fit`, which wants labels.

    `imitation` does not look at them; the accuracy that `fit` reports is agreement with the dense
    net. dense: the net before pruning; pictures: (N, C, H, W), prepared as the net takes them.
    """
    with evaluating(dense):
        classes = [logits_of(dense, some).argmax(1) for some in pictures.split(BATCH)]
    return TensorDataset(pictures, torch.cat(classes))


@torch.no_grad()
def correct_batch_norms(pruned: nn.Module, dense: nn.Module, pictures: Tensor) -> None:
    """Change the statistics of a pruned net's batch norms, so that channels are as they were.

    With the variance v and mean m of a channel before the norm, over these pictures, in the dense
    net (d) and in the pruned one (p), and the dense norm's statistics V_d and M_d:
    V_p + eps = (V_d + eps) v_p / v_d and M_p = m_p - (m_d - M_d) sqrt(v_p / v_d). The norm's output
    then has the mean and variance that it had in the dense net, and for other pictures than these
    the statistics of its whole training still count; `recalibrate` would forget them.

    Each norm is corrected behind the corrected ones before it, in one forward.
    pruned: changed in place; dense: the net before pruning; pictures: (N, C, H, W), 32 to 100.
    Raises: TargetError if one net has batch norms that the other has not.
    """
    with evaluating(dense), evaluating(pruned):
        _correct_norms(pruned, dense, pictures, pictures)


@torch.no_grad()
def reconstruct(
    pruned: nn.Module,
    dense: nn.Module,
    pictures: Tensor,
    *,
    prune: Mapping[str, LayerPruner] | None = None,
    damp: float = 0.05,
) -> None:
    """Fit each 1x1 convolution's remaining weights to the dense net's outputs, in closed form.

    min_W ||Y - W X||^2 + damp h ||W - W_0||^2 over the weights that are not 0, row by row. Y: the
    layer's outputs in the dense net, X: its inputs in the pruned net, behind the layers that were
    fitted before, both less their means; h: the mean square of an input; W_0: the weights before.
    A layer so makes up for the errors of all layers before it. Batch norms are corrected behind
    each layer, see `correct_batch_norms`. Layers in the blocks and behind them are fitted.

    pruned: changed in place; its zeros stay. dense: the net before pruning.
    pictures: (N, C, H, W), some hundred: with few positions of its output for each input, a layer
    would learn these pictures by heart; where there are 500, as in early layers, 256 pictures do.
    prune: path of a layer -> the method that chooses its zeros, among the weights that fit best
    while all may stay, for the inputs behind the layers that were pruned before; `sparsify` chooses
    by the inputs of the net as it was. None = the zeros that are there.
    damp: above 0; more stays nearer to W_0.
    Raises: TargetError for a net without blocks that follow one another, or of another
    architecture, and for a path that is no 1x1 convolution in the blocks or behind them;
    ConfigError for a damping that cannot be.
    """
    above("damp", damp, 0, "Try 0.05.")
    prune = prune or {}
    last = _convolutions_behind(pruned, dense)
    _check_paths(pruned, prune, last)
    with evaluating(dense), evaluating(pruned):
        hidden = _first_inputs(pruned, dense, pictures)
        for path, reference in blocks(dense):
            block = pruned.get_submodule(path)
            for name, method in _to_fit(block, path, prune):
                # first the norms before the layer, since it reads their outputs
                _correct_norms(block, reference, *hidden[0])
                _refit(block, reference, name, hidden, damp, method)
            _correct_norms(block, reference, *hidden[0])
            # what the next block reads, in both nets
            hidden = [(block(x), reference(y)) for x, y in hidden]
        batches = [(some, some) for some in pictures.split(BATCH)]
        for name, method in _to_fit(pruned, "", prune):
            if name in last:
                _refit(pruned, dense, name, batches, damp, method)
        # norms behind the blocks
        _correct_norms(pruned, dense, *batches[0])


def _convolutions_behind(pruned: nn.Module, dense: nn.Module) -> list[str]:
    places = {path: place for place, (path, _) in enumerate(pruned.named_modules())}
    end = max((places.get(path, 0) for path, _ in blocks(dense)), default=0)
    within = [path for path, _ in blocks(dense)]
    return [
        path
        for path in _pointwise(pruned)
        if places[path] > end and not any(inside(path, block) for block in within)
    ]


def _check_paths(pruned: nn.Module, prune: Mapping[str, LayerPruner], last: list[str]) -> None:
    """Refuse to prune layers that are not fitted."""
    fitted = {f"{path}.{name}" for path, block in blocks(pruned) for name in _pointwise(block)}
    if unknown := sorted({*prune} - fitted - {*last}):
        want, fix = "1x1 convolutions of its blocks, or behind them", "See net.named_modules()."
        raise TargetError("layers to prune", got=unknown[:3], want=want, fix=fix)


def _first_inputs(pruned: nn.Module, dense: nn.Module, pictures: Tensor) -> Hidden:
    """Return what the first block reads in both nets, for each batch of pictures."""
    paths = [path for path, _ in blocks(dense)]
    ours = {path for path, _ in pruned.named_modules()}
    if not paths or not ours.issuperset(paths):
        fix = "Pass the net that this one was pruned from."
        raise TargetError("blocks", got=f"{len(paths)} in the dense net", want="the same", fix=fix)
    hidden: Hidden = []
    for some in pictures.split(BATCH):
        first: list[Tensor] = []
        for net in (pruned, dense):
            passed: list[Any] = []

            def keep(
                _block: nn.Module, inputs: tuple[Any, ...], output: Any, to: Any = passed
            ) -> None:
                to.append((inputs[0], output))

            with ExitStack() as stack:
                for path in paths:
                    handle = net.get_submodule(path).register_forward_hook(keep)
                    stack.callback(handle.remove)
                net(some)
            # each block's input is the very tensor that the one before it returned
            if any(
                x is not before for (x, _), (_, before) in zip(passed[1:], passed, strict=False)
            ):
                got, fix = "blocks that do not follow one another", "Leave this step out."
                raise TargetError("net", got=got, want="a chain of blocks", fix=fix)
            first.append(passed[0][0])
        hidden.append((first[0], first[1]))
    return hidden


def _pointwise(block: nn.Module) -> list[str]:
    """Return the paths of the 1x1 convolutions of a block, or of a net, in its order."""
    return [
        path
        for path, layer in layers_of(block)
        if isinstance(layer, nn.Conv2d) and (layer.kernel_size, layer.groups) == ((1, 1), 1)
    ]


def _to_fit(
    block: nn.Module, path: str, prune: Mapping[str, LayerPruner]
) -> list[tuple[str, LayerPruner | None]]:
    """Return the 1x1 convolutions of a block that have a 0, or are pruned, with their pruners."""
    methods = {name: prune.get(f"{path}.{name}".lstrip(".")) for name in _pointwise(block)}
    return [
        (name, method)
        for name, method in methods.items()
        if method is not None or bool((block.get_parameter(f"{name}.weight") == 0).any())
    ]


def _refit(
    block: nn.Module,
    reference: nn.Module,
    name: str,
    hidden: Hidden,
    damp: float,
    method: LayerPruner | None,
) -> None:
    """Fit one layer of a block by least squares; see `reconstruct`."""
    layer: Any = block.get_submodule(name)
    stride = layer.stride
    count, total_x, total_y, moment, cross = 0, 0.0, 0.0, 0.0, 0.0
    for number, (x, y) in enumerate(hidden):
        # early layers have many positions and few inputs: some of the pictures are enough
        if number >= BATCHES and count >= POSITIONS * layer.in_channels:
            break
        inputs, _ = _call_of(block, name, x)
        _, outputs = _call_of(reference, name, y)
        rows = _rows(inputs[:, :, :: stride[0], :: stride[1]])  # (positions, in)
        targets = _rows(outputs)  # (positions, out)
        count += len(rows)
        # products of a batch in the net's own type, their sums in float64
        total_x, total_y = total_x + rows.sum(0).double(), total_y + targets.sum(0).double()
        moment, cross = moment + (rows.T @ rows).double(), cross + (targets.T @ rows).double()
    assert isinstance(total_x, Tensor) and isinstance(total_y, Tensor)
    # less the means, which the batch norm behind it, or the bias, carries
    moment = moment / count - torch.outer(total_x, total_x) / count**2
    cross = cross / count - torch.outer(total_y, total_x) / count**2
    weight = layer.weight.detach().flatten(1).double()
    mask = weight != 0
    scale = damp * moment.diagonal().mean().clamp_min(1e-12)
    damped = moment + scale * torch.eye(len(moment), dtype=moment.dtype, device=moment.device)
    cross = cross + scale * weight
    if method is not None:
        # the zeros are chosen among the weights that fit best while all of them may stay
        best = torch.linalg.solve(damped, cross.T).T
        statistics = Statistics(count, None, count * moment.diagonal(), count * moment)
        mask = method.edit(name, best, statistics, torch.Generator())[0].mask(name, 0)
    fitted = torch.zeros_like(weight)
    for row, keep in enumerate(mask.to(weight.device)):
        index = keep.nonzero()[:, 0]
        if len(index):
            fitted[row, index] = torch.linalg.solve(damped[index][:, index], cross[row, index])
    layer.weight.copy_(fitted.view_as(layer.weight))
    if layer.bias is not None:
        layer.bias.copy_((total_y - fitted @ total_x) / count)


def _call_of(block: nn.Module, name: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the input and the output of a layer inside a block.  x: what the block reads."""
    calls: list[tuple[Tensor, Tensor]] = []

    def note(_layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        calls.append((inputs[0], output))

    handle = block.get_submodule(name).register_forward_hook(note)
    try:
        block(x)
    finally:
        handle.remove()
    return calls[0]


def _correct_norms(pruned: nn.Module, dense: nn.Module, x: Tensor, y: Tensor) -> None:
    """Correct the batch norms of a module; see `correct_batch_norms`."""
    norms, corrected = _batch_norms(dense), _batch_norms(pruned)
    if {*norms} != {*corrected}:
        names = sorted({*norms} ^ {*corrected})[:3]
        fix = "Pass the net that this one was pruned from."
        raise TargetError("batch norms", got=f"{names} in one net", want="the same", fix=fix)
    moments: dict[str, Moments] = {}
    with _calling_before(norms, lambda name, x: moments.update({name: _moments(x)})):
        dense(y)

    def correct(name: str, x: Tensor) -> None:
        norm, reference = corrected[name], norms[name]
        variance, mean = _moments(x)
        dense_variance, dense_mean = moments[name]
        # bounded: a channel that these pictures hardly reach may be large on others
        ratio = ((variance + norm.eps) / (dense_variance + norm.eps)).clamp(1 / MOST, MOST)
        corrected_variance = (reference.running_var + norm.eps) * ratio - norm.eps
        norm.running_var.copy_(corrected_variance.clamp_min(0))
        norm.running_mean.copy_(mean - (dense_mean - reference.running_mean) * ratio.sqrt())

    with _calling_before(corrected, correct):
        pruned(x)


def _batch_norms(model: nn.Module) -> dict[str, Any]:
    """Return the batch norms that have running statistics, by path."""
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, BATCH_NORM) and module.running_mean is not None
    }


def _rows(x: Tensor) -> Tensor:
    """Return the channels of every position.  x: (N, C, ...) -> (N ..., C)."""
    return x.movedim(1, -1).reshape(-1, x.shape[1])


def _moments(x: Tensor) -> Moments:
    """Return variance and mean of each channel, (C,) each.  x: (N, C, ...)."""
    rows = _rows(x)
    mean = rows.mean(0)
    # torch.var_mean over the first axis takes five times as long
    return (rows - mean).square().mean(0), mean


@contextmanager
def _calling_before(norms: Mapping[str, nn.Module], read: Read) -> Iterator[None]:
    """Call a function with each norm's path and input, before the norm computes its output."""

    def hook(path: str, _norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        read(path, inputs[0])

    with ExitStack() as stack:
        for path, norm in norms.items():
            stack.callback(norm.register_forward_pre_hook(partial(hook, path)).remove)
        yield
