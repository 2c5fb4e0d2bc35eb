"""Collections are read line by line, and a bad line is named."""

from __future__ import annotations

import json
import struct
import sys
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from intarsia.core.errors import DataError, MissingExtra, UnknownName
from intarsia.data import naves, reverse_dictionary
from intarsia.data.collections import (
    Collection,
    load_collection,
    read_docs,
    read_queries,
    write_collection,
)

from ..refusals import refused


def _file(folder: Path, *rows: object) -> Path:
    path = folder / "docs.jsonl"
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows) + "\n")
    return path


def test_a_collection_of_beir_is_known_by_the_names_of_beir_and_mteb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Hub is a stand-in that records which repository and revision are asked for."""
    calls: list[tuple[Any, ...]] = []

    def load_dataset(path: str, name: str, split: str | None = None, *, revision: str) -> Any:
        calls.append((path, name, revision))
        return {
            "corpus": [
                {"_id": "d1", "title": "T", "text": "x"},
                {"_id": 2, "title": "", "text": "y"},
            ],
            "queries": [{"_id": "q1", "text": "a"}, {"_id": "q2", "text": "b"}],
            "default": {"test": [{"query-id": "q1", "corpus-id": 2, "score": 1.0}]},
        }[name]

    hub = SimpleNamespace(load_dataset=load_dataset)
    monkeypatch.setitem(sys.modules, "datasets", hub)
    monkeypatch.chdir(tmp_path)
    for name in ("scifact", "SciFact"):
        collection = load_collection(name)
        assert collection.docs == {"d1": "T x", "2": "y"} and collection.queries == {"q1": "a"}
        assert collection.qrels == {"q1": {"2": 1}}
    assert {path for path, _, _ in calls} == {"mteb/scifact"}
    assert len({revision for _, _, revision in calls}) == 1
    assert load_collection("FiQA2018", "val").qrels == {}  # a part that it does not have
    # a folder of that name goes first
    write_collection({"test": Collection({"own": "z"})}, tmp_path / "scifact")
    assert load_collection("scifact").docs == {"own": "z"}

    def away(*_: Any, **__: Any) -> Any:
        raise ConnectionError("no network")

    monkeypatch.setattr(hub, "load_dataset", away)
    with refused(DataError, what="collection 'nfcorpus'"):
        load_collection("nfcorpus")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with refused(MissingExtra):
        load_collection("nfcorpus")
    with refused(UnknownName, near=("scifact",)):
        load_collection("scifakt")


def test_documents_are_read_with_their_ids(tmp_path: Path) -> None:
    path = _file(tmp_path, {"id": "a", "text": "x"}, "", {"_id": 7, "title": "T", "text": "y"},
                 {"id": "e", "text": ""})  # fmt: skip
    assert dict(read_docs(path)) == {"a": "x", "7": "T y", "e": ""}
    assert load_collection(str(path)).docs["a"] == "x"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "line 2"),
        ("[1]", "line 2.*list"),
        ({"text": "x"}, "line 2.*keys"),
        ({"id": True, "text": "x"}, "line 2"),
        ({"id": "b", "text": 3}, "line 2"),
        ({"id": "a", "text": "y"}, "line 2.*'a' of line 1"),
    ],
    ids=["json", "list", "id", "bool", "text", "twice"],
)
def test_a_bad_line_is_named(tmp_path: Path, row: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        dict(read_docs(_file(tmp_path, {"id": "a", "text": "x"}, row)))


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "docs.jsonl").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "docs.jsonl", tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(DataError, match="UTF-8"):
            dict(read_docs(path))
    with refused(UnknownName, what="unknown collection", got="'navez'"):
        load_collection("navez")
    with refused(UnknownName, what="unknown part", got="'dev'"):
        load_collection("naves", "dev")


def test_a_collection_that_is_written_is_read(tmp_path: Path) -> None:
    docs = {"d1": "one", "d2": "two"}
    test = Collection(docs, {"q": "which?"}, {"q": {"d1": 2, "d2": 0}})
    train = Collection(docs, {"q": "what?"}, {"q": {"d2": 1}})
    folder = write_collection({"test": test, "train": train}, tmp_path / "c")
    again = load_collection(str(folder), "test")
    assert again == test and again.judged == {"q": "which?"}
    learned = load_collection(str(folder), "train")
    assert list(learned.queries.values()) == ["what?"] and learned.docs == docs
    assert load_collection(str(folder), "val").queries == {}
    with (folder / "qrels" / "test.tsv").open("a") as out:
        out.write("q\td1\n")
    with refused(DataError, got="IndexError: list index out of range"):
        load_collection(str(folder), "test")


def test_judgements_of_strangers_are_refused() -> None:
    with refused(DataError, what="judgement of query 'p'"):
        Collection({"d": ""}, {}, {"p": {"d": 1}})
    with refused(DataError, what="judgement of document 'e'"):
        Collection({"d": ""}, {"p": ""}, {"p": {"e": 1}})


def test_queries_stand_one_a_line(tmp_path: Path) -> None:
    (tmp_path / "q.txt").write_text("first\n\nthird \n")
    assert read_queries(tmp_path / "q.txt") == {"q1": "first", "q3": "third"}


def test_references_are_verses_and_headwords_stay_together() -> None:
    assert naves.expanded("Gen.1.1-Gen.1.3") == ["Gen.1.1", "Gen.1.2", "Gen.1.3"]
    assert naves.expanded("Gen.1.1") == ["Gen.1.1"]
    assert naves.expanded("Gen.1") == [] == naves.expanded("Gen.1.1-Exod.2.3")
    topics = {f"H{i}: line {j}": ["v"] for i in range(20) for j in range(3)}
    parts = naves.by_headword(topics)
    heads = {
        part: {line.split(":")[0] for line in topics_of_part}
        for part, topics_of_part in parts.items()
    }
    assert sum(map(len, heads.values())) == 20 and set.union(*heads.values()) == {
        f"H{i}" for i in range(20)
    }
    assert len(heads["test"]) == 4 and len(heads["val"]) == 2


def test_verses_are_read_out_of_their_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chapters = tmp_path / "c.json"
    chapters.write_text(json.dumps({"nt": {"Jude": [2]}}))
    monkeypatch.setattr(naves, "CHAPTERS", chapters)
    stem = tmp_path / "usr/share/sword/modules/texts/ztext/engWEB2015eb/nt"
    stem.parent.mkdir(parents=True)
    raw = b"<w>First</w> , verse.<note>no</note>Second."
    packed = zlib.compress(raw)
    stem.with_suffix(".bzz").write_bytes(packed)
    stem.with_suffix(".bzs").write_bytes(struct.pack("<III", 0, len(packed), len(raw)))
    first = raw.index(b"Second")
    places = [(0, 0, 0)] * 4 + [(0, 0, first), (0, first, len(raw) - first)]
    stem.with_suffix(".bzv").write_bytes(b"".join(struct.pack("<IIH", *p) for p in places))
    assert dict(naves._read_verses(tmp_path)) == {
        "Jude.1.1": "First, verse.",
        "Jude.1.2": "Second.",
    }


def test_numbers_of_dictd_are_of_base_64() -> None:
    assert [reverse_dictionary.number(n) for n in ("A", "B", "BA", "/")] == [0, 1, 64, 63]
