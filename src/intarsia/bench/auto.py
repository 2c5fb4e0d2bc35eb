"""`intarsia.auto`: a method, a size, epochs and a rate for a folder of pictures, in some minutes.

found = intarsia.auto("photos", minutes=10)
print(found)
found.open().predict("new_photos/")
"""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from timm.models.efficientnet import EfficientNet
from torch import nn

from ..core.checks import above
from ..core.errors import CheckpointError, ConfigError, MissingExtra, UnknownName
from ..core.files import alone, read_json, write_json, writing
from ..data import backbone, input_config, outline
from ..data.packages import announce
from ..data.texts import is_text
from ..experiments.execute import pictures_of
from ..experiments.experiment import Adapted, Experiment, Pictures, located
from ..experiments.one_run import run as one_run
from ..experiments.opening import open_run
from ..experiments.pool import Trial, TrialEnd, refuse_failed, run_trials
from ..hosts.anatomy.prefix import SPLITTABLE
from ..results import numbers
from ..results.runs import write_report
from ..results.runs.reading import measure, read_run
from ..results.table import Column, Entry, Table, markdown
from ..train.folder import RUN, STATE
from ..train.processes import device_named
from .arms import among_batch_norms, arm
from .choosing import Row, Search, told

METHODS = ("linear", "adaptformer", "lora", "mosa", "bitfit")
SIZES = (56, 112, 224)  # px, rounded to what a model can take, at most its own
LAST_BLOCKS = 3  # so that what is frozen below is computed once
CHOSEN = ("method", "settings", "epochs", "lr", "objective", "last_blocks", "frozen_once", "seed")
ASKED, CHOICE, PAGE = "auto.json", "choice", "report.html"
LOADING = "loading"  # the key of the time before the search
SHOWN = 8  # runners-up in the table, and on the page

Report = Callable[[str], None]


@dataclass(frozen=True, repr=False)
class AutoRun:
    """What was chosen, the run that it gave, and what came after it.

    choice: can be repeated, see `Experiment.command`.  rows: all candidates, the best first.
    folder: of the run that counts.  test: its scores, the only look at the test part.
    report: the page, None without plotly and jinja2.  seconds: of everything.
    """

    choice: Experiment
    rows: tuple[Row, ...]
    folder: Path
    test: Mapping[str, float]
    report: Path | None
    seconds: float

    def open(self) -> Any:
        """The run, see `intarsia.open_run`."""
        return open_run(self.folder)

    def table(self) -> Table:
        """The choice and its runners-up."""
        return _table(self)

    def __str__(self) -> str:
        return markdown(self.table()).strip()

    __repr__ = __str__


def auto(
    data: str | Path | None = None,
    *,
    minutes: float = 10,
    out: str | Path | None = None,
    resume: bool = False,
    methods: Sequence[str] | None = None,
    seed: int = 0,
    device: str | None = None,
    report: Report = announce,
    **options: Any,
) -> AutoRun:
    """Choose a method, a size of pictures, epochs and a rate on validation, and train it.

    A pilot measures what an image costs at each size. Candidates are trained for a few epochs, the
    better half for twice as many, and so on (successive halving, Jamieson & Talwalkar,
    arXiv:1502.07943); the best of all validation scores is the choice. It is trained anew, on the
    same training part, and scored on the test part once.
    data: pictures, as `load_data` takes them.  minutes: of everything, from now on; what is left
      out for them is the larger sizes and the longer trainings.  out: the folder, `runs/auto-DATA`
      if None.  resume: go on with the one that is there, as it was asked for.
    methods: arms of `intarsia bench` or methods of `intarsia fit`, see METHODS.
    options: of an `Experiment` by name, as model, size (then no other is tried), val, test,
      batch_size, precision, class_weights.
    Raises: ConfigError for texts, a folder in use, a setting that is chosen, or another than that
    of the search to go on with; UnknownName; TrainingError if no candidate trains.
    Not for comparing methods: its seeds, epochs and rates differ. Use `intarsia compare`.
    """
    clock = time.perf_counter()
    above("minutes", minutes, 0, fix="Try 10.")
    device_named(device)
    asked = {"minutes": minutes, "seed": seed, "methods": list(methods or METHODS), **options}
    out, asked = _opened(data, None if out is None else Path(out), asked, resume)
    with alone(out):
        return _chosen(asked, out, device, clock, report)


def _chosen(
    asked: Mapping[str, Any], out: Path, device: str | None, clock: float, report: Report
) -> AutoRun:
    """Search, and score the best.  clock: when it all began."""
    search = _search(asked, out, device, report)
    if not (out / ASKED).exists():  # before the pictures were read there was nothing to go on with
        write_json(out / ASKED, asked)
    if LOADING not in search.store:
        search.store.add(LOADING, {"seconds": time.perf_counter() - clock})
    search.spent += search.store[LOADING]["seconds"]
    rows = search.run()
    best = rows[0]
    report(f"Chosen on validation: {best.name}, {told(best.experiment)}. Scoring it on test.")
    results, spent = _scored(best, out, device, report)
    shutil.rmtree(out / "shared", ignore_errors=True)
    for folder in (*(row.folder for row in rows), out / CHOICE):
        shutil.rmtree(folder / STATE, ignore_errors=True)
    seconds = search.spent + spent
    found = AutoRun(best.experiment, tuple(rows), out / CHOICE, results["test"], None, seconds)
    return dataclasses.replace(found, report=_page(found, out / PAGE, report))


def _search(asked: Mapping[str, Any], out: Path, device: str | None, report: Report) -> Search:
    """The search that was asked for.  Raises: ConfigError for data without a validation part."""
    start = _start(asked)
    splits = pictures_of(start, report)
    if splits.val is None:
        want, fix = "a validation part", "Leave --val out: everything is chosen on it."
        raise ConfigError("val", got=0, want=want, fix=fix)
    counts = len(splits.train), len(splits.val), len(splits.test)
    arms, running = tuple(_arms(start, asked["methods"])), {"device": device}
    return Search(start, arms, _sizes(start), counts, 60 * asked["minutes"], out, report, running)


def _opened(
    data: str | Path | None, out: Path | None, asked: dict[str, Any], resume: bool
) -> tuple[Path, dict[str, Any]]:
    """The folder, and what was asked for when it was begun.

    Raises: ConfigError for a folder in use without resume, for none with it, and for no data.
    """
    if out is None and data is not None:
        out = Path("runs") / f"auto-{Path(data).name}"
    if resume:
        if out is None or not (out / ASKED).is_file():
            want, fix = f"one with {ASKED}", "Name it: --out FOLDER."
            raise ConfigError(f"folder {out}", got="none to go on with", want=want, fix=fix)
        return out, _begun(out / ASKED, data, asked)
    if data is None or out is None:
        want, fix = "a folder of pictures, a named set or a table", "For example: elpv"
        raise ConfigError("data", got="nothing", want=want, fix=fix)
    if is_text(str(data)):
        want, fix = "pictures", "Use `intarsia fit`, or `intarsia compare`, for texts."
        raise ConfigError(f"data {str(data)!r}", got="a text", want=want, fix=fix)
    if (out / ASKED).exists():
        fix = "Go on with it (resume=True), or choose another folder."
        raise ConfigError(f"folder {out}", got="a search in it", want="a new one", fix=fix)
    known = Experiment(Pictures("")).flat().keys()
    for name in asked.keys() - {"minutes", "seed", "methods"}:
        if name not in known:
            raise UnknownName("option of auto", name, known)
        if name in CHOSEN:
            raise ConfigError(name, got="it given", want="none: it is chosen", fix="Use fit.")
    asked["data"] = located(str(data))
    _start(asked)
    for name in asked["methods"]:
        arm(name)
    return out, asked


def _begun(path: Path, data: str | Path | None, now: Mapping[str, Any]) -> dict[str, Any]:
    """What was asked for when a search was begun.

    Raises: ConfigError for what is asked for otherwise now; CheckpointError for a damaged file.
    """
    plain = Experiment(Pictures("")).flat() | {"minutes": 10, "methods": list(METHODS)}
    try:
        stored = dict(read_json(path))
        then = plain | stored | {name: stored[name] for name in ("data", "minutes", "methods")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        got, fix = f"{type(error).__name__}: {error}", "Begin another search in another folder."
        raise CheckpointError(str(path), got=got, want="what auto wrote", fix=fix) from error
    asked = dict(now) | ({} if data is None else {"data": located(str(data))})
    for name, value in asked.items():
        value = list(value) if isinstance(value, tuple) else value  # as JSON has it
        given = value != plain.get(name) or name not in ("minutes", "methods", "seed")
        if given and value != then.get(name):
            got, want = f"it for a search with {then.get(name)}", "the settings it was begun with"
            fix = "Leave it out to go on, or begin another search in another folder."
            raise ConfigError(f"{name} = {value}", got=got, want=want, fix=fix)
    return stored


def _start(asked: Mapping[str, Any]) -> Experiment:
    """What all candidates share."""
    own = {k: v for k, v in asked.items() if k not in ("minutes", "methods")}
    start = Experiment(Pictures(""), Adapted()).changed(**own)
    model = _outline(start)
    splits = isinstance(model, SPLITTABLE) and start.pictures.augment == "none"
    return start.changed(last_blocks=LAST_BLOCKS, frozen_once=True) if splits else start


def _outline(start: Experiment) -> nn.Module:
    """The model, of which only the form is looked at."""
    asked = start.adapted
    found = outline(asked.model, size=None, pretrained=asked.pretrained)
    return backbone(asked.model, classes=2) if found is None else found


def _arms(start: Experiment, names: Sequence[str]) -> list[Any]:
    norms = any(isinstance(module, nn.BatchNorm2d) for module in _outline(start).modules())
    return [among_batch_norms(arm(name)) if norms else arm(name) for name in names]


def _sizes(start: Experiment) -> list[int]:
    """Sizes to try, the smallest first: the one that was asked for, or SIZES as the model can."""
    if start.adapted.size is not None:
        return [start.adapted.size]
    model = _outline(start)
    native = input_config(model).size[0]
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    step = patch[0] if isinstance(patch, tuple) else 32
    if isinstance(model, EfficientNet) or isinstance(patch, tuple):
        return sorted({min(max(step, round(s / step) * step), native) for s in SIZES})
    return [native]  # nobody knows what others can take


def _scored(
    best: Row, out: Path, device: str | None, report: Report
) -> tuple[dict[str, Any], float]:
    """The run of the choice with its scores on the test part: no step is left of its training."""
    folder = out / CHOICE
    if not folder.is_dir():
        with writing(folder) as scratch:
            shutil.copytree(best.folder, scratch, ignore=shutil.ignore_patterns(RUN, "*.lock"))
    if (folder / RUN).is_file():
        return dict(read_run(folder).record["results"]), 0.0
    ends: list[TrialEnd] = []
    inputs = {
        "experiment": best.experiment.flat(),
        "folder": str(folder.absolute()),
        "shared": str((out / "shared").absolute()),
        "running": {"device": device},
    }
    trial = Trial("the choice", inputs)
    run_trials([trial], one_run, jobs=1, executor="here", done=ends.append)
    refuse_failed([end.error for end in ends if end.result is None], 1)
    assert ends[0].result is not None
    return ends[0].result["results"], ends[0].seconds


def _runners(rows: Sequence[Row]) -> list[Row]:
    """The best of each method, size, rate and depth."""
    found: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        one = row.experiment
        key = row.name, one.adapted.size, one.training.lr, one.adapted.last_blocks
        found.setdefault(key, row)
    return list(found.values())[: SHOWN + 1]


def _table(found: AutoRun) -> Table:
    rows = _runners(found.rows)
    by = measure(found.test).replace("_", " ")
    n = read_run(found.folder).record["data"]
    columns = (
        Column("Method", "What was trained", numeric=False),
        Column("Size", "Side of the pictures in px"),
        Column("Epochs", "Passes over the training part"),
        Column("Rate", "Learning rate of AdamW"),
        Column("Blocks", "Blocks that are adapted, from the last; all if empty"),
        Column(f"Val {by}", "On the validation part, by which the first was chosen"),
        Column(
            "Balanced", "Mean over classes of the share of right answers, on validation", spare=3
        ),
        Column("Val loss", "Mean loss on the validation part", spare=2),
        Column("Time", "Of this run, with everything it computes once"),
        Column(f"Test {by}", "Of the choice alone, looked at once"),
        Column("Test balanced", "Of the choice alone", spare=3),
        Column("Test loss", "Of the choice alone", spare=2),
    )
    caption = (
        f"The choice and its runners-up: chosen on {n['val']['n']:,} validation pictures, scored "
        f"once on {n['test']['n']:,} test pictures; {numbers.seconds(found.seconds)} in all."
    )
    if len(found.rows) == 1:
        caption += " Only one candidate was trained to a score, so nothing was compared: more "
        caption += "minutes try more."
    entries = tuple(_line(row, found.test if i == 0 else None) for i, row in enumerate(rows))
    return Table(caption, columns, entries, best=0, baseline=None)


def _line(row: Row, test: Mapping[str, float] | None) -> tuple[Entry, ...]:
    one = row.experiment

    def three(scores: Mapping[str, float]) -> list[str]:
        balanced = scores.get("balanced_accuracy")
        shares = [scores[measure(scores)], balanced]
        shown = ["" if share is None else numbers.percent(share) for share in shares]
        return [*shown, f"{scores['loss']:.3f}"]

    blocks = "" if one.adapted.last_blocks is None else str(one.adapted.last_blocks)
    cells = [row.name, str(one.adapted.size), str(one.training.epochs), f"{one.training.lr:g}"]
    cells += [blocks, *three(row.val), numbers.seconds(row.seconds)]
    cells += three(test) if test is not None else ["", "", ""]
    first = Entry(cells[0], "chosen" if test is not None else "")
    return (first, *map(Entry, cells[1:]))


def _page(found: AutoRun, page: Path, report: Report) -> Path | None:
    """The candidates side by side on validation, and above them what was chosen."""
    one, by = found.rows[0], measure(found.test)
    kind = by.replace("_", " ")
    told_of = (
        f"Chosen by {kind} on the validation part: {one.name}, {told(one.experiment)}. Scores "
        f"below are of that part, which chose among them, so the best is too high. On the test "
        f"part, which was looked at once, the choice has {kind} "
        f"{numbers.percent(found.test[by])} and loss {found.test['loss']:.3f}."
    )
    folders = [row.folder for row in _runners(found.rows)]
    try:
        return write_report(
            folders, page, heading="What was chosen, and what else", validation=told_of
        )
    except MissingExtra as error:
        report(f"No page: {error}")
        return None
