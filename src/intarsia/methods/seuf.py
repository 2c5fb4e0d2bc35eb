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
from ..data.token_batches import Batch, batch_of, batches, first_rows, inputs_of, real_tokens
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
    """Unlearning in one expert e: l_forget + retain l_retain + anchor mean_t |p_t - onehot(e)|^2.

    Trained are the expert e with the most of the text (by: "affinity", the paper's, or "lift", over
    what other text gives it) and its layer's gate; every other weight keeps its bits. The anchor,
    alpha, is over tokens of the text to forget; p_t: the gate's probabilities.
    loss: l_forget, in nats a token,
      "ga", -CE, and no l_retain;  "gdiff", -CE;
      "npo", (2 / (beta T)) log(1 + (pi / pi_0)^beta), pi: of a whole row of T tokens, 0: before;
      "rmu", |h - steer u|^2 / d of the layer's output h, u a random unit vector.
    retain: lambda, of l_retain: CE on the text to keep; of "rmu" |h - h_0|^2 / d.
    lr: AdamW's rate, without weight decay.

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
        """Check the settings: known names, weights of losses from 0 on, rates above 0.

        Raises: ConfigError.
        """
        one_of("loss", self.loss, LOSSES)
        one_of("by", self.by, BY)
        at_least("anchor", self.anchor, 0)
        at_least("retain", self.retain, 0)
        above("beta", self.beta, 0)
        above("steer", self.steer, 0)
        above("lr", self.lr, 0, "Try 1e-3.")

    @property
    def keeps(self) -> bool:
        """The statement that the loss reads the text to keep, bool."""
        return self.loss != "ga" and self.retain > 0

    def unlearn(
        self, model: nn.Module, forget: Sequence[Any], retain: Sequence[Any] = (), **options: Any
    ) -> Unlearned:
        """Unlearn a text: call `unlearn(model, self, forget, retain, **options)`."""
        return unlearn(model, self, forget, retain, **options)


@dataclass(frozen=True)
class Unlearned:
    """Result of `unlearn`: the expert, the course of the measures, and how much was trained.

    at: (layer, expert), None for all weights.  path: at each measured step the cross-entropy of
    both texts (nats a token) and the target's share of the forgotten tokens' probability.  trained,
    total: numbers of weights.
    """

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
    """Unlearn a text in place, in a stock sparse model of transformers.

    model: changed in place; method: the settings; forget, retain: rows to unlearn and to keep, as
    `load_texts(...).train`, or token ids (N, T); at: (layer, expert) in place of the one with most
    of the text; "all": every weight and no anchor, which is the plain method; steps: of AdamW, at
    most; until: stop when the cross-entropy of the text to forget has risen by so many nats; judge:
    other rows of both texts to measure by, each `every` steps; None = the first ones of those
    trained on; batch_size: rows of each text in a step; seed: draws the order of rows, and RMU's
    vector; progress: gets a line of text for each measurement. The model is as before where this
    raises, Ctrl-C included.

    Raises: TargetError for a model without stock experts, or with adapters; DataError for rows
    without tokens, texts that share rows, or no text to keep where the loss reads one; ConfigError
    for an expert that is not there; TrainingError for a loss that is not finite.
    Source: arXiv:2411.18797.
    """
    for setting, count in (("steps", steps), ("every", every), ("batch_size", batch_size)):
        at_least(setting, count, 1)
    above("until", 1.0 if until is None else until, 0, "Try 1.0; None takes all steps.")
    layers = _check_texts(model, method, forget, retain, at is None)
    table, target = None, None
    if at is None:
        texts = [r for r in (forget, retain) if len(r)]
        device = next(model.parameters()).device
        # The expert with the largest share of the text's tokens is the target.
        table = attribute_experts(model, *(inputs_of(r, batch_size, device) for r in texts))
        target = table.best(method.by)
        # For example a lead of the expert that is no larger than chance.
        for doubt in table.doubts(target):
            warnings.warn(doubt, stacklevel=2)
    elif at != "all":
        target = _checked_place(at, layers)
    elif method.loss == "rmu":
        fix = "Give at=(layer, expert)."
        raise ConfigError("at", got="'all' with rmu", want="a layer, whose output moves", fix=fix)
    run = _Run(model, method, target, layers, seed)
    try:
        # Dropout would make the measures of two steps differ for no reason.
        with evaluating(model), run:
            path = run.walk(forget, retain, judge, steps, until, batch_size, every, progress)
    except BaseException:
        run.parts.restore()
        raise
    counts = run.parts.count, sum(p.numel() for p in model.parameters())
    return Unlearned(target, path, *counts, table, vars(method))


class _Run:
    """An unlearning run: the trained weights, hooks that record a forward pass, and the losses.

    p: (B T, E), the gate's newest probabilities; h: (B, T, d), the block's newest output.
    """

    def __init__(
        self,
        model: nn.Module,
        method: Seuf,
        at: At | None,
        layers: Sequence[StockExperts],
        seed: int,
    ) -> None:
        """Select the trained weights, and the modules whose outputs the losses need.

        method: the settings; at: (layer, expert) to unlearn in, None = all weights of the model;
          layers: the model's expert layers; seed: of the order of rows and of RMU's direction u.
        """
        self.model, self.method, self.at = model, method, at
        self.device = next(model.parameters()).device
        self.draws = torch.Generator().manual_seed(seed)
        self.p = self.h = torch.empty(0)
        self.hooks: list[Any] = []
        if at is None:
            self.parts = WeightParts(model, [(p, None) for p in model.parameters()])
            self.gate = self.block = None
        else:
            layer = layers[at[0]]
            self.gate = stock_gate(model, layer.path)
            self.block = _block_around(model, layer.path)
            parts = [(p, at[1]) for p in layer.module.parameters() if len(p) == layer.experts]
            # Of weights stacked over experts only this expert's row is trained; the gate is whole.
            parts += [(p, None) for p in self.gate.parameters()]
            self.parts = WeightParts(model, parts)
        self.u: Tensor | None = None

    def __enter__(self) -> None:
        """Make the chosen weights trainable, and hook the modules whose outputs the losses read."""
        if self.gate is not None:
            self.hooks.append(self.gate.register_forward_hook(self._store_probabilities))
        if self.block is not None and self.method.loss == "rmu":
            self.hooks.append(self.block.register_forward_hook(self._store_hidden))
        self.parts.begin()

    def __exit__(self, *_: object) -> None:
        """Put all weights and flags back in place, and remove the hooks."""
        self.parts.end()
        for hook in self.hooks:
            hook.remove()

    def _store_probabilities(self, gate: nn.Module, _: Any, output: Any) -> None:
        """Keep the gate's probabilities, (B T, E); a forward hook."""
        self.p = probabilities(gate, output)  # (B T, E)

    def _store_hidden(self, _block: nn.Module, _: Any, output: Any) -> None:
        """Keep the block's output h, (B, T, d); a forward hook."""
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
        """Train the chosen weights, and return measures of both texts, from step 0 on.

        forget, retain: rows of both texts; judge: rows of both to measure on, None = the first ones
          of the same; steps: at most; until: stop once the loss on `forget` has risen by so much,
          None = never; size: rows of a batch; every: steps between two measurements; progress: a
          function that is given a line of text for each of them.
        """
        # Measured on rows that do not change, so that two steps can be compared.
        judging_rows = judge or (first_rows(forget, JUDGED), first_rows(retain, JUDGED))
        judging_batches = [batches(rows, size, self.device) for rows in judging_rows]
        path = [self.measure(0, judging_batches)]
        # No weight decay: it would move weights that no loss asks to move.
        optimiser = torch.optim.AdamW(self.parts.leaves, lr=self.method.lr, weight_decay=0.0)
        streams = [self._endless(rows, size) for rows in (forget, retain) if len(rows)]
        for step in range(1, steps + 1):
            loss = self.loss(*(next(rows) for rows in streams))
            if not bool(loss.isfinite()):
                fix = f"Set a smaller rate (lr={self.method.lr / 10:g}), or until=1.0."
                subject, got = f"unlearning, step {step}", f"a loss of {float(loss.detach())}"
                raise TrainingError(subject, got=got, want="a finite one", fix=fix)
            # Gradients of whole stacked tensors are cut down to the trained rows.
            self.parts.gradients(loss)
            torch.nn.utils.clip_grad_norm_(self.parts.leaves, CLIP)
            optimiser.step()
            self.parts.put()
            if step % every == 0 or step == steps:
                path.append(self.measure(step, judging_batches))
                progress(_describe_measures(path[-1]))
                # Not by steps, so that methods compare at equal forgetting.
                if until is not None and path[-1]["forget"] - path[0]["forget"] >= until:
                    break
        return tuple(path)

    def loss(self, forget: Batch, retain: Batch | None = None) -> Tensor:
        """Compute the loss of a step: l_forget + retain l_retain + anchor mean |p - onehot(e)|^2.

        It is equation 4 of the paper: the loss on the text to unlearn, that on the text to keep,
        and a term that holds the gate's probabilities p at expert e. forget: a batch of the text to
        unlearn; retain: one of the text to keep, None = no such loss.
        """
        # Some losses compare with the model as it was, whose outputs are computed first.
        method = self.method
        keeps = retain if method.keeps else None
        reference = self.reference(forget, keeps)
        total = self.forgetting(forget, reference)
        # Without this term the router sends the text to other experts, which are then damaged.
        if self.at is not None and method.anchor:
            total = total + method.anchor * self.anchoring(forget)
        if keeps is not None:
            total = total + method.retain * self.keeping(keeps, reference)
        return total

    @torch.no_grad()
    def reference(self, forget: Batch, retain: Batch | None) -> Tensor | None:
        """Compute the former model's log pi_0 of each row ("npo"), or h_0 of `retain` ("rmu").

        forget, retain: a batch of the text to unlearn, and one of the text to keep or None. Returns
          None for the other losses. Called before any graph is made, because weights are exchanged
          in place.
        """
        if self.method.loss == "npo":
            with self.parts.before():
                return self.likelihood(forget)[0]
        if self.method.loss == "rmu" and retain is not None:
            with self.parts.before():
                self.model(**retain[0])
                return real_tokens(self.h, retain)
        return None

    def forgetting(self, batch: Batch, reference: Tensor | None) -> Tensor:
        """Compute l_forget, the loss that makes the model worse on a batch of the text to unlearn.

        batch: inputs and labels; reference: log pi_0 of each row, (B,), for "npo"; None for the
        other losses.
        """
        if self.method.loss == "rmu":
            self.model(**batch[0])
            h = real_tokens(self.h, batch)  # (N, d)
            return (h - self.method.steer * self.direction(h)).square().mean()
        row_log_probability, tokens = self.likelihood(batch)
        if reference is None:
            return row_log_probability.sum() / tokens.sum().clamp(min=1)  # log pi a token: -CE
        # NPO: 2 / (beta T) log(1 + (pi / pi_0)^beta), softplus of the log-ratio.
        beta = self.method.beta
        return (
            2
            / beta
            * F.softplus(beta * (row_log_probability - reference)).sum()
            / tokens.sum().clamp(min=1)
        )

    def anchoring(self, batch: Batch) -> Tensor:
        """Compute mean_t |p_t - onehot(e)|^2, its distance from always choosing expert e (eq. 3).

        batch: the one of the newest forward, whose gate probabilities p a hook has stored.
        """
        assert self.at is not None
        p = real_tokens(self.p, batch)  # (N, E)
        target = torch.zeros_like(p)
        # onehot(e), the same for every token.
        target[:, self.at[1]] = 1.0
        return (p - target).square().sum(1).mean()

    def keeping(self, batch: Batch, reference: Tensor | None) -> Tensor:
        """Compute l_retain, the loss that holds the model's outputs on a batch of the text to keep.

        batch: inputs and labels; reference: h_0 of the real tokens, (N, d), for "rmu"; None for the
        other losses.
        """
        if self.method.loss == "rmu" and reference is not None:
            self.model(**batch[0])
            return (real_tokens(self.h, batch) - reference).square().mean()
        row_log_probability, tokens = self.likelihood(batch)
        return -row_log_probability.sum() / tokens.sum().clamp(min=1)

    def likelihood(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Compute log pi, (B,), the rows' log-probabilities, and their numbers of labelled tokens.

        batch: the model's inputs by name, and labels (B, T), -100 where a token does not count.
        """
        inputs, labels = batch
        logits = self.model(**inputs).logits[:, :-1].float()
        target = labels[:, 1:]
        # Ignored labels (-100, the prompt or padding) have a loss of 0.
        token_losses = F.cross_entropy(
            logits.transpose(1, 2), target, reduction="none"
        )  # (B, T - 1)
        return -token_losses.sum(1), (target != -100).sum(1)

    def direction(self, h: Tensor) -> Tensor:
        """Return RMU's random unit vector u, (d,), the same in every step.

        h: (N, d), hidden states, for their width, dtype and device.
        """
        if self.u is None:
            # RMU draws u once; hidden states of the text are steered along it.
            u = torch.rand(h.shape[-1], generator=self.draws)
            self.u = (u / u.norm()).to(h)
        return self.u

    @torch.no_grad()
    def measure(self, step: int, judging_batches: Sequence[Sequence[Batch]]) -> Mapping[str, float]:
        """Measure both texts' cross-entropy, and the target's share of the tokens to forget.

        step: its number, which is recorded; judging_batches: those of `forget` and those of
          `retain`. Returns "step", "forget" and "retain" in nats a token, and "share", where an
          expert is the target.
        """
        measures: dict[str, float] = {"step": step}
        for name, batches_of_text in zip(("forget", "retain"), judging_batches, strict=True):
            total = count = share = positions = 0.0
            for batch in batches_of_text:
                row, tokens = self.likelihood(batch)
                total, count = total - float(row.sum()), count + int(tokens.sum())
                if self.at is not None and name == "forget":
                    p = real_tokens(self.p, batch)[:, self.at[1]]
                    share, positions = share + float(p.sum()), positions + len(p)
            if name == "forget" and not count:
                fix = "Give rows of two tokens or more."
                raise DataError("text to forget", got="no token to predict", want="some", fix=fix)
            if batches_of_text:
                measures[name] = total / max(1.0, count)
            if positions:
                measures["share"] = share / positions
        return measures

    def _endless(self, rows: Sequence[Any], size: int) -> Any:
        """Yield batches of `size` of a text's rows without end, each time in a new order."""
        while True:
            order = torch.randperm(len(rows), generator=self.draws).tolist()
            for first in range(0, len(order), size):
                yield batch_of([rows[i] for i in order[first : first + size]], self.device)


def _check_texts(
    model: nn.Module, method: Seuf, forget: Sequence[Any], retain: Sequence[Any], attributed: bool
) -> list[StockExperts]:
    """Check the model and both texts; return the experts of each layer.

    method: the settings; forget, retain: token rows to unlearn and to keep; attributed: the texts
    choose the expert to train. Raises: TargetError for a model without stock experts; DataError for
    no rows, or shared ones.
    """
    check_unadapted(model)
    layers = list(stock_experts(model).values())
    if not layers:
        got = f"a {type(model).__name__} without stock experts"
        fix = "Use Mixtral, Qwen-MoE, OLMoE or another sparse model of transformers."
        raise TargetError("model to unlearn in", got=got, want="mixtures of experts", fix=fix)
    lift = attributed and method.by == "lift"
    remedies = ["loss='ga'"] * method.keeps + ["by='affinity'"] * lift
    for name, rows, required in (("forget", forget, True), ("retain", retain, bool(remedies))):
        if required and not len(rows):
            fix = "Give some rows" + (
                f", or {' and '.join(remedies)}." if name == "retain" else "."
            )
            raise DataError(f"text to {name}", got="no rows", want="some", fix=fix)
    # A row in both texts would be pulled in both directions.
    retained_rows = {_row_bytes(row) for row in retain}
    shared_rows = sum(_row_bytes(row) in retained_rows for row in forget)
    if shared_rows > OVERLAP * len(forget):
        got = f"{shared_rows} of {len(forget)} rows to forget that are also to be kept"
        fix = "Take them out of one of the two."
        raise DataError("texts", got=got, want=f"at most {OVERLAP:.0%}", fix=fix)
    return layers


def _row_bytes(row: Any) -> bytes:
    """Return the token ids of a row as bytes, by which equal rows are found."""
    # Rows are compared by their tokens, whatever their labels.
    ids = row if isinstance(row, Tensor) else pair(row)[0]["input_ids"]
    return torch.as_tensor(ids).long().cpu().numpy().tobytes()


def _checked_place(place: Any, layers: Sequence[StockExperts]) -> At:
    """Return the expert to unlearn in as two integers, (layer, expert).

    place: what the user passed; layers: the model's layers of experts. Raises: ConfigError for
    anything but a pair, or an expert that is not in the model.
    """
    if not (isinstance(place, tuple) and len(place) == 2):
        raise ConfigError(
            "at", got=repr(place), want="(layer, expert), or 'all'", fix="Try (3, 7)."
        )
    between("layer", place[0], 0, len(layers) - 1)
    between("expert", place[1], 0, layers[place[0]].experts - 1)
    return int(place[0]), int(place[1])


def _block_around(model: nn.Module, path: str) -> nn.Module:
    """Return the repeated block that contains the module at `path`."""
    blocks = blocks_of(model)
    inside = [b for b in blocks if any(m is model.get_submodule(path) for m in b.modules())]
    return inside[0]


def _describe_measures(measures: Mapping[str, float]) -> str:
    """Format the measures of a step as a line of progress."""
    words = [
        f"{name} {measures[name]:.3f}" for name in ("forget", "retain", "share") if name in measures
    ]
    return f"step {measures['step']:.0f}: {', '.join(words)}"


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
