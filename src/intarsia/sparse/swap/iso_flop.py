"""Put sparse layers of as many FLOPs in the place of dense ones: wider, parallel, of two factors.

Which layers of a host can be changed, and the four ways of Sparse-IFT (arXiv:2303.11525).
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...core.errors import TargetError
from ...core.foreign import activation_of, config_of, groups_of
from ...core.heads import heads_of
from ...hosts.anatomy.blocks import BATCH_NORM, CONVOLUTIONAL, block_kind, blocks, layers_of
from ...hosts.anatomy.dense_mlp import dense_mlp, mlp_place
from ...mixtures.iso_flop import Doped, Parallel
from ...partitions.topk import keep_random
from ...schedules.masked_layers import matches


def layers_to_change(
    host: nn.Module, kind: str, density: float, globs: Sequence[str] | None = None
) -> dict[str, Any]:
    """Return the layers that a kind of Sparse-IFT changes, by path.

    kind: "wide", "parallel", "factorised" or "doped"; density: share of weights that are not zero.
    globs: patterns of paths or class names, None = all layers that can be changed.
    Raises: TargetError for a layer that is named but cannot be changed, and for a glob that fits
    none.
    """
    if kind == "wide":
        return {p: host.get_submodule(p) for p, *_ in _wide_layers(host, density)}
    inside = [(f"{p}.{i}", m) for p, b in blocks(host) for i, m in layers_of(b)]
    # without blocks, all layers but the stem and the head
    candidates = inside or _all_layers(host)[1:-1]
    layers, used = dict[str, Any](), set[str]()
    for path, layer in candidates:
        named = [g for g in globs or ("*",) if matches(path, layer, g)]
        used |= set(named)
        objection = _reason_against(host, path, layer, kind, density)
        if named and objection and path in (globs or ()):
            fix = "Leave it out of layers=."
            raise TargetError(f"layer {path!r}", got=objection, want="a plain one", fix=fix)
        if named and not objection:
            layers[path] = layer
    if missing := [g for g in globs or () if g not in used]:
        want, fix = "layers inside the blocks", "See model.named_modules()."
        raise TargetError("layers", got=f"none for {missing}", want=want, fix=fix)
    return layers


def _reason_against(host: nn.Module, path: str, layer: Any, kind: str, density: float) -> str:
    """Return the reason why a layer cannot be changed; "" if it can."""
    if not isinstance(layer, nn.Linear | nn.Conv2d) or groups_of(layer) > 1:
        return f"{type(layer).__name__} of groups, or with its weight transposed"
    if layer.weight[0].numel() < 2:
        return "one input"
    conv = isinstance(layer, nn.Conv2d)
    if kind == "parallel" and conv and not norm_place(host, path, layer.out_channels):
        return "a convolution without a batch norm behind it"
    rank = _doped_rank(layer, density)
    return "too few weights for a rank" if kind == "doped" and rank < 1 else ""


def norm_place(host: nn.Module, path: str, width: int | None = None) -> str:
    """Return the path of the module registered directly after a layer, "" for none.

    width: if given, only a batch norm with weights of that many channels counts.
    """
    owner, _, name = path.rpartition(".")
    names = list(host.get_submodule(owner)._modules)
    next_names = names[names.index(name) + 1 :][:1]
    place = f"{owner}.{next_names[0]}".lstrip(".") if next_names else ""
    norm: Any = host.get_submodule(place) if place else None
    fits = isinstance(norm, BATCH_NORM) and norm.affine and norm.num_features == width
    return place if width is None or fits else ""


def _all_layers(host: nn.Module) -> list[tuple[str, Any]]:
    return [(p, m) for p, m in host.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]


def _wide_layers(host: nn.Module, density: float) -> Iterator[tuple[str, int, int]]:
    """Yield each layer that "wide" changes: its path, its new number of inputs and of outputs."""
    # widths grow by density^-1/2: a share `density` of the wider weight has as many weights as
    # the dense one had; in transformers only the hidden units of MLPs grow
    if of_tokens(host):
        yield from _mlp_widths(host, density)
        return
    layers = _all_layers(host)
    if len(layers) < 2:
        got, want = f"{len(layers)} in {type(host).__name__}", "at least two: a width between them"
        raise TargetError("layers to widen", got=got, want=want, fix="Use another kind.")
    heads = [m for h in heads_of(host) for m in h.modules() if isinstance(m, nn.Linear)]
    # the last layer keeps its number of outputs
    last = heads[-1] if heads else layers[-1][1]
    widths = {_sizes(m)[1] for _, m in layers}
    for number, (path, layer) in enumerate(layers):
        ins, outs = _sizes(layer)
        # the stem, and others that read the picture, keep their inputs
        reads_picture = ins == _sizes(layers[0][1])[0] and ins not in widths
        depthwise = groups_of(layer)
        if depthwise not in (1, ins) or (not reads_picture and layer.weight[0].numel() < 2):
            got, want = f"{depthwise} groups or one input", "a plain or a depthwise convolution"
            raise TargetError(f"layer {path!r}", got=got, want=want, fix="Use another kind.")
        if number and not reads_picture:
            ins = _wider_inputs(path, layer, layers[number - 1][1], widths, density)
        yield path, ins, outs if layer is last else _scale_width(outs, density)
    for path, module in host.named_modules():
        tensors = list(module.parameters(recurse=False)) or list(module.buffers(recurse=False))
        if tensors and not isinstance(module, nn.Linear | nn.Conv2d | BATCH_NORM):
            want, fix = "layers and batch norms", "Use kind='parallel', 'factorised' or 'doped'."
            raise TargetError(f"module {path!r}", got=type(module).__name__, want=want, fix=fix)


def _wider_inputs(
    path: str, layer: Any, before: Any, widths: Collection[int], density: float
) -> int:
    (ins, _), outs, factor = _sizes(layer), _sizes(before)[1], density**-0.5
    # whole multiples need no rounding: sums of several layers still fit
    if abs(factor - round(factor)) < 1e-5:
        return _scale_width(ins, density)
    flat = isinstance(layer, nn.Linear) and isinstance(before, nn.Conv2d)
    # a flattened map: one input for each channel and position
    if flat and ins != outs and ins % outs == 0:
        return _scale_width(outs, density) * (ins // outs)
    if ins not in widths:
        got, want = f"{ins} inputs, of several layers", "those of one layer"
        near = 1 / max(2, round(factor)) ** 2
        fix = f"Set density={near:.6g}, whose widths are whole multiples, or use another kind."
        raise TargetError(f"layer {path!r}", got=got, want=want, fix=fix)
    return _scale_width(ins, density)


def of_tokens(host: nn.Module) -> bool:
    """Return True if the blocks belong to a transformer, with a stream that keeps its width."""
    return any(block_kind(block) not in CONVOLUTIONAL for _, block in blocks(host))


def _mlp_widths(host: nn.Module, density: float) -> Iterator[tuple[str, int, int]]:
    """Yield (path, new inputs, new outputs) of each linear layer of each MLP in a transformer."""
    paths = {id(m): p for p, m in host.named_modules()}
    for reads, writes in linear_mlps(host):
        hidden = round(writes.in_features / density)
        yield from ((paths[id(layer)], layer.in_features, hidden) for layer in reads)
        yield paths[id(writes)], hidden, writes.out_features


def linear_mlps(host: nn.Module) -> Iterator[tuple[list[nn.Linear], nn.Linear]]:
    """Yield the layers into and out of the hidden units of each MLP in a transformer's blocks.

    Raises: TargetError for an MLP that computes otherwise, or has its weights transposed.
    """
    inside = {id(m) for m in host.modules()}
    for path, block in blocks(host):
        if (place := mlp_place(block)) is None:
            continue
        mlp = dense_mlp(f"{path}.{place.path}", place.mlp)
        layers = [m for m in (mlp.gate, mlp.up, mlp.down) if m is not None]
        # `dense_mlp` makes a new nn.Linear of a Conv1D, which the host does not hold
        if any(id(layer) not in inside for layer in layers):
            got, want = "a linear map with its weight transposed", "nn.Linear"
            fix = "Leave this method out: it changes hidden units."
            raise TargetError(f"MLP of {path!r}", got=got, want=want, fix=fix)
        yield layers[:-1], layers[-1]


def _scale_width(width: int, density: float) -> int:
    """Scale a width by density^-1/2, so that width^2 density stays as it was."""
    return round(width * density**-0.5)


def _sizes(layer: Any) -> tuple[int, int]:
    """Return the numbers of inputs and outputs of a linear layer or convolution."""
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    return layer.in_channels, layer.out_channels


def widen(
    host: nn.Module, density: float, layers: Mapping[str, int], draws: torch.Generator
) -> dict[str, int]:
    """Widen layers and batch norms in place, with new random weights.

    density: share of weights that will not be zero, which fixes the widths. layers: path -> number
    of non-zero weights that the layer is to have; returned as they are.
    """
    is_transformer = of_tokens(host)
    config: Any = config_of(host)
    for path, ins, outs in list(_wide_layers(host, density)):
        layer: Any = host.get_submodule(path)
        # a sum of fewer terms: the weights are larger, so that outputs vary as before
        gain, row_weights = _output_deviation(layer), layers[path] / outs
        # a depthwise layer stays one: a group for each channel
        groups = ins if groups_of(layer) > 1 else 1
        _resize(layer, ins, outs, groups)
        shape = (outs, ins // groups, *layer.weight.shape[2:])
        layer.weight = _normal(shape, gain / math.sqrt(row_weights), layer.weight, draws)
        if layer.bias is not None and len(layer.bias) != outs:
            layer.bias = nn.Parameter(layer.bias.new_zeros(outs))
    if is_transformer and hasattr(config, "intermediate_size"):
        config.intermediate_size = round(config.intermediate_size / density)
    # a transformer's stream keeps its width, and so do its norms
    for module in () if is_transformer else host.modules():
        if isinstance(module, BATCH_NORM):
            _widen_norm(module, _scale_width(module.num_features, density))
    # attributes by which timm knows the width of the features
    for name in () if is_transformer else ("num_features", "head_hidden_size"):
        if isinstance(width := getattr(host, name, None), int):
            setattr(host, name, _scale_width(width, density))
    return dict(layers)


def _resize(layer: Any, ins: int, outs: int, groups: int = 1) -> None:
    """Write new sizes into a layer's attributes; its weights are set elsewhere."""
    names = ("in_features", "out_features")
    if isinstance(layer, nn.Conv2d):
        names, layer.groups = ("in_channels", "out_channels"), groups
    for name, width in zip(names, (ins, outs), strict=True):
        setattr(layer, name, width)


def _widen_norm(norm: Any, width: int) -> None:
    """Give a batch norm new tensors for `width` channels: scale 1, shift 0, mean 0, variance 1."""
    norm.num_features = width
    for name, tensor in [*norm._parameters.items(), *norm._buffers.items()]:
        if tensor is not None and tensor.dim():
            start = (1.0 if name in ("weight", "running_var") else 0.0) * tensor.new_ones(width)
            setattr(norm, name, nn.Parameter(start) if name in norm._parameters else start)


def _output_deviation(layer: Any) -> float:
    """Return the standard deviation of a layer's outputs for inputs of standard deviation 1."""
    weight = layer.weight.detach()
    # a weight of zeros counts as one that keeps the variance
    spread = float(weight.float().std()) or weight[0].numel() ** -0.5
    return spread * math.sqrt(weight[0].numel())


def _normal(
    shape: tuple[int, ...], std: float, like: Tensor, draw: torch.Generator
) -> nn.Parameter:
    """Draw a weight of a shape from N(0, std^2), with the type and device of `like`."""
    new = torch.randn(shape, generator=draw) * std
    return nn.Parameter(new.to(like))


def _with_outputs(
    layer: Any, outs: int, draw: torch.Generator, std: float, bias: bool = False
) -> Any:
    """Copy a layer with another number of outputs and new weights, drawn from N(0, std^2)."""
    new: Any = copy.deepcopy(layer)
    _resize(new, _sizes(layer)[0], outs)
    new.weight = _normal((outs, *layer.weight.shape[1:]), std, layer.weight, draw)
    new.bias = new.bias if bias else None
    return new


def _second_factor(layer: Any, rank: int, draw: torch.Generator, std: float) -> Any:
    """Build V, the second of two factors replacing a layer, from `rank` inputs to its outputs."""
    outs, bias = _sizes(layer)[1], layer.bias is not None
    conv = isinstance(layer, nn.Conv2d)
    new: Any = nn.Conv2d(rank, outs, 1, bias=bias) if conv else nn.Linear(rank, outs, bias=bias)
    new.weight = _normal(tuple(new.weight.shape), std, layer.weight, draw)
    new.bias = layer.bias
    return new


def _parallel(host: nn.Module, path: str, density: float, draw: torch.Generator) -> dict[str, int]:
    """Replace a layer by q = 1 / density branches of its shape, each with a norm, summed."""
    layer: Any = host.get_submodule(path)
    outs, total, branches = _sizes(layer)[1], layer.weight.numel(), round(1 / density)
    # each branch will be sparse; together they have as many weights as the dense layer, dealt out
    # evenly, so that FLOPs stay as they were
    counts = [total // branches + (i < total % branches) for i in range(branches)]
    std = _output_deviation(layer) / math.sqrt(total / branches / outs)
    layers = [_with_outputs(layer, outs, draw, std, bias=True) for _ in range(branches)]
    norm_path = norm_place(host, path, outs)
    if norm_path:
        old: Any = host.get_submodule(norm_path)
        norms = [_branch_norm(old, branches) for _ in range(branches)]
        host.set_submodule(norm_path, activation_of(old) or nn.Identity())
    else:
        norms = [nn.LayerNorm(outs).to(layer.weight) for _ in range(branches)]
    host.set_submodule(path, Parallel(layers, norms))
    return {f"layers.{i}": n for i, n in enumerate(counts)}


@torch.no_grad()
def _branch_norm(old: Any, branches: int) -> nn.Module:
    """Copy a batch norm for one of several branches, scaled so that their sum is as before."""
    norm: Any = copy.deepcopy(old)
    if activation_of(norm) is not None:
        norm.act = nn.Identity()
    # the statistics were measured on the dense layer's outputs
    norm.reset_running_stats()
    norm.weight.div_(math.sqrt(branches))
    norm.bias.div_(branches)
    return norm


def _factorised(
    host: nn.Module, path: str, density: float, draw: torch.Generator
) -> dict[str, int]:
    """Replace a layer by two sparse factors V relu(norm(U x))."""
    layer: Any = host.get_submodule(path)
    outs, count, reads = _sizes(layer)[1], layer.weight.numel(), layer.weight[0].numel()
    # r (reads + outs) density = count: both sparse factors together have the layer's FLOPs
    rank = math.ceil(count / (density * (reads + outs)) - 1e-9)
    # both factors have the same share of weights that are not 0
    kept_u = round(count * reads / (reads + outs))
    u = _with_outputs(layer, rank, draw, math.sqrt(rank / kept_u))
    v = _second_factor(
        layer, rank, draw, _output_deviation(layer) * math.sqrt(outs / (count - kept_u))
    )
    # the norm keeps the scale of u's outputs, and the ReLU makes the map non-linear
    norm = nn.BatchNorm2d(rank) if isinstance(layer, nn.Conv2d) else nn.LayerNorm(rank)
    parts = {"u": u, "norm": norm.to(layer.weight), "act": nn.ReLU(), "v": v}
    factors = nn.Sequential()
    for name, part in parts.items():
        factors.add_module(name, part)
    host.set_submodule(path, factors)
    return {"u": kept_u, "v": count - kept_u}


def _doped_rank(layer: Any, density: float) -> int:
    """Return the rank r of two dense factors that replace the weights which become zero."""
    reads, outs = layer.weight[0].numel(), len(layer.weight)
    return math.floor((1 - density) * layer.weight.numel() / (reads + outs) + 1e-9)


def _doped(host: nn.Module, path: str, density: float, draw: torch.Generator) -> dict[str, int]:
    """Replace a layer W by a sparse one plus two dense factors of low rank: W_sparse x + V U x."""
    layer: Any = host.get_submodule(path)
    outs, reads, gain = _sizes(layer)[1], layer.weight[0].numel(), _output_deviation(layer)
    rank = _doped_rank(layer, density)
    sparse_weights = layer.weight.numel() - rank * (reads + outs)
    # gains: the sparse part has `density` of the variance, both factors have the rest
    sparse = _with_outputs(
        layer, outs, draw, gain * math.sqrt(density * outs / sparse_weights), bias=True
    )
    u = _with_outputs(layer, rank, draw, reads**-0.5)
    v = _second_factor(layer, rank, draw, gain * math.sqrt((1 - density) / rank))
    v.bias = None
    host.set_submodule(path, Doped(sparse, u, v))
    return {"sparse": sparse_weights}


def sparsify_layer(path: str, layer: Any, count: int, draw: torch.Generator) -> None:
    """Set all but `count` weights of a layer to 0, at random, in place.

    path: of the layer, for a warning if rows keep less than one weight on average.
    """
    row_weights = count / len(layer.weight)
    if row_weights < 1:
        message = (
            f"{path}: {row_weights:.2f} weights a row are kept; a row of zeros is a dead unit."
        )
        warnings.warn(message, stacklevel=2)
    shape = tuple(layer.weight.shape)
    mask = keep_random({path: shape}, count, generator=draw).mask(path, 0).to(layer.weight.device)
    layer.weight.data.mul_(mask)


REPLACERS = {"parallel": _parallel, "factorised": _factorised, "doped": _doped}
"""Kind -> (host, path, density, draws) -> number of weights that each sparse layer inside keeps."""
