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
from .channels import read, spell
from .couples import Couple, couples
from .s2ft import S2ft, S2ftCell


@dataclass(frozen=True)
class Permutation:
    """A permutation of the units of couples: what now is unit i was unit order[i].

    `apply` re-orders a model, adapted or not, in place: rows of gate and up with their biases and
    columns of down; rows of query, key and value, by KV groups, and columns of the projection. What
    the model says stays the same; S2FT adapters follow, so that one trained on the re-ordered model
    becomes one for the model as it was by `inverse().apply(model)`.

    Raises: TargetError in `apply`, if another method's cells sit on re-ordered layers.
    """

    orders: tuple[tuple[Couple, Tensor], ...]

    def inverse(self) -> Permutation:
        """Return the permutation that takes this one back."""
        return Permutation(tuple((couple, order.argsort()) for couple, order in self.orders))

    def apply(self, model: nn.Module) -> None:
        """Re-order a model's coupled layers in place, and renumber the channels of S2FT adapters.

        model: a plain or an adapted one.
        Raises: TargetError if another method's adapter sits on a layer that is re-ordered.
        """
        host = base_of(model)
        modules = dict(walk(host))
        rows, columns = self._rows(), self._columns()
        layers = {p: m for p in (*rows, *columns) if isinstance(m := modules[p], IntarsiaLayer)}
        # Cells around a whole MLP or attention, where the experts hold copies of its order.
        wrapping_cells = [
            (p, n)
            for p, m in modules.items()
            if isinstance(m, IntarsiaLayer)
            for n, cell in m.intarsia_cells.items()
            if isinstance(cell, Cell) and cell.whole
            if any(q.startswith(f"{p}.") for q in (*rows, *columns))
        ]
        if wrapping_cells:
            subject, want = f"permutation inside {wrapping_cells[0][0]!r}", "a model without it"
            got = f"adapter {wrapping_cells[0][1]!r}, whose experts know the order of its units"
            raise TargetError(
                subject, got=got, want=want, fix="Permute before other adapters go in."
            )
        for path, layer in layers.items():
            for name, cell in layer.intarsia_cells.items():
                if not isinstance(cell, S2ftCell) or _side_of_path(path, rows) != cell.side:
                    got = f"adapter {name!r}, which has {type(cell).__name__}"
                    want = "cells of S2ft, which can follow it"
                    fix = "Permute the model before other adapters go in."
                    raise TargetError(f"permutation at {path!r}", got=got, want=want, fix=fix)
        # Nothing has been changed before this line: all refusals come first.
        for path, index in rows.items():
            reorder(unwrapped(modules[path]), index, 0)
        for path, index in columns.items():
            reorder(unwrapped(modules[path]), index, 1)
        # Channel i goes where the order lists it: the inverse order.
        new_places = {path: index.argsort() for path, index in (rows | columns).items()}
        for path, layer in layers.items():
            for cell in layer.intarsia_cells.values():
                assert isinstance(cell, S2ftCell)
                cell.renumber(new_places[path])
        if is_adapted(model):
            _update_configs(model, new_places)

    def renumber(self, method: S2ft) -> S2ft:
        """Return a method with its chosen channels under their new numbers."""
        index = self._rows() | self._columns()
        return _renumbered(method, {path: i.argsort() for path, i in index.items()})

    def _rows(self) -> dict[str, Tensor]:
        """Return the row order of each re-ordered layer, by path."""
        return {path: i for couple, order in self.orders for path, i in couple.rows(order).items()}

    def _columns(self) -> dict[str, Tensor]:
        """Return the column order of each re-ordered layer, by path."""
        return {p: i for couple, order in self.orders for p, i in couple.columns(order).items()}


def co_permute(model: nn.Module, method: S2ft) -> tuple[S2ft, Permutation]:
    """Re-order a model so that a method's channels are contiguous; return the method and the order.

    model: changed in place; method: settings with chosen channels, which are renumbered in the
      result. The units of each couple of layers come in the order: selected in up (or value) only,
      in both, in down (or projection) only, the rest. Contiguous channels are sliced instead of
      indexed.

    Raises: ConfigError for a method without channels; TargetError where these are no whole heads,
      layers are unknown, or a norm, a bias table or the like would have to follow; nothing is
      changed then.
    """
    if not method.channels:
        subject, fix = (
            "channels",
            "Call method = intarsia.methods.choose_channels(model, method) first.",
        )
        raise ConfigError(subject, got="none", want="those of choose_channels", fix=fix)
    channels_of_paths, orders = dict(method.channels), []
    for couple in couples(base_of(model)):
        if not any(path in channels_of_paths for path in couple.paths):
            continue
        if couple.stray:
            raise TargetError(
                f"permutation at {couple.out[0]!r}",
                got=f"{couple.stray[:2]} beside it",
                want="linear layers only: what else has a value for each channel or head would "
                "have to follow",
                fix="Train without co_permute: results are the same.",
            )
        # Four groups: in `into` alone, in both, in `out` alone, in none; each side's is then a run.
        in_rows = _selected_units(couple, channels_of_paths, couple.into)
        in_columns = _selected_units(couple, channels_of_paths, [(*couple.out, 1)])
        # stable, so that units that were neighbours stay so
        group = torch.where(in_rows, torch.where(in_columns, 1, 0), torch.where(in_columns, 2, 3))
        orders.append((couple, group.argsort(stable=True)))
    coupled = {path for couple, _ in orders for path in couple.paths}
    if uncoupled := sorted(channels_of_paths.keys() - coupled):
        got = "a layer that is coupled to none that is known"
        want = "an MLP of gate, up and down, or an attention of query, key, value and projection"
        fix = "Train without co_permute: results are the same."
        raise TargetError(f"permutation at {uncoupled[0]!r}", got=got, want=want, fix=fix)
    permutation = Permutation(tuple(orders))
    renumber = permutation.renumber(method)
    permutation.apply(model)
    return renumber, permutation


def _selected_units(
    couple: Couple, channels_of_paths: Mapping[str, str], layers: Sequence[tuple[str, int, int]]
) -> Tensor:
    units = torch.zeros(couple.units, dtype=torch.bool)
    for path, channels, parts in layers:
        if path not in channels_of_paths:
            continue
        width = channels // parts
        unit_width = width // couple.units
        count = torch.zeros(couple.units, dtype=torch.int64)
        ids = torch.tensor(read(channels_of_paths[path])) % width // unit_width
        # A head can only move as a whole: all of its channels are selected, or none.
        count.index_add_(0, ids, torch.ones_like(ids))
        if bool(((count > 0) & (count != unit_width)).any()):
            subject = f"permutation at {path!r}"
            got, want = (
                "a part of a head, or of a group of heads",
                f"all {unit_width} channels of one",
            )
            raise TargetError(
                subject, got=got, want=want, fix="Choose with intarsia.methods.choose_channels."
            )
        units |= count > 0
    return units


def _side_of_path(path: str, rows: Mapping[str, Tensor]) -> str:
    """Return the side on which a layer's channels are selected, "outputs" or "inputs"."""
    return "outputs" if path in rows else "inputs"


def _renumbered(method: S2ft, new_places: Mapping[str, Tensor]) -> S2ft:
    """Return the method with new channel numbers: i of a layer becomes new_places[layer][i]."""
    pairs = tuple(
        (p, spell(new_places[p][torch.tensor(read(text))].tolist()) if p in new_places else text)
        for p, text in method.channels
    )
    return replace(method, channels=pairs)


def _update_configs(model: PeftModel, new_places: Mapping[str, Tensor]) -> None:
    """Write the new channel numbers, and the digest of the re-ordered weights, into the configs."""
    for config in model.peft_config.values():
        assert isinstance(config, IntarsiaConfig)  # as all are of a model that is adapted
        method = config.settings()
        if isinstance(method, S2ft):
            config.options = settings_to_dict(_renumbered(method, new_places))
        # Loading an adapter checks the base model's digest, which the new order has changed.
        heads = list(config.modules_to_save or ())
        origin_now = origin.matched(None, model.get_base_model(), heads)
        config.origin = {**(config.origin or {}), **origin_now}
