"""Find where in a host model a method's cells go, by roles or by names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

from timm.layers import LayerNorm2d, RmsNorm2d
from torch import Tensor, nn

from ...core import Method, Site
from ...core.errors import TargetError
from ...core.foreign import config_of, tensor_of
from .blocks import (
    CONVOLUTIONAL,
    QKV,
    block_kind,
    blocks,
    inside,
    is_pointwise,
    layers_of,
    norm_kind,
    outside,
    places,
    unwrapped,
    walk,
    widths,
    wrapped_paths,
)

AROUND = ("norm", "embedding")  # roles that are found outside the blocks, too
CHANNELS_FIRST = (nn.Conv2d, nn.GroupNorm, LayerNorm2d, RmsNorm2d)
# blocks known to be pre-norm: only there does the named LayerNorm feed the module
PRE_NORM = frozenset(
    {
        "Block",
        "CLIPEncoderLayer",
        "ConvNeXtBlock",
        "DeiTLayer",
        "Dinov2Layer",
        "Dinov2WithRegistersLayer",
        "EvaBlock",
        "GPT2Block",
        "MixerBlock",
        "SiglipEncoderLayer",
        "SwinTransformerBlock",
        "ViTLayer",
    }
)
FEEDS = {
    "attn": ("norm1", "ln_1"),
    "attention": ("layernorm_before", "norm1"),
    "mlp": ("norm2", "layernorm_after", "norm", "layer_norm2", "ln_2"),
    "mlp_channels": ("norm2",),
    "self_attn": ("layer_norm1",),
}


def _modules_down_to(model: nn.Module, path: str) -> list[nn.Module]:
    """Return the modules from the model down to `path`, without wrappers of adapters."""
    chain = [unwrapped(model)]
    for name in path.split("."):
        child = chain[-1]._modules.get(name)
        if child is None:
            raise _no_match(model, path)
        chain.append(unwrapped(child))
    return chain


def _feeding_norm(chain: Sequence[nn.Module], path: str) -> tuple[Tensor, Tensor] | None:
    """Return weight and bias of the LayerNorm that feeds a module; None if unknown."""
    names = path.split(".")
    # the module itself, or the first layer inside it
    up = 2 if names[-1] in (*QKV, "fc1") else 1
    if len(names) < up or len(chain) <= up or type(chain[-up - 1]).__name__ not in PRE_NORM:
        return None
    for name in FEEDS.get(names[-up], ()):
        norm = chain[-up - 1]._modules.get(name)
        weight, bias = tensor_of(norm), tensor_of(norm, "bias")
        if isinstance(norm, nn.LayerNorm) and weight is not None and bias is not None:
            return weight, bias
    return None


def _read_as_weight(parent: nn.Module, path: str) -> bool:
    """Return True if an attention reads the weight of its qkv layer without calling the layer."""
    separate = getattr(parent, "qkv_bias_separate", False)
    return (
        path.rpartition(".")[2] == "qkv"
        and not separate
        and hasattr(parent, "q_bias")
        and (parent.q_bias is not None)
    )


def call_layer(parent: nn.Module, path: str) -> None:
    """Make an attention call its qkv layer instead of reading its weight, in place.

    Otherwise a module added to that layer would not be run.
    """
    if _read_as_weight(parent, path):
        vars(parent)["qkv_bias_separate"] = True


def site_at(model: nn.Module, path: str, position: str) -> Site:
    """Return the *site* of a path: a module that can be adapted, with its widths.

    position: of the added module, "parallel" or "sequential"; blocks of convolutions change the
    resolution, so they are always "sequential".
    Raises: TargetError if nothing is there, it has no widths, or "parallel" cannot work.
    """
    chain = _modules_down_to(model, path)
    module = chain[-1]
    in_and_out = widths(module)
    if in_and_out is None:
        subject = f"target {path!r}"
        got = f"{type(module).__name__}, which has no input and output width"
        want = "a Linear, a pointwise convolution, an MLP, an attention or a block"
        raise TargetError(subject, got=got, want=want, fix=f"Candidates: {_candidates(model)}.")
    if _read_as_weight(chain[-2], path) and not hasattr(chain[-2], "qkv_bias_separate"):
        subject, want = f"target {path!r}", "a module that is called: an adapter here does nothing"
        got = "a layer whose weight the host reads without calling it"
        raise TargetError(
            subject, got=got, want=want, fix="Target the attention or the MLP instead."
        )
    kind = block_kind(module)
    layers = [layer for _, layer in layers_of(module)]
    convolutions = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
    if kind in CONVOLUTIONAL:
        position = "sequential"
    if position == "parallel" and kind != "convnext" and not all(map(is_pointwise, convolutions)):
        got = f"{type(module).__name__} with spatial or strided convolutions"
        want = "a module that maps each position on its own, for an adapter beside it"
        fix = "Target its block, or use a sequential placement (pfeiffer, houlsby, adapter+)."
        raise TargetError(f"target {path!r}", got=got, want=want, fix=fix)
    if position == "parallel" and getattr(module, "q_stride", 1) > 1:  # Hiera's
        got, want = "an attention that pools its tokens", "one that gives as many as it gets"
        fix = "Choose layers=[...] without it, or target its layers."
        raise TargetError(f"target {path!r}", got=got, want=want, fix=fix)
    # axis of the channels: first as in (B, C, H, W), or last
    first = kind in ("convnext", *CONVOLUTIONAL)
    first = first or isinstance([module, *layers][-1], CHANNELS_FIRST)
    norm = _feeding_norm(chain, path) if position == "parallel" else None
    # layers inside, for methods that change several of them
    inner = tuple((p, *sizes) for p, m in layers_of(module) if p and (sizes := widths(m)))
    # the norm of the nearest surrounding module that has one
    kinds = (norm_kind(m) for m in reversed(chain[:-1]))
    norms = "none" if first else next((k for k in kinds if k != "none"), "none")
    return Site(path, *in_and_out, position, "first" if first else "last", norm, inner, norms)


def select_blocks(blocks_: list[tuple[str, nn.Module]], layers: Sequence[int] | None) -> list[str]:
    """Return the paths of the blocks of some numbers.

    blocks_: all blocks, (path, block); layers: numbers, negative ones count from the last; None =
    all.
    Raises: TargetError for a block that is not there.
    """
    count = len(blocks_)
    if layers is None:
        return [p for p, _ in blocks_]
    wrong = [i for i in layers if not -count <= i < count]
    if wrong or not layers:
        subject, fix = (
            "layers",
            f"The model has {count} blocks; negative numbers count from the last.",
        )
        got = ", ".join(map(str, wrong[:3])) + ", ..." * (len(wrong) > 3) or "none"
        raise TargetError(subject, got=got, want=f"{-count} ... {count - 1}", fix=fix)
    numbers = {i % count for i in layers}
    return [p for i, (p, _) in enumerate(blocks_) if i in numbers]


def find_sites(
    model: nn.Module,
    method: Method,
    targets: Sequence[str] | str | None = None,
    layers: Sequence[int] | None = None,
) -> list[Site]:
    """Find the modules that a method adapts in a model, with their widths, in the model's order.

    By default the method's roles decide. In convolutional nets "qkv", "projection" and "mlp_linear"
    all mean the pointwise layers, and where there is no MLP, "mlp" means the block.
    "linear" is every linear layer and convolution of a block, "norm" every LayerNorm or its like,
    "embedding" the layers before and between the blocks; with `layers`, only those inside the
    blocks.
    targets: module paths, else ends of paths, else globs, instead of the roles.
    layers: numbers of blocks, over all stages; negative ones count from the last.

    Raises: TargetError if a role or target matches nothing or has no widths, or if a module lies
    inside or around another one or an adapted module.
    """
    all_blocks = blocks(model)
    block_paths = select_blocks(all_blocks, layers)
    if targets is None:
        paths = _by_role(model, all_blocks, None if layers is None else block_paths, method)
    else:
        names = [targets] if isinstance(targets, str) else list(targets)
        within = None if layers is None else block_paths
        paths = _by_name(model, names, within)
    # an adapter inside another one would be skipped by PEFT
    check_nesting(model, paths)
    return [site_at(model, path, method.position) for path in paths]


def planned(
    host: nn.Module,
    method: Method,
    targets: Sequence[str] | str | None = None,
    layers: Sequence[int] | None = None,
    seed: int = 0,
    batches: Iterable[Any] = (),
) -> tuple[Method, list[Site]]:
    """Return a method with all its settings decided for a model, and the modules that it adapts.

    targets: names of modules, None = by the method's roles; layers: numbers of blocks, None = all;
    seed, batches: for methods that choose at random, or by data. A method may name another one for
    models in which its own modules are not found.
    Raises: as `find_sites` and the method do.
    """
    method = method.for_host(host, batches, targets=targets, layers=layers, seed=seed)
    if targets is None:
        targets = method.paths or None
    # a method with no modules found here may name another method to use instead
    try:
        sites = find_sites(host, method, targets, layers)
    except TargetError:
        if (fallback := method.elsewhere) is None:
            raise
        method, sites = fallback, find_sites(host, fallback, targets, layers)
    _refuse_rescaled(host, sites)
    method.check_sites([site.path for site in sites])
    return method, sites


def _refuse_rescaled(host: nn.Module, sites: Sequence[Site]) -> None:
    """Refuse layers with weights that RWKV divides for inference: adapters stay undivided."""
    interval = getattr(config_of(unwrapped(host)), "rescale_every", 0)
    for site in sites if interval else ():
        if not site.path.endswith(("key", "receptance", "attention.value")):
            raise TargetError(
                f"target {site.path!r}",
                got=f"a model with rescale_every={interval}, which divides weights in evaluation",
                want="a layer that is not divided: a key, a receptance, attention.value",
                fix="Set model.config.rescale_every = 0 first.",
            )


def _by_role(
    model: nn.Module,
    all_blocks: list[tuple[str, nn.Module]],
    chosen_paths: list[str] | None,
    method: Method,
) -> list[str]:
    """Return the paths of the modules that have one of a method's roles, such as "mlp"."""
    if not all_blocks:
        subject = f"model {type(unwrapped(model)).__name__}"
        want = "a transformer, a Mixer or a convolutional net of timm or transformers"
        fix = f"Name the modules, targets=[...]. Candidates: {_candidates(model)}."
        raise TargetError(
            subject, got="no block that is known by its structure", want=want, fix=fix
        )
    paths: list[str] = []
    for role in method.roles:
        hits = [
            f"{p}.{place}" if place else p
            for p, block in all_blocks
            if chosen_paths is None or p in chosen_paths
            for place in places(block, role, method.position)
        ]
        if role in AROUND and chosen_paths is None:
            hits += outside(model, all_blocks, role)
        if not hits and not (role in AROUND and len(method.roles) > 1):
            subject, got = f"role {role!r}", f"{type(unwrapped(model)).__name__}, which has none"
            if role == "mlp":  # parallel, or it would be at the second of two layers
                got = f"{type(unwrapped(model)).__name__}, whose MLPs are no modules of their own"
            fix = "Choose another placement or method, or name modules with targets=[...]."
            raise TargetError(subject, got=got, want="at least one module in that role", fix=fix)
        nested = [
            (p, earlier)
            for p in hits
            for earlier in paths
            if inside(p, earlier) or inside(earlier, p)
        ]
        if nested:
            (first, earlier), name = nested[0], type(unwrapped(model)).__name__
            got = f"{name}, where {first!r} and {earlier!r} lie inside one another"
            fix = "Choose another method, or name modules with targets=[...]."
            raise TargetError(f"roles {method.roles}", got=got, want="separate places", fix=fix)
        paths += [p for p in hits if p not in paths]
    # roles were searched one after the other: back to the order of the model
    order = {p: i for i, (p, _) in enumerate(walk(model))}
    return sorted(paths, key=order.__getitem__)


def _by_name(model: nn.Module, patterns: list[str], within: list[str] | None) -> list[str]:
    """Return the paths that names match: whole paths, else ends of paths, else globs."""
    names = [p for p, _ in walk(model) if p]
    if within is not None:
        names = [n for n in names if any(n == b or inside(n, b) for b in within)]
    hits: set[str] = set()
    for pattern in patterns:
        # an exact path must not match other paths that end the same way
        matched = [n for n in names if n == pattern]
        matched = matched or [n for n in names if n.endswith(f".{pattern}")]
        matched = matched or [n for n in names if fnmatchcase(n, pattern)]
        if not matched:
            raise _no_match(model, pattern)
        hits.update(matched)
    if not hits:
        raise TargetError("targets", got="an empty list", want="names", fix="Or leave it out.")
    return [n for n in names if n in hits]


def _no_match(model: nn.Module, pattern: str) -> TargetError:
    """Build the error for a name that matches nothing; it suggests similar names."""
    names = [p for p, _ in walk(model) if p]
    ends = sorted({n.rpartition(".")[2] for n in names if not n.rpartition(".")[2].isdigit()})
    near = difflib.get_close_matches(pattern, ends, 3) or difflib.get_close_matches(
        pattern, names, 3
    )
    hint = f"Did you mean {' or '.join(map(repr, near))}?" if near else ""
    return TargetError(
        f"target {pattern!r}",
        got="no module of that name",
        want="a path, the end of one, or a glob",
        fix=hint or f"Candidates: {_candidates(model)}.",
    )


def _candidates(model: nn.Module) -> str:
    """Return a list of modules that can be adapted, as text: "fc1 (Linear), ..."."""
    ends = {
        p.rpartition(".")[2]: type(m).__name__ for p, m in walk(model) if p and widths(unwrapped(m))
    }
    named = [f"{n} ({t})" for n, t in ends.items() if not n.isdigit()]
    return ", ".join(named[:20]) or "none"


def check_nesting(model: nn.Module, paths: Sequence[str]) -> None:
    """Check that no module to adapt contains another one, or an adapted one, or is inside one.

    PEFT would skip them.  Raises: TargetError.
    """
    occupied = (*paths, *wrapped_paths(model))
    for path in paths:
        for outer in occupied:
            if inside(path, outer) or inside(outer, path):
                place = "inside" if inside(path, outer) else "around"
                reason = "is a target too" if outer in paths else "carries an adapter already"
                got = f"a module {place} {outer!r}, which {reason}"
                want = "modules that do not contain each other"
                fix = "Choose targets=[...] outside it, or adapt a fresh copy of the model."
                raise TargetError(f"target {path!r}", got=got, want=want, fix=fix)


def check_one_row(blocks_: Iterable[str], subject: str) -> None:
    """Check that blocks belong to one list of the model, in which they follow each other.

    Only then do all of them see the same tokens.
    Raises: TargetError for blocks of several lists, such as an encoder's and a decoder's.
    """
    rows = list(dict.fromkeys(path.rpartition(".")[0] for path in blocks_))
    if len(rows) > 1:
        raise TargetError(
            f"blocks for {subject}",
            got=f"{len(rows)} rows of blocks, {', '.join(rows[:3])}, each with tokens of its own",
            want="one row, since each layer reads what the one before left for the same tokens",
            fix="Choose blocks of one row.",
        )
