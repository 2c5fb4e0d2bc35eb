"""The tables of docs/benchmarks/mini.md and the first picture, of benchmarks/mini/results.jsonl.

    python benchmarks/mini_page.py             # what the prose quotes: runs, hours, ranks, gaps
    python benchmarks/mini_page.py --write     # and the tables and the picture

The results are of `intarsia bench mini --out benchmarks/mini`, in whatever order they were run. A
method stands in the first tables of a model if it has every task at every seed; if more have every
task at seed 0, those stand in further tables. The last table holds what MoSA splits beside the same
left whole, at all seeds that both have.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np

from intarsia.reports import numbers
from intarsia.reports.markdown import escape, markdown
from intarsia.reports.sheet import Differences
from intarsia.reports.statistics import task_means
from intarsia.reports.table import Column, Entry, Table
from intarsia_lab.bench import RunResult, tables
from intarsia_lab.bench.report import records
from intarsia_lab.bench.report.records import Done, MethodName
from intarsia_lab.bench.report.sheets import SuiteSheet, Title, sheets
from intarsia_lab.bench.report.summary import Findings
from intarsia_lab.bench.report.tables import tables_of

sys.path.insert(0, str(Path(__file__).parent))

from mini_picture import THEMES, picture  # noqa: E402

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "mini" / "results.jsonl"
PAGE = ROOT / "docs" / "benchmarks" / "mini.md"
PICTURE = ROOT / "docs" / "pictures" / "methods-{}.svg"
BASELINES = ("adaptformer", "pfeiffer")  # the first that a model has
SPLITS = {
    "mosa": "adaptformer", "mosa-64": "adaptformer-64", "mosa pfeiffer": "pfeiffer",
    "mosa houlsby": "houlsby", "mosa adapter+": "adapter+", "mosl": "lora",
}  # fmt: skip


def by_model(found: Iterable[RunResult]) -> Iterator[tuple[str, list[RunResult]]]:
    """Results that may be compared: those of one model, the first one's name first."""
    for title, same in groupby(sorted(found, key=Title.of, reverse=True), key=Title.of):
        yield title.model, list(same)


def parts(ours: Sequence[RunResult]) -> Iterator[tuple[str, Findings]]:
    """Of a model: what methods have at all seeds, then at the first one, if more have that."""
    seeds = sorted({result.seed for result in ours})
    all_seeds = list(part(ours, seeds, numbers.plural(len(seeds), "seed")))
    yield from all_seeds
    one_seed = list(part(ours, seeds[:1], f"seed {seeds[0]}"))
    if sum(len(f.rows) for _, f in one_seed) > sum(len(f.rows) for _, f in all_seeds):
        yield from one_seed


def part(
    ours: Sequence[RunResult], seeds: Sequence[int], name: str
) -> Iterator[tuple[str, Findings]]:
    """Findings on those methods that have every task at all of the seeds."""
    tasks = {result.task for result in ours}
    seen: dict[str, set[object]] = defaultdict(set)
    for result in ours:
        if result.seed in seeds and isinstance(result.outcome, Done):
            seen[result.method.name].add((result.task, result.seed))
    whole = {method for method, cells in seen.items() if len(cells) == len(tasks) * len(seeds)}
    kept = [r for r in ours if r.method.name in whole and r.seed in seeds]
    if len(whole) > 1:
        base = next((method for method in BASELINES if method in whole), None)
        yield name, tables(kept, base).findings[0]


def told(name: str, findings: Findings) -> str:
    """What a text would quote of a part."""
    runs = [r.outcome for r in findings.sheet.results.values() if isinstance(r.outcome, Done)]
    hours = sum(run.cpu_seconds or 0 for run in runs) / 3600
    lines = [
        f"{findings.sheet.title.model}, {name}: {len(findings.rows)} methods, {len(runs)} runs, "
        f"{hours:.1f} CPU hours"
    ]
    for row in findings.rows:
        gap = row.difference
        line = f"  {row.method.label:20s} rank {row.rank:5.2f}"
        if gap is not None and gap.interval is not None:
            low, high = gap.interval
            line += (
                f"  {100 * gap.mean:+.2f} ({100 * low:+.2f} to {100 * high:+.2f}), ahead "
                f"on {gap.record[0]} of {gap.by_task.size}; {_losses(findings, row.method)}"
            )
        lines.append(line)
    return "\n".join(lines)


def _losses(findings: Findings, method: MethodName) -> str:
    """How much the test loss is above the baseline's, and on how many tasks it is lower."""
    assert findings.baseline is not None
    loss = findings.sheet.values("loss")  # (methods, tasks, seeds)
    gaps = (loss[findings.row(method)] - loss[findings.row(findings.baseline)]).mean(1)
    return f"loss {gaps.mean():+.2f}, lower on {(gaps < 0).sum()}"


def splits(ours: Sequence[RunResult]) -> Table | None:
    """What splitting gains, adapter by adapter and over the bottlenecks together."""
    kept = [r for r in ours if isinstance(r.outcome, Done)]
    (sheet,) = sheets(kept)
    place = {m.name: sheet.arms.index(m) for m in sheet.arms}
    known = {s: w for s, w in SPLITS.items() if s in place and w in place}
    if not known:
        return None
    gaps = {
        name: sheet.accuracy[place[name]] - sheet.accuracy[place[whole]]
        for name, whole in known.items()
    }  # (tasks, seeds) each
    loss = {
        name: task_means(sheet.values("loss")[place[name]] - sheet.values("loss")[place[whole]])
        for name, whole in known.items()
    }
    rows = [_split(sheet, known[name], name, gaps[name], loss[name]) for name in known]
    alike = [name for name in known if name != "mosl"]  # which has a rate of its own
    if len(alike) > 1:
        means = np.stack([task_means(gaps[name]) for name in alike], axis=1)
        losses = np.mean([loss[name] for name in alike], axis=0)
        rows.append(_split(sheet, "whole bottleneck", f"{len(alike)} together", means, losses))
    groups = [name.capitalize() for name in sheet.groups()]
    columns = [Column(title, "", numeric=False) for title in ("Split", "Left whole")]
    columns += [Column(title, "") for title in (
        "Task mean", "95 % interval", *groups, "Tasks", "Loss", "Lower on", "Pairs", "p",
    )]  # fmt: skip
    caption = "Split minus whole, paired by task and seed: percentage points; test loss in nats."
    return Table(caption, tuple(columns), tuple(rows), None, None)


def _split(
    sheet: SuiteSheet, whole: str, name: str, gaps: np.ndarray, loss: np.ndarray
) -> tuple[Entry, ...]:
    """gaps: (tasks, seeds or adapters), shares.  loss: (tasks,)."""
    found = Differences.of(gaps, np.zeros_like(gaps))
    assert found is not None and found.interval is not None and found.p is not None
    texts = [
        name, whole, numbers.signed(100 * found.mean, 2),
        numbers.interval(*found.interval, 2),
        *(numbers.signed(100 * found.by_task[i].mean(), 1) for i in sheet.groups().values()),
        " / ".join(map(str, found.record)), numbers.signed(loss.mean(), 2),
        f"{(loss < 0).sum()} of {len(loss)}", str(found.n), numbers.probability(found.p),
    ]  # fmt: skip
    return tuple(map(Entry, texts))


def page(text: str, found: Sequence[RunResult]) -> str:
    """The page with its own introduction and the tables of these results below it."""
    prose, _, _ = text.partition("\n## ")
    below: list[str] = []
    for model, ours in by_model(found):
        shown = [
            (f"{kind}, {name}", table)
            for name, findings in parts(ours)
            for kind, table in tables_of(findings)
        ]
        apart = splits(ours)
        shown += [(f"What the split does: {model}", apart)] if apart else []
        below += [f"## {escape(title)}\n\n{markdown(table)}" for title, table in shown]
    return "\n".join([prose, *below])


def pictures(found: Sequence[RunResult]) -> dict[str, str]:
    """The first model's methods, accuracy against time, as SVG by theme."""
    _, ours = next(by_model(found))
    _, findings = next(parts(ours))
    return {theme: picture(findings, theme) for theme in THEMES}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args()
    found = records.read(RESULTS)
    for _, ours in by_model(found):
        print("\n\n".join(told(name, findings) for name, findings in parts(ours)))
        if table := splits(ours):
            print(markdown(table))
    if asked.write:
        PAGE.write_text(page(PAGE.read_text(), found))
        for theme, text in pictures(found).items():
            Path(str(PICTURE).format(theme)).write_text(text)


if __name__ == "__main__":
    main()
