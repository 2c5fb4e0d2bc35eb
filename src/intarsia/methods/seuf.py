"""SEUF: a text is unlearned in the one expert that it belongs to (arXiv:2411.18797).

First called UOE. Unlearning in all weights of a mixture lets the router send the text to experts
that had nothing to do with it, which are then damaged, too. Here one expert and the gate of its
layer are trained, and an anchor holds the text's tokens at that expert.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import Card, Paper
from ..core.checks import above, at_least, between, one_of
from ..core.errors import ConfigError, DataError, TargetError, TrainingError
from ..core.modes import evaluating
from ..data.token_batches import Batch, batch_of, batches, first_rows, inputs_of, there
from ..hosts.anatomy.gates import probabilities
from ..hosts.attribution import BY, Attribution, attribute_experts
from ..hosts.swap.upcycle import check_unadapted
from ..hosts.tracing import stock_gate
from ..hosts.weight_parts import WeightParts
from ..mixtures.experts_function import StockExperts, stock_experts
from ..train.objectives import blocks_of
from ..train.order import pair

LOSSES = ("ga", "gdiff", "npo", "rmu")
OVERLAP = 0.01  # of the rows to forget that may also be among those to keep
CLIP = 1.0  # of the gradient's norm
JUDGED = 32  # rows by which the path is measured, of each text
Report = Callable[[str], None]
At = tuple[int, int]  # layer, expert


@dataclass(frozen=True)
class Seuf:
    """L = l_forget + retain l_retain + anchor mean_t |p_t - onehot(e)|^2, in one expert e.

    Trained are the expert e with the most of the text (by: "affinity", the paper's, or "lift", over
    what other text gives it) and its layer's gate; every other weight keeps its bits. The anchor,
    alpha, is over tokens of the text to forget; p_t: the gate's probabilities.
    loss: l_forget, in nats a token,
      "ga", -CE, and no l_retain;  "gdiff", -CE;
      "npo", (2 / (beta T)) log(1 + (pi / pi_0)^beta), pi: of a whole row of T tokens, 0: before;
      "rmu", |h - steer u|^2 / d of the layer's output h, u a random unit vector.
    retain: lambda, of l_retain: CE on the text to keep; of "rmu" |h - h_0|^2 / d.
    lr: of AdamW without weight decay.

    unlearn(model, Seuf("npo"), forget, keep, until=1.0)
    Raises: ConfigError for settings that cannot be.
    Not for dense models, and little use where a layer's experts have equal shares of the text.
    Source: arXiv:2411.18797, equations 2 to 4.
    """

    loss: str = "gdiff"
    by: str = "affinity"
    anchor: float = 1.0
    retain: float = 1.0
    beta: float = 0.1
    steer: float = 20.0
    lr: float = 1e-3

    def __post_init__(self) -> None:
        one_of("loss", self.loss, LOSSES)
        one_of("by", self.by, BY)
        at_least("anchor", self.anchor, 0)
        at_least("retain", self.retain, 0)
        above("beta", self.beta, 0)
        above("steer", self.steer, 0)
        above("lr", self.lr, 0, "Try 1e-3.")

    @property
    def keeps(self) -> bool:
        """Does it read the text that is to stay?"""
        return self.loss != "ga" and self.retain > 0

    def unlearn(
        self, model: nn.Module, forget: Sequence[Any], retain: Sequence[Any] = (), **how: Any
    ) -> Unlearned:
        """`unlearn(model, self, forget, retain, **how)`."""
        return unlearn(model, self, forget, retain, **how)


@dataclass(frozen=True)
class Unlearned:
    """at: (layer, expert), None for all weights;  path: step, cross-entropy of both texts (nats a
    token) and the target's share of the forgotten tokens' probability;  trained, total: weights."""

    at: At | None
    path: tuple[Mapping[str, float], ...]
    trained: int
    total: int
    attribution: Attribution | None = None
    settings: Mapping[str, Any] = field(default_factory=lambda: dict[str, Any]())


def unlearn(
    model: nn.Module,
    method: Seuf,
    forget: Sequence[Any],
    retain: Sequence[Any] = (),
    *,
    at: At | str | None = None,
    steps: int = 60,
    until: float | None = None,
    judge: tuple[Sequence[Any], Sequence[Any]] | None = None,
    batch_size: int = 8,
    every: int = 5,
    seed: int = 0,
    progress: Report = lambda _: None,
) -> Unlearned:
    """Unlearn a text in place; a stock sparse model of transformers.

    forget, retain: rows, as `load_texts(...).train`, or token ids (N, T).
    at: (layer, expert) in place of the one that is attributed; "all": every weight and no anchor,
    which is the plain method.  until: stop when the cross-entropy of the text to forget has risen
    by so many nats.  judge: other rows of both texts to measure by, each `every` steps; the first
    ones of those trained on if not given.  seed: of the order of rows, and of RMU's vector.
    The model is as before where this raises, Ctrl-C included.

    Raises: TargetError for a model without stock experts, or with adapters; DataError for rows
    without tokens, texts that share rows, or no text to keep where the loss reads one; ConfigError
    for an expert that is not there; TrainingError for a loss that is not finite.
    Source: arXiv:2411.18797.
    """
    for what, count in (("steps", steps), ("every", every), ("batch_size", batch_size)):
        at_least(what, count, 1)
    above("until", 1.0 if until is None else until, 0, "Try 1.0; None takes all steps.")
    stock = _checked(model, method, forget, retain, at is None)
    table, target = None, None
    if at is None:
        there_is = [r for r in (forget, retain) if len(r)]
        device = next(model.parameters()).device
        table = attribute_experts(model, *(inputs_of(r, batch_size, device) for r in there_is))
        target = table.best(method.by)
        for doubt in table.doubts(target):
            warnings.warn(doubt, stacklevel=2)
    elif at != "all":
        target = _given(at, stock)
    elif method.loss == "rmu":
        fix = "Give at=(layer, expert)."
        raise ConfigError("at", got="'all' with rmu", want="a layer, whose output moves", fix=fix)
    run = _Run(model, method, target, stock, seed)
    try:
        with evaluating(model), run:
            path = run.walk(forget, retain, judge, steps, until, batch_size, every, progress)
    except BaseException:
        run.parts.restore()
        raise
    counts = run.parts.count, sum(p.numel() for p in model.parameters())
    return Unlearned(target, path, *counts, table, vars(method))


class _Run:
    """One unlearning: what is trained, what is seen of a forward, and the losses."""

    def __init__(
        self,
        model: nn.Module,
        method: Seuf,
        at: At | None,
        stock: Sequence[StockExperts],
        seed: int,
    ) -> None:
        self.model, self.method, self.at = model, method, at
        self.device = next(model.parameters()).device
        self.draws = torch.Generator().manual_seed(seed)
        self.p = self.h = torch.empty(0)
        self.hooks: list[Any] = []
        if at is None:
            self.parts = WeightParts(model, [(p, None) for p in model.parameters()])
            self.gate = self.block = None
        else:
            of = stock[at[0]]
            self.gate = stock_gate(model, of.path)
            self.block = _block_of(model, of.path)
            chosen = [(p, at[1]) for p in of.module.parameters() if len(p) == of.experts]
            chosen += [(p, None) for p in self.gate.parameters()]
            self.parts = WeightParts(model, chosen)
        self.u: Tensor | None = None

    def __enter__(self) -> None:
        if self.gate is not None:
            self.hooks.append(self.gate.register_forward_hook(self._saw_gate))
        if self.block is not None and self.method.loss == "rmu":
            self.hooks.append(self.block.register_forward_hook(self._saw_block))
        self.parts.begin()

    def __exit__(self, *_: object) -> None:
        self.parts.end()
        for hook in self.hooks:
            hook.remove()

    def _saw_gate(self, gate: nn.Module, _: Any, output: Any) -> None:
        self.p = probabilities(gate, output)  # (B T, E)

    def _saw_block(self, _block: nn.Module, _: Any, output: Any) -> None:
        self.h = output[0] if isinstance(output, tuple) else output  # (B, T, d)

    def walk(
        self,
        forget: Sequence[Any],
        retain: Sequence[Any],
        judge: tuple[Sequence[Any], Sequence[Any]] | None,
        steps: int,
        until: float | None,
        size: int,
        every: int,
        progress: Report,
    ) -> tuple[Mapping[str, float], ...]:
        """Train, and measure on the way."""
        held = judge or (first_rows(forget, JUDGED), first_rows(retain, JUDGED))
        judged = [batches(rows, size, self.device) for rows in held]
        path = [self.measure(0, judged)]
        optimiser = torch.optim.AdamW(self.parts.leaves, lr=self.method.lr, weight_decay=0.0)
        drawn = [self._endless(rows, size) for rows in (forget, retain) if len(rows)]
        for step in range(1, steps + 1):
            loss = self.loss(*(next(rows) for rows in drawn))
            if not bool(loss.isfinite()):
                fix = f"Set a smaller rate (lr={self.method.lr / 10:g}), or until=1.0."
                what, got = f"unlearning, step {step}", f"a loss of {float(loss.detach())}"
                raise TrainingError(what, got=got, want="a finite one", fix=fix)
            self.parts.gradients(loss)
            torch.nn.utils.clip_grad_norm_(self.parts.leaves, CLIP)
            optimiser.step()
            self.parts.put()
            if step % every == 0 or step == steps:
                path.append(self.measure(step, judged))
                progress(_said(path[-1]))
                if until is not None and path[-1]["forget"] - path[0]["forget"] >= until:
                    break
        return tuple(path)

    def loss(self, forget: Batch, retain: Batch | None = None) -> Tensor:
        """The whole loss of a step (equation 4)."""
        method = self.method
        keeps = retain if method.keeps else None
        first = self.reference(forget, keeps)
        total = self.forgetting(forget, first)
        if self.at is not None and method.anchor:
            total = total + method.anchor * self.anchoring(forget)
        if keeps is not None:
            total = total + method.retain * self.keeping(keeps, first)
        return total

    @torch.no_grad()
    def reference(self, forget: Batch, retain: Batch | None) -> Tensor | None:
        """What the model said at first: of "npo" log pi_0 of each row, of "rmu" h_0 of what stays.

        Before any graph is made: weights are exchanged in place.
        """
        if self.method.loss == "npo":
            with self.parts.before():
                return self.likelihood(forget)[0]
        if self.method.loss == "rmu" and retain is not None:
            with self.parts.before():
                self.model(**retain[0])
                return there(self.h, retain)
        return None

    def forgetting(self, batch: Batch, first: Tensor | None) -> Tensor:
        """l_forget."""
        if self.method.loss == "rmu":
            self.model(**batch[0])
            h = there(self.h, batch)  # (N, d)
            return (h - self.method.steer * self.direction(h)).square().mean()
        row, tokens = self.likelihood(batch)
        if first is None:
            return row.sum() / tokens.sum().clamp(min=1)  # log pi a token: -CE
        beta = self.method.beta
        return 2 / beta * F.softplus(beta * (row - first)).sum() / tokens.sum().clamp(min=1)

    def anchoring(self, batch: Batch) -> Tensor:
        """mean_t |p_t - onehot(e)|^2 of the newest forward (equation 3)."""
        assert self.at is not None
        p = there(self.p, batch)  # (N, E)
        target = torch.zeros_like(p)
        target[:, self.at[1]] = 1.0
        return (p - target).square().sum(1).mean()

    def keeping(self, batch: Batch, first: Tensor | None) -> Tensor:
        """l_retain."""
        if self.method.loss == "rmu" and first is not None:
            self.model(**batch[0])
            return (there(self.h, batch) - first).square().mean()
        row, tokens = self.likelihood(batch)
        return -row.sum() / tokens.sum().clamp(min=1)

    def likelihood(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """log pi of each row, and how many tokens of it are labelled.  (B,), (B,)."""
        inputs, labels = batch
        logits = self.model(**inputs).logits[:, :-1].float()
        target = labels[:, 1:]
        each = F.cross_entropy(logits.transpose(1, 2), target, reduction="none")  # (B, T - 1)
        return -each.sum(1), (target != -100).sum(1)

    def direction(self, h: Tensor) -> Tensor:
        """u, the same in every step."""
        if self.u is None:
            u = torch.rand(h.shape[-1], generator=self.draws)
            self.u = (u / u.norm()).to(h)
        return self.u

    @torch.no_grad()
    def measure(self, step: int, judged: Sequence[Sequence[Batch]]) -> Mapping[str, float]:
        """Cross-entropy of both texts, and the target's share of the tokens to forget."""
        found: dict[str, float] = {"step": step}
        for name, some in zip(("forget", "retain"), judged, strict=True):
            total = count = share = seen = 0.0
            for batch in some:
                row, tokens = self.likelihood(batch)
                total, count = total - float(row.sum()), count + int(tokens.sum())
                if self.at is not None and name == "forget":
                    p = there(self.p, batch)[:, self.at[1]]
                    share, seen = share + float(p.sum()), seen + len(p)
            if name == "forget" and not count:
                fix = "Give rows of two tokens or more."
                raise DataError("text to forget", got="no token to predict", want="some", fix=fix)
            if some:
                found[name] = total / max(1.0, count)
            if seen:
                found["share"] = share / seen
        return found

    def _endless(self, rows: Sequence[Any], size: int) -> Any:
        while True:
            order = torch.randperm(len(rows), generator=self.draws).tolist()
            for first in range(0, len(order), size):
                yield batch_of([rows[i] for i in order[first : first + size]], self.device)


def _checked(
    model: nn.Module, method: Seuf, forget: Sequence[Any], retain: Sequence[Any], attributed: bool
) -> list[StockExperts]:
    """The experts of each layer.  Raises: TargetError, DataError."""
    check_unadapted(model)
    stock = list(stock_experts(model).values())
    if not stock:
        got = f"a {type(model).__name__} without stock experts"
        fix = "Use Mixtral, Qwen-MoE, OLMoE or another sparse model of transformers."
        raise TargetError("model to unlearn in", got=got, want="mixtures of experts", fix=fix)
    lift = attributed and method.by == "lift"
    ways = ["loss='ga'"] * method.keeps + ["by='affinity'"] * lift
    for name, rows, wanted in (("forget", forget, True), ("retain", retain, bool(ways))):
        if wanted and not len(rows):
            fix = "Give some rows" + (f", or {' and '.join(ways)}." if name == "retain" else ".")
            raise DataError(f"text to {name}", got="no rows", want="some", fix=fix)
    kept = {_bits(row) for row in retain}
    both = sum(_bits(row) in kept for row in forget)
    if both > OVERLAP * len(forget):
        got = f"{both} of {len(forget)} rows to forget that are also to be kept"
        fix = "Take them out of one of the two."
        raise DataError("texts", got=got, want=f"at most {OVERLAP:.0%}", fix=fix)
    return stock


def _bits(row: Any) -> bytes:
    ids = row if isinstance(row, Tensor) else pair(row)[0]["input_ids"]
    return torch.as_tensor(ids).long().cpu().numpy().tobytes()


def _given(at: Any, stock: Sequence[StockExperts]) -> At:
    if not (isinstance(at, tuple) and len(at) == 2):
        raise ConfigError("at", got=repr(at), want="(layer, expert), or 'all'", fix="Try (3, 7).")
    between("layer", at[0], 0, len(stock) - 1)
    between("expert", at[1], 0, stock[at[0]].experts - 1)
    return int(at[0]), int(at[1])


def _block_of(model: nn.Module, path: str) -> nn.Module:
    """The repeated block that the experts are in."""
    blocks = blocks_of(model)
    inside = [b for b in blocks if any(m is model.get_submodule(path) for m in b.modules())]
    return inside[0]


def _said(at: Mapping[str, float]) -> str:
    words = [f"{name} {at[name]:.3f}" for name in ("forget", "retain", "share") if name in at]
    return f"step {at['step']:.0f}: {', '.join(words)}"


CARD = Card(
    "seuf",
    kind="unlearning",
    config=Seuf,
    paper=Paper(
        "2411.18797",
        2024,
        "UOE: Unlearning One Expert Is Enough For Mixture-of-experts LLMS",
    ),
    summary="A text is unlearned in the one expert that it belongs to, and its layer's gate.",
    family="unlearning",
    names=("SEUF", "UOE", "unlearning one expert"),
)
