"""Formulas in the plain text of docstrings, set with italic letters, indices and signs.

A docstring is read in a terminal, too, so its formulas are plain: `p = softmax(x W^T) + b_e`. On a
page they are HTML of a few elements (var, sub, sup), which needs no script and no font of its own.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from dataclasses import dataclass

GREEK = dict(
    alpha="α", beta="β", gamma="γ", delta="δ", epsilon="ε", eps="ε", zeta="ζ", eta="η", theta="θ",
    kappa="κ", lambda_="λ", mu="μ", nu="ν", pi="π", rho="ρ", sigma="σ", tau="τ", phi="φ", chi="χ",
    psi="ψ", omega="ω", Lambda="Λ", Psi="Ψ", Sigma="Σ", Theta="Θ",
)  # fmt: skip
GREEK["lambda"] = GREEK.pop("lambda_")
LARGE = {"sum": "∑", "prod": "∏", "sqrt": "√"}
FUNCTIONS = {
    "softmax", "log", "exp", "argmax", "argmin", "relu", "ReLU", "GRU", "MLP", "softplus",
    "cos", "sin", "diag", "det", "CE", "KL", "CV", "Re", "Gumbel", "sign", "sqrt", "tanh",
    "onehot", "erf", "top-k", "dx", "dy", "dW",
}  # fmt: skip
# words of prose, too: of a formula where they have an index or brackets, or stand before a term
WORDY = {
    "sum", "prod", "mean", "max", "min", "std", "log2", "norm", "idf", "active", "chosen",
}  # fmt: skip
# settings and parts that formulas name, behind a sign or a bracket only
SETTINGS = {
    "reg", "ce", "kl", "feature", "retain", "anchor", "steer", "weight", "drop", "temperature",
    "shrink", "draws", "rounds", "capacity", "least", "noise", "floor", "last", "first", "in",
    "out",
}  # fmt: skip
# indices of more than three letters, and short ones that are words: upright
INDEX_WORDS = {
    "in", "out", "neg", "pos", "end", "val", "forget", "retain", "target", "pruned", "patch",
    "block", "signal", "own",
}  # fmt: skip
SIGNS = {
    "<=": "≤", ">=": "≥", "->": "→", "~": "∼", "-": "−", "*": "·", ".": "·", "...": "…",
    "||": "‖", "<": "&lt;", ">": "&gt;", "|": "&#124;",
}  # fmt: skip
SPACED = re.compile(r" +(<=|>=|->|\.\.\.|\|\||[=<>~+\-/*.]) +")
TIGHT = re.compile(r" *(<=|>=|[=<>~+\-/*]) *| +(\|\|?) +")
GIVEN = re.compile(r"(\|)(?=\w)")  # of p(y|x)
NUMBER = re.compile(r"(?:\d+(?:\.\d+)?(?:e-\d+)?|\.\d+)(?:/(?:\d+|[a-zA-Z]\b))?(?![\w%]|\.\d)")
NAME = re.compile(r"(top-k(?=\()|[A-Za-z]+)(\d*)('?)")
INDEX = re.compile(r"_(?:\{([^{}]+)\}|([A-Za-z0-9]+))(?!_)")
POWER = re.compile(r"\^(-?\d+(?:/\d+)?|[A-Za-z]+)")
BRACKETS = {"(": ")", "[": "]"}
START = re.compile(r"(?<![\w`'/.\-^])(?=[A-Za-z0-9(\[|.-])")


@dataclass
class _Span:
    """A part of a text that reads as a formula: where it ends, its HTML, and what it has."""

    end: int
    markup: str
    certain: bool  # an index, a power, or a sign between terms
    named: bool  # a letter or the name of a function


def typeset(text: str, plain: Callable[[str], str] = html.escape) -> str:
    """Return a text as HTML with its formulas set; all else is what `plain` makes of it.

    text: without code. A formula has an index, a power, or a sign between terms: `k` alone stays.
    """
    parts: list[str] = []
    done = at = 0
    while match := START.search(text, at):
        at = match.start()
        span = _terms(text, at)
        if span and span.certain and span.named and not _glued(text, span.end):
            parts += [plain(text[done:at]), f'<span class="formula">{span.markup}</span>']
            done = at = span.end
        else:
            at += 1
    return "".join([*parts, plain(text[done:])])


def _glued(text: str, end: int) -> bool:
    """Return whether what ends here is the beginning of a word: `k-sparse`, `N's`, `tau_`."""
    return re.match(r"\w|[-'/][A-Za-z]|\(|=", text[end:]) is not None


def _terms(text: str, at: int, close: str = "") -> _Span | None:
    """Read terms with signs between them, or side by side.

    close: what ends them, in brackets: there commas and signs without spaces are read, too.
    """
    terms = _term(text, at, behind_sign=bool(close))
    while terms is not None:
        between, start = _between(text, terms.end, close)
        then = _term(text, start, behind_sign=between != " ") if between else None
        if then is None:
            break
        signed = between.strip(" ,;") != ""
        terms = _Span(
            then.end,
            terms.markup + between + then.markup,
            terms.certain or then.certain or signed,
            terms.named or then.named,
        )
    return terms


def _between(text: str, at: int, close: str) -> tuple[str, int]:
    """Return the sign, comma or space at a place, as HTML, and where the next term begins."""
    sign = SPACED.match(text, at)
    if close:
        sign = sign or TIGHT.match(text, at)
        if close in ")]":
            sign = sign or GIVEN.match(text, at)
        if comma := re.match(r"([,;]) ?", text[at:]):
            return f"{comma.group(1)} ", at + comma.end()
    if sign:
        word = next(filter(None, sign.groups()))
        return f" {SIGNS.get(word, word)} ", sign.end()
    if text[at : at + 1] == " ":
        return " ", at + 1
    # (a)(b), (W x)[c]
    return (
        ("\u2009", at)
        if text[at - 1 : at] in (")", "]") and text[at : at + 1] in BRACKETS
        else ("", at)
    )


def _term(text: str, at: int, behind_sign: bool) -> _Span | None:
    """Read a number, a name with its indices and arguments, or what stands in brackets."""
    if text[at : at + 1] == "-" and text[at + 1 : at + 2] != " ":
        inner = _term(text, at + 1, behind_sign=True)
        return inner and _Span(inner.end, f"−{inner.markup}", inner.certain, inner.named)
    if number := NUMBER.match(text, at):
        named = number.group()[-1].isalpha()
        markup = (
            f"{number.group()[:-1]}<var>{number.group()[-1]}</var>" if named else number.group()
        )
        span = _Span(number.end(), markup, named, named)
    else:
        span = _bracketed(text, at) or _barred(text, at) or _name(text, at, behind_sign)
    return span and _scripts(text, span)


def _bracketed(text: str, at: int) -> _Span | None:
    """Read `( terms )` or `[ terms ]`."""
    close = BRACKETS.get(text[at : at + 1])
    inner = _terms(text, at + 1, close) if close else None
    if inner is None or text[inner.end : inner.end + 1] != close:
        return None
    # brackets make no formula of a pair of letters: (N, E) is a shape
    return _Span(inner.end + 1, f"{text[at]}{inner.markup}{close}", inner.certain, inner.named)


def _barred(text: str, at: int) -> _Span | None:
    """Read `|terms|` or `||terms||`."""
    bars = re.compile(r"\|\|?(?=[^\s|])").match(text, at)
    inner = _terms(text, bars.end(), "|") if bars else None
    if bars is None or inner is None or not text.startswith(bars.group(), inner.end):
        return None
    sign = SIGNS[bars.group()]
    return _Span(inner.end + len(bars.group()), f"{sign}{inner.markup}{sign}", True, True)


def _name(text: str, at: int, behind_sign: bool) -> _Span | None:
    """Read a letter, a Greek letter or a function; a word of prose only where it must be one."""
    match = NAME.match(text, at)
    if match is None:
        return None
    word, digits, prime = match.groups()
    if prime and text[match.end() : match.end() + 1].isalpha():
        return None
    scripted = text[match.end() : match.end() + 1] in ("_", "^")
    called = text[match.end() : match.end() + 1] == "("
    digit = (f"<sub>{digits}</sub>" if digits else "") + ("′" if prime else "")
    follows = behind_sign or scripted or called or SPACED.match(text, match.end())
    if word in GREEK or len(word) == 1:
        if word == "a" and not (follows or digits or prime):
            return None
        span = _Span(match.end(), f"<var>{GREEK.get(word, word)}</var>{digit}", False, True)
    elif word in FUNCTIONS or word in WORDY:
        wordy = word in WORDY and not (scripted or called) and not _before_term(text, match.end())
        if wordy and (not follows or text.startswith((" of", " or"), match.end())):
            return None
        span = _Span(match.end(), LARGE.get(word, word) + digit, False, True)
    elif (word in SETTINGS and behind_sign) or (scripted and text[match.end()] == "^"):
        span = _Span(match.end(), f"<var>{word}</var>", False, True)
    elif called or (scripted and word in ("expert", "mlp")):
        span = _Span(match.end(), word, False, True)
    else:
        return None
    return _arguments(text, _scripts(text, span), must=called and len(word) > 1)


def _before_term(text: str, at: int) -> bool:
    """Return whether a term follows: `sum |w|`, but not `the mean of`."""
    then = _term(text, at + 1, behind_sign=False) if text[at : at + 1] == " " else None
    return then is not None and then.named and not _glued(text, then.end)


def _scripts(text: str, span: _Span) -> _Span:
    """Read the indices and powers behind a term."""
    while True:
        if index := INDEX.match(text, span.end):
            inside = index.group(1) or index.group(2)
            if index.group(2) and len(inside) > 3 and inside not in INDEX_WORDS:
                return span
            span = _Span(index.end(), f"{span.markup}<sub>{_index(inside)}</sub>", True, span.named)
        elif text.startswith("^(", span.end) and (power := _bracketed(text, span.end + 1)):
            span = _Span(power.end, f"{span.markup}<sup>{power.markup}</sup>", True, span.named)
        elif power := POWER.match(text, span.end):
            inner, end = power.group(1), power.end()
            called = _bracketed(text, end) if inner[0].isalpha() and len(inner) > 1 else None
            end = called.end if called else end
            shown = inner if inner == "T" or called else _index(inner)
            shown = shown.replace("-", "−") + (called.markup if called else "")
            span = _Span(end, f"{span.markup}<sup>{shown}</sup>", True, True)
        else:
            return span


def _index(inside: str) -> str:
    """Return an index as HTML: its letters italic, its words upright."""
    if inside in INDEX_WORDS:
        return inside
    if inside in GREEK:
        return f"<var>{GREEK[inside]}</var>"
    shown = inside.replace("-", "−").replace("!=", "≠")
    return re.sub(r"[A-Za-z]+", r"<var>\g<0></var>", shown)


def _arguments(text: str, span: _Span, must: bool) -> _Span | None:
    """Read the brackets right behind a name; must: without them it is no formula."""
    called = _bracketed(text, span.end)
    if called is None:
        return None if must else span
    markup, certain = span.markup + called.markup, span.certain or called.certain
    return _scripts(text, _Span(called.end, markup, certain, True))
