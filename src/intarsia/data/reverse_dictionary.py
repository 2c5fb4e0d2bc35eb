"""A reverse dictionary: glosses of WordNet as queries, entries of GCIDE as documents.

Two independent dictionaries; the entry of the gloss's own noun is right. These judgements were made
by a rule, one a query; other entries may answer as well.
"""

from __future__ import annotations

import gzip
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from intarsia.core.store import reading
from intarsia.data.packages import announce, obtain, pinned

DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
PLACE = {letter: value for value, letter in enumerate(DIGITS)}
PARTS = {"test": 2000, "val": 1000, "train": 10_000}  # queries
WORDS, LETTERS = 12, 1500  # least of an entry; most of one
Topics = dict[str, dict[str, list[str]]]  # part -> gloss -> the one headword


def read_reverse_dictionary(
    report: Callable[[str], None] = announce,
) -> tuple[dict[str, str], Topics]:
    """Read 106,562 dictionary entries by headword, and glosses of nouns as queries for each part.

    A query's answer is the entry of its noun.
    Raises: AssetError where a package cannot be had.
    """
    entries = _read_entries(obtain(pinned("dict-gcide"), progress=report))
    documents = {w: t for w, t in entries.items() if w.isalpha() and len(t.split()) >= WORDS}
    pairs, nouns_used = list[tuple[str, str]](), set[str]()
    for noun, gloss in _read_nouns(obtain(pinned("wordnet-base"), progress=report)):
        # A gloss that contains its noun would be an easy query.
        names_answer = re.search(rf"\b{re.escape(noun)}", gloss.split(";")[0])
        # Each headword is asked for once, and has an entry to be found.
        if noun in documents and noun not in nouns_used and not names_answer:
            pairs.append((noun, gloss.split('; "')[0]))
            nouns_used.add(noun)
    random.Random(0).shuffle(pairs)
    parts: Topics = {}
    # Test and validation parts are taken first, so that more training data changes neither.
    for part, count in PARTS.items():
        parts[part] = {gloss: [noun] for noun, gloss in pairs[:count]}
        pairs = pairs[count:]
    heading = re.compile(r"^.*?\\|\[[^\]]*Webster[^\]]*\]")  # the headword and the edition
    return {w: " ".join(heading.sub(" ", t)[:LETTERS].split()) for w, t in documents.items()}, parts


def number(digits: str) -> int:
    """Decode a number of a dictd index: its digits are base 64, the largest first."""
    value = 0
    for letter in digits:
        value = value * 64 + PLACE[letter]
    return value


def _read_entries(folder: Path) -> dict[str, str]:
    """Read the dictionary GCIDE: the definitions of each headword in lower case, joined."""
    base, definitions = folder / "usr/share/dictd", dict[str, str]()
    with reading(base / "gcide.index"):
        raw = gzip.decompress((base / "gcide.dict.dz").read_bytes())
        index = (base / "gcide.index").read_text(encoding="utf-8", errors="replace")
        # offset and size are digits to base 64; headwords with "00-" are about the database itself
        for line in index.splitlines():
            word, offset, size = line.split("\t")[:3]
            if not word.startswith("00-"):
                first = number(offset)
                text = raw[first : first + number(size)].decode("utf-8", "replace")
                definitions[word.lower()] = f"{definitions.get(word.lower(), '')} {text}".strip()
    return definitions


def _read_nouns(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield the first noun of each WordNet entry, and the entry's gloss."""
    file = folder / "usr/share/wordnet/data.noun"
    with reading(file):
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            if not line.startswith("  "):  # the licence
                fields, _, gloss = line.partition(" | ")
                yield fields.split()[4].split("(")[0].replace("_", " ").lower(), gloss.strip()
