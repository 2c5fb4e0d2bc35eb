"""A package's public names, listed once: in the stub next to its file, for type checkers.

Each is imported when it is first used, so that importing the package costs nothing.
"""

from __future__ import annotations

import ast
import difflib
import functools
import importlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TOPICS = frozenset(
    {"codec", "coding", "experts", "memory", "offloading", "privacy"}
    | {"recommend", "search", "senses", "spans", "sparse"}
)
"""Namespaces whose names are chosen by hand; those of the other folders come from their cards."""


def homes(stub: Path) -> dict[str, str]:
    """Map a stub's names to modules, relative to its package; a module of the package itself to "".

    A module outside the package begins with a dot for each folder up: ".hosts.swap".
    """
    # a stub has relative imports only: module and names
    imports = (n for n in ast.parse(stub.read_text()).body if isinstance(n, ast.ImportFrom))
    return {
        alias.name: "." * (n.level - 1) + (n.module or "")
        for n in imports
        if n.level
        for alias in n.names
    }


@functools.cache
def namespaces() -> Mapping[str, str]:
    """Map every public name to the namespace in which a user finds it, "" for the top level.

    Of several namespaces the top level goes before the topics (`intarsia.sparse`), and these before
    the packages (`intarsia.methods`).
    """
    top = homes(ROOT / "__init__.pyi")
    spaces = [name for name, module in top.items() if not module]
    places: dict[str, str] = {}
    # packages first: topics then overwrite their names, and the top level both
    for space in sorted(spaces, key=TOPICS.__contains__):
        places |= dict.fromkeys(homes(_listing(space)), space)
    return places | {name: "" for name, module in top.items() if module}


def _listing(space: str) -> Path:
    """Return the file that lists a namespace's names: its stub, or else its `__init__.py`."""
    stubs = (ROOT / f"{space}.pyi", ROOT / space / "__init__.pyi")
    return next((stub for stub in stubs if stub.is_file()), ROOT / space / "__init__.py")


def public_path(name: str) -> str:
    """Return how a user writes a public name: "intarsia.Lora", "intarsia.routers.TopP"."""
    return ".".join(filter(None, ("intarsia", namespaces()[name], name)))


def hint(module: str, name: str, own: Iterable[str]) -> str:
    """Return what a name that a module does not have was meant for, as ". Did you mean Lora?".

    own: the module's names, which go before those of other modules.
    """
    everywhere = {n.casefold(): public_path(n) for n in namespaces()}
    if name.casefold() in everywhere:
        return f". It is {everywhere[name.casefold()]}."
    for names in ({n.casefold(): n for n in own}, everywhere):
        near = difflib.get_close_matches(name.casefold(), names, n=1, cutoff=0.75)
        if near:
            return f". Did you mean {names[near[0]]}?"
    return f". All names: dir({module})."


def exports(
    module: str, file: str
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return `__getattr__`, `__dir__` and `__all__` for a module that imports names when used.

    module: its `__name__`; file: its `__file__`. The public names, and the modules that define
    them, are read from the stub next to it, the same path with the ending .pyi.
    """
    modules = homes(Path(file).with_suffix(".pyi"))
    package = module if Path(file).stem == "__init__" else module.rpartition(".")[0]
    names = sorted(modules, key=str.casefold)

    def get(name: str) -> Any:
        """Import and return a public object of the package: its `__getattr__`."""
        if name not in modules:
            text = f"module {module!r} has no attribute {name!r}{hint(module, name, names)}"
            raise AttributeError(text, name=name)
        # a submodule that is public as a whole
        if not modules[name]:
            return importlib.import_module(f"{package}.{name}")
        return getattr(importlib.import_module(f".{modules[name]}", package), name)

    return get, lambda: names, names
