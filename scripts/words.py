"""Hold names, summaries and comments to the shares that are recorded; these may only get better.

    python scripts/words.py             fail where a folder has become worse
    python scripts/words.py --write     record the shares of today, where they are better
    python scripts/words.py FOLDER      list a folder's names and summaries to mend

Four numbers for each folder of `src/intarsia`, `lab/src/intarsia_lab` and for `tests`: variables
and parameters with a name that says nothing about their content, in percent; docstrings with a
summary that begins with a pronoun or a preposition, in percent; comments for each hundred lines
that are no docstring and no declaration of a setting, so that a description costs no comment;
phrases that nobody says aloud (`UNSAID`) per 10,000 words of docstrings and comments; up to eight
are never worse.
"""

from __future__ import annotations

import ast
import io
import json
import re
import sys
import tokenize
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
RECORD = Path(__file__).with_name("words.json")
VAGUE = frozenset(
    [
        "found",
        "made",
        "said",
        "told",
        "asked",
        "given",
        "seen",
        "kept",
        "held",
        "shown",
        "chosen",
        "known",
        "wanted",
        "taken",
        "left",
        "own",
        "whole",
        "beside",
        "here",
        "there",
        "one",
        "other",
        "others",
        "few",
        "many",
        "more",
        "most",
        "each",
        "every",
        "same",
        "how",
        "what",
        "who",
        "where",
        "when",
        "why",
        "about",
        "of",
        "at",
        "by",
        "to",
    ]
)
BEGINNINGS = re.compile(
    r"(What|Whether|That|Those|Of|So many|Where|Which|How|Who|Whose|By|In|As|With|Without|For|From|"
    r"On|To|At|Behind|Beside|Inside|Around|Once|Until|Times|More|Ready|Such|Each|All|None|One|"
    r"Likewise|It)\b"
)
UNSAID = re.compile(
    r"\b(that of|those of|whose|what (is|it|they|was|were|are)|beside|of which|anew|in place of|"
    r"goes on|go on|by itself|by themselves)\b",
    re.IGNORECASE,
)
FEW = 8.0  # phrases per 10,000 words; scikit-learn has 4.5
FOR_TOOLS = ("noqa", "type:", "fmt:", "pyright:", "pragma", "ruff:")
Function = ast.FunctionDef | ast.AsyncFunctionDef
SLACK = 0.05  # of a percent, so that a line that is taken away makes nothing worse


@dataclass
class Words:
    """The counts of a folder.  vague, weak: "FILE:LINE text" of each name and summary to mend."""

    names: int = 0
    summaries: int = 0
    lines: int = 0  # without docstrings
    comments: int = 0
    words: int = 0  # of docstrings and comments
    unsaid: int = 0
    vague: list[str] = field(default_factory=list[str])
    weak: list[str] = field(default_factory=list[str])

    def shares(self) -> dict[str, float]:
        """Return the four numbers, with two digits."""
        return {
            "vague names": round(100 * len(self.vague) / max(1, self.names), 2),
            "weak summaries": round(100 * len(self.weak) / max(1, self.summaries), 2),
            "comments": round(100 * self.comments / max(1, self.lines), 2),
            "phrases": round(1e4 * self.unsaid / max(1, self.words), 2),
        }


def stored_names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the line and the name of every variable that is set and of every parameter."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg


def summaries(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the line and the first line of the docstring of every function and class with one."""
    for node in ast.walk(tree):
        if isinstance(node, Function | ast.ClassDef) and (text := ast.get_docstring(node)):
            yield node.lineno, text.split("\n")[0]


def docstring_lines(tree: ast.AST) -> int:
    """Count the lines of all docstrings."""
    total = 0
    for node in ast.walk(tree):
        if isinstance(node, Function | ast.ClassDef | ast.Module) and ast.get_docstring(node):
            text = node.body[0]
            total += (text.end_lineno or text.lineno) - text.lineno + 1
    return total


def declaration_lines(tree: ast.AST) -> int:
    """Count the lines of settings that are declared with a help."""
    return sum(
        (node.end_lineno or node.lineno) - node.lineno + 1
        for node in ast.walk(tree)
        if isinstance(node, ast.AnnAssign)
        and isinstance(node.value, ast.Call)
        and ast.unparse(node.value.func) == "setting"
    )


def comments(text: str) -> list[str]:
    """Return the comments for readers."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    texts = (token.string for token in tokens if token.type == tokenize.COMMENT)
    return [text for text in texts if not any(mark in text for mark in FOR_TOOLS)]


def docstrings(tree: ast.AST) -> list[str]:
    """Return the docstrings of a module and of all inside it."""
    texts: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, Function | ast.ClassDef | ast.Module) and (
            t := ast.get_docstring(node)
        ):
            texts.append(t)
    return texts


def measure(folder: Path) -> Words:
    """Count the words of all Python files below a folder."""
    words = Words()
    for path in sorted(folder.rglob("*.py")):
        text = path.read_text()
        tree, place = ast.parse(text), path.relative_to(ROOT)
        names, firsts = list(stored_names(tree)), list(summaries(tree))
        words.names += len(names)
        words.summaries += len(firsts)
        words.lines += text.count("\n") - docstring_lines(tree) - declaration_lines(tree)
        remarks = comments(text)
        words.comments += len(remarks)
        prose = "\n".join([*docstrings(tree), *remarks])
        words.words += len(re.findall(r"[A-Za-z][A-Za-z'-]+", prose))
        words.unsaid += len(UNSAID.findall(prose))
        words.vague += [f"{place}:{line} {name}" for line, name in names if name in VAGUE]
        words.weak += [
            f"{place}:{line} {first}" for line, first in firsts if BEGINNINGS.match(first)
        ]
    return words


def folders() -> list[Path]:
    """Return the folders that have a record of their own."""
    packages = (ROOT / "src" / "intarsia", ROOT / "lab" / "src" / "intarsia_lab")
    inner = (path for package in packages for path in package.iterdir())
    return [*sorted(p for p in inner if p.is_dir() and any(p.glob("*.py"))), ROOT / "tests"]


def worse(now: Mapping[str, float], before: Mapping[str, float]) -> list[str]:
    """Return which of a folder's four numbers are worse than the recorded ones, in words."""
    texts: list[str] = []
    for name, value in now.items():
        sign = -1 if name == "comments" else 1
        enough = name == "phrases" and value <= FEW
        if not enough and sign * (value - before.get(name, value)) > SLACK:
            texts.append(f"{name} {value}, recorded {before[name]}")
    return texts


def better(now: Mapping[str, float], before: Mapping[str, float]) -> dict[str, float]:
    """Return the better one of each number."""
    return {
        name: (max if name == "comments" else min)(value, before.get(name, value))
        for name, value in now.items()
    }


def main(arguments: list[str]) -> int:
    """Run the command; 1 if a folder has become worse."""
    if arguments and arguments[0] != "--write":
        words = measure((ROOT / arguments[0]).resolve())
        print("\n".join([*words.vague, *words.weak, str(words.shares())]))
        return 0
    before = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    now = {str(path.relative_to(ROOT)): measure(path).shares() for path in folders()}
    if arguments:
        record = {name: better(shares, before.get(name, {})) for name, shares in now.items()}
        RECORD.write_text(json.dumps(record, indent=1) + "\n")
        return 0
    problems = [
        f"{name}: {text}" for name in now for text in worse(now[name], before.get(name, {}))
    ]
    print("\n".join(problems) or f"words: {len(now)} folders, none worse than recorded")
    if problems:
        print("List them: python scripts/words.py FOLDER")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
