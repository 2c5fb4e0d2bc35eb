"""Corpora by name: Python's documentation, a dictionary, novels, WordNet's glosses as questions."""

from __future__ import annotations

import gzip
import platform
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from intarsia.core.errors import DataError
from intarsia.data.packages import Package, obtain

GCIDE = Package(
    "debian",
    "dict-gcide",
    "0.48.5+nmu4",
    sha256="7d6c11be209ca67fb4425b1e4d600e9dc9c5c67d919482e51b99b0cca179601b",
    megabytes=15,
    licence="GPL",
)
AUSTEN = Package(
    "debian",
    "r-cran-janeaustenr",
    "1.0.0-1",
    sha256="df6bddf211906d1ff404f8ff662c21b34e6660e7f54a311084e749050c019c95",
    megabytes=2,
    licence="MIT; the novels are in the public domain",
)
WORDNET = Package(
    "debian",
    "wordnet-base",
    "1:3.0-39",
    sha256="f4f96d4d5d19061916c66cbb889a0119e6a46f9655051f5fd42b7317e46ce4db",
    megabytes=6,
    licence="WordNet",
)
# the lexicographer files of WordNet 3.0 for nouns, by their numbers
NOUNS = (
    "top", "act", "animal", "artifact", "attribute", "body", "cognition", "communication", "event",
    "feeling", "food", "group", "location", "motive", "object", "person", "phenomenon", "plant",
    "possession", "process", "quantity", "relation", "shape", "state", "substance", "time",
)  # fmt: skip
FIRST_NOUN = 3
Report = Callable[[str], None]


@dataclass(frozen=True)
class Corpus:
    """How a corpus is read: to one text, or to rows as a .jsonl file has them.

    edition: what its text depends on beside its name; packages are the same everywhere.
    """

    read: Callable[[Report], str | list[dict[str, str]]]
    about: str
    edition: str = ""


def names() -> tuple[str, ...]:
    """The corpora that `read` knows."""
    return tuple(CORPORA)


def read(name: str, progress: Report) -> Any:
    """The corpus of that name, obtained the first time."""
    return CORPORA[name].read(progress)


def _python_docs(_: Report) -> str:
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise DataError(
            "corpus 'python-docs'", got="a Python without pydoc_data", want="it",
            fix="Install the complete standard library, or choose gcide.",
        ) from error  # fmt: skip
    return "\n\n".join(topics[name] for name in sorted(topics))


def _gcide(progress: Report) -> str:
    folder = obtain(GCIDE, progress=progress)
    with gzip.open(folder / "usr/share/dictd/gcide.dict.dz") as lines:
        return lines.read().decode("utf-8", "replace")


def _austen(progress: Report) -> str:
    """The six novels, one after another."""
    site = obtain(AUSTEN, progress=progress) / "usr/lib/R/site-library/janeaustenr"
    rest, novels = (site / "data/Rdata.rdb").read_bytes(), list[str]()
    while rest:  # each object: its size (4 bytes), then a zlib stream
        stream = zlib.decompressobj()
        novels.append("\n".join(r_strings(stream.decompress(rest[4:]))))
        rest = stream.unused_data
    return "\n\n".join(novels)


def r_strings(raw: bytes) -> list[str]:
    """A vector of strings as R serialises it (XDR, version 3, UTF-8).

    Raises: DataError for anything else.
    """
    head = 14 + 4 + len(b"UTF-8")  # "X\n", three versions; the length of the encoding's name, it
    kind, count = raw[head : head + 4], int.from_bytes(raw[head + 4 : head + 8])
    if raw[:2] != b"X\n" or raw[head - 5 : head] != b"UTF-8" or kind != b"\0\0\0\x10":
        raise DataError(
            "R object", got=f"one that begins with {raw[:head].hex()}", want="a vector of strings",
            fix="Obtain the package again.",
        )  # fmt: skip
    at, found = head + 8, list[str]()
    for _ in range(count):  # flags, length, bytes
        size = int.from_bytes(raw[at + 4 : at + 8])
        found.append(raw[at + 8 : at + 8 + size].decode())
        at += 8 + size
    return found


def _wordnet(progress: Report) -> list[dict[str, str]]:
    """A noun's gloss, without its examples, and the kind of thing it is: 26 answers."""
    file = obtain(WORDNET, progress=progress) / "usr/share/wordnet/data.noun"
    rows: list[dict[str, str]] = []
    for line in Path(file).read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith("  "):  # the licence
            continue
        fields, _, gloss = line.partition(" | ")
        prompt = f"What kind of thing is this? {gloss.split('; ')[0].strip()}"
        kind = NOUNS[int(fields.split()[1]) - FIRST_NOUN]
        rows.append({"prompt": prompt, "response": kind})
    return rows


CORPORA: dict[str, Corpus] = {
    "python-docs": Corpus(
        _python_docs, "the topics of Python's help(), 0.5 M characters", platform.python_version()
    ),
    "gcide": Corpus(_gcide, "a dictionary of English (Webster 1913 and later), 40 M characters"),
    "austen": Corpus(_austen, "six novels of Jane Austen, 4 M characters"),
    "wordnet": Corpus(_wordnet, "82,115 glosses of nouns; which of 26 kinds of thing is it?"),
}
