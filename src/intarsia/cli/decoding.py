"""`intarsia spans` and `intarsia generate`: how far heads look back, and decoding with that."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from ..core.errors import ConfigError
from ..core.schema import setting
from ..data.language_names import check_language_model
from ..hosts.spans.spans import Spans, load_spans
from .declared import of_method, option, with_options
from .early import check_calibration, check_change, check_file
from .options import (
    Calibration,
    Device,
    Json,
    LanguageModel,
    Seed,
    TextOptions,
    Threads,
    use_threads,
    writes,
)
from .shell import note, say, show_json, whole_text
from .targets import target

SPANS = "intarsia-spans-1"  # the format of the file


@with_options(
    of_method(
        "moa",
        *("density", "lengths", "check", "extend", "sink", "block", "answer"),
        lengths="Lengths of the profiled texts in tokens, with commas.",
        extend="Longest text that the spans are for, in tokens.",
    )
)
def spans(
    model: LanguageModel,
    calib: Calibration = "mixed",
    rows: Annotated[int, option(TextOptions, "rows", least=2)] = 8,
    seed: Seed = 0,
    out: Annotated[Path | None, writes("The .json file to write.")] = None,
    threads: Threads = None,
    as_json: Json = False,
    **settings: Any,
) -> None:
    """Choose how far each head of a language model looks back (MoA, arXiv:2406.14909).

    A few minutes a billion parameters and row: a forward and a backward pass at each length, then
    mixed-integer programmes. `intarsia report spans.json` draws the choice.

    Example:  intarsia spans smollm2 --density 0.5 --out spans.json
    """
    check_calibration(calib, rows)
    if out is None or out.suffix != ".json":
        fix = "For example: --out spans.json"
        raise ConfigError("--out", got=out or "nothing", want="a .json file", fix=fix)
    target(out, "spans.json", mark=SPANS)
    check_language_model(model)
    use_threads(threads)
    from ..data.calibration import load_calibration
    from ..data.language_models import language_model
    from ..methods.moa import MoA, choose_spans

    # refuses impossible lengths before the model is loaded
    method = MoA(**settings)
    host, tokenizer = language_model(model)
    # Texts must be as long as the longest length that is profiled or validated.
    size = max(*method.lengths, method.check)
    texts = load_calibration(calib, tokenizer, rows=rows, length=size, progress=note)
    choice = choose_spans(host, method, texts.train, seed=seed, progress=note)
    choice = replace(choice, about={**choice.about, "calibration": texts.record["rows"]})
    choice.save(out)
    record = {"file": str(out), **_summary(choice, size)}
    if as_json:
        show_json(record)
        return
    losses = ", ".join(f"{value:.4f} {name}" for name, value in record["loss"].items())
    say(
        f"{choice.layers} layers of {choice.heads} heads, density {record['density']:.3f} at {size}"
    )
    say(f"loss of the last third on other rows: {losses}")
    say(f"{out}\nNext:  intarsia generate {model} '...' --spans {out}")


def _summary(spans: Any, size: int) -> dict[str, Any]:
    """Return what `intarsia spans --json` prints: density, losses, seconds and spans."""
    details = spans.about
    loss = details["loss"][details["chosen"]]
    return {
        "density": spans.density(size),
        "loss": {"dense": details["dense"], "uniform": details["uniform"], "spans": loss},
        "seconds": details["seconds"],
        "spans": spans.at(size).tolist(),
    }


@dataclass(frozen=True)
class Continuing:
    """Settings of a continuation, and the change of the model before it."""

    tokens: int = setting(64, "Tokens to add.", least=2)
    spans: Path | None = setting(None, "File of attention spans, as `intarsia spans` writes it.")
    load: Path | None = setting(
        None, "Folder of `intarsia.save` with a change of the model: compressed, adapted, ..."
    )
    dtype: str = setting(
        "float32",
        "Type of the weights in memory: float32, or auto, that of their file.",
        choices=("float32", "auto"),
        fix="Leave it out, or --dtype auto.",
    )
    compare: bool = setting(False, "Time transformers' own generate, too.", flag="--beside")


@with_options()
def generate(
    model: LanguageModel,
    prompt: Annotated[str, typer.Argument(help="The text to continue.", callback=whole_text)],
    continuing: Continuing,
    device: Device = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Continue a text with the most likely tokens, and report the tokens per second.

    Keys and values have their room from the start; with --spans a ring for each head. For many
    requests at once see `intarsia serve`.

    Example:  intarsia generate smollm2 "The ship left the harbour" --tokens 64 --beside
    """
    if not prompt.strip():
        raise ConfigError("prompt", got="no text", want="some", fix='For example: "Once upon"')
    check_file("--spans", continuing.spans)
    spans_of_heads = None if continuing.spans is None else load_spans(continuing.spans)
    if continuing.load is not None:
        check_change("--load", continuing.load)
    check_language_model(model)
    use_threads(threads)
    record = _continued((model, device), prompt, continuing, spans_of_heads)
    if as_json:
        show_json(record)
        return
    # unlike `say`, which escapes control characters: the text is printed as it is
    sys.stdout.write(record["text"].strip("\n") + "\n")
    say(
        f"{record['tokens']} tokens, {record['a_second']:.1f} a second; "
        f"prompt of {record['prompt']} in "
        f"{record['prompt_seconds']:.2f} s; keys and values {record['cache_bytes'] / 1e6:.2f} MB; "
        f"{record['path']}"
    )
    if continuing.compare:
        verdict = "the same tokens" if record["transformers"]["same"] else "other tokens"
        say(f"transformers' generate: {record['transformers']['a_second']:.1f} a second, {verdict}")


def _continued(
    source: tuple[str, str | None], prompt: str, continuing: Continuing, spans: Spans | None
) -> dict[str, Any]:
    """Load a model, continue a text with it, and return the record that `generate` prints."""
    from ..decode.decoding import generate as continued
    from ..decode.decoding import stock_generate
    from ..folders.opened import open_language_model
    from ..folders.saved import load as load_saved
    from ..hosts.in_memory import hold
    from ..hosts.spans.head_spans import attach_spans
    from ..train.processes import device_named

    load, tokens = continuing.load, continuing.tokens
    host: Any
    model, device = source[0], device_named(source[1])
    host, tokenizer = open_language_model(model, dtype=continuing.dtype)
    if load is not None:
        host = load_saved(host, load)
    hold(host, model)
    host = host.to(device)
    # Continued without a chat template: the prompt is the text that is continued.
    ids = tokenizer(prompt, return_tensors="pt").input_ids.to(device)
    if spans is not None:
        # Spans need room for the first tokens and one block, however short the prompt is.
        least = spans.sink + spans.block
        attach_spans(host, spans, length=max(ids.shape[1] + tokens, least))
    end = tokenizer.eos_token_id
    decoded = continued(
        host, ids, tokens, on_token=lambda new: end is not None and int(new[0]) == end
    )
    record: dict[str, Any] = {
        "text": tokenizer.decode(decoded.tokens[0], skip_special_tokens=True),
        "tokens": decoded.tokens.shape[1],
        "prompt": ids.shape[1],
        "a_second": decoded.rate,
        "prompt_seconds": decoded.prompt_seconds,
        "cache_bytes": decoded.bytes,
        "path": decoded.path,
    }
    if continuing.compare:
        stock = stock_generate(host, ids, decoded.tokens.shape[1])
        # The same greedy tokens are the evidence that the faster decoding changes nothing.
        equal = stock.tokens.tolist() == decoded.tokens.tolist()
        record["transformers"] = {"a_second": stock.rate, "same": equal}
    return record
