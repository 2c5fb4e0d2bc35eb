"""MoA on SmolLM2: loss at the end of long texts, retrieval, bytes and time (arXiv:2406.14909)."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from intarsia.data.language_models import language_model
from intarsia.data.texts import load_texts
from intarsia.decode.fixed_cache import FixedLayer, fixed_cache
from intarsia.hosts.spans.head_spans import attach_spans, cache_bytes, detach_spans
from intarsia.hosts.spans.profile import loss_of_end
from intarsia.hosts.spans.rings import RingLayer
from intarsia.hosts.spans.spans import Spans
from intarsia.hosts.spans.windows import TokenPositions, Windows, grouped
from intarsia.methods.moa import MoA, choose_spans

from ..kit import COUNTED, TIMED, Effect, NoControl, Report, Result, Study, below, worst_of
from ..kit.arms import result_of, shown
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
REPEATS = 15


def method(density: float) -> MoA:
    """Return MoA's settings for all claims.

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


def of_gap(seeds: tuple[int, ...], report: Report) -> Result:
    """Return the share of the loss from windowed attention that MoA wins back, by seed.

    It is (uniform - MoA) / (uniform - dense) with the losses of one window for all heads, of MoA's
    spans and of full attention; 1 = all. It is taken at the density where MoA wins back less.
    """
    cells = {(d, s): CELLS.losses(d, s, report) for d in DENSITIES for s in seeds}
    closed = {
        d: [
            (cells[d, s]["uniform"] - cells[d, s]["moa"])
            / (cells[d, s]["uniform"] - cells[d, s]["dense"])
            for s in seeds
        ]
        for d in DENSITIES
    }
    # at the density where least of the gap is closed
    return worst_of(closed, ">=", _table(cells, seeds), "By density.")


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


def of_lines(seeds: tuple[int, ...], report: Report) -> Result:
    """Return the lines found with MoA's spans minus those with one window, in points, by seed.

    Both keep half of the keys; SmolLM2 has to find a numbered line in a prompt.
    """
    cells = [CELLS.found(0.5, s, report) for s in seeds]
    rows = [
        {"spans": arm, "found, %": shown([100 * c[arm] for c in cells], ".1f")} for arm in cells[0]
    ]
    note = f"{PROMPTS} prompts of {LINES} lines at each draw."
    return result_of([100 * (c["moa"] - c["uniform"]) for c in cells], rows, note)


def of_bytes(seeds: tuple[int, ...], report: Report) -> Result:
    """Return how far the bytes of a key-value cache with spans are from density times all.

    The difference is in blocks of 16 tokens of a head, one for each density and seed; the largest
    is judged.
    """
    model, _, _ = CELLS.model()
    rows: list[dict[str, Any]] = []
    off: list[float] = []

    @torch.no_grad()
    def taken() -> int:
        """Return the bytes of a cache for 2,048 tokens, after one token has made it."""
        cache = fixed_cache(model, EXTEND)
        model(torch.zeros(1, 1, dtype=torch.long), use_cache=True, cache=cache)
        return cache_bytes(cache)

    full_size = taken()
    for density in DENSITIES:
        for seed in seeds:
            spans = Spans.from_dict(CELLS.chosen(density, seed, report)["spans"])
            attach_spans(model, spans, length=EXTEND)
            share = taken() / full_size
            detach_spans(model)
            off.append(abs(share - spans.density(EXTEND)) * EXTEND / BLOCK)
            # measured on a real cache, since rounding to blocks could cost what spans save
            row = {"asked": density, "chosen": f"{spans.density(EXTEND):.4f}"}
            rows.append({**row, "bytes, share": f"{share:.4f}", "draw": seed})
    return result_of(off, rows, f"Of {full_size / 1e6:.1f} MB at {EXTEND} tokens.", max)


def of_time(seeds: tuple[int, ...], report: Report) -> Result:
    """Return the attention time of a token with a full cache over that with ring buffers.

    A ring buffer holds only the keys of a head's span. At density 0.25 and 2,048 tokens; one ratio
    of CPU times for each seed; the least is judged.
    """
    ratios: list[float] = []
    rows: list[dict[str, Any]] = []
    slowest = 0.0
    for seed in seeds:
        choice = CELLS.chosen(0.25, seed, report)
        spans = Spans.from_dict(choice["spans"])
        slowest = max(slowest, float(choice["spans"]["about"].get("programmes", math.nan)))
        # only attention is timed: the rest of a step is the same for both
        full, rings = attention_times(spans)
        ratios.append(full / rings)
        rows.append(
            {"draw": seed, "full, ms": f"{full * 1e3:.2f}", "rings, ms": f"{rings * 1e3:.2f}"}
        )
    note = (
        f"CPU time, one thread, medians of {REPEATS} in turn, at {EXTEND} tokens. All programmes "
        f"of a choice took {slowest:.0f} CPU seconds at most (wanted: 60)."
    )
    return result_of(ratios, rows, note, min)


@torch.no_grad()
def attention_times(spans: Spans) -> tuple[float, float]:
    """Time a token's attention in all layers: with a full cache, and with ring buffers.

    spans: how far back each head looks. Returns both medians over REPEATS tokens, in CPU seconds.
    """
    draw = torch.Generator().manual_seed(0)
    # query heads that share a head of keys, and a head's width
    heads, share, size = spans.heads, 3, 64  # SmolLM2's
    query = torch.randn(1, heads * share, 1, size, generator=draw)
    new = torch.randn(1, heads, EXTEND, size, generator=draw)
    windows = [Windows.of(row, spans.sink, EXTEND) for row in spans.at(EXTEND)]
    # caches are filled first: a token late in a text is the costly one
    past = TokenPositions(EXTEND - REPEATS - 1, EXTEND - REPEATS - 1, 0, None, "cpu", {})
    layers = [FixedLayer(EXTEND) if w.full else RingLayer(w) for w in windows]
    stock = [FixedLayer(EXTEND) for _ in windows]
    for layer in (*layers, *stock):
        start = new[:, :, : past.keys]
        layer.update(start, start)
        if isinstance(layer, RingLayer):
            for ring in layer.rings:
                ring.write(start, start, past.places)
    times: dict[str, list[float]] = {"full": [], "rings": []}
    for position in range(past.keys, EXTEND):
        token_states, positions = (
            new[:, :, position : position + 1],
            TokenPositions(1, position + 1, position, None, "cpu", {}),
        )
        for name, cache_layers in (("full", stock), ("rings", layers)):
            clock = time.process_time()
            for layer in cache_layers:
                _attended(layer, query, token_states, positions)
            times[name].append(time.process_time() - clock)
    # the first token allocates memory, which no later one does
    return statistics.median(times["full"][1:]), statistics.median(times["rings"][1:])


def _attended(layer: Any, query: Tensor, new: Tensor, positions: TokenPositions) -> Tensor:
    """Write one token's keys and values to a layer's cache; return its attention output.

    new: (1, heads, 1, size), keys and values alike.
    """
    keys, values = layer.update(new, new)
    if isinstance(layer, RingLayer):
        return layer.attend(query, positions, None, 0.0)  # the usual scale, no dropout
    return grouped(query, keys, values, None, None)


LEARNED = below(
    "The dense model is better than a uniform guess among 49,152 tokens by 5 nats.",
    "loss",
    5.8,
    {"spans": "dense"},
)
study = partial(Study, sense=">=", needs="long", minutes=60)

CLAIMS = (
    study(
        "moa",
        system="MoA",
        unit="nats a token",
        scale=(
            "Spans that are chosen at 2,048 and 4,096 tokens and judged at 8,192, 100 CPU "
            "minutes a draw: here they are chosen at 512 and 1,024 and judged at 1,536."
        ),
        effect=Effect(-0.124, "table 4, mean of four models", 0.0, (-0.178, -0.065)),
        work="SmolLM2-135M on long texts",
        sentence="Spans that are chosen head by head (MoA, arXiv:2406.14909) lose less than one "
        "window for all heads, at an equal number of keys and values.",
        baseline="the uniform window (StreamingLLM) at densities .5 and .25: loss of the last "
        f"third of {CHECK} tokens, at the density where it is worse",
        target=0.0,
        sense="<=",
        control=LEARNED,
        measure=of_losses,
    ),
    study(
        "moa-gap",
        sentence="Spans of heads close half of what the uniform window loses to full attention.",
        baseline="the uniform window; the density at which less is closed",
        target=0.5,
        control=LEARNED,
        measure=of_gap,
    ),
    study(
        "moa-retrieval",
        sentence="Spans of heads find lines in a list that the uniform window no longer sees.",
        baseline="the uniform window at density .5, percentage points of lines found",
        target=10.0,
        control=NoControl(
            "The score of the dense model stands in the claim: chance is no answer at all."
        ),
        measure=of_lines,
    ),
    study(
        "moa-bytes",
        sentence="Keys and values in rings take the share of bytes that the density says.",
        baseline="density x the bytes of a full cache; the largest difference in blocks of a head",
        target=1.0,
        sense="<=",
        control=COUNTED,
        measure=of_bytes,
        minutes=30,
    ),
    study(
        "moa-time",
        sentence="A token's attention on rings is faster than on a full cache.",
        baseline=f"a full cache of {EXTEND} tokens in preallocated memory, density .25; the least "
        f"ratio",
        target=1.5,
        control=TIMED,
        measure=of_time,
        minutes=30,
    ),
)
