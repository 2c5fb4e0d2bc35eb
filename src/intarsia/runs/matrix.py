"""Several methods and seeds on the same data, as trials of the pool: each run in its own folder.

A process for each run keeps the memory of one out of the peak of the next.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ..core import Method
from ..core.checks import above, at_least
from ..core.errors import ConfigError, UnknownName
from ..core.registry import settings_to_dict
from ..core.schema import read
from ..data.corpora import is_text
from ..reports import numbers
from ..reports.runs.reading import measure
from ..train.folder import RUN
from . import experiment as experiments
from . import language, settings
from .execute import method_of
from .experiment import Experiment
from .once import features_once
from .one_run import run, shape_of
from .pool import Trial, TrialEnd, refuse_failed, run_told

Report = Callable[[str], None]
EXECUTOR = "fresh"


@dataclass(frozen=True)
class PlannedRun:
    """A method at a seed, and the folder of its run.

    search: how its learning rate was found, for the run's record; see `rates`.
    """

    experiment: Experiment
    folder: Path
    search: Mapping[str, Any] | None = None

    @property
    def method(self) -> str:
        """The key of its method."""
        return self.experiment.adapted.method

    def at_rate(self, rate: float, search: Mapping[str, Any] | None = None) -> PlannedRun:
        """Return the run with another learning rate, and how that was found."""
        return replace(self, experiment=self.experiment.changed(lr=rate), search=search)

    def trial(self, running: Mapping[str, Any], *, quiet: bool) -> Trial:
        """Return the run as a trial, which an executor can run, also in another process.

        running: fields of `Running` by name; quiet: hold the run's lines of progress back and
        return them with its result.
        """
        name = f"{self.experiment.label}, seed {self.experiment.training.seed}"
        inputs = {
            "experiment": self.experiment.flat(),
            "folder": str(self.folder.absolute()),
            "running": dict(running),
            "quiet": quiet,
            "search": self.search,
        }
        shape = shape_of(self.experiment, running=inputs["running"])
        return Trial(name, inputs, kind=self.experiment.label, stack=shape)

    def finished(self, but: Collection[str] = ()) -> bool:
        """Return True if the folder holds this very run, complete; False if it is unfinished.

        but: names of options that may differ.
        Raises: ConfigError for a folder with another experiment.
        """
        if not (self.folder / experiments.FILE).is_file():
            return False
        # a folder of another experiment is refused: its results would be taken for this one's
        ours, theirs = self.experiment.flat(), experiments.read(self.folder).flat()
        differs = [f"{k}={theirs[k]}" for k in ours if ours[k] != theirs[k] and k not in but]
        if differs:
            subject, want = (
                f"run folder {self.folder}",
                "a new folder, or runs of the same comparison",
            )
            got = f"a run with {', '.join(differs)}"
            raise ConfigError(subject, got=got, want=want, fix="Choose another --out.")
        return (self.folder / RUN).is_file()


def planned(
    start: Experiment,
    methods: Sequence[str],
    seeds: Sequence[int],
    settings_by_method: Mapping[str, Sequence[str]],
    out: Path,
    rates: Mapping[str, float] = MappingProxyType({}),
    *,
    once: bool = True,
) -> list[PlannedRun]:
    """Plan a run of every method at every seed, all methods of a seed before the next seed.

    settings_by_method: method -> "name=value" settings. rates: method -> learning rate, where it is
    not the rate of `start`. once: compute a linear probe's features once, where that changes no
    result.
    Raises: UnknownName and ConfigError for anything wrong with any of them, before a run begins.
    """
    if len(set(methods)) < len(methods) or len(set(seeds)) < len(seeds) or not (methods and seeds):
        got = f"{', '.join(methods)}; {', '.join(map(str, seeds))}"
        fix = "For example: --methods linear,lora --seeds 0,1"
        raise ConfigError("--methods or --seeds", got=got, want="each once, at least one", fix=fix)
    # a setting for a method that is not compared is most often a misspelt name
    if unknown := [name for name in (*settings_by_method, *rates) if name not in methods]:
        raise UnknownName("method in --set METHOD.name=value", unknown[0], methods)
    # all methods of a seed first, so that an early stop leaves a complete comparison
    plan: list[PlannedRun] = []
    for seed in seeds:
        for method in methods:
            # the settings of this method, its own rate, and only the places that it has
            experiment = start.changed(
                method=method, seed=seed, settings=tuple(settings_by_method.get(method, ()))
            )
            experiment = experiment.changed(lr=rates.get(method, start.training.lr)).suited()
            experiment = features_once(experiment) if once else experiment
            # building the settings refuses anything wrong before the first run begins
            method_of(experiment)
            if is_text(experiment.pictures.data):
                language.check_options(experiment)
            plan.append(PlannedRun(experiment, out / f"{method}-{seed}"))
    return plan


def by_method(words: Iterable[str]) -> dict[str, list[str]]:
    """Read METHOD.name=value settings; return name=value settings by method.

    words: such as "lora.rank=8", which becomes {"lora": ["rank=8"]}.
    Raises: ConfigError without a method.
    """
    values: dict[str, list[str]] = {}
    for name, value in settings.pairs(words).items():
        method, dot, rest = name.partition(".")
        if not dot:
            got, fix = "no method in front of it", f"For example: --set lora.{name}={value}"
            raise ConfigError(f"--set {name}", got=got, want="METHOD.name=value", fix=fix)
        values.setdefault(method, []).append(f"{rest}={value}")
    return values


def apart_from_rates(
    settings_by_method: Mapping[str, Sequence[str]],
) -> tuple[dict[str, Sequence[str]], dict[str, float]]:
    """Split learning rates from other settings: return settings by method, and rates by method.

    settings_by_method: method -> "name=value" settings; "lr=value" among them is the rate.
    Raises: ConfigError for a rate that is no number above 0.
    """
    rates: dict[str, float] = {}
    for method, words in settings_by_method.items():
        if (text := settings.pairs(words).get("lr")) is not None:
            subject = f"--set {method}.lr"
            rates[method] = read(subject, text, float)
            above(subject, rates[method], 0, "Try 1e-3.")
    # the words without the rate; a method that had nothing else is dropped
    rest = {
        m: [w for w in words if w.partition("=")[0].strip() != "lr"]
        for m, words in settings_by_method.items()
    }
    return {m: words for m, words in rest.items() if words or m not in rates}, rates


def on_one_adapter(
    start: Experiment,
    methods: Sequence[str],
    settings_by_method: Mapping[str, Sequence[str]],
    report: Report,
) -> dict[str, Sequence[str]]:
    """Return settings under which mixtures and plain adapters are all made of the same adapter.

    A mixture's defaults may differ from the defaults of the adapter it is made of, in its
    activation, for one; without this a comparison would be one of activations. The adapter of the
    first mixture counts, except for methods that were given settings of their own.
    settings_by_method: method -> "name=value" settings as given. report: gets a line for each
    method that is changed.
    """
    configs = {
        name: method_of(
            start.changed(method=name, settings=tuple(settings_by_method.get(name, ()))).suited()
        )
        for name in methods
    }
    # a mixture names the adapter that it is made of `over`
    first: Any = next((m for m in configs.values() if "over" in settings_to_dict(m)), None)
    if first is None:
        return dict(settings_by_method)
    over: Method = first.over
    adjusted = dict(settings_by_method)
    for name, method in configs.items():
        if name in settings_by_method or method is first:
            continue
        # the plain adapter takes its settings as they are, another mixture as settings of its
        # `over`
        if type(method) is type(over):
            adjusted[name] = settings.words(over)
        elif "over" in settings_to_dict(method):
            adjusted[name] = [f"over.{word}" for word in settings.words(over)]
        else:
            continue
        if adjusted[name]:
            report(f"{name}: the adapter that is split: {', '.join(adjusted[name])}")
    return adjusted


def run_all(
    runs: Sequence[PlannedRun],
    *,
    jobs: int,
    report: Report,
    threads: int | None = None,
    running: Mapping[str, Any] | None = None,
    ray: bool = False,
) -> None:
    """Run all planned runs that are not finished; one that was stopped resumes where it was.

    jobs: runs at a time. threads: number of torch threads in each run. running: other fields of
    `Running`. ray: on a Ray cluster of machines that see the folders at the same paths.
    Raises: TrainingError when all have ended, if some failed; KeyboardInterrupt when one was
    stopped.
    """
    at_least("--jobs", jobs, 1, fix="Leave it out.")
    unfinished = [planned_run for planned_run in runs if not planned_run.finished()]
    if len(unfinished) < len(runs):
        report(f"{len(runs) - len(unfinished)} of {len(runs)} runs are there already.")
    failed: list[str] = []
    reported: set[tuple[str, str]] = set()

    def done(end: TrialEnd) -> None:
        """Report an ended run's lines, each once for all seeds of a method, or note its error."""
        if end.result is None:
            failed.append(f"{end.trial.name}: {end.error}")
            return
        for line in end.result["lines"]:  # a kind of run says the same at every seed
            if (end.trial.kind, line) not in reported:
                report(f"{end.trial.name}: {line}")
            reported.add((end.trial.kind, line))

    # one line a run would interleave with others', so that parallel runs report at their end
    quiet, executor = jobs > 1 or ray, "fresh on ray" if ray else EXECUTOR
    trials = [planned_run.trial(running or {}, quiet=quiet) for planned_run in unfinished]
    pool_options: dict[str, Any] = {"jobs": jobs, "executor": executor, "threads": threads}
    run_told(trials, run, done=done, describe=_score_in_words, report=report, **pool_options)
    refuse_failed(failed, len(trials))


def _score_in_words(result: Mapping[str, Any]) -> str:
    """Describe the score of a run in a few words, as "81.2 % of the test part right"."""
    scores = result["results"]
    part = next(part for part in ("test", "val") if scores.get(part))
    if (score_name := measure(scores[part])) != "accuracy":
        score = numbers.percent(scores[part][score_name])
        return f"{score_name.replace('_', ' ')} {score} on the {part} part"
    return f"{numbers.percent(scores[part]['accuracy'])} of the {part} part right"
