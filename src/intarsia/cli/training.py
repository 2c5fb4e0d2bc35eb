"""`intarsia fit`: train one method, in a folder that can be resumed and read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .options import (
    Data,
    Json,
    experiment_values,
    given_in_words,
    running_values,
    with_training_options,
)
from .shell import note, show_json, show_table


@with_training_options
def fit(
    ctx: typer.Context,
    data: Annotated[str | None, Data.__metadata__[0]] = None,  # pyright: ignore
    method: Annotated[
        str,
        typer.Option(
            help="From `intarsia list`, as mosa, linear (the head) or full (everything); or "
            "official (MoSA's published recipe)."
        ),
    ] = "mosa",
    seed: Annotated[int, typer.Option(help="Of weights, draws, order and split.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="The run folder; runs/DATA-METHOD-SEED if not given.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out, as it was started.")
    ] = False,
    as_json: Json = False,
    **given: Any,
) -> None:
    """Adapt a pretrained model to pictures, and score it on the test part.

    Ctrl-C stops it cleanly; --resume goes on where it stood, bit for bit.

    Example:  intarsia fit elpv --size 70 --images 1000 --epochs 5 --lr 5e-3
    """
    from ..core.errors import ConfigError
    from ..experiments.execute import carry_out
    from ..experiments.experiment import Experiment, located, resumed
    from ..train import Running

    values = experiment_values(given) | {"method": method, "seed": seed}
    values["data"] = data if data is None else located(data)
    named = {"untrained": "pretrained", "fraction": "images"}
    words = {named.get(n, n) for n in given_in_words(ctx)}
    if data is not None:
        out = out or Path("runs") / f"{Path(data).name}-{method}-{seed}"
    if resume and out is not None:
        experiment = resumed(out, {n: v for n, v in values.items() if n in words})
    elif data is None:
        raise ConfigError(
            "DATA", got="nothing", want="a named set, a folder, a CSV or a Parquet file",
            fix="For example: intarsia fit elpv --size 70. To go on: fit --resume --out FOLDER.",
        )  # fmt: skip
    else:
        experiment = Experiment.of(values)
    use_threads(given["threads"])
    running = Running(out=out, resume=resume, **running_values(given))
    try:
        run = carry_out(experiment, running, note)
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(f"Go on: intarsia fit --resume --out {out}") from stop
    if as_json:
        show_json({"folder": str(out), **run.record["results"], "method": run.record["record"]})
        return
    _show(run, out)


def use_threads(count: int | None) -> None:
    """Let torch compute with so many threads."""
    import torch

    from ..core.errors import ConfigError

    if count is None:
        return
    if count < 1:
        raise ConfigError("--threads", got=count, want="at least 1", fix="Leave it out.")
    torch.set_num_threads(count)


def _show(run: Any, out: Path | None) -> None:
    """Scores, costs, and what to do next."""
    from ..report import numbers

    scores = {"val": run.val, "test": run.test}
    rows = [
        (part, numbers.percent(s.accuracy), numbers.percent(s.balanced_accuracy), f"{s.loss:.3f}")
        for part, s in scores.items() if s is not None
    ]  # fmt: skip
    show_table("", ("part", "accuracy", "balanced", "loss"), rows, right="accuracy,balanced,loss")
    results, counts = run.record["results"], run.record["parameters"]
    print(
        f"{counts['trained']:,} of {counts['all']:,} parameters trained "
        f"({counts['trained_without_head']:,} without the head), "
        f"{numbers.seconds(results['seconds'])} of training."
    )
    print(f"Next:  intarsia report {out}  |  intarsia predict {out} PICTURES")
