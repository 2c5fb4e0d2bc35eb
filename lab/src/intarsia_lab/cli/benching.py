"""`intarsia bench`: many methods on many tasks, with statistics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from intarsia.cli.completing import among
from intarsia.cli.declared import rows_of, with_options
from intarsia.cli.early import check_jobs, check_numbers, check_word
from intarsia.cli.options import (
    Device,
    Jobs,
    Json,
    MaxPixels,
    Ray,
    Threads,
    allow_pixels,
    given_in_words,
    option_of,
    row,
    writes,
)
from intarsia.cli.shell import SOME_FAILED, note, say, show_json, show_table, warn
from intarsia.cli.values import check_options
from intarsia.core.errors import ConfigError
from intarsia.core.folders import check_outside
from intarsia.core.schema import setting
from intarsia.runs.choosing.arms import arm

from .bench_sparse import bench_sparse
from .words import HEADS, PROFILES, PROTOCOLS, SUITES, names_in


@dataclass(frozen=True)
class ContestOptions:
    """Tasks and methods of a benchmark."""

    tasks: str | None = setting(
        None,
        "Tasks with commas; the profile's if not given. a+b joins two tasks to one, with "
        "the classes of both; joint joins all of them.",
    )
    heads: str = setting(
        "one", "Heads of joint tasks: one over all classes, or each task its own.", choices=HEADS
    )
    methods: str | None = setting(None, "Methods with commas; the profile's if not given.")
    seeds: str | None = setting(
        None, "Seeds with commas; the profile's (0,1,2; quick: 0) if not given."
    )
    protocol: str = setting(
        "honest",
        "Protocol. honest: one setting for all tasks; tuned: a grid, chosen on validation "
        "images; even: one rate for each method, searched for in the same way; "
        "official: MoSA's published recipe.",
        choices=tuple(PROTOCOLS),
    )
    profile: str = setting(
        "full",
        "Profile: full; quick, cut to 15 minutes; few, 100 images, 40 epochs, five seeds.",
        choices=tuple(PROFILES),
    )
    baseline: str | None = setting(
        None, "Method that the others are compared with; adaptformer or the first if not given."
    )
    fraction: float | None = setting(
        None, "Share of the training images, such as 0.1.", above=0, most=1, fix="Try 0.1."
    )


@dataclass(frozen=True)
class Cuts:
    """Limits of a benchmark, and other actions than running it."""

    budget: float | None = setting(
        None,
        "Minutes on the clock: seeds and epochs are cut until it fits.",
        above=0,
        fix="For example: --budget 30; left out, nothing is cut.",
    )
    estimate: bool = setting(False, "Time steps of each method; say hours and memory; stop.")
    calibrate: bool = setting(
        False, "Fit the temperature of a tempered loss by a second run each (protocol honest)."
    )
    keep_failed: bool = setting(False, "Do not try failed runs again.")
    shapes: str | None = setting(
        None, "Shapes of the weights for sparse, such as 4096x4096,576x1536."
    )
    density: str | None = setting(None, "Shares of kept weights for sparse, such as 0.5,0.3.")
    show: bool = setting(False, "Name suites, tasks, methods, and what is on disk.", flag="--list")
    root: Path | None = setting(
        None, "Folder of the suites' pictures; $INTARSIA_DATA if not given."
    )


# settings of a run that a profile has values for
OF_PROFILE = (
    row("model", help="The pretrained model, as for `intarsia fit`."),
    row("size", help="Side of the pictures in pixels; the profile's (56) if not given."),
    row(
        "epochs",
        kind=int | None,
        default=None,
        help="Passes over the training images; the profile's (20) if not given.",
    ),
    row(
        "last_blocks",
        least=0,
        help="Adapt so many blocks, from the last, 0 = all; the profile's (3) if not given.",
    ),
    row(
        "precision",
        kind=str | None,
        default=None,
        help="Precision: fp32 or bf16; the profile's (bf16) if not given.",
    ),
)


@with_options((*rows_of(ContestOptions), *OF_PROFILE, *rows_of(Cuts)))
def bench(
    ctx: typer.Context,
    suite: Annotated[
        str | None,
        typer.Argument(
            help="Suite: mini, fresh, vtab-1k, fgvc or gicd; sparse: products of sparse weights.",
            autocompletion=among(SUITES),
        ),
    ] = None,
    shots: Annotated[int | None, option_of("shots")] = None,
    max_pixels: MaxPixels = None,
    out: Annotated[
        Path | None, writes("The folder of the results; runs/bench-SUITE-PROTOCOL if not given.")
    ] = None,
    jobs: Jobs = 1,
    threads: Threads = None,
    device: Device = None,
    ray: Ray = False,
    as_json: Json = False,
    **options: Any,
) -> None:
    """Compare methods on a suite of tasks: every run cached, tables with statistics at the end.

    Called again, it keeps finished runs and continues. A run that fails is recorded and does not
    stop the others; the exit code is then 1. What no run can do without, a model or the pictures
    of any task, is asked for first.

    `bench sparse` times products of sparse weights instead: of --shapes, or of the layers of a
    --model (smollm2, a folder, one that `compress` wrote), at each --density, next to torch's own
    in fp32, bf16, int8 and int4, onnxruntime's int4, and what this machine's memory allows.

    Example:  intarsia bench mini --profile quick --jobs 2
    """
    # First of all, so that it has the parameters and nothing else.
    arguments: dict[str, Any] = {**locals(), **options}
    check_word("--suite", suite, SUITES)
    _check_arms(names_in(options["methods"]), options["baseline"])
    allow_pixels(ctx, max_pixels)
    check_options({name: arguments[name] for name in ("precision", "epochs")})
    check_jobs(jobs, ray)
    if options["seeds"] is not None:
        check_numbers("--seeds", options["seeds"])
    if out is not None:
        check_outside(out, None)
    if suite == "sparse":
        # --model has a default, which is for pictures and no language model: only one that is named
        # counts here.
        model_given = "model" in given_in_words(ctx)
        model = options["model"] if model_given else None
        bench_sparse(options["shapes"], options["density"], model, as_json)
        return
    if options["shapes"] is not None or options["density"] is not None:
        got, fix = (
            f"them with {suite or 'no suite'}",
            "For example: intarsia bench sparse --shapes 64x64",
        )
        raise ConfigError("--shapes, --density", got=got, want="bench sparse", fix=fix)
    # Imports torch and timm: after all that can be refused without them.
    from .bench_steps import ask, carry, foretold, listed

    if options["show"] or suite is None:
        _show_list(listed(options["root"]), as_json)
        return
    plan, running, folder, minutes = ask(arguments, note)
    if options["estimate"]:
        prediction = foretold(plan, running, folder, note)
        show_json(prediction) if as_json else say(prediction["text"])
        return
    summary = carry(plan, running, folder, options["baseline"], minutes, note)
    if as_json:
        show_json(summary)
    else:
        _show(summary)
    # Tables are written without the failed runs; scripts see them by the exit code.
    if summary["failed"]:
        raise typer.Exit(SOME_FAILED)


def _check_arms(methods: Sequence[str], baseline: str | None) -> None:
    """Refuse a method that no benchmark has, and a baseline that is none of the methods."""
    for name in (*methods, *filter(None, [baseline])):
        arm(name)
    if methods:
        check_word("--baseline", baseline, methods)


def _rate(lr: float | None) -> str:
    """Return a learning rate as text; a probe that is fitted to convergence has none."""
    return "" if lr is None else f"{lr:g}"


def _show_list(listing: dict[str, Any], as_json: bool) -> None:
    """Print suites, methods and protocols as tables."""
    if as_json:
        show_json(listing)
        return
    for suite in listing["suites"]:
        # A suite with files that cannot be read does not hide the others.
        if "error" in suite:
            note(f"{suite['suite']}: {suite['error']}")
            continue
        rows = [(t["task"], t["group"], str(t["classes"]), t["pictures"]) for t in suite["tasks"]]
        columns = ("task", "group", "classes", "pictures")
        show_table(f"{suite['suite']}: {suite['about']}", columns, rows, right="classes")
        if any(t["missing"] for t in suite["tasks"]):
            note(f"{suite['how']} The suite's folder is {suite['root']}.")
    rows = [
        (
            *(m["name"], m["method"], " ".join(m["settings"]), _rate(m["lr"]), m["objective"]),
            "half" if m["half"] else "all",
        )
        for m in listing["methods"]
    ]
    show_table("Methods", ("name", "method", "settings", "lr", "objective", "epochs"), rows)
    # a search on tasks of its own has rates as they are; else they multiply each method's own rate
    rows = [
        (p["name"], p["about"], _grid(p["grid"], relative=not p["chosen_on"]))
        for p in listing["protocols"]
    ]
    show_table("Protocols", ("name", "about", "grid of a search"), rows)


def _grid(grid: dict[str, list[float]], *, relative: bool) -> str:
    """Return the grid of a search in words."""
    names = {"lr": "lr x"} if relative else {}  # times the method's own rate
    return "; ".join(f"{names.get(n, n)} {', '.join(f'{v:g}' for v in grid[n])}" for n in grid)


def _show(summary: dict[str, Any]) -> None:
    """Print a benchmark's failures, cuts, table and path."""
    for failed in summary["failed"]:
        warn(f"FAILED  {failed}")
    for cut in summary["plan"]["cut"]:
        note(f"Cut or changed: {cut}")
    say(summary["table"])
    say(f"Report: {summary['report']}")
