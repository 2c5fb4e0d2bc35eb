"""Which methods go together with sparse weights, tried by trait: a part of the composition page."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW
from transformers import MixtralConfig, MixtralForCausalLM

from intarsia.catalog import cards
from intarsia.conformance.cards import tiny
from intarsia.conformance.changes import HOSTS, outputs, pictures, vit
from intarsia.conformance.made import moved, torch_seed
from intarsia.core import Card
from intarsia.core.errors import FoldError, IntarsiaError
from intarsia.folders.soups import soup
from intarsia.folders.verbs import adapt, apply
from intarsia.hosts.delta.cells import layers_of
from intarsia.hosts.folding.fold import fold
from intarsia.schedules import Masking, SparseSchedule
from intarsia.schedules.drop_and_grow import DropAndGrow
from intarsia.sparse.prune.matrices import seeing
from intarsia.sparse.prune.pruner import Pruner, sparsify, sparsify_report, stops_of
from intarsia.sparse.prune.pruners import Magnitude

from .trials import Trials

INTRO = """## Sparse weights

**An adapter on a sparse trunk**: half of each layer is pruned, the adapter trained. *stays*: the
trunk has its zeros. *fold*: a stock model with the same outputs and zeros; **refused** where the
adapter would fill them. *keep_zeros*: the fold that drops that part of the adapter. *soup*: two
adapted models trained from one start are averaged, `intarsia.soup([a, b])`: the average keeps the
zeros and loads. **of changes**: its change of the weights is the mean of theirs, too; **of
tensors**: the average of two factors, or of two mixtures, is not.
"""
INSIDE = """**Inside a mixture**: a schedule (the row) trains it for some steps; each expert has its
own density and zeros stay. A pruner (the row) prunes each expert by the tokens that are routed to
it; one without any stays dense, and so does the router. The weights load into a fresh mixture with
the same outputs.
"""
STEPS = 6
TRUNK = 0.5  # density


def trunk() -> nn.Module:
    """Return the small ViT with half of each layer's weights 0."""
    return apply(vit(), Magnitude(TRUNK))


def mixtral() -> nn.Module:
    """Return a mixture of transformers with one parameter for all experts."""
    sizes: Any = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4}
    with torch_seed(0):
        model = MixtralForCausalLM(MixtralConfig(vocab_size=64, **sizes)).eval()
    # a cache of keys would make the second forward another one
    model.config.use_cache = False
    return model


def tokens() -> Tensor:
    """Return 8 rows of 32 random token ids, the same ones each time."""
    return torch.randint(64, (8, 32), generator=torch.Generator().manual_seed(3))


MIXTURES: Mapping[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "upcycled ViT": (HOSTS[1], pictures),
    "Mixtral": (mixtral, tokens),
}


def zeros_of(model: nn.Module) -> dict[str, Tensor]:
    """Return masks of the zeros of pruned weights, by parameter name; True = zero.

    A weight counts as pruned if about half of it, or more, is zero.
    """
    zeros: dict[str, Tensor] = {}
    for name, weight in model.named_parameters():
        is_zero = weight.detach() == 0
        if weight.dim() > 1 and TRUNK - 0.1 < float(is_zero.float().mean()) < 1:
            zeros[name] = is_zero
    return zeros


def on_sparse_trunk(card: Card) -> list[str]:
    """Try an adapter on a model with half of its weights pruned; return its row of answers.

    card: the adapter's registered description. In turn: do pruned weights stay 0 in training; do
    they after a fold; after one with keep_zeros; what a mean of two such models is (see `_soup`).
    """
    model = adapt(trunk(), tiny(card), name="one", head=None)
    before = zeros_of(model)
    moved(model)
    after = zeros_of(model)
    stays = bool(before) and all(torch.equal(after[n], before[n]) for n in before)
    count = sum(int(zeros.sum()) for zeros in before.values())
    # by default a fold that would fill zeros is refused; keep_zeros drops what would fill them
    folds = [_folded(model, keep, count) for keep in (None, True)]
    return ["yes" if stays else "no", *folds, _soup(card)]


def _folded(model: Any, keep_zeros: bool | None, count: int) -> str:
    """Fold an adapter into a model's weights; return whether all pruned zeros survive, in a word.

    Returns "yes" or "no", "refused" if folding would fill zeros, "no fold" if it cannot fold at
    all.
    """
    try:
        stock = fold(model, keep_zeros=keep_zeros, report=lambda _: None)
    except FoldError as error:
        return "refused" if "fills zeros" in str(error) else "no fold"
    return "yes" if sum(int(w.sum()) for w in zeros_of(stock).values()) == count else "no"


def _soup(card: Card) -> str:
    """Average two adapted models that were trained from one start; return what the average is."""
    start: Any = adapt(trunk(), tiny(card), name="one", head=None)
    # one start and two trainings: models from two starts have no meaningful average
    first, second = (moved(copy.deepcopy(start), seed=seed) for seed in (2, 3))
    try:
        start.load_state_dict(soup([first.state_dict(), second.state_dict()]))
    except IntarsiaError:
        return "no"
    zeros, want = zeros_of(start), zeros_of(first)
    if not all(torch.equal(zeros[n], want[n]) for n in want):
        return "no"
    if not bool(torch.isfinite(outputs(start)).all()):
        return "no"
    return (
        "of changes" if "linear" in card.tags and _is_mean(start, first, second) else "of tensors"
    )


def _is_mean(mean: Any, first_model: Any, second_model: Any) -> bool:
    """Test that adapter "one" of a model is the mean of two others' adapters, in each layer."""
    layers, first, second = (layers_of(model, "one") for model in (mean, first_model, second_model))
    return all(
        torch.allclose(
            layer.delta("one"),
            (first[path].delta("one") + second[path].delta("one")) / 2,
            atol=1e-6,
        )
        for path, layer in layers.items()
    )


def _experts(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield name and matrix of every expert in a model's mixtures."""
    for stop in stops_of(model, ()):
        yield from ((n, m) for n, m in stop.layers.items() if m.index is not None)


def _loads(model: nn.Module, make: Callable[[], nn.Module], inputs: Tensor) -> bool:
    """Test that a fresh model with the state dict gives equal outputs."""
    again = make()
    again.load_state_dict(model.state_dict())
    with torch.no_grad():
        got, want = (getattr(y, "logits", y) for y in (again.eval()(inputs), model.eval()(inputs)))
    return torch.allclose(got, want, rtol=1e-4, atol=1e-5)


def trained_sparse(card: Card, mixture: str) -> str:
    """Train a mixture with a schedule of masks; return "yes" if each expert has its density.

    card: the schedule's registered description; mixture: key of MIXTURES. Weights outside of the
    masks must be 0, and the state must load into a fresh model; "no" otherwise.
    """
    make, inputs = MIXTURES[mixture]
    model, schedule = make(), tiny(card)
    # a schedule without a density of its own needs a pruned model
    if not hasattr(schedule, "density"):  # it keeps the zeros that it finds
        sparsify(model, Magnitude(TRUNK))
    masking = Masking(schedule, model.train(), 0)
    # weights that each expert's mask keeps at the start
    counts = {name: int(_mask_of(masking, name).sum()) for name, _ in _experts(model)}
    # an optimiser would move pruned weights by momentum: this one is masked
    optimizer = masking.masked.optimizer(
        lambda m, lr, decay: AdamW(m.parameters(), lr=lr, weight_decay=decay)
    )(model, 1e-3, 0.0)
    for step in range(STEPS):
        with masking.masked.training():
            masking.before(step, STEPS)
            output = model(inputs())
            getattr(output, "logits", output).square().mean().backward()
            # RigL's steps change masks by the gradient, instead of an optimiser step
            if masking.replaces(step, STEPS):
                masking.regrow(step, STEPS)
            else:
                optimizer.step()
            optimizer.zero_grad()
    # at the end: the density of each expert on its own, not of all together
    for name, layer in (experts := dict(_experts(model))).items():
        mask = _mask_of(masking, name)
        want = counts[name] if isinstance(schedule, DropAndGrow) else round(TRUNK * mask.numel())
        if int(mask.sum()) != want or layer.stored[~mask].any():
            return "no"
    return "yes" if experts and _loads(model, make, inputs()) else "no"


def _mask_of(masking: Masking, name: str) -> Tensor:
    """Return one expert's part of a mask."""
    stack, _, expert = name.rpartition(".")
    return masking.masked.kept[stack][int(expert)]


def pruned(card: Card, mixture: str) -> str:
    """Prune a mixture; return "yes" if each expert was pruned by the tokens that are routed to it.

    card: the pruner's registered description; mixture: key of MIXTURES. An expert without tokens
    must stay dense where the pruner needs inputs, and so must the router; "no" otherwise.
    """
    make, inputs = MIXTURES[mixture]
    model, method = make(), tiny(card)
    assert isinstance(method, Pruner)
    layers = dict(_experts(model))
    with seeing(layers, {"square"}) as statistics, torch.no_grad():
        model(inputs())
    # experts that had any token of the calibration inputs
    reached = {n for n, stats in statistics.found.items() if stats.count}
    done = sparsify_report(sparsify(model, method, [inputs()]))
    rows = {row["layer"]: row for row in done.table}
    for name in layers:
        dense = bool(method.needs) and name not in reached
        want = 1.0 if dense else method.density
        # 5 %: whole weights cannot meet a density exactly in a small layer
        if abs(rows[name]["density"] - want) > 0.05 or bool(rows[name].get("told")) != dense:
            return "no"
    routers = any("gate" in n.rpartition(".")[2] or "router" in n for n in rows)
    return "yes" if not routers and _loads(model, make, inputs()) else "no"


def trained_in_mixtures(card: Card) -> list[str]:
    """Return the answer of `trained_sparse` for each kind of mixture."""
    return [trained_sparse(card, mixture) for mixture in MIXTURES]


def pruned_in_mixtures(card: Card) -> list[str]:
    """Return the answer of `pruned` for each kind of mixture."""
    return [pruned(card, mixture) for mixture in MIXTURES]


def schedules() -> list[Card]:
    """Return the registered schedules of masks."""
    return [card for card in cards("schedule") if isinstance(tiny(card), SparseSchedule)]


def pruners() -> list[Card]:
    return [card for card in cards("change") if isinstance(tiny(card), Pruner)]


def parts(
    firsts: Sequence[Card], trials: Trials
) -> Iterator[str | tuple[list[str], dict[str, list[str]]]]:
    """Yield the page's section on sparse weights, as texts, and tables as (heads, rows).

    firsts: adapters to try, one for each trait; trials: the store of results.
    """

    def row(trial: Callable[[Card], list[str]], card: Card) -> list[str]:
        """Return a method's row of answers, stored or by running the trial now."""
        return trials(trial.__name__, card, run=partial(trial, card))

    yield INTRO
    yield ["stays", "fold", "keep_zeros", "soup"], {c.key: row(on_sparse_trunk, c) for c in firsts}
    yield INSIDE
    # schedules and pruners in one table: a row says which a method is by its name
    rows = {c.key: row(trained_in_mixtures, c) for c in schedules()}
    yield list(MIXTURES), rows | {c.key: row(pruned_in_mixtures, c) for c in pruners()}
