"""The run folder."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import nn

from ..core.errors import ConfigError
from ..core.files import disk_error, write_json, writing
from .precision import learned_state
from .scores import Scores

README = """One training run of intarsia.

run.json                 what was run: command, settings, method, data, machine, versions, results
metrics.jsonl            one JSON object a line: step, epoch, split, loss, accuracy, lr, seconds
adapter/                 the trained weights without the frozen trunk (and without the optimiser)
predictions.safetensors  outputs and labels of the last evaluated split, named in its metadata
state/                   the newest checkpoint; fit(..., out=FOLDER, resume=True) goes on from it
phases/                  the runs before it, of a method that trains in phases
tensorboard/             the curves: tensorboard --logdir FOLDER

Everything is JSON or safetensors: reading it runs no code.
state/ may be deleted when the run is done.
"""
METRICS, RUN, ADAPTER, STATE = "metrics.jsonl", "run.json", "adapter", "state"
FORMAT = 1  # of run.json


Write = Callable[[nn.Module, Path], object]  # puts a trained model into a folder


class Log:
    """metrics.jsonl; lines are kept in memory too, and only there without a folder."""

    def __init__(self, path: Path | None) -> None:
        self.path, self.lines = path, list[dict[str, Any]]()
        self._file = None

    def open(self, size: int) -> None:
        """Go on after the first `size` bytes; later lines, of a killed run, are cut off."""
        if self.path is None:
            return
        try:
            self._file = self.path.open("a+b")
            self._file.truncate(size)
            self._file.seek(0)
            self.lines = [json.loads(line) for line in self._file.read().splitlines()]
        except OSError as error:
            raise disk_error(self.path, error) from error

    def write(self, line: Mapping[str, Any]) -> None:
        self.lines.append(dict(line))
        if self._file is None or self.path is None:
            return
        try:
            self._file.write(json.dumps(line).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise disk_error(self.path, error) from error

    def size(self) -> int:
        """Bytes so far, on the disk itself."""
        if self._file is None or self.path is None:
            return 0
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise disk_error(self.path, error) from error
        return self._file.tell()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def prepare(out: Path, resume: bool) -> None:
    """Make the folder.  Raises: ConfigError if it holds another run, or cannot be made."""
    if not resume and any((out / name).exists() for name in (RUN, METRICS, STATE)):
        want, fix = "a new one", "Choose another folder, or go on with that run: resume=True."
        raise ConfigError(f"run folder {out}", got="a folder with a run in it", want=want, fix=fix)
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "README.txt").write_text(README)
    except FileExistsError as error:
        what, got = f"run folder {out}", "a file"
        raise ConfigError(what, got=got, want="a folder", fix="Choose another name.") from error
    except OSError as error:
        raise disk_error(out, error) from error


def write_results(
    out: Path,
    model: nn.Module,
    record: Mapping[str, Any],
    split: str,
    metrics: Scores | None,
    write: Write,
) -> None:
    """adapter/, predictions.safetensors, and run.json last: with it, all is there."""
    write(model, out / ADAPTER)
    if metrics is not None and (tensors := metrics.predictions):
        with writing(out / "predictions.safetensors") as scratch:
            safetensors.torch.save_file(tensors, scratch, metadata={"split": split})
    write_json(out / RUN, record)


def write_learned(model: nn.Module, folder: Path) -> None:
    """What a model has learned: PEFT's files, or the trained weights."""
    save = getattr(model, "save_pretrained", None)
    with writing(folder) as scratch:
        if callable(save) and hasattr(model, "peft_config"):
            save(str(scratch))
        else:
            scratch.mkdir()
            state = {n: t.cpu().contiguous().clone() for n, t in learned_state(model).items()}
            safetensors.torch.save_file(state, scratch / "trained.safetensors")
