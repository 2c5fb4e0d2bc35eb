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
from ..core.errors import CheckpointError, TargetError
from ..core.registry import settings_to_dict
from ..core.schema import check, setting
from ..decode.native_generation import generates, with_native_generate, without_native_generate
from ..formats import Ternary
from ..formats.ternary import entropy, levels_of, nearest
from ..hosts.anatomy.blocks import base_of
from ..mixtures.packed_experts import PackedStack, put_stacks, stack_shape, unpack_stacks
from ..partitions.stacks import compensate_stack
from ..scores import Statistics
from ..sparse.prune.matrices import Matrix
from ..sparse.prune.pruner import Keeping, output_error, stops_of
from ..sparse.prune.rows import check_rows, digest_of
from ..sparse.prune.walk import Stop, walk_blocks

STARTS = ("gptq", "rtn")
NOT_KEPT = Keeping()
LAYOUT = 1  # of the stored tensors
WARN_DIFFERENCE = 0.05  # difference in the share of zeros, at which another dictionary is offered


@dataclass(frozen=True)
class Qmoe(Change):
    """Experts with matrices of three levels a row, min(w, 0), 0 and max(w, 0), coded as words.

    Columns are rounded one after the other, all experts of a layer at once, and later ones make up
    for the error on the rows that are routed to the expert (GPTQ, section 3.2); an expert that no
    row reaches, or that has singular moments, is rounded on its own. For the stored form, see
    `formats.Ternary`: at 88.5 % zeros 0.76 bits a weight with all that belongs to it.

    Loaded with `intarsia.load`, experts stay mapped from the file: an expert's pages are read when
    it is first used.
    Raises: ConfigError on settings that cannot be; TargetError for a model without stacked experts,
    or with adapters; DataError for too few rows.
    Source: paper, sections 3 and 4. Moments are added up batch by batch, so that no expert's rows
    are kept, and none are cut at four times the mean, as the paper does to bound them. Not for a
    few small experts, which lose much: it is made for thousands.
    """

    layers: Sequence[str] = setting(
        (),
        'The stacks of experts, as globs of paths such as "*.experts.up*"; none = all, from '
        "`intarsia.upcycle` or fused ones of transformers. Routers, attention and embeddings "
        "stay as they are.",
    )
    start: str = setting(
        "gptq", 'The rounding: "gptq", or "rtn", each weight on its own.', choices=STARTS
    )
    damp: float = setting(
        0.1, "The damping of the moments, a share of their mean diagonal.", above=0, fix="Try 0.1."
    )
    zeros: float = setting(
        0.885,
        "The share of zeros for which the dictionary is made.",
        least=0.4,
        most=0.995,
        fix="Try 0.885.",
    )

    stores: ClassVar[str] = "all"
    rewires: ClassVar[bool] = True
    laws: ClassVar[frozenset[str]] = frozenset()
    walks: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check(self)
        object.__setattr__(self, "layers", tuple(self.layers))

    @property
    def form(self) -> Ternary:
        """The format in which experts are stored."""
        return Ternary(self.zeros)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"hessian"} if self.start == "gptq" else ())

    def plan(
        self,
        host: nn.Module,
        batches: Iterable[Any] = (),
        *,
        seed: int = 0,
        keeping: Keeping = NOT_KEPT,
    ) -> Plan:
        """Round and encode all experts on a copy of the model; the host stays as it is.

        batches: unused if start="rtn". keeping: where finished blocks are written, so that an
        interrupted plan can resume.
        """
        # A model without stacks is refused before it is copied.
        expert_stops(host, self.layers)
        # Rounding each weight on its own reads no data.
        rows = tuple(batches) if self.needs else ()
        if self.needs:
            check_rows(rows)
        stored: dict[str, dict[str, Tensor]] = {}
        calibration = {"calibration": digest_of(rows), "batches": len(rows)}
        progress = keeping.of(self, host, seed, calibration).with_beside(
            partial(_block_tensors, stored),
            lambda _, tensors: stored.update(_read_block_tensors(tensors)),
        )
        model = copy.deepcopy(base_of(host)).requires_grad_(False).eval()
        stops = expert_stops(model, self.layers)
        sizes = {
            path: [len(names), *stop.layers[names[0]].read().shape]
            for stop in stops
            for path, names in stacks_of(stop.layers).items()
        }
        edit = partial(self._edit, stored)
        layer_rows = walk_blocks(model, stops, rows, edit, needs=self.needs, kept=progress)
        stacks = {p: {"shape": sizes[p], "codes": len(s["codes"])} for p, s in stored.items()}
        decided = {
            "layout": LAYOUT,
            "stacks": stacks,
            "calibration": calibration["calibration"],
            "told": layer_rows,
        }
        # Numbers of the experts are in the folder's tensors; the digest binds the settings to them.
        decided["sha256"] = _digest(self, decided)
        return MixturePacking(self, seed, decided, stored)

    def apply(self, host: nn.Module, plan: Plan, *, name: str = "default") -> nn.Module:
        """Pack the experts, in place; a plan that was read makes empty ones to be filled."""
        model, decided = base_of(host), dict(plan.decided)
        _check_decided(self, decided)
        stored = plan.stored if isinstance(plan, MixturePacking) else None
        stacks: dict[str, PackedStack] = {}
        for path, layout in decided["stacks"].items():
            # The plan may be of another model: sizes are compared before anything is replaced.
            shape = stack_shape(model, path, layout["shape"])
            parts = _room(path, shape, layout) if stored is None else stored[path]
            stacks[path] = PackedStack(self.form, parts, shape)
        put_stacks(model, stacks)
        if generates(model):
            with_native_generate(model)
        return host

    def fold(self, host: nn.Module) -> nn.Module:
        """Return a copy of the model with plain experts, which have the decoded weights."""
        plain = copy.deepcopy(host)
        model = base_of(plain)
        unpack_stacks(model, Ternary)
        without_native_generate(model)
        set_steps(model, (s for s in steps_of(model) if not isinstance(s.plan.change, Qmoe)))
        return plain

    def _edit(
        self,
        stored: dict[str, dict[str, Tensor]],
        _: str,
        layers: Mapping[str, Matrix],
        statistics: Mapping[str, Statistics],
    ) -> list[dict[str, Any]]:
        """Round the stacks of a block, store their codes, and return a report row for each."""
        rows: list[dict[str, Any]] = []
        for path, names in stacks_of(layers).items():
            weights = torch.stack([layers[n].read().float() for n in names])
            expert_statistics = [statistics.get(n) for n in names]
            # The grid of a row: its smallest value, 0 and its largest (section 3.2).
            levels = levels_of(weights.flatten(0, 1))  # (E out, 2)
            new, reasons = self.rounded(weights, expert_statistics, levels)
            digits = nearest(new.flatten(0, 1), levels)
            stored[path] = self.form.stored(digits, levels)
            for n, w in zip(names, new, strict=True):
                layers[n].write(w)
            zeros = float((digits == 0).float().mean())
            # A code word has 16 bits.
            bits = 16 * len(stored[path]["codes"]) / digits.numel()
            row: dict[str, Any] = {"layer": path, "weights": digits.numel(), "density": 1 - zeros}
            row |= {"bits": bits, "entropy": entropy(zeros)}
            if self.needs:
                # Next to it the error of plain rounding, which shows what compensation gained.
                row["error"] = _mean_output_error(weights, new, expert_statistics)
                row["error_rounded"] = _mean_output_error(
                    weights, self._nearest(weights, levels), expert_statistics
                )
            # Experts without rows, or with singular moments, fall back to plain rounding: say so.
            remarks = [f"expert {e}: {reason}" for e, reason in enumerate(reasons) if reason]
            if abs(zeros - self.zeros) > WARN_DIFFERENCE:
                remarks.append(f"{zeros:.3f} of its weights are 0: try zeros={zeros:.3f}")
            rows.append(row | ({"told": "; ".join(remarks)} if remarks else {}))
        return rows

    def rounded(
        self, weights: Tensor, statistics: Sequence[Statistics | None], levels: Tensor
    ) -> tuple[Tensor, list[str]]:
        """Round a stack of weights to its levels, with GPTQ's compensation unless start="rtn".

        weights: (E, out, in); statistics: of each expert's inputs, None = no row reached it;
        levels: (E out, 2), the lowest and highest of each row.
        Returns (E, out, in), and for each expert a text, empty unless it was rounded without
        compensation.
        """
        if self.start == "rtn":
            return self._nearest(weights, levels), []
        expert_levels = levels.view(*weights.shape[:2], 2)

        def code(columns: Tensor) -> Tensor:
            return _nearest_level(columns, expert_levels[..., 0], expert_levels[..., 1])

        return compensate_stack(weights, statistics, code, damp=self.damp)

    def _nearest(self, weights: Tensor, levels: Tensor) -> Tensor:
        """Round each weight (E, out, in) to the nearest of its row's two levels."""
        # (E out, 2) -> (E, out, 1, 2): a row's lowest and highest level, for all its weights.
        expert_levels = levels.view(*weights.shape[:2], 1, 2)
        return _nearest_level(weights, expert_levels[..., 0], expert_levels[..., 1])


@dataclass(frozen=True)
class MixturePacking(Plan):
    """A plan with the encoded stacks; read from a folder it is a plain one."""

    stored: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)


def stacks_of(layers: Iterable[str]) -> dict[str, list[str]]:
    """Group the names of experts' matrices by the path of their stack.

    layers: names such as "mlp.experts.up.3", the matrix of expert 3 in the stack "mlp.experts.up".
    """
    names_of_stacks: dict[str, list[str]] = {}
    for name in layers:
        names_of_stacks.setdefault(name.rpartition(".")[0], []).append(name)
    return names_of_stacks


def _block_tensors(stored: Mapping[str, Mapping[str, Tensor]], stop: Stop) -> dict[str, Tensor]:
    """Return the encoded tensors to write of a finished block, "stack's path/part" -> tensor."""
    paths = stacks_of(stop.layers)
    return {f"{path}/{name}": t for path in paths for name, t in stored[path].items()}


def _read_block_tensors(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Group the tensors of a finished block's file by stack: path -> part -> tensor."""
    stored: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        path, _, part = name.rpartition("/")
        stored.setdefault(path, {})[part] = tensor
    return stored


def expert_stops(host: nn.Module, layers: Sequence[str]) -> list[Stop]:
    """Return the blocks of a model, each with only the matrices that are stacked experts.

    layers: globs of stacks' paths, none = all. Raises: TargetError if there are no stacks, and as
      `stops_of`.
    """
    stops: list[Stop] = []
    # Matrices of stacks have an index, the expert; others stay as they are.
    for stop in stops_of(host, layers):
        matrices = {n: m for n, m in stop.layers.items() if m.index is not None}
        stops.append(Stop(stop.path, stop.block, matrices))
    if not any(stop.layers for stop in stops):
        fix = "Upcycle the model first: intarsia.upcycle(model), or use compress for linear layers."
        got = f"a {type(base_of(host)).__name__} without"
        raise TargetError("stacks of experts", got=got, want="a mixture", fix=fix)
    return stops


def _nearest_level(weight: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return low, 0 or high, whichever is nearest to the weight."""
    # The border between two neighbouring levels lies half way.
    return high.where(weight > high / 2, low.where(weight < low / 2, 0.0))


def _mean_output_error(
    weights: Tensor, new: Tensor, statistics: Sequence[Statistics | None]
) -> float | None:
    """Compute ||(W' - W) X|| / ||W X||, the mean over experts that rows were routed to."""
    errors = [
        output_error(w, n, s)
        for w, n, s in zip(weights, new, statistics, strict=True)
        if s is not None and s.count and "hessian" in s.collected
    ]
    return sum(errors) / len(errors) if errors else None


def _room(path: str, shape: Sequence[int], layout: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return placeholders with the shapes and types of a file's tensors, which take no memory."""
    rows, codes = shape[0] * shape[1], int(layout["codes"])
    if not 0 <= codes <= rows * shape[2]:
        got, want = f"{codes} words", f"at most {rows * shape[2]}"
        fix = "Copy the folder again from its source."
        raise CheckpointError(f"experts {path!r}", got=got, want=want, fix=fix)
    sizes = {
        "codes": ((codes,), torch.uint16),
        "row_offsets": ((rows + 1,), torch.int64),
        "levels": ((rows, 2), torch.bfloat16),
    }
    # one number, expanded: loading puts the file's mapped tensor in its place
    return {n: torch.zeros(1, dtype=d).expand(s) for n, (s, d) in sizes.items()}


def _digest(change: Qmoe, decided: Mapping[str, Any]) -> str:
    """Hash the settings and facts of a plan, so that a file with a changed letter is refused."""
    digested = {name: value for name, value in decided.items() if name != "sha256"}
    text = json.dumps([settings_to_dict(change), digested], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _check_decided(change: Qmoe, decided: Mapping[str, Any]) -> None:
    """Refuse stored bytes of another layout, or settings that were changed after writing."""
    subject = "packed experts"
    if decided.get("layout") != LAYOUT:
        got, want = f"layout {decided.get('layout')}", f"layout {LAYOUT}, which the kernels read"
        fix = "Write them again with this release."
        raise CheckpointError(subject, got=got, want=want, fix=fix)
    if decided.get("sha256") != _digest(change, decided):
        got, want = "settings that changed after they were written", "those that were written"
        fix = "Copy the folder again from its source."
        raise CheckpointError(subject, got=got, want=want, fix=fix)


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
