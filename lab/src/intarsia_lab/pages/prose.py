"""A docstring as Markdown: code stays code, and names in it are links."""

from __future__ import annotations

import re
from collections.abc import Mapping

WIDTH = 96  # of a docstring's lines: a line that ends much earlier ends a paragraph
LISTED = re.compile(r"- |\d+\. ")
LABEL = re.compile(r"(Raises|Source|In short|When to use it): ")
PAGE = re.compile(r"docs/([\w/-]+)\.md")
ARXIV = re.compile(r"arXiv:(\d{4}\.\d{5})")


def markdown(doc: str, methods: Mapping[str, str]) -> str:
    """Return a docstring as Markdown of a page in docs/methods.

    doc: without indentation; lines further in are code. methods: name of a class -> its page.
    """
    parts: list[str] = []
    for block in filter(None, re.split(r"\n\s*\n", doc.strip())):
        for paragraph in _paragraphs(block.splitlines()):
            if paragraph[0].startswith(" "):
                parts.append("\n".join(["```python", *(line[2:] for line in paragraph), "```"]))
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
        code = line.startswith(" ") and not LISTED.match(paragraphs[-1][0])
        if early or code != paragraphs[-1][0].startswith(" "):
            paragraphs.append([line])
        else:
            paragraphs[-1].append(line)
    return paragraphs


def _linked(text: str, methods: Mapping[str, str]) -> str:
    """Return a sentence with its code as it is, its letters as letters, and its links."""
    # odd parts stand between backticks
    parts = text.split("`")
    for number, part in enumerate(parts):
        if number % 2:
            code = f"`{part}`"
            parts[number] = f"[{code}]({methods[part]})" if part in methods else code
        else:
            plain = part.replace("*", "\\*").replace("<", "&lt;")
            plain = PAGE.sub(r"[\1](../\1.md)", plain)
            parts[number] = ARXIV.sub(r"[arXiv:\1](https://arxiv.org/abs/\1)", plain)
    return "".join(parts)
