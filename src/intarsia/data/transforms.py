"""Transforms from RGB pictures to tensors, from the pretrained model's configuration.

inputs = input_config(model)          # timm or transformers, also inside a PEFT model
train = train_transform(inputs, augment="light")
test = eval_transform(inputs)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import torch
from PIL import Image
from timm.data.config import resolve_data_config
from timm.data.transforms_factory import create_transform
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode, v2

from intarsia.core.checks import AUGMENTS, at_least, one_of
from intarsia.core.errors import DataError, IntarsiaError
from intarsia.core.foreign import config_of
from intarsia.core.reading import check_regular

Transform = Callable[[Image.Image], Tensor]

SPARE = 3  # Pillow's `reducing_gap`: a picture shrunk to 3 times a size first looks the same after
_RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers


@dataclass(frozen=True, slots=True)
class InputConfig:
    """The input that one model expects."""

    size: tuple[int, int]  # height, width in px
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    crop: float = 1.0  # the shorter side is resized to size / crop, then the centre is cropped
    crop_mode: str = "center"  # "squash": resized to exactly size / crop without its proportions

    def __post_init__(self) -> None:
        """Check sizes, means, deviations, crop and interpolation.  Raises: DataError."""
        numbers = (*self.mean, *self.std, self.crop)
        if (
            min(self.size) < 1
            or len(self.mean) != 3
            or len(self.std) != 3
            or not all(isinstance(n, int | float) and math.isfinite(n) for n in numbers)
            # A crop of more than 10 or of 0 has no meaning.
            or min(*self.std, self.crop, 10 - self.crop) <= 0
            or str(self.interpolation) not in {way.value for way in InterpolationMode}
        ):
            want = "a size from 1 on, 3 means, 3 deviations, a crop of 0 ... 10, an interpolation"
            fix = "Correct it in the model's config.json, or write InputConfig(size, mean, std)."
            raise DataError("input configuration", got=self, want=want, fix=fix)

    def record(self, augment: str = "none") -> dict[str, Any]:
        """Return the settings for a run's record, ready for JSON."""
        fields = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        return fields | {"augment": augment}


def input_config(
    model: nn.Module, *, size: int | None = None, processor: Any = None
) -> InputConfig:
    """Read a model's input configuration; `size` in px replaces its picture size.

    timm: the model's `pretrained_cfg`. transformers: the image processor in the model's folder or
    repository, or `processor` (an image processor, or its configuration as a dict).
    Raises: DataError for a model without an input configuration; ConfigError for a size below 1.
    """
    if size is not None:
        at_least("picture size", size, 1, "Give it in pixels.")
    try:
        if processor is None and getattr(model, "pretrained_cfg", None):
            config = _timm_config(model)
        else:
            config = _processor_config(_processor_dict(model, processor), model)
    except IntarsiaError:
        raise
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        subject, want = (
            f"input configuration of {type(model).__name__}",
            "numbers where they belong",
        )
        fix = "Copy the model's folder again from its source."
        raise DataError(subject, got=error, want=want, fix=fix) from error
    return config if size is None else replace(config, size=(size, size))


def _timm_config(model: nn.Module) -> InputConfig:
    config = resolve_data_config(pretrained_cfg=model.pretrained_cfg)
    # the configuration of a model built with img_size=... still has the pretrained size
    built_size = getattr(getattr(model, "patch_embed", None), "img_size", None)
    height, width = built_size or config["input_size"][-2:]
    return InputConfig(
        size=(int(height), int(width)),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation=config["interpolation"],
        crop=float(config["crop_pct"]),
        crop_mode=config["crop_mode"],
    )


def _processor_dict(model: nn.Module, processor: Any) -> Mapping[str, Any]:
    """Return the image processor's settings, given, or of the model's folder or repository."""
    if isinstance(processor, Mapping):
        return processor
    if processor is not None:
        return processor.to_dict()
    location = getattr(config_of(model), "_name_or_path", "")
    try:
        if not location:
            raise OSError("the model does not name its folder or repository")
        from transformers import AutoImageProcessor

        check_regular(location)
        return AutoImageProcessor.from_pretrained(location, trust_remote_code=False).to_dict()
    except (ImportError, OSError, ValueError) as error:
        raise DataError(
            f"input configuration of {type(model).__name__}",
            got=f"none ({str(error).splitlines()[0]})",
            want="a timm pretrained_cfg or a transformers image processor",
            fix="Pass processor=..., or write the InputConfig(size, mean, std) yourself.",
        ) from error


def _processor_config(config: Mapping[str, Any], model: nn.Module) -> InputConfig:
    """Return the input that a transformers model expects, from its image processor's settings."""
    if config.get("do_flip_channel_order"):
        got = "do_flip_channel_order (BGR pictures)"
        fix = "Flip the channels of the first layer, or use another backbone."
        raise DataError("image processor", got=got, want="RGB pictures", fix=fix)
    resize = _edge(config.get("size"))
    # With a centre crop `size` is the picture's size before the crop.
    crop = _edge(config.get("crop_size")) if config.get("do_center_crop") else None
    # without a crop use the model's size; DINOv2's (518) is only its position embedding's
    side = crop or _edge(getattr(config_of(model), "image_size", None)) or resize
    if side is None or (config.get("do_normalize", True) and not config.get("image_mean")):
        got = f"size {config.get('size')}, image_mean {config.get('image_mean')}"
        want = "a size (height and width, or shortest_edge), a mean and a deviation"
        fix = "Write the InputConfig(size, mean, std) yourself."
        raise DataError("image processor", got=got, want=want, fix=fix)
    normalises = config.get("do_normalize", True)
    # "shortest_edge" keeps proportions; height and width change them.
    shortest = isinstance(config.get("size"), Mapping) and "shortest_edge" in config["size"]
    return InputConfig(
        size=(side, side),
        mean=tuple(config["image_mean"]) if normalises else (0.0, 0.0, 0.0),
        std=tuple(config["image_std"]) if normalises else (1.0, 1.0, 1.0),
        interpolation=_RESAMPLE.get(int(config.get("resample", 3)), "bicubic"),
        crop=min(1.0, crop / resize) if crop and resize else 1.0,
        crop_mode="center" if crop or shortest else "squash",
    )


def _edge(size: Any) -> int | None:
    """Return a picture's shorter side in px from 224, (224, 224) or {"shortest_edge": 224}."""
    if isinstance(size, Mapping):
        size = size.get("shortest_edge") or size.get("height")
    if isinstance(size, tuple | list):
        size = size[0]
    return int(size) if size else None


@dataclass(frozen=True)
class SizedTransform:
    """A transform, and how many px of a picture's sides it needs: see `read_image`."""

    steps: Transform
    side: int

    def __call__(self, picture: Image.Image) -> Tensor:
        return self.steps(picture)


def _side_needed(inputs: InputConfig) -> int:
    """Return the px to which a picture may be shrunk first without a visible difference."""
    return round(SPARE * max(inputs.size) / inputs.crop)


def eval_transform(inputs: InputConfig) -> Transform:
    """Return the transform for evaluation: resize, centre crop and normalise to (3, H, W).

    inputs: size, mean and deviation that the model expects.
    """
    steps = create_transform(
        input_size=(3, *inputs.size),
        is_training=False,
        interpolation=inputs.interpolation,
        mean=inputs.mean,
        std=inputs.std,
        crop_pct=inputs.crop,
        crop_mode=inputs.crop_mode,
    )
    return SizedTransform(cast(Transform, steps), _side_needed(inputs))


def train_transform(inputs: InputConfig, *, augment: str = "none") -> Transform:
    """Return the transform for training, from a picture to (3, H, W).

    inputs: size, mean and deviation that the model expects. augment: "none", as in evaluation;
    "light", a random crop of 60 to 100 % of the area, and a flip; "crop", a random square of
    224/256 of the shorter side, and a flip, as in VPT and MoSA. Random numbers come from torch's
    CPU generator, which `Prepared` seeds for each picture.
    Raises: ConfigError for another augmentation.
    Not for pictures that change their meaning when mirrored, such as digits or text.
    """
    one_of("augment", augment, AUGMENTS)
    if augment == "none":
        return eval_transform(inputs)
    interpolation = InterpolationMode(inputs.interpolation)
    if augment == "light":
        crops = [v2.RandomResizedCrop(inputs.size, scale=(0.6, 1.0), interpolation=interpolation)]
    else:
        # The usual ratio for ImageNet: resized to 256, cropped to 224.
        shorter = round(max(inputs.size) * 256 / 224)
        crops = [v2.Resize(shorter, interpolation=interpolation), v2.RandomCrop(inputs.size)]
    # pictures are cropped and flipped before they become tensors
    steps = v2.Compose(
        [
            *crops,
            v2.RandomHorizontalFlip(),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(mean=list(inputs.mean), std=list(inputs.std)),
        ]
    )
    return SizedTransform(steps, _side_needed(inputs) * 2)  # a crop keeps 60 % of the area or more
