"""MoA: each head's span chosen by what the loss would lose beyond it (arXiv:2406.14909)."""

from __future__ import annotations

import itertools
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ..core import Card, Paper
from ..core.change import Change, Plan
from ..core.checks import at_least
from ..core.errors import ConfigError, DataError, TargetError
from ..core.registry import settings_to_dict
from ..core.schema import check, setting
from ..decode.decoding import generate
from ..hosts.spans.head_spans import (
    HeadSpans,
    attach_spans,
    attentions,
    detach_spans,
    planned,
    spans_of,
)
from ..hosts.spans.profile import loss_of_end, profile
from ..hosts.spans.spans import SINK, Spans
from ..placement.ilp import LinearRule, OneHot

BETAS = tuple(i / 8 for i in range(9))
BANDS = 4  # intervals of each further objective
A_LAYER = 2  # spans in one layer at most
GAP, SECONDS = 0.01, 60.0  # of HiGHS, for one programme
SPAN = 256  # tokens, the least of the released grid
Report = Callable[[str], None]


@dataclass(frozen=True)
class MoA(Change):
    """Attention spans of heads with the least loss at a density, by a mixed-integer programme.

    1. Influence E of each key on the loss of the model's own answers, at each length N.
    2. L_N(h, c), sum of |E| beyond span c of head h; c = (alpha, beta), span = alpha + beta N.
    3. min sum_h L_N(h, c_h) with mean span at most density N at every length, two spans a layer at
       most; the other lengths' sums in each of 4 intervals between their extremes: a Pareto set.
    4. Of that, the spans with the least loss on other rows, at a length that was not profiled.

    Raises: ConfigError for settings that cannot be, or a density with no room for sink and block;
    DataError for rows that are shorter than `check`, or fewer than two; TargetError for a model
    with windows of its own or cross attention, by layer.
    Not where few heads decide alone: influence is of first order, and its absolute value counts a
    key that harms like one that helps. Not for texts of 1,000 tokens or so: SmolLM2 lost as much as
    with one window for all heads at half of the keys, and more at a quarter (claim `moa`).
    Warns of a mean span of less than 256 tokens at the shortest length.
    Source: paper, sections 3 and 4; GQA, where spans are of key-value heads, is ours, and so are
    sums by distance in the place of 64 x 64 blocks: of a sink and a window they are exact. Spans
    include the sink, so that density counts all keys that are kept, where released ones leave it
    out; and they go down to one block next to it, where the released grid ends at an eighth of the
    shortest length (256 of 2,048 tokens): a longer `step` makes the grid as coarse.
    """

    density: float = setting(
        0.5, "The share of keys and values that is kept.", above=0, most=1, fix="Try 0.5."
    )
    lengths: tuple[int, ...] = setting(
        (512, 1024),
        "The lengths N of texts that are profiled, in tokens.",
        least=2,
        fix="Try lengths=(512, 1024).",
    )
    check: int = setting(
        1536, "The length, not profiled, at which the spans are compared, in tokens.", least=2
    )
    extend: int | None = setting(
        None,
        "The longest text to use the spans for, in tokens; None = the longest of the other "
        "lengths.",
        least=2,
    )
    sink: int = setting(
        SINK, "The first tokens that every head sees, a multiple of `block`.", least=0
    )
    block: int = setting(16, "The tokens of a block; spans are multiples of it.", least=1)
    step: int | None = setting(
        None,
        "The distance of the spans that are tried, in tokens; None = an eighth of the shortest "
        "length.",
        least=1,
    )
    answer: int = setting(
        64, "The tokens of the model's own answer that are judged, at the end of each row.", least=1
    )

    rewires: ClassVar[bool] = True
    laws: ClassVar[frozenset[str]] = frozenset(("shape", "routing"))
    needs: ClassVar[frozenset[str]] = frozenset(("rows",))

    def __post_init__(self) -> None:
        check(self)
        if not self.lengths or len(set(self.lengths)) < len(self.lengths):
            fix = "Try lengths=(512, 1024)."
            raise ConfigError("lengths", got=self.lengths, want="one or more, all other", fix=fix)
        object.__setattr__(self, "lengths", tuple(sorted(int(n) for n in self.lengths)))
        if self.sink % self.block:
            fix = f"Try sink={self.block * max(1, self.sink // self.block)}."
            want = f"a multiple of the block, {self.block}"
            raise ConfigError("sink", got=self.sink, want=want, fix=fix)
        # A head sees at least the sink and one block.
        room = self.sink + self.block
        at_least("shortest of lengths", self.lengths[0], max(room, self.answer + 1))
        at_least("check", self.check, self.lengths[0])
        if self.extend is not None:
            at_least("extend", self.extend, max(*self.lengths, self.check))
        if self.density * self.lengths[0] < room:
            got = f"{self.density:g} of {self.lengths[0]} tokens"
            fix = "Use a smaller sink, a longer text or a larger density."
            raise ConfigError("density", got=got, want=f"at least {room} tokens", fix=fix)

    @property
    def longest(self) -> int:
        """The number of tokens of the longest text that the spans are for."""
        return self.extend or max(*self.lengths, self.check)

    def plan(self, host: nn.Module, batches: Iterable[Any] = (), *, seed: int = 0) -> Plan:
        """Choose the spans by `choose_spans`, and return them as the plan of `HeadSpans`."""
        spans = choose_spans(host, self, list(batches), seed=seed)
        return planned(host, spans, None, seed=seed)

    def apply(self, host: nn.Module, plan: Plan, *, name: str = "default") -> nn.Module:
        return HeadSpans().apply(host, plan, name=name)

    def fold(self, host: nn.Module) -> nn.Module:
        """Raise FoldError, always: no weights of a host limit what a head sees."""
        return HeadSpans().fold(host)


def choose_spans(
    model: nn.Module,
    method: MoA,
    texts: Any,
    *,
    seed: int = 0,
    progress: Report = lambda _: None,
) -> Spans:
    """Choose how far each head of a model attends; the model stays as it is.

    method: the settings, such as density and lengths; texts: rows of at least `method.check`
      tokens, such as load_texts(..., length=1536).train[:8]; a quarter of them, one at least,
      validates. seed: draws the rows that validate; progress: a function that is given a line of
      text after each part.
    Cost: a forward and a backward pass of each row at each length, then programmes of seconds.

    Raises: as `MoA`; TargetError for a model that has spans.
    """
    layers = attentions(model)
    if spans_of(model) is not None:
        fix = "Call intarsia.spans.detach_spans(model) first."
        raise TargetError("model", got="one with spans", want="one without", fix=fix)
    mean_span = method.density * method.lengths[0]
    if mean_span < SPAN:
        warnings.warn(
            f"MoA was made for spans of {SPAN} tokens and more, here they have {mean_span:.0f}: "
            "one window for all heads may be as good. Profile longer texts (lengths).",
            stacklevel=2,
        )
    began = time.perf_counter()
    rows = _token_rows(texts, max(*method.lengths, method.check), seed)
    validation_rows = max(1, len(rows) // 4)
    options = configurations(method)
    shape = (len(layers.modules), layers.heads)
    losses: list[Tensor] = []
    for length in method.lengths:
        # Step 1: influence of each key on the loss of the model's own answers.
        ids = _with_own_answers(model, rows[validation_rows:, :length], method.answer)
        bins = profile(model, ids, method.answer, sink=method.sink, block=method.block)
        # Step 2: the loss of each head under each span function, at this length.
        losses.append(losses_of(bins, options.spans[length], method.sink, method.block))
        progress(f"profiled {len(ids)} rows of {length} tokens")
    cpu_began = time.process_time()
    # Step 3: the Pareto set of the mixed-integer programme.
    choices = pareto(losses, options, shape, method.density, progress)
    record: dict[str, Any] = {"method": settings_to_dict(method), "seed": seed}
    record["programmes"] = round(time.process_time() - cpu_began, 1)  # CPU seconds
    # Step 4: the candidate with the least loss on rows and at a length that were not profiled.
    candidates = [options.as_spans(choice, method, shape) for choice in choices]
    validated = [
        _validation_loss(model, candidate, rows[:validation_rows], method.check)
        for candidate in candidates
    ]
    best = int(np.argmin(validated))
    uniform = Spans.uniform(*shape, method.density, sink=method.sink, block=method.block)
    record |= {
        "loss": validated,
        "chosen": best,
        "dense": loss_of_end(model, rows[:validation_rows, : method.check]),
        "uniform": _validation_loss(model, uniform, rows[:validation_rows], method.check),
        "seconds": round(time.perf_counter() - began, 1),
    }
    progress(f"{len(candidates)} candidates, loss {validated[best]:.4f} at {method.check} tokens")
    return options.as_spans(choices[best], method, shape, record)


@dataclass(frozen=True)
class SpanOptions:
    """Span functions alpha + beta N, each with other spans than all before it.

    alpha, beta: (C,).  spans: length -> (C,) tokens, of all lengths that count.
    """

    alpha: Tensor
    beta: Tensor
    spans: Mapping[int, Tensor]

    def as_spans(
        self, choice: Tensor, method: MoA, shape: tuple[int, int], record: Any = None
    ) -> Spans:
        """Turn a choice of one option for each head into `Spans`.

        choice: (layers G,), the number of each head's option, G key-value heads a layer; method:
          for sink, block and longest text; shape: (layers, G); record: facts about the search for
          the saved plan, None = none.
        """
        alpha, beta = (
            coefficients[choice].view(shape).tolist() for coefficients in (self.alpha, self.beta)
        )
        return Spans(alpha, beta, method.sink, method.block, method.longest, record or {})


def configurations(method: MoA) -> SpanOptions:
    """List the spans a head can have: lines span = alpha + beta N with 0 < span <= N (section 3.2).

    N: the length of a text. method: the settings, with the profiled lengths (a line must fit at all
    of them), the sink and the block.
    """
    shortest, longest = method.lengths[0], method.lengths[-1]
    step = method.step or max(method.block, shortest // 8)
    # Negative alpha: heads with a span that grows faster than the text.
    alphas = range(-shortest, longest + 1, step)
    lines = [(float(a), b) for b in BETAS for a in alphas]
    fits = [
        (a, b)
        for a, b in lines
        if all(method.sink + method.block <= a + b * n <= n for n in method.lengths)
    ]
    if (0.0, 1.0) not in fits:
        fits.append((0.0, 1.0))  # everything
    lines_as_spans = Spans(
        [[a for a, _ in fits]],
        [[b for _, b in fits]],
        method.sink,
        method.block,
    )
    # Two lines with equal spans at all lengths that matter are one option.
    lengths = sorted({*method.lengths, method.check, method.longest})
    spans = {n: lines_as_spans.at(n)[0] for n in lengths}
    # (lines, lengths): the span of each line at each length.
    rows = torch.stack([spans[n] for n in lengths], 1).tolist()
    first = [i for i, row in enumerate(rows) if row not in rows[:i]]
    alpha, beta = (torch.tensor([line[i] for line in fits])[first] for i in (0, 1))
    return SpanOptions(
        alpha, beta, {n: spans_at_length[first] for n, spans_at_length in spans.items()}
    )


def losses_of(bins: Tensor, spans: Tensor, sink: int, block: int) -> Tensor:
    """Estimate what each span costs each head: the influence of the keys that lie beyond it.

    bins: (layers, G, bins), the influence of keys on the loss, by head and by distance in blocks;
      spans: (C,), in tokens, each with the sink; sink: number of first tokens that are always
      seen; block: tokens of a bin.
    -> (layers G, C), for each head and span, divided by the largest, so that lengths count alike.
    """
    # Suffix sums: entry j is the influence of all keys from bin j on.
    beyond = bins.flatten(0, 1).flip(1).cumsum(1).flip(1)
    beyond = torch.cat([beyond, beyond.new_zeros(len(beyond), 1)], 1)
    first_bin_beyond = (-((sink - spans) // block)).clamp_max(
        bins.shape[-1]
    )  # a full span need not be blocks
    # (layers G, C).
    losses = beyond[:, first_bin_beyond]
    # Divided by the largest, so that the loss at a long length does not outweigh the others.
    return losses / losses.max().clamp_min(1e-300)


def pareto(
    losses: Sequence[Tensor],
    options: SpanOptions,
    shape: tuple[int, int],
    density: float,
    progress: Report = lambda _: None,
) -> list[Tensor]:
    """Return the choices of spans that no other choice beats at every length, (layers G,) each.

    The loss at the last length is minimised, while those at the other lengths lie in one of 4
    intervals between their own minimum and their value where the last length is best.
    losses: of each length, (layers G, C); options: the C spans that a head can have; shape:
      (layers, G); density: share of keys that are kept; progress: a function that is given a line
      of text after each programme.
    Raises: ConfigError where no spans have the density.
    """
    rules = _programme_rules(options, shape, density)

    def solved(objective: int, bounds: Sequence[LinearRule] = ()) -> Tensor | None:
        """Return each head's option, (layers G,), of least loss at a length; None if infeasible."""
        # variables: x_hc, head h has option c, and z_lc, some head of layer l has it
        kinds = torch.zeros(shape[0] * losses[0].shape[1])  # z, the spans of a layer
        programme = OneHot(losses[objective], kinds, extra_binary=True, rules=(*rules, *bounds))
        return programme.solve(gap=GAP, seconds=SECONDS)

    # the loss of a choice x at each length
    totals = [lambda x, at=at: float(at.gather(1, x[:, None]).sum()) for at in losses]
    # The epsilon-constraint method: one objective is minimised, the others are bounded.
    primary = len(losses) - 1
    # Each length's own minimum bounds the intervals of the others.
    extremes = [solved(i) for i in range(len(losses))]
    if any(x is None for x in extremes):
        fix = "Use a smaller sink, or give `step` fewer tokens."
        want = "spans of that density"
        raise ConfigError(f"density {density:g}", got="none that fit", want=want, fix=fix)
    solutions = [x for x in extremes if x is not None]
    # for each other length the ends of its intervals: from its own minimum to its value where the
    # last length is best
    band_edges = [
        np.linspace(totals[i](solutions[i]), totals[i](solutions[primary]), BANDS + 1)
        for i in range(primary)
    ]
    for number, bands in enumerate(itertools.product(range(BANDS), repeat=primary)):
        bounds = [
            LinearRule(
                losses[i].double().numpy().reshape(1, -1), band_edges[i][b], band_edges[i][b + 1]
            )
            for i, b in enumerate(bands)
        ]
        if bounds and (x := solved(primary, bounds)) is not None:
            solutions.append(x)
        progress(f"programme {number + 1} of {BANDS**primary}")
    points = [[total(x) for total in totals] for x in solutions]
    # Keep what no other point beats at all lengths; of equal points the first.
    undominated: list[int] = []
    for i, point in enumerate(points):
        dominated = any(
            all(a <= b for a, b in zip(rival, point, strict=True)) and (rival != point or j < i)
            for j, rival in enumerate(points)
            if j != i
        )
        if not dominated:
            undominated.append(i)
    return [solutions[i] for i in undominated]


def _programme_rules(
    options: SpanOptions, shape: tuple[int, int], density: float
) -> list[LinearRule]:
    """Build the constraints of the integer programme that chooses a span for each head."""
    from scipy import sparse

    layers, heads = shape
    items, count = layers * heads, len(options.alpha)
    # Variables x are ordered by head, then option; z by layer, then option.
    assignments = sparse.identity(items * count)
    spans_of_layer = sparse.kron(
        sparse.kron(sparse.identity(layers), np.ones((heads, 1))), sparse.identity(count)
    )
    rules = [
        LinearRule(assignments, high=0, extra=-spans_of_layer),  # x_hc <= z_lc
        LinearRule(
            # At most A_LAYER different spans in a layer: sum_c z_lc <= 2.
            sparse.csr_matrix((layers, items * count)),
            high=A_LAYER,
            extra=sparse.kron(sparse.identity(layers), np.ones((1, count))),
        ),
    ]
    for length, spans in options.spans.items():
        # Each head's span counts as its share of all keys at this length.
        share = np.tile(spans.double().numpy() / (items * length), items)[None]
        rules.append(LinearRule(share, 0.9 * density, density + 1e-9))
    return rules


def _with_own_answers(model: nn.Module, ids: Tensor, answer: int) -> Tensor:
    """Replace the last `answer` tokens of each row by the model's own continuation."""
    prompts = ids[:, :-answer]
    # Eight prompts at a time bound the memory of keys and values.
    answers = [generate(model, prompts_part, answer).tokens for prompts_part in prompts.split(8)]
    return torch.cat([prompts, torch.cat(answers)], 1)


def _validation_loss(model: nn.Module, spans: Spans, ids: Tensor, length: int) -> float:
    """Compute the mean loss of the rows' last third with spans attached to the model."""
    # ids: (rows, tokens)
    attach_spans(model, spans, length=length)
    try:
        return loss_of_end(model, ids[:, :length])
    finally:
        detach_spans(model)


def _token_rows(texts: Any, length: int, seed: int) -> Tensor:
    """Return rows of token ids, (B, length), in an order drawn from the seed."""
    fix = f"Pass load_calibration('mixed', tokenizer, rows=8, length={length}).train."
    rows: list[Tensor] = []
    for row in [texts[i] for i in range(len(texts))]:
        row_inputs = row[0] if isinstance(row, (tuple, list)) else row
        ids = row_inputs.get("input_ids") if isinstance(row_inputs, Mapping) else row_inputs
        if not isinstance(ids, Tensor) or ids.is_floating_point() or ids.dim() not in (1, 2):
            raise DataError("texts", got=type(ids).__name__, want="rows of token ids", fix=fix)
        rows += list(ids) if ids.dim() == 2 else [ids]
    # Rows are cut to one length, so the shortest decides.
    shortest = min((len(row) for row in rows), default=0)
    if len(rows) < 2 or shortest < length:
        got = f"{len(rows)} rows of {shortest} tokens and more"
        raise DataError("texts", got=got, want=f"at least two of {length}", fix=fix)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    return torch.stack([rows[i][:length] for i in order])


CARD = Card(
    "moa",
    kind="change",
    config=MoA,
    paper=Paper(
        "2406.14909",
        2024,
        "MoA: Mixture of Sparse Attention for Automatic Large Language Model Compression",
    ),
    tiny={
        "density": 0.6,
        "lengths": (20,),
        "check": 24,
        "sink": 2,
        "block": 2,
        "step": 10,
        "answer": 4,
    },
    summary="A span for each head, chosen by what the loss loses beyond it.",
    family="attention spans",
    names=("Mixture of Attention Spans", "Mixture of Sparse Attention"),
)
