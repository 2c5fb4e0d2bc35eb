"""The fingerprint depends on every pixel and label, and on nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from intarsia.data import ImageSet, fingerprint, shared
from intarsia.data.folders import read_folder


def _set(pixels: np.ndarray, labels: list[int]) -> ImageSet:
    return ImageSet("s", pixels, np.array(labels), ("a", "b"))


@given(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3), st.integers(1, 255))
def test_one_changed_pixel_or_label_changes_it(i: int, y: int, x: int, step: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 4, 4), dtype=np.uint8)
    labels = [0, 1, 0, 1]
    base = fingerprint(_set(pixels, labels))["sha256"]
    assert base == fingerprint(_set(pixels.copy(), labels.copy()))["sha256"]
    changed = pixels.copy()
    changed[i, y, x] ^= step
    assert base != fingerprint(_set(changed, labels))["sha256"]
    labels[i] = 1 - labels[i]
    assert base != fingerprint(_set(pixels, labels))["sha256"]


def test_format_and_file_names_do_not_change_it(
    tmp_path: Path, picture: Callable[..., Image.Image]
) -> None:
    for root, suffix in (("one", "png"), ("two", "bmp")):
        for name in "ab":
            (tmp_path / root / name).mkdir(parents=True)
            picture(ord(name)).save(tmp_path / root / name / f"{root}.{suffix}")
    first, second = (fingerprint(read_folder(tmp_path / root)["all"]) for root in ("one", "two"))
    assert first["sha256"] == second["sha256"]
    assert first["formats"] == {".png": 2} and second["formats"] == {".bmp": 2}


def test_the_record_is_json_and_complete(noise_set: Callable[..., ImageSet]) -> None:
    record = fingerprint(noise_set(6))
    assert json.loads(json.dumps(record)) == record
    assert record["n"] == 6 and record["counts"] == {"c0": 2, "c1": 2, "c2": 2}
    assert record["formats"] == {"array 8x8": 6} and record["repeated"] == 0


def test_shared_pictures_are_found(noise_set: Callable[..., ImageSet]) -> None:
    full = noise_set(12)
    assert shared(full.select(range(6)), full.select(range(6, 12))) == []
    assert shared(full.select([3, 4, 5]), full.select([9, 5, 3])) == [(2, 1), (0, 2)]


def test_repeated_pictures_are_counted(noise_set: Callable[..., ImageSet]) -> None:
    assert fingerprint(noise_set(6).select([0, 1, 2, 0, 0]))["repeated"] == 2
