"""The pages that a newcomer reads: their commands, the data these work on, and what they print."""

from __future__ import annotations

import difflib
import functools
import json
import math
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any

import numpy as np
import typer
from PIL import Image
from typer.exceptions import TyperException as Refused

from intarsia.cli import app
from intarsia.core.registry import keys
from intarsia.runs.choosing.arms import ARMS, EXTRA

from .labelled import write_csv
from .language_models import plain_text
from .test_real_pages import language_model

ROOT = Path(__file__).parents[1]
Block = tuple[list[str], str | None]


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / page).read_text(), re.M | re.S)


def commands(page: str) -> Iterator[Block]:
    """Yield the lines of every shell block of a page, and what the page shows below them."""
    text = (ROOT / page).read_text()
    pattern = r"^```sh\n(.*?)^```$(?:\n\n```console\n(.*?)^```$)?"
    for typed, output in re.findall(pattern, text, re.M | re.S):
        yield typed.replace("\\\n", "").splitlines(), output or None


def all_commands(page: str) -> Iterator[str]:
    """Yield each command of intarsia that a page shows, those in its sentences without options too.

    Where a shell would fill in a variable there is a number.
    """
    text = (ROOT / page).read_text()
    shown = [line for typed_lines, _ in commands(page) for line in typed_lines]
    shown += re.findall(r"^    (intarsia .*)$", text, re.M)
    shown += re.findall(r"`(intarsia [^`]+)`", text)
    for line in shown:
        for one in re.sub(r"\$\w+", "1", line).split(" && "):
            if re.match("intarsia [a-z]", one):
                yield one


UNFINISHED = ("MissingParameter", "BadOptionUsage")  # of a sentence


@functools.cache
def verbs() -> Any:
    return typer.main.get_group(app)


def accepts(line: str) -> None:
    """Read a command as the command line does, and run nothing.

    A sentence may name a verb alone, or an option without its value.
    Raises: Refused for what would be refused before the verb is called.
    """
    group = verbs()
    words = shlex.split(line, comments=True)[1:]
    context = typer.Context(group, info_name="intarsia")
    try:
        while hasattr(group, "commands"):
            name, group, words = group.resolve_command(context, words)
            if not hasattr(group, "commands"):
                context = group.make_context(name, [*words], parent=context)
    except Refused as error:
        if len(words) > 1 or type(error).__name__ not in UNFINISHED:
            raise


def photos(folder: Path, classes: tuple[str, ...] = ("food", "town"), n: int = 12) -> Path:
    """Write n grey pictures of each class, which differ in their brightness."""
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(n):
            noise = np.random.default_rng(100 * label + i).integers(-20, 20, (40, 40, 3))
            picture = Image.fromarray((50 + 140 * label + noise).astype(np.uint8))
            picture.save(folder / name / f"{i + 1:03}.png")
    return folder


def desk(folder: Path) -> None:
    """Write a newcomer's data: photos/, two tables, a text; and a small language model."""
    photos(folder / "photos")
    write_csv(folder / "nouns.csv")
    rows = [{"prompt": f"{n} and one", "response": str(n + 1)} for n in range(24)]
    (folder / "answers.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "notes.txt").write_text(plain_text())
    model, tokenizer = language_model("smollm2")
    model.save_pretrained(folder / "tiny")
    tokenizer.save_pretrained(folder / "tiny")


def films(folder: Path) -> None:
    """Write the events of 50 users, each with 14 of 16 films and their titles."""
    folder.mkdir()
    events = [
        f"{user}\t{(user * 3 + step) % 16}\t{step * 60 + user}"
        for user in range(50)
        for step in range(14)
    ]
    head = "user_id:token\titem_id:token\ttimestamp:float"
    (folder / f"{folder.name}.inter").write_text("\n".join([head, *events]))
    titles = [f"{i}\tFilm {i}" for i in range(16)]
    head = "item_id:token\ttitle:token_seq"
    (folder / f"{folder.name}.item").write_text("\n".join([head, *titles]))


PICTURES = ("--model", "test_vit", "--untrained", "--size", "32", "--epochs", "1")
TEXTS = ("--model", "tiny", "--epochs", "1", "--precision", "fp32")
QUICK = {  # the same command in seconds: what is typed after it counts
    "auto": (*PICTURES[:5], "--minutes", "0.25", "--methods", "lora,ssf"),
    "compare": ("--images", "0.8"),
    "sparsify": ("--rows", "8", "--length", "32", "--test", "2", "--calib", "notes.txt"),
    "compress": ("--force",),
    "generate": ("--tokens", "4"),
    "index": ("--model", "bert"),
    "trace": ("--rows", "8", "--length", "16"),
}
STAND_INS = {"smollm2": "tiny", "austen": "notes.txt", "ml-100k": "events"}
LABELLED = ("--minutes", "0.5", "--methods", "words,tfidf")  # nothing is downloaded
SEEING = ("--see", "pixels", "--model", "tiny", "--epochs", "1")


def typed(line: str) -> list[str]:
    """A line's words, file names filled in as a shell does, with the small model."""
    words = shlex.split(line, comments=True)[1:]
    words = [name for word in words for name in (sorted(glob(word)) or [word])]
    words = [STAND_INS.get(word, word) for word in words]
    if "--see" in words:
        return [*words, *SEEING]
    if words[0] == "auto" and words[1].endswith(".csv"):
        return [*words, *LABELLED]
    if words[0] in ("fit", "compare") and "--task" not in words:
        words += TEXTS if words[1].endswith(".jsonl") else PICTURES
    return [*words, *QUICK.get(words[0], ())]


NUMBER = re.compile(r"(?<![\w.])[-+−±]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")
SECONDS = {"h": 3600, "min": 60, "s": 1, "ms": 1e-3}
TIME = r"\d[\d,]*(?:\.\d+)? (?:h|min|s|ms)\b"  # one unit of a duration
DURATION = re.compile(rf"(?<![\w.,])[-+−±]?{TIME}(?: {TIME})*")
METHODS = {*keys(), *keys("baseline"), *(arm.name for arm in (*ARMS, *EXTRA))}
METHOD = re.compile(
    rf"\b(?:linear probe|{'|'.join(map(re.escape, sorted(METHODS, key=len, reverse=True)))})\b",
    re.I,
)
# with other data, models and choices
EITHER = {
    r"(?<=Chosen: ).*?(?=, by # candidates|, by \d+ candidates)": "CHOICE",
    r"\d+ px(?:, (?:\d+ epochs?|rate [\d.]+|last \d+ blocks?|[a-z]+ \d+))*": "SETTINGS",
    r"each held out once in five folds|held out once|held out in turn \(\d of 5 folds\)": "HELD",
    r", at \d+ seeds\b": "",
    r"it is ahead|these pictures do not decide between the two": "VERDICT",
    r"(?<=Repeat: intarsia fit ).*?(?= Next:)": "OPTIONS",
    r"is (?:not )?statistically significant": "VERDICT",
    r"has (?:[\d.]+ % right|as much(?:, but has the higher loss)?)": "has a share",
    r"\bimg-focus\b|\btest_vit\b": "MODEL",
    r"\b[kM] parameters": "parameters",
    r"\bTempered, ": "",  # where there are validation pictures enough
    r'(?<=answering )"\w+"': "CLASS",
    r"\((?:[\d.]+, )+[\d.]+\)": "(#)",
}
# sentences that are printed only where one method is ahead, or only where none is
OF_THE_OUTCOME = (
    *("The highest accuracy", "It trains", "None does better"),
    *("Against the best converged probe", "It is a converged probe"),
)


@dataclass(frozen=True)
class Output:
    """The output of a command.

    sentences: all lines outside of tables.  tables: the cells of each by the head of their column.
    """

    sentences: tuple[str, ...]
    tables: tuple[dict[str, list[str]], ...]


def read(text: str) -> Output:
    """Read an output; where its lines and cells are broken makes no difference."""
    prose: list[str] = []
    tables: list[dict[str, list[str]]] = []
    head: list[list[str]] = []
    rows: list[list[str]] = []
    for line in text.splitlines():
        if line.startswith("┃"):
            head.append(_cells(line, "┃"))
        elif line.startswith("│"):
            cells = _cells(line, "│")
            if rows and not cells[0]:
                rows[-1] = [f"{a} {b}".strip() for a, b in zip(rows[-1], cells, strict=True)]
            else:
                rows.append(cells)
        elif line.startswith("└"):
            names = [" ".join(filter(None, column)) for column in zip(*head, strict=True)]
            tables.append(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)))
            head, rows = [], []
        elif not line.startswith(("┏", "┡", "├")):
            prose.append(line)
    text_outside = " ".join(" ".join(prose).split())
    return Output(tuple(re.split(r"(?<=[.:]) (?=[A-Z])", text_outside)), tuple(tables))


def _cells(line: str, frame: str) -> list[str]:
    return [" ".join(cell.split()) for cell in line.split(frame)[1:-1]]


def width(output: str) -> int:
    """Return the columns of the terminal that an output is of."""
    return max(100, *map(len, output.splitlines()), 0)


def words_of(text: str) -> str:
    """Return a text with "#" for its numbers, TIME for its durations and METHOD for adapters."""
    for pattern, name in EITHER.items():
        text = re.sub(pattern, name, text)
    return NUMBER.sub("#", METHOD.sub("METHOD", DURATION.sub("TIME", text)))


def compare_words(promised: str, printed: str) -> None:
    """Assert that an output has the sentences and tables that a page shows, in this order.

    Numbers, methods and what a search settles on are left out, as for a small model in place of
    the page's own. A column of numbers has numbers of the same form: a share, a time, an interval.
    """
    expected, actual = read(promised), read(printed)
    pair = [
        [words for words in map(words_of, output.sentences) if not words.startswith(OF_THE_OUTCOME)]
        for output in (expected, actual)
    ]
    assert pair[0] == pair[1], "\n".join([*difflib.ndiff(*pair), printed])
    assert [[*table] for table in expected.tables] == [[*table] for table in actual.tables]
    for table, table_now in zip(expected.tables, actual.tables, strict=True):
        for column, cells in table.items():
            forms = {*map(words_of, cells), ""}
            # a column that the page leaves empty may have figures elsewhere
            if forms != {""} and all(_is_a_figure(form) for form in forms):
                assert {*map(words_of, table_now[column])} <= forms, (
                    column,
                    table_now[column],
                    forms,
                )


def _is_a_figure(form: str) -> bool:
    return not re.search("[A-Za-z]", re.sub("TIME|baseline|MB|[kM]", "", form))


def compare_numbers(promised: str, printed: str) -> None:
    """Assert that texts are equal but for their numbers, and that these are close enough.

    Counts are equal; a time, all its units together, may be half as long again, or as much shorter;
    a share may be 5 points off; what is below 1e-4 (a difference of outputs) may be ten times as
    large. Other numbers with a point may be a quarter off, since training carries on the last bits,
    which processors differ in.
    """
    words = [NUMBER.sub("#", DURATION.sub("TIME", text)).split() for text in (promised, printed)]
    assert words[0] == words[1], "\n".join(difflib.ndiff(*words))
    times = zip(DURATION.findall(promised), DURATION.findall(printed), strict=True)
    for time, time_now in times:
        assert _is_close_in_time(time, time_now), f"{time}: {time_now}"
    promised, printed = (DURATION.sub("TIME", text) for text in (promised, printed))
    pairs = zip(NUMBER.finditer(promised), NUMBER.findall(printed), strict=True)
    for match, number in pairs:
        after = promised[match.end() :].lstrip()
        assert _close(match[0], number, after), f"{match[0]} {after[:20]!r}: {number}"


def _is_close_in_time(promised: str, printed: str) -> bool:
    """Return True if a time differs by at most half the promised, or by one of its last unit."""
    want, got = map(_seconds, (promised, printed))
    return abs(got - want) <= max(abs(want) / 2, SECONDS[promised.split()[-1]])


def _seconds(duration: str) -> float:
    numbers, units = duration.split()[::2], duration.split()[1::2]
    size = sum(
        abs(_value(number)) * SECONDS[unit] for number, unit in zip(numbers, units, strict=True)
    )
    return -size if duration.startswith(("-", "−")) else size


def _close(promised: str, printed: str, after: str) -> bool:
    """after: the text behind the number, which begins with its unit."""
    want, got = map(_value, (promised, printed))
    if after.startswith("%"):
        return abs(got - want) <= 5
    if 0 < abs(want) < 1e-4:
        return abs(got) <= 10 * abs(want)
    if "." in promised:
        return math.isclose(got, want, rel_tol=0.25, abs_tol=1e-5)
    return got == want


def _value(number: str) -> float:
    return float(number.replace("−", "-").replace(",", "").lstrip("±"))
