"""A trained contender on the test part: scores, and what each of its layers does with it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from intarsia.core import Routing
from intarsia.core.modes import modes_kept
from intarsia.mixtures import Mixture, StackedExperts
from intarsia.mixtures.mixture import spread
from intarsia.routers import TopKRouter
from intarsia.routers.activation import ActivationRouter
from intarsia.routers.moe_x import MoeXRouter
from intarsia.train import evaluate

from . import measures
from .cost import mixtures
from .materials import Material

BATCH = 64
PROBED = 512  # rows of a batch on which every expert is tried


class SeenRouting:
    """The routings of one mixture on the test part, batch by batch."""

    def __init__(self, mixture: Mixture) -> None:
        """Start empty records of what one mixture does, batch by batch.

        first: first expert of each token; entropy: (tokens, mean gate entropy); load:
        tokens of each expert; ranks: correlations of router scores with counts of active
        units.
        """
        self.mixture = mixture
        self.first: list[Tensor] = []
        self.entropy: list[tuple[int, float]] = []
        self.load = torch.zeros(mixture.experts.experts, dtype=torch.int64)
        self.units: list[tuple[int, int]] = []  # (pairs, hidden units that are not 0)
        self.ranks: list[float] = []

    def routed(self, x: Tensor, routing: Routing) -> None:
        """Record the routing of one batch.  x: (..., d)."""
        routing = spread(routing, x)
        self.first.append(measures.first_choice(routing).cpu())
        self.entropy.append((routing.tokens, measures.gate_entropy(routing)))
        self.load += routing.load().cpu()
        self._hidden(x.reshape(-1, x.shape[-1])[:PROBED], routing)

    def _hidden(self, rows: Tensor, routing: Routing) -> None:
        """Record experts' active ReLU units, and the router's rank correlation with them.

        rows: (n, d), inputs; routing: of a batch that begins with them.
        """
        experts = self.mixture.experts
        if not isinstance(experts, StackedExperts) or not isinstance(experts.act, nn.ReLU):
            return
        inward, bias = experts.up, experts.up_bias
        if experts.gate is not None:
            inward, bias = experts.gate, experts.gate_bias
        z = torch.einsum("ti,eoi->teo", rows, inward)
        active = ((z if bias is None else z + bias) > 0).sum(-1)  # (t, E)
        mine = routing.token < len(rows)
        pairs = active[routing.token[mine], routing.expert[mine]]
        self.units.append((len(pairs), int(pairs.sum())))
        scores = scores_of(self.mixture, rows)
        if scores is not None:
            self.ranks.append(measures.rank_correlation(scores, active))

    def told(self) -> dict[str, Any]:
        """Return figures of all recorded routings: loads, active experts, entropy and more."""
        tokens = sum(n for n, _ in self.entropy)
        pairs = int(self.load.sum())
        figures: dict[str, Any] = {
            "experts": len(self.load),
            "load": self.load.tolist(),
            "load_cv": measures.variation(self.load),
            "active": pairs / tokens,
            "gate_entropy": sum(n * e for n, e in self.entropy) / tokens,
        }
        if self.units:
            figures["hidden_units"] = sum(u for _, u in self.units) / sum(n for n, _ in self.units)
        if self.ranks:
            figures["score_to_units"] = sum(self.ranks) / len(self.ranks)
        return figures


def scores_of(mixture: Mixture, rows: Tensor) -> Tensor | None:
    """Return a router's scores of experts for each row, (N, E), if they depend on the row alone."""
    router: Any = mixture.router
    by_row = isinstance(router, TopKRouter | ActivationRouter | MoeXRouter)
    return router.logits(rows) if by_row else None


@contextmanager
def seeing(model: nn.Module) -> Iterator[dict[str, SeenRouting]]:
    """Record every routing of the model while the context is open."""
    seen_routings = {path: SeenRouting(m) for path, m in mixtures(model).items()}
    with ExitStack() as stack:
        for path, mixture in mixtures(model).items():
            recorder = seen_routings[path]

            def hook(_: Any, args: Any, routing: Routing, recorder: SeenRouting = recorder) -> None:
                recorder.routed(args[0], routing)

            stack.callback(mixture.router.register_forward_hook(hook).remove)
        yield seen_routings


@torch.no_grad()
def observed(model: nn.Module, material: Material, batch: int) -> dict[str, Any]:
    """Return a trained model's scores on the test part and figures of its routings, for JSON.

    batch: rows or pictures of a training step, in which a capacity drops.
    """
    places: list[Tensor] = []

    def by_place(_: Any, args: Any, out: Any) -> None:
        ids, logits = args[0], out.logits.float()
        loss = F.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")
        places.append(loss.double().sum(0))

    with seeing(model) as recorders, ExitStack() as stack:
        if material.text:
            stack.callback(model.register_forward_hook(by_place).remove)
        scores: Any = evaluate(model, material.test, batch_size=BATCH)
    report: dict[str, Any] = {"loss": scores.loss, "accuracy": scores.accuracy}
    if material.text:
        report |= _of_text(model, material, torch.stack(places).sum(0), scores.loss)
    layers = [{"path": path, **s.told()} for path, s in recorders.items()]
    firsts = [torch.cat(s.first) for s in recorders.values()]
    for layer, first, drops in zip(layers, firsts, dropped(model, material, batch), strict=True):
        layer |= drops | _specialised(first, layer["experts"], material)
    report["layers"] = layers
    report["agreement"] = [
        _both(measures.contingency(a, b, this_layer["experts"] + 1, next_layer["experts"] + 1))
        for a, b, this_layer, next_layer in zip(
            firsts, firsts[1:], layers, layers[1:], strict=False
        )
    ]
    return report


def _of_text(model: nn.Module, material: Material, by_place: Tensor, loss: float) -> dict[str, Any]:
    """Compute what only text has: bits per byte, loss by position, and loss with swapped tokens.

    by_place: summed loss of each position in a row; loss: mean of a token, in nats.
    """
    assert material.sizes is not None
    rows = material.test.tensors[0]
    bytes_each = float(material.sizes[rows[:, 1:]].double().mean())
    swapped: Any = evaluate(model, material.swapped, batch_size=BATCH)
    return {
        "bits_per_byte": loss / math.log(2) / bytes_each,
        "loss_by_position": measures.by_quarter(by_place / len(rows)),
        "swapped_loss": swapped.loss,
    }


def _both(table: Tensor) -> dict[str, float]:
    """Return the mutual information of a table of counts, in nats and normalised."""
    return {
        "information": measures.mutual_information(table),
        "normalised": measures.normalised_information(table),
    }


def _specialised(first: Tensor, experts: int, material: Material) -> dict[str, Any]:
    """Count the tokens of each class by their first expert, (experts + 1, classes).

    first: (N,), the expert of largest weight, `experts` = none.
    """
    x, y = material.test.tensors
    classes = material.kinds[x].flatten() if material.kinds is not None else None
    if classes is None:
        classes = y.repeat_interleave(len(first) // len(y))
    table = measures.contingency(first, classes, experts + 1, len(material.classes))
    return {"table": table.tolist(), "specialisation": _both(table)}


def dropped(
    model: nn.Module, material: Material, batch: int, batches: int = 16
) -> list[dict[str, Any]]:
    """Return the share of pairs that a training forward drops, by quarter of the row and the batch.

    batch: rows of a forward; batches: number of forwards.
    """
    layers = [mixture for mixture in mixtures(model).values()]
    lost: list[list[Tensor]] = [[] for _ in layers]
    x = material.test.tensors[0]
    with modes_kept(model), torch.no_grad():
        model.train()
        for part in x.split(batch)[:batches]:
            model(part)
            for mixture, mine in zip(layers, lost, strict=True):
                mine.append(_lost(mixture, len(part)))
    return [
        {
            "dropped": float(torch.cat(mine).mean()),
            "dropped_by_position": measures.by_quarter(torch.cat(mine).mean(0)),
            "dropped_by_place": measures.by_quarter(_mean([m.flatten() for m in mine])),
        }
        for mine in lost
    ]


def _mean(parts: list[Tensor]) -> Tensor:
    """Place by place, over the parts as long as the first."""
    return torch.stack([p for p in parts if len(p) == len(parts[0])]).mean(0)


def _lost(mixture: Mixture, rows: int) -> Tensor:
    """Return the share of each token's pairs that the newest training forward dropped.

    -> (rows, T).
    """
    requested: Routing | None = getattr(mixture.router, "last", None)
    if requested is None:  # a random router keeps nothing, and drops nothing
        return torch.zeros(rows, 4, dtype=torch.float64)
    served = requested if mixture.taken is None else mixture.taken
    return measures.dropped(requested, served).view(rows, -1)
