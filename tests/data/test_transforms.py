"""Transforms follow the pretrained model's configuration, in timm and transformers."""

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
from torch import nn

from intarsia.core.errors import ConfigError, DataError
from intarsia.data import InputConfig, eval_transform, input_config, train_transform

from ..refusals import refused

Picture = Callable[..., Image.Image]
HALF = InputConfig(size=(8, 8), mean=(0.5,) * 3, std=(0.5,) * 3)


def _vit(**options: Any) -> nn.Module:
    return timm.create_model("test_vit", pretrained=False, num_classes=2, **options)


def test_timm_configuration() -> None:
    inputs = input_config(_vit())
    config = _vit().pretrained_cfg
    assert inputs.size == config["input_size"][1:] == (160, 160)
    assert (inputs.mean, inputs.std) == (config["mean"], config["std"])
    assert (inputs.interpolation, inputs.crop) == (config["interpolation"], config["crop_pct"])


def test_a_given_size_is_preferred_to_the_models_and_that_to_the_pretrained_one() -> None:
    model = _vit(img_size=96)
    assert input_config(model).size == (96, 96)
    assert input_config(model, size=64).size == (64, 64)


def test_a_peft_model_has_the_configuration_of_its_base() -> None:
    from peft import LoraConfig, get_peft_model

    wrapped = get_peft_model(_vit(img_size=96), LoraConfig(target_modules=["qkv"]))
    assert input_config(wrapped) == input_config(_vit(img_size=96))


def test_evaluation_matches_the_formula(picture: Picture) -> None:
    image = picture(0, (8, 8))
    want = (torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255 - 0.5) / 0.5
    torch.testing.assert_close(eval_transform(HALF)(image), want)


def test_evaluation_crops_the_centre() -> None:
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[4:12, 4:12] = 255
    half = InputConfig(size=(8, 8), mean=(0.0,) * 3, std=(1.0,) * 3, crop=0.5)
    assert eval_transform(half)(Image.fromarray(pixels)).min() == 1


def test_squash_keeps_the_whole_picture() -> None:
    inputs = InputConfig(size=(8, 8), mean=(0.0,) * 3, std=(1.0,) * 3, crop_mode="squash")
    pixels = np.zeros((8, 32, 3), np.uint8)
    pixels[:, 28:] = 255  # a centre crop would lose this
    assert eval_transform(inputs)(Image.fromarray(pixels)).max() > 0.9


def test_light_is_random_of_the_right_shape_and_range(picture: Picture) -> None:
    image, transform = picture(0, (32, 32)), train_transform(HALF, augment="light")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        one, two = transform(image), transform(image)
        torch.manual_seed(0)
        again = transform(image)
    assert one.shape == (3, 8, 8) and one.dtype == torch.float32
    assert one.min() >= -1 and one.max() <= 1
    assert torch.equal(one, again) and not torch.equal(one, two)


def test_crop_is_a_square_seven_eighths_of_the_shorter_side() -> None:
    pixels = np.zeros((256, 512, 3), np.uint8)
    pixels[..., 0] = np.arange(256)[:, None]  # red says the row
    inputs = InputConfig(size=(224, 224), mean=(0.0,) * 3, std=(1.0,) * 3, crop=1.0)
    transform = train_transform(inputs, augment="crop")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        rows = [transform(Image.fromarray(pixels))[0, :, 0] * 255 for _ in range(20)]
    assert all((found.diff().round() == 1).all() and len(found) == 224 for found in rows)
    starts = {round(found[0].item()) for found in rows}
    assert len(starts) > 10 and starts <= set(range(33))


def test_no_augmentation_is_the_evaluation_transform(picture: Picture) -> None:
    image = picture(0, (20, 12))
    assert torch.equal(train_transform(HALF)(image), eval_transform(HALF)(image))


@pytest.mark.parametrize("augment", ["heavy", ""])
def test_unknown_augmentation(augment: Any) -> None:
    with refused(ConfigError, what="augment"):
        train_transform(HALF, augment=augment)


def test_the_record_is_json() -> None:
    record = HALF.record("light")
    assert json.loads(json.dumps(record)) == record and record["augment"] == "light"


class _Hosted(nn.Module):
    """Something with a transformers-like configuration."""

    def __init__(self, image_size: int | None = None) -> None:
        super().__init__()
        self.config = type("Config", (), {"image_size": image_size, "_name_or_path": ""})()


VIT = {
    "size": {"height": 224, "width": 224},
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "resample": 2,
}
DINO = {
    "size": {"shortest_edge": 256},
    "crop_size": {"height": 224, "width": 224},
    "do_center_crop": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "resample": 3,
}


def test_a_vit_processor_squashes() -> None:
    inputs = input_config(_Hosted(224), processor=VIT)
    assert inputs.size == (224, 224) and inputs.crop == 1.0 and inputs.crop_mode == "squash"
    assert inputs.interpolation == "bilinear" and inputs.mean == (0.5, 0.5, 0.5)


def test_a_dinov2_processor_crops_and_its_table_size_does_not_count() -> None:
    inputs = input_config(_Hosted(518), processor=DINO)
    assert inputs.size == (224, 224) and inputs.crop == 224 / 256 and inputs.crop_mode == "center"


def test_a_processor_that_does_not_normalise() -> None:
    inputs = input_config(_Hosted(), processor={"size": 256, "do_normalize": False})
    assert inputs.size == (256, 256) and inputs.crop_mode == "squash"
    assert inputs.mean == (0.0,) * 3 and inputs.std == (1.0,) * 3


@pytest.mark.parametrize(
    ("processor", "got"),
    [
        ({**VIT, "do_flip_channel_order": True}, "do_flip_channel_order (BGR pictures)"),
        ({"image_mean": []}, "size None, image_mean []"),
    ],
)
def test_unsupported_processors_are_refused(processor: dict[str, Any], got: str) -> None:
    with refused(DataError, got=got):
        input_config(_Hosted(), processor=processor)


def test_a_transformers_model_from_its_own_folder(tmp_path: Path, picture: Picture) -> None:
    from transformers import AutoImageProcessor, ViTConfig, ViTForImageClassification

    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = ViTConfig(image_size=32, patch_size=8, intermediate_size=32, **size)
    ViTForImageClassification(config).save_pretrained(tmp_path)
    own = {**VIT, "size": {"height": 32, "width": 32}, "image_processor_type": "ViTImageProcessor"}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(own))
    model = ViTForImageClassification.from_pretrained(tmp_path)
    inputs = input_config(model)
    assert inputs.size == (32, 32) and inputs.crop_mode == "squash"
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    image = picture(0, (32, 32))  # no resizing, so both must agree to the last bit of float
    want = processor(image, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(eval_transform(inputs)(image), want)
    assert input_config(model, processor=processor) == inputs


@pytest.mark.parametrize("model", [nn.Linear(2, 2), _Hosted(224)], ids=["plain", "no origin"])
def test_a_model_without_a_configuration_is_refused(model: nn.Module) -> None:
    with refused(DataError, got="none (the model does not name its folder or repository)"):
        input_config(model)


def test_a_size_below_one() -> None:
    with refused(ConfigError, what="picture size", got=0):
        input_config(_vit(), size=0)
