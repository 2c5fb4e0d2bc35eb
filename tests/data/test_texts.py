"""Text files and instruction files as rows of tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from intarsia.core.errors import AssetError, ConfigError, DataError
from intarsia.data.corpora import is_text
from intarsia.data.language_models import language_model
from intarsia.data.texts import IGNORED, grouped, load_texts, read_texts

from ..refusals import refused


class Bytes:
    """A tokenizer whose tokens are bytes; 0 ends a text."""

    eos_token_id = 0
    chat_template: str | None = None

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [min(ord(c), 255) for c in text]}


class Chat(Bytes):
    chat_template = "yes"

    def apply_chat_template(self, messages: Any, tokenize: bool, **rest: Any) -> str:
        assert not tokenize
        rendered = "".join(f"<{m['role']}>{m['content']}</>\n" for m in messages)
        return rendered + ("<assistant>" if rest.get("add_generation_prompt") else "")


def _jsonl(path: Path, rows: list[Any]) -> str:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return str(path)


def _text(ids: torch.Tensor) -> str:
    return "".join(map(chr, ids.tolist()))


def test_a_text_is_cut_in_order_and_its_end_is_the_test_part(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("".join(chr(97 + i % 26) for i in range(200)))
    data = load_texts(str(file), Bytes(), length=10, seed=0)
    parts = (data.train, data.val, data.test)
    assert [len(p) for p in parts if p is not None] == [16, 2, 2]
    joined = "".join(_text(row["input_ids"]) for p in parts if p is not None for row in p)
    assert joined == file.read_text()
    assert data.record["parts"]["train"]["tokens"] == 16 * 9
    assert len(load_texts(str(file), Bytes(), length=10, seed=0, train=3, val=0).train) == 3
    half = load_texts(str(file), Bytes(), length=10, seed=0, train=0.5, val=1, test=1)
    assert len(half.train) == 9
    assert half.record["parts"]["test"]["sha256"] != data.record["parts"]["test"]["sha256"]


def test_read_texts_gives_one_part_even_for_short_texts(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    for count, sizes in {5: [5], 10: [10], 25: [10, 10, 5], 31: [10, 10, 10]}.items():
        file.write_text("a" * count)
        texts = read_texts(str(file), Bytes(), length=10)
        assert [len(row["input_ids"]) for row in texts] == sizes
    assert texts.name == "a/all"
    rows = [{"prompt": "two?", "response": "2"}, {"prompt": "a" * 40, "response": "b"}]
    lines: list[str] = []
    instructions = _jsonl(tmp_path / "b.jsonl", rows)
    assert len(read_texts(instructions, Bytes(), length=32, progress=lines.append)) == 1
    assert "1 rows left out" in lines[0]
    file.write_text("a")
    with refused(DataError, got="no row of two tokens whose answer fits into 10"):
        read_texts(str(file), Bytes(), length=10)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "two?", "response": "2"},
        {"instruction": "two?", "output": "2", "input": ""},
        {"question": "two?", "answer": "2"},
        {
            "messages": [
                {"role": "user", "content": "two?"},
                {"role": "assistant", "content": "2"},
            ]
        },
    ],
)
def test_only_answers_have_labels(tmp_path: Path, row: dict[str, Any]) -> None:
    rows = [row | {"id": i} for i in range(3)] + [{"text": f"free {i}"} for i in range(9)]
    data = load_texts(_jsonl(tmp_path / "a.jsonl", rows), Bytes(), length=32, seed=1)
    all_rows = [r for p in (data.train, data.val, data.test) if p is not None for r in p]
    matching = [r for r in all_rows if _text(r["input_ids"]).startswith("two?")]
    assert len(matching) == 3
    for r in matching:
        assert _text(r["input_ids"]) == "two?\n2\x00"
        assert r["labels"].tolist() == [IGNORED] * 5 + [ord("2"), 0]
    free = [r for r in all_rows if _text(r["input_ids"]).startswith("free")]
    assert all(torch.equal(r["labels"], r["input_ids"]) for r in free)


def test_a_chat_template_is_used_where_the_tokenizer_has_one(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{i}", "input": "more", "response": f"a{i}"} for i in range(5)]
    data = load_texts(_jsonl(tmp_path / "a.jsonl", rows), Chat(), length=64, seed=0)
    row = data.train[0]
    text, labelled = _text(row["input_ids"]), row["labels"] != IGNORED
    assert text.startswith("<user>q") and text.endswith("</>")
    assert _text(row["input_ids"][labelled]) == f"a{text[7]}</>"


@given(st.lists(st.integers(0, 6), min_size=4, max_size=40), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_rows_with_one_prompt_stay_in_one_part(groups: list[int], seed: int) -> None:
    parts = grouped([str(g) for g in groups], 1, 1, seed)
    part_of_row = [p for p, rows in parts.items() for _ in rows]
    flat = [i for rows in parts.values() for i in rows]
    assert sorted(flat) == list(range(len(groups)))
    parts_of_prompt = dict[int, set[str]]()
    for i, part in zip(flat, part_of_row, strict=True):
        parts_of_prompt.setdefault(groups[i], set()).add(part)
    assert all(len(prompt_parts) == 1 for prompt_parts in parts_of_prompt.values())
    assert parts == grouped([str(g) for g in groups], 1, 1, seed)


def test_rows_whose_answer_does_not_fit_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [{"prompt": "p" * (3 + 30 * (i == 0)), "response": "r" * 9} for i in range(20)]
    for i, row in enumerate(rows):
        row["prompt"] += str(i)
    lines: list[str] = []
    data = load_texts(
        _jsonl(tmp_path / "a.jsonl", rows), Bytes(), length=10, seed=0, progress=lines.append
    )
    assert data.record["skipped"] == 1 and "1 rows left out" in lines[0]
    assert data.record["cut"] == 19 and "19 answers cut off" in lines[1]
    assert all(len(r["input_ids"]) == 10 for r in data.train)


@pytest.mark.parametrize(
    ("name", "content", "want"),
    [
        ("a.jsonl", '{"prompt": "a"}', "text, messages, or prompt and response"),
        ("a.jsonl", '{"text": "a"}\n[1]', "one JSON object"),
        ("a.jsonl", "{oops", "one JSON object"),
        ("a.jsonl", "\n\n", "at least one"),
        ("a.jsonl", '{"messages": [{"role": "user"}]}', "role and content in each"),
        (
            "a.jsonl",
            '{"messages": [{"role": "user", "content": "a"}]}',
            "an answer of the assistant at the end",
        ),
        ("a.txt", "short", "at least 24 (three blocks)"),
        ("a.txt", b"\xff\xfe\x00", "a UTF-8 text file"),
        ("none.txt", None, "a UTF-8 text file"),
    ],
)
def test_unreadable_files_are_refused_with_a_reason(
    tmp_path: Path, name: str, content: str | bytes | None, want: str
) -> None:
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        path.write_text(content)
    with refused(DataError, want=want):
        load_texts(str(path), Bytes(), length=8, seed=0)


def test_impossible_numbers_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("x" * 80)
    for wrong in ({"train": 99}, {"val": 9}, {"test": 0}, {"length": 1}, {"val": -1}):
        settings: dict[str, Any] = {"length": 8, "seed": 0, **wrong}
        with pytest.raises(ConfigError):
            load_texts(str(file), Bytes(), **settings)
    long = [{"prompt": "p" * 50, "response": "r"} for _ in range(5)]
    with refused(DataError, got="no row whose answer fits into 8 tokens"):
        load_texts(_jsonl(tmp_path / "b.jsonl", long), Bytes(), length=8, seed=0)


def test_text_names_are_recognised_and_a_missing_model_is_refused(tmp_path: Path) -> None:
    assert is_text("notes.txt") and is_text("wordnet") and is_text("a/b.jsonl")
    assert not is_text("elpv") and not is_text("photos/")
    with refused(AssetError, got="an empty folder"):
        language_model(str(tmp_path))


def test_python_docs_are_always_available() -> None:
    data = load_texts("python-docs", Bytes(), length=512, seed=0, train=2, val=1, test=1)
    assert len(data.train) == 2 and data.record["spec"] == "python-docs"


def test_json_lines_may_contain_other_line_ends(tmp_path: Path) -> None:
    rows = [{"prompt": f"a\u2028b{i}", "response": "c\u0085d"} for i in range(6)]
    file = tmp_path / "rows.jsonl"
    file.write_text("\r\n".join(json.dumps(r, ensure_ascii=False) for r in rows), encoding="utf-8")
    data = load_texts(str(file), Bytes(), length=64, seed=0)
    assert len(data.train) + len(data.test) + len(data.val or ()) == 6
