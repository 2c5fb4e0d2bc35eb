"""What a reader who owns a paper looks for: its figures and ours, what differs, how to rerun it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from intarsia.reports.numbers import plural

from ..claims import ledger
from ..claims.bars import Line, of_claim
from ..claims.ledger import COMMAND, Record
from ..claims.many import on_one_side
from ..claims.papers import PAPERS
from ..claims.standing import CHECK, class_of
from ..claims.verdicts import lacking
from ..kit import Effect, Study, UnknownEffect
from .best_rows import best_line
from .history import minutes_of, target_of

CODE = "lab/src/intarsia_lab/claims"  # in the repository


def entry(study: Study, record: Record | None, figure: str, bars: Sequence[Line]) -> list[str]:
    """Return the Markdown lines of a headline: its sentence, both figures, and where all of it is.

    figure: our verdict and figure, in words; bars: the ledger.
    """
    lines = [f"### {study.system}", "", study.sentence, ""]
    lines += [f"- Ours: {figure}, target {target_of(study, bars)}; {study.baseline}."]
    if record is not None and record.reason:
        lines += [f"- {record.reason}"]
    if study.key in PAPERS:
        paper = PAPERS[study.key]
        lines += [f"- The paper: {paper.figure}; {paper.conditions} ({paper.source})."]
    # the paper's own unit may be another than ours
    effect = study.effect
    if isinstance(effect, Effect):
        lines += [f"- In the unit of ours: {effect.value:g}; {effect.source}."]
    lines += [f"- It is {class_of(study.key)}; {so_far(study.key, bars)} so far."]
    if record is not None:
        lines += [*best_line(study, record.table), *lacks(study, record)]
    # code, record, command: the page of the paper has the rest
    links = [f"`{CODE}/{ledger.file_of(study.key)}`" if ledger.file_of(study.key) else ""]
    links += [f"[record](claims/{study.key}.json)" if record is not None else ""]
    links += [f"`{COMMAND} {study.key}`, {plural(minutes_of(study, record), 'minute')}"]
    return [*lines, f"- {' · '.join(filter(None, links))}", ""]


def facts(study: Study, record: Record | None) -> list[str]:
    """Return what stands first on a claim: the paper's figure, what differs, how to run it.

    The lines of a Markdown list; the figure that was measured stands above them.
    """
    lines: list[str] = []
    paper, label, experiment = PAPERS.get(study.key), "The paper", "Here"
    if paper is not None:
        lines += [f"- **The paper:** {paper.figure}; {paper.conditions} ({paper.source})."]
        label, experiment = "The same in our unit", "Here, in place of that"
    if effect := own(study):
        lines += [f"- **{label}:** {effect.replace(' in this unit', '')}"]
    work = f"{study.work}; it is " if study.work else "it is "
    lines += [f"- **{experiment}:** {work}{class_of(study.key)}."]
    lines += [f"- **Compared with:** {study.baseline}."]
    lines += [] if record is None else best_line(study, record.table)
    if study.scale and (record is None or record.verdict != "holds"):
        lines += [f"- **What would decide it:** {study.scale}"]
    minutes = plural(minutes_of(study, record), "minute")
    again = f"`{COMMAND} {study.key}`, {minutes} on two cores"
    return [*lines, f"- **Run it again:** {again}, with [the laboratory](../install.md)."]


def own(study: Study) -> str:
    """Return the paper's own effect with its unit and its source, or why it is not known."""
    if isinstance(study.effect, Effect):
        return f"{study.effect.value:g} {study.unit}; {study.effect.source}."
    if isinstance(study.effect, UnknownEffect):
        return f"Not known in this unit. {study.effect.reason}"
    return ""


def so_far(key: str, bars: Sequence[Line]) -> str:
    """Return how many designs, bars and figures a claim has had, in words."""
    targets, runs = (of_claim(bars, key, kind) for kind in ("bar", "run"))
    designs = len({line["statistic"] for line in targets})
    bounds = len({(line["sense"], line["value"]) for line in targets})
    return f"{plural(designs, 'design')}, {plural(bounds, 'bar')}, {plural(len(runs), 'figure')}"


def lacks(study: Study, record: Record) -> list[str]:
    """Return what a headline does not have of what the rules want, as the lines of a list.

    None where the reason of its verdict says it.
    """
    parts = [] if "; it has " in record.reason else lacking(study, record.result)
    return [f"- It has {'; '.join(parts)}."] if parts else []


def many(headlines: Sequence[Study], records: Mapping[str, Record]) -> list[str]:
    """Return a sentence on how many headlines lie on one side of their target by chance."""
    # a verdict that was taken back is no test of anything
    judged = [
        (study, record.result)
        for study in headlines
        if class_of(study.key) != CHECK
        and (record := records.get(study.key)) is not None
        and record.verdict not in ("withdrawn", "void")
    ]
    count, alone, together = on_one_side(judged)
    if not count:
        return []
    return [
        f"Of {count} such figures {alone} lie on one side of their target at 95 % each, where "
        f"chance alone would put {0.05 * count:.1f}; {together} do after Holm's correction for all "
        "of them. This is before the rules; records of older code are among them.",
        "",
    ]
