"""Named sets: parts, cache and errors on a made-up set; counts and pictures of the real ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from intarsia.core.errors import AssetError, DataError, UnknownName
from intarsia.data import load_data, sets
from intarsia.data.packages import Package
from intarsia.data.sets import SETS, NamedSet, load

from ..refusals import refused


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """A set `toy` whose package needs no download; the keywords to load it."""
    calls: list[Path] = []

    def read(folder: Path) -> sets.Decoded:
        calls.append(folder)
        return (
            np.arange(6 * 4, dtype=np.uint8).reshape(6, 2, 2),
            [0, 1, 2, 0, 1, 2],
            ["x", "y", "z"],
        )

    package = Package("pypi", "toy", "1", "0" * 64, 1, "CC0")
    monkeypatch.setitem(SETS, "toy", NamedSet(package, read, "six squares", published_train=4))
    monkeypatch.setattr(sets, "obtain", lambda *_, **__: tmp_path)
    monkeypatch.setenv("INTARSIA_HOME", str(tmp_path))
    return {"name": "toy", "progress": lambda _: None, "calls": calls}


def _load(toy: dict[str, Any], **more: Any) -> Any:
    return load(**{k: v for k, v in toy.items() if k != "calls"}, **more)


def test_a_set_is_decoded_once_and_then_cached(toy: dict[str, Any]) -> None:
    one, two = _load(toy), _load(toy)
    assert len(toy["calls"]) == 1
    np.testing.assert_array_equal(one.images, two.images)
    assert (one.classes, one.licence, one.source) == (("x", "y", "z"), "CC0", "pypi:toy==1")


def test_the_publishers_parts(toy: dict[str, Any]) -> None:
    assert _load(toy, part="train").labels.tolist() == [0, 1, 2, 0]
    assert _load(toy, part="test").images.tolist() == _load(toy).images[4:].tolist()


def test_an_undefined_part_is_refused(toy: dict[str, Any]) -> None:
    with refused(DataError, what="part of 'toy'", got="'validation'"):
        _load(toy, part="validation")


def test_a_damaged_cache(toy: dict[str, Any], tmp_path: Path) -> None:
    _load(toy)
    (file,) = (tmp_path / "sets").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-3])
    with refused(AssetError, what="cached file toy-1.safetensors"):
        _load(toy)


def test_an_unknown_set() -> None:
    with refused(UnknownName, what="unknown image set", got="'elvp'", near=("elpv",)):
        load("elvp")


def test_every_set_has_a_description_and_a_licence() -> None:
    for name, spec in SETS.items():
        assert spec.about and spec.package.licence and len(spec.package.sha256) == 64, name
    assert "SIMULATED" in SETS["textile"].about


REAL = {
    "elpv": (2624, (300, 300), {"sound": 1508, "1/3 defective": 295, "defective": 715}),
    "elpv-type": (2624, (300, 300), {"mono": 1074, "poly": 1550}),
    "emoji": (1906, (32, 32, 3), {"Activities": 85, "People & Body": 386}),
    "fashion-mnist": (70_000, (28, 28), {"Trouser": 7000, "Boot": 7000}),
    "landsat": (6435, (3, 3, 3), {"red soil": 1533, "damp grey soil": 626}),
    "mnist": (10_000, (28, 28), {"1": 1127, "5": 863}),
    "openclipart": (2241, (224, 224, 3), {"recreation": 487, "containers": 16}),
    "textile": (2000, (250, 250, 3), {"nominal": 1000, "local": 500, "global": 500}),
    "tuxpaint": (952, (224, 224, 3), {"symbols": 249, "military": 12}),
}


@pytest.mark.network
@pytest.mark.parametrize("name", sorted(REAL))
def test_the_real_sets(name: str) -> None:
    images = load(name)
    n, shape, counts = REAL[name]
    assert len(images) == n and np.asarray(images.images).shape[1:] == shape
    assert counts.items() <= images.counts().items()
    assert np.asarray(images.images[:100]).std() > 10  # pictures, not blanks


@pytest.mark.network
def test_fashion_mnist_has_its_publishers_test_part() -> None:
    data = load_data("fashion-mnist", seed=0, train=1000, val=500)
    assert (len(data.train), len(data.val or ()), len(data.test)) == (1000, 500, 10_000)
    assert set(data.test.counts().values()) == {1000}
