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
from ..core.errors import ConfigError, TargetError
from ..core.foreign import activation_of
from ..core.registry import settings_to_dict
from ..core.schema import check, setting
from ..core.seeds import mix
from ..mixtures.iso_flop import Doped, Parallel
from ..schedules import RigL, SparseSchedule
from ..schedules.drop_and_grow import DropAndGrow
from ..sparse.swap.iso_flop import REPLACERS, layers_to_change, norm_place, sparsify_layer, widen
from ..sparse.swap.upcycle import check_unadapted

KINDS = ("wide", "parallel", "factorised", "doped")
PARTS = {"wide": ("",), "factorised": ("u", "v"), "doped": ("sparse",)}  # with masks, inside


class LayerFlops(NamedTuple):
    """Multiplications of a layer at each position of its output, before and after the change."""

    layer: str
    before: int
    after: int

    @property
    def ratio(self) -> float:
        """The quotient after / before."""
        return self.after / self.before


@dataclass(frozen=True)
class SparseIft(Change):
    """Larger layers with random zeros instead of dense ones, each with as many multiplications.

    As many weights are kept as the layer had, to one: also where a widened layer had only one of
    its widths grow (stem, classifier, depthwise, hidden units), which is then less sparse.

    model = apply(net, SparseIft("wide", density=0.25)); fit(model, train), which trains with RigL;
    or fit(model, train, schedule=Set(density=None)), or FixedMask(). `flop_audit(model)` counts.
    Not for fine-tuning a pretrained model: weights are drawn again, for a training from scratch.
    Raises: ConfigError for settings that cannot be; TargetError in `plan` for a model with adapters
    or with layers that have a fixed width.
    Source: paper, section 2; norms of linear branches, the rule for MLPs and that stem and
    classifier pay for their width are ours.
    """

    kind: str = setting(
        "wide",
        'The larger layer, with d the density and n the weights of the layer before: "wide", '
        "widths times d^-1/2, all of a convolutional or plain net but its inputs and classes; "
        "in a transformer the residual stream keeps its width, and hidden units of MLPs grow by "
        '1/d; "parallel", sum_i norm_i(W_i x) of 1/d branches, instead of a convolution and its '
        'batch norm, or of a linear map, with layer norms in the branches; "factorised", V '
        'relu(norm(U x)) of rank ceil(n / (d (k^2 in + out))), both sparse; "doped", W_s x + V '
        "U x of rank floor((1 - d) n / (k^2 in + out)), W_s sparse.",
        choices=KINDS,
    )
    density: float = setting(
        0.25,
        "The share d = 1 - s of the larger layer's weights that is kept.",
        above=0,
        most=1,
        fix="Try 0.25.",
    )
    layers: tuple[str, ...] | None = setting(
        None,
        "The layers to change, as globs of paths; None = all linear maps and ungrouped "
        'convolutions inside the blocks. Not for "wide".',
    )

    stores: ClassVar[str] = "all"

    def __post_init__(self) -> None:
        """Check the settings: a density that suits the kind, no layers for "wide"."""
        check(self)
        if self.kind == "parallel" and abs(1 / self.density - self.branches) > 1e-6:
            nearest = 1 / max(1, self.branches)
            want, fix = "1/2, 1/3, 1/4, ...: so many branches", f"Set density={nearest:.6g}."
            raise ConfigError("density of parallel branches", got=self.density, want=want, fix=fix)
        if self.kind == "wide" and self.layers is not None:
            fix = "Leave layers out, or use another kind."
            want = "None: the layers next to it would not fit"
            raise ConfigError("layers of 'wide'", got=self.layers, want=want, fix=fix)
        if self.layers is not None:
            object.__setattr__(self, "layers", tuple(self.layers))

    @property
    def branches(self) -> int:
        """The number of branches of a parallel layer."""
        return round(1 / self.density)

    @property
    def preserves(self) -> frozenset[str]:
        """The properties that stay: all of them where nothing is changed."""
        none = self.density == 1 and self.kind != "factorised"
        return frozenset(("outputs", "shape", "routing") if none else ())

    def plan(self, host: nn.Module, batches: Iterable[Any] = (), *, seed: int = 0) -> Plan:
        """Choose the layers to replace, and how many weights each keeps; warn of rows with none."""
        check_unadapted(host)
        if "outputs" in self.preserves:
            return Plan(self, seed, {"layers": {}})
        layers = layers_to_change(host, self.kind, self.density, self.layers)
        if not layers:
            got, want = f"none in {type(host).__name__}", "linear maps or convolutions in blocks"
            raise TargetError("layers to change", got=got, want=want, fix="Name some: layers=.")
        return Plan(self, seed, {"layers": {p: m.weight.numel() for p, m in layers.items()}})

    def apply(self, host: nn.Module, plan: Plan, *, name: str = "default") -> nn.Module:
        """Replace the planned layers by larger ones, and draw their zeros, in place."""
        layers: Mapping[str, int] = plan.decided["layers"]
        # The seed is mixed, so that masks do not repeat the draws of another change with this seed.
        draw = torch.Generator().manual_seed(mix(plan.seed, 2303))
        if layers and self.kind == "wide":
            # Widening changes a layer together with its neighbours, the other kinds one layer at a
            # time.
            weight_counts = widen(host, self.density, layers, draw)
        else:
            weight_counts = {
                f"{path}.{inner}": count
                for path in layers
                for inner, count in REPLACERS[self.kind](host, path, self.density, draw).items()
            }
        # The new layers are dense so far; each keeps as many random weights as the old one had.
        for path, count in weight_counts.items():
            sparsify_layer(path, host.get_submodule(path), count, draw)
        return host

    def fold(self, host: nn.Module) -> nn.Module:
        """Return a copy with plain layers: parallel and doped ones become their dense layer.

        Raises: FoldError for linear branches, where norms depend on the sample.
        """
        stock, applied_steps = copy.deepcopy(host), steps_of(host)
        for path, module in list(stock.named_modules()):
            if isinstance(module, Doped):
                stock.set_submodule(path, module.folded())
            elif isinstance(module, Parallel):
                norm_path = norm_place(stock, path)
                # Batch norms of the branches are folded: their sum is one convolution and one norm.
                layer, norm = module.folded()
                if activation_of(norm) is not None:  # timm's, with the activation inside
                    cast(Any, norm).act = stock.get_submodule(norm_path)
                stock.set_submodule(path, layer)
                stock.set_submodule(norm_path, norm)
        set_steps(stock, (s for s in applied_steps if not isinstance(s.plan.change, SparseIft)))
        return stock

    def scheduled(self, plan: Plan, schedule: Any) -> Any:
        """Return the schedule of masks for a training of the changed model.

        schedule: the user's, restricted to the sparse layers and their densities; None = RigL.
        Raises: ConfigError for one of another density, or without masks.
        """
        layers = tuple(p for path in plan.decided["layers"] for p in self._masked_paths(path))
        if not layers:
            return schedule
        if schedule is None:
            return RigL(density=None, layers=layers)
        if not isinstance(schedule, SparseSchedule):
            got, want = type(schedule).__name__, "one of masks: zeros would be filled"
            fix = "Use RigL(density=None), Set(density=None), FixedMask(), or leave it out."
            raise ConfigError("schedule of an iso-FLOP model", got=got, want=want, fix=fix)
        settings: Any = schedule
        # a schedule with layers of its own is left as it is
        if schedule.layers is not None:
            return schedule
        # density=None keeps as many weights in each layer as it has now
        if isinstance(schedule, DropAndGrow):
            if schedule.density not in (None, self.density):
                name = type(schedule).__name__
                fix = f"Use {name}(density=None); in a shell, --schedule {name.lower()}:density=."
                want = f"{self.density}, as the model has, or None"
                raise ConfigError("schedule's density", got=schedule.density, want=want, fix=fix)
            return replace(settings, density=None, layers=layers)
        if (density := settings_to_dict(schedule).get("density")) is not None:
            got = f"{type(schedule).__name__}(density={density})"
            fix = "Use RigL(density=None), Set(density=None), FixedMask(), or leave it out."
            want = "as many weights in each layer as it has"
            raise ConfigError("schedule of an iso-FLOP model", got=got, want=want, fix=fix)
        return replace(settings, layers=layers)

    def _masked_paths(self, path: str) -> list[str]:
        """Return the paths of the layers with masks that the layer at `path` was replaced by."""
        if self.kind == "parallel":
            return [f"{path}.layers.{i}" for i in range(self.branches)]
        return [f"{path}.{part}".rstrip(".") for part in PARTS[self.kind]]


def flop_audit(model: nn.Module) -> tuple[LayerFlops, ...]:
    """Count the multiplications of each layer that `SparseIft` changed, zeros left out.

    Returns an empty tuple for a model without the change.
    """
    audits: list[LayerFlops] = []
    for step in steps_of(model):
        if isinstance(step.plan.change, SparseIft):
            for path, before in step.plan.decided["layers"].items():
                # Biases and norms multiply nothing by a matrix.
                weights = [w for w in model.get_submodule(path).parameters() if w.dim() > 1]
                audits.append(
                    LayerFlops(path, before, sum(int(w.count_nonzero()) for w in weights))
                )
    return tuple(audits)


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
