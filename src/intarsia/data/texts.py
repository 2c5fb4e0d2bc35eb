"""Texts as rows of tokens: text files cut into blocks, instruction files with labelled answers.

data = load_texts("letters.txt", tokenizer, length=256, seed=0)
data = load_texts("answers.jsonl", tokenizer, length=256, seed=0, train=2000)
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from intarsia.core.checks import at_least
from intarsia.core.errors import ConfigError, DataError
from intarsia.core.reading import read_text
from intarsia.data import corpora
from intarsia.data.instructions import (
    ANSWER,
    Sample,
    object_of,
    prompt_of,
    sample_of,
    tokens_of,
)
from intarsia.data.packages import announce

IGNORED = -100
SHARES = (0.1, 0.1)  # of the rows, for val and test
Report = Callable[[str], None]


class Texts(Dataset[dict[str, Tensor]]):
    """Rows of tokens: {"input_ids" (T,), "labels" (T,)}; tokens with label -100 have no loss."""

    def __init__(self, name: str, rows: Sequence[tuple[Tensor, Tensor]]) -> None:
        self.name, self.rows = name, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        ids, labels = self.rows[index]
        return {"input_ids": ids, "labels": labels}

    @property
    def digests(self) -> list[str]:
        """The SHA-256 of each row."""
        return [hashlib.sha256(torch.stack(row).numpy().tobytes()).hexdigest() for row in self.rows]

    @property
    def tokens(self) -> int:
        """How many tokens have a label."""
        return sum(int((labels[1:] != IGNORED).sum()) for _, labels in self.rows)


@dataclass(frozen=True)
class TextSplits:
    """Three disjoint parts, and a JSON-ready record of how they were made."""

    train: Texts
    val: Texts | None
    test: Texts
    record: dict[str, Any]


def check_text(spec: str) -> None:
    """Raises: as `load_texts` does for a file, before anything that takes long is obtained."""
    if spec not in corpora.names():
        _file(Path(spec))


def load_texts(
    spec: str,
    tokenizer: Any,
    *,
    length: int = 256,
    seed: int = 0,
    train: int | float | None = None,
    val: int | None = None,
    test: int | None = None,
    progress: Report = announce,
) -> TextSplits:
    """Return rows of at most `length` tokens for training, validation and test (80, 10 and 10 %).

    A text file is cut into consecutive blocks of `length` tokens. Its end is the test part, and the
    blocks before that are the validation part. A .jsonl file has one object per line: `text`; or
    `prompt` and `response` (or instruction, input, output; question, answer); or `messages` as in
    a chat. Only answers get labels. `seed` divides the lines; equal prompts stay in one part.
    train: a number of rows, or a fraction below 1; val, test: numbers of rows; val=0 = no part.

    Raises: DataError for a file that is missing, empty, not UTF-8, or has a line without these
    keys; ConfigError for impossible numbers; UnknownName for an unknown corpus.
    """
    rows = _rows(spec, tokenizer, length, progress)
    notes: dict[str, Any] = {"form": "answers" if isinstance(rows, _Instructions) else "text"}
    if isinstance(rows, _Instructions):
        parts = grouped([prompt_of(one) for one in rows.samples], val, test, seed)
    else:
        rows = _full_blocks(rows, length, spec)
        parts = _consecutive(len(rows), val, test)
    parts["train"] = _limited(parts["train"], train)
    name, sets = Path(spec).stem, dict[str, Texts]()
    for part, chosen in parts.items():
        found = [row for i in chosen if (row := rows[i]) is not None]
        sets[part] = Texts(f"{name}/{part}", found)
        if part != "val" and not found:
            got = f"no row whose answer fits into {length} tokens"
            fix = "Give each row more tokens (length, --size)."
            raise DataError(f"{part} part of {spec}", got=got, want="at least one", fix=fix)
    skipped = sum(map(len, parts.values())) - sum(map(len, sets.values()))
    notes |= _report_lost(spec, rows, skipped, length, progress)
    record = {"spec": spec, "length": length, "seed": seed, **notes}
    record["parts"] = {part: part_record(found) for part, found in sets.items() if len(found)}
    val_part = sets["val"] if len(sets["val"]) else None
    return TextSplits(sets["train"], val_part, sets["test"], record)


def read_texts(
    spec: str, tokenizer: Any, *, length: int = 256, progress: Report = announce
) -> Texts:
    """Return all rows of a text as one part for scoring; the last block may be short.

    Raises: as `load_texts` does; DataError for a text without a row of two tokens.
    """
    rows = _rows(spec, tokenizer, length, progress)
    every = [rows[i] for i in range(len(rows))]
    found = [row for row in every if row is not None]
    if not found:
        got = f"no row of two tokens whose answer fits into {length}"
        fix = "Give it more text, or each row more tokens (--size)."
        raise DataError(f"text {spec}", got=got, want="at least one", fix=fix)
    _report_lost(spec, rows, len(every) - len(found), length, progress)
    return Texts(f"{Path(spec).stem}/all", found)


@dataclass(frozen=True)
class Prompt:
    """A text that a model continues, and its tokens (T,), T > 0."""

    text: str
    ids: Tensor


def read_prompts(
    source: Path | Sequence[str], tokenizer: Any, *, asked: bool = True
) -> list[Prompt]:
    """Return the prompts of a file, or of lines that are given, in order and without blank lines.

    A .jsonl file has objects as in `load_texts`; answers are ignored and may be missing. In other
    files each line is a prompt, or such an object if it begins with {.
    asked: plain lines are questions, in the tokenizer's chat template if it has one; False = they
    are texts to continue.

    Raises: DataError for a file that cannot be read, or a line that is not a prompt.
    """
    name = str(source) if isinstance(source, Path) else "the input"
    found = _file(source) if isinstance(source, Path) else "\n".join(source)
    if isinstance(found, str):
        lines = [line.strip() for line in found.split("\n") if line.strip()]
        plain = "prompt" if asked else "text"
        found = [
            object_of(line, f"line {number} of {name}") if line[0] == "{" else {plain: line}
            for number, line in enumerate(lines, 1)
        ]
    prompts = [
        _prompt_of(line, tokenizer, f"line {i} of {name}") for i, line in enumerate(found, 1)
    ]
    if not prompts:
        raise DataError(f"prompts in {name}", got="none", want="at least one line", fix="Add one.")
    return prompts


def _prompt_of(line: Mapping[str, Any], tokenizer: Any, where: str) -> Prompt:
    """The prompt of a line without its answer."""
    if isinstance(text := line.get("text"), str):
        ids = tokenizer(text)["input_ids"]
    else:
        messages = line.get("messages")
        if isinstance(messages, list) and messages and _role(messages[-1]) != "assistant":
            line = {**line, "messages": [*messages, {"role": "assistant", "content": ""}]}
        sample = sample_of({ANSWER[-1]: "", **line}, where)
        text, ids = prompt_of(sample), tokens_of(sample, tokenizer)[0]
    if not ids:
        raise DataError(where, got="no token", want="a prompt", fix="Leave the line out.")
    return Prompt(text, torch.tensor(ids, dtype=torch.int64))


def _role(message: Any) -> Any:
    return message.get("role") if isinstance(message, Mapping) else None


def part_record(found: Texts) -> dict[str, Any]:
    """Name, number of rows and tokens, and SHA-256 of a part."""
    digest = hashlib.sha256("".join(found.digests).encode()).hexdigest()
    return {"name": found.name, "n": len(found), "tokens": found.tokens, "sha256": digest}


def _limited(chosen: list[int], count: int | float | None) -> list[int]:
    if count is None:
        return chosen
    wanted = round(count * len(chosen)) if 0 < count < 1 else count
    if not 1 <= wanted <= len(chosen):
        want, fix = f"1 ... {len(chosen)}, or a fraction", "Leave it out for all rows."
        raise ConfigError("training rows", got=count, want=want, fix=fix)
    return chosen[: int(wanted)]


def _file(path: Path) -> str | list[Mapping[str, Any]]:
    try:
        text = read_text(path, "utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        fix = "Check the path, or save the file as UTF-8."
        raise DataError(f"text {path}", got=error, want="a UTF-8 text file", fix=fix) from error
    if path.suffix.lower() != ".jsonl":
        return text
    rows: list[Mapping[str, Any]] = []
    for number, line in enumerate(text.split("\n"), 1):  # JSON strings may hold other line ends
        if not line.strip():
            continue
        rows.append(object_of(line, f"line {number} of {path}"))
    if not rows:
        raise DataError(f"text {path}", got="no line", want="at least one", fix="Check the file.")
    return rows


Row = tuple[Tensor, Tensor]


def _rows(spec: str, tokenizer: Any, length: int, progress: Report) -> list[Row] | _Instructions:
    """The blocks of a text file (the last may be short), or the rows of an instruction file."""
    at_least("length", length, 2, "Try 256.")
    source = read_source(spec, progress)
    if not isinstance(source, str):
        return _Instructions(source, tokenizer, length)
    ids = torch.tensor(tokenizer(source, verbose=False)["input_ids"], dtype=torch.int64)
    return [(block, block) for block in ids.split(length) if len(block) > 1]


def read_source(spec: str, progress: Report) -> str | list[Sample]:
    """The text of a corpus or file, or its samples.  Raises: as `load_texts`."""
    source = corpora.read(spec, progress) if spec in corpora.names() else _file(Path(spec))
    if isinstance(source, str):
        return source
    return [sample_of(line, f"line {i} of {spec}") for i, line in enumerate(source, 1)]


def _full_blocks(blocks: list[Row], length: int, spec: str) -> list[Row]:
    """The blocks of full length.  Raises: DataError for fewer than three."""
    found = [block for block in blocks if len(block[0]) == length]
    if len(found) < 3:
        got = f"{sum(len(ids) for ids, _ in blocks)} tokens"
        want = f"at least {3 * length} (three blocks)"
        fix = "Give it more text, or a smaller length (--size)."
        raise DataError(f"text {spec}", got=got, want=want, fix=fix)
    return found


def _report_lost(
    spec: str, rows: Sequence[Row] | _Instructions, skipped: int, length: int, progress: Report
) -> dict[str, int]:
    """Report how many rows were left out and how many cut; return the non-zero counts."""
    cut = rows.cut if isinstance(rows, _Instructions) else 0
    if skipped:
        progress(f"intarsia: {spec}: {skipped} rows left out, no answer within {length} tokens")
    if cut:
        progress(f"intarsia: {spec}: {cut} answers cut off at {length} tokens (--size)")
    return {name: n for name, n in {"skipped": skipped, "cut": cut}.items() if n}


class _Instructions:
    """The rows of an instruction file, tokenized on access; None where the answer does not fit."""

    def __init__(self, samples: Sequence[Sample], tokenizer: Any, length: int) -> None:
        self.samples, self.tokenizer, self.length = samples, tokenizer, length
        self.cut = 0  # answers that were cut off

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Row | None:
        prompt, answer = tokens_of(self.samples[index], self.tokenizer)
        if len(prompt) >= self.length or len(prompt) + len(answer) < 2:
            return None
        self.cut += len(prompt) + len(answer) > self.length
        ids = torch.tensor((prompt + answer)[: self.length], dtype=torch.int64)
        labels = ids.clone()
        labels[: len(prompt)] = IGNORED
        return ids, labels


def _counts(rows: int, val: int | None, test: int | None) -> tuple[int, int]:
    asked = [
        max(1, round(share * rows)) if count is None else count
        for share, count in zip(SHARES, (val, test), strict=True)
    ]
    if min(asked) < 0 or asked[1] < 1 or sum(asked) >= rows:
        got, want = (
            f"{asked[0]} and {asked[1]} of {rows}",
            "at least one to test and one to train on",
        )
        raise ConfigError("val and test rows", got=got, want=want, fix="Ask for fewer.")
    return asked[0], asked[1]


def _consecutive(rows: int, val: int | None, test: int | None) -> dict[str, list[int]]:
    """Consecutive rows: the end of a text is not trained on."""
    vals, tests = _counts(rows, val, test)
    every, first = list(range(rows)), rows - vals - tests
    return {
        "train": every[:first],
        "val": every[first : first + vals],
        "test": every[first + vals :],
    }


def grouped(
    groups: list[str], val: int | None, test: int | None, seed: int
) -> dict[str, list[int]]:
    """Rows in random order; all rows of a group (one prompt) are in the same part."""
    vals, tests = _counts(len(groups), val, test)
    order = torch.randperm(len(groups), generator=torch.Generator().manual_seed(seed)).tolist()
    of: dict[str, str] = {}
    parts: dict[str, list[int]] = {"test": [], "val": [], "train": []}
    wanted = {"test": tests, "val": vals, "train": len(groups)}
    for i in order:
        part = of.get(groups[i]) or next(p for p in parts if len(parts[p]) < wanted[p])
        of[groups[i]] = part
        parts[part].append(i)
    return parts
