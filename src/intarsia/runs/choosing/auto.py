"""Choose a method, a size, epochs and a rate for a folder of pictures, in some minutes.

found = intarsia.auto("photos", minutes=10)
print(found)
found.open().predict("new_photos/")
"""

from __future__ import annotations

import shlex
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...core.checks import above, at_least
from ...core.errors import CheckpointError, ConfigError, UnknownName
from ...core.files import JOINED, read_json, write_json
from ...core.folders import check_outside, data_name
from ...core.locks import alone
from ...data import outline
from ...data.backbones import STRONG, is_cached, names
from ...data.corpora import check_no_text
from ...data.packages import announce
from ...data.sets import located
from ...reports.markdown import markdown
from ...reports.runs import write_report
from ...reports.runs.reading import read_run
from ...reports.table import Table
from ...train.folder import RUN, STATE
from ...train.processes import device_named
from ..blending import write_blend
from ..execute import pictures_of
from ..experiment import Adapted, Experiment, Pictures
from ..one_run import run as one_run
from ..opening import open_run
from ..pool import Trial, TrialEnd, refuse_failed, run_trials
from .arms import arm
from .certainty import Certainty
from .folded import Folded, Row
from .judging import HeldOutAnswers
from .search import Search
from .table import choice_table
from .texts import AutoTexts, auto_texts, searches_rows
from .views import views

FEWEST = 10  # training pictures, below which folds decide nothing
SEARCHED = ("method", "settings", "epochs", "lr", "objective", "last_blocks", "frozen_once", "seed")
SEARCHED += ("val",)
REQUEST, CHOICE, MEMBERS, PAGE = "auto.json", "choice", "members", "report.html"
LOADING = "loading"  # the key of the time before the search

Report = Callable[[str], None]


@dataclass(frozen=True)
class ChosenModel:
    """Model of a choice: its candidate, its weight and the temperature of its logits."""

    row: Row
    weight: float
    temperature: float


@dataclass(frozen=True, repr=False)
class AutoRun:
    """Result of `auto`: the choice, all candidates, and the run that was scored on the test part.

    members: models of the choice, the heaviest first; one alone is no blend.  answers: of the
    choice, to held-out pictures.  rows: all candidates, the best first.  certainty: how sure the
    choice is.  folder: of the run that counts.  test: its scores, the only look at the test part.
    report: the page.  seconds: of all.
    """

    members: tuple[ChosenModel, ...]
    answers: HeldOutAnswers
    rows: tuple[Row, ...]
    certainty: Certainty
    folder: Path
    test: Mapping[str, float]
    report: Path
    seconds: float

    @property
    def choice(self) -> Experiment:
        """The experiment of the choice, or of the heaviest member of a blend."""
        return self.members[0].row.experiment

    @property
    def commands(self) -> tuple[str, ...]:
        """The commands that repeat the choice: a `fit` for each model, and `blend` for several."""
        fits = [member.row.experiment for member in self.members]
        if len(fits) == 1:
            return (fits[0].command(),)
        folders = [f"{self.folder}-{number}" for number in range(len(fits))]
        trained = [
            f"{fit.command()} --out {shlex.quote(folder)}"
            for fit, folder in zip(fits, folders, strict=True)
        ]
        weights = ",".join(f"{member.weight:.6g}" for member in self.members)
        temperatures = ",".join(f"{member.temperature:.6g}" for member in self.members)
        out = shlex.quote(f"{self.folder}-again")
        blend = f"intarsia blend {shlex.join(folders)} --weights {weights}"
        return (*trained, f"{blend} --temperatures {temperatures} --out {out}")

    def open(self) -> Any:
        """Open the run, see `intarsia.open_run`."""
        return open_run(self.folder)

    def table(self) -> Table:
        """Return the choice and its runners-up as a table."""
        return choice_table(self)

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
    one: bool = False,
    seed: int = 0,
    jobs: int = 1,
    threads: int | None = None,
    ray: bool = False,
    device: str | None = None,
    report: Report = announce,
    **options: Any,
) -> AutoRun | AutoTexts:
    """Choose a backbone, a size of pictures and a method on held-out pictures, and train it.

    A candidate is trained without one of five folds of the training pictures, and scored on that
    fold; with few pictures all five folds take their turn, with many one is enough. First come
    converged probes: a logistic regression on the features of each backbone at each size. Then
    adapters are trained on the two best backbones, by successive halving over methods, epochs,
    rates and depths. The choice is the best candidate or, if its held-out loss is lower, a blend of
    up to three; an adapter is blended with a quarter of the best probe, and given up for it where
    it is clearly behind. The choice is trained on all training pictures and tested once. Returns
    it, all candidates, how sure it is, and the folder and test scores of its run, by name.
    data: pictures, as `load_data` takes them; a validation part is joined to the training part,
      unless the option images or shots is given.  minutes: of everything on the clock, from
      now on; they are used as long as something is left to try.
    out: the folder, `runs/auto-DATA` if None.
    resume: continue the search in that folder, with its settings.
    methods: arms of `intarsia bench` or methods of `intarsia fit`; None = the leaders of the
      benchmarks (`views.METHODS`, `views.AMONG_BATCH_NORMS`); linear alone = probes only.
    one: choose one model, no blend.
    seed: of the folds and of each training; the best adapter also trains at later seeds. device:
    "cpu", "cuda" or another device of torch; None = the best one there is. report: gets lines of
    progress.
    jobs: candidates that are trained at a time.  threads: number of torch threads in each, where
      there are several.  ray: on a Ray cluster of machines that see the folders at the same paths.
    options: of an `Experiment` by name, as model (several with commas), size (then no other is
      tried), images, precision.
    Raises: ConfigError for data that are texts, fewer than ten training pictures, a folder in use,
    an option that the search chooses, or, with resume, options that differ from the options of the
    search in the folder; UnknownName; TrainingError if no candidate trains.
    Not for comparing methods: their numbers of trials differ. Use `intarsia compare`.
    """
    if searches_rows(data, out, resume, options):
        common: Any = {"out": out, "resume": resume, "methods": methods, "one": one, "seed": seed}
        return auto_texts(data, minutes=minutes, report=report, **common, **options)
    began = time.perf_counter()
    above("minutes", minutes, 0, fix="Try 10.")
    device_named(device)
    at_least("jobs", jobs, 1, fix="Leave it out.")
    running = {"jobs": jobs, "threads": threads, "ray": ray, "running": {"device": device}}
    request = {"minutes": minutes, "seed": seed, "methods": list(methods or ()), **options}
    request |= {"one": True} if one else {}
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
    """Search for the best candidate, train it on all training pictures, and test it."""
    search = _prepare_search(request, out, running, report)
    # written only now: before the pictures were read there was nothing to resume
    if not (out / REQUEST).exists():
        write_json(out / REQUEST, request)
    folded = search.folded
    if LOADING not in folded.store:
        folded.store.add(LOADING, {"seconds": time.perf_counter() - began})
    # A resumed search counts the first loading, as if it had never stopped.
    folded.spent += folded.store[LOADING]["seconds"]
    rows = search.run()
    blend, honest = search.chosen()
    certainty = Certainty.of(search, blend, honest)
    report(f"{certainty.statement} Training it on all pictures, to score it on the test part.")
    ranked = search.ranked()
    temperatures = [row.answers.temperature for row in ranked if row.answers is not None]
    members = tuple(
        ChosenModel(ranked[i], weight, temperatures[i])
        for i, weight in zip(blend.members, blend.weights, strict=True)
    )
    test, spent = _score_choice(members, certainty, out, running["running"], report)
    # Shared features and training states are large, and no one reads them again.
    shutil.rmtree(out / "shared", ignore_errors=True)
    for state in out.glob(f"{CHOICE}/**/{STATE}"):
        shutil.rmtree(state, ignore_errors=True)
    seconds = folded.spent + spent
    answers = blend.answers([row.answers for row in ranked if row.answers is not None])
    outcome = members, answers, tuple(rows), certainty, out / CHOICE, test
    run = AutoRun(*outcome, out / PAGE, seconds)
    # The page of the choice on the test part, with the other candidates below it.
    write_report([run.folder], run.report, others=run.table())
    return run


def _prepare_search(
    request: Mapping[str, Any], out: Path, running: Mapping[str, Any], report: Report
) -> Search:
    """Read the pictures and prepare the search: methods, sizes of pictures in px, and folds."""
    # running: where and how the trainings run, as keywords of `Folded`
    start = _common_settings(request)
    splits = pictures_of(start, report)
    pictures = start.pictures
    limited = pictures.images is not None or pictures.shots is not None
    # Candidates are judged on folds of the training part: a validation part is added to it.
    if "val" in splits.record["published_parts"] and not limited:
        start = start.changed(data=pictures.data + JOINED)
        splits = pictures_of(start, report)
    at_least("training pictures", len(splits.train), FEWEST, fix="Add pictures.")
    folded = Folded(start, splits, out, **running)
    all_views = views(start, models_of(request), request["methods"])
    return Search(folded, all_views, 60 * request["minutes"], report, bool(request.get("one")))


def _open_folder(
    data: str | Path | None, out: Path | None, request: dict[str, Any], resume: bool
) -> tuple[Path, dict[str, Any]]:
    """Return the folder of a search, and its settings by name: this call's, or the stored ones."""
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
    check_no_text(str(data))
    check_outside(out, data)
    if (out / REQUEST).exists():
        fix = "Go on with it (resume=True), or choose another folder."
        raise ConfigError(f"folder {out}", got="a search in it", want="a new one", fix=fix)
    option_names = Experiment(Pictures("")).flat().keys()
    for name in request.keys() - {"minutes", "seed", "methods", "one"}:
        if name not in option_names:
            raise UnknownName("option of auto", name, option_names)
        if name in SEARCHED:
            raise ConfigError(name, got="it given", want="none: it is chosen", fix="Use fit.")
    request["data"] = located(str(data))
    # a resumed search compares these, whatever the machine has by then
    request["model"] = ",".join(models_of(request))
    for name in models_of(request):
        _common_settings(request | {"model": name})
        outline(name, size=request.get("size"), pretrained=request.get("pretrained", True))
    for name in request["methods"]:
        arm(name)
    return out, request


def _stored_request(
    path: Path, data: str | Path | None, request_now: Mapping[str, Any]
) -> dict[str, Any]:
    """Check this call's settings against those with which the search was begun."""
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


def models_of(request: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the backbones to compare: those that were named, else `known_models`."""
    named = [name.strip() for name in str(request.get("model") or "").split(",")]
    return tuple(dict.fromkeys(filter(None, named))) or known_models()


def known_models() -> tuple[str, ...]:
    """Return the packaged backbones, and the names in STRONG with weights on this machine."""
    return (*names(), *(name for name in STRONG if is_cached(name)))


def _common_settings(request: Mapping[str, Any]) -> Experiment:
    """Return the settings that all candidates share, as the `Experiment` of one training run."""
    options = {k: v for k, v in request.items() if k not in ("minutes", "methods", "one", "model")}
    # the request names the data; no validation part, since candidates are judged on folds
    return Experiment(Pictures(""), Adapted()).changed(
        val=0, model=models_of(request)[0], **options
    )


def _score_choice(
    members: Sequence[ChosenModel],
    certainty: Certainty,
    out: Path,
    running: Mapping[str, Any],
    report: Report,
) -> tuple[dict[str, float], float]:
    """Train the choice on all training pictures; return its test scores and the seconds it took."""
    folder = out / CHOICE
    # A killed search may have finished its last training.
    if not (folder / RUN).is_file():
        record = {"label": members[0].row.name, **certainty.record()}
        if len(members) == 1:
            spent = _train(members[0], folder, out, running, record)
        else:
            places = [out / MEMBERS / str(number) for number in range(len(members))]
            spent = sum(
                _train(member, place, out, running, None)
                for member, place in zip(members, places, strict=True)
                if not (place / RUN).is_file()
            )
            weights = [member.weight for member in members]
            temperatures = [member.temperature for member in members]
            record["label"] = "blend"
            notes = {"label": "blend", "choice": record}
            write_blend(folder, places, weights, temperatures, record=notes, move=True)
    else:
        spent = 0.0
    return dict(read_run(folder).record["results"]["test"]), spent


def _train(
    member: ChosenModel,
    folder: Path,
    out: Path,
    running: Mapping[str, Any],
    choice: Mapping[str, Any] | None,
) -> float:
    """Train a candidate on all training pictures, score it on the test part; return the seconds."""
    ends: list[TrialEnd] = []
    inputs: dict[str, Any] = {
        "experiment": member.row.experiment.flat(),
        "folder": str(folder.absolute()),
        "shared": str((out / "shared").absolute()),
        "temperature": member.temperature,
        "running": dict(running),
    }
    inputs |= {"choice": choice} if choice else {}
    trial = Trial("the choice", inputs)
    run_trials([trial], one_run, jobs=1, executor="here", done=ends.append)
    refuse_failed([end.error for end in ends if end.result is None], 1)
    return ends[0].seconds
