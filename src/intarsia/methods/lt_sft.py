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
from ..core.errors import ConfigError
from ..core.schema import check, setting
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

    `intarsia.fit_in_phases` carries it out. On a plain model all parameters that are maskable can
    change; on one from `adapt(model, LtSft())` the weights of the layers that have a cell, which
    phase B makes sparse. Optimiser, decay and moments of phase B know the K entries only.

    Raises: ConfigError on a setting that cannot be, or K above the number of weights.
    Source: paper, section 3; released code for the rewind of the head and the pull.
    Not for one adapter that is never combined: LoRA costs one training, not two.
    """

    density: float = setting(
        0.02,
        "The number K of entries, as a share of the weights to choose from.",
        least=0,
        most=1,
        fix="Try 0.02.",
    )
    count: int | None = setting(
        None, "The number K itself, instead of the density; None = by the density.", least=0
    )
    iterations: int = setting(
        1,
        "The number J of times that both phases are done, each choosing K / J weights more.",
        least=1,
    )
    first: float = setting(
        1.0, "The epochs of phase A, as a share of phase B's.", above=0, fix="Try 0.3 or 1."
    )
    pull: float = setting(
        0.0,
        "The coefficient lambda of an L1 pull to theta_0, lambda / N sum |theta - theta_0|, "
        "once in every step of both phases.",
        least=0,
    )
    support: str = setting(
        "drift",
        'The choice of the entries: "drift" (the paper), or a baseline without phase A, '
        '"random" or "magnitude".',
        choices=SUPPORTS,
    )
    maskable: tuple[str, ...] = setting(
        ("*",), "The names or globs of parameters to choose from in a plain model; norms never are."
    )
    head: str = setting(
        "whole",
        'The head of a plain model: "whole", trained in both phases and kept as it is then; '
        '"frozen", as for a delta of a language, which goes with any task\'s head: parameters '
        "behind the trunk, as the head of a language model, are not chosen from.",
        choices=HEADS,
    )

    position = "parallel"

    def __post_init__(self) -> None:
        check(self)
        object.__setattr__(self, "maskable", tuple(self.maskable))

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles of layers that get a cell."""
        return ("qkv", "projection", "mlp_linear")

    def build(self, site: Site, *, generator: torch.Generator) -> SparseCell:
        """Build the adapter of phase A, in which every entry of the layer's weight may change."""
        return Sparse(density=1.0).build(site, generator=generator)

    def phases(self, model: nn.Module, *, seed: int = 0) -> Phases:
        """Yield both phases of training, `iterations` times; return phi, the sparse change.

        model: a plain one, or one from `adapt(model, LtSft())`; the caller trains it in each
          yielded phase. seed: of the random support, where the settings want one.
        Raises: ConfigError in a run of several processes.
        """
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            subject = "LT-SFT"
            fix = "Start it without a launcher: gradients are gathered in one process only."
            raise ConfigError(
                subject, got=f"{dist.get_world_size()} processes", want="one", fix=fix
            )
        generator = torch.Generator().manual_seed(seed)
        if is_adapted(model):
            return self._adapted_phases(model, generator)
        return self._plain_phases(model, generator)

    def shares(self, total: int) -> list[int]:
        """Return how many weights each iteration selects, K in all.

        total: the number of weights to choose from. Raises: ConfigError if K is larger.
        """
        count = round(self.density * total) if self.count is None else self.count
        if count > total:
            want = f"at most the {total} weights to choose from"
            fix = "Lower it, or let more parameters be chosen: `maskable`, or more `targets`."
            raise ConfigError("count", got=count, want=want, fix=fix)
        # Differences of rounded limits, so that the iterations add up to K exactly.
        ends = [j * count // self.iterations for j in range(self.iterations + 1)]
        return [b - a for a, b in zip(ends, ends[1:], strict=False)]

    def _select_more(
        self,
        selected: Partition,
        share: int,
        scores: Mapping[str, Tensor],
        generator: torch.Generator,
    ) -> Partition:
        """Return the selection with `share` more weights, those with the largest scores."""
        if self.support == "random":
            scores = {
                n: torch.rand(label.shape, generator=generator)
                for n, label in selected.label.items()
            }
        # Scores are at least 0, so that -1 puts weights that are selected already last.
        candidates = {
            n: score.detach().abs().masked_fill(selected[n].to(score.device) == 0, -1)
            for n, score in scores.items()
        }
        # The union keeps earlier entries: a selection only grows.
        return union(selected, keep_top(candidates, share))

    def _plain_phases(self, model: nn.Module, generator: torch.Generator) -> Phases:
        """Yield the phases of a plain model, which change its own weights; return phi."""
        # theta_0 of all weights that may change; the head is trained but not selected from.
        weights, heads = weights_of(model, self.maskable, trunk=self.head == "frozen")
        if self.head == "frozen":
            heads = {}
        total = sum(p.numel() for p in weights.values())
        shares = self.shares(total)
        start = {n: p.detach().clone() for n, p in weights.items()}
        # Nothing is selected before the first iteration.
        selected = Partition({n: unowned(p.shape) for n, p in weights.items()}, 1)
        with handed_back(model) as train:
            for j, share in enumerate(shares, start=1):
                head_start = {p: p.detach().clone() for p in heads.values()}
                learned = {
                    n: weights[n].detach().flatten()[i] for n, i in entries(selected).items()
                }
                scores: Mapping[str, Tensor] = start
                if self.support == "drift":
                    # Phase A: train everything, starting where the last iteration ended.
                    train((*weights.values(), *heads.values()))
                    towards = {p: start[n] for n, p in weights.items()}
                    pulled_optimizer = partial(pull, towards=towards, weight=self.pull)
                    yield Phase("all", self.first, optimizer=pulled_optimizer)
                    scores = {n: p.detach() - start[n].to(p.device) for n, p in weights.items()}
                # K / J more entries join the ones from earlier iterations.
                grown = self._select_more(selected, share, scores, generator)
                with torch.no_grad():
                    for n, i in entries(selected).items():
                        # Rewind to theta_0, but not what earlier iterations have learned.
                        weights[n].copy_(start[n])
                        weights[n].view(-1)[i.to(weights[n].device)] = learned[n].to(
                            weights[n].device
                        )
                    for p, value in head_start.items():
                        p.copy_(value)
                selected = grown
                # Phase B: the selected entries alone, as vectors of an optimiser of their own.
                index = {n: i for n, i in entries(selected).items() if len(i)}
                train((*(weights[n] for n in index), *heads.values()))
                with Entries({weights[n]: i for n, i in index.items()}).training() as vectors:
                    optimizer = partial(self._optimizer_of_entries, vectors, weights, start, total)
                    yield Phase("chosen", last=j == self.iterations, optimizer=optimizer)
        # phi = theta - theta_0 at the selected entries; a head is stored whole.
        return SparseDelta.between(model, start, heads=heads)

    def _optimizer_of_entries(
        self,
        trained: Entries,
        weights: Mapping[str, nn.Parameter],
        start: Mapping[str, Tensor],
        weight_count: int,
        make: Make,
    ) -> Make:
        """Return a function that makes an optimiser, which pulls entries to where they started."""
        # Selected entries of theta_0, in the order of the trained vectors.
        towards = {
            trained.vectors[p]: start[n].flatten()[trained.index[p].to(start[n].device)]
            for n, p in weights.items()
            if p in trained.vectors
        }
        return pull(trained.optimizer(make), towards, self.pull, weight_count)

    def _adapted_phases(self, model: PeftModel, generator: torch.Generator) -> Phases:
        """Yield the phases of training for a model with its change phi in adapters; return phi."""
        name = ticket_of(model)
        parameters = own_parameters(model)
        weights = {p: parameters[f"{p}.weight"] for p in cells_of(model, name)}
        total = sum(w.numel() for w in weights.values())
        shares = self.shares(total)
        selected = Partition({p: unowned(w.numel()) for p, w in weights.items()}, 1)
        optimizer = partial(self._optimizer_of_cells, model, name, total)
        for j, share in enumerate(shares, start=1):
            cells = cells_of(model, name)
            # Trained parameters outside the cells are the head's, which is rewound after phase A.
            cell_values = {id(cell.values) for cell in cells.values()}
            heads = [q for q in model.parameters() if q.requires_grad and id(q) not in cell_values]
            head_start = [q.detach().clone() for q in heads]
            learned = {p: cell.delta().detach().flatten().clone() for p, cell in cells.items()}
            scores = {p: w.detach().flatten() for p, w in weights.items()}
            if self.support == "drift":
                # Phase A: cells with every entry, which start from what earlier iterations learned.
                put_entries(
                    model, name, {p: dense_entries(change) for p, change in learned.items()}
                )
                yield Phase("all", self.first, optimizer=optimizer)
                scores = {p: cell.delta().flatten() for p, cell in cells_of(model, name).items()}
            selected = self._select_more(selected, share, scores, generator)
            places = {p: i.to(learned[p].device) for p, i in entries(selected).items()}
            # Phase B: cells with the selected entries alone, rewound to before phase A.
            put_entries(model, name, {p: (i, learned[p][i]) for p, i in places.items()})
            with torch.no_grad():
                for q, value in zip(heads, head_start, strict=True):
                    q.copy_(value)
            yield Phase("chosen", last=j == self.iterations, optimizer=optimizer)
        return delta_of(model, name)

    def _optimizer_of_cells(
        self, model: PeftModel, name: str, weight_count: int, make: Make
    ) -> Make:
        """Return a function that makes an optimiser which pulls an adapter's changes to zero."""
        vectors = [cell.values for cell in cells_of(model, name).values()]
        # Cells hold phi itself, so that theta_0 is zero here. The penalty is a mean over all
        # weights. make: f(model, lr, weight_decay) makes the optimiser without the pull.
        towards = {vector: torch.zeros_like(vector) for vector in vectors}
        return pull(make, towards, self.pull, weight_count)


def unowned(shape: torch.Size | int) -> Tensor:
    """Return labels of weights that no part owns.  -> shape, int8, all -1."""
    return torch.full((shape,) if isinstance(shape, int) else shape, -1, dtype=torch.int8)


def dense_entries(change: Tensor) -> tuple[Tensor, Tensor]:
    """Return a dense change as sparse entries: every position, and its value."""
    return torch.arange(change.numel(), device=change.device), change


def ticket_of(model: PeftModel) -> str:
    """Return the name of a model's active adapter, which must be one of LT-SFT.

    Raises: ConfigError if several adapters are active, or another method's.
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
