"""The run folder."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

import safetensors.torch
from torch import nn
from torch.utils.data import Dataset

from ..core.errors import ConfigError, TrainingError, disk_error
from ..core.files import parse_json, write_json, writing
from ..core.folders import (
    ADAPTER,
    FAILED,
    METRICS,
    PHASES,
    RUN,
    STATE,
    TENSORBOARD,
    check_new_run,
)
from ..core.locks import alone
from ..core.reading import open_own
from ..core.sealing import OPEN, digests, seal_file, sealed
from ..processes.parallelism import WholeModel
from ..processes.whole_file import write_folder
from .learner import NotFinite
from .precision import learned_state
from .processes import on_main, processes
from .record import item_numbers
from .scores import Scores

README = """One training run of intarsia.

run.json                 what was run: command, settings, method, data, machine, versions, results
metrics.jsonl            one JSON object a line: step, epoch, split, loss, accuracy, lr, seconds
adapter/                 the trained weights without the frozen trunk (and without the optimiser)
predictions.safetensors  outputs and labels of the last evaluated split, named in its metadata;
                         of texts the loss, tokens and hits of each; items: a number of each sample,
                         the same in every run
state/                   the newest checkpoint; fit(..., out=FOLDER, resume=True) goes on from it
phases/                  the runs before it, of a method that trains in phases
tensorboard/             the curves: tensorboard --logdir FOLDER

Everything is JSON or safetensors: reading it runs no code.
state/ may be deleted when the run is done.
"""
TRAINED = "trained.safetensors"  # in adapter/, of a model that is neither PEFT's nor changed
FORMAT = 1  # of run.json


class Write(Protocol):
    """Puts a trained model into a folder, given the record of the run."""

    def __call__(
        self,
        model: nn.Module,
        folder: Path,
        record: Mapping[str, Any],
        parts: WholeModel | None = None,
        /,
    ) -> object:
        """Write the trained model and its run's record; parts: of experts on several processes."""


class Log:
    """metrics.jsonl; lines are kept in memory too, and only there without a folder."""

    def __init__(self, path: Path | None) -> None:
        self.path, self.lines = path, list[dict[str, Any]]()
        self._file = None

    def open(self, size: int) -> None:
        """Open the file to append lines, after its first `size` bytes; later ones are cut off.

        size: length of the file at the checkpoint from which the run resumes, 0 for a new run. If
          the file is lost, short or damaged, the whole lines before the damage are kept, with a
          warning: the curve then has a gap, the training has none.
        """
        if self.path is None:
            return
        try:
            self._file = open_own(self.path, "a+b")
            self._file.seek(0)
            intact = self._lines(self._file.read(size))
            # lines after the checkpoint belong to steps that are taken again
            self._file.truncate(intact)
            self._file.seek(0, os.SEEK_END)
        except OSError as error:
            raise disk_error(self.path, error) from error
        if intact < size:
            gap = f"{self.path} has {intact} of the {size} bytes that it had at the checkpoint"
            warnings.warn(f"{gap}: the curve of this run has a gap.", stacklevel=2)

    def _lines(self, raw: bytes) -> int:
        """Keep the whole lines at the start of a file; return their length in bytes."""
        size = 0
        for line in raw.splitlines(keepends=True):
            try:
                row = parse_json(line) if line.endswith(b"\n") else None
            except ValueError:
                row = None
            # whatever follows a damaged line cannot be trusted to be in order
            if not isinstance(row, dict):
                break
            self.lines.append(row)
            size += len(line)
        return size

    def write(self, line: Mapping[str, Any]) -> None:
        """Append one line of metrics, as JSON.  Raises: TrainingError if the disk is full."""
        self.lines.append(dict(line))
        if self._file is None or self.path is None:
            return
        try:
            self._file.write(json.dumps(line).encode() + b"\n")
            # a killed process loses no line
            self._file.flush()
        except OSError as error:
            raise disk_error(self.path, error) from error

    def size(self) -> int:
        """Return the length of the file in bytes, after they were flushed to the disk."""
        if self._file is None or self.path is None:
            return 0
        try:
            # a checkpoint names this size, so that the lines must outlive a crash of the machine
            os.fsync(self._file.fileno())
        except OSError as error:
            raise disk_error(self.path, error) from error
        return self._file.tell()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


@contextmanager
def owned(out: Path | None, resume: bool, data: str = "") -> Iterator[None]:
    """Make the run folder and keep other processes from writing into it inside the context.

    out: the folder, None = no folder; resume: it may hold a run that resumes. A run that diverged
      (a loss that was not finite) may be replaced by the next one. data: what the run reads, which
      no run is written into.
    Raises: ConfigError if another process writes there, or it holds another run; TrainingError at
      the end if the folder was deleted or replaced meanwhile.
    """
    with ExitStack() as stack:
        if out is not None:
            on_main(processes(), lambda: stack.enter_context(_owned(out, resume, data)))
        yield


@contextmanager
def _owned(out: Path, resume: bool, data: str) -> Iterator[None]:
    """Reserve a run folder for this process while a run writes into it."""
    with alone(out):
        _check_no_links(out)
        if not resume:
            check_new_run(out, data)
        # a run that diverged has no result: a new attempt may take the same folder
        if not resume and (out / FAILED).is_file() and not (out / RUN).exists():
            for name in (STATE, PHASES, TENSORBOARD):
                shutil.rmtree(out / name, ignore_errors=True)
            for name in (METRICS, FAILED):
                (out / name).unlink(missing_ok=True)
        handle = os.open(out, os.O_RDONLY)  # held open, so that no other folder gets its number
        try:
            yield
            _check_same_folder(out, os.fstat(handle))
        except NotFinite as error:
            write_json(out / FAILED, {"error": str(error)})
            raise
        finally:
            os.close(handle)


def _check_no_links(out: Path) -> None:
    """Check that files written into a folder stay in it.  Raises: ConfigError for a link."""
    if link := next((path for path in sorted(out.rglob("*")) if path.is_symlink()), None):
        got, want = f"a link in it, {link.relative_to(out)}", "files and folders alone"
        fix = "Put there what the link stands for, or choose another folder."
        raise ConfigError(f"run folder {out}", got=got, want=want, fix=fix)


def _check_same_folder(out: Path, begun: os.stat_result) -> None:
    """Raise TrainingError if a run's folder was deleted or replaced since the run began."""
    now = out.stat() if out.is_dir() else None
    # device and inode: a path alone would not tell a folder that was replaced
    if now is not None and os.path.samestat(begun, now):
        return
    learned = out / ADAPTER
    rescued = f"What was learned is in {learned}. " if learned.is_dir() else ""
    got = "deleted, or replaced by another folder, while the run worked in it"
    want, fix = "the folder that the run began in", f"{rescued}Run it again in another folder."
    raise TrainingError(f"run folder {out}", got=got, want=want, fix=fix)


def write_results(
    out: Path,
    model: nn.Module,
    record: Mapping[str, Any],
    split: str,
    metrics: Scores | None,
    write: Write | None,
    evaluated: Dataset[Any] | None = None,
) -> None:
    """Write the results of a run: adapter/, predictions.safetensors, and run.json as the last.

    A folder with run.json is therefore complete. split: part of the data that `metrics` are of.
    write: puts the trained model into a folder, None where adapter/ was written already. evaluated:
    the dataset of that part; its samples get numbers in the predictions, so that runs can be
    compared sample by sample.
    """
    if write is not None:
        write(model, out / ADAPTER, record)
    # outputs of each sample, for comparisons in pairs of two runs
    if metrics is not None and (tensors := metrics.predictions):
        if evaluated is not None and (items := item_numbers(evaluated)) is not None:
            tensors["items"] = items
        with writing(out / "predictions.safetensors") as scratch:
            safetensors.torch.save_file(tensors, scratch, metadata={"split": split, **OPEN})
            seal_file(scratch)
    # run.json is the seal: it holds the digests of the weights next to it
    files = {f"{ADAPTER}/{name}": digest for name, digest in digests(out / ADAPTER).items()}
    write_json(out / RUN, sealed(record, files))


def write_learned(model: nn.Module, folder: Path, parts: WholeModel | None = None) -> None:
    """Write the trained weights of a model into a folder: PEFT's files for an adapted model.

    parts: this process's part of a model with experts on several processes, None = whole.
    """
    if hasattr(model, "peft_config"):
        # PEFT writes its own files, first into a scratch folder
        adapted: Any = model
        write_folder(
            folder, {}, parts, before=lambda scratch: adapted.save_pretrained(str(scratch))
        )
    else:
        write_folder(folder, {TRAINED: learned_state(model)}, parts)
