"""Where another runtime is the better choice, time and quality together: docs/benchmarks/rivals.md.

python benchmarks/rivals.py --write        # the page, of the figures in rivals.json
python benchmarks/rivals.py --write --packed bitmask=fast --packed gqsa=small --text essays.txt

With --packed the language models are measured anew: folders that `intarsia compress` wrote from
SmolLM2, beside the GGUF files of SmolLM2 in llama.cpp (`pip install llama-cpp-python`), in turns;
--text is one that nothing was calibrated on. `compress`, `bench sparse` and `doctor` read the file.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import torch
from frame import PAGES, markdown, parser, read
from torch import Tensor
from torch.nn.functional import cross_entropy

from intarsia.data.language_models import language_model
from intarsia.data.texts import read_texts
from intarsia.formats.rivals import FILE, KINDS, rivals
from intarsia.hosts import export_gguf
from intarsia.hosts.decoding import generate
from intarsia.hosts.opened import open_language_model
from intarsia.kernels import native
from intarsia.train.record import machine

QUANTS = ("q4_0", "q8_0", "bf16")
ROWS, LENGTH, PROMPT = 16, 256, 16  # of the text, tokens of each, tokens before the first timed one
ABOUT = """\
What a user would pick instead, each at its best setting, with its quality in the same row:
perplexity on a text, or top-1 accuracy on 500 photographs of the 1,000 classes, that nothing was
calibrated on. A format of ours that is slower and worse than another row serves nobody:
`intarsia compress` warns before it writes one, and `intarsia doctor` and `intarsia bench sparse`
say the same in a line. [Fold and export](../how-to/fold-and-export.md) writes the files for the
others. OpenVINO's int8 was calibrated on 40 pictures, without training. What `export --int8` wrote
of the same net, by onnxruntime's quantiser, gave 86 % of 300 crops of photographs float32's class,
in .46 of its time; its accuracy on the 500 has not been measured."""
Logits = Callable[[Tensor], Tensor]
Token = Callable[[Tensor], list[float]]


def llama_cpp(path: Path) -> tuple[Logits, Token]:
    """Return what gives the logits of a row, and the seconds of each further token."""
    import llama_cpp as runtime  # pip install llama-cpp-python

    threads = torch.get_num_threads()
    how: dict[str, Any] = {"n_threads": threads, "n_threads_batch": threads, "verbose": False}
    whole = runtime.Llama(str(path), n_ctx=2 * LENGTH, logits_all=True, **how)
    quick = runtime.Llama(str(path), n_ctx=2 * LENGTH, **how)

    def logits(ids: Tensor) -> Tensor:
        whole.reset()
        whole.eval(ids.tolist())
        return torch.from_numpy(whole.scores[: len(ids)].copy())

    def seconds(ids: Tensor) -> list[float]:
        quick.reset()
        quick.eval(ids[:PROMPT].tolist())
        return [timed(lambda token=token: quick.eval([token])) for token in ids[PROMPT:].tolist()]

    return logits, seconds


def ours(model: Any) -> tuple[Logits, Token]:
    """The same of a model of ours."""

    def logits(ids: Tensor) -> Tensor:
        with torch.no_grad():
            return model(ids[None]).logits[0].float()

    def seconds(ids: Tensor) -> list[float]:
        clock: list[float] = []
        count = len(ids) - PROMPT + 1
        generate(
            model, ids[None, :PROMPT], count, on_token=lambda _: clock.append(time.process_time())
        )
        return [after - before for before, after in zip(clock, clock[1:], strict=False)]

    return logits, seconds


def timed(job: Callable[[], object]) -> float:
    started = time.process_time()
    job()
    return time.process_time() - started


def arms(folders: Mapping[str, str], scratch: Path) -> Iterator[tuple[str, str | None, Any, float]]:
    """Give name, format, (logits, seconds) and megabytes of each."""
    model, tokenizer = language_model("smollm2", progress=print)
    for quant in QUANTS:
        path = export_gguf(
            model, scratch / f"{quant}.gguf", tokenizer=tokenizer, quant=quant, report=print
        )
        name = f"llama.cpp {quant.upper() if quant != 'bf16' else quant}"
        yield name, None, llama_cpp(path), path.stat().st_size / 1e6
    for form, folder in folders.items():
        packed, _ = open_language_model(folder)
        size = sum(t.nbytes for t in (*packed.parameters(), *packed.buffers())) / 1e6
        record = json.loads(Path(folder, "compress.json").read_text())
        yield record["format"], form, ours(packed.eval()), size


def measured(folders: Mapping[str, str], text: str, reps: int) -> list[dict[str, Any]]:
    """Return the rows of language models, all in turns in this process."""
    _, tokenizer = language_model("smollm2", progress=print)
    rows = [ids for ids, _ in read_texts(text, tokenizer, length=LENGTH).rows[:ROWS]]
    with tempfile.TemporaryDirectory() as folder:
        runs = list(arms(folders, Path(folder)))
        spent: dict[str, list[float]] = {name: [] for name, *_ in runs}
        for rep in range(reps + 1):
            for name, _, (_, seconds), _ in runs:
                taken = seconds(rows[rep % len(rows)])
                spent[name] += taken if rep else []  # the first turn warms up
        table: list[dict[str, Any]] = []
        for name, form, (logits, _), size in runs:
            losses = [float(cross_entropy(logits(ids)[:-1], ids[1:])) for ids in rows]
            quality = round(math.exp(sum(losses) / len(losses)), 1)
            ms = round(1e3 * median(spent[name]), 2)
            row = {"name": name, "format": form, "ms": ms, "megabytes": round(size)}
            table.append({**row, "quality": quality})
    return table


def tables() -> list[str]:
    """Return the page's tables."""
    lines: list[str] = []
    for kind in KINDS:
        table = rivals(kind)
        head = ("runs in", table.unit, "MB read", table.quality, "beaten by")
        rows: list[Sequence[str]] = []
        for choice in table.choices:
            found = table.better(choice.format) if choice.format else None
            beaten = found[0].name if found and found[1] == choice else ""
            shown = (
                "-" if value is None else f"{value:g}"
                for value in (choice.megabytes, choice.quality)
            )
            rows.append((choice.name, f"{choice.ms:g}", *shown, beaten))
        lines += [f"## {table.net}", "", *markdown(head, rows), "", f"    {table.command}", ""]
    return lines


def main() -> None:
    made = parser(__doc__, threads=1, reps=5)
    made.add_argument("--packed", action="append", default=[], metavar="FORMAT=FOLDER")
    made.add_argument("--text", help="a file that nothing was calibrated on")
    args: argparse.Namespace = read(made)
    content = json.loads(FILE.read_text())
    if args.packed:
        if not args.text:
            made.error("--packed needs --text")
        folders = dict(entry.split("=", 1) for entry in args.packed)
        content["text"]["choices"] = measured(folders, args.text, args.reps)
        content["instructions"] = native.instructions()
        threads = f"{args.threads} thread{'s' * (args.threads > 1)}"
        content["measured"] = (
            f"{datetime.now(UTC):%Y-%m-%d}, {threads} of {machine()['processor']}, CPU time, "
            f"all in turns; the pictures earlier"
        )
        FILE.write_text(json.dumps(content, indent=1) + "\n")
        rivals.cache_clear()
    title = "# Where another runtime is the better choice"
    page = "\n".join([title, "", ABOUT, "", f"{content['measured']}.", "", *tables()])
    print(page)
    if args.write:
        (PAGES / "rivals.md").write_text(page)


if __name__ == "__main__":
    main()
