"""Texts by name: Python's documentation, a dictionary, novels, WordNet's glosses as questions."""

from __future__ import annotations

import gzip
import platform
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from intarsia.core.errors import DataError
from intarsia.core.pictured import lists_pictures
from intarsia.data.packages import obtain, pinned

# the lexicographer files of WordNet 3.0 for nouns, in order of their numbers
_KINDS = (
    "top act animal artifact attribute body cognition communication event feeling food group "
    "location motive object person phenomenon plant possession process quantity relation shape "
    "state substance time"
)
NOUNS = tuple(_KINDS.split())
FIRST_NOUN = 3  # the number of the first of them
Report = Callable[[str], None]


@dataclass(frozen=True)
class Corpus:
    """How a corpus is read: as one text, or as the rows of a .jsonl file.

    edition: what its text depends on besides its name. Packages are the same everywhere.
    """

    read: Callable[[Report], str | list[dict[str, str]]]
    about: str
    edition: str = ""


def names() -> tuple[str, ...]:
    """Names of the corpora that `read` knows."""
    return tuple(CORPORA)


MIXED = "mixed"  # stands for every corpus, as a text for calibration
SUFFIXES = (".txt", ".md", ".jsonl")  # of files of texts


def is_text(spec: str) -> bool:
    """Return True for a named corpus, or a .txt, .md or .jsonl file of texts."""
    known = spec in names() or Path(spec).suffix.lower() in SUFFIXES
    return known and not lists_pictures(Path(spec))


def read(name: str, progress: Report) -> Any:
    """The corpus of that name; downloaded the first time."""
    return CORPORA[name].read(progress)


def _python_docs(_: Report) -> str:
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        fix = "Install the complete standard library, or choose gcide."
        what, want = "corpus 'python-docs'", "Python with pydoc_data"
        raise DataError(what, got="Python without it", want=want, fix=fix) from error
    return "\n\n".join(topics[name] for name in sorted(topics))


def _dictionary(name: str, progress: Report) -> str:
    """The entries of a dictionary in dictd's form, in alphabetical order."""
    folder = obtain(pinned(f"dict-{name}"), progress=progress)
    with gzip.open(folder / f"usr/share/dictd/{name}.dict.dz") as lines:
        return lines.read().decode("utf-8", "replace")


def _austen(progress: Report) -> str:
    """The six novels in sequence."""
    folder = obtain(pinned("r-cran-janeaustenr"), progress=progress)
    file = folder / "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"
    rest, novels = file.read_bytes(), list[str]()
    while rest:  # each object is its size (4 bytes), then a zlib stream
        stream = zlib.decompressobj()
        novels.append("\n".join(r_strings(stream.decompress(rest[4:]))))
        rest = stream.unused_data
    return "\n\n".join(novels)


def r_strings(raw: bytes) -> list[str]:
    """Read a vector of strings that R has serialised (XDR, version 3, UTF-8).

    Raises: DataError for anything else.
    """
    head = 14 + 4 + len(b"UTF-8")  # "X\n" and three versions; the encoding's length and name
    kind, count = raw[head : head + 4], int.from_bytes(raw[head + 4 : head + 8])
    if raw[:2] != b"X\n" or raw[head - 5 : head] != b"UTF-8" or kind != b"\0\0\0\x10":
        got, fix = f"an object that begins with {raw[:head].hex()}", "Obtain the package again."
        raise DataError("R object", got=got, want="a vector of strings", fix=fix)
    at, found = head + 8, list[str]()
    for _ in range(count):  # flags, length, bytes
        size = int.from_bytes(raw[at + 4 : at + 8])
        found.append(raw[at + 8 : at + 8 + size].decode())
        at += 8 + size
    return found


def _wordnet(progress: Report) -> list[dict[str, str]]:
    """A noun's gloss without its examples, and the noun's kind, one of 26."""
    file = obtain(pinned("wordnet-base"), progress=progress) / "usr/share/wordnet/data.noun"
    rows: list[dict[str, str]] = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
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
    "foldoc": Corpus(
        partial(_dictionary, "foldoc"), "an encyclopaedia of computing (FOLDOC), 5 M characters"
    ),
    "gcide": Corpus(
        partial(_dictionary, "gcide"),
        "a dictionary of English (Webster 1913 and later), 40 M characters",
    ),
    "austen": Corpus(_austen, "six novels of Jane Austen, 4 M characters"),
    "wordnet": Corpus(_wordnet, "82,115 glosses of nouns; which of 26 kinds of thing is it?"),
}
