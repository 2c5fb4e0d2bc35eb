"""Sparse-IFT: a layer becomes a larger, sparse one of as many FLOPs (arXiv:2303.11525)."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple, cast

import torch
from torch import nn

from ..core import Card, Paper
from ..core.change import Change, Plan, set_steps, steps_of
from ..core.checks import above, between, one_of
from ..core.errors import ConfigError, TargetError
from ..core.foreign import activation_of
from ..core.registry import settings_to_dict
from ..core.seeds import mix
from ..hosts.swap.iso_flop import MADE, layers_to_change, norm_place, sparsify_layer, widen
from ..hosts.swap.upcycle import check_unadapted
from ..mixtures.iso_flop import Doped, Parallel
from ..schedules import RigL, SparseSchedule
from ..schedules.drop_and_grow import DropAndGrow

KINDS = ("wide", "parallel", "factorised", "doped")
PARTS = {"wide": ("",), "factorised": ("u", "v"), "doped": ("sparse",)}  # with masks, inside


class Audit(NamedTuple):
    """Multiplications of a layer at each position of its output, as it was and as it is."""

    layer: str
    before: int
    after: int

    @property
    def ratio(self) -> float:
        return self.after / self.before


@dataclass(frozen=True)
class SparseIft(Change):
    """Layers become larger ones with random zeros, so that each multiplies as often as before.

    kind, with d = density = 1 - s, and n weights of a layer before:
      "wide", widths times d^-1/2: all of a convolutional or plain net but its inputs and classes;
      in a transformer, whose residual stream keeps its width, hidden units of MLPs times 1/d.
      "parallel", sum_i norm_i(W_i x) of 1/d branches, in place of a convolution and its batch
      norm, or of a linear map, whose branches have layer norms.
      "factorised", V relu(norm(U x)) of rank ceil(n / (d (k^2 in + out))), both sparse.
      "doped", W_s x + V U x of rank floor((1 - d) n / (k^2 in + out)), W_s sparse.
    As many weights are kept as the layer had, to one: also where a widened layer had only one of
    its widths grow (stem, classifier, depthwise, hidden units), which is then less sparse.
    layers: globs of the layers to change, None = all linear maps and ungrouped convolutions inside
    the blocks; not for "wide".

    model = apply(net, SparseIft("wide", density=0.25)); fit(model, train), which trains with RigL;
    or fit(model, train, schedule=Set(density=None)), or FixedMask(). `flop_audit(model)` counts.
    Weights are drawn anew: for a training from scratch, not for fine-tuning a pretrained model.
    Raises: ConfigError for settings that cannot be; TargetError in `plan` for a model with adapters
    or with layers whose width cannot be changed.
    Source: paper, section 2; norms of linear branches, the rule for MLPs and that stem and
    classifier pay for their width are ours.
    """

    kind: str = "wide"
    density: float = 0.25
    layers: tuple[str, ...] | None = None

    stores: ClassVar[str] = "all"

    def __post_init__(self) -> None:
        one_of("kind", self.kind, KINDS)
        above("density", self.density, 0, "Try 0.25.")
        between("density", self.density, 0, 1, "Try 0.25.")
        if self.kind == "parallel" and abs(1 / self.density - self.branches) > 1e-6:
            near = 1 / max(1, self.branches)
            want, fix = "1/2, 1/3, 1/4, ...: so many branches", f"Set density={near:.6g}."
            raise ConfigError("density of parallel branches", got=self.density, want=want, fix=fix)
        if self.kind == "wide" and self.layers is not None:
            fix = "Leave layers out, or use another kind."
            want = "None: the layers beside it would not fit"
            raise ConfigError("layers of 'wide'", got=self.layers, want=want, fix=fix)
        if self.layers is not None:
            object.__setattr__(self, "layers", tuple(self.layers))

    @property
    def branches(self) -> int:
        """How many a parallel layer has."""
        return round(1 / self.density)

    @property
    def preserves(self) -> frozenset[str]:
        """Everything where nothing is done."""
        none = self.density == 1 and self.kind != "factorised"
        return frozenset(("outputs", "shape", "routing") if none else ())

    def plan(self, host: nn.Module, batches: Iterable[Any] = (), *, seed: int = 0) -> Plan:
        """The layers, and how many weights each has.  Warns of rows with less than one weight."""
        check_unadapted(host)
        if "outputs" in self.preserves:
            return Plan(self, seed, {"layers": {}})
        found = layers_to_change(host, self.kind, self.density, self.layers)
        if not found:
            got, want = f"none in {type(host).__name__}", "linear maps or convolutions in blocks"
            raise TargetError("layers to change", got=got, want=want, fix="Name some: layers=.")
        return Plan(self, seed, {"layers": {p: m.weight.numel() for p, m in found.items()}})

    def apply(self, host: nn.Module, plan: Plan, *, name: str = "default") -> nn.Module:
        layers: Mapping[str, int] = plan.decided["layers"]
        draw = torch.Generator().manual_seed(mix(plan.seed, 2303))
        if layers and self.kind == "wide":
            kept = widen(host, self.density, layers, draw)
        else:
            kept = {
                f"{path}.{inner}": count
                for path in layers
                for inner, count in MADE[self.kind](host, path, self.density, draw).items()
            }
        for path, count in kept.items():
            sparsify_layer(path, host.get_submodule(path), count, draw)
        return host

    def fold(self, host: nn.Module) -> nn.Module:
        """Plain layers: of parallel and doped ones the dense layer that was there before.

        Raises: FoldError for linear branches, whose norms depend on the sample.
        """
        stock, own = copy.deepcopy(host), steps_of(host)
        for path, module in list(stock.named_modules()):
            if isinstance(module, Doped):
                stock.set_submodule(path, module.folded())
            elif isinstance(module, Parallel):
                behind = norm_place(stock, path)
                layer, norm = module.folded()
                if activation_of(norm) is not None:  # timm's, with the activation inside
                    cast(Any, norm).act = stock.get_submodule(behind)
                stock.set_submodule(path, layer)
                stock.set_submodule(behind, norm)
        set_steps(stock, (s for s in own if not isinstance(s.plan.change, SparseIft)))
        return stock

    def scheduled(self, plan: Plan, schedule: Any) -> Any:
        """The schedule of masks that a training of the changed model has.

        None = RigL on the layers that are sparse; another one stays on those, and keeps as many
        weights in each.  Raises: ConfigError for one of another density, or without masks.
        """
        layers = tuple(p for path in plan.decided["layers"] for p in self._sparse(path))
        if not layers:
            return schedule
        if schedule is None:
            return RigL(density=None, layers=layers)
        if not isinstance(schedule, SparseSchedule):
            got, want = type(schedule).__name__, "one of masks: zeros would be filled"
            fix = "Use RigL(density=None), Set(density=None), FixedMask(), or leave it out."
            raise ConfigError("schedule of an iso-FLOP model", got=got, want=want, fix=fix)
        settings: Any = schedule
        if schedule.layers is not None:
            return schedule
        if isinstance(schedule, DropAndGrow):
            if schedule.density not in (None, self.density):
                name = type(schedule).__name__
                fix = f"Use {name}(density=None); in a shell, --schedule {name.lower()}:density=."
                want = f"{self.density}, as the model has, or None"
                raise ConfigError("schedule's density", got=schedule.density, want=want, fix=fix)
            return replace(settings, density=None, layers=layers)
        if (asked := settings_to_dict(schedule).get("density")) is not None:
            got = f"{type(schedule).__name__}(density={asked})"
            fix = "Use RigL(density=None), Set(density=None), FixedMask(), or leave it out."
            want = "as many weights in each layer as it has"
            raise ConfigError("schedule of an iso-FLOP model", got=got, want=want, fix=fix)
        return replace(settings, layers=layers)

    def _sparse(self, path: str) -> list[str]:
        """The layers with masks that a layer became."""
        if self.kind == "parallel":
            return [f"{path}.layers.{i}" for i in range(self.branches)]
        return [f"{path}.{part}".rstrip(".") for part in PARTS[self.kind]]


def flop_audit(model: nn.Module) -> tuple[Audit, ...]:
    """Multiplications of each layer that `SparseIft` changed, zeros left out; none without."""
    found: list[Audit] = []
    for step in steps_of(model):
        if isinstance(step.plan.change, SparseIft):
            for path, before in step.plan.decided["layers"].items():
                weights = [w for w in model.get_submodule(path).parameters() if w.dim() > 1]
                found.append(Audit(path, before, sum(int(w.count_nonzero()) for w in weights)))
    return tuple(found)


CARD = Card(
    "sparse_ift",
    kind="change",
    config=SparseIft,
    paper=Paper(
        "2303.11525", 2023, "Sparse Iso-FLOP Transformations for Maximizing Training Efficiency"
    ),
    summary="Layers become larger and sparse, of as many FLOPs, for a training from scratch.",
    family="sparse training",
    names=("Sparse-IFT", "Sparse Iso-FLOP"),
    tiny={"density": 0.5},
)
