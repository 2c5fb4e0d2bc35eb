"""Questions about pictures and sounds with their answers, as rows of tokens with marks.

    {"question": "What is this?", "image": "a.png", "answer": "a cat"}
    {"text": "a purring cat", "audio": "cat.ogg"}                      # a description
    {"question": "Which is larger, <image> or <image>?", "image": ["a.png", "b.png"], "answer": ...}

A mark says where a picture or a sound stands in a question; without marks they come first.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from intarsia.core.checks import at_least
from intarsia.core.errors import ConfigError, DataError
from intarsia.core.files import parse_json
from intarsia.core.reading import read_text
from intarsia.data.packages import announce
from intarsia.data.texts import IGNORED, grouped
from intarsia.gating.context import MODALITIES
from intarsia.senses.data.encoders import Encoder, Source, features

MARKS = {"image": -1, "audio": -2}  # the ids of what stands for a vector
KEYS = ("question", "answer", "text", "image", "audio", "group")
_MARK = re.compile(r"(<image>|<audio>)")
Row = dict[str, Tensor]


@dataclass(frozen=True)
class Question:
    """A question, or none for a description; its pictures and sounds; the answer, if it is known.

    image: paths and PIL pictures; audio: paths, and pairs of samples and their rate.
    group: questions of one group stay in one part of a split.  where: for errors.
    """

    question: str = ""
    answer: str | None = None
    image: tuple[Source, ...] = ()
    audio: tuple[Source, ...] = ()
    group: str = ""
    where: str = "question"

    def __post_init__(self) -> None:
        """Check the pictures and sounds, and that a question marks all of them or none."""
        for modality in MARKS:
            _check_sources(getattr(self, modality), modality, self.where)
            # Marks are all or none: with some, nobody could say which picture stands where.
            marks, count = self.question.count(f"<{modality}>"), len(getattr(self, modality))
            if marks not in (0, count):
                fix = f"Write one <{modality}> for each, or none: they then come first."
                got = f"{marks} marks <{modality}> for {count}"
                raise DataError(self.where, got=got, want=f"{count} marks", fix=fix)
        if not (self.question.strip() or self.image or self.audio):
            fix = "Leave the line out."
            raise DataError(self.where, got="nothing", want="a question, or a picture", fix=fix)

    @property
    def modality(self) -> str:
        """The modality: "image", "audio", "image and audio", or "text" for neither."""
        return " and ".join(m for m in MARKS if getattr(self, m)) or MODALITIES[0]

    @property
    def parts(self) -> list[str]:
        """The texts and marks of the question, in their order."""
        front = [f"<{m}>" for m in MARKS if f"<{m}>" not in self.question for _ in getattr(self, m)]
        return [*front, *(part for part in _MARK.split(self.question) if part)]


def _check_sources(sources: Any, modality: str, place: str) -> None:
    """Refuse pictures or sounds that are not a tuple of valid sources."""
    kinds = (Path, Image.Image) if modality == "image" else (Path, tuple, list)
    if not isinstance(sources, tuple | list) or not all(isinstance(s, kinds) for s in sources):
        want, fix = "a tuple of paths and PIL pictures", 'For example image=(Path("a.png"),).'
        if modality == "audio":
            want, fix = "a tuple of paths and pairs", "For example audio=((samples, 16_000),)."
        raise DataError(f"{place}, {modality}", got=repr(sources)[:60], want=want, fix=fix)


def read_questions(path: str | Path, *, answered: bool = True) -> list[Question]:
    """Read questions about pictures and sounds from a .jsonl file.

    path: of the file; paths in it count from its folder. answered: each must have an answer.
    Raises: DataError, with the line, for a line that is no JSON object, unknown keys, files
    that are not there, and marks without a picture.
    """
    path = Path(path)
    try:
        lines = read_text(path, "utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        want, fix = "a .jsonl file in UTF-8", "Check the path."
        raise DataError(f"questions {path}", got=error, want=want, fix=fix) from error
    rows = [(i, line) for i, line in enumerate(lines, 1) if line.strip()]
    questions = [_parse_question(line, path, f"line {i} of {path}", answered) for i, line in rows]
    if not questions:
        raise DataError(f"questions {path}", got="no line", want="at least one", fix="Add one.")
    return questions


def _parse_question(line: str, path: Path, place: str, answered: bool) -> Question:
    """Parse a line of a file of questions.  answered: it must have an answer."""
    try:
        row = parse_json(line)
        if not isinstance(row, dict):
            raise ValueError(type(row).__name__)
    except ValueError as error:
        fix = "Correct or delete the line."
        raise DataError(place, got=error, want="one JSON object", fix=fix) from error
    if strange := sorted(row.keys() - set(KEYS)):
        fix = f"Known: {', '.join(KEYS)}."
        raise DataError(place, got=f"the key {strange[0]!r}", want="a known one", fix=fix)
    texts = {n: row.get(n) for n in ("question", "answer", "text")}
    if any(v is not None and not isinstance(v, str) for v in texts.values()):
        raise DataError(place, got=texts, want="texts", fix="Write them in quotes.")
    if texts["answer"] is not None and texts["text"] is not None:
        fix = "text is the answer of a row without a question."
        raise DataError(place, got="answer and text", want="one of them", fix=fix)
    answer = texts["answer"] if texts["text"] is None else texts["text"]
    if answered and not (answer or "").strip():
        fix = 'For example {"question": "What is this?", "image": "a.png", "answer": "a cat"}.'
        raise DataError(place, got="no answer", want="answer, or text", fix=fix)
    files = {m: _existing_files(row.get(m), path.parent, f"{place}, {m}") for m in MARKS}
    # By default questions about the same picture are one group.
    first = next((str(f[0]) for f in files.values() if f), texts["question"] or "")
    group = first if row.get("group") in (None, "") else str(row["group"])
    return Question(texts["question"] or "", answer, files["image"], files["audio"], group, place)


def _existing_files(value: Any, folder: Path, place: str) -> tuple[Path, ...]:
    names = [value] if isinstance(value, str) else value
    names = [] if value is None else names
    if not isinstance(names, list) or not all(isinstance(n, str) and n for n in names):
        fix = 'For example "image": "a.png", or ["a.png", "b.png"].'
        raise DataError(place, got=value, want="a path, or a list of paths", fix=fix)
    files = tuple(folder / name for name in names)
    for file in files:
        if not file.is_file():
            fix = "Paths are from the folder of the .jsonl file."
            raise DataError(place, got=f"no file {file}", want="one", fix=fix)
    return files


class QuestionRows(Dataset[Row]):
    """Dataset of questions as rows of a processor, for `fit` with the task `Answers`."""

    def __init__(self, questions: Sequence[Question], rows: Sequence[Row]) -> None:
        self.questions, self.rows = list(questions), list(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        return self.rows[index]

    def of(self, modality: str) -> QuestionRows:
        """Return the questions of one modality, see `Question.modality`."""
        both = [p for p in zip(self.questions, self.rows, strict=True) if p[0].modality == modality]
        return QuestionRows([q for q, _ in both], [r for _, r in both])

    @property
    def modalities(self) -> dict[str, int]:
        """The number of questions of each modality."""
        names = [q.modality for q in self.questions]
        return {name: names.count(name) for name in sorted(set(names))}


@dataclass(frozen=True)
class Processor:
    """Processor of questions: tokens, marks in the places of pictures and sounds, and features.

    tokenizer: the language model's.  encoders: by modality.  counts: by modality, how many
    marks a picture of so many views becomes.  tiles: of a picture, at most.
    A row is "question, line end, answer, end token"; the answer alone has labels.
    """

    tokenizer: Any
    encoders: Mapping[str, Encoder]
    counts: Mapping[str, Callable[[int], int]]
    tiles: int = 0
    length: int = 2048
    progress: Callable[[str], None] = field(default=announce, repr=False)

    def __post_init__(self) -> None:
        at_least("length", self.length, 2)

    def rows(self, questions: Sequence[Question]) -> list[Row]:
        """Return the row of tokens and features of each question, in order.

        questions: every file of theirs is encoded once.
        Raises: DataError for a row longer than `length`; ConfigError for a modality that the model
        does not have.
        """
        features_left: dict[str, list[Tensor]] = {}
        for modality in MARKS:
            sources = [s for q in questions for s in getattr(q, modality)]
            if not sources:
                continue
            if modality not in self.encoders:
                want, fix = f"{' and '.join(self.encoders)} alone", f"Give the model {modality}."
                raise ConfigError("questions", got=modality, want=want, fix=fix)
            tiles = self.tiles if modality == "image" else 0
            encoder_used = self.encoders[modality]
            # Reversed, so that pop() returns the features in the order of the questions.
            features_left[modality] = features(
                encoder_used, sources, tiles=tiles, progress=self.progress
            )[::-1]
        question_rows: list[Row] = []
        for question in questions:
            question_features = {
                m: [features_left[m].pop() for _ in getattr(question, m)] for m in features_left
            }
            question_rows.append(self.row(question, question_features))
        return question_rows

    def asked(self, questions: Sequence[Question]) -> QuestionRows:
        """Return a dataset of questions that have answers."""
        return QuestionRows(questions, self.rows(questions))

    def row(self, question: Question, question_features: Mapping[str, list[Tensor]]) -> Row:
        """Make the row of a question with pictures and sounds that are encoded already.

        question_features: by modality, a tensor (views, vectors, width) for each picture or sound.
        The row has "input_ids" with a mark for each vector, "labels" of the answer, "asked" (1 =
        text of the question), and the features by modality.
        Raises: DataError for a row longer than `length`.
        """
        ids: list[int] = []
        place = {modality: iter(tensors) for modality, tensors in question_features.items()}
        for part in question.parts:
            modality = part[1:-1] if _MARK.fullmatch(part) else None
            if modality is None:
                ids += self.tokenizer(part, add_special_tokens=False)["input_ids"]
            else:
                views = len(next(place[modality]))
                # Each vector of a picture or sound has a mark of its own among the tokens.
                ids += [MARKS[modality]] * self.counts[modality](views)
        ids += self.tokenizer("\n", add_special_tokens=False)["input_ids"]
        # the answer begins here
        prompt_length = len(ids)
        if question.answer is not None:
            end = self.tokenizer.eos_token_id
            ids += self.tokenizer(question.answer, add_special_tokens=False)["input_ids"]
            ids += [] if end is None else [end]
        if len(ids) > self.length:
            want, fix = f"at most {self.length}", "Shorten it, or give fewer vectors to a picture."
            raise DataError(question.where, got=f"{len(ids)} tokens", want=want, fix=fix)
        all_ids = torch.tensor(ids)
        labels = all_ids.clone()
        # The question has no loss.
        labels[:prompt_length] = IGNORED
        # What a selector of vectors may look at: tokens of the question, no mark and no answer.
        is_question_text = (torch.arange(len(ids)) < prompt_length) & (all_ids >= 0)
        row: Row = {"input_ids": all_ids, "labels": labels, "asked": is_question_text.long()}
        for modality, tensors in question_features.items():
            if tensors:
                row[modality] = torch.cat(tensors)
                if modality == "image":
                    row["image_views"] = torch.tensor([len(t) for t in tensors])
        return row


@dataclass(frozen=True)
class QuestionSplits:
    """Three disjoint parts, and a JSON-ready record of how they were made."""

    train: QuestionRows
    val: QuestionRows | None
    test: QuestionRows
    record: dict[str, Any]


def split_questions(
    questions: Sequence[Question],
    processor: Processor,
    *,
    seed: int = 0,
    train: int | None = None,
    val: int | None = None,
    test: int | None = None,
) -> QuestionSplits:
    """Split questions at random into train, val and test (80, 10 and 10 %); a group stays together.

    train, val, test: numbers of questions, None = the shares above.
    Raises: ConfigError for numbers that cannot be; as `Processor.rows` does.
    """
    parts = grouped([q.group or q.question for q in questions], val, test, seed)
    if train is not None:
        at_least("train", train, 1)
        parts["train"] = parts["train"][:train]
    # All parts in one call, so that a file in two parts is encoded once.
    dataset = processor.asked([questions[i] for part in parts.values() for i in part])
    sets: dict[str, QuestionRows] = {}
    first = 0
    for part, positions in parts.items():
        last = first + len(positions)
        sets[part] = QuestionRows(dataset.questions[first:last], dataset.rows[first:last])
        first = last
    record = {"seed": seed, "parts": {n: {"n": len(s), **s.modalities} for n, s in sets.items()}}
    if not len(sets["train"]):
        fix = "Give it more questions, or fewer to val and test."
        raise DataError("questions to train on", got=0, want="at least one", fix=fix)
    return QuestionSplits(
        sets["train"], sets["val"] if len(sets["val"]) else None, sets["test"], record
    )
