"""The progress bar of a run, and its trackers."""

from __future__ import annotations

import csv
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from importlib.util import find_spec
from multiprocessing import parent_process
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from ..core.errors import ConfigError, MissingExtra, UnknownName
from ..core.quiet import quiet
from ..core.reading import open_own

CSV = "csv"  # the tracker that is ours
FIRST_STEPS, FIRST_SECONDS = 3, 4.0  # an estimate is made after whichever comes first
LONG, VERY_LONG = 60.0, 300.0  # seconds from which it is told, and from which a size is proposed
SMALLER = 224  # px, a multiple of 14, 16 and 32: of the patches of most models
LOG_SECONDS = 30.0


@dataclass(frozen=True)
class FirstSteps:
    """The start of a run: steps done and their seconds; side: of its pictures in px, on a CPU.

    guess: seconds that all of it may take, judged by one picture; 0 = not known.
    """

    step: int = 0
    seconds: float = 0.0
    side: int | None = None
    guess: float = 0.0


class Bar:
    """A progress bar on stderr, or a line each `LOG_SECONDS` where stderr is no terminal.

    A long run says after its first steps how long it takes, and what smaller pictures would save.
    Nothing under --quiet, nor in a worker of a pool, where bars would overwrite each other.
    epochs: 0 for `what` has none: its steps are then of that `unit`.
    """

    def __init__(
        self,
        steps: int,
        epochs: int,
        *,
        show: bool,
        start: FirstSteps = FirstSteps(),
        what: str = "training",
        unit: str = "picture",
    ) -> None:
        console = Console(stderr=True, soft_wrap=True)
        enabled = show and not quiet() and parent_process() is None
        self.drawn = enabled and console.is_terminal
        self.logged = enabled and not console.is_terminal
        self.steps, self.epochs, self.start, self.what = steps, epochs, start, what
        self.unit = "step" if epochs else unit
        self._say = console.print if enabled else lambda *_, **__: None
        self._estimated, self._line_at = False, time.monotonic()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[scores]}"),
            console=console,
            disable=not self.drawn,
            transient=False,
        )
        self._task = self._bar.add_task(what, total=steps, scores="")
        self._shown: dict[str, str] = {}

    def plan(self, steps: int, epochs: int) -> None:
        """Expect another number of steps and epochs from now on."""
        self.steps, self.epochs = steps, epochs
        self._bar.update(self._task, total=steps)

    def step(self, done: int, line: Mapping[str, float | int | str]) -> None:
        """Update the bar; line: the step's values, with "split", "epoch", "seconds"."""
        split = str(line["split"])
        # the few numbers that fit on a line: what the task is judged by
        measures = ["accuracy"] if "accuracy" in line else ["loss"]
        measures = ["loss", "accuracy"] if split == "train" else measures
        measures = ["psnr"] if "psnr" in line else measures
        texts = [f"{n} {line[n]:.3f}" for n in measures if isinstance(line.get(n), float)]
        self._shown[split] = " ".join([split, *texts])
        remaining = self._remaining_seconds(done, float(line.get("seconds", 0.0)))
        position = f"epoch {line['epoch']}/{self.epochs}" if self.epochs else self.what
        if self.logged and time.monotonic() - self._line_at >= LOG_SECONDS:
            self._line_at = time.monotonic()
            number = f"{self.unit} {done:,}/{self.steps:,}"
            rest = "" if remaining is None else f", about {duration(remaining)} left"
            scores = "  ".join(self._shown.values())
            self._say(f"{position}, {number}: {scores}{rest}", highlight=False)
        self._bar.update(
            self._task,
            completed=done,
            description=position,
            scores="  ".join(self._shown.values()),
        )

    def _remaining_seconds(self, done: int, seconds: float) -> float | None:
        """Estimate the remaining seconds, None if not known; announce them once if many."""
        # of this start of the run only: an earlier one may have had another machine
        steps, spent = done - self.start.step, seconds - self.start.seconds
        if steps < 1 or (steps < FIRST_STEPS and spent < FIRST_SECONDS):
            return None
        remaining = (self.steps - done) * spent / steps
        if not self._estimated and remaining >= LONG:
            total = f"{self.steps:,} {self.unit}s, "
            text = f"About {duration(remaining)} of {self.what}: {total}{spent / steps:.2g} s each."
            self._say(text + self._smaller_hint(remaining), highlight=False)
        self._estimated = True
        return remaining

    def _smaller_hint(self, remaining: float) -> str:
        """Return a hint how much time smaller pictures would save; "" where that is little."""
        side = self.start.side
        if side is None or side <= SMALLER or remaining < VERY_LONG:
            return ""
        # the time of a forward grows about as the number of pixels
        less = duration(remaining * (SMALLER / side) ** 2)
        return f" Pictures of {SMALLER} px (--size {SMALLER}) would take about {less}."

    @contextmanager
    def shown(self) -> Iterator[Bar]:
        """Show the bar inside the context, after a warning if the run will probably take long."""
        if hint := self._smaller_hint(self.start.guess):
            text = f"Perhaps {duration(self.start.guess)} of {self.what}, judged by one picture."
            self._say(text + hint, highlight=False)
        # rich draws the bar in a thread of its own until the end
        with self._bar:
            yield self


def duration(seconds: float) -> str:
    """Write seconds as a rounded duration: 40 s, 12 min, 2 h 05 min."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def tracker_names(requested: Sequence[str] | None, out: Path | None) -> list[str]:
    """Return the names of the trackers to use.

    requested: names, None = TensorBoard if it is installed and there is a folder; out: the run's
      folder. "csv" is written by intarsia, the others by accelerate.
    Raises: UnknownName for another name; MissingExtra; ConfigError without `out`.
    """
    if requested is None:
        return ["tensorboard"] if out is not None and find_spec("tensorboard") else []
    if isinstance(requested, str):
        requested = [requested]
    for name in requested:
        if name not in TRACKERS:
            raise UnknownName("tracker", name, TRACKERS)
        # TensorBoard has an extra of ours; other trackers are installed by their own names
        if name != CSV and find_spec(name) is None and name == "tensorboard":
            raise MissingExtra(name, "track")
        if name != CSV and find_spec(name) is None:
            fix = f"Install it (usually: pip install {name}), or use another tracker."
            raise ConfigError(f"tracker {name!r}", got="not installed", want="installed", fix=fix)
        if TRACKERS[name].requires_logging_directory and out is None:
            subject, want = f"tracker {name!r}", "somewhere to write"
            raise ConfigError(subject, got="no run folder", want=want, fix="Pass out='runs/first'.")
    return list(requested)


class Csv(GeneralTracker):
    """metrics.csv next to metrics.jsonl: a line for each number, (step, name, value)."""

    name = CSV
    requires_logging_directory = True

    def __init__(self, folder: Path, step: int) -> None:
        """Open metrics.csv in a folder; rows after `step`, where a run is resumed, are removed."""
        super().__init__()
        path = folder / "metrics.csv"
        rows: list[list[str]] = []
        if step and path.is_file():  # what a killed run wrote after its checkpoint is left out
            with path.open(newline="") as file:
                rows = [
                    row for row in csv.reader(file) if row[0].isdecimal() and int(row[0]) <= step
                ]
        self._file = open_own(path, "w", newline="")
        self._writer = csv.writer(self._file)
        self._writer.writerows([["step", "name", "value"], *rows])

    @property
    def tracker(self) -> Any:
        return self._writer

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        """Do nothing: run.json has the settings."""

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        self._writer.writerows([step, name, value] for name, value in values.items())
        self._file.flush()

    def finish(self) -> None:
        self._file.close()


TRACKERS: Mapping[str, Any] = {**LOGGER_TYPE_TO_CLASS, CSV: Csv}


@contextmanager
def tracking(accelerator: Accelerator, step: int, csv_in: Path | None) -> Iterator[None]:
    """Open the trackers inside the context, and close them afterwards.

    step: where the run begins or is resumed; TensorBoard and csv remove later entries;
      csv_in: the folder of metrics.csv, None = none.
    Raises: ConfigError for a tracker that cannot start, for example without an account.
    """
    if accelerator.log_with:
        names = [
            str(tracker.value if isinstance(tracker, Enum) else tracker)
            for tracker in accelerator.log_with
        ]
        try:
            accelerator.init_trackers(
                "tensorboard" if names == ["tensorboard"] else "intarsia",
                init_kwargs={
                    "tensorboard": {"purge_step": step + 1},
                    "wandb": {"dir": accelerator.project_dir},
                },
            )
        except Exception as error:  # each has errors of its own
            subject, want = f"tracker {' or '.join(names)}", "all of them to start"
            fix = "Use others; wandb without an account: WANDB_MODE=offline."
            raise ConfigError(subject, got=error, want=want, fix=fix) from error
    if csv_in is not None and accelerator.is_main_process:
        # accelerate then logs to it as to its own
        accelerator.trackers.append(Csv(csv_in, step))
    try:
        yield
    finally:
        # not end_training, which would take the group of processes away with it
        for tracker in accelerator.trackers:
            tracker.finish()


def track(accelerator: Accelerator, line: Mapping[str, float | int | str]) -> None:
    """Send the numbers of a line of metrics to all trackers, each named `split/name`."""
    split, step = line["split"], line["step"]
    values = {
        f"{split}/{name}": value
        for name, value in line.items()
        if isinstance(value, float | int) and name not in ("step", "epoch")
    }
    # step and epoch are no values of their own
    if accelerator.trackers:
        accelerator.log(values, step=int(step))
