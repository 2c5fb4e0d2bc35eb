"""A run that was trained at one picture size, opened at another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.layers import resample_abs_pos_embed

import intarsia
from intarsia.core.errors import CheckpointError, ConfigError
from intarsia.data import backbone
from intarsia.hosts.anatomy.origin import check_trunk, fingerprint
from intarsia.runs.execute import carry_out
from intarsia.runs.experiment import Experiment
from intarsia.train import Running

from ..cli.conftest import call, photos
from ..refusals import refused


def trained(folder: Path, model: str, method: str = "lora", pretrained: bool = True) -> Path:
    """A run at 32 px."""
    data = photos(folder / "photos", n=6)
    settings: dict[str, Any] = {"model": model, "pretrained": pretrained, "method": method}
    settings |= {"data": str(data), "size": 32, "epochs": 1, "batch_size": 8, "lr": 1e-2}
    carry_out(Experiment.of(settings), Running(out=folder / "run"), lambda _: None)
    return folder / "run"


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a ViT and its weights, as timm writes one."""
    folder = tmp_path_factory.mktemp("models") / "vit"
    timm.models.save_for_hf(timm.create_model("test_vit", img_size=64), str(folder))
    return f"local-dir:{folder}"


@pytest.fixture(scope="module")
def run(vit: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("lora"), vit)


@pytest.mark.parametrize("size", [48, 64])
def test_it_is_the_adapter_on_the_model_of_that_size(vit: str, run: Path, size: int) -> None:
    by_hand = intarsia.load(backbone(vit, classes=2, size=size), run).eval()
    opened: Any = intarsia.open_run(run, size=size)
    x = torch.randn(3, 3, size, size)
    with torch.no_grad():
        assert torch.equal(opened.model(x), by_hand(x))
        assert not torch.equal(by_hand(x), backbone(vit, classes=2, size=size).eval()(x))
    assert opened.inputs.size == (size, size)
    assert opened.evaluate()["n"] > 0


def test_the_same_size_is_the_same_bits(run: Path) -> None:
    model, two = intarsia.open_run(run), intarsia.open_run(run, size=32)
    x = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model.model(x), two.model(x))


def test_a_model_that_takes_any_size_by_itself(run: Path, vit: str) -> None:
    """timm's dynamic_img_size resamples in each forward."""
    model = timm.create_model(vit, pretrained=True, num_classes=2, dynamic_img_size=True)
    intarsia.load(model, run).eval()
    with torch.no_grad():
        assert model(torch.randn(1, 3, 32, 32)).shape == (1, 2)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_random_and_trained_positions_are_resampled(tmp_path: Path, method: str) -> None:
    out = trained(tmp_path, "test_vit", method, pretrained=False)
    small, large = intarsia.open_run(out).model, intarsia.open_run(out, size=64).model
    table = {n: t for n, t in small.state_dict().items() if n.endswith("pos_embed")}
    ((name, positions),) = table.items()
    first = positions.shape[1] - 2 * 2
    resampled = resample_abs_pos_embed(positions, [4, 4], num_prefix_tokens=first)
    torch.testing.assert_close(large.state_dict()[name], resampled)


def test_folders_that_were_written_with_positions_are_read(vit: str, run: Path) -> None:
    """Their fingerprint has the shape of the positions: they load at the size of their training."""
    model = backbone(vit, classes=2, size=32)
    old, heads = fingerprint(model, ["head"], sized=True), ["head"]
    assert old["layout"] != fingerprint(model, heads)["layout"]
    check_trunk(model, old, heads)
    check_trunk(backbone(vit, classes=2, size=48), fingerprint(model, heads), heads)
    with refused(CheckpointError, what="trunk", got="VisionTransformer with other layers"):
        check_trunk(backbone(vit, classes=2, size=48), old, heads)


@pytest.mark.thorough
def test_a_model_with_layers_of_one_size_says_so(tmp_path: Path) -> None:
    model = timm.create_model("mixer_s32_224", img_size=32)
    timm.models.save_for_hf(model, str(tmp_path / "mixer"), model_args={"img_size": 32})
    out = trained(tmp_path, f"local-dir:{tmp_path / 'mixer'}")
    with refused(ConfigError, got=RuntimeError):
        intarsia.open_run(out, size=64)
    mixer = timm.create_model("mixer_s32_224", img_size=64, num_classes=2)
    with refused(CheckpointError, what="trunk", got="MlpMixer with other layers"):
        intarsia.load(mixer, out)


def test_the_command_line(run: Path) -> None:
    pictures = run.parent / "photos"
    assert call("predict", run, pictures, "--size", 64, "--json").json[0]["error"] is None
    result = call("predict", run, pictures, "--size", 50)
    assert result.code == 2 and "a multiple of 16" in result.words
    result = call("predict", run, pictures, "--json", "--max-pixels", 99)
    assert result.code == 1 and "want at most 99 pixels" in result.words
    assert call("predict", run, pictures, "--json").code == 0
    assert call("evaluate", run, "--size", 64, "--json").json["n"] > 0
