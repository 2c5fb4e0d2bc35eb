"""A folder of another kind is named in words, before anything in it is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from intarsia.areas.codec.prior import ABOUT
from intarsia.areas.search.index_folder import INDEX as META
from intarsia.core.errors import CheckpointError
from intarsia.core.folders import BLEND, MARKS, check_kind, data_name, describe_folder
from intarsia.folders.opened import CONFIG, SETTINGS
from intarsia.models.saved import CARD
from intarsia.offloading.store import INDEX
from intarsia.runs.choosing.auto import REQUEST
from intarsia.runs.experiment import FILE
from intarsia.runs.seeing import FILE as SEEING


def test_the_marks_are_the_files_that_the_writers_write() -> None:
    adapter = "adapter_config.json"  # PEFT's
    writers = {FILE, SEEING, INDEX, CARD, ABOUT, META, adapter, SETTINGS, CONFIG}
    rows = {"labelled.json", "classifier.json", "labelled-auto.json", REQUEST}
    assert {*MARKS} == writers | rows | {BLEND}


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ((), "an empty folder"),
        (("a/",), "a folder of folders"),
        (("a.png", "b.png", "c.txt"), "a folder with 2 .png files"),
        (("a.png",), "a folder with 1 .png file"),
        ((CONFIG, FILE, "x.png"), MARKS[FILE]),
        ((CONFIG, SETTINGS), MARKS[SETTINGS]),
    ],
)
def test_a_folder_is_described_by_what_is_in_it(
    files: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    for name in files:
        (tmp_path / name).mkdir() if name.endswith("/") else (tmp_path / name).touch()
    assert describe_folder(tmp_path) == words


def test_what_is_no_folder_is_described_too(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert describe_folder(tmp_path / "file") == "a file"
    assert describe_folder(tmp_path / "none") == "no such folder"


def test_a_folder_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / CONFIG).touch()
    check_kind(tmp_path, CONFIG, what="model", want="a model", fix="")
    with pytest.raises(CheckpointError) as caught:
        check_kind(tmp_path, META, what="index", want="an index", fix="")
    assert (caught.value.got, caught.value.want) == (MARKS[CONFIG], "an index")


def test_data_name_a_run_without_the_suffix_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "answers.jsonl").touch()
    (tmp_path / "photos.v2").mkdir()
    assert data_name(tmp_path / "answers.jsonl") == "answers"
    assert data_name(tmp_path / "photos.v2") == "photos.v2"
    assert data_name("mini/elpv") == "elpv"
