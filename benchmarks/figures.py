"""README's and the areas' figures again on this machine, next to the figures of their pages.

    make figures                        # all with their packages installed, about an hour
    make figures ONLY=recommend,speech  # the runs of these names
    python benchmarks/figures.py --list

Each run is one command or a few, and gives one figure or more. A figure is read from the
output as it is read from its page. A run with a missing package is left out, with a sentence.
Ratios are of CPU time, and other work on the machine moves them: leave it idle.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from frame import markdown

ROOT = Path(__file__).parents[1]
NUMBER = re.compile(r"[-−]?\d[\d,]*(?:\.\d+)?")


class Cell(NamedTuple):
    """A cell of a table: how its row begins, cells joined by " | ", and the name of its column."""

    row: str
    column: str


@dataclass(frozen=True)
class Figure:
    """A figure of a page, and where else it stands.

    at: a cell, or a pattern with one group, of the page and of the output; better: "lower" or
    "higher"; stated: pages with their words, the figure in braces; inverse: 1 over the cell.
    """

    name: str
    page: str
    at: Cell | str
    better: str = "lower"
    stated: Mapping[str, str] = field(default_factory=dict)
    inverse: bool = False

    def read(self, text: str) -> float:
        """Return the figure in a page or in an output.  Raises: LookupError if it is not there."""
        value = cell(text, self.at) if isinstance(self.at, Cell) else said(text, self.at)
        return 1 / value if self.inverse else value


@dataclass(frozen=True)
class Run:
    """Commands, and the figures that they print.

    minutes: on two cores; needs: packages, by the names they are imported by; small: the last
    command as a smoke test.
    """

    name: str
    commands: Sequence[str]
    minutes: float
    figures: Sequence[Figure]
    needs: Sequence[str] = ()
    small: str = ""


# by the name that pip has, where it is another one
PACKAGES = {"llama_cpp": "llama-cpp-python"}
README, AREA = "README.md", "docs/areas/{}.md"
SPARSE, SEARCH, MIXTURES, SIGNALS = map(
    AREA.format, ("sparse", "search-and-recommend", "mixtures", "signals")
)
INT4, NDCG = "dense int4, head int8", "nDCG@20"
GROUPED = "{}, E = {}, h = {}, T = 2,048, {} / grouped_mm"
DECODE, LITE0, KERNELS, ROUTING, FOUND, RANKED, SPEECH, PEER, CAUSES = (
    f"docs/benchmarks/{page}.md"
    for page in (
        *("decode", "lite0", "kernels", "routing", "search", "recommenders", "codec_audio"),
        *("sparsegpt_peer", "causes"),
    )
)
RUNS = (
    Run(
        "recommend",
        ("python benchmarks/recommenders.py --only ease,itemknn",),
        1,
        (
            Figure("nDCG@20 of EASE on MovieLens-100k", RANKED, Cell("ease", NDCG), "higher",
                   {SEARCH: "EASE {:.3f}"}),
            Figure("nDCG@20 of ItemKNN", RANKED, Cell("itemknn", NDCG), "higher",
                   {SEARCH: "ItemKNN {:.3f}"}),
            Figure("nDCG@20 of popularity", RANKED, Cell("popularity", NDCG), "higher",
                   {SEARCH: "popularity {:.3f}"}),
        ),
    ),
    Run(
        "verses",
        ('python benchmarks/search.py --judged naves-nt --docs "" --alone "" --reps 3',),
        25,
        (
            Figure("nDCG@10 of the index on verses", FOUND, Cell("naves-nt", "index"), "higher",
                   {README: "is [{:.3f};"}),
            Figure("nDCG@10 of bm25s there", FOUND, Cell("naves-nt", "bm25s, nDCG@10 (k1, b)"),
                   "higher", {README: "that of bm25s is {:.3f}]", SEARCH: "bm25s {:.3f}"}),
            Figure("nDCG@10 of the index, tuned", FOUND,
                   Cell("naves-nt", "index, tuned (share; k1, b)"), "higher",
                   {SEARCH: "{:.3f}, bm25s"}),
        ),
        ("bm25s",),
    ),
    Run(
        "index",
        ('python benchmarks/search.py --judged "" --docs "" --alone 100000 --reps 3',),
        4,
        (
            Figure("building an index of 100,000 documents, of tantivy's time", FOUND,
                   Cell("100,000", "of tantivy"),
                   stated={SEARCH: "{:.2f} to 1.14 times as much as tantivy"}),
            Figure("a query of it, of bm25s' time with numba", FOUND,
                   Cell("100,000", "of numba"),
                   stated={SEARCH: "{:.2f} times as much as bm25s with its numba backend"}),
        ),
        ("bm25s", "tantivy"),
    ),
    Run(
        "token",
        (
            "intarsia export smollm2 --format gguf --quant q4_0 --out smollm2-q4_0.gguf",
            f'python benchmarks/decode.py --gguf smollm2-q4_0.gguf --arms "{INT4}" --rows 3',
        ),
        4,
        (
            Figure("a token of SmolLM2 in 4 bits, of llama.cpp's time", DECODE,
                   Cell(INT4, "of llama.cpp Q4_0"),
                   stated={README: "takes [{:.2f} of", SPARSE: "takes [{:.2f} of"}),
            Figure("its perplexity", DECODE, Cell(INT4, "perplexity"),
                   stated={SPARSE: "perplexity, {:.1f} ("}),
        ),
        ("llama_cpp",),
    ),
    Run(
        "small",
        ("intarsia compress smollm2 --format blockint --bits 4 --out small",),
        1,
        (Figure("MB that a token reads", SPARSE, r"a token reads ([\d.]+) MB"),),
    ),
    Run(
        "pruned",
        ("intarsia sparsify smollm2 --density 0.5 --rows 32 --length 256 --out pruned",),
        4,
        (Figure("perplexity of half of SmolLM2", SPARSE, r"dense, ([\d.]+) pruned"),),
    ),
    Run(
        "cnn",
        ("python benchmarks/lite0.py --dense",),
        3,
        (
            Figure("EfficientNet-Lite0 in int8, of OpenVINO's time", LITE0,
                   Cell("dense | intarsia int8", "of OpenVINO int8"),
                   stated={README: "a CNN in int8 [{:.2f} of",
                           SPARSE: "in {:.2f} of the time of OpenVINO"}),
        ),
        ("openvino", "onnxruntime"),
    ),
    Run(
        "product",
        ("python benchmarks/kernels.py",),
        10,
        (
            Figure("half of the weights in groups of 4 bits, 8 rows, of llama.cpp's time", KERNELS,
                   Cell("group-sparse int4, 8 rows | 0.5", "x best dense"), "lower",
                   {SPARSE: "{:.2f} of the time of llama.cpp"}, inverse=True),
            Figure("half of the weights in a bitmask of int8", KERNELS,
                   Cell("bitmask int8 | 0.5", "x best dense"), "lower",
                   {SPARSE: "bitmask of int8 | {:.2f} |"}, inverse=True),
        ),
        ("llama_cpp",),
    ),
    Run(
        "sparsegpt",
        ("python benchmarks/sparsegpt_peer.py",),
        4,
        (
            Figure("SparseGPT, of llm-compressor's CPU time", PEER,
                   Cell("CPU seconds over llm-compressor's", "measured"),
                   stated={SPARSE: "{:.2f} of its CPU time"}),
        ),
    ),
    Run(
        "experts",
        ("python benchmarks/mixtures.py",),
        4,
        (
            Figure("one LoRA expert of eight, of one LoRA's step", "docs/benchmarks/mixtures.md",
                   Cell("train step, top 1 of 8 experts / one LoRA", "got"),
                   stated={MIXTURES: "one LoRA | {:.2f} |"}),
        ),
        small="--reps 1 --layers 1",
    ),
    Run(
        "mixture",
        ("python benchmarks/routing.py",),
        15,
        (
            Figure("a step of 8 experts in bfloat16, of grouped_mm's time", ROUTING,
                   Cell(GROUPED.format("bf16", 8, 1536, "forward + backward"), "got"),
                   stated={MIXTURES: "{:.3f} of its time |"}),
            Figure("the forward of 64 experts in bfloat16", ROUTING,
                   Cell(GROUPED.format("bf16", 64, 384, "forward"), "got"),
                   stated={MIXTURES: "{:.3f} of its time in bfloat16"}),
        ),
    ),
    Run(
        "causes",
        ("python benchmarks/causes.py",),
        1,
        (
            Figure("grey levels that GSC is off in holes", CAUSES, Cell("GSC", "error"),
                   stated={SIGNALS: "GSC is off by {:.2f} grey levels"}),
            Figure("one Gaussian", CAUSES, Cell("one Gaussian", "error"),
                   stated={SIGNALS: "conditional mean by {:.2f} at once"}),
        ),
        small="--seeds 1 --patches 200",
    ),
    Run(
        "speech",
        ("python benchmarks/codec_audio.py",),
        10,
        (
            Figure("dB of speech at 8 kbit/s", SPEECH, Cell("RECOMBINER | 8.0", "PSNR, dB"),
                   "higher", {SIGNALS: "{:.1f} dB; Opus"}),
            Figure("dB of Opus at 7 kbit/s", SPEECH, Cell("Opus, level 1", "PSNR, dB"), "higher",
                   {SIGNALS: "Opus has {:.1f} at 7"}),
        ),
        small="--clips 2 --crops 8 --steps 5 --fit 5",
    ),
)  # fmt: skip


def cell(text: str, at: Cell) -> float:
    """Return the first number in a cell, of the first table that has it.

    Raises: LookupError without such a cell.
    """
    head: list[str] = []
    for line in text.splitlines():
        cells = [part.strip() for part in line.split("|")[1:-1]]
        if not cells or set(cells) == {"---"}:
            head = head if cells else []
        elif not head:
            head = cells
        elif f"{' | '.join(cells)} |".startswith(f"{at.row} |") and at.column in head:
            return number(cells[head.index(at.column)])
    raise LookupError(f"no row {at.row!r} with a column {at.column!r}")


def said(text: str, pattern: str) -> float:
    """Return the number in a pattern's group.  Raises: LookupError if nothing is like it."""
    if found := re.search(pattern, " ".join(text.split())):
        return number(found[1])
    raise LookupError(f"nothing like {pattern!r}")


def number(text: str) -> float:
    """Return the first number in a text.  Raises: LookupError without one."""
    if found := NUMBER.search(text):
        return float(found[0].replace(",", "").replace("−", "-"))
    raise LookupError(f"no number in {text!r}")


def missing(run: Run) -> list[str]:
    """Name the packages that a run needs and this environment lacks, as pip calls them."""
    lacks = [name for name in run.needs if importlib.util.find_spec(name) is None]
    return [PACKAGES.get(name, name) for name in lacks]


def words(command: str) -> list[str]:
    """A command's words with this Python, and the path of its script from anywhere."""
    program, *rest = shlex.split(command)
    if program == "intarsia":
        return [sys.executable, "-m", "intarsia", *rest]
    return [sys.executable, str(ROOT / rest[0]), *rest[1:]]


def printed_by(commands: Sequence[str], folder: Path) -> str:
    """Run commands in a folder, and return their output.

    Raises: RuntimeError with the last lines of one that fails.
    """
    printed = ""
    # a table is as wide as its cells, also where no terminal is
    environment = os.environ | {"COLUMNS": "200"}
    for command in commands:
        done = subprocess.run(
            words(command), cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            last = " ".join((done.stderr or done.stdout).split()[-40:])
            raise RuntimeError(f"`{command}` ended with {done.returncode}: {last}")
        printed += done.stdout
    return printed


def compared(run: Run, printed: str) -> list[list[str]]:
    """The rows of a run: each figure on its page, here, and here over there."""
    rows: list[list[str]] = []
    for figure in run.figures:
        there = figure.read((ROOT / figure.page).read_text())
        here = figure.read(printed)
        rows.append([run.name, figure.name, f"{there:.4g}", f"{here:.4g}", f"{here / there:.2f}"])
        rows[-1] += [figure.better, figure.page]
    return rows


def chosen(only: str) -> list[Run]:
    """The runs of these names, with commas; all for "".  Exits at a name that no run has."""
    names = [name for name in only.split(",") if name]
    known = {run.name: run for run in RUNS}
    if unknown := [name for name in names if name not in known]:
        sys.exit(f"ONLY: got {', '.join(unknown)}, want of {', '.join(known)}.")
    return [known[name] for name in names] or [*RUNS]


def described(run: Run) -> str:
    """What a run does, in how many minutes, and the packages it lacks."""
    lines = [f"{run.name}: about {run.minutes:g} min, {len(run.figures)} figures"]
    if lacks := missing(run):
        lines[0] += f"; left out: pip install {' '.join(lacks)}"
    return "\n".join([*lines, *(f"    {command}" for command in run.commands)])


def main() -> None:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--only", default="", help="names of runs with commas; all if not given")
    made.add_argument("--list", action="store_true", help="show the runs, and run nothing")
    args = made.parse_args()
    runs = chosen(args.only)
    possible = [run for run in runs if not missing(run)]
    print("\n".join(map(described, runs)))
    print(f"In all about {sum(run.minutes for run in possible):g} minutes.\n", flush=True)
    if args.list:
        return
    rows: list[list[str]] = []
    failed: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        for run in possible:
            start = time.perf_counter()
            try:
                rows += compared(run, printed_by(run.commands, Path(folder)))
            except (RuntimeError, LookupError) as error:
                failed.append(f"{run.name}: {error}")
            minutes = (time.perf_counter() - start) / 60
            print(f"{run.name}: {minutes:.1f} min", flush=True)
    head = ("run", "figure", "page", "here", "here / page", "better", "where")
    print("\n".join(["", *markdown(head, rows), *failed]))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
