"""Images stay with their labels; splits are disjoint, stratified and seeded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from intarsia.core.errors import ConfigError, DataError
from intarsia.data import ImageSet
from intarsia.data.images import SHOWN, stratified, verify

from ..refusals import refused

Noise = Callable[..., ImageSet]


def _set(labels: object, n: int | None = None, classes: int = 2) -> ImageSet:
    ids = np.asarray(labels)
    pixels = np.zeros((len(ids) if n is None else n, 4, 4), np.uint8)
    return ImageSet("s", pixels, ids, tuple("abcdefgh"[:classes]))


def test_an_item_is_an_rgb_picture_and_an_int(noise_set: Noise) -> None:
    image, label = noise_set(4)[2]
    assert (image.mode, image.size, label, type(label)) == ("RGB", (8, 8), 2, int)


@pytest.mark.parametrize(
    ("labels", "got"),
    [
        ([0, 1, 2], "labels from 0 to 2"),
        ([0, -1], "labels from -1 to 0"),
        ([0.0, 1.0], "float64 of shape (2,)"),
        ([[0, 1, 1], [1, 0, 0]], "int64 of shape (2, 3)"),
    ],
    ids=["too high", "negative", "float", "rows of other labels"],
)
def test_labels_out_of_range_are_refused(labels: object, got: str) -> None:
    with refused(DataError, got=got):
        _set(labels)


def test_images_and_labels_must_have_equal_numbers() -> None:
    with refused(DataError, what="set 's'"):
        _set([0, 1], n=3)


@given(st.integers(2, 5), st.integers(4, 12), st.integers(0, 9), st.data())
def test_stratified_is_disjoint_covering_and_in_proportion(
    classes: int, each: int, seed: int, data: st.DataObject
) -> None:
    labels = np.repeat(np.arange(classes), each)
    n = data.draw(st.integers(classes, len(labels) - classes))
    names = [str(i) for i in range(classes)]
    chosen, rest = stratified(labels, n, seed=seed, classes=names)
    assert len(chosen) == n
    assert sorted([*chosen, *rest]) == list(range(len(labels)))
    counts = np.bincount(labels[chosen], minlength=classes)
    assert np.abs(counts - n / classes).max() <= 1
    again, _ = stratified(labels, n, seed=seed, classes=names)
    np.testing.assert_array_equal(chosen, again)


def test_another_seed_chooses_other_images(noise_set: Noise) -> None:
    full = noise_set(60)
    one, two = (full.subset(12, seed=s) for s in (0, 1))
    assert not np.array_equal(one.images, two.images)


def test_subset_keeps_the_pair_of_image_and_label(noise_set: Noise) -> None:
    full = noise_set(30)
    where = {full.images[i].tobytes(): int(full.labels[i]) for i in range(30)}
    part = full.subset(9, seed=3)
    assert [where[image.tobytes()] for image in part.images] == part.labels.tolist()
    assert part.counts() == {"c0": 3, "c1": 3, "c2": 3}


def test_a_subset_of_all_images_is_the_set(noise_set: Noise) -> None:
    full = noise_set(9)
    assert full.subset(9, seed=0) is full


@pytest.mark.parametrize("n", [2, 10])
def test_impossible_subsets_are_refused_with_the_possible_sizes(noise_set: Noise, n: int) -> None:
    with refused(ConfigError, what="images of 'noise'"):
        noise_set(9).subset(n, seed=0)


@pytest.mark.parametrize("n", range(3, 13))
def test_a_subset_has_every_class_even_one_with_a_single_image(n: int) -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(12, 1, 1)
    full = ImageSet("s", pixels, np.array([0] * 8 + [1] + [2] * 3), ("a", "b", "c"))
    part, again, other = (full.subset(n, seed=s) for s in (0, 0, 1))
    assert sum(part.counts().values()) == n and min(part.counts().values()) >= 1
    assert abs(part.counts()["a"] - max(1, 8 * n / 12)) <= 1
    np.testing.assert_array_equal(part.images, again.images)
    assert n > 7 or not np.array_equal(part.images, other.images)


def test_a_class_with_one_image_cannot_be_split() -> None:
    with refused(DataError, what="stratified split"):
        stratified(np.array([0, 0, 0, 1]), 2, seed=0, classes=("a", "b"))


def test_select_does_not_decode(tmp_path: Path) -> None:
    missing = [tmp_path / f"{i}.png" for i in range(4)]
    lazy = ImageSet("lazy", missing, np.array([0, 1, 0, 1]), ("a", "b"))
    chosen = lazy.select([3, 1]).select([1])
    assert chosen.label_of(0) == str(missing[1])
    with refused(DataError, got="an empty or missing file"):
        chosen.image(0)


def test_verify_lists_all_unreadable_up_to_a_limit(
    tmp_path: Path, picture: Callable[..., Image.Image]
) -> None:
    paths = [tmp_path / f"{i:03}.png" for i in range(SHOWN + 9)]
    for path in paths:
        path.write_bytes(b"broken")
    for i in (0, 1, 2, 3):
        picture(i).save(paths[i])
    labels = np.arange(len(paths)) % 2
    images = ImageSet("broken", paths, labels, ("a", "b"))
    with pytest.raises(DataError) as caught:
        verify(images)
    text = str(caught.value)
    assert f"{SHOWN + 5} of {SHOWN + 9}" in text and "and 5 more" in text
    assert str(paths[4]) in text and str(paths[SHOWN + 3]) in text
    assert str(paths[SHOWN + 4]) not in text and "skip" in caught.value.fix


def test_skipped_pictures_are_recorded(tmp_path: Path, picture: Callable[..., Image.Image]) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(5)]
    for i, path in enumerate(paths):
        picture(i).save(path)
    paths[2].write_bytes(paths[2].read_bytes()[:40])
    kept = verify(ImageSet("s", paths, np.array([0, 1, 0, 1, 0]), ("a", "b")), on_error="skip")
    assert kept.skipped == (str(paths[2]),)
    assert kept.labels.tolist() == [0, 1, 1, 0] and len(kept.digests) == 4
    assert [kept.image(i).tobytes() for i in range(4)] == [
        picture(i).tobytes() for i in (0, 1, 3, 4)
    ]


def test_skipping_a_whole_class_is_an_error(
    tmp_path: Path, picture: Callable[..., Image.Image]
) -> None:
    picture(0).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"")
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    images = ImageSet("s", paths, np.array([0, 1]), ("a", "b"))
    with refused(DataError, what="classes of 's'"):
        verify(images, on_error="skip")
