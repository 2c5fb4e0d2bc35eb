"""VTAB-1k (arXiv:1910.04867): 19 tasks of 800 training and 200 validation images each.

Read from label lists, as in NOAH, FacT, RepAdapter and SSF, or from `tensorflow-datasets`, as in
VPT. If a folder has both, the lists are used.

<suite's folder>/cifar/{train800,val200,test}.txt        lines `images/train800/0.jpg 19`
<suite's folder>/cifar100/3.0.2/dataset_info.json        needs `pip install intarsia[tfds]`
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from . import tfds
from .lists import check_apart, read_lines, to_set
from .task import Parts, Suite, SuiteTask

LISTS = {"train": "train800.txt", "val": "val200.txt", "test": "test.txt"}

# name: (group, classes, test images, other names of the folder with the lists)
_TASKS: dict[str, tuple[str, int, int, tuple[str, ...]]] = {
    "cifar100": ("natural", 100, 10_000, ("cifar",)),
    "caltech101": ("natural", 102, 6_084, ("caltech",)),
    "dtd": ("natural", 47, 1_880, ()),
    "oxford_flowers102": ("natural", 102, 6_149, ("flowers102", "oxford_flowers", "flowers")),
    "oxford_iiit_pet": ("natural", 37, 3_669, ("pets", "oxford_pets", "oxford_pet")),
    "svhn": ("natural", 10, 26_032, ()),
    "sun397": ("natural", 397, 21_750, ()),
    "patch_camelyon": ("specialized", 2, 32_768, ("camelyon", "pcam")),
    "eurosat": ("specialized", 10, 5_400, ()),
    "resisc45": ("specialized", 45, 6_300, ()),
    "diabetic_retinopathy": ("specialized", 5, 42_670, ("retinopathy",)),
    "clevr_count": ("structured", 8, 15_000, ()),
    "clevr_dist": ("structured", 6, 15_000, ("clevr_distance",)),
    "dmlab": ("structured", 6, 22_735, ()),
    "kitti": ("structured", 4, 711, ("kitti_dist", "kitti_distance")),
    "dsprites_loc": ("structured", 16, 73_728, ("dsprites_location", "dsprites_position")),
    "dsprites_ori": ("structured", 16, 73_728, ("dsprites_orientation",)),
    "smallnorb_azi": ("structured", 18, 12_150, ("smallnorb_azimuth",)),
    "smallnorb_ele": ("structured", 9, 12_150, ("smallnorb_elevation",)),
}


def read(name: str, root: Path) -> Parts:
    """Read the three parts of a task, from its label lists or from its prepared TFDS data set.

    name: of the task; root: the suite's folder.
    Raises: DataError for a list that is missing or damaged (see `read_lines`), and for a picture in
      two lists; the errors of `tfds.read`.
    """
    _, classes, _, _ = _TASKS[name]
    folder = next((place for place in _places(name, root) if _has_list(place)), None)
    if folder is None and tfds.is_prepared(name, root):
        return tfds.read(name, root, classes=classes)
    # neither: the error names the usual folder
    folder = folder or _places(name, root)[0]
    labels = {i: i for i in range(classes)}
    rows = {part: read_lines(folder / file, ids=range(classes)) for part, file in LISTS.items()}
    check_apart({folder / LISTS[part]: entries for part, entries in rows.items()})
    return {
        part: to_set(name, entries, folder, classes=labels, source="VTAB-1k, lists")
        for part, entries in rows.items()
    }


def _places(name: str, root: Path) -> list[Path]:
    return [root / folder for folder in (name, *_TASKS[name][3])]


def _has_list(folder: Path) -> bool:
    return any((folder / file).is_file() for file in LISTS.values())


def _task(name: str, group: str, classes: int, test: int, aliases: tuple[str, ...]) -> SuiteTask:
    """Build a task with pictures in list files or in tensorflow-datasets."""
    either = tfds.mark(name)
    return SuiteTask(
        name=name,
        group=group,
        classes=classes,
        counts={"train": 800, "val": 200, "test": test},
        read=partial(read, name),
        needs=tuple(
            "|".join([*(f"{folder}/{file}" for folder in (name, *aliases)), either])
            for file in LISTS.values()
        ),
        about=f"{tfds.SOURCES[name].builder} of tensorflow-datasets",
    )


SUITE = Suite(
    name="vtab-1k",
    about="VTAB-1k: 19 tasks with 800 training images each, in three groups",
    tasks=tuple(_task(name, *facts) for name, facts in _TASKS.items()),
    how="Copy the data in NOAH's layout (github.com/ZhangYuanhan-AI/NOAH; folders cifar, caltech101"
    " ..., each with train800.txt, val200.txt, test.txt and its images) into the suite's folder, or"
    " prepare the sets there with tensorflow-datasets (github.com/KMnP/vpt, VTAB_SETUP.md).",
    groups=("natural", "specialized", "structured"),
)
