"""GQSA: groups of weights are pruned and the others stored in 4 bits (arXiv:2412.17560)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...core import Card, Paper
from ...core.change import Change, Plan
from ...core.errors import ConfigError
from ...core.registry import settings_to_dict
from ...core.schema import check, setting
from ...core.seeds import mix
from ...formats.gqsa import ACTIVATIONS, BLOCKS, GroupSparse
from ...hosts.anatomy.blocks import base_of
from ...scores import Statistics
from ...sparse.prune.matrices import Matrix
from ...sparse.prune.progress import Kept
from ...sparse.prune.pruner import Keeping, output_error, stops_of
from ...sparse.prune.rows import check_rows, digest_of
from ...sparse.prune.walk import Stop, rowwise, walk_blocks
from ...sparse.swap.compress import Compress, matrices_of, packing
from .coded import CodedGroups, by_compensation, by_rounding
from .stages import Tuning, frozen_copy, language_rows, tuned_block, tuned_scales

STARTS = ("obs", "rtn")
PARTS = ("raw", "scale", "zero", "mask")  # of `CodedGroups`
NOT_KEPT = Keeping()


@dataclass(frozen=True)
class Gqsa(Change):
    """Linear layers without their groups of least effect, and the other groups in a few bits.

    w = s (q - z) in the groups that are kept (eqs. 1, 2), 0 in the others, see
    `formats.GroupSparse`. The first stage of tuning, BQPO, trains each block's weights, scales and
    zeros for the outputs it had; E2E-OQP trains all scales for the loss of a causal language model,
    and of no other. A stage that does not help on these rows is left out. With rows of 256 tokens
    both take half an hour on one core for 135M parameters.

    The plan holds all that is stored; applied, the model has `Compress` done to it.
    Raises: ConfigError on settings that cannot be; DataError for too few rows; TargetError for a
    model with adapters or without linear layers in blocks.
    Source: paper, section 3; "obs" is ours. Not for small models, which
    break early: look at densities .75 and .9, and at int4 without pruning.
    """

    bits: int = setting(4, "The bits of a weight; 4 has a kernel.", least=2, most=8, fix="Try 4.")
    group: int = setting(
        16,
        "The weights of a row that share a scale; 16 has a kernel.",
        least=1,
        most=2**20,
        fix="Try 16.",
    )
    density: float = setting(
        0.5,
        "The share of a layer's groups that is kept; rows may have different numbers.",
        above=0,
        most=1,
        fix="Try 0.5.",
    )
    layers: Sequence[str] = setting(
        (), "The layers that are compressed, as globs of paths, see `Compress`; none = all."
    )
    start: str = setting(
        "obs",
        'The first codes: "obs", groups chosen by sum w^2 / [U_jj]^2, and later columns make up '
        'for the weights that are pruned and rounded, a minute for 135M parameters; "rtn", '
        "groups chosen by sum w^2 x^2, each weight rounded on its own.",
        choices=STARTS,
    )
    tuning: Tuning = setting(
        Tuning(),
        "The steps and rates of both stages, or a mapping with some of them; Tuning(blocks=0, "
        "model=0) has none.",
    )
    symmetric: bool = setting(
        False, "Whether z is the middle code, as `pack-quantized` files have it."
    )
    activations: str = setting(
        "int8",
        'The inputs of the products: "int8", they are rounded, or "float", see '
        "`formats.GroupSparse`.",
        choices=ACTIVATIONS,
    )
    rows: int = setting(
        1,
        "The neighbouring rows that keep the same groups, by the sum of their scores: more are "
        "faster, and worse (docs/benchmarks/decode.md).",
        choices=BLOCKS,
    )

    stores: ClassVar[str] = "all"
    rewires: ClassVar[bool] = True
    laws: ClassVar[frozenset[str]] = frozenset()
    walks: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the settings; turn a mapping for `tuning`, as files have it, into a `Tuning`."""
        check(self)
        object.__setattr__(self, "layers", tuple(self.layers))
        if isinstance(self.tuning, Mapping):  # out of a file
            object.__setattr__(self, "tuning", Tuning(**self.tuning))
        if not isinstance(self.tuning, Tuning):
            fix = "Use Tuning(blocks=300), or {'blocks': 300} in a file."
            raise ConfigError("tuning", got=repr(self.tuning), want="a Tuning", fix=fix)
        if self.start == "obs" and self.group not in (1, 2, 4, 8, 16, 32, 64, 128):
            fix = "Try 16 or 64, or start='rtn'."
            raise ConfigError("group", got=self.group, want="a power of 2 up to 128", fix=fix)
        _ = self.form  # it checks the rest

    @property
    def form(self) -> GroupSparse:
        """The format in which weights are stored."""
        return GroupSparse(self.bits, self.group, self.activations, self.rows)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"hessian"} if self.start == "obs" else {"square"})

    def plan(
        self,
        host: nn.Module,
        batches: Iterable[Any] = (),
        *,
        seed: int = 0,
        keeping: Keeping = NOT_KEPT,
    ) -> Plan:
        """Prune, quantise and tune on a copy of the model; the host stays as it is.

        keeping: where finished blocks are written, from which an interrupted plan resumes; the
        end-to-end stage starts again. Returns the plan of a `Compress`.
        """
        rows = tuple(batches)
        stops = linear_stops(host, self.layers)
        check_rows(rows)
        # Settings and data of a plan identify its progress on disk.
        decided = {"calibration": digest_of(rows), "batches": len(rows)}
        progress = keeping.of(self, host, seed, decided)
        self.tuning.warn_of_few()
        model = frozen_copy(base_of(host))
        coded, layer_rows = self.coded(model, rows, seed, progress)
        shapes = {n: tuple(m.read().shape) for s in stops for n, m in s.layers.items()}
        stored = {path: c.stored() for path, c in coded.items()}
        record = {
            "method": {"key": "gqsa", **settings_to_dict(self)},
            "calibration": decided["calibration"],
            "layers told": layer_rows,
        }
        change = Compress(self.form, self.layers)
        return packing(change, seed, {p: shapes[p] for p in coded}, stored, record)

    def apply(self, host: nn.Module, plan: Plan, *, name: str = "default") -> nn.Module:
        """Pack the layers of the model as `Compress` does; the plan is a `Compress`."""
        return plan.change.apply(host, plan, name=name)

    def coded(
        self, model: nn.Module, rows: Sequence[Any], seed: int = 0, progress: Kept | None = None
    ) -> tuple[dict[str, CodedGroups], list[dict[str, Any]]]:
        """Choose and tune the codes of every layer: block by block (BQPO), then all scales at once.

        model: a copy to work on, with its weights replaced by the decoded ones; rows: calibration
          batches; seed: of the order of rows; progress: blocks that were finished before, None =
          none.
        Returns the codes by path, and a report row for each layer.
        """
        coded_layers: dict[str, CodedGroups] = {}
        dense: dict[str, Tensor] = {}
        stops = linear_stops(model, self.layers)
        rows, tuning = list(rowwise(rows)), self.tuning

        def edit(
            path: str, layers: Mapping[str, Matrix], statistics: Mapping[str, Statistics]
        ) -> list[dict[str, Any]]:
            """Choose the codes of a block's layers; return a report row for each."""
            return [
                self._edit(n, m, statistics.get(n), coded_layers, dense) for n, m in layers.items()
            ]

        def tune(stop: Stop, flow: Any, number: int) -> None:
            """Tune the codes of a block by BQPO, and write the decoded weights into it."""
            coded = {path: coded_layers[path] for path in stop.layers if path in coded_layers}
            # A language model's head has no block with outputs that could be compared.
            if coded and not stop.outside:
                dense_weights = {path: dense.pop(path) for path in coded}
                generator = _block_generator(seed, number)
                coded_layers.update(
                    tuned_block(stop, flow, number, dense_weights, coded, tuning, generator)
                )
                for path in coded:
                    stop.layers[path].write(coded_layers[path].weight())

        # The codes of finished blocks are written as well as the weights: they cannot be read back.
        progress = (Kept(None, {}) if progress is None else progress).with_beside(
            lambda stop: _block_tensors(coded_layers, stop),
            lambda stop, tensors: coded_layers.update(self._read_block_tensors(stop, tensors)),
        )
        # BQPO comes after each block's rounding, so that later blocks see the tuned one.
        tune_block = tune if tuning.blocks else None
        layer_rows = walk_blocks(
            model, stops, rows, edit, needs=self.needs, kept=progress, tune=tune_block
        )
        # E2E-OQP comes once at the end, and only for a model with a language-model loss.
        tokens = language_rows(model, rows) if tuning.model else []
        if tokens:
            layers = {n: m for stop in stops for n, m in stop.layers.items() if n in coded_layers}
            generator = _block_generator(seed, len(stops))
            coded_layers = tuned_scales(model, layers, coded_layers, tokens, tuning, generator)
            for path, coded in coded_layers.items():
                layers[path].write(coded.weight())
        return coded_layers, layer_rows

    def _read_block_tensors(
        self, stop: Stop, tensors: Mapping[str, Tensor]
    ) -> dict[str, CodedGroups]:
        coded: dict[str, CodedGroups] = {}
        for path, layer in stop.layers.items():
            if f"{path}/raw" in tensors:
                parts = (tensors[f"{path}/{part}"] for part in PARTS)
                coded[path] = CodedGroups(self.form, layer.read().shape[1], *parts)
        return coded

    def _edit(
        self,
        name: str,
        layer: Matrix,
        statistics: Statistics | None,
        coded_layers: dict[str, CodedGroups],
        dense: dict[str, Tensor],
    ) -> dict[str, Any]:
        """Choose a layer's codes, write the decoded weight, and return the layer's report row."""
        weight = layer.read()
        row: dict[str, Any] = {"layer": name, "weights": weight.numel(), "density": 1.0}
        # An expert that no token was routed to, for example.
        if statistics is None or not statistics.count:
            return row | {"told": "no calibration row reached it; it stays dense"}
        choose = by_compensation if self.start == "obs" else by_rounding
        coded = choose(weight, statistics, self.form, self.density, self.symmetric)
        coded_layers[name], new = coded, coded.weight()
        if self.tuning.blocks:
            # BQPO compares with the outputs of the dense block.
            dense[name] = weight.detach().float().clone()
        layer.write(new)
        row["density"] = float(coded.mask.float().mean())
        if "hessian" in statistics.collected:
            row["error"] = output_error(weight, new.to(weight), statistics)
        if weight.shape[1] % self.group:
            row["told"] = f"{weight.shape[1]} inputs, padded to whole groups of {self.group}"
        return row


def _block_tensors(coded_layers: Mapping[str, CodedGroups], stop: Stop) -> dict[str, Tensor]:
    """Return the codes of a finished block as tensors to write, "path/part" -> tensor."""
    block_layers = {path: coded_layers[path] for path in stop.layers if path in coded_layers}
    return {
        f"{path}/{part}": getattr(c, part) for path, c in block_layers.items() for part in PARTS
    }


def _block_generator(seed: int, number: int) -> torch.Generator:
    """Make the generator of one block, so that an interrupted run draws as a whole one."""
    return torch.Generator().manual_seed(mix(seed, number))


def linear_stops(host: nn.Module, layers: Sequence[str]) -> list[Stop]:
    """Return the blocks of a model, each with the linear layers that GQSA compresses.

    layers: patterns of the layers' paths, none = all. Raises: as `matrices_of`.
    """
    linear_layers = matrices_of(host, layers)
    return [
        replace(stop, layers={n: m for n, m in stop.layers.items() if n in linear_layers})
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
