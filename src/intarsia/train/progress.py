"""The progress bar of a run, and its trackers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from multiprocessing import parent_process
from pathlib import Path

from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from ..core.errors import ConfigError, MissingExtra, UnknownName


class Bar:
    """A progress bar on stderr.

    Not drawn where stderr is no terminal, nor in a worker of a pool: bars would overwrite each
    other.
    """

    def __init__(self, steps: int, epochs: int, *, show: bool) -> None:
        console = Console(stderr=True)
        self.drawn = show and console.is_terminal and parent_process() is None
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

    Raises: UnknownName if accelerate does not know it; MissingExtra; ConfigError without `out`.
    """
    if wanted is None:
        return ["tensorboard"] if out is not None and find_spec("tensorboard") else []
    if isinstance(wanted, str):
        wanted = [wanted]
    for name in wanted:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise UnknownName("tracker", name, LOGGER_TYPE_TO_CLASS)
        if find_spec(name) is None and name == "tensorboard":
            raise MissingExtra(name, "track")
        if find_spec(name) is None:
            fix = f"Install it (usually: pip install {name}), or use another tracker."
            raise ConfigError(f"tracker {name!r}", got="not installed", want="installed", fix=fix)
        if LOGGER_TYPE_TO_CLASS[name].requires_logging_directory and out is None:
            what, want = f"tracker {name!r}", "somewhere to write"
            raise ConfigError(what, got="no run folder", want=want, fix="Pass out='runs/first'.")
    return list(wanted)


@contextmanager
def tracking(accelerator: Accelerator, step: int) -> Iterator[None]:
    """Inside, trackers are open; TensorBoard forgets what a killed run wrote after `step`."""
    if accelerator.log_with:
        only = [getattr(t, "value", t) for t in accelerator.log_with] == ["tensorboard"]
        accelerator.init_trackers(
            "tensorboard" if only else "intarsia",
            init_kwargs={"tensorboard": {"purge_step": step + 1}},
        )
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
