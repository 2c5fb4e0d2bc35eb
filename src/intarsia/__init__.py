"""Sparse and modular adaptation of pretrained PyTorch models.

model = intarsia.adapt(model, intarsia.Mosa(experts=4))
intarsia.fit(model, train, val, epochs=20)
stock = intarsia.fold(model)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .adapters import Bottleneck as Bottleneck
    from .adapters import Lora as Lora
    from .adapters import Ssf as Ssf
    from .core import Cell as Cell
    from .core import Partition as Partition
    from .core import Routing as Routing
    from .core import Site as Site
    from .core.errors import IntarsiaError as IntarsiaError
    from .data import backbone as backbone
    from .data import load_data as load_data
    from .hosts import adapt as adapt
    from .hosts import fold as fold
    from .hosts import load as load
    from .methods import Adamix as Adamix
    from .methods import Mosa as Mosa
    from .methods import Mosl as Mosl
    from .routers import passes as passes
    from .routers import redraw as redraw
    from .train import Training as Training
    from .train import evaluate as evaluate
    from .train import fit as fit

# name -> where it lives; read at first use, so that `import intarsia` costs nothing
_HOME = {
    "Adamix": "methods",
    "Bottleneck": "adapters",
    "Cell": "core",
    "IntarsiaError": "core.errors",
    "Lora": "adapters",
    "Mosa": "methods",
    "Mosl": "methods",
    "Partition": "core",
    "Routing": "core",
    "Site": "core",
    "Ssf": "adapters",
    "Training": "train",
    "adapt": "hosts",
    "backbone": "data",
    "evaluate": "train",
    "fit": "train",
    "fold": "hosts",
    "load": "hosts",
    "load_data": "data",
    "passes": "routers",
    "redraw": "routers",
}

__all__ = sorted(_HOME, key=str.casefold)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'intarsia' has no attribute {name!r}")
    return getattr(importlib.import_module(f"intarsia.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
