"""QMoE: experts of three levels a row, in less than one bit a weight (arXiv:2310.16795)."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..core import Card, Paper
from ..core.change import Change, Plan, set_steps, steps_of
from ..core.checks import above, one_of
from ..core.errors import CheckpointError, TargetError
from ..core.registry import settings_to_dict
from ..formats import Ternary
from ..formats.ternary import entropy, levels_of, nearest
from ..hosts.anatomy.blocks import base_of
from ..hosts.prune.matrices import Matrix
from ..hosts.prune.pruner import Keeping, output_error, stops_of
from ..hosts.prune.rows import check_rows, digest_of
from ..hosts.prune.walk import Stop, walk_blocks
from ..hosts.swap.packed_experts import PackedStack, packed, packed_experts, room, unpacked
from ..kernels.experts import stacked_matrices
from ..partitions.stacks import compensate_stack
from ..scores import Statistics

STARTS = ("gptq", "rtn")
NOWHERE = Keeping()
LAYOUT = 1  # of the stored tensors
FAR = 0.05  # share of zeros from that of the dictionary, at which another one is offered


@dataclass(frozen=True)
class Qmoe(Change):
    """Each expert's matrix has the levels min(w, 0), 0 and max(w, 0) of its rows, as words.

    Columns are rounded one after the other, all experts of a layer at once, and later ones make up
    for the error on the rows that are routed to the expert (GPTQ, section 3.2); an expert that no
    row reaches, or whose moments are singular, is rounded by itself. What is stored, see
    `formats.Ternary`: at 88.5 % zeros 0.76 bits a weight with all that belongs to it.
    layers: globs of paths of stacks, as "*.experts.up*", none = all: those of `intarsia.upcycle`
    and fused ones of transformers. Routers, attention and embeddings stay as they are.
    start: "gptq", or "rtn", each weight by itself.  damp: of the moments, a share of their mean
    diagonal.  zeros: for whose share the dictionary is made.

    Loaded with `intarsia.load`, experts stay mapped from the file: an expert's pages are read when
    it is first used.
    Raises: ConfigError on settings that cannot be; TargetError for a model without stacked experts,
    or with adapters; DataError for too few rows.
    Source: paper, sections 3 and 4. Moments are added up batch by batch, so that no expert's rows
    are kept, and none are cut at four times the mean, as the paper does to bound them. Made for
    thousands of experts: a few small ones lose much.
    """

    layers: Sequence[str] = ()
    start: str = "gptq"
    damp: float = 0.1
    zeros: float = 0.885

    stores: ClassVar[str] = "all"
    rewires: ClassVar[bool] = True
    laws: ClassVar[frozenset[str]] = frozenset()
    walks: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))
        one_of("start", self.start, STARTS)
        above("damp", self.damp, 0, "Try 0.1.")
        _ = self.form  # it checks the rest

    @property
    def form(self) -> Ternary:
        """The format."""
        return Ternary(self.zeros)

    @property
    def needs(self) -> frozenset[str]:
        """Statistics that are read."""
        return frozenset({"hessian"} if self.start == "gptq" else ())

    def plan(
        self,
        host: nn.Module,
        batches: Iterable[Any] = (),
        *,
        seed: int = 0,
        keeping: Keeping = NOWHERE,
    ) -> Plan:
        """All experts, on a copy of the model; the host stays as it is.

        keeping: where finished blocks are written.
        """
        expert_stops(host, self.layers)
        rows = tuple(batches) if self.needs else ()
        if self.needs:
            check_rows(rows)
        stored: dict[str, dict[str, Tensor]] = {}
        given = {"calibration": digest_of(rows), "batches": len(rows)}
        kept = keeping.of(self, host, seed, given).with_beside(
            partial(_beside, stored), lambda _, more: stored.update(_taken(more))
        )
        work = copy.deepcopy(base_of(host)).requires_grad_(False).eval()
        stops = expert_stops(work, self.layers)
        sizes = {
            path: [len(names), *stop.layers[names[0]].read().shape]
            for stop in stops
            for path, names in stacks_of(stop.layers).items()
        }
        edit = partial(self._edit, stored)
        told = walk_blocks(work, stops, rows, edit, needs=self.needs, kept=kept)
        made = {p: {"shape": sizes[p], "codes": len(s["codes"])} for p, s in stored.items()}
        decided = {
            "layout": LAYOUT,
            "stacks": made,
            "calibration": given["calibration"],
            "told": told,
        }
        decided["sha256"] = _digest(self, decided)
        return MixturePacking(self, seed, decided, stored)

    def apply(self, host: nn.Module, plan: Plan, *, name: str = "default") -> nn.Module:
        """In place. A plan that was read from a folder leaves the numbers to that folder."""
        model, decided = base_of(host), dict(plan.decided)
        _check_decided(self, decided)
        stored = plan.stored if isinstance(plan, MixturePacking) else None
        stacks: dict[str, dict[str, PackedStack]] = {}
        for path, of in decided["stacks"].items():
            owner, _, stack = path.rpartition(".")
            shape = _shape(model, path, of)
            parts = room(shape, int(of["codes"])) if stored is None else stored[path]
            stacks.setdefault(owner, {})[stack] = PackedStack(self.form, parts, shape)
        for owner, some in stacks.items():
            model.set_submodule(owner, packed(model.get_submodule(owner), some))
        return host

    def fold(self, host: nn.Module) -> nn.Module:
        """A copy with plain experts of the decoded weights."""
        plain = copy.deepcopy(host)
        model = base_of(plain)
        for path, experts in packed_experts(model).items():
            shell: Any = experts.shell
            turned = bool(getattr(shell, "is_transposed", False))
            model.set_submodule(path, unpacked(experts, dict.fromkeys(experts.stacks, turned)))
        set_steps(model, (s for s in steps_of(model) if not isinstance(s.plan.change, Qmoe)))
        return plain

    def _edit(
        self,
        stored: dict[str, dict[str, Tensor]],
        _: str,
        layers: Mapping[str, Matrix],
        seen: Mapping[str, Statistics],
    ) -> list[dict[str, Any]]:
        """Round the stacks of a block, and store them."""
        rows: list[dict[str, Any]] = []
        for path, names in stacks_of(layers).items():
            weights = torch.stack([layers[n].read().float() for n in names])
            found = [seen.get(n) for n in names]
            levels = levels_of(weights.flatten(0, 1))  # (E out, 2)
            new, told = self.rounded(weights, found, levels)
            digits = nearest(new.flatten(0, 1), levels)
            stored[path] = self.form.stored(digits, levels)
            for n, w in zip(names, new, strict=True):
                layers[n].write(w)
            share = float((digits == 0).float().mean())
            bits = 16 * len(stored[path]["codes"]) / digits.numel()
            row: dict[str, Any] = {"layer": path, "weights": digits.numel(), "density": 1 - share}
            row |= {"bits": bits, "entropy": entropy(share)}
            if self.needs:
                row["error"] = _error(weights, new, found)
                row["error_rounded"] = _error(weights, self._nearest(weights, levels), found)
            text = [f"expert {e}: {why}" for e, why in enumerate(told) if why]
            if abs(share - self.zeros) > FAR:
                text.append(f"{share:.3f} of its weights are 0: try zeros={share:.3f}")
            rows.append(row | ({"told": "; ".join(text)} if text else {}))
        return rows

    def rounded(
        self, weights: Tensor, seen: Sequence[Statistics | None], levels: Tensor
    ) -> tuple[Tensor, list[str]]:
        """(E, out, in) on the grid."""
        if self.start == "rtn":
            return self._nearest(weights, levels), []
        of = levels.view(*weights.shape[:2], 2)

        def code(columns: Tensor) -> Tensor:
            return _level(columns, of[..., 0], of[..., 1])

        return compensate_stack(weights, seen, code, damp=self.damp)

    def _nearest(self, weights: Tensor, levels: Tensor) -> Tensor:
        """Each weight by itself.  (E, out, in)."""
        of = levels.view(*weights.shape[:2], 1, 2)
        return _level(weights, of[..., 0], of[..., 1])


@dataclass(frozen=True)
class MixturePacking(Plan):
    """A plan with what is stored of each stack; read from a folder it is a plain one."""

    stored: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)


def stacks_of(layers: Iterable[str]) -> dict[str, list[str]]:
    """The experts' matrices of each stack, by its path."""
    found: dict[str, list[str]] = {}
    for name in layers:
        found.setdefault(name.rpartition(".")[0], []).append(name)
    return found


def _beside(stored: Mapping[str, Mapping[str, Tensor]], stop: Stop) -> dict[str, Tensor]:
    """What is stored of a block, to be written."""
    paths = stacks_of(stop.layers)
    return {f"{path}/{name}": t for path in paths for name, t in stored[path].items()}


def _taken(more: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """What is stored of a block that was finished before."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in more.items():
        path, _, part = name.rpartition("/")
        found.setdefault(path, {})[part] = tensor
    return found


def expert_stops(host: nn.Module, layers: Sequence[str]) -> list[Stop]:
    """The blocks with matrices of stacked experts alone.

    Raises: TargetError for none, and as `stops_of`.
    """
    found: list[Stop] = []
    for stop in stops_of(host, layers):
        some = {n: m for n, m in stop.layers.items() if m.index is not None}
        found.append(Stop(stop.path, stop.block, some))
    if not any(stop.layers for stop in found):
        fix = "Upcycle the model first: intarsia.upcycle(model), or use compress for linear layers."
        got = f"a {type(base_of(host)).__name__} without"
        raise TargetError("stacks of experts", got=got, want="a mixture", fix=fix)
    return found


def _level(weight: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """low, 0 or high, whichever is nearest."""
    return high.where(weight > high / 2, low.where(weight < low / 2, 0.0))


def _error(weights: Tensor, new: Tensor, seen: Sequence[Statistics | None]) -> float | None:
    """||(W' - W) X|| / ||W X||, the mean over experts that saw rows."""
    found = [
        output_error(w, n, s)
        for w, n, s in zip(weights, new, seen, strict=True)
        if s is not None and s.count and "hessian" in s.collected
    ]
    return sum(found) / len(found) if found else None


def _shape(model: nn.Module, path: str, of: Mapping[str, Any]) -> tuple[int, int, int]:
    """The sizes of a stack, which the model has, too.  Raises: CheckpointError."""
    owner, _, name = path.rpartition(".")
    module = dict(model.named_modules()).get(owner)
    turned = {} if module is None else stacked_matrices(module)
    own: list[int] = list(getattr(module, name).shape) if name in turned else []
    if turned.get(name):
        own = [own[0], own[2], own[1]]
    experts, rows, width = (int(side) for side in of["shape"])
    if own != [experts, rows, width] or not 0 <= int(of["codes"]) <= experts * rows * width:
        got, want = f"{own or 'none'} in the model", f"a stack of {[experts, rows, width]}"
        fix = "Create the mixture as it was, from the same pretrained model."
        raise CheckpointError(f"experts {path!r}", got=got, want=want, fix=fix)
    return experts, rows, width


def _digest(change: Qmoe, decided: Mapping[str, Any]) -> str:
    """Of all that is decided: a file in which one letter changed is refused."""
    kept = {name: value for name, value in decided.items() if name != "sha256"}
    text = json.dumps([settings_to_dict(change), kept], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _check_decided(change: Qmoe, decided: Mapping[str, Any]) -> None:
    """Raises: CheckpointError for another layout of the bytes, or settings that were changed."""
    what = "packed experts"
    if decided.get("layout") != LAYOUT:
        got, want = f"layout {decided.get('layout')}", f"layout {LAYOUT}, which the kernels read"
        fix = "Write them again with this release."
        raise CheckpointError(what, got=got, want=want, fix=fix)
    if decided.get("sha256") != _digest(change, decided):
        got, want = "settings that changed after they were written", "those that were written"
        fix = "Copy the folder again from its source."
        raise CheckpointError(what, got=got, want=want, fix=fix)


CARD = Card(
    "qmoe",
    kind="change",
    config=Qmoe,
    paper=Paper(
        "2310.16795", 2023, "QMoE: Practical Sub-1-Bit Compression of Trillion-Parameter Models"
    ),
    summary="Experts of three levels a row, stored in less than a bit a weight and decoded on use.",
    family="few bits",
    tags=frozenset({"compensates"}),
)
