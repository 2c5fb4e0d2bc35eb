"""A run of unlearning: the trained weights, the losses of a step, and its measures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.errors import DataError, TrainingError
from ...data.token_batches import Batch, batch_of, batches, first_rows, real_tokens
from ...hosts.anatomy.gates import probabilities
from ...hosts.tracing import stock_gate
from ...hosts.weight_parts import WeightParts
from ...mixtures.experts_function import StockExperts
from ...train.objectives import blocks_of

if TYPE_CHECKING:
    from .seuf import Seuf

CLIP = 1.0  # of the gradient's norm
JUDGED = 32  # rows by which the path is measured, of each text
Report = Callable[[str], None]
At = tuple[int, int]  # layer, expert


class UnlearningRun:
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
        """Select the trained weights, and the modules with outputs that the losses need."""
        self.model, self.method, self.at = model, method, at
        self.device = next(model.parameters()).device
        self.draws = torch.Generator().manual_seed(seed)
        self.p = self.h = torch.empty(0)
        self.hooks: list[Any] = []
        # all weights of the model
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
        """Make chosen weights trainable, and hook the modules with outputs the losses read."""
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

        judge: rows of both to measure on, None = the first ones of the same; until: stop once the
          loss on `forget` has risen by so much, None = never.
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
        and a term that holds the gate's probabilities p at expert e. retain: one of the text to
        keep, None = no such loss.
        """
        # Some losses compare with the model as it was; its outputs are computed first.
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
        """Compute l_forget, the loss that makes the model worse on the text to unlearn."""
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
        """Compute mean_t |p_t - onehot(e)|^2: how far the gate is from expert e (eq. 3)."""
        assert self.at is not None
        p = real_tokens(self.p, batch)  # (N, E)
        target = torch.zeros_like(p)
        # onehot(e), the same for every token.
        target[:, self.at[1]] = 1.0
        return (p - target).square().sum(1).mean()

    def keeping(self, batch: Batch, reference: Tensor | None) -> Tensor:
        """Compute l_retain, the loss that holds the outputs on a batch of the text to keep."""
        if self.method.loss == "rmu" and reference is not None:
            self.model(**batch[0])
            return (real_tokens(self.h, batch) - reference).square().mean()
        row_log_probability, tokens = self.likelihood(batch)
        return -row_log_probability.sum() / tokens.sum().clamp(min=1)

    def likelihood(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Compute log pi, (B,), the rows' log-probabilities, and how many labels they have."""
        inputs, labels = batch
        logits = self.model(**inputs).logits[:, :-1].float()
        target = labels[:, 1:]
        # Ignored labels (-100, the prompt or padding) have a loss of 0.
        token_losses = F.cross_entropy(
            logits.transpose(1, 2), target, reduction="none"
        )  # (B, T - 1)
        return -token_losses.sum(1), (target != -100).sum(1)

    def direction(self, h: Tensor) -> Tensor:
        """Return RMU's random unit vector u, (d,), the same in every step."""
        if self.u is None:
            # RMU draws u once; hidden states of the text are steered along it.
            u = torch.rand(h.shape[-1], generator=self.draws)
            self.u = (u / u.norm()).to(h)
        return self.u

    @torch.no_grad()
    def measure(self, step: int, judging_batches: Sequence[Sequence[Batch]]) -> Mapping[str, float]:
        """Measure both texts' cross-entropy, and the target's share of the tokens to forget.

        judging_batches: the batches of `forget`, then the batches of `retain`. Returns "step",
          "forget" and "retain" in nats a token, and "share", where an expert is the target.
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


def _block_around(model: nn.Module, path: str) -> nn.Module:
    """Return the repeated block that contains the module at `path`."""
    blocks = blocks_of(model)
    inside = [b for b in blocks if any(m is model.get_submodule(path) for m in b.modules())]
    return inside[0]


def _describe_measures(measures: Mapping[str, float]) -> str:
    words = [
        f"{name} {measures[name]:.3f}" for name in ("forget", "retain", "share") if name in measures
    ]
    return f"step {measures['step']:.0f}: {', '.join(words)}"
