"""Image sets by name, from package registries; decoded once into a safetensors file.

train = load("fashion-mnist", part="train")
cells = load("elpv")
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from intarsia.core.errors import DataError, UnknownName
from intarsia.core.files import JOINED
from intarsia.data import photos, readers, sounds
from intarsia.data.decoded import Decoded, decoded_once
from intarsia.data.images import ImageSet
from intarsia.data.packages import Package, announce, cache_dir, obtain, pinned
from intarsia.data.photographs import PACKAGES

Part = Literal["all", "train", "test"]


@dataclass(frozen=True, slots=True)
class NamedSet:
    """Named image set: its packages, and the function that reads it.

    package, further: the archives that it is read from.  read: folders -> images, labels, class
    names.  about: a line for lists.  published_train: size of the training part, which comes first.
    """

    package: Package
    read: Callable[..., Decoded]  # unpacked folders -> images, labels, class names
    about: str
    published_train: int | None = None  # size of the training part, which comes first
    further: tuple[Package, ...] = ()  # packages that it is read from, too


def names() -> tuple[str, ...]:
    """Return the names of the sets that `load` knows."""
    return tuple(SETS)


def located(data: str) -> str:
    """Return data's name or absolute path, for a record: it must not depend on the folder.

    data: a named set, which stays as it is, or a path; either may end in JOINED ("@train+val").
    """
    plain = data.removesuffix(JOINED)
    path = Path(plain).expanduser()
    if plain in names() or not path.exists():
        return data
    return str(path.resolve()) + data[len(plain) :]


def load(
    name: str,
    *,
    part: Part = "all",
    cache: Path | None = None,
    progress: Callable[[str], None] = announce,
) -> ImageSet:
    """Return a published image set by name; it is downloaded and decoded the first time.

    part: "all", "train" or "test". cache: folder of packages and decoded sets; progress: gets lines
    of progress.
    Raises: UnknownName; AssetError when the package is not available; DataError for a part that the
    publisher did not define.
    """
    if name not in SETS:
        raise UnknownName("image set", name, SETS)
    spec, cache = SETS[name], cache or cache_dir()
    file = _cache_file(name, cache)

    def decode() -> Decoded:
        """Obtain the packages, and decode the set."""
        packages = spec.package, *spec.further
        folders = [obtain(package, cache=cache, progress=progress) for package in packages]
        progress(f"intarsia: decoding {name} (once)")
        return spec.read(*folders)

    # Decoded once; later calls read one file.
    images, labels, classes = decoded_once(file, decode)
    source = f"{spec.package.registry}:{spec.package.spec}"
    full = ImageSet(name, images, labels, classes, licence=spec.package.licence, source=source)
    return full if part == "all" else _published_part(full, part, spec.published_train)


def is_cached(name: str, cache: Path | None = None) -> bool:
    """Decide whether a set is already downloaded and decoded."""
    return _cache_file(name, cache or cache_dir()).is_file()


def _cache_file(name: str, cache: Path) -> Path:
    return cache / "sets" / f"{name}-{SETS[name].package.version}.safetensors"


def _published_part(full: ImageSet, part: Part, train: int | None) -> ImageSet:
    """Return the publisher's training or test part of a set; "all" is refused, as no part."""
    # train: number of samples of the training part, which come first, None = there are no parts
    if train is None or part not in ("train", "test"):
        want, fix = "'all', 'train' or 'test'", "Choose one of them."
        if train is None:
            want, fix = "'all'", "Use load_data(name, seed=...) for a seeded split."
        raise DataError(f"part of {full.name!r}", got=repr(part), want=want, fix=fix)
    positions = range(train) if part == "train" else range(train, len(full))
    return full.select(positions, name=f"{full.name}/{part}")


_ELPV = pinned("elpv-dataset")
_PHOTOS = tuple(map(pinned, PACKAGES))
_PROMPTS = tuple(pinned(f"asterisk-core-sounds-{name}-wav") for name in sounds.LANGUAGES)
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
    "photo-blur": NamedSet(
        _PHOTOS[0],
        photos.photo_blur,
        "squares of 27 photographs, 5 levels of blur",
        1120,
        _PHOTOS[1:],
    ),
    "photo-origin": NamedSet(
        _PHOTOS[0], photos.photo_origin, "squares of 27 photographs: which one", 1080, _PHOTOS[1:]
    ),
    "photo-rotation": NamedSet(
        _PHOTOS[0], photos.photo_rotation, "squares of 27 photographs, turned", 1120, _PHOTOS[1:]
    ),
    "prompt-kind": NamedSet(
        _PROMPTS[0],
        sounds.prompt_kind,
        "2,781 spectrograms of telephone prompts: number, letter, spelling word or sentence",
        1466,
        _PROMPTS[1:],
    ),
    "prompt-language": NamedSet(
        _PROMPTS[0],
        sounds.prompt_language,
        "the same prompts: which of 5 languages",
        1466,
        _PROMPTS[1:],
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
    "twemoji": NamedSet(
        pinned("emoji-datasource"),
        partial(readers.emoji, vendor="twitter"),
        "emoji of 32 px (Twemoji), 9 categories",
    ),
}
