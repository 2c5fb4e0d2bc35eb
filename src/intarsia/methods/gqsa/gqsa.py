"""GQSA: groups of weights are pruned and the others stored in 4 bits (arXiv:2412.17560)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...core import Card, Paper
from ...core.change import Change, Plan
from ...core.checks import above, between, one_of
from ...core.errors import ConfigError
from ...core.registry import settings_to_dict
from ...core.seeds import mix
from ...formats import GroupSparse
from ...hosts.anatomy.blocks import base_of
from ...hosts.prune.matrices import Matrix
from ...hosts.prune.progress import Kept
from ...hosts.prune.pruner import Keeping, output_error, stops_of
from ...hosts.prune.rows import check_rows, digest_of
from ...hosts.prune.walk import Stop, rowwise, walk_blocks
from ...hosts.swap.compress import Compress, matrices_of, packing
from ...scores import Statistics
from .coded import CodedGroups, by_compensation, by_rounding
from .stages import Tuning, frozen_copy, language_rows, tuned_block, tuned_scales

STARTS = ("obs", "rtn")
PARTS = ("raw", "scale", "zero", "kept")  # of `CodedGroups`
NOWHERE = Keeping()


@dataclass(frozen=True)
class Gqsa(Change):
    """In each linear layer the groups of least effect go; the others are stored in a few bits.

    w = s (q - z) in the groups that are kept (eqs. 1, 2), 0 in the others, see
    `formats.GroupSparse`; density: the share of a layer's groups that is kept, rows may have
    different numbers.  bits, group: of a weight, and weights of a row that share a scale; 4 and 16
    have a kernel.  layers: see `Compress`.
    start: "obs", groups by sum w^2 / [U_jj]^2, and later columns make up for what is pruned and
    rounded, a minute for 135M parameters; "rtn", groups by sum w^2 x^2, each weight rounded by
    itself.
    tuning: steps and rates of both stages, or a mapping with some of them. BQPO: each block's
    weights, scales and zeros for the outputs it had; E2E-OQP: all scales for the loss of a causal
    language model, and of no other. A stage that does not help on these rows is left out;
    Tuning(blocks=0, model=0) has none. With rows of 256 tokens both take half an hour on one core
    for 135M parameters.
    symmetric: z is the middle code, as `pack-quantized` files have it.  activations: see
    `formats.GroupSparse`.

    The plan holds all that is stored; applied, the model has `Compress` done to it.
    Raises: ConfigError on settings that cannot be; DataError for too few rows; TargetError for a
    model with adapters or without linear layers in blocks.
    Source: paper, section 3; "obs" is ours. Small models break early: look at densities .75 and .9,
    and at int4 without pruning.
    """

    bits: int = 4
    group: int = 16
    density: float = 0.5
    layers: Sequence[str] = ()
    start: str = "obs"
    tuning: Tuning = Tuning()  # noqa: RUF009 - frozen
    symmetric: bool = False
    activations: str = "float"

    stores: ClassVar[str] = "all"
    rewires: ClassVar[bool] = True
    laws: ClassVar[frozenset[str]] = frozenset()
    walks: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))
        if isinstance(self.tuning, Mapping):  # out of a file
            object.__setattr__(self, "tuning", Tuning(**self.tuning))
        above("density", self.density, 0, "Try 0.5.")
        between("density", self.density, 0, 1, "Try 0.5.")
        one_of("start", self.start, STARTS)
        if not isinstance(self.tuning, Tuning):
            fix = "Use Tuning(blocks=300), or {'blocks': 300} in a file."
            raise ConfigError("tuning", got=repr(self.tuning), want="a Tuning", fix=fix)
        if self.start == "obs" and self.group not in (1, 2, 4, 8, 16, 32, 64, 128):
            fix = "Try 16 or 64, or start='rtn'."
            raise ConfigError("group", got=self.group, want="a power of 2 up to 128", fix=fix)
        _ = self.form  # it checks the rest

    @property
    def form(self) -> GroupSparse:
        """The format."""
        return GroupSparse(self.bits, self.group, self.activations)

    @property
    def needs(self) -> frozenset[str]:
        """Statistics that are read."""
        return frozenset({"hessian"} if self.start == "obs" else {"square"})

    def plan(
        self,
        host: nn.Module,
        batches: Iterable[Any] = (),
        *,
        seed: int = 0,
        keeping: Keeping = NOWHERE,
    ) -> Plan:
        """All stages, on a copy of the model; the host stays as it is.

        keeping: where finished blocks are written; the end-to-end stage starts anew.
        """
        rows = tuple(batches)
        stops = linear_stops(host, self.layers)
        check_rows(rows)
        decided = {"calibration": digest_of(rows), "batches": len(rows)}
        kept = keeping.of(self, host, seed, decided)
        self.tuning.warn_of_few()
        work = frozen_copy(base_of(host))
        found, told = self.coded(work, rows, seed, kept)
        shapes = {n: tuple(m.read().shape) for s in stops for n, m in s.layers.items()}
        stored = {path: c.stored() for path, c in found.items()}
        more = {
            "method": {"key": "gqsa", **settings_to_dict(self)},
            "calibration": decided["calibration"],
            "layers told": told,
        }
        change = Compress(self.form, self.layers)
        return packing(change, seed, {p: shapes[p] for p in found}, stored, more)

    def apply(self, host: nn.Module, plan: Plan, *, name: str = "default") -> nn.Module:
        """As `Compress`, which the plan is one of."""
        return plan.change.apply(host, plan, name=name)

    def coded(
        self, work: nn.Module, rows: Sequence[Any], seed: int = 0, kept: Kept | None = None
    ) -> tuple[dict[str, CodedGroups], list[dict[str, Any]]]:
        """The codes of every layer by path, and what is told of each; `work` is left rounded."""
        found: dict[str, CodedGroups] = {}
        dense: dict[str, Tensor] = {}
        stops = linear_stops(work, self.layers)
        rows, tuning = list(rowwise(rows)), self.tuning

        def edit(
            path: str, layers: Mapping[str, Matrix], seen: Mapping[str, Statistics]
        ) -> list[dict[str, Any]]:
            return [self._edit(n, m, seen.get(n), found, dense) for n, m in layers.items()]

        def tune(stop: Stop, flow: Any, number: int) -> None:
            some = {path: found[path] for path in stop.layers if path in found}
            if some and not stop.outside:
                old = {path: dense.pop(path) for path in some}
                draw = _draw(seed, number)
                found.update(tuned_block(stop, flow, number, old, some, tuning, draw))
                for path in some:
                    stop.layers[path].write(found[path].weight())

        kept = (Kept(None, {}) if kept is None else kept).with_beside(
            lambda stop: _beside(found, stop),
            lambda stop, more: found.update(self._taken(stop, more)),
        )
        each = tune if tuning.blocks else None
        told = walk_blocks(work, stops, rows, edit, needs=self.needs, kept=kept, tune=each)
        tokens = language_rows(work, rows) if tuning.model else []
        if tokens:
            layers = {n: m for stop in stops for n, m in stop.layers.items() if n in found}
            draw = _draw(seed, len(stops))
            found = tuned_scales(work, layers, found, tokens, tuning, draw)
            for path, coded in found.items():
                layers[path].write(coded.weight())
        return found, told

    def _taken(self, stop: Stop, more: Mapping[str, Tensor]) -> dict[str, CodedGroups]:
        """The codes of a block that was finished before, by path."""
        found: dict[str, CodedGroups] = {}
        for path, layer in stop.layers.items():
            if f"{path}/raw" in more:
                parts = (more[f"{path}/{part}"] for part in PARTS)
                found[path] = CodedGroups(self.form, layer.read().shape[1], *parts)
        return found

    def _edit(
        self,
        name: str,
        layer: Matrix,
        seen: Statistics | None,
        found: dict[str, CodedGroups],
        dense: dict[str, Tensor],
    ) -> dict[str, Any]:
        """Choose a layer's codes and write what they stand for."""
        weight = layer.read()
        row: dict[str, Any] = {"layer": name, "weights": weight.numel(), "density": 1.0}
        if seen is None or not seen.count:
            return row | {"told": "no calibration row reached it; it stays dense"}
        choose = by_compensation if self.start == "obs" else by_rounding
        coded = choose(weight, seen, self.form, self.density, self.symmetric)
        found[name], new = coded, coded.weight()
        if self.tuning.blocks:
            dense[name] = weight.detach().float().clone()
        layer.write(new)
        row["density"] = float(coded.kept.float().mean())
        if "hessian" in seen.collected:
            row["error"] = output_error(weight, new.to(weight), seen)
        if weight.shape[1] % self.group:
            row["told"] = f"{weight.shape[1]} inputs, padded to whole groups of {self.group}"
        return row


def _beside(found: Mapping[str, CodedGroups], stop: Stop) -> dict[str, Tensor]:
    """The codes of a block, to be written."""
    some = {path: found[path] for path in stop.layers if path in found}
    return {f"{path}/{part}": getattr(c, part) for path, c in some.items() for part in PARTS}


def _draw(seed: int, number: int) -> torch.Generator:
    """Of each block its own, so that a walk goes on as it would have."""
    return torch.Generator().manual_seed(mix(seed, number))


def linear_stops(host: nn.Module, layers: Sequence[str]) -> list[Stop]:
    """The blocks with their linear layers alone.  Raises: as `matrices_of`."""
    known = matrices_of(host, layers)
    return [
        replace(stop, layers={n: m for n, m in stop.layers.items() if n in known})
        for stop in stops_of(host, layers)
    ]


CARD = Card(
    "gqsa",
    kind="change",
    config=Gqsa,
    paper=Paper(
        "2412.17560",
        2024,
        "GQSA: Group Quantization and Sparsity for Accelerating Large Language Model Inference",
    ),
    summary="Groups of weights are pruned, the others stored in 4 bits and multiplied as such.",
    family="few bits",
    tags=frozenset({"compensates"}),
    tiny={"tuning": {"blocks": 4, "weights": 0.5, "model": 2}},
)
