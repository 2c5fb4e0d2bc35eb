"""Small pieces of sentences."""

from __future__ import annotations

from collections.abc import Sequence

from ..core.registry import paper_name


def capital(text: str) -> str:
    """Return a text with its first letter as at the beginning of a sentence."""
    return text[:1].upper() + text[1:]


def method_name(label: str) -> str:
    """Return a method's label with its name as the paper writes it: "MoSA, official"."""
    name, comma, rest = label.partition(",")
    return paper_name(name) + comma + rest


def joined(words: Sequence[str]) -> str:
    """Join words as in a sentence: a, b and c."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else list(words))


def first_line(error: str, longest: int = 120) -> str:
    """Return the first line of an error's text, cut to `longest` letters."""
    line = (error.strip().splitlines() or ["no message"])[0]
    return line if len(line) <= longest else f"{line[: longest - 1]}\N{HORIZONTAL ELLIPSIS}"
