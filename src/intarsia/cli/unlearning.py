"""`intarsia unlearn`: a text is unlearned in one expert of a sparse language model."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.errors import ConfigError
from ..core.schema import setting
from ..data.corpora import is_text
from .declared import of_method, with_options
from .devices import language_model_on
from .early import check_data
from .options import (
    Device,
    Json,
    Length,
    OutFolder,
    Seed,
    SparseModel,
    Threads,
    use_threads,
)
from .shell import note, say, show_json, show_table
from .targets import target

RECORD = "unlearn.json"


@dataclass(frozen=True)
class Unlearning:
    """The texts, the expert, and the steps of the training."""

    forget: str = setting(help="Text to forget: a corpus, or a file.")
    retain: str | None = setting(None, "Text to keep: a corpus, or a file.")
    at: str | None = setting(
        None, "LAYER,EXPERT to train in place of the chosen one; or all, every weight."
    )
    until: float | None = setting(
        1.0, "Stop when the text costs so many nats a token more.", above=0, fix="Try 1."
    )
    steps: int = setting(60, "Steps of the training, at most.", least=1)
    rows: int = setting(256, "Rows of each text.", least=1)
    batch_size: int = setting(8, "Rows of text in a step.", least=1)


@with_options(
    of_method(
        "seuf",
        *("loss", "by", "anchor", "lr"),
        loss="Loss of the unlearning.",
        by="Measure that chooses the expert.",
        anchor="Weight of the loss that keeps the tokens with their expert.",
    )
)
def unlearn(
    model: SparseModel,
    unlearning: Unlearning,
    length: Length = 128,
    seed: Seed = 0,
    out: OutFolder = None,
    device: Device = None,
    threads: Threads = None,
    as_json: Json = False,
    **settings: Any,
) -> None:
    """Unlearn a text in the one expert that it belongs to; no other weight changes.

    Both texts are measured on rows that are not trained on. The folder opens with
    from_pretrained; unlearn.json in it has the path.

    Example:  intarsia unlearn my-mixtral --forget a.jsonl --retain b.jsonl --out forgot
    """
    forget, retain = unlearning.forget, unlearning.retain
    for option, text in (("--forget", forget), ("--retain", retain)):
        if text is not None:
            check_data(text)
            if not is_text(text):
                want, fix = "a corpus, or a .txt, .md or .jsonl file", "For example: austen"
                raise ConfigError(option, got=text, want=want, fix=fix)
    # Only gradient ascent does without a text to keep; lift compares two texts, too.
    if retain is None and (settings["loss"] != "ga" or settings["by"] == "lift"):
        want, fix = "a text to keep", "Give --retain, or --loss ga --by affinity."
        raise ConfigError("--retain", got="nothing", want=want, fix=fix)
    steps: dict[str, Any] = {"at": _place(unlearning.at), "seed": seed}
    steps |= {name: getattr(unlearning, name) for name in ("steps", "until", "batch_size")}
    folder = target(out, "out")
    use_threads(threads)
    from ..methods.seuf.seuf import Seuf

    # checks its settings before the model is loaded
    method, sizes = Seuf(**settings), (unlearning.rows, length)
    record = _unlearned((model, device), method, (forget, retain), sizes, steps, folder)
    if as_json:
        show_json({"folder": str(folder), **record})
        return
    _show(record)
    say(str(folder))


def _place(text: str | None) -> tuple[int, int] | str | None:
    """Parse --at: "LAYER,EXPERT" as two numbers; "all" and None are returned as they are."""
    if text is None or text == "all":
        return text
    parts = text.split(",")
    # Negative numbers are refused, too: layers and experts are counted from 0.
    if len(parts) != 2 or not all(part.strip().isdecimal() for part in parts):
        want, fix = "LAYER,EXPERT or all", "For example: --at 3,7"
        raise ConfigError("--at", got=text, want=want, fix=fix)
    return int(parts[0]), int(parts[1])


def _unlearned(
    source: tuple[str, str | None],
    method: Any,
    texts: tuple[str, str | None],
    sizes: tuple[int, int],
    settings: dict[str, Any],
    target: Path,
) -> dict[str, Any]:
    """Load a model, unlearn a text in it, write it, and return the record."""
    from ..core.files import write_json, writing
    from ..core.sealing import seal_stock
    from ..data.texts import load_texts
    from ..methods.seuf.seuf import unlearn as carry_out

    host, tokenizer = language_model_on(*source, dtype="auto")
    train, length = sizes
    # Both texts are cut alike, so that their losses compare.
    told_of = {"length": length, "train": train, "progress": note, "seed": settings["seed"]}
    read = [None if t is None else load_texts(t, tokenizer, **told_of) for t in texts]
    some = [[] if r is None else r.train for r in read]
    # At most 32 rows that are not trained on judge how far the unlearning has come.
    judge = tuple(
        [] if r is None else [r.test[i] for i in range(min(32, len(r.test)))] for r in read
    )
    # Doubts about the chosen expert are warnings: they are shown and kept in the record.
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        unlearned = carry_out(host, method, *some, judge=judge, progress=note, **settings)  # pyright: ignore
    for item in caught:
        note(f"intarsia: {item.message}")
    record: dict[str, Any] = {
        "at": list(unlearned.at) if unlearned.at else "all",
        "trained": unlearned.trained,
        "total": unlearned.total,
        "path": [dict(item) for item in unlearned.path],
        "doubts": [str(item.message) for item in caught],
        "texts": list(texts),
        "settings": dict(unlearned.settings) | {n: v for n, v in settings.items() if n != "at"},
    }
    # With --at the expert is given, and no affinity is measured.
    if unlearned.attribution is not None:
        record["affinity"] = unlearned.attribution.affinity.tolist()
    # Written next to its place and moved at the end: a killed command leaves no half model.
    with writing(target) as scratch:
        scratch.mkdir()
        host.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        write_json(scratch / RECORD, record)
        seal_stock(scratch)
    return record


def _show(record: dict[str, Any]) -> None:
    """Print the measures along the training, and the number of trained weights."""
    names = list(record["path"][-1])
    rows = [
        tuple(f"{point[n]:.3f}" if n != "step" else f"{point[n]:.0f}" for n in names)
        for point in record["path"]
    ]
    show_table("", tuple(names), rows, right=",".join(names))
    place = (
        "all weights" if record["at"] == "all" else "expert {1} of layer {0}".format(*record["at"])
    )
    say(
        f"Trained {record['trained']} of {record['total']} weights: {place}. "
        "Cross-entropy in nats a "
        "token; share: the expert's, of the probability of the tokens to forget"
    )
