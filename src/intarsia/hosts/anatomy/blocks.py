"""What a host model is made of: its blocks, and the layers, norms and MLPs inside them.

Structure decides, not the model's name. A block of tokens has an attention, or the token-mixing MLP
of a Mixer, and an MLP: a module of its own (timm ViT, Swin, EVA; transformers ViT, CLIP, Llama,
GPT-2, T5), or two layers and everything between them (BERT's `intermediate` and `output`, Whisper's
`fc1` and `fc2`). ConvNeXt's has a depthwise convolution instead of the attention. In a model
without such blocks, a block is a module of several convolutions (ResNet, RegNet, MobileNet,
EfficientNet). A hybrid's blocks have one `mixer` each, an attention, an MLP or a state space model
(Nemotron-H). Queries, keys and values may share one layer (timm, Phi-3, GPT-NeoX, BLOOM, MPT).
"""

from __future__ import annotations

from collections.abc import Iterator

from peft import PeftModel
from timm.layers import RmsNorm, RmsNorm2d
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ...core.errors import UnknownName
from ...core.foreign import tensor_of
from .gates import own_gate

ATTENTION = ("attn", "attention", "self_attn", "self_attention", "token_mixer")
MLP = ("mlp", "ffn", "feed_forward", "mlp_channels")
MIXER = "mixer"  # the only part of a hybrid's block besides its norm
SPLIT_MLP = (("intermediate", "output"), ("fc1", "fc2"))  # an MLP that is no module of its own
# layers that make queries, keys and values together, then one of each by its name
FUSED = ("qkv", "c_attn", "qkv_proj", "query_key_value", "Wqkv", "in_proj", "kv")
QUERIES = ("q_proj", "query", "q_lin", "q", "query_proj")
KEYS = ("k_proj", "key", "k_lin", "k", "key_proj")
VALUES = ("v_proj", "value", "v_lin", "v", "value_proj")
QKV = (*FUSED, *QUERIES, *KEYS, *VALUES)
PROJECTION = ("proj", "o_proj", "out_proj", "out_lin", "c_proj", "o", "dense", "Wo")
SEPARATE = {"qkv": QKV, "qv": (*FUSED, *QUERIES, *VALUES), "projection": PROJECTION}
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
POINTWISE = ("conv_pw", "conv_pwl")
CONVOLUTIONAL = ("mbconv", "conv")  # kinds of blocks that compute on feature maps, not on tokens
LAYERS = (nn.Linear, nn.Conv2d, Conv1D)
NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, RmsNorm, RmsNorm2d)
BATCH_NORM = nn.modules.batchnorm._BatchNorm
INNER = ("base_layer", "original_module")  # names of the wrapped module in adapters' wrappers
Layer = nn.Linear | nn.Conv2d | Conv1D


def base_of(model: nn.Module) -> nn.Module:
    """Return the plain model inside PEFT's wrapper; a model without wrapper is returned itself."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def unwrapped(module: nn.Module) -> nn.Module:
    """Return the model's own module inside the wrappers of adapters and trained heads."""
    while inner := next((m for n in INNER if (m := module._modules.get(n)) is not None), None):
        module = inner
    return module


def walk(model: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield the model's modules, adapted or not, with their paths in the plain model."""
    yield path, model
    for name, child in unwrapped(model).named_children():
        yield from walk(child, f"{path}.{name}" if path else name)


def wrapped_paths(model: nn.Module) -> list[str]:
    """List the paths of modules that carry adapters."""
    return [p for p, m in walk(model) if m._modules.get("base_layer") is not None]


def block_kind(module: nn.Module) -> str | None:
    """Return the kind of a block of the model; None for a module that is no block.

    "attention": an attention over tokens, and an MLP that is a module; "split": its MLP is two
    layers of the block; "mixer": an MLP over tokens instead of the attention; "hybrid": one mixer
    of several types; "convnext"; "mbconv", as in EfficientNet; "conv": other convolutions.
    """
    module = unwrapped(module)
    children = module._modules
    if _t5(module):
        return "attention"
    # in order of certainty: names of attentions first, bare convolutions last
    if any(name in children for name in ATTENTION):
        if any(name in children for name in MLP):
            return "attention"
        if _split_mlp_names(module):
            return "split"
    if "mlp_tokens" in children and "mlp_channels" in children:
        return "mixer"
    # other modules have a part called mixer, too: a block has a norm before it
    if MIXER in children and any(is_norm(m) for m in children.values() if m is not None):
        return "hybrid"
    # an MLP without anything that joins tokens or pixels is no block of its own
    if isinstance(children.get("mlp"), nn.Module):
        return "convnext" if "conv_dw" in children else None
    if ("conv_dw" in children or "conv_exp" in children) and any(n in children for n in POINTWISE):
        return "mbconv"
    return "conv" if _convolutions(module) else None


def _t5(module: nn.Module) -> bool:
    """Return True for a block of T5, which has its attention and MLP in a list."""
    parts = module._modules.get("layer")
    first = parts[0] if isinstance(parts, nn.ModuleList) and len(parts) > 1 else None
    return hasattr(first, "SelfAttention")


def _split_mlp_names(module: nn.Module) -> tuple[str, str] | None:
    """Return the names of the two parts of an MLP that is no module of its own, or None."""
    return next((both for both in SPLIT_MLP if all(n in module._modules for n in both)), None)


def _convolutions(module: nn.Module) -> bool:
    """Return True for a block of several convolutions with norms, without blocks inside."""
    children = [unwrapped(m) for m in module._modules.values() if m is not None]
    # in a block each child has one convolution; a stage of blocks has children with several
    counts = [sum(isinstance(m, nn.Conv2d) for m in child.modules()) for child in children]
    stages = (nn.Sequential, nn.ModuleList)
    if isinstance(module, stages) or counts.count(1) < 2:
        return False
    if any(isinstance(c, stages) and n > 1 for c, n in zip(children, counts, strict=True)):
        return False
    return any(isinstance(m, (BATCH_NORM, nn.GroupNorm)) for m in module.modules())


def blocks(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return every block of the model, in order, with its path.

    If the model has blocks of tokens, as transformers do, blocks of convolutions are left out.
    """
    kinds = {p: kind for p, m in walk(model) if p and (kind := block_kind(m))}
    tokens = {p for p, kind in kinds.items() if kind not in CONVOLUTIONAL}
    # of nested modules of convolutions the outermost is the block
    paths = tokens or {p for p in kinds if not any(inside(p, outer) for outer in kinds)}
    return [(p, unwrapped(m)) for p, m in walk(model) if p in paths]


def attention_of(block: nn.Module) -> str | None:
    """Return the path, in a block, of the module that mixes its tokens; None without one."""
    if _t5(block):
        return "layer.0.SelfAttention"
    if block_kind(block) == "hybrid":
        return MIXER if _has_attention(block.get_submodule(MIXER)) else None
    return next((n for n in (*ATTENTION, "mlp_tokens") if n in block._modules), None)


def mlp_of(block: nn.Module) -> str | None:
    """Return the path, in a block, of its MLP; None if the MLP is no module of its own."""
    if _t5(block):
        return f"layer.{len(block.get_submodule('layer')) - 1}.DenseReluDense"  # pyright: ignore
    if block_kind(block) == "hybrid":
        mixer = unwrapped(block.get_submodule(MIXER))
        return MIXER if "down_proj" in mixer._modules else None
    return next((n for n in MLP if n in block._modules), None)


def _has_attention(module: nn.Module) -> bool:
    """Return True if a module makes queries, as an attention; a state space model makes none."""
    names = {p.rpartition(".")[2] for p, _ in layers_of(module)}
    return not names.isdisjoint((*FUSED[:-2], *QUERIES))


def split_mlp_of(block: nn.Module) -> tuple[str, str] | None:
    """Return the paths, in a block, of the two layers of an MLP that is no module of its own."""
    if (both := _split_mlp_names(block)) is None:
        return None
    first, last = (
        next((p for p, _ in layers_of(block) if p == n or inside(p, n)), "") for n in both
    )
    return (first, last) if first and last else None


def layers_of(module: nn.Module) -> list[tuple[str, Layer]]:
    """Return linear layers and convolutions inside a module, with their paths in it.

    A gate of experts like Llama 4's, a Linear that returns a tuple, is left out.
    """
    inside = ((p, unwrapped(w)) for p, w in walk(module))
    return [
        (p, m)
        for p, m in inside
        if isinstance(m, LAYERS) and not type(m).__name__.endswith("Router")
    ]


def places(block: nn.Module, role: str, position: str = "sequential") -> list[str]:
    """Return the paths of a role inside a block; "" is the block itself.

    role: kind of module to adapt, as "mlp", "qkv" or "norm", see `ROLES`; position: of the added
    module, "sequential" or "parallel"; an MLP of two layers has no parallel place.
    Raises: UnknownName for no role.
    """
    if role not in ROLES:
        raise UnknownName("role", role, ROLES)
    kind = block_kind(block)
    if role == "linear":
        return [p for p, _ in layers_of(block)]
    if role == "norm":
        return [p for p, m in walk(block) if norm_width(m)]
    if role == "embedding":
        return []
    # the block itself
    if role == "block" or (role == "mlp" and kind in CONVOLUTIONAL):
        return [""]
    if kind in CONVOLUTIONAL:
        return _pointwise(block) if role != "attention" else []
    if kind == "split" and role in ("mlp", "attention", "mlp_linear"):
        return _split_places(block, role, position)
    # from here on a block of tokens with an attention or a mixer, and an MLP
    mlp, attention = mlp_of(block), attention_of(block)
    if role == "mlp":
        return [mlp] if mlp else []
    if role == "attention":
        return [attention] if attention else []
    if kind == "hybrid" and (mlp if role == "mlp_linear" else attention) is None:
        return []
    inner = layers_of(block.get_submodule(attention)) if attention else []
    maps = [
        p
        for p, m in layers_of(block.get_submodule(mlp or ""))
        # PVT has a depthwise convolution between its linear layers
        if not isinstance(m, nn.Conv2d) or is_pointwise(m)
    ]
    # a block of ConvNeXt or PoolFormer has linear maps over channels only in its MLP
    if role == "mlp_linear" or not inner:
        return [f"{mlp}.{p}" for p in maps]
    attention_layers = [f"{attention}.{p}" for p, _ in inner]
    if kind == "mixer":  # its first layer reads all tokens, as queries and keys do
        return attention_layers[:1] if role != "projection" else attention_layers[1:]
    if role == "projection" and f"{attention}.output.dense" in attention_layers:
        return [f"{attention}.output.dense"]
    # LeViT's layers stand in a module with their batch norm: attn.qkv.linear
    return [f"{attention}.{p}" for p, _ in inner if not {*SEPARATE[role]}.isdisjoint(p.split("."))]


def _split_places(block: nn.Module, role: str, position: str) -> list[str]:
    """Return the paths of a role in a block that has two of its layers as the MLP."""
    both = split_mlp_of(block) or ()
    if role == "mlp_linear":
        return list(both)
    if role == "mlp":
        return list(both[1:]) if position == "sequential" else []
    attention = attention_of(block) or ""
    # BERT's attention adds its input: only its output layer can be followed
    behind = f"{attention}.output.dense"
    if behind not in {p for p, _ in layers_of(block)}:
        return [attention]
    return [behind] if position == "sequential" else []


def _pointwise(block: nn.Module) -> list[str]:
    """Return the paths of a block's 1x1 convolutions, without the gates' ones."""
    if block_kind(block) == "mbconv":
        return [n for n in POINTWISE if is_pointwise(block._modules.get(n))]
    layers_by_child = [(n, layers_of(m)) for n, m in block._modules.items() if m is not None]
    single = [(n, *layers[0]) for n, layers in layers_by_child if len(layers) == 1]
    return [f"{n}.{p}".rstrip(".") for n, p, m in single if is_pointwise(m)]


def outside(model: nn.Module, all_blocks: list[tuple[str, nn.Module]], role: str) -> list[str]:
    """Return the paths of a role outside the blocks: all norms, or layers before the last block.

    all_blocks: (path, block) of the model; role: "norm" or "embedding".
    """
    outside = [
        (p, m) for p, m in walk(model) if not any(p == b or inside(p, b) for b, _ in all_blocks)
    ]
    if role == "norm":
        return [p for p, m in outside if norm_width(m)]
    # layers behind the last block are heads
    order = {p: i for i, (p, _) in enumerate(walk(model))}
    last = order[all_blocks[-1][0]]
    return [p for p, m in outside if isinstance(unwrapped(m), LAYERS) and order[p] < last]


def is_norm(module: nn.Module) -> bool:
    """Return True for a LayerNorm, RMSNorm, GroupNorm or the like, by class or class name."""
    return isinstance(module, NORMS) or type(module).__name__.endswith(("RMSNorm", "LayerNorm"))


def norm_kind(module: nn.Module) -> str:
    """Return the kind of the first norm inside a module: "layer", "rms", or "none"."""
    norms = [unwrapped(m) for _, m in walk(module) if norm_width(m)]
    if not norms:
        return "none"
    return "layer" if isinstance(norms[0], (nn.LayerNorm, nn.GroupNorm)) else "rms"


def norm_width(module: nn.Module) -> int | None:
    """Return the number of channels of a module that is a norm and nothing else, or None."""
    module = unwrapped(module)
    if not is_norm(module) or any(
        not isinstance(child, nn.Identity) for child in module.children()
    ):
        return None
    if not isinstance(module, NORMS):
        weight = tensor_of(module)  # Gemma 4 has norms without a weight
        return weight.numel() if isinstance(weight, Tensor) else None
    if isinstance(module, nn.GroupNorm):
        return module.num_channels
    return module.normalized_shape[-1]


def is_pointwise(module: nn.Module | None) -> bool:
    """Return True for a 1x1 convolution without stride and groups."""
    module = module if module is None else unwrapped(module)
    return isinstance(module, nn.Conv2d) and (module.kernel_size, module.stride, module.groups) == (
        (1, 1),
        (1, 1),
        1,
    )


def widths(module: nn.Module) -> tuple[int, int] | None:
    """Return (inputs, outputs) of a module, by its first and last layer; None without layers.

    For a norm they are its channels, for a block with experts the inputs of its gate.
    """
    if width := norm_width(module):
        return width, width
    if (matrix := tensor_of(own_gate(unwrapped(module)))) is not None:
        # a sparse block reads and writes the width of its gate's input
        return matrix.shape[-1], matrix.shape[-1]
    if mlp := block_kind(module) in ("attention", "mixer") and mlp_of(module):
        module = unwrapped(module.get_submodule(mlp))
    inside = layers_of(module)
    # by names where possible: an attention's first layer may belong to its position bias
    first = [layer for p, layer in inside if p.split(".")[0] in QKV] or [m for _, m in inside]
    last = [layer for p, layer in inside if p.split(".")[0] in PROJECTION] or [m for _, m in inside]
    if not inside:
        return None
    return sizes(first[0])[0], sizes(last[-1])[1]


def sizes(layer: Layer) -> tuple[int, int]:
    """Return the numbers of inputs and outputs of a linear layer or a convolution."""
    if isinstance(layer, Conv1D):  # GPT-2's Linear: its weight is (inputs, outputs)
        return layer.weight.shape[0], layer.weight.shape[1]
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    return layer.in_channels, layer.out_channels


def inside(path: str, outer: str) -> bool:
    """Return True if a path lies below another."""
    return path.startswith(f"{outer}.")
