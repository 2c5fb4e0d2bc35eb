"""Roles to places: where the blocks, MLPs, attentions and linear layers of a host model are.

Structure decides, not the model's name. A block is a module with an `mlp` and one of `attn`,
`attention` or `conv_dw` (timm ViT, DeiT, DINOv2, Swin, ConvNeXt; transformers ViT, DINOv2), or one
of the pointwise-convolution blocks of EfficientNet.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

from timm.layers import LayerNorm2d, RmsNorm, RmsNorm2d
from torch import Tensor, nn

from ..core import Method, Site
from ..core.errors import TargetError

ATTENTION = ("attn", "attention")
QKV = ("qkv", "q_proj", "k_proj", "v_proj", "query", "key", "value")
PROJECTION = ("proj", "o_proj", "out_proj")
SEPARATE = {
    "qkv": QKV,
    "qv": tuple(name for name in QKV if not name.startswith("k")),
    "projection": PROJECTION,
}
POINTWISE = ("conv_pw", "conv_pwl")
AROUND = ("norm", "embedding")  # roles that are found outside the blocks, too
NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, RmsNorm, RmsNorm2d)
CHANNELS_FIRST = (nn.Conv2d, nn.GroupNorm, LayerNorm2d, RmsNorm2d)
# blocks known to be pre-norm: only there does the named LayerNorm feed the module
PRE_NORM = frozenset(
    {
        "Block", "ConvNeXtBlock", "DeiTLayer", "Dinov2Layer", "Dinov2WithRegistersLayer",
        "SwinTransformerBlock", "ViTLayer",
    }
)  # fmt: skip
FEEDS = {
    "attn": ("norm1",),
    "attention": ("layernorm_before", "norm1"),
    "mlp": ("norm2", "layernorm_after", "norm"),
}
INNER = ("base_layer", "original_module")  # the host's own module inside an adapter's wrapper


def unwrapped(module: nn.Module) -> nn.Module:
    """The host's own module, whatever adapters surround it."""
    while inner := next((m for n in INNER if (m := module._modules.get(n)) is not None), None):
        module = inner
    return module


def walk(model: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The host's modules, wrapped or not, by the paths they have without adapters."""
    yield path, model
    for name, child in unwrapped(model).named_children():
        yield from walk(child, f"{path}.{name}" if path else name)


def wrapped_paths(model: nn.Module) -> list[str]:
    """Where adapters already are."""
    return [p for p, m in walk(model) if m._modules.get("base_layer") is not None]


def _chain(model: nn.Module, path: str) -> list[nn.Module]:
    """The unwrapped modules from the model down to `path`."""
    chain = [unwrapped(model)]
    for name in path.split("."):
        child = chain[-1]._modules.get(name)
        if child is None:
            raise _no_match(model, path)
        chain.append(unwrapped(child))
    return chain


def block_kind(module: nn.Module) -> str | None:
    """ "attention", "convnext" or "mbconv" for a block, None for anything else."""
    children = unwrapped(module)._modules
    if isinstance(children.get("mlp"), nn.Module):
        if any(name in children for name in ATTENTION):
            return "attention"
        if "conv_dw" in children:
            return "convnext"
    elif ("conv_dw" in children or "conv_exp" in children) and any(
        n in children for n in POINTWISE
    ):
        return "mbconv"
    return None


def blocks(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Every block of the model, in order, with its path."""
    return [(p, unwrapped(m)) for p, m in walk(model) if p and block_kind(m)]


def _layers(module: nn.Module) -> list[tuple[str, nn.Linear | nn.Conv2d]]:
    return [
        (p, m) for p, w in walk(module) if isinstance(m := unwrapped(w), (nn.Linear, nn.Conv2d))
    ]


def _places(block: nn.Module, role: str) -> list[str]:
    """Paths of a role inside a block; "" is the block itself."""
    kind = block_kind(block)
    if role == "linear":
        return [p for p, _ in _layers(block)]
    if role == "norm":
        return [p for p, m in walk(block) if _norm_width(m)]
    if role == "embedding":
        return []
    if role == "block" or (role == "mlp" and kind == "mbconv"):
        return [""]
    if role == "mlp":
        return ["mlp"]
    if kind == "attention":
        attention = next(n for n in ATTENTION if n in block._modules)
        if role == "attention":
            return [attention]
        if role in SEPARATE:
            wanted = SEPARATE[role]
            inside = unwrapped(block.get_submodule(attention))._modules
            return [f"{attention}.{n}" for n in wanted if isinstance(inside.get(n), nn.Module)]
    if role == "attention":
        return []
    # a convolutional block has linear maps over channels only in its pointwise layers
    if kind == "mbconv":
        return [n for n in POINTWISE if _is_pointwise(block._modules.get(n))]
    return [f"mlp.{p}" for p, _ in _layers(block.get_submodule("mlp"))]


def _outside(model: nn.Module, found: list[tuple[str, nn.Module]], role: str) -> list[str]:
    """Paths of a role outside the blocks: all norms, or the layers before and between blocks."""
    outside = [
        (p, m) for p, m in walk(model) if not any(p == b or _inside(p, b) for b, _ in found)
    ]  # fmt: skip
    if role == "norm":
        return [p for p, m in outside if _norm_width(m)]
    order = {p: i for i, (p, _) in enumerate(walk(model))}
    last = order[found[-1][0]]
    layers = (nn.Linear, nn.Conv2d)
    return [p for p, m in outside if isinstance(unwrapped(m), layers) and order[p] < last]


def _norm_width(module: nn.Module) -> int | None:
    """The channels of a norm that is nothing but one; None for anything else."""
    module = unwrapped(module)
    if not isinstance(module, NORMS) or any(
        not isinstance(child, nn.Identity) for child in module.children()
    ):
        return None
    if isinstance(module, nn.GroupNorm):
        return module.num_channels
    return module.normalized_shape[-1]


def _is_pointwise(module: nn.Module | None) -> bool:
    module = module if module is None else unwrapped(module)
    return isinstance(module, nn.Conv2d) and (module.kernel_size, module.stride, module.groups) == (
        (1, 1), (1, 1), 1,
    )  # fmt: skip


def _widths(module: nn.Module) -> tuple[int, int] | None:
    """(inputs, outputs) by the first and last layer inside; a norm's channels."""
    if width := _norm_width(module):
        return width, width
    if block_kind(module) == "attention":
        module = unwrapped(module.get_submodule("mlp"))
    inside = _layers(module)
    # an attention's first layer may be that of its position bias
    first = [layer for p, layer in inside if p.split(".")[0] in QKV] or [m for _, m in inside]
    last = [layer for p, layer in inside if p.split(".")[0] in PROJECTION] or [m for _, m in inside]
    if not inside:
        return None
    return (
        first[0].in_features if isinstance(first[0], nn.Linear) else first[0].in_channels,
        last[-1].out_features if isinstance(last[-1], nn.Linear) else last[-1].out_channels,
    )


def _feeding_norm(chain: Sequence[nn.Module], path: str) -> tuple[Tensor, Tensor] | None:
    """Weight and bias of the LayerNorm whose output the module at the chain's end reads."""
    names = path.split(".")
    # the module itself, or the first layer inside it
    up = 2 if names[-1] in (*QKV, "fc1") else 1
    if len(names) < up or len(chain) <= up or type(chain[-up - 1]).__name__ not in PRE_NORM:
        return None
    for name in FEEDS.get(names[-up], ()):
        norm = chain[-up - 1]._modules.get(name)
        weight, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
        if isinstance(norm, nn.LayerNorm) and weight is not None and bias is not None:
            return weight, bias
    return None


def _read_as_weight(parent: nn.Module, path: str) -> bool:
    """Does an attention use its qkv layer as F.linear(x, qkv.weight), like Swin v2 and EVA?"""
    separate = getattr(parent, "qkv_bias_separate", False)
    return (
        path.rpartition(".")[2] == "qkv"
        and not separate
        and hasattr(parent, "q_bias")
        and (parent.q_bias is not None)
    )


def site_at(model: nn.Module, path: str, position: str) -> Site:
    """The site at a path, read off the host's structure; the same whenever it is asked.

    The blocks of EfficientNet change the resolution, so they are always "sequential".
    Raises: TargetError if nothing is there, it has no widths, or "parallel" cannot work.
    """
    chain = _chain(model, path)
    module = chain[-1]
    widths = _widths(module)
    if widths is None:
        raise TargetError(
            f"target {path!r}", got=f"{type(module).__name__}, which has no input and output width",
            want="a Linear, a pointwise convolution, an MLP, an attention or a block",
            fix=f"Candidates: {_candidates(model)}.",
        )  # fmt: skip
    if _read_as_weight(chain[-2], path):
        raise TargetError(
            f"target {path!r}", got="a layer whose weight the host reads without calling it",
            want="a module that is called, or the cell would do nothing",
            fix="Target the attention or the MLP instead.",
        )  # fmt: skip
    kind = block_kind(module)
    layers = [layer for _, layer in _layers(module)]
    convolutions = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
    if kind == "mbconv":
        position = "sequential"
    if position == "parallel" and kind != "convnext" and not all(map(_is_pointwise, convolutions)):
        raise TargetError(
            f"target {path!r}", got=f"{type(module).__name__} with spatial or strided convolutions",
            want="a module that maps each position on its own, for a cell beside it",
            fix="Target its block, or use a sequential placement (pfeiffer, houlsby, adapter+).",
        )  # fmt: skip
    first = kind in ("convnext", "mbconv") or isinstance([module, *layers][-1], CHANNELS_FIRST)
    norm = _feeding_norm(chain, path) if position == "parallel" else None
    return Site(path, *widths, position, "first" if first else "last", norm)


def _select(blocks_: list[tuple[str, nn.Module]], layers: Sequence[int] | None) -> list[str]:
    count = len(blocks_)
    if layers is None:
        return [p for p, _ in blocks_]
    wrong = [i for i in layers if not -count <= i < count]
    if wrong or not layers:
        raise TargetError(
            "layers", got=wrong or "none", want=f"{-count} ... {count - 1}",
            fix=f"The model has {count} blocks; negative numbers count from the last.",
        )  # fmt: skip
    wanted = {i % count for i in layers}
    return [p for i, (p, _) in enumerate(blocks_) if i in wanted]


def _inside(path: str, outer: str) -> bool:
    return path.startswith(f"{outer}.")


def find_sites(
    model: nn.Module,
    method: Method,
    targets: Sequence[str] | str | None = None,
    layers: Sequence[int] | None = None,
) -> list[Site]:
    """The sites of a method in a host model, in the model's order.

    By default the method's roles decide. In convolutional nets "qkv", "projection" and "mlp_linear"
    all mean the pointwise layers, and in EfficientNet, which has no MLP, "mlp" means the block.
    "linear" is every linear map and convolution of a block, "norm" every LayerNorm or its like,
    "embedding" what is before and between the blocks: with `layers`, only what lies inside them.
    targets: module paths, else ends of paths, else globs, in place of the roles.
    layers: numbers of blocks, over all stages; negative ones count from the last.

    Raises: TargetError if a role or target matches nothing or has no widths, or if a site lies
    inside or around another site or an adapted module.
    """
    found = blocks(model)
    chosen = _select(found, layers)
    if targets is None:
        paths = _by_role(model, found, None if layers is None else chosen, method.roles)
    else:
        wanted = [targets] if isinstance(targets, str) else list(targets)
        within = None if layers is None else chosen
        paths = _by_name(model, wanted, within)
    check_nesting(model, paths)
    return [site_at(model, path, method.position) for path in paths]


def _by_role(
    model: nn.Module,
    found: list[tuple[str, nn.Module]],
    chosen: list[str] | None,
    roles: Sequence[str],
) -> list[str]:
    """Places of the roles in the chosen blocks; None = in all of them, and around them."""
    if not found:
        raise TargetError(
            f"model {type(unwrapped(model)).__name__}",
            got="no block that is known by its structure",
            want="a ViT, Swin, ConvNeXt or EfficientNet",
            fix=f"Name the modules, targets=[...]. Candidates: {_candidates(model)}.",
        )  # fmt: skip
    paths: list[str] = []
    for role in roles:
        places = [
            f"{p}.{place}" if place else p
            for p, block in found if chosen is None or p in chosen
            for place in _places(block, role)
        ]  # fmt: skip
        if role in AROUND and chosen is None:
            places += _outside(model, found, role)
        if not places and not (role == "embedding" and len(roles) > 1):
            raise TargetError(
                f"role {role!r}", got=f"{type(unwrapped(model)).__name__}, which has none",
                want="at least one module in that role",
                fix="Choose another placement or method, or name modules with targets=[...].",
            )  # fmt: skip
        paths += [p for p in places if p not in paths]
    order = {p: i for i, (p, _) in enumerate(walk(model))}
    return sorted(paths, key=order.__getitem__)


def _by_name(model: nn.Module, wanted: list[str], within: list[str] | None) -> list[str]:
    names = [p for p, _ in walk(model) if p]
    if within is not None:
        names = [n for n in names if any(n == b or _inside(n, b) for b in within)]
    hits: set[str] = set()
    for pattern in wanted:
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
    names = [p for p, _ in walk(model) if p]
    ends = sorted({n.rpartition(".")[2] for n in names if not n.rpartition(".")[2].isdigit()})
    near = difflib.get_close_matches(pattern, ends, 3) or difflib.get_close_matches(
        pattern, names, 3
    )
    hint = f"Did you mean {' or '.join(map(repr, near))}?" if near else ""
    return TargetError(
        f"target {pattern!r}", got="no module of that name",
        want="a path, the end of one, or a glob",
        fix=hint or f"Candidates: {_candidates(model)}.",
    )  # fmt: skip


def _candidates(model: nn.Module) -> str:
    ends = {
        p.rpartition(".")[2]: type(m).__name__
        for p, m in walk(model)
        if p and _widths(unwrapped(m))
    }
    named = [f"{n} ({t})" for n, t in ends.items() if not n.isdigit()]
    return ", ".join(named[:20]) or "none"


def check_nesting(model: nn.Module, paths: Sequence[str]) -> None:
    """Refuse sites inside or around each other or an adapted module: a host would skip them."""
    others = (*paths, *wrapped_paths(model))
    for path in paths:
        for other in others:
            if _inside(path, other) or _inside(other, path):
                place = "inside" if _inside(path, other) else "around"
                why = "is a target too" if other in paths else "carries an adapter already"
                raise TargetError(
                    f"target {path!r}",
                    got=f"a module {place} {other!r}, which {why}",
                    want="modules that do not contain each other",
                    fix="Choose targets=[...] outside it, or adapt a fresh copy of the model.",
                )  # fmt: skip
