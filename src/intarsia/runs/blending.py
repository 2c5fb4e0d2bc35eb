"""A blend of finished runs on pictures: a folder that answers with the mean of its members."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..core.checks import above
from ..core.errors import CheckpointError, ConfigError, DataError
from ..core.files import read_json, writing
from ..core.folders import BLEND, describe_folder
from ..core.reading import copy_file
from ..core.sealing import check_sealed, seal_folder
from ..data.corpora import is_text
from ..data.decode import Picture
from ..data.images import ImageSet
from ..reports.runs import FinishedRun, read_run
from ..reports.runs.reading import PREDICTIONS, need, read_predictions
from ..reports.wording import joined
from ..train.blend import blended
from ..train.folder import ADAPTER, METRICS, RUN, write_results
from ..train.record import machine, versions
from ..train.scores import Named, Scores
from . import experiment as experiments
from .experiment import Experiment
from .runs import PictureRun, RunOnPictures, open_pictures, scores_from

FORMAT = 1
MEMBERS = "members"  # the folder of their run folders, 0 and on
COPIED = (experiments.FILE, RUN, METRICS, PREDICTIONS, ADAPTER, "mistakes", "README.txt")
SUMMED = ("steps", "seconds", "cpu_seconds")  # of the members' results: what a blend has cost


@dataclass(frozen=True)
class BlendRun(RunOnPictures):
    """A blend of finished runs on pictures: p = sum_k w_k softmax(z_k / T_k).

    members: the runs; each takes pictures at its own size and scale.  weights: w_k, their
    sum 1.  temperatures: T_k, by which a member's logits are divided.  classes: their names.
    record: the contents of run.json.
    """

    members: tuple[PictureRun, ...]
    weights: tuple[float, ...]
    temperatures: tuple[float, ...]
    classes: tuple[str, ...]
    record: Mapping[str, Any]

    @property
    def model(self) -> nn.ModuleList:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The models of all members, in their order."""
        return nn.ModuleList(member.model for member in self.members)

    @property
    def experiment(self) -> Experiment:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The first member's experiment; all members share its data."""
        return self.members[0].experiment

    def blend(self, logits: Sequence[Tensor]) -> Tensor:
        """Return the blend of the members' logits, see `blended`."""
        return blended(logits, self.weights, self.temperatures, self.several_labels)

    def logits(self, pictures: Sequence[Picture]) -> tuple[Tensor, dict[int, str]]:
        """Compute the blend of the members' logits, with an error for each unreadable picture."""
        answers = [member.logits(pictures) for member in self.members]
        # a picture that one member cannot read has no answer
        errors = {i: text for _, wrong in reversed(answers) for i, text in wrong.items()}
        return self.blend([rows for rows, _ in answers]), errors

    def logits_on(self, images: ImageSet) -> tuple[Tensor, Tensor]:
        """Compute the blend of the members' logits; return the set's labels with them."""
        answers = [member.logits_on(images) for member in self.members]
        return self.blend([logits for logits, _ in answers]), answers[0][1]


def write_blend(
    folder: str | Path,
    members: Sequence[str | Path],
    weights: Sequence[float] | None = None,
    temperatures: Sequence[float] | None = None,
    *,
    record: Mapping[str, Any] | None = None,
    move: bool = False,
) -> Path:
    """Write a folder that blends finished runs on pictures, and return its path.

    The folder has `members`, `blend.json` with weights, temperatures and classes, `run.json` with
    the blend's scores on the pictures that all members were scored on, and the answers to them.
    An earlier blend there is replaced.

    folder: to write. members: two or more folders of finished runs with the same classes, scored on
    the same pictures. weights: of the mean, scaled so that their sum is 1; None = equal.
    temperatures: by which each member's logits are divided; None = those fitted in its run, else 1.
    record: notes of the caller for run.json, such as "label", "command" and "choice". move: remove
    the members' folders when the blend is written.
    Raises: ConfigError or DataError for members that do not fit together; as `read_run` does.
    """
    target, places = Path(folder), [Path(member) for member in members]
    _check_places(target, places)
    runs = [_member(place) for place in places]
    classes, shares = _classes(runs), _shares(weights, len(runs))
    temps = _temperatures(temperatures, runs)
    logits, labels, items = _common_answers(runs)
    several = runs[0].scores.measure != "accuracy"
    scores = scores_from(blended(logits, shares, temps, several), labels, several=several)
    summary = _record(runs, shares, temps, scores, record or {})
    content = {
        "format": FORMAT,
        "classes": classes,
        "weights": shares,
        "temperatures": temps,
    }
    tensors = dict(scores.predictions) | ({} if items is None else {"items": items})
    with writing(target, refuse_loss=True) as scratch:
        for number, place in enumerate(places):
            _copy(place, scratch / MEMBERS / str(number))
        # the answers, numbered, so that reports can pair them with other runs'
        stored = Named(scores.scores(), kept=tensors)
        write_results(scratch, nn.Identity(), summary, runs[0].scores.split, stored, None)
        seal_folder(scratch, BLEND, content)
    if move:
        for place in places:
            shutil.rmtree(place)
    return target


def open_blend(folder: str | Path, *, as_trained: bool = True) -> BlendRun:
    """Open a blend of finished runs.

    as_trained: keep the frozen weights in the dtype of the training; False = float32.
    Raises: CheckpointError for damaged files; as `open_run` says of each member.
    """
    folder = Path(folder)
    content = _read(folder)
    count = len(content["weights"])
    places = [folder / MEMBERS / str(number) for number in range(count)]
    for place in places:
        if not (place / experiments.FILE).is_file():
            raise _damaged(place, describe_folder(place), "a member, a run of `intarsia fit`")
    members = tuple(open_pictures(place, as_trained=as_trained) for place in places)
    classes = tuple(content["classes"])
    for place, member in zip(places, members, strict=True):
        if member.classes != classes:
            got = f"classes {list(member.classes)}"
            raise _damaged(place, got, f"those of the blend, {list(classes)}")
    record = read_run(folder).record
    return BlendRun(
        members, tuple(content["weights"]), tuple(content["temperatures"]), classes, record
    )


def _read(folder: Path) -> dict[str, Any]:
    """Read blend.json, and check it and the files of its folder."""
    path = folder / BLEND
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from error
    content = check_sealed(path, content, needs=(RUN,))
    if (form := content.get("format")) is True or form != FORMAT:
        fix = "Open it with the version of intarsia that wrote it."
        raise CheckpointError(f"format of {path}", got=repr(form), want=FORMAT, fix=fix)
    weights, temperatures = (_numbers(path, content, n) for n in ("weights", "temperatures"))
    if len(weights) < 2 or len(weights) != len(temperatures):
        got = f"{len(weights)} weights, {len(temperatures)} temperatures"
        raise _damaged(path, got, "one of each for each of two or more members")
    if not math.isclose(sum(weights), 1, abs_tol=1e-6):
        raise _damaged(path, f"weights {weights}", "weights that add up to 1")
    classes = content.get("classes")
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise _damaged(path, f"classes = {classes!r}")
    return content


def _numbers(path: Path, content: Mapping[str, Any], name: str) -> list[float]:
    """Return a list of numbers above 0 of blend.json.  Raises: CheckpointError."""
    values = content.get(name)
    good = isinstance(values, list) and all(
        isinstance(v, int | float) and not isinstance(v, bool) and 0 < v < math.inf for v in values
    )
    if not good:
        raise _damaged(path, f"{name} = {values!r}", "a list of numbers above 0")
    return values  # pyright: ignore[reportReturnType]


def _damaged(path: Path, got: str, want: str = "the file as it was written") -> CheckpointError:
    fix = "Restore it from a copy, or blend the runs again: intarsia blend RUN RUN --out FOLDER."
    return CheckpointError(f"blend {path}", got=got, want=want, fix=fix)


def _check_places(target: Path, places: Sequence[Path]) -> None:
    """Check that there are two or more members, each once, none in the folder to write."""
    if len(places) < 2:
        fix = "Name two or more: intarsia blend runs/a runs/b --out blended"
        raise ConfigError("members", got=f"{len(places)} run", want="at least two", fix=fix)
    resolved = [place.resolve() for place in places]
    for place, real in zip(places, resolved, strict=True):
        if resolved.count(real) > 1:
            fix = "Name each run once; weights give one a larger share."
            raise ConfigError(f"member {place}", got="it twice", want="it once", fix=fix)
        if real.is_relative_to(target.resolve()):
            fix = "Write the blend to another folder."
            got = f"a folder in {target}"
            raise ConfigError(f"member {place}", got=got, want="one outside of it", fix=fix)


def _member(folder: Path) -> FinishedRun:
    subject, want = f"member {folder}", "a run of `intarsia fit` on pictures"
    if (folder / BLEND).is_file():
        fix = f"Name its members: {folder / MEMBERS / '0'} ..."
        raise ConfigError(subject, got="a blend", want=want, fix=fix)
    if is_text(experiments.read(folder).pictures.data):
        raise ConfigError(subject, got="a run on texts", want=want, fix="Leave it out.")
    return read_run(folder)


def _shares(weights: Sequence[float] | None, count: int) -> list[float]:
    """Return weights with the sum 1, equal ones for None.  Raises: ConfigError."""
    parts = [1.0] * count if weights is None else [float(weight) for weight in weights]
    _check_numbers("weights", parts, count)
    total = math.fsum(parts)
    return [part / total for part in parts]


def _temperatures(temperatures: Sequence[float] | None, runs: Sequence[FinishedRun]) -> list[float]:
    """Return each member's temperature: as passed, else as its run fitted it, else 1."""
    if temperatures is None:
        scores = [run.record["results"][run.scores.split] for run in runs]
        temperatures = [score.get("temperature") or 1.0 for score in scores]
    values = [float(value) for value in temperatures]
    _check_numbers("temperatures", values, len(runs))
    return values


def _check_numbers(subject: str, values: Sequence[float], count: int) -> None:
    """Check that there is a number above 0 for each member.  Raises: ConfigError."""
    if len(values) != count:
        fix = "Give one for each run, in their order."
        raise ConfigError(subject, got=f"{len(values)}", want=f"{count}, one a member", fix=fix)
    for value in values:
        above(subject, value, 0, fix="Leave a run out in place of a 0.")
        if not math.isfinite(value):
            fix = "Give a finite number."
            raise ConfigError(subject, got=value, want="numbers above 0", fix=fix)


def _classes(runs: Sequence[FinishedRun]) -> list[str]:
    """Return the classes that all members have, in one order.  Raises: ConfigError for others."""
    names = [need(run.record, "record.data.classes", list, run.folder) for run in runs]
    for run, classes in zip(runs, names, strict=True):
        if classes != names[0]:
            want, fix = f"those of {runs[0].folder}, {names[0]}", "Blend runs of one data set."
            raise ConfigError(f"classes of {run.folder}", got=classes, want=want, fix=fix)
    return [str(name) for name in names[0]]


def _common_answers(runs: Sequence[FinishedRun]) -> tuple[list[Tensor], Tensor, Tensor | None]:
    """Return each member's logits, the labels, and the pictures' numbers, all in one order."""
    first, answers = runs[0], list[Mapping[str, np.ndarray]]()
    split = first.scores.split
    for run in runs:
        digests = [
            need(r.record, f"record.data.parts.{r.scores.split}.sha256", str, r.folder)
            for r in (first, run)
        ]
        if run.scores.split != split or digests[0] != digests[1]:
            got = f"other pictures ({run.scores.split} part, {digests[1][:12]})"
            want = f"those of {first.folder} ({split} part, {digests[0][:12]})"
            fix = "Train all with the same data and --split-seed."
            raise ConfigError(f"pictures scored by {run.folder}", got=got, want=want, fix=fix)
        tensors = read_predictions(run.folder, run.scores)
        if tensors is None or "logits" not in tensors:
            subject, fix = f"answers of {run.folder}", "Train the run again."
            raise DataError(subject, got="none", want="predictions.safetensors", fix=fix)
        answers.append(tensors)
        if not np.array_equal(tensors["labels"], answers[0]["labels"]):
            subject, got = f"answers of {run.folder}", "pictures in another order"
            fix = "Train all with the same data and --split-seed."
            raise ConfigError(subject, got=got, want=f"those of {first.folder}", fix=fix)
    logits = [torch.from_numpy(tensors["logits"]) for tensors in answers]
    items = answers[0].get("items")
    numbers = None if items is None else torch.from_numpy(items)
    return logits, torch.from_numpy(answers[0]["labels"]), numbers


def _record(
    runs: Sequence[FinishedRun],
    weights: Sequence[float],
    temperatures: Sequence[float],
    scores: Scores,
    notes: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the content of run.json: the blend's scores, and what its members were and cost."""
    first = runs[0]
    labels = [str(run.given.get("label", "a run")) for run in runs]
    results = [run.record["results"] for run in runs]
    sums = {name: sum(part.get(name, 0) for part in results) for name in SUMMED}
    counts = [run.record["parameters"] for run in runs]
    described = {
        "label": f"blend of {joined(labels)}",
        "model": " + ".join(str(run.given.get("model")) for run in runs),
        "data": _shared_data([run.given["data"] for run in runs]),
        "blend": {
            "members": labels,
            "sizes": [list((run.given.get("inputs") or {}).get("size", ())) for run in runs],
            "weights": list(weights),
            "temperatures": list(temperatures),
        },
    }
    return {
        "format": first.record.get("format", FORMAT),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "parameters": {name: sum(count[name] for count in counts) for name in counts[0]},
        "training": {"seed": first.seed},
        "data": first.record.get("data", {}),
        "machine": machine(),
        "versions": versions(),
        "record": described | dict(notes),
        "results": {
            first.scores.split: scores.scores(),
            **{name: round(value, 3) for name, value in sums.items()},
        },
    }


def _shared_data(records: Sequence[Any]) -> dict[str, Any]:
    """Return the first member's record of its data, with the parts that all members have alike."""
    first = dict(records[0])
    # a part that another member has trained on must not score the blend
    first["parts"] = {
        name: part
        for name, part in first["parts"].items()
        if all(r["parts"].get(name, {}).get("sha256") == part.get("sha256") for r in records)
    }
    return first


def _copy(source: Path, place: Path) -> None:
    """Copy what belongs to a finished run: no checkpoints, exports or curves for other programs."""
    for name in COPIED:
        top = source / name
        for path in (top, *top.rglob("*")):
            if path.is_file():
                target = place / path.relative_to(source)
                target.parent.mkdir(parents=True, exist_ok=True)
                copy_file(path, target)
