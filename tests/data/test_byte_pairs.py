"""A byte-level BPE: any text round-trips, its bytes add up, its tokens have kinds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from intarsia.core.errors import DataError
from intarsia.data.corpora import r_strings
from intarsia_lab.materials.byte_pairs import KINDS, kind_of, trained

from ..refusals import refused

BPE = trained(["the cat and the hat, 12 of them\n" * 20], 280)


@given(st.text(max_size=40))
def test_any_text_round_trips_byte_by_byte(text: str) -> None:
    text = text.encode("utf-8", "ignore").decode()
    ids = BPE(text)["input_ids"]
    assert BPE.tokenizer.decode(ids) == text
    assert sum(BPE.sizes[i] for i in ids) == len(text.encode())


def test_kinds_of_tokens() -> None:
    assert len(BPE) == len(BPE.kinds) == len(BPE.sizes) <= 280
    wanted = {"\n": "space", "12": "number", ",": "mark", " The": "name", " the": "word"}
    assert {text: kind_of(text) for text in wanted} == wanted
    assert kind_of("ing") == "part" and kind_of("\ufffd") == "bytes"
    assert set(BPE.kinds) <= set(range(len(KINDS)))


def test_strings_of_r() -> None:
    def text(said: str) -> bytes:
        raw = said.encode()
        return b"\0\4\0\x09" + len(raw).to_bytes(4) + raw

    head = b"X\n" + bytes(12) + (5).to_bytes(4) + b"UTF-8" + b"\0\0\0\x10"
    raw = head + (3).to_bytes(4) + text("EMMA") + text("") + text("é")
    assert r_strings(raw) == ["EMMA", "", "é"]
    with refused(DataError, what="R object"):
        r_strings(b"RDX3\n" + raw)
