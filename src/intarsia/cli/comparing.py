"""`intarsia compare` and `intarsia report`: runs side by side, as a table and a page."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.errors import ConfigError
from ..core.folders import check_outside, data_name, describe_folder, runs_in
from ..core.locks import alone
from ..core.schema import Setting
from ..data.corpora import is_text
from ..runs.experiment import Experiment
from .declared import option, option_row, with_options
from .early import (
    check_data,
    check_jobs,
    check_numbers,
    check_rates,
    check_settings,
    check_word,
    learning_rates,
    method_key,
    numbers,
)
from .labelled_steps import compare_rows, has_rows_runs, report_rows, takes_rows
from .options import (
    Baseline,
    Data,
    Jobs,
    Json,
    Ray,
    Seeds,
    Several,
    allow_pixels,
    given_in_words,
    row,
    shared,
    use_threads,
    writes,
)
from .shell import note, say, show_json, show_rich
from .targets import PAGE, REPORTS, target
from .training import FOR_TEXTS
from .values import check_options, experiment_values, running_values

if TYPE_CHECKING:
    from ..reports.report import Report
    from ..reports.runs import Comparison

TEXT_METHODS = "lora,mixlora"  # where nothing is said
PROBE = "linear"
OF_COMPARISON = (
    "Methods with commas, as for `intarsia fit`; if not given, for texts lora,mixlora, for "
    "labelled texts words,tfidf,minilm."
)
OF_METHODS = "Setting of one method: METHOD.name=value, as lora.rank=8; may be repeated."
LR = (
    "One learning rate for all methods; if not given, each has the one that is best for it on "
    "validation. --set METHOD.lr=value fixes that of one method."
)
RATES = (
    "The grid that every method tries, with commas; 1e-3,3e-3,1e-2 if not given. It grows while "
    "an edge of it is the best rate for a method."
)
NO_LINEAR = "Do not put a linear probe beside methods for pictures where --methods has none."


@with_options(
    (
        *shared(without=("method", "seed", "settings", "split_seed", "lr")),
        row("settings", help=OF_METHODS),
        row("split_seed", help="Seed of the split; each run's own seed if not given."),
        row("lr", kind=float | None, default=None, help=LR),
        row("text"),
        row("label"),
        option_row("Training", "rates", str | None, None, Setting(help=RATES)),
        option_row("Model", "no_linear", bool, False, Setting(help=NO_LINEAR)),
    )
)
def compare(
    ctx: typer.Context,
    data: Data,
    methods: Annotated[str, option(Several, "methods", help=OF_COMPARISON)] = (
        "linear,lora,bottleneck,mosa"
    ),
    seeds: Seeds = "0,1,2",
    out: Annotated[
        Path | None, writes("The folder of the runs; runs/compare-DATA if not given.")
    ] = None,
    jobs: Jobs = 1,
    ray: Ray = False,
    baseline: Baseline = None,
    as_json: Json = False,
    **arguments: Any,
) -> None:
    """Train several methods at several seeds on the same data: one table, one page.

    Each method has a learning rate of its own: the best of one grid for all, on validation, at a
    seed that no run has; --lr fixes one for all. Settings of a method are given as --set
    METHOD.name=value. The method and the run of the highest validation score are named as chosen,
    and `intarsia export FOLDER --chosen` takes them. Called again, it keeps the runs that are
    finished and resumes one that was stopped.

    Example:  intarsia compare elpv --size 70 -n 200 --epochs 40 --seeds 0,1 --set lora.rank=8
    """
    # `locals()` before any other variable: the verb's own parameters and no more.
    request = {**locals(), **arguments}
    words = given_in_words(ctx)
    if takes_rows(data, arguments):
        compare_rows(request, words)
        return
    del arguments["text"], arguments["label"]
    allow_pixels(ctx, arguments["max_pixels"])
    check_numbers("--seeds", seeds)
    _compare_methods(request, arguments, words)


def _compare_methods(request: dict[str, Any], arguments: dict[str, Any], words: set[str]) -> None:
    data, baseline = request["data"], request["baseline"]
    grid, no_linear = arguments.pop("rates"), arguments.pop("no_linear")
    check_data(data)
    check_options(arguments)
    check_jobs(request["jobs"], request["ray"])
    check_rates(arguments["lr"], grid)
    if is_text(data):
        arguments |= {"model": FOR_TEXTS["model"]} if "model" not in words else {}
        request |= {"methods": TEXT_METHODS} if "methods" not in words else {}
    names, settings = _named(request["methods"], arguments["settings"] or ())
    if names and PROBE not in names and not (is_text(data) or no_linear):
        # A method should do better than a linear probe on the same features.
        note("A linear probe stands beside them; --no-linear leaves it out.")
        names.append(PROBE)
    _check_settings(names, settings)
    start = Experiment.of(experiment_values(arguments) | {"data": data, "settings": ()})
    # the report adds settings in brackets to labels that two groups share: compare without them
    label = baseline and baseline.partition(" (")[0]
    check_word("--baseline", label, [start.changed(method=name).label for name in names])
    # the same command again finds its runs here
    folder = request["out"] or Path("runs") / f"compare-{data_name(data)}"
    check_outside(folder, data)
    from ..data import outline
    from ..data.sets import located
    from ..runs import matrix

    seeds = numbers("--seeds", request["seeds"])
    start = start.changed(data=located(data))
    if not is_text(data):  # every trial would fail
        model = start.adapted
        outline(model.model, size=model.size, pretrained=model.pretrained)
    # A method with a rate given by --set keeps that; the search covers the others.
    settings_of, fixed = matrix.apart_from_rates(matrix.by_method(settings))
    if grid is not None and fixed.keys() >= set(names):
        got, fix = "a rate for every method by --set", "Leave one of them out."
        raise ConfigError("--rates", got=got, want="a method to search for", fix=fix)
    # A mixture and the plain adapter next to it get the same adapter, so that they can be compared.
    settings_of = matrix.on_one_adapter(start, names, settings_of, note)
    once = not arguments["recompute"]
    runs = matrix.planned(start, names, seeds, settings_of, folder, fixed, once=once)
    running = {
        "jobs": request["jobs"],
        "threads": arguments["threads"],
        "running": running_values(arguments),
        "ray": request["ray"],
    }
    use_threads(arguments["threads"])
    # Two commands in the same folder would run the same runs and write over each other.
    with alone(folder):
        try:
            if arguments["lr"] is None:
                from ..runs.rates import RATES, RateSearch

                search = RateSearch(RATES if grid is None else learning_rates(grid), **running)
                # The rates that the search finds replace the planned runs' rates.
                runs = search.find(runs, folder, note, fixed)
            matrix.run_all(runs, report=note, **running)
        except KeyboardInterrupt as stop:
            raise KeyboardInterrupt("Call the same command again to go on.") from stop
        page = folder / "report.html"
        comparison = show_comparison([e.folder for e in runs], page, baseline, request["as_json"])
        if comparison.chosen is not None and not request["as_json"]:
            form = "gguf" if is_text(data) else "timm"
            say(f"Next:  intarsia export {shlex.quote(str(folder))} --chosen --format {form}")


def _named(methods: str, settings: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the methods' keys, and METHOD.name=value settings with keys instead of other names."""
    written = [name.strip() for name in methods.split(",") if name.strip()]
    # methods may be given by their paper's name
    names = [method_key(name, note) for name in written]
    return names, list(_by_key(settings, dict(zip(written, names, strict=True))))


def _check_settings(names: Sequence[str], settings: Sequence[str]) -> None:
    for text in settings:
        method, dot, setting = text.partition(".")
        if not dot or "=" in method:  # refused where the settings are parted by method
            continue
        check_word("method of --set", method, names)
        if setting.partition("=")[0].strip() != "lr":  # of the training, of every method
            check_settings(method, (setting,))


def _by_key(settings: Sequence[str], keys: Mapping[str, str]) -> Iterator[str]:
    """Yield METHOD.name=value settings with each method's key instead of its name."""
    for text in settings:
        name, dot, rest = text.partition(".")
        yield f"{keys.get(name, name)}{dot}{rest}"


def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, or folders that hold some.")],
    out: Annotated[
        Path, writes("The page to write; a name in .md or .tex gives that form.")
    ] = Path("report.html"),
    baseline: Baseline = None,
    as_json: Json = False,
) -> None:
    """Write one self-contained HTML page about runs, and print their table.

    Folders of `intarsia sparsify` have a page of their own: perplexity by density, bytes, layers;
    and so has a file of `intarsia spans`: layers by heads, coloured by span.

    Example:  intarsia report runs/compare-elpv --out page.html
    """
    if (missing := next((path for path in runs if not path.exists()), None)) is not None:
        want = "a run folder, a folder that holds some, or a file of `intarsia spans`"
        got, fix = describe_folder(missing), "Check the path."
        raise ConfigError(f"runs {missing}", got=got, want=want, fix=fix)
    target(out, "page.html", mark=REPORTS.get(out.suffix.lower(), PAGE))
    if len(runs) == 1 and runs[0].suffix == ".json":
        _show_spans(runs[0], out, baseline, as_json)
    elif has_rows_runs(runs):
        report_rows(runs, out, baseline, as_json)
    # The kind of a folder is known by the record that its verb wrote.
    elif all(any(p.glob("sparsify.json")) or any(p.glob("*/sparsify.json")) for p in runs):
        _show_sparse(runs, out, baseline, as_json)
    else:
        for run in runs:
            runs_in(run)  # refuses other folders
        show_comparison(runs, out, baseline, as_json)


def _show_spans(path: Path, page: Path, baseline: str | None, as_json: bool) -> None:
    """Write the page of a file of attention spans, and print its table."""
    from ..reports.spans import read_spans, report_of

    if baseline is not None:
        fix = "Leave it out: the uniform window is the baseline of spans."
        raise ConfigError("--baseline", got=baseline, want="none", fix=fix)
    content = read_spans(path)
    _show_report(report_of(content, path.name), page, {"spans": content} if as_json else None)


def _show_sparse(folders: Sequence[Path], page: Path, baseline: str | None, as_json: bool) -> None:
    """Write the page of pruned models, and print its table."""
    from ..reports.sparse import gather, report_of

    if baseline is not None:
        fix = "Leave it out: magnitude is the baseline of a page of pruned models."
        raise ConfigError("--baseline", got=baseline, want="none", fix=fix)
    results = gather(folders)
    # --json prints the records themselves instead of the page's table.
    models = {"models": [dict(result.record) for result in results]} if as_json else None
    _show_report(report_of(results), page, models)


def show_comparison(
    folders: Sequence[Path], page: Path, baseline: str | None, as_json: bool
) -> Comparison:
    """Write the page of runs and print their table; return the comparison.

    folders: of the runs, or folders around them; page: the HTML file to write. baseline: label of
    the method that others are compared with, None = the first. as_json: print rows instead of the
    table.
    """
    from ..reports.runs import comparison_of, gather, json_choice, json_rows, report_of

    comparison = comparison_of(gather(folders), baseline)
    # only --json prints these; the page has all of it
    content = {"chosen": json_choice(comparison), "rows": json_rows(comparison)}
    _show_report(report_of(comparison), page, content if as_json else None)
    return comparison


def _show_report(report: Report, out: Path, content: Mapping[str, Any] | None) -> None:
    from ..reports.terminal import summary
    from ..reports.writing import write

    # The suffix of the name decides between HTML, Markdown and LaTeX.
    written = write(report, out)
    if content is not None:
        show_json({"report": str(written), **content})
        return
    show_rich(summary(report))
    say(f"Report: {written}")
