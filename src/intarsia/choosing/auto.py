"""Choose a method, a size, epochs and a rate for a folder of pictures, in some minutes.

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
from ..core.errors import CheckpointError, ConfigError, UnknownName
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
from ..reports import numbers
from ..reports.markdown import markdown
from ..reports.runs import write_report
from ..reports.runs.reading import measure, read_run
from ..reports.table import Column, Entry, Table
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
FEWEST = 10  # training pictures, below which folds decide nothing
SIZES = (56, 112, 224)  # px, rounded to what a model can take, at most its own
LAST_BLOCKS = 3  # so that what is frozen below is computed once
SEARCHED = ("method", "settings", "epochs", "lr", "objective", "last_blocks", "frozen_once", "seed")
SEARCHED += ("val",)
REQUEST, CHOICE, PAGE = "auto.json", "choice", "report.html"
LOADING = "loading"  # the key of the time before the search
SHOWN = 8  # runners-up in the table, and on the page

Report = Callable[[str], None]


@dataclass(frozen=True, repr=False)
class AutoRun:
    """Result of `auto`: the choice, all candidates, and the run that was scored on the test part.

    choice: can be repeated, see `Experiment.command`.  rows: all candidates, the best first.
    certainty: how sure the choice is.  folder: of the run that counts.  test: its scores, the only
    look at the test part.  report: the page.  seconds: of all.
    """

    choice: Experiment
    rows: tuple[Row, ...]
    certainty: Certainty
    folder: Path
    test: Mapping[str, float]
    report: Path
    seconds: float

    def open(self) -> Any:
        """Open the run, see `intarsia.open_run`."""
        return open_run(self.folder)

    def table(self) -> Table:
        """Return the choice and its runners-up as a table."""
        return _choice_table(self)

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
    jobs: int = 1,
    threads: int | None = None,
    ray: bool = False,
    device: str | None = None,
    report: Report = announce,
    **options: Any,
) -> AutoRun:
    """Choose a method, a size of pictures, epochs and a rate on held-out pictures, and train it.

    A short training at each size (the pilot) measures the seconds for an image. A candidate, a
    method with its settings, is trained without one of five folds of the training pictures, and
    scored on that fold; with few pictures all five folds take their turn, with many one is enough.
    All methods are tried first, then other rates, epochs, depths and sizes of the best, in the end
    the finalists at other seeds. Then the choice is trained on all training pictures and tested
    once. Returns this choice, all candidates, how sure the choice is, and the folder and test
    scores of its run, by name.
    data: pictures, as `load_data` takes them; a validation part is joined to the training part,
      unless the option images or shots is given.  minutes: of everything, from now on; they are
      used as long as something is left to try.  out: the folder, `runs/auto-DATA` if None.
    resume: go on with the search in that folder, with its settings.
    methods: arms of `intarsia bench` or methods of `intarsia fit`; None = METHODS, or
      AMONG_BATCH_NORMS for a network with batch norms.
    seed: of the folds and of each training; the finalists also train at later seeds. device: "cpu",
    "cuda" or another device of torch; None = the best one there is. report: gets lines of progress.
    jobs: candidates that are trained at a time.  threads: number of torch threads in each, where
      there are several.  ray: on a Ray cluster, whose machines see the folders at the same paths.
    options: of an `Experiment` by name, as model, size (then no other is tried), images, precision.
    Raises: ConfigError for data that are texts, fewer than ten training pictures, a folder in use,
    an option that the search chooses, or, with resume, options that differ from those of the search
    in the folder; UnknownName; TrainingError if no candidate trains.
    Not for comparing methods: their numbers of trials differ. Use `intarsia compare`.
    """
    began = time.perf_counter()
    above("minutes", minutes, 0, fix="Try 10.")
    device_named(device)
    at_least("jobs", jobs, 1, fix="Leave it out.")
    running = {"jobs": jobs, "threads": threads, "ray": ray, "running": {"device": device}}
    request = {"minutes": minutes, "seed": seed, "methods": list(methods or ()), **options}
    out, request = _open_folder(data, None if out is None else Path(out), request, resume)
    with alone(out):
        return _search_and_score(request, out, running, began, report)


def _search_and_score(
    request: Mapping[str, Any],
    out: Path,
    running: Mapping[str, Any],
    began: float,
    report: Report,
) -> AutoRun:
    """Search for the best candidate, train it on all training pictures, and score it on the test.

    request: the settings of the call by name, which the folder keeps for a resumed search. out: the
    folder of the search. running: where and how many candidates train at a time: "jobs", "threads",
    "ray", and "running" with the device. began: time.perf_counter() at the start of the call.
    report: gets lines of progress. Returns the choice, all candidates, and the run of the choice.
    """
    search = _prepare_search(request, out, running, report)
    # written only now: before the pictures were read there was nothing to go on with
    if not (out / REQUEST).exists():
        write_json(out / REQUEST, request)
    folded = search.folded
    if LOADING not in folded.store:
        folded.store.add(LOADING, {"seconds": time.perf_counter() - began})
    # A resumed search counts the first loading, as if it had never stopped.
    folded.spent += folded.store[LOADING]["seconds"]
    rows = search.run()
    best, certainty = rows[0], Certainty.of(rows)
    report(f"{certainty.statement} Training it on all pictures, to score it on the test part.")
    results, spent = _score_choice(best, certainty, out, running["running"], report)
    # Shared features and training states are large, and no one reads them again.
    shutil.rmtree(out / "shared", ignore_errors=True)
    shutil.rmtree(out / CHOICE / STATE, ignore_errors=True)
    seconds = folded.spent + spent
    outcome = best.experiment, tuple(rows), certainty, out / CHOICE, results["test"]
    run = AutoRun(*outcome, out / PAGE, seconds)
    # The page of the choice on the test part, with the other candidates below it.
    write_report([run.folder], run.report, others=run.table())
    return run


def _prepare_search(
    request: Mapping[str, Any], out: Path, running: Mapping[str, Any], report: Report
) -> Search:
    """Read the pictures and prepare the search: methods, sizes of pictures in px, and folds.

    request: the settings of the call by name; out: the folder of the search; running: how many
    candidates train at a time and where, by name; report: gets lines of progress.
    Raises: ConfigError for fewer than FEWEST training pictures.
    """
    start = _common_settings(request)
    splits = pictures_of(start, report)
    pictures = start.pictures
    limited = pictures.images is not None or pictures.shots is not None
    # Candidates are judged on folds of the training part: a validation part is added to it.
    if "val" in splits.record["published_parts"] and not limited:
        start = start.changed(data=pictures.data + JOINED)
        splits = pictures_of(start, report)
    at_least("training pictures", len(splits.train), FEWEST, fix="Add pictures.")
    model = _model_outline(start)
    folded = Folded(start, splits.train.labels, len(splits.test), out, **running)
    # The depth is the number of the model's blocks, 0 for a model that has none.
    arms, sizes = _starting_arms(model, request["methods"]), _sizes_to_try(start, model)
    depth, seconds = (
        len(dict(model.named_children()).get("blocks", nn.Identity())._modules),
        60 * request["minutes"],
    )
    return Search(folded, arms, sizes, depth, seconds, report)


def _open_folder(
    data: str | Path | None, out: Path | None, request: dict[str, Any], resume: bool
) -> tuple[Path, dict[str, Any]]:
    """Return the folder of a search, and its settings by name: this call's, or the stored ones.

    data: the pictures, or None for a resumed search. out: the folder; None = named after the data.
    request: minutes, seed, methods and options of this call, by name. resume: go on with the search
    in the folder; its stored settings are returned.
    Raises: ConfigError for a new search in a folder that has one, or resume in a folder that has
    none; for no data, or data that are texts; for an option that the search itself decides.
    UnknownName for an unknown option or method.
    """
    if out is None and data is not None:
        out = Path("runs") / f"auto-{data_name(data)}"
    if resume:
        if out is None or not (out / REQUEST).is_file():
            want, fix = f"one with {REQUEST}", "Name it: --out FOLDER."
            raise ConfigError(f"folder {out}", got="none to go on with", want=want, fix=fix)
        return out, _stored_request(out / REQUEST, data, request)
    if data is None or out is None:
        want, fix = "a folder of pictures, a named set or a table", "For example: elpv"
        raise ConfigError("data", got="nothing", want=want, fix=fix)
    if is_text(str(data)):
        want, fix = "pictures", "Use `intarsia fit`, or `intarsia compare`, for texts."
        raise ConfigError(f"data {str(data)!r}", got="a text", want=want, fix=fix)
    if (out / REQUEST).exists():
        fix = "Go on with it (resume=True), or choose another folder."
        raise ConfigError(f"folder {out}", got="a search in it", want="a new one", fix=fix)
    option_names = Experiment(Pictures("")).flat().keys()
    for name in request.keys() - {"minutes", "seed", "methods"}:
        if name not in option_names:
            raise UnknownName("option of auto", name, option_names)
        if name in SEARCHED:
            raise ConfigError(name, got="it given", want="none: it is chosen", fix="Use fit.")
    request["data"] = located(str(data))
    _common_settings(request)
    for name in request["methods"]:
        arm(name)
    return out, request


def _stored_request(
    path: Path, data: str | Path | None, request_now: Mapping[str, Any]
) -> dict[str, Any]:
    """Read the settings with which a search was begun, and check this call's settings against them.

    path: the file of the stored settings. data: the pictures of this call, None = not named again.
    request_now: this call's settings by name. minutes, methods and seed are compared if they differ
    from their defaults, all others always: a call names these only if its user did.
    Returns the stored settings by name.
    Raises: ConfigError for a setting that differs; CheckpointError for a damaged file.
    """
    defaults = Experiment(Pictures("")).flat() | {"minutes": 10, "methods": []}
    try:
        stored = dict(read_json(path))
        # a damaged file may lack one of these three: then this raises KeyError
        request_then = (
            defaults | stored | {name: stored[name] for name in ("data", "minutes", "methods")}
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        got, fix = f"{type(error).__name__}: {error}", "Begin another search in another folder."
        raise CheckpointError(str(path), got=got, want="what auto wrote", fix=fix) from error
    request = dict(request_now) | ({} if data is None else {"data": located(str(data))})
    for name, value in request.items():
        value = list(value) if isinstance(value, tuple) else value  # as JSON has it
        is_given = value != defaults.get(name) or name not in ("minutes", "methods", "seed")
        if is_given and value != request_then.get(name):
            got, want = (
                f"it for a search with {request_then.get(name)}",
                "the settings it was begun with",
            )
            fix = "Leave it out to go on, or begin another search in another folder."
            raise ConfigError(f"{name} = {value}", got=got, want=want, fix=fix)
    return stored


def _common_settings(request: Mapping[str, Any]) -> Experiment:
    """Return the settings that all candidates share, as an `Experiment` (all of one training run).

    request: settings of the call by name. Where the model can be split between its blocks and the
    pictures are not augmented, only the last LAST_BLOCKS blocks are adapted: the outputs of the
    earlier blocks are then the same in each epoch, and are computed once.
    """
    options = {k: v for k, v in request.items() if k not in ("minutes", "methods")}
    start = Experiment(Pictures(""), Adapted()).changed(val=0, **options)
    # Below the adapted blocks features are frozen: they are computed once for all epochs.
    splits = isinstance(_model_outline(start), SPLITTABLE) and start.pictures.augment == "none"
    return start.changed(last_blocks=LAST_BLOCKS, frozen_once=True) if splits else start


def _model_outline(start: Experiment) -> nn.Module:
    """Return the model of an experiment, to look at its modules: on the meta device if possible.

    start: the experiment; only its model's name and `pretrained` are used.
    """
    adapted = start.adapted
    model = outline(adapted.model, size=None, pretrained=adapted.pretrained)
    return backbone(adapted.model, classes=2) if model is None else model


def _starting_arms(model: nn.Module, names: Sequence[str]) -> list[BenchArm]:
    """Return the methods to try first, each with the learning rate at which it begins.

    names: the methods that the user named; empty = the list AMONG_BATCH_NORMS for a network with
    batch norms, and METHODS for any other. model: also decides the rates. With batch norms in it
    every method, named or not, begins at its rate for such networks; without them at the rate that
    METHODS lists for it, or, if it is not listed, at the benchmark's.
    """
    if any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        return [among_batch_norms(arm(name)) for name in names or AMONG_BATCH_NORMS]
    arms = [arm(name) for name in names or METHODS]
    return [
        dataclasses.replace(a, settings=dataclasses.replace(a.settings, lr=METHODS[a.name]))
        if a.name in METHODS
        else a
        for a in arms
    ]


def _sizes_to_try(start: Experiment, model: nn.Module) -> list[int]:
    """Return the sizes at which pictures are tried: their sides in px, the smallest first.

    start: the settings that all candidates share; if they name a size, it is the only one. model: a
    ViT limits the sizes to multiples of its patch, an EfficientNet to multiples of 32, both to at
    most the size that they were pretrained at; any other network is tried at that size alone.
    """
    if start.adapted.size is not None:
        return [start.adapted.size]
    native = input_config(model).size[0]
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    # Convolutional networks shrink a picture by 32 in all.
    step = patch[0] if isinstance(patch, tuple) else 32
    if isinstance(model, EfficientNet) or isinstance(patch, tuple):
        return sorted({min(max(step, round(s / step) * step), native) for s in SIZES})
    return [native]  # nobody knows what others can take


def _score_choice(
    best: Row, certainty: Certainty, out: Path, running: Mapping[str, Any], report: Report
) -> tuple[dict[str, Any], float]:
    """Train the choice on all training pictures; return its test scores and the seconds it took.

    best: the candidate that was chosen. certainty: how sure the choice is, for the run's record.
    out: the folder of the search; the run goes into a subfolder. running: settings of the computer
    by name, such as "device". report: gets lines of progress. Returns the results of the run,
    {"test": test scores by name, ...}, and its seconds, which are 0 if the folder had the run.
    """
    folder = out / CHOICE
    # A killed search may have finished its last training.
    if (folder / RUN).is_file():
        return dict(read_run(folder).record["results"]), 0.0
    ends: list[TrialEnd] = []
    inputs = {
        "experiment": best.experiment.flat(),
        "folder": str(folder.absolute()),
        "shared": str((out / "shared").absolute()),
        "choice": {"label": best.name, **certainty.record()},
        "running": dict(running),
    }
    trial = Trial("the choice", inputs)
    run_trials([trial], one_run, jobs=1, executor="here", done=ends.append)
    refuse_failed([end.error for end in ends if end.result is None], 1)
    assert ends[0].result is not None
    return ends[0].result["results"], ends[0].seconds


def _scored_candidates(rows: Sequence[Row]) -> list[Row]:
    """Return the best candidates that have scores, the choice first."""
    return [row for row in rows if row.answers is not None and not row.error][: SHOWN + 1]


def _choice_table(run: AutoRun) -> Table:
    """Make the table of candidates: the choice with its test score, then its runners-up.

    run: the result of `auto`, with the candidates in order, the choice first.
    """
    rows = _scored_candidates(run.rows)
    metric = measure(run.test).replace("_", " ")
    test_pictures = read_run(run.folder).record["data"]["test"]["n"]
    columns = (
        Column("Method", "What was trained", numeric=False),
        Column("Size", "Side of the pictures in px"),
        Column("Epochs", "Passes over the training pictures"),
        Column("Rate", "Learning rate of AdamW"),
        Column("Blocks", "Blocks that are adapted, from the last; all if empty"),
        Column(f"Held-out {metric}", "Of pictures that the run was not trained on"),
        Column("Loss", "Mean loss on them after one temperature; it decides near ties", spare=2),
        Column("Behind", "Points that the choice is ahead, with the 95 % interval, paired"),
        Column("Pictures", "Held-out pictures that it has answered", spare=3),
        Column("Time", "Of all its runs", spare=1),
        Column(f"Test {metric}", "Of the choice alone, trained on everything; looked at once"),
    )
    caption = (
        f"The choice and its runners-up on held-out training pictures, and the choice on "
        f"{test_pictures:,} test pictures; {numbers.seconds(run.seconds)} in all."
    )
    test = numbers.percent(run.test[measure(run.test)])
    best = rows[0]
    entries = [(*_table_line(best, None), Entry(test))]
    entries += [(*_table_line(row, best), Entry("")) for row in rows[1:]]
    return Table(caption, columns, tuple(entries), best=0, baseline=None)


def _table_line(row: Row, best: Row | None) -> tuple[Entry, ...]:
    """Make a candidate's line of the table: all columns but the last one, the test score.

    row: the candidate with its answers to held-out pictures. best: the choice, whose lead over the
    candidate is shown in points with a paired 95 % interval; None if the candidate is the choice.
    """
    experiment, answers = row.experiment, row.answers
    assert answers is not None
    behind = ""
    if best is not None and best.answers is not None:
        gap = interval(best.answers, answers)
        behind = "0.0" if gap is None else numbers.signed(100 * gap.mean)
        behind += "" if gap is None else f" {numbers.interval(gap.low, gap.high)}"
    # an empty cell: all blocks are adapted
    blocks = "" if experiment.adapted.last_blocks is None else str(experiment.adapted.last_blocks)
    cells = (str(experiment.adapted.size), str(experiment.training.epochs))
    cells += (f"{experiment.training.lr:g}", blocks)
    cells += (numbers.percent(row.val[measure(row.val)]), f"{answers.loss.mean():.3f}", behind)
    cells += (f"{answers.pictures:,}", numbers.seconds(row.seconds))
    return (Entry(row.name, "" if best else "chosen"), *map(Entry, cells))
