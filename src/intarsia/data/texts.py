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
    parse_row,
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
        """The number of tokens that have a label."""
        return sum(int((labels[1:] != IGNORED).sum()) for _, labels in self.rows)


@dataclass(frozen=True)
class TextSplits:
    """Three disjoint parts, and a JSON-ready record of how they were made."""

    train: Texts
    val: Texts | None
    test: Texts
    record: dict[str, Any]


def check_text(spec: str) -> None:
    """Refuse a file of texts that cannot be read, before a model or a corpus is downloaded.

    Raises: as `load_texts`.
    """
    if spec not in corpora.names():
        _read_file(Path(spec))


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

    spec: a corpus's name or a file. A text is cut into consecutive blocks of `length` tokens. Its
    end is the test part, and the blocks before that are the validation part. A .jsonl file has one
    object per line: `text`; or `prompt` and `response` (or instruction, input, output; question,
    answer); or `messages` as in a chat. Only answers get labels. `seed` divides the lines; equal
    prompts stay in one part. tokenizer: the model's. train: a number of rows, or a fraction
    below 1; val, test: numbers of rows; val=0 = no part. progress: gets lines of progress.
    Raises: DataError for a file that is missing, empty, not UTF-8, or has a line without these
    keys; ConfigError for impossible numbers; UnknownName for an unknown corpus.
    """
    rows = _token_rows(spec, tokenizer, length, progress)
    record_extra: dict[str, Any] = {
        "form": "answers" if isinstance(rows, _InstructionRows) else "text"
    }
    if isinstance(rows, _InstructionRows):
        # Rows with the same prompt in two parts would leak answers into the test part.
        parts = grouped([prompt_of(sample) for sample in rows.samples], val, test, seed)
    else:
        rows = _full_blocks(rows, length, spec)
        parts = _split_consecutively(len(rows), val, test)
    # the limit comes after the split, so that val and test stay the same
    parts["train"] = _limit_rows(parts["train"], train)
    name, sets = Path(spec).stem, dict[str, Texts]()
    for part, positions in parts.items():
        complete_rows = [row for i in positions if (row := rows[i]) is not None]
        sets[part] = Texts(f"{name}/{part}", complete_rows)
        if part != "val" and not complete_rows:
            got = f"no row whose answer fits into {length} tokens"
            fix = "Give each row more tokens (length, --length)."
            raise DataError(f"{part} part of {spec}", got=got, want="at least one", fix=fix)
    # Rows with an answer that does not fit are counted and reported, not silently dropped.
    skipped = sum(map(len, parts.values())) - sum(map(len, sets.values()))
    record_extra |= _report_lost(spec, rows, skipped, length, progress)
    record = {"spec": spec, "length": length, "seed": seed, **record_extra}
    record["parts"] = {part: part_record(texts) for part, texts in sets.items() if len(texts)}
    val_part = sets["val"] if len(sets["val"]) else None
    return TextSplits(sets["train"], val_part, sets["test"], record)


def read_texts(
    spec: str, tokenizer: Any, *, length: int = 256, progress: Report = announce
) -> Texts:
    """Return all rows of a text as one part, for scoring; the last block may be short.

    Raises: as `load_texts` does; DataError for a text without a row of two tokens.
    """
    rows = _token_rows(spec, tokenizer, length, progress)
    all_rows = [rows[i] for i in range(len(rows))]
    complete_rows = [row for row in all_rows if row is not None]
    if not complete_rows:
        got = f"no row of two tokens whose answer fits into {length}"
        fix = "Give it more text, or each row more tokens (--length)."
        raise DataError(f"text {spec}", got=got, want="at least one", fix=fix)
    _report_lost(spec, rows, len(all_rows) - len(complete_rows), length, progress)
    return Texts(f"{Path(spec).stem}/all", complete_rows)


@dataclass(frozen=True)
class Prompt:
    """A text that a model continues, and its tokens (T,), T > 0."""

    text: str
    ids: Tensor


def read_prompts(
    source: Path | Sequence[str], tokenizer: Any, *, as_questions: bool = True
) -> list[Prompt]:
    """Return the prompts of a file, or of given lines, in order and without blank lines.

    A .jsonl file has objects as in `load_texts`; answers are ignored and may be missing. In other
    files each line is a prompt, or such an object if it begins with {. as_questions: plain lines
    are questions, in the tokenizer's chat template if it has one; False = they are texts to
    continue.
    Raises: DataError for a file that cannot be read, or a line that is not a prompt.
    """
    name = str(source) if isinstance(source, Path) else "the input"
    source_lines = _read_file(source) if isinstance(source, Path) else "\n".join(source)
    if isinstance(source_lines, str):
        lines = [line.strip() for line in source_lines.split("\n") if line.strip()]
        plain = "prompt" if as_questions else "text"
        source_lines = [
            parse_row(line, f"line {number} of {name}") if line[0] == "{" else {plain: line}
            for number, line in enumerate(lines, 1)
        ]
    prompts = [
        _make_prompt(line, tokenizer, f"line {i} of {name}")
        for i, line in enumerate(source_lines, 1)
    ]
    if not prompts:
        raise DataError(f"prompts in {name}", got="none", want="at least one line", fix="Add one.")
    return prompts


def _make_prompt(line: Mapping[str, Any], tokenizer: Any, place: str) -> Prompt:
    """Return the prompt of a line and its tokens; an answer in it is left out."""
    if isinstance(text := line.get("text"), str):
        ids = tokenizer(text)["input_ids"]
    else:
        # A chat without an answer at its end gets an empty one, because `sample_of` needs it.
        messages = line.get("messages")
        if isinstance(messages, list) and messages and _role(messages[-1]) != "assistant":
            line = {**line, "messages": [*messages, {"role": "assistant", "content": ""}]}
        # A line without an answer gets an empty one, which is then left out.
        sample = sample_of({ANSWER[-1]: "", **line}, place)
        text, ids = prompt_of(sample), tokens_of(sample, tokenizer)[0]
    if not ids:
        raise DataError(place, got="no token", want="a prompt", fix="Leave the line out.")
    return Prompt(text, torch.tensor(ids, dtype=torch.int64))


def _role(message: Any) -> Any:
    return message.get("role") if isinstance(message, Mapping) else None


def part_record(texts: Texts) -> dict[str, Any]:
    """Record a part: name, number of rows and tokens, and SHA-256."""
    digest = hashlib.sha256("".join(texts.digests).encode()).hexdigest()
    return {"name": texts.name, "n": len(texts), "tokens": texts.tokens, "sha256": digest}


def _limit_rows(positions: list[int], count: int | float | None) -> list[int]:
    """Return the first `count` positions, or a fraction of all if it is below 1; None = all."""
    if count is None:
        return positions
    limit = round(count * len(positions)) if 0 < count < 1 else count
    if not 1 <= limit <= len(positions):
        want, fix = f"1 ... {len(positions)}, or a fraction", "Leave it out for all rows."
        raise ConfigError("training rows", got=count, want=want, fix=fix)
    return positions[: int(limit)]


def _read_file(path: Path) -> str | list[Mapping[str, Any]]:
    """Read a file: a .jsonl file as its JSON objects, any other as text.  Raises: DataError."""
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
        rows.append(parse_row(line, f"line {number} of {path}"))
    if not rows:
        raise DataError(f"text {path}", got="no line", want="at least one", fix="Check the file.")
    return rows


Row = tuple[Tensor, Tensor]


def _token_rows(
    spec: str, tokenizer: Any, length: int, progress: Report
) -> list[Row] | _InstructionRows:
    """Return the rows of a text or instruction file, not yet divided into parts."""
    at_least("length", length, 2, "Try 256.")
    source = read_source(spec, progress)
    if not isinstance(source, str):
        return _InstructionRows(source, tokenizer, length)
    ids = torch.tensor(tokenizer(source, verbose=False)["input_ids"], dtype=torch.int64)
    return [(block, block) for block in ids.split(length) if len(block) > 1]


def read_source(spec: str, progress: Report) -> str | list[Sample]:
    """Read a corpus's or file's text, or samples of instructions.  Raises: as `load_texts`."""
    source = corpora.read(spec, progress) if spec in corpora.names() else _read_file(Path(spec))
    if isinstance(source, str):
        return source
    return [sample_of(line, f"line {i} of {spec}") for i, line in enumerate(source, 1)]


def _full_blocks(blocks: list[Row], length: int, spec: str) -> list[Row]:
    full_blocks = [block for block in blocks if len(block[0]) == length]
    if len(full_blocks) < 3:
        got = f"{sum(len(ids) for ids, _ in blocks)} tokens"
        want = f"at least {3 * length} (three blocks)"
        fix = "Give it more text, or a smaller length (--length)."
        raise DataError(f"text {spec}", got=got, want=want, fix=fix)
    return full_blocks


def _report_lost(
    spec: str, rows: Sequence[Row] | _InstructionRows, skipped: int, length: int, progress: Report
) -> dict[str, int]:
    """Report how many rows were left out or cut; return the counts that are not 0."""
    cut = rows.cut if isinstance(rows, _InstructionRows) else 0
    if skipped:
        progress(f"intarsia: {spec}: {skipped} rows left out, no answer within {length} tokens")
    if cut:
        progress(f"intarsia: {spec}: {cut} answers cut off at {length} tokens (--length)")
    return {name: n for name, n in {"skipped": skipped, "cut": cut}.items() if n}


class _InstructionRows:
    """The rows of an instruction file, tokenized on access; None where the answer does not fit."""

    def __init__(self, samples: Sequence[Sample], tokenizer: Any, length: int) -> None:
        self.samples, self.tokenizer, self.length = samples, tokenizer, length
        self.cut = 0  # answers that were cut off

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Row | None:
        """Return token ids (t,) and labels (t,) of a sample, cut to `length` tokens."""
        prompt, answer = tokens_of(self.samples[index], self.tokenizer)
        if len(prompt) >= self.length or len(prompt) + len(answer) < 2:
            return None
        # Counted on access, because tokenizing all rows beforehand takes long.
        self.cut += len(prompt) + len(answer) > self.length
        ids = torch.tensor((prompt + answer)[: self.length], dtype=torch.int64)
        labels = ids.clone()
        # The prompt has no loss.
        labels[: len(prompt)] = IGNORED
        return ids, labels


def _part_sizes(rows: int, val: int | None, test: int | None) -> tuple[int, int]:
    counts = [
        max(1, round(share * rows)) if count is None else count
        for share, count in zip(SHARES, (val, test), strict=True)
    ]
    if min(counts) < 0 or counts[1] < 1 or sum(counts) >= rows:
        got, want = (
            f"{counts[0]} and {counts[1]} of {rows}",
            "at least one to test and one to train on",
        )
        raise ConfigError("val and test rows", got=got, want=want, fix="Ask for fewer.")
    return counts[0], counts[1]


def _split_consecutively(rows: int, val: int | None, test: int | None) -> dict[str, list[int]]:
    """Split the rows of a text in their order: its end is the test part, before it validation."""
    vals, tests = _part_sizes(rows, val, test)
    positions, first = list(range(rows)), rows - vals - tests
    return {
        "train": positions[:first],
        "val": positions[first : first + vals],
        "test": positions[first + vals :],
    }


def grouped(
    groups: list[str], val: int | None, test: int | None, seed: int
) -> dict[str, list[int]]:
    """Split rows at random, so that all rows of a group (one prompt) are in the same part.

    val, test: numbers of rows, None for a tenth. Returns part -> positions.
    """
    vals, tests = _part_sizes(len(groups), val, test)
    order = torch.randperm(len(groups), generator=torch.Generator().manual_seed(seed)).tolist()
    part_of_group: dict[str, str] = {}
    parts: dict[str, list[int]] = {"test": [], "val": [], "train": []}
    sizes = {"test": tests, "val": vals, "train": len(groups)}
    for i in order:
        # The test part is filled first, so that it does not depend on the size of the others.
        part = part_of_group.get(groups[i]) or next(p for p in parts if len(parts[p]) < sizes[p])
        part_of_group[groups[i]] = part
        parts[part].append(i)
    return parts
