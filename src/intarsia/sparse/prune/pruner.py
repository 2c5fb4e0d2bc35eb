"""Pruning as a change: which layers, calibration rows, the walk, and the verb `sparsify`."""

from __future__ import annotations

import abc
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ...core import NofM, Partition
from ...core.change import Change, Plan, steps_of
from ...core.checks import one_of
from ...core.errors import ConfigError, ShapeError, TargetError
from ...core.heads import heads_of
from ...core.registry import by_name, method_key, settings_to_dict
from ...core.schema import check, setting
from ...core.seeds import mix
from ...gating import Router
from ...hosts.anatomy.blocks import base_of, blocks, inside, layers_of, unwrapped, wrapped_paths
from ...hosts.anatomy.origin import fingerprint
from ...hosts.attach.peft import is_adapted
from ...hosts.changing import apply_plan
from ...partitions import Sparsifier
from ...schedules.masked_layers import matches
from ...scores import Statistics, magnitude
from .matrices import Matrix, matrix_of, of_experts
from .progress import Kept
from .rows import batched, check_rows, digest_of
from .walk import Stop, walk_blocks

Report = Callable[[str], None]


class Keeping(NamedTuple):
    """Options of a run's progress: its folder, whether to resume, who gets lines of text."""

    out: Path | None = None
    resume: bool = False
    report: Report | None = None

    def of(self, method: object, host: nn.Module, seed: int, decided: Mapping[str, Any]) -> Kept:
        """Open or begin the record of a run in the folder of these options.

        host: the model; its fingerprint is recorded; decided: further settings that a resumed run
        must share.
        """
        # a run may be resumed only with the same method, settings, seed, model and data
        identity = {
            "method": method_key(method),
            "settings": settings_to_dict(method),
            "seed": seed,
            "model": fingerprint(host),
            **decided,
        }
        return Kept(self.out, identity, resume=self.resume, report=self.report)


@dataclass(frozen=True)
class Calibrated(Plan):
    """Plan that holds the calibration data; loaded from a folder it is a plain one.

    out, resume, report: see `sparsify`; found: a row for each layer, once the plan was applied.
    """

    batches: tuple[Any, ...] = ()
    out: Path | None = None
    resume: bool = False
    report: Report | None = None
    found: list[dict[str, Any]] = field(default_factory=lambda: list[dict[str, Any]]())

    @property
    def undoes_itself(self) -> bool:
        """True if the run has a folder, from which weights are restored after an error."""
        return self.out is not None


class Pruner(Change):
    """Change that prunes a model block by block, by a rule for one layer."""

    stores: ClassVar[str] = "all"
    laws: ClassVar[frozenset[str]] = frozenset({"shape"})

    layers: Sequence[str]

    @property
    @abc.abstractmethod
    def density(self) -> float:
        """Share of each layer that is kept."""

    @property
    def n_of_m(self) -> NofM | None:
        """Pattern, if the method has one."""
        return None

    @property
    def base(self) -> Pruner | None:
        """The pruner that gives the mask this one starts from, if there is one."""
        return None

    def on(self, layers: Sequence[str]) -> Any:
        """Return the same method for other layers; layers: globs of paths."""
        settings: Any = self
        return replace(settings, layers=tuple(layers))

    @abc.abstractmethod
    def edit(
        self, name: str, weight: Tensor, statistics: Statistics, generator: torch.Generator
    ) -> tuple[Partition, Tensor]:
        """Choose which weights of a layer stay, and compute its new weight.

        weight: (out, in); statistics: of its inputs on calibration data; generator: for methods
        that draw.
        Returns the partition, in which part 0 stays, and the new weight (out, in).
        """

    def plan(self, host: nn.Module, batches: Iterable[Any] = (), *, seed: int = 0) -> Plan:
        """Find the layers and check the calibration data; nothing is pruned.

        A model without known blocks is pruned layer by layer, its head left out unless named.
        Raises: TargetError for a model with adapters, no layers to prune, or globs that match none,
        or in a model with blocks only layers outside them;
        DataError for no data where the method reads some, or too little; ShapeError for a pattern
        that does not divide a layer's inputs.
        """
        stops = stops_of(host, self.layers, any_model=True)
        _check_widths(stops, self.n_of_m)
        rows = tuple(batches) if self.needs else ()
        if self.needs:
            check_rows(rows)
        # the plan's record has a hash of the rows, not the rows
        decided = {"calibration": digest_of(rows), "batches": len(rows)}
        return Calibrated(self, seed, decided, rows)

    def apply(self, host: nn.Module, plan: Plan, *, name: str = "default") -> nn.Module:
        """Prune the model; a plan that was read from a folder leaves the weights to that folder."""
        if isinstance(plan, Calibrated):
            plan.found[:] = prune_blocks(host, self, plan)
        return host


@dataclass(frozen=True)
class LayerPruner(Pruner):
    """Pruner of linear layers, convolutions and experts inside the blocks.

    In a mixture each expert's matrices are layers of their own, with the rows that are routed to it
    as inputs: "model.layers.0.mlp.experts.up.3".

    Raises: ConfigError for a density outside (0, 1], or a pattern of another density.
    """

    density: float = setting(
        0.5, "The share of each layer's weights that is kept.", above=0, most=1, fix="Try 0.5."
    )
    pattern: str | None = setting(
        None,
        'The pattern "n:m", n of each m consecutive inputs, with the density n / m; None = no '
        "pattern.",
    )
    layers: Sequence[str] = setting(
        (),
        "The layers that are pruned, as globs of paths; none = all linear layers, convolutions "
        "and experts inside the blocks, but routers and grouped convolutions. A layer outside "
        'the blocks is pruned if its full path is given, as "lm_head".',
    )

    def __post_init__(self) -> None:
        """Check the density; a pattern n:m must have the same one, n / m.  Raises: ConfigError."""
        check(self)
        object.__setattr__(self, "layers", tuple(self.layers))
        # a pattern has a density of its own, n / m
        if (n_of_m := self.n_of_m) is not None and n_of_m.n / n_of_m.m != self.density:
            got = f"{self.pattern!r} with density {self.density}"
            fix = f"Set density={n_of_m.n / n_of_m.m:g}, or leave the pattern out."
            raise ConfigError("pattern", got=got, want=f"density {n_of_m.n / n_of_m.m:g}", fix=fix)

    @property
    def n_of_m(self) -> NofM | None:
        """Pattern n:m of the setting `pattern`, None without."""
        return None if self.pattern is None else NofM.read(self.pattern)

    def score(self, weight: Tensor, statistics: Statistics) -> Tensor:
        """Score each weight, |w| unless a method does otherwise.  (out, in) -> (out, in)."""
        return magnitude(weight)


def prune_blocks(host: nn.Module, method: Pruner, plan: Calibrated) -> list[dict[str, Any]]:
    """Prune the blocks of a model one after another; return a row of the table for each layer.

    host: changed in place; plan: calibration data, seed and output folder.
    """
    stops = stops_of(host, method.layers, any_model=True)
    keeping = Keeping(plan.out, plan.resume, plan.report)
    walk = keeping.of(method, host, plan.seed, plan.decided)
    edit = partial(edit_block, method, plan.seed)
    # output errors are computed from the second moments of the inputs
    needs = method.needs | {"hessian"} if plan.decided.get("errors") else method.needs
    by_layer = plan.decided.get("sequential") == "layer"
    return walk_blocks(host, stops, plan.batches, edit, needs=needs, kept=walk, by_layer=by_layer)


def edit_block(
    method: Sparsifier,
    seed: int,
    path: str,
    layers: Mapping[str, Matrix],
    statistics: Mapping[str, Statistics],
) -> list[dict[str, Any]]:
    """Prune the layers of one block in place; return a row of the table for each.

    path: of the block, unused here; statistics: of each layer's inputs, by path.
    """
    rows: list[dict[str, Any]] = []
    for name, layer in layers.items():
        weight = layer.read()
        row: dict[str, Any] = {"layer": name, "weights": weight.numel(), "density": 1.0}
        layer_statistics = statistics.get(name, Statistics(0, None, None))
        # an expert that no token reached: its inputs are not known
        if method.needs and not layer_statistics.count:
            rows.append(row | {"told": "no calibration row reached it; it stays dense"})
            continue
        # a layer's draws depend on its name, not on which layers were pruned before it
        number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:6])
        generator = torch.Generator().manual_seed(mix(seed, number))
        part, new = method.edit(name, weight, layer_statistics, generator)
        layer.write(new)
        row["density"] = part.density()
        if "hessian" in layer_statistics.collected:
            # error with the mask alone, and with compensation, on the same moments
            row["error_masked"] = output_error(
                weight, _masked_only(method, name, part, weight, layer_statistics), layer_statistics
            )
            row["error"] = output_error(weight, new, layer_statistics)
        rows.append(row)
    return rows


def _masked_only(
    method: Sparsifier, name: str, part: Partition, weight: Tensor, statistics: Statistics
) -> Tensor:
    """Return the weight with pruned entries at 0 and all others as they were, to compare errors."""
    base = method.base if isinstance(method, Pruner) else None
    if base is not None and "hessian" not in base.needs:
        return base.edit(name, weight, statistics, torch.Generator())[1]
    return weight.masked_fill(~part.mask(name, 0).to(weight.device), 0)


def output_error(weight: Tensor, new: Tensor, statistics: Statistics) -> float:
    """Return ||(W' - W) X|| / ||W X||, the relative error of a layer's outputs.

    weight: W, (out, in); statistics: with the second moment of the inputs X.
    """
    # ||D X||^2 = N trace(D M D^T) with the second moment M = X X^T / N: no inputs are stored
    moment = statistics.second_moment.to(weight.device, torch.float32)
    difference, total = (((t @ moment) * t).sum() for t in ((new - weight).float(), weight.float()))
    return float((difference.clamp_min(0) / total.clamp_min(1e-30)).sqrt())


def stops_of(host: nn.Module, globs: Sequence[str], *, any_model: bool = False) -> list[Stop]:
    """Return the blocks of a model in order, each with its layers to prune.

    globs: patterns of the layers' paths, none = all layers inside the blocks. any_model: in a model
    without known blocks each layer but the head is a block of its own.
    Raises: TargetError for adapters, no blocks (without `any_model`) or no layers, a glob that
    matches nothing, and one that matches only layers outside the blocks.
    """
    model = base_of(host)
    if is_adapted(host) or wrapped_paths(model):
        fix = "Fold the adapters first: model = intarsia.fold(model)."
        raise TargetError("model", got="one with adapters", want="a plain one", fix=fix)
    all_blocks = blocks(model)
    if not all_blocks and any_model:
        return _layer_by_layer(model, globs)
    if not all_blocks:
        subject, got = f"blocks of {type(model).__name__}", "none that are known"
        fix = "Take a transformer of timm or transformers, or a schedule: fit(..., Gradual())."
        raise TargetError(subject, got=got, want="blocks with an mlp and an attention", fix=fix)
    stops: list[Stop] = []
    used: set[str] = set()
    for path, block in all_blocks:
        layers: dict[str, Matrix] = {}
        for inner, layer in _matrices(block):
            name = f"{path}.{inner}"
            # globs that hit nothing are refused below: a misspelt one must not go unnoticed
            hits = [g for g in globs or ["*"] if matches(name, layer.owner, g)]
            used |= set(hits)
            if hits:
                layers[name] = layer
        stops.append(Stop(path, block, layers))
    # layers outside the blocks, such as heads, are matched by full paths only
    for path, module in model.named_modules():
        named = path in globs and not any(inside(path, b) for b, _ in all_blocks)
        if named and (layer := matrix_of(module)) is not None:
            used.add(path)
            stops.append(Stop(path, module, {path: layer}, outside=True))
    _check_globs(model, [g for g in globs if g not in used])
    return stops


def _layer_by_layer(model: nn.Module, globs: Sequence[str]) -> list[Stop]:
    """Return the layers of a model without known blocks; each has a forward of the whole model."""
    heads = heads_of(model)
    stops: list[Stop] = []
    used: set[str] = set()
    for path, layer in _matrices(model):
        hits = [g for g in globs if matches(path, layer.owner, g)]
        used |= set(hits)
        if hits or not (globs or any(layer.owner is head for head in heads)):
            stops.append(Stop(path, layer.owner, {path: layer}, outside=True))
    _check_globs(model, [g for g in globs if g not in used])
    if not stops:
        subject, got = f"layers of {type(model).__name__}", "none, or a head alone"
        fix = "Give a model that has some, or name the head in layers=[...]."
        raise TargetError(subject, got=got, want="linear layers or convolutions", fix=fix)
    return stops


def _matrices(block: nn.Module) -> Iterator[tuple[str, Matrix]]:
    """Yield path and matrix of each layer and expert in a block that can be pruned."""
    # a layer inside a router chooses experts, and must stay dense
    routers = [path for path, m in block.named_modules() if isinstance(m, Router)]
    for path, layer in layers_of(block):
        matrix = matrix_of(layer)
        if matrix is not None and not any(path == r or inside(path, r) for r in routers):
            yield path, matrix
    yield from of_experts(block)


def _check_globs(model: nn.Module, unused: Sequence[str]) -> None:
    """Refuse globs that match nothing inside the blocks."""
    for glob in unused:
        outside = [p for p, m in model.named_modules() if p and matches(p, unwrapped(m), glob)]
        got = f"{outside[0]!r}, outside the blocks" if outside else "no layer of that name"
        fix = "Embeddings stay dense; name layers in the blocks, or a head in full, as 'lm_head'."
        raise TargetError(f"layers {glob!r}", got=got, want="layers inside the blocks", fix=fix)


def _check_widths(stops: Sequence[Stop], pattern: NofM | None) -> None:
    """Check that the pattern n:m divides each layer's inputs: in must be a multiple of m."""
    m = 1 if pattern is None else pattern.m
    for stop in stops:
        for name, layer in stop.layers.items():
            if (width := layer.read().shape[1]) % m:
                want = f"a multiple of {m}"
                fix = "Leave the layer out with layers=..., or take another pattern."
                raise ShapeError(f"inputs of {name!r}", got=width, want=want, fix=fix)


@dataclass(frozen=True)
class Sparsified:
    """Report of `sparsify`: a row for each layer, and the bytes of the pruned layers.

    table: {"layer", "weights", "density", and where moments were collected "error_masked" and
    "error", the relative error of its output before and after compensation or swaps}.
    """

    table: tuple[Mapping[str, Any], ...]
    bytes: Mapping[str, int]

    @property
    def density(self) -> float:
        """Density of all layers together."""
        total = sum(row["weights"] for row in self.table)
        return sum(row["density"] * row["weights"] for row in self.table) / max(1, total)

    def __str__(self) -> str:
        megabytes = {name: f"{size / 1e6:.1f} MB" for name, size in self.bytes.items()}
        notes = [f"{row['layer']}: {row['told']}" for row in self.table if row.get("told")]
        first = f"{len(self.table)} layers, density {self.density:.3f}"
        return "\n".join([first, ", ".join(f"{n} {s}" for n, s in megabytes.items()), *notes])


def sparsify(
    model: nn.Module,
    method: Pruner | str = "wanda",
    calib: Any = (),
    *,
    layers: Sequence[str] | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    seed: int = 0,
    errors: bool = False,
    sequential: str = "block",
    progress: Report | None = None,
) -> nn.Module:
    """Prune a pretrained model in place, block by block, and return it; no gradient is computed.

    model = intarsia.sparsify(model, intarsia.Wanda(density=0.5), rows)
    print(intarsia.sparse.sparsify_report(model))

    method: `Magnitude`, `Wanda`, `SparseGPT` or `DSnoT`, or the name of one with its default
    settings, as "wanda".
    calib: samples as `fit` takes them (`load_texts(...).train`, a list of {"input_ids": (T,)}, a
    tensor of pictures), or batches.
    layers: see `LayerPruner`.
    out: a folder for finished blocks and hidden states; resume: continue from it, which gives the
    same bits as an uninterrupted run.
    errors: measure each layer's output error, which SparseGPT does anyway; it costs a product of
    inputs as large as a layer's forward.
    sequential: "block", the layers of a block are pruned for the inputs that they have in the
    unpruned block; "layer", each for its inputs behind those pruned before it, with a forward for
    each.
    progress: function that is given a line of text for each block.
    In a run of several processes each takes rows of its own, and all prune by the statistics of
    all.

    Raises: as `Pruner.plan`; DataError for moments that are not finite; CheckpointError for a
    folder of another run or with a damaged file; TrainingError for a full disk. The model is then
    as it was.
    """
    pruner: Any = by_name(method, "change") if isinstance(method, str) else method
    if not isinstance(pruner, Pruner):
        want, fix = "Magnitude, Wanda, SparseGPT or DSnoT", "Pass intarsia.Wanda(density=0.5)."
        raise ConfigError("method", got=type(pruner).__name__, want=want, fix=fix)
    if layers is not None:
        pruner = pruner.on(layers)
    # several processes would write the same files
    ranks = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    if out is not None and ranks > 1:
        fix = "Leave `out` out, or prune in one process."
        raise ConfigError("out", got=f"{ranks} processes", want="one", fix=fix)
    rows = batched(calib)
    plan = pruner.plan(model, rows, seed=seed)
    assert isinstance(plan, Calibrated)
    # folder and report are no settings of the method, and so not of its record
    plan = replace(plan, out=Path(out) if out else None, resume=resume, report=progress)
    one_of("sequential", sequential, ("block", "layer"))
    if sequential == "layer":
        plan = replace(plan, decided={**plan.decided, "sequential": sequential})
    if errors:
        check_rows(rows)
        decided = {**plan.decided, "errors": True, "calibration": digest_of(rows)}
        plan = replace(plan, batches=tuple(rows), decided=decided)
    return apply_plan(model, plan)


def sparsify_report(model: nn.Module) -> Sparsified:
    """Return what the newest `sparsify` of a model did: each layer's density and error, the bytes.

    model: as `sparsify` returned it.
    Raises: ConfigError for a model that was not pruned since it was loaded.
    """
    plans = [step.plan for step in steps_of(model) if isinstance(step.plan, Calibrated)]
    if not plans or not plans[-1].found:
        fix = "Call it on the model that intarsia.sparsify(model) returns, before it is saved."
        raise ConfigError("model", got="one without a record of it", want="a pruned one", fix=fix)
    pruner: Any = plans[-1].change
    return Sparsified(
        tuple(plans[-1].found), bytes_of(stops_of(model, pruner.layers, any_model=True))
    )


def bytes_of(stops: Sequence[Stop]) -> dict[str, int]:
    """Count the bytes of the pruned layers' weights: {"dense", "bitmask"}.

    "dense" as they are in memory, "bitmask" as `formats.Bitmask` would store them.
    """
    dense = packed = 0
    for layer in (m for stop in stops for m in stop.layers.values()):
        weight = layer.read()
        rows, columns = weight.shape
        dense += weight.numel() * weight.element_size()
        packed += int(weight.count_nonzero()) * weight.element_size()
        # a bit for each weight in whole bytes, and an offset of 8 bytes for each row
        packed += rows * (-(-columns // 8) + 8)
    return {"dense": dense, "bitmask": packed}


def bytes_by_part(model: nn.Module, stops: Sequence[Stop]) -> dict[str, int]:
    """Count the bytes of each part of the model, with pruned layers stored as bitmasks.

    Returns "kept values", "bitmasks", "zeros left out", "embeddings and heads", "other". The file
    has the sum of all but "zeros left out", which is what pruning saves.
    """
    pruned = {id(getattr(m.owner, m.name)) for stop in stops for m in stop.layers.values()}
    sizes = {"kept values": 0, "bitmasks": 0, "zeros left out": 0}
    for layer in (m for stop in stops for m in stop.layers.values()):
        weight, size = layer.read(), layer.read().element_size()
        count = int(weight.count_nonzero())
        sizes["kept values"] += count * size
        sizes["zeros left out"] += (weight.numel() - count) * size
        # a bit for each weight, rows padded to bytes, and 8 bytes for each row's offset
        sizes["bitmasks"] += len(weight) * (-(-weight.shape[1] // 8) + 8)
    # outside the blocks: matrices are embeddings and heads, vectors are norms and the like
    inner = {id(p) for _, block in blocks(base_of(model)) for p in block.parameters()}
    rest = [p for p in base_of(model).parameters() if id(p) not in pruned]
    outer = [p.nbytes for p in rest if id(p) not in inner and p.dim() > 1]
    return sizes | {
        "embeddings and heads": sum(outer),
        "other": sum(p.nbytes for p in rest) - sum(outer),
    }
