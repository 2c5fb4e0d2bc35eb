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
from ..core.checks import above, at_least, between
from ..core.errors import ConfigError, DataError, TargetError
from ..core.registry import settings_to_dict
from ..hosts.decoding import generate
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
from ..placement.ilp import OneHot, Rule

BETAS = tuple(i / 8 for i in range(9))
BANDS = 4  # intervals of each further objective
A_LAYER = 2  # spans in one layer at most
GAP, SECONDS = 0.01, 60.0  # of HiGHS, for one programme
SPAN = 256  # tokens, the least of the released grid
Report = Callable[[str], None]


@dataclass(frozen=True)
class MoA(Change):
    """Spans of heads that lose least of the loss at a density, by a mixed-integer programme.

    1. Influence E of each key on the loss of the model's own answers, at each length N.
    2. L_N(h, c), sum of |E| beyond span c of head h; c = (alpha, beta), span = alpha + beta N.
    3. min sum_h L_N(h, c_h) with mean span at most density N at every length, two spans a layer at
       most; the other lengths' sums in each of 4 intervals between their extremes: a Pareto set.
    4. Of that, the spans with the least loss on other rows, at a length that was not profiled.
    density: of keys and values that are kept.  lengths: N, profiled.  check: the unseen length.
    extend: the longest text to use them for, None = the longest of these.  sink, block: tokens; one
    is a multiple of the other.  step: of alpha, None = an eighth of the shortest length.
    answer: tokens of the model's own that are judged, at the end of each row.

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
    out; and they go down to one block beside it, where the released grid ends at an eighth of the
    shortest length (256 of 2,048 tokens): a longer `step` makes the grid as coarse.
    """

    density: float = 0.5
    lengths: tuple[int, ...] = (512, 1024)
    check: int = 1536
    extend: int | None = None
    sink: int = SINK
    block: int = 16
    step: int | None = None
    answer: int = 64

    rewires: ClassVar[bool] = True
    laws: ClassVar[frozenset[str]] = frozenset(("shape", "routing"))
    needs: ClassVar[frozenset[str]] = frozenset(("rows",))

    def __post_init__(self) -> None:
        above("density", self.density, 0, "Try 0.5.")
        between("density", self.density, 0, 1, "Try 0.5.")
        listed = isinstance(self.lengths, Sequence) and not isinstance(self.lengths, str)
        if not listed or not self.lengths or len(set(self.lengths)) < len(self.lengths):
            fix = "Try lengths=(512, 1024)."
            raise ConfigError("lengths", got=self.lengths, want="one or more, all other", fix=fix)
        object.__setattr__(self, "lengths", tuple(sorted(int(n) for n in self.lengths)))
        at_least("block", self.block, 1)
        if self.sink < 0 or self.sink % self.block:
            fix = f"Try sink={self.block * max(1, self.sink // self.block)}."
            want = f"a multiple of the block, {self.block}"
            raise ConfigError("sink", got=self.sink, want=want, fix=fix)
        if self.step is not None:
            at_least("step", self.step, 1)
        at_least("answer", self.answer, 1)
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
        """Tokens of the longest text that the spans are for."""
        return self.extend or max(*self.lengths, self.check)

    def plan(self, host: nn.Module, batches: Iterable[Any] = (), *, seed: int = 0) -> Plan:
        """The spans, as the plan of `HeadSpans`: what is saved are they."""
        spans = choose_spans(host, self, list(batches), seed=seed)
        return planned(host, spans, None, seed=seed)

    def apply(self, host: nn.Module, plan: Plan, *, name: str = "default") -> nn.Module:
        return HeadSpans().apply(host, plan, name=name)

    def fold(self, host: nn.Module) -> nn.Module:
        """Raises: FoldError, as `HeadSpans`."""
        return HeadSpans().fold(host)


def choose_spans(
    model: nn.Module,
    method: MoA,
    texts: Any,
    *,
    seed: int = 0,
    progress: Report = lambda _: None,
) -> Spans:
    """How far each head of a model should see; the model stays as it is.

    texts: rows of at least `method.check` tokens, such as load_texts(..., length=1536).train[:8];
    a quarter of them, one at least, validates. Cost: a forward and a backward pass of each row at
    each length, then programmes of seconds.  seed: of which rows validate.
    progress: is given a line for each part.

    Raises: as `MoA`; TargetError for a model that has spans.
    """
    found = attentions(model)
    if spans_of(model) is not None:
        fix = "Call intarsia.spans.detach_spans(model) first."
        raise TargetError("model", got="one with spans", want="one without", fix=fix)
    span = method.density * method.lengths[0]
    if span < SPAN:
        warnings.warn(
            f"MoA was made for spans of {SPAN} tokens and more, here they have {span:.0f}: one "
            "window for all heads may be as good. Profile longer texts (lengths).",
            stacklevel=2,
        )
    began = time.perf_counter()
    rows = _rows(texts, max(*method.lengths, method.check), seed)
    held = max(1, len(rows) // 4)
    options = configurations(method)
    shape = (len(found.modules), found.heads)
    losses: list[Tensor] = []
    for length in method.lengths:
        ids = _answered(model, rows[held:, :length], method.answer)
        bins = profile(model, ids, method.answer, sink=method.sink, block=method.block)
        losses.append(losses_of(bins, options.spans[length], method.sink, method.block))
        progress(f"profiled {len(ids)} rows of {length} tokens")
    clock = time.process_time()
    chosen = pareto(losses, options, shape, method.density, progress)
    about: dict[str, Any] = {"method": settings_to_dict(method), "seed": seed}
    about["programmes"] = round(time.process_time() - clock, 1)  # CPU seconds
    candidates = [options.as_spans(at, method, shape) for at in chosen]
    validated = [_validated(model, one, rows[:held], method.check) for one in candidates]
    best = int(np.argmin(validated))
    even = Spans.uniform(*shape, method.density, sink=method.sink, block=method.block)
    about |= {
        "loss": validated,
        "chosen": best,
        "dense": loss_of_end(model, rows[:held, : method.check]),
        "uniform": _validated(model, even, rows[:held], method.check),
        "seconds": round(time.perf_counter() - began, 1),
    }
    progress(f"{len(candidates)} candidates, loss {validated[best]:.4f} at {method.check} tokens")
    return options.as_spans(chosen[best], method, shape, about)


@dataclass(frozen=True)
class SpanOptions:
    """Lines alpha + beta N, each with other spans than all before.

    alpha, beta: (C,).  spans: length -> (C,) tokens, of all lengths that count.
    """

    alpha: Tensor
    beta: Tensor
    spans: Mapping[int, Tensor]

    def as_spans(
        self, chosen: Tensor, method: MoA, shape: tuple[int, int], about: Any = None
    ) -> Spans:
        """chosen: (layers G,), an option of each head."""
        alpha, beta = (of[chosen].view(shape).tolist() for of in (self.alpha, self.beta))
        return Spans(alpha, beta, method.sink, method.block, method.longest, about or {})


def configurations(method: MoA) -> SpanOptions:
    """All lines with 0 < span <= N at each profiled length (paper, section 3.2)."""
    shortest, longest = method.lengths[0], method.lengths[-1]
    step = method.step or max(method.block, shortest // 8)
    alphas = range(-shortest, longest + 1, step)
    lines = [(float(a), b) for b in BETAS for a in alphas]
    fits = [
        (a, b)
        for a, b in lines
        if all(method.sink + method.block <= a + b * n <= n for n in method.lengths)
    ]
    if (0.0, 1.0) not in fits:
        fits.append((0.0, 1.0))  # everything
    every = Spans(
        [[a for a, _ in fits]],
        [[b for _, b in fits]],
        method.sink,
        method.block,
    )
    lengths = sorted({*method.lengths, method.check, method.longest})
    spans = {n: every.at(n)[0] for n in lengths}
    rows = torch.stack([spans[n] for n in lengths], 1).tolist()
    first = [i for i, row in enumerate(rows) if row not in rows[:i]]
    alpha, beta = (torch.tensor([line[i] for line in fits])[first] for i in (0, 1))
    return SpanOptions(alpha, beta, {n: of[first] for n, of in spans.items()})


def losses_of(bins: Tensor, spans: Tensor, sink: int, block: int) -> Tensor:
    """L(h, c): influence beyond each span.  bins: (layers, G, bins); spans: (C,) -> (layers G, C).

    Divided by its largest, so that lengths count alike.
    """
    beyond = bins.flatten(0, 1).flip(1).cumsum(1).flip(1)  # from a bin on
    beyond = torch.cat([beyond, beyond.new_zeros(len(beyond), 1)], 1)
    at = (-((sink - spans) // block)).clamp_max(bins.shape[-1])  # a full span need not be blocks
    losses = beyond[:, at]
    return losses / losses.max().clamp_min(1e-300)


def pareto(
    losses: Sequence[Tensor],
    options: SpanOptions,
    shape: tuple[int, int],
    density: float,
    progress: Report = lambda _: None,
) -> list[Tensor]:
    """Choices that no other beats at every length, (layers G,) each.

    The last length's sum is least; the others' lie in one of 4 intervals between what they are at
    their own best and at its.
    Raises: ConfigError where no spans have the density.
    """
    rules = _rules(options, shape, density)

    def solved(objective: int, more: Sequence[Rule] = ()) -> Tensor | None:
        kinds = torch.zeros(shape[0] * losses[0].shape[1])  # z, the spans of a layer
        of = OneHot(losses[objective], kinds, whole=True, rules=(*rules, *more))
        return of.solve(gap=GAP, seconds=SECONDS)

    sums = [lambda x, of=of: float(of.gather(1, x[:, None]).sum()) for of in losses]
    primary = len(losses) - 1
    extremes = [solved(i) for i in range(len(losses))]
    if any(x is None for x in extremes):
        fix = "Use a smaller sink, or give `step` fewer tokens."
        want = "spans of that density"
        raise ConfigError(f"density {density:g}", got="none that fit", want=want, fix=fix)
    found = [x for x in extremes if x is not None]
    cuts = [
        np.linspace(sums[i](found[i]), sums[i](found[primary]), BANDS + 1) for i in range(primary)
    ]
    for number, bands in enumerate(itertools.product(range(BANDS), repeat=primary)):
        more = [
            Rule(losses[i].double().numpy().reshape(1, -1), cuts[i][b], cuts[i][b + 1])
            for i, b in enumerate(bands)
        ]
        if more and (x := solved(primary, more)) is not None:
            found.append(x)
        progress(f"programme {number + 1} of {BANDS**primary}")
    points = [[of(x) for of in sums] for x in found]
    kept: list[int] = []
    for i, point in enumerate(points):
        worse = any(
            all(a <= b for a, b in zip(other, point, strict=True)) and (other != point or j < i)
            for j, other in enumerate(points)
            if j != i
        )
        if not worse:
            kept.append(i)
    return [found[i] for i in kept]


def _rules(options: SpanOptions, shape: tuple[int, int], density: float) -> list[Rule]:
    """Two spans a layer at most, and at each length a mean span of .9 ... 1 of density N."""
    from scipy import sparse

    layers, heads = shape
    items, count = layers * heads, len(options.alpha)
    each = sparse.identity(items * count)
    of_layer = sparse.kron(
        sparse.kron(sparse.identity(layers), np.ones((heads, 1))), sparse.identity(count)
    )
    rules = [
        Rule(each, high=0, more=-of_layer),  # x_hc <= z_lc
        Rule(
            sparse.csr_matrix((layers, items * count)),
            high=A_LAYER,
            more=sparse.kron(sparse.identity(layers), np.ones((1, count))),
        ),
    ]
    for length, spans in options.spans.items():
        share = np.tile(spans.double().numpy() / (items * length), items)[None]
        rules.append(Rule(share, 0.9 * density, density + 1e-9))
    return rules


def _answered(model: nn.Module, ids: Tensor, answer: int) -> Tensor:
    """Rows whose last tokens are the model's own."""
    prompts = ids[:, :-answer]
    own = [generate(model, some, answer).tokens for some in prompts.split(8)]
    return torch.cat([prompts, torch.cat(own)], 1)


def _validated(model: nn.Module, spans: Spans, ids: Tensor, length: int) -> float:
    """The loss of the last third with spans."""
    attach_spans(model, spans, length=length)
    try:
        return loss_of_end(model, ids[:, :length])
    finally:
        detach_spans(model)


def _rows(texts: Any, length: int, seed: int) -> Tensor:
    """Rows of tokens, (B, length), in an order of the seed.

    Raises: DataError for shorter ones, or fewer than two.
    """
    fix = f"Pass load_calibration('mixed', tokenizer, rows=8, length={length}).train."
    rows: list[Tensor] = []
    for row in [texts[i] for i in range(len(texts))]:
        given = row[0] if isinstance(row, (tuple, list)) else row
        ids = given.get("input_ids") if isinstance(given, Mapping) else given
        if not isinstance(ids, Tensor) or ids.is_floating_point() or ids.dim() not in (1, 2):
            raise DataError("texts", got=type(ids).__name__, want="rows of token ids", fix=fix)
        rows += list(ids) if ids.dim() == 2 else [ids]
    shortest = min((len(row) for row in rows), default=0)
    if len(rows) < 2 or shortest < length:
        got = f"{len(rows)} rows of {shortest} tokens and more"
        raise DataError("texts", got=got, want=f"at least two of {length}", fix=fix)
    draw = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    return torch.stack([rows[i][:length] for i in draw])


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
