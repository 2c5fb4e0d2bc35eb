"""A saved adapter that does not fit is refused with got, want and fix, and leaves no trace."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from intarsia.adapters import Bottleneck, Lora
from intarsia.core.errors import CheckpointError, ConfigError, IntarsiaError
from intarsia.folders.saved import load
from intarsia.folders.verbs import adapt
from intarsia.hosts.anatomy.origin import fingerprint
from intarsia.hosts.attach.config import IntarsiaConfig
from intarsia.methods import Mosa

Make = Callable[[str], nn.Module]
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
CLASSES = ["none", "crack", "spot", "line", "edge"]
MOSA = Mosa(Bottleneck(4))


@pytest.fixture
def saved(
    make: Make, images: Callable[[str], Tensor], train: Callable[..., None], tmp_path: Path
) -> Path:
    """The folder of a trained MoSA adapter on the ViT."""
    model = adapt(make("vit"), MOSA, classes=CLASSES)
    train(model, images("vit"))
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def state(model: nn.Module) -> dict[str, Any]:
    """Copy everything that a failed load must leave alone."""
    return {
        "modules": [(n, type(m), m.training) for n, m in model.named_modules()],
        "parameters": [(n, p.requires_grad, p.sum().item()) for n, p in model.named_parameters()],
        "hooks": len(model._forward_pre_hooks),
        "adapters": sorted(getattr(model, "peft_config", {})),
    }


def refused(model: nn.Module, folder: Path, **settings: Any) -> str:
    before = state(model)
    with pytest.raises(CheckpointError) as error:
        load(model, folder, **settings)
    assert state(model) == before
    assert error.value.got is not None
    assert error.value.fix
    return str(error.value)


def edit(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | changes))


def digested(folder: Path) -> None:
    """Give a folder the digest of what is in it now, so that the checks behind it are met."""
    config = json.loads((folder / CONFIG).read_text())
    names = {field.name for field in fields(IntarsiaConfig)}
    IntarsiaConfig(**{n: v for n, v in config.items() if n in names}).save_pretrained(str(folder))


def test_loading_for_use_and_for_more_training(
    saved: Path, make: Make, images: Callable[[str], Tensor]
) -> None:
    frozen = load(make("vit"), saved)
    assert not frozen.training
    assert not any(p.requires_grad for p in frozen.parameters())
    again = load(make("vit").train(), saved, trainable=True, classes=CLASSES)
    assert again.training
    fresh = adapt(make("vit"), MOSA)
    trained = [n for n, p in again.named_parameters() if p.requires_grad]
    assert trained == [n for n, p in fresh.named_parameters() if p.requires_grad]
    x = images("vit")
    assert torch.equal(again.eval()(x), frozen(x))


def test_a_second_adapter_is_loaded_beside_the_first(
    saved: Path, make: Make, images: Callable[[str], Tensor]
) -> None:
    x, model = images("vit"), adapt(make("vit"), Lora(2), name="lora")
    y = model.eval()(x)
    load(model, saved, name="mosa")
    assert model.active_adapters == ["lora"]
    assert torch.equal(model(x), y)
    model.set_adapter("mosa")
    assert torch.equal(model.eval()(x), load(make("vit"), saved)(x))
    with pytest.raises(ConfigError, match="adapter name"):
        load(model, saved, name="mosa")
    load(model, saved, name="more", trainable=True)
    model.set_adapter("more")
    assert any(p.requires_grad for n, p in model.named_parameters() if ".more." in n)


def test_the_same_adapter_gives_the_same_files(saved: Path, make: Make, tmp_path: Path) -> None:
    load(make("vit"), saved).save_pretrained(tmp_path / "again")
    for name in (CONFIG, WEIGHTS):
        assert (saved / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


@pytest.mark.parametrize("keep", [0, 4, 200, -1])
def test_truncated_weights(saved: Path, make: Make, keep: int) -> None:
    content = (saved / WEIGHTS).read_bytes()
    (saved / WEIGHTS).write_bytes(content[:keep])
    assert "Copy the folder again" in refused(make("vit"), saved)


@pytest.mark.parametrize("position", [3, 60, 0.5, 0.999])
def test_a_flipped_byte_in_the_weights(saved: Path, make: Make, position: float) -> None:
    data = bytearray((saved / WEIGHTS).read_bytes())
    data[int(position * len(data)) if position < 1 else int(position)] ^= 0x10
    (saved / WEIGHTS).write_bytes(data)
    assert "Copy the folder again" in refused(make("vit"), saved)
    if position == 0.5:  # PEFT's own way in is guarded too
        host = make("vit")
        before = state(host)
        with pytest.raises(CheckpointError, match="a byte was damaged"):
            PeftModel.from_pretrained(host, saved)
        assert state(host) == before


@pytest.mark.filterwarnings("ignore:Unexpected keyword arguments:UserWarning")
def test_every_flipped_byte_in_the_config_is_refused_or_harmless(
    saved: Path, make: Make, images: Callable[[str], Tensor]
) -> None:
    content, x = (saved / CONFIG).read_bytes(), images("vit")
    y = load(make("vit"), saved)(x)
    host = make("vit")
    before, outcomes = state(host), {True: 0, False: 0}
    for i in range(0, len(content), 23):
        data = bytearray(content)
        data[i] ^= 0x01
        (saved / CONFIG).write_bytes(data)
        try:
            loaded = load(host, saved)
        except CheckpointError:
            assert state(host) == before
            outcomes[False] += 1
        else:
            assert torch.equal(loaded(x), y)
            outcomes[True] += 1
            host = make("vit")
    assert outcomes[False] > 20


@pytest.mark.parametrize("text", ["", "{", "[]", '"x"', "\x00", "{}"])
def test_a_config_that_is_none(saved: Path, make: Make, text: str) -> None:
    (saved / CONFIG).write_text(text)
    assert CONFIG in refused(make("vit"), saved)


def test_folders_without_an_adapter(saved: Path, make: Make, tmp_path: Path) -> None:
    assert "model.save_pretrained" in refused(make("vit"), tmp_path / "nowhere")
    assert "model.save_pretrained" in refused(make("vit"), tmp_path)
    (saved / WEIGHTS).unlink()
    assert "no readable safetensors" in refused(make("vit"), saved)


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "mosaic"},
        {"method": "builtins.eval"},
        {"method": None},
        {"options": {"experts": 0}},
        {"options": {"exprts": 4}},
        {"options": {"over": {"method": "os.system"}}},
        {"options": {"over": {"bottleneck": 4}}},
        {"options": {"experts": "four"}},
        {"options": []},
        {"target_modules": ["nowhere"]},
        {"target_modules": 3},
        {"seed": "x"},
        {"origin": 3},
        {"options": {"experts": 10**9}},
        {"options": {"experts": 4, "over": {"method": "bottleneck", "bottleneck": 10**9}}},
        {"options": {"experts": 4, "over": {"method": "bottleneck", "bottleneck": 1e9}}},
        {"target_modules": "("},
        {"target_modules": "(\\w+)+x"},
        {"exclude_modules": "(b|bl|[a-z]+)*\\.x"},
        {"layers_to_transform": [0], "layers_pattern": ["(b|bl|[a-z]+)*"]},
        {"layers_to_transform": [0], "layers_pattern": "("},
        {"origin": {"trunk": {"layout": 3, "values": "x"}}},
        {"origin": {"trunk": {"layout": "LAYOUT", "values": ["a", None]}}},
        {"origin": {"trunk": {"layout": "LAYOUT", "values": [[1.0], 2.0]}}},
        {"origin": {"trunk": {"layout": "LAYOUT", "values": {"a": 1}}}},
        {"origin": {"trunk": {"layout": "LAYOUT", "values": [10**400]}}},
        {"origin": {"trunk": [1], "heads": 3}},
    ],
)
def test_settings_that_no_method_takes(saved: Path, make: Make, changes: dict[str, Any]) -> None:
    layout = json.loads((saved / CONFIG).read_text())["origin"]["trunk"]["layout"]
    edit(saved, **json.loads(json.dumps(changes).replace("LAYOUT", layout)))
    refused(make("vit"), saved)


def test_a_config_that_is_nested_too_deeply(saved: Path, make: Make) -> None:
    (saved / CONFIG).write_text('{"a":' * 100_000 + "1" + "}" * 100_000)
    assert CONFIG in refused(make("vit"), saved)
    (saved / CONFIG).unlink()
    (saved / "intarsia.json").write_text("[" * 100_000)
    assert "intarsia.json" in refused(make("vit"), saved)


def test_weights_of_another_method(saved: Path, make: Make, tmp_path: Path) -> None:
    adapt(make("vit"), Lora(2)).save_pretrained(tmp_path / "lora")
    shutil.copy(tmp_path / "lora" / WEIGHTS, saved / WEIGHTS)
    assert "changed after they were saved" in refused(make("vit"), saved)
    digested(saved)
    assert "do not belong" in refused(make("vit"), saved)


def test_weights_of_another_width(saved: Path, make: Make) -> None:
    weights = load_file(saved / WEIGHTS)
    key = next(k for k in weights if k.endswith("down.weight"))
    save_file(weights | {key: torch.zeros(3, 32)}, saved / WEIGHTS)
    digested(saved)
    message = refused(make("vit"), saved)
    assert "(3, 32)" in message
    assert "(4, 32)" in message


def test_another_architecture(saved: Path, make: Make) -> None:
    assert "Swin" in refused(make("swin"), saved)
    assert "with other layers" in refused(make("deit"), saved)
    host = make("deit")
    before = state(host)
    with pytest.raises(CheckpointError, match="with other layers"):
        PeftModel.from_pretrained(host, saved)
    assert state(host) == before


def test_another_backbone_of_the_same_architecture(saved: Path, make: Make) -> None:
    model = make("vit")
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(5)))
    assert "with other weights" in refused(model, saved)
    adapted = adapt(make("vit"), Lora(2), name="lora")
    with torch.no_grad():
        for n, p in adapted.named_parameters():
            if "intarsia" not in n:
                p.mul_(1.5)
    assert "with other weights" in refused(adapted, saved, name="mosa")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_same_backbone_in_another_dtype(saved: Path, make: Make, dtype: torch.dtype) -> None:
    load(make("vit").to(dtype), saved)


def test_another_head(saved: Path, make: Make) -> None:
    model = make("vit")
    model.reset_classifier(7)
    message = refused(model, saved)
    assert "'head.weight': [7, 32]" in message
    assert "number of classes" in message
    host = make("vit")
    host.reset_classifier(7)
    before = state(host)
    with pytest.raises(CheckpointError, match="number of classes"):
        PeftModel.from_pretrained(host, saved)
    assert state(host) == before


def test_another_pretrained_head_is_fine(saved: Path, make: Make) -> None:
    model = make("vit")
    nn.init.normal_(model.head.weight)
    load(model, saved)


def test_another_class_list(saved: Path, make: Make) -> None:
    for classes in (CLASSES[:4], CLASSES[::-1]):
        assert "train a new head" in refused(make("vit"), saved, classes=classes)
    load(make("vit"), saved, classes=tuple(CLASSES))


def test_a_failed_load_leaves_the_other_adapters(
    saved: Path, make: Make, images: Callable[[str], Tensor]
) -> None:
    x, model = images("vit"), adapt(make("vit"), Lora(2), name="lora")
    y = model.eval()(x)
    weights = load_file(saved / WEIGHTS)
    weights.pop(next(iter(weights)))
    save_file(weights, saved / WEIGHTS)
    digested(saved)
    assert "1 missing" in refused(model, saved, name="mosa")
    assert torch.equal(model(x), y)
    assert list(model.peft_config) == ["lora"]
    adapt(model, MOSA, name="mosa")


def test_a_config_without_a_digest_is_refused(saved: Path, make: Make) -> None:
    edit(saved, origin=None)
    assert "changed after they were saved" in refused(make("vit"), saved)


def test_a_fingerprint_sees_the_trunk_and_nothing_else(make: Make) -> None:
    plain = fingerprint(make("vit"), ["head"])
    adapted = adapt(adapt(make("vit"), MOSA), Lora(2), name="lora")
    assert fingerprint(adapted.get_base_model(), ["head"]) == plain
    head = make("vit")
    head.reset_classifier(9)
    assert fingerprint(head, ["head"]) == plain
    assert fingerprint(make("dinov2"), ["head"])["layout"] != plain["layout"]


def test_every_error_is_one_of_ours(saved: Path, make: Make) -> None:
    (saved / CONFIG).unlink()
    with pytest.raises(IntarsiaError):
        load(make("vit"), saved)
