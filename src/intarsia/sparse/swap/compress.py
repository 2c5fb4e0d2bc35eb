"""Store a model's linear layers in a format; its products read the stored tensors."""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ... import formats
from ...core import Card, Format, Paper
from ...core.change import Change, Plan, set_steps, steps_of
from ...core.errors import CheckpointError, ConfigError, DataError, TargetError, UnknownName
from ...core.exports import homes
from ...core.schema import check, setting
from ...decode.native_generation import generates, with_native_generate, without_native_generate
from ...formats import Bitmask, BlockInt
from ...formats.packed_linear import PackedLinear, unpacked
from ...hosts.anatomy.blocks import base_of
from ...hosts.changing import apply_plan
from ...hosts.in_memory import is_finite
from ...mixtures.packed_experts import PackedStack, put_stacks, stack_shape, unpack_stacks
from ..prune.matrices import Matrix, seeing
from ..prune.pruner import Keeping, stops_of
from ..prune.rows import batched, check_rows, digest_of, inputs_of
from .timing import check_faster

ROOM = 2**20  # extra bytes that any format may need, besides 4 for each weight and 64 for each row
LAYOUT = 1  # version of the layout of stored tensors in all formats


def format_names() -> dict[str, str]:
    """Return the classes of the formats by their names in lower case, as "bitmask"."""
    return {name.lower(): name for name in homes(Path(str(formats.__file__)).with_suffix(".pyi"))}


def format_named(name: str, **settings: Any) -> Format:
    """Build a storage format; name: its class in lower case, as "bitmask"; settings: of the class.

    Raises: UnknownName.
    """
    listed = format_names()
    if name not in listed:
        raise UnknownName("format", name, listed)
    return getattr(formats, listed[name])(**settings)


@dataclass(frozen=True)
class Compress(Change):
    """Change that stores linear layers in a format; its products read the stored tensors.

    Experts in stacks are stored where the format stores rows apart (`BlockInt`) and an expert has a
    multiple of 32 rows. Embeddings, heads, norms, routers and convolutions stay as they are.

    Raises: as the format; TargetError in `plan` for a model with adapters, or without such layers.
    Source: Deep Compression (arXiv:1510.00149), for weights that stay compressed in memory. Not for
    training: nothing that is compressed has a gradient.
    """

    format: Any = setting(
        help=(
            "The format of the weights, `formats.Bitmask()`, `Columns()`, ...; read from a file it "
            'is {"name", its settings}.'
        ),
        factory=Bitmask,
    )
    layers: Sequence[str] = setting(
        (),
        "The layers that are stored so, as globs of paths; none = all linear layers inside the "
        'blocks. A layer outside the blocks is named in full, as "lm_head".',
    )

    stores: ClassVar[str] = "all"
    rewires: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Convert settings that come from a file, and check the format.  Raises: ConfigError."""
        check(self)
        object.__setattr__(self, "layers", tuple(self.layers))
        if isinstance(self.format, Mapping):
            settings = dict(self.format)
            form = format_named(str(settings.pop("name", "")), **settings)
            object.__setattr__(self, "format", form)
        if not isinstance(self.format, Format):
            fix = "Pass intarsia.formats.Bitmask(values='int8')."
            got = type(self.format).__name__
            raise ConfigError("format", got=got, want="a format", fix=fix)

    def settings_to_dict(self) -> dict[str, Any]:
        """Return the format's name and settings, and the globs, ready for JSON."""
        name = type(self.format).__name__.lower()
        return {"format": {"name": name, **asdict(self.format)}, "layers": list(self.layers)}

    @property
    def preserves(self) -> frozenset[str]:
        """Set with "outputs", where the format is exact."""
        return frozenset({"outputs"} if self.format.exact else ())

    def plan(self, host: nn.Module, batches: Iterable[Any] = (), *, seed: int = 0) -> Plan:
        """Choose the layers and encode their weights; nothing in the model is replaced yet.

        batches: read only for a format that chooses codes by a layer's inputs (`format.needs`).
        """
        # batches may be a stream: it is read only for a format that looks at it
        rows = tuple(batches) if self.format.needs else ()
        return self.plan_of(host, rows, seed, lambda _, stack: stack)

    def plan_of(
        self,
        host: nn.Module,
        rows: Sequence[Any],
        seed: int,
        experts: Callable[[str, Tensor], Iterable[Tensor]],
    ) -> Packing:
        """Return the plan of a model, for which experts may come from somewhere else.

        rows: calibration data; experts: yields the matrices (out, in) of a stack, one by one, from
        its path and the stack (E, out, in), which may be on the meta device.
        """
        form = self.format
        matrices, stacks = targets(host, self)
        moments = _second_moments(host, form, matrices, rows)
        stored = {
            path: form.encode(_checked(path, m), moments=moments.get(path))
            for path, m in matrices.items()
        }
        for path, stack in stacks.items():
            encoded = [form.encode(_finite(path, weight)) for weight in experts(path, stack)]
            stored[path] = form.joined(encoded)
        calibration = {"calibration": digest_of(rows)} if rows else {}
        shapes = {path: tuple(m.read().shape) for path, m in matrices.items()}
        shapes |= {path: tuple(stack.shape) for path, stack in stacks.items()}
        return packing(self, seed, shapes, stored, calibration)

    def apply(self, host: nn.Module, plan: Plan, *, name: str = "default") -> nn.Module:
        """Replace the planned linear layers by packed ones, in place.

        A plan that was read from a folder has only sizes; that folder's weights are loaded later.
        Raises: CheckpointError for a plan with altered settings, or of another model.
        """
        model, decided = base_of(host), dict(plan.decided)
        _check_decided(self, decided)
        stored = plan.stored if isinstance(plan, Packing) else None
        packed: dict[str, PackedLinear] = {}
        modules = dict(model.named_modules())
        for path, sketch in decided["layers"].items():
            layer = _replaced_linear(modules, path, tuple(sketch["shape"]))
            parts = _allocate(path, sketch) if stored is None else stored[path]
            packed[path] = PackedLinear(self.format, parts, tuple(sketch["shape"]), layer.bias)
            packed[path].train(layer.training)
        stacks: dict[str, PackedStack] = {}
        for path, sketch in decided.get("stacks", {}).items():
            shape = stack_shape(model, path, sketch["shape"])
            parts = _allocate(path, sketch, mapped=True) if stored is None else stored[path]
            stacks[path] = PackedStack(self.format, parts, shape)
        # every layer is built and checked before the first one is replaced
        for path, layer in packed.items():
            model.set_submodule(path, layer)
        put_stacks(model, stacks)
        if generates(model):
            with_native_generate(model)
        return host

    def fold(self, host: nn.Module) -> nn.Module:
        """Copy the model with plain linear layers of the decoded weights."""
        plain = copy.deepcopy(host)
        model = base_of(plain)
        for path, layer in list(model.named_modules()):
            if isinstance(layer, PackedLinear):
                model.set_submodule(path, unpacked(layer))
        unpack_stacks(model, type(self.format))
        without_native_generate(model)
        # the copy is recorded as a model without this change
        set_steps(model, (s for s in steps_of(model) if not isinstance(s.plan.change, Compress)))
        return plain


@dataclass(frozen=True)
class Packing(Plan):
    """Plan that also holds the stored tensors of each layer: path -> tensor name -> tensor.

    Tensors are no part of a plan's file, so that a plan from a folder is a plain `Plan`.
    """

    stored: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)


def packing(
    change: Compress,
    seed: int,
    shapes: Mapping[str, Sequence[int]],
    stored: Mapping[str, Mapping[str, Tensor]],
    extra: Mapping[str, Any],
) -> Packing:
    """Build the plan of a change with stored tensors that are computed already.

    shapes: path -> (out, in) of each layer, (E, out, in) of a stack of experts.
    stored: path -> the format's tensors by name; extra: further entries of the plan, ready for
    JSON.
    """
    sketches = {path: _describe_layer(shapes[path], parts) for path, parts in stored.items()}
    stacks = {path: sketch for path, sketch in sketches.items() if len(sketch["shape"]) == 3}
    layers = {path: sketch for path, sketch in sketches.items() if path not in stacks}
    decided = {"layout": LAYOUT, "layers": layers, **extra}
    # folders of models without experts stay as they were
    decided |= {"stacks": stacks} if stacks else {}
    decided["sha256"] = _digest(change, decided)
    return Packing(change, seed, decided, stored)


def compress(
    model: nn.Module,
    fmt: Any = BlockInt(),  # noqa: B008 - frozen
    calib: Any = (),
    *,
    layers: Sequence[str] | None = None,
    force: bool | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
    progress: Callable[[str], None] | None = None,
) -> nn.Module:
    """Store a model's linear layers in a format, in place; products read the stored tensors.

    fmt: a format, as `formats.Bitmask(values="int8")`, its name, or a change that packs the layers
    itself; by default four bits for each weight.
    calib: samples as `fit` takes them, for a format that looks at the inputs of layers.
    layers: see `Compress`.
    force: what to do where dense layers are faster on this machine: None = warn, False = refuse,
    True = pack without looking. Compared is the time of all layers, one after the other as in the
    model, with one row of inputs.
    out, resume, progress: for `Gqsa` and `Qmoe` alone, which work block by block: a folder for
    finished blocks; continue from that folder, which gives the same bits as an uninterrupted call;
    a function that gets a line of text for each block.

    `intarsia.save` writes the packed layers, `load` puts them into the pretrained model, adapters
    come on top; `fold` gives plain layers back.
    Raises: ConfigError where dense is faster and force is False, or for `out` with a format, which
    is done at once; CheckpointError for a folder of another call, or with a damaged file; as
    `Compress`. The model is then as it was.
    """
    # 1. the operation: a change that packs on its own, or a format for the linear layers
    rows = batched(calib) if calib is not None and len(calib) else ()
    if isinstance(fmt, Change):
        change = fmt if layers is None else fmt.with_settings(layers=tuple(layers))
        change = change.forced() if force else change
    else:
        form = format_named(fmt) if isinstance(fmt, str) else fmt
        change = Compress(form, () if layers is None else layers)
    # 2. the plan, which encodes the layers; changes that go block by block can be resumed
    keeping = Keeping(None if out is None else Path(out), resume, progress)
    if change.walks:
        by_block: Any = change
        plan = by_block.plan(model, rows, seed=seed, keeping=keeping)
    elif out is not None or resume:
        want, fix = (
            "Gqsa or Qmoe, which go block by block",
            "Leave it out: a format is done at once.",
        )
        raise ConfigError("out", got=type(change).__name__, want=want, fix=fix)
    else:
        plan = change.plan(model, rows, seed=seed)
    # 3. dense products win where little was pruned: refuse before anything is replaced
    if not force and isinstance(plan, Packing):
        check_layers(model, plan, refuse=force is False)
    return apply_plan(model, plan)


def check_layers(model: nn.Module, plan: Packing, *, refuse: bool) -> None:
    """Compare the time of packed layers with that of dense ones; warn where these are faster.

    refuse: True = raise ConfigError instead.
    """
    packs: Any = plan.change
    matrices, _ = targets(model, packs)
    if pairs := {path: (m, plan.stored[path]) for path, m in matrices.items()}:
        check_faster(packs.format, pairs, refuse=refuse)


def matrices_of(host: nn.Module, layers: Sequence[str]) -> dict[str, Matrix]:
    """Return the linear layers that a format can store, by path.

    layers: globs of paths, none = all linear layers inside the blocks.
    Raises: TargetError if there is none.
    """
    return _targets(host, layers, None)[0]


def targets(host: nn.Module, change: Compress) -> tuple[dict[str, Matrix], dict[str, Tensor]]:
    """Return the linear layers, and the stacks of experts (E, out, in), that are stored, by path.

    Raises: TargetError if there is none of either.
    """
    return _targets(host, change.layers, change.format.row_group)


def _targets(
    host: nn.Module, layers: Sequence[str], group: int | None
) -> tuple[dict[str, Matrix], dict[str, Tensor]]:
    """Return linear layers, and stacks of experts where group, a format's `row_group`, is one."""
    # layers of the blocks, and those outside that a glob names in full
    candidates = {n: m for stop in stops_of(host, layers) for n, m in stop.layers.items()}
    matrices: dict[str, Matrix] = {}
    stacks: dict[str, Tensor] = {}
    for name, m in candidates.items():
        owner, _, stack = name.rpartition(".")[0].rpartition(".")
        if m.index is None and isinstance(m.owner, nn.Linear | Conv1D):
            matrices[name] = m
        # a gate and what it multiplies may lie in one matrix: each has whole groups of rows
        elif m.index == 0 and group is not None and len(m.read()) % (2 * group) == 0:
            weight: Tensor = getattr(m.owner, m.name).detach()
            # what lies next to a stack that is packed stays as it is
            if not owner.endswith(".shell"):
                stacks[f"{owner}.{stack}"] = weight.transpose(1, 2) if m.turned else weight
    if not matrices and not stacks:
        got = (
            f"{len(candidates)} others, such as {next(iter(candidates))!r}"
            if candidates
            else "none"
        )
        fix = "Name linear layers, or use what packs experts or convolutions."
        raise TargetError("layers to compress", got=got, want="linear layers", fix=fix)
    return matrices, stacks


def _checked(path: str, matrix: Matrix) -> Tensor:
    """Return the weight of a layer.  Raises: DataError for NaN or infinity in it."""
    return _finite(path, matrix.read())


def _finite(path: str, weight: Tensor) -> Tensor:
    """Return a weight.  Raises: DataError for NaN or infinity in it."""
    if not is_finite(weight):
        fix = "Look at how it was trained."
        got = "NaN or infinity"
        raise DataError(f"weight of {path}", got=got, want="finite numbers", fix=fix)
    return weight


def _second_moments(
    host: nn.Module, form: Format, matrices: Mapping[str, Matrix], batches: Sequence[Any]
) -> dict[str, Tensor]:
    """Collect the second moments of layers' inputs that a format needs, by path."""
    if not form.needs:
        return {}
    if not batches:
        want, fix = "rows that the model sees", "compress(model, format, texts.train[:64])."
        raise DataError("calib", got="none", want=want, fix=fix)
    check_rows(batches)
    # forward passes in the order of the batches; the hooks of `seeing` add up what each layer
    # reads
    with torch.no_grad(), seeing(matrices, form.needs) as statistics:
        for batch in batches:
            inputs = inputs_of(batch)
            host(**inputs) if isinstance(inputs, Mapping) else host(inputs)
    # (in, in) mean of x x^T, or (in,) mean of x^2
    full, collected = "hessian" in form.needs, statistics.found
    return {
        path: collected[path].second_moment if full else collected[path].mean_square
        for path in matrices
        if path in collected and collected[path].count
    }


def _describe_layer(shape: Sequence[int], stored: Mapping[str, Tensor]) -> dict[str, Any]:
    """Describe a stored layer for JSON: its shape, and type and shape of each stored tensor."""
    parts = {n: [str(t.dtype).removeprefix("torch."), list(t.shape)] for n, t in stored.items()}
    return {"shape": list(shape), "stored": parts}


def _digest(change: Compress, decided: Mapping[str, Any]) -> str:
    """Hash the settings and the plan, so that a file in which one letter changed is refused."""
    hashed = {name: value for name, value in decided.items() if name != "sha256"}
    text = json.dumps([change.settings_to_dict(), hashed], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _check_decided(change: Compress, decided: Mapping[str, Any]) -> None:
    """Check that a plan from a file is in a known layout, and unchanged since it was written."""
    subject, fix = "packed layers", "Write them again with this release: intarsia.compress."
    if decided.get("layout") != LAYOUT:
        got, want = f"layout {decided.get('layout')}", f"layout {LAYOUT}, which the kernels read"
        raise CheckpointError(subject, got=got, want=want, fix=fix)
    if decided.get("sha256") != _digest(change, decided):
        fix = "Copy the folder again from its source."
        got, want = "settings that changed after they were written", "those that were written"
        raise CheckpointError(subject, got=got, want=want, fix=fix)


def _allocate(path: str, sketch: Mapping[str, Any], *, mapped: bool = False) -> dict[str, Tensor]:
    """Allocate tensors as a file describes them; mapped: without memory, for its own to follow."""
    *experts, rows, width = sketch["shape"]
    rows *= math.prod(experts)
    parts: dict[str, Tensor] = {}
    # a damaged or hostile file must not make us allocate more than the layer could need
    budget = 4 * rows * width + 64 * rows + ROOM
    for name, (kind, shape) in sketch["stored"].items():
        dtype = getattr(torch, str(kind), None)
        # numbers and texts come from a file: each is checked before it is used
        sides = [int(side) for side in shape]
        if not isinstance(dtype, torch.dtype) or min(sides, default=0) < 0:
            raise _damaged(path, f"{name} of type {kind} and shape {shape}")
        budget -= torch.Size(sides).numel() * dtype.itemsize
        if budget < 0:
            raise _damaged(path, f"{name} of shape {shape}")
        parts[name] = torch.empty(1 if mapped else sides, dtype=dtype).expand(sides)
    return parts


def _replaced_linear(modules: Mapping[str, nn.Module], path: str, shape: tuple[int, ...]) -> Any:
    """Return the plain linear layer at a path, of shape (out, in), which a packed one replaces."""
    layer = modules.get(path)
    if isinstance(layer, nn.Linear | Conv1D) and not isinstance(layer, PackedLinear):
        sizes = tuple(layer.weight.shape)
        # GPT-2's Conv1D has its weight as (in, out)
        if shape == (sizes[::-1] if isinstance(layer, Conv1D) else sizes):
            return layer
    got = "none" if layer is None else f"a {type(layer).__name__}"
    want, fix = f"a linear layer {shape}", "Create the model as it was, without changes."
    raise CheckpointError(f"layer {path!r}", got=got, want=want, fix=fix)


def _damaged(path: str, got: str) -> CheckpointError:
    want, fix = "what a format stores of it", "Copy the folder again from its source."
    return CheckpointError(f"packed layer {path!r}", got=got, want=want, fix=fix)


CARD = Card(
    "compress",
    kind="change",
    config=Compress,
    paper=Paper(
        "1510.00149",
        2015,
        "Deep Compression: Compressing Deep Neural Networks with Pruning, Trained Quantization "
        "and Huffman Coding",
    ),
    summary="Linear layers stay compressed in memory, and multiply as they are stored.",
    family="few bits",
)
