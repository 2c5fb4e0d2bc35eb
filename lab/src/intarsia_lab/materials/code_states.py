"""What a reader of Python code has to keep in mind, for each character, by Python's own tokenizer.

A board's state is what a model of chess has to track; brackets, strings, comments and indentation
are what a model of code has to, and the tokenizer of the language knows them exactly.
"""

from __future__ import annotations

import io
import keyword
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path

import numpy as np

STATES = (
    "comment",
    "string",
    "docstring",
    "keyword",
    "in ( )",
    "in [ ]",
    "in { }",
    "two brackets deep",
    "head of def or class",
    "indented",
    "indented twice",
    "indented three times",
)
OPEN, CLOSE = "([{", ")]}"
STRINGS = frozenset(
    kind
    for name in ("STRING", "FSTRING_START", "FSTRING_MIDDLE", "FSTRING_END")
    if (kind := getattr(tokenize, name, None)) is not None
)
QUIET = (tokenize.NL, tokenize.COMMENT, tokenize.INDENT, tokenize.DEDENT)


def library(characters: int) -> Iterator[str]:
    """Yield modules of the standard library as text, in the order of their names.

    characters: after so many in total no further module is begun.
    """
    for file in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        if characters <= 0:
            return
        text = file.read_text(encoding="utf-8", errors="replace")
        characters -= len(text)
        yield text


def states_of(text: str) -> np.ndarray:
    """Return which states each character of a Python module has, (characters, STATES) bool.

    text: of the module. States are such as "in a string" or "indented".
    Raises: tokenize.TokenError or SyntaxError for text that is no module.
    """
    # number of the character at which each line begins
    starts = np.cumsum([0, *(len(line) for line in text.splitlines(keepends=True)), 0])
    states = np.zeros((len(text), len(STATES)), dtype=bool)
    depth, level, head, before, last = dict.fromkeys(OPEN, 0), 0, False, tokenize.NEWLINE, 0
    # depth: open brackets by kind; head: inside the head of a def or class
    for kind, word, start, end, _ in tokenize.generate_tokens(io.StringIO(text).readline):
        # a token's place as numbers of characters
        begin, stop = starts[start[0] - 1] + start[1], starts[end[0] - 1] + end[1]
        if kind == tokenize.OP and word in OPEN:
            depth[word] += 1
        if kind == tokenize.NAME and word in ("def", "class") and not any(depth.values()):
            head = True
        # Python's tokenizer marks the beginning and end of indented blocks
        level += (kind == tokenize.INDENT) - (kind == tokenize.DEDENT)
        row = _row(kind, word, depth, level, head)
        row[2] = row[1] and before == tokenize.NEWLINE  # a statement that is a string
        states[last:stop] = row & ~ONLY_WORDS  # with the space before it
        states[begin:stop] = row
        # a bracket closes after its own character
        if kind == tokenize.OP and word in CLOSE:
            depth[OPEN[CLOSE.index(word)]] -= 1
        if kind == tokenize.OP and word == ":" and not any(depth.values()):
            head = False
        before, last = before if kind in QUIET else kind, max(last, stop)
    return states


# what the space before a word is not
ONLY_WORDS = np.array([name in ("comment", "string", "docstring", "keyword") for name in STATES])


def _row(kind: int, word: str, depth: dict[str, int], level: int, head: bool) -> np.ndarray:
    """Return the states of the characters inside a token, except for "docstring"."""
    inside = [depth[bracket] > 0 for bracket in OPEN]
    return np.array(
        [
            kind == tokenize.COMMENT,
            kind in STRINGS,
            False,
            kind == tokenize.NAME and keyword.iskeyword(word),
            *inside,
            sum(depth.values()) > 1,
            head,
            *(level >= least for least in (1, 2, 3)),
        ]
    )
