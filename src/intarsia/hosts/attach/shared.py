"""Share state between the cells of one adapter; the first of them holds it.

A method that shares state gets, in `build(site, generator=, shared=)`, the module that its
`shared_state` made for all sites; every cell refers to it, and the first cell also registers it. So
it is saved, moved, cast, frozen, trained and deleted once, and as any cell is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ...core import Cell, Method, Site


class Shared:
    """Builder of the cells of one adapter.

    make: returns the module that they share, None = nothing. It is called with the first cell, so
    that the state is where that cell is, be it the meta device.
    """

    # None: the method shares nothing, and modules are built one by one
    def __init__(self, make: Callable[[], nn.Module] | None = None) -> None:
        self._make = make
        self._module: nn.Module | None = None

    def build(self, method: Method, site: Site, *, generator: torch.Generator) -> Cell:
        """Build the method's trainable module for a layer; all layers share one state."""
        if self._make is None:
            return method.build(site, generator=generator)
        first = self._module is None
        module = self._module = self._make() if self._module is None else self._module
        sharing: Any = method  # its `build` takes the shared state
        cell: Cell = sharing.build(site, generator=generator, shared=module)
        # registered once, by the first cell: state dicts would have it several times
        if first:
            cell.add_module("shared", module)
        return cell
