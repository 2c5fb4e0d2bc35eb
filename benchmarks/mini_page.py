"""The tables of docs/benchmarks/mini.md and of the README, out of benchmarks/mini/results.jsonl.

    python benchmarks/mini_page.py             # what the prose quotes: runs, hours, ranks, gaps
    python benchmarks/mini_page.py --write     # and the tables, into both

The results are of `intarsia bench mini --out benchmarks/mini`, in whatever order they were run. A
method stands in the first tables of a model if it has every task at seed 0, in the second ones if
it has every task at every seed.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path

from intarsia.bench import Result, results, tables
from intarsia.bench.results import Done, Method
from intarsia.bench.sheets import Title
from intarsia.bench.summary import Findings
from intarsia.bench.table import results_table, tables_of
from intarsia.report import numbers
from intarsia.report.tables import Table, escape, markdown

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "mini" / "results.jsonl"
PAGE = ROOT / "docs" / "benchmarks" / "mini.md"
README = ROOT / "README.md"
BASELINES = ("adaptformer", "pfeiffer")  # the first that a model has
DEAR = ("Time", "Peak memory")  # columns that the README leaves out


def parts(found: Iterable[Result]) -> Iterator[tuple[str, Findings]]:
    """For each model what all whole methods have at seed 0, then what those of all seeds have."""
    for _, same in groupby(sorted(found, key=Title.of), key=Title.of):
        ours = list(same)
        seeds = sorted({result.seed for result in ours})
        yield from _part(ours, seeds[:1], f"seed {seeds[0]}")
        if len(seeds) > 1:
            yield from _part(ours, seeds, numbers.plural(len(seeds), "seed"))


def _part(
    ours: Sequence[Result], seeds: Sequence[int], name: str
) -> Iterator[tuple[str, Findings]]:
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
        if gap is not None and gap.low is not None and gap.high is not None:
            line += (
                f"  {100 * gap.mean:+.2f} ({100 * gap.low:+.2f} to {100 * gap.high:+.2f}), ahead "
                f"on {gap.record[0]} of {gap.by_task.size}; {_losses(findings, row.method)}"
            )
        lines.append(line)
    return "\n".join(lines)


def _losses(findings: Findings, method: Method) -> str:
    """How much the test loss is above the baseline's, and on how many tasks it is lower."""
    assert findings.baseline is not None
    loss = findings.sheet.values("loss")  # (methods, tasks, seeds)
    gaps = (loss[findings.row(method)] - loss[findings.row(findings.baseline)]).mean(1)
    return f"loss {gaps.mean():+.2f}, lower on {(gaps < 0).sum()}"


def page(text: str, found: Sequence[tuple[str, Findings]]) -> str:
    """The page with its own introduction and these tables below it."""
    prose, _, _ = text.partition("\n## ")
    below = [
        f"## {escape(f'{title}, {name}')}\n\n{markdown(table)}"
        for name, findings in found
        for title, table in tables_of(findings)
    ]
    return "\n".join([prose, *below])


def readme(text: str, findings: Findings) -> str:
    """The README with these results in the first figure of its section on the benchmark."""
    before, title, after = text.partition("### Many methods, one table")
    head, fence, rest = after.partition("```text\n")
    return "".join(
        [before, title, head, fence, short(results_table(findings)), rest[rest.index("```") :]]
    )


def short(table: Table) -> str:
    """Its lines without the columns that depend on what else the machine did."""
    kept = [i for i, column in enumerate(table.columns) if column.title not in DEAR]
    few = replace(
        table,
        columns=tuple(table.columns[i] for i in kept),
        rows=tuple(tuple(row[i] for i in kept) for row in table.rows),
    )
    head, _, *rows = (line for line in markdown(few).splitlines() if line.startswith("|"))
    return "\n".join([head, *rows, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args()
    found = list(parts(results.read(RESULTS)))
    print("\n\n".join(told(name, findings) for name, findings in found))
    if asked.write:
        PAGE.write_text(page(PAGE.read_text(), found))
        README.write_text(readme(README.read_text(), found[0][1]))


if __name__ == "__main__":
    main()
