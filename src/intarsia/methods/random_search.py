"""Random search for sparse architectures: the best of many node masks (arXiv:2403.08265)."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import Card, Paper
from ..core.change import Change, Plan
from ..core.checks import between
from ..core.errors import ConfigError, DataError, TargetError
from ..core.foreign import config_of
from ..core.modes import evaluating
from ..core.schema import check, setting
from ..core.seeds import mix
from ..sparse.swap.iso_flop import linear_mlps, of_tokens
from ..sparse.swap.upcycle import check_unadapted
from ..train.objectives import logits_of

Units = dict[str, Tensor]  # path of the layer that reads them -> those that stay, sorted


class Candidate(NamedTuple):
    """A random choice of hidden units, and its score: lower is better.

    units: for each hidden layer the numbers of the units that stay.
    """

    score: float
    units: Units


class HiddenLayer(NamedTuple):
    """A hidden layer: the linear maps that write its units, and the one that reads them."""

    writes: tuple[nn.Linear, ...]
    reads: nn.Linear


@dataclass(frozen=True)
class RandomSearch(Change):
    """Random search over hidden units: of `draws` random choices the one with the best score stays.

    Of each hidden layer round(density n) units stay, in an MLP of linear maps or in the MLPs of a
    transformer. Weights between two hidden layers fall to about density^2. Units are taken out of
    the model; its weights are otherwise as they were: train it then. With draws=1 it is a random
    choice, and needs no batch.

    model = apply(net, RandomSearch(density=0.1, draws=100), [(images, labels)]); fit(model, train)
    Raises: ConfigError for settings that cannot be, a layer without a unit left, or a score by
    gradients of a frozen model; DataError for batches without labels; TargetError for a model
    without hidden layers of linear maps.
    Not as a search: the selected ones learn no better than random ones, as the paper finds; use it
    as a baseline of other searches.
    Source: paper.
    """

    density: float = setting(
        0.5, "The share of each hidden layer's units that stays.", above=0, most=1, fix="Try 0.5."
    )
    draws: int = setting(100, "The number of random choices that are compared.", least=1)
    score: str = setting(
        "loss",
        'The score of the untrained smaller model on labelled batches, less is better: "loss", '
        'the mean cross-entropy (the paper); "snip", -sum |w dL/dw|, the sensitivity of the '
        'loss to its weights (arXiv:1810.02340); "epoch", the loss after one pass of Adam '
        "(1e-3) over the batches, a control that has learned.",
        choices=lambda: tuple(SCORES),
    )
    rank: int = setting(
        0,
        "The place of the choice that stays: 0 = the best, 1 = the next.",
        least=0,
        fix="0 is the best of the draws.",
    )

    stores: ClassVar[str] = "all"

    def __post_init__(self) -> None:
        """Check the settings, among them a rank among the draws.  Raises: ConfigError."""
        check(self)
        between("rank", self.rank, 0, self.draws - 1, "0 is the best of the draws.")

    @property
    def needs(self) -> frozenset[str]:
        """The labelled batches, if there is more than one draw to choose from."""
        return frozenset({"labels"} if self.draws > 1 else ())

    @property
    def preserves(self) -> frozenset[str]:
        """The properties that stay: all of them if every unit stays."""
        return frozenset(("outputs", "shape", "routing") if self.density == 1 else ())

    def plan(self, host: nn.Module, batches: Iterable[Any] = (), *, seed: int = 0) -> Plan:
        """Search, and return a plan with the units that stay and their score."""
        best = search(host, self, batches, seed=seed)[self.rank]
        units_by_layer = {path: units.tolist() for path, units in best.units.items()}
        # A single draw has no score, which is NaN; JSON has none.
        score = best.score if math.isfinite(best.score) else None
        return Plan(self, seed, {"kept": units_by_layer, "score": score})

    def apply(self, host: nn.Module, plan: Plan, *, name: str = "default") -> nn.Module:
        """Remove all hidden units but the planned ones from the model, in place, and return it."""
        cut(host, {path: torch.tensor(units) for path, units in plan.decided["kept"].items()})
        return host


def search(
    host: nn.Module, settings: RandomSearch, batches: Iterable[Any] = (), *, seed: int = 0
) -> list[Candidate]:
    """Score random choices of hidden units and return them sorted, the best first.

    host: the model, unchanged; settings: density, number of draws and score; batches: (inputs,
      labels), or a model's arguments by name with "labels"; seed: of the draws; the first draws are
      the same for every number of draws. Of equal scores the earlier draw comes first.
    Raises: DataError for batches without labels; ConfigError for a gradient score of a frozen
      model.
    """
    check_unadapted(host)
    layers, labelled = hidden_layers(host), list(batches)
    if settings.draws == 1:
        return [Candidate(math.nan, draw_units(layers, settings.density, mix(seed, 0)))]
    if not labelled or any(labels_of(batch) is None for batch in labelled):
        got = "none" if not labelled else "inputs alone"
        fix = "Pass [(images, labels), ...], or draws=1 for a random choice."
        raise DataError("batches of a search", got=got, want="some with labels", fix=fix)
    if settings.score != "loss" and not any(p.requires_grad for p in host.parameters()):
        got, want = "no parameter that is trained", "some"
        fix = "Use score='loss', or model.requires_grad_(True)."
        raise ConfigError(f"score {settings.score!r}", got=got, want=want, fix=fix)
    # Each draw has a seed of its own, so that draw i does not depend on how many there are.
    score, candidates = SCORES[settings.score], list[Candidate]()
    with evaluating(host):
        for i in range(settings.draws):
            units_by_layer = draw_units(layers, settings.density, mix(seed, i))
            candidates.append(Candidate(score(host, units_by_layer, labelled), units_by_layer))
    return sorted(candidates, key=lambda candidate: candidate.score)


def hidden_layers(host: nn.Module) -> dict[str, HiddenLayer]:
    """Find the hidden layers of a model: a key is the path of the linear map that reads the units.

    host: a row of linear maps, or a transformer.
    Raises: TargetError for a model that has none, or other layers among them.
    """
    # A transformer's hidden units are in its MLPs; a plain net's lie between its linear maps.
    paths = {id(m): path for path, m in host.named_modules()}
    if of_tokens(host):
        return {paths[id(w)]: HiddenLayer(tuple(r), w) for r, w in linear_mlps(host)}
    layers: list[Any] = [m for m in host.modules() if list(m.parameters(recurse=False))]
    plain = all(type(m) is nn.Linear for m in layers)
    pairs = list(zip(layers, layers[1:], strict=False))
    if not pairs or not plain or any(a.out_features != b.in_features for a, b in pairs):
        got = f"{type(host).__name__} of {sorted({type(m).__name__ for m in layers})}"
        want, fix = "linear maps in a row, or a transformer", "Prune it: see intarsia.sparsify."
        raise TargetError("hidden layers", got=got, want=want, fix=fix)
    return {paths[id(b)]: HiddenLayer((a,), b) for a, b in pairs}


def draw_units(layers: Mapping[str, HiddenLayer], density: float, seed: int) -> Units:
    """Draw which round(density n) of a hidden layer's n units stay; return their sorted numbers.

    density: share of the units that stay.
    Raises: ConfigError if a layer gets none.
    """
    generator, units_by_layer = torch.Generator().manual_seed(seed), Units()
    for path, layer in layers.items():
        units = layer.reads.in_features
        if not (count := round(density * units)):
            got, want = f"{density} of {units} units before {path!r}", "at least one unit"
            raise ConfigError("density", got=got, want=want, fix=f"Set it above {0.5 / units:.2g}.")
        # Sorted, so that the order of the units stays.
        units_by_layer[path] = torch.randperm(units, generator=generator)[:count].sort().values
    return units_by_layer


@contextmanager
def units_masked(host: nn.Module, units_by_layer: Units) -> Iterator[None]:
    """Make all units but the chosen ones count as 0, while the context is open.

    units_by_layer: path of the layer that reads the units -> numbers of the units that stay. The
      outputs are the model's without the other units.
    """
    handles: list[Any] = []
    try:
        for path, units in units_by_layer.items():
            reads: Any = host.get_submodule(path)
            mask = torch.zeros_like(reads.weight[0]).index_fill(0, units.to(reads.weight.device), 1)
            # The layer that reads the units sees zeros; the units are computed as before.
            hook = partial(_mask_inputs, mask)
            handles.append(reads.register_forward_pre_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _mask_inputs(mask: Tensor, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Multiply a layer's first input by a mask; a forward pre-hook."""
    return (inputs[0] * mask, *inputs[1:])


@torch.no_grad()
def cut(host: nn.Module, units_by_layer: Units) -> None:
    """Remove all hidden units but the chosen ones from a model's weights, in place."""
    config: Any = config_of(host)
    for path, layer in hidden_layers(host).items():
        units = units_by_layer[path].to(layer.reads.weight.device)
        # The layers that write the units lose rows, the one that reads them loses columns.
        for writes in layer.writes:
            writes.weight = nn.Parameter(writes.weight[units], writes.weight.requires_grad)
            if writes.bias is not None:
                writes.bias = nn.Parameter(writes.bias[units], writes.bias.requires_grad)
            writes.out_features = len(units)
        reads = layer.reads
        reads.weight = nn.Parameter(reads.weight[:, units], reads.weight.requires_grad)
        reads.in_features = len(units)
    # transformers builds the model from this number when it is loaded again.
    if hasattr(config, "intermediate_size") and len({len(u) for u in units_by_layer.values()}) == 1:
        config.intermediate_size = len(next(iter(units_by_layer.values())))


def labels_of(batch: Any) -> Tensor | None:
    """Return the labels of a batch, None if it has none."""
    if isinstance(batch, Mapping):
        return batch.get("labels")
    return batch[1] if isinstance(batch, (tuple, list)) and len(batch) == 2 else None


def loss_of(model: nn.Module, batch: Any) -> Tensor:
    """Compute the mean cross-entropy of a batch; for a language model, of each next token.

    batch: (inputs, labels), or the model's arguments by name with "labels".
    """
    named = isinstance(batch, Mapping)
    x = {n: v for n, v in batch.items() if n != "labels"} if named else batch[0]
    logits, labels = logits_of(model, x).float(), labels_of(batch)
    assert labels is not None
    # (B, T, V): position t predicts token t + 1.
    if logits.dim() == 3:
        logits, labels = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    return F.cross_entropy(logits, labels)


@torch.no_grad()
def _masked_loss(host: nn.Module, units_by_layer: Units, batches: Sequence[Any]) -> float:
    with units_masked(host, units_by_layer):
        return _mean_loss(host, batches)


def _mean_loss(model: nn.Module, batches: Sequence[Any]) -> float:
    """Compute the mean loss over labelled batches, weighted by their sizes."""
    counts = [len(labels) for b in batches if (labels := labels_of(b)) is not None]
    losses = [float(loss_of(model, b)) * n for b, n in zip(batches, counts, strict=True)]
    return sum(losses) / sum(counts)


def _masked_sensitivity(host: nn.Module, units_by_layer: Units, batches: Sequence[Any]) -> float:
    """Score a choice of units by -sum |w dL/dw| over all weights w (SNIP), L the loss with them."""
    # Biases are left out: SNIP scores connections.
    weights = [p for p in host.parameters() if p.requires_grad and p.dim() > 1]
    with units_masked(host, units_by_layer), torch.enable_grad():
        total = sum((loss_of(host, batch) for batch in batches), torch.zeros(()))
        gradients = torch.autograd.grad(total / len(batches), weights, allow_unused=True)
    pairs = zip(weights, gradients, strict=True)
    return -sum(float((w.detach() * g).abs().sum()) for w, g in pairs if g is not None)


def _loss_after_epoch(host: nn.Module, units_by_layer: Units, batches: Sequence[Any]) -> float:
    """Compute the loss of a smaller copy of the model after one pass of Adam over the batches."""
    model = copy.deepcopy(host)
    # The copy is smaller, so that training it is cheaper than training with a mask.
    cut(model, units_by_layer)
    optimizer = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr=1e-3)
    with torch.enable_grad():
        for batch in batches:
            optimizer.zero_grad()
            loss_of(model, batch).backward()
            optimizer.step()
    with torch.no_grad():
        return _mean_loss(model, batches)


SCORES = {"loss": _masked_loss, "snip": _masked_sensitivity, "epoch": _loss_after_epoch}

CARD = Card(
    "random_search",
    kind="change",
    config=RandomSearch,
    paper=Paper(
        "2403.08265",
        2024,
        "Random Search as a Baseline for Sparse Neural Network Architecture Search",
    ),
    summary="The best of many random choices of hidden units, by a score before training.",
    family="sparse training",
    names=("Random search",),
    tiny={"draws": 3},
)
