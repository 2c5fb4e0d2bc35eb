"""MoA on SmolLM2: loss at the end of long texts, retrieval, bytes and time (arXiv:2406.14909)."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from intarsia.data.language_models import language_model
from intarsia.data.texts import load_texts
from intarsia.hosts.spans.head_spans import attach_spans, detach_spans
from intarsia.hosts.spans.profile import loss_of_end
from intarsia.hosts.spans.spans import Spans
from intarsia.methods.moa import MoA, choose_spans

from ..kit import Effect, Report, Result, Study, worst_of
from ..kit.arms import shown
from ..kit.stored import StoredResults

stored = StoredResults(__file__)

TEXT = "austen"
# spans are chosen at two lengths and judged at a third, longer one, as they are in use
LENGTHS, CHECK, BLOCK, STEP = (512, 1024), 1536, 16, 64
EXTEND = 2048  # for decoding; spans keep their density there, too
DENSITIES = (0.5, 0.25)
ROWS, HELD_OUT = 8, 6  # rows that choose, a quarter of them validates; rows that judge
# line retrieval, the paper's own probe
PROMPTS, LINES = 200, 42  # of retrieval: about 768 tokens a prompt
ANSWER = 64


def method(density: float) -> MoA:
    """Return MoA's settings.

    density: the share of keys that attention may see, in the mean over heads.
    """
    return MoA(density, LENGTHS, CHECK, EXTEND, block=BLOCK, step=STEP, answer=ANSWER)


class SpanCells:
    """SmolLM2 and texts, made when a cell has to be computed; cells are kept."""

    def __init__(self) -> None:
        self.made: Any = None

    def model(self) -> tuple[Any, Any, Any]:
        """Return SmolLM2, its tokenizer, and rows of 1,536 tokens; loaded the first time."""
        if self.made is None:
            model, tokenizer = language_model("smollm2", progress=lambda _: None)
            rows = load_texts(TEXT, tokenizer, length=CHECK, progress=lambda _: None)
            self.made = model, tokenizer, rows
        return self.made

    def inputs(self, density: float, seed: int, **extra: Any) -> dict[str, Any]:
        """Return what a stored result depends on: density, seed, the sizes, and `extra`."""
        sizes = [*LENGTHS, CHECK, EXTEND, BLOCK, STEP, ROWS, HELD_OUT, ANSWER]
        return {"density": density, "seed": seed, "sizes": sizes, **extra}

    def chosen(self, density: float, seed: int, report: Report) -> dict[str, Any]:
        """Choose MoA's attention spans for a density; return them, and the CPU seconds it took.

        A span is how many of the last tokens a head looks back to. They are chosen on rows that
        differ with each seed; the result is stored. The keys are "spans" and "seconds".
        """

        def run() -> dict[str, Any]:
            """Choose the spans of all heads on rows of a text; return them and CPU seconds."""
            model, _, texts = self.model()
            draw = torch.randperm(len(texts.train), generator=torch.Generator().manual_seed(seed))
            rows = [texts.train[int(i)] for i in draw[:ROWS]]
            clock = time.process_time()
            spans = choose_spans(model, method(density), rows, seed=seed, progress=report)
            return {"spans": spans.to_dict(), "seconds": time.process_time() - clock}

        return stored("moa-spans", self.inputs(density, seed), run)

    def losses(self, density: float, seed: int, report: Report) -> dict[str, float]:
        """Return losses at the end of long texts, with each way to limit attention, in nats.

        The keys are as in `rivals`: full attention, MoA's spans, one window for all heads, and
        random spans of the same mean. Losses are per token, of the last third of held-out rows,
        where a limit matters most. The result is stored.

        density: the share of keys that MoA's spans keep.
        """
        spans = Spans.from_dict(self.chosen(density, seed, report)["spans"])

        def run() -> dict[str, float]:
            """Return SmolLM2's loss on held-out rows, with each way to limit attention."""
            model, _, texts = self.model()
            # rows that no span was chosen on
            ids = torch.stack([_ids(texts.test[i]) for i in range(HELD_OUT)])
            return {
                name: _loss(model, arm_spans, ids)
                for name, arm_spans in rivals(spans, seed).items()
            }

        return stored("moa-losses", self.inputs(density, seed), run)

    def found(self, density: float, seed: int, report: Report) -> dict[str, float]:
        """Return the share of numbered lines that a model finds in its prompt, with each of 3 ways.

        The ways are full attention, MoA's spans, and one window for all heads. 0 to 1; the result
        is stored.

        density: the share of keys that MoA's spans keep.
        """
        spans = Spans.from_dict(self.chosen(density, seed, report)["spans"])

        def run() -> dict[str, float]:
            """Return the share of prompts that are answered, with each way to limit attention."""
            model, tokenizer, _ = self.model()
            prompts = line_prompts(tokenizer, PROMPTS, LINES, seed)
            arms = rivals(spans, seed)
            del arms["random"]
            return {
                name: retrieved(model, arm_spans, prompts, report)
                for name, arm_spans in arms.items()
            }

        return stored("moa-lines", self.inputs(density, seed, lines=[PROMPTS, LINES]), run)


CELLS = SpanCells()


def rivals(spans: Spans, seed: int) -> dict[str, Spans | None]:
    """Return ways to limit attention that keep as many keys as MoA's spans, by name.

    spans: MoA's spans of each head; seed: of the random spans. "dense" is None, full attention;
    "uniform" is one window for all heads, a block longer at most; "random" has heads with spans
    that differ for no reason.
    """
    kept_of = spans.at(CHECK).double().mean().item()
    options: dict[str, Any] = {"sink": spans.sink, "block": spans.block}
    # the rival rounds up: it may keep a block more, never less
    even = math.ceil(kept_of / spans.block) * spans.block
    shape = spans.layers, spans.heads
    uniform = Spans.of(torch.full(shape, even), **options)
    return {
        "dense": None,
        "moa": spans,
        "uniform": uniform,
        # the control: heads that differ, for no reason
        "random": Spans.of(random_spans(shape, kept_of, seed, spans.sink), **options),
    }


def random_spans(shape: tuple[int, int], mean: float, seed: int, sink: int) -> Tensor:
    """Return random spans of the heads with a given mean, in whole blocks.

    shape: (layers, heads); mean: wanted, in tokens; sink: first tokens of a text that every head
    sees.
    """
    draw = torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    low, high = sink + BLOCK, CHECK

    def at(factor: float) -> Tensor:
        """Return spans of the stretched draws, (layers, heads), in tokens."""
        # in blocks: from the least span to the whole text
        spans = (low + (high - low) * (draw * factor).clamp_max(1)) / BLOCK
        return spans.round().clamp_min(low / BLOCK) * BLOCK

    # stretch the draws until they have the mean of the chosen spans
    least, highest = 0.0, 1e6
    for _ in range(80):  # bisection
        middle = (least + highest) / 2
        least, highest = (middle, highest) if float(at(middle).mean()) < mean else (least, middle)
    return at(highest)


def _ids(row: Any) -> Tensor:
    """Return the token ids of a row, which is a tensor, a dict, or a pair of inputs and targets."""
    inputs = row[0] if isinstance(row, (tuple, list)) else row
    return inputs["input_ids"] if isinstance(inputs, dict) else inputs


def _loss(model: nn.Module, spans: Spans | None, ids: Tensor) -> float:
    """Return the loss at the end of texts, with attention limited to spans, in nats per token.

    ids: (rows, tokens).
    """
    if spans is not None:
        attach_spans(model, spans, length=CHECK)
    try:
        return loss_of_end(model, ids)
    finally:
        detach_spans(model)


def line_prompts(tokenizer: Any, count: int, lines: int, seed: int) -> list[tuple[Tensor, int]]:
    """Draw lists of numbered lines, each with a question about the code in one of them.

    count: of prompts; lines: in each; seed: of the draws. Returns for each prompt its token ids,
    answer included, and the number of tokens at the end that are the answer.
    """
    draw = torch.Generator().manual_seed(1000 + seed)
    prompts: list[tuple[Tensor, int]] = []
    for _ in range(count):
        names = (torch.randperm(900, generator=draw)[:lines] + 100).tolist()
        # five digits: a code that no model guesses
        values = torch.randint(10_000, 100_000, (lines,), generator=draw).tolist()
        line = int(torch.randint(lines, (1,), generator=draw))
        text = "Below is a list of lines. Each line has a number, and a code to remember.\n"
        text += "".join(f"Line {n}: the code is {v}.\n" for n, v in zip(names, values, strict=True))
        text += (
            f"The question is about one line of the list above.\nLine {names[line]}: the code is"
        )
        before = tokenizer(text)["input_ids"]
        ids = tokenizer(f"{text} {values[line]}")["input_ids"]
        prompts.append((torch.tensor(ids), len(ids) - len(before)))
    return prompts


@torch.no_grad()
def retrieved(
    model: Any, spans: Spans | None, prompts: Sequence[tuple[Tensor, int]], report: Report
) -> float:
    """Return the share of prompts that a model would answer right, token by token, 0 to 1.

    spans: how far back each head looks, None for full attention; prompts: see `line_prompts`.
    """
    hits = 0
    model.eval()
    try:
        if spans is not None:
            attach_spans(model, spans, length=CHECK)
        for number, (ids, count) in enumerate(prompts):
            # teacher forcing: right if each token of the answer is the likeliest
            logits = model(ids[None], use_cache=False, logits_to_keep=count + 1).logits[0, :-1]
            hits += int(torch.equal(logits.argmax(-1), ids[-count:]))
            if number % 50 == 49:
                report(f"{number + 1} prompts, {hits} found")
    finally:
        detach_spans(model)
    return hits / len(prompts)


def of_losses(seeds: tuple[int, ...], report: Report) -> Result:
    """Return SmolLM2's loss with MoA's spans minus that with one window for all heads.

    Both keep the same number of keys; losses are at the end of long texts, in nats per token. The
    figure is of the density where the difference is larger. The control is spans drawn at random,
    which should lose.
    """
    cells = {(d, s): CELLS.losses(d, s, report) for d in DENSITIES for s in seeds}
    over: dict[float, list[float]] = {
        d: [cells[d, s]["moa"] - cells[d, s]["uniform"] for s in seeds] for d in DENSITIES
    }
    worse = {
        d: statistics.mean(cells[d, s]["random"] - cells[d, s]["uniform"] for s in seeds)
        for d in DENSITIES
    }
    note = "Random spans of heads lose " + ", ".join(
        f"{loss_gap:+.4f} at density {d:g}" for d, loss_gap in worse.items()
    )
    note += " over the uniform window (wanted: more than 0)."
    # the worse density decides: spans that suit one of them suit nobody
    return worst_of(over, "<=", _table(cells, seeds), note)


def _table(cells: dict[tuple[float, int], dict[str, float]], seeds: Sequence[int]) -> Any:
    """Yield the rows of the table: loss and perplexity of each way to limit attention.

    cells: (density, seed) -> loss by way, see `SpanCells.losses`.
    """
    for density in DENSITIES:
        for arm in ("dense", "moa", "uniform", "random"):
            losses = [cells[density, s][arm] for s in seeds]
            yield {
                "density": density,
                "spans": arm,
                "loss": shown(losses, ".4f"),
                "perplexity": f"{math.exp(statistics.mean(losses)):.2f}",
            }


STUDIES = (
    Study(
        "moa",
        system="MoA",
        arxiv="2406.14909",
        question="Do spans by head lose less than one window for all heads?",
        effect=Effect(
            "perplexity 4.48 to 3.75, 4.10 to 3.62, 4.79 to 4.49, 4.26 to 3.75",
            "density .5, 8,000 to 12,000 tokens, four models of 7 to 70 billion weights",
            "table 4",
            sign=-1,
            values=(-0.178, -0.065),
        ),
        work="SmolLM2-135M, 1,536 tokens",
        baseline="the uniform window (StreamingLLM) at densities .5 and .25, the worse of both",
        unit="nats a token",
        differs="A sixth of the paper's length: at a density of .5 the difference is +.006.",
        measure=of_losses,
        minutes=32,
    ),
)
