"""`intarsia combine`: techniques that make a sparse model cheaper, alone and in pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..core.checks import at_least
from ..core.errors import ConfigError
from ..data.corpora import is_text
from .early import check_data
from .options import Json
from .shell import note, say, show_json, show_table
from .targets import target

COMBINED = "intarsia combine"
ALL = "prune,merge,student,skip,place,lowrank,quant,offload"


def combine(
    model: Annotated[str, typer.Argument(help="A folder of save_pretrained with experts.")],
    text: Annotated[str, typer.Argument(help="A text: a corpus, or a file.")],
    entries: Annotated[str, typer.Argument(help="As prune:0.25,quant:w4,offload:expected.")] = ALL,
    pairs: Annotated[
        bool,
        typer.Option("--pairs", help="Each entry alone and in pairs, not all at once."),
    ] = False,
    rows: Annotated[int, typer.Option(help="Rows to measure on.")] = 48,
    calibration: Annotated[int, typer.Option(help="Rows to calibrate on.")] = 48,
    size: Annotated[int, typer.Option(help="Tokens of a row.")] = 128,
    save: Annotated[Path | None, typer.Option(help="A JSON file with all of it.")] = None,
    as_json: Json = False,
) -> None:
    """Put techniques on a sparse model and measure what they are worth together.

    prune, merge: the share of experts that goes; student: a dense model of so many experts; skip:
    the quantile of g2 / g1 below which a token has one expert; place: experts ordered for four
    devices, home or stay; lowrank: the energy that is kept; quant: w2, w3, w4 or w8; offload: the
    policy of a cache of a quarter of the experts, expected, lfu or lru. Times of devices
    are simulated. Nothing is written but --save.

    Example:  intarsia combine my-mixtral austen "prune:0.25,quant:w4"
    """
    check_data(text)
    if not is_text(text):
        want, fix = "a corpus, or a .txt, .md or .jsonl file", "For example: austen"
        raise ConfigError("TEXT", got=text, want=want, fix=fix)
    for option, value, least in (
        ("--rows", rows, 1),
        ("--calibration", calibration, 1),
        ("--size", size, 2),
    ):
        at_least(option, value, least)
    pairs = pairs or entries == ALL
    if save is not None:
        target(save, "combined.json", mark=COMBINED)
    from ..experiments.stack import broken, parsed, stack_of, stack_pairs

    settings = parsed(entries, alone=pairs)
    texts = _texts(model, text, (calibration, rows, size))
    if pairs:
        table = stack_pairs(*texts[:1], settings, *texts[1:], report=note)
    else:
        table = stack_of(*texts[:1], settings, *texts[1:], report=note)
    record = {
        "rows": table.rows(),
        "refused": {" + ".join(names): reason for names, reason in table.refused.items()},
        "broken": broken(table),
        "sha256": table.digest(),
    }
    if save is not None:
        from ..core.files import write_json

        write_json(save, {"format": COMBINED} | record)
    if as_json:
        show_json(record)
        return
    _show(record)


def _texts(model: str, text: str, sizes: tuple[int, int, int]) -> tuple[Any, Any, Any]:
    """Load the model, batches to calibrate on, and batches to measure on."""
    from ..data.language_models import language_model
    from ..data.texts import load_texts
    from ..data.token_batches import inputs_of

    calibration, rows, size = sizes
    host, tokenizer = language_model(model)
    parts = load_texts(text, tokenizer, length=size, train=calibration, test=rows, progress=note)
    some = [[part[i] for i in range(len(part))] for part in (parts.train, parts.test)]
    # A padded row would count as cheaper than it is: only full rows are measured.
    full_rows = [[row for row in part if len(row["input_ids"]) == size] for part in some]
    if not all(full_rows):
        got, fix = f"no row of {size} tokens", "Give more text, or a smaller --size."
        raise ConfigError("TEXT", got=got, want="rows without padding", fix=fix)
    return host, inputs_of(full_rows[0], 8), inputs_of(full_rows[1], 8)


def _show(record: dict[str, Any]) -> None:
    columns = ("entries", "nats", "MB", "Mop/token", "hits", "B/token sent", "ms simulated")
    cells: list[tuple[str, ...]] = []
    for row in record["rows"]:
        # On the Pareto front of loss, bytes and operations.
        mark = " *" if row["front"] else ""
        sent, seconds = row["sent_bytes"], row["simulated_seconds"]
        cells.append(
            (
                row["entries"] + mark,
                f"{row['cross_entropy']:.4f}",
                f"{row['bytes'] / 1e6:.3g}",
                f"{row['operations'] / 1e6:.3g}",
                f"{row['hit_rate']:.3f}",
                "-" if sent is None else f"{sent:.0f}",
                "-" if seconds is None else f"{seconds * 1e3:.3g}",
            )
        )
    show_table("", columns, cells, right=",".join(columns[1:]))
    for row in record["rows"]:
        if (interaction := row.get("interaction")) is not None:
            mean, low, high = interaction
            # An interaction is only reported where its interval leaves 0 out.
            if low > 0 or high < 0:
                word = "more" if mean > 0 else "less"
                interval = f"({low:.4f} ... {high:.4f})"
                say(f"{row['entries']}: {abs(mean):.4f} nats {word} than the two {interval}")
    for pair, reason in record["refused"].items():
        say(f"{pair}: refused, {reason}")
    for law in record["broken"]:
        say(f"broken: {law}")
    say("* : none is better in nats, bytes and operations at once. Devices are simulated.")
