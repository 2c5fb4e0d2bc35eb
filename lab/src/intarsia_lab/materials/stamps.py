"""Tux Paint's stamps as questions: what a picture shows, speech in seven languages, a text.

A stamp has a picture, an English sentence and spoken descriptions; its folder is its topic. All
that belongs to one stamp stays on one side of a split.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from intarsia.data.packages import announce, obtain, pinned
from intarsia.senses.data.questions import Question

LANGUAGES = ("fr", "bg", "ca", "ro", "es", "be", "el")  # those with 700 stamps or more
FEWEST = 12  # stamps of a topic
PLURAL = {"animals": "animal", "vehicles": "vehicle", "plants": "plant", "clothes": "clothing"}


@dataclass(frozen=True)
class Stamp:
    """A stamp: its files, its English sentence ("" for none) and its topic."""

    picture: Path
    sentence: str
    topic: str
    spoken: dict[str, Path]

    @property
    def name(self) -> str:
        return self.picture.stem

    @property
    def late(self) -> bool:
        """True if the stamp is for testing: a quarter of all names."""
        return hashlib.sha256(self.name.encode()).digest()[0] < 64


def stamps(progress: Callable[[str], None] = announce) -> list[Stamp]:
    """Return all stamps of topics that have at least 12 of them, by path.

    progress: is called with a text when the stamps are downloaded.
    """
    root = obtain(pinned("tuxpaint-stamps-default"), progress=progress)
    root = root / "usr/share/tuxpaint/stamps"
    pictured = [_stamp(file, root) for file in sorted(root.rglob("*.png"))]
    topics = [stamp.topic for stamp in pictured]
    return [stamp for stamp in pictured if topics.count(stamp.topic) >= FEWEST]


def _stamp(picture: Path, root: Path) -> Stamp:
    """Read a stamp: its picture, sentence, topic and the spoken descriptions that exist."""
    text = picture.with_suffix(".txt")
    lines = text.read_text("utf-8", "replace").split("\n") if text.is_file() else [""]
    # the first line is the English one
    sentence = lines[0].strip().strip("=").strip()
    names = {code: picture.with_name(f"{picture.stem}_desc_{code}.ogg") for code in LANGUAGES}
    topic = picture.relative_to(root).parts[0]
    spoken = {code: file for code, file in names.items() if file.is_file()}
    return Stamp(picture, sentence, PLURAL.get(topic, topic), spoken)


def topic_questions(pictured: list[Stamp], *, languages: int = 1) -> list[Question]:
    """Return questions for the topic of stamps: by picture, by spoken texts, and by sentence.

    languages: spoken texts of each stamp. They take turns from stamp to stamp, so that a speaker
      says nothing about the topic.
    """
    questions: list[Question] = []
    for number, stamp in enumerate(pictured):
        labels: dict[str, Any] = {"answer": stamp.topic, "group": stamp.name}
        questions.append(Question("Kind?", image=(stamp.picture,), **labels))
        # languages in turn, from another one for each stamp
        codes = [
            c for c in (*LANGUAGES, *LANGUAGES)[number % len(LANGUAGES) :] if c in stamp.spoken
        ]
        for code in list(dict.fromkeys(codes))[:languages]:
            questions.append(Question("Kind?", audio=(stamp.spoken[code],), **labels))
        if stamp.sentence:
            questions.append(Question(f"{stamp.sentence} Kind?", **labels))
    return questions
