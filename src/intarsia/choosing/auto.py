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

from ..core.checks import above, at_least
from ..core.errors import CheckpointError, ConfigError, MissingExtra, UnknownName
from ..core.files import JOINED, read_json, write_json
from ..core.folders import data_name
from ..core.locks import alone
from ..data import backbone, input_config, outline
from ..data.corpora import is_text
from ..data.packages import announce
from ..data.sets import located
from ..experiments.execute import pictures_of
from ..experiments.experiment import Adapted, Experiment, Pictures
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
from .arms import BenchArm, among_batch_norms, arm
from .certainty import Certainty
from .folded import Folded, Row
from .judging import interval
from .search import Search

METHODS = {"linear": 1e-2, "lora": 3e-3, "glora": 3e-3, "dora": 3e-3, "adaptformer-64": 3e-3}
"""The leaders of docs/benchmarks/even.md and a linear probe, at the rates that were best there."""
AMONG_BATCH_NORMS = ("linear", "full", "last-1", "loha", "pfeiffer")
"""The same for networks with batch norms, of docs/benchmarks/mini.md; each at its own rate."""
FEWEST = 10  # training pictures
SIZES = (56, 112, 224)  # px, rounded to what a model can take, at most its own
LAST_BLOCKS = 3  # so that what is frozen below is computed once
CHOSEN = ("method", "settings", "epochs", "lr", "objective", "last_blocks", "frozen_once", "seed")
CHOSEN += ("val",)
ASKED, CHOICE, PAGE = "auto.json", "choice", "report.html"
LOADING = "loading"  # the key of the time before the search
SHOWN = 8  # runners-up in the table, and on the page

Report = Callable[[str], None]


@dataclass(frozen=True, repr=False)
class AutoRun:
    """What was chosen, the run that it gave, and what came after it.

    choice: can be repeated, see `Experiment.command`.  rows: all candidates, the best first.
    certainty: how sure the choice is.  folder: of the run that counts.  test: its scores, the only
    look at the test part.  report: the page, None without plotly and jinja2.  seconds: of all.
    """

    choice: Experiment
    rows: tuple[Row, ...]
    certainty: Certainty
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
        return f"{self.certainty.statement}\n\n{markdown(self.table()).strip()}"

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
    """Choose a method, a size of pictures, epochs and a rate on held-out pictures, and train it.

    A pilot measures what an image costs at each size. Candidates are trained without a fold of the
    training pictures and answer it; of few pictures all five folds take their turn, of many one is
    enough. All methods are looked at first, then neighbours of the leaders in rate, epochs, depth
    and size, and in the end the finalists again at other seeds. The choice is trained on all
    training pictures, for as many epochs, and scored on the test part once.
    data: pictures, as `load_data` takes them; a validation part of theirs is trained on, too, but
      with images or shots.  minutes: of everything, from now on; they are used as long as something
      is left to try.  out: the folder, `runs/auto-DATA` if None.  resume: go on with the one that
      is there, as it was asked for.
    methods: arms of `intarsia bench` or methods of `intarsia fit`; None = METHODS, or
      AMONG_BATCH_NORMS for a network with batch norms.
    options: of an `Experiment` by name, as model, size (then no other is tried), images, test,
      batch_size, precision, class_weights.
    Raises: ConfigError for texts, fewer than ten training pictures, a folder in use, a setting that
    is chosen, or another than that of the search to go on with; UnknownName; TrainingError if no
    candidate trains.
    Not for comparing methods: their numbers of trials differ. Use `intarsia compare`.
    """
    clock = time.perf_counter()
    above("minutes", minutes, 0, fix="Try 10.")
    device_named(device)
    asked = {"minutes": minutes, "seed": seed, "methods": list(methods or ()), **options}
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
    folded = search.folded
    if LOADING not in folded.store:
        folded.store.add(LOADING, {"seconds": time.perf_counter() - clock})
    folded.spent += folded.store[LOADING]["seconds"]
    rows = search.run()
    best, certainty = rows[0], Certainty.of(rows)
    report(f"{certainty.statement} Training it on all pictures, to score it on the test part.")
    results, spent = _scored(best, certainty, out, device, report)
    shutil.rmtree(out / "shared", ignore_errors=True)
    shutil.rmtree(out / CHOICE / STATE, ignore_errors=True)
    seconds = folded.spent + spent
    chosen = best.experiment, tuple(rows), certainty, out / CHOICE, results["test"]
    found = AutoRun(*chosen, None, seconds)
    return dataclasses.replace(found, report=_page(found, out / PAGE, report))


def _search(asked: Mapping[str, Any], out: Path, device: str | None, report: Report) -> Search:
    """Return the search that was asked for.  Raises: ConfigError for too few pictures."""
    start = _start(asked)
    splits = pictures_of(start, report)
    pictures = start.pictures
    limited = pictures.images is not None or pictures.shots is not None
    if "val" in splits.record["published_parts"] and not limited:
        start = start.changed(data=pictures.data + JOINED)
        splits = pictures_of(start, report)
    at_least("training pictures", len(splits.train), FEWEST, fix="Add pictures.")
    model = _outline(start)
    folded = Folded(start, splits.train.labels, len(splits.test), out, {"device": device})
    arms, sizes = _arms(model, asked["methods"]), _sizes(start, model)
    depth, seconds = len(getattr(model, "blocks", ())), 60 * asked["minutes"]
    return Search(folded, arms, sizes, depth, seconds, report)


def _opened(
    data: str | Path | None, out: Path | None, asked: dict[str, Any], resume: bool
) -> tuple[Path, dict[str, Any]]:
    """The folder, and what was asked for when it was begun.

    Raises: ConfigError for a folder in use without resume, for none with it, and for no data.
    """
    if out is None and data is not None:
        out = Path("runs") / f"auto-{data_name(data)}"
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
    plain = Experiment(Pictures("")).flat() | {"minutes": 10, "methods": []}
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
    options = {k: v for k, v in asked.items() if k not in ("minutes", "methods")}
    start = Experiment(Pictures(""), Adapted()).changed(val=0, **options)
    splits = isinstance(_outline(start), SPLITTABLE) and start.pictures.augment == "none"
    return start.changed(last_blocks=LAST_BLOCKS, frozen_once=True) if splits else start


def _outline(start: Experiment) -> nn.Module:
    """The model, of which only the form is looked at."""
    asked = start.adapted
    found = outline(asked.model, size=None, pretrained=asked.pretrained)
    return backbone(asked.model, classes=2) if found is None else found


def _arms(model: nn.Module, names: Sequence[str]) -> list[BenchArm]:
    """Return the methods, each at the rate that it begins with."""
    if any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        return [among_batch_norms(arm(name)) for name in names or AMONG_BATCH_NORMS]
    arms = [arm(name) for name in names or METHODS]
    return [
        dataclasses.replace(a, settings=dataclasses.replace(a.settings, lr=METHODS[a.name]))
        if a.name in METHODS
        else a
        for a in arms
    ]


def _sizes(start: Experiment, model: nn.Module) -> list[int]:
    """Return the sizes to try, the smallest first: the one asked for, or SIZES as the model can."""
    if start.adapted.size is not None:
        return [start.adapted.size]
    native = input_config(model).size[0]
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    step = patch[0] if isinstance(patch, tuple) else 32
    if isinstance(model, EfficientNet) or isinstance(patch, tuple):
        return sorted({min(max(step, round(s / step) * step), native) for s in SIZES})
    return [native]  # nobody knows what others can take


def _scored(
    best: Row, certainty: Certainty, out: Path, device: str | None, report: Report
) -> tuple[dict[str, Any], float]:
    """Train the choice on all training pictures and score it on the test part; and the seconds."""
    folder = out / CHOICE
    if (folder / RUN).is_file():
        return dict(read_run(folder).record["results"]), 0.0
    ends: list[TrialEnd] = []
    inputs = {
        "experiment": best.experiment.flat(),
        "folder": str(folder.absolute()),
        "shared": str((out / "shared").absolute()),
        "choice": {"label": best.name, **certainty.record()},
        "running": {"device": device},
    }
    trial = Trial("the choice", inputs)
    run_trials([trial], one_run, jobs=1, executor="here", done=ends.append)
    refuse_failed([end.error for end in ends if end.result is None], 1)
    assert ends[0].result is not None
    return ends[0].result["results"], ends[0].seconds


def _runners(rows: Sequence[Row]) -> list[Row]:
    """Return the best candidates that have scores, the choice first."""
    return [row for row in rows if row.answers is not None and not row.error][: SHOWN + 1]


def _table(found: AutoRun) -> Table:
    rows = _runners(found.rows)
    by = measure(found.test).replace("_", " ")
    n = read_run(found.folder).record["data"]["test"]["n"]
    columns = (
        Column("Method", "What was trained", numeric=False),
        Column("Size", "Side of the pictures in px"),
        Column("Epochs", "Passes over the training pictures"),
        Column("Rate", "Learning rate of AdamW"),
        Column("Blocks", "Blocks that are adapted, from the last; all if empty"),
        Column(f"Held-out {by}", "Of pictures that the run was not trained on"),
        Column("Loss", "Mean loss on them after one temperature; it decides near ties", spare=2),
        Column("Behind", "Points that the choice is ahead, with the 95 % interval, paired"),
        Column("Pictures", "Held-out pictures that it has answered", spare=3),
        Column("Time", "Of all its runs", spare=1),
        Column(f"Test {by}", "Of the choice alone, trained on everything; looked at once"),
    )
    caption = (
        f"The choice and its runners-up on held-out training pictures, and the choice on "
        f"{n:,} test pictures; {numbers.seconds(found.seconds)} in all."
    )
    test = numbers.percent(found.test[measure(found.test)])
    best = rows[0]
    entries = [(*_line(best, None), Entry(test))]
    entries += [(*_line(row, best), Entry("")) for row in rows[1:]]
    return Table(caption, columns, tuple(entries), best=0, baseline=None)


def _line(row: Row, best: Row | None) -> tuple[Entry, ...]:
    """Return the cells of a candidate.  best: the choice, None for itself."""
    experiment, answers = row.experiment, row.answers
    assert answers is not None
    behind = ""
    if best is not None and best.answers is not None:
        gap = interval(best.answers, answers)
        behind = "0.0" if gap is None else numbers.signed(100 * gap.mean)
        behind += "" if gap is None else f" {numbers.interval(gap.low, gap.high)}"
    blocks = "" if experiment.adapted.last_blocks is None else str(experiment.adapted.last_blocks)
    cells = (str(experiment.adapted.size), str(experiment.training.epochs))
    cells += (f"{experiment.training.lr:g}", blocks)
    cells += (numbers.percent(row.val[measure(row.val)]), f"{answers.loss.mean():.3f}", behind)
    cells += (f"{answers.pictures:,}", numbers.seconds(row.seconds))
    return (Entry(row.name, "" if best else "chosen"), *map(Entry, cells))


def _page(found: AutoRun, page: Path, report: Report) -> Path | None:
    """Write the page of the choice on the test part, with the other candidates below it."""
    try:
        return write_report([found.folder], page, others=found.table())
    except MissingExtra as error:
        report(f"No page: {error}")
        return None
