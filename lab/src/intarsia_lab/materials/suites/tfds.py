"""VTAB-1k from `tensorflow-datasets`: the published slices and labels of its 19 tasks.

Slices and labels follow github.com/google-research/task_adaptation. KITTI is read in version 3.2.0,
as VPT does, because 3.1.0 is wrong. Nothing is downloaded: prepare the sets first.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from intarsia.core.errors import DataError, MissingExtra
from intarsia.data.decode import LazyPictures, Picture, read_image
from intarsia.data.images import ImageSet

from .task import Parts

Example = Mapping[str, Any]  # of numpy arrays; "image" is an encoded file


@dataclass(frozen=True, slots=True)
class Source:
    """A task in a TFDS data set.

    builder, version: TFDS's names.  cut: percentages of the TFDS part `train` that are VTAB's train
    and val; () where TFDS has a validation part.  val, test: TFDS slices where nothing is cut.
    label: example -> class.  scale: pixel values are multiplied by it.
    """

    builder: str
    version: str
    cut: tuple[int, ...] = ()
    val: str = "validation[:200]"
    test: str = "test"
    label: Callable[[Example], int] = lambda example: int(example["label"])
    scale: int = 1

    def slices(self, images: int) -> dict[str, str]:
        """Return the slices of training, validation and test part in TFDS's notation.

        images: number of images in TFDS's part `train`.
        """
        val, test = self.val, self.test
        if self.cut:
            # the first percentages are VTAB's training part
            first = images * self.cut[0] // 100
            val = f"train[{first}:{first + 200}]"
        if len(self.cut) == 2:  # the test part is also cut from train
            test = f"train[{first + images * self.cut[1] // 100}:]"
        return {"train": "train[:800]", "val": val, "test": test}


def _count(example: Example) -> int:
    """Return CLEVR's class by number: 3 to 10 objects, from 0."""
    return len(example["objects"]["size"]) - 3


def _nearest_object(example: Example) -> int:
    """Return CLEVR's class by distance: the depth of the nearest object, in six ranges."""
    depth = example["objects"]["pixel_coords"][:, 2].min()
    return int(np.searchsorted([8.0, 8.5, 9.0, 9.5, 10.0], depth))


def _nearest_vehicle(example: Example) -> int:
    """Return KITTI's class: metres to the nearest car, van or truck in three ranges; 3 = none."""
    metres = example["objects"]["location"][:, 2][example["objects"]["type"] < 3]
    return int(np.searchsorted([8.0, 20.0, 999.0], metres.min(initial=1000.0)))


def _binned(key: str, values: int) -> Callable[[Example], int]:
    """Return a function that sorts a position or an angle of an example into 16 equal ranges."""
    return lambda example: int(example[key]) * 16 // values


def _plainly(key: str) -> Callable[[Example], int]:
    return lambda example: int(example[key])


def _dsprites(key: str, values: int) -> Source:  # pixels are 0 or 1
    return Source("dsprites", "2.*.*", cut=(80, 10), label=_binned(key, values), scale=255)


def _smallnorb(key: str) -> Source:
    return Source("smallnorb", "2.*.*", val="test[:200]", test="test[50%:]", label=_plainly(key))


SOURCES: dict[str, Source] = {
    "cifar100": Source("cifar100", "3.*.*", cut=(90,)),
    "caltech101": Source("caltech101", "3.*.*", cut=(90,)),
    "dtd": Source("dtd", "3.*.*"),
    "oxford_flowers102": Source("oxford_flowers102", "2.*.*"),
    "oxford_iiit_pet": Source("oxford_iiit_pet", "3.*.*", cut=(80,)),
    "svhn": Source("svhn_cropped", "3.*.*", cut=(90,)),
    "sun397": Source("sun397/tfds", "4.*.*"),
    "patch_camelyon": Source("patch_camelyon", "2.*.*"),
    "eurosat": Source("eurosat/rgb", "2.*.*", cut=(60, 20)),
    "resisc45": Source("resisc45", "3.*.*", cut=(60, 20)),
    "diabetic_retinopathy": Source("diabetic_retinopathy_detection/btgraham-300", "3.*.*"),
    "clevr_count": Source("clevr", "3.*.*", cut=(90,), test="validation", label=_count),
    "clevr_dist": Source("clevr", "3.*.*", cut=(90,), test="validation", label=_nearest_object),
    "dmlab": Source("dmlab", "2.0.1"),
    "kitti": Source("kitti", "3.2.0", label=_nearest_vehicle),
    "dsprites_loc": _dsprites("label_x_position", 32),
    "dsprites_ori": _dsprites("label_orientation", 40),
    "smallnorb_azi": _smallnorb("label_azimuth"),
    "smallnorb_ele": _smallnorb("label_elevation"),
}


def mark(name: str) -> str:
    """Return a glob of the file that marks a prepared data set, below the suite's folder."""
    return f"{SOURCES[name].builder}/{SOURCES[name].version}/dataset_info.json"


def is_prepared(name: str, root: Path) -> bool:
    """Return True if TFDS has prepared a task's data set below `root`."""
    return any(root.glob(mark(name)))


def read(name: str, root: Path, *, classes: int) -> Parts:
    """Read the three parts of a task by TFDS; the encoded pictures are held in memory.

    name: of the task; root: folder of the prepared data sets; classes: number of classes.
    Raises: MissingExtra without `tensorflow-datasets`; DataError when it cannot read the set.
    """
    try:
        library = importlib.import_module("tensorflow_datasets")
    except ImportError as error:
        raise MissingExtra("tensorflow-datasets", "tfds") from error
    source = SOURCES[name]
    try:
        builder = library.builder(f"{source.builder}:{source.version}", data_dir=str(root))
        slices = source.slices(builder.info.splits["train"].num_examples)
        # pictures stay encoded: decoded ones would need a lot of memory
        skip = {"image": library.decode.SkipDecoding()}
        datasets = {
            part: builder.as_dataset(split=slice_name, shuffle_files=False, decoders=skip)
            for part, slice_name in slices.items()
        }
        return {p: _to_set(name, library.as_numpy(data), classes) for p, data in datasets.items()}
    except (AssertionError, KeyError, OSError, ValueError) as error:  # all that TFDS raises
        subject, want = (
            f"TFDS data set {source.builder!r} in {root}",
            f"version {source.version}, prepared",
        )
        fix = f"Run: tfds build {source.builder} --data_dir {root}"
        raise DataError(subject, got=error, want=want, fix=fix) from error


def _to_set(name: str, examples: Iterable[Example], classes: int) -> ImageSet:
    """Convert examples of tensorflow-datasets to our type."""
    source = SOURCES[name]
    files, labels = [], []
    for example in examples:
        files.append(example["image"])
        labels.append(source.label(example))
    pictures: Any = files
    # pixels are multiplied when a picture is read
    if source.scale != 1:
        pictures = LazyPictures(len(files), partial(_scaled, files, source.scale))
    names = tuple(str(i) for i in range(classes))
    label = np.asarray(labels, dtype=np.int64)
    return ImageSet(name, pictures, label, names, source=f"VTAB-1k, TFDS {source.builder}")


def _scaled(files: list[bytes], factor: int, index: int) -> Picture:
    return np.asarray(read_image(files[index])) * np.uint8(factor)
