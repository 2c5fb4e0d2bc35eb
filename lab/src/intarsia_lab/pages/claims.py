"""The pages of the claims: a scoreboard with a row for each paper, and a page for each paper.

python -m intarsia_lab.pages.claims    # docs/claims.md and docs/claims/*.md, from the records
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from intarsia.catalog import cards
from intarsia.reports.numbers import plural

from ..claims import ledger
from ..claims.bars import Line, of_claim, read_bars
from ..claims.ledger import ARXIV, COMMAND, OLDER, Record, paper_of, squared
from ..claims.standing import CHECK, CLASSES, CONTRAST, VARIANT, class_of
from ..claims.verdicts import NOT_REPRODUCED, briefly
from ..kit import Effect, FixedRate, NoControl, Study
from .by_paper import entry, facts, lacks, many, own, so_far
from .confirmed import confirmed
from .evidence_plot import EvidenceRow, evidence_plot
from .history import cost_of, judged_by, minutes_of, rows_of, target_of

OF_NO_PAPER = "Next to the papers"  # claims of the library that are no paper's
# a bracket of a sentence with the paper's number, and the number in it
NUMBERED = re.compile(r" \(([^()]*arXiv:[^()]*)\)")
ARXIV_IN_WORDS = re.compile(r"arXiv:\d{4}\.\d{5}[,;]? ?")
COUNTED = "Headlines"  # begins the sentence that README has, too
DECLARED = "declared, no run"  # a claim without a record
CONFIRMED = ", confirmed "
UNCOMMITTED = " (+: with changes that were not committed)"  # behind a commit that ends so
OPEN = 24  # rows of a table that stands open
OPENING = """---
hide: [toc]
---

# Claims

The headline of each paper as the smallest honest experiment, run on two processor cores.
"""
RULES = """[A row for each paper](#a-row-for-each-paper) has what was measured next to the paper's
own figure. A verdict compares an interval, at first the 95 % one, with every bar that the figure
ever had, which the paper's page lists, oldest first. A bar is declared before its run; one whose
value came after a figure of the same comparison says so wherever it stands:

- <span class="verdict holds">holds</span> the whole 95 % interval lies on the bar's side;
- <span class="verdict not-reproduced-at-this-scale">not reproduced at this scale</span> the whole
  interval lies on the other side, and model, length, data or machine are not the paper's;
- <span class="verdict fails">fails</span> the same in the paper's own regime, or of a check;
- <span class="verdict not-decided">not decided</span> for the reason behind it: the bar lies inside
  the interval that judges, which is printed where it is another one than the figure's; it was
  moved, the seeds were seen by an earlier design, or the headline lacks what the rules want: a
  trivial and a strong cheap arm in its table, an arm that must lose, its test items in the
  interval, a rate that each arm chose;
- <span class="verdict void">void</span> the control failed, or the learning rate of an arm is no
  fair choice: the figure means nothing;
- <span class="verdict withdrawn">withdrawn</span> a verdict that was taken back, and why.

A second look at a claim is judged at 99.5 %, a third at 99.83 %, and so on; a claim of several
comparisons by the interval of the worst of them.

There is no goal for the number of verdicts; [how often they are
false](benchmarks/claim_rules.md) was simulated. A headline asks *the paper's contrast*, or it is *a
variant, a simulation or a part of it*, or *a check of code or arithmetic*, which counts as no
evidence. `intarsia reproduce NAME` runs a claim again. To cite a figure, name the claim, its commit
and its date, which stand on the paper's page.
"""
# a paper is found by its row and its methods; its runs would hide the pages of every method
UNSEARCHED = ("---", "search: {exclude: true}", "---", "")
STALE = """A verdict is counted for the code that it was measured with. What was measured before
the code changed, or with uncommitted changes (a "+" behind the commit), is *to rerun*; its row
below keeps its last verdict and figure in grey, such as <span class="verdict older">held, of older
code</span>. It counts again where `intarsia reproduce NAME --confirm` has *confirmed* it: one of
its seeds, run again with today's code on a clean commit, has the stored value to six digits, or the
value that the record's own commit has on the same machine. One seed is not all: what only other
seeds reach is not seen, and a figure of counts can be equal by chance. A measured time is never
confirmed. The paper's page has the seed, both values and the commit; a seed that was not equal
stands there, too, and leaves its record to rerun.
"""
WAITING = "to rerun"  # of today's code, on a clean commit
IN_WORDS = {
    "holds": ("holds", "hold"),
    "fails": ("fails", "fail"),
    **{word: (word, word) for word in (NOT_REPRODUCED, "not decided", "void", "withdrawn")},
    WAITING: (WAITING, WAITING),
}
PAST = {"holds": "held", "fails": "failed", NOT_REPRODUCED: "was not reproduced at this scale"}


def write_all(page: Path) -> None:
    """Add today's targets to the ledger of bars, judge all records again, and write the pages."""
    folder = page.with_suffix("")
    ledger.declare(folder)
    ledger.judge_again(folder)
    write_page(folder, page)


def write_page(folder: Path, page: Path) -> None:
    """Write docs/claims.md, the scoreboard, and a page for each paper next to its claims' records.

    folder: has the records and gets the papers' pages; page: path of the scoreboard. Pages of
    papers that are gone are removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # the last run of each claim, by its key
    records = ledger.read_all(folder)
    papers = by_paper(ledger.claims())
    bars = read_bars(folder)
    texts = {
        f"{page_name(name)}.md": _paper_page(name, studies, records, bars)
        for name, studies in papers.items()
    }
    # records are JSON, so that a page without a paper is the only Markdown to remove
    for old in folder.glob("*.md"):
        if old.name not in texts:
            old.unlink()
    for name, text in texts.items():
        (folder / name).write_text(text)
    page.write_text(_scoreboard(papers, records, folder.name, bars))


def by_paper(studies: Sequence[Study]) -> dict[str, list[Study]]:
    """Return the claims of each paper, sorted by its name; claims of no paper come last.

    The first of a paper is its headline, the one claim that has `system`, the paper's name;
    `paper_of` finds the headline that another claim belongs to, None if none.
    """
    papers: dict[str, list[Study]] = {study.system: [study] for study in studies if study.system}
    papers = {name: papers[name] for name in sorted(papers, key=str.casefold)}
    # claims on the library itself come last, under a heading of their own
    of_no_paper: list[Study] = []
    for study in studies:
        if not study.system:
            headline = paper_of(study.key)
            (of_no_paper if headline is None else papers[headline.system]).append(study)
    return papers | ({OF_NO_PAPER: of_no_paper} if of_no_paper else {})


def page_name(paper: str) -> str:
    """Return the name of a paper's page, as softmax-gaussian-mixtures."""
    return re.sub(r"[^a-z0-9]+", "-", paper.casefold()).strip("-")


def link_of(key: str) -> str:
    """Return where a claim stands in the documentation, such as claims/mos.md#mos-order."""
    headline = paper_of(key)
    name = OF_NO_PAPER if headline is None else headline.system
    return f"claims/{page_name(name)}.md#{key}"


def _scoreboard(
    papers: Mapping[str, Sequence[Study]],
    records: Mapping[str, Record],
    folder: str,
    bars: Sequence[Line],
) -> str:
    """Return the page with a verdict for each paper: counts, a table, a plot, and each in words."""
    # claims of the library itself belong to no paper: they have no figure of their own here
    headlines = {name: studies[0] for name, studies in papers.items() if name != OF_NO_PAPER}
    rows: list[dict[str, str]] = []
    for name, studies in papers.items():
        holding = [_counted(records.get(s.key)) for s in studies].count("holds")
        row = {
            "paper": f"[{name}]({folder}/{page_name(name)}.md)<br>"
            f"holds: {holding} of {plural(len(studies), 'claim')}"
        }
        if name in headlines:
            row |= _board_row(headlines[name], records.get(headlines[name].key), bars)
        rows.append(row)
    # headlines alone: a paper's other claims have other units
    plot = [_plotted(s, records.get(s.key)) for s in headlines.values()]
    lines = [
        OPENING,
        *_counts([s for studies in papers.values() for s in studies], records),
        RULES,
        "## A row for each paper",
        "",
        # as cards on a telephone, see site.css
        '<div class="cards board" markdown="1">',
        "",
        *markdown(rows),
        "",
        "</div>",
        "",
        "## Ours next to the papers'",
        "",
        "Each row has the scale of its own unit: the target stands at the line, and right of it",
        "the claim holds. Grey is what is to rerun.",
        "",
        evidence_plot(plot) if plot else "",
        "",
        "## Paper by paper",
        "",
        *many([*headlines.values()], records),
    ]
    for study in headlines.values():
        record = records.get(study.key)
        figure = "" if record is None else f" {_interval(record)}"
        lines += entry(study, record, f"{_badge(record)}{figure}", bars)
    return "\n".join(lines).rstrip() + "\n"


def _board_row(study: Study, record: Record | None, bars: Sequence[Line]) -> dict[str, str]:
    """Return a headline's columns of the scoreboard: claim, verdict, both figures and the date."""
    sentence = NUMBERED.sub(_without_number, study.sentence)
    measured = DECLARED if record is None else f"{_interval(record)} {study.unit}"
    measured += f"; target {target_of(study, bars)}{judged_by(study, record, bars)}"
    return {
        "claim": f"{sentence} *{class_of(study.key).capitalize()}.*",
        "verdict": _badge(record) + _because(record),
        "here [95 % interval]": measured,
        "the paper's own": own(study),
        "run": "" if record is None else _dated(record),
    }


def _dated(record: Record) -> str:
    """Return the day of a run, and the one on which a seed of it was run again."""
    again = "" if record.confirmed is None else f"{CONFIRMED}{record.confirmed['date']}"
    return record.date + again + OLDER * record.older


def _without_number(bracket: re.Match[str]) -> str:
    """Return a bracket of a sentence without the paper's number, which its row links."""
    inside = ARXIV_IN_WORDS.sub("", bracket[1]).strip(" ,;")
    return f" ({inside})" if inside else ""


def _figures(study: Study, record: Record | None) -> dict[str, str]:
    """Return a claim's columns of its paper's table: verdict, figure, target and last run."""
    run = f"`{COMMAND} {study.key}`, {plural(minutes_of(study, record), 'minute')}"
    if record is not None:
        run = _dated(record)
    return {
        "verdict": _badge(record),
        "figure [95 % interval]": "" if record is None else _interval(record),
        "target": study.bound,
        "run": run,
    }


def _counts(studies: Sequence[Study], records: Mapping[str, Record]) -> list[str]:
    """Return a sentence and a table of how many headlines of each class have each verdict."""
    of_class = {name: Counter[str]() for name in CLASSES}
    for study in studies:
        if study.system:
            of_class[class_of(study.key)][_counted(records.get(study.key))] += 1
    rows = [
        {"verdict": word, **{name: counts[word] for name, counts in of_class.items()}}
        for word in IN_WORDS
        if any(counts[word] for counts in of_class.values())
    ]
    paper, variant, check = (of_class[name] for name in (CONTRAST, VARIANT, CHECK))
    counted = [
        f"{paper.total()} ask the paper's question ({_listed(paper)})",
        f"{variant.total()} a part of it ({_listed(variant)})",
        f"{check.total()} checks",
    ]
    # as the rows of the papers count them: with those that are no headline
    everything = Counter(_counted(records.get(study.key)) for study in studies)
    total = f"Of all {plural(len(studies), 'claim')}: {_listed(everything)}."
    if again := sum(getattr(records.get(s.key), "confirmed", None) is not None for s in studies):
        total += f" {again} of them by a record that one seed confirmed."
    return [f"{COUNTED}: {', '.join(counted)}.", "", *markdown(rows), "", total, "", STALE]


def _counted(record: Record | None) -> str:
    """Return the word under which a headline is counted."""
    if record is None or (record.verdict != "withdrawn" and not record.counts):
        return WAITING
    return record.verdict


def _listed(counts: Counter[str]) -> str:
    """Return counts of verdicts in words: 3 hold, 1 not decided, 2 withdrawn."""
    parts = [f"{n} {IN_WORDS[word][n > 1]}" for word in IN_WORDS if (n := counts[word])]
    return ", ".join(parts)


def _plotted(study: Study, record: Record | None) -> EvidenceRow:
    """Return a claim's row of the evidence plot."""
    effect = study.effect if isinstance(study.effect, Effect) else None
    return EvidenceRow(
        study.system,
        _word(record),
        study.sense,
        study.target,
        None if record is None else record.got,
        None if record is None else record.interval,
        None if effect is None else effect.value,
        None if effect is None else effect.interval,
        record is None or _counted(record) != WAITING,
    )


def _paper_page(
    name: str, studies: Sequence[Study], records: Mapping[str, Record], bars: Sequence[Line]
) -> str:
    """Return the Markdown page of a paper: a table of its claims, and a section for each."""
    # the first number that its claims name, the headline's in all but a few
    numbers = ARXIV.findall(" ".join(study.sentence for study in studies))
    number = next(iter(numbers), "") if name != OF_NO_PAPER else ""
    # methods of this library that cite the paper
    methods = [card for card in cards() if card.paper.arxiv == number]
    links = [f"[arXiv:{number}](https://arxiv.org/abs/{number})"] if number else []
    links += [f"{card.kind} [{card.key}](../methods/{card.key}.md)" for card in methods]
    links += ["[all papers](../claims.md)"]
    lines = [*UNSEARCHED, f"# {name}", "", " · ".join(links)]
    rows = [{"claim": f"[{s.key}](#{s.key})", **_figures(s, records.get(s.key))} for s in studies]
    table = ["", "## All claims", "", *markdown(rows)]
    if name == OF_NO_PAPER:
        lines += table
    printed: dict[str, str] = {}
    for study in studies:
        lines += _section(study, records.get(study.key), printed, bars)
        lines += _history(study.key, bars)
        # the headline first: it is what most readers came for
        if study.system and len(studies) > 1:
            lines += table
    return "\n".join(lines) + "\n"


def _section(
    study: Study, record: Record | None, printed: dict[str, str], bars: Sequence[Line]
) -> list[str]:
    """Return the Markdown section of a claim: its sentence, both figures, run, design and table.

    printed: the tables of the page so far and their claims; it receives this one's.
    """
    lines = ["", f"## {study.key}", "", study.sentence, ""]
    if record is None:
        earlier = len(of_claim(bars, study.key, "run"))
        of_another = f" in this form; it had {plural(earlier, 'figure')} in another" * bool(earlier)
        state = f"{DECLARED.capitalize()}{of_another}: target {target_of(study, bars)}."
        return [*lines, state, "", *facts(study, record), "", *_design(study, record)]
    figure = " ".join(filter(None, (_interval(record), study.unit)))
    ends = judged_by(study, record, bars)
    lines += [
        f"{_badge(record)}{_because(record)} {figure}, target {target_of(study, bars)}{ends}.",
        "",
        *facts(study, record),
        "",
    ]
    lines += [f"{record.reason}", ""] if record.reason else []
    place = f" at commit `{record.commit}`" if record.commit else ""
    place += UNCOMMITTED if record.commit.endswith("+") else ""
    date = f"on {record.date}{place}, {cost_of(study, record)}"
    run = f"Measured by `{record.command}` {date}; {record.machine}{OLDER * record.older}."
    lines += [*_design(study, record), run, "", *confirmed(record, bars)]
    lines += [*record.note.splitlines(), ""] if record.note else []
    table = markdown(record.table)
    first = printed.setdefault("\n".join(table), study.key)
    if table and first != study.key:
        return [*lines, f"Its table is that of [{first}](#{first})."]
    # a table of a hundred layers is opened by who wants it
    if len(record.table) > OPEN:
        opening = f'<details markdown="1"><summary>{len(record.table)} rows</summary>'
        table = [opening, "", *table, "", "</details>"]
    return [*lines, *table]


def _history(key: str, bars: Sequence[Line]) -> list[str]:
    """Return the Markdown of all designs, bars and figures of a claim, oldest first."""
    mine = [line for line in bars if line["claim"] == key and line["line"] in ("bar", "run")]
    targets, runs = (of_claim(mine, key, kind) for kind in ("bar", "run"))
    if len(targets) < 2 and len(runs) < 2:
        return []
    opening = '<details markdown="1"><summary>'
    opening += f"{so_far(key, bars)} so far, oldest first</summary>"
    return ["", opening, "", *markdown(rows_of(mine, key)), "", "</details>"]


def _design(study: Study, record: Record | None) -> list[str]:
    """Return list items on what an experiment is held to: control, power, rules, rates."""
    lines: list[str] = []
    control = study.control
    if isinstance(control, NoControl):
        lines.append(f"- No control: {control.reason}")
    elif control is not None:
        lines.append(f"- Control: {control.sentence}")
    # how many seeds would see the paper's effect, by the spread of this run
    if isinstance(study.effect, Effect) and record is not None and class_of(study.key) != CHECK:
        power = study.power(record.result)
        lines += [f"- {power}"] if power else []
    if record is not None:
        lines += _older_design(study, record)
        lines += lacks(study, record)
    return [*lines, *_rates(study, record), ""]


def _older_design(study: Study, record: Record) -> list[str]:
    """Return list items on what a claim asks otherwise today than when its record was run."""
    parts: list[str] = []
    if record.target != study.bound:
        parts.append(f"its target was {record.target}")
    if record.baseline != study.baseline:
        parts.append(f"it was compared with *{record.baseline}*")
    if len(record.seeds) != len(study.seeds):
        parts.append(f"it had {plural(len(record.seeds), 'seed')} of today's {len(study.seeds)}")
    return [f"- When it was run, {'; '.join(parts)}."] if parts else []


def _rates(study: Study, record: Record | None) -> list[str]:
    """Return list items on the learning rates of a claim's arms, and how they were chosen."""
    if study.rates is None:
        return []
    if isinstance(study.rates, FixedRate) and isinstance(study.rates.rate, Mapping):
        stages = (f"{r.arm} {r.rate:g}, {r.steps:,} steps" for r in study.rates.arms)
        return [f"- Rates that were fixed before: {'; '.join(stages)}. {study.rates.reason}"]
    if isinstance(study.rates, FixedRate):
        steps = sorted(set(study.rates.steps.values()))
        counts = " or ".join(f"{count:,}" for count in steps)
        return [
            f"- One rate for all arms, {study.rates.rate:g}, {counts} steps: {study.rates.reason}"
        ]
    grid = ", ".join(f"{rate:g}" for rate in study.rates.grid)
    if record is not None and not record.rates:
        return [
            "- This run is of before each arm had a rate of its own; its note has the "
            f"rates. The next one tries {grid} for each arm."
        ]
    lines = [
        f"- Each arm has its own rate, the best on validation data of {grid} and, while an edge"
    ]
    lines[0] += " of the grid wins, of the next rate beyond it."
    if record is None:
        # before a run there is no rate to show: the steps alone
        steps = (f"{arm} {count:,}" for arm, count in study.rates.steps.items())
        return [*lines, f"- Steps: {'; '.join(steps)}."]
    rows = [
        {"arm": r.arm, "rate": f"{r.rate:g}", "of": ", ".join(f"{g:g}" for g in r.grid)}
        | {"steps": f"{r.steps:,}"}
        for r in record.rates
    ]
    return [*lines, "", *markdown(rows)]


def _interval(record: Record) -> str:
    """Return a record's figure with its 95 % interval, such as "1.204 [1.100, 1.310]"."""
    ends = record.interval
    return f"{record.got:.3f}" + (f" [{ends[0]:.3f}, {ends[1]:.3f}]" if ends else "")


def _word(record: Record | None) -> str:
    """Return a record's verdict in a word, "not run" without a record."""
    return "not run" if record is None else record.verdict


def _badge(record: Record | None) -> str:
    """Return a record's verdict as HTML that the page colours; grey where it is not counted."""
    if record is None:
        return f'<span class="verdict not-run">{DECLARED}</span>'
    word, counted = record.verdict, _counted(record)
    if counted == word:
        return f'<span class="verdict {word.replace(" ", "-")}">{word}</span>'
    # what was measured with other code is told in the past, so that no colour counts it
    code = "of older code" if record.older else "of uncommitted code"
    return f'<span class="verdict older">{PAST.get(word, word)}, {code}</span>'


def _because(record: Record | None) -> str:
    """Return why a figure decides nothing, in a few words behind its badge."""
    if record is None or record.verdict not in ("not decided", "void"):
        return ""
    # all reasons stand on the paper's page; here the first one is enough
    words = briefly(record.reason)
    return f" ({words})" if words else ""


def markdown(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return rows as the lines of a Markdown table; no lines for no rows.

    rows: column -> value; a row that lacks a column has an empty value.
    """
    names, *cells = squared(rows)
    if not names:
        return []
    lines = ["| " + " | ".join(line) + " |" for line in (names, *cells)]
    return [lines[0], "|" + "---|" * len(names), *lines[1:]]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write the pages of the claims from the records.")
    parser.add_argument("page", type=Path, nargs="?", default=Path("docs/claims.md"))
    arguments = parser.parse_args()
    write_all(arguments.page)
