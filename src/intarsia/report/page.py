"""One HTML file that needs nothing else: no network, no other file, no code but its own.

A content security policy allows this page's two scripts, by their hash, and no connection at all:
text from a run folder could not run even if it were not escaped.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from ..core.errors import MissingExtra, TrainingError
from . import figures, numbers
from .confusion import confusion_of
from .curves import line_of, mean_line
from .details import (
    commands,
    data_parts,
    given_rows,
    machine_rows,
    method_rows,
    run_rows,
    setting_rows,
)
from .gather import Run, gather
from .groups import Comparison, Group, compare
from .mistakes import Mistake, Mistakes
from .summary import notices, selection_rule, sentences, title
from .tables import table_of

_PAGE = files("intarsia.report") / "page"
_UNIT, _NO_BREAK = re.compile(r"(?<=\d) (?=[kMG%±]|min\b)|(?<=±) "), "\N{NO-BREAK SPACE}"


def write_report(
    folders: Iterable[Path | str],
    out: Path | str,
    *,
    baseline: str | None = None,
    heading: str | None = None,
) -> Path:
    """Read run folders and write their page to `out`; returns its path.

    folders: run folders, or folders that hold some.  baseline: label of the method the others are
    held against, None = the first.  heading: of the page, None = the methods and the data set.
    The same runs give the same bytes.
    Raises: DataError, CheckpointError and UnknownName as `gather` and `compare` do; MissingExtra
    without plotly or jinja2; TrainingError when the file cannot be written.
    """
    page = render(gather(folders), baseline=baseline, heading=heading)
    out = Path(out)
    scratch = out.with_name(f"{out.name}.tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        scratch.write_bytes(page.encode())
        os.replace(scratch, out)
    except OSError as error:
        with suppress(OSError):  # it may be what could not be made
            scratch.unlink(missing_ok=True)
        raise TrainingError(
            f"writing {out}", got=error, want="a file that can be written to",
            fix="Choose another place, or free some space.",
        ) from error  # fmt: skip
    return out


def render(runs: Iterable[Run], *, baseline: str | None = None, heading: str | None = None) -> str:
    """The page as text; see `write_report`."""
    comparison = compare(runs, baseline)
    plots, plotly = _plots(comparison), _plotly_source()
    # "<" never appears in the JSON: no text can close its script element
    looks = figures.looks(comparison)
    colors = [look.color for look in looks]
    data = json.dumps({"figures": plots, "colors": colors}, sort_keys=True, allow_nan=False)
    data = data.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    script = _read("page.js")
    return _template().render(
        heading=heading or title(comparison),
        sentences=[_UNIT.sub(_NO_BREAK, text) for text in sentences(comparison)],
        notices=notices(comparison),
        table=table_of(comparison),
        groups=comparison.groups,
        metrics=_metrics(plots),
        splits=_splits(plots),
        seeds=any(len(group.runs) > 1 for group in comparison.groups),
        plots=plots,
        curve_tables=_curve_tables(comparison),
        errors=[_errors(i, group) for i, group in enumerate(comparison.groups)],
        best=comparison.groups.index(comparison.best),
        record=_record(comparison),
        version=version("intarsia"),
        css=_read("page.css"),
        looks=looks,
        marks=figures.MARKS,
        data=data,
        script=script,
        plotly=plotly,
        hashes=[_hash(plotly), _hash(script)],
    )


def _template() -> Any:
    try:
        import jinja2
    except ImportError as error:
        raise MissingExtra("jinja2", "report") from error
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["percent"] = lambda share: _UNIT.sub(_NO_BREAK, numbers.percent(share, 0))
    environment.filters["plural"] = numbers.plural
    return environment.from_string(_read("page.html.j2"))


def _read(name: str) -> str:
    return (_PAGE / name).read_text(encoding="utf-8")


def _plotly_source() -> str:
    figures.plotly()
    from plotly.offline import get_plotlyjs

    # browsers hash what they parsed, and parsing makes every line end a single \n
    return get_plotlyjs().replace("\r\n", "\n")


def _hash(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _plots(comparison: Comparison) -> dict[str, Any]:
    """The figures that there are, as JSON."""
    several = len(comparison.groups) > 1  # one method is a single point
    found = {
        "parameters": figures.by_parameters(comparison) if several else None,
        "time": figures.by_time(comparison) if several else None,
        "curves": figures.curves(comparison),
        "confusion": figures.confusions(comparison),
    }
    return {name: json.loads(str(figure.to_json())) for name, figure in found.items() if figure}


def _metrics(plots: dict[str, Any]) -> list[tuple[str, str]]:
    """(key, name, unit) of everything the curves can show."""
    traces = plots.get("curves", {"data": []})["data"]
    found = dict.fromkeys(trace["meta"]["metric"] for trace in traces)
    return [(metric, figures.metric_name(metric)) for metric in found]


def _splits(plots: dict[str, Any]) -> list[tuple[str, str]]:
    traces = plots.get("curves", {"data": []})["data"]
    found = {trace["meta"]["split"] for trace in traces}
    return [(split, name) for split, name in figures.SPLITS.items() if split in found]


def _curve_tables(comparison: Comparison) -> dict[str, Any] | None:
    """Mean accuracy by epoch, validation or else training: the curves in words."""
    for split, name in reversed(figures.SPLITS.items()):
        lines = [
            mean_line(line_of(run.curve, split, "accuracy") for run in group.runs)
            for group in comparison.groups
        ]
        epochs = sorted({epoch for line in lines for epoch in line})
        if epochs:
            rows = [
                (f"{epoch:g}", [numbers.percent(x[epoch]) if epoch in x else "" for x in lines])
                for epoch in epochs
            ]
            return {"split": name, "rows": rows}
    return None


def _errors(number: int, group: Group) -> dict[str, Any]:
    """Confusion counts as a table, and the worst mistakes of the first run that kept some."""
    found, whole = confusion_of(group), confusion_of(group, limit=10**9)
    run = next((run for run in group.runs if run.mistakes is not None), None)
    kept: Mistakes | None = run.mistakes if run else None
    shown: Sequence[Mistake] = kept.shown if kept else ()
    return {
        "number": number,
        "label": group.label,
        "confusion": found,
        "pairs": [] if whole is None else _pairs(whole.classes, whole.counts.tolist()),
        "mistakes": kept,
        "seed": run.seed if run else None,
        "pictures": [(mistake, _data_uri(mistake.picture)) for mistake in shown],
    }


def _pairs(classes: Sequence[str], counts: Sequence[Sequence[int]]) -> list[tuple[str, str, int]]:
    """The most frequent (true, predicted, count) off the diagonal."""
    found = [
        (classes[i], classes[j], n)
        for i, row in enumerate(counts)
        for j, n in enumerate(row)
        if i != j and n
    ]
    return sorted(found, key=lambda pair: -pair[2])[:8]


def _data_uri(picture: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"


def _record(comparison: Comparison) -> dict[str, Any]:
    """Everything needed to judge the numbers and to make them again."""
    common, own = setting_rows(comparison)
    return {
        "selection": selection_rule(comparison.runs),
        "data": data_parts(comparison),
        "methods": method_rows(comparison),
        "common": common,
        "own": own,
        "given": given_rows(comparison),
        "machine": machine_rows(comparison.runs[0]),
        "runs": run_rows(comparison),
        "commands": commands(comparison.runs),
    }
