"""One cell's result as a record, and the file of them: results.jsonl, one JSON object a line."""

from __future__ import annotations

import math
import types
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from intarsia.core.errors import CheckpointError, DataError
from intarsia.core.files import parse_json
from intarsia.core.reading import read_bytes
from intarsia.core.store import append_line

FORMAT = 1
FIX = "Write it with Result.to_dict of this version, or run the cell again."


@dataclass(frozen=True, order=True)
class TaskName:
    """A data set with its labels; `synthetic` says that its pictures are rendered."""

    suite: str
    group: str
    name: str
    synthetic: bool = False


@dataclass(frozen=True, order=True)
class MethodName:
    """`name` tells methods apart, `label` is what people read."""

    name: str
    label: str


@dataclass(frozen=True)
class Setup:
    """The rules: protocol, backbone, epochs; what a search chose, of how many, in how many seconds.

    model: with all that the places share, as the size of pictures, the blocks and the precision.
    search_seconds: of training, over all runs of the search that ended.
    """

    protocol: str
    model: str
    epochs: int
    selected: Mapping[str, Any] = field(default_factory=dict)
    tried: int = 0
    search_seconds: float = 0.0

    def __post_init__(self) -> None:
        """Check that counts and seconds are not negative.  Raises: DataError."""
        for name in ("epochs", "tried"):
            _check(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")
        spent = self.search_seconds
        _check(0 <= spent < math.inf, "search_seconds", spent, "a finite value, at least 0")


@dataclass(frozen=True)
class Done:
    """Shares 0 ... 1, mean cross-entropy, trained parameters, seconds, bytes; None = not known.

    own_task_accuracy: of joint tasks, among the classes of an image's own task.
    ece: expected calibration error.  tempered_loss: the loss after one temperature, fitted on
    validation pictures that were not trained on, where the run had enough of them.
    """

    accuracy: float
    balanced_accuracy: float | None
    loss: float | None
    trained: int
    trained_without_head: int
    seconds: float
    cpu_seconds: float | None
    peak_bytes: int | None
    own_task_accuracy: float | None = None
    ece: float | None = None
    tempered_loss: float | None = None

    def __post_init__(self) -> None:
        """Check that every value is one that a run can have.  Raises: DataError."""
        # shares of test pictures
        for name in ("accuracy", "balanced_accuracy", "own_task_accuracy", "ece"):
            value = getattr(self, name)
            _check(value is None or 0 <= value <= 1, name, value, "a share, 0 ... 1")
        for name in ("trained_without_head", "seconds", "cpu_seconds", "peak_bytes"):
            value = getattr(self, name)
            _check(
                value is None or (value >= 0 and math.isfinite(value)),
                name,
                value,
                "a finite value, at least 0",
            )
        _check(
            self.trained >= self.trained_without_head,
            "trained",
            self.trained,
            f"no less than without the head, {self.trained_without_head}",
        )
        for name in ("loss", "tempered_loss"):
            value = getattr(self, name)
            _check(value is None or math.isfinite(value), name, value, "a finite value, or None")


@dataclass(frozen=True)
class Origin:
    """The origin of a score, apart from the settings; "" and None = not known.

    code: digest of the package's source.  pictures: of all parts' pictures and labels.
    twins: pictures of the training part that are in the test part, too.  chosen: what the method
    decided for this many images and epochs.
    """

    code: str = ""
    pictures: str = ""
    twins: int | None = None
    chosen: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Failed:
    """Why there is no score: the error's text."""

    error: str


@dataclass(frozen=True)
class RunResult:
    """The outcome of a run.  key: hash of its settings.  folder: of the run, relative to the file.

    Raises: DataError for a value that no cell can have.
    """

    key: str
    task: TaskName
    method: MethodName
    seed: int
    setup: Setup
    folder: str
    outcome: Done | Failed
    origin: Origin = field(default_factory=Origin)

    @property
    def status(self) -> str:
        """ "done" or "failed"."""
        return _STATUS[type(self.outcome)]

    def to_dict(self) -> dict[str, Any]:
        """Return the record, ready for JSON; `from_dict` gives the same record back."""
        return {"format": FORMAT, "status": self.status, **asdict(self)}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> RunResult:
        """Return the record that `to_dict` wrote.

        raw: the dict as read from JSON. Raises: DataError for a missing, unknown or wrong value;
        CheckpointError for a record of another format.
        """
        if not isinstance(raw, Mapping):
            raise _wrong("a result", type(raw).__name__, "a JSON object")
        if raw.get("format") != FORMAT:
            subject, fix = (
                "format of a result",
                "Read it with the version of intarsia that wrote it.",
            )
            raise CheckpointError(subject, got=raw.get("format"), want=FORMAT, fix=fix)
        status = raw.get("status")
        # the status says which kind of outcome the dict is to become
        kind = next((kind for kind, name in _STATUS.items() if name == status), None)
        if kind is None:
            raise _wrong("status of a result", repr(status), "'done' or 'failed'")
        rest = {name: value for name, value in raw.items() if name not in ("format", "status")}
        return _decode(cls, rest, "result", {"outcome": kind})


_STATUS: dict[type, str] = {Done: "done", Failed: "failed"}


def append(path: Path | str, result: RunResult) -> None:
    """Append a result to results.jsonl; the line is on disk when this returns.

    path: of the file. Only one process may write at a time. The rest of a line that a killed
    process left is removed.

    Raises: TrainingError if the disk is full or the file cannot be written.
    """
    append_line(Path(path), result.to_dict())


def read(path: Path | str) -> list[RunResult]:
    """Return the results of a file: the last line of each key, in the order the keys first came.

    An unfinished last line is left out: a killed run may stand in the middle of it.

    Raises: DataError if there is no file; CheckpointError for any other line that is damaged.
    """
    path = Path(path)
    try:
        # every complete line ends with a newline
        complete, _, _torn = read_bytes(path).rpartition(b"\n")
    except OSError as error:
        subject = f"results {str(path)!r}"
        got, fix = f"{type(error).__name__}", "Check the path, or run the benchmark first."
        raise DataError(subject, got=got, want="a file of results", fix=fix) from error
    by_key: dict[str, RunResult] = {}
    for number, line in enumerate(complete.split(b"\n") if complete else (), start=1):
        try:
            result = RunResult.from_dict(parse_json(line))
        except (ValueError, CheckpointError) as error:
            subject, fix = f"line {number} of {path}", "Remove the line: its cell is run again."
            want = "a result as this version writes it"
            raise CheckpointError(subject, got=str(error), want=want, fix=fix) from error
        # a run that was done again has a later line, which counts
        by_key[result.key] = result
    return list(by_key.values())


def only(results: Iterable[RunResult], status: str) -> list[RunResult]:
    """Return the results of a status, "done" or "failed"."""
    return [result for result in results if result.status == status]


def _decode(kind: Any, raw: Any, path: str, choice: Mapping[str, type]) -> Any:
    """Convert a dict from JSON to a dataclass, strictly."""
    if not isinstance(raw, Mapping):
        raise _wrong(path, type(raw).__name__, "a JSON object")
    hints, fields_by_name = get_type_hints(kind), {f.name: f for f in fields(kind)}
    # strict both ways: a name that is unknown may be a misspelt one that is missing
    if unknown := sorted(set(raw) - set(fields_by_name)):
        raise _wrong(path, f"unknown {unknown}", f"only {sorted(fields_by_name)}")
    # fields without a default must be in the file
    needed = {
        n
        for n, f in fields_by_name.items()
        if f.default is MISSING and f.default_factory is MISSING
    }
    if missing := sorted(needed - set(raw)):
        raise _wrong(path, f"no {missing}", f"all of {sorted(needed)}")
    values = {
        name: _value(choice.get(name, hints[name]), value, f"{path}.{name}")
        for name, value in raw.items()
    }
    return kind(**values)


def _value(hint: Any, value: Any, path: str) -> Any:
    """Check a JSON value against a type, and decode nested dataclasses."""
    if is_dataclass(hint):
        return _decode(hint, value, path, {})
    kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    for kind in kinds:
        plain = get_origin(kind) or kind
        expected: Any = (int, float) if plain is float else plain
        # a bool is an int to Python, not to a reader
        if isinstance(value, expected) and (not isinstance(value, bool) or plain is bool):
            return value
    names = " or ".join("None" if k is type(None) else (get_origin(k) or k).__name__ for k in kinds)
    raise _wrong(path, repr(value), names)


def _check(holds: bool, name: str, got: object, want: str) -> None:
    """Raise DataError unless a condition holds."""
    if not holds:
        raise _wrong(f"{name} of a result", got, want)


def _wrong(path: str, got: object, want: object) -> DataError:
    return DataError(path, got=got, want=want, fix=FIX)
