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
from ..gating import Router, start, with_experts
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

    experts: E; factor: c while training, an expert takes max(ceil(c T / E), least) of the T tokens,
    drawn at random among those that choose it; evaluation: c in evaluation, without random drops;
    least: see factor; jitter: epsilon of the factors U(1 - epsilon, 1 + epsilon) on the gate's
    input while training; balance: coefficient of E sum_e mean(p_e) mean(chosen_e).

    Raises: ConfigError on a setting that cannot be.
    Source: arXiv:2109.10465, and released code, which drops at random in evaluation, too. In a
    decoder a later token may then take an earlier one's place.
    """

    experts: int = 64
    factor: float = 1.0
    evaluation: float = 2.0
    least: int = 4
    jitter: float = 0.01
    balance: float = 0.01

    def __post_init__(self) -> None:
        _ = self.router, self.capacity  # each checks its settings

    @property
    def router(self) -> TopK:
        return TopK(self.experts, 1, "prob", jitter=self.jitter, balance=self.balance)

    @property
    def capacity(self) -> Capacity:
        return Capacity(self.factor, "random", self.least, self.evaluation)

    def build(self, width: int, hidden: int, *, generator: torch.Generator) -> Mixture:
        """A mixture of MLPs width -> hidden -> width."""
        experts = StackedExperts(self.experts, width, hidden, bias=True, generator=generator)
        router = self.router.build(width, generator=generator)
        return Mixture(experts, router, capacity=self.capacity, generator=generator)


def mixtures_in(model: nn.Module) -> dict[str, Mixture]:
    """Every mixture of a model, or the model itself if it is one, by path."""
    return {path: m for path, m in model.named_modules() if isinstance(m, Mixture)}


@torch.no_grad()
def merged(a: nn.Module, b: nn.Module) -> nn.Module:
    """Aggregation of experts: a new module with the experts of both, all other weights averaged.

    Of each `Mixture` in a (or a itself) and the one at the same path in b: experts of a, then those
    of b; the rows of the gates likewise; (w_a + w_b) / 2 of every other weight. Capacity, mode and
    what is frozen are as in a. a and b are left as they are. Experts of b whose hash is one of a's
    get another one, and other tokens.
    Where weights are probabilities over all experts, they are smaller at first, half as large if a
    and b are equal: the merged model is a start to train on from.

    Raises: ConfigError for routers whose experts cannot come (a hash and every gate with a row for
    each expert can), of different settings, and for no mixture at all; ShapeError for weights that
    do not fit.
    Source: arXiv:2109.10465, aggregation of experts.
    """
    ours, theirs = mixtures_in(a), mixtures_in(b)
    if not ours or ours.keys() != theirs.keys():
        got, want = f"{len(ours)} and {len(theirs)}", "at least one, and the same places in both"
        raise ConfigError("mixtures to merge", got=got, want=want, fix=SAME)
    for path, mine in ours.items():
        _check_alike(path, mine, theirs[path])
    apart, those = dict(_averaged(a)), dict(_averaged(b, twice=True))
    shapes = {name: tuple(t.shape) for name, t in apart.items()}
    other = {name: tuple(t.shape) for name, t in those.items() if name in apart}
    if shapes != other or dict(_averaged(a, twice=True)).keys() != those.keys():
        raise _unlike("weights", shapes, other)
    for name, mine in apart.items():
        if not mine.is_floating_point() and not torch.equal(mine, those[name].to(mine.device)):
            want = "the same, as these have no mean"
            fix = "Merge models of one seed, trained for as many steps."
            raise ConfigError(f"{name!r}", got="other whole numbers in each", want=want, fix=fix)
    new = copy.deepcopy(a)
    for name, mine in _averaged(new):
        if mine.is_floating_point():
            mine.lerp_(those[name].to(mine), 0.5)
    for path, mine in mixtures_in(new).items():
        _take_in(mine, theirs[path])
    return new


def prune(mixture: Mixture, kept: Sequence[int]) -> None:
    """Keep these experts of a mixture and their rows of the gate, in this order, in place.

    Parameters are new ones: make optimisers afterwards. All of them in their order change nothing.

    Raises: ConfigError for a router whose experts cannot go, numbers that are none of its experts,
    or fewer than it chooses for a token. The mixture is then as it was.
    """
    check_prune(mixture, kept)
    rows = torch.tensor(list(kept), device=next(mixture.parameters()).device)
    mixture.experts.keep(rows)
    _set_rows(mixture, {name: t[rows] for name, t in _rows(mixture).items()})


def check_prune(mixture: Mixture, kept: Sequence[int], where: str = "experts to keep") -> None:
    """Raises: as `prune` does."""
    count = mixture.experts.experts
    if not kept or len(set(kept)) < len(kept) or not set(kept) <= set(range(count)):
        want = f"some of 0 ... {count - 1}, each once"
        raise ConfigError(where, got=list(kept), want=want, fix="Count experts from 0.")
    _rows(mixture)
    with_experts(_settings(mixture), len(kept))


def _settings(mixture: Mixture) -> Any:
    return vars(mixture.router).get("config")


def _rows(mixture: Mixture) -> dict[str, Tensor]:
    """What the router has a row of for each expert, by name.

    Raises: ConfigError for a router whose experts cannot come or go.
    """
    router = mixture.router
    if not isinstance(router, Router) or router.by_expert is None or _settings(mixture) is None:
        got = f"a {type(router).__name__}, built for its number of experts"
        want, fix = "one with a row of weights for each expert", "Use one, such as TopK or Hash."
        raise ConfigError("router", got=got, want=want, fix=fix)
    return {n: t for n in router.by_expert if (t := getattr(router, n, None)) is not None}


@torch.no_grad()
def _set_rows(mixture: Mixture, rows: dict[str, Tensor]) -> None:
    """Give the router of a mixture as many experts as the mixture has now."""
    router: Any = mixture.router
    for name, value in rows.items():
        replace_rows(router, name, value)
    router.experts = mixture.experts.experts
    router.config = with_experts(router.config, router.experts)
    router.received, router.served = torch.zeros(2, router.experts, dtype=torch.float64), 0
    mixture.taken = None
    start(mixture)


def _take_in(mine: Mixture, theirs: Mixture) -> None:
    own, other = _rows(mine), _rows(theirs)
    if "salt" in own:  # of two experts with one hash, the second would never be chosen
        other["salt"] = _others(own["salt"], other["salt"])
    mine.experts.take_in(theirs.experts)
    _set_rows(mine, {n: torch.cat([t, other[n].to(t)]) for n, t in own.items()})


def _others(own: Tensor, salts: Tensor) -> Tensor:
    """Salts (E,) int64 on the CPU, those that are taken, by `own` or before, replaced by others."""
    taken, found = set(own.tolist()), list[Tensor]()
    for salt in salts.cpu():
        while int(salt) in taken:
            salt = mixed(salt + 1)
        taken.add(int(salt))
        found.append(salt)
    return torch.stack(found)


def _check_alike(path: str, mine: Mixture, theirs: Mixture) -> None:
    """Raises: ConfigError or ShapeError where experts or gates cannot stand beside each other."""
    whole = mine.experts.experts + theirs.experts.experts
    one, two = (
        (type(m.router), _widths(_rows(m)), with_experts(_settings(m), whole))
        for m in (mine, theirs)
    )
    if one[::2] != two[::2]:
        got = f"{_settings(mine)} and {_settings(theirs)}"
        want = "equal settings but for the number of experts"
        raise ConfigError(f"routers of {path!r}", got=got, want=want, fix=SAME)
    stacks = [_stack(m.experts) for m in (mine, theirs)]
    if one[1] != two[1] or stacks[0] != stacks[1]:
        raise _unlike(f"experts of {path!r}", (one[1], stacks[0]), (two[1], stacks[1]))


def _stack(experts: Experts) -> tuple[str, str, object]:
    """Kind, activation and shapes: what experts of one stack have in common."""
    own = dict(experts.named_parameters(recurse=False))
    act = repr(experts.act) if isinstance(experts, StackedExperts) else ""
    return type(experts).__name__, act, _widths(own)


def _widths(rows: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Shapes without the axis of the experts."""
    return {name: tuple(t.shape[1:]) for name, t in rows.items()}


def _averaged(model: nn.Module, twice: bool = False) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers but those of single experts; a shared one once, unless `twice`."""
    single: set[int] = set()
    for mixture in mixtures_in(model).values():
        experts = mixture.experts
        if isinstance(experts, ExpertList):
            single |= {id(t) for t in (*experts.each.parameters(), *experts.each.buffers())}
        single |= {id(t) for t in experts.parameters(recurse=False)}
        single |= {id(t) for t in _rows(mixture).values()}
    for name, t in (
        *model.named_parameters(remove_duplicate=not twice),
        *model.named_buffers(remove_duplicate=not twice),
    ):
        if id(t) not in single:
            yield name, t


def _unlike(what: str, one: object, two: object) -> ShapeError:
    return ShapeError(what, got=two, want=f"{one}, as in the first", fix=SAME)


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
