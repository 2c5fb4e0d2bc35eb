"""Z-code M3 (arXiv:2109.10465): full experts drop at random; merging and pruning.

Whole models: `intarsia.experts.merge_mixtures` and `intarsia.experts.prune_experts`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..core import Card, Paper
from ..core.errors import ConfigError, ShapeError
from ..core.schema import check, setting
from ..gating import Router, start, with_experts
from ..gating.settings import EXPERTS, JITTER
from ..routers import TopK
from ..routers.hash import mixed
from .capacity import Capacity
from .experts import ExpertList, Experts, StackedExperts, replace_rows
from .mixture import Mixture

SAME = "Merge two trainings of one model."


@dataclass(frozen=True)
class ZCodeM3:
    """The layer: top-1 experts by softmax(x W^T), weight p; full experts drop at random.

    `intarsia.upcycle(model, layer.router, capacity=layer.capacity)` puts it into a model.

    Raises: ConfigError on a setting that cannot be.
    Source: arXiv:2109.10465, and released code, which drops at random in evaluation, too. Not in
    decoders: there a later token may take an earlier one's place.
    """

    experts: int = setting(64, EXPERTS)
    factor: float = setting(
        1.0,
        "The capacity factor c in training, where an expert takes max(ceil(c T / E), least) of "
        "the T tokens, drawn at random among those that choose it.",
        above=0,
        fix="1 leaves room for uniform routing, E or more drops nothing.",
    )
    evaluation: float = setting(
        2.0,
        "The capacity factor in evaluation, without random drops.",
        above=0,
        fix="1 leaves room for uniform routing, E or more drops nothing.",
    )
    least: int = setting(
        4, "The tokens that an expert has room for at least.", least=1, fix="4 is DeepSpeed's."
    )
    jitter: float = setting(0.01, JITTER)
    balance: float = setting(
        0.01,
        "The coefficient of E sum_e mean(p_e) mean(chosen_e), the balance loss.",
        least=0,
        fix="Try 0.01.",
    )

    def __post_init__(self) -> None:
        check(self)

    @property
    def router(self) -> TopK:
        return TopK(self.experts, 1, "prob", jitter=self.jitter, balance=self.balance)

    @property
    def capacity(self) -> Capacity:
        return Capacity(self.factor, "random", self.least, self.evaluation)

    def build(self, width: int, hidden: int, *, generator: torch.Generator) -> Mixture:
        """Build a mixture of E MLPs width -> hidden -> width, with router and capacity.

        width, hidden: sizes of each MLP; generator: the source of first weights and of the random
          drops.
        """
        experts = StackedExperts(self.experts, width, hidden, bias=True, generator=generator)
        router = self.router.build(width, generator=generator)
        return Mixture(experts, router, capacity=self.capacity, generator=generator)


def mixtures_in(model: nn.Module) -> dict[str, Mixture]:
    """Return every mixture of a model by path; a model that is one has path ""."""
    return {path: m for path, m in model.named_modules() if isinstance(m, Mixture)}


@torch.no_grad()
def merged(a: nn.Module, b: nn.Module) -> nn.Module:
    """Merge two models into a new one with the experts of both and all other weights averaged.

    a, b: models of one architecture with mixtures, left as they are. For each `Mixture` in a (or a
      itself) and the one at the same path in b, the new one has the experts of a, then the experts
      of b, and the rows of both gates in the same order; every other weight is (w_a + w_b) / 2.
      Capacity, mode and frozen weights are as in a.
    A hash router picks experts by a number (salt) of each; where b has a salt of a, its expert gets
    a new one and therefore other tokens.
    Where weights are probabilities over all experts, they are smaller at first, half as large if a
    and b are equal: the merged model is a start to train on from.
    Raises: ConfigError for routers that cannot get more experts (those with a row of weights for
      each expert, and `Hash`, can), of different settings, and for no mixture at all; ShapeError
      for weights that do not fit.
    Source: arXiv:2109.10465, aggregation of experts.
    """
    ours, theirs = mixtures_in(a), mixtures_in(b)
    if not ours or ours.keys() != theirs.keys():
        got, want = f"{len(ours)} and {len(theirs)}", "at least one, and the same places in both"
        raise ConfigError("mixtures to merge", got=got, want=want, fix=SAME)
    # check everything before anything is built
    for path, mine in ours.items():
        _check_alike(path, mine, theirs[path])
    our_tensors, their_tensors = dict(_shared_tensors(a)), dict(_shared_tensors(b, all_names=True))
    shapes = {name: tuple(t.shape) for name, t in our_tensors.items()}
    their_shapes = {
        name: tuple(t.shape) for name, t in their_tensors.items() if name in our_tensors
    }
    if (
        shapes != their_shapes
        or dict(_shared_tensors(a, all_names=True)).keys() != their_tensors.keys()
    ):
        raise _shape_error("weights", shapes, their_shapes)
    # whole numbers, such as a counter, must agree; everything else is averaged
    for name, mine in our_tensors.items():
        their_tensor = their_tensors[name].to(mine.device)
        if not mine.is_floating_point() and not torch.equal(mine, their_tensor):
            want = "the same, as these have no mean"
            fix = "Merge models of one seed, trained for as many steps."
            raise ConfigError(f"{name!r}", got="other whole numbers in each", want=want, fix=fix)
    new = copy.deepcopy(a)
    for name, mine in _shared_tensors(new):
        if mine.is_floating_point():
            mine.lerp_(their_tensors[name].to(mine), 0.5)
    for path, mine in mixtures_in(new).items():
        _append(mine, theirs[path])
    return new


def prune(mixture: Mixture, experts: Sequence[int]) -> None:
    """Remove all but some experts of a mixture, with their rows of the gate, in place.

    experts: the numbers of those to keep, from 0, in their new order. Parameters are new ones: make
      optimisers afterwards. All of them in their order change nothing.
    Raises: ConfigError for a router that cannot lose experts, numbers that are none of its experts,
      or fewer than it chooses for a token. The mixture is then as it was.
    """
    check_prune(mixture, experts)
    rows = torch.tensor(list(experts), device=next(mixture.parameters()).device)
    # experts and gate rows in the same order
    mixture.experts.keep(rows)
    _set_rows(mixture, {name: t[rows] for name, t in _rows(mixture).items()})


def check_prune(mixture: Mixture, experts: Sequence[int], subject: str = "experts to keep") -> None:
    """Check that `prune` can keep these experts of a mixture.

    Raises: ConfigError for numbers that are none of its experts, too few of them, or a router that
    cannot lose experts.
    """
    count = mixture.experts.experts
    if not experts or len(set(experts)) < len(experts) or not set(experts) <= set(range(count)):
        want = f"some of 0 ... {count - 1}, each once"
        raise ConfigError(subject, got=list(experts), want=want, fix="Count experts from 0.")
    _rows(mixture)
    with_experts(_settings(mixture), len(experts))


def _settings(mixture: Mixture) -> Any:
    """Return the settings from which a mixture's router was built, None if it keeps none."""
    return vars(mixture.router).get("config")


def _rows(mixture: Mixture) -> dict[str, Tensor]:
    """Return a mixture's router tensors that have a row for each of E experts: name -> (E, ...)."""
    router = mixture.router
    if not isinstance(router, Router) or router.by_expert is None or _settings(mixture) is None:
        got = f"a {type(router).__name__}, built for its number of experts"
        want, fix = "one with a row of weights for each expert", "Use one, such as TopK or Hash."
        raise ConfigError("router", got=got, want=want, fix=fix)
    return {n: t for n in router.by_expert if (t := getattr(router, n, None)) is not None}


@torch.no_grad()
def _set_rows(mixture: Mixture, rows: dict[str, Tensor]) -> None:
    """Replace the tensors of a mixture's router, after the number of its experts has changed."""
    router: Any = mixture.router
    for name, value in rows.items():
        replace_rows(router, name, value)
    router.experts = mixture.experts.experts
    router.config = with_experts(router.config, router.experts)
    # the load counters are of the old experts
    router.received, router.served = torch.zeros(2, router.experts, dtype=torch.float64), 0
    mixture.taken = None
    start(mixture)


def _append(mine: Mixture, theirs: Mixture) -> None:
    """Append the experts of a second mixture, and its router's rows, to a first one, in place."""
    our_rows, their_rows = _rows(mine), _rows(theirs)
    if "salt" in our_rows:  # of two experts with one hash, the second would never be chosen
        their_rows["salt"] = _distinct(our_rows["salt"], their_rows["salt"])
    mine.experts.append(theirs.experts)
    _set_rows(mine, {n: torch.cat([t, their_rows[n].to(t)]) for n, t in our_rows.items()})


def _distinct(our_salts: Tensor, salts: Tensor) -> Tensor:
    """Return the salts of a second mixture, changed where one is in use already."""
    # a hash router sends a token to an expert by a hash with its salt
    # our_salts: (E1,) int64, the first mixture's; salts: (E2,) int64
    used, distinct = set(our_salts.tolist()), list[Tensor]()
    for salt in salts.cpu():
        # a hash that both models use would send all its tokens to the first of the two experts
        while int(salt) in used:
            salt = mixed(salt + 1)
        used.add(int(salt))
        distinct.append(salt)
    return torch.stack(distinct)


def _check_alike(path: str, mine: Mixture, theirs: Mixture) -> None:
    experts = mine.experts.experts + theirs.experts.experts
    # type of the router, widths of its rows, and its settings for all experts together
    our_side, their_side = (
        (type(m.router), _widths(_rows(m)), with_experts(_settings(m), experts))
        for m in (mine, theirs)
    )
    if our_side[::2] != their_side[::2]:
        got = f"{_settings(mine)} and {_settings(theirs)}"
        want = "equal settings but for the number of experts"
        raise ConfigError(f"routers of {path!r}", got=got, want=want, fix=SAME)
    stacks = [_stack(m.experts) for m in (mine, theirs)]
    if our_side[1] != their_side[1] or stacks[0] != stacks[1]:
        raise _shape_error(
            f"experts of {path!r}", (our_side[1], stacks[0]), (their_side[1], stacks[1])
        )


def _stack(experts: Experts) -> tuple[str, str, object]:
    """Return kind, activation and shapes of experts, which must agree to be stacked together."""
    parameters = dict(experts.named_parameters(recurse=False))
    act = repr(experts.act) if isinstance(experts, StackedExperts) else ""
    return type(experts).__name__, act, _widths(parameters)


def _widths(rows: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the shapes without the axis of the experts, by name."""
    return {name: tuple(t.shape[1:]) for name, t in rows.items()}


def _shared_tensors(model: nn.Module, all_names: bool = False) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, tensor) of a model's parameters and buffers that belong to no single expert."""
    # all_names: a tensor that modules share comes under each of its names, not only the first
    single: set[int] = set()
    for mixture in mixtures_in(model).values():
        experts = mixture.experts
        if isinstance(experts, ExpertList):
            single |= {id(t) for t in (*experts.each.parameters(), *experts.each.buffers())}
        single |= {id(t) for t in experts.parameters(recurse=False)}
        # a router's rows belong to their experts
        single |= {id(t) for t in _rows(mixture).values()}
    for name, t in (
        *model.named_parameters(remove_duplicate=not all_names),
        *model.named_buffers(remove_duplicate=not all_names),
    ):
        if id(t) not in single:
            yield name, t


def _shape_error(name: str, first: object, second: object) -> ShapeError:
    return ShapeError(name, got=second, want=f"{first}, as in the first", fix=SAME)


CARD = Card(
    "zcode_m3",
    kind="mixture",
    config=ZCodeM3,
    paper=Paper(
        "2109.10465", 2021, "Scalable and Efficient MoE Training for Multitask Multilingual Models"
    ),
    tiny={"experts": 4, "least": 8},
    summary="One expert a token; full experts drop at random; trained mixtures merge and shrink.",
    family="mixture layers",
    names=("Z-code M3", "Z-code"),
)
