"""Rows of text for a calibration: a share of several corpora, spread over each of them.

rows = load_calibration("mixed", tokenizer, rows=128, length=512).train
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor

from intarsia.core.checks import at_least
from intarsia.core.errors import ConfigError, DataError
from intarsia.data import corpora
from intarsia.data.instructions import Sample, tokens_of
from intarsia.data.packages import announce
from intarsia.data.texts import Report, Texts, TextSplits, part_record, read_source

MOST = 0.9  # of a text that is read for training rows: its end is left for tests
CHARACTERS = 12  # of a token, at most in ordinary text

Part = tuple[float, float]


def names_of(spec: str) -> tuple[str, ...]:
    """Split the text that names calibration texts into names; "mixed" stands for all corpora.

    Raises: ConfigError for no name, or one that is given twice.
    """
    words = (word.strip() for word in spec.split(","))
    names = tuple(n for w in words for n in (corpora.names() if w == corpora.MIXED else (w,)))
    if not all(names) or len(set(names)) < len(names):
        fix = f"For example: {corpora.MIXED}, or {corpora.MIXED},notes.txt."
        raise ConfigError("calibration", got=repr(spec), want="different names", fix=fix)
    return names


def load_calibration(
    spec: str,
    tokenizer: Any,
    *,
    rows: int = 128,
    length: int = 512,
    test: int = 0,
    progress: Report = announce,
) -> TextSplits:
    """Return `rows` rows of exactly `length` tokens, equally many of each text, for calibration.

    spec: "mixed", every corpus of the library; or corpora and files of text with commas, as
    "mixed,notes.txt". A text is divided into as many pieces as there are rows, and each gives its
    first tokens, so that no more of a large text is read than is needed; samples of an instruction
    file are drawn at random, and follow one another in a row. `test` further rows come from the end
    of each text; `train` from the part before, nine tenths at most. Rows of the texts alternate.
    tokenizer: the model's. progress: gets lines of progress. The record says how many rows
    are of what, and has their SHA-256.
    Raises: as `load_texts`; DataError for a text that has fewer tokens than are wanted of it.
    """
    names = names_of(spec)
    at_least("length", length, 2, "Try 512.")
    at_least("rows", rows, len(names), fix=f"Give at least one to each of {', '.join(names)}.")
    at_least("test rows", test, 0)
    lists: dict[str, list[list[Tensor]]] = {"train": [], "test": []}
    for number, name in enumerate(names):
        source = read_source(name, progress)
        # Rows that do not divide evenly go to the first sources.
        train, tested = (n // len(names) + (number < n % len(names)) for n in (rows, test))
        # The text is cut where its training rows end, in proportion to the numbers of rows.
        boundary = train / (train + tested)
        for part, share_of_text, count in (
            ("train", (0, min(MOST, boundary)), train),
            ("test", (boundary, 1), tested),
        ):
            lists[part].append(_source_rows(name, source, share_of_text, count, length, tokenizer))
    # sources alternate, so that a prefix of the rows is a mixture, too
    turns = {part: _interleave(rows_of_sources) for part, rows_of_sources in lists.items()}
    sets = {
        part: Texts(f"{spec}/{part}", [(r, r) for r in part_rows])
        for part, part_rows in turns.items()
    }
    record: dict[str, Any] = {"spec": spec, "length": length, "form": "calibration"}
    record["rows"] = {
        name: len(source_rows) for name, source_rows in zip(names, lists["train"], strict=True)
    }
    record["parts"] = {
        part: part_record(rows_of_sources)
        for part, rows_of_sources in sets.items()
        if len(rows_of_sources)
    }
    return TextSplits(sets["train"], None, sets["test"], record)


def _interleave(rows_of_sources: list[list[Tensor]]) -> list[Tensor]:
    """Return the first row of each source, then the second of each, and so on."""
    longest = max(map(len, rows_of_sources))
    return [
        source_rows[i]
        for i in range(longest)
        for source_rows in rows_of_sources
        if i < len(source_rows)
    ]


def _source_rows(
    name: str, source: str | list[Sample], part: Part, count: int, length: int, tokenizer: Any
) -> list[Tensor]:
    """Return `count` rows of `length` tokens from a part, (begin, end) as shares, of a source."""
    first, last = (round(share * len(source)) for share in part)
    if isinstance(source, str):
        token_rows = _rows_of_text(source[first:last], count, length, tokenizer)
    else:
        # The order is fixed, so that train and test rows come from different samples.
        order = random.Random(0).sample(range(len(source)), len(source))[first:last]
        token_rows = _rows_of_samples([source[i] for i in order], count, length, tokenizer)
    if len(token_rows) < count:
        got = f"{len(token_rows)} rows of {length} tokens"
        fix = "Ask for fewer or shorter rows (--rows, --length), or leave it out."
        raise DataError(f"text {name}", got=got, want=f"{count}", fix=fix)
    return token_rows


def _rows_of_text(text: str, count: int, length: int, tokenizer: Any) -> list[Tensor]:
    """Return the first `length` tokens of each of `count` equal pieces of a text."""
    size = len(text) // max(1, count)
    token_rows: list[Tensor] = []
    for number in range(count):
        piece = text[number * size : (number + 1) * size]
        piece = piece[piece.find(" ") + 1 :] if number else piece  # a word is not cut
        # Usually a short prefix is enough; only rare texts need the whole piece tokenized.
        for characters in (CHARACTERS * length, len(piece)):
            ids = tokenizer(piece[:characters], verbose=False)["input_ids"][:length]
            if len(ids) == length:
                token_rows.append(torch.tensor(ids, dtype=torch.int64))
                break
    return token_rows


def _rows_of_samples(
    samples: list[Sample], count: int, length: int, tokenizer: Any
) -> list[Tensor]:
    """Join the tokens of samples into one stream, and cut it into at most `count` rows."""
    # One long stream, tokenized as far as it is needed.
    tokens: Iterator[int] = chain.from_iterable(
        chain.from_iterable(tokens_of(sample, tokenizer)) for sample in samples
    )
    rows = iter(lambda: list(islice(tokens, length)), [])
    return [torch.tensor(row) for row in islice(rows, count) if len(row) == length]
