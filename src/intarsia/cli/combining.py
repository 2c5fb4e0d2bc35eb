"""`intarsia combine`: techniques that make a sparse model cheaper, alone and in pairs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from ..core.errors import ConfigError
from ..core.schema import setting
from ..data.corpora import is_text
from .declared import with_options
from .early import check_data
from .options import Json, Length, Seed, SparseModel, Threads, use_threads, writes
from .shell import note, say, show_json, show_table
from .targets import target

COMBINED = "intarsia combine"
ALL = "prune,merge,student,skip,place,lowrank,quant,offload"


Text = Annotated[str, typer.Argument(help="Text to calibrate and measure on: a corpus, or a file.")]
Entries = Annotated[
    str, typer.Argument(help="Techniques with their settings: prune:0.25,quant:w4.")
]
Out = Annotated[Path | None, writes("The JSON file to write, with all that was measured.")]


@dataclass(frozen=True)
class Combining:
    """Size of a measurement: pairs or all at once, and rows of text."""

    pairs: bool = setting(False, "Each entry alone and in pairs, not all at once.")
    rows: int = setting(48, "Rows to measure on.", least=1)
    calibration: int = setting(48, "Rows to calibrate on.", least=1)


@with_options()
def combine(
    model: SparseModel,
    text: Text,
    combining: Combining,
    entries: Entries = ALL,
    length: Length = 128,
    seed: Seed = 0,
    out: Out = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Apply several techniques to a sparse model, and measure their joint effect.

    prune, merge: the share of experts that goes; student: a dense model of so many experts; skip:
    the quantile of g2 / g1 below which a token has one expert; place: experts ordered for four
    devices, home or stay; lowrank: the energy that is kept; quant: w2, w3, w4 or w8; offload: the
    policy of a cache of a quarter of the experts, expected, lfu or lru. Times of devices
    are simulated. Nothing is written but --out.

    Example:  intarsia combine my-mixtral austen "prune:0.25,quant:w4"
    """
    check_data(text)
    if not is_text(text):
        want, fix = "a corpus, or a .txt, .md or .jsonl file", "For example: austen"
        raise ConfigError("TEXT", got=text, want=want, fix=fix)
    # all entries at once would conflict with each other
    pairs = combining.pairs or entries == ALL
    if out is not None:
        target(out, "combined.json", mark=COMBINED)
    from ..runs.stack import broken, parsed, stack_of, stack_pairs

    use_threads(threads)
    settings = parsed(entries, alone=pairs)
    texts = _texts(model, text, (combining.calibration, combining.rows, length), seed)
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
    if out is not None:
        from ..core.files import write_json

        write_json(out, {"format": COMBINED} | record)
    if as_json:
        show_json(record)
        return
    _show(record)


def _texts(model: str, text: str, sizes: tuple[int, int, int], seed: int) -> tuple[Any, Any, Any]:
    from ..data.language_models import language_model
    from ..data.texts import load_texts
    from ..data.token_batches import inputs_of

    calibration, rows, length = sizes
    host, tokenizer = language_model(model)
    # rows to measure on are none of the calibration
    counts = {"length": length, "train": calibration, "test": rows}
    parts = load_texts(text, tokenizer, seed=seed, progress=note, **counts)
    some = [[part[i] for i in range(len(part))] for part in (parts.train, parts.test)]
    # A padded row would count as cheaper than it is: only full rows are measured.
    full_rows = [[row for row in part if len(row["input_ids"]) == length] for part in some]
    if not all(full_rows):
        got, fix = f"no row of {length} tokens", "Give more text, or a smaller --length."
        raise ConfigError("TEXT", got=got, want="rows without padding", fix=fix)
    return host, inputs_of(full_rows[0], 8), inputs_of(full_rows[1], 8)


def _show(record: dict[str, Any]) -> None:
    """Print the measured combinations of techniques, and what stands out."""
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
