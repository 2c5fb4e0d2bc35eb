"""What a host model is made of: its blocks, and the layers, norms and MLPs inside them.

Structure decides, not the model's name. A block is a module with an `mlp` and one of `attn`,
`attention`, `self_attn` or `conv_dw` (timm ViT, DeiT, DINOv2, Swin, ConvNeXt; transformers ViT,
DINOv2, Llama and its like), one of the pointwise-convolution blocks of EfficientNet, or a layer of
BERT, whose MLP is two modules, `intermediate` and `output`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from peft import PeftModel
from timm.layers import RmsNorm, RmsNorm2d
from torch import nn

from ...core.errors import UnknownName

ATTENTION = ("attn", "attention", "self_attn")
QKV = ("qkv", "q_proj", "k_proj", "v_proj", "query", "key", "value")
PROJECTION = ("proj", "o_proj", "out_proj")
SEPARATE = {
    "qkv": QKV,
    "qv": tuple(name for name in QKV if not name.startswith("k")),
    "projection": PROJECTION,
}
ROLES = (
    "linear",
    "norm",
    "embedding",
    "block",
    "mlp",
    "attention",
    "mlp_linear",
    *SEPARATE,
)
BERT_MLP = ("intermediate", "output")  # of a layer of BERT, whose MLP is no module of its own
POINTWISE = ("conv_pw", "conv_pwl")
NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, RmsNorm, RmsNorm2d)
INNER = ("base_layer", "original_module")  # the host's own module inside an adapter's wrapper


def base_of(model: nn.Module) -> nn.Module:
    """The model without PEFT's wrapper."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def unwrapped(module: nn.Module) -> nn.Module:
    """The host's own module, whatever adapters surround it."""
    while inner := next((m for n in INNER if (m := module._modules.get(n)) is not None), None):
        module = inner
    return module


@contextmanager
def forward_as(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Inside, the module computes this; it, its name and its hooks stay as they are."""
    own = vars(module)
    before = own.get("forward")
    own["forward"] = forward
    try:
        yield
    finally:
        del own["forward"]
        if before is not None:
            own["forward"] = before


def walk(model: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The host's modules, wrapped or not, by the paths they have without adapters."""
    yield path, model
    for name, child in unwrapped(model).named_children():
        yield from walk(child, f"{path}.{name}" if path else name)


def wrapped_paths(model: nn.Module) -> list[str]:
    """Where adapters already are."""
    return [p for p, m in walk(model) if m._modules.get("base_layer") is not None]


def block_kind(module: nn.Module) -> str | None:
    """ "attention", "convnext", "mbconv" or "bert" for a block, None for anything else."""
    children = unwrapped(module)._modules
    if all(name in children for name in ("attention", *BERT_MLP)):
        return "bert"
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


def layers_of(module: nn.Module) -> list[tuple[str, nn.Linear | nn.Conv2d]]:
    return [
        (p, m) for p, w in walk(module) if isinstance(m := unwrapped(w), (nn.Linear, nn.Conv2d))
    ]


def places(block: nn.Module, role: str) -> list[str]:
    """Paths of a role inside a block; "" is the block itself.  Raises: UnknownName for no role."""
    if role not in ROLES:
        raise UnknownName("role", role, ROLES)
    kind = block_kind(block)
    if role == "linear":
        return [p for p, _ in layers_of(block)]
    if role == "norm":
        return [p for p, m in walk(block) if norm_width(m)]
    if role == "embedding":
        return []
    if role == "block" or (role == "mlp" and kind == "mbconv"):
        return [""]
    if kind == "bert":
        return _bert_places(block, role)
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
        return [n for n in POINTWISE if is_pointwise(block._modules.get(n))]
    return [f"mlp.{p}" for p, _ in layers_of(block.get_submodule("mlp"))]


def _bert_places(block: nn.Module, role: str) -> list[str]:
    """Linear layers of a role; residuals and norms are inside its attention and its MLP."""
    inside = [p for p, m in layers_of(block)]
    if role == "mlp_linear":
        return [p for p in inside if p.split(".")[0] in BERT_MLP]
    if role == "projection":
        return [p for p in inside if p == "attention.output.dense"]
    wanted = SEPARATE.get(role, ())
    return [p for p in inside if p.startswith("attention.self.") and p.split(".")[-1] in wanted]


def outside(model: nn.Module, found: list[tuple[str, nn.Module]], role: str) -> list[str]:
    """Paths of a role outside the blocks: all norms, or the layers before and between blocks."""
    outside = [(p, m) for p, m in walk(model) if not any(p == b or inside(p, b) for b, _ in found)]
    if role == "norm":
        return [p for p, m in outside if norm_width(m)]
    order = {p: i for i, (p, _) in enumerate(walk(model))}
    last = order[found[-1][0]]
    layers = (nn.Linear, nn.Conv2d)
    return [p for p, m in outside if isinstance(unwrapped(m), layers) and order[p] < last]


def is_norm(module: nn.Module) -> bool:
    """A LayerNorm or its like; transformers has an RMSNorm of its own for each family."""
    return isinstance(module, NORMS) or type(module).__name__.endswith("RMSNorm")


def norm_width(module: nn.Module) -> int | None:
    """The channels of a norm that is nothing but one; None for anything else."""
    module = unwrapped(module)
    if not is_norm(module) or any(
        not isinstance(child, nn.Identity) for child in module.children()
    ):
        return None
    if not isinstance(module, NORMS):
        return module.weight.numel()  # pyright: ignore
    if isinstance(module, nn.GroupNorm):
        return module.num_channels
    return module.normalized_shape[-1]


def is_pointwise(module: nn.Module | None) -> bool:
    module = module if module is None else unwrapped(module)
    return isinstance(module, nn.Conv2d) and (module.kernel_size, module.stride, module.groups) == (
        (1, 1),
        (1, 1),
        1,
    )


def widths(module: nn.Module) -> tuple[int, int] | None:
    """(inputs, outputs) by the first and last layer inside; a norm's channels."""
    if width := norm_width(module):
        return width, width
    if block_kind(module) == "attention":
        module = unwrapped(module.get_submodule("mlp"))
    inside = layers_of(module)
    # an attention's first layer may be that of its position bias
    first = [layer for p, layer in inside if p.split(".")[0] in QKV] or [m for _, m in inside]
    last = [layer for p, layer in inside if p.split(".")[0] in PROJECTION] or [m for _, m in inside]
    if not inside:
        return None
    return (
        first[0].in_features if isinstance(first[0], nn.Linear) else first[0].in_channels,
        last[-1].out_features if isinstance(last[-1], nn.Linear) else last[-1].out_channels,
    )


def inside(path: str, outer: str) -> bool:
    return path.startswith(f"{outer}.")
