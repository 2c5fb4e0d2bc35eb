"""Nave's Topical Bible -> World English Bible: lines of a topic as queries, verses as documents.

The editors chose which verses belong to a line, so the judgements are human. They are incomplete: a
fitting verse may not be listed. Both texts are in the public domain, in two Debian packages; their
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
    """Read Nave's Topical Bible: verses by id, as John.3.16, and for each part topics with verses.

    5,174 topics with 3 to 50 verses and at least 3 words; no headword is in two parts.
    Raises: AssetError where a package cannot be had.
    """
    bible = obtain(pinned("sword-text-web"), progress=report)
    nave = obtain(pinned("sword-dict-naves"), progress=report)
    # lines that differ in tags only are one topic
    verses, verses_of_line = dict(_read_verses(bible)), dict[str, set[str]]()
    for head, text in _read_entries(nave):
        for line in text.split("<lb/>"):
            # References are tags; they are dropped for books that the edition lacks.
            named = (v for r in re.findall(r'osisRef="([^"]+)"', line) for v in expanded(r))
            if line_verses := {verse for verse in named if verse in verses}:
                verses_of_line.setdefault(_topic_line(head, line), set()).update(line_verses)
    # Topics with very few or very many verses, or one-word lines, make poor queries.
    usable = {
        line: sorted(line_verses)
        for line, line_verses in verses_of_line.items()
        if LEAST <= len(line_verses) <= MOST and len(line.split()) >= WORDS
    }
    return verses, by_headword(usable)


def by_headword(topics: Mapping[str, list[str]]) -> Topics:
    """Split topics at random into train, val and test parts that share no headword.

    topics: line -> verses; a headword is the text before the line's colon.
    """
    heads = sorted({line.partition(":")[0] for line in topics})
    # The split never changes: results on the test part stay comparable.
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
    """Return only the New Testament: 7,950 verses, and the topics with at least two of them.

    verses: id -> text; parts: part -> topic -> ids of verses.
    """
    new_testament = {
        verse: text for verse, text in verses.items() if verse.split(".")[0] in NEW_TESTAMENT
    }
    parts_left: Topics = {}
    for part, topics in parts.items():
        topics_left = {
            line: [v for v in line_verses if v in new_testament]
            for line, line_verses in topics.items()
        }
        parts_left[part] = {
            line: line_verses for line, line_verses in topics_left.items() if len(line_verses) >= 2
        }
    return new_testament, parts_left


def expanded(reference: str) -> list[str]:
    """Return the ids of the verses in a reference: Gen.1.1-Gen.1.3 has three, a chapter none."""
    first, _, last = reference.partition("-")
    low, high = first.split("."), last.split(".")
    if not last:
        return [first] if len(low) == 3 else []
    if not (len(low) == len(high) == 3 and low[:2] == high[:2]):
        return []
    return [f"{low[0]}.{low[1]}.{verse}" for verse in range(int(low[2]), int(high[2]) + 1)]


def _topic_line(head: str, text: str) -> str:
    """Return a topic as a line of words, such as "Forgiveness: of enemies"."""
    # References, tags, arrows and numbers of the outline are no words of the topic.
    text = re.sub(r"<ref osisRef[^>]*>.*?</ref>|<[^>]+>|[→\x00]|\d+\.", " ", text)
    words = " ".join(re.sub(r"[;,()\[\]:]", " ", text).split())
    return f"{head.title()}: {words.lower()}".strip(": ")


def _read_entries(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield (headword, text in TEI) of each entry of a dictionary in the SWORD format."""
    stem = folder / "usr/share/sword/modules/lexdict/zld/nave/nave"
    with reading(stem.with_suffix(".idx")):
        idx, dat, zdx, zdt = (
            stem.with_suffix(end).read_bytes() for end in (".idx", ".dat", ".zdx", ".zdt")
        )
        # .idx (offset, size) -> .dat (headword, block, place) -> .zdx (offset, size) -> .zdt, zlib
        blocks: dict[int, bytes] = {}
        for offset, size in struct.iter_unpack("<II", idx):
            headword, _, rest = dat[offset : offset + size].partition(b"\r\n")
            block, place = struct.unpack("<II", rest[:8])
            if block not in blocks:
                start, length = struct.unpack_from("<II", zdx, 8 * block)
                # A block holds many entries and is unpacked once.
                blocks[block] = zlib.decompress(zdt[start : start + length])
            start, length = struct.unpack_from("<II", blocks[block], 4 + 8 * place)
            text = blocks[block][start : start + length]
            yield headword.decode(), text.decode("utf-8", "replace")


def _read_verses(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield (id, text) of each verse that has a text, from a Bible in the SWORD format."""
    chapters = json.loads(CHAPTERS.read_text(encoding="utf-8"))
    for testament, books in chapters.items():
        stem = folder / "usr/share/sword/modules/texts/ztext/engWEB2015eb" / testament
        with reading(stem.with_suffix(".bzv")):
            table = list(struct.iter_unpack("<IIH", stem.with_suffix(".bzv").read_bytes()))
            sizes = list(struct.iter_unpack("<III", stem.with_suffix(".bzs").read_bytes()))
            packed = stem.with_suffix(".bzz").read_bytes()
            blocks: dict[int, bytes] = {}
            for name, entry in _entry_numbers(books):
                block, offset, size = table[entry]
                if block not in blocks:
                    start, length, _ = sizes[block]
                    blocks[block] = zlib.decompress(packed[start : start + length])
                if text := _plain_text(
                    blocks[block][offset : offset + size].decode("utf-8", "replace")
                ):
                    yield name, _without_glossary(text) if name == LAST else text


def _entry_numbers(books: Mapping[str, list[int]]) -> Iterator[tuple[str, int]]:
    """Yield (verse, number of its entry); testaments, books and chapters are entries, too."""
    entry = 1
    for book, chapters in books.items():
        entry += 1
        for chapter, verses in enumerate(chapters, 1):
            entry += 1
            for verse in range(1, verses + 1):
                entry += 1
                yield f"{book}.{chapter}.{verse}", entry


def _without_glossary(text: str) -> str:
    """Cut the text behind its "Amen."."""
    verse, amen, _ = text.partition("Amen.")
    return verse + amen


def _plain_text(text: str) -> str:
    """Remove notes, titles and tags from a verse, and blanks left before punctuation."""
    text = re.sub(r"<note.*?</note>|<title.*?</title>", " ", text, flags=re.S)
    words = " ".join(re.sub(r"<[^>]+>", " ", text).split())
    # Blanks before punctuation and after an opening quote.
    words = re.sub(r"(?<=[“‘(]) | (?=[,.;:!?)”]|’[,.;:!?”])", "", words)
    return re.sub(r"’ (?=(?:t|s|ll|re|ve|d|m)\b)", "’", words)
