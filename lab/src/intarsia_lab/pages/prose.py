"""A docstring as Markdown: code stays code, names in it are links, and formulas are set."""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Mapping

from .formulas import typeset

WIDTH = 96  # of a docstring's lines: a line that ends much earlier ends a paragraph
LISTED = re.compile(r"- |\d+\. ")
LABEL = re.compile(r"(Raises|Source|In short|When to use it): ")
PAGE = re.compile(r"docs/([\w/-]+)\.md")
FORMULA = re.compile(r'<span class="formula">((?:(?!<span).)*</span>[.,:;]?)')  # and nothing else
ARXIV = re.compile(r"arXiv:(\d{4}\.\d{5})")


def markdown(doc: str, methods: Mapping[str, str]) -> str:
    """Return a docstring as Markdown of a page in docs/methods.

    doc: without indentation; lines further in are code. methods: name of a class -> its page.
    """
    parts: list[str] = []
    for block in filter(None, re.split(r"\n\s*\n", doc.strip())):
        for paragraph in _paragraphs(block.splitlines()):
            if _is_code(paragraph[0]):
                code = textwrap.dedent("\n".join(paragraph)).strip()
                parts.append(f"```python\n{code}\n```")
            else:
                text = _linked(" ".join(line.strip() for line in paragraph), methods)
                parts.append(LABEL.sub(r"**\1:** ", text, count=1))
    return "\n\n".join(parts)


def _paragraphs(lines: list[str]) -> list[list[str]]:
    """Return the lines of each paragraph of a block: one ends where a sentence ends early."""
    paragraphs = [lines[:1]]
    for before, line in zip(lines, lines[1:], strict=False):
        first = line.split(" ", 1)[0]
        early = before.endswith((".", ":")) and len(before) + 1 + len(first) <= WIDTH
        code = _is_code(line) and not LISTED.match(paragraphs[-1][0])
        if early or code != _is_code(paragraphs[-1][0]):
            paragraphs.append([line])
        else:
            paragraphs[-1].append(line)
    return paragraphs


def _is_code(line: str) -> bool:
    """Return whether a line is code: further in, or a call that Python can read."""
    if line.startswith(" "):
        return True
    try:
        body = ast.parse(line).body if "(" in line else []
    except SyntaxError:
        return False
    return any(
        isinstance(part, ast.Expr | ast.Assign)
        and any(isinstance(inner, ast.Call) for inner in ast.walk(part))
        for part in body
    )


def _linked(text: str, methods: Mapping[str, str]) -> str:
    """Return a sentence with its code as it is, its letters as letters, and its links."""
    # odd parts stand between backticks
    parts = text.split("`")
    for number, part in enumerate(parts):
        if number % 2:
            code = f"`{part}`"
            parts[number] = f"[{code}]({methods[part]})" if part in methods else code
        else:
            parts[number] = typeset(part, _plain)
    whole = FORMULA.fullmatch("".join(parts))
    return f'<span class="formula alone">{whole.group(1)}' if whole else "".join(parts)


def cell(text: str) -> str:
    """Return a sentence as a cell of a table, in which bars, stars and brackets are letters."""
    return "`".join(
        part.replace("|", "\\|") if number % 2 else typeset(part, _cell)
        for number, part in enumerate(text.split("`"))
    )


def _cell(text: str) -> str:
    """Return what is no formula in a cell."""
    return text.replace("|", "\\|").replace("*", "\\*").replace("<", "&lt;")


def _plain(text: str) -> str:
    """Return what is no formula in a paragraph, with its links."""
    plain = text.replace("*", "\\*").replace("<", "&lt;")
    plain = PAGE.sub(r"[\1](../\1.md)", plain)
    return ARXIV.sub(r"[arXiv:\1](https://arxiv.org/abs/\1)", plain)
