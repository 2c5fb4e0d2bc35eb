"""Nave's Topical Bible -> World English Bible: lines of a topic as queries, verses as documents.

The editors chose which verses belong to a line, so the judgements are human. They are incomplete: a
fitting verse may not be listed. Both texts are in the public domain, in two Debian packages whose
files (SWORD modules: tables of offsets, blocks of zlib) are read here. A changed text must not be
called World English Bible.
"""

from __future__ import annotations

import json
import random
import re
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from intarsia.core.store import reading
from intarsia.data.packages import announce, obtain, pinned

NEW = (
    "Matt Mark Luke John Acts Rom 1Cor 2Cor Gal Eph Phil Col 1Thess 2Thess 1Tim 2Tim Titus Phlm "
    "Heb Jas 1Pet 2Pet 1John 2John 3John Jude Rev"
)
NEW_TESTAMENT = frozenset(NEW.split())
CHAPTERS = Path(__file__).with_name("nrsva.json")  # verses of each chapter, by testament and book
LAST = "Rev.22.21"  # which carries a glossary of the whole edition behind its last word
LEAST, MOST, WORDS = 3, 50, 3  # verses of a topic; words of its line
SHARES = {"test": 0.2, "val": 0.1}  # of headwords; the rest is for training
Topics = dict[str, dict[str, list[str]]]  # part -> line -> verses


def read_naves(report: Callable[[str], None] = announce) -> tuple[dict[str, str], Topics]:
    """The verses by id, as John.3.16, and of each part the topics with their verses.

    5,174 lines with 3 to 50 verses and at least 3 words; no headword is in two parts.
    Raises: AssetError where a package cannot be had.
    """
    bible = obtain(pinned("sword-text-web"), progress=report)
    nave = obtain(pinned("sword-dict-naves"), progress=report)
    verses, found = dict(_verses(bible)), dict[str, set[str]]()
    for head, text in _entries(nave):
        for line in text.split("<lb/>"):
            named = (v for r in re.findall(r'osisRef="([^"]+)"', line) for v in expanded(r))
            if own := {verse for verse in named if verse in verses}:
                found.setdefault(_line(head, line), set()).update(own)
    usable = {
        line: sorted(own)
        for line, own in found.items()
        if LEAST <= len(own) <= MOST and len(line.split()) >= WORDS
    }
    return verses, by_headword(usable)


def by_headword(topics: Mapping[str, list[str]]) -> Topics:
    """Topics in parts that share no headword: what stands before the colon."""
    heads = sorted({line.partition(":")[0] for line in topics})
    random.Random(0).shuffle(heads)
    part_of, first = dict[str, str](), 0
    for part, share in SHARES.items():
        last = first + int(share * len(heads))
        part_of |= dict.fromkeys(heads[first:last], part)
        first = last
    parts: Topics = {"train": {}, "val": {}, "test": {}}
    for line, verses in topics.items():
        parts[part_of.get(line.partition(":")[0], "train")][line] = verses
    return parts


def in_new_testament(verses: Mapping[str, str], parts: Topics) -> tuple[dict[str, str], Topics]:
    """The New Testament alone: 7,950 verses, and the topics with two of them or more."""
    kept = {verse: text for verse, text in verses.items() if verse.split(".")[0] in NEW_TESTAMENT}
    of_part: Topics = {}
    for part, topics in parts.items():
        left = {line: [v for v in own if v in kept] for line, own in topics.items()}
        of_part[part] = {line: own for line, own in left.items() if len(own) >= 2}
    return kept, of_part


def expanded(reference: str) -> list[str]:
    """A reference as its verses: Gen.1.1-Gen.1.3 is three; a whole chapter is none."""
    first, _, last = reference.partition("-")
    low, high = first.split("."), last.split(".")
    if not last:
        return [first] if len(low) == 3 else []
    if not (len(low) == len(high) == 3 and low[:2] == high[:2]):
        return []
    return [f"{low[0]}.{low[1]}.{verse}" for verse in range(int(low[2]), int(high[2]) + 1)]


def _line(head: str, text: str) -> str:
    """A topic in words: "Forgiveness: of enemies"."""
    text = re.sub(r"<ref osisRef[^>]*>.*?</ref>|<[^>]+>|[→\x00]|\d+\.", " ", text)
    words = " ".join(re.sub(r"[;,()\[\]:]", " ", text).split())
    return f"{head.title()}: {words.lower()}".strip(": ")


def _entries(folder: Path) -> Iterator[tuple[str, str]]:
    """Headwords and their text in TEI.

    .idx (offset, size) -> .dat (headword, block, place) -> .zdx (offset, size) -> .zdt, zlib.
    """
    stem = folder / "usr/share/sword/modules/lexdict/zld/nave/nave"
    with reading(stem.with_suffix(".idx")):
        idx, dat, zdx, zdt = (
            stem.with_suffix(end).read_bytes() for end in (".idx", ".dat", ".zdx", ".zdt")
        )
        blocks: dict[int, bytes] = {}
        for offset, size in struct.iter_unpack("<II", idx):
            head, _, rest = dat[offset : offset + size].partition(b"\r\n")
            block, place = struct.unpack("<II", rest[:8])
            if block not in blocks:
                start, length = struct.unpack_from("<II", zdx, 8 * block)
                blocks[block] = zlib.decompress(zdt[start : start + length])
            start, length = struct.unpack_from("<II", blocks[block], 4 + 8 * place)
            text = blocks[block][start : start + length]
            yield head.decode(), text.decode("utf-8", "replace")


def _verses(folder: Path) -> Iterator[tuple[str, str]]:
    """Verses that have a text, by their id.

    .bzv (block, offset, size; one for each verse) -> .bzs (offset, size, plain size) -> .bzz, zlib.
    """
    chapters = json.loads(CHAPTERS.read_text(encoding="utf-8"))
    for testament, books in chapters.items():
        stem = folder / "usr/share/sword/modules/texts/ztext/engWEB2015eb" / testament
        with reading(stem.with_suffix(".bzv")):
            table = list(struct.iter_unpack("<IIH", stem.with_suffix(".bzv").read_bytes()))
            sizes = list(struct.iter_unpack("<III", stem.with_suffix(".bzs").read_bytes()))
            packed = stem.with_suffix(".bzz").read_bytes()
            blocks: dict[int, bytes] = {}
            for name, at in _places(books):
                block, offset, size = table[at]
                if block not in blocks:
                    start, length, _ = sizes[block]
                    blocks[block] = zlib.decompress(packed[start : start + length])
                if text := _plain(blocks[block][offset : offset + size].decode("utf-8", "replace")):
                    yield name, _without_glossary(text) if name == LAST else text


def _places(books: Mapping[str, list[int]]) -> Iterator[tuple[str, int]]:
    """The number of each verse's entry; the testament, each book and each chapter have one too."""
    at = 1
    for book, chapters in books.items():
        at += 1
        for chapter, verses in enumerate(chapters, 1):
            at += 1
            for verse in range(1, verses + 1):
                at += 1
                yield f"{book}.{chapter}.{verse}", at


def _without_glossary(text: str) -> str:
    verse, amen, _ = text.partition("Amen.")
    return verse + amen


def _plain(text: str) -> str:
    text = re.sub(r"<note.*?</note>|<title.*?</title>", " ", text, flags=re.S)
    words = " ".join(re.sub(r"<[^>]+>", " ", text).split())
    words = re.sub(r"(?<=[“‘(]) | (?=[,.;:!?)”]|’[,.;:!?”])", "", words)
    return re.sub(r"’ (?=(?:t|s|ll|re|ve|d|m)\b)", "’", words)
