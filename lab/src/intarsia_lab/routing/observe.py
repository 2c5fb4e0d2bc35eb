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
        """Begin without any record of a mixture's routings.

        mixture: the layer that is observed. Records, batch by batch: first: the first expert of
          each token; entropy: (tokens, mean gate entropy); load: tokens of each expert; units:
          (pairs, active hidden units); ranks: correlations of router scores with counts of active
          units.
        """
        self.mixture = mixture
        self.first: list[Tensor] = []
        self.entropy: list[tuple[int, float]] = []
        self.load = torch.zeros(mixture.experts.experts, dtype=torch.int64)
        self.units: list[tuple[int, int]] = []  # (pairs, hidden units that are not 0)
        self.ranks: list[float] = []

    def routed(self, x: Tensor, routing: Routing) -> None:
        """Record the routing of one batch.

        x: (..., d), inputs of the mixture; routing: of the batch.
        """
        # a routing of samples becomes one of tokens
        routing = spread(routing, x)
        self.first.append(measures.first_choice(routing).cpu())
        self.entropy.append((routing.tokens, measures.gate_entropy(routing)))
        self.load += routing.load().cpu()
        self._hidden(x.reshape(-1, x.shape[-1])[:PROBED], routing)

    def _hidden(self, rows: Tensor, routing: Routing) -> None:
        """Record the experts' active hidden units, and how the router's scores correlate with them.

        rows: (n, d), inputs of the first tokens.
        """
        experts = self.mixture.experts
        if not isinstance(experts, StackedExperts) or not isinstance(experts.act, nn.ReLU):
            return
        inward, bias = experts.up, experts.up_bias
        if experts.gate is not None:
            inward, bias = experts.gate, experts.gate_bias
        # pre-activations of all experts, (t, E, o)
        z = torch.einsum("ti,eoi->teo", rows, inward)
        active = ((z if bias is None else z + bias) > 0).sum(-1)  # (t, E)
        # the pairs of these tokens
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
        # only experts with ReLU have units that are exactly 0
        if self.units:
            figures["hidden_units"] = sum(u for _, u in self.units) / sum(n for n, _ in self.units)
        if self.ranks:
            figures["score_to_units"] = sum(self.ranks) / len(self.ranks)
        return figures


def scores_of(mixture: Mixture, rows: Tensor) -> Tensor | None:
    """Return a router's scores of all experts for each row, (N, E), or None.

    None: the router's scores do not depend on the row alone. rows: (N, d), inputs of the mixture.
    """
    router: Any = mixture.router
    by_row = isinstance(router, TopKRouter | ActivationRouter | MoeXRouter)
    return router.logits(rows) if by_row else None


@contextmanager
def seeing(model: nn.Module) -> Iterator[dict[str, SeenRouting]]:
    """Record every routing of a model inside the context; yield path -> record."""
    seen_routings = {path: SeenRouting(m) for path, m in mixtures(model).items()}
    with ExitStack() as stack:
        for path, mixture in mixtures(model).items():
            # bound as a default below: a closure would see the last one
            recorder = seen_routings[path]

            def hook(_: Any, args: Any, routing: Routing, recorder: SeenRouting = recorder) -> None:
                recorder.routed(args[0], routing)

            stack.callback(mixture.router.register_forward_hook(hook).remove)
        yield seen_routings


@torch.no_grad()
def observed(model: nn.Module, material: Material, batch: int) -> dict[str, Any]:
    """Return a trained model's scores on the test part and figures of its routings, for JSON.

    material: the data; batch: rows or pictures of a training step, in which a capacity drops
      tokens.
    """
    places: list[Tensor] = []

    def by_place(_: Any, args: Any, out: Any) -> None:
        """Record the loss of each position in a row; a hook after the model's forward."""
        ids, logits = args[0], out.logits.float()
        # the token after each position
        loss = F.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")
        # summed over the rows of the batch, one number for each position
        places.append(loss.double().sum(0))

    with seeing(model) as recorders, ExitStack() as stack:
        if material.text:
            stack.callback(model.register_forward_hook(by_place).remove)
        scores: Any = evaluate(model, material.test, batch_size=BATCH)
    report: dict[str, Any] = {"loss": scores.loss, "accuracy": scores.accuracy}
    if material.text:
        report |= _of_text(model, material, torch.stack(places).sum(0), scores.loss)
    # each mixture's figures, with dropped tokens and who has which class
    layers = [{"path": path, **s.told()} for path, s in recorders.items()]
    # (tokens,) for each layer, in the same order of tokens
    firsts = [torch.cat(s.first) for s in recorders.values()]
    for layer, first, drops in zip(layers, firsts, dropped(model, material, batch), strict=True):
        layer |= drops | _specialised(first, layer["experts"], material)
    report["layers"] = layers
    # between each layer and the next: how much one choice says of the other
    report["agreement"] = [
        _information(
            measures.contingency(a, b, this_layer["experts"] + 1, next_layer["experts"] + 1)
        )
        for a, b, this_layer, next_layer in zip(
            firsts, firsts[1:], layers, layers[1:], strict=False
        )
    ]
    return report


def _of_text(model: nn.Module, material: Material, by_place: Tensor, loss: float) -> dict[str, Any]:
    """Return what only text has: bits per byte, loss by position, and loss with swapped tokens."""
    assert material.sizes is not None
    rows = material.test.tensors[0]
    # bytes of a predicted token, mean over the test part
    bytes_each = float(material.sizes[rows[:, 1:]].double().mean())
    swapped: Any = evaluate(model, material.swapped, batch_size=BATCH)
    return {
        "bits_per_byte": loss / math.log(2) / bytes_each,
        "loss_by_position": measures.by_quarter(by_place / len(rows)),
        "swapped_loss": swapped.loss,
    }


def _information(table: Tensor) -> dict[str, float]:
    """Return the mutual information of a table of counts, in nats and normalised."""
    return {
        "information": measures.mutual_information(table),
        "normalised": measures.normalised_information(table),
    }


def _specialised(first: Tensor, experts: int, material: Material) -> dict[str, Any]:
    """Count the tokens of each class by their first expert, and how much one says of the other.

    first: (N,), the expert of largest weight, `experts` = none.
    """
    x, y = material.test.tensors
    classes = material.kinds[x].flatten() if material.kinds is not None else None
    if classes is None:
        # all patches of a picture have its class
        classes = y.repeat_interleave(len(first) // len(y))
    table = measures.contingency(first, classes, experts + 1, len(material.classes))
    return {"table": table.tolist(), "specialisation": _information(table)}


def dropped(
    model: nn.Module, material: Material, batch: int, batches: int = 16
) -> list[dict[str, Any]]:
    """Return, for each mixture, the share of pairs that training forwards drop.

    Also by quarter of the row and of the batch. batch: rows of a forward; batches: number of
    forwards.
    """
    layers = [mixture for mixture in mixtures(model).values()]
    lost: list[list[Tensor]] = [[] for _ in layers]
    x = material.test.tensors[0]
    with modes_kept(model), torch.no_grad():
        # only training drops tokens
        model.train()
        for part in x.split(batch)[:batches]:
            model(part)
            for mixture, mine in zip(layers, lost, strict=True):
                # (rows, T) of each batch
                mine.append(_dropped_share(mixture, len(part)))
    return [
        {
            "dropped": float(torch.cat(mine).mean()),
            # mean over rows, then quarters of the row
            "dropped_by_position": measures.by_quarter(torch.cat(mine).mean(0)),
            # rows one after another: quarters of the batch
            "dropped_by_place": measures.by_quarter(_mean_of_equal([m.flatten() for m in mine])),
        }
        for mine in lost
    ]


def _mean_of_equal(parts: list[Tensor]) -> Tensor:
    """Return the mean of some vectors, position by position."""
    return torch.stack([p for p in parts if len(p) == len(parts[0])]).mean(0)


def _dropped_share(mixture: Mixture, rows: int) -> Tensor:
    """Return the share of each token's pairs that the newest forward dropped, (rows, T)."""
    requested: Routing | None = getattr(mixture.router, "last", None)
    if requested is None:  # a random router keeps nothing, and drops nothing
        return torch.zeros(rows, 4, dtype=torch.float64)
    # the mixture keeps its routing only where a capacity changed it
    served = requested if mixture.taken is None else mixture.taken
    return measures.dropped(requested, served).view(rows, -1)
