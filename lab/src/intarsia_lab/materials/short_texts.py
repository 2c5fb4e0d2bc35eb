"""Short real texts with answers, of different forms: glosses, emoji, old definitions, sentences."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple, TypeVar

from intarsia.data import corpora
from intarsia.data.packages import obtain, pinned
from intarsia.data.reverse_dictionary import read_reverse_dictionary

T = TypeVar("T")
WORDS = 12  # most of a text
RARE = ("top", "motive")  # kinds of noun with about fifty glosses
QUESTION = "What kind of thing is this? "


class QuestionAnswer(NamedTuple):
    """A question and its answer; without a question, a text."""

    prompt: str
    answer: str


def quiet(_: str) -> None: ...


def short(text: str, words: int = WORDS) -> str:
    return " ".join(text.split()[:words])


@lru_cache(maxsize=1)
def _glosses() -> tuple[tuple[str, str], ...]:
    """Return (gloss, kind of noun) of WordNet's nouns, each gloss once, in a random order."""
    kinds: dict[str, str] = {}
    # the first kind counts, where a gloss has several
    for row in corpora.read("wordnet", quiet):
        kinds.setdefault(row["prompt"].removeprefix(QUESTION), row["response"])
    return tuple(_shuffled([(g, k) for g, k in kinds.items() if k not in RARE]))


def by_kind() -> dict[str, list[str]]:
    """Return the glosses of each of 24 kinds of noun, in a random order: kind -> glosses."""
    glosses: dict[str, list[str]] = {}
    for gloss, kind in _glosses():
        glosses.setdefault(kind, []).append(short(gloss))
    return dict(sorted(glosses.items()))


@lru_cache(maxsize=1)
def old_definitions() -> tuple[tuple[str, str, str, str], ...]:
    """Return (noun, definition in GCIDE, kind and gloss of WordNet) of the nouns that both have.

    The kind is from WordNet's gloss and the definition from another dictionary, of 1913 for the
    most part; entries that GCIDE took from WordNet are left out.
    """
    # a gloss without its examples
    kinds = {gloss.split("; ")[0].strip(): kind for gloss, kind in _glosses()}
    entries, parts = read_reverse_dictionary(quiet)
    definitions: list[tuple[str, str, str, str]] = []
    for topics in parts.values():
        for gloss, (noun,) in topics.items():
            # the dictionary's entry and WordNet's gloss are of the same noun
            sense = gloss.split("; ")[0].strip()
            text = definition(entries[noun])
            if sense in kinds and text and "WordNet" not in entries[noun]:
                definitions.append((noun, short(text), kinds[sense], sense))
    return tuple(_shuffled(definitions))


def definition(entry: str) -> str:
    """Return the first definition of a noun in an entry; "" if it has fewer than four words.

    entry: text of the dictionary GCIDE.
    """
    # " n. " marks a noun in GCIDE
    _, noun, rest = entry.partition(" n. ")
    plain = re.sub(r"\[[^\]]*\]|\([^)]*\)|[{}]", "", rest[:400] if noun else "")
    plain = re.sub(r"^\W*(pl\.\s+\w+\W+)?(\d+\.\s*)?", "", plain)
    text = re.split(r"[.;:]", plain)[0].strip()
    return text if len(text.split()) >= 4 else ""


def emoji() -> list[QuestionAnswer]:
    """Return the names of emoji as questions, and their groups as answers, in a random order."""
    file = obtain(pinned("emoji-datasource"), progress=quiet) / "package/emoji.json"
    rows = json.loads(file.read_text(encoding="utf-8"))
    named = {row["name"].lower(): row["category"] for row in rows if row["category"] != "Component"}
    return _shuffled([QuestionAnswer(short(name), group) for name, group in named.items()])


def sentences() -> list[QuestionAnswer]:
    """Return sentences of Austen's novels: the first half as a question, the rest as its answer."""
    text = " ".join(corpora.read("austen", quiet).split())
    pairs: list[QuestionAnswer] = []
    for sentence in re.findall(r"[A-Z][^.!?]{30,120}[.!?]", text):
        words = sentence.split()[: WORDS + 4]
        half = len(words) // 2
        pairs.append(QuestionAnswer(" ".join(words[:half]), " ".join(words[half:])))
    # each pair once
    return _shuffled(list(dict.fromkeys(pairs)))


def kinds() -> list[QuestionAnswer]:
    """Return glosses of WordNet and the kind of their noun, without those in `old_definitions`."""
    excluded = {gloss for _, _, _, gloss in old_definitions()}
    return [QuestionAnswer(short(g), k) for g, k in _glosses() if g not in excluded]


def defined() -> list[QuestionAnswer]:
    """Return nouns and their definitions in GCIDE."""
    return [QuestionAnswer(noun, text) for noun, text, _, _ in old_definitions()]


def old_kinds() -> list[QuestionAnswer]:
    """Return definitions in GCIDE and the kind of their noun: `kinds` in another domain."""
    return [QuestionAnswer(text, kind) for _, text, kind, _ in old_definitions()]


def old_texts() -> list[QuestionAnswer]:
    """Return the same definitions as plain texts, in the same order."""
    return [QuestionAnswer("", text) for _, text, _, _ in old_definitions()]


def _shuffled(rows: Sequence[T]) -> list[T]:
    shuffled = list(rows)
    random.Random(0).shuffle(shuffled)
    return shuffled
