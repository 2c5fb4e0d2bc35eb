"""Runs that differ in the seed only make one group; groups are held against a baseline."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Any

from ...core.errors import DataError, UnknownName
from ..sheet import BySeed, Differences, Spread
from ..statistics import PairedInterval
from .items import interval_of
from .reading import FinishedRun

VALUES: Mapping[str, Callable[[FinishedRun], float | None]] = {
    "accuracy": lambda run: run.scores.accuracy,
    "balanced_accuracy": lambda run: run.scores.balanced_accuracy,
    "f1": lambda run: run.scores.f1,
    "loss": lambda run: run.scores.loss,
    "ece": lambda run: run.scores.ece,
    "tempered_loss": lambda run: run.scores.tempered_loss,
    "seconds": lambda run: run.costs.seconds,
}


@dataclass(frozen=True, eq=False)
class RunGroup(BySeed):
    """Runs of one method at one setting, by seed."""

    label: str
    runs: tuple[FinishedRun, ...]

    def by_seed(self, name: str) -> dict[int, float]:
        """Return seed -> value, for the runs that have it.  name: of VALUES, such as "accuracy"."""
        values = {run.seed: VALUES[name](run) for run in self.runs}
        return {seed: value for seed, value in values.items() if value is not None}

    @property
    def accuracy(self) -> Spread:
        return Spread.of([run.scores.accuracy for run in self.runs])

    @property
    def balanced_accuracy(self) -> Spread | None:
        return self._of_all("balanced_accuracy")

    @property
    def f1(self) -> Spread | None:
        return self._of_all("f1")

    @property
    def loss(self) -> Spread | None:
        return self._of_all("loss")

    @property
    def ece(self) -> Spread | None:
        return self._of_all("ece")

    @property
    def tempered_loss(self) -> Spread | None:
        return self._of_all("tempered_loss")

    def _of_all(self, name: str) -> Spread | None:
        """Return the spread of one of VALUES, None unless every run has it."""
        return self.spread(name) if len(self.by_seed(name)) == len(self.runs) else None

    @property
    def seconds(self) -> Spread:
        return Spread.of([run.costs.seconds for run in self.runs])

    @property
    def peak_bytes(self) -> int | None:
        """The largest of the seeds."""
        peaks = [run.costs.peak_bytes for run in self.runs if run.costs.peak_bytes is not None]
        return max(peaks) if peaks else None

    def difference(self, baseline: RunGroup) -> Differences | None:
        """Subtract the baseline's accuracy, seed by seed; None without a seed in common."""
        return self.minus(baseline, "accuracy")

    def interval(
        self, baseline: RunGroup, score: str | None = None
    ) -> tuple[PairedInterval | None, str]:
        """Return the 95 % interval of the score's difference to a baseline, and "".

        If there can be none, return None and a text that names the missing part. The difference is
        taken on each test item that both groups' runs were scored on. score: its name, None = the
        measure by which the task ranks runs.
        """
        ours, theirs = ({run.seed: run.items for run in g.runs} for g in (self, baseline))
        return interval_of(ours, theirs, score or self.runs[0].scores.measure)


@dataclass(frozen=True, eq=False)
class ChosenRun:
    """Run that validation scores choose out of a comparison; no test score has a part in it.

    group: its method, of the highest mean score over the seeds that all methods have; of equals
    that with the lower loss, then with the fewer trained parameters, then the first.
    run: the method's run of the highest score, then of the lower loss, then of the first seed.
    ranks: of every method what decides, in the order of `Comparison.groups`: mean score (of texts
    1 / perplexity), minus the mean loss, minus the trained parameters.  seeds: the seeds of the
    means.
    """

    group: RunGroup
    run: FinishedRun
    ranks: tuple[tuple[float, float, int], ...]
    seeds: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Comparison:
    """Groups in the order of their runs, and the one the others are held against, if any."""

    groups: tuple[RunGroup, ...]
    baseline: RunGroup | None

    @property
    def best(self) -> RunGroup:
        """Group of the highest mean accuracy."""
        return max(self.groups, key=lambda group: group.accuracy.mean)

    @cached_property
    def leader(self) -> RunGroup | None:
        """Group of the highest mean score, if significantly better than all others, else None.

        With one seed there is none: the seed may have decided, not the method.
        """
        # with a second place that may be as good, no method is called the best
        rest = [group for group in self.groups if group is not self.best]
        intervals = [self.best.interval(group)[0] for group in rest]
        return self.best if all(map(_is_ahead, intervals)) else None

    @property
    def chosen(self) -> ChosenRun | None:
        """The run to use, chosen on the validation part; None with the reason in `choice`.

        Test scores do not choose: the highest of several overestimates how good its run is.
        """
        return self.choice[0]

    @cached_property
    def choice(self) -> tuple[ChosenRun | None, str]:
        """The run that validation scores choose, or a text that says why there is none."""
        return _choice_among(self.groups)

    @property
    def runs(self) -> tuple[FinishedRun, ...]:
        return tuple(run for group in self.groups for run in group.runs)

    @property
    def measure(self) -> str:
        """Name of the measure that the runs are compared by."""
        return self.groups[0].runs[0].scores.measure.replace("_", " ")

    @property
    def several_labels(self) -> bool:
        """True where a picture may have several labels."""
        return self.measure != "accuracy"

    def others(self) -> tuple[RunGroup, ...]:
        """Return all groups but the baseline."""
        # by identity: two groups may have equal results
        return tuple(group for group in self.groups if group is not self.baseline)


def _is_ahead(interval: PairedInterval | None) -> bool:
    return interval is not None and interval.seeds > 1 and interval.low > 0


def _choice_among(groups: Sequence[RunGroup]) -> tuple[ChosenRun | None, str]:
    """Choose a method by its mean validation score, and its best run by the run's own."""
    for group in groups:
        if any(run.validation is None for run in group.runs):
            return None, f"the runs of {group.label} have no validation part"
    seeds = set[int].intersection(*({run.seed for run in group.runs} for group in groups))
    if not seeds:
        return None, "the methods have no seed in common"
    # Scores on different pictures cannot choose between methods.
    parts = {seed: {_validated_on(group, seed) for group in groups} for seed in seeds}
    if any(len(digests) > 1 for digests in parts.values()):
        return None, "the methods were not validated on the same items"
    # the best method first, then its best run
    ranks = tuple(_rank(group, seeds) for group in groups)
    group = groups[ranks.index(max(ranks))]
    run = max(group.runs, key=lambda run: run.validation or (0.0, 0.0))
    return ChosenRun(group, run, ranks, tuple(sorted(seeds))), ""


def _validated_on(group: RunGroup, seed: int) -> str:
    """Return the digest (SHA-256) of a run's validation part, "None" if not recorded."""
    run = next(run for run in group.runs if run.seed == seed)
    data = run.record.get("data")
    part = data.get("val") if isinstance(data, Mapping) else None
    return str(part.get("sha256") if isinstance(part, Mapping) else None)


def _rank(group: RunGroup, seeds: Collection[int]) -> tuple[float, float, int]:
    """Return the key by which methods are ordered, the larger the better."""
    runs = [run for run in group.runs if run.seed in seeds]
    # `validation` has the loss with a minus already: the larger is the better
    scores, losses = zip(*(score for run in runs if (score := run.validation)), strict=True)
    # of ties the one with fewer trained parameters, which all seeds of a method share
    return fmean(scores), fmean(losses), -group.runs[0].costs.trained


def comparison_of(runs: Iterable[FinishedRun], baseline: str | None = None) -> Comparison:
    """Group runs by method and choose the baseline.

    baseline: label of a group; None = the first of several groups.
    Raises: UnknownName for a baseline that is no group; DataError for two runs of one group that
      have the same seed.
    """
    groups = group_runs(runs)
    if baseline is None:
        return Comparison(groups, groups[0] if len(groups) > 1 else None)
    for group in groups:
        if group.label == baseline:
            return Comparison(groups, group)
    raise UnknownName("baseline", baseline, [group.label for group in groups])


def group_runs(runs: Iterable[FinishedRun]) -> tuple[RunGroup, ...]:
    """Group runs of equal settings, which differ in the seed alone.

    Groups that would have the same label get the settings in which they differ in brackets.
    Raises: DataError for no run, and for two runs of one group that have the same seed.
    """
    by_settings: dict[tuple[str, str], list[FinishedRun]] = {}
    for run in runs:
        settings = json.dumps(settings_of(run), sort_keys=True, default=str)
        by_settings.setdefault((label_of(run), settings), []).append(run)
    if not by_settings:
        raise DataError("runs", got=0, want="at least 1", fix="Name a run folder.")
    for (label, _), members in by_settings.items():
        _check_seeds(label, members)
    # two groups may have one label, as LoRA at two ranks: the setting is added then
    labels = _distinct_labels(
        [(label, settings_of(members[0])) for (label, _), members in by_settings.items()]
    )
    # pairs are formed by seed, so that runs stand in its order
    ordered = (sorted(members, key=lambda run: run.seed) for members in by_settings.values())
    pairs = zip(labels, ordered, strict=True)
    return tuple(RunGroup(label, tuple(members)) for label, members in pairs)


def label_of(run: FinishedRun) -> str:
    """Return the name of a run's method, with its schedule of sparse masks, if any."""
    name, schedule = _method_of(run), (run.record.get("recipe") or {}).get("schedule")
    masks = schedule.get("name") if isinstance(schedule, Mapping) else None
    if masks in (None, "FixedMask") or "masks" not in run.record["results"]:
        return name
    return f"{name}, {masks}"


def _method_of(run: FinishedRun) -> str:
    """Return the name of a run's method: its label, else its adapters, else the trained part."""
    label = run.given.get("label")
    if isinstance(label, str) and label.strip():
        return label
    # a caller's label comes first; else the adapters' methods; else the trained part
    names = [str(a.get("method") or a.get("peft_type")) for a in adapters_of(run).values()]
    if not names:
        # without an adapter: nothing but the head, everything, or a part of the trunk
        counts = run.costs
        if counts.trained_without_head == 0:
            return "linear probe"
        full = counts.trained == counts.parameters
        return "full fine-tuning" if full else "partial fine-tuning"
    objective = run.record.get("objective", "plain")
    name = objective.get("name") if isinstance(objective, Mapping) else objective
    return " + ".join(names) + ("" if name == "plain" else f", {name}")


def adapters_of(run: FinishedRun) -> dict[str, Mapping[str, Any]]:
    """Return the settings of each adapter of a run, by the adapter's name."""
    method = run.record.get("method")
    adapters = method.get("adapters") if isinstance(method, Mapping) else None
    adapters = adapters if isinstance(adapters, Mapping) else {}
    return {str(k): v for k, v in adapters.items() if isinstance(v, Mapping)}


# of PEFT's configs: where a model lies and what wrote it, which decides nothing
_ELSEWHERE = ("base_model_name_or_path", "revision", "auto_mapping", "peft_version", "origin")


def settings_of(run: FinishedRun) -> dict[str, Any]:
    """Return every setting that decides a run's result, except its seed, as nested mappings.

    "model": its name; "data": name and number of samples of each part; "adapter": settings of the
    adapter, by name if there are several; "inputs"; "baseline": the part trained without an
    adapter; "objective"; "training"; "recipe": as run.json has them.
    """
    record = run.record
    data = record.get("data")
    sizes = {
        part: part_record.get("n")
        for part, part_record in (data.items() if isinstance(data, Mapping) else ())
        if isinstance(part_record, Mapping)
    }
    # runs of equal settings are one group
    training = {k: v for k, v in dict(record["training"]).items() if k != "seed"}
    adapters = {
        name: {k: v for k, v in config.items() if k not in _ELSEWHERE and k != "seed"}
        for name, config in adapters_of(run).items()
    }
    # one adapter needs no name before its settings
    adapter = (
        _with_given_options(run, next(iter(adapters.values()))) if len(adapters) == 1 else adapters
    )
    return {
        "model": model_of(run),
        "data": {"set": set_of(run)} | sizes,
        "adapter": adapter,
        "inputs": run.given.get("inputs"),
        "baseline": run.given.get("method") if not adapters else None,
        "objective": record.get("objective"),
        "training": training,
        "recipe": record.get("recipe"),
    }


def _with_given_options(run: FinishedRun, adapter: Mapping[str, Any]) -> Mapping[str, Any]:
    """Replace an adapter's stored options by those that the caller gave; return its settings."""
    options_given = run.given.get("method")
    if (
        "options" not in adapter
        or not isinstance(options_given, Mapping)
        or "method" not in options_given
    ):
        return adapter
    # the seed may have decided some stored options: runs of one call would differ
    options = {k: v for k, v in options_given.items() if k != "method"}
    return {**adapter, "method": options_given["method"], "options": options}


def model_of(run: FinishedRun) -> str:
    """Return the name of a run's model as the caller gave it, else its class."""
    method = run.record.get("method")
    host = method.get("host") if isinstance(method, Mapping) else None
    return str(run.given.get("model") or host or "a model")


def set_of(run: FinishedRun) -> str | None:
    """Return the name of a run's data set; None if it is not known."""
    data = run.given.get("data")
    if isinstance(data, str):
        return data
    parts = data.get("parts") if isinstance(data, Mapping) else None
    # a part is named "set/part"
    for part in parts.values() if isinstance(parts, Mapping) else ():
        if isinstance(part, Mapping) and part.get("name"):
            return str(part["name"]).partition("/")[0]
    return None


def flat(tree: Any, path: str = "") -> dict[str, Any]:
    """Return the values of nested mappings by dotted path; a list counts as one value."""
    if isinstance(tree, Mapping):
        leaves: dict[str, Any] = {}
        for name, value in tree.items():
            leaves |= flat(value, f"{path}.{name}" if path else str(name))
        return leaves
    # a value that is no mapping ends its path
    return {path: tree}


def differing(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the dotted paths of the settings that are not equal in all of the groups."""
    leaves = [flat(tree) for tree in settings]
    names = dict.fromkeys(name for leaf in leaves for name in leaf)
    return [n for n in names if len({json.dumps(leaf.get(n), default=str) for leaf in leaves}) > 1]


def _distinct_labels(named: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """Return a label for each group; equal labels get the settings that differ in brackets."""
    counts = Counter(label for label, _ in named)
    labels: list[str] = []
    for label, settings in named:
        if counts[label] > 1:
            # only the settings in which groups of the same label differ
            namesakes = [alike for name, alike in named if name == label]
            values = flat(settings)
            words = (f"{n.rpartition('.')[2]}={values.get(n)}" for n in differing(namesakes))
            label = f"{label} ({', '.join(words)})"
        labels.append(label)
    return labels


def _check_seeds(label: str, members: Sequence[FinishedRun]) -> None:
    """Raise DataError if two runs of a group have the same seed.  label: the group's name."""
    by_seed: dict[int, FinishedRun] = {}
    for run in members:
        # the same training twice would count as two independent ones
        first = by_seed.setdefault(run.seed, run)
        if first is not run:
            got = f"seed {run.seed} in {first.folder} and {run.folder}"
            fix = "Name one of them: a repeat is no second sample."
            raise DataError(f"runs of {label!r}", got=got, want="one run per seed", fix=fix)
