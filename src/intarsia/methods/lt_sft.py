"""LT-SFT: train all, keep the weights that moved most, train those alone (arXiv:2110.07560)."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..adapters.sparse import Sparse, SparseCell
from ..core import Card, Method, Paper, Partition, Site, union
from ..core.checks import above, at_least, between, one_of
from ..core.errors import ConfigError
from ..hosts.anatomy.own_weights import handed_back, own_parameters, weights_of
from ..hosts.attach.peft import PeftModel, is_adapted
from ..hosts.delta.cells import cells_of, delta_of, put_entries
from ..hosts.delta.sparse_delta import SparseDelta
from ..partitions.topk import entries, keep_top
from ..schedules import Entries, Phase, pull
from ..schedules.phases import Make

SUPPORTS = ("drift", "random", "magnitude")
HEADS = ("whole", "frozen")
Phases = Generator[Phase, None, SparseDelta]


@dataclass(frozen=True)
class LtSft(Method):
    """Lottery-ticket sparse fine-tuning: theta = theta_0 + phi, with K entries in phi.

    Phase A trains everything; the K weights with the largest |theta_A - theta_0| are kept, over
    all tensors at once; all weights and the head are set back; phase B trains those K alone.

    density: K as a share of the weights to choose from; count: K itself, in place of the density.
    iterations: J, so many times both phases, each choosing K / J weights more.
    first: epochs of phase A as a share of phase B's.  pull: lambda of an L1 pull to theta_0,
      lambda / N sum |theta - theta_0|, once in every step of both phases.
    support: "drift" (the paper), or a baseline without phase A: "random", "magnitude".
    maskable: names or globs of parameters to choose from in a plain model; norms never are.
    head: of a plain model: "whole", trained in both phases and kept absolute; "frozen", as for a
      delta of a language, which goes with any task's head: what is behind the trunk, as the head of
      a language model, is not chosen from.

    `intarsia.fit_in_phases` carries it out. On a plain model all parameters that are maskable can
    change; on one from `adapt(model, LtSft())` the weights of the layers that have a cell, which
    phase B makes sparse. Optimiser, decay and moments of phase B know the K entries only.

    Raises: ConfigError on a setting that cannot be, or K above the number of weights.
    Source: paper, section 3; released code for the rewind of the head and the pull.
    Not for one adapter that is never combined: LoRA costs one training, not two.
    """

    density: float = 0.02
    count: int | None = None
    iterations: int = 1
    first: float = 1.0
    pull: float = 0.0
    support: str = "drift"
    maskable: tuple[str, ...] = ("*",)
    head: str = "whole"

    position = "parallel"

    def __post_init__(self) -> None:
        object.__setattr__(self, "maskable", tuple(self.maskable))
        between("density", self.density, 0, 1, "Try 0.02.")
        at_least("count", self.count or 0, 0)
        at_least("iterations", self.iterations, 1)
        at_least("pull", self.pull, 0)
        above("first", self.first, 0, "Try 0.3 or 1.")
        one_of("support", self.support, SUPPORTS)
        one_of("head", self.head, HEADS)

    @property
    def roles(self) -> tuple[str, ...]:
        return ("qkv", "projection", "mlp_linear")

    def build(self, site: Site, *, generator: torch.Generator) -> SparseCell:
        """The cell of phase A: every entry of the layer's weight may change."""
        return Sparse(density=1.0).build(site, generator=generator)

    def phases(self, model: nn.Module, *, seed: int = 0) -> Phases:
        """Both phases, as often as `iterations` says; returns phi. See `schedules.Phased`."""
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            what = "LT-SFT"
            fix = "Start it without a launcher: gradients are gathered in one process only."
            raise ConfigError(what, got=f"{dist.get_world_size()} processes", want="one", fix=fix)
        generator = torch.Generator().manual_seed(seed)
        if is_adapted(model):
            return self._beside(model, generator)
        return self._inside(model, generator)

    def shares(self, total: int) -> list[int]:
        """How many of `total` weights each iteration chooses; K in all.

        Raises: ConfigError if K is more than there are.
        """
        count = round(self.density * total) if self.count is None else self.count
        if count > total:
            want = f"at most the {total} weights to choose from"
            fix = "Lower it, or let more parameters be chosen: `maskable`, or more `targets`."
            raise ConfigError("count", got=count, want=want, fix=fix)
        ends = [j * count // self.iterations for j in range(self.iterations + 1)]
        return [b - a for a, b in zip(ends, ends[1:], strict=False)]

    def _more(
        self, taken: Partition, share: int, scores: Mapping[str, Tensor], draws: torch.Generator
    ) -> Partition:
        """What is taken so far and `share` more: drift and magnitude are at least 0, taken's -1."""
        if self.support == "random":
            scores = {
                n: torch.rand(label.shape, generator=draws) for n, label in taken.label.items()
            }
        free = {
            n: score.detach().abs().masked_fill(taken[n].to(score.device) == 0, -1)
            for n, score in scores.items()
        }
        return union(taken, keep_top(free, share))

    def _inside(self, model: nn.Module, draws: torch.Generator) -> Phases:
        """The phases of a plain model, in its own weights."""
        own, heads = weights_of(model, self.maskable, trunk=self.head == "frozen")
        if self.head == "frozen":
            heads = {}
        total = sum(p.numel() for p in own.values())
        shares = self.shares(total)
        start = {n: p.detach().clone() for n, p in own.items()}
        taken = Partition({n: nobody(p.shape) for n, p in own.items()}, 1)
        with handed_back(model) as train:
            for j, share in enumerate(shares, start=1):
                head = {p: p.detach().clone() for p in heads.values()}
                done = {n: own[n].detach().flatten()[i] for n, i in entries(taken).items()}
                scores: Mapping[str, Tensor] = start
                if self.support == "drift":
                    train((*own.values(), *heads.values()))
                    towards = {p: start[n] for n, p in own.items()}
                    pulled = partial(pull, towards=towards, weight=self.pull)
                    yield Phase("all", self.first, optimizer=pulled)
                    scores = {n: p.detach() - start[n].to(p.device) for n, p in own.items()}
                more = self._more(taken, share, scores, draws)
                with torch.no_grad():
                    for n, i in entries(taken).items():
                        own[n].copy_(start[n])
                        own[n].view(-1)[i.to(own[n].device)] = done[n].to(own[n].device)
                    for p, value in head.items():
                        p.copy_(value)
                taken = more
                index = {n: i for n, i in entries(taken).items() if len(i)}
                train((*(own[n] for n in index), *heads.values()))
                with Entries({own[n]: i for n, i in index.items()}).training() as chosen:
                    moved = partial(self._vectors, chosen, own, start, total)
                    yield Phase("chosen", last=j == self.iterations, optimizer=moved)
        return SparseDelta.between(model, start, heads=heads)

    def _vectors(
        self,
        chosen: Entries,
        own: Mapping[str, nn.Parameter],
        start: Mapping[str, Tensor],
        total: int,
        make: Make,
    ) -> Make:
        """Optimisers of the chosen entries, which are pulled to where they started."""
        towards = {
            chosen.vectors[p]: start[n].flatten()[chosen.index[p].to(start[n].device)]
            for n, p in own.items()
            if p in chosen.vectors
        }
        return pull(chosen.optimizer(make), towards, self.pull, total)

    def _beside(self, model: PeftModel, draws: torch.Generator) -> Phases:
        """The phases of an adapted model: its cells hold phi, and the heads are the adapter's."""
        name = ticket_of(model)
        own = own_parameters(model)
        weights = {p: own[f"{p}.weight"] for p in cells_of(model, name)}
        total = sum(w.numel() for w in weights.values())
        shares = self.shares(total)
        taken = Partition({p: nobody(w.numel()) for p, w in weights.items()}, 1)
        pulled = partial(self._pulled, model, name, total)
        for j, share in enumerate(shares, start=1):
            cells = cells_of(model, name)
            ours = {id(cell.values) for cell in cells.values()}
            heads = [q for q in model.parameters() if q.requires_grad and id(q) not in ours]
            head = [q.detach().clone() for q in heads]
            done = {p: cell.delta().detach().flatten().clone() for p, cell in cells.items()}
            scores = {p: w.detach().flatten() for p, w in weights.items()}
            if self.support == "drift":
                put_entries(model, name, {p: all_of(change) for p, change in done.items()})
                yield Phase("all", self.first, optimizer=pulled)
                scores = {p: cell.delta().flatten() for p, cell in cells_of(model, name).items()}
            taken = self._more(taken, share, scores, draws)
            places = {p: i.to(done[p].device) for p, i in entries(taken).items()}
            put_entries(model, name, {p: (i, done[p][i]) for p, i in places.items()})
            with torch.no_grad():
                for q, value in zip(heads, head, strict=True):
                    q.copy_(value)
            yield Phase("chosen", last=j == self.iterations, optimizer=pulled)
        return delta_of(model, name)

    def _pulled(self, model: PeftModel, name: str, total: int, make: Make) -> Make:
        """Optimisers that pull the cells' changes to zero."""
        vectors = [cell.values for cell in cells_of(model, name).values()]
        towards = {vector: torch.zeros_like(vector) for vector in vectors}
        return pull(make, towards, self.pull, total)


def nobody(shape: torch.Size | int) -> Tensor:
    """Labels of weights that nobody owns."""
    return torch.full((shape,) if isinstance(shape, int) else shape, -1, dtype=torch.int8)


def all_of(change: Tensor) -> tuple[Tensor, Tensor]:
    """Every place and its value."""
    return torch.arange(change.numel(), device=change.device), change


def ticket_of(model: PeftModel) -> str:
    """The active adapter, if its cells are those of LT-SFT.

    Raises: ConfigError if it is another method's.
    """
    names = list(model.active_adapters)
    method = model.peft_config[names[0]].method if len(names) == 1 else None  # pyright: ignore
    if method != CARD.key:
        got = f"active adapters {names}, of method {method!r}"
        want = "one active adapter, from adapt(model, LtSft())"
        fix = "Call model.set_adapter, adapt with LtSft(), or pass the plain model."
        raise ConfigError("LT-SFT of an adapted model", got=got, want=want, fix=fix)
    return names[0]


CARD = Card(
    "lt_sft",
    kind="adapter",
    config=LtSft,
    paper=Paper("2110.07560", 2021, "Composable Sparse Fine-Tuning for Cross-Lingual Transfer"),
    tags=frozenset({"linear", "folds", "zero_start"}),
    summary="The weights that move most in a full training, trained alone from where they began.",
    family="sparse deltas",
    names=("LT-SFT", "Lottery ticket sparse fine-tuning"),
)
