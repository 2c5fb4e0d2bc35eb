"""Several methods and seeds on the same pictures: each run a process of its own, in its own folder.

A process for each run keeps the memory of one out of the peak of the next.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core import Method
from ..core.errors import ConfigError, TrainingError, UnknownName
from ..data.texts import is_text
from ..results import numbers
from ..results.runs import read_run
from ..train.folder import RUN
from . import INTERRUPTED, language, settings
from . import experiment as experiments
from .execute import method_of
from .experiment import Experiment

Report = Callable[[str], None]


@dataclass(frozen=True)
class Entry:
    """One run of a contest, and where it is kept."""

    experiment: Experiment
    folder: Path

    @property
    def name(self) -> str:
        return f"{self.experiment.label}, seed {self.experiment.training.seed}"

    def finished(self) -> bool:
        """Whether the folder holds this very run, complete.

        Raises: ConfigError for a folder with another experiment.
        """
        if not (self.folder / experiments.FILE).is_file():
            return False
        found = experiments.read(self.folder)
        if found != self.experiment:
            ours, theirs = self.experiment.flat(), found.flat()
            differs = [f"{k}={theirs[k]}" for k in ours if ours[k] != theirs[k]]
            raise ConfigError(
                f"run folder {self.folder}", got=f"a run with {', '.join(differs)}",
                want="a new folder, or runs of the same contest", fix="Choose another --out.",
            )  # fmt: skip
        return (self.folder / RUN).is_file()


def entries(
    start: Experiment,
    methods: Sequence[str],
    seeds: Sequence[int],
    chosen: Mapping[str, Sequence[str]],
    out: Path,
) -> list[Entry]:
    """Every method at every seed; all of a seed before the next one.

    chosen: name=value settings by method.
    Raises: UnknownName and ConfigError for what is wrong with any of them, before a run begins.
    """
    if len(set(methods)) < len(methods) or len(set(seeds)) < len(seeds) or not (methods and seeds):
        raise ConfigError(
            "--methods or --seeds", got=f"{', '.join(methods)}; {', '.join(map(str, seeds))}",
            want="each once, at least one", fix="For example: --methods linear,mosa --seeds 0,1",
        )  # fmt: skip
    if unknown := [name for name in chosen if name not in methods]:
        raise UnknownName("method in --set METHOD.name=value", unknown[0], methods)
    found: list[Entry] = []
    for seed in seeds:
        for method in methods:
            one = start.changed(method=method, seed=seed, settings=tuple(chosen.get(method, ())))
            one = one.suited()
            method_of(one)
            if is_text(one.pictures.data):
                language.check_options(one)
            found.append(Entry(one, out / f"{method}-{seed}"))
    return found


def check_baseline(contest: Sequence[Entry], baseline: str | None) -> None:
    """Raises: UnknownName for a baseline that will be no group of the contest's report."""
    labels = list(dict.fromkeys(entry.experiment.label for entry in contest))
    # a label that two groups have is told apart in brackets, once they are there
    if baseline is not None and baseline.partition(" (")[0] not in labels:
        raise UnknownName("baseline", baseline, labels)


def by_method(words: Iterable[str]) -> dict[str, list[str]]:
    """METHOD.name=value as name=value by method.  Raises: ConfigError without a method."""
    found: dict[str, list[str]] = {}
    for name, value in settings.pairs(words).items():
        method, dot, rest = name.partition(".")
        if not dot:
            raise ConfigError(
                f"--set {name}", got="no method in front of it", want="METHOD.name=value",
                fix=f"For example: --set mosa.{name}={value}",
            )  # fmt: skip
        found.setdefault(method, []).append(f"{rest}={value}")
    return found


def on_one_adapter(
    start: Experiment, methods: Sequence[str], chosen: Mapping[str, Sequence[str]], report: Report
) -> dict[str, Sequence[str]]:
    """Settings under which a mixture and the plain adapter beside it are the same adapter.

    A mixture's own defaults may differ from those of the adapter it is made of (its activation, for
    one); a comparison of the two would then be one of activations. The first mixture's adapter
    counts for all, but for methods whose own settings were given.
    """
    made = {
        name: method_of(start.changed(method=name, settings=tuple(chosen.get(name, ()))).suited())
        for name in methods
    }
    first = next((m for m in made.values() if hasattr(m, "over")), None)
    if first is None:
        return dict(chosen)
    over: Method = getattr(first, "over")  # noqa: B009
    found = dict(chosen)
    for name, method in made.items():
        if name in chosen or method is first:
            continue
        if type(method) is type(over):
            found[name] = settings.words(over)
        elif hasattr(method, "over"):
            found[name] = [f"over.{word}" for word in settings.words(over)]
        else:
            continue
        if found[name]:
            report(f"{name}: the adapter that is split: {', '.join(found[name])}")
    return found


def run_all(contest: Sequence[Entry], *, options: Sequence[str], jobs: int, report: Report) -> None:
    """Run what is not finished yet; a run that was stopped goes on where it stood.

    options: of `intarsia fit`, on how to run.  jobs: processes at a time.
    Raises: TrainingError when a run fails; KeyboardInterrupt when one was stopped.
    """
    if jobs < 1:
        raise ConfigError("--jobs", got=jobs, want="at least 1", fix="Leave it out.")
    left = [entry for entry in contest if not entry.finished()]
    if len(left) < len(contest):
        report(f"{len(contest) - len(left)} of {len(contest)} runs are there already.")
    places = {id(entry): number for number, entry in enumerate(contest, start=1)}

    stopped = threading.Event()

    def work(entry: Entry) -> None:
        if stopped.is_set():
            return
        place = f"Run {places[id(entry)]} of {len(contest)}, {entry.name}"
        report(f"{place}: training")
        try:
            run_one(entry, options=options, jobs=jobs, report=report)
        except BaseException:
            stopped.set()  # before this thread takes the next one
            raise
        report(f"{place}: {result_line(entry)}")

    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(work, entry) for entry in left]
        try:
            for future in futures:
                future.result()
        finally:
            stopped.set()


def run_one(entry: Entry, *, options: Sequence[str], jobs: int, report: Report) -> None:
    """Run an entry in a process of its own.

    Alone, it shows its progress itself; beside others, what it says follows when it is done.
    """
    if (entry.folder / experiments.FILE).is_file():
        words = ["fit", "--resume"]
    else:
        words = shlex.split(entry.experiment.command())[1:]
    command = [sys.executable, "-m", "intarsia", *words, "--out", str(entry.folder), *options]
    environment = dict(os.environ)
    if jobs > 1:
        share = max(1, (os.cpu_count() or 1) // jobs)
        environment.setdefault("OMP_NUM_THREADS", str(share))
    done = subprocess.run(
        command, env=environment, check=False, text=True, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE if jobs > 1 else None,
    )  # fmt: skip
    for line in (done.stderr or "").splitlines() if jobs > 1 else ():
        report(line)
    if done.returncode == INTERRUPTED:
        raise KeyboardInterrupt
    if done.returncode:
        raise TrainingError(
            f"run {entry.name}", got=f"exit code {done.returncode}; its message is above",
            want="a finished run",
            fix="Mend it and call this again: finished runs are kept.",
        )  # fmt: skip


def result_line(entry: Entry) -> str:
    """Accuracy and time of a finished run."""
    found = read_run(entry.folder)
    right, time = numbers.percent(found.scores.accuracy), numbers.seconds(found.costs.seconds)
    return f"{right} of the {found.scores.split} {found.samples} right, {time}"


def running_options(given: Mapping[str, Any]) -> list[str]:
    """How to run, as options of `intarsia fit`."""
    words: list[str] = []
    for name in ("workers", "threads"):
        if given[name] is not None:
            words += [f"--{name}", str(given[name])]
    words += [f"--{name}" for name in ("recompute", "compile") if given[name]]
    for name in given["tracker"] or ():
        words += ["--tracker", name]
    return words
