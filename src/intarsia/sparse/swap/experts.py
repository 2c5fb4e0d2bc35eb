"""More or fewer experts in a whole model: two models merged, the least used experts pruned."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from ...core import Card, Paper
from ...core.change import Change, Plan
from ...core.checks import one_of
from ...core.errors import ConfigError, TargetError
from ...core.modes import evaluating
from ...core.schema import setting
from ...gating import learned_routers
from ...gating.load import counting
from ...hosts.anatomy.compare import call
from ...mixtures.mixture import Mixture
from ...mixtures.zcode_m3 import check_prune, merged, mixtures_in, prune
from .modality_loads import modality_loads
from .upcycle import MixturePlaces, Upcycle, check_unadapted, generator, move_places, upcycle_step

RANDOM = "random"
ALIKE = ("how", "capacity", "residual", "act")  # routers are compared layer by layer


@dataclass(frozen=True)
class MergeMixtures(Change):
    """Change that puts the experts of another trained copy of the model next to its own.

    See `merge_mixtures`.

    Not for trainings of two models: both must begin as copies of one.
    """

    other: nn.Module | None = setting(
        None, "The other trained copy of the model; None = none, which `apply` refuses."
    )

    # instead, the recorded `Upcycle` gets other numbers of experts
    recorded: ClassVar[bool] = False
    laws: ClassVar[frozenset[str]] = frozenset()

    def apply(self, host: nn.Module, plan: Plan, *, name: str = "default") -> nn.Module:
        """Return a new model with the experts of both; host and `other` stay as they are."""
        if self.other is None:
            raise ConfigError(
                "other", got="no model", want="a second upcycled one", fix="MergeMixtures(model)."
            )
        return merge_mixtures(host, self.other)


@dataclass(frozen=True)
class PruneExperts(Change):
    """Change that keeps only some experts of each mixture, by default those with the most tokens.

    Unless the choice is at random, `plan` wants a few batches. See `prune_experts`.

    Not where rare inputs matter most: by tokens, their experts go first.
    """

    keep: int | Sequence[int] | Mapping[str, Sequence[int]] = setting(
        1,
        "The experts that stay: their number, in all layers or in each layer; or their numbers "
        "by the path of the MLP.",
    )
    at_random: bool = setting(False, "Choose by the seed and the path instead of by tokens.")

    # instead, the recorded `Upcycle` gets smaller numbers of experts
    recorded: ClassVar[bool] = False
    laws: ClassVar[frozenset[str]] = frozenset()

    def plan(self, host: nn.Module, batches: Iterable[Any] = (), *, seed: int = 0) -> Plan:
        """Decide which experts stay, by their tokens or `at_random`: path -> numbers."""
        done, _ = upcycled(host)
        if isinstance(self.keep, Mapping):
            return Plan(self, seed, {"keep": _named_experts(self.keep, done)})
        scores = RANDOM if self.at_random else expert_loads(host, batches)
        return Plan(self, seed, {"keep": _best_experts(self.keep, scores, done, seed)})

    def apply(self, host: nn.Module, plan: Plan, *, name: str = "default") -> nn.Module:
        return prune_experts(host, plan.decided["keep"])


def merge_mixtures(a: nn.Module, b: nn.Module) -> nn.Module:
    """Merge two upcycled models: the experts of both, layer by layer, and the mean of the rest.

    a, b: two trainings of one dense model; both stay as they are. Each mixture of the new model has
    the experts and gate rows of a, then b's; every other weight is (w_a + w_b) / 2. The new
    model has what both learned, and is to be trained on. Where gate weights are probabilities
    (`Switch`), there are more experts to share them, so that outputs of experts are smaller at
    first. Save it with `save_mixture`.

    Raises: TargetError for models that are not upcycled, or carry adapters; ConfigError for models
    that were upcycled differently, and for routers with experts that cannot come or go; ShapeError
    for other sizes.
    Source: arXiv:2109.10465 (Z-code M3), aggregation of experts.
    """
    (places_a, settings_a), (places_b, settings_b) = upcycled(a), upcycled(b)
    for subject, value_a, value_b in (
        ("kind", type(a).__name__, type(b).__name__),
        ("layers", places_a.paths, places_b.paths),
        *((name, getattr(settings_a, name), getattr(settings_b, name)) for name in ALIKE),
    ):
        if value_a != value_b:
            got, fix = f"{value_b} after {value_a}", "Merge two trainings of one upcycled model."
            raise ConfigError(
                f"{subject} of the models to merge", got=got, want="the same", fix=fix
            )
    for path in places_a.paths:
        mixture_at(a, path)
    # the number of experts is part of the recorded step, so that the folder opens again
    new = merged(a, b)
    counts = tuple(m + n for m, n in zip(places_a.experts, places_b.experts, strict=True))
    move_places(new, replace(places_a, experts=counts))
    return new


@torch.no_grad()
def expert_loads(
    model: nn.Module, batches: Iterable[Any], by: str | None = None
) -> dict[str, Tensor]:
    """Count the tokens that each expert gets in evaluation, before any capacity.

    model: with learned routers; left as it is. batches: each a tensor, a mapping of keywords, or
    (x, y): the model gets x; or one tensor or mapping, a single batch. Padding, by
    `attention_mask`, does not count.
    by: "modality", for a model that sees or hears: one row of counts for each modality, see
    `modality_loads`.
    Returns path of each learned router -> (E,) int64.
    Raises: ConfigError for no batch, a model without learned routers, or one that does not count,
    as a compiled one.
    """
    if by is not None:
        one_of("by", by, ("modality",))
        return modality_loads(model, batches)
    batches = [batches] if isinstance(batches, Tensor | Mapping) else batches
    routers, passes = learned_routers(model), 0
    with evaluating(model), counting(model):
        for batch in batches:
            call(model, batch[0] if isinstance(batch, (tuple, list)) else batch)
            passes += 1
        loads = {path: router.received[0].long() for path, router in routers.items()}
    # routers inside another router are left out:
    # the gate of a permutation is asked for its scores, and routes nothing itself
    loads = {p: n for p, n in loads.items() if not any(p.startswith(f"{q}.") for q in loads)}
    if not (loads and passes):
        got = f"{passes} batches for {len(loads)} routers"
        fix = "Give a few batches of validation data, and a model with routers."
        raise ConfigError("loads", got=got, want="at least one of each", fix=fix)
    if empty := [path for path, load in loads.items() if not load.any()]:
        raise ConfigError(
            f"loads of {empty[0]!r}",
            got="no token for any expert",
            want="some",
            fix="Give batches that are not all padding, and the model as it was before "
            "torch.compile, whose graphs do not count.",
        )
    return loads


def prune_experts(
    model: nn.Module,
    keep: int | Sequence[int] | Mapping[str, Sequence[int]],
    by: Mapping[str, Tensor] | str | None = None,
    *,
    seed: int = 0,
) -> nn.Module:
    """Remove experts and their gate rows from an upcycled model, in place.

    keep: how many stay, in all layers or in each layer; or which, path of the MLP -> numbers.
    by: how they are chosen where `keep` is a number: the most tokens, by `expert_loads(model, val)`
    (the first of equals); or "random", by the seed and the path. Experts that stay keep their
    order, so that keeping all of them changes nothing.
    Parameters are new objects: create optimisers afterwards. Save the model with `save_mixture`.

    Raises: TargetError for a model that is not upcycled, or carries adapters; ConfigError for
    numbers and loads that do not fit, for routers with experts that cannot go, and for fewer
    experts than a token has. The model is then as it was.
    Source: arXiv:2109.10465 (Z-code M3).
    """
    places, _ = upcycled(model)
    mixtures = {path: mixture_at(model, path) for path in places.paths}
    numbers = (
        _named_experts(keep, places)
        if isinstance(keep, Mapping)
        else _best_experts(keep, by, places, seed)
    )
    for path, experts in numbers.items():
        # every layer is checked before the first one loses an expert
        check_prune(mixtures[path], experts, f"experts to keep of {path!r}")
    for path, experts in numbers.items():
        prune(mixtures[path], experts)
    counts = tuple(mixture.experts.experts for mixture in mixtures.values())
    move_places(model, replace(places, experts=counts))
    return model


def upcycled(model: nn.Module) -> tuple[MixturePlaces, Upcycle]:
    """Return the places of the mixtures in an upcycled model, and the settings of `upcycle`.

    Raises: TargetError for a model that was not upcycled, or that has adapters.
    """
    check_unadapted(model)
    step = upcycle_step(model)
    if step is None:
        raise TargetError(
            "model",
            got="one that was not upcycled",
            want="one with mixtures",
            fix="Call intarsia.upcycle(model); for a Mixture of your own use "
            "intarsia.mixtures.merged and prune.",
        )
    return MixturePlaces(**step.plan.decided), cast(Upcycle, step.plan.change)


def mixture_at(model: nn.Module, path: str) -> Mixture:
    """Return the mixture that replaced the MLP at a path.

    It may stand next to the MLP itself (`residual` of `upcycle`).
    Raises: TargetError for a sparse block of the host's own.
    """
    mixtures = list(mixtures_in(model.get_submodule(path)).values())
    if not mixtures:
        got = "a block with experts of the host's own"
        fix = "Only mixtures that upcycle has put in can change their number of experts."
        raise TargetError(f"{path!r}", got=got, want="intarsia's Mixture", fix=fix)
    return mixtures[0]


def _named_experts(
    keep: Mapping[str, Sequence[int]], places: MixturePlaces
) -> dict[str, list[int]]:
    if unknown := sorted(keep.keys() - set(places.paths)):
        got, fix = f"a layer {unknown[0]!r}", "Layers that are left out stay as they are."
        raise ConfigError("keep", got=got, want=f"paths among {list(places.paths)}", fix=fix)
    return {path: [int(i) for i in numbers] for path, numbers in keep.items()}


def _best_experts(
    keep: int | Sequence[int],
    scores: Mapping[str, Tensor] | str | None,
    places: MixturePlaces,
    seed: int,
) -> dict[str, list[int]]:
    """Choose the experts with the largest scores in each layer; path -> numbers, ascending."""
    # one number for all layers, or one for each
    counts = [keep] * len(places.paths) if isinstance(keep, int) else list(keep)
    if len(counts) != len(places.paths) or not all(
        1 <= m <= e for m, e in zip(counts, places.experts, strict=False)
    ):
        want = f"1 ... {list(places.experts)}, one number or one for each layer"
        fix = "Give as many experts as there are, or fewer."
        raise ConfigError("keep", got=keep, want=want, fix=fix)
    selection: dict[str, list[int]] = {}
    for path, count, m in zip(places.paths, places.experts, counts, strict=True):
        # a stable sort: of equal loads the first expert stays
        order = _scores(path, count, scores, seed).argsort(descending=True, stable=True)
        selection[path] = sorted(order[:m].tolist())
    return selection


def _scores(path: str, count: int, scores: Mapping[str, Tensor] | str | None, seed: int) -> Tensor:
    """Return one score for each expert of a layer: its load, or a random number."""
    if scores == RANDOM:
        return torch.rand(count, generator=generator(seed, path))
    key = None
    if isinstance(scores, Mapping):
        # if the MLP was kept next to it, the mixture is one module further inside
        inside = (f"{path}.router", f"{path}.mixture.router")
        key = next((name for name in inside if name in scores), None)
    if key is None or len(scores[key]) != count:  # pyright: ignore
        got = "none for this layer" if key is None else f"{len(scores[key])} numbers"  # pyright: ignore
        subject = f"loads of {path!r}"
        fix = (
            "Pass by=intarsia.experts.expert_loads(model, batches) of this very model, or 'random'."
        )
        raise ConfigError(subject, got=got, want=f"a number for each of {count} experts", fix=fix)
    return torch.as_tensor(scores[key])  # pyright: ignore


_PAPER = Paper(
    "2109.10465", 2021, "Scalable and Efficient MoE Training for Multitask Multilingual Models"
)

CARDS = (
    Card(
        "merge_mixtures",
        kind="change",
        config=MergeMixtures,
        paper=_PAPER,
        summary="The experts of two trained models in one, the mean of their other weights.",
        family="experts",
        names=("aggregation of experts",),
        exceptions=dict.fromkeys(
            (
                "takes_a_host",
                "plans_without_a_trace",
                "leaves_no_trace_of_an_error",
                "preserves_what_it_says",
                "comes_back_from_its_folder",
                "folds_or_refuses",
            ),
            "it needs a second model, which is no setting that a file could hold",
        ),
    ),
    Card(
        "prune_experts",
        kind="change",
        config=PruneExperts,
        paper=_PAPER,
        tiny={"keep": 2},
        summary="The least used experts go, and their rows of the gate.",
        family="experts",
        names=("expert pruning",),
    ),
)
