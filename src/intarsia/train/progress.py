"""The progress bar of a run, and its trackers."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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

CSV = "csv"  # the tracker that is ours


class Bar:
    """A progress bar on stderr.

    Not drawn under --quiet, where stderr is no terminal, nor in a worker of a pool, where bars
    would overwrite each other.
    """

    def __init__(self, steps: int, epochs: int, *, show: bool) -> None:
        console = Console(stderr=True)
        self.drawn = show and not quiet() and console.is_terminal
        self.drawn = self.drawn and parent_process() is None
        self.epochs = epochs
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
        self._task = self._bar.add_task("training", total=steps, scores="")
        self._shown: dict[str, str] = {}

    def step(self, done: int, line: Mapping[str, float | int | str]) -> None:
        """Show the newest scores of the line's split."""
        split = str(line["split"])
        wanted = ["accuracy"] if "accuracy" in line else ["loss"]
        wanted = ["loss", "accuracy"] if split == "train" else wanted
        found = [f"{n} {line[n]:.3f}" for n in wanted if isinstance(line.get(n), float)]
        self._shown[split] = " ".join([split, *found])
        self._bar.update(
            self._task,
            completed=done,
            description=f"epoch {line['epoch']}/{self.epochs}",
            scores="  ".join(self._shown.values()),
        )

    @contextmanager
    def shown(self) -> Iterator[Bar]:
        with self._bar:
            yield self


def tracker_names(wanted: Sequence[str] | None, out: Path | None) -> list[str]:
    """The trackers to use: those asked for, else TensorBoard if it is installed and `out` is set.

    "csv" is ours, the others are accelerate's.
    Raises: UnknownName for another name; MissingExtra; ConfigError without `out`.
    """
    if wanted is None:
        return ["tensorboard"] if out is not None and find_spec("tensorboard") else []
    if isinstance(wanted, str):
        wanted = [wanted]
    for name in wanted:
        if name not in TRACKERS:
            raise UnknownName("tracker", name, TRACKERS)
        if name != CSV and find_spec(name) is None and name == "tensorboard":
            raise MissingExtra(name, "track")
        if name != CSV and find_spec(name) is None:
            fix = f"Install it (usually: pip install {name}), or use another tracker."
            raise ConfigError(f"tracker {name!r}", got="not installed", want="installed", fix=fix)
        if TRACKERS[name].requires_logging_directory and out is None:
            what, want = f"tracker {name!r}", "somewhere to write"
            raise ConfigError(what, got="no run folder", want=want, fix="Pass out='runs/first'.")
    return list(wanted)


class Csv(GeneralTracker):
    """metrics.csv beside metrics.jsonl: a line for each number, (step, name, value)."""

    name = CSV
    requires_logging_directory = True

    def __init__(self, folder: Path, step: int) -> None:
        super().__init__()
        path = folder / "metrics.csv"
        kept: list[list[str]] = []
        if step and path.is_file():  # what a killed run wrote after its checkpoint is left out
            with path.open(newline="") as file:
                kept = [
                    row for row in csv.reader(file) if row[0].isdecimal() and int(row[0]) <= step
                ]
        self._file = path.open("w", newline="")
        self._writer = csv.writer(self._file)
        self._writer.writerows([["step", "name", "value"], *kept])

    @property
    def tracker(self) -> Any:
        return self._writer

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        """Nothing: run.json has the settings."""

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        self._writer.writerows([step, name, value] for name, value in values.items())
        self._file.flush()

    def finish(self) -> None:
        self._file.close()


TRACKERS: Mapping[str, Any] = {**LOGGER_TYPE_TO_CLASS, CSV: Csv}


@contextmanager
def tracking(accelerator: Accelerator, step: int, csv_in: Path | None) -> Iterator[None]:
    """Inside, trackers are open; TensorBoard and csv forget what a killed run wrote after `step`.

    csv_in: the folder of metrics.csv, None = none.
    Raises: ConfigError for one that cannot start, as without an account.
    """
    if accelerator.log_with:
        names = [str(getattr(tracker, "value", tracker)) for tracker in accelerator.log_with]
        try:
            accelerator.init_trackers(
                "tensorboard" if names == ["tensorboard"] else "intarsia",
                init_kwargs={
                    "tensorboard": {"purge_step": step + 1},
                    "wandb": {"dir": accelerator.project_dir},
                },
            )
        except Exception as error:  # each has errors of its own
            what, want = f"tracker {' or '.join(names)}", "all of them to start"
            fix = "Use others; wandb without an account: WANDB_MODE=offline."
            raise ConfigError(what, got=error, want=want, fix=fix) from error
    if csv_in is not None and accelerator.is_main_process:
        accelerator.trackers.append(Csv(csv_in, step))
    try:
        yield
    finally:
        # not end_training, which would take the group of processes away with it
        for tracker in accelerator.trackers:
            tracker.finish()


def track(accelerator: Accelerator, line: Mapping[str, float | int | str]) -> None:
    """Send the numbers of a line as `split/name`."""
    split, step = line["split"], line["step"]
    values = {
        f"{split}/{name}": value
        for name, value in line.items()
        if isinstance(value, float | int) and name not in ("step", "epoch")
    }
    if accelerator.trackers:
        accelerator.log(values, step=int(step))
