"""Label files: good ones round-trip; errors in bad ones have line numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from intarsia.core.errors import DataError
from intarsia_lab.materials.suites.lists import leaves, read_json, read_lines

from ...refusals import refused

PATHS = st.from_regex(r"[a-z0-9_]{1,6}( [a-z]{1,3})?(/[a-z]{1,4}){0,2}\.png", fullmatch=True)
ROWS = st.dictionaries(PATHS, st.integers(0, 9), min_size=1, max_size=8)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lists")


@given(rows=ROWS, end=st.sampled_from(["\n", "\r\n"]), gap=st.sampled_from([" ", "\t", "  "]))
def test_lines_round_trip(scratch: Path, rows: dict[str, int], end: str, gap: str) -> None:
    file = scratch / "list.txt"
    text = end.join(f"{path}{gap}{label}" for path, label in rows.items())
    file.write_bytes(("\ufeff" + end + text + end + end).encode())
    assert read_lines(file, ids=range(10)) == list(rows.items())


@given(rows=ROWS, digits=st.booleans())
def test_json_round_trips(scratch: Path, rows: dict[str, int], digits: bool) -> None:
    file = scratch / "list.json"
    file.write_text(json.dumps({k: f"{v:03}" if digits else v for k, v in rows.items()}))
    assert read_json(file) == list(rows.items())


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (["a.png 0", "b.png"], r"1 bad of 2:\s+line 2 'b.png': no whole number as label"),
        (["a.png x"], "line 1 'a.png x': no whole number"),
        (["a.png -1"], "line 1 .*no whole number"),
        (["a.png 1.5"], "line 1 .*no whole number"),
        (["", "a.png 7"], "line 2 .*label 7 is not one of the classes 0 to 4"),
        (["a.png 0", "b.png 1", "a.png 0"], "line 3 .*the path of line 1 again"),
        (["a.png 0", "a.png 1"], "line 2 .*the path of line 1 again"),
        (["a.png 0", "./b/../a.png 1"], "line 2 .*the path of line 1 again"),
        (["../a.png 0"], "line 1 .*leaves the folder"),
        (["x/../../a.png 0"], "line 1 .*leaves the folder"),
        (["/etc/passwd 0"], "line 1 .*leaves the folder"),
        ([], "got no line"),
        (["", "  "], "got no line"),
    ],
    ids=str,
)
def test_bad_lines(tmp_path: Path, lines: list[str], says: str) -> None:
    file = tmp_path / "list.txt"
    file.write_text("\n".join(lines))
    with pytest.raises(DataError, match=f"(?s)list.txt: .*{says}.*Take the file"):
        read_lines(file, ids=range(5))


def test_the_first_ten_bad_lines_are_listed(tmp_path: Path) -> None:
    file = tmp_path / "list.txt"
    file.write_text("good.png 1\n" + "bad\n" * 12)
    with pytest.raises(DataError, match="(?s)12 bad of 13.*line 11 .*and 2 more") as error:
        read_lines(file, ids=range(5))
    assert "line 12" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"a.jpg": 1, "b.jpg": "one"}', "entry 2 .*no whole number"),
        ('{"a.jpg": 1, "b.jpg": null, "c.jpg": true, "d.jpg": 1.0}', "3 bad of 4"),
        ('{"a.jpg": {"b.jpg": 1}}', "entry 1 .*no whole number"),
        ('{"a.jpg": 1, "a.jpg": 2}', "entry 2 .*the path of entry 1 again"),
        ('{"../a.jpg": 1}', "leaves the folder"),
        ('{"a.jpg": 9}', "label 9 is not one of the classes"),
        ("{}", "no entry"),
        ("[1, 2]", "a JSON list"),
        ('{"a.jpg": 1', "Expecting"),
    ],
)
def test_bad_json(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "train.json"
    file.write_text(text)
    with pytest.raises(DataError, match=f"(?s)train.json: .*{says}"):
        read_json(file, ids=[1, 2])


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with refused(DataError, got="nothing there"):
        read_lines(tmp_path / "gone.txt")
    (tmp_path / "bytes.txt").write_bytes(b"a.png 1\n\xff\xfe")
    with pytest.raises(DataError, match="UnicodeDecodeError"):
        read_lines(tmp_path / "bytes.txt")


@pytest.mark.parametrize(("path", "out"), [("a/../b", False), ("..b/c", False), ("a/../..", True)])
def test_a_path_leaves_the_folder_by_where_it_ends(path: str, out: bool) -> None:
    assert leaves(path) is out
