"""Sparse deltas: the change of some entries of a model's weights, to apply, add and send around."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ...core.errors import CheckpointError, ConfigError, ShapeError
from ..anatomy.origin import ABSOLUTE, RELATIVE, damaged
from ..anatomy.own_weights import own_parameters
from . import file as delta_file

SAMPLES = 8  # of each parameter
HEADLESS = "delta.without_heads() leaves the heads out."
TRUNK = (
    'delta.only("bert.*"), say, leaves others out; LtSft(head="frozen") chooses none behind the '
    "trunk."
)
T = TypeVar("T")
Entry = tuple[Tensor, Tensor]  # flat indices (n,) int64, ascending; values (n,)
# parameter, indices, values before, values after
Touched = tuple[nn.Parameter, Any, Tensor, Tensor]


def samples(tensors: Mapping[str, Tensor]) -> dict[str, list[float]]:
    """Return a few weights of each tensor, at fixed places, by which a base model is recognised."""
    values_by_name: dict[str, list[float]] = {}
    for name, tensor in tensors.items():
        places = _sample_places(tensor.numel()).to(tensor.device)
        values_by_name[name] = [
            float(f"{v:.5g}") for v in tensor.detach().reshape(-1)[places].tolist()
        ]
    return values_by_name


def _sample_places(size: int) -> Tensor:
    """Return up to eight flat places, evenly spread over a tensor of a size."""
    count = min(SAMPLES, size)
    return (2 * torch.arange(count) + 1) * size // max(1, 2 * count)


@dataclass(frozen=True, eq=False)
class SparseDelta:
    """Change phi of some entries of a model's weights, theta = theta_0 + phi.

    entries: name of a parameter -> (flat indices into it, int64, ascending; values of phi there);
    shapes: of those parameters.
    base: a few weights of theta_0, see `samples`.  heads: layers that theta_0 has not trained,
    whole and absolute: they are set, not added, and no arithmetic changes them.

    a + b, a - b, s * a and -a are deltas of the same base; a + b is exact about overlaps and the
    same as b + a. Entries that are zero are left out.
    Raises: ShapeError for entries that do not fit their shapes; ConfigError for sums of deltas of
    two bases, or of two heads of one name that differ; CheckpointError for a model that is not the
    base, or a file that is no delta.
    Source: LT-SFT (arXiv:2110.07560), section 3; task arithmetic (arXiv:2212.04089).
    """

    entries: Mapping[str, Entry]
    shapes: Mapping[str, tuple[int, ...]]
    base: Mapping[str, list[float]]
    heads: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])

    def __post_init__(self) -> None:
        """Check that indices are ascending and inside their parameters, one for each value."""
        for name, (index, values) in self.entries.items():
            size = torch.Size(self.shapes[name]).numel() if name in self.shapes else -1
            # ascending indices are unique, which sums rely on
            rising = index.dtype == torch.int64 and bool((index[1:] > index[:-1]).all())
            inside = not len(index) or (int(index[0]) >= 0 and int(index[-1]) < size)
            if index.dim() != 1 or values.shape != index.shape or not rising or not inside:
                got = f"places {tuple(index.shape)} {index.dtype}, values {tuple(values.shape)}"
                want = f"as many rising int64 places in 0 ... {size - 1} as values"
                fix = "Build deltas with LtSft or SparseDelta.between."
                raise ShapeError(f"entries of {name!r}", got=got, want=want, fix=fix)

    @classmethod
    def between(
        cls,
        model: nn.Module,
        start: Mapping[str, Tensor],
        *,
        heads: Mapping[str, Tensor] | None = None,
    ) -> SparseDelta:
        """Return the difference between a model's parameters and their earlier values.

        model: after the training; start: parameters by name as they were before; heads: trained
        heads, stored whole.
        """
        weights = own_parameters(model)
        entries: dict[str, Entry] = {}
        for name, old in start.items():
            change = (weights[name].detach() - old.to(weights[name].device)).reshape(-1)
            # every weight that differs is an entry, however little
            index = change.nonzero().flatten()
            entries[name] = index.cpu(), change[index].cpu()
        head_copies = {name: head.detach().cpu().clone() for name, head in (heads or {}).items()}
        return cls.of(entries, start, head_copies)

    @classmethod
    def of(
        cls, entries: Mapping[str, Entry], start: Mapping[str, Tensor], heads: Mapping[str, Tensor]
    ) -> SparseDelta:
        """Build a delta from its entries and the weights of its base.

        entries: name of a parameter -> (flat indices, values); start: those parameters of the base;
        heads: layers that are stored whole.
        """
        shapes = {name: tuple(old.shape) for name, old in start.items()}
        return cls(entries, shapes, samples(start), heads)._without_zeros()

    def __len__(self) -> int:
        """Count the entries that change, heads apart."""
        return sum(len(index) for index, _ in self.entries.values())

    @property
    def density(self) -> float:
        """Share of the entries of the named parameters that change."""
        total = sum(torch.Size(shape).numel() for shape in self.shapes.values())
        return len(self) / total if total else 0.0

    def apply(self, model: nn.Module, *, check: bool = True) -> None:
        """Add phi to the weights of its base theta_0, in place, and set the heads.

        A tied parameter is changed once. check: compare a few weights with the base's; False for a
        model that has been trained on since: then only its names and shapes are checked.
        Raises: CheckpointError for another base, or one without these parameters; the model is
        then as it was.
        """
        self._add_entries(self._fitting_parameters(model, check))

    def revert(self, model: nn.Module, *, check: bool = True) -> None:
        """Subtract phi from the weights, in place: the model before `apply`, but for one rounding.

        Heads stay as they are. To restore the same bits, and heads, use `applied`.
        check, Raises: as in `apply`.
        """
        away = (-self).without_heads()
        away._add_entries(away._fitting_parameters(model, check, applied=self.entries))

    def check(self, model: nn.Module) -> None:
        """Check that `apply` would succeed on a model, without changing it.

        Raises: CheckpointError.
        """
        self._fitting_parameters(model)

    @contextmanager
    def applied(self, model: nn.Module, *, check: bool = True) -> Iterator[None]:
        """Apply the delta inside the `with`; afterwards all changed weights have their old bits.

        Weights that are trained meanwhile keep their updates: in a training on several sources,
        each batch can be learned with the delta of its source in place.
        check, Raises: as in `apply`.
        """
        touched = self._add_entries(self._fitting_parameters(model, check))
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, place, before, after in reversed(touched):
                    now = parameter.view(-1)[place]
                    # untouched entries get their bits back, trained ones keep their updates
                    back = torch.where(now == after, before, before + (now - after))
                    parameter.view(-1)[place] = back

    @torch.no_grad()
    def _add_entries(self, weights: Mapping[str, nn.Parameter]) -> list[Touched]:
        """Add the changes to the weights, rounding once, and set the heads, in place."""
        changes: list[tuple[str, Any, Tensor]] = [(n, i, v) for n, (i, v) in self.entries.items()]
        # heads are set as a whole
        changes += [(n, slice(None), head.reshape(-1)) for n, head in self.heads.items()]
        touched: list[Touched] = []
        for name, place, values in changes:
            parameter = weights[name]
            # flat indices need a flat view of the weight
            if not parameter.is_contiguous():
                parameter.data = parameter.data.contiguous()
            flat, values = parameter.view(-1), values.to(parameter.device)
            if isinstance(place, Tensor):
                place = place.to(parameter.device)
                values = flat[place] + values
            before = flat[place].clone()
            flat[place] = values.to(parameter.dtype)
            touched.append((parameter, place, before, flat[place].clone()))
        return touched

    def _fitting_parameters(
        self, model: nn.Module, check: bool = True, applied: Mapping[str, Entry] | None = None
    ) -> dict[str, nn.Parameter]:
        """Return the model's parameters by name, after a check that the delta fits them."""
        weights = own_parameters(model)
        # heads are set whole, at names that no entry changes
        expected = dict(self.shapes) | {n: tuple(h.shape) for n, h in self.heads.items()}
        first_name: dict[int, str] = {}
        for name, shape in expected.items():
            got = tuple(weights[name].shape) if name in weights else "no parameter of that name"
            if (
                name in weights
                and (tied_name := first_name.setdefault(id(weights[name]), name)) != name
            ):
                # a tied weight would be changed twice
                got = f"a weight that is tied to {tied_name!r}, which the delta changes too"
            if got != shape:
                raise CheckpointError(
                    f"delta of {name!r}",
                    got=got,
                    want=f"shape {shape}, once",
                    fix="Create the model with the sizes and classes of the training run; "
                    + (HEADLESS if name in self.heads else TRUNK),
                )
        if check:
            self._check_base(weights, applied or {})
        return weights

    def _check_base(
        self, weights: Mapping[str, nn.Parameter], applied: Mapping[str, Entry]
    ) -> None:
        """Check that at least half of the base's stored samples equal the model's weights."""
        compared = equal = 0
        for name, values in samples({n: weights[n] for n in self.base}).items():
            want, got = torch.tensor([self.base[name], values], dtype=torch.float64)
            near = torch.isclose(got, want, rtol=RELATIVE, atol=ABSOLUTE)
            # if the delta is in the model already, its weights are theta + phi
            if name in applied:
                full = torch.zeros(torch.Size(self.shapes[name]).numel(), dtype=torch.float64)
                full[applied[name][0]] = applied[name][1].double()
                moved = want + full[_sample_places(len(full))]
                near |= torch.isclose(got, moved, rtol=RELATIVE, atol=ABSOLUTE)
            # zeros do not count
            informative = (got.abs() > ABSOLUTE) | (want.abs() > ABSOLUTE)
            compared, equal = (
                compared + int(informative.sum()),
                equal + int((near & informative).sum()),
            )
        # most weights stay under another delta; another training changes nearly all
        if 2 * equal < compared:
            raise CheckpointError(
                "base of the delta",
                got=f"other weights ({equal} of {compared} samples are the same)",
                want="the pretrained weights that the delta was found in",
                fix="Load those weights. Of deltas that change most entries, apply the sum; for a "
                "model that was trained on since, pass check=False.",
            )

    def __add__(self, other: SparseDelta) -> SparseDelta:
        """Return the sum of two changes of one base model; entries that become 0 are left out."""
        # samples of the bases are compared bit by bit: a sum of deltas of two bases fits neither
        for name in self.base.keys() & other.base.keys():
            if self.base[name] != other.base[name]:
                got = f"deltas of two base models, which differ in {name!r}"
                fix = "Train both from the same pretrained weights, in the same type; if one was "
                fix += "trained with another in place, add that one.rebased(other)."
                raise ConfigError("sum of deltas", got=got, want="deltas of one", fix=fix)
        for name in self.heads.keys() & other.heads.keys():
            if not torch.equal(self.heads[name], other.heads[name]):
                got, fix = "two that differ", "Keep that of the task: a + b.without_heads()."
                raise ConfigError(f"sum of deltas, head {name!r}", got=got, want="one", fix=fix)
        # parameters in the order of the first delta, then those that only the second changes
        names = list(dict.fromkeys((*self.entries, *other.entries)))
        entries = {n: _sum_entries(self.entries.get(n), other.entries.get(n)) for n in names}
        return SparseDelta(
            entries,
            {**self.shapes, **other.shapes},
            {**self.base, **other.base},
            {**self.heads, **other.heads},
        )._without_zeros()

    def rebased(self, source: SparseDelta) -> SparseDelta:
        """Express a change that was trained on top of `source` as a change of source's own base.

        For a task that was trained with the delta phi_S of its source language in place, at theta_0
        + phi_S: `task.rebased(source) + target` is then a delta of theta_0 (paper, section 3.2).
        Raises: ConfigError if the task's base is not `source` in its own base.
        """
        base = dict(self.base)
        for name in self.base.keys() & source.base.keys():
            full = torch.zeros(torch.Size(self.shapes[name]).numel(), dtype=torch.float64)
            if name in source.entries:
                index, values = source.entries[name]
                full[index] = values.double()
            # the source's own base, moved by the source's delta, must be where the task began
            start = torch.tensor(source.base[name], dtype=torch.float64)
            want, got = (
                start + full[_sample_places(len(full))],
                torch.tensor(self.base[name]).double(),
            )
            if not torch.allclose(got, want, rtol=RELATIVE, atol=ABSOLUTE):
                fix = "Rebase on the delta that was in the model when the training began."
                want = "the source's base with the source's delta in it"
                got = f"another, by {name!r}"
                raise ConfigError("base of the delta", got=got, want=want, fix=fix)
            base[name] = source.base[name]
        return replace(self, base=base)

    def __mul__(self, factor: float) -> SparseDelta:
        """Scale the changes by a factor; heads stay as they are."""
        scaled = {name: (index, values * factor) for name, (index, values) in self.entries.items()}
        return replace(self, entries=scaled)._without_zeros()

    __rmul__ = __mul__

    def __neg__(self) -> SparseDelta:
        return replace(self, entries={name: (i, -v) for name, (i, v) in self.entries.items()})

    def __sub__(self, other: SparseDelta) -> SparseDelta:
        return self + (-other)

    def without_heads(self) -> SparseDelta:
        """Return the entries alone."""
        return replace(self, heads={})

    def only(self, *names: str) -> SparseDelta:
        """Select the part that changes parameters of some names, as only("bert.*").

        names: names of parameters, or globs. Raises: ConfigError for one that fits no parameter
        here.
        """
        available = (*self.shapes, *self.heads)
        for glob in names:
            if not any(fnmatchcase(n, glob) for n in available):
                got, fix = "no parameter of that name", f"The first of its own: {available[:3]}."
                raise ConfigError(f"only {glob!r}", got=got, want="names or globs", fix=fix)

        def part(mapping: Mapping[str, T]) -> dict[str, T]:
            return {n: v for n, v in mapping.items() if any(fnmatchcase(n, glob) for glob in names)}

        return SparseDelta(*map(part, (self.entries, self.shapes, self.base, self.heads)))  # pyright: ignore

    def _without_zeros(self) -> SparseDelta:
        entries = {n: (i[v != 0], v[v != 0]) for n, (i, v) in self.entries.items()}
        return replace(self, entries=entries)

    def save(self, path: str | Path) -> None:
        """Write a safetensors file, whole or not at all; it has 12 bytes for each float32 entry."""
        tensors = {f"index:{n}": index for n, (index, _) in self.entries.items()}
        tensors |= {f"values:{n}": values for n, (_, values) in self.entries.items()}
        tensors |= {f"head:{n}": head for n, head in self.heads.items()}
        shapes = {n: list(shape) for n, shape in self.shapes.items()}
        delta_file.write(Path(path), tensors, {"shapes": shapes, "base": dict(self.base)})

    @classmethod
    def load(cls, path: str | Path) -> SparseDelta:
        """Load a delta from a file that `save` wrote.

        Raises: CheckpointError if the file is not there, damaged, cut short, or no delta.
        """
        tensors, content = delta_file.read(Path(path))
        parts: dict[str, dict[str, Tensor]] = {"index": {}, "values": {}, "head": {}}
        for key, tensor in tensors.items():
            kind, _, name = key.partition(":")
            parts.get(kind, {})[name] = tensor
        try:
            return cls(
                {n: (index, parts["values"][n]) for n, index in parts["index"].items()},
                {n: tuple(shape) for n, shape in content["shapes"].items()},
                content["base"],
                parts["head"],
            )
        except (KeyError, ShapeError, AttributeError, TypeError) as error:
            got = f"entries that do not fit ({error})"
            raise damaged(Path(path), got, delta_file.WRITER) from error


def _sum_entries(a: Entry | None, b: Entry | None) -> Entry:
    """Add two sets of changes to a parameter, each (flat indices, values); None is an empty one."""
    if a is None or b is None:
        entry = a or b
        assert entry is not None
        return entry
    # unique sorts, so that indices ascend; values of equal indices are added
    index, place = torch.cat([a[0], b[0]]).unique(return_inverse=True)
    values = torch.zeros(len(index), dtype=torch.promote_types(a[1].dtype, b[1].dtype))
    values.index_add_(0, place, torch.cat([a[1], b[1]]).to(values.dtype))
    return index, values
