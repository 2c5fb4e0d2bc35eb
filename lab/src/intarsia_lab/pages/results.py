"""The results: a table with a row for each paper, and a page for each, from the stored records.

python -m intarsia_lab.pages.results    # docs/results.md and docs/results/*.md
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from intarsia.catalog import cards
from intarsia.core.errors import CheckpointError
from intarsia.reports.numbers import plural

from ..experiments import records
from ..experiments.records import COMMAND, Record
from ..kit import Effect, Study, word_of
from .effects_plot import EffectRow, effects_plot

# the areas of the documentation and their papers, in the order of the table
AREAS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "adapt": (
            *("MoSA", "MoS", "Bi adapters", "S2FT", "LT-SFT", "MixLoRA", "LLaVA-MoLE"),
            "Poly and MHR",
        ),
        "sparse": (
            *("BDWP and SAT", "DASS", "DSnoT", "Fast Sparse ConvNets", "GQSA", "MoA"),
            *("Random search of sparse nets", "SquareHead", "Sparse-IFT", "SparseByteNN"),
            "Sparse Model Soups",
        ),
        "mixtures": (
            *("COMET", "DeepSpeed-MoE", "EvoMoE", "MoE-X", "MomentumSMoE", "RMoE"),
            *("Softmax-Gaussian mixtures", "Sparse optimal transport", "Union of Experts"),
            *("Z-code M3", "SEUF", "Survey of compressed mixtures"),
        ),
        "large-mixtures": (
            *("ExpertFlow", "Hecate", "MoETuner", "QMoE", "Read-ME", "SE-MoE", "Tutel"),
        ),
        "search-and-recommend": (*("DSL", "Inference-free sparse retrieval", "M2TRec", "OneRec"),),
        "see-and-hear": ("SliME", "Uni-MoE"),
        "signals": ("ProSper", "RECOMBINER", "Sparsey"),
    }
)
TITLES: Mapping[str, str] = MappingProxyType(
    {
        "adapt": "Adapters",
        "sparse": "Sparse weights",
        "mixtures": "Mixtures of experts",
        "large-mixtures": "Large mixtures",
        "search-and-recommend": "Search and recommend",
        "see-and-hear": "Sound and vision",
        "signals": "Signals and memory",
    }
)
OPENING = """---
hide: [toc]
---

# Results

The headline of each paper as one small experiment: what the paper says, what came out here, and
whether both have the same sign. They were run on two cores of AMD and Intel servers, without a GPU,
with models of a few thousand to 135 million weights. Small models say little about large ones: a
row tells what a method does at this size, not whether its paper is right. Run one again with
`intarsia reproduce mosa`, from [the laboratory](install.md). Your own experiment is
[one file](how-to/add-a-method.md).

"""
WORDS = """*Same sign*: the whole 95 % interval lies on the side of no effect where the paper's
effect is. *Opposite*: on the other side. *Unclear*: no effect is inside the interval. A paper that
says *as good as* states no margin, so that its row has the interval and no word.
"""
EFFECTS = """## Effects next to the papers'

Where the paper has a number in the same unit. Each row has its own scale: the line is no effect,
right of it lies the paper's side.

"""
# a paper is found by its row and its methods; its page would hide those of every method
UNSEARCHED = ("---", "search: {exclude: true}", "---", "")
OPEN = 24  # rows of a table that stands open


def write_all(page: Path) -> None:
    """Write docs/results.md, and a page for each paper next to its records.

    page: path of the table; the records and the papers' pages lie in the folder of its name. Pages
    of papers that are gone are removed; a damaged record is left out, and named.
    """
    folder = page.with_suffix("")
    stored, damaged = records.read_all(folder)
    papers = by_paper(records.studies())
    texts = {f"{page_name(name)}.md": _paper_page(name, s, stored) for name, s in papers.items()}
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.md"):
        if old.name not in texts:
            old.unlink()
    for name, text in texts.items():
        (folder / name).write_text(text)
    page.write_text(_table_page(papers, stored, damaged, folder.name))


def by_paper(studies: Sequence[Study]) -> dict[str, list[Study]]:
    """Return the experiments of each paper in the order of AREAS; the first is its headline's.

    Papers of no area come last.
    """
    papers: dict[str, list[Study]] = {}
    for study in studies:
        papers.setdefault(study.system, []).append(study)
    order = [name for names in AREAS.values() for name in names if name in papers]
    return {name: papers[name] for name in [*order, *(n for n in papers if n not in order)]}


def page_name(paper: str) -> str:
    """Return the name of a paper's page, as softmax-gaussian-mixtures."""
    return re.sub(r"[^a-z0-9]+", "-", paper.casefold()).strip("-")


def number(record: Record) -> str:
    """Return a record's value with its 95 % interval, such as "1.058 [1.004, 1.112]"."""
    low, high = record.interval or (0.0, abs(record.value))
    # three digits of the interval's width, and no more than four of the value
    of_width = 2 - math.floor(math.log10(high - low)) if high > low else 0
    of_value = 3 - math.floor(math.log10(abs(record.value))) if record.value else 3
    digits = max(0, min(of_width, of_value, 4))
    ends = f" [{low:.{digits}f}, {high:.{digits}f}]" if record.interval else ""
    return f"{record.value:.{digits}f}{ends}"


def word(study: Study, record: Record | None) -> str:
    """Return how a record lies to its paper's effect; "" without a record or a sign."""
    return "" if record is None else word_of(study.effect, record.interval)


def counted(headlines: Iterable[Study], stored: Mapping[str, Record]) -> str:
    """Return how many headlines have the paper's sign, in words."""
    words = Counter(word(study, stored.get(study.key)) for study in headlines)
    return (
        f"{words['same sign']} with the paper's sign, {words['opposite']} opposite, "
        f"{words['unclear']} unclear, and {words['']} that ask *as good as* or count"
    )


def lines_of_methods(folder: Path) -> dict[str, str]:
    """Return what a method's page says of its paper's headline, by the paper's arXiv number.

    folder: of the records.
    """
    stored = records.read_all(folder)[0]
    lines: dict[str, str] = {}
    for name, (study, *_) in by_paper(records.studies()).items():
        record = stored.get(study.key)
        here = f"{number(record)} {study.unit}" if record else "not run"
        said = f" {_badge(word(study, record))}".rstrip()
        paper = f" The paper: {study.effect.says}." if study.effect else ""
        link = f"[{name}](../{folder.name}/{page_name(name)}.md)"
        lines[study.arxiv] = f"{link}: {study.question} {here}{said}.{paper}"
    return lines


def row_of(study: Study, stored: Mapping[str, Record]) -> dict[str, str]:
    """Return the columns of an experiment: question, both effects, data, word and minutes."""
    record = stored.get(study.key)
    return {
        "question": study.question,
        "the paper's effect": _effect(study.effect),
        "here [95 % interval]": f"{number(record)} {study.unit}" if record else "not run",
        "model and data here": study.work,
        "": _badge(word(study, record)),
        "minutes": str(study.minutes),
    }


def markdown(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return rows as the lines of a Markdown table; no lines for no rows.

    rows: column -> value; a row that lacks a column has an empty value.
    """
    names, *cells = squared(rows)
    if not names:
        return []
    lines = ["| " + " | ".join(line) + " |" for line in (names, *cells)]
    return [lines[0], "|" + "---|" * len(names), *lines[1:]]


def squared(rows: Iterable[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Return the rows of a table as text: the names of all columns, then each row's values."""
    rows = list(rows)
    names = tuple(dict.fromkeys(name for row in rows for name in row))
    return [names, *(tuple(str(row.get(name, "")) for name in names) for row in rows)]


def _table_page(
    papers: Mapping[str, Sequence[Study]],
    stored: Mapping[str, Record],
    damaged: Mapping[str, CheckpointError],
    folder: str,
) -> str:
    """Return the page with a row for each paper, and the picture of the effects."""
    headlines = {name: studies[0] for name, studies in papers.items()}
    lines = [
        f"{OPENING}The {len(papers)} papers: {counted(headlines.values(), stored)}.",
        "",
        WORDS,
    ]
    areas = {**AREAS, "": tuple(n for n in papers if not any(n in a for a in AREAS.values()))}
    for area, names in areas.items():
        rows = [
            {"paper": f"[{name}]({folder}/{page_name(name)}.md)"} | row_of(headlines[name], stored)
            for name in names
            if name in headlines
        ]
        if rows:
            title = f"[{TITLES[area]}](areas/{area}.md)" if area else "Others"
            # as cards on a telephone, see site.css
            lines += [f"## {title}", "", '<div class="cards board" markdown="1">', ""]
            lines += [*markdown(rows), "", "</div>", ""]
    plotted = [row for study in headlines.values() if (row := _plotted(study, stored)) is not None]
    lines += [EFFECTS + effects_plot(plotted)] if plotted else []
    lines += [f"\nLeft out, since it cannot be read: {error}." for error in damaged.values()]
    return "\n".join(lines).rstrip() + "\n"


def _plotted(study: Study, stored: Mapping[str, Record]) -> EffectRow | None:
    """Return a row of the picture; None where the units differ, or nothing was run."""
    record, effect = stored.get(study.key), study.effect
    if record is None or effect is None or not effect.values or not effect.sign:
        return None
    return EffectRow(
        study.system,
        word(study, record),
        effect.sign,
        effect.null,
        record.value,
        record.interval,
        effect.values,
    )


def _paper_page(name: str, studies: Sequence[Study], stored: Mapping[str, Record]) -> str:
    """Return the page of a paper: what it says, what came out here, the table, how to run it."""
    arxiv = studies[0].arxiv
    methods = [card for card in cards() if card.paper.arxiv == arxiv]
    links = [f"[arXiv:{arxiv}](https://arxiv.org/abs/{arxiv})"]
    links += [f"{card.kind} [{card.key}](../methods/{card.key}.md)" for card in methods]
    links += ["[all papers](../results.md)"]
    lines = [*UNSEARCHED, f"# {name}", "", " · ".join(links)]
    for study in studies:
        lines += ["", f"## {study.question}", "", *_section(study, stored.get(study.key))]
    return "\n".join(lines).rstrip() + "\n"


def _section(study: Study, record: Record | None) -> list[str]:
    """Return the Markdown of an experiment, below its question."""
    says = _effect(study.effect, " (", ")") or "No figure of its own."
    lines = [f"**The paper says:** {says}", ""]
    run = f"**Run it:** `{COMMAND} {study.key}`, {plural(study.minutes, 'minute')} on two cores."
    if record is None:
        return [*lines, f"**Here:** not run. {study.differs}", "", run]
    badge = _badge(word(study, record))
    here = f"**Here:** {number(record)} {study.unit} {badge}".rstrip()
    lines += [f"{here}; {study.work}, compared with {study.baseline}. {study.differs}", ""]
    table = markdown(record.table)
    # a table of a hundred layers is opened by who wants it
    if len(record.table) > OPEN:
        opening = f'<details markdown="1"><summary>{len(record.table)} rows</summary>'
        table = [opening, "", *table, "", "</details>"]
    lines += [*table, ""] if table else []
    lines += [record.note, ""] if record.note else []
    place = f", commit `{record.commit}`" if record.commit else ""
    seeds = plural(len(record.seeds), "seed")
    made = f"{record.date}, version {record.version}{place}, {seeds}; {record.machine}"
    return [*lines, f"{run} This one: `{record.command}`, {made}."]


def _effect(effect: Effect | None, before: str = "; ", after: str = "") -> str:
    """Return a paper's effect, where it was found, and its source in brackets; "" for none."""
    if effect is None:
        return ""
    return f"{effect.says}{before}{effect.where}{f'; {effect.source}' if after else ''}{after}"


def _badge(words: str) -> str:
    """Return a word as HTML that the page colours; "" for none."""
    return f'<span class="word {words.replace(" ", "-")}">{words}</span>' if words else ""


if __name__ == "__main__":
    write_all(Path("docs/results.md"))
