"""Bring selected channels together: re-order coupled matrices so that the model stays the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ...core import Cell
from ...core.errors import ConfigError, TargetError
from ...core.registry import settings_to_dict
from ...hosts.anatomy import origin
from ...hosts.anatomy.blocks import base_of, unwrapped, walk
from ...hosts.anatomy.reorder import reorder
from ...hosts.attach.config import IntarsiaConfig
from ...hosts.attach.peft import IntarsiaLayer, PeftModel, is_adapted
from .cell import S2ftCell
from .couples import Couple, couples
from .s2ft import S2ft
from .spelling import read, spell


@dataclass(frozen=True)
class Permutation:
    """An order of the units of some couples: what now is unit i, was unit order[i].

    `apply` re-orders a model, adapted or not, in place: rows of gate and up with their biases and
    columns of down; rows of query, key and value, by KV groups, and columns of the projection. What
    the model says stays the same; S2FT adapters follow, so that one trained on the re-ordered model
    becomes one for the model as it was by `inverse().apply(model)`.

    Raises: TargetError in `apply`, if another method's cells sit on what is re-ordered.
    """

    orders: tuple[tuple[Couple, Tensor], ...]

    def inverse(self) -> Permutation:
        """The permutation that takes this one back."""
        return Permutation(tuple((couple, order.argsort()) for couple, order in self.orders))

    def apply(self, model: nn.Module) -> None:
        """Re-order a model in place.

        Raises: TargetError if another method's cells sit on what is re-ordered.
        """
        host = base_of(model)
        modules = dict(walk(host))
        rows, columns = self._rows(), self._columns()
        layers = {p: m for p in (*rows, *columns) if isinstance(m := modules[p], IntarsiaLayer)}
        around = [
            (p, n)
            for p, m in modules.items()
            if isinstance(m, IntarsiaLayer)
            for n, cell in m.intarsia_cells.items()
            if isinstance(cell, Cell) and cell.whole
            if any(q.startswith(f"{p}.") for q in (*rows, *columns))
        ]
        if around:
            what, want = f"permutation inside {around[0][0]!r}", "a model without it"
            got = f"adapter {around[0][1]!r}, whose experts know the order of its units"
            raise TargetError(what, got=got, want=want, fix="Permute before other adapters go in.")
        for path, layer in layers.items():
            for name, cell in layer.intarsia_cells.items():
                if not isinstance(cell, S2ftCell) or _side(path, rows) != cell.side:
                    got = f"adapter {name!r}, which has {type(cell).__name__}"
                    want = "cells of S2ft, which can follow it"
                    fix = "Permute the model before other adapters go in."
                    raise TargetError(f"permutation at {path!r}", got=got, want=want, fix=fix)
        for path, index in rows.items():
            reorder(unwrapped(modules[path]), index, 0)
        for path, index in columns.items():
            reorder(unwrapped(modules[path]), index, 1)
        new = {path: index.argsort() for path, index in (rows | columns).items()}
        for path, layer in layers.items():
            for cell in layer.intarsia_cells.values():
                assert isinstance(cell, S2ftCell)
                cell.renumber(new[path])
        if is_adapted(model):
            _tell(model, new)

    def moved(self, method: S2ft) -> S2ft:
        """A method whose channels were chosen before, for the model as it is after it."""
        index = self._rows() | self._columns()
        return _renumbered(method, {path: i.argsort() for path, i in index.items()})

    def _rows(self) -> dict[str, Tensor]:
        return {path: i for couple, order in self.orders for path, i in couple.rows(order).items()}

    def _columns(self) -> dict[str, Tensor]:
        return {p: i for couple, order in self.orders for p, i in couple.columns(order).items()}


def co_permute(model: nn.Module, method: S2ft) -> tuple[S2ft, Permutation]:
    """Re-order a model so that what a method selects is contiguous; the method for it, the order.

    In place. The units of each couple come in the order: selected in up (or value) only, in both,
    in down (or projection) only, the rest. Cells on runs of channels slice in place of indexing.

    Raises: ConfigError for a method without channels; TargetError where these are no whole heads,
    layers are unknown, or a norm, a bias table or the like would have to follow; nothing is changed
    then.
    """
    if not method.channels:
        what, fix = (
            "channels",
            "Call method = intarsia.methods.choose_channels(model, method) first.",
        )
        raise ConfigError(what, got="none", want="those of choose_channels", fix=fix)
    chosen, orders = dict(method.channels), []
    for couple in couples(base_of(model)):
        if not any(path in chosen for path in couple.paths):
            continue
        if couple.stray:
            raise TargetError(
                f"permutation at {couple.out[0]!r}",
                got=f"{couple.stray[:2]} beside it",
                want="linear layers only: what else has a value for each channel or head would "
                "have to follow",
                fix="Train without co_permute: results are the same.",
            )
        first = _picked(couple, chosen, couple.into)
        second = _picked(couple, chosen, [(*couple.out, 1)])
        # stable, so that units that were neighbours stay so
        group = torch.where(first, torch.where(second, 1, 0), torch.where(second, 2, 3))
        orders.append((couple, group.argsort(stable=True)))
    known = {path for couple, _ in orders for path in couple.paths}
    if lost := sorted(chosen.keys() - known):
        got = "a layer that is coupled to none that is known"
        want = "an MLP of gate, up and down, or an attention of query, key, value and projection"
        fix = "Train without co_permute: results are the same."
        raise TargetError(f"permutation at {lost[0]!r}", got=got, want=want, fix=fix)
    permutation = Permutation(tuple(orders))
    moved = permutation.moved(method)
    permutation.apply(model)
    return moved, permutation


def _picked(
    couple: Couple, chosen: Mapping[str, str], layers: Sequence[tuple[str, int, int]]
) -> Tensor:
    """(units,) bool: units with selected channels in one of the layers (path, channels, parts)."""
    units = torch.zeros(couple.units, dtype=torch.bool)
    for path, channels, parts in layers:
        if path not in chosen:
            continue
        width = channels // parts
        each = width // couple.units
        count = torch.zeros(couple.units, dtype=torch.int64)
        ids = torch.tensor(read(chosen[path])) % width // each
        count.index_add_(0, ids, torch.ones_like(ids))
        if bool(((count > 0) & (count != each)).any()):
            what = f"permutation at {path!r}"
            got, want = "a part of a head, or of a group of heads", f"all {each} channels of one"
            raise TargetError(
                what, got=got, want=want, fix="Choose with intarsia.methods.choose_channels."
            )
        units |= count > 0
    return units


def _side(path: str, rows: Mapping[str, Tensor]) -> str:
    return "outputs" if path in rows else "inputs"


def _renumbered(method: S2ft, new: Mapping[str, Tensor]) -> S2ft:
    """The method's channels where they are now: i of a layer is new[layer][i]."""
    pairs = tuple(
        (p, spell(new[p][torch.tensor(read(text))].tolist()) if p in new else text)
        for p, text in method.channels
    )
    return replace(method, channels=pairs)


def _tell(model: PeftModel, new: Mapping[str, Tensor]) -> None:
    """Write the new places into the adapters' configs, and whose weights they now belong to."""
    for config in model.peft_config.values():
        assert isinstance(config, IntarsiaConfig)  # as all are of a model that is adapted
        method = config.settings()
        if isinstance(method, S2ft):
            config.options = settings_to_dict(_renumbered(method, new))
        found = origin.matched(None, model.get_base_model(), list(config.modules_to_save or ()))
        config.origin = {**(config.origin or {}), **found}
