"""The worst mistakes: the most confident wrong answers, as pictures and a list."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from intarsia.core.errors import CheckpointError, ConfigError, DataError, TrainingError
from intarsia.reports.runs import save_mistakes
from intarsia.reports.runs.mistakes import file_name, read_mistakes, worst

from ...refusals import refused

NAMES = ("ant", "bee", "cat")
LOGITS = torch.tensor([[3.0, 0, 0], [0, 5, 0], [0, 0, 1.0], [0, 2, 0], [9, 0, 0]])
LABELS = torch.tensor([0, 2, 0, 1, 1])  # wrong: 1 (bee), 2 (cat), 4 (ant); surest first: 4, 1, 2


def picture(index: int) -> Image.Image:
    return Image.new("RGB", (400, 100 + index), (index, 0, 0))


def saved(folder: Path, k: int = 24) -> Path:
    return save_mistakes(folder, picture, LOGITS, LABELS, NAMES, k=k)


def test_the_most_confident_mistakes_come_first(tmp_path: Path) -> None:
    saved(tmp_path)
    mistakes = read_mistakes(tmp_path)
    assert mistakes is not None
    assert [(m.index, m.true, m.predicted) for m in mistakes.shown] == [
        (4, "bee", "ant"), (1, "cat", "bee"), (2, "ant", "cat"),
    ]  # fmt: skip
    assert (mistakes.wrong, mistakes.n) == (3, 5)
    expected = LOGITS.softmax(1).amax(1)[[4, 1, 2]].tolist()
    assert [m.confidence for m in mistakes.shown] == pytest.approx(expected)


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 99))
def test_worst_is_a_prefix_of_all_mistakes(n: int, k: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, 5, generator=generator)
    labels = torch.randint(5, (n,), generator=generator)
    everything = worst(logits, labels, n)
    wrong = (logits.argmax(1) != labels).nonzero()[:, 0].tolist()
    assert sorted(i for i, _ in everything) == wrong
    assert [c for _, c in everything] == sorted((c for _, c in everything), reverse=True)
    assert worst(logits, labels, k) == everything[:k]


def test_only_the_kept_pictures_are_asked_for(tmp_path: Path) -> None:
    indices: list[int] = []

    def images(index: int) -> Image.Image:
        indices.append(index)
        return picture(index)

    save_mistakes(tmp_path, images, LOGITS, LABELS, NAMES, k=2)
    assert indices == [4, 1]
    mistakes = read_mistakes(tmp_path)
    assert mistakes is not None and len(mistakes.shown) == 2 and mistakes.wrong == 3


def test_thumbnails_are_small_and_keep_their_proportions(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    with Image.open(folder / file_name(4)) as thumbnail:
        assert thumbnail.size == (160, 42)
    tiny = save_mistakes(
        tmp_path / "b", lambda _: Image.new("L", (28, 28)), LOGITS, LABELS, NAMES, k=1
    )
    with Image.open(tiny / file_name(4)) as thumbnail:
        assert thumbnail.size == (28, 28) and thumbnail.mode == "RGB"


def test_a_later_list_replaces_the_one_before(tmp_path: Path) -> None:
    saved(tmp_path)
    folder = saved(tmp_path, k=1)
    assert sorted(p.name for p in folder.iterdir()) == [file_name(4), "mistakes.json"]


def test_a_model_without_mistakes(tmp_path: Path) -> None:
    save_mistakes(tmp_path, picture, LOGITS, LOGITS.argmax(1), NAMES)
    mistakes = read_mistakes(tmp_path)
    assert mistakes is not None and (mistakes.shown, mistakes.wrong, mistakes.n) == ((), 0, 5)


def test_nothing_was_kept(tmp_path: Path) -> None:
    assert read_mistakes(tmp_path) is None


@pytest.mark.parametrize(
    ("logits", "labels", "names", "got"),
    [
        (LOGITS, LABELS[:3], NAMES, "logits (5, 3), labels (3,), 3 names"),
        (LOGITS[0], LABELS, NAMES, "logits (3,), labels (5,), 3 names"),
        (LOGITS, LABELS, NAMES[:2], "logits (5, 3), labels (5,), 2 names"),
        (LOGITS, LABELS + 1, NAMES, "1 ... 3"),
        (LOGITS, LABELS - 1, NAMES, "-1 ... 1"),
        (LOGITS * torch.nan, LABELS, NAMES, "values that are not finite"),
        (LOGITS / 0, LABELS, NAMES, "values that are not finite"),
    ],
)
def test_predictions_that_do_not_fit(
    tmp_path: Path, logits: torch.Tensor, labels: torch.Tensor, names: tuple[str, ...], got: str
) -> None:
    with refused(DataError, got=got):
        save_mistakes(tmp_path, picture, logits, labels, names)
    assert not list(tmp_path.iterdir())


def test_no_pictures_asked_for(tmp_path: Path) -> None:
    with refused(ConfigError, what="k", got=0):
        saved(tmp_path, k=0)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match="Free some space"):
        saved(tmp_path / "file")


def test_a_picture_that_cannot_be_read_leaves_the_old_list(tmp_path: Path) -> None:
    saved(tmp_path)

    def images(index: int) -> Image.Image:
        raise DataError(f"picture {index}", got="damage", want="a picture", fix="Mend it.")

    with refused(DataError, what="picture 4", got="damage"):
        save_mistakes(tmp_path, images, LOGITS, LABELS, NAMES)
    assert [p.name for p in tmp_path.iterdir()] == ["mistakes"]
    assert read_mistakes(tmp_path) is not None


Damage = Callable[[Path], object]


@pytest.mark.parametrize(
    ("damage", "want"),
    [
        (lambda f: (f / "mistakes.json").unlink(), "the files of save_mistakes, format 1"),
        (lambda f: (f / "mistakes.json").write_text("{"), "the files of save_mistakes, format 1"),
        (lambda f: (f / "mistakes.json").write_text("[]"), "the files of save_mistakes, format 1"),
        (lambda f: (f / file_name(4)).unlink(), "the files of save_mistakes, format 1"),
        (
            lambda f: (f / file_name(4)).write_bytes(b"<svg onload=alert(1)>"),
            "the files of save_mistakes, format 1",
        ),
        (
            lambda f: (f / file_name(4)).write_bytes(bytes(1_000_001)),
            "the files of save_mistakes, format 1",
        ),
    ],
    ids=["no list", "cut list", "wrong list", "no picture", "foreign picture", "large picture"],
)
def test_damage_is_named(tmp_path: Path, damage: Damage, want: str) -> None:
    damage(saved(tmp_path))
    with refused(CheckpointError, want=want):
        read_mistakes(tmp_path)


@pytest.mark.parametrize(
    ("field", "value", "got"),
    [
        (
            "index",
            "../../secret",
            "ValueError: invalid literal for int() with base 10: '../../secret'",
        ),
        ("index", 77, "no such file"),
        ("confidence", 1.2, "ValueError: confidence 1.2"),
        ("confidence", float("nan"), "ValueError: confidence nan"),
    ],
)
def test_a_list_cannot_point_elsewhere(tmp_path: Path, field: str, value: object, got: str) -> None:
    path = saved(tmp_path) / "mistakes.json"
    content = json.loads(path.read_text())
    content["mistakes"][0][field] = value
    path.write_text(json.dumps(content))
    with refused(CheckpointError, got=got):
        read_mistakes(tmp_path)


def test_another_version_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path) / "mistakes.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 2}))
    with refused(CheckpointError, got="format 2"):
        read_mistakes(tmp_path)
